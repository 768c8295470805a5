"""labelme's folders: every kind of shape is painted where it is, and whatever cannot be used is told."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill import cli, fit, open_dataset
from distill.data.check import check_dataset
from distill.data.folders import read_class_names
from distill.data.labelme import import_labelme

SQUARE = [[2, 2], [9, 2], [9, 9], [2, 9]]


def shape(label: str, points: list, kind: str | None = "polygon", **more: object) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "photos"
    path.mkdir()
    return path


def label(folder: Path, name: str, *shapes: dict, size: tuple[int, int] = (20, 12), **more: object) -> None:
    """An image of `size` (width, height) with labelme's file beside it."""
    Image.new("RGB", size, "grey").save(folder / f"{name}.png")
    about = {"version": "5.5.0", "flags": {}, "imagePath": f"{name}.png", "imageData": None}
    about |= {"imageWidth": size[0], "imageHeight": size[1], "shapes": list(shapes)}
    (folder / f"{name}.json").write_text(json.dumps(about | more))


def mask_of(out: Path, name: str) -> np.ndarray:
    return np.array(Image.open(out / "SegmentationClass" / f"{name}.png"))


def test_shapes_are_painted_in_order_and_classes_are_sorted(folder: Path, tmp_path: Path) -> None:
    label(folder, "a", shape("zebra", SQUARE), shape("ant", [[5, 0], [19, 11]], "rectangle"))
    label(folder, "b", shape("__ignore__", SQUARE, None), shape("_background_", [[4, 4], [6, 6]], "rectangle"))
    out = import_labelme(folder, tmp_path / "out", progress=False)
    assert (out / "class_names.txt").read_text() == "background\nant\nzebra\n"
    mask = mask_of(out, "a")
    assert mask.shape == (12, 20) and (mask[2:10, 2:5] == 2).all() and (mask[:, 5:] == 1).all()
    assert (mask == 2).sum() == 8 * 3 and (mask == 0).sum() == 12 * 5 - 24
    other = mask_of(out, "b")
    assert (other == 255).sum() == 64 - 9 and (other[4:7, 4:7] == 0).all()


def test_hidden_files_and_endings_in_capitals(folder: Path, tmp_path: Path) -> None:
    label(folder, "a", shape("ant", SQUARE))
    (folder / "a.png").rename(folder / "a.Png")
    for name in ("._a.json", "._a.Png"):  # as archives from a Mac have them
        (folder / name).write_bytes(b"\0\5\x16\7")
    out = import_labelme(folder, tmp_path / "out", progress=False)
    assert [path.name for path in (out / "JPEGImages").iterdir()] == ["a.png"] and mask_of(out, "a").max() == 1


def test_circles_and_masks(folder: Path, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.eye(3, dtype=np.uint8)).save(picture, "PNG")  # labelme saves 0 and 1
    stencil = base64.b64encode(picture.getvalue()).decode()
    line = shape("line", [[12, 2], [14, 4]], "mask", mask=stencil)
    label(folder, "a", shape("ball", [[5, 5], [8, 5]], "circle"), line)
    mask = mask_of(import_labelme(folder, tmp_path / "out", progress=False), "a")
    assert abs((mask == 1).sum() - np.pi * 3**2) < 10 and mask[5, 2] == mask[5, 8] == 1 and mask[5, 9] == 0
    assert [tuple(place) for place in np.argwhere(mask == 2)] == [(2, 12), (3, 13), (4, 14)]


def test_images_without_a_file_are_kept_and_a_student_can_learn_on_them(folder: Path, tmp_path: Path) -> None:
    for index in range(12):
        label(folder, f"labelled{index}", shape("ball", SQUARE), size=(32, 32))
    for index in range(4):
        Image.new("RGB", (32, 32), "red").save(folder / f"more{index}.jpg")
    out = import_labelme(folder, tmp_path / "out", ["background", "cup", "ball"], progress=False)
    assert len(list((out / "JPEGImages").iterdir())) == 16
    report = check_dataset(out, progress=False)
    assert sum(found["images"] for found in report.values()) == 12
    assert not any(found["problems"] for found in report.values())
    assert open_dataset(out, "train").class_names == ("background", "cup", "ball")
    tiny = {"epochs": 1, "batch_size": 2, "crop_size": 32, "progress": False, "device": "cpu"}
    teacher = fit("resnet18", "baseline", None, out, out=tmp_path / "teacher", **tiny).student()
    run = fit("resnet18", "kd", teacher, out, unlabelled=out / "JPEGImages", out=tmp_path / "run", **tiny)
    assert run.config["unlabelled"] == 4


def test_classes_may_be_given_as_in_labelmes_own_list(folder: Path, tmp_path: Path) -> None:
    label(folder, "a", shape("cat", SQUARE), shape("dog", [[12, 2], [15, 5]], "rectangle"))
    out = import_labelme(folder, tmp_path / "out", ["__ignore__", "_background_", "cat", "dog"], progress=False)
    names, mask = read_class_names(out), mask_of(out, "a")
    assert (mask[0, 0], names[0]) == (0, "_background_")
    assert (names[mask[5, 5]], names[mask[3, 13]]) == ("cat", "dog")


@pytest.mark.parametrize(
    "names, words",
    [
        (["cat", "dog"], "begin with 'cat'"),
        ([], "begin with 'none'"),
        (["__ignore__", "cat"], "begin with 'cat'"),
        (["background", "cat", "cat"], "'cat' twice"),
        (["background", "cat", "_background_"], "'_background_' after the first"),
        (["background", "cat", ""], "''"),
        (["background", "cat", " dog"], "' dog'"),
        (["background", "cat", "two\nlines"], "'two\\nlines'"),
        (["background", "cat", *map(str, range(254))], "255 labels beside"),
    ],
)
def test_classes_that_masks_would_not_follow_are_refused(
    names: list[str], words: str, folder: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    label(folder, "a", shape("cat", SQUARE))
    refused(words, call=lambda: import_labelme(folder, tmp_path / "out", names, progress=False))
    assert not (tmp_path / "out").exists()


def test_mistakes_are_told(folder: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    out = tmp_path / "out"

    def tell(*words: object, class_names: list[str] | None = None) -> None:
        refused(*words, call=lambda: import_labelme(folder, out, class_names, progress=False))
        assert not out.exists() and not list(tmp_path.glob(".out*"))

    tell("no JSON file", folder)
    label(folder, "a", shape("stick", [[1, 1], [5, 5]], "line"))
    tell("a.json", "a line of 2 points", "'stick'", "polygon")
    label(folder, "a", shape("far", [[0, 0], [9, 0], [500, 500]]))
    tell("'far' far outside")
    label(folder, "a", shape("cup", SQUARE))
    tell("label 'cup'", "background, mug", class_names=["background", "mug"])
    label(folder, "a", shape("two\nlines", SQUARE))
    tell("'two\\nlines'")
    label(folder, "a")
    tell("0 labels")
    label(folder, "a", shape("cup", SQUARE), imageWidth=40)
    tell("40 x 12", "20 x 12")
    label(folder, "a", shape("cup", [[2, 2]], "mask", mask="AAAA"))
    tell("a mask that cannot be read")
    label(folder, "a", {"label": "cup", "points": [[1, 2, 3]]})
    tell("a.json is not a file of labelme's")
    label(folder, "a", shape("cup", SQUARE))
    Image.new("RGB", (20, 12)).save(folder / "a.jpg")
    tell("a.jpg", "a.png", "ending")
    (folder / "a.jpg").unlink()
    (folder / "a.png").rename(folder / "b.png")
    tell("a.json has no image", "a.jpg")
    refused("no folder", call=lambda: import_labelme(tmp_path / "nowhere", out))
    (folder / "b.png").rename(folder / "a.png")
    assert cli.main(["data", "labelme", str(folder), "--out", str(out)]) == 0
    refused("is there already", call=lambda: import_labelme(folder, out))


def test_what_is_not_imported_is_told_and_capitals_are_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "sub").mkdir()
    label(folder / "sub", "b", shape("dog", SQUARE))
    label(folder, "a", shape("cup", SQUARE, "rectangle"), shape("cup", SQUARE, "oriented_rectangle"))
    text = (folder / "a.json").read_text()
    (folder / "a.json").unlink()
    (folder / "a.JSON").write_text(text, encoding="utf-8-sig")  # as some editors on Windows begin a file
    (folder / "c.heic").write_bytes(b"")
    out = import_labelme(folder, tmp_path / "out", progress=False)
    assert (mask_of(out, "a") == 1).sum() == 64
    told = capsys.readouterr()
    assert "1 JSON files in folders below, such as" in told.err and "c.heic" in told.err and not told.out
