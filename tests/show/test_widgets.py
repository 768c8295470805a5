"""The explorer without a browser: what it computes, and that no network runs when a control moves."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from distill import open_dataset
from distill.show.plots import colour_mask
from distill.show.widgets import (
    RIGHT,
    VOID,
    WRONG,
    Explorer,
    Scene,
    _bright_where_unsure,
    photograph,
    scenes_of,
)

NAMES = ("background", "sky", "sea")


class Painter(nn.Module):
    """Calls a pixel by its brightest channel; counts how often it was asked."""

    num_classes = 3

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.sharpness * images


@pytest.fixture
def networks() -> dict[str, Painter]:
    return {"teacher": Painter(3.0), "student": Painter(-1.0)}


@pytest.fixture
def scenes() -> dict[str, Scene]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (20, 30))
    labels[0] = 255
    wide, small = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    return {"wide": Scene(wide, labels), "small": Scene(small)}


@pytest.fixture
def explorer(scenes: dict[str, Scene], networks: dict[str, Painter]) -> Explorer:
    return Explorer(scenes, networks, NAMES)


def shown(explorer: Explorer) -> np.ndarray:
    data = base64.b64decode(explorer.picture.source.removeprefix("data:image/png;base64,"))
    return np.array(Image.open(io.BytesIO(data)))


def test_no_network_runs_when_a_control_moves(explorer: Explorer, networks: dict[str, Painter]) -> None:
    assert [network.calls for network in networks.values()] == [2, 2]  # once an image
    for scene in ("small", "wide"):
        explorer.scene.value = scene
        for choice in explorer.choices():
            explorer.left.value = explorer.right.value = choice
        for control, value in (("wipe", 3), ("opacity", 40), ("x", 1), ("y", 2), ("temperature", 8.0)):
            getattr(explorer, control).value = value
        explorer.pictures()
        explorer.bars(1, 4)
    assert [network.calls for network in networks.values()] == [2, 2]


def test_layers_are_what_they_say(explorer: Explorer, scenes: dict[str, Scene]) -> None:
    image, labels = scenes["wide"]
    student = explorer.logits["wide"]["student"].argmax(0).numpy()
    teacher = explorer.logits["wide"]["teacher"].argmax(0).numpy()
    assert (explorer.layer("image") == image).all()
    assert (explorer.layer("truth") == colour_mask(labels)).all()
    assert (explorer.layer("mask: student") == colour_mask(student)).all()
    errors, void = explorer.layer("errors: student"), labels == 255
    assert (errors[void] == VOID).all()
    assert (errors[~void & (student == labels)] == RIGHT).all() and (errors[~void & (student != labels)] == WRONG).all()
    unlike = explorer.layer("disagreement: teacher and student")
    assert ((unlike == WRONG).all(-1) == (teacher != student)).all()


def test_masks_and_their_legend_take_colours_of_ones_own(
    scenes: dict[str, Scene], networks: dict[str, Painter]
) -> None:
    colours = [(1, 2, 3), (40, 50, 60), (70, 80, 90)]
    explorer = Explorer(scenes, networks, ("road", "sky", "sea"), colours)
    assert (explorer.layer("truth") == colour_mask(scenes["wide"].labels, colours)).all()
    assert all(f"rgb({red},{green},{blue})" in explorer.legend.value for red, green, blue in colours)


def test_entropy_is_dark_where_sure_and_bright_where_not(scenes: dict[str, Scene]) -> None:
    both = {"teacher": Painter(1000.0), "student": Painter(0.0)}
    explorer = Explorer(scenes, both, NAMES)
    assert explorer.layer("entropy: student").mean() > 2 * explorer.layer("entropy: teacher").mean()


def test_wipe_and_opacity(explorer: Explorer, scenes: dict[str, Scene]) -> None:
    explorer.left.value, explorer.right.value, explorer.wipe.value = "image", "truth", 50
    assert (shown(explorer)[:, :15] == scenes["wide"].image[:, :15]).all()
    assert 0 < explorer.opacity.value < 100  # objects stay visible under their masks
    explorer.opacity.value = 100
    assert (shown(explorer)[:, 15:] == explorer.layer("truth")[:, 15:]).all()
    explorer.opacity.value = 0
    assert (shown(explorer) == scenes["wide"].image).all()


def test_probabilities_of_the_chosen_pixel_and_temperature(explorer: Explorer) -> None:
    explorer.x.value, explorer.y.value, explorer.temperature.value = 4, 7, 2.0
    expected = (explorer.logits["wide"]["student"][:, 7, 4] / 2).softmax(0).numpy()
    assert explorer.probabilities()["student"] == pytest.approx(expected)
    assert "pixel (4, 7)" in explorer.text.value and "at T = 2" in explorer.text.value
    assert explorer.probabilities(1000)["teacher"] == pytest.approx(np.full(3, 1 / 3), abs=0.01)


def test_text_names_the_truth_and_void(explorer: Explorer, scenes: dict[str, Scene]) -> None:
    explorer.x.value, explorer.y.value = 3, 0
    assert "truth: <b>void</b>" in explorer.text.value
    explorer.y.value = 1
    assert f"truth: <b>{NAMES[scenes['wide'].labels[1, 3]]}</b>" in explorer.text.value


def test_a_click_moves_the_sliders_and_the_bars(explorer: Explorer) -> None:
    explorer.picture.pixel = [11, 13]
    assert (explorer.x.value, explorer.y.value) == (11, 13)
    assert "pixel (11, 13)" in explorer.text.value


def test_a_smaller_image_without_truth_keeps_what_it_can(explorer: Explorer) -> None:
    explorer.left.value, explorer.right.value = "truth", "mask: student"
    explorer.x.value, explorer.y.value = 29, 19
    explorer.scene.value = "small"
    assert explorer.right.value == "mask: student" and explorer.left.value in explorer.choices()
    assert not any(choice.startswith(("truth", "errors")) for choice in explorer.choices())
    assert explorer.x.max == 5 and explorer.y.max == 7 and explorer.picture.size == [6, 8]
    assert explorer.picture.pixel == [explorer.x.value, explorer.y.value]
    assert "truth" not in explorer.text.value


def test_at_first_a_labelled_pixel_is_chosen(explorer: Explorer, scenes: dict[str, Scene]) -> None:
    assert scenes["wide"].labels[explorer.y.value, explorer.x.value] != 255


def test_names_cannot_bring_markup_into_the_page(scenes: dict[str, Scene]) -> None:
    explorer = Explorer(scenes, {"<b>": Painter(1.0)}, ("<i>", "<u>", "<s>"))
    for tag in ("<i>", "<u>", "<s>"):
        assert tag not in explorer.text.value + explorer.legend.value


def test_scenes_of_a_data_set_have_its_names(tiny_sample: Path) -> None:
    dataset = open_dataset("sample", "test", tiny_sample)
    scenes = scenes_of(dataset, [2, 0])
    assert list(scenes) == ["test_00002", "test_00000"]
    assert (
        scenes["test_00000"].image.shape == (32, 32, 3) and (scenes["test_00000"].labels == dataset[0][1].numpy()).all()
    )


def test_a_photograph_is_upright_and_small(tmp_path: Path) -> None:
    pixels = np.zeros((200, 400, 3), dtype=np.uint8)
    pixels[:, :200] = 255  # the left half is white; turned by the camera's note, it comes to lie above
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    image, labels = photograph(tmp_path / "turned.jpg", short_side=50)
    assert image.shape == (100, 50, 3) and labels is None
    assert image[:40].min() > 240 and image[60:].max() < 15


def test_mistakes_are_one_sentence(
    refused: Callable[..., str], scenes: dict[str, Scene], networks: dict[str, Painter], tmp_path: Path
) -> None:
    refused("no images", call=lambda: Explorer({}, networks, NAMES))
    refused("no networks", call=lambda: Explorer(scenes, {}, NAMES))
    refused("'teacher'", "3 classes", "2 names", call=lambda: Explorer(scenes, networks, NAMES[:2]))
    name, (image, labels) = next(iter(scenes.items()))
    beyond = {name: Scene(image, np.full(image.shape[:2], 7))}
    refused("the class 7", "3 names", call=lambda: Explorer(beyond, networks, NAMES))
    other = {name: Scene(image, labels[1:])}
    refused(f"labels of {name}", "its image", call=lambda: Explorer(other, networks, NAMES))
    refused("none.jpg", call=lambda: photograph(tmp_path / "none.jpg"))
    silent = Painter(1.0)
    silent.num_classes = len(NAMES) + 1  # it answers with three all the same
    four = (*NAMES, "land")
    refused("'silent'", "3 classes", "4 names", call=lambda: Explorer(scenes, {"silent": silent}, four))


def test_images_that_are_not_there_are_named(tiny_sample: Path, refused: Callable[..., str]) -> None:
    dataset = open_dataset("sample", "test", tiny_sample)
    for index in (len(dataset), -1):
        refused(f"{len(dataset)} images", f"index {index}", call=lambda index=index: scenes_of(dataset, [index]))


def test_a_reader_that_does_not_see_hears_a_sentence_and_not_the_table(explorer: Explorer) -> None:
    assert "role" not in explorer.text.value
    before = explorer.picture.said
    explorer.x.value, explorer.y.value = 3, 4
    assert "(3, 4)" in explorer.picture.said and "<" not in explorer.picture.said != before


def test_a_network_that_answers_nonsense_leaves_the_controls_alive(scenes: dict[str, Scene]) -> None:
    explorer = Explorer(scenes, {"teacher": Painter(3.0)}, NAMES)
    explorer.logits["small"]["teacher"][:, 0, 0] = torch.nan
    explorer.scene.value = "small"
    before = explorer.picture.source
    explorer.left.value = "mask: teacher"
    explorer.wipe.value = 90
    assert explorer.picture.source != before


def test_a_closed_explorer_keeps_no_logits(explorer: Explorer) -> None:
    explorer.close()
    assert explorer.logits == {} and explorer.comm is None and explorer.picture.comm is None


def test_names_within_names_and_four_networks(scenes: dict[str, Scene]) -> None:
    """Whose errors are shown, and in which row, does not depend on what networks and images are called."""
    networks = {"KD": Painter(3.0), "KD and AT": Painter(-1.0), "wide": Painter(2.0), "AT": Painter(-2.0)}
    explorer = Explorer(scenes, networks, NAMES)
    wrong = explorer.picture_of("mask: KD and AT") != scenes["wide"].labels
    known = scenes["wide"].labels != 255
    assert ((explorer.layer("errors: KD and AT") == np.array(WRONG)).all(2) == (wrong & known)).all()
    differ = explorer.picture_of("mask: KD") != explorer.picture_of("mask: KD and AT")
    assert ((explorer.layer("disagreement: KD and KD and AT") == np.array(WRONG)).all(2) == differ).all()
    pictures = [axis for axis in explorer.pictures().axes if axis.images]
    assert len(pictures) == 2 + 3 + 3 * 4, "image and truth; mask, errors and entropy of each; where others differ"
    networks = {"KD": Painter(3.0), "AT": Painter(-1.0), "KD and AT": Painter(2.0)}
    drawn: list[str] = []
    explorer = Explorer(scenes, networks, NAMES)
    explorer._drawn = lambda choice: drawn.append(choice) or explorer.picture_of(choice)  # type: ignore[method-assign]
    explorer.pictures()
    assert [choice for choice in drawn if choice.startswith("mask")] == [f"mask: {name}" for name in networks]
    assert drawn[-1] == "disagreement: KD and KD and AT"


def test_a_single_class_leaves_no_doubt() -> None:
    assert (_bright_where_unsure(torch.randn(1, 4, 5)) == _bright_where_unsure(torch.zeros(1, 1, 1))).all()
