"""One step of training, as the trainer and the plain implementation take it, and where its time goes.

A step of ours is measured in parts by cutting it at the student's outputs: cross-entropy and distillation are computed,
forwards and backwards, on detached outputs that ask for a gradient, and what they get is then handed on to the student.
So every part is timed by itself, on the tensors of a step, and the parts make a whole one. The distillation loss is
timed twice: `distillation` holds resizes and connectors; `loss` is what the functions of `losses` alone take, forwards
and backwards, on the maps as they leave the connectors. The casts to float32 after a pass in bfloat16 count as the
network's.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.lab import plain
from distill.losses import cross_entropy
from distill.methods import build_method
from distill.networks.deeplab import parameter_groups
from distill.networks.teachers import ask, ask_teacher, freeze
from distill.terms import MapTerm, Output
from distill.training import parallel
from distill.training.presets import make_student
from distill.training.settings import Settings

PARTS = ("teacher", "student", "cross-entropy", "distillation", "optimizer")
Batch = tuple[Tensor, Tensor]


class Step:
    """A student with all that trains it, on one batch; calling it takes a step."""

    layout = torch.contiguous_format
    fused: bool | None = None  # PyTorch's own choice

    def __init__(
        self, backbone: str, method: str, preset: str, settings: Settings, seed: int, teacher: nn.Module, batch: Batch
    ) -> None:
        self.settings, self.device = settings, batch[0].device
        self.teacher = freeze(copy.deepcopy(teacher)).to(memory_format=self.layout)
        student = make_student(backbone, classes_of(teacher), preset, settings.output_stride, seed)
        self.student = student.to(self.device).to(memory_format=self.layout).train()
        with parallel.seeded(seed):
            self.method = build_method(method, self.teacher, self.student).train()
        self.images, self.labels = batch[0].contiguous(memory_format=self.layout), batch[1]
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        backbone, head = parameter_groups(self.student)
        groups = [{"params": backbone}, {"params": [*head, *self.method.parameters()]}]
        rate = 1e-9  # random weights stay what they are, and a step takes as long as at any other rate
        if self.settings.optimizer == "sgd":
            decay, nesterov = self.settings.weight_decay, self.settings.nesterov
            return torch.optim.SGD(groups, rate, 0.9, nesterov=nesterov, weight_decay=decay)
        return torch.optim.AdamW(groups, rate, fused=self.fused)

    def loss(self) -> Tensor:
        raise NotImplementedError

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.update()

    def update(self) -> None:
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip)
        self.optimizer.step()


class Plain(Step):
    """The implementation in `plain`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.teacher.train().requires_grad_(True)

    def loss(self) -> Tensor:
        teacher = self._ask(self.teacher) if self.method.needs_teacher else None
        return plain.loss(self.method, self._ask(self.student), teacher, self.labels)

    def _ask(self, network: nn.Module) -> tuple[Tensor, list[Tensor] | None]:
        return network(self.images, return_maps=True) if self.method.needs_maps else (network(self.images), None)


class Ours(Step):
    """What `training` does; with `answers` the teacher is not asked, because they were kept."""

    layout = torch.channels_last
    fused = True

    def __init__(self, *arguments: Any, compiled: bool = False) -> None:
        super().__init__(*arguments)
        self.asked: nn.Module = self.teacher
        self.answer: nn.Module = self.student
        self.answers: tuple[Any, ...] | None = None
        if compiled:
            torch.compiler.reset()  # PyTorch gives up on code that it has compiled for several networks
            self.asked, self.answer = parallel.compiled(self.teacher), parallel.compiled(self.student)

    def loss(self) -> Tensor:
        teacher = self.ask_teacher()
        return self.method(self.ask_student(), teacher, self.labels)[0]

    def ask_teacher(self) -> tuple[Any, ...] | None:
        if self.answers is not None or not self.method.needs_teacher:
            return self.answers
        return ask_teacher(self.asked, self.images, self.method.needs_maps, self.settings.precision)

    def ask_student(self) -> tuple[Any, ...]:
        return ask(self.answer, self.images, self.method.needs_maps, self.settings.precision)

    def dissect(self) -> dict[str, float]:
        """The seconds of every part of one step, and of the losses alone: see the top of this file."""
        watch = _Watch(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        watch.lap("optimizer")
        teacher = self.ask_teacher()
        watch.lap("teacher")
        logits, maps = self.ask_student()
        watch.lap("student")
        outputs = [logits, *(maps or ())]
        leaves = [output.detach().requires_grad_() for output in outputs]
        cross_entropy(leaves[0], self.labels).backward()
        watch.lap("cross-entropy")
        given = Output(leaves[0], leaves[1:]), Output(*teacher) if teacher else None, self.labels
        for term in self.method.terms.values():
            (term.current_weight() * term(*given)).backward()
            spent = watch.lap("distillation")
            watch.seconds["loss"] += 0.0 if isinstance(term, MapTerm) else spent
        received = [(output, leaf.grad) for output, leaf in zip(outputs, leaves, strict=True) if leaf.grad is not None]
        torch.autograd.backward([output for output, _ in received], [gradient for _, gradient in received])
        watch.lap("student")
        self.update()
        watch.lap("optimizer")
        for term in self.method.terms.values():
            watch.seconds["loss"] += self._alone(term, given) if isinstance(term, MapTerm) else 0.0
        return watch.seconds

    def _alone(self, term: MapTerm, given: tuple[Any, ...]) -> float:
        """Seconds of a term's losses on the maps that it compares, forwards and backwards."""
        compared: list[tuple[str, Tensor, Tensor, Tensor]] = []

        def look(position: str, own: Tensor, other: Tensor, labels: Tensor) -> Tensor:
            compared.append((position, own.detach().requires_grad_(), other, labels))
            return own.new_zeros(())

        vars(term)["compare"] = look  # hides the method of its class
        with torch.no_grad():
            term(*given)
        del vars(term)["compare"]
        return seconds(lambda: torch.autograd.backward([term.compare(*maps) for maps in compared]), self.device)


def classes_of(network: nn.Module) -> int:
    return cast(int, network.num_classes)


def saved_for_backward(step: Step) -> int:
    """Bytes of all tensors that autograd keeps between forward and backward, weights and buffers left out."""
    networks = (step.student, step.teacher, step.method)
    own = {tensor.data_ptr() for network in networks for tensor in network.state_dict().values()}
    kept: dict[int, torch.UntypedStorage] = {}  # held here, so that no two of them get one address

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        step.loss()
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


class _Watch:
    """Seconds by part, from lap to lap."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys((*PARTS, "loss"), 0.0)
        self.last = _now(device)

    def lap(self, part: str) -> float:
        now = _now(self.device)
        spent, self.last = now - self.last, now
        self.seconds[part] += spent
        return spent


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """How long it takes, until a GPU is done too."""
    start = _now(device)
    action()
    return _now(device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


@contextmanager
def in_threads(count: int) -> Iterator[None]:
    """PyTorch with so many threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
