"""The exception that the package raises for a mistake of its user, and the sentences that several modules need."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Real

import torch


class DistillError(ValueError):
    """A mistake that the user can correct; its message is one sentence that says how."""

    def _render_traceback_(self) -> list[str]:
        """A notebook shows the sentence instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class Diverged(DistillError):
    """Training that stopped because its loss or its weights are no longer finite numbers."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop button, during training; the message says how to continue."""

    _render_traceback_ = DistillError._render_traceback_


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: what may have been meant, and what there is."""
    known = list(known)
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    if close and len(known) > 12:
        return f"; did you mean {close[0]!r}?"
    return f"{f'; did you mean {close[0]!r}? There are' if close else '; there are'} {', '.join(known)}"


def meant(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """In brackets, after an unknown name, the nearest of many; nothing where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_line(error: Exception) -> str:
    """Another library's message, short enough for a sentence."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else f"{line[:200]}…"


def shortened(value: object) -> str:
    """A value as a sentence shows it."""
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}…"


def check_number(name: str, value: float, least: float, most: float, whole: bool = True) -> None:
    """DistillError where an argument is not a number, or out of range."""
    number = isinstance(value, Real) and not isinstance(value, bool) and least <= value <= most  # NaN never is
    if not number or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise DistillError(f"{name} is {value!r}; give {kind} from {least:,} to {most:,}")


def lacking_memory(error: BaseException) -> str:
    """Whose memory is not enough, where an error says so, as a GPU, the CPU or a worker does; else nothing."""
    if isinstance(error, MemoryError):
        return "of this machine"
    if not isinstance(error, RuntimeError):
        return ""
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
        return "of the GPU"
    # Who kills a worker is the system, as a rule; "DataLoader worker process" tells of an error in one.
    signs = ("DefaultCPUAllocator", "DataLoader worker (pid", "shared memory")
    return "of this machine" if any(sign in str(error) for sign in signs) else ""


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Turn "out of memory", as a GPU or the CPU says it, into a DistillError that ends with `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        whose = lacking_memory(error)
        if not whose:
            raise
        if "DataLoader worker (pid" in str(error) or "shared memory" in str(error):
            advice = f"lower --workers, or {advice}"
        raise DistillError(f"the memory {whose} is not enough; {advice}") from None
