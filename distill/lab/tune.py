"""Choose the weight of each method with equal care: equally many candidates, on images held out from train.

Successive halving (Jamieson and Talwalkar 2016): all candidates train for a share of the epochs, the better half for
twice as many, and so on until two are left, which train to the end. Every run has a whole schedule of its own length. A
candidate that diverges is out.

    OUT/asked.json    what was asked for; another question needs another folder
    OUT/data          train without every fifth image, and those as val: links to the data's own files
    OUT/METHOD/WEIGHT/EPOCHS    runs, which are not trained twice    OUT/tune.json    all scores, and the choice
"""

import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from distill.data.folders import MASK_FOLDERS, VOCFolder, open_dataset, read_split, split_names
from distill.data.layout import BY_TEACHER, IMAGES, LISTS, write_class_names, write_list
from distill.errors import DistillError, Diverged, check_number
from distill.files import checked, make_folder, read_json, write_json, write_text
from distill.lab.pool import Job, progress_bar, run_all, slots
from distill.methods import METHODS, check_known_elsewhere, code_of, method_terms, with_every_option
from distill.networks.teachers import fingerprint, load_teacher
from distill.training.loop import fit
from distill.training.parallel import pick_device
from distill.training.presets import choose_options, choose_settings, defaults_for
from distill.training.runs import Run, epochs_trained, name_of
from distill.training.settings import NEUTRAL

# Settings that only Python can give.
_NO_FLAGS = ["optimizer", "head_lr_factor", "schedule", "warmup", "connector_epochs", "clip"]
_NO_FLAGS += ["distilled_dropout", "teacher_mode", "divisions", "padding"]


class _Tuned(TypedDict):
    best: dict[str, float]
    runs: list[dict[str, Any]]


def tune(
    methods: Sequence[str],
    student: str = "resnet18",
    teacher: str | Path = "sample",
    data: str | Path = "sample",
    data_root: str | Path | None = None,
    *,
    budget: int = 4,
    spread: float = 1.0,
    seed: int = 100,
    out: str | Path = "tune",
    preset: str | None = None,
    device: str = "auto",
    jobs: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Try `budget` weights of each method, `spread` powers of ten apart around its default; returns the record.

    `methods` are single terms, such as kd; `settings` are fields of `Settings`, and the other arguments are as for
    `fit`. The choice is by mIoU on the images held out, between the last two after as many epochs as the settings say:
    `record["best"]` has the weight by method, also of methods that were tuned in this folder before. Raises
    DistillError for unknown methods and methods without a weight, for a folder that holds another tuning, and when a
    run fails or all candidates of a method diverge.
    """
    check_number("budget", budget, 1, 64)
    check_number("spread", spread, 0.01, 10, whole=False)
    check_number("seed", seed, 0, 2**32 - 1)
    if not isinstance(teacher, str | Path):
        raise DistillError(
            f"the teacher is a {type(teacher).__name__}, which no other process has; give a name or a file"
        )
    budget, spread, seed, teacher, data = int(budget), float(spread), int(seed), str(teacher), str(data)
    methods = _single_terms([methods] if isinstance(methods, str) else list(methods))
    preset = preset or defaults_for(data).preset
    out, chosen = Path(out), choose_settings(preset, "matched", settings, data)
    given = {name: getattr(chosen, name) for name, value in settings.items() if value is not None}
    train = open_dataset(data, "train", data_root)
    asked = {"student": student, "teacher": fingerprint(load_teacher(teacher)), "seed": seed}
    shaping = {name: value for name, value in asdict(chosen).items() if name not in (*NEUTRAL, "epochs")}
    asked |= {"images": train.fingerprint(), "settings": shaping}
    _same_as_before(out, asked)
    places = slots(device, jobs)
    alive = {method: _candidates(method, budget, spread) for method in methods}
    others = _other_methods(out, methods, budget=budget, spread=spread, epochs=chosen.epochs)
    held = hold_out(train, out / "data")
    write_json(out / "asked.json", asked)
    common = {"student": student, "teacher": teacher, "data": str(held), "seed": seed, "progress": False}
    common |= {"preset": preset, "device": pick_device(device).type}
    common |= {**given, "augment": chosen.augment}
    rungs = _rungs(budget, chosen.epochs, chosen.connector_epochs)
    runs: list[dict[str, Any]] = []
    total = sum(keep * epochs for keep, epochs in rungs) * len(methods)
    threads = 1 if common["device"] == "cpu" else None
    with progress_bar(total, 0) as bar:
        for keep, epochs in rungs:
            alive = {method: weights[:keep] for method, weights in alive.items()}
            planned = {(m, w): out / m / f"{w:g}" / str(epochs) for m, weights in alive.items() for w in weights}
            _check_code(planned)
            todo = [_job(m, w, epochs, data, path, common) for (m, w), path in planned.items() if not _done(path)]
            bar.update(sum(epochs for path in planned.values() if _done(path)))
            run_all(todo, places, threads, bar, out / "failed.txt")
            scores = {row: _score(path) for row, path in planned.items()}
            runs += [{"method": m, "weight": w, "epochs": epochs, "val_miou": s} for (m, w), s in scores.items()]
            alive = {method: _best_first(method, weights, scores) for method, weights in alive.items()}
    some = next(path for path in planned.values() if (path / "scores.json").exists())  # of the last rung
    # As it would be typed for these runs; where data and teacher lay is no business of the record.
    command = [
        "python -m distill tune --methods",
        *others["best"],
        *methods,
        f"--backbone {student} --dataset {name_of(data)}",
    ]
    command += [f"--budget {budget} --spread {spread:g} --epochs {chosen.epochs} --seed {seed}", *_flags(given)]
    command += [] if preset == defaults_for(data).preset else [f"--preset {preset}"]
    command += ["--own-methods FILE"] if code_of(methods) else []
    record = {
        "command": " ".join(command),
        "student": student,
        "data": name_of(data),
        "teacher": asked["teacher"],
        "settings": asdict(chosen),
        "seed": seed,
        "budget": budget,
        "spread": spread,
        "epochs": chosen.epochs,
        "best": others["best"] | {method: weights[0] for method, weights in alive.items()},
        "environment": Run(some).environment,
        "runs": others["runs"] + runs,
    }
    write_json(out / "tune.json", record)
    return record


def _flags(settings: dict[str, Any]) -> list[str]:
    """Settings that were given and shape a run, as they would be typed; those without a flag stand in the record."""
    flags = []
    for name, value in settings.items():
        if name not in (*NEUTRAL, *_NO_FLAGS, "epochs"):
            flag = "out-stride" if name == "output_stride" else name.replace("_", "-")
            flags += [f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {value}"]
    return flags


def _single_terms(methods: Sequence[str]) -> list[str]:
    """The methods by the names of their terms, each once. Raises DistillError for what has no one weight to choose."""
    wrong = [method for method in methods if len(method_terms(method)) != 1]
    if wrong or not methods:
        raise DistillError(
            f"{(wrong or ['nothing'])[0]} is not a single term with a weight; tune some of "
            f"{', '.join(list(METHODS)[1:])}"
        )
    terms = list(dict.fromkeys(term for method in methods for term in method_terms(method)))
    check_known_elsewhere(terms)
    return terms


def _best_first(method: str, weights: Sequence[float], scores: dict[tuple[str, float], float | None]) -> list[float]:
    """The weights whose runs did not diverge. Raises DistillError when all did."""
    known = {weight: score for weight in weights if (score := scores[method, weight]) is not None}
    if not known:
        raise DistillError(f"training diverges with every weight of {method}; lower --spread, or --lr")
    return sorted(known, key=known.__getitem__, reverse=True)


def table(record: dict[str, Any]) -> str:
    """What was tried, a line for each method, and the choice as a study file has it."""
    lines = [f"{'method':10} weight (epochs): mIoU on the images held out, %"]
    for method in record["best"]:
        own = [run for run in record["runs"] if run["method"] == method]
        tried = [f"{run['weight']:g} ({run['epochs']}): {percent(run['val_miou'])}" for run in own]
        lines.append(f"{method:10} {', '.join(tried)}")
    chosen = [f"{method} = {{ weight = {weight:g} }}" for method, weight in record["best"].items()]
    return "\n".join([*lines, "", "[method_options]", *chosen])


def percent(miou: float | None) -> str:
    """A score as a table has it; None is that of a candidate that diverged."""
    return "diverged" if miou is None else f"{100 * miou:.1f}"


def _rungs(budget: int, epochs: int, frozen: int = 0) -> list[tuple[int, int]]:
    """How many candidates are left, and for how many epochs they train, from the first to the last.

    In the first `frozen` epochs a student may learn nothing, so that no shorter runs could be told apart.
    """
    rungs = [(min(2, budget), epochs)]
    while rungs[0][0] < budget:
        keep, length = rungs[0]
        if length // 2 <= frozen:  # shorter ones say nothing
            return [(budget, length), *rungs[1:]]
        rungs.insert(0, (min(budget, 2 * keep), length // 2))
    return rungs


def _candidates(method: str, budget: int, spread: float) -> list[float]:
    """Weights around the method's default, each a number of three digits.

    Not around one that was tuned for the data: whoever repeats that tuning is to try what it tried. Raises
    DistillError where these are no weights, or all the same.
    """
    (term,) = method_terms(method)
    usual = with_every_option({term: {}})[term]["weight"]
    try:
        weights = [float(f"{usual * 10 ** (spread * (index - (budget - 1) / 2)):.3g}") for index in range(budget)]
    except OverflowError:
        weights = [math.inf]
    if usual == 0 or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise DistillError(
            f"{budget} weights, {spread:g} powers of ten apart, around the default of {method}, {usual:g}, are no "
            f"numbers above 0; give less --budget or --spread, or the method a default above 0"
        )
    return weights


def _job(method: str, weight: float, epochs: int, data: str, path: Path, common: dict[str, Any]) -> Job:
    options = choose_options(method_terms(method), data, {"weight": weight})
    keywords = {**common, "method": method, "method_options": options, "epochs": epochs, "out": str(path)}
    trained = partial(epochs_trained, path)
    return Job(f"{method} {weight:g}", "distill.lab.tune.train_candidate", keywords, epochs, trained)


def train_candidate(**keywords: Any) -> None:
    """`fit`, in a process of its own; a run that diverges leaves its sentence in `diverged.txt`."""
    try:
        fit(**keywords)
    except Diverged as error:
        write_text(Path(keywords["out"]) / "diverged.txt", f"{error}\n")


def _check_code(planned: dict[tuple[str, float], Path]) -> None:
    """DistillError where a candidate that is there has another loss, of a file that has changed since."""
    for (method, _), path in planned.items():
        if _done(path) and Run(path).config["method"].get("code", {}) != code_of([method]):
            raise DistillError(f"{path} was trained with other code of {method}; choose another --out")


def _done(path: Path) -> bool:
    return (path / "scores.json").exists() or (path / "diverged.txt").exists()


def _score(path: Path) -> float | None:
    return None if (path / "diverged.txt").exists() else float(Run(path).scores["val"]["miou"])


def _same_as_before(out: Path, asked: dict[str, Any]) -> None:
    """DistillError where the folder belongs to another question."""
    path = out / "asked.json"
    trained = any(out.glob("*/*/*/config.json"))  # else it failed, or was stopped, before it had asked anything
    if (
        trained
        and path.exists()
        and (there := checked(read_json(path), dict[str, Any], path, "what a tuning was asked")) != asked
    ):
        what = _first_difference(there, asked)
        if what == "settings":
            what = _first_difference(there["settings"], asked["settings"])
        raise DistillError(f"{out} holds a tuning whose {what} differs from what is asked for; choose another --out")


def _first_difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    return next(key for key in (*other, *one) if one.get(key) != other.get(key))


def _other_methods(out: Path, methods: Sequence[str], **asked: Any) -> dict[str, Any]:
    """The record of an earlier call, of the methods that this one does not tune, or an empty one.

    Raises DistillError where they had other candidates than `asked`, so that one table could not hold both.
    """
    path = out / "tune.json"
    empty: dict[str, Any] = {"best": {}, "runs": []}
    there = checked(read_json(path), _Tuned, path, "the record of a tuning") if path.exists() else empty
    best = {method: weight for method, weight in there["best"].items() if method not in methods}
    differing = [key for key, value in asked.items() if there.get(key) != value]
    if best and differing:
        raise DistillError(
            f"{path} records {', '.join(best)} with {differing[0]} {there.get(differing[0])}, and "
            f"{asked[differing[0]]} is asked for; name these methods too, or choose another --out"
        )
    return {"best": best, "runs": [run for run in there["runs"] if run["method"] in best]}


def hold_out(train: VOCFolder, out: Path) -> Path:
    """A folder in VOC layout whose val is about every fifth image of train, by a checksum of its name.

    Images whose masks a teacher drew are not held out: weights would be chosen to suit its mistakes.
    """
    if type(train) is not VOCFolder:
        raise DistillError(
            f"{train.root} is spread over several folders, from which nothing can be held out; tune on pascal"
        )
    drawn = set(read_split(train.root, BY_TEACHER)) if BY_TEACHER in split_names(train.root) else set()
    own = {name: zlib.crc32(name.encode()) for name in train.ids if name not in drawn}
    # Of a folder without lists those of the first kind are val already.
    val = [name for name in own if own[name] % 5 == 0] or [name for name in own if own[name] // 5 % 5 == 0]
    if not val or len(val) == len(train.ids):
        raise DistillError(
            f"{train.root} has {len(own)} training images with masks that no teacher drew, too few to hold some out; "
            f"label more"
        )
    make_folder(out / LISTS)
    for folder in (IMAGES, *MASK_FOLDERS):
        target, link = (train.root / folder).resolve(), out / folder
        if link.is_symlink() and link.resolve() != target:  # the data have moved
            link.unlink()
        if target.is_dir() and not link.exists():
            try:
                os.symlink(target, link, target_is_directory=True)
            except OSError:  # Windows allows links to developers only, and exFAT has none
                with tempfile.TemporaryDirectory(prefix=".copy-", dir=out) as copy:
                    shutil.copytree(target, Path(copy) / folder).rename(link)
    for split, names in {"train": [n for n in train.ids if n not in set(val)], "val": val}.items():
        write_list(out, split, names)
    write_class_names(out, train.class_names)
    return out
