"""Loading a teacher: the shipped one, a file, torchvision's, or any network."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.segmentation import DeepLabV3, DeepLabV3_ResNet101_Weights, deeplabv3_resnet101

from distill.data.folders import VOC_CLASSES
from distill.data.sample import SAMPLE_CLASSES
from distill.errors import DistillError, first_line, nearest
from distill.files import PROJECT
from distill.networks.deeplab import DeepLabV3Plus, build_model
from distill.networks.saving import load_model, mismatch
from distill.networks.wrapped import Wrapped, as_names, memory_format_of

SHIPPED = "teacher-sample.safetensors"


def shipped_file(name: str) -> Path:
    """The path of a file that the project includes: in `data/` of a clone, inside the package once installed."""
    places = (PROJECT / "data" / name, PROJECT / "distill" / "shipped" / name)
    for path in places:
        if path.exists():
            return path
    raise DistillError(
        f"the shipped file {name} is neither at {places[0]} nor at {places[1]}; clone or install the project again"
    )


def load_teacher(
    source: str | Path | nn.Module = "sample",
    device: str | torch.device = "cpu",
    *,
    positions: Mapping[str, str] | Sequence[str] | None = None,
    norms: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
) -> DeepLabV3Plus | Wrapped:
    """A frozen teacher: in eval mode, without gradients for its parameters.

    `source` is `"sample"` (the shipped DeepLabV3+ with a slim ResNet-101), `"torchvision"` (its DeepLabV3 with
    ResNet-101 and VOC's 21 classes, downloaded on first use), a `.safetensors` file that this package wrote, or a
    `.pth.tar` checkpoint of the published DeepLabV3+ ResNet-101. Files are loaded without executing code in them.

    `source` may also be any network that takes images normalised by `data.transforms.normalise`; it is frozen in place.
    `positions` then says at which layers its maps are taken, and `norms` names BatchNorms, as in `wrap`; without
    positions it has logits only, enough for kd. `class_names` are compared with those of the data. Raises DistillError
    for what does not fit.
    """
    model: DeepLabV3Plus | Wrapped
    if isinstance(source, DeepLabV3Plus | Wrapped) and positions is None:
        if norms is not None:
            raise DistillError("norms without positions belong to no map of this network; give positions too")
        model = source
    elif isinstance(source, nn.Module):
        model = Wrapped(source, positions, norms, class_names)
    elif positions is not None or norms is not None:
        raise DistillError(f"positions and norms belong to a network of your own; {source} has its own")
    elif isinstance(source, str | Path):
        model = _load(str(source))
    else:
        raise DistillError(
            f"a {type(source).__name__} is no teacher; give a name, a file, or a network, such as run.student()"
        )
    class_names = as_names(class_names)
    if class_names is not None and len(class_names) != model.num_classes:
        raise DistillError(
            f"{len(class_names)} class_names were given and the teacher knows {model.num_classes} classes; give one "
            f"name per class"
        )
    model.class_names = class_names or model.class_names
    # In float32, whatever it came in: images are, and `precision` chooses what its passes are computed in.
    freeze(_moved(model, device)).float()
    return model.to(memory_format=memory_format_of(model))


def _moved(model: nn.Module, device: str | torch.device) -> nn.Module:
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it computes nothing")
        return model.to(device)
    except (AssertionError, RuntimeError, TypeError) as error:  # PyTorch without CUDA asserts that it has it
        raise DistillError(
            f"the teacher cannot be moved to the device {device!r} ({first_line(error)}); choose cpu, or a GPU that "
            f"PyTorch finds"
        ) from None


def _load(source: str) -> DeepLabV3Plus | Wrapped:
    model: DeepLabV3Plus | Wrapped
    if source == "torchvision":
        model = _load_torchvision()
        model.class_names = VOC_CLASSES
    elif source == "sample":
        model = load_model(shipped_file(SHIPPED))
        model.class_names = SAMPLE_CLASSES
    else:
        path = Path(source)
        if path.suffix == ".onnx":
            raise DistillError(
                f"{path} is an exported network, which gives no maps; give the .safetensors file it is of"
            )
        model = load_model(path) if path.suffix == ".safetensors" else _load_published(path)
    return model


def tap_torchvision(network: DeepLabV3) -> Wrapped:
    """torchvision's DeepLabV3 with ResNet-101 as a teacher, at an output stride of 8.

    It has no decoder: the map of the 3x3 convolution after ASPP takes the place of the decoder's.
    """
    last = {"layer1": 2, "layer2": 3, "layer3": 22, "layer4": 2}  # a block's ReLU runs last on the sum that leaves it
    taps = {name: f"backbone.{name}.{block}.relu:input" for name, block in last.items()}
    return Wrapped(network, taps | {"aspp": "classifier.0.project.1", "decoder": "classifier.2"})


@torch.no_grad()  # in inference mode its answers could be in no loss that keeps them for its gradient
def ask_teacher(
    teacher: Callable[..., Any], images: Tensor, maps: bool, precision: str = "float32"
) -> tuple[Tensor, list[Tensor] | None]:
    """The teacher's logits, and its six maps where they are needed, without gradients."""
    return ask(teacher, images, maps, precision)


def ask(network: Callable[..., Any], images: Tensor, maps: bool, precision: str) -> tuple[Tensor, list[Tensor] | None]:
    """Logits, and the six maps where they are needed; in float32 after a pass in bfloat16 too."""
    mixed = precision == "bfloat16"
    with torch.autocast(images.device.type, torch.bfloat16) if mixed else nullcontext():
        logits, features = network(images, return_maps=True) if maps else (network(images), None)
    if not isinstance(logits, Tensor):
        raise DistillError(
            f"the {type(network).__name__} answers with a {type(logits).__name__} and not with logits; wrap it: "
            f"load_teacher(network) for a teacher, wrap(network) for a student"
        )
    if not mixed:
        return logits, features
    return logits.float(), None if features is None else [feature.float() for feature in features]


def freeze(model: nn.Module) -> nn.Module:
    """Eval mode and no gradients, in place."""
    return model.eval().requires_grad_(False)


def fingerprint(model: nn.Module) -> str:
    """First 16 hexadecimal digits of the SHA-256 of all weights, to tell which teacher a run used."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(tensor, torch.Tensor):  # a module may keep other things beside its weights
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _load_torchvision() -> Wrapped:
    weights = DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]  # where torchvision looks first
    with torch.device("meta"):  # as for published checkpoints: the file brings the weights
        network = deeplabv3_resnet101(weights=None, weights_backbone=None, num_classes=21, aux_loss=False)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        state = {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}
        network.load_state_dict(state, assign=True)
    except Exception as error:  # no network, a host that is gone, a damaged or another file
        reason = first_line(error)
        raise DistillError(
            f"{path} does not hold torchvision's weights ({type(error).__name__}); replace it by {weights.url}"
            if path.exists()
            else f"torchvision's weights could not be downloaded ({reason}); get {weights.url} in another way and "
            f"put {path.name} into {path.parent}"
        ) from None
    return tap_torchvision(network)


def _load_published(path: Path) -> DeepLabV3Plus:
    state = _read_checkpoint(path)
    state = {
        key.removeprefix("module."): value.float() if value.is_floating_point() else value
        for key, value in state.items()
    }
    head = state.get("decoder.last_conv.8.weight")
    if head is None:
        raise DistillError(
            f"{path} holds no decoder.last_conv.8.weight, so it is not a DeepLabV3+; give a deeplab-resnet.pth.tar"
        )
    with torch.device("meta"):  # the weights come from the file: no need to draw 59 million of them first
        model = build_model("resnet101", num_classes=len(head))
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise DistillError(
            f"{path} is not a DeepLabV3+ with ResNet-101 ({mismatch(error)}); give a checkpoint of that network"
        ) from None
    return model


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a PyTorch checkpoint, read with an unpickler that knows tensors and numbers only."""
    import numpy as np

    scalar = getattr(np, "_core", None) or np.core  # published checkpoints keep their best score as a NumPy scalar
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64")]
    harmless = [scalar.multiarray.scalar, np.dtype, *kinds]
    try:
        names = [*harmless, (harmless[0], "numpy.core.multiarray.scalar")]
        with torch.serialization.safe_globals(names), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DistillError(
            f"there is no teacher at {path}{nearest(str(path), ('sample', 'torchvision'))}, and files that end in "
            f".safetensors or .pth.tar"
        ) from None
    except IsADirectoryError:
        raise DistillError(f"{path} is a folder; give a file in it, such as student.safetensors of a run") from None
    except Exception as error:  # a damaged file can raise anything
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it calls {asked[1]}" if asked else type(error).__name__
        raise DistillError(
            f"{path} is not a checkpoint that can be read without executing code in it ({reason}); get the "
            f"file from its authors again"
        ) from None
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise DistillError(f"{path} holds no state dict of tensors; give a deeplab-resnet.pth.tar")
    return state
