"""Where a teacher comes from: the shipped one, a file, torchvision, or any network."""

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
from torch.nn import functional as F
from torchvision.models.segmentation import DeepLabV3, DeepLabV3_ResNet101_Weights, deeplabv3_resnet101

from distill.data.folders import VOC_CLASSES
from distill.data.sample import SAMPLE_CLASSES
from distill.errors import DistillError, first_line, nearest
from distill.files import PROJECT
from distill.networks.backbones import POSITIONS
from distill.networks.deeplab import DeepLabV3Plus, build_model
from distill.networks.saving import load_model, mismatch
from distill.networks.taps import eval_mode, last_norms, record, submodule

SHIPPED = "teacher-sample.safetensors"


def shipped_file(name: str) -> Path:
    """A file that travels with the project: in `data/` of a clone, inside the package once installed."""
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
) -> nn.Module:
    """A teacher, frozen: in eval mode, and none of its parameters asks for a gradient.

    `source` is `"sample"` (the shipped DeepLabV3+ with a slim ResNet-101), `"torchvision"` (its DeepLabV3 with
    ResNet-101 and VOC's 21 classes, downloaded on first use), a `.safetensors` file that this package wrote, or a
    `.pth.tar` checkpoint of the published DeepLabV3+ ResNet-101. No file is ever allowed to run code.

    It may also be any network that takes normalised images, frozen in place. `positions` then says at which layers its
    maps are taken, and `norms` names BatchNorms, as in `TappedTeacher`; without positions it has logits only, and
    serves kd. `class_names` are compared with those of the data. Raises DistillError when something does not fit.
    """
    model: DeepLabV3Plus | TappedTeacher
    if isinstance(source, DeepLabV3Plus | TappedTeacher) and positions is None:
        if norms is not None:
            raise DistillError("norms without positions belong to no map of this network; give positions too")
        model = source
    elif isinstance(source, nn.Module):
        model = TappedTeacher(source, positions, norms, class_names)
    elif positions is not None or norms is not None:
        raise DistillError(f"positions and norms belong to a network of your own; {source} has its own")
    else:
        model = _load(str(source))
    if class_names and len(class_names) != model.num_classes:
        raise DistillError(
            f"{len(class_names)} class_names were given and the teacher knows {model.num_classes} classes; give one "
            f"name per class"
        )
    model.class_names = tuple(class_names) if class_names else model.class_names
    # In float32, whatever it came in: images are, and `precision` chooses what its passes are computed in.
    return _moved(freeze(model).float(), device).to(memory_format=torch.channels_last)


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


def _load(source: str) -> DeepLabV3Plus | TappedTeacher:
    model: DeepLabV3Plus | TappedTeacher
    if source == "torchvision":
        model = _load_torchvision()
        model.class_names = VOC_CLASSES
    elif source == "sample":
        model = load_model(shipped_file(SHIPPED))
        model.class_names = SAMPLE_CLASSES
    else:
        path = Path(source)
        model = load_model(path) if path.suffix == ".safetensors" else _load_published(path)
    return model


class TappedTeacher(nn.Module):
    """Another library's network with this package's face: logits at the images' size, and maps at named layers.

    `positions` says which layer stands for which of `POSITIONS`, as `models.record` takes names: `layer`, for what it
    gives, or `layer:input`, for what it gets; best a map before its ReLU. A position that is left out has a map of no
    channels. `norms` are BatchNorms by position, from which OFD takes its margins; where the last layer that ran before
    a map was taken is a BatchNorm, it is found.

    The network may answer with logits, with a dict that holds them as `out`, or with an object that holds them as
    `logits`; maps may be (N, C, H, W), or (N, H·W, C) as transformers have them. It is asked once, about a small
    image, how many classes and channels it has, and by what the sides of an image must be divisible: others are
    resized for it. Raises DistillError when it does not answer, or has no such layer.
    """

    def __init__(
        self,
        network: nn.Module,
        positions: Mapping[str, str] | Sequence[str] | None = None,
        norms: Mapping[str, str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.taps = network, _by_position("positions", positions)
        self.class_names = tuple(class_names) if class_names else None
        module: Any  # only some kinds have an `inplace`
        for module in network.modules():
            if getattr(module, "inplace", False):  # ReLU and its kin
                module.inplace = False  # it would overwrite the map that was recorded before it
        self.divisor, logits, maps = self._probe()
        self.num_classes, self.map_channels = logits.shape[1], tuple(feature.shape[1] for feature in maps)
        self.norms = self._find_norms() | {
            position: submodule(network, name) for position, name in _by_position("norms", norms).items()
        }
        if class_names and len(class_names) != self.num_classes:
            raise DistillError(
                f"the network knows {self.num_classes} classes and {len(class_names)} class_names were given; give one "
                f"name a class"
            )

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits (N, C, H, W) for images (N, 3, H, W), and on request the maps at the taps, in the order of
        `POSITIONS`.
        """
        size = tuple(images.shape[2:])
        fitting = tuple(-(-side // self.divisor) * self.divisor for side in size)
        with record(self.network, tuple(self.taps.values()) if return_maps else ()) as recorded:
            logits = _logits(self.network(_resize(images, fitting)))
        logits = _resize(logits, size)
        if not return_maps:
            return logits
        maps = {position: _as_map(recorded[tap], fitting, tap) for position, tap in self.taps.items()}
        absent = logits.new_empty(len(images), 0, 1, 1)
        return logits, [maps.get(position, absent) for position in POSITIONS]

    def map_norms(self) -> list[nn.Module | None]:
        """The BatchNorm before each map, from which OFD takes its margins; None where there is none."""
        return [self.norms.get(position) for position in POSITIONS]

    @torch.no_grad()
    def _probe(self) -> tuple[int, Tensor, list[Tensor]]:
        """By what an image's sides must be divisible, and the answer to an image of zeros."""
        weight = next(self.network.parameters())
        reason = ""
        for self.divisor in (1, 8, 16, 32, 64):
            with eval_mode(self.network):
                try:
                    return self.divisor, *self(weight.new_zeros(1, 3, 65, 97), return_maps=True)
                except DistillError:
                    raise
                except Exception as error:  # whatever another library has to say about sizes
                    reason = reason or first_line(error)
        raise DistillError(
            f"the network does not answer to an image (1, 3, 65, 97) or to larger ones ({reason}); give a network that "
            f"takes normalised images (N, 3, H, W)"
        )

    @torch.no_grad()
    def _find_norms(self) -> dict[str, nn.Module]:
        """By position, the BatchNorm that ran last before the map was taken, if no other layer ran in between."""
        image = next(self.network.parameters()).new_zeros(1, 3, 65, 97)
        with eval_mode(self.network):
            names = last_norms(self.network, list(self.taps.values()), lambda: self(image))
        return {
            position: submodule(self.network, name) for position, name in zip(self.taps, names, strict=True) if name
        }


def taps_of(teacher: nn.Module) -> dict[str, Any] | None:
    """Which layers of another library's network are tapped, and its norms, by position; None for a network of ours."""
    if not isinstance(teacher, TappedTeacher):
        return None
    names = {id(module): name for name, module in teacher.network.named_modules()}
    norms = {position: names[id(norm)] for position, norm in teacher.norms.items()}
    return {"positions": dict(teacher.taps), "norms": norms}


def _by_position(what: str, names: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    """Layers by position, from a mapping or from six names in the order of `POSITIONS`."""
    named = names if isinstance(names, Mapping) else dict(zip(POSITIONS, names or (), strict=False))
    if not set(named) <= set(POSITIONS) or (names and len(named) != len(names)):
        raise DistillError(
            f"{what} is {names!r}; give layers by position, such as {{'layer4': 'encoder.layer4.2.relu:input'}}, or "
            f"six in the order {', '.join(POSITIONS)}"
        )
    return dict(named)


def _logits(answer: object) -> Tensor:
    logits = answer.get("out") if isinstance(answer, dict) and "out" in answer else getattr(answer, "logits", answer)
    if not isinstance(logits, Tensor) or logits.dim() != 4:
        raise DistillError(
            f"the network answers with a {type(logits).__name__}, and a teacher gives logits (N, classes, H, W), also "
            f"as `out` of a dict or as an attribute `logits`"
        )
    return logits


def _resize(images: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _as_map(feature: object, size: tuple[int, ...], tap: str) -> Tensor:
    """A map (N, C, H, W) as it is; tokens (N, H·W, C), row by row and of the image's proportions, as a map."""
    if isinstance(feature, Tensor) and feature.dim() == 4:
        return feature
    if isinstance(feature, Tensor) and feature.dim() == 3:
        tokens = feature.shape[1]
        shapes = [(height, tokens // height) for height in range(1, tokens + 1) if tokens % height == 0]
        nearest = min(shapes, key=lambda shape: abs(shape[1] - shape[0] * size[1] / size[0]))
        if abs(nearest[1] - nearest[0] * size[1] / size[0]) < 1:
            return feature.transpose(1, 2).unflatten(2, nearest)
    found = f"a tensor {tuple(feature.shape)}" if isinstance(feature, Tensor) else f"a {type(feature).__name__}"
    raise DistillError(f"the layer {tap!r} gives {found}, and a map is (N, C, H, W) or (N, H·W, C); name another layer")


def tap_torchvision(network: DeepLabV3) -> TappedTeacher:
    """torchvision's DeepLabV3 with ResNet-101 as a teacher, at an output stride of 8.

    It has no decoder: in the place of the decoder's map stands that of the 3x3 convolution after ASPP.
    """
    last = {"layer1": 2, "layer2": 3, "layer3": 22, "layer4": 2}  # a block's ReLU runs last on the sum that leaves it
    taps = {name: f"backbone.{name}.{block}.relu:input" for name, block in last.items()}
    return TappedTeacher(network, taps | {"aspp": "classifier.0.project.1", "decoder": "classifier.2"})


@torch.inference_mode()
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
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _load_torchvision() -> TappedTeacher:
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
            f"{path} holds no decoder.last_conv.8.weight, so it is no DeepLabV3+; give a deeplab-resnet.pth.tar"
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
            f"{path} is not a checkpoint that can be read without running its code ({reason}); get the file from "
            f"its authors again"
        ) from None
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise DistillError(f"{path} holds no state dict of tensors; give a deeplab-resnet.pth.tar")
    return state
