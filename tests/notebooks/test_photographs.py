"""Notebook 07b where CamVid is: on a small folder of drawings in its place, in this process and without a kernel.

That it runs without the folder is tested with all other notebooks.
"""

from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from distill.data.camvid import CLASSES
from distill.data.layout import mask_image, write_class_names, write_list
from distill.files import PROJECT

NOTEBOOK = PROJECT / "notebooks" / "07b_real_photographs.ipynb"


def sources() -> list[str]:
    """Of its code cells, without the first, which is for Colab."""
    return [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"][1:]


@pytest.fixture
def draw_street() -> Callable[[], np.ndarray]:
    space: dict = {}
    exec(sources()[0], space)
    exec(next(source for source in sources() if source.startswith("def draw_street")), space)
    return space["draw_street"]


def make_folder(root: Path, street: np.ndarray) -> None:
    """The street, and masks of horizontal stripes, as a data set with CamVid's classes."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    stripes = np.arange(street.shape[0], dtype=np.uint8)[:, None] // 20 + np.zeros(street.shape[1], np.uint8)
    names = {"train": [f"train_{index:02}" for index in range(16)], "val": ["val_0", "val_1"]}
    for split, listed in names.items():
        write_list(root, split, listed)
        for name in listed:
            Image.fromarray(street).save(root / "JPEGImages" / f"{name}.png")
            mask_image(stripes).save(root / "SegmentationClass" / f"{name}.png")
    write_class_names(root, CLASSES)


def test_runs_live_where_camvid_is_and_takes_a_photograph_of_ones_own(
    tmp_path: Path,
    draw_street: Callable[[], np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    street = draw_street()
    make_folder(tmp_path / "camvid-240", street)
    Image.fromarray(street).resize((720, 540)).save(tmp_path / "own.jpg")
    monkeypatch.setenv("DISTILL_DATA", str(tmp_path))
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path / "run"))
    space: dict = {}
    for source in sources():
        exec(source.replace("PHOTO = None", f"PHOTO = {str(tmp_path / 'own.jpg')!r}"), space)
    printed = capsys.readouterr().out
    assert "mIoU on 2 images" in printed and "a short run of 2 epochs" in printed
    assert space["run"].config["method"]["name"] == "ofd"
    assert list(space["explorer"].scenes) == ["your photograph", "val_0"]
    assert space["own"].image.shape == (180, 240, 3), "shrunk to the size that the networks know"


def test_the_drawn_street_is_always_the_same(draw_street: Callable[[], np.ndarray]) -> None:
    first, second = draw_street(), draw_street()
    assert first.dtype == np.uint8 and first.shape == (180, 240, 3) and (first == second).all()
