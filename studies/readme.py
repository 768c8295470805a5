"""What README.md says of the recorded runs: one table of when a teacher helps, and a few points beside it."""

from collections.abc import Iterator
from dataclasses import replace

from distill.files import PROJECT
from distill.lab.comparison import read_findings, tables
from distill.lab.curves import interval95
from distill.lab.tables import compare, plus_minus, read_study, results_file
from distill.show import charts
from studies import blocks, leaderboard
from studies.blocks import average, corrected, gain_of, gains_of, over_longer, read
from studies.conditions import CONDITIONS, METHODS, STUDENT, USUAL, Setting, best_baseline, lead_over

FEW = ("sample-128", "128 labels, twice as long")
MASKS = "the teacher's masks as labels"
PHOTOGRAPHS = ("46 labels, 367 photographs", "46 labels")


def settings() -> list[Setting]:
    """The rows of the table that are recorded, few labels first."""
    noisy, half, quarter, crops, own = (
        setting for condition in CONDITIONS for setting in condition.settings if setting is not USUAL
    )
    wider = ("sample-128", "128 labels, 2,000 images")
    taught, alone = (("camvid-labels", variant) for variant in PHOTOGRAPHS)
    rows = [
        _wider(64),
        Setting("128 labels", ("sample-128", "128 labels"), FEW),
        Setting(
            "128 labels, and 1,872 images without",
            wider,
            FEW,
            ("sample-128", "128 labels"),
            controls={MASKS: ("labels-by-teacher", "")},
        ),
        _wider(256),
        replace(USUAL, name="500 labels"),
        replace(noisy, name="500 labels, three in ten wrong"),
        replace(half, name="500 labels, half of the student's channels"),
        replace(quarter, name="500 labels, a quarter of its channels"),
        replace(crops, name="500 labels, crops"),
        replace(own, name="500 labels, a teacher of the same images"),
        Setting(
            "photographs, 46 labels, 321 without", taught, None, alone, controls={MASKS: ("camvid-by-teacher", "")}
        ),
        Setting("photographs, 367 labels", ("camvid", ""), ("camvid-long", "")),
    ]
    return [row for row in rows if all((PROJECT / "results" / f"{place[0]}.json").exists() for place in _places(row))]


def _wider(labels: int) -> Setting:
    name = f"{labels} labels, and {2000 - labels:,} images without"
    return Setting(name, ("labels", f"{labels} labels, 2,000 images"), None, ("labels", f"{labels} labels"))


def _places(row: Setting) -> Iterator[tuple[str, str]]:
    yield row.runs
    yield from (place for place in (row.longer, row.baselines, *row.others.values(), *row.controls.values()) if place)


def table() -> tuple[str, int]:
    """The table, and how many intervals it has."""
    lines = ["| learns from | alone | `kd` | `ofd` | masks | seeds |", f"|{'---|' * 6}"]
    intervals = 0
    for row in settings():
        runs = row.found()
        base = runs[best_baseline(runs)]
        scores = [run["miou"] for run in base]
        cells = [row.name, plus_minus(average(base, "miou"), interval95(scores))]
        for what in (*METHODS, *row.controls):
            lead = lead_over(runs[what], base) if runs[what] else {}
            intervals += bool(lead)
            cells.append(f"**{gain_of(lead)}**" if lead.get("verdict") in ("better", "worse") else gain_of(lead))
        cells += [""] * (not row.controls)
        lines.append(f"| {' | '.join(cells)} | {len(base)} |")
    return "\n".join(lines), intervals


def results() -> str:
    lines, intervals = table()
    camvid, teacher = read("camvid.json"), read("camvid-teacher.json")
    head = (
        f"{charts.network_name(STUDENT)} on synthetic scenes of 64 x 64 pixels, test images, and on photographs "
        f"({camvid['runs'][0]['images']} of CamVid, half size, val; [07b](notebooks/07b_real_photographs.ipynb)). "
        "*Alone*: mIoU, the mean overlap of true and predicted areas over the classes in percent, of the student "
        "without a teacher, the best on val of what is recorded; in all rows but that with crops one takes twice the "
        "steps, in about as many seconds as training with a teacher. `kd`, `ofd`: the lead over it, in points, between "
        "runs of one seed. *Masks*: no distillation, but the teacher's masks as labels of the images that have none, "
        "or wrong ones. ± is half of a 95 % confidence interval over seeds, a rough one; bold excludes zero, as about "
        f"{0.05 * intervals:.0f} of these {intervals} would by chance. Here are [all tables, charts and "
        "costs](results/README.md), with seconds, machines and dates."
    )
    return f"{head}\n\n{lines}\n\n{_points(camvid, teacher)}"


def _points(camvid: dict, teacher: dict) -> str:
    study = read("sample.json")
    rows = tables(read_findings([results_file("sample.json")]))[""]
    seeds, epochs = len({run["seed"] for run in study["runs"]}), study["runs"][0]["settings"]["epochs"]
    settled = [row for row in rows if row.get("verdict") in ("better", "worse")]
    early = compare(*read_study(results_file("speed.json")))
    best = max((row for row in early if "gain" in row), key=lambda row: row["gain"])
    points = [
        "**The teacher knows more than the student is told**, in all rows but one: the teacher of the drawings learned "
        f"from {read('teacher.json')['config']['images']:,} images with right labels, that of the photographs from all "
        f"{camvid['runs'][0]['images']} of them and, before, from ImageNet ({100 * teacher['val']['miou']:.1f} mIoU). "
        "Labels are few for the student only; a teacher that had few itself was not tried.",
        f"**At equal epochs gains are larger**, over a student alone that takes about half the seconds. After {epochs} "
        f"epochs on 500 labels the interval, of {seeds} seeds, excludes zero for {gains_of(settled)}. "
        f"{corrected(rows)} {leaderboard.in_short()}{_as_many(epochs)}",
        f"**Short baselines make large gains.** After only {early[0]['epochs']} epochs `{best['method']}` leads by "
        f"{gain_of(best)} on {charts.network_name(best['backbone'])}: a student with a teacher learns in fewer epochs, "
        f"which is not the same as becoming better. {blocks.half_schedule()} Nor has any student alone converged: in "
        f"one run each, {charts.network_name(STUDENT)} on 500 labels has {doublings()}.",
    ]
    return "\n".join(f"- {point}" for point in points)


def _as_many(epochs: int) -> str:
    """The method that got as many epochs as the longer student alone."""
    rows = [row for row in over_longer("sample") if row["epochs"] > epochs and row["method"] != "baseline"]
    return f" Given twice the epochs too, the method that val chose leads by {gains_of(rows)}." if rows else ""


def doublings() -> str:
    """What the baseline alone reaches with more and more epochs of all images, one run each."""
    runs = {run["variant"]: run for run in read("sample-schedule.json")["runs"]}
    names = [f"500 labels, {epochs} epochs" for epochs in (96, 192, 384)]
    return ", ".join(
        f"{100 * runs[name]['miou']:.1f} after {runs[name]['settings']['epochs']} epochs" for name in names
    )
