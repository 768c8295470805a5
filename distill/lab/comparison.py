"""The results of studies: tables and figures, from the folders of runs or from a recorded file.

A study's folder of runs holds a study.json beside them: the study file's content, the teacher's scores, the images'
size. A recorded file holds the same, and what `tables.record` gives for every run.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from matplotlib.figure import Figure
from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from distill.errors import DistillError
from distill.files import checked, make_folder, read_json
from distill.lab.curves import scored
from distill.lab.latency import milliseconds
from distill.lab.study_file import variant_folder
from distill.lab.tables import (
    RecordedTeacher,
    check_comparable,
    class_gains,
    compare,
    correct,
    markdown_table,
    read_study,
    record,
    teacher_weights,
    time_table,
)
from distill.show import charts, plots
from distill.training.presets import RECIPES
from distill.training.runs import Run, find_runs

STUDY_FILE = "study.json"
_WHAT = "a recorded study"


_Side = Annotated[int, Field(gt=0, lt=10_000)]  # in pixels


class _Variant(TypedDict):
    name: str
    baseline: NotRequired[str]


class _Content(TypedDict):
    variants: NotRequired[list[_Variant]]
    students: NotRequired[list[str]]
    methods: NotRequired[list[str]]
    teacher: NotRequired[Any]


class _Described(TypedDict):
    """What is known of a study, all of it only where it is one."""

    study: NotRequired[_Content | None]
    teacher: NotRequired[RecordedTeacher | None]
    image_size: NotRequired[Annotated[list[_Side], Field(min_length=2, max_length=2)] | None]


@dataclass
class Findings:
    """Records of runs, and what the study says about them."""

    records: list[dict[str, Any]] = field(default_factory=list)
    variants: list[dict[str, Any]] = field(default_factory=list)  # as in the study file; none where it has none
    teachers: list[dict[str, Any]] = field(default_factory=list)  # scores, of every study that has one
    teachers_of: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # of the studies that have a variant
    sizes: set[tuple[int, int]] = field(default_factory=set)  # of the studies' images

    @property
    def teacher(self) -> dict[str, Any] | None:
        """The teacher of all studies, where it is one."""
        return self.teachers[0] if self.teachers and all(one == self.teachers[0] for one in self.teachers) else None

    @property
    def image_size(self) -> tuple[int, int] | None:
        return next(iter(self.sizes)) if len(self.sizes) == 1 else None

    def teacher_of(self, name: str) -> dict[str, Any] | None:
        """The scores of the teacher that taught a variant's runs."""
        taught = {teacher_weights(entry.get("teacher")) for entry in rows_of(self, name)} - {None}
        # Its own studies first: on the data of another one the same teacher has another score.
        if known := next((one for one in self.teachers_of.get(name, []) if one.get("weights") in taught), None):
            return known
        if known := next((one for one in self.teachers if one.get("weights") in taught), None):
            return known
        # Old records do not say which teacher's scores they hold.
        return self.teacher if not taught or any(one.get("weights") is None for one in self.teachers) else None

    def teacher_of_all(self) -> dict[str, Any] | None:
        """The scores of the teacher that taught the runs of every variant, where it is one."""
        found = [self.teacher_of(name) for name in _names(self)]
        return found[0] if found and all(one == found[0] for one in found) else None

    def add(self, records: Sequence[dict[str, Any]], described: dict[str, Any], path: Path) -> None:
        """Further records, and what a study file or a recorded study at `path` says about them."""
        checked(described, _Described, path, _WHAT)
        self.records += records
        known = {entry["name"]: entry for entry in self.variants}
        for variant in _variants(described):
            if known.setdefault(variant["name"], variant) != variant:
                raise DistillError(
                    f"{path} has another variant {variant['name']!r} than the study before; compare one at a time"
                )
        self.variants = list(known.values())
        if teacher := described.get("teacher"):
            self.teachers.append(teacher)
            for name in {entry.get("variant") or "" for entry in records}:
                self.teachers_of.setdefault(name, []).append(teacher)
        if size := described.get("image_size"):
            self.sizes.add((size[0], size[1]))


def read_findings(paths: Sequence[Path]) -> Findings:
    """From folders with runs below them and recorded studies (.json). Raises DistillError when there are none."""
    findings = Findings()
    for path in paths:
        if path.suffix == ".toml":
            raise DistillError(f"{path} is a study file, without scores; give the record or the folder of its runs")
        if path.is_file() or path.suffix == ".json":
            findings.add(read_study(path)[0], read_json(path), path)
        else:
            _add_runs(findings, path)
    if not findings.records:
        raise DistillError(f"there is no finished run in {', '.join(map(str, paths))}; train one first")
    return findings


def _add_runs(findings: Findings, folder: Path) -> None:
    by_study: dict[Path | None, list[Run]] = {}
    for run in find_runs(folder):
        by_study.setdefault(_study_of(run), []).append(run)
    for home, runs in by_study.items():
        if home is None:
            findings.add(sorted(map(record, runs), key=_baseline_first), {}, folder)
            continue
        described = _described(home)
        own = [run for run in runs if not is_studys_teacher(run)]
        records = [record(run) | {"variant": _variant_name(run, home, described)} for run in own]
        findings.add(in_order(records, described.get("study") or {}), described, home / STUDY_FILE)


def is_studys_teacher(run: Run) -> bool:
    """Whether it is the teacher that a study trained, which is no row of its table."""
    path = _absolute(run.path)
    return path.name == "teacher" and (path.parent / STUDY_FILE).exists()


def _study_of(run: Run) -> Path | None:
    """The folder of the study that a run belongs to: STUDY[/VARIANT]/BACKBONE/METHOD/SEED, or STUDY/teacher."""
    above = _absolute(run.path).parents
    return next((above[up] for up in (0, 2, 3) if up < len(above) and (above[up] / STUDY_FILE).exists()), None)


def _described(home: Path) -> dict[str, Any]:
    return checked(read_json(home / STUDY_FILE), _Described, home / STUDY_FILE, _WHAT)


def teacher_of_study(run: Run) -> str | None:
    """What `load_teacher` takes for the teacher of a run's study, as its file names it or where it was trained."""
    home = _study_of(run)
    if home is None:
        return None
    trained = home / "teacher" / "student.safetensors"
    if trained.exists():
        return str(trained)
    named = (_described(home).get("study") or {}).get("teacher")
    return named if isinstance(named, str) else None


def variant_of(run: Run) -> dict[str, Any]:
    """The variant of its study that a run belongs to, as the study file tells it; empty where there is none."""
    home = _study_of(run)
    return {} if home is None else _variant_at(run, home, _described(home))


def _variant_at(run: Run, home: Path, described: dict[str, Any]) -> dict[str, Any]:
    place = _absolute(run.path).relative_to(home).parts[0]
    return next((entry for entry in _variants(described) if variant_folder(entry["name"]) == place), {})


def _variant_name(run: Run, home: Path, described: dict[str, Any]) -> str:
    """Its variant's; where the file names it no longer, that of its folder."""
    below = _absolute(run.path).relative_to(home).parts
    return str(_variant_at(run, home, described).get("name", "") or (below[0] if len(below) == 4 else ""))


def _absolute(path: Path) -> Path:
    """Links are not followed: a study's folder, or one in it, may be a link to another disk."""
    return Path(os.path.abspath(path))


def _variants(described: dict[str, Any]) -> list[dict[str, Any]]:
    return (described.get("study") or {}).get("variants") or []


def in_order(records: Sequence[dict[str, Any]], study: dict[str, Any]) -> list[dict[str, Any]]:
    """Records in the order of a study file's variants, students, methods and seeds, baselines first."""
    lists = [[v["name"] for v in study.get("variants", [])], study.get("students"), study.get("methods")]
    orders = [{str(name): place for place, name in enumerate(names or [])} for names in lists]

    def key(entry: dict[str, Any]) -> tuple[Any, ...]:
        names = (entry.get("variant"), entry["backbone"], entry["method"])
        places = [order.get(str(name), len(order)) for order, name in zip(orders, names, strict=True)]
        return places[0], places[1], *_baseline_first(entry), places[2], entry["seed"]

    return sorted(records, key=key)


def _baseline_first(entry: dict[str, Any]) -> tuple[bool]:
    return (entry["method"] != "baseline",)


# ----------------------------------------------------------------------------------------------- tables


def tables(findings: Findings) -> dict[str, list[dict[str, Any]]]:
    """The rows of `tables.compare` for every variant by its name, or under "" where a study has none.

    Raises DistillError where runs of one table are not comparable: see `check_comparable`.
    """
    return {name: compare(rows_of(findings, name), _miou(findings.teacher_of(name))) for name in _names(findings)}


def _miou(teacher: dict[str, Any] | None) -> float | None:
    return teacher["miou"] if teacher else None


def rows_of(findings: Findings, name: str) -> list[dict[str, Any]]:
    """The records of one variant, after the baselines of another that it names as its `baseline`; comparable."""
    own = [entry for entry in findings.records if (entry.get("variant") or "") == name]
    declared = {variant["name"]: variant for variant in findings.variants}
    check_comparable(own)
    other = declared.get(name, {}).get("baseline")
    if not other:
        return own
    lent = [entry for entry in findings.records if entry.get("variant") == other and entry["method"] == "baseline"]
    own = [entry for entry in own if entry["method"] != "baseline"]
    check_comparable([*lent, *own], apart=_declared(declared[name]) | _declared(declared.get(other, {})))
    return [*lent, *own]


def at_equal_time(findings: Findings, name: str) -> list[dict[str, Any]]:
    """The rows of `compare` for a variant's methods, each over the shortest baselines that take at least as long.

    Those are baselines of any variant that have more epochs than the method, ran on the same machine, and differ from
    the table's own baselines, or where it has none from the method's runs, in nothing else but how often they were
    scored; with equally many epochs a baseline takes less, since it computes no distillation loss. Their time is their
    epochs times the mean time of an epoch over all of them, since the same work may take a tenth more or less another
    day. Where a method takes longer than all of them, or nothing is known of time, it has no row; Holm's correction is
    for the rows that there are. A row has `lent_epochs`, the baseline's epochs, and `lent_seconds`, their time; its
    `pairs` may be fewer than its seeds.
    """
    found = []
    table = rows_of(findings, name)
    own = [entry for entry in table if entry["method"] != "baseline"]
    for backbone, method in dict.fromkeys((entry["backbone"], entry["method"]) for entry in own):
        runs = [entry for entry in own if (entry["backbone"], entry["method"]) == (backbone, method)]
        named = [entry for entry in table if (entry["backbone"], entry["method"]) == (backbone, "baseline")] or runs
        there = [alone for alone in _baselines(findings, backbone) if len(_machines([*alone, *runs])) == 1]
        pairs = [compare([*alone, *runs]) for alone in there if _but_for_epochs(alone, named)]
        known = [(alone, row) for alone, row in pairs if "gain" in row and _timed(alone) and _timed(row)]
        known = [(alone, row) for alone, row in known if alone["epochs"] > row["epochs"]]
        if not known or len({row["processor"] for _, row in known}) > 1:
            continue
        per_epoch = sum(alone["seconds"] for alone, _ in known) / sum(alone["epochs"] for alone, _ in known)
        needed = known[0][1]["seconds"] / per_epoch  # epochs of the baseline
        if as_long := [(alone, row) for alone, row in known if alone["epochs"] >= needed]:
            alone, row = min(as_long, key=lambda pair: pair[0]["epochs"])
            found.append(row | {"lent_epochs": alone["epochs"], "lent_seconds": alone["epochs"] * per_epoch})
    return correct(found)


def _timed(row: dict[str, Any]) -> bool:
    return "epochs" in row and row["seconds"] > 0 and not row.get("shared_clock")


def _baselines(findings: Findings, backbone: str) -> list[list[dict[str, Any]]]:
    """The baselines of a student, variant by variant."""
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for entry in findings.records:
        if (entry["backbone"], entry["method"]) == (backbone, "baseline"):
            by_variant.setdefault(entry.get("variant") or "", []).append(entry)
    return list(by_variant.values())


def _machines(runs: list[dict[str, Any]]) -> set[str | None]:
    return {entry.get("machine") for entry in runs}


def _but_for_epochs(alone: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    """Whether baselines differ from other runs at most in their epochs, and in how often they were scored."""
    try:
        check_comparable([*alone, *others], apart={"settings.epochs", "settings.evaluate_every", "samples"})
    except DistillError:
        return False
    return True


def _declared(variant: dict[str, Any]) -> set[str]:
    """What the runs of a variant may have that those of another have not, as `check_comparable` calls it."""
    # One that goes back to the recipe "matched" changes what the study's own recipe has set.
    recipes = RECIPES.values() if "recipe" in variant else ()
    settings = {name for recipe in recipes for name in recipe} | set(variant.get("settings") or {})
    return {"images", "samples", *(f"settings.{name}" for name in settings)}


def _names(findings: Findings) -> list[str]:
    return list(dict.fromkeys(entry.get("variant") or "" for entry in findings.records))


def markdown(findings: Findings) -> str:
    """All tables, each under the name of its variant."""
    return "\n\n".join(_table(findings, name, rows) for name, rows in tables(findings).items())


def _table(findings: Findings, name: str, rows: list[dict[str, Any]]) -> str:
    """A variant's table, and where baselines have longer schedules too, the gains over those that took as long."""
    timed = at_equal_time(findings, name)
    return f"{_heading(findings, name)}{markdown_table(rows)}" + (f"\n\n{time_table(timed)}" if timed else "")


def _heading(findings: Findings, name: str) -> str:
    baseline = next((v.get("baseline") for v in findings.variants if v["name"] == name), None)
    return f"### {name}{f' (baselines of: {baseline})' if baseline else ''}\n\n" if name else ""


def report(findings: Findings, pictures: Sequence[tuple[Path, str]], folder: Path) -> str:
    """A Markdown page of tables, gains by class, and pictures (path, alternative text) as seen from `folder`."""
    parts = []
    for name, rows in tables(findings).items():
        parts.append(_table(findings, name, rows))
        if gains := class_gains(rows_of(findings, name)):
            parts.append(
                f"Gain over the baseline by class, mean over seeds, in points of IoU:\n\n{_class_table(gains)}"
            )
    if teacher := findings.teacher_of_all():
        parts.insert(0, f"The teacher has {100 * teacher['miou']:.1f} mIoU.")
    parts += [f"![{alt}]({_relative(path, folder)})" for path, alt in pictures]
    return "\n\n".join(parts) + "\n"


def _class_table(gains: dict[tuple[str, str], dict[str, float]]) -> str:
    names = list(dict.fromkeys(name for found in gains.values() for name in found))
    lines = [f"| class | {' | '.join(' '.join(row) for row in gains)} |", f"|---{'|---' * len(gains)}|"]
    for name in names:
        cells = [f"{100 * found[name]:+.1f}" if name in found else "" for found in gains.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _relative(path: Path, folder: Path) -> str:
    try:
        return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())  # a link has no spaces
    except ValueError:  # on another drive of Windows
        return path.resolve().as_uri()


# ----------------------------------------------------------------------------------------------- figures


def draw(findings: Findings, folder: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """Write every figure as PNG and SVG; the PNGs with their alternative texts, and what could not be drawn and why."""
    written, missing = [], []
    for name, figure, alt in figures(findings):
        if isinstance(figure, str):
            missing.append(figure)
            continue
        path = folder / f"{name}.png"
        make_folder(path.parent)
        plots.save(figure, path)
        written.append((path, alt))
    return written, missing


def figures(findings: Findings) -> Iterator[tuple[str, Figure | str, str]]:
    """Name, figure and alternative text, one after the other; in a figure's place, a sentence why there is none."""
    found, costs = tables(findings), _Costs(findings)
    if sum(any("gain" in row for row in rows) for rows in found.values()) > 1:
        yield "variants", charts.variant_chart(found), "Gains of each method with 95 % intervals, variant by variant."
    if lines := by_labels(findings):
        alt = "Mean mIoU against the number of labelled images, by method."
        yield "labels", charts.label_chart(lines, _miou(findings.teacher_of_all())), alt
    for name, rows in found.items():
        prefix = f"{variant_folder(name)}/" if name else ""
        of = f" of the variant {name}" if name else ""
        if any("gain" in row for row in rows):
            alt = f"Mean paired gain over the baseline{of}, with 95 % intervals, by method and student."
            yield f"{prefix}gains", charts.gain_chart(rows), alt
        if any("closed" in row for row in rows):
            alt = f"Share of the gap between baseline and teacher that each method closes{of}."
            yield f"{prefix}closed", charts.closed_chart(rows), alt
        if gains := class_gains(rows_of(findings, name)):
            alt = f"Gains in IoU{of} by class and method, as numbers on a coloured background."
            yield f"{prefix}classes", charts.class_map(_nested(gains)), alt
        alt = f"mIoU on validation images{of} against the seconds of training, by method; the teacher as a line."
        yield f"{prefix}time", _over_time(findings, name, rows), alt
        yield f"{prefix}curves", _curves(findings, name), f"Loss and validation mIoU{of} by epoch, mean over seeds."
        yield from costs.figures(prefix, name, rows, of)


def by_labels(findings: Findings) -> dict[str, dict[int, tuple[float, float]]]:
    """mIoU and half its interval by number of labelled images, for each method; with "distilled on N" where the
    teacher was asked about further images.

    Empty where variants do not differ in that, where some differ in other things, and for several students at a time.
    """
    lines: dict[tuple[str, int], dict[int, tuple[float, float]]] = {}  # by method and, if more, images
    for name, rows in tables(findings).items():
        own = next(entry for entry in findings.records if (entry.get("variant") or "") == name)
        images = own.get("images") or 0
        labelled = min((own.get("settings") or {}).get("labelled") or images, images)
        for row in rows:
            if labelled < images and row["method"] == "baseline":  # lent by the variant of as many labels
                continue
            line = lines.setdefault((row["method"], images if labelled < images else 0), {})
            if labelled in line or row["backbone"] != rows[0]["backbone"]:
                return {}
            line[labelled] = (row["miou"], row["miou_interval"])
    for (method, images), line in lines.items():  # with all labels, the two are one
        if images in lines.get((method, 0), {}):
            line[images] = lines[method, 0][images]
    if len({place for line in lines.values() for place in line}) < 2:
        return {}
    return {
        charts.method_name(method) + (f", distilled on {images}" if images else ""): line
        for (method, images), line in lines.items()
    }


def _nested(gains: dict[tuple[str, str], dict[str, float]]) -> dict[str, dict[str, dict[str, float]]]:
    students: dict[str, dict[str, dict[str, float]]] = {}
    for (student, method), classes in gains.items():
        students.setdefault(student, {})[method] = classes
    return students


def _histories(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    students: dict[str, dict[str, list[Any]]] = {}
    for entry in records:
        if entry.get("history"):
            students.setdefault(entry["backbone"], {}).setdefault(entry["method"], []).append(entry["history"])
    return students


def _over_time(findings: Findings, name: str, rows: Sequence[dict[str, Any]]) -> Figure | str:
    """With the baselines of another variant: that they had other epochs does not matter here."""
    records = rows_of(findings, name)
    if not records or not all(map(scored, records)):
        return f"no scores over time{f' of {name}' if name else ''}: the record holds no history of some runs"
    seconds = {(row["backbone"], row["method"]): row["seconds"] for row in rows}
    return charts.time_chart(_histories(records), seconds, (findings.teacher_of(name) or {}).get("val_miou"))


def _curves(findings: Findings, name: str) -> Figure | str:
    """Of a variant's own runs: baselines of another may have other epochs."""
    students = _histories([entry for entry in findings.records if (entry.get("variant") or "") == name])
    if not students:
        return f"no learning curves{f' of {name}' if name else ''}: the record holds no history of its runs"
    lines = [line for methods in students.values() for histories in methods.values() for h in histories for line in h]
    loss = "ce" if all("ce" in line for line in lines) else "loss"
    titles = {"ce": "cross-entropy, training images", "loss": "loss, training images"}
    return charts.curve_bands(students, {loss: titles[loss], "val_miou": "mIoU on validation images, %"})


class _Costs:
    """Parameters and latency of networks; all are measured together, when the first is asked for."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        sides = [(entry.get("settings") or {}).get("crop_size") for entry in findings.records]
        self.size = findings.image_size or ((sides[0], sides[0]) if sides[0] else None)
        teachers = [_config(entry.get("teacher")) for entry in findings.records]
        students = [_config(entry.get("model")) for entry in findings.records]
        configs = [config for config in (*students, *teachers) if config]
        self.configs = {str(config): config for config in configs}

    @cached_property
    def latencies(self) -> dict[str, float]:
        try:
            found = milliseconds(list(self.configs.values()), self.size) if self.size else []
        except DistillError:  # such as a backbone of timm, which is not installed
            found = []
        return dict(zip(self.configs, found, strict=False))

    def figures(
        self, prefix: str, name: str, rows: list[dict[str, Any]], of: str
    ) -> Iterator[tuple[str, Figure | str, str]]:
        records = {(entry["backbone"], entry["method"]): entry for entry in rows_of(self.findings, name)}
        points = []
        for row in rows:
            entry = records[row["backbone"], row["method"]]
            costs = self._costs(entry.get("parameters"), entry.get("model"))
            points.append({"network": row["backbone"], "method": row["method"], "miou": row["miou"], **costs})
        taught = next((entry["teacher"] for entry in records.values() if entry.get("teacher")), None)
        score = self.findings.teacher_of(name)
        if score and taught:
            config = _config(taught)
            about = {"network": taught.get("backbone", "teacher"), "method": "teacher", "miou": score["miou"]}
            points.append(about | self._costs(score.get("parameters"), config))
        points = [point for point in points if "parameters" in point]
        if not points:
            yield "", f"no chart of sizes{of}: the record does not say how many parameters the networks have", ""
            return
        if not all("milliseconds" in point for point in points):
            yield "", f"no latency{of} of some networks: they cannot be built from the record, or not here", ""
        height, width = self.size or (0, 0)
        label = f"ms per image of {width} x {height} pixels on this CPU"
        alt = f"mIoU against parameters and latency{of}: teacher, and each student by method."
        yield f"{prefix}sizes", charts.cost_chart(points, label), alt

    def _costs(self, parameters: int | None, config: dict[str, Any] | None) -> dict[str, Any]:
        costs = {"parameters": parameters} if parameters else {}
        known = self.latencies if config else {}
        return costs | ({"milliseconds": known[str(config)]} if str(config) in known else {})


def _config(network: dict[str, Any] | None) -> dict[str, Any] | None:
    """What builds a teacher's or a student's network; None for one of another library."""
    if not network or "backbone" not in network or "wrapped" in network:
        return None
    return {key: value for key, value in network.items() if key != "weights"}
