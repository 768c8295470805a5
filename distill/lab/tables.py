"""Tables from many runs: what is recorded of each, which may be compared, means, intervals and gains."""

from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import NotRequired, TypedDict

from distill.errors import DistillError, shortened
from distill.files import PROJECT, Number, checked, read_json
from distill.lab.curves import (
    MANY,
    POINT,
    gain_at_equal_time,
    holm,
    interval95,
    late_rise,
    p_value,
    seeds_to_settle,
    verdict,
)
from distill.training.runs import RecordedEpoch, Run
from distill.training.settings import NEUTRAL, with_every_setting

EQUAL_TIME = "gain on val, equal time"  # the head of a column


class _Settings(TypedDict):
    epochs: NotRequired[int]
    labelled: NotRequired[int | None]


class _Environment(TypedDict):
    device: NotRequired[str]
    processor: NotRequired[str]


class _Recorded(TypedDict):
    """What must be in the record of a run; there is more in it."""

    data: str
    variant: NotRequired[str | None]
    backbone: str
    model: NotRequired[dict[str, Any] | None]
    parameters: NotRequired[Number | None]
    method: str
    seed: int
    teacher: NotRequired[dict[str, Any] | None]
    images: NotRequired[int | None]
    content: NotRequired[dict[str, Any] | None]
    split: str
    miou: Number
    seconds: Number
    cpu_seconds: NotRequired[Number]
    machine: NotRequired[str]
    settings: NotRequired[_Settings]
    terms: NotRequired[dict[str, Any]]
    history: NotRequired[list[RecordedEpoch]]


class RecordedTeacher(TypedDict):
    miou: Number
    val_miou: NotRequired[Number]


class _RecordedStudy(TypedDict):
    runs: list[_Recorded]
    teacher: NotRequired[RecordedTeacher | None]
    environment: NotRequired[_Environment | None]


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
    """A recorded study: what `record` gave for each of its runs, and the teacher's mIoU where it is known.

    Runs on a CPU that have wall-clock seconds only, which other programs lengthened, are marked `shared_clock`, as
    `record` does; all get the machine of a study that had only one.
    """
    study = checked(read_json(path), _RecordedStudy, path, "a recorded study")
    on_cpu = (study.get("environment") or {}).get("device") == "cpu"
    shared = [{"shared_clock": True} if on_cpu and "cpu_seconds" not in run else {} for run in study["runs"]]
    runs = [machine_of(study) | run | mark for run, mark in zip(study["runs"], shared, strict=True)]
    return runs, (study.get("teacher") or {}).get("miou")


def machine_of(study: Mapping[str, Any]) -> dict[str, str]:
    """The `machine` of records that do not say theirs, as old ones: that of their study, if it had only one."""
    return {} if study.get("environments") else _machine(study.get("environment") or {})


def _machine(environment: dict[str, Any]) -> dict[str, str]:
    """What seconds depend on most: the processor's name, or the GPU's."""
    name = environment.get("processor" if environment.get("device") == "cpu" else "device")
    return {"machine": name} if name else {}


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
        **({"code": config["method"]["code"]} if "code" in config["method"] else {}),
        "seed": config["seed"],
        "start": config["start"],
        **({"initial_weights": config["initial_weights"]} if "initial_weights" in config else {}),
        **({"content": config["content"]} if config.get("content") else {}),
        "images": config["images"],
        **({"unlabelled": config["unlabelled"]} if "unlabelled" in config else {}),
        "samples": (config["images"] + config.get("unlabelled", 0)) * config["settings"]["epochs"],
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
        **_clock(run, history),
        **_machine(run.environment),
        "history": _in_short(history),
    }


def _clock(run: Run, history: list[dict[str, Any]]) -> dict[str, Any]:
    """The processor's seconds; where a run on a CPU has none, a mark that its seconds are of a clock that all share."""
    if history and all("cpu_seconds" in line for line in history):
        return {"cpu_seconds": round(sum(line["cpu_seconds"] for line in history), 1)}
    return {"shared_clock": True} if run.environment.get("device") == "cpu" else {}


def _in_short(history: list[dict[str, Any]], most: int = 50) -> list[dict[str, Any]]:
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
                what, other, value = _where_they_differ(str(key[0]), other, value)
                raise DistillError(
                    f"{_called(first)} and {_called(entry)} cannot be in one table: {what} is "
                    f"{shortened(other)} in the one and {shortened(value)} in the other; compare them separately, or "
                    f"train one again in another folder"
                )


def _where_they_differ(what: str, one: object, other: object) -> tuple[str, object, object]:
    """Of two tables the first key that they do not have in common: whole, both would be cut off before it."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return what, one, other
    name = next(name for name in (*one, *other) if one.get(name) != other.get(name))
    return f"{what}.{name}", one.get(name), other.get(name)


def _in_common(entry: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], object]]:
    """What has to be equal in all runs of a table, or in those of one student, method or seed: (what, of whom), value.

    Rows that are paired by their seed start from the same weights.
    """
    every = with_every_setting(entry["settings"]) if isinstance(entry.get("settings"), dict) else {}
    shared = {name: entry.get(name) for name in ("data", "class_names", "preset", "images", "split")}
    shared |= {f"settings.{name}": value for name, value in every.items() if name not in NEUTRAL}
    shared |= {"teacher": teacher_weights(entry.get("teacher"))}
    content = entry.get("content") or {}
    shared |= {"the content of val": content.get("val")}
    yield from (((name,), value) for name, value in shared.items())
    # Images without labels are no use to a baseline, which then takes fewer steps in as many epochs.
    taught = entry.get("method") != "baseline"
    yield ("samples", entry.get("unlabelled") is not None), entry.get("samples")
    extra = (entry.get("unlabelled") or 0) if taught else 0
    yield ("the content of train", entry.get("images"), extra), content.get("train")
    yield ("unlabelled", taught), (entry.get("unlabelled") or 0) if taught else None
    backbone, method = entry.get("backbone"), entry.get("method")
    yield from (((name, backbone), entry.get(name)) for name in ("model", "parameters"))
    yield ("terms", backbone, method), entry.get("terms")
    yield from (((f"the code of {name}",), sha256) for name, sha256 in (entry.get("code") or {}).items())
    yield ("start", backbone, entry.get("seed")), entry.get("start")


def teacher_weights(teacher: object) -> object:
    return teacher.get("weights") if isinstance(teacher, dict) else None


def _called(entry: dict[str, Any]) -> str:
    parts = (entry.get("variant"), entry.get("backbone"), entry.get("method"), f"seed{entry.get('seed')}")
    return entry.get("name") or f"the run {'/'.join(str(part) for part in parts if part)}"


def compare(records: list[dict[str, Any]], teacher_miou: float | None = None) -> list[dict[str, Any]]:
    """One row per data set, student and method: mean mIoU and its interval, and the gain over the baseline.

    The gain is paired: each seed's score less the baseline's of the same seed. `closed` is the share of the gap
    between baseline and teacher that the method closes. `late_rise`, `gain_at_equal_time`, `verdict` and
    `seeds_to_settle` are explained in `curves`. `as_fast`: the gain takes no more time than the baseline, or is there
    at equal time too. `p` is that of the gain, `p_holm` corrected for the gains of all rows. `seconds` are processor
    seconds where all records have them, because other programs may have run meanwhile; else wall-clock seconds, of
    which nothing is said about equal time where they are a `shared_clock`; nor where a method and its baseline ran on
    different `machines`. Scores are shares between 0 and 1.
    """
    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for entry in records:
        seeds = groups.setdefault((entry["data"], entry["backbone"], entry["method"]), {})
        if entry["seed"] in seeds:
            variants = sorted({str(each.get("variant")) for each in (entry, seeds[entry["seed"]])})
            advice = (
                "one study at a time" if len(variants) == 1 else "one variant at a time, as `comparison.tables` does"
            )
            raise DistillError(
                f"two runs are recorded for {entry['backbone']}, {entry['method']}, seed {entry['seed']}; compare "
                f"{advice}"
            )
        seeds[entry["seed"]] = entry
    clock = "cpu_seconds" if all("cpu_seconds" in entry for entry in records) else "seconds"
    students = list(dict.fromkeys(key[:2] for key in groups))  # a student's rows stand together
    rows = [
        _row(key, groups[key], groups.get((*key[:2], "baseline"), {}), teacher_miou, clock)
        for key in sorted(groups, key=lambda key: students.index(key[:2]))
    ]
    return correct(rows)


def correct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, with `p_holm`: each `p` corrected for the gains of all rows."""
    tested = [row for row in rows if row.get("p") is not None]
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = corrected
    return rows


def _row(
    key: tuple[Any, ...],
    seeds: dict[int, dict[str, Any]],
    baseline: dict[int, dict[str, Any]],
    teacher_miou: float | None,
    clock: str,
) -> dict[str, Any]:
    scores = [entry["miou"] for entry in seeds.values()]
    row = dict(
        zip(("data", "backbone", "method"), key, strict=True),
        seeds=sorted(seeds),
        split=next(iter(seeds.values()))["split"],
        miou=float(np.mean(scores)),
        miou_interval=interval95(scores),
        seconds=float(np.mean([entry[clock] for entry in seeds.values()])),
        processor=clock == "cpu_seconds",
    )
    if any(entry.get("shared_clock") for entry in seeds.values()):
        row["shared_clock"] = True
    row["machines"] = sorted({entry["machine"] for entry in seeds.values() if entry.get("machine")})
    row["seconds_on"] = seconds_on(seeds.values(), clock)
    if epochs := {entry["settings"]["epochs"] for entry in seeds.values() if "epochs" in (entry.get("settings") or {})}:
        row["epochs"] = max(epochs)
    rises = [rise for entry in seeds.values() if (rise := late_rise(entry)) is not None]
    if rises:
        row["late_rise"] = float(np.mean(rises))
    pairs = [(entry, baseline[seed]) for seed, entry in seeds.items() if seed in baseline]
    return row if key[2] == "baseline" or not pairs else row | _gains(pairs, teacher_miou, clock)


def seconds_on(runs: Iterable[dict[str, Any]], clock: str = "cpu_seconds") -> dict[str, float]:
    """Seconds per run by machine: those of two cannot be compared, nor have a mean."""
    there: dict[str, list[float]] = {}
    for run in runs:
        there.setdefault(run.get("machine", "an unknown machine"), []).append(run[clock])
    return {machine: float(np.mean(found)) for machine, found in sorted(there.items())}


def _gains(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]], teacher_miou: float | None, clock: str
) -> dict[str, Any]:
    """What a row has over its baseline: pairs of runs of one seed."""
    gains = [own["miou"] - other["miou"] for own, other in pairs]
    found: dict[str, Any] = {"gain": float(np.mean(gains)), "gain_interval": interval95(gains), "pairs": len(pairs)}
    found |= {"verdict": verdict(gains), "seeds_to_settle": seeds_to_settle(gains), "p": p_value(gains)}
    # One time for all seeds of a row: that of a single run depends on what else the machine did.
    own, other = (float(np.mean([run[clock] for run in runs])) for runs in zip(*pairs, strict=True))
    if _same_steps(pairs):
        own = max(own, other)  # a term takes no time off a step: that is the clock's noise
    # Seconds that cannot be compared: other programs lengthened them, or they are of two machines.
    shared = any(run.get("shared_clock") for pair in pairs for run in pair)
    shared = shared or any(run.get("machine") != alone.get("machine") for run, alone in pairs)
    timed = [gain for pair in pairs if (gain := gain_at_equal_time(*pair, own, other)) is not None]
    all_timed = len(timed) == len(pairs) and not shared
    if all_timed:
        found |= {"gain_at_equal_time": float(np.mean(timed)), "gain_at_equal_time_interval": interval95(timed)}
    found["as_fast"] = not shared and (own <= other or (all_timed and verdict(timed) == "better"))
    start = float(np.mean([other["miou"] for _, other in pairs]))
    if teacher_miou is not None and teacher_miou > start:
        closed = {"closed": found["gain"], "closed_interval": found["gain_interval"]}
        found |= {key: value / (teacher_miou - start) for key, value in closed.items()}
    return found


def _same_steps(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> bool:
    """Whether runs saw as many images as their baselines; False where it is not recorded."""
    return all(own.get("samples") is not None and own["samples"] == other.get("samples") for own, other in pairs)


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


def seconds_of(on: dict[str, float]) -> str:
    """Of `seconds_on`, with the machines' names."""
    return ", ".join(f"{seconds:.0f} ({machine})" for machine, seconds in on.items())


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows of `compare` as a Markdown table, in points of mIoU, and below it which baselines may not have converged."""
    gain = "gain, equal epochs" if _equal_epochs(rows) else "gain"
    clock = "processor seconds" if any(row.get("processor") for row in rows) else "seconds"
    heads = ["student", "method", "mIoU", gain, EQUAL_TIME, "gap closed", "verdict", "seeds", "epochs"]
    heads.append(f"{clock} per run")
    machines = sorted({name for row in rows for name in row.get("machines", ())})
    unfinished = not_converged(rows)
    table = [
        [
            row["backbone"],
            row["method"],
            plus_minus(row["miou"], row["miou_interval"]),
            plus_minus(row["gain"], row["gain_interval"], "+") if "gain" in row else "",
            _equal_time(row),
            f"{row['closed']:.0%}" if "closed" in row else "",
            verdict_of(row, unfinished),
            _seeds(row),
            str(row.get("epochs", "")),
            seconds_of(row["seconds_on"]) if len(machines) > 1 else f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    place = heads.index(EQUAL_TIME)
    if not any(cells[place] for cells in table):  # a column without any entry tells nothing
        for cells in (heads, *table):
            del cells[place]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *table)]
    lines.insert(1, f"|{'---|' * len(heads)}")
    notes = [
        f"The baseline of {backbone} may not have converged: its mIoU on val still rose by {100 * rise:.1f} points "
        f"over the last quarter. Some rise is usual while the learning rate falls to zero; train twice as long to see "
        f"whether there is more. Until then its gains may say how much faster a student learns, not how much better it "
        f"becomes."
        for backbone, rise in unfinished.items()
    ] + [
        f"The baseline of {row['backbone']} was scored too rarely to tell whether it has converged."
        for row in rows
        if row["method"] == "baseline" and "late_rise" not in row
    ]
    if any(row.get("shared_clock") for row in rows):
        notes.append(
            "The seconds are wall-clock times of a machine that did other things too, so nothing is said about equal "
            "time."
        )
    if len(machines) > 1:
        notes.append(f"The runs are of several machines ({', '.join(machines)}), whose seconds cannot be compared.")
    notes += _by_chance(rows)
    return "\n".join(lines) + "".join(f"\n\n{note}" for note in notes)


def time_table(rows: list[dict[str, Any]]) -> str:
    """Rows of `comparison.at_equal_time` as a Markdown table, and below it what Holm's correction leaves."""
    clock = "processor seconds" if any(row.get("processor") for row in rows) else "seconds"
    lines = [
        f"Over the student alone with the shortest longer schedule that takes at least as many {clock} as the method:",
        "",
        "| student | method | gain over it | verdict | seeds | epochs | seconds | its epochs | its seconds |",
        f"|{'---|' * 9}",
    ]
    for row in rows:
        cells = [row["backbone"], row["method"], plus_minus(row["gain"], row["gain_interval"], "+"), row["verdict"]]
        cells += [_seeds(row), row["epochs"], f"{row['seconds']:.0f}", row["lent_epochs"], f"{row['lent_seconds']:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "".join(f"\n\n{note}" for note in _by_chance(rows))


def _by_chance(rows: list[dict[str, Any]]) -> list[str]:
    """What is left of the verdicts once it counts how many there are; nothing for a single one."""
    tested = [row for row in rows if row.get("p_holm") is not None]
    if len(tested) < 2:
        return []
    several = len({row["backbone"] for row in tested}) > 1
    kept = [
        f"{row['method']} on {row['backbone']}" if several else row["method"] for row in tested if row["p_holm"] < 0.05
    ]
    found = sum(row["verdict"] != "not settled" for row in tested)
    left = f"these stay settled: {', '.join(kept)}" if kept else "none stays settled"
    return [
        f"{found} of {len(tested)} intervals {'excludes' if found == 1 else 'exclude'} zero; about "
        f"{0.05 * len(tested):.2g} would by chance if no method had any effect. With Holm's correction for that many "
        f"comparisons {left}."
    ]


def not_converged(rows: list[dict[str, Any]]) -> dict[str, float]:
    """By student, how far its baseline still rose over the last quarter, where that is more than a point.

    Baselines that were scored too rarely to tell are not among them.
    """
    rises = {row["backbone"]: row.get("late_rise", 0.0) for row in rows if row["method"] == "baseline"}
    return {backbone: rise for backbone, rise in rises.items() if rise > POINT}


def _equal_epochs(rows: list[dict[str, Any]]) -> bool:
    epochs = {row["backbone"]: row.get("epochs") for row in rows if row["method"] == "baseline"}
    return all(row.get("epochs") == epochs.get(row["backbone"], row.get("epochs")) for row in rows)


def _seeds(row: dict[str, Any]) -> str:
    """How many; where the baseline has not all of them, of how many the gain is."""
    seeds, pairs = len(row["seeds"]), row.get("pairs")
    return str(seeds) if pairs in (None, seeds) else f"{seeds}, gain of {pairs}"


def _equal_time(row: dict[str, Any]) -> str:
    known = "gain_at_equal_time" in row
    return plus_minus(row["gain_at_equal_time"], row["gain_at_equal_time_interval"], "+") if known else ""


def verdict_of(row: dict[str, Any], unfinished: dict[str, float]) -> str:
    """The verdict on a gain: plainly `better` only where it takes no more time, or is there at equal time too.

    One that is not settled has the number of seeds whose interval would be ± 1 point.
    """
    if row["method"] == "baseline":
        return "still rising" if row["backbone"] in unfinished else ""
    if "verdict" not in row:
        return ""
    if row["verdict"] == "not settled":
        needed = row["seeds_to_settle"]
        if needed is None:
            return "not settled: one seed"
        if abs(row["gain"]) + row["gain_interval"] <= POINT:
            return "less than a point"  # whichever sign it has
        if needed <= row["pairs"]:
            return "not settled"
        seeds = f"{MANY:,} seeds or more" if needed == MANY else f"about {needed} seeds"
        return f"not settled (± 1 point would take {seeds})"
    where = " at equal epochs" if row["verdict"] == "better" and not row["as_fast"] else ""
    return f"{row['verdict']}{where}{', so far' if row['backbone'] in unfinished else ''}"


def plus_minus(value: float, half_width: float, sign: str = "") -> str:
    """A share and half its interval in points, as tables have them; `sign` "+" for gains."""
    interval = "" if np.isnan(half_width) else f" ± {100 * half_width:.1f}"
    return f"{100 * value:{sign}.1f}{interval}"
