"""Pictures: masks, maps and bars, readable in black and white and by colour-blind readers; charts are in `charts`.

Every function returns a matplotlib Figure; `display` shows it in a notebook, with alternative text.
The regions of a mask carry the names of their classes.
"""

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import matplotlib.patheffects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage
from torch import Tensor

from distill.data.layout import voc_palette
from distill.files import replace_file

Array: TypeAlias = np.ndarray | Tensor
Picture: TypeAlias = Array | tuple[Array, Array]  # an array, or an image and the mask to lay over it
Colours: TypeAlias = Sequence[tuple[int, int, int]]  # red, green and blue of each class, 0 to 255

# Colour and hatch of bars side by side.
BAR_LOOKS = (("#0072B2", ""), ("#F0C989", "////"), ("#56C3A2", "...."), ("#DCB0CB", "xxxx"))
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "image.interpolation": "nearest",
    "hatch.linewidth": 0.6,
}


@contextmanager
def style() -> Iterator[None]:
    """The one look of all figures, while the `with` block runs; use it for figures of your own too."""
    with matplotlib.rc_context(_STYLE):
        yield


def display(figure: Figure, alt: str) -> None:
    """Show a figure in a notebook as a PNG with alternative text, and close it.

    `alt` describes the figure in a sentence or two; it is also the output's plain text. JupyterLab (4.6 still)
    gives its images no alternative text, so a second output repeats it, unseen, for programs that read the page aloud.
    """
    from IPython.display import HTML
    from IPython.display import display as show

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white")  # drawn at 1.5 times its size: crisp when zoomed
    bundle = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": alt}
    metadata = {"image/png": {"alt": alt, "width": round(96 * figure.get_figwidth())}}
    show(bundle, raw=True, metadata=metadata)  # type: ignore[no-untyped-call]
    unseen = "position: absolute; width: 1px; height: 1px; overflow: hidden; clip: rect(0, 0, 0, 0)"
    show(HTML(f'<div class="alt-text" style="{unseen}">{html.escape(alt)}</div>'))  # type: ignore[no-untyped-call]
    figure.clear()


# ------------------------------------------------------------------------------------------ pictures


def colour_mask(mask: np.ndarray, colours: Colours | None = None) -> np.ndarray:
    """Class indices (H, W), 255 for void, to `colours`, by default VOC's, as (H, W, 3) uint8; void keeps VOC's."""
    palette = np.array(voc_palette(), dtype=np.uint8).reshape(256, 3)
    if colours is not None:
        palette[: len(colours)] = colours
    return palette[np.asarray(mask, dtype=np.uint8)]


def overlay(image: np.ndarray, mask: np.ndarray, colours: Colours | None = None) -> np.ndarray:
    """A mask (H, W) over its image (H, W, 3) uint8, as (H, W, 3) uint8.

    In VOC's colours class 0 is the background and left out: the image is pale and grey there, so that dark colours,
    such as (64, 0, 0), stand out from it, and a white line runs around every region. In `colours` of one's own every
    class is drawn.
    """
    mask = np.asarray(mask)
    pale = np.repeat(np.asarray(image, dtype=float).mean(axis=2, keepdims=True) * 0.5 + 110, 3, axis=2)
    if colours is not None:
        return (0.4 * pale + 0.6 * colour_mask(mask, colours)).astype(np.uint8)
    drawn = np.where(mask[..., None] > 0, 0.25 * pale + 0.75 * colour_mask(mask), pale)
    edge = (mask == 0) & ndimage.binary_dilation((mask > 0) & (mask < 255))
    return np.where(edge[..., None], 255, drawn).astype(np.uint8)


def show_row(
    pictures: Mapping[str, Picture],
    class_names: Sequence[str] | None = None,
    size: float = 2.2,
    scales: bool = False,
    colours: Colours | None = None,
) -> Figure:
    """Pictures in a row, each under its title; see `show_grid`."""
    return show_grid({"": pictures}, class_names, size, scales, colours)


def show_grid(
    rows: Mapping[str, Mapping[str, Picture]],
    class_names: Sequence[str] | None = None,
    size: float = 2.0,
    scales: bool = False,
    colours: Colours | None = None,
) -> Figure:
    """Rows of pictures, `rows[row name][title]`, pixels drawn as squares; `size` is each picture's width in inches.

    A picture, an array or a tensor on the CPU, is an image (H, W, 3) uint8; a mask (H, W) of integers, drawn in
    `colours`, by default VOC's, with the names of its classes where `class_names` is given; a pair of both, drawn as
    `overlay` draws it; or a map (H, W) of floats, drawn from its smallest value (dark) to its largest (bright), with
    its scale beside it where `scales` is set. Titles are repeated only where they change from row to row.
    """
    columns = max(len(row) for row in rows.values())
    titled = len({tuple(row) for row in rows.values()})
    with style():
        heights = [size * max(map(_height_by_width, row.values())) for row in rows.values()]
        figure = Figure(figsize=(size * columns, sum(heights) + 0.3 * titled))
        axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
        above: list[str] = []
        for line, (name, row) in zip(axes, rows.items(), strict=True):
            for axis in line:
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
            for axis, (title, picture) in zip(line, row.items(), strict=False):
                _draw(axis, picture, class_names, size, colours)
                if scales and not isinstance(picture, tuple) and np.issubdtype(np.asarray(picture).dtype, np.floating):
                    bar = figure.colorbar(axis.images[0], cax=axis.inset_axes((1.04, 0, 0.05, 1)))
                    bar.ax.tick_params(labelsize=8)
                axis.set_title("" if list(row) == above else title, loc="center")
            line[0].set_ylabel(name)
            above = list(row)
    return figure


def mark_kinds(axis: Axes, kinds: np.ndarray, names: Sequence[str], title: str) -> None:
    """Draw integers (H, W), 0 to len(names) - 1, as places of so many kinds, over what was there; legend below."""
    colours = ["#EDEDED", *(colour for colour, _ in BAR_LOOKS)][: len(names)]
    patches = [Patch(fc=colour, ec="#333333", lw=0.5, label=name) for colour, name in zip(colours, names, strict=True)]
    with style():
        axis.clear()
        axis.imshow(np.asarray(kinds), cmap=ListedColormap(colours), vmin=-0.5, vmax=len(names) - 0.5)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_title(title, loc="center")
        axis.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, -0.03), fontsize=8, handlelength=1.2)


def readable_on(colour: Any) -> str:
    """Black or white, whichever has the better contrast on a colour (red, green, blue, 0 to 1); at least 4.5 : 1."""
    part = np.asarray(colour[:3], dtype=float)
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return "white" if linear @ (0.2126, 0.7152, 0.0722) < 0.179 else "black"


def _height_by_width(picture: Picture) -> float:
    height, width = np.asarray(picture[1] if isinstance(picture, tuple) else picture).shape[:2]
    return height / width


def _draw(
    axis: Axes, picture: Picture, class_names: Sequence[str] | None, size: float, colours: Colours | None
) -> None:
    drawn = (
        overlay(np.asarray(picture[0]), np.asarray(picture[1]), colours)
        if isinstance(picture, tuple)
        else np.asarray(picture)
    )
    mask = np.asarray(picture[1]) if isinstance(picture, tuple) else drawn
    if drawn.ndim == 3:
        axis.imshow(drawn)
    elif np.issubdtype(drawn.dtype, np.floating):
        axis.imshow(drawn, cmap="cividis")
    else:
        axis.imshow(colour_mask(drawn, colours))
    if class_names is not None and mask.ndim == 2 and not np.issubdtype(mask.dtype, np.floating):
        _name_regions(axis, mask, class_names, size)


def _name_regions(axis: Axes, mask: np.ndarray, class_names: Sequence[str], size: float) -> None:
    """Write its class's name into each region that covers 1.5 % of the picture or more; "background" stays.

    The largest region is named first. A name that would cover another, or read like one word with it, is left out.
    """
    step = max(1, min(mask.shape) // 200)  # places are shares, and large masks take long
    mask, whole = mask[::step, ::step], mask.shape
    outline = [matplotlib.patheffects.withStroke(linewidth=2, foreground="black")]
    # Of a line and a letter of 8 points, as shares of the picture, of which the layout may take a sixth.
    height, letter = 13 / 72 / size / _height_by_width(mask), 5.5 / 72 / size
    taken: list[tuple[float, float, float]] = []  # row, column and half the width of each name
    first = 1 if class_names[0] == "background" else 0
    for region, label in _regions(mask, first, len(class_names)):
        half = len(class_names[label]) * letter / 2
        y, x = (_deepest(region) + 0.5) / mask.shape
        x = float(np.clip(x, half, max(half, 1 - half)))
        if any(abs(y - row) < height and abs(x - column) < half + width + letter for row, column, width in taken):
            continue
        taken.append((y, x, half))
        place = x * whole[1] - 0.5, y * whole[0] - 0.5
        axis.text(*place, class_names[label], color="white", size=8, ha="center", va="center", path_effects=outline)


def _regions(mask: np.ndarray, first: int, classes: int) -> list[tuple[np.ndarray, int]]:
    """The connected regions (H, W) bool that cover 1.5 % of the mask or more, with their classes, largest first."""
    found: list[tuple[np.ndarray, int]] = []
    for label in np.unique(mask[(mask >= first) & (mask < classes)]):
        regions, _ = ndimage.label(mask == label)
        large = np.flatnonzero(np.bincount(regions.ravel())[1:] >= 0.015 * mask.size) + 1
        found += [(regions == number, int(label)) for number in large]
    return sorted(found, key=lambda entry: -entry[0].sum())


def _deepest(inside: np.ndarray) -> np.ndarray:
    """Row and column of a place farthest from the border of the region (H, W) bool."""
    depth = ndimage.distance_transform_cdt(np.pad(inside, 1), metric="taxicab")[1:-1, 1:-1]
    places = np.argwhere(depth == depth.max())
    return places[len(places) // 2]


def probability_chart(panels: Mapping[str, Mapping[str, np.ndarray]], class_names: Sequence[str]) -> Figure:
    """Bars of class probabilities (C,), `panels[title][network name]`, each panel with a scale of its own."""
    with style():
        figure = Figure(figsize=(8.5, 1.0 + 1.35 * len(panels)))
        axes = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
        for axis, (title, bars) in zip(axes, panels.items(), strict=True):
            width = 0.8 / len(bars)
            for index, (name, values) in enumerate(bars.items()):
                places = np.arange(len(values)) + (index - (len(bars) - 1) / 2) * width
                colour, hatch = BAR_LOOKS[index % len(BAR_LOOKS)]
                axis.bar(places, values, width, label=name, color=colour, hatch=hatch, edgecolor="#333333", lw=0.4)
            axis.axhline(1 / len(class_names), color="black", ls=":", lw=1)
            axis.annotate(
                "all equal", (1, 1 / len(class_names)), xycoords=("axes fraction", "data"), size=8, va="bottom"
            )
            axis.set(title=title, ylim=(0, 1.1 * max(values.max() for values in bars.values())))
            axis.grid(axis="y")
        axes[0].legend(ncols=len(bars), loc="lower right", bbox_to_anchor=(1, 1))
        axes[-1].set_xticks(range(len(class_names)), class_names, rotation=60, ha="right", rotation_mode="anchor")
        figure.supylabel("probability", size=10)
    return figure


# ------------------------------------------------------------------------------------------ charts of runs


def save(figure: Figure, path: Path) -> None:
    """Write a figure as the PNG `path`, and as an SVG beside it."""
    with matplotlib.rc_context({"svg.hashsalt": "distill"}):  # the same figure gives the same file
        for kind, options in (("png", {"dpi": 144}), ("svg", {"metadata": {"Date": None}})):
            with replace_file(path.with_suffix(f".{kind}")) as temporary:
                figure.savefig(temporary, format=kind, facecolor="white", **options)
