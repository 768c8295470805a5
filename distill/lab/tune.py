"""Choose the weight of each method, with the same care for all: as many candidates, on images held out from train.

Successive halving (Jamieson and Talwalkar 2016): all candidates train for a share of the epochs, the better half for
twice as many, and so on until one is left, or trained to the end. Every run has a whole schedule of its own length.

    OUT/data    train without every fifth image, and those as val: links to the data's own files
    OUT/METHOD/WEIGHT/EPOCHS    runs, which are not trained twice    OUT/tune.json    all scores, and the choice
"""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.data.folders import MASK_FOLDERS, VOCFolder, open_dataset
from distill.errors import DistillError, check_number
from distill.files import make_folder, write_json, write_text
from distill.lab.pool import Job, progress_bar, run_all, slots
from distill.methods import METHODS, method_terms, with_every_option
from distill.training.parallel import pick_device
from distill.training.presets import choose_options, choose_settings, defaults_for
from distill.training.runs import Run


def tune(
    methods: Sequence[str],
    student: str = "resnet18",
    teacher: str = "sample",
    data: str = "sample",
    data_root: str | None = None,
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
    """Try `budget` weights of each method, `spread` powers of ten apart around its usual one; the record is returned.

    `methods` are single terms, such as kd; other arguments are as for `fit`. The choice is by mIoU on the images held
    out, after as many epochs as the settings say: `record["best"]` has the weight by method. Raises DistillError for
    methods that there are not or that have no weight, and when a run fails.
    """
    check_number("budget", budget, 1, 64)
    check_number("spread", spread, 0.01, 10, whole=False)
    for method in methods:
        if len(method_terms(method)) != 1 or "+" in method:
            raise DistillError(f"{method} is no single term with a weight; tune one of {', '.join(list(METHODS)[1:])}")
    out, chosen = Path(out), choose_settings(preset or defaults_for(data).preset, "matched", settings, data)
    held = hold_out(data, data_root, out / "data")
    common = {"student": student, "teacher": teacher, "data": str(held), "seed": seed, "progress": False}
    common |= {"preset": preset or defaults_for(data).preset, "device": pick_device(device).type}
    common |= {**settings, "augment": chosen.augment}
    rungs = _rungs(budget, chosen.epochs)
    runs: list[dict[str, Any]] = []
    alive = {method: _candidates(method, data, budget, spread) for method in methods}
    total = sum(keep * epochs for keep, epochs in rungs) * len(methods)
    threads = 1 if common["device"] == "cpu" else None
    with progress_bar(total, 0) as bar:
        for keep, epochs in rungs:
            alive = {method: weights[:keep] for method, weights in alive.items()}
            planned = {(m, w): out / m / f"{w:g}" / str(epochs) for m, weights in alive.items() for w in weights}
            todo = [_job(m, w, epochs, data, path, common) for (m, w), path in planned.items() if not _done(path)]
            bar.update(sum(epochs for path in planned.values() if _done(path)))
            run_all(todo, slots(device, jobs), threads, bar, out / "failed.txt")
            for (method, weight), path in planned.items():
                score = Run(path).scores["val"]["miou"]
                runs.append({"method": method, "weight": weight, "epochs": epochs, "val_miou": score})
            scores = {(run["method"], run["weight"]): run["val_miou"] for run in runs if run["epochs"] == epochs}
            for method, weights in alive.items():
                best_first = sorted(((scores[method, weight], weight) for weight in weights), reverse=True)
                alive[method] = [weight for _, weight in best_first]
    some = next(iter(planned.values()))
    record = {
        "command": "python -m distill tune",
        "student": student,
        "data": data,
        "seed": seed,
        "budget": budget,
        "best": {method: weights[0] for method, weights in alive.items()},
        "environment": Run(some).environment,
        "runs": runs,
    }
    write_json(out / "tune.json", record)
    return record


def table(record: dict[str, Any]) -> str:
    """What was tried, a line for each method, and the choice as a study file has it."""
    lines = [f"{'method':10} weight (epochs): mIoU on the images held out, %"]
    for method in record["best"]:
        own = [run for run in record["runs"] if run["method"] == method]
        tried = [f"{run['weight']:g} ({run['epochs']}): {100 * run['val_miou']:.1f}" for run in own]
        lines.append(f"{method:10} {', '.join(tried)}")
    chosen = [f"{method} = {{ weight = {weight:g} }}" for method, weight in record["best"].items()]
    return "\n".join([*lines, "", "[method_options]", *chosen])


def _rungs(budget: int, epochs: int) -> list[tuple[int, int]]:
    """How many candidates are left, and for how many epochs they train, from the first to the last."""
    rungs = [(1, epochs)]
    while rungs[0][0] < budget:
        keep, length = rungs[0]
        rungs.insert(0, (min(budget, 2 * keep), max(1, length // 2)))
    return rungs


def _candidates(method: str, data: str, budget: int, spread: float) -> list[float]:
    """Weights around the usual one, each a number of three digits."""
    terms = method_terms(method)
    usual = with_every_option(choose_options(terms, data, None))[terms[0]]["weight"]
    return [float(f"{usual * 10 ** (spread * (index - (budget - 1) / 2)):.3g}") for index in range(budget)]


def _job(method: str, weight: float, epochs: int, data: str, path: Path, common: dict[str, Any]) -> Job:
    options = choose_options(method_terms(method), data, {"weight": weight})
    keywords = {**common, "method": method, "method_options": options, "epochs": epochs, "out": str(path)}

    def trained() -> int:
        history = path / "history.jsonl"
        return history.read_bytes().count(b"\n") if history.exists() else 0

    return Job(f"{method} {weight:g}", "distill.training.loop.fit", keywords, epochs, trained)


def _done(path: Path) -> bool:
    return (path / "scores.json").exists()


def hold_out(data: str, data_root: str | None, out: Path) -> Path:
    """A folder in VOC layout whose val is about every fifth image of train, by a checksum of its name."""
    train = open_dataset(data, "train", data_root)
    if type(train) is not VOCFolder:
        raise DistillError(f"{data} lies in several folders, from which nothing can be held out; tune on pascal")
    val = [name for name in train.ids if zlib.crc32(name.encode()) % 5 == 0]
    if not val or len(val) == len(train.ids):
        raise DistillError(f"{train.root} has {len(train.ids)} training images, too few to hold some out")
    make_folder(out / "ImageSets" / "Segmentation")
    for folder in ("JPEGImages", *MASK_FOLDERS):
        target = (train.root / folder).resolve()
        if target.is_dir() and not (out / folder).exists():
            os.symlink(target, out / folder, target_is_directory=True)
    for split, names in {"train": [n for n in train.ids if n not in set(val)], "val": val}.items():
        write_text(out / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{name}\n" for name in names))
    write_text(out / "class_names.txt", "\n".join(train.class_names) + "\n")
    return out
