"""Reading VOC layout: what is read, and what is said of folders with faults."""

import errno
import os
import shutil
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from distill.cli import main
from distill.data import folders as datasets
from distill.data.check import check_dataset, unlisted
from distill.data.folders import VOC_CLASSES, VOCFolder, augmented_ids, data_root, open_dataset, scored_splits
from distill.data.layout import new_folder
from distill.data.pictures import read_picture
from distill.data.resize import resize_dataset
from distill.data.sample import SAMPLE_CLASSES

CAMVID_LIKE = ("sky", "building", "pole", "road")
MASK = np.array([[0, 1, 2, 3], [3, 2, 255, 0], [1, 1, 1, 1]], dtype=np.uint8)  # 4 wide, 3 high


@pytest.fixture
def own(voc_folder: Callable[..., Path]) -> Path:
    return voc_folder({"train": [MASK, MASK[::-1]], "val": [MASK]}, CAMVID_LIKE)


def save_mask(root: Path, values: np.ndarray, name: str = "train0") -> None:
    Image.fromarray(values).save(root / "SegmentationClass" / f"{name}.png")


def test_an_item_is_an_image_and_its_labels(own: Path) -> None:
    image, labels = VOCFolder(own, "train")[0]
    assert image.shape == (3, 3, 4) and image.dtype == torch.uint8
    assert labels.shape == (3, 4) and labels.dtype == torch.int64
    assert np.array_equal(labels.numpy(), MASK)
    assert np.array_equal(VOCFolder(own, "train")[1][1].numpy(), MASK[::-1])


def test_image_channels_are_red_green_blue(own: Path) -> None:
    Image.new("RGB", (4, 3), (250, 10, 10)).save(own / "JPEGImages" / "train0.jpg", quality=95)
    image, _ = VOCFolder(own, "train")[0]
    assert image[0].min() > 200 and image[1:].max() < 60


def test_a_grey_image_and_a_grey_mask_are_read(own: Path) -> None:
    Image.new("L", (4, 3), 90).save(own / "JPEGImages" / "train0.jpg")
    save_mask(own, MASK)
    image, labels = VOCFolder(own, "train")[0]
    assert image.shape == (3, 3, 4)
    assert np.array_equal(labels.numpy(), MASK)


def test_limit_keeps_the_first_images(own: Path) -> None:
    assert VOCFolder(own, "train", limit=1).ids == ["train0"]
    assert len(VOCFolder(own, "train", limit=99)) == 2


def test_a_slice_is_refused_with_what_to_take_in_its_place(own: Path, refused) -> None:
    data = VOCFolder(own, "train")
    refused("one image at a time", "Subset(dataset, range(FROM, TO))", call=lambda: data[0:1])


def test_class_names_come_from_the_file_else_they_are_vocs(own: Path) -> None:
    assert VOCFolder(own).class_names == CAMVID_LIKE
    assert VOCFolder(own).num_classes == 4
    (own / "class_names.txt").unlink()
    assert VOCFolder(own).class_names == VOC_CLASSES
    assert len(VOC_CLASSES) == 21 and VOC_CLASSES[15] == "person"


def test_lists_with_blank_lines_and_a_byte_order_mark_are_read(own: Path) -> None:
    (own / "ImageSets/Segmentation/train.txt").write_bytes(b"\xef\xbb\xbftrain0\r\n\r\ntrain1 \r\n")
    assert VOCFolder(own, "train").ids == ["train0", "train1"]


def test_a_missing_folder_is_named(tmp_path: Path, refused) -> None:
    refused(tmp_path / "nothing", "JPEGImages", call=lambda: VOCFolder(tmp_path / "nothing"))


def test_a_missing_split_tells_which_there_are(own: Path, refused) -> None:
    refused("test.txt", "train, val", call=lambda: VOCFolder(own, "test"))


def test_an_empty_list_is_refused(own: Path, refused) -> None:
    (own / "ImageSets/Segmentation/train.txt").write_text("\n \n")
    refused("train.txt", "no images", call=lambda: VOCFolder(own, "train"))


def test_a_list_that_is_no_text_is_refused(own: Path, refused) -> None:
    (own / "class_names.txt").write_bytes(b"stra\xdfe\n")
    refused("class_names.txt", "UTF-8", call=lambda: VOCFolder(own, "train"))


def test_an_empty_list_of_classes_is_refused(own: Path, refused) -> None:
    (own / "class_names.txt").write_text("\n")
    refused("class_names.txt", "0 classes", call=lambda: VOCFolder(own, "train"))


def test_a_missing_image_is_named(own: Path, refused) -> None:
    (own / "JPEGImages/train0.jpg").unlink()
    refused("train0.jpg", "no image", call=lambda: VOCFolder(own)[0])


def test_a_missing_mask_is_named(own: Path, refused) -> None:
    (own / "SegmentationClass/train0.png").unlink()
    refused("train0.png", "missing", call=lambda: VOCFolder(own)[0])


@pytest.mark.parametrize("name", ["JPEGImages/train1.jpg", "SegmentationClass/train1.png"])
def test_data_with_a_missing_file_have_no_fingerprint(own: Path, name: str, refused) -> None:
    before = VOCFolder(own).fingerprint()
    content = (own / name).read_bytes()
    (own / name).unlink()
    message = refused(own / name, "split list names it", call=VOCFolder(own).fingerprint)
    assert message == refused(call=lambda: VOCFolder(own)[1])
    (own / name).write_bytes(content)
    assert VOCFolder(own).fingerprint() == before


def test_a_faulty_list_of_the_test_split_is_told(own: Path, refused) -> None:
    assert [split for split, _ in scored_splits(own)] == ["val"]
    (own / "ImageSets/Segmentation/test.txt").write_text("val0\nval0\n")
    refused("test.txt", "'val0' twice", call=lambda: list(scored_splits(own)))
    (own / "ImageSets/Segmentation/test.txt").write_text("val0\n")
    assert [split for split, _ in scored_splits(own)] == ["val", "test"]


def test_a_truncated_image_is_named(own: Path, refused) -> None:
    path = own / "JPEGImages/train0.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    refused("train0.jpg", "cannot be read as an image", call=lambda: VOCFolder(own)[0])


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named(own: Path, content: bytes, refused) -> None:
    (own / "JPEGImages/train0.jpg").write_bytes(content)
    refused("train0.jpg", "cannot be read as an image", call=lambda: VOCFolder(own)[0])
    (own / "SegmentationClass/train1.png").write_bytes(content)
    refused("train1.png", "cannot be read as a mask", call=lambda: VOCFolder(own)[1])


def test_a_truncated_mask_is_named(own: Path, refused) -> None:
    path = own / "SegmentationClass/train0.png"
    save_mask(own, np.random.default_rng(0).integers(0, 4, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:400])
    refused("train0.png", "cannot be read as a mask", call=lambda: VOCFolder(own)[0])


def test_a_mask_of_another_size_is_refused_with_both_sizes(own: Path, refused) -> None:
    save_mask(own, np.zeros((5, 6), dtype=np.uint8))
    refused("train0.png", "6 x 5", "4 x 3", call=lambda: VOCFolder(own)[0])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "1"])
def test_a_mask_that_holds_no_indices_is_refused(own: Path, mode: str, refused) -> None:
    Image.new(mode, (4, 3)).save(own / "SegmentationClass/train0.png")
    refused("train0.png", mode, "palette or 8-bit grey", call=lambda: VOCFolder(own)[0])


def test_a_value_beyond_the_classes_is_refused_with_its_number(own: Path, refused) -> None:
    save_mask(own, np.where(MASK == 2, np.uint8(4), MASK))
    refused("train0.png", "value 4", "0 to 3", "255", call=lambda: VOCFolder(own)[0])


def test_check_finds_no_problem_where_there_is_none(own: Path) -> None:
    report = check_dataset(own)
    assert list(report) == ["train", "val"]
    train = report["train"]
    assert train["images"] == 2 and train["problems"] == [] and train["sizes"] == [(4, 3), (4, 3)]
    assert train["class_share"] == pytest.approx({"sky": 2 / 11, "building": 5 / 11, "pole": 2 / 11, "road": 2 / 11})
    assert train["void_share"] == pytest.approx(1 / 12)


def test_check_lists_every_fault_and_goes_on(voc_folder: Callable[..., Path]) -> None:
    root = voc_folder({"train": [MASK] * 6, "val": [MASK]}, CAMVID_LIKE)
    (root / "JPEGImages/train1.jpg").unlink()
    (root / "SegmentationClass/train2.png").unlink()
    save_mask(root, np.full((3, 4), 9, dtype=np.uint8), "train3")
    Image.new("RGB", (4, 3)).save(root / "SegmentationClass/train4.png")
    report = check_dataset(root)["train"]
    assert [f"train{index}" in problem for index, problem in enumerate(report["problems"], 1)] == [True] * 4
    assert report["images"] == 6
    assert sum(report["class_share"].values()) == pytest.approx(1)


def test_check_tells_of_a_class_that_is_drawn_as_void(voc_folder: Callable[..., Path]) -> None:
    white = np.where(MASK == 1, 255, 0).astype(np.uint8)
    for names, found in ((("background", "crack"), 1), (("crack",), 0)):
        root = voc_folder({"train": [white], "val": [white]}, names, f"own{len(names)}")
        problems = check_dataset(root)["train"]["problems"]
        assert len(problems) == found and all("only 0 and 255" in problem for problem in problems)


def test_check_tells_of_images_that_are_learned_and_scored(own: Path) -> None:
    lists = own / "ImageSets" / "Segmentation"
    (lists / "val.txt").write_text("val0\ntrain1\n")
    (lists / "test.txt").write_text("")  # as of a sample that was made without
    report = check_dataset(own)
    assert list(report) == ["train", "val"] and not report["train"]["problems"]
    (problem,) = report["val"]["problems"]
    assert problem.startswith("1 images of val") and "train1" in problem
    (lists / "val.txt").unlink()
    assert "val.txt is missing" in check_dataset(own)["train"]["problems"][0]


def test_endings_in_capitals_and_hidden_files(own: Path, tmp_path: Path) -> None:
    """As cameras, and archives from a Mac, have them."""
    for folder, kind, ending in (("JPEGImages", "TIFF", ".TIF"), ("SegmentationClass", "PNG", ".PNG")):
        for path in list((own / folder).iterdir()):
            with Image.open(path) as picture:
                picture.load()
            path.unlink()
            picture.save(path.with_suffix(ending), kind)
            (path.parent / f"._{path.stem}{ending}").write_bytes(b"\0\5\x16\7")
    lists = own / "ImageSets" / "Segmentation"
    (lists / "._train.txt").write_bytes(b"\xff\5\x16\7")
    assert [len(VOCFolder(own, split)) for split in ("train", "val")] == [2, 1]
    assert np.array_equal(VOCFolder(own, "train")[0][1].numpy(), MASK)
    assert list(check_dataset(own)) == ["train", "val"]
    assert len(VOCFolder(resize_dataset(own, tmp_path / "small", 8, progress=False), "train")) == 2
    shutil.rmtree(lists)
    assert sorted(VOCFolder(own, "train").ids + VOCFolder(own, "val").ids) == ["train0", "train1", "val0"]


def test_lists_that_are_empty_or_for_others_are_no_obstacle(own: Path, tmp_path: Path) -> None:
    lists = own / "ImageSets" / "Segmentation"
    (lists / "test.txt").write_text("\n")
    (lists / "trainaug.txt").write_text("/JPEGImages/train0.jpg /SegmentationClass/train0.png\n")
    small = resize_dataset(own, tmp_path / "small", 8, progress=False)
    assert sorted(path.stem for path in (small / "ImageSets" / "Segmentation").iterdir()) == ["train", "val"]
    assert [split.split for split in datasets.splits_to_score(own)] == ["val"]
    assert [name for name, _ in datasets.scored_splits(own)] == ["val"]


def test_a_faulty_list_does_not_make_its_images_strangers(own: Path, refused) -> None:
    lists = own / "ImageSets" / "Segmentation"
    (lists / "test.txt").write_text("val0\nval0\n")
    refused("'val0' twice", call=lambda: list(datasets.splits_to_score(own)))
    (lists / "test.txt").unlink()
    (lists / "val.txt").write_text("./val0\n")
    refused("'./val0'", "as they are in", call=lambda: VOCFolder(own, "val"))


def test_check_of_a_missing_folder_is_refused(tmp_path: Path, refused) -> None:
    refused("there is no folder", call=lambda: check_dataset(tmp_path / "nothing"))


def test_data_root_follows_the_environment_else_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("DISTILL_DATA")
    assert data_root() == Path(__file__).resolve().parents[2] / "data"


def test_pascal_is_found_inside_what_its_archive_unpacks_to(
    voc_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = voc_folder({"train": [np.full((3, 3), 20)]}, name="VOCdevkit/VOC2012")
    assert open_dataset("pascal", root=tmp_path).root == root
    assert open_dataset("pascal", root=root).root == root
    monkeypatch.setenv("DISTILL_DATA", str(tmp_path))
    assert open_dataset("pascal").num_classes == 21


@pytest.mark.parametrize("name", ["pascal", "pascal+sbd", Path("pascal")])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_pascal_is_refused(name: str | Path, split: str, tmp_path: Path, refused) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        command = f"data download voc --root {root}`"
        refused(command, root / "VOCdevkit" / "VOC2012", call=lambda root=root: open_dataset(name, split, root))


def test_a_name_counts_as_a_path_too_and_a_folder_so_called_has_a_longer_one(
    own: Path, tiny_sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_dataset(Path("sample"), root=tiny_sample).ids == open_dataset("sample", root=tiny_sample).ids
    mine = own.rename(tmp_path / "sample")
    monkeypatch.chdir(tmp_path)
    assert open_dataset(Path("sample"), root=tiny_sample).root == tiny_sample
    assert open_dataset("./sample").class_names == open_dataset(mine).class_names == CAMVID_LIKE


def test_a_folder_of_ones_own_opens_by_its_path(own: Path) -> None:
    assert open_dataset(own, "val").class_names == CAMVID_LIKE
    assert len(open_dataset(str(own), "train", limit=1)) == 1


def test_the_sample_is_made_on_first_use_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "SAMPLE_SIZES", {"train": 2, "val": 1, "test": 1})
    dataset = open_dataset("sample", "train")
    assert dataset.root == tmp_path / "sample" and len(dataset) == 2
    assert dataset.class_names == SAMPLE_CLASSES
    monkeypatch.setattr(datasets, "make_sample", None)  # would fail if it made it again
    assert len(open_dataset("sample", "val")) == 1


@pytest.mark.parametrize("made", [None, "empty", "other", "unfinished"])
def test_no_sample_is_made_in_a_folder_that_was_named(made: str | None, tmp_path: Path, refused) -> None:
    root = tmp_path / "mine"
    if made:
        root.mkdir()
    if made == "other":
        (root / "notes.txt").write_text("mine")
    if made == "unfinished":
        (root / "JPEGImages").mkdir()
        (root / "sample.partial").write_text("")
    before = sorted(tmp_path.rglob("*"))
    found = "holds no sample" if made else f"there is no folder {root}"
    place = root / "sample" if made == "other" else root  # `data sample` takes no folder with other things in it
    refused(found, f"data sample --out {place}`", "--data-root", call=lambda: open_dataset("sample", root=root))
    assert sorted(tmp_path.rglob("*")) == before


def test_images_of_ones_own_in_the_samples_place_are_named(own: Path, refused) -> None:
    refused("not the sample", f"--dataset {own}", call=lambda: open_dataset("sample", root=own))


def test_a_sample_of_another_size_is_taken_as_it_is(tiny_sample: Path) -> None:
    assert len(open_dataset("sample", "train", root=tiny_sample)) == 24


# ---------------------------------------------------------------------------------------- VOC with SBD


def test_the_published_training_set_has_10582_images() -> None:
    """Lists of the true lengths and overlaps: SBD holds 1,133 images of VOC's train split and 1,104 of its val."""
    train, val = [f"t{k}" for k in range(1464)], [f"v{k}" for k in range(1449)]
    further = [f"s{k}" for k in range(11355 - 1133 - 1104)]
    sbd = [*train[:1133], *further, *val[:1104]]
    ids = augmented_ids(train, sbd, val)
    assert len(sbd) == 11355 and len(ids) == 10582 == len(set(ids))
    assert ids[:1464] == train and not set(ids) & set(val)


@pytest.fixture
def voc_with_sbd(voc_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """VOCdevkit/VOC2012 with two images for train and one for val; SBD with one of each and two more."""
    masks = [np.full((6, 8), value) for value in (1, 2, 3, 4, 5)]
    voc = voc_folder({"train": masks[:2], "val": masks[2:3]}, name="root/VOCdevkit/VOC2012")
    sbd = tmp_path / "root" / "sbd"
    (sbd / "cls").mkdir(parents=True)
    for name, mask in (("train0", masks[4]), ("val0", masks[4]), ("extra0", masks[3]), ("extra1", masks[4])):
        inner = np.zeros((1, 1), dtype=[("Segmentation", "O")])
        inner["Segmentation"][0, 0] = mask.astype(np.uint8)
        scipy.io.savemat(sbd / "cls" / f"{name}.mat", {"GTcls": inner})
    (sbd / "train.txt").write_text("train0\nextra0\n")
    (sbd / "val.txt").write_text("val0\nextra1\n")
    for name in ("extra0", "extra1"):
        shutil.copy(voc / "JPEGImages" / "train0.jpg", voc / "JPEGImages" / f"{name}.jpg")
    return tmp_path / "root"


def test_sbd_adds_its_images_and_vocs_masks_go_first(voc_with_sbd: Path) -> None:
    dataset = open_dataset("pascal+sbd", "train", voc_with_sbd)
    assert dataset.ids == ["train0", "train1", "extra0", "extra1"]
    assert [int(labels.unique()) for _, labels in dataset] == [1, 2, 4, 5]
    assert open_dataset("pascal+sbd", "val", voc_with_sbd).ids == ["val0"]
    assert open_dataset("pascal+sbd", "train", voc_with_sbd, limit=3).ids == ["train0", "train1", "extra0"]


def test_sbd_may_lie_as_its_archive_unpacks_and_bring_its_own_images(voc_with_sbd: Path) -> None:
    (voc_with_sbd / "benchmark_RELEASE").mkdir()
    sbd = (voc_with_sbd / "sbd").rename(voc_with_sbd / "benchmark_RELEASE" / "dataset")
    (sbd / "img").mkdir()
    (voc_with_sbd / "VOCdevkit/VOC2012/JPEGImages/extra1.jpg").rename(sbd / "img" / "extra1.jpg")
    assert len([labels for _, labels in open_dataset("pascal+sbd", "train", voc_with_sbd)]) == 4


@pytest.mark.parametrize("home", ["sbd", "benchmark_RELEASE/dataset"])
def test_sbd_is_found_from_the_folder_that_a_run_records(
    voc_with_sbd: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (voc_with_sbd / home).parent.mkdir(exist_ok=True)
    (voc_with_sbd / "sbd").rename(voc_with_sbd / home)
    dataset = open_dataset("pascal+sbd", "train", voc_with_sbd)
    again = open_dataset("pascal+sbd", "train", dataset.root)
    assert again.ids == dataset.ids and len(list(again)) == 4
    monkeypatch.chdir(dataset.root)
    assert open_dataset("pascal+sbd", "train", ".").ids == dataset.ids


@pytest.mark.parametrize("limit", [-2, 0, 1.5])
def test_a_limit_is_checked_for_sbd_too(voc_with_sbd: Path, limit: float, refused) -> None:
    refused("limit", call=lambda: open_dataset("pascal+sbd", "train", voc_with_sbd, limit=limit))


@pytest.mark.parametrize("line", ["{}\n", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n"])
def test_masks_handed_on_as_segmentation_class_aug(voc_with_sbd: Path, line: str) -> None:
    voc = voc_with_sbd / "VOCdevkit" / "VOC2012"
    shutil.rmtree(voc_with_sbd / "sbd")
    (voc / "SegmentationClassAug").mkdir()
    Image.fromarray(np.full((6, 8), 7, dtype=np.uint8)).save(voc / "SegmentationClassAug" / "extra0.png")
    names = ("train0", "train1", "extra0")
    (voc / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("".join(line.format(name) for name in names))
    dataset = open_dataset("pascal+sbd", "train", voc_with_sbd)
    assert dataset.ids == ["train0", "train1", "extra0"] and int(dataset[2][1].unique()) == 7
    report = check_dataset(voc, progress=False)
    assert {split: (found["images"], found["problems"]) for split, found in report.items()} == {
        "train": (2, []),
        "trainaug": (3, []),
        "val": (1, []),
    }


def test_what_is_wrong_with_sbd_is_said(voc_with_sbd: Path, refused: Callable[..., str]) -> None:
    (voc_with_sbd / "sbd" / "cls" / "extra0.mat").write_bytes(b"not a mat file")
    dataset = open_dataset("pascal+sbd", "train", voc_with_sbd)
    refused("extra0.mat", "replace the file", call=lambda: dataset[2])
    (voc_with_sbd / "sbd" / "cls" / "extra0.mat").unlink()
    refused("extra0.mat", "missing", call=lambda: dataset[2])
    (voc_with_sbd / "sbd" / "val.txt").unlink()
    refused("val.txt", "missing", call=lambda: open_dataset("pascal+sbd", "train", voc_with_sbd))
    shutil.rmtree(voc_with_sbd / "sbd")
    refused("SegmentationClassAug", "--use-sbd", call=lambda: open_dataset("pascal+sbd", "train", voc_with_sbd))


# -------------------------------------------------------------------------------------- whatever people have

PIXELS = np.random.default_rng(1).integers(0, 256, (3, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "RGB"])
@pytest.mark.parametrize("ending", [".png", ".jpg", ".jpeg", ".tif"])
def test_images_of_every_kind_are_read_as_rgb(own: Path, mode: str, ending: str) -> None:
    """Of a kind that a format cannot hold, Pillow writes PNG under the other name, as some tools do."""
    picture = Image.fromarray(PIXELS).convert(mode)
    (own / "JPEGImages/train0.jpg").unlink()
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF"}.get(ending, "PNG")
    if kind == "JPEG" and mode not in ("L", "CMYK", "RGB"):
        kind = "PNG"
    if kind == "PNG" and mode == "CMYK":
        kind = "TIFF"
    picture.save(own / "JPEGImages" / f"train0{ending}", format=kind)
    image, labels = VOCFolder(own)[0]
    assert image.shape == (3, 3, 4) and image.dtype == torch.uint8 and labels.shape == (3, 4)
    if kind != "JPEG":
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(picture.convert("RGB")))


def test_transparent_pixels_keep_their_colour(own: Path) -> None:
    (own / "JPEGImages/train0.jpg").unlink()
    Image.new("RGBA", (4, 3), (10, 200, 30, 0)).save(own / "JPEGImages/train0.png")
    assert VOCFolder(own)[0][0][:, 0, 0].tolist() == [10, 200, 30]


def test_a_photograph_is_turned_upright(own: Path) -> None:
    """The camera was held sideways: 4 x 3 pixels in the file, 3 x 4 as every viewer and labelling tool shows them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(own / "JPEGImages/train0.jpg", exif=exif)
    save_mask(own, MASK.T.copy())
    image, labels = VOCFolder(own)[0]
    assert image.shape == (3, 4, 3) and labels.shape == (4, 3)


def test_16_bits_a_channel_are_refused_in_one_sentence(own: Path, refused) -> None:
    (own / "JPEGImages/train0.jpg").unlink()
    Image.fromarray(np.full((3, 4), 40_000, np.uint16)).save(own / "JPEGImages/train0.png")
    message = refused("train0.png", "8 bits", call=lambda: VOCFolder(own)[0])
    assert "cannot be read" not in message


def png(bits: int, colour: int, rows: bytes, size: tuple[int, int]) -> bytes:
    """A PNG file as its own standard writes it: Pillow writes neither 16-bit colour nor grey of few bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def planar_tiff(pixels: np.ndarray) -> bytes:
    """A TIFF file of 16-bit channels one after the other."""
    (height, width, channels), start = pixels.shape, 8
    content, plane = pixels.transpose(2, 0, 1).astype("<u2").tobytes(), 2 * height * width
    lists = [[16] * channels, [start + plane * index for index in range(channels)], [plane] * channels]
    after = start + len(content)
    places = [after, after + 2 * channels, after + 6 * channels]
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, places[0]), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 3, places[1]), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 3, places[2]), (284, 3, 1, 2)]
    content += b"".join(struct.pack(f"<3{kind}", *values) for kind, values in zip("HII", lists, strict=True))
    listed = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II" + struct.pack("<HI", 42, start + len(content)) + content + listed


@pytest.mark.parametrize("kind", ["RGB.png", "RGBA.png", "LA.png", "planar.tif"])
def test_16_bits_a_channel_that_pillow_cuts_off_are_refused(own: Path, kind: str, refused) -> None:
    (own / "JPEGImages/train0.jpg").unlink()
    channels, colour = {"RGB.png": (3, 2), "RGBA.png": (4, 6), "LA.png": (2, 4), "planar.tif": (3, 0)}[kind]
    pixels = np.full((3, 4, channels), 4000, np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path = own / f"JPEGImages/train0{kind[-4:]}"
    path.write_bytes(planar_tiff(pixels) if colour == 0 else png(16, colour, rows, (4, 3)))
    assert "cannot be read" not in refused(path.name, "8 bits", call=lambda: VOCFolder(own)[0])
    with Image.open(path) as picture:
        refused("8 bits", call=lambda: read_picture(picture))


@pytest.mark.parametrize("bits, row", [(4, b"\0\x01\x23"), (2, b"\0\x1b")])
def test_a_mask_of_grey_of_few_bits_is_refused_and_a_palette_of_few_is_read(
    own: Path, bits: int, row: bytes, refused
) -> None:
    path = own / "SegmentationClass/train0.png"
    path.write_bytes(png(bits, 0, 3 * row, (4, 3)))
    refused(f"grey of {bits} bits", "8-bit grey PNG", call=lambda: VOCFolder(own)[0])
    picture = Image.new("P", (4, 3))
    picture.putdata([0, 1, 2, 3] * 3)
    picture.putpalette(range(3 * 2**bits))
    picture.save(path, bits=bits)
    assert VOCFolder(own)[0][1].tolist() == [[0, 1, 2, 3]] * 3
    assert path.read_bytes()[24] == bits


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """What labelme2voc writes: no lists, masks with -1 as 255, and the list of labels as people copy it."""
    root = tmp_path / "exported"
    for folder in ("JPEGImages", "SegmentationClassPNG", "SegmentationClass", "SegmentationClassVisualization"):
        (root / folder).mkdir(parents=True)
    (root / "class_names.txt").write_text("__ignore__\n_background_\ncup\nspoon\n")
    rng = np.random.default_rng(0)
    for index in range(20):
        size = (40 + index, 60)
        labels = np.full(size, -1, np.int32)
        labels[5:, 5:] = index % 3
        Image.fromarray(labels.astype(np.uint8)).save(root / "SegmentationClassPNG" / f"IMG {index:02}.png")
        np.save(root / "SegmentationClass" / f"IMG {index:02}.npy", labels)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / f"JPEGImages/IMG {index:02}.jpg")
    return root


def test_what_a_labelling_tool_exports_is_read_as_it_is(exported: Path) -> None:
    train, val = VOCFolder(exported, "train"), VOCFolder(exported, "val")
    assert train.class_names == ("_background_", "cup", "spoon")
    assert len(train) + len(val) == 20 and 1 <= len(val) <= 8
    assert not set(train.ids) & set(val.ids)
    values = torch.cat([labels.flatten() for _, labels in train]).unique()
    assert values.tolist() == [0, 1, 2, 255]
    assert all(not found["problems"] for found in check_dataset(exported, progress=False).values())


def test_further_images_do_not_move_the_others_between_train_and_val(exported: Path) -> None:
    before = VOCFolder(exported, "val").ids
    for index in range(20, 40):
        for name in ("SegmentationClassPNG/IMG 00.png", "JPEGImages/IMG 00.jpg"):
            source = exported / name
            shutil.copy(source, source.with_name(source.name.replace("00", str(index))))
    after = VOCFolder(exported, "val").ids
    assert [name for name in after if name < "IMG 20"] == before and len(after) > len(before)


@pytest.mark.parametrize("count", [2, 3])
def test_a_few_masks_are_divided_too_and_one_is_too_few(exported: Path, count: int, refused) -> None:
    masks = sorted((exported / "SegmentationClassPNG").iterdir())
    for path in masks[count:]:
        path.unlink()
    sizes = [len(VOCFolder(exported, split)) for split in ("train", "val")]
    assert sum(sizes) == count and min(sizes) >= 1
    for path in masks[1:count]:
        path.unlink()
    refused("val.txt", "1 masks", call=lambda: VOCFolder(exported, "val"))


def test_a_folder_with_some_lists_is_not_divided(own: Path, refused) -> None:
    (own / "ImageSets/Segmentation/val.txt").unlink()
    refused("val.txt", "splits found: train", call=lambda: VOCFolder(own, "val"))


def test_ignore_is_void_in_the_first_line_only(own: Path) -> None:
    (own / "class_names.txt").write_text("__ignore__\nsky\nroad\n__ignore__\n")
    assert VOCFolder(own).class_names == ("sky", "road", "__ignore__")


def test_check_tells_of_two_files_of_one_name(own: Path) -> None:
    read = VOCFolder(own).image_path(0)
    Image.open(read).save(read.with_suffix(".bmp"))
    (problem,) = check_dataset(own)["train"]["problems"]
    assert problem.startswith(str(read.with_suffix(".bmp"))) and str(read) in problem


def test_an_image_of_a_longer_name_is_no_stand_in(voc_folder: Callable[..., Path]) -> None:
    root = voc_folder({"train": [np.zeros((16, 16))]})
    (root / "JPEGImages" / "train0.jpg").rename(root / "JPEGImages" / "train0.old.Jpg")
    assert VOCFolder(root, "train").image_path(0).name == "train0.jpg"  # as an error will name it
    (root / "JPEGImages" / "train0.old.Jpg").rename(root / "JPEGImages" / "train0.Jpg")
    assert VOCFolder(root, "train").image_path(0).name == "train0.Jpg"


def test_a_mask_that_lost_values_as_a_jpeg_is_refused_and_one_that_is_turned_is_turned(
    voc_folder: Callable[..., Path], refused: Callable[..., str]
) -> None:
    mask = np.zeros((16, 24), dtype=np.uint8)
    mask[:4] = 1
    root = voc_folder({"train": [mask]}, class_names=("background", "thing"))
    path, upside_down = root / "SegmentationClass" / "train0.png", Image.Exif()
    upside_down[0x0112] = 3
    Image.fromarray(mask).save(path, exif=upside_down)
    assert (VOCFolder(root, "train")[0][1].numpy() == mask[::-1, ::-1]).all()
    Image.fromarray(mask).save(path, format="JPEG")
    refused(path, "is a JPEG file", "PNG", call=lambda: VOCFolder(root, "train")[0])


def test_names_that_would_be_lost_on_the_way_to_a_list_are_refused(
    voc_folder: Callable[..., Path], refused: Callable[..., str], tmp_path: Path
) -> None:
    root = voc_folder({"train": [np.zeros((16, 16))], "val": [np.zeros((16, 16))]})
    images = root / "JPEGImages"
    for ending in (".jpg", ".png"):
        Image.new("RGB", (16, 16)).save(images / f"twice{ending}")
    (images / "album.jpg").mkdir()  # no image
    refused("called twice", "rename", call=lambda: resize_dataset(root, tmp_path / "small", 8))
    (images / "twice.png").unlink()
    shutil.rmtree(root / "ImageSets")  # a split of one's own is made, and its lists are written
    (images / "train0.jpg").rename(images / "blank .jpg")
    (root / "SegmentationClass" / "train0.png").rename(root / "SegmentationClass" / "blank .png")
    refused("'blank '", "rename", call=lambda: resize_dataset(root, tmp_path / "small", 8))
    assert not (tmp_path / "small").exists()


def test_test_images_without_masks_are_no_fault_unless_they_are_asked_for(voc_folder: Callable[..., Path]) -> None:
    mask = np.indices((16, 16)).sum(0) % 2
    root = voc_folder({"train": [mask], "val": [mask], "test": [mask]}, class_names=("background", "thing"))
    (root / "SegmentationClass" / "test0.png").unlink()
    report = check_dataset(root, progress=False)
    assert list(report) == ["train", "val"] and not any(split["problems"] for split in report.values())
    assert check_dataset(root, ["test"], progress=False)["test"]["problems"]


def test_a_place_that_cannot_be_written_to_is_named(
    tiny_sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    def no_room(*given: object, **options: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", no_room)
    refused(
        tmp_path, "Permission denied", "another folder", call=lambda: resize_dataset(tiny_sample, tmp_path / "o", 8)
    )


def test_a_test_split_that_lacks_some_masks_is_at_fault_whichever_they_are(
    voc_folder: Callable[..., Path], tmp_path: Path, refused
) -> None:
    mask = np.indices((16, 16)).sum(0) % 2
    root = voc_folder({"train": [mask], "val": [mask], "test": [mask] * 3}, class_names=("background", "thing"))
    (root / "SegmentationClass" / "test0.png").unlink()
    assert [name for name, _ in scored_splits(root)] == ["val", "test"]
    assert "test0.png is missing" in check_dataset(root, progress=False)["test"]["problems"][0]
    refused("test0.png is missing", call=lambda: resize_dataset(root, tmp_path / "small", 8, progress=False))
    for index in (1, 2):
        (root / "SegmentationClass" / f"test{index}.png").unlink()
    assert [name for name, _ in scored_splits(root)] == ["val"]


def test_masks_of_images_in_no_list_come_along_in_a_smaller_copy(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "ImageSets/Segmentation/train.txt").write_text("train0\n")
    assert unlisted(own) == (1, 1)
    assert main(["data", "check", str(own)]) == 0 and "1 images in no list, 1 of them" in capsys.readouterr().out
    small = resize_dataset(own, tmp_path / "small", 8, progress=False)
    assert unlisted(small) == (1, 1) and (small / "SegmentationClass/train1.png").exists()
    (own / "SegmentationClass/train1.png").write_bytes(b"no mask")
    small = resize_dataset(own, tmp_path / "smaller", 8, progress=False)
    told = capsys.readouterr()
    assert unlisted(small) == (0, 0) and "left out" in told.err and not told.out


def test_masks_in_folders_and_with_any_ending_count_without_lists(own: Path, refused) -> None:
    shutil.rmtree(own / "ImageSets")
    for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (own / folder / "city").mkdir()
        for number in range(8):
            shutil.copy(own / folder / f"train0.{ending}", own / folder / "city" / f"{number}.{ending}")
    (own / "SegmentationClass/city/3.png").rename(own / "SegmentationClass/city/3.Png")
    train, val = VOCFolder(own, "train"), VOCFolder(own, "val")
    assert sorted(train.ids + val.ids) == [*(f"city/{number}" for number in range(8)), "train0", "train1", "val0"]
    assert all(not found["problems"] for found in check_dataset(own, progress=False).values())
    (own / "SegmentationClass/train1.png").rename(own / "SegmentationClass/train1.gif")
    refused("train1.gif is no PNG", call=lambda: VOCFolder(own, "train"))


@pytest.mark.parametrize("line", ["train0.jpg", "JPEGImages/train0.jpg SegmentationClass/train0.png"])
def test_a_list_with_endings_is_told_how_to_name_images(own: Path, line: str, refused) -> None:
    (own / "ImageSets/Segmentation/train.txt").write_text(f"{line}\n")
    refused("train.txt lists", "without the ending", "'train0'", call=lambda: VOCFolder(own, "train"))
    (own / "ImageSets/Segmentation/train.txt").write_text("train0\n")
    assert VOCFolder(own, "train").ids == ["train0"]


def test_a_copy_does_not_lie_among_the_images_that_it_is_of(own: Path, refused) -> None:
    inside = own / "JPEGImages" / "small"
    refused(f"{inside} would lie among the files of {own}", call=lambda: resize_dataset(own, inside, 8))


def test_check_tells_of_two_masks_of_one_image(own: Path) -> None:
    (own / "SegmentationClassPNG").mkdir()
    shutil.copy(own / "SegmentationClass/val0.png", own / "SegmentationClassPNG/val0.png")
    report = check_dataset(own, progress=False)
    assert not report["train"]["problems"]
    (problem,) = report["val"]["problems"]
    assert problem.startswith(f"{own / 'SegmentationClassPNG/val0.png'} has the name of")


def test_check_finds_an_image_that_cannot_be_scaled(voc_folder: Callable[..., Path]) -> None:
    root = voc_folder({"train": [np.ones((2, 300))], "val": [MASK]}, CAMVID_LIKE)
    assert "300 x 2 pixels, too long and thin" in check_dataset(root, progress=False)["train"]["problems"][0]


def test_a_name_that_is_not_in_the_root_is_told(own: Path, refused) -> None:
    assert open_dataset("own", "val", own.parent).ids == ["val0"] == open_dataset("mine", "val", own).ids
    refused("neither JPEGImages nor a folder onw", "'own'", call=lambda: open_dataset("onw", "val", own.parent))


def test_a_full_disk_is_a_sentence_and_sigterm_leaves_nothing(tmp_path: Path, refused) -> None:
    def write(error: Callable[[], object]) -> None:
        with new_folder(tmp_path / "new") as whole:
            (whole / "JPEGImages" / "one.png").write_bytes(b"picture")
            error()

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    refused("new could not be written (No space left", "make room", call=lambda: write(full))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        write(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not list(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) == before
