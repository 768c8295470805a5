"""Ctrl-C during training: remembered, so that it ends the run even where Python drops it."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class CtrlC:
    """Remembers Ctrl-C inside a with-block, for `check` to raise it again.

    Python drops a KeyboardInterrupt that comes at certain moments, such as the start of a DataLoader's workers, and a
    run would go on as if nobody had pressed anything. Those workers, which a terminal tells too, end with the run, and
    not in tracebacks of their own.
    """

    def __enter__(self) -> "CtrlC":
        self.heard, self.process = False, os.getpid()
        before = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()  # the only one that may listen
        self.before: Callable[[int, FrameType | None], object] | None = before if main and callable(before) else None
        if self.before is not None:
            signal.signal(signal.SIGINT, self._hear)
        self.report, sys.unraisablehook = sys.unraisablehook, self._report
        return self

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.before is not None and os.getpid() == self.process:
            self.heard = True
            self.before(number, frame)

    def _report(self, dropped: "sys.UnraisableHookArgs") -> None:
        """In place of Python's report of an exception that it drops: nothing where that is Ctrl-C."""
        if dropped.exc_type is None or not issubclass(dropped.exc_type, KeyboardInterrupt):
            self.report(dropped)

    def check(self) -> None:
        if self.heard:
            raise KeyboardInterrupt

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
        sys.unraisablehook = self.report
        if self.heard and kind is not None and issubclass(kind, Exception):  # such as workers that heard it and ended
            raise KeyboardInterrupt from None


@contextmanager
def ctrl_c_after() -> Iterator[None]:
    """Ctrl-C inside this block comes at its end; pressed twice, it comes at once, as where a disk hangs.

    For what must not be left half done: a checkpoint that is written and not counted, or a DataLoader whose workers are
    being started, which Python takes apart with a traceback. Workers started inside leave Ctrl-C to this process.
    """
    before, process, pressed = signal.getsignal(signal.SIGINT), os.getpid(), 0
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1 and os.getpid() == process:
            before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        before(signal.SIGINT, None)
