"""Settings: what each may be, in one place, and one sentence about all else."""

import math
import pickle
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from distill.training.presets import choose_settings
from distill.training.settings import Settings, choices_of, what_to_give

MISTAKES = [
    ("epochs", 0, "epochs is 0; give a whole number from 1 to 1,000,000"),
    ("epochs", 2.5, "epochs is 2.5; give a whole number from 1 to 1,000,000"),
    ("epochs", "3", "epochs is '3'; give a whole number from 1 to 1,000,000"),
    ("workers", True, "workers is True; give a whole number from 0 to 256"),
    ("batch_size", 1, "batch_size is 1; BatchNorm needs two images per batch; give a whole number from 2 to 100,000"),
    ("lr", math.nan, "lr is nan; give a number from 1e-09 to 1,000.0"),
    ("clip", math.inf, "clip is inf; give a number from 0.0 to 1,000,000,000.0"),
    ("weight_decay", False, "weight_decay is False; give a number from 0.0 to 100.0"),
    ("compile", "no", "compile is 'no'; give True or False"),
    ("nesterov", "off", "nesterov is 'off'; give True or False"),
    ("augment", "x", "augment is 'x'; choose flip or crops"),
    ("augment", ["crops"], "augment is ['crops']; choose flip or crops"),
    ("output_stride", 12, "output_stride is 12; choose 8 or 16"),
    ("cache", 3, "cache is 3; give the path of a folder"),
]


@pytest.mark.parametrize("name, value, sentence", MISTAKES)
def test_a_setting_that_cannot_be_so_is_one_sentence(name: str, value: object, sentence: str, refused) -> None:
    assert refused(name, call=lambda: choose_settings("sample", "matched", {name: value})) == sentence
    with pytest.raises(ValidationError):
        replace(Settings(), **{name: value})


def test_numbers_of_numpy_whole_floats_and_paths_become_plain_values() -> None:
    given = {"epochs": np.int64(3), "batch_size": 12.0, "lr": np.float32(0.5), "clip": 3, "compile": np.bool_(True)}
    given |= {"output_stride": np.int64(8), "crop_size": np.float64(32), "cache": Path("a") / "b", "augment": "crops"}
    chosen = asdict(choose_settings("sample", "matched", given))
    expected = {"epochs": 3, "batch_size": 12, "lr": 0.5, "clip": 3.0, "compile": True, "output_stride": 8}
    expected |= {"crop_size": 32, "cache": str(Path("a") / "b"), "augment": "crops"}
    assert {name: chosen[name] for name in expected} == expected
    assert all(type(chosen[name]) is type(value) for name, value in expected.items())


def test_settings_are_a_dataclass_and_say_what_they_may_be() -> None:
    assert pickle.loads(pickle.dumps(Settings())) == Settings() == Settings(**asdict(Settings()))
    for field in fields(Settings):
        assert getattr(Settings(), field.name) == field.default and what_to_give(field.name)
    assert choices_of("precision") == ("auto", "float32", "bfloat16") and choices_of("epochs") == ()
