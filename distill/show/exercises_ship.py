"""The checks of the exercises in notebook 10, on exported networks; see `exercises`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from distill.show.checking import exercise, expect


@exercise
def to_uint8(answer: Callable[..., Any]) -> None:
    values = np.array([-1.0, -0.5, 0.0, 0.25, 3.0], dtype=np.float32)
    scale, zero, codes = answer(values)
    expect(np.isclose(scale, 4 / 255), "for values from -1 to 3 the scale is the range, 4, by the 255 steps")
    expect(int(zero) == 64, "for values from -1 to 3 the code of 0 is 64, the nearest to 1 / scale")
    codes = np.asarray(codes)
    expect(codes.dtype == np.uint8, f"the codes are {codes.dtype}; make them uint8")
    expect(codes.tolist() == [0, 32, 64, 80, 255], "the codes of -1, -0.5, 0, 0.25 and 3 are 0, 32, 64, 80 and 255")
    scale, zero, codes = answer(np.array([1.0, 4.0], dtype=np.float32))
    expect(int(zero) == 0, "0 needs a code too: where all values are positive, the range begins at 0")
    expect(np.asarray(codes).tolist() == [64, 255], "of the values 1 and 4 the codes are 64 and 255")


@exercise
def undominated(answer: Callable[..., Any]) -> None:
    def named(*points: tuple[float, float]) -> list[int]:
        return sorted(int(place) for place in answer(list(points)))

    expect(named((1.0, 0.5), (2.0, 0.6)) == [0, 1], "the quicker and the better one: neither is dominated")
    expect(named((1.0, 0.6), (2.0, 0.5)) == [0], "the second is slower and worse than the first")
    expect(named((2.0, 0.5), (1.0, 0.5)) == [1], "as good and quicker is better: the first is dominated")
    expect(named((1.0, 0.5), (1.0, 0.7)) == [1], "as quick and better is better: the first is dominated")
    expect(named((1.0, 0.5), (1.0, 0.5)) == [0, 1], "two equal points: neither dominates the other")
    points = [(3.0, 0.7), (1.0, 0.4), (2.0, 0.65), (2.5, 0.6), (4.0, 0.69)]
    expect(named(*points) == [0, 1, 2], "of five points, those at 1, 2 and 3 milliseconds remain")
