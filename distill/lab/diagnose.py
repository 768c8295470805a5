"""Why is there no gain? The usual causes, in the order in which to check them, each with what to try.

teacher        it is no better than the baseline, or not where it matters
convergence    the baseline has not learnt what it can yet
overfitting    the baseline knows its training images by heart: its settings are worth more than a teacher
labels         the baseline fits its training labels as well as the teacher does: nothing is left to teach there
gradient       the method's gradient is lost beside that of cross-entropy, or drowns it
classes        two classes of the teacher are exchanged
normalisation  the teacher is better on images that are normalised in another way
confidence     the teacher is certain everywhere, so that its answers say little more than labels do
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from distill.data.folders import VOCFolder
from distill.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise
from distill.errors import DistillError
from distill.lab.comparison import is_studys_teacher, teacher_of_study, variant_of
from distill.lab.curves import POINT, late_rise
from distill.lab.tables import record
from distill.losses import IGNORE_INDEX
from distill.methods import build_method
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.teachers import ask, ask_teacher, fingerprint, load_teacher
from distill.networks.wrapped import Wrapped
from distill.training.batches import batches_for
from distill.training.checkpoint import read_checkpoint
from distill.training.checks import frozen_norms
from distill.training.evaluation import Scores, evaluate
from distill.training.optimizer import set_up
from distill.training.parallel import ALONE
from distill.training.runs import Run, find_runs
from distill.training.settings import Settings

BATCHES = 8  # that gradients are measured on
EPOCHS = 20  # in which they are looked for, where few images have labels
WEAK, STRONG = 0.05, 20.0  # gradients of a term, as multiples of cross-entropy's
CERTAIN = 0.99  # the mean probability of the teacher's first choice
EXCHANGED = 0.4  # IoU between one class and another
OVERFIT = 0.2  # mIoU on the images that it learned from, above that on val
FOREIGN = 0.2  # mIoU of a teacher on val, above that on the student's training images


class Finding(NamedTuple):
    """`fine` is False for a likely cause. `sentence` says what was found, and then also what to try."""

    check: str
    fine: bool
    sentence: str


def diagnose(
    folders: str | Path | Sequence[str | Path],
    teacher: str | Path | nn.Module | None = None,
    data_root: str | Path | None = None,
    most: int = 300,
    network: nn.Module | None = None,
) -> Iterator[Finding]:
    """Look at finished runs of one student, a baseline and some methods, and at the teacher of the methods.

    `teacher` is what `load_teacher` takes; without it, the teacher of the runs' study, or the sample's.
    Where the student is another library's, `network` is one that is built in the same way; it is left as it is.
    Networks are asked about `most` images of a split, evenly chosen. Raises DistillError where a baseline or a method
    is missing, for another teacher than that of the runs, and for runs that have not the same student and data. Of a
    study's variants it looks at that of the methods, with the baselines that belong to it; DistillError where there are
    methods of several, or only baselines of several others.
    """
    folders = [folders] if isinstance(folders, str | Path) else folders
    case = _Case(find_runs(*folders), teacher, data_root, most, network)
    yield case.teacher_is_better()
    yield case.baseline_has_converged()
    yield case.baseline_generalises()
    yield case.labels_leave_something()
    yield from case.gradients()
    yield case.classes_agree()
    yield case.normalisation_agrees()
    yield case.teacher_has_doubts()


class _Case:
    """Baselines, methods, teacher and data, and what each check finds."""

    def __init__(
        self,
        runs: Sequence[Run],
        teacher: str | Path | nn.Module | None,
        data_root: str | Path | None,
        most: int,
        network: nn.Module | None,
    ) -> None:
        self.network = network
        runs = _of_one_variant([run for run in runs if not is_studys_teacher(run)])
        by_method: dict[str, list[Run]] = {}
        for run in runs:
            by_method.setdefault(run.config["method"]["name"], []).append(run)
        self.baselines = by_method.pop("baseline", [])
        self.methods = {name: found[0] for name, found in by_method.items()}
        if not self.baselines or not self.methods:
            lacking = "baseline" if not self.baselines else "run of a method"
            raise DistillError(f"there is no {lacking} among these runs; a diagnosis needs a baseline and a method")
        asked = {(run.config["model"]["backbone"], run.config["data"], _with_labels(run.config)) for run in runs}
        if len(asked) > 1:
            which = " and ".join(
                sorted(f"{backbone} on {images} labelled images of {data}" for backbone, data, images in asked)
            )
            raise DistillError(f"these are runs of {which}; diagnose one student on the same images at a time")
        self.config = self.baselines[0].config
        if self.config["model"].get("wrapped") and network is None:
            raise DistillError(
                f"these runs trained a {self.config['model']['backbone']} of another library, which only you can "
                f"build; do that in Python, and give it to distill.lab.diagnose.diagnose as `network`"
            )
        self.train = self.baselines[0].images_of("train", data_root, self.config["images"])
        self.val = self.baselines[0].images_of("val", data_root)
        self.some = {"train": _evenly(self.train, most), "val": _evenly(self.val, most)}
        self.teacher = self._teacher(teacher)
        self.score = evaluate(self.teacher, self.some["val"])  # the teacher's, on val
        self.own = [evaluate(self.student(run), self.some["val"]) for run in self.baselines]
        self.own_miou = float(np.mean([score.miou for score in self.own]))
        self.learned_from = _evenly(self.train, most, _with_labels(self.config))
        self.own_train = evaluate(self.student(self.baselines[0]), self.learned_from)

    def student(self, run: Run) -> DeepLabV3Plus | Wrapped:
        return run.student(copy.deepcopy(self.network))

    def _teacher(self, given: str | Path | nn.Module | None) -> nn.Module:
        first = next(iter(self.methods.values()))
        source = given or teacher_of_study(first) or "sample"
        teacher = load_teacher(source)
        weights = fingerprint(teacher)
        other = [run for run in self.methods.values() if (run.config.get("teacher") or {}).get("weights") != weights]
        if other:
            raise DistillError(
                f"{source if isinstance(source, str | Path) else 'the network that was given'} is not the teacher of "
                f"{other[0].path}, whose weights were others; name that one with --teacher, and runs that it taught"
            )
        return teacher

    # ------------------------------------------------------------------------------------------- the checks

    def teacher_is_better(self) -> Finding:
        own, miou = self.own, self.own_miou
        teacher = self.score
        alone = {name: float(np.mean([score.per_class_iou[name] for score in own])) for name in teacher.per_class_iou}
        # NaN where a class is absent, and nobody found it: there is nothing to be better at.
        lead = {
            name: iou - alone[name] for name, iou in teacher.per_class_iou.items() if np.isfinite(iou - alone[name])
        }
        behind = sorted((name for name in lead if lead[name] < 0), key=lambda name: lead[name])
        ahead = sum(value > 0 for value in lead.values())
        found = (
            f"On val the teacher has {_points(teacher.miou)} mIoU and the baseline {_points(miou)}; the teacher is "
            f"better on {ahead} of {len(lead)} classes{_worst(behind, lead)}"
        )
        if teacher.miou - miou > POINT:
            return Finding("teacher", True, found)
        return Finding(
            "teacher", False, f"{found}. Train a better teacher: more images, a longer schedule, a larger one"
        )

    def baseline_has_converged(self) -> Finding:
        rises = [rise for run in self.baselines if (rise := late_rise(record(run))) is not None]
        if not rises:
            return Finding(
                "convergence", False, "The baseline was scored too rarely to tell. Train with a smaller evaluate_every"
            )
        rise = float(np.mean(rises))
        found = f"The baseline's mIoU on val rose by {_points(rise)} points over the last quarter of its epochs"
        if rise <= POINT:
            return Finding("convergence", True, found)
        return Finding("convergence", False, f"{found}, so it may not be done. Try twice the epochs for all rows")

    def baseline_generalises(self) -> Finding:
        found = (
            f"On {len(self.learned_from)} training images that have labels the baseline has "
            f"{_points(self.own_train.miou)} mIoU, on {len(self.some['val'])} of val "
            f"{_points(self.own[0].miou)} (its first seed)"
        )
        if self.own_train.miou - self.own[0].miou <= OVERFIT:
            return Finding("overfitting", True, found)
        return Finding(
            "overfitting",
            False,
            f"{found}: it overfits. First choose its weight decay on val, or augment more, and train all rows so",
        )

    def labels_leave_something(self) -> Finding:
        teacher = evaluate(self.teacher, self.learned_from)
        found = (
            f"On {len(self.learned_from)} training images that have labels the baseline has "
            f"{_points(self.own_train.miou)} mIoU, the teacher {_points(teacher.miou)}"
        )
        if teacher.miou < self.score.miou - FOREIGN:
            return Finding(
                "labels",
                False,
                f"{found}, and on val {_points(self.score.miou)}: train and val are not alike, or masks of "
                f"train are wrong. Look at some where teacher and mask differ",
            )
        if self.own_train.miou < teacher.miou - POINT:
            return Finding("labels", True, found)
        further = min(_without_labels(run.config) for run in self.methods.values())
        if further:
            return Finding("labels", True, f"{found}; the methods also learn from {further} images without labels")
        return Finding(
            "labels",
            False,
            f"{found}: on these the labels teach as much as the teacher can. Give it images without labels, or "
            f"stronger crops",
        )

    def gradients(self) -> Iterator[Finding]:
        for name, run in self.methods.items():
            for term, ratio in gradient_ratios(run, self.teacher, self.train, self.student(run)).items():
                found = f"In the finished run of {name}, {term} pulls {ratio:.3g} times as hard as cross-entropy"
                other = "larger" if ratio < WEAK else "smaller" if ratio > STRONG else ""
                advice = f". Unless its weight was chosen on val, try {other} ones: python -m distill tune"
                found += advice if other else f" (from {WEAK:g} to {STRONG:g} counts as fine)"
                yield Finding("gradient", not other, found)

    def classes_agree(self) -> Finding:
        pairs = exchanged_classes(self.score)
        if not pairs:
            return Finding("classes", True, "No two classes of the teacher look exchanged")
        told = ", ".join(f"{truth!r} {answer!r}" for truth, answer in pairs[:5])
        return Finding(
            "classes",
            False,
            f"The teacher calls {told}{f' and {len(pairs) - 5} more so' if len(pairs) > 5 else ''}. Bring its classes "
            f"into the order of the data's class_names",
        )

    def normalisation_agrees(self) -> Finding:
        usual = self.score.miou
        others = {name: evaluate(_Renormalised(self.teacher, change), self.some["val"]).miou for name, change in OTHERS}
        best = max(others, key=lambda name: others[name])
        found = f"With images that are {best} the teacher has {_points(others[best])} mIoU, with ours "
        if others[best] <= usual + POINT:
            return Finding("normalisation", True, found + _points(usual))
        return Finding("normalisation", False, f"{found}{_points(usual)}. Wrap it so that it gets such images")

    def teacher_has_doubts(self) -> Finding:
        sure = {split: confidence(self.teacher, data) for split, data in self.some.items()}
        found = (
            f"The teacher gives its first choice a probability of {sure['train']:.3f} on training images, on average, "
            f"and {sure['val']:.3f} on val"
        )
        if sure["train"] < CERTAIN:
            return Finding("confidence", True, found)
        return Finding(
            "confidence",
            False,
            f"{found}: what it says there is hardly more than a label. Ask it about images that it was not trained on, "
            f"raise the temperature, or distil its maps",
        )


def _of_one_variant(runs: Sequence[Run]) -> list[Run]:
    """The methods, and of baselines only those that belong to them where a study has several, as by decay."""
    variants = {run.path: variant_of(run) for run in runs}
    baselines = [run for run in runs if run.config["method"]["name"] == "baseline"]
    methods = [run for run in runs if run not in baselines]
    names = dict.fromkeys(variants[run.path].get("name", "") for run in methods)
    if len(names) > 1:
        raise DistillError(
            f"these are runs of {len(names)} variants of a study, {' and '.join(map(repr, names))}; diagnose one at a "
            f"time, by the names of its folders"
        )
    if not methods:
        return list(runs)
    own = variants[methods[0].path]
    wanted = (own.get("baseline"), own.get("name", ""))
    found = [[run for run in baselines if variants[run.path].get("name", "") == name] for name in wanted]
    there = dict.fromkeys(variants[run.path].get("name", "") for run in baselines)
    if not any(found) and len(there) > 1:
        raise DistillError(
            f"the baselines here are of {len(there)} variants of a study, {' and '.join(map(repr, there))}, and none "
            f"belongs to {own.get('name', '')!r}; name the folder of one of them beside that of the methods"
        )
    return [*(found[0] or found[1] or baselines), *methods]


def _evenly(dataset: VOCFolder, most: int, first: int | None = None) -> Subset[tuple[Tensor, Tensor]]:
    """At most so many images, evenly chosen from all, or from the first ones."""
    images = min(len(dataset), first or len(dataset))
    places = np.linspace(0, images - 1, min(most, images)).round().astype(int)
    return Subset(dataset, places.tolist())


def _with_labels(config: dict[str, Any]) -> int:
    return config["settings"].get("labelled") or config["images"]


def _without_labels(config: dict[str, Any]) -> int:
    return config["images"] - _with_labels(config) + config.get("unlabelled", 0)


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _worst(behind: Sequence[str], lead: dict[str, float]) -> str:
    return f", and worse by {_points(-lead[behind[0]])} points on {behind[0]}" if behind else ""


# ----------------------------------------------------------------------------------------- measurements


def gradient_ratios(
    run: Run, teacher: nn.Module, train: VOCFolder, student: DeepLabV3Plus | Wrapped | None = None
) -> dict[str, float]:
    """For each term of a finished run, the norm of its gradient with its weight, over that of cross-entropy's.

    Both with respect to the student's weights, in training mode on a few batches of training images with labels; the
    median. A weight that was to fall to 0 has its full size. `student`: the run's, where only the caller can build it.
    """
    settings = replace(Settings(**run.config["settings"]), cache="", workers=0, crop_on="host", accumulate=1)
    settings = replace(settings, batch_size=min(settings.batch_size, len(train)))  # the run may have had further images
    student, told = (student or run.student()).train(), run.config["method"]
    for name, weight in student.named_parameters():  # as in the run
        weight.requires_grad_(name not in run.config.get("frozen", ()))
    for norm in frozen_norms(student):
        norm.eval()
    terms = {
        name: {**options, **({"decay": 0} if "decay" in options else {})} for name, options in told["terms"].items()
    }
    method = build_method(told["name"], teacher, student, **terms).train()
    set_up(method, settings, train)
    found: dict[str, list[float]] = {name: [] for name in method.terms}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if (run.path / "last.pt").exists():  # what the connectors had learnt
            read_checkpoint(run.path / "last.pt", {"method": method}, torch.device("cpu"))
        epochs = batches_for(train, settings, 0, torch.device("cpu"), ALONE)
        batches = (batch for epoch in range(EPOCHS) for batch in epochs(epoch))
        labelled = (batch for batch in batches if (batch[1] != IGNORE_INDEX).any())
        for images, labels, _ in islice(labelled, BATCHES):
            ours = ask(student, images, method.needs_maps, "float32")
            theirs = ask_teacher(teacher, images, method.needs_maps)
            summands = method.summands(ours, theirs, labels)
            norms = {name: _gradient_norm(value, student) for name, value in summands.items()}
            for name in found:
                found[name].append(norms[name] / max(norms["ce"], 1e-12))
    return {name: float(np.median(ratios)) for name, ratios in found.items() if ratios}


def _gradient_norm(value: Tensor, student: nn.Module) -> float:
    weights = [weight for weight in student.parameters() if weight.requires_grad]  # a part may be frozen
    if not value.requires_grad:  # a term on maps of the frozen part
        return 0.0
    gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
    norms = [gradient.norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def exchanged_classes(scores: Scores) -> list[tuple[str, str]]:
    """(truth, answer) for every class that the network calls by another one's name.

    The overlap of a class with the answer of another name is then far larger than with that of its own.
    """
    counts = scores.confusion.astype(float)
    union = counts.sum(0)[None, :] + counts.sum(1)[:, None] - counts
    overlap = np.divide(counts, union, out=np.zeros_like(counts), where=union > 0)
    names, best = scores.class_names, overlap.argmax(1)
    return [
        (names[truth], names[answer])
        for truth, answer in enumerate(best)
        if overlap[truth, answer] > max(EXCHANGED, 3 * overlap[truth, truth])
    ]


class _Renormalised(nn.Module):
    """A network that gets its images, normalised as ours are, changed."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, images: Tensor) -> Any:
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        return self.network(self.change(images * std + mean))


def _usual(images: Tensor) -> Tensor:
    """Images from 0 to 1 as ours are."""
    return normalise(255 * images)


OTHERS: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("in the order blue, green, red", lambda images: _usual(images.flip(1))),
    ("from 0 to 1 and not normalised", lambda images: images),
    ("from 0 to 255", lambda images: 255 * images),
    ("from -1 to 1", lambda images: 2 * images - 1),
)


@torch.inference_mode()
def confidence(network: nn.Module, images: Subset[tuple[Tensor, Tensor]]) -> float:
    """The mean probability, over all pixels of all images, of the class that the network chooses."""
    means = []
    for place in range(len(images)):
        image, _ = images[place]
        logits = network(normalise(image[None]))
        means.append((float(logits.softmax(1).amax(1).mean()), logits[0, 0].numel()))
    return float(np.average([mean for mean, _ in means], weights=[count for _, count in means]))
