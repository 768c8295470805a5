"""Diagrams of networks and training, drawn by code in the style of `plots`; those of losses are in `diagrams`."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from distill.show.diagrams import _GRADIENT, _INK, _arrow, _box, _canvas, _number
from distill.show.plots import style


def training_step() -> Figure:
    """What one step of `distill.fit` does, in order, and what is kept from step to step."""
    steps = (
        ("batch", "images of this\nstep, mirrored\nby a coin", "data"),
        ("teacher", "its kept answer\nto that view", "teacher"),
        ("student", "logits and maps,\ndropout on", "student"),
        ("losses", "cross-entropy +\nweight × method", "loss"),
        ("backward", "a gradient for\neach weight", "plain"),
        ("clip", "student's gradient\nto length 5\nat most", "plain"),
        ("step", "AdamW moves\nthe weights", "plain"),
        ("schedule", "sets the next\nlearning rate", "plain"),
    )
    keeps = (
        (0, "seed and epoch\ngive the order"),
        (2, "weights, statistics,\nstate of dropout's\nrandom numbers"),
        (3, "weights of the\nconnectors"),
        (6, "running means\nof gradients and\ntheir squares"),
        (7, "number\nof the step"),
    )
    with style():
        figure = Figure(figsize=(10.4, 3.3))
        axis = _canvas(figure, 16.6, 5.2)
        for index, (name, what, fill) in enumerate(steps):
            left = 0.1 + 2.07 * index
            _box(axis, left, 2.9, 1.72, 0.85, name, fill)
            axis.text(left + 0.86, 2.75, what, ha="center", va="top", size=8.5, linespacing=1.25)
            _number(axis, left, 3.75, index + 1)
            if index:
                _arrow(axis, (left - 0.35, 3.32), (left, 3.32))
        axis.plot([15.45, 15.45, 0.96, 0.96], [3.75, 4.75, 4.75, 4.2], color=_INK, lw=1.2)
        _arrow(axis, (0.96, 4.3), (0.96, 3.75))
        axis.text(8.3, 4.83, "the next step, until the epoch is over", ha="center", va="bottom", size=9)
        axis.plot([0, 16.6], [1.5, 1.5], color=_GRADIENT, lw=0.8, ls=":")
        axis.text(0, 1.53, "kept, to go on after an interruption:", size=8.5, color=_GRADIENT, style="italic")
        for index, what in keeps:
            middle = 0.96 + 2.07 * index
            axis.text(middle, 1.32, what, ha="center", va="top", size=8.5, color=_GRADIENT, linespacing=1.25)
        axis.set(xlim=(-0.3, 16.7), ylim=(0.2, 5.3))
    return figure


def dilated_taps(size: int, rates: Sequence[int]) -> Figure:
    """Where a 3x3 convolution reads for the first place of a map of `size` places per side, for every dilation.

    The first place is a corner, from where the far taps reach as deep into the map as they can. A dot is a tap on the
    map, a cross one on the padding.
    """
    reach = max(rates)
    with style():
        figure = Figure(figsize=(2.3 * len(rates), 2.6))
        axes = figure.subplots(1, len(rates), squeeze=False)[0]
        for axis, rate in zip(axes, rates, strict=True):
            for row, column in np.ndindex(size, size):
                axis.fill([column, column + 1, column + 1, column], [row, row, row + 1, row + 1], fc="#CFE3F1", ec=_INK)
            for row, column in (rate * (np.indices((3, 3)).reshape(2, -1).T - 1)).tolist():
                inside = 0 <= row < size and 0 <= column < size
                look = {"marker": "o", "color": "#0072B2"} if inside else {"marker": "x", "color": _GRADIENT}
                axis.scatter(column + 0.5, row + 0.5, 45, zorder=3, **look)
            axis.set(xlim=(-reach, reach + 1.5), ylim=(reach + 1.5, -reach), aspect="equal")
            axis.set_title(f"dilation {rate}", loc="center")
            axis.axis("off")
    return figure
