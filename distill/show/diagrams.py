"""Diagrams drawn by code, in the style of `plots`: how the parts of distillation hang together.

Every function returns a matplotlib Figure on white, for JupyterLab's light and dark pages alike; `plots.display` shows
it with its alternative text. Parts differ in hatch and line as well as in colour.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, FancyBboxPatch
from torch import Tensor

from distill.show.charts import KIND_LOOKS
from distill.show.plots import readable_on, style

_FILLS = {
    "data": "#F2F2F2",
    "teacher": "#CFE3F1",
    "student": "#FBE3C0",
    "loss": "#CDEBDD",
    "plain": "#FFFFFF",
}
_INK = "#222222"
_GRADIENT = "#B24700"


def teacher_student_loss() -> Figure:
    """One step of distillation: the same images through both networks, two losses, and where the gradient goes."""
    with style():
        figure = Figure(figsize=(9.6, 4.1))
        axis = _canvas(figure, 12.6, 5.4)
        _box(axis, 0.1, 2.0, 1.5, 1.0, "images", "data")
        _box(axis, 2.6, 3.4, 2.4, 1.2, "teacher\nfrozen, eval mode", "teacher")
        _box(axis, 2.6, 0.9, 2.4, 1.2, "student\nlearns", "student")
        _box(axis, 6.3, 0.95, 1.6, 1.1, "connectors\nlearn, too", "student", dashed=True)
        _box(axis, 8.5, 2.75, 1.9, 1.3, "distillation\nloss × weight", "loss")
        _box(axis, 8.5, 0.35, 1.9, 1.0, "cross-\nentropy", "loss")
        _box(axis, 11.4, 1.65, 1.0, 1.0, "sum", "loss")
        _box(axis, 6.3, -0.75, 1.6, 0.8, "labels", "data")
        _arrow(axis, (1.6, 2.7), (2.6, 3.8))
        _arrow(axis, (1.6, 2.3), (2.6, 1.7))
        _arrow(axis, (5.0, 3.75), (8.5, 3.55), "logits, maps", above=-0.42)
        _arrow(axis, (5.0, 1.9), (8.5, 3.0), "logits", above=0.2)
        _arrow(axis, (5.0, 1.5), (6.3, 1.5), "maps", above=0.1)
        _arrow(axis, (7.9, 1.75), (8.8, 2.75))
        _arrow(axis, (5.0, 1.0), (8.5, 0.75), "logits", above=-0.45)
        _arrow(axis, (7.9, -0.2), (8.5, 0.45))
        _arrow(axis, (10.4, 3.2), (11.6, 2.65))
        _arrow(axis, (10.4, 0.9), (11.5, 1.65))
        axis.plot([11.9, 11.9, 3.8, 3.8], [1.65, -1.3, -1.3, 0.6], color=_GRADIENT, lw=1.2, ls=(0, (4, 2)))
        _arrow(axis, (3.8, 0.5), (3.8, 0.88), gradient=True)
        axis.text(9.9, -1.2, "gradient, to student and connectors", color=_GRADIENT, size=9, ha="center", va="bottom")
        _arrow(axis, (8.5, 3.85), (5.05, 4.25), gradient=True)
        axis.text(6.5, 4.08, "✕", color=_GRADIENT, size=15, ha="center", va="center", weight="bold")
        axis.text(6.75, 4.25, "no gradient: detached", color=_GRADIENT, size=9)
        axis.set(xlim=(0, 12.5), ylim=(-1.5, 4.8))
    return figure


def deeplab_positions(shapes: Sequence[tuple[int, ...]]) -> Figure:
    """DeepLabV3+ from image to logits, its six positions numbered; `shapes`: (channels, height, width) at each."""
    stages = ("layer1", "layer2", "layer3", "layer4", "ASPP")
    with style():
        figure = Figure(figsize=(9.6, 3.6))
        axis = _canvas(figure, 13.2, 4.8)
        _box(axis, 0.0, 2.6, 1.1, 1.2, "image", "data")
        _box(axis, 1.6, 2.6, 1.0, 1.2, "stem", "plain")
        lefts = [3.1 + 1.75 * index for index in range(5)]
        for left, name in zip(lefts, stages, strict=True):
            _box(axis, left, 2.6, 1.25, 1.2, name, "teacher" if name != "ASPP" else "loss")
        _box(axis, 8.35, 0.0, 2.25, 1.1, "decoder\njoins both", "loss")
        _box(axis, 11.9, 0.05, 1.2, 1.0, "logits", "data")
        edges = [(1.1, 1.6), (2.6, 3.1), *((left + 1.25, left + 1.75) for left in lefts[:-1])]
        for start, end in edges:
            _arrow(axis, (start, 3.2), (end, 3.2))
        axis.plot([3.25, 3.25, 8.2], [2.6, 0.4, 0.4], color=_INK, lw=1.2)
        _arrow(axis, (8.0, 0.4), (8.35, 0.4))
        axis.text(5.8, 0.5, "the fine map of layer1, for sharp borders", size=9, ha="center", va="bottom")
        _arrow(axis, (10.7, 2.6), (9.9, 1.1))
        axis.text(10.45, 1.6, "resized", size=9)
        _arrow(axis, (10.6, 0.55), (11.9, 0.55))
        axis.plot([1.6, 1.6, 9.6, 9.6], [4.15, 4.3, 4.3, 4.15], color=_INK, lw=1.0)
        axis.text(5.6, 4.38, "backbone", size=10, style="italic", ha="center")
        places = [(left + 1.25, 3.8) for left in lefts] + [(10.6, 1.1)]
        for number, ((x, y), shape) in enumerate(zip(places, shapes, strict=True), start=1):
            _number(axis, x, y, number)
            channels, height, width = shape
            below = (x - 0.55, 2.5) if number < 5 else (x + 0.25, 2.5) if number == 5 else (9.47, -0.08)
            text = f"{channels} ch.\n{height} × {width}"
            axis.text(*below, text, ha="center", va="top", size=9)
        axis.set(xlim=(-0.1, 13.2), ylim=(-0.9, 4.9))
    return figure


def ofd_target(margin: float = -0.8) -> Figure:
    """OFD at one value: the target t' = max(t, m), and the loss of a student's s for three answers of the teacher."""
    values = np.linspace(-3, 3, 601)
    with style():
        figure = Figure(figsize=(9.4, 3.6))
        left, right = figure.subplots(1, 2)
        left.plot(values, np.maximum(values, margin), color="#0072B2", lw=2)
        left.plot(values, values, color="#777777", lw=1, ls=":")
        left.annotate("t' = t", (1.6, 1.6), (-12, 6), textcoords="offset points", ha="right")
        left.annotate("margin m", (-2.9, margin), (0, 5), textcoords="offset points")
        left.annotate("t itself", (-2.4, -2.4), (8, -4), textcoords="offset points", color="#555555")
        left.set(title="the target", xlabel="teacher's value t", ylabel="target t'", ylim=(-3, 3))
        looks = ((1.2, "#009E73", "-"), (-0.4, "#D55E00", "--"), (-2.0, "#7A5195", ":"))
        for teacher, colour, dashes in looks:
            target = max(teacher, margin)
            counts = (values > target) | (target > 0)
            kind = "active" if teacher > 0 else "silent" if target == teacher else "below the margin"
            label = f"t = {teacher:g}, {kind}: t' = {target:g}"
            right.plot(values, np.where(counts, (values - target) ** 2, 0), color=colour, ls=dashes, lw=2, label=label)
        right.set(title="what the student pays", xlabel="student's value s", ylabel="loss", ylim=(-0.2, 6.5))
        figure.legend(loc="outside lower center", ncols=3, fontsize=9)
        for axis in (left, right):
            axis.axvline(0, color="#BBBBBB", lw=0.8, zorder=0)
            axis.axhline(0, color="#BBBBBB", lw=0.8, zorder=0)
            axis.grid()
    return figure


def sakd_steps(g: Tensor) -> Figure:
    """SAKD on one small map g (H, H), every number shown: A, both softmaxes, what is added, g', and its unit vector."""
    products = g @ g.T
    by_column, by_row = products.softmax(dim=0), products.softmax(dim=1)
    added = (by_column * g + by_row * g) / g.shape[1] ** 0.5
    attended = g + added
    panels = {
        "g": ("g", g, "column", "row"),
        "A": ("A = g gᵀ", products, "row j", "row i"),
        "1": ("softmax₁(A)", by_column, "row j", "row i"),
        "2": ("softmax₂(A)", by_row, "row j", "row i"),
        "+": ("added", added, "column", "row"),
        "'": ("g' = g + added", attended, "column", "row"),
        "u": ("g' / ‖g'‖", attended / attended.norm(), "column", "row"),
    }
    words = (
        "g: how strongly each place responds\n"
        "A: each row times each row\n"
        "softmax₁: every column adds up to 1\n"
        "softmax₂: every row adds up to 1\n"
        "added: (softmax₁ ⊙ g + softmax₂ ⊙ g) / √W,\n"
        "place by place\n"
        "last, g' is divided by its length"
    )
    with style():
        figure = Figure(figsize=(10.6, 4.7))
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.set(wspace=0.12, hspace=0.22, h_pad=0.08)  # type: ignore[call-arg]  # room for the arrows
        axes = figure.subplot_mosaic("gA1+';..2.u", empty_sentinel=".")
        for key, (title, values, xlabel, ylabel) in panels.items():
            _matrix(axes[key], values.numpy(), title, xlabel, ylabel)
        for start, end in ("gA", "A1", "A2", "1+", "2+", "+'", "'u"):
            _between(figure, axes[start], axes[end])
        figure.text(0.01, 0.42, words, size=9.5, va="top", linespacing=1.6)
    return figure


def family(groups: Mapping[str, Mapping[str, str]], question: Mapping[str, str]) -> Figure:
    """Methods by what they compare: `groups[kind][method]` is a line about one, `question[kind]` what is asked.

    Each kind has the colour that it has in `charts.leaderboard_chart`.
    """
    rows = sum(len(methods) for methods in groups.values())
    with style():
        figure = Figure(figsize=(9.6, 0.8 + 0.36 * (rows + len(groups) * 0.5)))
        axis = _canvas(figure, 13, rows)
        top, centres = 0.0, []
        for kind, methods in groups.items():
            fill = _tint(KIND_LOOKS[kind][0])
            height = len(methods)
            centre = top - (height - 1) / 2
            centres.append(centre)
            _box(axis, 2.6, centre - 0.62, 4.3, 1.24, f"{kind}\n{question[kind]}", fill, size=9)
            for index, (name, line) in enumerate(methods.items()):
                y = top - index
                _box(axis, 7.9, y - 0.36, 1.55, 0.72, name, fill, size=9)
                axis.text(9.65, y, line, va="center", size=9)
                axis.plot([6.9, 7.4, 7.4, 7.9], [centre, centre, y, y], color=_INK, lw=0.8, zorder=0)
            top -= max(height, 1.4) + 0.6
        middle = (centres[0] + centres[-1]) / 2
        _box(axis, 0.0, middle - 0.9, 1.7, 1.8, "what is\ncompared?", "plain")
        for centre in centres:
            axis.plot([1.7, 2.15, 2.15, 2.6], [middle, middle, centre, centre], color=_INK, lw=0.8, zorder=0)
        axis.set(xlim=(-0.1, 13), ylim=(top + 0.7, 0.9))
    return figure


# ------------------------------------------------------------------------------------------------ parts


def _tint(colour: str) -> str:
    """A light one, on which black text can be read."""
    red, green, blue = (1 - 0.3 * (1 - part) for part in to_rgb(colour))
    return to_hex((red, green, blue))


def _canvas(figure: Figure, width: float, height: float) -> Axes:
    axis = figure.subplots()
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    return axis


def _box(
    axis: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str,
    fill: str,
    dashed: bool = False,
    size: float = 10,
) -> None:
    axis.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.12",
            fc=_FILLS.get(fill, fill),
            ec=_INK,
            lw=1,
            ls="--" if dashed else "-",
        )
    )
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", size=size, linespacing=1.3)


def _arrow(
    axis: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    above: float = 0.15,
    gradient: bool = False,
) -> None:
    looks: dict[str, Any] = {"arrowstyle": "-|>", "color": _GRADIENT if gradient else _INK, "lw": 1.2}
    looks |= {"ls": (0, (4, 2)) if gradient else "-", "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=looks)
    if text:
        axis.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + above, text, ha="center", size=9)


def _number(axis: Axes, x: float, y: float, number: int) -> None:
    axis.scatter(x, y, 330, color=_INK, edgecolor="white", zorder=3)
    axis.text(x, y - 0.01, str(number), color="white", ha="center", va="center", size=9, weight="bold", zorder=4)


def _matrix(axis: Axes, values: np.ndarray, title: str, xlabel: str, ylabel: str) -> None:
    """A small matrix as coloured squares with its numbers, rows and columns counted from 0, as in code."""
    picture = axis.imshow(values, cmap="cividis")
    for (row, column), value in np.ndenumerate(values):
        colour = readable_on(picture.cmap(picture.norm(value)))
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", size=8, color=colour)
    height, width = values.shape
    axis.set_xticks(range(width))
    axis.set_yticks(range(height))
    axis.tick_params(length=0, labelsize=8)
    axis.set_title(title, size=9, loc="center")
    axis.set_xlabel(xlabel, size=8, labelpad=1)
    axis.set_ylabel(ylabel, size=8, labelpad=1)
    axis.spines[:].set_visible(False)


def _between(figure: Figure, start: Axes, end: Axes) -> None:
    """An arrow from the edge of one picture to that of the other."""
    first, last = start.get_subplotspec(), end.get_subplotspec()
    assert first is not None and last is not None
    right = last.colspan.start - first.colspan.start
    down = last.rowspan.start - first.rowspan.start
    ends = ((1.03, 0.5), (-0.24, 0.5))
    if down > 0:
        ends = ((0.9, -0.2), (-0.2, 0.8)) if right else ((0.5, -0.24), (0.5, 1.18))
    elif down < 0:
        ends = ((1.03, 0.8), (0.1, -0.24))
    figure.add_artist(
        ConnectionPatch(
            *ends, "axes fraction", "axes fraction", axesA=start, axesB=end, arrowstyle="-|>", color=_GRADIENT, lw=1.5
        )
    )
