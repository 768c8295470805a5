"""The explorer: interactive pictures, masks and class probabilities, in JupyterLab and as a Voila page.

    explorer = Explorer(scenes_of(dataset, range(8)), {"teacher": teacher, "student": student}, dataset.class_names)

Every network runs once, when the explorer is made. Everything shown later is computed from those logits in a few
milliseconds: no network runs in a callback.
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import NamedTuple

import anywidget
import ipywidgets  # type: ignore[import-untyped]
import numpy as np
import torch
import traitlets
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from distill.data.folders import VOCFolder
from distill.data.pictures import read_image
from distill.errors import DistillError
from distill.losses import IGNORE_INDEX
from distill.show.plots import BAR_LOOKS, Colours, colour_mask, probability_chart, show_grid
from distill.training.evaluation import predict_logits
from distill.training.runs import open_network

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
WRONG, RIGHT, VOID = (213, 94, 0), (235, 235, 235), (56, 56, 56)  # three steps of brightness, too


class Scene(NamedTuple):
    """An image (H, W, 3) uint8 and, where they are known, its labels (H, W)."""

    image: np.ndarray
    labels: np.ndarray | None = None


def scenes_of(dataset: VOCFolder, indices: Iterable[int]) -> dict[str, Scene]:
    """Images of a data set with their labels, under the names that its split list gives them."""
    scenes = {}
    for index in indices:
        if not 0 <= index < len(dataset.ids):
            raise DistillError(f"{dataset.root} has {len(dataset.ids)} images and none with the index {index}")
        image, labels = dataset[index]
        scenes[dataset.ids[index]] = Scene(image.permute(1, 2, 0).numpy(), labels.numpy())
    return scenes


def photograph(path: str | Path, short_side: int = 96) -> Scene:
    """A photograph of your own, upright and with its short side shrunk to `short_side` pixels.

    The shipped networks learned from images of 64 pixels per side: objects in much larger ones look too big to them.
    """
    image = Image.fromarray(read_image(Path(path)))
    scale = min(1.0, short_side / min(image.size))
    width, height = (max(1, round(scale * side)) for side in image.size)
    return Scene(np.array(image.resize((width, height), Image.Resampling.LANCZOS)))


class Picture(anywidget.AnyWidget):
    """A picture with a chosen pixel: click, or move it with the arrow keys (with Shift in steps of eight)."""

    _esm = Path(__file__).with_name("picture.js")
    _css = """
    .distill-picture { position: relative; width: 100%; max-width: 448px; cursor: crosshair; line-height: 0; }
    .distill-picture:focus-visible { outline: 3px solid #0072B2; outline-offset: 2px; }
    .distill-picture img { width: 100%; image-rendering: pixelated; user-select: none; }
    .distill-said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
    .distill-pixel { position: absolute; border: 2px solid black; outline: 2px solid white; pointer-events: none;
        box-sizing: content-box; margin: -2px; }
    .distill-wipe { position: absolute; top: 0; bottom: 0; width: 0; border-left: 2px dashed black;
        outline: 1px solid white; pointer-events: none; }
    """
    source = traitlets.Unicode().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    said = traitlets.Unicode().tag(sync=True)
    size = traitlets.List([1, 1]).tag(sync=True)
    pixel = traitlets.List([0, 0]).tag(sync=True)
    wipe = traitlets.Int(50).tag(sync=True)

    def show(self, pixels: np.ndarray) -> None:
        """Show (H, W, 3) uint8."""
        height, width = pixels.shape[:2]
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
        with self.hold_sync():
            self.source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
            self.size = [width, height]


class Explorer(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Wipe between image, truth and the networks' answers; choose a pixel and see its class probabilities.

    `scenes` are images by name (see `scenes_of` and `photograph`), `networks` DeepLabV3+ or others with logits
    (N, C, H, W), by name: the first is the one that the others are compared with, usually the teacher. A path or a name
    stands for a network too, also for an exported one (.onnx), as in `open_network`. Masks are drawn in `colours`, by
    default VOC's.
    Raises DistillError when there is nothing to show, or a network has other classes than `class_names`.
    """

    def __init__(
        self,
        scenes: Mapping[str, Scene],
        networks: Mapping[str, nn.Module | str | Path],
        class_names: Sequence[str],
        colours: Colours | None = None,
    ) -> None:
        opened = {name: open_network(n) if isinstance(n, str | Path) else n for name, n in networks.items()}
        _check(scenes, opened, class_names)
        self.scenes, self.class_names, self.colours = dict(scenes), tuple(class_names), colours
        self.logits = {
            scene: {name: predict_logits(network, image).float().cpu() for name, network in opened.items()}
            for scene, (image, _) in scenes.items()
        }
        for name, logits in next(iter(self.logits.values())).items():  # not every network says its num_classes
            _check_count(name, len(logits), class_names)
        self._make_controls(list(networks))
        super().__init__(self._layout_controls())
        self._change_scene()
        for control in (self.left, self.right, self.wipe, self.opacity):
            control.observe(self._draw_picture, "value")
        for control in (self.x, self.y):
            control.observe(self._move_pixel, "value")
        self.scene.observe(self._change_scene, "value")
        self.picture.observe(self._take_click, "pixel")
        self.temperature.observe(self._draw_bars, "value")

    def close(self) -> None:
        """Close the controls too, and let go of the logits: else the kernel keeps both for as long as it lives."""
        parts: list[ipywidgets.Widget] = list(self.children)
        for part in parts:
            parts.extend(getattr(part, "children", ()))
        for part in parts:
            part.unobserve_all()  # of this explorer's methods, which hold it
            part.close()
        self.logits = {}
        super().close()

    # ------------------------------------------------------------------------------------ what is computed

    def choices(self) -> list[str]:
        """What can be laid over the current image."""
        names = list(self.logits[self.scene.value])
        known = self.scenes[self.scene.value].labels is not None
        return [
            "image",
            *(["truth"] if known else []),
            *(f"mask: {name}" for name in names),
            *(f"errors: {name}" for name in names if known),
            *(f"entropy: {name}" for name in names),
            *(f"disagreement: {names[0]} and {name}" for name in names[1:]),
        ]

    def layer(self, choice: str) -> np.ndarray:
        """The picture (H, W, 3) uint8 that a choice stands for, on the current image."""
        logits = self.logits[self.scene.value]
        kind, _, name = choice.partition(": ")
        if kind == "image":
            return self.scenes[self.scene.value].image
        if kind in ("truth", "mask"):
            return colour_mask(self.picture_of(choice), self.colours)
        if kind == "entropy":
            return _bright_where_unsure(logits[name])
        if kind == "errors":
            return _coloured_where_different(logits[name].argmax(0).numpy(), self._truth())
        first = next(iter(logits))  # every other network is compared with it
        other = logits[name.removeprefix(f"{first} and ")].argmax(0).numpy()
        return _coloured_where_different(logits[first].argmax(0).numpy(), other)

    def probabilities(self, temperature: float | None = None) -> dict[str, np.ndarray]:
        """Each network's class probabilities (C,) at the chosen pixel, softened by the temperature."""
        at = temperature or self.temperature.value
        return {
            name: (logits[:, self.y.value, self.x.value] / at).softmax(0).numpy()
            for name, logits in self.logits[self.scene.value].items()
        }

    def picture_of(self, choice: str) -> np.ndarray:
        """What a figure is drawn from: class indices (H, W) where the choice is a mask or the truth, else its layer."""
        if choice == "truth":
            return self._truth()
        if choice.startswith("mask: "):
            return self.logits[self.scene.value][choice.removeprefix("mask: ")].argmax(0).numpy()
        return self.layer(choice)

    def _drawn(self, choice: str) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """As `picture_of`; a mask together with the image that it is drawn over."""
        picture = self.picture_of(choice)
        return (self.scenes[self.scene.value].image, picture) if picture.ndim == 2 else picture

    def _truth(self) -> np.ndarray:
        """The labels (H, W) of the current image, void everywhere if they are not known."""
        image, labels = self.scenes[self.scene.value]
        return np.full(image.shape[:2], IGNORE_INDEX) if labels is None else labels

    def pictures(self) -> Figure:
        """The current image as a static figure: image and truth, then a row for each network."""
        chosen, scene = self.choices(), self.scene.value
        first = next(iter(self.logits[scene]))
        title = scene if scene not in self.logits[scene] else f"image {scene}"
        rows = {title: {choice: self._drawn(choice) for choice in chosen if choice in ("image", "truth")}}
        for name in self.logits[scene]:
            own = {kind: f"{kind}: {name}" for kind in ("mask", "errors", "entropy")}
            own |= {"disagreement": f"disagreement: {first} and {name}"} if name != first else {}
            rows[name] = {kind: self._drawn(choice) for kind, choice in own.items() if choice in chosen}
        figure = show_grid(rows, self.class_names, size=1.7, colours=self.colours)
        for axis in (axis for axis in figure.axes if axis.images):
            for colour, width in (("white", 3), ("black", 1)):
                axis.plot(self.x.value, self.y.value, "s", mfc="none", mec=colour, ms=8, mew=width)
        return figure

    def bars(self, *temperatures: float) -> Figure:
        """Class probabilities at the chosen pixel as a static figure, one panel per temperature."""
        panels = {f"T = {T:g}": self.probabilities(T) for T in temperatures or (self.temperature.value,)}
        return probability_chart(panels, self.class_names)

    # --------------------------------------------------------------------------------------- what is shown

    def _make_controls(self, names: list[str]) -> None:
        wide, style = {"width": "430px", "max_width": "98%"}, {"description_width": "84px"}
        shown = {"layout": wide, "style": style}
        self.scene = ipywidgets.Dropdown(options=list(self.scenes), description="image", **shown)
        self.left = ipywidgets.Dropdown(options=self.choices(), description="left", **shown)
        self.right = ipywidgets.Dropdown(
            options=self.choices(), value=f"mask: {names[0]}", description="right", **shown
        )
        self.wipe = ipywidgets.IntSlider(50, 0, 100, description="wipe, %", **shown)
        self.opacity = ipywidgets.IntSlider(60, 0, 100, 5, description="opacity, %", **shown)
        self.x = ipywidgets.IntSlider(0, 0, 1, description="pixel x", **shown)
        self.y = ipywidgets.IntSlider(0, 0, 1, description="pixel y", **shown)
        self.temperature = ipywidgets.SelectionSlider(
            options=[(f"{T:g}", T) for T in TEMPERATURES], value=1.0, description="T", **shown
        )
        self.picture = Picture(layout={"width": "460px", "max_width": "98%"})
        self.legend = ipywidgets.HTML()
        self.text = ipywidgets.HTML()

    def _layout_controls(self) -> list[ipywidgets.Widget]:
        controls = [self.scene, self.left, self.right, self.wipe, self.opacity, self.x, self.y, self.temperature]
        left = ipywidgets.VBox(
            [self.picture, self.legend], layout={"width": "470px", "max_width": "100%", "min_height": "500px"}
        )
        right = ipywidgets.VBox(
            [*controls, self.text], layout={"width": "480px", "max_width": "100%", "min_height": "640px"}
        )
        return [ipywidgets.HBox([left, right], layout={"flex_flow": "row wrap"})]

    def _change_scene(self, _: object = None) -> None:
        """Another image: the choices that it has, its size, and the pixel where the networks are least sure."""
        self._changing = True  # the controls change one by one; nothing is drawn from a mixture of two images
        try:
            choices = self.choices()
            for control in (self.left, self.right):
                kept = control.value if control.value in choices else choices[-1]
                control.options = choices
                control.value = kept
            height, width = self.scenes[self.scene.value].image.shape[:2]
            self.x.max, self.y.max = width - 1, height - 1
            self.y.value, self.x.value = divmod(int(self._unsure().argmax()), width)
        finally:
            self._changing = False
        self._draw_picture()
        self._move_pixel()

    def _unsure(self) -> np.ndarray:
        """Entropy (H, W) summed over the networks; 0 where the truth is void."""
        entropy = reduce(add, (_entropy(logits).numpy() for logits in self.logits[self.scene.value].values()))
        labels = self.scenes[self.scene.value].labels
        return entropy if labels is None else np.where(labels == IGNORE_INDEX, 0, entropy)

    def _take_click(self, _: object) -> None:
        self._changing = True  # both coordinates at once
        self.x.value, self.y.value = self.picture.pixel
        self._changing = False
        self._move_pixel()

    def _move_pixel(self, _: object = None) -> None:
        if not self._changing:
            self.picture.pixel = [self.x.value, self.y.value]
            self._draw_bars()

    def _draw_picture(self, _: object = None) -> None:
        if self._changing:
            return
        image = self.scenes[self.scene.value].image
        left, right = (_blend(image, self.layer(side.value), self.opacity.value) for side in (self.left, self.right))
        border = round(self.wipe.value / 100 * image.shape[1])
        self.picture.show(np.concatenate([left[:, :border], right[:, border:]], axis=1))
        self.picture.wipe = self.wipe.value
        self.picture.alt = f"{self.scene.value}: {self.left.value} to the left, {self.right.value} to the right"
        self.legend.value = self._legend()

    def _legend(self) -> str:
        """The colours that occur in the two pictures, with the names of their classes."""
        labels = [self._classes(side.value) for side in (self.left, self.right)]
        found = sorted({int(label) for part in labels for label in part if label != IGNORE_INDEX})
        parts = [
            _patch(colour_mask(np.array([[label]]), self.colours)[0, 0], self.class_names[label]) for label in found
        ]
        if any(side.value.startswith(("errors", "disagreement")) for side in (self.left, self.right)):
            parts.append(_patch(WRONG, "different"))
        if any(side.value.startswith("entropy") for side in (self.left, self.right)):
            parts.append("entropy: dark 0, bright as if all classes were equal")
        return f'<div style="line-height:1.7">{" ".join(parts)}</div>'

    def _classes(self, choice: str) -> np.ndarray:
        if choice == "truth" or choice.startswith("mask: "):
            return np.unique(self.picture_of(choice))
        return np.array([], dtype=int)

    def _draw_bars(self, _: object = None) -> None:
        values = self.probabilities()
        likely = sum(self.probabilities(1.0).values())  # of one temperature, so that rows stay while T moves
        order = np.argsort(-likely, kind="stable")[:6]
        lines = [self._sentence(), _bar_key(list(values))]
        for label in order:
            lines.append(_bar_row(self.class_names[label], [probability[label] for probability in values.values()]))
        lines.append(_bar_row("all others", [1 - probability[order].sum() for probability in values.values()]))
        self.text.value = f'<div style="line-height:1.35">{"".join(lines)}</div>'
        self.picture.said = " ".join(html.unescape(re.sub("<[^>]*>", " ", self._sentence())).split())

    def _sentence(self) -> str:
        x, y, (_, labels) = self.x.value, self.y.value, self.scenes[self.scene.value]
        truth = "" if labels is None else f"; truth: <b>{html.escape(self._name(labels[y, x]))}</b>"
        says = [
            f"{html.escape(name)}: <b>{html.escape(self.class_names[int(values.argmax())])}</b> {values.max():.2f}"
            for name, values in self.probabilities().items()
        ]
        return f"<p>pixel ({x}, {y}){truth}<br>at T = {self.temperature.value:g}: {'; '.join(says)}</p>"

    def _name(self, label: int) -> str:
        return "void" if label == IGNORE_INDEX else self.class_names[label]


def _check(scenes: Mapping[str, Scene], networks: Mapping[str, nn.Module], class_names: Sequence[str]) -> None:
    if not scenes or not networks:
        raise DistillError("the explorer was given no images or no networks; give at least one of each")
    for name, network in networks.items():
        _check_count(name, getattr(network, "num_classes", len(class_names)), class_names)
    for name, (image, labels) in scenes.items():
        if labels is None:
            continue
        if labels.shape != image.shape[:2]:
            raise DistillError(f"the labels of {name} are {labels.shape} and its image {image.shape[:2]}; give its own")
        if (beyond := labels[(labels >= len(class_names)) & (labels != IGNORE_INDEX)]).size:
            raise DistillError(
                f"the labels of {name} hold the class {beyond.max()}, and there are {len(class_names)} names; give "
                f"networks and names of the same classes"
            )


def _check_count(name: str, classes: int, class_names: Sequence[str]) -> None:
    if classes != len(class_names):
        raise DistillError(
            f"the network {name!r} knows {classes} classes and {len(class_names)} names were given; give the names "
            f"of the data that it was trained on"
        )


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of the class probabilities of each place, (C, H, W) to (H, W), in nats."""
    return torch.distributions.Categorical(logits=logits.movedim(0, -1), validate_args=False).entropy()


def _bright_where_unsure(logits: torch.Tensor) -> np.ndarray:
    share = _entropy(logits).numpy() / np.log(max(2, len(logits)))  # of one class there is no doubt
    return (255 * colormaps["cividis"](np.sqrt(share))[..., :3]).astype(np.uint8)  # the root lifts small values


def _coloured_where_different(prediction: np.ndarray, other: np.ndarray) -> np.ndarray:
    picture = np.where((prediction == other)[..., None], np.array(RIGHT, np.uint8), np.array(WRONG, np.uint8))
    return np.where((other == IGNORE_INDEX)[..., None], np.array(VOID, np.uint8), picture)


def _blend(image: np.ndarray, layer: np.ndarray, opacity: int) -> np.ndarray:
    return np.rint(image + opacity / 100 * (layer.astype(float) - image)).astype(np.uint8)


def _patch(colour: Sequence[int], name: str) -> str:
    red, green, blue = (int(value) for value in colour)
    box = f"background:rgb({red},{green},{blue});border:1px solid #555;display:inline-block;width:0.9em;height:0.9em"
    return f'<span style="white-space:nowrap"><span style="{box}"></span> {html.escape(name)}&ensp;</span>'


def _bar_key(names: list[str]) -> str:
    parts = [
        f'<span style="white-space:nowrap"><span style="{_bar_style(index)};width:1.4em;display:inline-block">'
        f"</span> {html.escape(name)}&ensp;</span>"
        for index, name in enumerate(names)
    ]
    return f"<div>{''.join(parts)}</div>"


def _bar_row(name: str, values: Sequence[float]) -> str:
    bars = "".join(
        f'<div style="display:flex;align-items:center"><div style="width:min(260px,45vw)">'
        f'<div style="{_bar_style(index)};width:{100 * value:.1f}%"></div></div>&ensp;{value:.3f}</div>'
        for index, value in enumerate(values)
    )
    label = f'<div style="width:86px;text-align:right;padding-right:6px">{html.escape(name)}</div>'
    return f'<div style="display:flex;align-items:center;margin:2px 0;line-height:1.15">{label}<div>{bars}</div></div>'


def _bar_style(index: int) -> str:
    colour, hatch = BAR_LOOKS[index % len(BAR_LOOKS)]
    stripes = {
        "": colour,
        "////": f"repeating-linear-gradient(135deg,{colour} 0 4px,#333 4px 5px)",
        "....": f"repeating-linear-gradient(90deg,{colour} 0 4px,#333 4px 5px)",
        "xxxx": f"repeating-linear-gradient(45deg,{colour} 0 4px,#333 4px 5px)",
    }
    return f"background:{stripes[hatch]};border:1px solid #333;height:0.6em;min-width:1px;box-sizing:border-box"
