"""A method = cross-entropy plus weighted distillation terms, and the connectors those terms need.

To add a method, write a subclass of `terms.Term` (or of `terms.PlainMapTerm`, if it compares maps position by position)
and enter it with `register_method`, or in `METHODS` below. A file that does so is used by studies too: `load_methods`.
"""

import hashlib
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import partial, partialmethod, reduce
from operator import add
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill import losses
from distill.errors import DistillError, first_line, nearest
from distill.networks.backbones import POSITIONS
from distill.terms import (
    AT,
    CIRKD,
    CWD,
    DIST,
    DIVIDERS,
    ICSD,
    IFVD,
    KD,
    MSE,
    NFD,
    OFD,
    SAKD,
    SKD,
    STAGES,
    Answer,
    AttnFD,
    CWDMaps,
    FitNet,
    MapTerm,
    Output,
    PlainMapTerm,
    SAKDPlain,
    Term,
    connector,
    plain,
)

__all__ = [
    "DIVIDERS",
    "METHODS",
    "POSITIONS",
    "STAGES",
    "MapTerm",
    "Method",
    "PlainMapTerm",
    "Term",
    "build_method",
    "connector",
    "load_methods",
    "register_method",
]

# The baseline has no term: cross-entropy is part of every method.
METHODS: dict[str, Callable[..., Term] | None] = {
    "baseline": None,
    "kd": KD,
    "at": AT,
    "ofd": OFD,
    "sakd": SAKD,
    "sakd-plain": SAKDPlain,
    "mse": MSE,
    "fitnet": FitNet,
    "skd": SKD,
    "ifvd": IFVD,
    "cwd": CWD,
    "cwd-maps": CWDMaps,
    "dist": DIST,
    "cirkd": CIRKD,
    "nfd": NFD,
    "icsd": ICSD,
    "attnfd": AttnFD,
}
BUILT_IN = frozenset(METHODS)  # what every process knows
ALIASES = {"proposed": "sakd"}
_RESERVED = ("ce", "loss", "epoch", "lr", "seconds", "cpu_seconds", "val_miou")  # of a line of the history
_OWN: dict[str, tuple[Path, str]] = {}  # by method: the file that `load_methods` ran for it, and its SHA-256
_WRITTEN: dict[object, str] = {}  # the SHA-256 of what the reader wrote of a registered class


def register_method(name: str, term: type[Term]) -> None:
    """Register the class `term` as the method `name` in this process, alone or joined with others by +.

    Its constructor takes teacher and student, and every option as a keyword with a default, `weight` among them, which
    it keeps as attributes. Studies and `tune` train in processes of their own, which know it where it is registered in
    a file that they are given (`load_methods`). Runs keep the SHA-256 of the class's source, where it can be read: no
    run goes on with another loss of the same name. Raises DistillError for a name that is taken, by an option too, or
    has other characters than small letters, digits, - and _, and for a class that is not such a term or computes no
    loss.
    """
    if not (isinstance(term, type) and issubclass(term, Term)):
        raise DistillError(f"{term!r} is not a method; give a subclass of distill.methods.Term")
    if not (isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_-]*", name)):
        raise DistillError(f"a method cannot be called {name!r}; use small letters, digits, - and _")
    known = METHODS.get(name)
    again = known is not None and (known.__module__, known.__qualname__) == (term.__module__, term.__qualname__)
    taken = name in METHODS or name in ALIASES or name in _RESERVED or hasattr(nn.ModuleDict(), name)
    taken = taken or any(name in default_options(METHODS[method]) for method in BUILT_IN)
    if taken and not again:  # a cell may be run twice
        raise DistillError(f"there is a method {name!r} already, or another use of that word; give another name")
    options = default_options(term)
    missing = [key for key, default in options.items() if default is inspect.Parameter.empty]
    if missing or "weight" not in options:
        first = (missing or ["weight"])[0]
        raise DistillError(
            f"the constructor of {term.__qualname__} has no default for its option {first}; give one, behind a * that "
            f"makes options keywords"
        )
    try:
        inspect.signature(term).bind(None, None)
    except TypeError as error:
        raise DistillError(f"{term.__qualname__} cannot be built from a teacher and a student ({error})") from None
    _check_it_computes(term)
    METHODS[name] = term
    if source := _source_of(term):
        _WRITTEN[term] = hashlib.sha256(source.encode()).hexdigest()


def _source_of(term: type[Term]) -> str:
    """What a reader wrote of a class: its functions, and the values of its other attributes; "" where unknown.

    Of the functions one by one: the source of a class in a notebook cannot be found before Python 3.13.
    """
    found = []
    for part in term.__mro__:
        if part.__module__.partition(".")[0] in ("distill", "torch", "builtins"):
            continue
        for name, value in vars(part).items():
            value = getattr(value, "__func__", value)  # of a static method, or one of the class
            if name.startswith("__") and not isinstance(value, FunctionType | partial | partialmethod):
                continue  # such as __doc__
            try:
                written = _written(value)
            except (OSError, TypeError):  # typed at a prompt
                return ""
            found.append(written if isinstance(value, FunctionType) else f"{name} = {written}")
    return "\n".join(found)


def _written(value: object) -> str:
    """A function's source, and what other values hold; of what holds none of these, its kind."""
    if isinstance(value, FunctionType):
        return inspect.getsource(value)
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        return repr(value)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _written(value.tolist())
    if isinstance(value, partial | partialmethod):
        return _written((value.func, value.args, value.keywords))
    if isinstance(value, property):
        return _written((value.fget, value.fset))
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_written(key)}: {_written(own)}' for key, own in value.items())}}}"
    if isinstance(value, tuple) and len(value) == 1:
        return f"({_written(value[0])},)"
    if isinstance(value, list | tuple):
        own = ", ".join(map(_written, value))
        return f"[{own}]" if isinstance(value, list) else f"({own})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_written, value)))}}}"
    inner = getattr(value, "__wrapped__", None) or getattr(value, "func", None)  # lru_cache, cached_property
    return _written(inner) if inner is not None else getattr(value, "__qualname__", type(value).__qualname__)


def _check_it_computes(term: type[Term]) -> None:
    """DistillError for a class that leaves out what its base class leaves to it."""
    if term.forward is Term.forward:
        raise DistillError(
            f"{term.__qualname__} computes no loss; give it a method forward(self, student, teacher, labels)"
        )
    compares = not issubclass(term, MapTerm) or term.compare is not MapTerm.compare
    if not compares and term.forward is MapTerm.forward:
        raise DistillError(
            f"{term.__qualname__} compares no maps; give it a method compare(self, position, student_map, teacher_map, "
            f"labels)"
        )
    loss = inspect.getattr_static(term, "loss", None)
    if isinstance(loss, FunctionType) and next(iter(inspect.signature(loss).parameters), "") != "self":
        raise DistillError(
            f"the loss of {term.__qualname__} would get the term itself as its first tensor; write "
            f"loss = staticmethod({loss.__name__})"
        )


def load_methods(path: str | Path) -> None:
    """Run a Python file of your own that calls `register_method`, here and in the processes of studies and `tune`.

    Where it has changed since, it is run again, and what it no longer registers is forgotten. Runs of its methods keep
    its SHA-256, so that none is resumed with another loss. Raises DistillError where there is no such file, where it
    fails, and where it registers nothing; then the methods are those of before.
    """
    path = Path(path).resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DistillError(
            f"{path} cannot be read ({error.strerror}); give a Python file that registers methods"
        ) from None
    source = path, hashlib.sha256(content).hexdigest()
    if source in _OWN.values():
        return
    before, places = dict(METHODS), list(sys.path)
    for method in (method for method, (file, _) in _OWN.items() if file == path):
        METHODS.pop(method, None)
    try:
        _run(path, content)
        registered = [method for method, term in METHODS.items() if before.get(method) is not term]
        if not registered:
            raise DistillError(f"{path} registers no method; call distill.register_method in it")
    except BaseException:  # a sys.exit in the file, or Ctrl-C, too
        METHODS.clear()
        METHODS.update(before)
        sys.path[:] = places
        raise
    for method in [method for method, (file, _) in _OWN.items() if file == path]:
        del _OWN[method]
    _OWN.update(dict.fromkeys(registered, source))


def _run(path: Path, content: bytes) -> None:
    """A Python file, as a module of its own. Raises DistillError with the line where it fails."""
    name = f"own_methods_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    sys.modules[name] = module = ModuleType(name)  # under one name for each file, so that it may register them again
    module.__file__ = str(path)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for imports of what lies beside it, last, so that nothing else is hidden
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except DistillError:
        raise
    except Exception as error:
        lines = [place.lineno for place in traceback.extract_tb(error.__traceback__) if place.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines or [1])[-1]
        raise DistillError(f"{path}, line {line}: {type(error).__name__}: {error}; mend it, or leave it out") from error


def loaded_files() -> list[str]:
    """What `load_methods` ran."""
    return list(dict.fromkeys(str(path) for path, _ in _OWN.values()))


def code_of(names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of the reader's own code, by the terms among `names` that are not of this package.

    It is that of the whole file that `load_methods` ran, or of the class.
    """
    names = list(names)
    written = {name: _WRITTEN[METHODS[name]] for name in names if METHODS.get(name) in _WRITTEN}
    return written | {name: _OWN[name][1] for name in names if name in _OWN}


class Method(nn.Module):
    """loss, parts = method(student_output, teacher_output, labels).

    `loss` is cross-entropy (void ignored) plus the weighted terms; `parts` holds the same summands by name,
    detached. Its parameters are those of its terms, such as connectors: teacher and student stay outside. With
    `divide_by`, the size of the whole batch, cross-entropy is divided by it once more, and KD by classes and batch, as
    in the published code; 0 leaves them as they are.
    `class_weights` (C,), where there are any, are those of `losses.cross_entropy`.
    `pieces` says in how many calls a batch comes: the schedules of the terms move on at the first of them.
    """

    terms: Mapping[str, Term]
    class_weights: Tensor | None

    def __init__(self, terms: dict[str, Term]):
        super().__init__()
        self.name = "+".join(terms) or "baseline"
        self.terms = nn.ModuleDict(terms)  # type: ignore[assignment]  # it cannot say of which modules it is
        self.needs_teacher = bool(terms)
        self.needs_maps = any(term.needs_maps for term in terms.values())
        self.needs_logits = any(term.needs_logits for term in terms.values())
        self.divide_by = 0
        self.register_buffer("class_weights", None, persistent=False)  # they follow from the data
        self.pieces, self._piece = 1, 0  # the second is 0 between steps, where checkpoints are made

    def forward(
        self, student_output: Answer, teacher_output: Answer, labels: Tensor, count: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its summands, detached; see `summands`."""
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
        summands = {"ce": losses.cross_entropy(student.logits, labels, count=count, class_weights=self.class_weights)}
        for name, term in self.terms.items():
            term.calls += step
            loss = _scalar(name, _loss_of(name, term, student, teacher, labels))
            if student.logits.requires_grad and torch.is_grad_enabled() and not loss.requires_grad and loss:
                raise DistillError(
                    f"the loss of the method {name} has no gradient, so that the student would learn nothing from it; "
                    f"detach the teacher's tensors only, and compute it of the student's with differentiable functions"
                )
            summands[name] = term.current_weight() * loss
        if self.divide_by:
            divisors = {"ce": self.divide_by, "kd": self.divide_by * student.logits.shape[1]}
            summands = {name: value / divisors.get(name, 1) for name, value in summands.items()}
        return summands

    def describe(self) -> dict[str, Any]:
        """JSON-able: the name, and every option of every term; `build_method(name, …, **terms)` builds it
        again. Where terms are a reader's own, the SHA-256 of their code is there too.
        """
        terms, code = {name: _kept_options(term) for name, term in self.terms.items()}, code_of(self.terms)
        return {"name": self.name, "terms": terms, **({"code": code} if code else {})}

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
    terms = {name: make(teacher, student, **by_term[name]) for name, make in makers.items() if make}
    for term in terms.values():
        _check_built(term)
    method = Method(terms)
    for who, network in (("teacher", teacher), ("student", student)):
        if network is not None and _common(method, network, frozen=who == "student"):
            raise DistillError(
                f"the method {name} keeps weights of the {who} as a part of itself; keep what it needs to know of it, "
                f"and not the network"
            )
    parameter = next(student.parameters(), None)
    return method if parameter is None else method.to(parameter.device, parameter.dtype)


def method_terms(name: str) -> list[str]:
    """The terms of a joined name, canonical and in the order given; empty for the baseline. Raises DistillError for
    unknown or repeated names.
    """
    names = []
    if not isinstance(name, str):
        raise DistillError(f"the method is {name!r}; give a name, such as kd, or several joined by +")
    for part in name.lower().split("+"):
        part = ALIASES.get(part.strip(), part.strip())
        if part not in METHODS:
            raise DistillError(
                f"There is no method {part!r}; one of your own is to be registered first (--own-methods FILE, or "
                f"register_method){nearest(part, [*METHODS, *ALIASES])}"
            )
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
        known = default_options(METHODS[name])
        for key in given:
            if key not in known:
                raise DistillError(f"The method {name} has no option {key!r}{nearest(key, known)}.")
    return by_term


def check_apart(teacher: nn.Module | None, student: nn.Module) -> None:
    """DistillError where both have weights in common: a teacher is frozen, and a student is to learn."""
    if teacher is not None and _common(teacher, student):
        raise DistillError(
            "The teacher and the student are one network; give another network, or a copy.deepcopy, as the teacher."
        )


def _common(one: nn.Module, other: nn.Module, frozen: bool = True) -> bool:
    """Whether two modules have a weight in common; of the other only those that can learn, without `frozen`."""
    own = {id(weight) for weight in one.parameters()}
    return any(id(weight) in own for weight in other.parameters() if frozen or weight.requires_grad)


def _check_teacher(names: list[str], teacher: nn.Module | None, student: nn.Module) -> None:
    joined = "+".join(names)
    if teacher is None:
        raise DistillError(f"The method {joined} needs a teacher; give one, or use the method baseline.")
    ours, theirs = getattr(student, "num_classes", None), getattr(teacher, "num_classes", None)
    if ours is None or theirs is None or ours == theirs:
        return
    why = (
        "kd compares their logits class by class" if "kd" in names else f"{joined} needs both to have the same classes"
    )
    raise DistillError(
        f"The teacher has {theirs} classes and the student {ours}, but {why}; build the student with "
        f"num_classes={theirs}, or load a teacher of {ours} classes."
    )


def _check_built(term: Term) -> None:
    """DistillError for a term whose constructor left out what the others rely on."""
    kind = type(term).__qualname__
    if not hasattr(term, "calls"):
        raise DistillError(f"the constructor of {kind} does not call super().__init__, which keeps weight and schedule")
    if isinstance(term, PlainMapTerm) and type(term).compare is PlainMapTerm.compare and not hasattr(term, "loss"):
        raise DistillError(f"{kind} has no loss; write loss = staticmethod(...), a function of two maps")


def _loss_of(name: str, term: Term, student: Output, teacher: Output, labels: Tensor) -> Any:
    """What a term returns. Raises DistillError where it fails for want of what it has not asked for."""
    try:
        return term(student, teacher, labels)
    except DistillError:
        raise
    except Exception as error:
        there = {"maps": bool(student.maps), "logits": bool(teacher.logits.numel())}
        asked = {"maps": term.needs_maps, "logits": term.needs_logits}
        missing = [what for what in there if not (there[what] or asked[what])]
        if name in BUILT_IN or not missing:
            raise
        raise DistillError(
            f"the method {name} fails ({type(error).__name__}: {first_line(error)}); it is given no {missing[0]} of "
            f"the teacher, and gets them where its class says needs_{missing[0]} = True"
        ) from error


def _scalar(name: str, loss: Any) -> Tensor:
    if isinstance(loss, Tensor) and loss.dim() == 0:
        return loss
    found = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    raise DistillError(f"the loss of the method {name} is {found}; return a tensor of one number, such as a mean")


def _as_output(answer: Answer) -> Output:
    logits, maps = (answer, None) if answer is None or isinstance(answer, Tensor) else answer
    return Output(torch.empty(0) if logits is None else logits, maps or ())


def default_options(term: Callable[..., Term] | None) -> dict[str, Any]:
    """A term's options and their defaults: the keyword-only arguments of its constructor; the baseline has none."""
    parameters = inspect.signature(term).parameters.values() if term else ()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _kept_options(term: Term) -> dict[str, Any]:
    names = list(default_options(type(term)))
    for name in names:
        if not hasattr(term, name):
            raise DistillError(f"{type(term).__qualname__} keeps no attribute {name} of its option; set self.{name}")
    kept = {name: plain(getattr(term, name)) for name in names}
    for name, value in kept.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise DistillError(
                f"the option {name} of {type(term).__qualname__} is a {type(value).__name__}, which the file of a run "
                f"cannot hold; make it a number, a text, or a list of these"
            ) from None
    return kept


def check_known_elsewhere(names: Iterable[str]) -> None:
    """DistillError for a method that was registered here, and in no file: another process would not know it."""
    for term in {term for name in names for term in method_terms(name)}:
        if term not in BUILT_IN and term not in _OWN:
            raise DistillError(
                f"the method {term} is known to this process alone, and its runs are trained in others; register it in "
                f"a file, and give that as --own-methods"
            )


def with_every_option(terms: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The recorded options of a run's terms, with those that were added to a term since it was made."""
    defaults = {
        name: {key: plain(value) for key, value in default_options(METHODS.get(name)).items()} for name in terms
    }
    return {name: {**defaults[name], **options} for name, options in terms.items()}
