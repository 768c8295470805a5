"""A table of mistakes people make: each ends with one sentence that says what was found and what to do.

On the command line the exit code is 2 and nothing but that sentence is on the error stream; in Python it is a
DistillError. The functions under CASES prepare a folder that holds a small data set, a run and a checkpoint, and return
the words to type, or a function to call.
"""

import collections
import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import distill
from distill import DistillError, cli
from distill.lab.tune import tune
from distill.methods import METHODS
from distill.networks.onnx_file import METADATA
from distill.networks.saving import save_model
from distill.training.evaluation import confusion_matrix

SMALL = ("--crop-size", "32", "--batch-size", "4", "--epochs", "1", "--workers", "0", "--device", "cpu")


class World:
    """A folder with data (8 training, 2 validation images, three classes), a network's file and a finished run."""

    def __init__(self, root: Path, network: torch.nn.Module) -> None:
        self.root, self.data, self.weights, self.run = root, root / "data", root / "net.safetensors", root / "run"
        rng = np.random.default_rng(0)
        self.lists = self.data / "ImageSets" / "Segmentation"
        for folder in (self.data / "JPEGImages", self.data / "SegmentationClass", self.lists):
            folder.mkdir(parents=True)
        for split, count in (("train", 8), ("val", 2)):
            names = [f"{split}{index}" for index in range(count)]
            (self.lists / f"{split}.txt").write_text("\n".join(names) + "\n")
            for name in names:
                Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(self.image(name))
                Image.fromarray(rng.integers(0, 3, (40, 40), dtype=np.uint8)).save(self.mask(name))
        self.classes = self.data / "class_names.txt"
        self.classes.write_text("ground\ncup\nspoon\n")
        network.class_names = ("ground", "cup", "spoon")
        save_model(network, self.weights)

    def image(self, name: str = "train0") -> Path:
        return self.data / "JPEGImages" / f"{name}.jpg"

    def mask(self, name: str = "train0") -> Path:
        return self.data / "SegmentationClass" / f"{name}.png"

    def train(
        self, *words: object, method: str = "baseline", backbone: str = "resnet18", dataset: object = None
    ) -> list:
        line = ["train", "--backbone", backbone, "--method", method, "--dataset", dataset or self.data]
        return [*line, *SMALL, "--out", self.root / "out", *words]

    def taught(self, file: Path, content: bytes | None = None) -> list:
        """A distilled run whose teacher is this file."""
        if content is not None:
            file.write_bytes(content)
        return self.train("--teacher", file, method="kd")

    def check(self) -> list:
        return ["data", "check", self.data]

    def list(self, *names: str) -> list:
        (self.lists / "train.txt").write_text("\n".join(names) + "\n")
        return self.check()


CASES: dict[str, tuple[Callable[[World], object], tuple[str, ...]]] = {}


def case(*words: str) -> Callable:
    """Enter a mistake, with words that its sentence has to hold, under the name of its function."""

    def enter(prepare: Callable[[World], object]) -> Callable:
        assert prepare.__name__ not in CASES
        CASES[prepare.__name__] = prepare, words
        return prepare

    return enter


# --------------------------------------------------------------------------------------- folders and lists


@case("nowhere", "JPEGImages")
def data_folder_is_missing(world: World) -> list:
    return ["data", "check", world.root / "nowhere"]


@case("no list", "0 masks")
def data_folder_is_empty(world: World) -> list:
    (world.root / "empty").mkdir()
    return ["data", "check", world.root / "empty"]


@case("nowhere")
def dataset_of_a_run_is_missing(world: World) -> list:
    return world.train(dataset=world.root / "nowhere")


@case("nowhere", "data sample --out")
def data_root_is_missing(world: World) -> list:
    return world.train("--data-root", world.root / "nowhere", dataset="sample")


@case("not the sample", "--dataset")
def data_root_is_a_folder_of_ones_own(world: World) -> list:
    return world.train("--data-root", world.data, dataset="sample")


@case("no folder pascl", "did you mean 'pascal'")
def dataset_is_misspelt(world: World) -> list:
    return world.train(dataset="pascl")


@case("val.txt", "train")
def list_of_val_is_missing(world: World) -> list:
    (world.lists / "val.txt").unlink()
    return world.train()


@case("jpg", "no PNG")
def a_mask_is_a_jpeg(world: World) -> list:
    shutil.rmtree(world.lists)
    Image.new("L", (40, 40)).save(world.mask().with_suffix(".jpg"))
    return world.check()


@case("student.safetensors", "of no run", "move it away")
def weights_lie_where_a_run_is_to_be(world: World) -> list:
    (world.root / "out").mkdir()
    (world.root / "out" / "student.safetensors").write_bytes(b"of another run")
    return world.train()


@case("labelled is 100", "8 images")
def more_labels_than_images(world: World) -> list:
    return world.train("--labelled", 100, "--teacher", world.weights, method="kd")


@case("student.pt2", "torch.export.load")
def an_exported_program_is_asked(world: World) -> list:
    (world.root / "student.pt2").write_bytes(b"PK")
    return ["predict", world.root / "student.pt2", world.image(), "--out", world.root / "out"]


@case("is a folder", "files in it")
def a_folder_is_predicted(world: World) -> list:
    return ["predict", world.weights, world.data, "--out", world.root / "out", "--device", "cpu"]


@case("train.txt", "no images")
def list_is_empty(world: World) -> list:
    return world.list("")


@case("train.txt", "UTF-8")
def list_is_no_text(world: World) -> list:
    (world.lists / "train.txt").write_bytes(b"\xff\xfe\x00bad\xff")
    return world.check()


@case("train.txt", "train1", "twice")
def list_names_an_image_twice(world: World) -> list:
    return world.list("train0", "train1", "train1")


@case("train.txt", "../secret", "leaves")
def list_leaves_the_folder_upwards(world: World) -> list:
    return world.list("train0", "../secret")


@case("train.txt", "/etc/passwd", "leaves")
def list_names_an_absolute_path(world: World) -> list:
    return world.list("/etc/passwd")


@case("train.txt", "train0\\\\..\\\\x", "leaves")
def list_leaves_the_folder_with_backslashes(world: World) -> list:
    return world.list("train0\\..\\x")


@case("train.txt", "leaves")
def list_holds_a_null_character(world: World) -> list:
    return world.list("train\0")


@case("train0.jpg", "link", "copy")
def image_is_a_link_out_of_the_folder(world: World) -> list:
    outside = world.root / "outside.jpg"
    world.image().rename(outside)
    world.image().symlink_to(outside)
    return world.train()


@case("train0.png", "link", "copy")
def mask_is_a_link_out_of_the_folder(world: World) -> list:
    outside = world.root / "outside.png"
    world.mask().rename(outside)
    world.mask().symlink_to(outside)
    return world.train()


@case("train3.jpg", "no image")
def image_is_missing(world: World) -> list:
    world.image("train3").unlink()
    return world.train()


@case("train3.png", "missing")
def mask_is_missing(world: World) -> list:
    world.mask("train3").unlink()
    return world.train()


@case("faults, 1 in all")
def check_counts_faults(world: World) -> list:
    world.mask("train3").unlink()
    return world.check()


@case("class_names.txt", "0 classes")
def class_names_are_empty(world: World) -> list:
    world.classes.write_text("\n")
    return world.check()


@case("class_names.txt", "300 classes")
def class_names_are_too_many(world: World) -> list:
    world.classes.write_text("\n".join(map(str, range(300))))
    return world.check()


@case("class_names.txt", "cup", "twice")
def class_names_repeat(world: World) -> list:
    world.classes.write_text("ground\ncup\ncup\n")
    return world.check()


@case("8 training images", "batch of 64", "--batch-size")
def images_are_fewer_than_the_batch(world: World) -> list:
    return world.train("--batch-size", 64)


@case("SegmentationClassAug", "--use-sbd")
def sbd_is_missing(world: World) -> list:
    return world.train("--data-root", world.data, "--use-sbd", dataset="pascal")


@case("--use-sbd", "pascal")
def sbd_with_other_data(world: World) -> list:
    return world.train("--use-sbd")


# ------------------------------------------------------------------------------------- images and masks


@case("train0.jpg", "cannot be read as an image")
def image_is_truncated(world: World) -> list:
    world.image().write_bytes(world.image().read_bytes()[:700])
    return world.train()


@case("train7.jpg", "cannot be read as an image")
def image_is_truncated_and_read_by_a_worker(world: World) -> list:
    world.image("train7").write_bytes(world.image("train7").read_bytes()[:700])
    return world.train("--workers", 2)


@case("train0.jpg", "cannot be read as an image")
def image_has_no_bytes(world: World) -> list:
    world.image().write_bytes(b"")
    return world.train()


@case("train0.jpg", "cannot be read as an image")
def image_is_a_web_page(world: World) -> list:
    world.image().write_text("<html>404</html>")
    return world.train()


@case("train0.jpg", "is a folder")
def image_is_a_folder(world: World) -> list:
    world.image().unlink()
    world.image().mkdir()
    return world.train()


@case("train0.jpg", "8 bits")
def image_has_16_bits(world: World) -> list:
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(world.image(), "PNG")
    return world.train()


@case("train0.jpg", "3 frames")
def image_is_animated(world: World) -> list:
    frames = [Image.new("RGB", (40, 40), (80 * index, 0, 0)) for index in range(3)]
    frames[0].save(world.image(), "GIF", save_all=True, append_images=frames[1:])
    return world.train()


def _bomb() -> bytes:
    """A PNG of a few bytes that says it is 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@case("train0.jpg", "pixels")
def image_is_a_decompression_bomb(world: World) -> list:
    world.image().write_bytes(_bomb())
    return world.train()


@case("train0.png", "pixels")
def mask_is_a_decompression_bomb(world: World) -> list:
    world.mask().write_bytes(_bomb())
    return world.train()


@case("train0.png", "cannot be read as a mask")
def mask_is_truncated(world: World) -> list:
    world.mask().write_bytes(world.mask().read_bytes()[:150])
    return world.train()


@case("train0.png", "cannot be read as a mask")
def mask_has_no_bytes(world: World) -> list:
    world.mask().write_bytes(b"")
    return world.train()


@case("train0.png", "30 x 40", "40 x 40")
def mask_has_another_size(world: World) -> list:
    Image.fromarray(np.zeros((40, 30), np.uint8)).save(world.mask())
    return world.train()


@case("train0.png", "value 7", "3 classes")
def mask_has_values_beyond_the_classes(world: World) -> list:
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(world.mask())
    return world.train()


@case("train0.png", "RGB", "class indices")
def mask_is_rgb(world: World) -> list:
    Image.new("RGB", (40, 40)).save(world.mask())
    return world.train()


@case("train0.png", "class indices")
def mask_has_16_bits(world: World) -> list:
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(world.mask())
    return world.train()


@case("train0.png", "2 frames")
def mask_is_animated(world: World) -> list:
    frames = [Image.new("L", (40, 40), index) for index in range(2)]
    frames[0].save(world.mask(), "PNG", save_all=True, append_images=frames[1:])
    return world.train()


@case("no labelled pixel", "train")
def all_training_pixels_are_void(world: World) -> list:
    for index in range(8):
        Image.fromarray(np.full((40, 40), 255, np.uint8)).save(world.mask(f"train{index}"))
    return world.train()


@case("no labelled pixel", "train")
def all_pixels_of_the_one_class_are_void(world: World) -> list:
    world.classes.write_text("ground\n")
    return all_training_pixels_are_void(world)


@case("only 0 and 255", "save that as 1")
def a_class_is_drawn_as_void(world: World) -> list:
    for index in range(8):
        Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(world.mask(f"train{index}"))
    return world.train()


@case("no labelled pixel", "val")
def all_validation_pixels_are_void(world: World) -> list:
    for index in range(2):
        Image.fromarray(np.full((40, 40), 255, np.uint8)).save(world.mask(f"val{index}"))
    return ["evaluate", world.weights, "--dataset", world.data, "--device", "cpu"]


@case("40 x 40", "flip", "crops")
def images_too_large_to_be_kept_whole(world: World) -> list:
    return world.train("--augment", "flip", "--crop-size", 16)


@case("train0.jpg", "20000 x 1", "too long and thin")
def image_is_too_long_and_thin_for_crops(world: World) -> list:
    Image.new("RGB", (20_000, 1)).save(world.image())
    Image.new("L", (20_000, 1)).save(world.mask())
    return world.train()


@case("val0.jpg", "1 x 20000", "too long and thin")
def image_is_too_long_and_thin_for_resize513(world: World) -> list:
    Image.new("RGB", (1, 20_000)).save(world.image("val0"))
    Image.new("L", (1, 20_000)).save(world.mask("val0"))
    return ["evaluate", world.weights, "--dataset", world.data, "--protocol", "resize513", "--device", "cpu"]


@case("called train0", "--out")
def predicted_images_have_one_name(world: World) -> list:
    (world.root / "b").mkdir()
    world.image().rename(world.root / "b" / "train0.jpg")
    return ["predict", world.weights, world.image(), world.root / "b" / "train0.jpg", "--out", world.root / "p"]


@case("several images are called train0")
def predicted_images_differ_in_capitals(world: World) -> list:
    return ["predict", world.weights, world.image(), world.image("TRAIN0"), "--out", world.root / "p"]


@case("photo.jpg", "no image")
def predicted_image_is_missing(world: World) -> list:
    return ["predict", world.weights, world.root / "photo.jpg", "--out", world.root / "p", "--device", "cpu"]


@case("net.safetensors", "cannot be read as an image")
def predicted_image_is_no_image(world: World) -> list:
    return ["predict", world.weights, world.weights, "--out", world.root / "p", "--device", "cpu"]


# ------------------------------------------------------------------------------------------ names and numbers


@case("resnet81", "did you mean 'resnet18'")
def backbone_is_misspelt(world: World) -> list:
    return world.train(backbone="resnet81")


@case("sakdd", "did you mean 'sakd'")
def method_is_misspelt(world: World) -> list:
    return world.train(method="sakdd")


@case("kd", "twice")
def method_is_named_twice(world: World) -> list:
    return world.train("--teacher", world.weights, method="kd+kd")


@case("sampel", "did you mean 'sample'")
def preset_is_misspelt(world: World) -> list:
    return world.train("--preset", "sampel")


@case("recipe", "paper", "matched")
def recipe_is_unknown(world: World) -> list:
    return world.train("--recipe", "paper")


@case("protocol", "did you mean 'resize513'")
def protocol_is_unknown(world: World) -> list:
    return ["evaluate", world.weights, "--protocol", "resize512"]


@case("photo.json", "which covers no area", "polygon")
def labelmes_file_has_a_point_where_an_area_should_be(world: World) -> list:
    Image.new("RGB", (8, 8)).save(world.root / "photo.jpg")
    shape = {"label": "cup", "points": [[3, 3]], "shape_type": "point"}
    (world.root / "photo.json").write_text(json.dumps({"shapes": [shape], "imagePath": "photo.jpg"}))
    return ["data", "labelme", world.root, "--out", world.root / "labelme"]


@case("--epoch-count")
def flag_is_unknown(world: World) -> list:
    return world.train("--epoch-count", 3)


@case("command", "did you mean 'train'")
def command_is_unknown(world: World) -> list:
    return ["trian"]


@case("--seed", "nine")
def number_is_a_word(world: World) -> list:
    return world.train("--seed", "nine")


@case("device", "warp")
def device_is_unknown(world: World) -> list:
    return world.train("--device", "warp")


@case("cuda", "--device cpu")
def cuda_is_absent(world: World) -> list:
    return world.train("--device", "cuda")


@case("output_stride", "12")
def output_stride_is_neither_8_nor_16(world: World) -> list:
    return world.train("--out-stride", 12)


@case("weights", "width 1.0")
def imagenet_weights_for_a_slim_network(world: World) -> list:
    return world.train("--weights", "DEFAULT", "--preset", "sample")


NUMBERS = {
    "--epochs": (0, -3, 10**12),
    "--batch-size": (0, -4, 1, 10**12),
    "--crop-size": (0, -5, 10**9),
    "--lr": (0, -0.1, "nan", "inf", 1e9),
    "--workers": (-1, 10**9),
    "--evaluate-every": (0, -2),
    "--limit": (0, -1),
    "--seed": (-1, 2**80),
    "--weight": (-1, "nan", "inf"),
}


def _number(flag: str, value: object) -> Callable[[World], list]:
    method = "kd" if flag == "--weight" else "baseline"
    return lambda world: world.train(flag, value, "--teacher", world.weights, method=method)


OF_A_SAMPLE = {
    "--train": (0, -1, 10**9),
    "--val": (-1, 10**9),
    "--test": (-1, 10**9),
    "--size": (0, 4, -64, 10**6),
    "--seed": (-1, 2**80),
}


def _number_of_a_sample(flag: str, value: int) -> Callable[[World], list]:
    return lambda world: ["data", "sample", "--out", world.root / "s", flag, value]


for _flag, _values in OF_A_SAMPLE.items():
    for _value in _values:
        CASES[f"sample {_flag} {_value}"] = _number_of_a_sample(_flag, _value), (f"{_flag.strip('-')} is {_value}",)
for _flag, _values in NUMBERS.items():
    for _value in _values:
        CASES[f"number {_flag} {_value}"] = _number(_flag, _value), (f"{_flag.strip('-').replace('-', '_')} is ",)


@case("--weight", "kd+sakd", "study file")
def one_weight_for_two_terms(world: World) -> list:
    return world.train("--weight", "2", method="kd+sakd")


@case("temperature is '4'", "a number from 0.01")
def temperature_is_text(world: World) -> Callable:
    return lambda: METHODS["kd"](None, None, temperature="4")


@case("dividers is 3", "for each of the 6 positions")
def dividers_are_one_number(world: World) -> Callable:
    return lambda: METHODS["sakd"](None, None, dividers=3)


# -------------------------------------------------------------------------------------- weights and checkpoints


@case("net.onnx", "exported network", ".safetensors")
def teacher_is_an_exported_file(world: World) -> list:
    return world.taught(world.root / "net.onnx", b"whatever is in it")


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.witness}",)


@case("gone.safetensors")
def teacher_is_missing(world: World) -> list:
    return world.taught(world.root / "gone.safetensors")


@case("smaple", "did you mean 'sample'")
def teacher_is_misspelt(world: World) -> list:
    return world.taught(Path("smaple"))


@case("gone.pth.tar", "sample")
def teacher_checkpoint_is_missing(world: World) -> list:
    return world.taught(world.root / "gone.pth.tar")


@case("teacher", "21 classes", "spoon")
def teacher_has_other_classes(world: World) -> list:
    return world.train("--teacher", "sample", method="kd")


@case("weights", "safetensors")
def teacher_is_truncated(world: World) -> list:
    return world.taught(world.root / "weights.safetensors", world.weights.read_bytes()[:5000])


@case("weights", "safetensors")
def teacher_is_text(world: World) -> list:
    return world.taught(world.root / "weights.safetensors", b"weights go here")


@case("t.pth.tar", "get the file")
def checkpoint_is_text(world: World) -> list:
    return world.taught(world.root / "t.pth.tar", b"weights go here")


@case("t.pth.tar", "get the file")
def checkpoint_is_empty(world: World) -> list:
    return world.taught(world.root / "t.pth.tar", b"")


@case("t.pth.tar", "system", "without executing code in it")
def checkpoint_is_hostile(world: World) -> list:
    torch.save({"state_dict": Hostile(world.root / "witness")}, world.root / "t.pth.tar")
    return world.taught(world.root / "t.pth.tar")


@case("t.pth.tar", "without executing code in it")
def checkpoint_is_a_hostile_pickle(world: World) -> list:
    return world.taught(world.root / "t.pth.tar", pickle.dumps(Hostile(world.root / "witness")))


@case("t.pth.tar", "get the file")
def checkpoint_is_truncated(world: World) -> list:
    torch.save({"state_dict": {"a": torch.ones(1000)}}, world.root / "t.pth.tar")
    return world.taught(world.root / "t.pth.tar", (world.root / "t.pth.tar").read_bytes()[:900])


@case("t.pth.tar", "not a DeepLabV3+")
def checkpoint_is_of_another_network(world: World) -> list:
    torch.save({"state_dict": collections.OrderedDict(a=torch.ones(3))}, world.root / "t.pth.tar")
    return world.taught(world.root / "t.pth.tar")


@case("t.pth.tar", "not a DeepLabV3+ with ResNet-101")
def checkpoint_is_of_another_version(world: World) -> list:
    state = {"decoder.last_conv.8.weight": torch.ones(3, 256, 1, 1), "layer": torch.ones(2)}
    torch.save({"state_dict": state}, world.root / "t.pth.tar")
    return world.taught(world.root / "t.pth.tar")


@case("t.pth.tar", "no state dict")
def checkpoint_holds_no_weights(world: World) -> list:
    torch.save([1, 2, 3], world.root / "t.pth.tar")
    return world.taught(world.root / "t.pth.tar")


@case("t.pth.tar", "a folder")
def checkpoint_is_a_folder(world: World) -> list:
    (world.root / "t.pth.tar").mkdir()
    return world.taught(world.root / "t.pth.tar")


@case("plain.safetensors", "config")
def weights_without_a_config(world: World) -> list:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, world.root / "plain.safetensors")
    return world.taught(world.root / "plain.safetensors")


@case("odd.safetensors", "config")
def weights_with_a_config_that_builds_nothing(world: World) -> list:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, world.root / "odd.safetensors", {"config": '{"backbone": 3}'})
    return world.taught(world.root / "odd.safetensors")


@case("odd.safetensors", "do not fit")
def weights_that_do_not_fit_their_config(world: World) -> list:
    from safetensors.torch import save_file

    config = json.dumps({"backbone": "resnet18", "num_classes": 3, "width": 0.25})
    save_file({"a": torch.ones(2)}, world.root / "odd.safetensors", {"config": config})
    return world.taught(world.root / "odd.safetensors")


# ------------------------------------------------------------------------------------------------ run folders


def _finished(world: World) -> World:
    assert cli.main([str(word) for word in world.train()]) == 0
    return world


@case("seed", "another --out")
def run_folder_belongs_to_another_configuration(world: World) -> list:
    return _finished(world).train("--seed", 5)


@case("config.json", "JSON")
def run_config_is_damaged(world: World) -> list:
    _finished(world)
    (world.root / "out" / "config.json").write_text('{"data": ')
    return ["evaluate", world.root / "out", "--device", "cpu"]


@case("config.json", "not the config of a run")
def run_config_is_of_something_else(world: World) -> list:
    _finished(world)
    (world.root / "out" / "config.json").write_text("[1, 2]")
    return ["evaluate", world.root / "out", "--device", "cpu"]


@case("history.jsonl", "line 1")
def run_history_is_damaged(world: World) -> list:
    _finished(world)
    (world.root / "out" / "history.jsonl").write_text('{"epoch": 1, "lo')
    return ["compare", world.root / "out"]


@case("scores.json")
def run_scores_are_damaged(world: World) -> list:
    _finished(world)
    (world.root / "out" / "scores.json").write_text('{"val": 3}')
    return ["compare", world.root / "out"]


@case("last.pt", "cannot resume")
def run_checkpoint_is_damaged(world: World) -> list:
    _finished(world)
    (world.root / "out" / "scores.json").unlink()
    (world.root / "out" / "last.pt").write_bytes(b"torn")
    return world.train()


@case("last.pt", "cannot resume")
def run_checkpoint_is_hostile(world: World) -> list:
    _finished(world)
    (world.root / "out" / "scores.json").unlink()
    torch.save({"student": Hostile(world.root / "witness")}, world.root / "out" / "last.pt")
    return world.train()


@case("last.pt", "cannot resume")
def run_checkpoint_is_of_another_kind(world: World) -> list:
    _finished(world)
    (world.root / "out" / "scores.json").unlink()
    torch.save({"something": torch.ones(2)}, world.root / "out" / "last.pt")
    return world.train()


@case("unfinished", "resume")
def run_is_not_to_be_resumed(world: World) -> list:
    _finished(world)
    (world.root / "out" / "scores.json").unlink()
    return world.train("--no-resume")


@case("config.json", "not a run")
def folder_is_no_run(world: World) -> list:
    return ["evaluate", world.data, "--device", "cpu"]


@case("no finished run")
def nothing_to_compare(world: World) -> list:
    return ["compare", world.data]


@case("gone.json", "JSON")
def recorded_study_is_missing(world: World) -> list:
    return ["compare", world.root / "gone.json"]


@case("study.json", "not a recorded study")
def recorded_study_is_something_else(world: World) -> list:
    (world.root / "study.json").write_text('{"a": 1}')
    return ["compare", world.root / "study.json"]


@case("out cannot be made", "choose one that can be written to")
def output_folder_is_a_file(world: World) -> list:
    (world.root / "out").write_text("a file")
    return world.train()


@case("p cannot be made", "choose one that can be written to")
def prediction_folder_is_a_file(world: World) -> list:
    (world.root / "p").write_text("a file")
    return ["predict", world.weights, world.image(), "--out", world.root / "p", "--device", "cpu"]


@case("/proc/distill")
def output_folder_cannot_be_made(world: World) -> list:
    return world.train("--out", "/proc/distill")


# ------------------------------------------------------------------------------------------- in Python only


@case("batch", "BatchNorm")
def one_image_in_training_mode(world: World) -> Callable:
    network = distill.load_model(world.weights).train()
    return lambda: network(torch.zeros(1, 3, 32, 32))


@case("uint8", "convert")
def predicted_array_is_of_floats(world: World) -> Callable:
    return lambda: distill.predict(distill.load_model(world.weights), np.zeros((8, 8, 3)))


@case("setting", "epohcs", "did you mean 'epochs'")
def setting_is_misspelt(world: World) -> Callable:
    return lambda: distill.fit("resnet18", "baseline", data=world.data, epohcs=3)


@case("option", "temprature", "did you mean 'temperature'")
def option_of_a_method_is_misspelt(world: World) -> Callable:
    return lambda: distill.build_method("kd", *[distill.load_model(world.weights)] * 2, temprature=2)


@case("teacher")
def method_without_a_teacher(world: World) -> Callable:
    return lambda: distill.fit("resnet18", "kd", None, world.data, crop_size=32, augment="crops")


@case("Sample", "did you mean 'sample'")
def preset_of_a_student_is_misspelt(world: World) -> Callable:
    return lambda: distill.make_student("resnet18", 3, preset="Sample")


@case("no backbone", "resnet18")
def a_backbone_that_is_no_name(world: World) -> object:
    return lambda: distill.make_student(5, 3)


@case("seed is 1.5")
def seed_of_a_student_is_no_whole_number(world: World) -> Callable:
    return lambda: distill.make_student("resnet18", 3, seed=1.5)


@case("a list is no teacher", "run.student()")
def teacher_is_a_list(world: World) -> Callable:
    return lambda: distill.load_teacher([world.weights])


@case("self_attention is 'no'", "True or False")
def switch_of_a_method_is_a_word(world: World) -> Callable:
    networks = [distill.load_model(world.weights) for _ in range(2)]
    return lambda: distill.build_method("sakd", *networks, self_attention="no")


@case("no finite numbers above 0")
def class_weights_are_infinite(world: World) -> Callable:
    network = distill.load_model(world.weights)
    return lambda: distill.undo_class_weights(network, torch.tensor([1.0, 2.0, float("inf")]))


@case("strength is nan")
def class_weights_are_undone_by_no_number(world: World) -> Callable:
    network = distill.load_model(world.weights)
    return lambda: distill.undo_class_weights(network, torch.ones(3), float("nan"))


@case("a class above 2")
def labels_hold_more_classes_than_are_counted(world: World) -> Callable:
    return lambda: confusion_matrix(torch.tensor([0, 1]), torch.tensor([3, 0]), 3)


@case("a Linear, which no other process has")
def weights_are_tuned_with_a_network_for_a_teacher(world: World) -> Callable:
    return lambda: tune(["kd"], teacher=torch.nn.Linear(1, 1), out=world.root / "tune")


# ----------------------------------------------------------------------------------------------- exported files


@case("net.pt2", "'onnx'", "call it net.onnx")
def an_exported_file_has_another_formats_name(world: World) -> Callable:
    return lambda: distill.export(world.weights, world.root / "net.pt2")


def onnx_file(path: Path, **metadata: object) -> Path:
    """A file with the smallest network that has the inputs and outputs of an exported one: three classes, 4 x 4."""
    kinds = onnx.TensorProto
    image = onnx.helper.make_tensor_value_info("image", kinds.UINT8, (1, 3, 4, 4))
    logits = onnx.helper.make_tensor_value_info("logits", kinds.FLOAT, (1, 3, 4, 4))
    cast = onnx.helper.make_node("Cast", ["image"], ["logits"], to=kinds.FLOAT)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([cast], "", [image], [logits]), opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    model.ir_version = 9
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, path)
    return path


ABOUT = {**dict.fromkeys(METADATA, None), "classes": ["ground", "cup", "spoon"]}


@case("net.onnx", "no ONNX file")
def a_file_is_no_onnx(world: World) -> list:
    (world.root / "net.onnx").write_bytes(b"not at all")
    return ["predict", world.root / "net.onnx", world.image(), "--out", world.root / "out"]


@case("net.onnx", "there is no file")
def an_onnx_file_is_missing(world: World) -> object:
    return lambda: distill.predict(world.root / "net.onnx", world.image())


@case("net.onnx", "not written by this package", "classes")
def an_onnx_file_is_another_programs(world: World) -> list:
    return ["predict", onnx_file(world.root / "net.onnx"), world.image(), "--out", world.root / "out"]


@case("net.onnx", "3 classes")
def an_onnx_file_has_no_names_for_its_classes(world: World) -> object:
    file = onnx_file(world.root / "net.onnx", **ABOUT | {"classes": ["ground", "cup"]})
    return lambda: distill.evaluate(file, distill.open_dataset(world.data, "val"))


@case("net.onnx", "4 x 4", "40 x 40", "--size")
def an_onnx_file_takes_other_sizes(world: World) -> list:
    return ["evaluate", onnx_file(world.root / "net.onnx", **ABOUT), "--dataset", world.data]


@case("net.onnx", "already")
def an_exported_network_is_exported(world: World) -> list:
    return ["export", onnx_file(world.root / "net.onnx", **ABOUT), "--out", world.root / "out"]


@case("onnxruntime", "not installed", "pip install")
def the_extra_export_is_not_installed(world: World) -> object:
    def ask() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("distill.networks.onnx_file.find_spec", lambda name: None)
            distill.predict(onnx_file(world.root / "net.onnx", **ABOUT), world.image())

    return ask


@case("net.safetensors", "cannot be made")
def the_folder_to_export_to_is_a_file(world: World) -> list:
    return ["export", world.weights, "--out", world.weights / "out"]


@case("size is 0", "from 1")
def an_exported_size_is_zero(world: World) -> list:
    return ["export", world.weights, "--size", "0", "64", "--out", world.root / "out"]


@case("int8", "calibrated", "nowhere")
def int8_without_data(world: World) -> list:
    words = ["export", world.weights, "--int8", "--dataset", world.root / "nowhere"]
    return [*words, "--size", "32", "32", "--out", world.root / "out"]


@case("3 classes", "21")
def int8_with_data_of_other_classes(world: World) -> list:
    return ["export", world.weights, "--int8", "--size", "32", "32", "--out", world.root / "out"]


@case("int8", "--format torch")
def int8_in_pytorchs_format(world: World) -> list:
    return ["export", world.weights, "--int8", "--format", "torch", "--out", world.root / "out"]


@case("jpeg", "onnx, torch")
def an_unknown_format(world: World) -> object:
    return lambda: distill.export(world.weights, world.root / "net", format="jpeg")


@case("--dataset", "for --int8")
def images_for_a_float_export(world: World) -> list:
    return ["export", "student-resnet18-distilled", "--dataset", "nowhere"]


@case("steps is -5")
def no_steps_of_latency(world: World) -> list:
    return ["bench", "--latency", "sample", "--steps", "-5"]


@case("--batch-size", "--latency", "leave it out")
def a_batch_of_latency(world: World) -> list:
    return ["bench", "--latency", "sample", "--batch-size", "4"]


@case("on the CPU", "leave out --device cuda")
def latency_on_a_gpu(world: World) -> list:
    return ["bench", "--latency", "sample", "--device", "cuda"]


@case("nowhere", "no run or network", "folders of runs")
def latency_of_a_network_that_is_missing(world: World) -> list:
    return ["bench", "--latency", world.root / "nowhere"]


# ------------------------------------------------------------------------------------------------ the table


@pytest.fixture
def world(tmp_path: Path, make_student: Callable) -> World:
    return World(tmp_path, make_student(num_classes=3))


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_sentence(name: str, world: World, capfd: pytest.CaptureFixture) -> None:
    prepare, words = CASES[name]
    asked = prepare(world)
    capfd.readouterr()
    if callable(asked):
        with pytest.raises(DistillError) as caught:
            asked()
        message = str(caught.value)
    else:
        try:
            code = cli.main([str(word) for word in asked])
        except SystemExit as stopped:
            code = stopped.code
        lines = [line for line in capfd.readouterr().err.splitlines() if line.strip() and "/s]" not in line]
        assert code == 2, lines[-3:]
        message = lines[-1]
        assert message.startswith("distill: ") and not any("Traceback" in line for line in lines)
        assert len(lines) == 1, lines
    assert message and "\n" not in message and len(message) < 600
    for word in words:
        assert word in message
    assert not (world.root / "witness").exists(), "the file ran its code"


def test_the_table_has_its_cases() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", ["two words", "grüße", "日本", "dots.in.name", "-dash"])
def test_unusual_names_are_no_mistake(name: str, world: World) -> None:
    world.image().rename(world.image(name))
    world.mask().rename(world.mask(name))
    world.list(name, *(f"train{index}" for index in range(1, 8)))
    assert cli.main([str(word) for word in world.train()]) == 0


@pytest.mark.parametrize("size", [(1, 1), (100, 1), (1, 100), (30, 2000)])
def test_unusual_sizes_are_no_mistake(size: tuple[int, int], world: World) -> None:
    for name in ("train0", "val0"):
        Image.new("RGB", size).save(world.image(name))
        Image.new("L", size).save(world.mask(name))
    assert cli.main([str(word) for word in world.train()]) == 0
    for shown in (size, (20_000, 1)):
        Image.new("RGB", shown).save(world.image("val0"))
        mask = distill.predict(distill.load_model(world.weights), world.image("val0"))
        assert mask.shape == shown[::-1]


def test_links_within_the_folder_and_to_whole_folders_are_no_mistake(world: World) -> None:
    moved = world.root / "elsewhere"
    (world.data / "JPEGImages").rename(moved)
    (world.data / "JPEGImages").symlink_to(moved)
    world.mask("train1").unlink()
    world.mask("train1").symlink_to(world.mask("train2"))
    assert cli.main([str(word) for word in world.train()]) == 0
