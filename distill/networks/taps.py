"""Look into any network while it runs: record what its layers give or receive, by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distill.errors import DistillError


@contextmanager
def record(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record what named submodules of any network produce (or receive) while the `with` block runs.

    A name is a submodule's dotted path, for its output, or that path with `:input`, for its first argument:

        with record(network, ["layer4", "layer4.1.relu:input"]) as taps:
            logits = network(images)
        taps["layer4"]

    Where a submodule runs several times, its last run counts. Tensors keep their graph, so a loss on them
    trains the network. The hooks are gone when the block ends, whatever happened in it.

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


def hook_at(module: nn.Module, name: str, keep: Callable[[str, Tensor], object]) -> RemovableHandle:
    """Call `keep(name, tensor)` whenever the submodule that `name` means, as in `record`, runs."""
    path, _, side = name.partition(":")
    target = submodule(module, path)
    if side == "input":
        return target.register_forward_pre_hook(lambda _, arguments: keep(name, arguments[0]))
    if side:
        raise DistillError(f"'{name}' should end in ':input', or in no ':' at all to record the output.")
    return target.register_forward_hook(lambda _, arguments, output: keep(name, output))


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path; DistillError, with the nearest name, if there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        close = get_close_matches(path, [known for known, _ in module.named_modules()], n=1, cutoff=0.4)
        near = f" (did you mean '{close[0]}'?)" if close else ""
        raise DistillError(f"The network has no submodule '{path}'{near}; see named_modules().") from None


class eval_mode:
    """Evaluation mode inside a with-block, and the earlier mode of every module after it."""

    def __init__(self, model: nn.Module) -> None:
        self.modes = [(module, module.training) for module in model.modules()]
        self.model = model

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *error: object) -> None:
        for module, training in self.modes:
            module.training = training
