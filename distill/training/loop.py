"""One trainer for every row: the same data order, initial weights, schedule and regularisation at a seed."""

import copy
import io
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from distill.data.folders import VOCFolder, open_dataset
from distill.errors import DistillError, Interrupted, check_number, enough_memory
from distill.files import held, make_folder, remove_parts, replace_file, write_json, write_text
from distill.losses import IGNORE_INDEX
from distill.methods import Method, build_method, check_apart, method_terms
from distill.networks.deeplab import DeepLabV3Plus, parameter_groups
from distill.networks.saving import save_model
from distill.networks.taps import eval_mode
from distill.networks.teachers import ask, ask_teacher, fingerprint, freeze, load_teacher
from distill.training.batches import Batch, batches_for
from distill.training.evaluation import check_classes, evaluate
from distill.training.parallel import Ranks, explained_parting, join, pick_device, shared_layers
from distill.training.presets import choose_options, choose_settings, defaults_for, make_student
from distill.training.runs import Run, environment, run_folder
from distill.training.settings import NEUTRAL, Settings, for_device, with_every_setting

OnEpoch = Callable[[dict, DeepLabV3Plus], None]


def fit(
    student: str | DeepLabV3Plus,
    method: str = "sakd",
    teacher: str | Path | nn.Module | None = "sample",
    data: str | Path = "sample",
    *,
    seed: int = 0,
    out: str | Path | None = None,
    preset: str | None = None,
    recipe: str = "matched",
    data_root: str | Path | None = None,
    limit: int | None = None,
    weights: str | None = None,
    device: str | int | torch.device = "auto",
    resume: bool = True,
    progress: bool = True,
    method_options: dict | None = None,
    on_epoch: OnEpoch | None = None,
    **settings,
) -> Run:
    """Train `student` with `method` under `teacher` on the train split of `data`; score it on val and test.

    `student` is a backbone's name (built with `seed`; `weights="DEFAULT"` takes torchvision's ImageNet weights for the
    backbone) or a network, which is trained in place. `teacher` is a network, or what `load_teacher` takes. `out` is
    the run's folder, by default runs/DATA/BACKBONE/METHOD/seedK. `preset` is by default `voc` for Pascal VOC, and
    `sample` for everything else; `augment` is `crops` for all data but the sample. `recipe` is one of `RECIPES`.
    Every field of `Settings` can be given as a keyword. `method_options`, as `build_method` takes them, lie over those
    that were tuned for the data.

    A run that was interrupted is resumed from its last checkpoint, and ends with the weights it would have had; a
    finished one is returned as it is. Raises DistillError when `out` holds a run of another configuration, and when
    the teacher was trained for other classes than the data has.

    Started by torchrun, all processes train the one network: each computes its share of every batch and of every
    scoring, and the first writes the files, on a disk that all of them see. The results are those of one process, save
    for rounding (see `parallel`).

    `on_epoch(line, student)` is called after every epoch that is trained, when its files are written, with the line of
    the history and the student in eval mode. It may look and draw random numbers without changing the run; what it
    raises ends `fit`, and the run can be resumed.
    """
    check_number("seed", seed, 0, 2**32 - 1)
    seed = int(seed)
    preset = preset or defaults_for(data).preset
    chosen, terms = choose_settings(preset, recipe, settings, data), method_terms(method)
    target = pick_device(device)
    chosen, ranks = for_device(chosen, target), join(target)
    with ranks.first_alone():  # the sample is made on first use
        train = open_dataset(data, "train", data_root, limit)
    if isinstance(student, str):
        student = make_student(student, train.num_classes, preset, chosen.output_stride, seed, weights)
    student = student.to(target, memory_format=torch.channels_last)
    _check_student(student, train)
    student.class_names = train.class_names  # saved with the weights, so that nobody mistakes them for others
    if terms and isinstance(teacher, nn.Module):
        check_apart(teacher, student)  # before the teacher is frozen
    teacher = _as_teacher(teacher, target) if terms else None
    if teacher is not None:
        check_classes("teacher", teacher, train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1_000_003)  # connectors have a stream of their own: students start alike in every row
        method = build_method(method, teacher, student, **choose_options(terms, data, method_options))
    if target.type == "cpu":
        _check_width(student)
    config = _config(data, train, student, teacher, method, seed, preset, chosen, ranks)
    folder = Path(out) if out else run_folder("runs", Path(data).name, config["model"]["backbone"], method.name, seed)
    if ranks.agree(ranks.first and _is_finished(folder, config, resume)):
        return Run(folder)
    loop = _Loop(student, teacher, method, train, chosen, seed, target, folder, progress, on_epoch, ranks)
    val = open_dataset(data, "val", data_root)
    _check_labelled(train)
    _check_labelled(val)
    if ranks.first:  # only now, so that a mistake leaves no folder behind
        _make_folder(folder, config, train.root, target, ranks)
    try:
        with (
            held(folder / "config.json") if ranks.first else nullcontext(),
            explained_parting(ranks),
            enough_memory(f"lower --batch-size ({chosen.batch_size}) or --crop-size ({chosen.crop_size})"),
        ):
            if ranks.first:
                remove_parts(folder)
            loop.run(val)
            scores = _final_scores(loop, data, data_root)
    except KeyboardInterrupt:
        raise Interrupted(
            f"training was interrupted after {loop.saved} of {chosen.epochs} epochs; start it again in the same "
            f"way to go on from there (the run is in {folder})"
        ) from None
    with ranks.first_alone():
        if ranks.first:
            write_json(folder / "scores.json", scores)
    return Run(folder)


class _CtrlC:
    """Remembers Ctrl-C inside a with-block, for `check` to raise it again.

    Python drops a KeyboardInterrupt that comes at certain moments, such as the start of a DataLoader's workers, and a
    run would go on as if nobody had pressed anything. Those workers, which a terminal tells too, end with the run, and
    not in tracebacks of their own.
    """

    def __enter__(self) -> "_CtrlC":
        self.heard, self.process = False, os.getpid()
        self.before = signal.getsignal(signal.SIGINT)
        self.listens = callable(self.before) and threading.current_thread() is threading.main_thread()
        if self.listens:
            signal.signal(signal.SIGINT, self._hear)
        self.report, sys.unraisablehook = sys.unraisablehook, self._report
        return self

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self.process:
            self.heard = True
            self.before(number, frame)

    def _report(self, dropped: "sys.UnraisableHookArgs") -> None:
        """In place of Python's report of an exception that it drops: nothing where that is Ctrl-C."""
        if dropped.exc_type is None or not issubclass(dropped.exc_type, KeyboardInterrupt):
            self.report(dropped)

    def check(self) -> None:
        if self.heard:
            raise KeyboardInterrupt

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self.listens:
            signal.signal(signal.SIGINT, self.before)
        sys.unraisablehook = self.report
        if self.heard and kind is not None and issubclass(kind, Exception):  # such as workers that heard it and ended
            raise KeyboardInterrupt from None


class _Step(nn.Module):
    """The student and what its answers are compared with, as one network, which is what DDP takes care of."""

    def __init__(self, student: nn.Module, method: Method, precision: str, compiled: bool) -> None:
        super().__init__()
        self.student, self.method, self.precision = student, method, precision
        self.answer = torch.compile(student) if compiled else student

    def forward(
        self, images: Tensor, labels: Tensor, teacher_output: tuple | None, count: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        student_output = ask(self.answer, images, self.method.needs_maps, self.precision)
        return self.method(student_output, teacher_output, labels, count)


class _Loop:
    """The state of one training run, and the steps that change it."""

    def __init__(
        self,
        student: DeepLabV3Plus,
        teacher: nn.Module | None,
        method: Method,
        train: VOCFolder,
        settings: Settings,
        seed: int,
        device: torch.device,
        folder: Path,
        progress: bool,
        on_epoch: OnEpoch | None,
        ranks: Ranks,
    ) -> None:
        self.student, self.teacher, self.method, self.on_epoch = student, teacher, method, on_epoch
        method.divide_twice, method.pieces = settings.divisions == "twice", settings.accumulate
        if settings.teacher_mode == "train" and teacher is not None:
            self.teacher = copy.deepcopy(teacher).train()  # the caller's statistics must not drift
        self.settings, self.seed, self.device, self.folder, self.ranks = settings, seed, device, folder, ranks
        self.progress = progress and ranks.first
        self.batches = batches_for(train, settings, seed, device, ranks)
        self.steps = settings.epochs * len(self.batches)
        self.optimizer = _optimizer(student, method, settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: lr_factor(step, self.steps, settings)
        )
        self.history: list[dict] = []
        self.saved = 0  # epochs in the checkpoint
        self.ctrl_c = _CtrlC()
        self.best = {"epoch": 0, "val_miou": -1.0}
        self.partial: dict = {}  # of the epoch that a checkpoint was in: its `step`, `sums` and `seconds`
        self.asked = torch.compile(self.teacher) if settings.compile and teacher is not None else self.teacher

    def run(self, val: VOCFolder) -> None:
        devices = [self.device] if self.device.type == "cuda" else []
        networks = [self.student, self.method]
        networks += [self.teacher] if self.teacher is not None and self.teacher.training else []
        with (
            torch.random.fork_rng(devices),  # the caller's random numbers stay where they were
            shared_layers(self.ranks, networks, self.settings.sync_batchnorm),
            self.ctrl_c,
            _Board(self.folder, self.settings.tensorboard and self.ranks.first) as self.board,
        ):
            torch.manual_seed(self.seed + 2_000_003)  # dropout's stream, the same in every row and every process
            self._restore()
            changing = self.settings.teacher_mode == "train"  # its answers, from step to step
            if self.method.needs_teacher and not changing and len(self.history) < self.settings.epochs:
                self.batches.cache_teacher(self.asked, self.method.needs_maps, self.progress)
            self.step = self._as_step()
            for epoch in range(len(self.history), self.settings.epochs):
                self._epoch(epoch, val)
                self._show()

    def _as_step(self) -> nn.Module:
        step = _Step(self.student, self.method, self.settings.precision, self.settings.compile)
        if self.ranks.world == 1:
            return step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the option has another name since PyTorch 2.14
            # Statistics that are synchronised are alike everywhere; all others are those of the first process.
            return DistributedDataParallel(step, broadcast_buffers=not self.settings.sync_batchnorm)

    def _epoch(self, epoch: int, val: VOCFolder) -> None:
        start, first = time.perf_counter() - self.partial.get("seconds", 0.0), self.partial.get("step", 0)
        sums: dict[str, Tensor] = self.partial.get("sums", {})
        self.partial, last_saved = {}, time.perf_counter()
        self.student.train()
        if self.method.needs_teacher and not self.settings.distilled_dropout:
            self.student.aspp.dropout.eval()
        self.method.train()
        frozen = epoch < self.settings.connector_epochs and any(True for _ in self.method.parameters())
        label = f"epoch {epoch + 1}/{self.settings.epochs}"
        unchecked: list[dict[str, Tensor]] = []
        pieces, parts = self.batches(epoch, first), range(self.settings.accumulate)
        for step in tqdm(
            range(first, len(self.batches)),
            initial=first,
            total=len(self.batches),
            desc=label,
            leave=False,
            disable=not self.progress,
        ):
            unchecked.append(self._step([next(pieces) for _ in parts], frozen))
            self.ctrl_c.check()
            # To look at a number of a GPU is to wait for all that it has still to do.
            done = step + 1 == len(self.batches)
            overdue = time.perf_counter() - last_saved > 60 * self.settings.checkpoint_minutes
            if self.device.type == "cpu" or len(unchecked) == 50 or done or (overdue and self.ranks.world == 1):
                unchecked = self._over_ranks(unchecked)
                self._check_finite(unchecked, epoch, step)
                for losses in unchecked:
                    sums = {name: sums.get(name, 0.0) + value for name, value in losses.items()}
                unchecked = []
                if overdue and not done:
                    self.partial = {"step": step + 1, "sums": sums, "seconds": time.perf_counter() - start}
                    self._save_checkpoint()
                    self.partial, last_saved = {}, time.perf_counter()
        line = {"epoch": epoch + 1, "lr": self.schedule.get_last_lr()[0]}
        line |= {name: float(value) / len(self.batches) for name, value in sums.items()}
        line["seconds"] = round(time.perf_counter() - start, 3)
        last = epoch + 1 == self.settings.epochs
        if last or (epoch + 1) % self.settings.evaluate_every == 0:
            line["val_miou"] = evaluate(self.student, val, ranks=self.ranks).miou
            self._keep_best(line)
        self.history.append(line)
        self.board.add(line)
        if self.progress:
            tqdm.write("  ".join(f"{key} {value:.4g}" for key, value in line.items()))
        self._save()

    def _over_ranks(self, steps: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The losses of some steps as the whole batch has them: the mean over processes, whose shares are equal."""
        if self.ranks.world == 1:
            return steps
        names = list(steps[0])
        table = self.ranks.sum(torch.stack([torch.stack([step[name] for name in names]) for step in steps]))
        return [dict(zip(names, row, strict=True)) for row in table / self.ranks.world]

    def _check_finite(self, steps: list[dict[str, Tensor]], epoch: int, last: int) -> None:
        """DistillError at the first of some steps, of which `last` is the last, whose loss is no number.

        What the network has learnt is spoilt from there on, so this comes before it is saved.
        """
        finite = torch.stack([parts["loss"] for parts in steps]).isfinite().tolist()
        if all(finite):
            return
        step = last - len(steps) + 1 + finite.index(False)
        parts = steps[finite.index(False)].items()
        wrong = [f"{name} is {value.item()}" for name, value in parts if not value.isfinite()]
        names = self.batches.names(epoch, step)
        kept = f"the checkpoint of epoch {epoch} is kept in" if epoch else "nothing was saved yet in"
        raise DistillError(
            f"training stopped at step {step + 1} of epoch {epoch + 1}: {', '.join(reversed(wrong))}, on the images "
            f"{', '.join(names[:16])}{f' and {len(names) - 16} more' if len(names) > 16 else ''}; {kept} "
            f"{self.folder}; lower --lr or the method's --weight (with another --out), or look at these images"
        )

    def _show(self) -> None:
        """Let the caller look at the epoch that was just saved."""
        if self.on_epoch is None:
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), eval_mode(self.student):
            self.on_epoch(dict(self.history[-1]), self.student)

    def _step(self, pieces: list[Batch], frozen: bool) -> dict[str, Tensor]:
        """One step of the optimizer on this process's pieces of a batch; the means of their losses."""
        self.optimizer.zero_grad(set_to_none=True)
        count, totals = self._labelled_pixels(pieces), {}
        for number, (images, labels, teacher_output) in enumerate(pieces, 1):
            if teacher_output is None and self.method.needs_teacher:
                teacher_output = ask_teacher(self.asked, images, self.method.needs_maps, self.settings.precision)
            with self._without_exchange(number < len(pieces)):
                loss, parts = self.step(images, labels, teacher_output, count)
                (loss / len(pieces)).backward()
            for name, value in {"loss": loss.detach(), **parts}.items():
                totals[name] = totals.get(name, 0.0) + value / len(pieces)
        if frozen:  # the first epochs of the published recipe: only the connectors move
            self.student.zero_grad(set_to_none=True)
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip)
        self.optimizer.step()
        self.schedule.step()
        return totals

    def _labelled_pixels(self, pieces: list[Batch]) -> Tensor | None:
        """What each piece's cross-entropy is divided by, so that its mean over pieces is that over the batch's pixels.

        None where there is one piece, which knows by itself.
        """
        number = len(pieces) * self.ranks.world
        if number == 1:
            return None
        labelled = sum((labels != IGNORE_INDEX).sum() for _, labels, _ in pieces)
        return self.ranks.sum(labelled).clamp(min=1) / number

    def _without_exchange(self, wait: bool) -> AbstractContextManager:
        """Gradients of all pieces but the last are kept, and exchanged with the last's."""
        return self.step.no_sync() if wait and self.ranks.world > 1 else nullcontext()

    def _keep_best(self, line: dict) -> None:
        if line["val_miou"] > self.best["val_miou"]:
            self.best = {"epoch": line["epoch"], "val_miou": line["val_miou"]}
            if self.ranks.first:
                save_model(self.student, self.folder / "best.safetensors")

    def _save(self) -> None:
        """Student and history first, the checkpoint last: what it says is never ahead of what is on disk."""
        if self.ranks.first:
            save_model(self.student, self.folder / "student.safetensors")
            _write_history(self.folder, self.history)
        self._save_checkpoint()
        self.saved = len(self.history)

    def _save_checkpoint(self) -> None:
        if not self.ranks.first:
            return
        state = {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "history": self.history,
            "best": self.best,
            "partial": self.partial,
        }
        if self.device.type == "cuda":
            state["random_on_device"] = torch.cuda.get_rng_state(self.device)
        if self.teacher is not None and self.teacher.training:
            state["teacher_statistics"] = dict(self.teacher.named_buffers())
        with replace_file(self.folder / "last.pt", lasting=True) as temporary:
            torch.save(state, temporary)

    def _restore(self) -> None:
        """Go on from the checkpoint, which the first process hands to all others: its disk need not be theirs."""
        path = self.folder / "last.pt"
        content = self.ranks.agree(path.read_bytes() if self.ranks.first and path.exists() else None)
        if content is None:
            return
        parts = {name: getattr(self, name) for name in ("student", "method", "optimizer", "schedule")}
        self.history, self.best, self.partial = read_checkpoint(path, parts, self.device, self.teacher, content)
        self.saved = len(self.history)
        if self.ranks.first:
            _write_history(self.folder, self.history)


class _Board:
    """Losses and scores as TensorBoard reads them, in the run's folder; nothing where they are not asked for."""

    def __init__(self, folder: Path, wanted: bool) -> None:
        self.writer = _tensorboard(folder / "tensorboard") if wanted else None

    def __enter__(self) -> "_Board":
        return self

    def add(self, line: dict) -> None:
        """A line of the history."""
        if self.writer is not None:
            for name, value in line.items():
                self.writer.add_scalar(name, value, line["epoch"])
            self.writer.flush()

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()


def _tensorboard(folder: Path) -> "SummaryWriter":  # noqa: F821 - it may not be installed
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise DistillError(
            "TensorBoard is not installed; run: pip install 'distill[tensorboard]', or leave out --tensorboard"
        ) from None
    return SummaryWriter(folder)


def read_checkpoint(
    path: Path,
    parts: dict[str, object],
    device: torch.device,
    teacher: nn.Module | None = None,
    content: bytes | None = None,
) -> tuple[list[dict], dict, dict]:
    """Bring networks, optimizer, schedule and random numbers to where a checkpoint left them.

    Gives its history, the best epoch, and where it was in an epoch. `content` is that of the file, if it is known.

    The unpickler knows tensors and plain values only. Raises DistillError for everything that is not such a file.
    """
    try:
        source = path if content is None else io.BytesIO(content)
        state = torch.load(source, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        if "teacher_statistics" in state:
            teacher.load_state_dict(state["teacher_statistics"], strict=False)
        torch.set_rng_state(state["random"].cpu())
        if "random_on_device" in state and device.type == "cuda":
            torch.cuda.set_rng_state(state["random_on_device"].cpu(), device)
        return list(state["history"]), dict(state["best"]), dict(state.get("partial", {}))
    except Exception as error:  # a damaged file, or a stranger's, can raise anything
        raise DistillError(
            f"{path} cannot be read ({type(error).__name__}), so the run cannot resume; delete {path.parent} to start "
            f"again"
        ) from None


# ------------------------------------------------------------------------------- schedule and optimizer


def lr_factor(step: int, steps: int, settings: Settings) -> float:
    """Share of the learning rate at a step: a linear warm-up, then a cosine, or the published (1 - step/steps)^0.9."""
    warmup = settings.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    if settings.schedule == "poly":
        return (1 - progress) ** 0.9
    return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())


def _optimizer(student: DeepLabV3Plus, method: Method, settings: Settings) -> torch.optim.Optimizer:
    backbone, head = parameter_groups(student)
    head_lr = settings.lr * settings.head_lr_factor
    groups = [{"params": backbone, "lr": settings.lr}, {"params": [*head, *method.parameters()], "lr": head_lr}]
    if settings.optimizer == "sgd":
        # Not fused: that one fails once some weights have a momentum and others, frozen until now, have none.
        return torch.optim.SGD(groups, momentum=0.9, nesterov=settings.nesterov, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)


# ------------------------------------------------------------------------------- settings and folders


def _as_teacher(teacher: str | Path | nn.Module | None, device: torch.device) -> nn.Module | None:
    if teacher is None:
        return None
    return freeze(teacher).to(device) if isinstance(teacher, nn.Module) else load_teacher(teacher, device)


def _check_student(student: DeepLabV3Plus, train: VOCFolder) -> None:
    """A student may come from other data, so only the number of its classes has to fit."""
    if student.num_classes != train.num_classes:
        raise DistillError(
            f"the student has {student.num_classes} classes and {train.root} names {train.num_classes}; build it with "
            f"num_classes={train.num_classes}"
        )


def _check_labelled(dataset: VOCFolder) -> None:
    """DistillError where all pixels are void; in nearly all data the first image already has others."""
    if not any((dataset[index][1] != IGNORE_INDEX).any() for index in range(len(dataset))):
        raise DistillError(
            f"there is no labelled pixel in the split {dataset.split} of {dataset.root}, only void (255); label some"
        )


def _check_width(student: nn.Module) -> None:
    """oneDNN, behind PyTorch's CPU convolutions, damages memory in this case (its issue 6035)."""
    for name, layer in student.named_modules():
        strided = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1)
        if strided and layer.in_channels < 16:
            raise DistillError(
                f"the student's {name} has {layer.in_channels} input channels, and on the CPU PyTorch cannot train a "
                f"strided 1x1 convolution of fewer than 16 safely; build the student with a larger width"
            )


def _config(
    data: str | Path,
    train: VOCFolder,
    student: DeepLabV3Plus,
    teacher: nn.Module | None,
    method: Method,
    seed: int,
    preset: str,
    settings: Settings,
    ranks: Ranks,
) -> dict:
    return {
        "data": Path(data).name,
        "images": len(train),
        "class_names": list(train.class_names),
        "model": student.config,
        "parameters": sum(p.numel() for p in student.parameters()),
        "method": method.describe(),
        "seed": seed,
        "preset": preset,
        "teacher": {"weights": fingerprint(teacher), **getattr(teacher, "config", {})} if teacher is not None else None,
        "start": fingerprint(student),
        "settings": asdict(settings),
        # Without common statistics of BatchNorm the number of processes shapes the result.
        "processes": 1 if settings.sync_batchnorm else ranks.world,
    }


def _is_finished(folder: Path, config: dict, resume: bool) -> bool:
    """Whether the folder holds this run, finished; DistillError if it holds another, or one not to be resumed."""
    if not (folder / "config.json").exists():
        return False
    there, config = ({"processes": 1, **found} for found in (Run(folder).config, _as_json(config)))
    for found in (there, config):
        every = with_every_setting(found["settings"])
        found["settings"] = {name: value for name, value in every.items() if name not in NEUTRAL}
    different = sorted(key for key in config.keys() | there.keys() if config.get(key) != there.get(key))
    if different:
        raise DistillError(
            f"{folder} holds a run whose {', '.join(different)} differ from what is asked for; choose another --out"
        )
    if not (folder / "scores.json").exists() and not resume:
        raise DistillError(f"{folder} holds an unfinished run; resume it, or choose another --out")
    return (folder / "scores.json").exists()


def _make_folder(folder: Path, config: dict, data_root: Path, device: torch.device, ranks: Ranks) -> None:
    make_folder(folder)
    if not (folder / "config.json").exists():
        write_json(
            folder / "environment.json",
            {**environment(device), "processes": ranks.world, "data_root": str(data_root.resolve())},
        )
        write_json(folder / "config.json", config)


def _as_json(value: dict) -> dict:
    return json.loads(json.dumps(value))


def _write_history(folder: Path, history: list[dict]) -> None:
    write_text(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in history))


def _final_scores(loop: _Loop, data: str | Path, data_root: str | Path | None) -> dict:
    scores = {"protocol": "native", "epoch": loop.settings.epochs, "best": loop.best}
    for split in ("val", "test"):
        try:
            dataset = open_dataset(data, split, data_root)
        except DistillError:
            if split == "val":
                raise
            continue  # most folders have no test split
        if split == "test" and not dataset.mask_path(0).exists():
            continue  # VOC's test images come without masks
        scores[split] = evaluate(loop.student, dataset, ranks=loop.ranks).to_json()
    return scores
