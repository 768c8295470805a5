"""What a run leaves on disk, and tables from many runs.

config.json         every value that shaped the run        history.jsonl        one line an epoch
environment.json    versions, device, commit               last.pt              everything needed to resume
scores.json         scores of the last epoch (and best)    student.safetensors  last epoch; best.safetensors
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Container, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from distill.datasets import PROJECT
from distill.errors import DistillError, first_line
from distill.files import write_text
from distill.models import DeepLabV3Plus, load_model
from distill.settings import NEUTRAL, with_every_setting

# What a file that a program goes on with must hold, by name: a type, or what stands below that name.
NUMBER = (int, float)
SCORE = {"miou": NUMBER, "pixel_accuracy": NUMBER, "per_class_iou": dict}
CONFIG = {
    "data": str,
    "images": int,
    "model": {"backbone": str},
    "method": {"name": str, "terms": dict},
    "seed": int,
    "start": str,
    "parameters": int,
    "settings": {"epochs": int},
}
RECORD = {"data": str, "backbone": str, "method": str, "seed": int, "split": str, "miou": NUMBER, "seconds": NUMBER}
_ANEW = "restore it, or run again into another folder"

# Two-sided 95 % quantiles of Student's t by degrees of freedom; scipy would be a heavy way to have nine numbers.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run in the folder `path`."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not (self.path / "config.json").exists():
            raise DistillError(
                f"{self.path} holds no config.json, so it is not a run; give the folder that `train` wrote"
            )

    @property
    def config(self) -> dict:
        """Every value that shaped the run."""
        path = self.path / "config.json"
        return checked(read_json(path), CONFIG, path, "the config of a run")

    @property
    def environment(self) -> dict:
        """Versions, hardware and commit, to be published with the scores; without the folders of this machine."""
        return {key: value for key, value in self._surroundings.items() if key != "data_root"}

    @property
    def _surroundings(self) -> dict:
        path = self.path / "environment.json"
        return checked(read_json(path), {}, path, "the environment of a run") if path.exists() else {}

    @property
    def data_root(self) -> Path | None:
        """The folder of the data it was trained on, if that is still there."""
        root = self._surroundings.get("data_root")
        return Path(root) if isinstance(root, str) and os.path.isdir(root) else None

    @property
    def scores(self) -> dict:
        """`val` and, where there is a test split, `test`: the last epoch's; `best`: the best epoch seen on val."""
        path = self.path / "scores.json"
        if not path.exists():
            raise DistillError(
                f"{self.path} has no scores.json: the run is not finished; start the same command to resume it"
            )
        scores = checked(read_json(path), {"best": {"val_miou": NUMBER}, "val": SCORE}, path, "the scores of a run")
        return checked(scores, {"test": SCORE}, path, "the scores of a run") if "test" in scores else scores

    @property
    def finished(self) -> bool:
        return (self.path / "scores.json").exists()

    @property
    def history(self) -> list[dict]:
        """One dict an epoch: epoch, lr, loss, each part of the loss, seconds, and at times val_miou."""
        path = self.path / "history.jsonl"
        lines = _read_text(path).splitlines() if path.exists() else []
        return [
            checked(_parse(line, path, number), {"seconds": NUMBER}, path, f"line {number} of a history")
            for number, line in enumerate(lines, 1)
        ]

    def student(self) -> DeepLabV3Plus:
        """The network of the last epoch, in eval mode."""
        return load_model(self.path / "student.safetensors").eval()


def run_folder(root: str | Path, data: str, backbone: str, method: str, seed: int) -> Path:
    return Path(root) / data / backbone / method / f"seed{seed}"


def variant_folder(name: str) -> str:
    """What the folder of a study's variant is called: its name, with - for all that is awkward in a path."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")


def find_runs(*folders: str | Path) -> list[Run]:
    """All finished runs at or below the folders."""
    paths = sorted({path.parent for folder in folders for path in Path(folder).rglob("scores.json")})
    runs = [Run(path) for path in paths if (path / "config.json").exists()]
    if not runs:
        raise DistillError(f"there is no finished run in {', '.join(map(str, folders))}; train one first")
    return runs


def results_file(name: str) -> Path:
    """A recorded study in the clone's `results/`, such as "sample.json"."""
    path = PROJECT / "results" / name
    if not path.exists():
        raise DistillError(
            f"there is no {path.relative_to(PROJECT)} beside the package; use a clone of the project, or make the file "
            f"with the scripts in its studies/"
        )
    return path


def read_json(path: Path) -> dict:
    return _parse(_read_text(path), path)


def read_study(path: Path) -> tuple[list[dict], float | None]:
    """A recorded study: what `record` gave for each of its runs, and the teacher's mIoU where it is known."""
    what = "a recorded study"
    study = checked(read_json(path), {"runs": list}, path, what)
    runs = [checked(entry, RECORD, path, what) for entry in study["runs"]]
    if not study.get("teacher"):
        return runs, None
    return runs, checked(study, {"teacher": {"miou": NUMBER}}, path, what)["teacher"]["miou"]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DistillError(f"{path} cannot be read as JSON ({first_line(error)}); {_ANEW}") from None


def _parse(text: str, path: Path, line: int | None = None) -> dict:
    where = f"{path}, line {line}," if line else f"{path}"
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DistillError(f"{where} cannot be read as JSON ({first_line(error)}); {_ANEW}") from None


def checked(value: object, shape: object, path: Path, what: str) -> dict:
    """`value` itself, where it is a dict with what `shape` asks for; DistillError for all else.

    `shape` is a dict of further shapes, or a type (or several) of which a value has to be.
    """
    if not isinstance(value, dict):
        raise DistillError(f"{path} is not {what}: it holds {_short(value)} instead of a dict; {_ANEW}")
    for name, asked in shape.items():
        if name not in value:
            raise DistillError(f"{path} is not {what}: {name} is missing; {_ANEW}")
        if isinstance(asked, dict):
            checked(value[name], asked, path, what)
        elif not _is_a(value[name], asked):
            raise DistillError(f"{path} is not {what}: {name} is {_short(value[name])}; {_ANEW}")
    return value


def _is_a(value: object, asked: type | tuple[type, ...]) -> bool:
    """Whether a value is of a type; no bool is a number, and neither is one that no run can have."""
    number = isinstance(value, NUMBER) and not isinstance(value, bool)
    return isinstance(value, asked) and (number and abs(value) < 1e15 if asked in (int, NUMBER) else True)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}…"


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def environment(device: torch.device) -> dict:
    """Versions, hardware and commit of this process, as JSON values."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": version("numpy"),
        "pillow": version("pillow"),
        "distill": version("distill"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _commit() -> str | None:
    """The commit of the clone that this package runs from, with `+` where files were changed; None elsewhere."""
    folder = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "."], cwd=folder, capture_output=True, text=True
        )
    except OSError:
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "") if commit.returncode == 0 else None


# --------------------------------------------------------------------------------------------- tables


def described(run: Run) -> dict:
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


def record(run: Run) -> dict:
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
        "history": _in_short(history),
    }


def _in_short(history: list[dict], most: int = 50) -> list[dict]:
    """Losses and scores of about `most` epochs, evenly chosen, and of all that were evaluated."""
    step = -(-len(history) // most)
    return [
        {name: round(line[name], 5) for name in ("epoch", "loss", "ce", "val_miou") if _is_a(line.get(name), NUMBER)}
        for number, line in enumerate(history)
        if number % step == 0 or "val_miou" in line
    ]


def check_comparable(records: list[dict], apart: Container[str] = ()) -> None:
    """DistillError where runs of one table differ in more than student, method and seed, or in what is `apart`.

    What a record does not have is not compared: old ones lack some of it. A setting that did not exist yet when a run
    was made had its default. A record may have a `name` to be called by.
    """
    seen: dict[tuple, tuple[object, dict]] = {}
    for entry in records:
        for key, value in _in_common(entry):
            if value is None or key[0] in apart:
                continue
            other, first = seen.setdefault(key, (value, entry))
            if other != value:
                raise DistillError(
                    f"{_called(first)} and {_called(entry)} cannot stand in one table: {key[0]} is {_short(other)} in "
                    f"the one and {_short(value)} in the other; compare them apart, or train one anew in another folder"
                )


def _in_common(entry: dict) -> Iterator[tuple[tuple, object]]:
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


def _called(entry: dict) -> str:
    parts = (entry.get("variant"), entry.get("backbone"), entry.get("method"), f"seed{entry.get('seed')}")
    return entry.get("name") or f"the run {'/'.join(str(part) for part in parts if part)}"


def interval95(values: list[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean (Student's t); NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan")
    freedom = len(values) - 1
    quantile = _T95.get(freedom, 1.96 + 2.372 / freedom + 2.82 / freedom**2)  # Cornish and Fisher: within 0.2 % from 10
    return quantile * float(np.std(values, ddof=1)) / len(values) ** 0.5


def compare(records: list[dict], teacher_miou: float | None = None) -> list[dict]:
    """One row per data set, student and method: mean mIoU and its interval, and the gain over the baseline.

    The gain is paired: each seed's score less the baseline's of the same seed. `closed` is the share of the gap
    between baseline and teacher that the method closes. Scores are shares between 0 and 1.
    """
    groups: dict[tuple, dict[int, dict]] = {}
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


def _row(key: tuple, seeds: dict[int, dict], baseline: dict[int, dict], teacher_miou: float | None) -> dict:
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


def class_gains(records: list[dict]) -> dict[tuple[str, str], dict[str, float]]:
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


def markdown_table(rows: list[dict]) -> str:
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
