"""A network alone in one file that other programs run, without this package: `export`.

The file takes images as they are, (N, 3, H, W) uint8 RGB, normalises them itself, and gives logits (N, C, H, W)
float32 at the images' size. It says in its metadata what its classes, colours, input and scores are.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from distill.data.sample import voc_palette
from distill.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from distill.errors import DistillError, check_number, first_line
from distill.files import make_folder, replace_file
from distill.networks.onnx_file import INPUT, OUTPUT, OnnxNetwork, library, session_of
from distill.training.runs import Run, open_network

OPSET = 18  # of ONNX's operators: what PyTorch's exporter writes without translating, and runtimes since 2023 read
TOLERANCE = 1e-4  # of the logits, beside PyTorch's
_TRACED, _CHECKED = (2, 64, 96), ((1, 64, 64), (2, 65, 97))  # images: (N, H, W)
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
        return f"logits as PyTorch's within {self.check['max_difference']:.1g}"


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


def export(source: Run | str | Path | nn.Module, file: str | Path, *, size: tuple[int, int] | None = None) -> Export:
    """Write a network as an ONNX file, after checking that it gives PyTorch's logits.

    Args:
        source: a run or its folder, a weights file, a teacher's name, or a network.
        file: where it goes; what was there before is replaced only once the new one has passed its check.
        size: (H, W) of the only images it shall take, one at a time. By default it takes any size and number. Networks
            of timm's with TensorFlow's padding ("SAME") take minutes to export so.

    Raises:
        DistillError: the extra `export` is not installed, the network cannot be exported, its logits differ from
            PyTorch's by more than `TOLERANCE` (or, where they are larger than 1, that share of the largest), or the
            file cannot be written.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        library(name)
    file = Path(file)
    _check_size(size)
    make_folder(file.parent)
    network = _from_pixels(open_network(source))
    content = onnx_of(traced(network, size), size)
    check = check_logits(network, content, size)
    metadata = describe(source, network, size, "float32")
    content = with_metadata(content, metadata)
    with replace_file(file, lasting=True) as temporary:
        temporary.write_bytes(content)
    return Export(file, metadata, check)


def _from_pixels(network: nn.Module) -> FromPixels:
    """A copy, so that the network that was given stays on its device and in its mode."""
    if isinstance(network, OnnxNetwork):
        raise DistillError(f"{network.path} is an exported network already; give the run that it was exported from")
    return FromPixels(copy.deepcopy(network)).cpu().float().eval()


def _check_size(size: tuple[int, int] | None) -> None:
    if size is not None:
        for side in size:
            check_number("size", side, 1, 10_000)


def traced(network: nn.Module, size: tuple[int, int] | None) -> ExportedProgram:
    """The network's operators as torch.export records them, for images of one size or of any."""
    count, height, width = (1, *size) if size else _TRACED
    image = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    free = {INPUT: dict.fromkeys(_FREE, Dim.DYNAMIC)}
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(network, (image,), dynamic_shapes=None if size else free)
    except Exception as error:  # whatever a network of another library does that cannot be recorded
        inner: Any = network.network
        name = type(getattr(inner, "network", inner)).__name__  # another library's is wrapped
        advice = "give another network" if size else "give --size H W"
        images = f"of {height} x {width} pixels" if size else "of any size"
        raise DistillError(
            f"the {name} cannot be exported for images {images} ({first_line(error)}); {advice}"
        ) from error


def onnx_of(program: ExportedProgram, size: tuple[int, int] | None) -> bytes:
    """The content of an ONNX file, weights included."""
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    names |= {} if size else {"dynamic_shapes": {INPUT: _FREE}}
    with _quiet():
        made = torch.onnx.export(program, **names, opset_version=OPSET, verbose=False, external_data=False)
    assert made is not None
    return made.model_proto.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporter has to say about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@torch.no_grad()
def check_logits(network: nn.Module, content: bytes, size: tuple[int, int] | None) -> dict[str, Any]:
    """The largest difference between the file's logits and PyTorch's on random images; DistillError if too large."""
    session, generator = session_of(content), torch.Generator().manual_seed(0)
    largest, difference = 1.0, 0.0
    for count, height, width in [(1, *size)] if size else _CHECKED:
        image = torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
        ours, theirs = network(image), torch.from_numpy(session.run([OUTPUT], {INPUT: image.numpy()})[0])
        if ours.shape != theirs.shape:
            raise DistillError(
                f"the exported network gives logits {tuple(theirs.shape)} and PyTorch {tuple(ours.shape)}; nothing was "
                f"written; give --size H W"
            )
        largest = max(largest, float(ours.abs().max()))
        difference = max(difference, float((ours - theirs).abs().nan_to_num(nan=float("inf")).max()))
    if difference > TOLERANCE * largest:
        raise DistillError(
            f"the exported network's logits differ from PyTorch's by {difference:.2g}, and at most "
            f"{TOLERANCE * largest:.2g} is allowed; nothing was written; try --size H W"
        )
    return {"max_difference": difference, "largest_logit": largest}


# -------------------------------------------------------------------------------------------------- metadata


def describe(source: object, network: FromPixels, size: tuple[int, int] | None, precision: str) -> dict[str, Any]:
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
        "distill_version": version("distill"),
        "opset": OPSET,
        "precision": precision,
    }


def _scores(source: object) -> dict[str, Any]:
    """mIoU and pixel accuracy of a run by split; nothing for other sources."""
    if not isinstance(source, Run):
        path = Path(source) if isinstance(source, str | Path) else None
        if path is None or not path.is_dir():
            return {}
        source = Run(path)
    if not source.finished:
        return {}
    wanted = ("miou", "pixel_accuracy")
    return {
        split: {key: source.scores[split][key] for key in wanted} for split in ("val", "test") if split in source.scores
    }


def with_metadata(content: bytes, metadata: dict[str, Any]) -> bytes:
    """An ONNX file's content with its metadata, each value a JSON string."""
    onnx = library("onnx")
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    return model.SerializeToString()
