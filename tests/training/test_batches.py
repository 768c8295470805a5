"""What a step is fed with: decoded images from a file, crops cut on the device, labels that were taken away."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from distill import Run, fit, open_dataset
from distill.data.transforms import normalise
from distill.files import fcntl
from distill.losses import IGNORE_INDEX
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.teachers import ask_teacher
from distill.training import batches as training
from distill.training.batches import CroppedBatches, DecodedImages, FlippedBatches
from distill.training.parallel import Ranks
from distill.training.settings import Settings

CPU = torch.device("cpu")
SMALL = Settings(batch_size=6, crop_size=32)
SIZES = ((40, 40), (40, 56), (33, 61), (70, 21))


@pytest.fixture
def folder(voc_folder: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(0)
    blocks = [np.kron(rng.integers(0, 3, (9, 9)), np.ones((8, 8), dtype=int)) for _ in SIZES]
    masks = [block[:height, :width] for block, (height, width) in zip(blocks, SIZES, strict=True)]
    return voc_folder({"train": masks}, ("a", "b", "c"))


def crops(folder: Path, **settings) -> list[tuple[Tensor, Tensor]]:
    settings = Settings(batch_size=2, crop_size=32, augment="crops", **settings)
    batches = CroppedBatches(open_dataset(folder, "train"), settings, 0, CPU)
    return [(images, labels) for epoch in range(3) for images, labels, _ in batches(epoch)]


def alike(ones: list, others: list, difference: float = 0.0) -> bool:
    return all(
        (images - other_images).abs().max() <= difference and torch.equal(labels, other_labels)
        for (images, labels), (other_images, other_labels) in zip(ones, others, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_decoded_images_are_those_of_the_files(workers: int, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plain = crops(folder)
    for _ in range(2):  # made, and then found
        assert alike(plain, crops(folder, cache=str(cache), workers=workers))
    files = sorted(path.suffix for path in cache.iterdir() if path.suffix != ".lock")
    assert files == [".json", ".pixels"]
    pixels = sum(height * width for height, width in SIZES)
    assert next(cache.glob("*.pixels")).stat().st_size == 4 * pixels


def test_another_content_makes_another_file(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = crops(folder, cache=str(cache))
    mask = folder / "SegmentationClass" / "train0.png"
    mask.write_bytes((folder / "SegmentationClass" / "train0.png").read_bytes() + b"\0")
    crops(folder, cache=str(cache))
    assert len(list(cache.glob("*.pixels"))) == 2 and alike(before, crops(folder))
    (folder / "JPEGImages" / "train3.jpg").unlink()
    with pytest.raises(ValueError, match=r"train3.* is missing, though the split list names it"):
        crops(folder, cache=str(cache))


def test_a_damaged_cache_is_named(folder: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    cache = tmp_path / "cache"
    crops(folder, cache=str(cache))
    file = next(cache.glob("*.pixels"))
    file.write_bytes(file.read_bytes()[:-1])
    refused(file, "delete both", call=lambda: crops(folder, cache=str(cache)))
    index = next(cache.glob("*.json"))
    index.write_text("{")
    refused(index, "JSON", call=lambda: crops(folder, cache=str(cache)))


def test_an_unfinished_cache_is_made_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, read = open_dataset(folder, "train"), []

    def stop(index: int) -> tuple:
        read.append(index)
        if len(read) == 3:
            raise KeyboardInterrupt
        return type(dataset).__getitem__(dataset, index)

    class Stopping:
        def __getattr__(self, name: str) -> object:
            return getattr(dataset, name)

        def __len__(self) -> int:
            return len(dataset)

        def __getitem__(self, index: int) -> tuple:
            return stop(index)

    with pytest.raises(KeyboardInterrupt):
        DecodedImages(Stopping(), tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    assert len(DecodedImages(dataset, tmp_path / "cache")) == 4


DECODE = """
import sys, time
from pathlib import Path
from distill import open_dataset
from distill.data.folders import VOCFolder
from distill.training.batches import DecodedImages

read = VOCFolder.__getitem__

def slow(dataset, index):
    if index == 3:
        print("writing", flush=True)
        time.sleep(float(sys.argv[3]))
    return read(dataset, index)

VOCFolder.__getitem__ = slow
DecodedImages(open_dataset(sys.argv[1], "train"), Path(sys.argv[2]))
"""


def decoding(folder: Path, cache: Path, seconds: float) -> subprocess.Popen:
    """A process that is decoding into the cache, and will be for a while before its last image."""
    words = [sys.executable, "-c", DECODE, str(folder), str(cache), str(seconds)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.skipif(fcntl is None, reason="this system has no locks")
def test_what_a_killed_process_left_of_a_cache_is_removed(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = decoding(folder, cache, 60)
    process.kill()
    process.communicate()
    assert len(list(cache.glob(".*.part"))) == 1
    other = cache / ".another.pixels.abc.part"  # of other images, which a process may be decoding
    other.touch()
    assert len(DecodedImages(open_dataset(folder, "train"), cache)) == 4
    assert list(cache.glob(".*.part")) == [other]


@pytest.mark.skipif(fcntl is None, reason="this system has no locks")
def test_a_process_that_is_decoding_is_waited_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """Its file is let be, and becomes everyone's."""
    cache, dataset = tmp_path / "cache", open_dataset(folder, "train")
    process = decoding(folder, cache, 2)
    monkeypatch.setattr(training, "PATIENCE", 0.0)
    refused(cache, "another process is writing", call=lambda: DecodedImages(dataset, cache))
    assert len(list(cache.glob(".*.part"))) == 1
    monkeypatch.setattr(training, "PATIENCE", 60.0)
    monkeypatch.setattr(training, "_decode", None)  # not again
    assert len(DecodedImages(dataset, cache)) == 4
    process.communicate()
    assert process.returncode == 0 and not list(cache.glob(".*.part"))


def test_without_locks_no_part_is_removed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be that of a process that is writing."""
    monkeypatch.setattr("distill.files.fcntl", None)
    dataset = open_dataset(folder, "train")
    part = tmp_path / f".{training._content(dataset)}.pixels.abc.part"
    part.touch()
    assert len(DecodedImages(dataset, tmp_path)) == 4 and part.exists()


def test_a_cache_folder_that_cannot_be_written_to_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    def opened(path: Path, *mode: str, **options: object) -> object:
        if path.suffix == ".lock":
            raise OSError(30, "Read-only file system")
        return usual(path, *mode, **options)

    usual = Path.open
    monkeypatch.setattr(Path, "open", opened)
    words = tmp_path, "Read-only file system", "choose a folder that can be written to"
    refused(*words, call=lambda: DecodedImages(open_dataset(folder, "train"), tmp_path))


def test_crops_cut_on_the_device_are_those_cut_on_the_host(folder: Path) -> None:
    host, device = crops(folder), crops(folder, crop_on="device")
    assert all(images.dtype == torch.float32 and labels.dtype == torch.int64 for images, labels in device)
    for (images, labels), (others, other_labels) in zip(host, device, strict=True):
        assert (images - others).abs().max() < 2.5 / 255 / 0.224  # two of 255 grey levels, normalised
        assert (labels == other_labels).float().mean() > 0.97  # a place between two pixels may go to either


def test_a_large_image_is_cut_on_the_host(voc_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its crop is the host's to the bit, beside the crop of a small image that the device cuts."""
    masks = [np.kron(np.arange(16).reshape(4, 4) % 3, np.ones((side, side), dtype=int)) for side in (24, 12)]
    folder = voc_folder({"train": masks}, ("a", "b", "c"))  # 96 x 96 is 9 crops of 32 x 32, and 48 x 48 is 2.25
    sent, cut_on_device = [], training.cut_on_device

    def look(images: list[Tensor], *rest) -> tuple[Tensor, Tensor]:
        sent.append(sorted(tuple(image.shape) for image in images))
        return cut_on_device(images, *rest)

    monkeypatch.setattr(training, "cut_on_device", look)
    host, device = crops(folder), crops(folder, crop_on="device")
    assert sent == [[(3, 32, 32), (3, 48, 48)]] * 3
    same = [
        torch.equal(*images) and torch.equal(*labels)
        for one, other in zip(host, device, strict=True)
        for images, labels in zip(zip(one[0], other[0], strict=True), zip(one[1], other[1], strict=True), strict=True)
    ]
    assert sum(same) >= 3
    for (images, labels), (others, other_labels) in zip(host, device, strict=True):
        assert (images - others).abs().max() < 2.5 / 255 / 0.224
        assert (labels == other_labels).float().mean() > 0.97


def test_crops_come_with_their_channels_last_in_memory(folder: Path) -> None:
    for where in ("host", "device"):
        images, _ = crops(folder, crop_on=where)[0]
        assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("maps", [False, True])
def test_the_teachers_answers_are_kept_one_by_one(maps: bool, tiny_sample: Path, tiny_teacher: DeepLabV3Plus) -> None:
    batches = FlippedBatches(open_dataset("sample", "train", tiny_sample), SMALL, 0, CPU)
    batches.cache_teacher(tiny_teacher, maps, progress=False)
    for flipped, begin in ((False, 0), (True, 24)):
        images = batches.images.flip(-1) if flipped else batches.images
        images = normalise(images).contiguous(memory_format=torch.channels_last)
        logits, features = ask_teacher(tiny_teacher, images, maps)
        for kept, asked in zip(batches.answers, (logits, *(features or ())), strict=True):
            assert kept.is_contiguous(memory_format=torch.channels_last) and len(kept) == 48
            assert torch.equal(kept[begin : begin + 24], asked)


@pytest.mark.parametrize("world", [1, 2])
def test_answers_that_memory_has_no_room_for_are_not_kept(
    world: int, tiny_sample: Path, tiny_teacher: DeepLabV3Plus, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = FlippedBatches(open_dataset("sample", "train", tiny_sample), SMALL, 0, CPU, Ranks(0, world))
    size = 48 * 21 * 32 * 32 * 4
    for free, kept in ((2 * world * size - 1, False), (2 * world * size, True), (None, True)):
        monkeypatch.setattr("distill.training.batches.free_memory", lambda free=free: free)
        batches.cache_teacher(tiny_teacher, False, progress=False)
        assert (batches.answers is not None) is kept and (next(batches(0))[2] is not None) is kept


def test_a_teacher_without_kept_answers_is_asked_at_every_step(
    tiny_sample: Path,
    tiny_teacher: DeepLabV3Plus,
    make_student: Callable[..., DeepLabV3Plus],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One step: rounding, which differs with the images asked together, grows with every update.
    given = {"data_root": tiny_sample, "batch_size": 24, "epochs": 1, "device": "cpu", "progress": False}
    kept = fit(make_student(), "kd", tiny_teacher, out=tmp_path / "kept", **given)
    monkeypatch.setattr("distill.training.batches.free_memory", lambda: 0)
    asked = fit(make_student(), "kd", tiny_teacher, out=tmp_path / "asked", **given)
    assert asked.history[0]["kd"] == pytest.approx(kept.history[0]["kd"], rel=1e-3)


@pytest.mark.parametrize("kind", [FlippedBatches, CroppedBatches])
def test_only_the_first_images_keep_their_labels(kind: type, tiny_sample: Path) -> None:
    dataset = open_dataset("sample", "train", tiny_sample)
    batches = kind(dataset, Settings(batch_size=6, crop_size=32, labelled=5), 0, CPU)
    labelled = set()
    for step, (_, labels, _) in enumerate(batches(0)):
        names = batches.names(0, step)
        labelled |= {name for name, mask in zip(names, labels, strict=True) if (mask != IGNORE_INDEX).any()}
    assert labelled == set(dataset.ids[:5])


def test_images_without_labels_still_teach(
    tiny_sample: Path, tiny_teacher: DeepLabV3Plus, make_student: Callable[..., DeepLabV3Plus], tmp_path: Path
) -> None:
    """Cross-entropy has nothing to say of them, and distillation has."""
    given = {"data_root": tiny_sample, "batch_size": 8, "epochs": 1, "device": "cpu", "progress": False, "labelled": 1}

    def run(method: str, **more) -> Run:
        return fit(make_student(), method, tiny_teacher, out=tmp_path / f"{method}{len(more)}", **given, **more)

    alone, taught = run("baseline"), run("kd")
    assert 0 < alone.history[0]["ce"] < 2.5, "two of three batches have no labelled pixel, which gives 0 and not NaN"
    assert taught.history[0]["kd"] > 0
    assert taught.config["settings"]["labelled"] == 1
