"""Where a teacher comes from: the shipped one, or a file."""

import hashlib
import re
from pathlib import Path

import torch
from torch import nn

from distill.datasets import PROJECT
from distill.errors import DistillError
from distill.models import DeepLabV3Plus, build_model, load_model

SHIPPED = "teacher-sample.safetensors"


def shipped_file(name: str) -> Path:
    """A file that travels with the project: in `data/` of a clone, inside the package once installed."""
    places = (PROJECT / "data" / name, Path(__file__).resolve().parent / "data" / name)
    for path in places:
        if path.exists():
            return path
    raise DistillError(
        f"the shipped file {name} is neither at {places[0]} nor at {places[1]}; clone or install the project again"
    )


def load_teacher(source: str | Path = "sample", device: str | torch.device = "cpu") -> DeepLabV3Plus:
    """A teacher, frozen: in eval mode, and none of its parameters asks for a gradient.

    `source` is `"sample"` (the shipped DeepLabV3+ with a slim ResNet-101), a `.safetensors` file that this package
    wrote, or a `.pth.tar` checkpoint of the published DeepLabV3+ ResNet-101. No file is ever allowed to run code.
    """
    path = shipped_file(SHIPPED) if str(source) == "sample" else Path(source)
    model = load_model(path) if path.suffix == ".safetensors" else _load_published(path)
    return freeze(model).to(device, memory_format=torch.channels_last)


def freeze(model: nn.Module) -> nn.Module:
    """Eval mode and no gradients, in place."""
    return model.eval().requires_grad_(False)


def fingerprint(model: nn.Module) -> str:
    """First 16 hexadecimal digits of the SHA-256 of all weights, to tell which teacher a run used."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _load_published(path: Path) -> DeepLabV3Plus:
    state = _read_checkpoint(path)
    state = {
        key.removeprefix("module."): value.float() if value.is_floating_point() else value
        for key, value in state.items()
    }
    head = state.get("decoder.last_conv.8.weight")
    if head is None:
        raise DistillError(
            f"{path} holds no decoder.last_conv.8.weight, so it is no DeepLabV3+; give a deeplab-resnet.pth.tar"
        )
    with torch.device("meta"):  # the weights come from the file: no need to draw 59 million of them first
        model = build_model("resnet101", num_classes=len(head))
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        reason = re.split('", |: copying', reason)[0].replace('"', "")  # the first of what may be hundreds of keys
        raise DistillError(
            f"{path} is not a DeepLabV3+ with ResNet-101 ({reason}); give a checkpoint of that network"
        ) from None
    return model


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a PyTorch checkpoint, read with an unpickler that knows tensors and numbers only."""
    import numpy as np

    scalar = getattr(np, "_core", None) or np.core  # published checkpoints keep their best score as a NumPy scalar
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64")]
    harmless = [scalar.multiarray.scalar, np.dtype, *kinds]
    try:
        with torch.serialization.safe_globals([*harmless, (harmless[0], "numpy.core.multiarray.scalar")]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DistillError(
            f"there is no teacher at {path}; give `sample`, a .safetensors file or a .pth.tar checkpoint"
        ) from None
    except Exception as error:  # a damaged file can raise anything
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it calls {asked[1]}" if asked else type(error).__name__
        raise DistillError(
            f"{path} is not a checkpoint that can be read without running its code ({reason}); get the file from "
            f"its authors again"
        ) from None
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise DistillError(f"{path} holds no state dict of tensors; give a deeplab-resnet.pth.tar")
    return state
