"""The terms: one distillation loss each, with its weight, its options, and the connectors that it needs.

Every option is a keyword of the constructor and is kept as an attribute of the same name, which is all that
`build_method` and `describe` need to know about it. The losses themselves are pure functions in `losses`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partialmethod, reduce
from numbers import Real
from operator import add
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill import losses
from distill.errors import DistillError, check_number, nearest
from distill.networks.backbones import POSITIONS
from distill.networks.taps import is_norm

# How OFD and SAKD divide each position's loss: the early, large maps count less.
DIVIDERS = dict(zip(POSITIONS, (8, 4, 2, 1, 1, 16), strict=True))
STAGES = POSITIONS[:4]


# What a network gave: bare logits, or them and its maps; None where it was not asked.
Answer: TypeAlias = Tensor | tuple[Tensor | None, Sequence[Tensor] | None] | None


class Output(NamedTuple):
    """What a network returned: logits (N, C, H, W) and the maps at POSITIONS, both empty where they were not
    asked for.
    """

    logits: Tensor
    maps: Sequence[Tensor]


class Term(nn.Module):
    """One distillation loss with its weight, and how the weight changes during training.

    The weight rises linearly over the first `warmup` calls in training mode, reaching full size at call
    number `warmup`. With `decay` > 0 it then falls linearly and is 0 from call number `decay` on. The calls
    are counted in a buffer, so a resumed run continues where it stopped; in eval mode the count stands still.
    A batch that comes in several pieces (see `Method`) counts as one call.
    """

    needs_maps = False  # of teacher and student
    needs_logits = False  # of the teacher
    calls: Tensor

    def __init__(self, weight: float, warmup: int, decay: int):
        super().__init__()
        if not (_is_number(weight) and weight >= 0):
            raise DistillError(f"weight is {weight!r}; give a finite number that is not negative.")
        for name, calls in (("warmup", warmup), ("decay", decay)):
            check_number(name, calls, 0, 10**9)
        if 0 < decay <= warmup:
            raise DistillError(f"warmup is {warmup} and decay is {decay}; give decay = 0 or more calls than warmup.")
        self.weight, self.warmup, self.decay = plain(weight), int(warmup), int(decay)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> Tensor:
        """The loss before its weight, a scalar."""
        raise NotImplementedError

    def current_weight(self) -> Tensor | float:
        """The weight at the present call; a tensor where it is scheduled, so that a GPU need not wait for it."""
        factor: Tensor | float = 1.0
        if self.warmup:
            factor = (self.calls / self.warmup).clamp(max=1)
        if self.decay:
            factor = factor * ((self.decay - self.calls) / (self.decay - self.warmup)).clamp(0, 1)
        return self.weight * factor


class KD(Term):
    """Softened logits: Hinton, Vinyals and Dean 2015; see `losses.kd`."""

    needs_logits = True

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        weight: float = 0.9,
        temperature: float = 4.0,
        warmup: int = 0,
        decay: int = 0,
    ):
        super().__init__(weight, warmup, decay)
        check_number("temperature", temperature, 0.01, 1000, whole=False)
        self.temperature = plain(temperature)

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> Tensor:
        return losses.kd(student.logits, teacher.logits, self.temperature)


class MapTerm(Term):
    """Sum over `positions` of `compare(…) / divider`, on student's maps brought to the teacher's size and
    channels.

    `dividers`: one number per position; None for the published [8, 4, 2, 1, 1, 16], each at its own position.
    `connectors`: whether a 1x1 convolution takes the student's channels to the teacher's before they are
    compared.

    A subclass without further options takes this constructor and says its weight:
    `__init__ = partialmethod(MapTerm.__init__, weight=…)`. Its signature then shows all options and their defaults.
    """

    needs_maps = True

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        weight: float,
        positions: Sequence[str] = POSITIONS,
        dividers: Sequence[float] | None = None,
        connectors: bool = True,
        warmup: int = 0,
        decay: int = 0,
    ):
        super().__init__(weight, warmup, decay)
        self.positions = _check_positions(positions)
        self.dividers = _check_dividers(dividers, self.positions)
        _check_maps("teacher", "load_teacher", teacher, self.positions)
        _check_maps("student", "wrap", student, self.positions)
        self.connectors = _flag("connectors", connectors)
        self.connect = nn.ModuleDict(_build_connectors(teacher, student, self.positions) if self.connectors else {})
        self.prepare(teacher, student)

    def prepare(self, teacher: nn.Module, student: nn.Module) -> None:
        """Make what else the term needs, once and for all; nothing, unless a term says otherwise."""

    def compare(self, position: str, student_map: Tensor, teacher_map: Tensor, labels: Tensor) -> Tensor:
        """The loss at one position, before its divider; labels (N, H', W') of the images."""
        raise NotImplementedError

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> Tensor:
        summands = []
        for position, divider in zip(self.positions, self.dividers, strict=True):
            index = POSITIONS.index(position)
            student_map, teacher_map = student.maps[index], teacher.maps[index].detach()
            student_map = self.connected(position, _resize_to(student_map, teacher_map))
            summands.append(self.compare(position, student_map, teacher_map, labels) / divider)
        return reduce(add, summands)

    def connected(self, position: str, student_map: Tensor) -> Tensor:
        """The student's map, of the teacher's size, as it is compared."""
        return self.connect[position](student_map) if self.connectors else student_map


class PlainMapTerm(MapTerm):
    """`loss(student_map, teacher_map)`, summed over positions with equal weights.

    `with_connectors`: whether it needs the teacher's channels.
    """

    with_connectors = True
    loss: Callable[[Tensor, Tensor], Tensor]

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        weight: float,
        positions: Sequence[str] = ("layer4",),
        warmup: int = 0,
        decay: int = 0,
    ):
        positions = _check_positions(positions)
        super().__init__(
            teacher,
            student,
            weight=weight,
            positions=positions,
            dividers=[1] * len(positions),
            connectors=self.with_connectors,
            warmup=warmup,
            decay=decay,
        )

    def compare(self, position: str, student_map: Tensor, teacher_map: Tensor, labels: Tensor) -> Tensor:
        return self.loss(student_map, teacher_map)


class AT(PlainMapTerm):
    """Attention transfer: Zagoruyko and Komodakis 2017; see `losses.at`.

    Their weight, 1000 / 2, at each of the four stages. Averaging over channels makes connectors needless.
    """

    with_connectors = False
    loss = staticmethod(losses.at)
    __init__ = partialmethod(PlainMapTerm.__init__, weight=500.0, positions=STAGES)


class OFD(MapTerm):
    """Overhaul of feature distillation: Heo et al. 2019; see `losses.ofd`. The sum is divided by the batch
    here.

    Without connectors the student must have the teacher's channels.
    """

    __init__ = partialmethod(MapTerm.__init__, weight=1e-5)

    def prepare(self, teacher: nn.Module, student: nn.Module) -> None:
        for position, norm in zip(self.positions, _last_norms(teacher, self.positions), strict=True):
            self.register_buffer(f"margin_{position}", losses.ofd_margin(norm))

    def compare(self, position: str, student_map: Tensor, teacher_map: Tensor, labels: Tensor) -> Tensor:
        return losses.ofd(student_map, teacher_map, getattr(self, f"margin_{position}")) / len(student_map)


class SAKD(MapTerm):
    """Self-attention knowledge distillation, the method under study; see `losses.sakd`.

    `self_attention` False compares the maps that SAKD would attend to, at the same positions and with the same
    connectors and dividers: what is left is attention transfer. The difference measures what self-attention adds.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        weight: float = 150.0,
        positions: Sequence[str] = POSITIONS,
        dividers: Sequence[float] | None = None,
        connectors: bool = True,
        self_attention: bool = True,
        warmup: int = 0,
        decay: int = 0,
    ):
        super().__init__(
            teacher,
            student,
            weight=weight,
            positions=positions,
            dividers=dividers,
            connectors=connectors,
            warmup=warmup,
            decay=decay,
        )
        self.self_attention = _flag("self_attention", self_attention)

    def compare(self, position: str, student_map: Tensor, teacher_map: Tensor, labels: Tensor) -> Tensor:
        return (losses.sakd if self.self_attention else losses.at)(student_map, teacher_map)


class SAKDPlain(SAKD):
    """SAKD without its self-attention, the ablation of it: attention transfer at SAKD's positions."""

    __init__ = partialmethod(SAKD.__init__, self_attention=False)


# ------------------------------------------------------------------------------------------------ newer methods


class LogitTerm(Term):
    """A term on logits, `loss(student, teacher)`, whose only option is its weight."""

    needs_logits = True
    loss: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, teacher: nn.Module, student: nn.Module, *, weight: float, warmup: int = 0, decay: int = 0):
        super().__init__(weight, warmup, decay)

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> Tensor:
        return self.loss(student.logits, teacher.logits)


class MSE(LogitTerm):
    """Logits themselves: Ba and Caruana 2014; see `losses.mse`."""

    loss = staticmethod(losses.mse)
    __init__ = partialmethod(LogitTerm.__init__, weight=1.0)


class CWD(KD):
    """Where each class is seen: Shu et al. 2021; see `losses.cwd`. Their weight on logits."""

    __init__ = partialmethod(KD.__init__, weight=3.0)

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> Tensor:
        return losses.cwd(student.logits, teacher.logits, self.temperature)


class DIST(KD):
    """Correlations between classes and within them: Huang et al. 2022; see `losses.dist`."""

    __init__ = partialmethod(KD.__init__, weight=1.0, temperature=1.0)

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> Tensor:
        return losses.dist(student.logits, teacher.logits, self.temperature)


class ICSD(LogitTerm):
    """How alike classes are in space: Mansourian et al. 2023; see `losses.icsd`.

    Raises DistillError for fewer than three classes, whose rows of length 1 are always alike.
    """

    loss = staticmethod(losses.icsd)

    def __init__(self, teacher: nn.Module, student: nn.Module, *, weight: float = 1.0, warmup: int = 0, decay: int = 0):
        super().__init__(teacher, student, weight=weight, warmup=warmup, decay=decay)
        if getattr(student, "num_classes", 3) < 3:
            raise DistillError(
                "icsd compares how alike classes are to each other, which two classes always are equally; take another "
                "method, such as kd, or three classes or more"
            )


class FitNet(PlainMapTerm):
    """Maps themselves: Romero et al. 2015; see `losses.fitnet`."""

    loss = staticmethod(losses.fitnet)
    __init__ = partialmethod(PlainMapTerm.__init__, weight=10.0)


class NFD(PlainMapTerm):
    """Maps without their size: Liu et al. 2022; see `losses.nfd`."""

    loss = staticmethod(losses.nfd)
    __init__ = partialmethod(PlainMapTerm.__init__, weight=1.0)


class SKD(PlainMapTerm):
    """How alike places are: Liu et al. 2019, the pair-wise term; see `losses.skd`.

    The position is this project's choice, `layer4` before its ReLU; CIRKD's code takes the head's last map for it.
    """

    with_connectors = False
    loss = staticmethod(losses.skd)
    __init__ = partialmethod(PlainMapTerm.__init__, weight=10.0)


class IFVD(PlainMapTerm):
    """How alike places are to their class: Wang et al. 2020; see `losses.ifvd`. It needs labels.

    At `layer4`, before its ReLU, where the authors' code compares the map after its pyramid pooling. There the option
    `--lambda-ifv` is 200, ten times the weight here.
    """

    with_connectors = False
    __init__ = partialmethod(PlainMapTerm.__init__, weight=20.0)

    def compare(self, position: str, student_map: Tensor, teacher_map: Tensor, labels: Tensor) -> Tensor:
        return losses.ifvd(student_map, teacher_map, labels)


class CIRKD(PlainMapTerm):
    """How alike places of different images are: Yang et al. 2022; see `losses.cirkd`.

    At `aspp` before its ReLU, which is this project's choice.
    """

    with_connectors = False
    loss = staticmethod(losses.cirkd)
    __init__ = partialmethod(PlainMapTerm.__init__, weight=1.0, positions=("aspp",))


class CWDMaps(PlainMapTerm):
    """Where each channel responds: Shu et al. 2021; see `losses.cwd`. Their weight on maps, at T = 4."""

    loss = staticmethod(losses.cwd)
    __init__ = partialmethod(PlainMapTerm.__init__, weight=50.0)


class AttnFD(PlainMapTerm):
    """Maps refined by attention: Mansourian, Jalali, Ahmadi and Kasaei 2024; see `losses.attnfd`.

    The student's attention learns, the teacher's has no weights. Both are there for training only. The weight is the
    published one, of a number that is about N times smaller in the published code, N being the batch (`losses.attnfd`).
    That code refines `aspp` and `decoder` after their ReLU; here all three maps are taken before it.
    """

    __init__ = partialmethod(PlainMapTerm.__init__, weight=2.0, positions=("layer4", "aspp", "decoder"))

    def prepare(self, teacher: nn.Module, student: nn.Module) -> None:
        channels = _map_channels("student", student)
        self.attend = nn.ModuleDict({p: Attention(channels[POSITIONS.index(p)]) for p in self.positions})

    def connected(self, position: str, student_map: Tensor) -> Tensor:
        return super().connected(position, self.attend[position](student_map))

    def compare(self, position: str, student_map: Tensor, teacher_map: Tensor, labels: Tensor) -> Tensor:
        return losses.attnfd(student_map, losses.refined(teacher_map))


class Attention(nn.Module):
    """A map (N, C, H, W) weighed by channel and then by place, both learnt: Woo et al. 2018, "CBAM"."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        inside = max(1, channels // reduction)
        self.channel = nn.Sequential(nn.Linear(channels, inside), nn.ReLU(), nn.Linear(inside, channels))
        self.place = nn.Sequential(nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False), nn.BatchNorm2d(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x * (self.channel(x.mean(dim=(2, 3))) + self.channel(x.amax(dim=(2, 3)))).sigmoid()[:, :, None, None]
        return x * self.place(torch.stack([x.amax(dim=1), x.mean(dim=1)], dim=1)).sigmoid()


# ------------------------------------------------------------------------------------------- maps and connectors


def connector(student_channels: int, teacher_channels: int) -> nn.Sequential:
    """(N, student_channels, H, W) to (N, teacher_channels, H, W): 1x1 convolution without bias, then
    BatchNorm.
    """
    convolution = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / teacher_channels))
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher_channels))


def _build_connectors(teacher: nn.Module, student: nn.Module, positions: Sequence[str]) -> dict[str, nn.Module]:
    theirs, ours = _map_channels("teacher", teacher), _map_channels("student", student)
    indices = {position: POSITIONS.index(position) for position in positions}
    return {position: connector(ours[index], theirs[index]) for position, index in indices.items()}


def _map_channels(who: str, model: nn.Module) -> Sequence[int]:
    channels: Sequence[int] | None = getattr(model, "map_channels", None)
    if channels is None:
        raise DistillError(
            f"The {who} ({type(model).__name__}) does not say how many channels its maps have; give it a "
            "`map_channels` of six numbers, or use kd, which needs logits only."
        )
    return channels


def _check_maps(who: str, function: str, network: nn.Module, positions: Sequence[str]) -> None:
    """DistillError at the first position at which a network from another library has no map."""
    for position, channels in zip(POSITIONS, getattr(network, "map_channels", None) or (), strict=False):
        if position in positions and not channels:
            raise DistillError(
                f"The {who} has no map at {position}; name a layer for it in {function}'s `positions`, leave it "
                f"out with the method's `positions`, or use kd, which needs logits only."
            )


def _last_norms(teacher: nn.Module, positions: Sequence[str]) -> list[nn.BatchNorm2d]:
    """The BatchNorm before each position of the teacher: OFD reads its margins from them."""
    norms = list(getattr(teacher, "map_norms", list)())  # none where the teacher cannot say
    norms += [None] * (len(POSITIONS) - len(norms))
    chosen = [norms[POSITIONS.index(position)] for position in positions]
    for position, norm in zip(positions, chosen, strict=True):
        if norm is None or not is_norm(norm):
            raise DistillError(
                f"The teacher has no BatchNorm at {position}, from which ofd takes its margin; use sakd or kd instead, "
                "or leave that position out with `positions`."
            )
    return chosen


def _resize_to(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    size = teacher_map.shape[-2:]
    if student_map.shape[-2:] == size:
        return student_map
    return F.interpolate(student_map, size=size, mode="bilinear", align_corners=True)


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number, Python's or NumPy's."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool | np.bool_):  # "no" would count as yes
        raise DistillError(f"{name} is {value!r}; give True or False.")
    return bool(value)


def plain(value: Any) -> Any:
    """An option as the file of a run can hold it: Python's numbers in place of NumPy's, lists in place of tuples."""
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _check_dividers(dividers: Sequence[float] | None, positions: Sequence[str]) -> tuple[float, ...]:
    if dividers is None:
        return tuple(DIVIDERS[position] for position in positions)
    if not isinstance(dividers, Sequence) or len(dividers) != len(positions) or not all(map(_is_positive, dividers)):
        raise DistillError(
            f"dividers is {dividers!r}; give one number above 0 for each of the {len(positions)} positions."
        )
    return tuple(dividers)


def _check_positions(positions: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(positions, Sequence):
        raise DistillError(f"positions is {positions!r}; name some of {', '.join(POSITIONS)}.")
    positions = (positions,) if isinstance(positions, str) else tuple(positions)
    for position in positions:
        if position not in POSITIONS:
            raise DistillError(f"There is no position {position!r}{nearest(str(position), POSITIONS)}.")
    if not positions or len(set(positions)) < len(positions):
        raise DistillError(f"positions is {positions}; name at least one of {', '.join(POSITIONS)}, none twice.")
    return positions
