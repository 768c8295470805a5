"""Losses and scores for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError

if TYPE_CHECKING:  # it may not be installed
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """Losses and scores as TensorBoard reads them, in the run's folder; does nothing unless asked to."""

    def __init__(self, folder: Path, wanted: bool) -> None:
        self.writer = _tensorboard(folder / "tensorboard") if wanted else None

    def __enter__(self) -> Board:
        return self

    def add(self, line: dict[str, Any]) -> None:
        """A line of the history."""
        if self.writer is not None:
            for name, value in line.items():
                self.writer.add_scalar(name, value, line["epoch"])
            self.writer.flush()

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()


def _tensorboard(folder: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise DistillError(
            "TensorBoard is not installed; run: pip install tensorboard, or leave out --tensorboard"
        ) from None
    return SummaryWriter(folder)
