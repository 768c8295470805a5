"""Several processes that `torchrun` starts train one network together, through torch.distributed.

Every process (a *rank*) computes its share of each batch. What they have to agree on goes through here: gradients
(DistributedDataParallel), the statistics of BatchNorm, dropout, sums of losses and of confusion matrices. Without
torchrun there is one rank, and nothing here does anything.
"""

import atexit
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import RLock
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import DistillError, first_line

Value = TypeVar("Value")

PATIENCE = timedelta(hours=2)  # for which ranks wait for the first one, as while it decodes all images (`first_alone`)


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; `local` counts on this machine alone."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, value: Value) -> Value:
        """The first rank's value, for all. It has to consist of plain values and tensors on the CPU."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first rank goes through the block before all others, which find there what it made."""
        if self.world > 1 and not self.first:
            dist.barrier()
        yield
        if self.world > 1 and self.first:
            dist.barrier()


ALONE = Ranks()


def this_rank() -> Ranks:
    """Read from the variables that torchrun sets."""
    return Ranks(*(int(os.environ.get(name, default)) for name, default in _VARIABLES.items()))


_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def join(device: torch.device) -> Ranks:
    """Meet the other ranks, where torchrun started several; they part when the process ends."""
    ranks = this_rank()
    if ranks.world > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        check_torchrun_is_there()
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        except dist.DistError:
            check_torchrun_is_there(seconds=5)  # it may have been killed meanwhile
            raise
        atexit.register(dist.destroy_process_group)
    return ranks


def check_torchrun_is_there(seconds: float = 0) -> None:
    """The port at which the ranks meet is torchrun's own; where that was killed, torch would try it for minutes.

    Linux closes the connections of a killed process before the port at which it listens, so that who is told of the
    former may find the latter open for a moment: for so many `seconds` it is tried again.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # somebody else's, or one that this rank will open
        return
    latest = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=5).close()
        except ConnectionRefusedError:
            raise DistillError("the torchrun that started this process has ended; start it again to continue") from None
        except OSError:  # a slow network: torch is more patient
            pass
        if time.monotonic() >= latest:
            return
        time.sleep(0.1)


@contextmanager
def explained_parting(ranks: Ranks) -> Iterator[None]:
    """A sentence for the ranks that are left when another one ended: what torch says then is a stack of sockets."""
    try:
        yield
    except RuntimeError as error:
        if ranks.world == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise DistillError(
            f"another process of this run ended ({first_line(error)[:80]}); its own message says why, and the same "
            f"torchrun command continues from the last checkpoint"
        ) from None


# ----------------------------------------------------------------------- layers that see the whole batch


class _Sum(torch.autograd.Function):
    """The sum over ranks; each rank's loss depends on it, so that gradients are summed on the way back too."""

    @staticmethod
    def forward(context: object, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm with the statistics of the batch as all ranks have it. PyTorch's own exists on GPUs only."""

    # What a BatchNorm may lack, and those that become one of these have.
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float() if x.dtype == torch.bfloat16 else x
        count = wide.numel() // wide.shape[1] * dist.get_world_size()  # every rank has equally many images
        mean = _Sum.apply(wide.sum((0, 2, 3))) / count
        centred = wide - mean.view(1, -1, 1, 1)  # before squaring: the difference of two large numbers is inexact
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = (self.weight * (variance + self.eps).rsqrt()).view(1, -1, 1, 1)
        return (centred * scale + self.bias.view(1, -1, 1, 1)).to(x.dtype)


class _ThenDropAndAct:
    """What timm's BatchNormAct2d does after its norm."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))  # type: ignore[misc]  # of the norm that comes after this class


class _SharedBatchNormAct(_ThenDropAndAct, SharedBatchNorm):
    pass


class _SyncBatchNormAct(_ThenDropAndAct, nn.SyncBatchNorm):
    pass


def _shared_norm(norm: nn.BatchNorm2d) -> type[Any]:
    """The class with which a BatchNorm does the same for the whole batch; DistillError where there is none."""
    kind, needed = type(norm), ("weight", "bias", "running_mean", "momentum")
    lacking = [name for name in needed if getattr(norm, name) is None]
    if lacking:
        raise _unshared(f"without {lacking[0]}")
    if kind.forward is nn.BatchNorm2d.forward:
        return nn.SyncBatchNorm if norm.weight.is_cuda else SharedBatchNorm
    if hasattr(norm, "drop") and hasattr(norm, "act"):
        return _SyncBatchNormAct if norm.weight.is_cuda else _SharedBatchNormAct
    raise _unshared(f"of the kind {kind.__name__}")


def _unshared(what: str) -> DistillError:
    return DistillError(
        f"the network has a BatchNorm {what}, whose statistics several processes cannot share; add "
        f"--no-sync-batchnorm (sync_batchnorm=False)"
    )


class SharedDropout(nn.Dropout):
    """Dropout that draws for the batch of all ranks and takes this rank's part, so that two ranks do not draw alike.

    With generators in the same state, N ranks draw exactly what a single process would for the whole batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        rank, world, images = dist.get_rank(), dist.get_world_size(), len(x)
        rows = x.is_contiguous(memory_format=torch.channels_last)  # the order in memory is the order of the draws
        layout = torch.channels_last if rows else torch.contiguous_format
        whole = torch.empty((world * images, *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=layout)
        kept = F.dropout(whole.fill_(1), self.p, training=True)
        return x * kept[rank * images : (rank + 1) * images]


@contextmanager
def shared_layers(ranks: Ranks, modules: list[nn.Module], norms: bool) -> Iterator[None]:
    """Inside the block dropout, and with `norms` BatchNorm, are those of the whole batch; after it, what they were.

    Raises DistillError for a BatchNorm that cannot be.
    """
    changed: list[tuple[nn.Module, type]] = []
    layers = dict.fromkeys(layer for network in modules for layer in network.modules()) if ranks.world > 1 else ()
    try:
        for module in layers:
            kind = type(module)
            if norms and isinstance(module, nn.BatchNorm2d):
                module.__class__ = _shared_norm(module)
                vars(module)["process_group"] = None  # all ranks; nn.SyncBatchNorm asks for it
            elif kind is nn.Dropout:
                module.__class__ = SharedDropout
            else:
                continue
            changed.append((module, kind))
        yield
    finally:
        for module, kind in changed:
            module.__class__ = kind


def gpu_computes() -> bool:
    """Whether PyTorch was built for the GPU that it finds: its builds leave older ones out, and say so only later."""
    if not torch.cuda.is_available() or torch.version.hip:
        return torch.cuda.is_available()
    kinds = [int(kind.split("_")[1].rstrip("af")) for kind in torch.cuda.get_arch_list()]  # 75 of sm_75
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor >= min(kinds, default=0)


def pick_device(device: str | int | torch.device) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one, and under torchrun the GPU of this process.

    A number means that GPU. Raises DistillError for a device that does not exist, and for one that cannot train.
    """
    if not isinstance(device, str | int | torch.device) or isinstance(device, bool):
        raise DistillError(f"device is {device!r}; choose auto, cpu or cuda, or give a GPU's number")
    device = f"cuda:{device}" if isinstance(device, int) else str(device)
    if device == "auto":
        device = "cuda" if gpu_computes() else "cpu"
    ranks = this_rank()
    if device == "cuda" and ranks.world > 1:
        device = f"cuda:{ranks.local}"
        if ranks.local >= torch.cuda.device_count() > 0:
            raise DistillError(
                f"torchrun started a process number {ranks.local} and this machine has {torch.cuda.device_count()} "
                f"GPUs; start as many with --nproc-per-node, or use --device cpu"
            )
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DistillError(
            f"the device {device} was asked for and PyTorch finds no GPU; use --device cpu, or install a CUDA build"
        )
    if device.startswith("mps") and not torch.backends.mps.is_available():
        raise DistillError(f"the device {device} was asked for and PyTorch finds no Apple GPU; use --device cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise DistillError(f"PyTorch does not know the device {device!r}; choose auto, cpu or cuda") from None
    if found.type not in ("cpu", "cuda", "mps"):
        raise DistillError(f"this package cannot train on the device {device}; choose auto, cpu or cuda")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise DistillError(
            f"the device {device} was asked for and PyTorch finds {torch.cuda.device_count()} GPUs, counted from 0; "
            f"choose one of these, or use --device cpu"
        )
    return found


def compiled(network: nn.Module) -> nn.Module:
    """The network through `torch.compile`, which makes a module of a module, though its types say a function."""
    return torch.compile(network)  # type: ignore[return-value]


_TURN = RLock()  # a callback of `fit` may train too


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Training as in a thread and modes of its own, whatever its caller works in: with gradients, without autocast.

    Raises DistillError while another thread trains. The random numbers of both would be drawn from one generator.
    """
    if not _TURN.acquire(blocking=False):
        raise DistillError("another thread of this process trains; train one after the other, or in another process")
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        _TURN.release()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of the CPU that begin with `seed`; the caller's, a GPU's too, stay where they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        yield
