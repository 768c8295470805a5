"""A folder whose images without labels get a teacher's masks."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from distill import cli, load_teacher, open_dataset, predict
from distill.data.folders import VOCFolder, read_split
from distill.data.layout import BY_TEACHER, write_list
from distill.data.pictures import read_mask
from distill.lab.label import label_by_teacher


def test_images_without_labels_get_the_teachers(tiny_sample: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(tiny_sample, whole)
    (whole / "JPEGImages" / "more").mkdir()
    ImageOps.mirror(Image.open(VOCFolder(whole, "train").image_path(0))).save(whole / "JPEGImages" / "more" / "new.png")
    out = label_by_teacher(whole, tmp_path / "out", "sample", keep=3, device="cpu", progress=False)
    before, after = VOCFolder(whole, "train"), VOCFolder(out, "train")
    assert after.ids == [*before.ids, "more/new"]
    teacher = load_teacher("sample")
    for index in range(len(after)):
        mask = read_mask(after.mask_path(index), 21)
        own = index < 3
        theirs = read_mask(before.mask_path(index), 21) if own else predict(teacher, after.image_path(index))
        assert np.array_equal(mask, theirs) and (255 in mask) == own
    for split in ("val", "test"):
        ours, copied = VOCFolder(whole, split), VOCFolder(out, split)
        assert copied.ids == ours.ids and all(torch.equal(a[1], b[1]) for a, b in zip(ours, copied, strict=True))
    assert len(open_dataset("sample", "train", out)) == len(after), "drawn scenes stay such"


def test_endings_in_capitals_are_written_in_small_letters(tiny_sample: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(tiny_sample, whole)
    with Image.open(VOCFolder(whole, "train").image_path(0)) as picture:
        ImageOps.mirror(picture).save(whole / "JPEGImages" / "new.Tif", "TIFF")
    out = label_by_teacher(whole, tmp_path / "out", "sample", device="cpu", progress=False)
    train = VOCFolder(out, "train")
    assert train.ids[-1] == "new" and train[len(train) - 1][0].shape[0] == 3


def test_a_test_split_without_masks_stays_one(tiny_sample: Path, tmp_path: Path) -> None:
    source = tmp_path / "voc"
    shutil.copytree(tiny_sample, source)
    for path in (source / "SegmentationClass").glob("test_*"):
        path.unlink()
    assert (
        cli.main(["data", "label", str(source), "--keep", "0", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    )
    copied = VOCFolder(tmp_path / "out", "test")
    assert copied.image_path(0).exists() and not copied.mask_path(0).exists()


def test_masks_drawn_before_are_still_known_as_such(tiny_sample: Path, tmp_path: Path) -> None:
    """More photographs come, and the labelled folder is labelled again."""
    first = label_by_teacher(tiny_sample, tmp_path / "first", keep=12, device="cpu", progress=False)
    drawn = read_split(first, BY_TEACHER)
    with Image.open(VOCFolder(first, "train").image_path(0)) as picture:
        ImageOps.mirror(picture).save(first / "JPEGImages" / "new.png")
    again = label_by_teacher(first, tmp_path / "again", device="cpu", progress=False)
    assert read_split(again, BY_TEACHER) == [*drawn, "new"] and len(drawn) > 0


def test_a_mask_of_an_image_in_no_list_is_not_replaced(tiny_sample: Path, tmp_path: Path, refused) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(tiny_sample, whole)
    names = read_split(whole, "train")
    write_list(whole, "train", names[:-1])
    label = partial(label_by_teacher, whole, tmp_path / "out", keep=3, device="cpu", progress=False)
    refused(f"{names[-1]}.png is the mask", "in no list of train, val or test", call=label)
    (whole / "SegmentationClass" / f"{names[-1]}.png").unlink()
    assert names[-1] in read_split(label(), BY_TEACHER)


def test_mistakes_are_told(
    tiny_sample: Path, voc_folder: Callable[..., Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    asked = {"device": "cpu", "progress": False}
    refused("no images without labels", "--keep", call=lambda: label_by_teacher(tiny_sample, tmp_path / "out", **asked))
    refused("keep is 500", call=lambda: label_by_teacher(tiny_sample, tmp_path / "out", keep=500, **asked))
    refused("is there already", call=lambda: label_by_teacher(tiny_sample, tmp_path, keep=0, **asked))
    source = voc_folder({"train": [np.zeros((8, 8), dtype=int)] * 2, "val": [np.zeros((8, 8), dtype=int)]})
    (source / "class_names.txt").write_text("sky\nsea\n")
    refused("teacher knows 21 classes", call=lambda: label_by_teacher(source, tmp_path / "out", keep=0, **asked))
    assert not (tmp_path / "out").exists()
    whole = tmp_path / "whole"
    shutil.copytree(tiny_sample, whole)
    VOCFolder(whole, "train").mask_path(0).unlink()
    refused("is missing", call=lambda: label_by_teacher(whole, tmp_path / "out", keep=3, **asked))


def test_what_is_scored_keeps_its_labels_though_it_is_in_train_too(tiny_sample: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(tiny_sample, whole)
    val = VOCFolder(whole, "val")
    write_list(whole, "train", [*VOCFolder(whole, "train").ids, val.ids[0]])
    out = label_by_teacher(whole, tmp_path / "out", keep=2, device="cpu", progress=False)
    assert torch.equal(VOCFolder(out, "val")[0][1], val[0][1]) and val.ids[0] not in VOCFolder(out, "by_teacher").ids


def test_further_lists_come_along_and_an_image_that_cannot_be_read_does_not(
    tiny_sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(tiny_sample, whole)
    names = read_split(whole, "train")
    write_list(whole, "night", names[:2])
    (whole / "JPEGImages" / "torn.jpg").write_bytes(b"no picture")
    with Image.open(VOCFolder(whole, "train").image_path(0)) as picture:
        ImageOps.mirror(picture).save(whole / "JPEGImages" / "new.png")
    out = label_by_teacher(whole, tmp_path / "out", device="cpu", progress=False)
    assert read_split(out, BY_TEACHER) == ["new"] and read_split(out, "night") == names[:2]
    assert "torn.jpg cannot be read" in capsys.readouterr().err
