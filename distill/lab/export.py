"""A network alone in one file that other programs run, without this package: `export`.

The file takes images as they are, (N, 3, H, W) uint8 RGB, normalises them itself, and gives logits (N, C, H, W)
float32 at the images' size. It says in its metadata what its classes, colours, input and scores are.
"""

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from distill.data.folders import VOCFolder, open_dataset
from distill.data.layout import voc_palette
from distill.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from distill.errors import DistillError, check_number, first_line, nearest
from distill.files import make_folder, replace_file
from distill.lab.int8 import CALIBRATED_ON, quantised
from distill.lab.parity import Size, answer_of, check_logits, check_masks, compare_masks
from distill.networks.onnx_file import INPUT, OUTPUT, OnnxNetwork, library
from distill.training.evaluation import check_classes
from distill.training.runs import Run, open_network, own_version, run_of

OPSET = 18  # of ONNX's operators: what PyTorch's exporter writes without translating, and runtimes since 2023 read
FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
_TRACED = (2, 64, 96)  # images (N, H, W), where any number and size is allowed
_COMPARED_ON = 300  # images of val
_FREE = {0: "batch", 2: "height", 3: "width"}  # the axes of an image whose length is open


@dataclass(frozen=True)
class Export:
    """A file that was written and checked: where it is, what it says about itself, and what the check found."""

    path: Path
    metadata: dict[str, Any]
    check: dict[str, Any]

    @property
    def sentence(self) -> str:
        """What the check found."""
        found = self.check
        if "max_difference" in found:
            least = self.metadata["input"].get("least_size")
            of = f", for images of at least {least[0]} x {least[1]} pixels" if least else ""
            return f"logits as PyTorch's within {found['max_difference']:.1g}{of}"
        return (
            f"{found['agreement']:.2%} of pixels as in PyTorch on {found['images']} images of val, mIoU "
            f"{100 * found['miou']:.2f} (PyTorch: {100 * found['miou_pytorch']:.2f})"
        )


class FromPixels(nn.Module):
    """A network that takes images as they are, (N, 3, H, W) uint8 from 0 to 255, and normalises them itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.network((image.float() - self.mean) / self.std)


def export(
    source: Run | str | Path | nn.Module,
    file: str | Path,
    *,
    format: str = "onnx",
    int8: bool = False,
    size: Size = None,
    data: str | Path | None = None,
    data_root: str | Path | None = None,
) -> Export:
    """Write a network to a file of its own, after checking that it answers as in PyTorch.

    Args:
        source: a run or its folder, a weights file, a shipped network's name, or a network.
        file: where it goes, by a name that ends in .onnx (.pt2 for "torch"); what was there before is replaced only
            once the new one has passed its check.
        format: "onnx", or "torch" for torch.export's own (.pt2), which any program with PyTorch runs. A .pt2 file can
            execute code when it is loaded: load only those you trust.
        int8: 8-bit weights and activations (ONNX only), calibrated on images of train.
        size: (H, W) of the only images it shall take, one at a time. By default it takes any number and size (a .pt2
            file from `metadata["input"]["least_size"]` on, if that is there, with which PyTorch limits it). Networks of
            timm's with TensorFlow's padding ("SAME") take minutes to export so.
        data, data_root: for int8, as in `open_dataset`; by default the data of the run, and else the sample.

    Raises:
        DistillError: the extra `export` is not installed, the network cannot be exported, there are no data for int8,
            the answers differ from PyTorch's by more than `parity` allows, or the file cannot be written.
    """
    file = Path(file)
    _check_arguments(format, int8, size)
    if file.suffix != FORMATS[format]:
        raise DistillError(f"{file} would hold the format {format!r}; call it {file.with_suffix(FORMATS[format]).name}")
    size = (int(size[0]), int(size[1])) if size else None
    make_folder(file.parent)
    network = from_pixels(open_network(source))
    train, val = _data_of(source, network, data, data_root) if int8 else (None, None)
    program = traced(network, size)
    metadata = describe(source, network, size, "int8" if int8 else "float32")
    if format == "torch":
        divisor = getattr(network.network, "divisor", 1)
        if size is None and (least := least_size(program, divisor + 1 if divisor > 1 else 1)):
            metadata["input"]["least_size"] = least
        with _explained(network, size), _quiet():
            content = torch_of(program, metadata)
            check = check_logits(network, torch.export.load(io.BytesIO(content)).module(), size)
    else:
        with _explained(network, size):
            content = onnx_of(program, size)
            check = check_logits(network, answer_of(content), size)
        if train and val:
            with _quiet():
                content = quantised(content, train, size)
            check = compare_masks(network, answer_of(content), val, size)
            check_masks(check)
            metadata["scores"] = {"val": {"miou": check["miou"]}}  # its own, and not those of the network it came from
        content = with_metadata(content, metadata)
    with replace_file(file, lasting=True) as temporary:
        temporary.write_bytes(content)
    return Export(file, metadata, check)


def _check_arguments(format: str, int8: bool, size: Size) -> None:
    if format not in FORMATS:
        raise DistillError(f"there is no format {format!r}{nearest(str(format), FORMATS)}")
    if format == "torch" and int8:
        raise DistillError("int8 files are ONNX files; leave out --int8, or --format torch")
    for name in ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ():
        library(name)
    if size is not None and not (isinstance(size, Sequence) and len(size) == 2):
        raise DistillError(f"size is {size!r}; give the height and the width of an image, such as (64, 96)")
    for side in size or ():
        check_number("size", side, 1, 10_000)


def _data_of(
    source: object, network: FromPixels, data: str | Path | None, root: str | Path | None
) -> tuple[VOCFolder, VOCFolder]:
    """Images of train to calibrate on, and those of val to compare on."""
    run = run_of(source) if data is None else None
    if run is None and data is None and network.network.class_names is None:
        raise DistillError(
            "int8 is calibrated on images, and this network does not say on which it was trained; give data (--dataset)"
        )
    try:
        train, val = (
            run.images_of(split, root, count) if run is not None else open_dataset(data or "sample", split, root, count)
            for split, count in (("train", CALIBRATED_ON), ("val", _COMPARED_ON))
        )
    except DistillError as error:
        raise DistillError(f"int8 is calibrated on images of train and compared on val, and {error}") from None
    try:
        check_classes("network", network.network, train)
    except DistillError as error:
        advice = "" if data is not None or run is not None else ", or name its data with data (--dataset)"
        raise DistillError(f"{error}{advice}") from None
    return train, val


def from_pixels(network: nn.Module) -> FromPixels:
    """The network with its normalisation, in float32 on the CPU; a copy, so that the one given stays as it is."""
    if isinstance(network, OnnxNetwork):
        raise DistillError(f"{network.path} is an exported network already; give the run that it was exported from")
    return FromPixels(copy.deepcopy(network)).cpu().float().eval()


def traced(network: nn.Module, size: Size) -> ExportedProgram:
    """The network's operators as torch.export records them, for images of one size or of any."""
    count, height, width = (1, *size) if size else _TRACED
    image = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    free = {INPUT: dict.fromkeys(_FREE, Dim.DYNAMIC)}
    with _explained(network, size), _quiet(), torch.no_grad():
        return torch.export.export(network, (image,), dynamic_shapes=None if size else free)


def least_size(program: ExportedProgram, fits: int = 1) -> list[int] | None:
    """Height and width of the smallest images that a program recorded for any size takes, which PyTorch finds out.

    None where it takes all, or where PyTorch does not say. `fits`: from which size on a wrapped network is resized in
    the way that was recorded.
    """
    images = next(node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name == INPUT)
    free = [side.node.expr for side in images.shape[2:] if isinstance(side, torch.SymInt)]
    least = [int(program.range_constraints[side].lower) for side in free if side in program.range_constraints]
    least = [max(side, fits) for side in least]
    return least if len(least) == 2 and least != [1, 1] else None


@contextmanager
def _explained(network: nn.Module, size: Size) -> Iterator[None]:
    try:
        yield
    except DistillError:  # a sentence already
        raise
    except Exception as error:  # whatever a network of another library does that cannot be recorded, or not in ONNX
        inner: Any = network.network
        name = type(getattr(inner, "network", inner)).__name__  # another library's is wrapped
        advice = "give another network" if size else "give --size H W"
        images = f"of {size[0]} x {size[1]} pixels" if size else "of any size"
        raise DistillError(
            f"the {name} cannot be exported for images {images} ({first_line(error)}); {advice}"
        ) from error


def onnx_of(program: ExportedProgram, size: Size) -> bytes:
    """The content of an ONNX file, weights included."""
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    names |= {} if size else {"dynamic_shapes": {INPUT: _FREE}}
    with _quiet():
        made = torch.onnx.export(program, **names, opset_version=OPSET, verbose=False, external_data=False)
    assert made is not None
    return made.model_proto.SerializeToString()


def torch_of(program: ExportedProgram, metadata: dict[str, Any]) -> bytes:
    """The content of a .pt2 file, with the metadata as its extra file metadata.json."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
    return buffer.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporter has to say about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# -------------------------------------------------------------------------------------------------- metadata


def describe(source: object, network: FromPixels, size: Size, precision: str) -> dict[str, Any]:
    """What an exported file says about itself; see `onnx_file.METADATA`."""
    inner: Any = network.network
    names = inner.class_names or [f"class {index}" for index in range(inner.num_classes)]
    palette = voc_palette()
    return {
        "classes": list(names),
        "palette": [palette[3 * label : 3 * label + 3] for label in range(len(names))],
        "input": {
            "name": INPUT,
            "type": "uint8",
            "layout": "N, 3, H, W; RGB from 0 to 255, not normalised",
            "size": list(size) if size else None,
        },
        "scores": _scores(source),
        "parameters": sum(weights.numel() for weights in inner.parameters()),
        "distill_version": own_version(),
        "opset": OPSET,
        "precision": precision,
    }


def _scores(source: object) -> dict[str, Any]:
    """mIoU and pixel accuracy of a run by split, on images of their own sizes; nothing for other sources."""
    run = run_of(source)
    found = run.scores if run and run.finished else {}
    wanted = ("miou", "pixel_accuracy")
    return {split: {key: found[split][key] for key in wanted} for split in ("val", "test") if split in found}


def with_metadata(content: bytes, metadata: dict[str, Any]) -> bytes:
    """An ONNX file's content with its metadata, each value a JSON string."""
    onnx = library("onnx")
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    return model.SerializeToString()
