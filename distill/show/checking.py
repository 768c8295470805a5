"""Where the checks of exercises are entered, and how they say what is missing."""

from collections.abc import Callable
from typing import Any

CHECKS: dict[str, Callable[[Callable[..., Any]], None]] = {}


def exercise(test: Callable[[Callable[..., Any]], None]) -> Callable[[Callable[..., Any]], None]:
    """Register a check under its own name, which is that of the function or class that the reader writes."""
    CHECKS[test.__name__] = test
    return test


def expect(condition: object, sentence: str) -> None:
    """AssertionError with the sentence, which tells the reader what is missing, unless the condition holds."""
    if not condition:
        raise AssertionError(sentence)


def number(value: Any) -> float:
    """The one number that was returned, whatever its type: Python's, NumPy's or a tensor of one number."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        shape = getattr(value, "shape", None)
        what = type(value).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")
        raise AssertionError(f"return one number, not a {what}") from None
