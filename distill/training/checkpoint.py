"""Everything that a run needs to go on exactly where it was, in one file."""

import io
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from distill.errors import DistillError, lacking_memory
from distill.files import replace_file


class Part(Protocol):
    """What has a state, as networks, optimizers and schedules do."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


PARTS = ("student", "method", "optimizer", "schedule")  # of a run, each with a state


def write_checkpoint(
    path: Path, parts: dict[str, Part], told: dict[str, Any], device: torch.device, teacher: nn.Module | None
) -> None:
    """Replace the file by the states of all parts and of the random numbers, and `told`, which are plain values."""
    state = {name: part.state_dict() for name, part in parts.items()} | told | {"random": torch.get_rng_state()}
    if device.type == "cuda":
        state["random_on_device"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["random_on_device"] = torch.mps.get_rng_state()
    if teacher is not None and teacher.training:
        state["teacher_statistics"] = dict(teacher.named_buffers())
    with replace_file(path, lasting=True) as temporary:
        torch.save(state, temporary)


def read_checkpoint(
    path: Path,
    parts: dict[str, Part],
    device: torch.device,
    teacher: nn.Module | None = None,
    content: bytes | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Bring networks, optimizer, schedule and random numbers to where a checkpoint left them.

    Gives its history, the best epoch, and where it was in an epoch. `content` is that of the file, if it is known.

    The unpickler knows tensors and plain values only. Raises DistillError for everything that is not such a file, and
    lets through that the memory is not enough, for which the file is not to blame.
    """
    try:
        source = path if content is None else io.BytesIO(content)
        state = torch.load(source, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        if teacher is not None and "teacher_statistics" in state:
            teacher.load_state_dict(state["teacher_statistics"], strict=False)
        torch.set_rng_state(state["random"].cpu())
        if "random_on_device" in state and device.type == "cuda":
            torch.cuda.set_rng_state(state["random_on_device"].cpu(), device)
        elif "random_on_device" in state and device.type == "mps":
            torch.mps.set_rng_state(state["random_on_device"].cpu())
        return list(state["history"]), dict(state["best"]), dict(state.get("partial", {}))
    except Exception as error:  # a damaged file, or a stranger's, can raise anything
        if lacking_memory(error):
            raise
        raise DistillError(
            f"{path} cannot be read ({type(error).__name__}), so the run cannot resume; delete {path.parent} to start "
            f"again"
        ) from None
