"""The made images: the same on every machine, varied, and in VOC layout."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data import sample
from distill.data.folders import VOCFolder
from distill.data.layout import voc_palette
from distill.data.sample import SAMPLE_CLASSES, VOID, make_sample, scene

# SHA-256 of three masks, so that a change of the drawing (which spoils every recorded score) does not pass unseen.
RECORDED = "76d88b70b062fe1698077d826c24534f9c278f3e477b65205f8d9db4173b6e58"


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [scene("train", index, 64) for index in range(200)]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_scene_is_the_same_every_time() -> None:
    for first, second in zip(scene("val", 3, 48, seed=5), scene("val", 3, 48, seed=5), strict=True):
        assert np.array_equal(first, second)


def test_a_scene_of_an_unknown_split_is_refused(refused) -> None:
    refused("no split 'tran'", "did you mean 'train'?", "val, test", call=lambda: scene("tran", 0))


def test_masks_are_those_on_record() -> None:
    masks = [scene("train", 0)[1], scene("val", 7)[1], scene("test", 2, 96, seed=1)[1]]
    assert hashlib.sha256(b"".join(mask.tobytes() for mask in masks)).hexdigest() == RECORDED


def test_splits_seeds_and_indices_differ() -> None:
    keys = [("train", 0, 0), ("val", 0, 0), ("test", 0, 0), ("train", 1, 0), ("train", 0, 1), ("val", 1, 0)]
    drawn = {scene(split, index, 32, seed)[0].tobytes() for split, index, seed in keys}
    assert len(drawn) == len(keys)


def test_a_scene_has_the_documented_shapes_and_types() -> None:
    image, mask = scene("train", 0, 40)
    assert image.shape == (40, 40, 3) and image.dtype == np.uint8
    assert mask.shape == (40, 40) and mask.dtype == np.uint8


def test_every_class_occurs_and_no_other_value(scenes: list) -> None:
    values = set(np.unique([mask for _, mask in scenes]).tolist())
    assert values == {*range(len(SAMPLE_CLASSES)), VOID}
    assert len(SAMPLE_CLASSES) == 21 == len(set(SAMPLE_CLASSES))


def test_background_takes_half_to_four_fifths(scenes: list) -> None:
    masks = np.array([mask for _, mask in scenes])
    assert 0.5 < (masks == 0).sum() / (masks != VOID).sum() < 0.8


def test_a_void_line_parts_every_two_labels(scenes: list) -> None:
    for _, mask in scenes:
        for a, b in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            touching = (a != b) & (a != VOID) & (b != VOID)
            assert not touching.any()
        assert (mask == VOID).any()
        assert (mask == VOID).mean() < 0.25


def test_objects_of_one_family_share_a_hue_but_colour_does_not_settle_the_class(scenes: list) -> None:
    def mean_colour(name: str) -> np.ndarray:
        label = SAMPLE_CLASSES.index(name)
        return np.mean([image[mask == label].mean(0) for image, mask in scenes if (mask == label).any()], axis=0)

    heart, house, boat = mean_colour("heart"), mean_colour("house"), mean_colour("boat")
    assert np.linalg.norm(heart - house) < np.linalg.norm(heart - boat) / 2


def test_palette_is_vocs() -> None:
    palette = np.array(voc_palette()).reshape(256, 3).tolist()
    assert palette[:5] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert palette[15] == [192, 128, 128]  # person
    assert palette[20] == [0, 64, 128]  # tvmonitor
    assert palette[255] == [224, 224, 192]


def test_an_unknown_shape_is_named(refused) -> None:
    refused("'cube'", "heart", call=lambda: sample.shape_pieces("cube"))


def test_layout_on_disk_is_read_back(tiny_sample: Path) -> None:
    for split, count in (("train", 24), ("val", 6), ("test", 6)):
        assert len(VOCFolder(tiny_sample, split)) == count
    dataset = VOCFolder(tiny_sample, "val")
    assert dataset.class_names == SAMPLE_CLASSES
    image, labels = dataset[4]
    drawn, mask = scene("val", 4, 32)
    assert np.array_equal(labels.numpy(), mask)
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - drawn).mean() < 16  # JPEG blurs coloured grain


def test_masks_are_palette_pngs_for_any_reader(tiny_sample: Path) -> None:
    with Image.open(tiny_sample / "SegmentationClass" / "train_00000.png") as mask:
        assert (mask.format, mask.mode) == ("PNG", "P")
        assert mask.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
        assert np.array_equal(np.array(mask), scene("train", 0, 32)[1])
    with Image.open(tiny_sample / "JPEGImages" / "train_00000.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))


def test_a_larger_sample_begins_with_the_smaller_one(tmp_path: Path) -> None:
    small = make_sample(tmp_path / "small", train=2, val=1, test=1, size=32, progress=False)
    large = make_sample(tmp_path / "large", train=5, val=3, test=1, size=32, progress=False)
    for path in [*small.glob("JPEGImages/*"), *small.glob("SegmentationClass/*")]:
        assert path.read_bytes() == (large / path.relative_to(small)).read_bytes()


def test_making_it_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_sample(tmp_path / "s", train=2, val=1, test=1, size=32, progress=False)
    before = files(root)
    monkeypatch.setattr(sample, "scene", None)  # would fail if it drew again
    assert make_sample(root, train=2, val=1, test=1, size=32, progress=False) == root
    assert files(root) == before


def test_an_interrupted_making_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"train": 4, "val": 2, "test": 1, "size": 32, "progress": False}

    def interrupted(split: str, index: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if index == 2:
            raise KeyboardInterrupt
        return scene(split, index, size, seed)

    with monkeypatch.context() as patched:
        patched.setattr(sample, "scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_sample(tmp_path / "a", **numbers)
    assert not (tmp_path / "a" / "sample.txt").exists()
    make_sample(tmp_path / "a", **numbers)
    make_sample(tmp_path / "b", **numbers)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_interrupted_before_the_first_folder_it_can_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, text: str) -> None:
        write(path, text)
        raise KeyboardInterrupt

    write = sample.write_text
    with monkeypatch.context() as patched:
        patched.setattr(sample, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_sample(tmp_path / "s", train=1, val=0, test=0, size=16, progress=False)
    make_sample(tmp_path / "s", train=1, val=0, test=0, size=16, progress=False)


def test_what_a_killed_process_left_at_the_very_start_is_no_stranger(tmp_path: Path) -> None:
    (tmp_path / ".sample.partial.1.part").touch()
    assert (
        len(VOCFolder(make_sample(tmp_path, train=np.int64(2), val=1.0, test=0, size=16, progress=False), "train")) == 2
    )
    assert make_sample(tmp_path, train=2, val=1, test=0, size=16, progress=False) == tmp_path


def test_another_sample_is_not_overwritten(tmp_path: Path, refused) -> None:
    root = make_sample(tmp_path / "s", train=2, val=1, test=1, size=32, progress=False)
    before = files(root)
    refused(root, "another sample", call=lambda: make_sample(root, train=3, val=1, test=1, size=32, progress=False))
    refused(root, "seed 0", call=lambda: make_sample(root, train=2, val=1, test=1, size=32, seed=1, progress=False))
    assert files(root) == before


def test_a_folder_with_other_things_is_refused(tmp_path: Path, refused) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    refused(tmp_path, "not empty", call=lambda: make_sample(tmp_path, train=1, val=0, test=0, progress=False))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_label_noise_calls_classes_of_the_train_split_by_other_names(tmp_path: Path, refused) -> None:
    asked = {"train": 40, "val": 3, "test": 1, "size": 32, "progress": False}
    clean, noisy, all_wrong = (
        make_sample(tmp_path / str(share), label_noise=share, **asked) for share in (0.0, 0.3, 1.0)
    )
    different = {name for name, content in files(clean).items() if files(noisy)[name] != content}
    assert different and all("SegmentationClass/train" in name or name == "sample.txt" for name in different)
    changed = total = 0
    for (_, true), (_, said), (_, wrong) in zip(
        *(VOCFolder(r, "train") for r in (clean, noisy, all_wrong)), strict=True
    ):
        fixed = (true == 0) | (true == VOID)
        assert (said[fixed] == true[fixed]).all() and not ((said == 0) & ~fixed).any()
        assert (wrong[~fixed] != true[~fixed]).all() and wrong[~fixed].min() >= 1 and wrong[~fixed].max() <= 20
        for label in true[~fixed].unique():
            changed, total = changed + int((said[true == label] != label).all()), total + 1
    assert 0.15 < changed / total < 0.45
    refused(noisy, "label noise 0.3", call=lambda: make_sample(noisy, **asked))
    refused("label_noise is 2", "give a number from 0 to 1", call=lambda: make_sample(tmp_path / "x", label_noise=2))


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": -1}, {"size": 8}])
def test_senseless_numbers_are_refused(tmp_path: Path, wrong: dict[str, int], refused) -> None:
    refused(*wrong, "give a whole number from", call=lambda: make_sample(tmp_path / "s", **wrong))
    assert not (tmp_path / "s").exists()
