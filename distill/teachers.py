"""Where a teacher comes from: the shipped one, a file, or torchvision."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import DeepLabV3, DeepLabV3_ResNet101_Weights, deeplabv3_resnet101

from distill.datasets import PROJECT
from distill.errors import DistillError
from distill.models import DeepLabV3Plus, build_model, load_model, record

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


def load_teacher(source: str | Path = "sample", device: str | torch.device = "cpu") -> nn.Module:
    """A teacher, frozen: in eval mode, and none of its parameters asks for a gradient.

    `source` is `"sample"` (the shipped DeepLabV3+ with a slim ResNet-101), `"torchvision"` (its DeepLabV3 with
    ResNet-101 and VOC's 21 classes, downloaded on first use), a `.safetensors` file that this package wrote, or a
    `.pth.tar` checkpoint of the published DeepLabV3+ ResNet-101. No file is ever allowed to run code.
    """
    if str(source) == "torchvision":
        return freeze(_load_torchvision()).to(device).to(memory_format=torch.channels_last)
    path = shipped_file(SHIPPED) if str(source) == "sample" else Path(source)
    model = load_model(path) if path.suffix == ".safetensors" else _load_published(path)
    return freeze(model).to(device).to(memory_format=torch.channels_last)


class TappedTeacher(nn.Module):
    """Another library's network with this package's face: logits at the images' size, and maps at named layers.

    `taps` are six names as `models.record` takes them, of maps before their ReLU, in the order of `POSITIONS`; `norms`
    the six BatchNorms before them. The network may answer with logits, or with a dict that holds them as `out`.
    """

    def __init__(self, network: nn.Module, taps: Sequence[str], norms: Sequence[str], num_classes: int) -> None:
        super().__init__()
        self.network, self.taps, self.norms, self.num_classes = network, tuple(taps), tuple(norms), num_classes
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # it would overwrite the map that was recorded before it

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits (N, C, H, W) for images (N, 3, H, W), and on request the maps at the taps."""
        with record(self.network, self.taps if return_maps else ()) as maps:
            answer = self.network(images)
        logits = answer["out"] if isinstance(answer, dict) else answer
        if logits.shape[2:] != images.shape[2:]:
            logits = F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)
        return (logits, [maps[name] for name in self.taps]) if return_maps else logits

    @property
    def map_channels(self) -> tuple[int, ...]:
        return tuple(len(norm.get_buffer("running_mean")) for norm in self.map_norms())

    def map_norms(self) -> list[nn.Module]:
        """The last BatchNorm before each map, from which OFD takes its margins."""
        return [self.network.get_submodule(name) for name in self.norms]


def tap_torchvision(network: DeepLabV3, num_classes: int = 21) -> TappedTeacher:
    """torchvision's DeepLabV3 with ResNet-101 as a teacher, at an output stride of 8.

    It has no decoder: in the place of the decoder's map stands that of the 3x3 convolution after ASPP.
    """
    last = {"layer1": 2, "layer2": 3, "layer3": 22, "layer4": 2}  # a block's ReLU runs last on the sum that leaves it
    head = ["classifier.0.project.1", "classifier.2"]
    taps = [f"backbone.{name}.{block}.relu:input" for name, block in last.items()] + head
    norms = [f"backbone.{name}.{block}.bn3" for name, block in last.items()] + head
    return TappedTeacher(network, taps, norms, num_classes)


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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
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
