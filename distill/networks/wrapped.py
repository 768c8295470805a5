"""Any network with this package's interface: logits at the images' size, and maps at named layers.

A teacher or student from another library, wrapped here, is trained, saved and scored like this package's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import DistillError, first_line
from distill.networks.backbones import POSITIONS
from distill.networks.taps import Made, eval_mode, is_norm, last_norms, made_by, record, submodule

_Shape: TypeAlias = tuple[int, int, int]  # channels, height and width of a map


def wrap(
    network: nn.Module,
    positions: Mapping[str, str] | Sequence[str] | None = None,
    norms: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Wrapped:
    """Any network, as a student for `fit` (or, by `load_teacher`, as a teacher).

    It gets images (N, 3, H, W) that `data.transforms.normalise` has normalised.

    `positions` says which layer stands for which of `POSITIONS`, as `record` takes names: `layer`, for what it gives,
    or `layer:input`, for what it gets; best a map before its ReLU. `suggest_positions` proposes some. A position that
    is left out has a map of no channels; without any the network has logits only, for the baseline and kd. `norms` are
    BatchNorms by position, from which OFD takes a teacher's margins; where the last layer that ran before a map was
    taken is a BatchNorm, it is found.

    The network may answer with logits, or with a dict or an object that holds them as `out` or `logits`; maps may be
    (N, C, H, W), or (N, H·W, C) as transformers have them. One pass with a small image tells how many classes and
    channels it has, and by what the sides of an image must be divisible; other images are resized for it. One thing
    is changed in it: ReLUs no longer work in place. Raises DistillError when the pass fails, or there is no such layer.
    """
    if not isinstance(network, nn.Module):
        raise DistillError(f"a {type(network).__name__} cannot be wrapped; give a network, an nn.Module")
    return Wrapped(network, positions, norms, class_names)


# What the sides of images may have to be divisible by, as patches and strides are, in the order in which it is tried.
_DIVISORS = (8, 16, 32, 64, 12, 14, 24, 28, 48, 128)


class Wrapped(nn.Module):
    """Another library's network with this package's interface; made by `wrap`. The network is in `network`."""

    def __init__(
        self,
        network: nn.Module,
        positions: Mapping[str, str] | Sequence[str] | None = None,
        norms: Mapping[str, str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.taps = network, _by_position("positions", positions)
        self.channels_last, self.writes = True, False  # until it is known
        self.class_names = as_names(class_names)
        if next(network.parameters(), None) is None:
            raise DistillError(
                f"the {type(network).__name__} has no weights; give a network with weights, trained or not"
            )
        module: Any  # only some kinds have an `inplace`
        for module in network.modules():
            scripted = isinstance(module, torch.jit.ScriptModule)
            if getattr(module, "inplace", False) and not scripted:  # ReLU and its kin
                module.inplace = False  # it would overwrite the map that was recorded before it
        self.divisor, logits, maps = self._probe()
        self.num_classes, self.map_channels = logits.shape[1], tuple(feature.shape[1] for feature in maps)
        named = _by_position("norms", norms)
        for position, name in named.items():
            norm = submodule(network, name)
            if not is_norm(norm):
                raise DistillError(f"the norm of {position} is a {type(norm).__name__}; name a BatchNorm")
        self.norms = (self._find_norms() if self.taps else {}) | named  # by name: modules may be exchanged
        self.channels_last, self.writes = self._takes_channels_last(), self._writes_into_its_input()
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise DistillError(
                f"the network has {self.num_classes} classes and {len(self.class_names)} class_names were given; give "
                f"one name per class"
            )

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits (N, C, H, W) for images (N, 3, H, W), and on request the maps at the taps, in the order of
        `POSITIONS`.
        """
        size = tuple(images.shape[2:])
        fitting = tuple(_rounded_up(side, self.divisor) for side in size)
        with record(self.network, tuple(self.taps.values()) if return_maps else ()) as recorded:
            resized = _resize(images, fitting, self._any_size(size))
            resized = resized.clone() if self.writes else resized  # others see the same images
            logits = _logits(self.network(resized if self.channels_last else resized.contiguous()))
        logits = _resize(logits, size, self._any_size(size))
        if not return_maps:
            return logits
        for tap in self.taps.values():
            if tap not in recorded:
                raise DistillError(f"the layer {tap!r} does not run itself, as a list of layers; name one in it")
        maps = {position: _as_map(recorded[tap], fitting, tap) for position, tap in self.taps.items()}
        absent = logits.new_empty(len(images), 0, 1, 1)
        return logits, [maps.get(position, absent) for position in POSITIONS]

    def _any_size(self, size: tuple[int, ...]) -> bool:
        """Whether a file for all sizes is made, which resizes also where this image needs it not."""
        return self.divisor > 1 and any(isinstance(side, torch.SymInt) for side in size)

    def map_norms(self) -> list[nn.Module | None]:
        """The BatchNorm before each map, from which OFD takes its margins; None where there is none."""
        own = {position: submodule(self.network, name) for position, name in self.norms.items()}
        return [own.get(position) for position in POSITIONS]

    @property
    def config(self) -> dict[str, Any]:
        """What is recorded of it. It cannot be built again from this: whoever owns the network does that."""
        return {"backbone": type(self.network).__name__, "num_classes": self.num_classes, "wrapped": taps_of(self)}

    @torch.no_grad()
    def _probe(self) -> tuple[int, Tensor, list[Tensor]]:
        """By what an image's sides must be divisible, and the answer to an image of zeros."""
        weight = next(self.network.parameters())
        reason = ""
        for self.divisor in (1, *_DIVISORS):
            with eval_mode(self.network):
                try:
                    answer = self(weight.new_zeros(1, 3, 65, 97), return_maps=True)
                    if self.divisor > 1:  # the first may be the one size that a network takes
                        self(weight.new_zeros(1, 3, 129, 193))
                    self._check_logits()
                    return self.divisor, *answer
                except DistillError:
                    raise
                except Exception as error:  # whatever another library has to say about sizes
                    reason = reason or first_line(error)
        raise DistillError(
            f"the network does not answer to images (1, 3, 65, 97) and (1, 3, 129, 193), or to larger ones ({reason}); "
            f"give a network that takes normalised images (N, 3, H, W) of any size, or of sides divisible by "
            f"{', '.join(map(str, sorted(_DIVISORS)))}"
        )

    def _check_logits(self) -> None:
        """ValueError for logits that show a part of the image, or more; DistillError for probabilities."""
        height = _rounded_up(65, self.divisor)
        width = 2 * height  # in a square what is cut off all around would not show
        logits = _logits(self.network(next(self.network.parameters()).new_zeros(1, 3, height, width)))
        if abs(logits.shape[3] - 2 * logits.shape[2]) > 2:  # rounding of either side may do as much
            raise ValueError(
                f"logits of {logits.shape[2]} x {logits.shape[3]} do not show the whole image of {height} x {width}"
            )
        sums = logits.sum(dim=1)
        if logits.shape[1] > 1 and bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            raise DistillError(
                "the network answers with probabilities, and logits are needed; leave out its last softmax"
            )

    @torch.no_grad()
    def _takes_channels_last(self) -> bool:
        """Whether images may have their channels last in memory, where convolutions are quicker, or a layer fails."""
        weight = next(self.network.parameters())
        images = weight.new_zeros(2, 3, 65, 97).contiguous(memory_format=torch.channels_last)
        values = self.network.state_dict().values()  # not all need be tensors
        if any(value.dim() == 5 for value in values if isinstance(value, Tensor)):  # PyTorch knows it for four only
            return False
        try:
            with eval_mode(self.network):
                self(images)
        except Exception:  # a `view` relies on the usual order, or the network asks for it
            return False
        return True

    @torch.no_grad()
    def _writes_into_its_input(self) -> bool:
        """Whether it changes the images, at a size that it gets as it is; so taken where PyTorch does not tell."""
        sides = (_rounded_up(side, self.divisor) for side in (65, 97))
        image = next(self.network.parameters()).new_zeros(1, 3, *sides)
        if image.is_inference():
            return True
        with eval_mode(self.network):
            self.network(image)
        return image._version > 0

    @torch.no_grad()
    def _find_norms(self) -> dict[str, str]:
        """By position, the name of the BatchNorm that ran last before the map, if no other layer ran in between."""
        weight, taps = next(self.network.parameters()), tuple(self.taps.values())
        image = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(0)).to(weight)
        with eval_mode(self.network), record(self.network, taps) as maps:
            names = last_norms(self.network, taps, lambda: self(image))
        # After a ReLU that is a function and no layer, a map has no negative number: its margins would be dead.
        found = zip(self.taps, names, taps, strict=True)
        return {position: name for position, name, tap in found if name and bool((maps[tap] < 0).any())}


def _rounded_up(side: int, divisor: int) -> int:
    """Without a negative number, whose division an exported file rounds towards zero."""
    return (side + divisor - 1) // divisor * divisor


def memory_format_of(network: nn.Module) -> torch.memory_format:
    """The order in memory in which a network's weights and images are quickest."""
    usual = isinstance(network, Wrapped) and not network.channels_last
    return torch.contiguous_format if usual else torch.channels_last


def as_names(class_names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of classes as a tuple; DistillError for a single string, which would be taken letter by letter."""
    if isinstance(class_names, str):
        raise DistillError(f"class_names is {class_names!r}; give a list of names, one per class")
    return None if class_names is None else tuple(map(str, class_names))


def suggest_positions(network: nn.Module, size: tuple[int, int] = (128, 192), show: bool = True) -> dict[str, str]:
    """Layers of a network for `wrap` or `load_teacher`, by position; printed as a table where `show` is left on.

    The network is asked about an image of zeros of `size` pixels (H, W). `layer4` is the last map at the coarsest
    stride in the first of its parts, its encoder; `layer1` to `layer3` are the last on the way there at each stride
    from 4 on; `aspp` is the last of those that follow at the same stride; `decoder` the last before the layer that
    gives the logits, where it is finer. What a network does not have is left out, and so is what the logits do not
    depend on, such as a head for training alone. Raises DistillError when it has no maps of two sizes.
    """
    wrapped = wrap(network)
    size = _rounded_up(size[0], wrapped.divisor), _rounded_up(size[1], wrapped.divisor)
    image = next(network.parameters()).new_zeros(1, 3, *size, requires_grad=True)
    with torch.enable_grad(), eval_mode(network):
        answer, made = made_by(network, lambda: network(image.clone()))  # which the network may write into
        logits = _logits(answer)
        maps = [(one, shape) for one in made if (shape := _map_shape(one.tensor, size))]
        maps = _of_use(logits, maps)
    maps = _before_logits(network, logits, maps)
    even = [(one, shape) for one, shape in maps if size[0] % shape[1] == 0 == size[1] % shape[2]]
    # Maps of uneven strides, as of layers that pad, only where there are no others.
    found = _choose([(one, round(size[0] / shape[1])) for one, shape in even])
    found = found or _choose([(one, round(size[0] / shape[1])) for one, shape in maps])
    if not found:
        raise DistillError(
            f"the {type(network).__name__} gives no maps of two sizes, from which positions could be chosen; name them"
        )
    if show:
        shapes = {one.tap: shape for one, shape in maps}
        print(f"{'position':9} {'stride':>6} {'channels':>8}  layer")
        for position, tap in found.items():
            channels, height, _ = shapes[tap]
            print(f"{position:9} {round(size[0] / height):>6} {channels:>8}  {tap}")
    return found


def _of_use(logits: Tensor, maps: list[tuple[Made, _Shape]]) -> list[tuple[Made, _Shape]]:
    """The maps on which the logits depend; all of them where that cannot be told."""
    known = [one.tensor for one, _ in maps if isinstance(one.tensor, Tensor) and one.tensor.requires_grad]
    try:
        gradients = torch.autograd.grad(logits.sum(), known, allow_unused=True)
    except RuntimeError:  # a network that takes no gradient
        return maps
    used = {id(tensor) for tensor, gradient in zip(known, gradients, strict=True) if gradient is not None}
    return [entry for entry in maps if id(entry[0].tensor) in used]


def _before_logits(network: nn.Module, logits: Tensor, maps: list[tuple[Made, _Shape]]) -> list[tuple[Made, _Shape]]:
    """Without what the last layer with weights gave, the logits, and what was made of them."""
    kept = list(maps)
    while kept and kept[-1][1][0] == logits.shape[1]:
        made, _ = kept.pop()
        if any(True for _ in submodule(network, made.names[0]).parameters(recurse=False)):
            break
    return kept


def _choose(maps: list[tuple[Made, int]]) -> dict[str, str]:
    """Taps by position, from what a network gave and its strides, in the order in which it ran."""
    paths = [one.names[0].split(".") for one, _ in maps]
    while min(map(len, paths), default=0) > 1 and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]  # a network within another
    parts = [path[0] for path in paths]
    strides = [stride for _, stride in maps]
    if len(set(strides)) < 2:
        return {}
    own = [i for i, part in enumerate(parts) if part == parts[0]]
    # Parts that take turns are no parts, and a single layer, or several at one stride, is no encoder.
    apart = own[-1] == len(own) - 1 and len({strides[i] for i in own}) > 1
    encoder = own if apart else list(range(len(parts)))
    coarsest = max(strides[i] for i in encoder)
    deepest = max(i for i in encoder if strides[i] == coarsest)
    before = [i for i in range(deepest) if 4 <= strides[i] < coarsest]
    steps = [i for i in before if _is_step(maps, i)]
    order = [*steps, *(i for i in before if i not in steps)]
    on_the_way = {strides[i]: maps[i][0].tap for i in order}  # the last of each; a step only where there is no other
    stages = [on_the_way[stride] for stride in sorted(on_the_way)][-3:]
    found = dict(zip(POSITIONS, stages, strict=False)) | {"layer4": maps[deepest][0].tap}
    end = next((i for i in range(deepest + 1, len(maps)) if strides[i] != coarsest), len(maps))
    if end > deepest + 1:
        found["aspp"] = maps[end - 1][0].tap
    if end < len(maps):
        found["decoder"] = maps[-1][0].tap
    return found


def _is_step(maps: list[tuple[Made, int]], index: int) -> bool:
    """Whether a map is a step within a block that gives a coarser one, as the first block of a ResNet's stage does."""
    made, stride = maps[index]
    block = made.names[0].rpartition(".")[0]
    return any(block in other.names and coarser > stride for other, coarser in maps)


def _map_shape(tensor: object, size: tuple[int, int]) -> _Shape | None:
    """Channels, height and width of a map or of tokens; None for everything else."""
    try:
        feature = _as_map(tensor, size, "")
    except DistillError:
        return None
    channels, height, width = (int(side) for side in feature.shape[1:])
    a_map = len(feature) == 1 and min(height, width) > 1 and _fits(height, width, size)  # and no pooled pyramid
    return (channels, height, width) if a_map else None


def taps_of(teacher: nn.Module) -> dict[str, Any] | None:
    """Which layers of another library's network are tapped, and its norms, by position; None for a network of ours."""
    if not isinstance(teacher, Wrapped):
        return None
    return {"positions": dict(teacher.taps), "norms": dict(teacher.norms)}


def _by_position(what: str, names: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    """Layers by position, from a mapping or from six names in the order of `POSITIONS`."""
    listed = names if isinstance(names, Sequence | Mapping) else [None] if names else ()
    named = listed if isinstance(listed, Mapping) else dict(zip(POSITIONS, listed, strict=False))
    told = all(isinstance(name, str) for name in named.values())
    if not told or not set(named) <= set(POSITIONS) or len(named) != len(listed):
        raise DistillError(
            f"{what} is {names!r}; give layers by position, such as {{'layer4': 'encoder.layer4.2.relu:input'}}, or "
            f"six in the order {', '.join(POSITIONS)}"
        )
    return dict(named)


def _logits(answer: object) -> Tensor:
    if isinstance(answer, dict):
        logits = answer.get("out", answer.get("logits", getattr(answer, "logits", answer)))
    else:
        logits = getattr(answer, "out", getattr(answer, "logits", answer))
    if not isinstance(logits, Tensor) or logits.dim() != 4:
        raise DistillError(
            f"the network answers with a {type(logits).__name__}, and what is asked for are logits (N, classes, H, W), "
            f"also as `out` or `logits` of a dict or an object; wrap a small module that picks them from its answer"
        )
    return logits


def _resize(images: Tensor, size: tuple[int, ...], always: bool = False) -> Tensor:
    if not always and tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _fits(height: int, width: int, size: tuple[int, ...]) -> bool:
    """Whether a map has the proportions of an image (H, W)."""
    return abs(width - height * size[1] / size[0]) < 1


def _as_map(feature: object, size: tuple[int, ...], tap: str) -> Tensor:
    """A map (N, C, H, W) as it is; tokens (N, H·W, C), row by row and of the image's proportions, as a map."""
    if isinstance(feature, Tensor) and feature.dim() == 4:
        channels, height, width = feature.shape[1:]
        if channels > 1 and _fits(channels, height, size) and not _fits(height, width, size):
            raise DistillError(
                f"the layer {tap!r} gives a map {tuple(feature.shape)} with its channels last; name another layer, "
                f"which gives (N, C, H, W)"
            )
        return feature
    if isinstance(feature, Tensor) and feature.dim() == 3:
        tokens = feature.shape[1]
        shapes = [(height, tokens // height) for height in range(1, tokens + 1) if tokens % height == 0]
        nearest = min(shapes, key=lambda shape: abs(shape[1] - shape[0] * size[1] / size[0]))
        if _fits(*nearest, size):
            return feature.transpose(1, 2).unflatten(2, nearest)
    found = f"a tensor {tuple(feature.shape)}" if isinstance(feature, Tensor) else f"a {type(feature).__name__}"
    raise DistillError(f"the layer {tap!r} gives {found}, and a map is (N, C, H, W) or (N, H·W, C); name another layer")
