"""Networks in ONNX files, as `lab.export` writes them, answered by ONNX Runtime; with the extra `export`."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError, first_line

INPUT, OUTPUT = "image", "logits"
# What the file says about itself, each a JSON string.
METADATA = ("classes", "palette", "input", "scores", "parameters", "distill_version", "opset", "precision")


def library(name: str) -> Any:
    """One of the libraries of the extra `export`; DistillError with what to install where it is not there."""
    if find_spec(name) is None:
        raise DistillError(f"ONNX files need {name}, which is not installed; pip install onnx onnxscript onnxruntime")
    return import_module(name)


def session_of(model: str | bytes) -> Any:
    """ONNX Runtime's session for a file's path or content, on the CPU, with as many threads as PyTorch uses."""
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # nothing but crashes: what is wrong is in the exception that it raises
    # With its fallback it prints what failed, and tries the same once more.
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)


class OnnxNetwork(nn.Module):
    """A network in an ONNX file; make one with `load_onnx`, which checks the file.

    Unlike other networks it takes images as they are, (N, 3, H, W) uint8 RGB: it normalises them itself.

    Attributes:
        metadata: what the file says about itself, a value for each of `METADATA`.
        num_classes, class_names: as of any network.
        size: (H, W) of the images that it takes; None where it takes any.
    """

    def __init__(self, path: Path, session: Any, metadata: dict[str, Any]) -> None:
        super().__init__()
        self.path, self.session, self.metadata = path, session, metadata
        names = tuple(metadata["classes"])
        self.num_classes = len(names)
        # What `export` calls the classes of a network that does not know their names says nothing about them.
        unknown = names == tuple(f"class {index}" for index in range(len(names)))
        self.class_names: tuple[str, ...] | None = None if unknown else names
        height, width = session.get_inputs()[0].shape[2:]
        self.size = (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C, H, W) float32 for images (N, 3, H, W) uint8. Raises DistillError for images of a size that
        the file does not take.
        """
        if images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise DistillError(
                f"{self.path} takes images (N, 3, H, W) of uint8, from 0 to 255, and not {tuple(images.shape)} of "
                f"{images.dtype}; it normalises them itself"
            )
        height, width = images.shape[2:]
        if self.size and (height, width) != self.size:
            raise DistillError(
                f"{self.path} takes images of {self.size[0]} x {self.size[1]} pixels (height x width), and not of "
                f"{height} x {width}; resize it, or export the network without --size"
            )
        # A file of one fixed size takes one image at a time.
        parts = images.cpu().split(1) if self.size else (images.cpu(),)
        try:
            answers = [torch.from_numpy(self.session.run([OUTPUT], {INPUT: part.numpy()})[0]) for part in parts]
        except Exception as error:  # ONNX Runtime has errors of many kinds
            raise DistillError(f"{self.path} cannot be run ({_reason(error)}); export it anew") from None
        return torch.cat(answers)


def load_onnx(path: str | Path) -> OnnxNetwork:
    """The network in a file that `export` wrote. Nothing in the file is executed but ONNX's own operators.

    Raises DistillError where there is no such file, it is no ONNX file, or one of another program.
    """
    path = Path(path)
    if not path.is_file():
        raise DistillError(f"there is no file {path}; check the path, or write one with `python -m distill export`")
    library("onnxruntime")
    try:
        session = session_of(str(path))
        found = session.get_modelmeta().custom_metadata_map
        # Names that are no text are found here.
        ends = [(node.name, node.type, list(node.shape)) for node in (*session.get_inputs(), *session.get_outputs())]
    except Exception as error:  # ONNX Runtime has errors of many kinds
        raise DistillError(
            f"{path} is no ONNX file that ONNX Runtime can read ({_reason(error)}); write it anew with "
            f"`python -m distill export`"
        ) from None
    return OnnxNetwork(path, session, _metadata(path, found, ends))


def _reason(error: Exception) -> str:
    return first_line(error).rsplit(":", 1)[-1].strip()


def _metadata(path: Path, found: dict[str, str], ends: list[tuple[str, str, list[Any]]]) -> dict[str, Any]:
    """What the file says about itself; DistillError where it was not written by `export`.

    `ends` are its inputs, then its outputs: name, type and shape.
    """
    missing = [key for key in METADATA if key not in found]
    expected = [(INPUT, "tensor(uint8)", 4), (OUTPUT, "tensor(float)", 4)]
    if missing or [(name, type, len(shape)) for name, type, shape in ends] != expected:
        found_ends = ", ".join(f"{name} of {type}" for name, type, _ in ends)
        what = f"its metadata have no {missing[0]}" if missing else f"its inputs and outputs are {found_ends}"
        raise DistillError(
            f"{path} was not written by this package ({what}); give a file of `python -m distill export`"
        )
    try:
        metadata = {key: json.loads(found[key]) for key in METADATA}
    except ValueError as error:
        raise DistillError(f"the metadata of {path} are damaged ({first_line(error)}); export it anew") from None
    channels, classes = ends[1][2][1], metadata["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes) or len(classes) != channels:
        raise DistillError(f"the metadata of {path} do not name its {channels} classes; export it anew")
    return metadata
