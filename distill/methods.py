"""A method = cross-entropy plus weighted distillation terms, and the connectors those terms need.

To add a method, write a subclass of `Term` (or of `MapTerm`, if it compares maps position by position) and
enter it in `METHODS`. Every option is a keyword of the constructor and is kept as an attribute of the same
name, which is all that `build_method` and `describe` need to know about it.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partialmethod, reduce
from operator import add
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill import losses
from distill.errors import DistillError, nearest
from distill.networks.backbones import POSITIONS

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
    """One distillation loss, its weight, and how the weight changes during training.

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
        if not (math.isfinite(weight) and weight >= 0):
            raise DistillError(f"weight is {weight}; give a finite number that is not negative.")
        if warmup < 0 or decay < 0 or 0 < decay <= warmup:
            raise DistillError(f"warmup is {warmup} and decay is {decay}; give decay = 0 or more calls than warmup.")
        self.weight, self.warmup, self.decay = weight, warmup, decay
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
        if not (math.isfinite(temperature) and temperature > 0):
            raise DistillError(f"temperature is {temperature}; give a finite number above 0, such as 4.")
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> Tensor:
        return losses.kd(student.logits, teacher.logits, self.temperature)


class MapTerm(Term):
    """Sum over `positions` of `compare(…) / divider`, on student's maps brought to the teacher's size and
    channels.

    `dividers`: one number a position; None for the published [8, 4, 2, 1, 1, 16], each at its own position.
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
        self.dividers = tuple(DIVIDERS[p] for p in self.positions) if dividers is None else tuple(dividers)
        if len(self.dividers) != len(self.positions) or not all(d > 0 for d in self.dividers):
            raise DistillError(
                f"dividers is {self.dividers}; give one number above 0 for each of the {len(self.positions)} positions."
            )
        _check_maps("teacher", "load_teacher", teacher, self.positions)
        _check_maps("student", "wrap", student, self.positions)
        self.connectors = connectors
        self.connect = nn.ModuleDict(_build_connectors(teacher, student, self.positions) if connectors else {})
        self.prepare(teacher)

    def prepare(self, teacher: nn.Module) -> None:
        """Take from the teacher what the term needs once and for all; nothing, unless a term says otherwise."""

    def compare(self, position: str, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """The loss at one position, before its divider."""
        raise NotImplementedError

    def forward(self, student: Output, teacher: Output, labels: Tensor) -> Tensor:
        summands = []
        for position, divider in zip(self.positions, self.dividers, strict=True):
            index = POSITIONS.index(position)
            student_map, teacher_map = student.maps[index], teacher.maps[index].detach()
            student_map = _resize_to(student_map, teacher_map)
            if self.connectors:
                student_map = self.connect[position](student_map)
            summands.append(self.compare(position, student_map, teacher_map) / divider)
        return reduce(add, summands)


class AT(MapTerm):
    """Attention transfer: Zagoruyko and Komodakis 2017; see `losses.at`.

    Their weight, 1000 / 2, at each of the four stages. Averaging over channels makes connectors needless.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        weight: float = 500.0,
        positions: Sequence[str] = STAGES,
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
            connectors=False,
            warmup=warmup,
            decay=decay,
        )

    def compare(self, position: str, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        return losses.at(student_map, teacher_map)


class OFD(MapTerm):
    """Overhaul of feature distillation: Heo et al. 2019; see `losses.ofd`. The sum is divided by the batch
    here.

    Without connectors the student must have the teacher's channels.
    """

    __init__ = partialmethod(MapTerm.__init__, weight=1e-5)

    def prepare(self, teacher: nn.Module) -> None:
        for position, norm in zip(self.positions, _last_norms(teacher, self.positions), strict=True):
            self.register_buffer(f"margin_{position}", losses.ofd_margin(norm))

    def compare(self, position: str, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        return losses.ofd(student_map, teacher_map, getattr(self, f"margin_{position}")) / len(student_map)


class SAKD(MapTerm):
    """Self-attention knowledge distillation, the method under study; see `losses.sakd`.

    `self_attention` False compares the maps that SAKD would attend to, at the same positions and with the same
    connectors and dividers: what is left is attention transfer. The difference is what self-attention is worth.
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
        self.self_attention = self_attention

    def compare(self, position: str, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        return (losses.sakd if self.self_attention else losses.at)(student_map, teacher_map)


# The baseline has no term: cross-entropy is part of every method.
METHODS: dict[str, Callable[..., Term] | None] = {"baseline": None, "kd": KD, "at": AT, "ofd": OFD, "sakd": SAKD}
ALIASES = {"proposed": "sakd"}


class Method(nn.Module):
    """loss, parts = method(student_output, teacher_output, labels).

    `loss` is cross-entropy (void ignored) plus the weighted terms; `parts` holds the same summands by name,
    detached. Its parameters are the connectors' alone: teacher and student stay outside. With `divide_twice` set,
    cross-entropy is divided by the batch once more, and KD by classes and batch, as in the published code.
    `pieces` says in how many calls a batch comes: the schedules of the terms move on at the first of them.
    """

    terms: Mapping[str, Term]

    def __init__(self, terms: dict[str, Term]):
        super().__init__()
        self.name = "+".join(terms) or "baseline"
        self.terms = nn.ModuleDict(terms)  # type: ignore[assignment]  # it cannot say of which modules it is
        self.needs_teacher = bool(terms)
        self.needs_maps = any(term.needs_maps for term in terms.values())
        self.needs_logits = any(term.needs_logits for term in terms.values())
        self.divide_twice = False
        self.pieces, self._piece = 1, 0  # the second is 0 between steps, where checkpoints are made

    def forward(
        self, student_output: Answer, teacher_output: Answer, labels: Tensor, count: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what it is the sum of, detached; see `summands`."""
        summands = self.summands(student_output, teacher_output, labels, count)
        return reduce(add, summands.values()), {name: value.detach() for name, value in summands.items()}

    def summands(
        self, student_output: Answer, teacher_output: Answer, labels: Tensor, count: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cross-entropy (`ce`) and every term by its name, each with its weight.

        Outputs are (logits, maps), or bare logits where no term needs maps; the baseline's teacher may be None.
        `count`: see `losses.cross_entropy`.
        """
        student, teacher = _as_output(student_output), _as_output(teacher_output)
        self._check_outputs(student, teacher)
        step = int(self.training and self._piece == 0)  # all pieces of a batch have the weights of one step
        self._piece = (self._piece + self.training) % self.pieces
        summands = {"ce": losses.cross_entropy(student.logits, labels, count=count)}
        for name, term in self.terms.items():
            term.calls += step
            summands[name] = term.current_weight() * term(student, teacher, labels)
        if self.divide_twice:
            batch, classes = student.logits.shape[:2]
            divisors = {"ce": batch, "kd": batch * classes}
            summands = {name: value / divisors.get(name, 1) for name, value in summands.items()}
        return summands

    def describe(self) -> dict[str, Any]:
        """JSON-able: the name, and every option of every term; `build_method(name, …, **terms)` builds it
        again.
        """
        terms = {
            name: {option: _plain(getattr(term, option)) for option in _default_options(type(term))}
            for name, term in self.terms.items()
        }
        return {"name": self.name, "terms": terms}

    def extra_repr(self) -> str:
        return self.name

    def _check_outputs(self, student: Output, teacher: Output) -> None:
        if self.needs_logits and not teacher.logits.numel():
            raise DistillError(f"The method {self.name} needs the teacher's logits; pass teacher(images).")
        for who, output in (("student", student), ("teacher", teacher)):
            if self.needs_maps and not output.maps:
                raise DistillError(
                    f"The method {self.name} needs the {who}'s maps; pass {who}(images, return_maps=True)."
                )


def build_method(name: str, teacher: nn.Module | None, student: nn.Module, **options: Any) -> Method:
    """The method called `name`: one of METHODS, or several joined with `+`, as in "kd+sakd".

    Options of a single term are given flat (`build_method("kd", teacher, student, temperature=2)`), those of
    several by the term's name (`build_method("kd+sakd", teacher, student, sakd={"weight": 30})`). Connectors
    are initialised from torch's global generator and placed on the student's device. Raises DistillError for
    unknown or repeated names, unknown options, and for a teacher that cannot serve the method.
    """
    names = method_terms(name)
    by_term = options_by_term(names, options)
    if names:
        check_apart(teacher, student)
        _check_teacher(names, teacher, student)
    makers = {name: METHODS[name] for name in names}
    method = Method({name: make(teacher, student, **by_term[name]) for name, make in makers.items() if make})
    parameter = next(student.parameters(), None)
    return method if parameter is None else method.to(parameter.device, parameter.dtype)


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
        if not hasattr(norm, "running_mean"):  # true of BatchNorm, SyncBatchNorm and torchvision's frozen one
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


def _check_positions(positions: Sequence[str]) -> tuple[str, ...]:
    positions = (positions,) if isinstance(positions, str) else tuple(positions)
    for position in positions:
        if position not in POSITIONS:
            raise DistillError(f"There is no position {position!r}{nearest(position, POSITIONS)}.")
    if not positions or len(set(positions)) < len(positions):
        raise DistillError(f"positions is {positions}; name at least one of {', '.join(POSITIONS)}, none twice.")
    return positions


def method_terms(name: str) -> list[str]:
    """The terms of a joined name, canonical and in the order given; empty for the baseline. Raises DistillError for
    unknown or repeated names.
    """
    names = []
    for part in name.lower().split("+"):
        part = ALIASES.get(part.strip(), part.strip())
        if part not in METHODS:
            raise DistillError(f"There is no method {part!r}{nearest(part, [*METHODS, *ALIASES])}.")
        if part in names:
            raise DistillError(f"The method {part} appears twice in {name!r}; name it once and set its weight instead.")
        names.append(part)
    return [part for part in names if METHODS[part] is not None]


def options_by_term(names: list[str], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of every term in `names`, from either form that `build_method` takes. Raises DistillError for those
    that the term does not have.
    """
    by_term: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in options.items():
        term = ALIASES.get(key, key)
        if term in by_term and isinstance(value, dict):
            by_term[term].update(value)
        elif len(names) == 1 and term not in METHODS:
            by_term[names[0]][key] = value
        else:
            joined = "+".join(names) or "baseline"
            raise DistillError(
                f"The method {joined} cannot use the option {key!r}; "
                + (f"give options by term, such as {names[0]}={{'weight': 1}}." if names else "it takes none.")
            )
    for name, given in by_term.items():
        known = _default_options(METHODS[name])
        for key in given:
            if key not in known:
                raise DistillError(f"The method {name} has no option {key!r}{nearest(key, known)}.")
    return by_term


def check_apart(teacher: nn.Module | None, student: nn.Module) -> None:
    """DistillError where both have weights in common: a teacher is frozen, and a student is to learn."""
    own = {id(weight) for weight in student.parameters()}
    if teacher is not None and any(id(weight) in own for weight in teacher.parameters()):
        raise DistillError("The teacher and the student are one network; give as teacher another, or a copy.deepcopy.")


def _check_teacher(names: list[str], teacher: nn.Module | None, student: nn.Module) -> None:
    joined = "+".join(names)
    if teacher is None:
        raise DistillError(f"The method {joined} needs a teacher; give one, or use the method baseline.")
    ours, theirs = getattr(student, "num_classes", None), getattr(teacher, "num_classes", None)
    if ours is None or theirs is None or ours == theirs:
        return
    why = (
        "kd compares their logits class by class" if "kd" in names else f"{joined} needs both to know the same classes"
    )
    raise DistillError(
        f"The teacher has {theirs} classes and the student {ours}, but {why}; build the student with "
        f"num_classes={theirs}, or load a teacher of {ours} classes."
    )


def _as_output(answer: Answer) -> Output:
    logits, maps = (answer, None) if answer is None or isinstance(answer, Tensor) else answer
    return Output(torch.empty(0) if logits is None else logits, maps or ())


def _default_options(term: Callable[..., Term] | None) -> dict[str, Any]:
    """A term's options and their defaults: the keyword-only arguments of its constructor; the baseline has none."""
    parameters = inspect.signature(term).parameters.values() if term else ()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def with_every_option(terms: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The recorded options of a run's terms, with those that were added to a term since it was made."""
    defaults = {
        name: {key: _plain(value) for key, value in _default_options(METHODS.get(name)).items()} for name in terms
    }
    return {name: {**defaults[name], **options} for name, options in terms.items()}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
