"""The checks of the exercises in notebook 10, on exported networks; see `exercises`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from distill.show.checking import exercise, expect


@exercise
def to_uint8(answer: Callable[..., Any]) -> None:
    def asked(values: np.ndarray) -> tuple[Any, Any, Any]:
        given = values.copy()
        found = answer(values)
        three = (
            isinstance(found, tuple | list)
            and len(found) == 3
            and [np.asarray(one).size for one in found[:2]] == [1, 1]
        )
        expect(three, "return three things in this order: the scale, the code of 0, and the codes")
        expect(np.array_equal(values, given), "the values themselves were changed; make new ones")
        return tuple(found)

    values = np.array([-1.0, -0.5, 0.0, 0.26, 3.0], dtype=np.float32)
    scale, zero, codes = asked(values)
    expect(np.isclose(scale, 4 / 255), "for values from -1 to 3 the scale is the range, 4, by the 255 steps")
    expect(int(zero) == 64, "for values from -1 to 3 the code of 0 is 64, the nearest to 1 / scale")
    codes = np.asarray(codes)
    expect(codes.dtype == np.uint8, f"the codes are {codes.dtype}; make them uint8")
    expect(
        codes.tolist() == [0, 32, 64, 81, 255],
        "the codes of -1, -0.5, 0, 0.26 and 3 are 0, 32, 64, 81 and 255: round, then add",
    )
    scale, zero, codes = asked(np.array([1.0, 4.0], dtype=np.float32))
    expect(int(zero) == 0, "0 needs a code too: where all values are positive, the range begins at 0")
    expect(np.asarray(codes).tolist() == [64, 255], "of the values 1 and 4 the codes are 64 and 255")
    _, zero, codes = asked(np.array([-4.0, -1.0], dtype=np.float32))
    expect(int(zero) == 255, "0 needs a code too: where all values are negative, the range ends at 0")
    expect(np.asarray(codes).tolist() == [0, 191], "of the values -4 and -1 the codes are 0 and 191")
    scale, zero, codes = asked(np.zeros(3, dtype=np.float32))
    nothing = [float(scale), int(zero), *np.asarray(codes).tolist()] == [1, 0, 0, 0, 0]
    expect(nothing, "where all values are 0, as in a channel that a ReLU shuts, the scale is 1 and all codes are 0")
    *_, codes = asked(np.array([-127.5, 127.5], dtype=np.float32))  # 128 + 128 is 256
    expect(int(codes[-1]) == 255, "the code of the largest value wrapped around: clip the codes to 0 and 255")


@exercise
def undominated(answer: Callable[..., Any]) -> None:
    def named(*points: tuple[float, float]) -> list[int]:
        places = list(answer(list(points)))
        expect(all(np.ndim(place) == 0 for place in places), "return indices into `points`, not the points themselves")
        return sorted(int(place) for place in places)

    expect(named((1.0, 0.5), (2.0, 0.6)) == [0, 1], "the quicker and the better one: neither is dominated")
    expect(named((1.0, 0.6), (2.0, 0.5)) == [0], "the second is slower and worse than the first")
    expect(named((2.0, 0.5), (1.0, 0.5)) == [1], "as good and quicker is better: the first is dominated")
    expect(named((1.0, 0.5), (1.0, 0.7)) == [1], "as quick and better is better: the first is dominated")
    expect(named((1.0, 0.5), (1.0, 0.5)) == [0, 1], "two equal points: neither dominates the other")
    points = [(3.0, 0.7), (1.0, 0.4), (2.0, 0.65), (2.5, 0.6), (4.0, 0.69), (2.7, 0.62)]
    expect(named(*points) == [0, 1, 2], "of six points, those at 1, 2 and 3 milliseconds remain")
