"""torchvision's ResNets and MobileNetV2 with scaled channels and atrous last stages, without their classifiers.

Shapes are written for images (N, 3, H, W); a map at "stride 16" is about H/16 x W/16.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models import MobileNetV2, ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

POSITIONS = ("layer1", "layer2", "layer3", "layer4", "aspp", "decoder")


def scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _set_atrous(conv: nn.Conv2d, dilation: int) -> None:
    """Turn a 3x3 convolution into one of stride 1 and the given dilation that keeps the map's size."""
    conv.stride, conv.dilation, conv.padding = (1, 1), (dilation, dilation), (dilation, dilation)


class _EverySecond(nn.Conv2d):
    """A 1x1 convolution of stride 2 that skips pixels itself, for (N, C, H, W) with C < 16.

    oneDNN's own, behind PyTorch on the CPU, writes past its memory in the backward pass there (its issue 6035).
    """

    def __init__(self, strided: nn.Conv2d) -> None:
        super().__init__(strided.in_channels, strided.out_channels, kernel_size=1, bias=False)
        self.weight = strided.weight

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., ::2, ::2])


class _Norms:
    """The BatchNorms just before the maps of a backbone, by their names."""

    norm_names: tuple[str, ...]
    get_submodule: Any

    def map_norms(self) -> list[nn.Module]:
        return [self.get_submodule(name) for name in self.norm_names]

    @property
    def map_channels(self) -> tuple[int, ...]:
        return tuple(norm.num_features for norm in self.map_norms())  # type: ignore[misc]  # of a BatchNorm


class ResNetBackbone(_Norms, ResNet):  # type: ignore[misc]  # torchvision has no types
    """torchvision's ResNet without its classifier, with scaled channels and atrous last stages.

    `forward` maps images (N, 3, H, W) to layer1's output (256 channels at width 1 for ResNet-101, 64 for
    ResNet-18; stride 4) and layer4's (2048 or 512; at `output_stride`), both after their ReLU.
    """

    def __init__(self, depth: int, output_stride: int, width: float, zero_init_residual: bool) -> None:
        self.width = width  # before torchvision's constructor, which calls _make_layer below
        block, blocks = {18: (BasicBlock, [2, 2, 2, 2]), 101: (Bottleneck, [3, 4, 23, 3])}[depth]
        super().__init__(block, blocks, num_classes=1, zero_init_residual=zero_init_residual)
        del self.avgpool, self.fc
        self._make_atrous(output_stride)
        for stage in (self.layer2, self.layer3, self.layer4):
            shortcut = stage[0].downsample[0]
            if shortcut.stride == (2, 2) and shortcut.in_channels < 16:
                stage[0].downsample[0] = _EverySecond(shortcut)
        last_blocks = [f"{stage}.{len(self.get_submodule(stage)) - 1}" for stage in POSITIONS[:4]]
        # A block uses one ReLU object several times; last of all, on the sum that leaves the stage.
        self.tap_names = tuple(f"{block}.relu:input" for block in last_blocks)
        self.norm_names = tuple(f"{block}.bn{2 if depth == 18 else 3}" for block in last_blocks)
        for block in last_blocks:
            self.get_submodule(f"{block}.relu").inplace = False  # or it would overwrite that sum
        self.low_level_channels = self.get_submodule(self.norm_names[0]).num_features
        self.out_channels = self.get_submodule(self.norm_names[3]).num_features

    def _make_layer(self, block: type, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        # torchvision fixes the stem at 64 channels. The first stage is the moment to narrow it: the stem
        # exists, nothing has read its width yet, and initialisation is still to come.
        stem = scaled(64, self.width)
        if planes == 64 and stem != 64:
            self.inplanes = stem
            self.conv1 = nn.Conv2d(3, stem, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(stem)
        return super()._make_layer(block, scaled(planes, self.width), *args, **kwargs)

    def _make_atrous(self, output_stride: int) -> None:
        """Replace the stride of the stages beyond `output_stride` by dilation, in their 3x3 convolutions."""
        deep = len(self.layer3) > 2
        layer3_rate, layer4_rate = (1, 2) if output_stride == 16 else (2, 4)
        # DeepLab's multi-grid: the published ResNet-101 doubles the dilation from block to block of layer4.
        layer4_rates = [layer4_rate * (2**index if deep else 1) for index in range(len(self.layer4))]
        stages = [(self.layer4, layer4_rates)]
        if output_stride == 8:
            stages.append((self.layer3, [layer3_rate] * len(self.layer3)))
        for stage, rates in stages:
            stage[0].downsample[0].stride = (1, 1)
            for block, rate in zip(stage, rates, strict=True):
                for conv in (block.conv1, block.conv2):
                    if conv.kernel_size == (3, 3):
                        _set_atrous(conv, rate)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        low_level = self.layer1(x)
        return low_level, self.layer4(self.layer3(self.layer2(low_level)))

    def with_maps(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What `forward` returns, and the sums at the end of layer1 to layer4 before their ReLU; without hooks."""
        x, maps, outputs = self.maxpool(self.relu(self.bn1(self.conv1(images)))), [], []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(_sum_of(stage[-1], stage[:-1](x)))
            x = stage[-1].relu(maps[-1])
            outputs.append(x)
        return outputs[0], x, maps


def _sum_of(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """What a residual block gives, before its last ReLU."""
    identity = x if block.downsample is None else block.downsample(x)
    x = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
    if isinstance(block, Bottleneck):
        x = block.bn3(block.conv3(block.relu(x)))
    return x + identity


class MobileNetBackbone(_Norms, MobileNetV2):  # type: ignore[misc]
    """torchvision's MobileNetV2 up to `features[17]`, with scaled channels and atrous last stages.

    `forward` maps images (N, 3, H, W) to the outputs of `features[3]` (24 channels at width 1, stride 4) and
    `features[17]` (320, at `output_stride`), which both are linear: their blocks end in a BatchNorm.
    """

    features: Any  # a Sequential of torchvision's blocks
    tap_names = ("features.4.conv.0.1", "features.7.conv.0.1", "features.14.conv.0.1", "features.17")
    norm_names = ("features.4.conv.0.1", "features.7.conv.0.1", "features.14.conv.0.1", "features.17.conv.3")

    def __init__(self, output_stride: int, width: float) -> None:
        super().__init__(num_classes=1, width_mult=width)
        self.features = self.features[:18]
        del self.classifier
        self._make_atrous(output_stride)
        for index in (4, 7, 14):
            self.features[index].conv[0][2].inplace = False  # this ReLU6 follows a tapped BatchNorm
        self.low_level_channels = self.features[3].out_channels
        self.out_channels = self.features[17].out_channels

    def _make_atrous(self, output_stride: int) -> None:
        """Replace every stride beyond `output_stride` by dilation of the depthwise convolutions after it."""
        stride, dilation = 2, 1  # behind features[0]
        for block in self.features[1:]:
            depthwise = next(m for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
            if depthwise.stride == (1, 1):
                _set_atrous(depthwise, dilation)
            elif stride < output_stride:
                stride *= 2
            else:
                _set_atrous(depthwise, dilation)  # it still sees the undilated grid of the block before
                dilation *= 2

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        low_level = self.features[:4](images)
        return low_level, self.features[4:](low_level)

    def with_maps(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What `forward` returns, and the maps at `tap_names`; without hooks."""
        low_level = x = self.features[:4](images)
        maps = []
        for index in (4, 7, 14):
            block = self.features[index]
            convolution, norm, relu = block.conv[0]
            maps.append(norm(convolution(x)))
            inside = block.conv[1:](relu(maps[-1]))
            x = x + inside if block.use_res_connect else inside
            x = self.features[index + 1 : {4: 7, 7: 14, 14: 18}[index]](x)
        return low_level, x, [*maps, x]
