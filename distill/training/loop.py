"""One trainer for all rows of a table: the same data order, initial weights, schedule and regularisation per seed."""

import copy
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from distill.data.folders import VOCFolder, open_dataset, scored_splits
from distill.errors import DistillError, Diverged, Interrupted, check_number, enough_memory
from distill.files import write_json
from distill.losses import IGNORE_INDEX
from distill.methods import Method, build_method, check_apart, method_terms
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.saving import load_into, save_model
from distill.networks.taps import eval_mode
from distill.networks.teachers import ask, ask_teacher, freeze, load_teacher
from distill.networks.wrapped import Wrapped, memory_format_of
from distill.training.allocator import keep_freed_memory
from distill.training.batches import Batch, batches_for
from distill.training.board import Board
from distill.training.checkpoint import PARTS, read_checkpoint, write_checkpoint
from distill.training.checks import (
    check_every_image,
    check_labelled,
    check_student,
    check_width,
    frozen_norms,
    with_unlabelled,
)
from distill.training.evaluation import check_classes, evaluate
from distill.training.interrupt import CtrlC, ctrl_c_after
from distill.training.optimizer import make_optimizer, make_schedule, set_up
from distill.training.parallel import (
    Ranks,
    compiled,
    explained_parting,
    join,
    one_at_a_time,
    pick_device,
    seeded,
    shared_layers,
)
from distill.training.presets import choose_options, choose_settings, defaults_for, make_student
from distill.training.runs import Run, begun, config_of, is_finished, keep_place, run_folder, write_history
from distill.training.settings import Settings, for_device
from distill.training.tally import Clocks, Tally

OnEpoch = Callable[[dict[str, Any], DeepLabV3Plus | Wrapped], None]


@one_at_a_time()
def fit(
    student: str | DeepLabV3Plus | Wrapped,
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
    unlabelled: str | Path | None = None,
    weights: str | None = None,
    width: float = 1.0,
    device: str | int | torch.device = "auto",
    resume: bool = True,
    progress: bool = True,
    method_options: dict[str, Any] | None = None,
    on_epoch: OnEpoch | None = None,
    **settings: Any,
) -> Run:
    """Train `student` with `method` under `teacher` on the train split of `data`; score it on val and test.

    `student` is a backbone's name (built with `seed`; `weights="DEFAULT"` takes torchvision's ImageNet weights for the
    backbone; `width` is a factor on its channels) or a network, which is trained in place: one of this package, or any
    other through `wrap`. `teacher` is what `load_teacher` takes; a network is frozen in place: eval mode, float32, no
    gradients. `out` is the run's folder, by default runs/DATA/BACKBONE/METHOD/seedK. `preset` is by default `voc` for
    Pascal VOC, and `sample` for everything else; `augment` is `crops` for all data but the sample. `data_root` is where
    the data are, as in `open_dataset`. `recipe` is one of `RECIPES`.
    `limit` keeps the first images; `unlabelled` is a folder of further images without masks, for the teacher alone.
    Every field of `Settings` can be given as a keyword. `method_options`, as `build_method` takes them, override those
    that were tuned for the data.

    Frozen weights (`requires_grad` False) stay as they are, and so do the statistics of their BatchNorms. A network
    that is given is in eval mode afterwards. What it draws from other random numbers than PyTorch's is not repeatable.

    An interrupted run resumes from its last checkpoint and ends with the weights that it would have had; a finished
    run is returned as it is. Raises DistillError when `out` holds a run of another configuration, when the teacher was
    trained for other classes than the data has, and while another thread trains, which draws from the same random
    numbers.

    On a CPU the process keeps, from then on, the memory that a step frees (see `allocator`).

    Started by torchrun, all processes train one network: each computes its share of every batch and of every scoring,
    and the first writes the files, on a disk that all of them see. The results are those of one process except for
    rounding (see `parallel`; not with `dist` and `cirkd`, see `Settings`).

    `on_epoch(line, student)` is called after every trained epoch, when its files are written, with the line of the
    history and the student in eval mode. It may draw random numbers without changing the run; an exception
    that it raises ends `fit`, and the run can be resumed.
    """
    check_number("seed", seed, 0, 2**32 - 1)
    seed = int(seed)
    preset = preset or defaults_for(data).preset
    chosen, terms = choose_settings(preset, recipe, settings, data), method_terms(method)
    target = pick_device(device)
    chosen, ranks = for_device(chosen, target), join(target)
    with ranks.first_alone():  # the sample is made on first use
        train = open_dataset(data, "train", data_root, limit)
    if chosen.labelled and chosen.labelled > len(train):
        raise DistillError(
            f"labelled is {chosen.labelled}, and train has {len(train)} images; give fewer, or 0 for all"
        )
    own, say = set(train.ids), tqdm.write if progress and ranks.first else lambda text: None
    if unlabelled is not None:
        train = with_unlabelled(train, unlabelled, terms)
        others = f"; {train.known} are of train, val or test, or have their names" if train.known else ""
        say(f"{len(train.extra)} further images without masks, of {train.folder}{others}")
    given = None if isinstance(student, str) else student  # the caller's, to be trained in place
    if given is not None and "output_stride" in settings:
        raise DistillError("output_stride belongs to a student given by name; build this network with it")
    student = _as_student(student, train, preset, chosen, seed, weights, width).to(target)
    if terms and isinstance(teacher, nn.Module):
        check_apart(teacher, student)  # this and the next before the teacher is frozen
        check_classes("teacher", teacher, train)
    teacher = _as_teacher(teacher, target) if terms else None
    if teacher is not None:
        check_classes("teacher", teacher, train)
    with seeded(seed + 1_000_003):  # connectors have a stream of their own: students start alike in every row
        built = build_method(method, teacher, student, **choose_options(terms, data, method_options))
    if chosen.connector_epochs >= chosen.epochs and any(True for _ in built.parameters()):
        say("connector_epochs are all epochs: the connectors learn, and the student itself does not")
    if target.type == "cpu":
        check_width(student)
        keep_freed_memory()
    scored = dict(scored_splits(data, data_root))
    val = scored["val"]
    if both := own & set(val.ids):
        say(f"{len(both)} images of val are in the list of train too: its score is of images that are learned")
    config = config_of(data, train, val, student, teacher, built, seed, preset, chosen, ranks)
    config |= {"initial_weights": str(weights or "random")} if given is None else {}
    folder = Path(out) if out else run_folder("runs", config["data"], config["model"]["backbone"], built.name, seed)
    if ranks.agree(ranks.first and is_finished(folder, config, resume)):
        say(f"{folder} holds this very run, finished: nothing is trained")
        if ranks.first:
            with suppress(DistillError):  # a folder that is not to be written to is still a run
                keep_place(folder, train.root)
        return _done(folder, given)
    loop = _Loop(student, teacher, built, train, chosen, seed, target, folder, progress, on_epoch, ranks)
    check_labelled(train, chosen.labelled)
    # `flip` reads all images at once, before the first step.
    if ranks.first and chosen.augment == "crops" and not (folder / "last.pt").exists():
        check_every_image(train, progress)
    for split in scored.values():
        check_labelled(split, whole=True)
    try:
        with (
            begun(folder, config, resume, train.root, target, ranks) as finished,
            explained_parting(ranks),
            enough_memory(f"lower --batch-size ({chosen.batch_size}) or --crop-size ({chosen.crop_size})"),
        ):
            if ranks.agree(finished):  # by another process, while this one waited
                return _done(folder, given)
            loop.run(val)
            scores = _final_scores(loop, scored)
            with ranks.first_alone():
                if ranks.first:
                    write_json(folder / "scores.json", scores)
    except KeyboardInterrupt:
        again = "call fit again with a student of the same first weights" if given else "start it again in the same way"
        raise Interrupted(
            f"training was interrupted after {loop.saved} of {chosen.epochs} epochs; {again} to go on from there (the "
            f"run is in {folder})"
        ) from None
    if given is not None:
        given.eval()
    return Run(folder)


def _as_student(
    student: str | DeepLabV3Plus | Wrapped,
    train: VOCFolder,
    preset: str,
    chosen: Settings,
    seed: int,
    weights: str | None,
    width: float,
) -> DeepLabV3Plus | Wrapped:
    """The student itself, or one built by its name; checked, in float32, with the names of the classes."""
    if isinstance(student, str):
        student = make_student(student, train.num_classes, preset, chosen.output_stride, seed, weights, width)
    elif width != 1.0 or weights is not None:
        raise DistillError(
            "width and weights belong to a student given by name; build this network with them, or give a name"
        )
    check_student(student, train, chosen)
    student.class_names = train.class_names  # saved with the weights, so that nobody mistakes them for others
    return student.float().to(memory_format=memory_format_of(student))


def _done(folder: Path, student: DeepLabV3Plus | Wrapped | None) -> Run:
    """A run that was finished before; a student that the caller holds gets the weights that it would have."""
    run = Run(folder)
    if student is not None:
        if isinstance(student, Wrapped):
            load_into(student, folder / "student.safetensors")
        else:
            student.load_state_dict(run.student().state_dict())
        student.eval()
    return run


class _Step(nn.Module):
    """The student and what its answers are compared with, as one network, which is what DDP takes care of."""

    def __init__(self, student: nn.Module, method: Method, precision: str, compile: bool) -> None:
        super().__init__()
        self.student, self.method, self.precision = student, method, precision
        self.answer = compiled(student) if compile else student

    def forward(
        self, images: Tensor, labels: Tensor, teacher_output: tuple[Any, ...] | None, count: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        try:
            student_output = ask(self.answer, images, self.method.needs_maps, self.precision)
        except ValueError as error:  # a package's network has a sentence of its own
            if "more than 1 value per channel" not in str(error):
                raise
            raise DistillError(
                f"a BatchNorm of the student got a single value per channel from {len(images)} image(s); raise the "
                f"batch size, lower accumulate, or freeze that layer"
            ) from None
        return self.method(student_output, teacher_output, labels, count)


class _Loop:
    """The state of one training run, and the steps that change it."""

    def __init__(
        self,
        student: DeepLabV3Plus | Wrapped,
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
        set_up(method, settings, train)
        method.to(device).pieces = settings.accumulate
        if settings.teacher_mode == "train" and teacher is not None:
            self.teacher = copy.deepcopy(teacher).train()  # the caller's statistics must not drift
        self.settings, self.seed, self.device, self.folder, self.ranks = settings, seed, device, folder, ranks
        self.progress = progress and ranks.first
        self.still = frozen_norms(student)  # BatchNorms that the caller froze
        self.batches = batches_for(train, settings, seed, device, ranks)
        self.optimizer = make_optimizer(student, method, settings)
        self.schedule = make_schedule(self.optimizer, settings.epochs * len(self.batches), settings)
        self.history: list[dict[str, Any]] = []
        self.saved = 0  # epochs in the checkpoint
        self.ctrl_c = CtrlC()
        self.best = {"epoch": 0, "val_miou": -1.0}
        # Only then are the processor's seconds of this process what the run would take on an idle machine.
        single = torch.get_num_threads() == 1 and settings.workers == 0
        self._alone = device.type == "cpu" and single and ranks.world == 1
        self.partial: dict[str, Any] = {}  # of the epoch that a checkpoint was in: its `step`, `sums` and clocks
        self.asked = compiled(self.teacher) if settings.compile and self.teacher is not None else self.teacher

    def run(self, val: VOCFolder) -> None:
        devices = [self.device] if self.device.type == "cuda" else []
        networks: list[nn.Module] = [self.student, self.method]
        networks += [self.teacher] if self.teacher is not None and self.teacher.training else []
        with (
            torch.random.fork_rng(devices),  # the caller's random numbers stay where they were
            shared_layers(self.ranks, networks, self.settings.sync_batchnorm),
            self.ctrl_c,
            Board(self.folder, self.settings.tensorboard and self.ranks.first) as self.board,
        ):
            torch.manual_seed(self.seed + 2_000_003)  # dropout's stream, the same in every row and every process
            self._restore()
            changing = self.settings.teacher_mode == "train"  # its answers, from step to step
            if self.asked is not None and not changing and len(self.history) < self.settings.epochs:
                clocks = Clocks(self.partial)  # to ask the teacher is part of what distillation costs
                self.batches.cache_teacher(self.asked, self.method.needs_maps, self.progress)
                self.partial |= clocks.read()
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
            # Statistics that are synchronised are alike everywhere; all others are those of the first process. Another
            # library's network may have weights that its logits do not depend on, as those of an auxiliary head.
            return DistributedDataParallel(
                step,
                broadcast_buffers=not self.settings.sync_batchnorm,
                find_unused_parameters=isinstance(self.student, Wrapped),
            )

    def _epoch(self, epoch: int, val: VOCFolder) -> None:
        """Every batch once; then the line of the history, the score where it is due, and the checkpoint."""
        self._set_modes()
        tally = self._train(epoch)
        line = {"epoch": epoch + 1, "lr": self.schedule.get_last_lr()[0], **tally.means(len(self.batches))}
        line |= tally.clocks.read()
        if not self._alone:
            del line["cpu_seconds"]
        self._check_weights(epoch)
        if epoch + 1 == self.settings.epochs or (epoch + 1) % self.settings.evaluate_every == 0:
            line["val_miou"] = evaluate(self.student, val, ranks=self.ranks, workers=self.settings.workers).miou
            self._keep_best(line)
        self.history.append(line)
        self.board.add(line)
        if self.progress:
            tqdm.write("  ".join(f"{key} {value:.4g}" for key, value in line.items()))
        self._save()

    def _set_modes(self) -> None:
        self.student.train()
        for norm in self.still:
            norm.eval()
        if self.method.needs_teacher and not self.settings.distilled_dropout:
            self.student.get_submodule("aspp.dropout").eval()
        self.method.train()

    def _train(self, epoch: int) -> Tally:
        """The steps of an epoch, from where a checkpoint within it was."""
        tally, self.partial = Tally(self.partial), {}
        frozen = epoch < self.settings.connector_epochs and any(True for _ in self.method.parameters())
        pieces, parts = self.batches(epoch, tally.first), range(self.settings.accumulate)
        for step in self._bar(epoch, tally.first):
            tally.add(self._step([next(pieces) for _ in parts], frozen))
            self.ctrl_c.check()
            self._look(tally, epoch, step)
        return tally

    def _bar(self, epoch: int, first: int) -> Iterable[int]:
        """The numbers of an epoch's steps, with a bar where progress is wanted."""
        label, count = f"epoch {epoch + 1}/{self.settings.epochs}", len(self.batches)
        return tqdm(range(first, count), label, count, initial=first, leave=False, disable=not self.progress)

    def _look(self, tally: Tally, epoch: int, step: int) -> None:
        """Look at the losses, and save a checkpoint within a long epoch.

        Rarely on a GPU: to look at a number of it is to wait for all that it has still to do.
        """
        done = step + 1 == len(self.batches)
        overdue = tally.unsaved_seconds() > 60 * self.settings.checkpoint_minutes
        often = self.device.type == "cpu" or len(tally.unseen) == 50
        if not (often or done or (overdue and self.ranks.world == 1)):
            return
        steps = self._over_ranks(tally.unseen)
        self._check_finite(steps, epoch, step)
        tally.take(steps)
        if overdue and not done:
            self.partial = tally.partial(step + 1)
            self._save_checkpoint()
            self.partial = {}

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
        raise Diverged(
            f"training stopped at step {step + 1} of epoch {epoch + 1}: {', '.join(reversed(wrong))}, on the images "
            f"{', '.join(names[:16])}{f' and {len(names) - 16} more' if len(names) > 16 else ''}; "
            f"{self._kept(epoch)}; lower the learning rate or the method's weight, for a run in another folder, or "
            f"look at these images"
        )

    def _check_weights(self, epoch: int) -> None:
        """DistillError where the last step of an epoch, whose loss was a number, spoilt the weights."""
        spoilt = [name for name, weight in self.student.named_parameters() if not weight.isfinite().all()]
        if spoilt:
            raise Diverged(
                f"training stopped at the end of epoch {epoch + 1}: {spoilt[0]} holds values that are not finite "
                f"numbers; {self._kept(epoch)}; lower the learning rate, for a run in another folder"
            )

    def _kept(self, epoch: int) -> str:
        """What there is of a run that stopped in the epoch after `epoch`."""
        if not (self.folder / "last.pt").exists():
            return f"nothing was saved yet in {self.folder}"
        when = f"of epoch {epoch}" if self.saved == epoch and epoch else "before it"
        return f"the checkpoint {when} is kept in {self.folder}"

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
        count = self._labelled_pixels(pieces)
        totals: dict[str, Tensor] = {}
        for number, (images, labels, teacher_output) in enumerate(pieces, 1):
            if teacher_output is None and self.asked is not None:
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
        labelled = torch.stack([(labels != IGNORE_INDEX).sum() for _, labels, _ in pieces]).sum()
        return self.ranks.sum(labelled).clamp(min=1) / number

    def _without_exchange(self, wait: bool) -> AbstractContextManager[None]:
        """Gradients of all pieces but the last are kept, and exchanged with the last's."""
        return self.step.no_sync() if wait and isinstance(self.step, DistributedDataParallel) else nullcontext()

    def _keep_best(self, line: dict[str, Any]) -> None:
        if line["val_miou"] > self.best["val_miou"]:
            self.best = {"epoch": line["epoch"], "val_miou": line["val_miou"]}
            if self.ranks.first:
                save_model(self.student, self.folder / "best.safetensors")

    def _save(self) -> None:
        """Student and history first, the checkpoint last: what it says is never ahead of what is on disk."""
        with ctrl_c_after():  # or a run could end between its checkpoint and the count of what was saved
            if self.ranks.first:
                save_model(self.student, self.folder / "student.safetensors")
                write_history(self.folder, self.history)
            self._save_checkpoint()
            self.saved = len(self.history)

    def _save_checkpoint(self) -> None:
        if not self.ranks.first:
            return
        parts = {name: getattr(self, name) for name in PARTS}
        told = {"history": self.history, "best": self.best, "partial": self.partial}
        write_checkpoint(self.folder / "last.pt", parts, told, self.device, self.teacher)

    def _restore(self) -> None:
        """Go on from the checkpoint, which the first process hands to all others: its disk need not be theirs."""
        path = self.folder / "last.pt"
        content = self.ranks.agree(path.read_bytes() if self.ranks.first and path.exists() else None)
        if content is None:
            return
        parts = {name: getattr(self, name) for name in PARTS}
        self.history, self.best, self.partial = read_checkpoint(path, parts, self.device, self.teacher, content)
        self.saved = len(self.history)
        if self.ranks.first:
            write_history(self.folder, self.history)


def _as_teacher(teacher: str | Path | nn.Module | None, device: torch.device) -> nn.Module | None:
    if teacher is None:
        return None
    if isinstance(teacher, nn.Module) and not isinstance(teacher, DeepLabV3Plus | Wrapped):
        return freeze(teacher).float().to(device)
    return load_teacher(teacher, device)  # to the bit the same for a network and for its file


def _final_scores(loop: _Loop, scored: dict[str, VOCFolder]) -> dict[str, Any]:
    scores = {"protocol": "native", "epoch": loop.settings.epochs, "best": loop.best}
    for split, dataset in scored.items():
        scores[split] = evaluate(loop.student, dataset, ranks=loop.ranks, workers=loop.settings.workers).to_json()
    return scores
