"""Charts of the results of runs: scores, gains, costs and learning curves, in the style of `plots`.

Methods differ in marker as well as in colour.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.patheffects
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from distill.show.plots import readable_on, style

# Okabe and Ito's colours, which colour-blind readers tell apart, and a marker for each.
LOOKS: dict[str, tuple[str, str]] = {
    "baseline": ("#777777", "o"),
    "kd": ("#0072B2", "s"),
    "at": ("#E69F00", "^"),
    "ofd": ("#009E73", "D"),
    "sakd": ("#D55E00", "v"),
    "kd+sakd": ("#CC79A7", "P"),
    "sakd-plain": ("#F0E442", "<"),
    "teacher": ("#000000", "*"),
}
_SPARE = tuple((colour, marker) for marker in ("X", "p", "h", "d") for colour in ("#56B4E9", "#7A5195", "#4D4D4D"))
_NEWER = ("mse", "fitnet", "cwd", "skd", "ifvd", "cwd-maps", "dist", "cirkd", "nfd", "icsd", "attnfd")
LOOKS |= dict(zip(_NEWER, _SPARE, strict=False))
# By what methods compare, as in `diagrams.family`, where no method has a look of its own.
KIND_LOOKS = {
    "logits": LOOKS["kd"],
    "places": LOOKS["at"],
    "channels": LOOKS["ofd"],
    "pairs": LOOKS["kd+sakd"],
    "classes": LOOKS["sakd"],
}
_NETWORKS = {"resnet18": "ResNet-18", "mobilenetv2": "MobileNetV2", "resnet101": "ResNet-101"}
_METHODS = {"fitnet": "FitNet", "attnfd": "AttnFD"}  # the others are written in capitals
_GAIN = "gain over the baseline, points of mIoU"


def gain_chart(rows: Sequence[dict[str, Any]]) -> Figure:
    """Mean gain over the baseline with its 95 % interval, in points of mIoU, a panel for each student.

    `rows` are those of `lab.tables.compare`; rows without a gain are left out. A single seed has no interval.
    """
    return _dot_panels(_by_student([row for row in rows if "gain" in row]), "gain", _GAIN, 0.0, "")


def leaderboard_chart(panels: Mapping[str, Sequence[dict[str, Any]]], kinds: Mapping[str, str]) -> Figure:
    """Mean gains with their 95 % intervals, a panel for each comparison by its title; rows as for `gain_chart`.

    `kinds[method]` is what a method compares, one of `KIND_LOOKS`, which gives it colour and marker.
    """
    figure = _dot_panels(panels, "gain", _GAIN, 0.0, "", kinds=kinds)
    there = [kind for kind in KIND_LOOKS if kind in {kinds[row["method"]] for rows in panels.values() for row in rows}]
    looks = [(kind, *KIND_LOOKS[kind]) for kind in there]
    with style():
        handles = [
            Line2D([], [], color=colour, marker=marker, ls="", mec="black", mew=0.6) for _, colour, marker in looks
        ]
        figure.legend(handles, there, ncols=len(there), loc="outside upper left", title="what is compared")
    return figure


def closed_chart(rows: Sequence[dict[str, Any]]) -> Figure:
    """The share of the gap between baseline and teacher that each method closes, with the gain's 95 % interval.

    `rows` are those of `lab.tables.compare` with a teacher's score; 0 % is the baseline, 100 % the teacher.
    """
    rows = [row for row in rows if "closed" in row]
    return _dot_panels(
        _by_student(rows), "closed", "share of the gap to the teacher closed, %", 1.0, "teacher", start=0.0
    )


def _by_student(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    panels: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        panels.setdefault(network_name(row["backbone"]), []).append(row)
    return panels


def _dot_panels(
    panels: Mapping[str, Sequence[dict[str, Any]]],
    key: str,
    xlabel: str,
    line: float,
    line_name: str,
    start: float | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Figure:
    """`kinds`: where colour and marker are those of what a method compares; names then stay as they are typed."""
    longest = max((len(panel) for panel in panels.values()), default=1)
    with style():
        figure = Figure(figsize=(4.4 * max(1, len(panels)), 1.1 + 0.36 * longest))
        axes = figure.subplots(1, max(1, len(panels)), squeeze=False, sharex=True)[0]
        for axis, (title, panel) in zip(axes, panels.items(), strict=False):
            for y, row in enumerate(panel):
                colour, marker = KIND_LOOKS[kinds[row["method"]]] if kinds else _look(row["method"])
                interval = 100 * np.nan_to_num(row[f"{key}_interval"])
                axis.errorbar(
                    100 * row[key], y, xerr=interval, fmt=marker, color=colour, capsize=4, ms=7, mec="black", mew=0.6
                )
            names = [row["method"] if kinds else method_name(row["method"]) for row in panel]
            axis.set(yticks=range(len(panel)), yticklabels=names, ylim=(len(panel) - 0.4, -0.6), xlabel=xlabel)
            axis.axvline(100 * line, color="black", lw=1, ls="--" if line_name else "-", zorder=1)
            if line_name:
                axis.annotate(line_name, (100 * line, -0.55), (-4, 0), textcoords="offset points", ha="right", va="top")
            if start is not None:
                axis.axvline(100 * start, color="black", lw=1, zorder=1)
            axis.set_title(title)
            axis.grid(axis="x")
    return figure


def variant_chart(tables: Mapping[str, Sequence[dict[str, Any]]], label: str = _GAIN) -> Figure:
    """The gains of a study's variants below each other, `tables[variant]` as from `compare`, a panel per student.

    `label` says over what they are gains.
    """
    rows = [row for table in tables.values() for row in table if "gain" in row]
    names = [name for name, table in tables.items() if any("gain" in row for row in table)]
    students, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("backbone", "method"))
    step = 0.7 / max(1, len(methods))
    with style():
        figure = Figure(figsize=(2.2 + 4.4 * max(1, len(students)), 1.3 + (0.25 + 0.2 * len(methods)) * len(names)))
        axes = figure.subplots(1, max(1, len(students)), squeeze=False, sharex=True, sharey=True)[0]
        for axis, student in zip(axes, students, strict=False):
            for index, method in enumerate(methods):
                colour, marker = _look(method)
                points = [
                    (place + (index - (len(methods) - 1) / 2) * step, row)
                    for place, name in enumerate(names)
                    for row in tables[name]
                    if (row["backbone"], row["method"]) == (student, method) and "gain" in row
                ]
                axis.errorbar(
                    [100 * row["gain"] for _, row in points],
                    [place for place, _ in points],
                    xerr=[100 * np.nan_to_num(row["gain_interval"]) for _, row in points],
                    **{"fmt": marker, "color": colour, "capsize": 3, "ms": 6, "mec": "black", "mew": 0.6},
                    label=method_name(method),
                )
            for place in range(1, len(names)):
                axis.axhline(place - 0.5, color="#DDDDDD", lw=0.8, zorder=0)
            labels = [textwrap.fill(name, 26) for name in names]
            axis.set(yticks=range(len(names)), yticklabels=labels, ylim=(len(names) - 0.5, -0.5))
            axis.set(title=network_name(student), xlabel=label)
            axis.axvline(0, color="black", lw=1, zorder=1)
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="x")
        _legend_above(figure, len(methods))
    return figure


def label_chart(lines: Mapping[str, Mapping[int, tuple[float, float]]], teacher_miou: float | None = None) -> Figure:
    """mIoU against the number of labelled images: `lines[label][images]` is a mean and half an interval, as shares.

    A label that begins with a method's name gets its colour and marker; those with more words after a comma are dashed.
    """
    with style():
        figure = Figure(figsize=(7.2, 4.0))
        axis = figure.subplots()
        places = sorted({place for line in lines.values() for place in line})
        for index, (label, line) in enumerate(lines.items()):
            colour, marker = _look(label.lower())
            looks: dict[str, Any] = {"marker": marker, "color": colour, "ms": 6, "mec": "black", "mew": 0.6}
            looks |= {"ls": "--" if "," in label else "-", "lw": 1.4, "elinewidth": 0.9, "capsize": 3}
            aside = 1.02 ** (index - (len(lines) - 1) / 2)  # so that intervals do not cover each other
            axis.errorbar(
                [place * aside for place in line],
                [100 * miou for miou, _ in line.values()],
                yerr=[100 * np.nan_to_num(half) for _, half in line.values()],
                **looks,
                label=label,
            )
        if teacher_miou is not None:
            axis.axhline(100 * teacher_miou, color="black", ls="--", lw=1)
            axis.annotate("teacher", (places[0], 100 * teacher_miou), (0, -12), textcoords="offset points")
        axis.set(xscale="log", xlabel="labelled images (logarithmic)", ylabel="mIoU, %")
        axis.set_xticks(places, [str(place) for place in places])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", which="minor", length=0)
        axis.grid(axis="y")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
    return figure


def cost_chart(points: Sequence[dict[str, Any]], milliseconds: str = "milliseconds per image") -> Figure:
    """mIoU against parameters and, where points have them, against milliseconds: what each network costs and gives.

    A point has `network` (a backbone), `method` ("teacher", "baseline", …), `miou` (a share) and one or both of these
    numbers; the legend names methods. A dotted line joins those to which no other is preferable, being as good and
    cheaper, or better at the same cost.
    `milliseconds` says what was measured.
    """
    labels = {"parameters": "parameters, millions", "milliseconds": milliseconds}
    keys = [key for key in labels if any(key in point for point in points)]
    with style():
        figure = Figure(figsize=(1.2 + 4.4 * len(keys), 3.9))
        for axis, key in zip(figure.subplots(1, len(keys), squeeze=False, sharey=True)[0], keys, strict=True):
            shown = [point for point in points if key in point]
            best = _preferable(shown, key)
            axis.plot([point[key] for point in best], [100 * point["miou"] for point in best], "k:", lw=1, zorder=1)
            for point in shown:
                colour, marker = _look(point["method"])
                place, score = point[key], 100 * point["miou"]
                axis.scatter(place, score, 60, color=colour, marker=marker, ec="black", lw=0.6, zorder=2)
            for network in dict.fromkeys(point["network"] for point in shown):
                own = [point for point in shown if point["network"] == network]
                lowest = own[0][key], 100 * min(point["miou"] for point in own)
                name = network_name(network)
                text = axis.annotate(name, lowest, (0, -9), textcoords="offset points", ha="center", va="top", size=9)
                text.set_path_effects([matplotlib.patheffects.withStroke(linewidth=3, foreground="white")])
            _logarithmic(axis, [point[key] for point in shown], 1e6 if key == "parameters" else 1)
            axis.set_xlabel(f"{labels[key]} (logarithmic)")
            axis.margins(y=0.16)
            axis.grid(axis="y")
        figure.axes[0].set_ylabel("mIoU, %")
        looks = [(name, *_look(name)) for name in dict.fromkeys(point["method"] for point in points)]
        handles = [
            Line2D([], [], ls="", marker=marker, color=colour, mec="black", mew=0.6, ms=7, label=method_name(name))
            for name, colour, marker in looks
        ]
        figure.legend(handles=handles, ncols=len(handles), loc="outside upper left", columnspacing=1.0, handletextpad=0)
    return figure


# How an exported network runs: a colour and a marker for each.
WAYS = {"float32": ("#777777", "o"), "onnx": ("#0072B2", "s"), "int8": ("#D55E00", "D")}
WAY_NAMES = {"float32": "PyTorch float32", "onnx": "ONNX float32", "int8": "ONNX int8"}


def export_chart(points: Sequence[dict[str, Any]]) -> Figure:
    """mIoU against milliseconds per image and against megabytes of the file, for networks in each of `WAYS`.

    A point has `network`, `way`, `miou` (a share), `milliseconds` and `bytes`. A dotted line joins the points to which
    no other is preferable, being as good and cheaper, or better at the same cost. Those of a network that was hardly
    trained have `trained` False: they are hollow and not on the line.
    """
    panels = {"milliseconds": ("milliseconds per image", 1), "bytes": ("megabytes", 1e6)}
    with style():
        figure = Figure(figsize=(9.4, 3.9))
        for axis, (key, (label, unit)) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
            best = _preferable([point for point in points if point.get("trained", True)], key)
            axis.plot([point[key] for point in best], [100 * point["miou"] for point in best], "k:", lw=1, zorder=1)
            for point in points:
                colour, marker = WAYS[point["way"]]
                look = (
                    {"fc": colour, "ec": "black", "lw": 0.6}
                    if point.get("trained", True)
                    else {"fc": "white", "ec": colour}
                )
                area = 150 if point["way"] == "float32" else 60  # seen behind an ONNX file of the same size
                axis.scatter(point[key], 100 * point["miou"], area, marker=marker, zorder=2, **look)
            for network in dict.fromkeys(point["network"] for point in points):
                own = [point for point in points if point["network"] == network]
                last = max(own, key=lambda point: point[key])
                place = last[key], 100 * last["miou"]
                axis.annotate(network_name(network), place, (10, 0), textcoords="offset points", va="center", size=9)
            _logarithmic(axis, [point[key] for point in points], unit)
            axis.set_xlim(right=5 * max(point[key] for point in points))  # room for names
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(lambda place, _, unit=unit: f"{place / unit:g}")
            axis.set_xlabel(f"{label} (logarithmic)")
            axis.margins(y=0.16)
            axis.grid(axis="y")
        figure.axes[0].set_ylabel("mIoU on val, %")
        handles = [
            Line2D([], [], ls="", marker=marker, color=colour, mec="black", mew=0.6, ms=7, label=WAY_NAMES[way])
            for way, (colour, marker) in WAYS.items()
        ]
        figure.legend(handles=handles, ncols=3, loc="outside upper left", columnspacing=1.0, handletextpad=0)
    return figure


def _preferable(points: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """From cheap to dear, the points that are better than every cheaper one."""
    best: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: (point[key], -point["miou"])):
        if not best or point["miou"] > best[-1]["miou"]:
            best.append(point)
    return best


def _logarithmic(axis: Axes, places: Sequence[float], unit: float) -> None:
    """A logarithmic axis with a tick at each place that is far enough from the one before."""
    places = sorted(set(places))
    axis.set(xscale="log", xlim=(places[0] / 1.7, places[-1] * 1.7))
    far = [place for before, place in zip([0, *places[:-1]], places, strict=True) if place > 1.15 * before]
    axis.set_xticks(far, [f"{place / unit:#.3g}".rstrip(".") for place in far])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", which="minor", length=0)


def class_map(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Gains in IoU (shares) by class and method, `panels[student][method][class]`, as numbers on a coloured background.

    Classes in the order of the first student's mean gain. Orange is a loss, purple a gain.
    """
    first = next(iter(panels.values()))
    classes = sorted({name for gains in first.values() for name in gains})
    classes.sort(key=lambda name: -_mean_known([gains.get(name, np.nan) for gains in first.values()]))
    tables = {
        student: 100 * np.array([[gains.get(name, np.nan) for gains in methods.values()] for name in classes])
        for student, methods in panels.items()
    }
    limit = max(1.0, *(float(np.nanmax(np.abs(table))) for table in tables.values()))
    columns = sum(len(methods) for methods in panels.values())
    with style():
        figure = Figure(figsize=(1.6 + 0.72 * columns + 0.3 * len(panels), 0.9 + 0.23 * len(classes)))
        shares = [len(methods) for methods in panels.values()]
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=shares)[0]
        for axis, (student, table) in zip(axes, tables.items(), strict=True):
            picture = axis.imshow(table, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
            for (row, column), gain in np.ndenumerate(table):
                if not np.isnan(gain):
                    colour = readable_on(picture.cmap(picture.norm(gain)))
                    shown = f"{gain:+.0f}" if round(gain) else "0"
                    axis.text(column, row, shown, color=colour, size=8, ha="center", va="center")
            names = [method_name(method) for method in panels[student]]
            axis.set_xticks(range(len(names)), names, size=8)
            axis.set_yticks(range(len(classes)), classes, size=8)
            axis.set_title(f"{network_name(student)}, points of IoU")
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
    return figure


def _mean_known(gains: Sequence[float]) -> float:
    """The mean of the gains that are known; the lowest where none is."""
    known = [gain for gain in gains if not np.isnan(gain)]
    return float(np.mean(known)) if known else -np.inf


def class_chart(panels: Mapping[str, Mapping[str, float]]) -> Figure:
    """Gains in IoU (shares) by class, `panels[title][class]`: losses hatched, the first panel's order for all."""
    first = next(iter(panels.values()))
    names = sorted(first, key=lambda name: _mean_known([first[name]]))
    with style():
        figure = Figure(figsize=(4.2 * len(panels), 0.8 + 0.21 * len(names)))
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True, sharex=True)[0]
        for axis, (title, gains) in zip(axes, panels.items(), strict=True):
            values = [100 * gains.get(name, np.nan) for name in names]
            bars = axis.barh(names, values, color="#A6CBE3", ec="#333333", lw=0.5)
            for bar in bars:
                if bar.get_width() < 0:
                    bar.set(facecolor="#F0C989", hatch="////")
            axis.axvline(0, color="black", lw=1)
            axis.set(title=title, xlabel="gain in IoU, points")
            axis.margins(y=0.01)
            axis.grid(axis="x")
    return figure


def learning_curves(histories: Mapping[str, Sequence[dict[str, Any]]], keys: Mapping[str, str]) -> Figure:
    """Lines over the epochs, a panel for each of `keys` (history's key to the panel's title), a line per run.

    `histories[label]` is `Run.history`; a label that begins with a method's name gets its colour and marker. Epochs
    without the key, as those between two evaluations, are skipped. Scores are drawn in per cent.
    """
    with style():
        figure = Figure(figsize=(4.4 * len(keys), 2.8))
        for axis, (key, title) in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys.items(), strict=True):
            for (label, history), dashes in zip(
                histories.items(), ("-", "--", ":", "-.") * len(histories), strict=False
            ):
                scale = 100 if key.endswith("miou") else 1
                scored = [entry for entry in history if key in entry]  # none, of a run that has only begun
                epochs, values = [entry["epoch"] for entry in scored], [scale * entry[key] for entry in scored]
                colour, marker = _look(label.split(" ")[0].lower())
                axis.plot(epochs, values, dashes, color=colour, marker=marker, ms=5, label=label)
            axis.set(title=title, xlabel="epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(axis="y")
        figure.axes[0].legend()
    return figure


def curve_bands(
    students: Mapping[str, Mapping[str, Sequence[Sequence[dict[str, Any]]]]], keys: Mapping[str, str]
) -> Figure:
    """Learning curves over seeds: `students[student][method]` are histories as `learning_curves` takes them.

    A row of panels per student, a panel for each of `keys`; lines are means, bands go from the lowest seed to the
    highest.
    """
    with style():
        figure = Figure(figsize=(0.6 + 4.4 * len(keys), 0.6 + 2.6 * len(students)))
        axes = figure.subplots(len(students), len(keys), squeeze=False, sharex=True, sharey="col")
        for line, (student, methods) in zip(axes, students.items(), strict=True):
            for axis, (key, title) in zip(line, keys.items(), strict=True):
                for index, (method, histories) in enumerate(methods.items()):
                    _draw_band(axis, method, histories, key, dashes=("-", "--", ":", "-.")[index % 4])
                axis.set_title(f"{network_name(student)}: {title}" if len(students) > 1 else title)
                axis.xaxis.get_major_locator().set_params(integer=True)
                axis.set_xlim(left=0)
                axis.grid(axis="y")
                if not key.endswith("miou"):
                    axis.set_yscale("log")
                    for formatted in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
                        formatted(FuncFormatter(_plain_tick))
        for axis in axes[-1]:
            axis.set_xlabel("epoch (lines: mean over seeds; bands: lowest to highest)")
        _legend_above(figure, max(len(methods) for methods in students.values()))
    return figure


def time_chart(
    students: Mapping[str, Mapping[str, Sequence[Sequence[dict[str, Any]]]]],
    seconds: Mapping[tuple[str, str], float],
    teacher_miou: float | Mapping[str, float] | None = None,
    along: str = "seconds of training",
) -> Figure:
    """The score on validation images against the seconds of training, a panel per student, a line per method.

    `students` as in `curve_bands`; `seconds[student, method]` is what a run took, or its steps or what else `along`
    names; the teacher's score, a share, is a dashed line, one for all panels or one for each student. A line ends where
    the run finished.
    """
    with style():
        figure = Figure(figsize=(0.6 + 4.8 * len(students), 3.6))
        axes = figure.subplots(1, len(students), squeeze=False, sharey=True)[0]
        for axis, (student, methods) in zip(axes, students.items(), strict=True):
            colours: list[str] = []
            for method, histories in methods.items():
                last = max(entry["epoch"] for history in histories for entry in history)
                colours.append(_look(method)[0])
                dashes = ("-", "--", ":", "-.")[(colours.count(colours[-1]) - 1) % 4]  # lines of one colour differ
                pace = seconds[student, method] / last
                _draw_band(axis, method, histories, "val_miou", dashes, pace)
            miou = teacher_miou.get(student) if isinstance(teacher_miou, Mapping) else teacher_miou
            if miou is not None:
                axis.axhline(100 * miou, color="black", lw=1, ls="--", zorder=1)
                end = axis.get_yaxis_transform()  # from the panel's left edge, 0, to its right one, 1
                text = f"teacher {100 * miou:.1f}"
                note = axis.annotate(text, (1, 100 * miou), (-3, 2), end, "offset points", ha="right", va="bottom")
                note.set_path_effects([matplotlib.patheffects.withStroke(linewidth=3, foreground="white")])
            axis.set(title=network_name(student), xlabel=f"{along} (line: mean over seeds, band: range)")
            axis.set_xlim(0, 1.04 * axis.get_xlim()[1])
            axis.grid(axis="y")
        axes[0].set_ylabel("mIoU on validation images, %")
        _legend_above(figure, max(len(methods) for methods in students.values()))
    return figure


def _plain_tick(value: float, place: int | None) -> str:
    """0.2, 0.5, 1 and the like; no label in between."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def _draw_band(
    axis: Axes, method: str, histories: Sequence[Sequence[dict[str, Any]]], key: str, dashes: str, pace: float = 1.0
) -> None:
    """`pace`: how far an epoch goes on the axis."""
    scale = 100 if key.endswith("miou") else 1
    values: dict[int, list[float]] = {}
    for history in histories:
        for entry in history:
            if key in entry:
                values.setdefault(entry["epoch"], []).append(scale * entry[key])
    epochs = sorted(epoch for epoch, found in values.items() if len(found) == len(histories))
    colour, marker = _look(method)
    means = [float(np.mean(values[epoch])) for epoch in epochs]
    every = max(1, len(epochs) // 8)
    places = [pace * epoch for epoch in epochs]
    above = 3 if method.startswith("baseline") else 2  # what all are compared with lies over the others
    look: dict[str, Any] = {"color": colour, "marker": marker, "ms": 5, "markevery": every, "zorder": above}
    axis.plot(places, means, dashes, label=method_name(method), **look)
    lowest, highest = ([bound(values[epoch]) for epoch in epochs] for bound in (min, max))
    axis.fill_between(places, lowest, highest, color=colour, alpha=0.15, lw=0)


def _legend_above(figure: Figure, columns: int) -> None:
    """One legend for all panels, above them, of every label that any of them has."""
    found: dict[str, Artist] = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    longest = max(map(len, found), default=0)
    fitting = int(figure.get_figwidth() / max(1.25, 0.6 + 0.085 * longest))  # inches that an entry takes
    columns = max(1, min(columns, fitting))
    figure.legend(found.values(), found.keys(), ncols=columns, loc="outside upper left", columnspacing=1.2)


def _look(method: str) -> tuple[str, str]:
    """Colour and marker; a method of one's own takes one of the spare ones, always the same.

    What follows a comma, such as "baseline, twice the epochs", changes nothing: lines of a chart differ in dashes.
    """
    method = method.split(",")[0]
    return LOOKS.get(method) or _SPARE[sum(map(ord, method)) % len(_SPARE)]


def method_name(method: str) -> str:
    """`kd+sakd` to KD+SAKD, `sakd-plain` to SAKD-plain; `baseline`, `teacher` and what is said of them stay words."""
    if method.startswith(("baseline", "teacher")):
        return method
    return re.sub(r"(?:^|(?<=\+))\w+", lambda term: _METHODS.get(term[0], term[0].upper()), method)


def network_name(backbone: str) -> str:
    """`resnet18` to ResNet-18."""
    return _NETWORKS.get(backbone, backbone.removeprefix("timm:"))
