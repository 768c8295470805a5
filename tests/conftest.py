"""What the tests share: one thread, a tiny sample, a tiny teacher and tiny students."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill import DistillError, build_model
from distill.data.layout import voc_palette
from distill.data.sample import make_sample
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.teachers import freeze

torch.set_num_threads(1)  # small tensors gain nothing from threads, which on a busy machine wait for each other


def tiny_network(backbone: str = "resnet18", num_classes: int = 21, seed: int = 0) -> DeepLabV3Plus:
    """A network of a few thousand weights, the same at every call with one seed.

    ResNet-18 keeps a quarter of its width: a narrower one has shortcuts of another kind, for the CPU's sake.
    """
    width = {"resnet101": 0.0625, "resnet18": 0.25, "mobilenetv2": 0.1}[backbone]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(backbone, num_classes, width=width, head_width=0.0625, atrous_rates=(2, 3, 4))


@pytest.fixture(scope="session")
def make_student() -> Callable[..., DeepLabV3Plus]:
    return tiny_network


@pytest.fixture(scope="session")
def tiny_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training images and 6 each of val and test, 32 pixels per side; not to be written to."""
    return make_sample(tmp_path_factory.mktemp("data") / "tiny", train=24, val=6, test=6, size=32, progress=False)


@pytest.fixture(scope="session")
def tiny_teacher() -> DeepLabV3Plus:
    """A ResNet-101 network with 4 to 128 channels that has seen some images, so that its BatchNorms differ."""
    teacher = tiny_network("resnet101", seed=7)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)  # of the images, and of the dropout that the decoder's BatchNorms see
        for _ in range(3):
            teacher(torch.randn(8, 3, 32, 32))
    return freeze(teacher)


@pytest.fixture
def voc_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder in VOC layout from masks: `voc_folder({"train": [mask, …]}, class_names=…)`."""

    def write(splits: dict[str, list[np.ndarray]], class_names: tuple[str, ...] = (), name: str = "own") -> Path:
        root = tmp_path / name
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (root / folder).mkdir(parents=True)
        if class_names:
            (root / "class_names.txt").write_text("\n".join(class_names) + "\n")
        rng = np.random.default_rng(0)
        for split, masks in splits.items():
            names = [f"{split}{index}" for index in range(len(masks))]
            (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(n + "\n" for n in names))
            for stem, mask in zip(names, masks, strict=True):
                picture = Image.fromarray(np.asarray(mask, dtype=np.uint8)).convert("P")
                picture.putpalette(voc_palette())
                picture.save(root / "SegmentationClass" / f"{stem}.png")
                pixels = rng.integers(0, 256, (*np.shape(mask), 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "JPEGImages" / f"{stem}.jpg")
        return root

    return write


@pytest.fixture
def refused() -> Callable[..., str]:
    """Calls a function, expects a DistillError of one sentence that holds every given word, and returns it."""

    def check(*words: object, call: Callable[[], object]) -> str:
        with pytest.raises(DistillError) as caught:
            call()
        message = str(caught.value)
        assert message and "\n" not in message and len(message) < 500
        for word in words:
            assert str(word) in message
        return message

    return check


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of a parser, with the parser of each."""
    of_commands = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return {name: sub for action in of_commands for name, sub in action.choices.items()}
