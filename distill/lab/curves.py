"""What learning curves and seeds show: whether a run has converged, which is ahead at equal time, and whether a gain is
settled.

A curve is in a run's record (see `tables.record`): its `history` says at which epochs the validation images were
scored. Epochs of a run take equally long, so that a curve over seconds follows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from distill.training.settings import with_every_setting

POINT = 0.01  # of mIoU
MANY = 1000  # seeds
WHOLE = 0.85  # of a schedule: as much as tells how it ends


def _quantile(values: int) -> float:
    """The two-sided 95 % quantile of Student's t for the mean of so many values."""
    return float(stdtrit(values - 1, 0.975))


def interval95(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean (Student's t); NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan")
    return _quantile(len(values)) * float(np.std(values, ddof=1)) / len(values) ** 0.5


def seeds_to_settle(values: Sequence[float]) -> int | None:
    """How many seeds bring the interval of the mean to ± one point, if they scatter as these do.

    None for a single value, which tells nothing about scatter; MANY for that many or more.
    """
    if len(values) < 2:
        return None
    scatter = float(np.std(values, ddof=1))
    return next((n for n in range(2, MANY) if _quantile(n) * scatter / n**0.5 <= POINT), MANY)


def verdict(gains: Sequence[float]) -> str:
    """Of gains over a baseline, one per seed: `better` or `worse` where the interval of their mean excludes zero."""
    mean, half = float(np.mean(gains)), interval95(gains)
    if abs(mean) > half:  # never of NaN
        return "better" if mean > 0 else "worse"
    return "not settled"


def p_value(gains: Sequence[float]) -> float | None:
    """The two-sided p-value of a mean gain (paired t-test against no gain); None for fewer than two gains."""
    if len(gains) < 2:
        return None
    scatter = float(np.std(gains, ddof=1))
    if scatter == 0:
        return 1.0 if np.mean(gains) == 0 else 0.0
    t = float(np.mean(gains)) * len(gains) ** 0.5 / scatter
    return float(2 * stdtr(len(gains) - 1, -abs(t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: where one is below 0.05, at most one family in twenty holds a false one.

    Holm (1979), "A simple sequentially rejective multiple test procedure": the smallest is multiplied by their number,
    the next by one less, and so on, and none becomes smaller than the one before it. They may depend on each other, as
    gains over the same baseline do.
    """
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected


def scored(entry: dict[str, Any]) -> list[tuple[int, float]]:
    """(epoch, mIoU on val), in order."""
    lines = entry.get("history") or []
    return [(line["epoch"], line["val_miou"]) for line in lines if "val_miou" in line]


def late_rise(entry: dict[str, Any]) -> float | None:
    """How far the mIoU on val rose over the last quarter of a run; None where it was scored too rarely to tell."""
    before = at_share(entry, 0.75)
    return None if before is None else scored(entry)[-1][1] - before


def at_share(entry: dict[str, Any], share: float) -> float | None:
    """The mIoU on val that a run had reached after this share of its epochs; None where it was not scored by then."""
    curve = scored(entry)
    if not curve or share * curve[-1][0] < curve[0][0]:
        return None
    epochs, scores = zip(*curve, strict=True)
    return float(np.interp(share * epochs[-1], epochs, scores))


def gain_at_equal_time(
    entry: dict[str, Any], baseline: dict[str, Any], seconds: float, baseline_seconds: float
) -> float | None:
    """The lead on val at the moment when the faster of two runs finishes; their durations in seconds.

    None where the slower run had by then gone through less than WHOLE of its schedule: its rate had not fallen yet, and
    what it scores at a high rate is not what a schedule of that length would give.
    """
    end = min(seconds, baseline_seconds)
    if end <= 0 or end < WHOLE * max(seconds, baseline_seconds):
        return None
    own, other = at_share(entry, end / seconds), at_share(baseline, end / baseline_seconds)
    return None if own is None or other is None else own - other


_ALIKE = ("data", "backbone", "model", "method", "seed", "images", "unlabelled", "terms", "teacher")


def twice_as_long(entry: dict[str, Any], others: Sequence[dict[str, Any]], score: str = "val_miou") -> float | None:
    """What twice the epochs add to a score, that on val, all else being equal; None if no such run is among the others.

    The better test of convergence: each run has a whole schedule, and a rate that falls to zero raises the end of any.
    """
    for other in others:
        same = all(other.get(key) == entry.get(key) for key in _ALIKE)
        twice = other["settings"]["epochs"] == 2 * entry["settings"]["epochs"]
        if same and twice and _but_epochs(other) == _but_epochs(entry):
            return float(other[score] - entry[score])
    return None


def _but_epochs(entry: dict[str, Any]) -> dict[str, Any]:
    """A setting that did not exist yet when a run was made had its default."""
    return {
        key: value
        for key, value in with_every_setting(entry["settings"]).items()
        if key not in ("epochs", "evaluate_every")
    }
