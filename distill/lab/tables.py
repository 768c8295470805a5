"""Tables from many runs: what is recorded of each, which of them may stand side by side, means, intervals and gains."""

from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import NotRequired, TypedDict

from distill.errors import DistillError, shortened
from distill.files import PROJECT, Number, checked, read_json
from distill.training.runs import Run
from distill.training.settings import NEUTRAL, with_every_setting


class _Recorded(TypedDict):
    """What must be in the record of a run; there is more in it."""

    data: str
    backbone: str
    method: str
    seed: int
    split: str
    miou: Number
    seconds: Number


class RecordedTeacher(TypedDict):
    miou: Number


class _RecordedStudy(TypedDict):
    runs: list[_Recorded]
    teacher: NotRequired[RecordedTeacher | None]


# Two-sided 95 % quantiles of Student's t by degrees of freedom; scipy would be a heavy way to have nine numbers.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def results_file(name: str) -> Path:
    """A recorded study in the clone's `results/`, such as "sample.json"."""
    path = PROJECT / "results" / name
    if not path.exists():
        raise DistillError(
            f"there is no {path.relative_to(PROJECT)} beside the package; use a clone of the project, or make the file "
            f"with the scripts in its studies/"
        )
    return path


def read_study(path: Path) -> tuple[list[dict[str, Any]], float | None]:
    """A recorded study: what `record` gave for each of its runs, and the teacher's mIoU where it is known."""
    study = checked(read_json(path), _RecordedStudy, path, "a recorded study")
    return study["runs"], (study.get("teacher") or {}).get("miou")


def described(run: Run) -> dict[str, Any]:
    """What a run is, finished or not: the part of its record that comes before its scores."""
    config = run.config
    return {
        "data": config["data"],
        "class_names": config.get("class_names"),
        "preset": config.get("preset"),
        "backbone": config["model"]["backbone"],
        "model": config["model"],
        "parameters": config["parameters"],
        "method": config["method"]["name"],
        "terms": config["method"]["terms"],
        "seed": config["seed"],
        "start": config["start"],
        "images": config["images"],
        "samples": config["images"] * config["settings"]["epochs"],
        "teacher": config.get("teacher"),
        "settings": config["settings"],
    }


def record(run: Run) -> dict[str, Any]:
    """The part of a run that tables and figures are made of, small enough to be kept in `results/`."""
    scores, history = run.scores, run.history
    split = "test" if "test" in scores else "val"
    return {
        **described(run),
        "split": split,
        "miou": scores[split]["miou"],
        "pixel_accuracy": scores[split]["pixel_accuracy"],
        "per_class_iou": scores[split]["per_class_iou"],
        "val_miou": scores["val"]["miou"],
        "best_val_miou": scores["best"]["val_miou"],
        "seconds": round(sum(line["seconds"] for line in history), 1),
        "history": _inshortened(history),
    }


def _inshortened(history: list[dict[str, Any]], most: int = 50) -> list[dict[str, Any]]:
    """Losses and scores of about `most` epochs, evenly chosen, and of all that were evaluated."""
    step = -(-len(history) // most)
    return [
        {name: round(line[name], 5) for name in ("epoch", "loss", "ce", "val_miou") if name in line}
        for number, line in enumerate(history)
        if number % step == 0 or "val_miou" in line
    ]


def check_comparable(records: list[dict[str, Any]], apart: Container[str] = ()) -> None:
    """DistillError where runs of one table differ in more than student, method and seed, or in what is `apart`.

    What a record does not have is not compared: old ones lack some of it. A setting that did not exist yet when a run
    was made had its default. A record may have a `name` to be called by.
    """
    seen: dict[tuple[Any, ...], tuple[object, dict[str, Any]]] = {}
    for entry in records:
        for key, value in _in_common(entry):
            if value is None or key[0] in apart:
                continue
            other, first = seen.setdefault(key, (value, entry))
            if other != value:
                raise DistillError(
                    f"{_called(first)} and {_called(entry)} cannot stand in one table: {key[0]} is "
                    f"{shortened(other)} in the one and {shortened(value)} in the other; compare them apart, or train "
                    f"one anew in another folder"
                )


def _in_common(entry: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], object]]:
    """What has to be equal in all runs of a table, or in those of one student, method or seed: (what, of whom), value.

    Rows that are paired by their seed start from the same weights.
    """
    every = with_every_setting(entry["settings"]) if isinstance(entry.get("settings"), dict) else {}
    shared = {name: entry.get(name) for name in ("data", "class_names", "preset", "images", "split")}
    shared |= {f"settings.{name}": value for name, value in every.items() if name not in NEUTRAL}
    shared |= {"samples": entry.get("samples"), "teacher": _weights(entry.get("teacher"))}
    yield from (((name,), value) for name, value in shared.items())
    backbone, method = entry.get("backbone"), entry.get("method")
    yield from (((name, backbone), entry.get(name)) for name in ("model", "parameters"))
    yield ("terms", backbone, method), entry.get("terms")
    yield ("start", backbone, entry.get("seed")), entry.get("start")


def _weights(teacher: object) -> object:
    return teacher.get("weights") if isinstance(teacher, dict) else None


def _called(entry: dict[str, Any]) -> str:
    parts = (entry.get("variant"), entry.get("backbone"), entry.get("method"), f"seed{entry.get('seed')}")
    return entry.get("name") or f"the run {'/'.join(str(part) for part in parts if part)}"


def interval95(values: list[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean (Student's t); NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan")
    freedom = len(values) - 1
    quantile = _T95.get(freedom, 1.96 + 2.372 / freedom + 2.82 / freedom**2)  # Cornish and Fisher: within 0.2 % from 10
    return quantile * float(np.std(values, ddof=1)) / len(values) ** 0.5


def compare(records: list[dict[str, Any]], teacher_miou: float | None = None) -> list[dict[str, Any]]:
    """One row per data set, student and method: mean mIoU and its interval, and the gain over the baseline.

    The gain is paired: each seed's score less the baseline's of the same seed. `closed` is the share of the gap
    between baseline and teacher that the method closes. Scores are shares between 0 and 1.
    """
    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for entry in records:
        seeds = groups.setdefault((entry["data"], entry["backbone"], entry["method"]), {})
        if entry["seed"] in seeds:
            raise DistillError(
                f"two runs are recorded for {entry['backbone']}, {entry['method']}, seed {entry['seed']}; compare one "
                f"study at a time"
            )
        seeds[entry["seed"]] = entry
    students = list(dict.fromkeys(key[:2] for key in groups))  # a student's rows stand together
    return [
        _row(key, groups[key], groups.get((*key[:2], "baseline"), {}), teacher_miou)
        for key in sorted(groups, key=lambda key: students.index(key[:2]))
    ]


def _row(
    key: tuple[Any, ...],
    seeds: dict[int, dict[str, Any]],
    baseline: dict[int, dict[str, Any]],
    teacher_miou: float | None,
) -> dict[str, Any]:
    scores = [entry["miou"] for entry in seeds.values()]
    gains = [entry["miou"] - baseline[seed]["miou"] for seed, entry in seeds.items() if seed in baseline]
    row = dict(
        zip(("data", "backbone", "method"), key, strict=True),
        seeds=sorted(seeds),
        split=next(iter(seeds.values()))["split"],
        miou=float(np.mean(scores)),
        miou_interval=interval95(scores),
        seconds=float(np.mean([entry["seconds"] for entry in seeds.values()])),
    )
    if gains and key[2] != "baseline":
        row.update(gain=float(np.mean(gains)), gain_interval=interval95(gains))
        start = float(np.mean([entry["miou"] for entry in baseline.values()]))
        if teacher_miou is not None and teacher_miou > start:
            row["closed"] = row["gain"] / (teacher_miou - start)
            row["closed_interval"] = row["gain_interval"] / (teacher_miou - start)
    return row


def class_gains(records: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """By student and method, the mean paired gain in IoU of every class that both runs of each pair have."""
    scored = [entry for entry in records if isinstance(entry.get("per_class_iou"), dict)]
    baselines = {(r["backbone"], r["seed"]): r["per_class_iou"] for r in scored if r["method"] == "baseline"}
    gains: dict[tuple[str, str], dict[str, list[float]]] = {}
    for entry in scored:
        alone = baselines.get((entry["backbone"], entry["seed"]))
        if entry["method"] == "baseline" or alone is None:
            continue
        classes = gains.setdefault((entry["backbone"], entry["method"]), {})
        for name, iou in entry["per_class_iou"].items():
            if iou is not None and alone.get(name) is not None:
                classes.setdefault(name, []).append(iou - alone[name])
    return {row: {name: float(np.mean(found)) for name, found in classes.items()} for row, classes in gains.items()}


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows of `compare` as a Markdown table, in points of mIoU."""
    lines = [
        "| student | method | mIoU | gain over baseline | gap closed | seeds | seconds a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gain = plus_minus(row["gain"], row["gain_interval"], "+") if "gain" in row else ""
        closed = f"{row['closed']:.0%}" if "closed" in row else ""
        cells = [
            row["backbone"],
            row["method"],
            plus_minus(row["miou"], row["miou_interval"]),
            gain,
            closed,
            str(len(row["seeds"])),
            f"{row['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plus_minus(value: float, half_width: float, sign: str = "") -> str:
    """A share and half its interval in points, as tables have them; `sign` "+" for gains."""
    interval = "" if np.isnan(half_width) else f" ± {100 * half_width:.1f}"
    return f"{100 * value:{sign}.1f}{interval}"
