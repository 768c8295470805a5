"""One trainer for every row: the same data order, initial weights, schedule and regularisation at a seed."""

import copy
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from distill.datasets import VOCFolder, open_dataset
from distill.errors import DistillError, Interrupted, check_number, enough_memory, nearest
from distill.evaluation import check_classes, eval_mode, evaluate
from distill.files import make_folder, remove_parts, replace_file
from distill.methods import Method, build_method, method_terms
from distill.models import DeepLabV3Plus, build_model, parameter_groups, save_model
from distill.runs import Run, environment, run_folder, write_json, write_text
from distill.teachers import fingerprint, freeze, load_teacher
from distill.transforms import IGNORE_INDEX, normalise, published_crops

# images (N, 3, H, W) float, labels (N, H, W), the teacher's output where it is cached
Batch = tuple[Tensor, Tensor, tuple | None]
OnEpoch = Callable[[dict, DeepLabV3Plus], None]


@dataclass(frozen=True)
class Settings:
    """Everything about training that is not the data, the networks or the method.

    `lr` belongs to the backbone; the head and the connectors learn at `head_lr_factor` times that. `warmup` is the
    share of all steps over which the rate rises. During the first `connector_epochs` only connectors are trained.
    `clip` bounds the norm of the gradient (0: no bound). `augment`: `flip`, or `crops` (see
    `transforms.published_crops`). `output_stride`, `crop_size` in pixels. `precision`: `float32`, or `bfloat16` for the
    forward passes of both networks under `torch.autocast`; weights, losses, optimizer and scores stay in float32.

    The last four are for measuring what four faults of the published code are worth; see `RECIPES`.
    `distilled_dropout` False: students that have a teacher skip ASPP's dropout. `teacher_mode` `train`: the teacher
    uses the batch's statistics and dropout, and its running statistics drift. `divisions` `twice`: cross-entropy is
    divided by the batch once more, and KD's divergence by the classes and the batch. `padding` `background`: what
    `crops` add beyond an image is labelled 0 instead of void.
    """

    epochs: int = 24
    batch_size: int = 16
    crop_size: int = 64
    output_stride: int = 16
    optimizer: str = "adamw"
    lr: float = 3.2e-2
    head_lr_factor: float = 1.0
    weight_decay: float = 0.02
    nesterov: bool = False
    schedule: str = "cosine"
    warmup: float = 0.1
    connector_epochs: int = 0
    clip: float = 5.0
    augment: str = "flip"
    evaluate_every: int = 6
    workers: int = 0
    precision: str = "float32"
    distilled_dropout: bool = True
    teacher_mode: str = "eval"
    divisions: str = "once"
    padding: str = "void"


# Smallest and largest value of each number, the latter far beyond what makes sense: it is there for slips of the hand.
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 1_000_000),
    "batch_size": (2, 100_000),
    "crop_size": (8, 10_000),
    "lr": (1e-9, 1000.0),
    "head_lr_factor": (1e-9, 1e6),
    "weight_decay": (0.0, 100.0),
    "warmup": (0.0, 1.0),
    "connector_epochs": (0, 1_000_000),
    "clip": (0.0, 1e9),
    "evaluate_every": (1, 1_000_000),
    "workers": (0, 256),
}

# `matched`: every row has the same regularisation, and losses are what their formulas say. `published`: four faults
# of the published code put back, each also a setting by itself. Schedules are equal for all rows in both.
RECIPES: dict[str, dict] = {
    "matched": {},
    "published": {
        "distilled_dropout": False,
        "teacher_mode": "train",
        "divisions": "twice",
        "padding": "background",
    },
}

# A preset is nothing but default values.
PRESETS: dict[str, Settings] = {
    "sample": Settings(),
    "voc": Settings(
        epochs=100,
        batch_size=12,
        crop_size=513,
        optimizer="sgd",
        lr=0.0035,
        head_lr_factor=10.0,
        weight_decay=5e-4,
        nesterov=True,
        schedule="poly",
        warmup=0.0,
        connector_epochs=1,
        clip=0.0,
        augment="crops",
        evaluate_every=1,
        workers=4,
    ),
}

# The slim networks of the sample preset; the published networks are build_model's own defaults.
SLIM: dict[str, dict] = {
    "resnet101": {"width": 0.25, "atrous_rates": (2, 3, 4), "zero_init_residual": True},
    "resnet18": {"width": 0.25, "atrous_rates": (2, 3, 4), "zero_init_residual": True},
    "mobilenetv2": {"width": 0.35, "head_width": 0.125, "atrous_rates": (2, 3, 4)},
}

# By data set: weights for the sample's small maps, chosen on its val split by studies/weights.py. On other data the
# published weights hold.
TUNED: dict[str, dict[str, dict]] = {
    "sample": {"kd": {"weight": 10.0}, "at": {"weight": 5.0}, "ofd": {"weight": 3.2e-2}, "sakd": {"weight": 1.0}},
}


def make_student(
    backbone: str,
    num_classes: int,
    preset: str = "sample",
    output_stride: int = 16,
    seed: int = 0,
    weights: str | None = None,
) -> DeepLabV3Plus:
    """A network of a preset with the initial weights that belong to a seed: slim for `sample`, published for `voc`."""
    backbone = "mobilenetv2" if backbone == "mobilenet" else backbone
    shape = SLIM.get(backbone, {}) if preset == "sample" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(backbone, num_classes, output_stride, weights=weights, **shape)


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
    device: str = "auto",
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
    `sample` for everything else. `recipe` is one of `RECIPES`. Every field of `Settings` can be given as a keyword.

    A run that was interrupted is resumed from its last epoch, and ends with the weights it would have had; a finished
    one is returned as it is. Raises DistillError when `out` holds a run of another configuration, and when the teacher
    was trained for other classes than the data has.

    `on_epoch(line, student)` is called after every epoch that is trained, when its files are written, with the line of
    the history and the student in eval mode. It may look and draw random numbers without changing the run; what it
    raises ends `fit`, and the run can be resumed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DistillError(
            "a run uses one device, and torchrun started several processes; start it with python -m distill train, and "
            "give every GPU a run of its own with CUDA_VISIBLE_DEVICES"
        )
    check_number("seed", seed, 0, 2**32 - 1)
    seed = int(seed)
    preset = preset or ("voc" if str(data).startswith("pascal") else "sample")
    chosen, terms = _settings(preset, recipe, settings), method_terms(method)
    target = pick_device(device)
    train = open_dataset(data, "train", data_root, limit)
    if isinstance(student, str):
        student = make_student(student, train.num_classes, preset, chosen.output_stride, seed, weights)
    student = student.to(target, memory_format=torch.channels_last)
    _check_student(student, train)
    student.class_names = train.class_names  # saved with the weights, so that nobody mistakes them for others
    teacher = _as_teacher(teacher, target) if terms else None
    if teacher is not None:
        check_classes("teacher", teacher, train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1_000_003)  # connectors have a stream of their own: students start alike in every row
        method = build_method(method, teacher, student, **_options(terms, data, method_options))
    if target.type == "cpu":
        _check_width(student)
    config = _config(data, train, student, teacher, method, seed, preset, chosen)
    folder = Path(out) if out else run_folder("runs", Path(data).name, config["model"]["backbone"], method.name, seed)
    if _is_finished(folder, config, resume):
        return Run(folder)
    loop = _Loop(student, teacher, method, train, chosen, seed, target, folder, progress, on_epoch)
    val = open_dataset(data, "val", data_root)
    _check_labelled(train)
    _check_labelled(val)
    _make_folder(folder, config, train.root, target)  # only now, so that a mistake leaves no folder behind
    try:
        with enough_memory(f"lower --batch-size ({chosen.batch_size}) or --crop-size ({chosen.crop_size})"):
            loop.run(val)
    except KeyboardInterrupt:
        raise Interrupted(
            f"training was interrupted after {loop.saved} of {chosen.epochs} epochs; start it again in the same "
            f"way to go on from there (the run is in {folder})"
        ) from None
    write_json(folder / "scores.json", _final_scores(loop, data, data_root))
    return Run(folder)


def pick_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DistillError(
            f"the device {device} was asked for and PyTorch finds no GPU; use --device cpu, or install a CUDA build"
        )
    try:
        return torch.device(device)
    except RuntimeError:
        raise DistillError(f"PyTorch knows no device {device!r}; choose auto, cpu or cuda") from None


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
    ) -> None:
        self.student, self.teacher, self.method, self.on_epoch = student, teacher, method, on_epoch
        method.divide_twice = settings.divisions == "twice"
        if settings.teacher_mode == "train" and teacher is not None:
            self.teacher = copy.deepcopy(teacher).train()  # the caller's statistics must not drift
        self.settings, self.seed, self.device, self.folder, self.progress = settings, seed, device, folder, progress
        batches = FlippedBatches if settings.augment == "flip" else CroppedBatches
        self.batches = batches(train, settings, seed, device)
        self.steps = settings.epochs * len(self.batches)
        self.optimizer = _optimizer(student, method, settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: lr_factor(step, self.steps, settings)
        )
        self.history: list[dict] = []
        self.saved = 0  # epochs in the checkpoint
        self.ctrl_c = _CtrlC()
        self.best = {"epoch": 0, "val_miou": -1.0}

    def run(self, val: VOCFolder) -> None:
        with torch.random.fork_rng(devices=[]), self.ctrl_c:  # the caller's random numbers stay where they were
            torch.manual_seed(self.seed + 2_000_003)  # dropout's stream, the same in every row
            self._restore()
            changing = self.settings.teacher_mode == "train"  # its answers, from step to step
            if self.method.needs_teacher and not changing and len(self.history) < self.settings.epochs:
                self.batches.cache_teacher(self.teacher, self.method.needs_maps, self.progress)
            for epoch in range(len(self.history), self.settings.epochs):
                self._epoch(epoch, val)
                self._show()

    def _epoch(self, epoch: int, val: VOCFolder) -> None:
        start, sums = time.perf_counter(), {}
        self.student.train()
        if self.method.needs_teacher and not self.settings.distilled_dropout:
            self.student.aspp.dropout.eval()
        self.method.train()
        frozen = epoch < self.settings.connector_epochs and any(True for _ in self.method.parameters())
        label = f"epoch {epoch + 1}/{self.settings.epochs}"
        unchecked: list[dict[str, Tensor]] = []
        for step, batch in enumerate(
            tqdm(self.batches(epoch), total=len(self.batches), desc=label, leave=False, disable=not self.progress)
        ):
            unchecked.append(self._step(*batch, frozen))
            self.ctrl_c.check()
            for name, value in unchecked[-1].items():
                sums[name] = sums.get(name, 0.0) + value
            # To look at a number of a GPU is to wait for all that it has still to do.
            if self.device.type == "cpu" or len(unchecked) == 50 or step + 1 == len(self.batches):
                self._check_finite(unchecked, epoch, step)
                unchecked = []
        line = {"epoch": epoch + 1, "lr": self.schedule.get_last_lr()[0]}
        line |= {name: float(value) / len(self.batches) for name, value in sums.items()}
        line["seconds"] = round(time.perf_counter() - start, 3)
        last = epoch + 1 == self.settings.epochs
        if last or (epoch + 1) % self.settings.evaluate_every == 0:
            line["val_miou"] = evaluate(self.student, val).miou
            self._keep_best(line)
        self.history.append(line)
        if self.progress:
            tqdm.write("  ".join(f"{key} {value:.4g}" for key, value in line.items()))
        self._save()

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

    def _step(self, images: Tensor, labels: Tensor, teacher_output: tuple | None, frozen: bool) -> dict[str, Tensor]:
        if teacher_output is None and self.method.needs_teacher:
            teacher_output = ask_teacher(self.teacher, images, self.method.needs_maps, self.settings.precision)
        student_output = _ask(self.student, images, self.method.needs_maps, self.settings.precision)
        loss, parts = self.method(student_output, teacher_output, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if frozen:  # the first epochs of the published recipe: only the connectors move
            self.student.zero_grad(set_to_none=True)
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip)
        self.optimizer.step()
        self.schedule.step()
        return {"loss": loss.detach(), **parts}

    def _keep_best(self, line: dict) -> None:
        if line["val_miou"] > self.best["val_miou"]:
            self.best = {"epoch": line["epoch"], "val_miou": line["val_miou"]}
            save_model(self.student, self.folder / "best.safetensors")

    def _save(self) -> None:
        """Student and history first, the checkpoint last: what it says is never ahead of what is on disk."""
        save_model(self.student, self.folder / "student.safetensors")
        state = {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "history": self.history,
            "best": self.best,
        }
        if self.teacher is not None and self.teacher.training:
            state["teacher_statistics"] = dict(self.teacher.named_buffers())
        _write_history(self.folder, self.history)
        with replace_file(self.folder / "last.pt", lasting=True) as temporary:
            torch.save(state, temporary)
        self.saved = len(self.history)

    def _restore(self) -> None:
        path = self.folder / "last.pt"
        if not path.exists():
            return
        parts = {name: getattr(self, name) for name in ("student", "method", "optimizer", "schedule")}
        self.history, self.best = read_checkpoint(path, parts, self.device, self.teacher)
        self.saved = len(self.history)
        _write_history(self.folder, self.history)


def read_checkpoint(
    path: Path, parts: dict[str, object], device: torch.device, teacher: nn.Module | None = None
) -> tuple[list[dict], dict]:
    """Bring networks, optimizer, schedule and random numbers to where a checkpoint left them; its history and best.

    The unpickler knows tensors and plain values only. Raises DistillError for everything that is not such a file.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        if "teacher_statistics" in state:
            teacher.load_state_dict(state["teacher_statistics"], strict=False)
        torch.set_rng_state(state["random"].cpu())
        return list(state["history"]), dict(state["best"])
    except Exception as error:  # a damaged file, or a stranger's, can raise anything
        raise DistillError(
            f"{path} cannot be read ({type(error).__name__}), so the run cannot resume; delete {path.parent} to start "
            f"again"
        ) from None


# ------------------------------------------------------------------------------------------- batches


class FlippedBatches:
    """Whole images of one size, each mirrored or not by a coin: few enough views to hold, with the teacher's answers.

    `batches(epoch)` gives the epoch's batches in the order that belongs to the seed.
    """

    def __init__(self, dataset: VOCFolder, settings: Settings, seed: int, device: torch.device) -> None:
        self.batch_size, self.seed, self.device = _batch_size(settings, dataset), seed, device
        self.precision = settings.precision
        images, labels = zip(*_same_size(dataset, 2 * settings.crop_size), strict=True)
        self.images, self.labels, self.ids = torch.stack(images), torch.stack(labels), dataset.ids
        self.answers: list[Tensor | None] | None = None

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def __call__(self, epoch: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        order = torch.randperm(len(self.images), generator=generator)  # as `_names` draws it
        mirrored = torch.rand(len(self.images), generator=generator) < 0.5
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            index = order[start : start + self.batch_size]
            yield self._batch(index, mirrored[index])

    def _batch(self, index: Tensor, mirrored: Tensor) -> Batch:
        images = torch.where(mirrored[:, None, None, None], self.images[index].flip(-1), self.images[index])
        labels = torch.where(mirrored[:, None, None], self.labels[index].flip(-1), self.labels[index])
        answer = self._answer(index + len(self.images) * mirrored) if self.answers is not None else None
        return _to_device(images, self.device), labels.to(self.device).long(), answer

    def _answer(self, view: Tensor) -> tuple[Tensor, list[Tensor] | None]:
        logits, *maps = (tensor[view].to(self.device) for tensor in self.answers)
        return logits, maps or None

    def names(self, epoch: int, step: int) -> list[str]:
        """The images of a step."""
        return _names(self.ids, self.seed, epoch, step, self.batch_size)

    def cache_teacher(self, teacher: nn.Module, maps: bool, progress: bool) -> None:
        """Ask the teacher once about every view: it is frozen, so its answers never change.

        Costs 4 bytes a pixel and class for the logits, and for the sample's six maps about two thirds of that again.
        """
        answers: list[list[Tensor]] = []
        views = [(chunk, flipped) for flipped in (False, True) for chunk in torch.arange(len(self.images)).split(64)]
        for index, flipped in tqdm(views, desc="asking the teacher", leave=False, disable=not progress):
            images = self.images[index].flip(-1) if flipped else self.images[index]
            logits, features = ask_teacher(teacher, _to_device(images, self.device), maps, self.precision)
            answers.append([tensor.cpu() for tensor in (logits, *(features or ()))])
        self.answers = [
            torch.cat(parts).contiguous(memory_format=torch.channels_last) for parts in zip(*answers, strict=True)
        ]


def _same_size(dataset: VOCFolder, largest: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image and its labels, uint8; DistillError at the first that is of another size or above `largest`."""
    size = None
    for index in range(len(dataset)):
        image, labels = dataset[index]
        size = size or labels.shape
        if labels.shape != size or max(size) > largest:
            raise DistillError(
                f"{dataset.image_path(index)} is {labels.shape[1]} x {labels.shape[0]} pixels, and `flip` needs images "
                f"of one size, at most {largest} pixels a side; use --augment crops"
            )
        yield image.as_subclass(Tensor), labels.as_subclass(Tensor).to(torch.uint8)


class CroppedBatches:
    """Random crops of images of any size (`transforms.published_crops`), through a DataLoader."""

    def __init__(self, dataset: VOCFolder, settings: Settings, seed: int, device: torch.device) -> None:
        self.crops = _Crops(dataset, published_crops(settings.crop_size, settings.padding), seed)
        self.batch_size, self.seed, self.device = _batch_size(settings, dataset), seed, device
        self.workers = settings.workers

    def __len__(self) -> int:
        return len(self.crops) // self.batch_size

    def __call__(self, epoch: int) -> Iterator[Batch]:
        order = torch.randperm(len(self.crops), generator=torch.Generator().manual_seed(self.seed * 100_003 + epoch))
        order = [(epoch, index) for index in order[: len(self) * self.batch_size].tolist()]
        loader = DataLoader(self.crops, self.batch_size, sampler=order, num_workers=self.workers)
        try:
            for images, labels in loader:
                yield _to_device(images, self.device), labels.to(self.device).long(), None
        except DistillError as error:  # a worker's comes with its traceback in the message
            raise DistillError(str(error).strip().splitlines()[-1].split("DistillError: ", 1)[-1]) from None

    def names(self, epoch: int, step: int) -> list[str]:
        """The images of a step."""
        return _names(self.crops.dataset.ids, self.seed, epoch, step, self.batch_size)

    def cache_teacher(self, teacher: nn.Module, maps: bool, progress: bool) -> None:
        """Nothing: no two crops are alike, so the teacher is asked at every step."""


def _names(ids: list[str], seed: int, epoch: int, step: int, batch_size: int) -> list[str]:
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    return [ids[index] for index in order[step * batch_size : (step + 1) * batch_size].tolist()]


class _Crops(Dataset):
    """Crop `(epoch, index)`: drawn from a stream of its own, so that it does not depend on workers or on a resume."""

    def __init__(self, dataset: VOCFolder, transform: nn.Module, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        image, labels = self.dataset[index]
        self.dataset.check_proportions(index, labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, epoch, index)))
            image, labels = self.transform(image, labels)
        return image.as_subclass(Tensor), labels.as_subclass(Tensor).to(torch.uint8)


@torch.no_grad()
def ask_teacher(
    teacher: nn.Module, images: Tensor, maps: bool, precision: str = "float32"
) -> tuple[Tensor, list[Tensor] | None]:
    """The teacher's logits, and its six maps where they are needed, without gradients."""
    return _ask(teacher, images, maps, precision)


def _ask(network: nn.Module, images: Tensor, maps: bool, precision: str) -> tuple[Tensor, list[Tensor] | None]:
    """Logits, and the six maps where they are needed; in float32 after a pass in bfloat16 too."""
    mixed = precision == "bfloat16"
    with torch.autocast(images.device.type, torch.bfloat16) if mixed else nullcontext():
        logits, features = network(images, return_maps=True) if maps else (network(images), None)
    if not mixed:
        return logits, features
    return logits.float(), None if features is None else [feature.float() for feature in features]


def _to_device(images: Tensor, device: torch.device) -> Tensor:
    return normalise(images.to(device)).contiguous(memory_format=torch.channels_last)


def _batch_size(settings: Settings, dataset: VOCFolder) -> int:
    if len(dataset) < settings.batch_size:
        raise DistillError(
            f"{dataset.root} lists {len(dataset)} training images, fewer than the batch of {settings.batch_size}; "
            f"lower --batch-size"
        )
    return settings.batch_size


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
        return torch.optim.SGD(groups, momentum=0.9, nesterov=settings.nesterov, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


# ------------------------------------------------------------------------------- settings and folders


def _settings(preset: str, recipe: str, given: dict) -> Settings:
    for kind, name, known in (("preset", preset, PRESETS), ("recipe", recipe, RECIPES)):
        if name not in known:
            raise DistillError(f"there is no {kind} {name!r}{nearest(str(name), known)}")
    known = [field.name for field in fields(Settings)]
    for name in given:
        if name not in known:
            raise DistillError(f"there is no setting {name!r}{nearest(name, known)}")
    given = {name: value for name, value in given.items() if value is not None}
    chosen = replace(PRESETS[preset], **(RECIPES[recipe] | given))
    choices = {
        "optimizer": ("adamw", "sgd"),
        "schedule": ("cosine", "poly"),
        "augment": ("flip", "crops"),
        "precision": ("float32", "bfloat16"),
        "teacher_mode": ("eval", "train"),
        "divisions": ("once", "twice"),
        "padding": ("void", "background"),
    }
    for name, allowed in choices.items():
        if getattr(chosen, name) not in allowed:
            raise DistillError(f"{name} is {getattr(chosen, name)!r}; choose {' or '.join(allowed)}")
    for name, (least, most) in RANGES.items():
        kind = type(getattr(Settings, name))
        check_number(name, getattr(chosen, name), least, most, whole=kind is int)
        chosen = replace(chosen, **{name: kind(getattr(chosen, name))})  # NumPy's numbers are no JSON
    return chosen


def _options(terms: list[str], data: str | Path, given: dict | None) -> dict:
    """The given options of a method, or else those that were tuned for the data, by the term's name."""
    if given is not None:
        return given
    tuned = TUNED.get(str(data), {})
    return {term: tuned[term] for term in terms if term in tuned}


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
    }


def _is_finished(folder: Path, config: dict, resume: bool) -> bool:
    """Whether the folder holds this run, finished; DistillError if it holds another, or one not to be resumed."""
    if not (folder / "config.json").exists():
        return False
    there, config = Run(folder).config, _as_json(config)
    # A setting that did not exist yet when the run was made had, in effect, its default.
    later = {name: getattr(Settings, name) for name in ("precision", *RECIPES["published"])}
    there["settings"] = {**later, **there["settings"]}
    different = sorted(key for key in config.keys() | there.keys() if config.get(key) != there.get(key))
    if different:
        raise DistillError(
            f"{folder} holds a run whose {', '.join(different)} differ from what is asked for; choose another --out"
        )
    if not (folder / "scores.json").exists() and not resume:
        raise DistillError(f"{folder} holds an unfinished run; resume it, or choose another --out")
    return (folder / "scores.json").exists()


def _make_folder(folder: Path, config: dict, data_root: Path, device: torch.device) -> None:
    make_folder(folder)
    remove_parts(folder)
    if not (folder / "config.json").exists():
        write_json(folder / "environment.json", {**environment(device), "data_root": str(data_root.resolve())})
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
        scores[split] = evaluate(loop.student, dataset).to_json()
    return scores
