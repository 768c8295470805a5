"""Look into any network while it runs: record what its layers produce or receive, by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock, get_ident
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distill.errors import DistillError, meant


@contextmanager
def record(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record what named submodules of any network produce (or receive) while the `with` block runs.

    A name is a submodule's dotted path, for its output, or that path with `:input`, for its first argument::

        with record(network, ["layer4", "layer4.1.relu:input"]) as taps:
            logits = network(images)
        taps["layer4"]

    Where a submodule runs several times, its last run counts, of those in the thread of the block. Tensors keep their
    graph, so a loss on them trains the network. The hooks are removed when the block ends, also after an error.

    Raises:
        DistillError: a name is not a submodule, or a later layer overwrote a recorded tensor in place.
    """
    recorded: dict[str, Tensor] = {}
    versions: dict[str, int] = {}

    def keep(name: str, value: Tensor) -> None:
        recorded[name] = value
        versions[name] = _version(value)

    handles = []
    try:
        for name in names:
            handles.append(hook_at(module, name, keep))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
    for name, value in recorded.items():
        if _version(value) != versions[name]:
            raise DistillError(
                f"The tensor recorded at '{name}' was overwritten by a layer after it; set inplace=False "
                "there, or record another position."
            )


def _version(value: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count, and neither does anything else."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def hook_at(module: nn.Module, name: str, keep: Callable[[str, Tensor], None]) -> RemovableHandle:
    """Call `keep(name, tensor)` whenever the submodule that `name` means, as in `record`, runs in this thread."""
    path, _, side = name.partition(":")
    target, thread = submodule(module, path), get_ident()

    def mine(value: Tensor) -> None:
        if get_ident() == thread:  # others may ask the same network meanwhile
            keep(name, value)

    def given(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any] | None = None) -> None:
        # Without `named`, where another thread removes its hook meanwhile.
        values = (*arguments, *(named or {}).values())
        if values:
            mine(values[0])

    if side == "input":
        return target.register_forward_pre_hook(given, with_kwargs=True)
    if side:
        raise DistillError(f"'{name}' should end in ':input', or in no ':' at all to record the output.")
    return target.register_forward_hook(lambda _, arguments, output: mine(output))


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path; DistillError, with the nearest name, if there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        near = meant(path, [known for known, _ in module.named_modules()], cutoff=0.4)
        raise DistillError(f"The network has no submodule '{path}'{near}; see named_modules().") from None


class Made(NamedTuple):
    """A tensor that a layer gave, and the names of the modules that gave it, the innermost first.

    `tap` is where it is made, as `record` takes names: where an activation made it that is the activation's input, a
    map before its ReLU.
    """

    tensor: object
    names: tuple[str, ...]
    tap: str


def made_by(module: nn.Module, run: Callable[[], object]) -> tuple[object, list[Made]]:
    """What `run`, which runs the module, answers with, and everything that submodules gave meanwhile, in that order.

    Of a module that runs several times only the last run counts, as in `record`.
    """
    # By id: the tensor stays, so that it keeps its id.
    given: dict[int, tuple[object, list[tuple[str, bool, int]]]] = {}
    runs: Counter[str] = Counter()

    def keep(name: str, child: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
        runs[name] += 1
        if not _changes(child, arguments, output):
            return
        activation = not list(child.children()) and not list(child.parameters())
        same_shape = bool(arguments) and getattr(arguments[0], "shape", 0) == getattr(output, "shape", 1)
        given.setdefault(id(output), (output, []))[1].append((name, activation and same_shape, runs[name]))

    with _hooks(module, keep):
        answer = run()
    made = []
    for tensor, makers in given.values():
        # `record` keeps the last run.
        names = {name: activation for name, activation, turn in makers if turn == runs[name]}
        if names:
            inner = next((name for name, activation in names.items() if activation), None)
            made.append(Made(tensor, tuple(names), f"{inner}:input" if inner else list(names)[-1]))
    return answer, made


def origins(module: nn.Module, run: Callable[[], Sequence[Tensor]]) -> tuple[str, ...]:
    """For each tensor that `run` answers with, where it is made; DistillError where no layer gives it as it is."""
    answer, made = made_by(module, run)
    taps = {id(one.tensor): one.tap for one in made}
    for tensor in cast(Sequence[Tensor], answer):
        if id(tensor) not in taps:
            raise DistillError(f"no layer of the {type(module).__name__} gives the map {tuple(tensor.shape)} as it is")
    return tuple(taps[id(tensor)] for tensor in cast(Sequence[Tensor], answer))


def last_norms(module: nn.Module, taps: Sequence[str], run: Callable[[], object]) -> tuple[str, ...]:
    """For each tap the name of the BatchNorm that ran last before it, "" where another layer did.

    Containers are no layers, and neither is what hands its input on, as dropout does outside training.
    """
    finished, found = [""], {}

    def keep(name: str, child: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
        is_layer = (
            is_norm(child) or not list(child.children()) or next(child.parameters(recurse=False), None) is not None
        )
        if is_layer and _changes(child, arguments, output):
            finished.append(name)

    def look(tap: str, _: Tensor) -> None:
        outer = tap.partition(":")[0].rpartition(".")[0]  # timm's norms hold the activation that follows them
        last = outer if is_norm(module.get_submodule(outer)) else finished[-1]
        found[tap] = last if is_norm(module.get_submodule(last)) else ""

    with _hooks(module, keep):
        handles = [hook_at(module, tap, look) for tap in taps]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
    return tuple(found[tap] for tap in taps)


@contextmanager
def _hooks(module: nn.Module, keep: Callable[[str, nn.Module, tuple[Any, ...], object], None]) -> Iterator[None]:
    """`keep(name, submodule, arguments, output)` after every run of every submodule."""
    handles = [
        child.register_forward_hook(lambda child, arguments, output, name=name: keep(name, child, arguments, output))
        for name, child in module.named_modules()
        if name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _changes(module: nn.Module, arguments: tuple[Any, ...], output: object) -> bool:
    """Whether a layer gives anything but its argument; in place it gives the same tensor with other numbers."""
    return not arguments or output is not arguments[0] or bool(getattr(module, "inplace", False))


_OF_ONE_IMAGE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)  # whose statistics are no margin


def is_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm of any kind: PyTorch's, a synchronised one, torchvision's frozen one, timm's."""
    return hasattr(module, "running_mean") and not isinstance(module, _OF_ONE_IMAGE)


_turns: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # a lock for every network that was asked


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside a with-block, and the earlier mode of every module after it.

    While one thread has changed the mode others wait, which would else find it changed back in the middle of a pass.
    A network that is in evaluation mode already answers to all of them at once.
    """
    turn = _turns.setdefault(model, RLock())
    with turn:
        modes = [(module, module.training) for module in model.modules()]
        if any(training for _, training in modes):
            model.eval()
            try:
                yield
            finally:
                for module, training in modes:
                    module.training = training
            return
    yield
