"""The sentences that several modules share."""

import numpy as np
import pytest
import torch

from distill import DistillError
from distill.errors import check_number, enough_memory, first_line, nearest


@pytest.mark.parametrize("value", [1, 5, 3.0, np.int64(4)])
def test_numbers_that_make_sense(value: float) -> None:
    check_number("n", value, 1, 5)


@pytest.mark.parametrize("value", [0, 6, 2.5, float("nan"), float("inf"), "3", None, True, 10**400, np.float32("nan")])
def test_numbers_that_do_not(value: object, refused) -> None:
    refused("n is", "give a whole number from 1 to 5", call=lambda: check_number("n", value, 1, 5))


def test_the_nearest_name_is_suggested_only_where_it_is_near() -> None:
    assert nearest("Resnet81", ["resnet18", "mobilenetv2"]).startswith("; did you mean 'resnet18'? There are resnet18,")
    assert nearest("vgg", ["resnet18"]) == "; there are resnet18"


def test_the_first_line_of_what_another_library_says() -> None:
    assert first_line(ValueError("a\nb")) == "a" and first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("a" * 1000)) == "a" * 200 + "…"


def test_a_lack_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("never said"):
        raise RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="process 0"), enough_memory("never said"):
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.")
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    for error, advice in (
        (MemoryError(), "of this machine is not enough; lower it"),
        (torch.OutOfMemoryError("CUDA out of memory"), "of the GPU is not enough; lower it"),
        (RuntimeError("CUDA error: out of memory"), "of the GPU is not enough; lower it"),
        (killed, "lower --workers, or lower it"),
        (RuntimeError("unable to allocate shared memory(shm) for file"), "lower --workers, or lower it"),
    ):
        with pytest.raises(DistillError, match=advice), enough_memory("lower it"):
            raise error
