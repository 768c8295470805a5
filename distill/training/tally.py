"""The losses of an epoch so far, and its clocks; a checkpoint within the epoch keeps both."""

import time
from typing import Any

from torch import Tensor


class Clocks:
    """Seconds by the clock on the wall, and the processor's, which do not count while other programs have their turn.

    `before` are seconds that have passed already, as `read` gives them.
    """

    def __init__(self, before: dict[str, Any]) -> None:
        self.start = time.perf_counter() - before.get("seconds", 0.0)
        self.cpu_start = time.process_time() - before.get("cpu_seconds", 0.0)

    def read(self) -> dict[str, float]:
        seconds, cpu_seconds = time.perf_counter() - self.start, time.process_time() - self.cpu_start
        return {"seconds": round(seconds, 3), "cpu_seconds": round(cpu_seconds, 3)}


class Tally:
    """`unseen` are the losses of steps that nobody has looked at; `take` adds them to the sums once they were seen.

    `partial` is what a checkpoint within the epoch kept, or the clocks of what was done before its first step; `first`
    is the step to go on from.
    """

    def __init__(self, partial: dict[str, Any]) -> None:
        self.clocks = Clocks(partial)
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

    def unsaved_seconds(self) -> float:
        return time.perf_counter() - self.saved

    def partial(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps before this step; the clock of unsaved work begins anew."""
        self.saved = time.perf_counter()
        return {"step": step, "sums": self.sums, **self.clocks.read()}
