"""The losses of an epoch so far, and its clock; a checkpoint within the epoch keeps both."""

import time
from typing import Any

from torch import Tensor


class Tally:
    """`unseen` are the losses of steps that nobody has looked at; `take` adds them to the sums once they were seen.

    `partial` is what a checkpoint within the epoch kept, {} at its start; `first` is the step to go on from.
    """

    def __init__(self, partial: dict[str, Any]) -> None:
        self.start = time.perf_counter() - partial.get("seconds", 0.0)
        self.saved = time.perf_counter()
        self.first: int = partial.get("step", 0)
        self.sums: dict[str, Tensor] = partial.get("sums", {})
        self.unseen: list[dict[str, Tensor]] = []

    def add(self, losses: dict[str, Tensor]) -> None:
        self.unseen.append(losses)

    def take(self, steps: list[dict[str, Tensor]]) -> None:
        for losses in steps:
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in losses.items()}
        self.unseen = []

    def means(self, steps: int) -> dict[str, float]:
        return {name: float(value) / steps for name, value in self.sums.items()}

    def seconds(self) -> float:
        return round(time.perf_counter() - self.start, 3)

    def unsaved_seconds(self) -> float:
        return time.perf_counter() - self.saved

    def partial(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps before this step; the clock of unsaved work begins anew."""
        self.saved = time.perf_counter()
        return {"step": step, "sums": self.sums, "seconds": time.perf_counter() - self.start}
