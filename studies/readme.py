"""What README.md says of the recorded runs: one table of when a teacher helps, and a few points beside it."""

from dataclasses import dataclass, replace

from distill.lab.comparison import read_findings, tables
from distill.lab.tables import compare, read_study, results_file, seconds_on
from distill.show import charts
from distill.training.presets import SLIM
from studies import camvid, leaderboard, quirks, undone
from studies.conditions import (
    MASKS,
    METHODS,
    NOISY,
    OWN,
    QUARTERED,
    STUDENT,
    USUAL,
    Place,
    Setting,
    best_baseline,
    lead_over,
)
from studies.labels import lead
from studies.shared import corrected, gain_of, gains_of, over_longer, read, score, steps

NOISY_LABELS = "500 labels, three in ten wrong"
USUALLY, QUARTER = "500 labels", "500 labels, a tiny student: a quarter of the channels of the others"
ALL_PHOTOGRAPHS = "367 labels, photographs"
SMALL = "mobilenetv2"
SMALL_ON_PHOTOGRAPHS = f"{ALL_PHOTOGRAPHS}; {charts.network_name(SMALL)}"
TWICE = ("sample-128", "128 labels, twice as long")
OF_THEM = "of them"  # the student alone may be better with a part of the labels


def settings() -> list[Setting]:
    """The rows of the table, few labels first."""
    photographs, longer = ("camvid", ""), ("camvid-long", "")
    return [
        _wider(64, ("labels", "64 labels, 2,000 images"), None, ("labels", "64 labels")),
        _wider(
            128, ("sample-128", "128 labels, 2,000 images"), TWICE, ("sample-128", "128 labels"), "labels-by-teacher"
        ),
        _wider(256, ("labels", "256 labels, 2,000 images"), None, ("labels", "256 labels")),
        replace(USUAL, name=USUALLY),
        replace(NOISY, name=NOISY_LABELS),
        replace(QUARTERED, name=QUARTER),
        replace(OWN, name="500 labels, a teacher of these images only"),
        _of_few_photographs(46, "camvid-by-teacher"),
        replace(
            _of_few_photographs(92, "camvid-by-teacher-92"), others={f"46 {OF_THEM}": ("camvid-labels", "46 labels")}
        ),
        _of_few_photographs(183),
        Setting(ALL_PHOTOGRAPHS, photographs, longer),
        Setting(SMALL_ON_PHOTOGRAPHS, photographs, longer, student=SMALL),
    ]


def _of_few_photographs(labels: int, masks: str = "") -> Setting:
    taught, alone = (("camvid-labels", f"{labels} labels{more}") for more in (", 367 photographs", ""))
    return _wider(labels, taught, None, alone, masks, images=367, what="photographs")


def _wider(
    labels: int,
    taught: Place,
    longer: Place | None,
    alone: Place,
    masks: str = "",
    images: int = 2000,
    what: str = "images",
) -> Setting:
    """A student with a teacher that learns from further images, which have no labels."""
    controls = {MASKS: (masks, "")} if masks else {}
    name = f"{labels} labels; taught also on {images - labels:,} {what} without"
    return Setting(name, taught, longer, alone, controls=controls)


@dataclass
class Line:
    """A row of the table: the best student alone, its lead by method, and the control."""

    setting: Setting
    alone: list[dict]
    leads: dict[str, dict]  # as `lead_over` gives them
    steps: str

    def __str__(self) -> str:
        cells = [self.setting.name, score(self.alone)]
        for what in (*METHODS, MASKS):
            lead = self.leads.get(what, {})
            cells.append(f"**{gain_of(lead)}**" if lead.get("verdict") in ("better", "worse") else gain_of(lead))
        seeds = min(len(lead["scores"]) for lead in self.leads.values())
        return f"| {' | '.join(cells)} | {self.steps} | {seeds} |"


def lines() -> list[Line]:
    """The rows of which there are a student alone and one with a teacher."""
    found = []
    for row in settings():
        runs = row.found()
        taught = [runs[method][0] for method in METHODS if method in runs]
        if not taught or not any(what.startswith("baseline") for what in runs):
            continue
        best = best_baseline(runs)
        alone = runs[best]
        if best.endswith(OF_THEM):
            row = replace(row, name=f"{row.name} (alone: with {best.removeprefix('baseline, ')}, which is better)")
        leads = {what: lead_over(runs[what], alone) for what in (*METHODS, *row.controls) if what in runs}
        taken = f"{steps(alone[0]):,} / {steps(taught[0]):,}"
        if MASKS in leads and steps(runs[MASKS][0]) != steps(taught[0]):
            taken += f" (masks: {steps(runs[MASKS][0]):,})"
        found.append(Line(row, alone, leads, taken))
    return found


def results() -> str:
    rows = lines()
    intervals = sum(len(row.leads) for row in rows)
    head = (
        "*Alone*: mIoU, the mean overlap of true and predicted areas over the classes, in percent, without a teacher; "
        "of the schedules run with these seeds the best on val, the images on which settings are chosen. `kd`, `ofd`: "
        "the lead over it in points, between runs "
        "of one seed; empty where not tried. *Masks*, a control without a distillation loss: the teacher's masks are "
        "the labels where there are none (for wrong labels: everywhere). ± is half of a 95 % interval over seeds, a "
        f"rough one. Bold excludes zero: by chance about {0.05 * intervals:.0f} of these {intervals} would, if "
        "teachers had no effect. *Steps*: of 16 images, alone / with a teacher; a step with a teacher takes "
        f"{_cost('sample', 'sample')} times as long on drawings, where its answers are computed once and kept, and "
        f"{_cost('camvid', 'camvid-long')} times on photographs with all labels.\n\n"
        "Drawings are synthetic scenes of 64 x 64 pixels, scored on test images; photographs are streets (CamVid at "
        "half size; [07b](notebooks/07b_real_photographs.ipynb)), scored on val. "
        f"{charts.network_name(STUDENT)}, the student where a row names none, has a quarter of the usual channels, "
        f"{charts.network_name(SMALL)} {SLIM[SMALL]['width']:.0%}. [All tables and charts](results/README.md) have "
        "seconds, machines and dates; [06b](notebooks/06b_where_it_helps.ipynb) has other conditions."
    )
    table = "\n".join(
        ["| learns from | alone | `kd` | `ofd` | masks | steps | seeds |", f"|{'---|' * 7}", *map(str, rows)]
    )
    return "\n\n".join([*_listed(in_short(rows)), table, head, *_listed(_points())])


def _listed(points: list[str]) -> list[str]:
    """A list in Markdown, or nothing where there are no points."""
    return ["\n".join(f"- {point}" for point in points)] if points else []


def in_short(rows: list[Line]) -> list[str]:
    """The answer, a sentence for each kind of images and labels, as long as the rows say it."""
    drawn = [row for row in rows if "photographs" not in row.setting.name]
    return _of_drawings(drawn) + _of_photographs([row for row in rows if row not in drawn])


def _better(row: Line) -> set[str]:
    """What is ahead of the best student alone."""
    return {what for what, lead in row.leads.items() if lead["verdict"] == "better"}


def _of_drawings(rows: list[Line]) -> list[str]:
    """What is ahead with drawings: two sentences."""
    by_name = {row.setting.name: row for row in rows}
    few, wrong = [row for row in rows if "taught also" in row.setting.name], by_name[NOISY_LABELS]
    if not all(map(_better, [*few, wrong])) or _better(by_name[USUALLY]) or leaderboard.ahead_at_equal_time():
        return []
    epochs = read("sample.json")["runs"][0]["settings"]["epochs"]
    leads = [row.leads["kd"]["gain"] for row in few]  # few labels first
    more = ", the more the fewer labels there are" if leads == sorted(leads, reverse=True) else ""
    gains = ", ".join(f"{gain_of(row.leads['kd'])} ({row.setting.name.split(';')[0]})" for row in few)
    return [
        f"**Drawings, labels few or wrong:** a teacher that knows better helps{more}: with further images without "
        f"labels `kd` leads by {gains}; with three labels in ten wrong by {gain_of(wrong.leads['kd'])}.",
        f"**Drawings, labels many and right:** no method of {epochs} epochs is shown to be ahead of "
        f"{charts.network_name(STUDENT)} alone that trains as many seconds{_but_tiny(by_name.get(QUARTER))}."
        f"{_as_many(epochs)}",
    ]


def _of_photographs(rows: list[Line]) -> list[str]:
    """What is ahead with photographs: two sentences."""
    full = {row.setting.name: row for row in rows if ALL_PHOTOGRAPHS in row.setting.name}
    few = [row for row in rows if row.setting.name not in full]
    ahead = set[str]().union(*map(_better, few))
    if not ahead | set[str]().union(*map(_better, full.values())):
        return ["**Photographs:** no lead over the best student alone is settled."]
    if MASKS not in ahead or _better(full[ALL_PHOTOGRAPHS]):
        return []
    perhaps = [f"`{method}` with that teacher ({_by_labels(few, method)})" for method in METHODS if method in ahead]
    own = lead_over(camvid.MASKS_OF_FEW.found(), camvid.ALONE_46.found())  # of one teacher, and one choice of images
    perhaps += [f"masks of a teacher of the same 46 labels ({gain_of(own)})"] if own["verdict"] == "better" else []
    also = f" Less sure: {'; '.join(perhaps)}." if perhaps else ""
    return [
        "**Photographs, few labels:** masks that a teacher draws for the other photographs help, if that teacher had "
        f"learned from all labels: {_by_labels(few, MASKS)}.{also}",
        f"**Photographs, all labels:** no distillation loss is shown to be ahead of the best "
        f"{charts.network_name(STUDENT)} alone, which had twice the steps{_and_on_small(full)}.",
    ]


def _by_labels(rows: list[Line], what: str) -> str:
    """The leads of a method, or of the masks, in the rows that have it."""
    return ", ".join(
        f"{gain_of(row.leads[what])} with {row.setting.name.split()[0]}" for row in rows if what in row.leads
    )


def _and_on_small(rows: dict[str, Line]) -> str:
    """The smaller student of photographs, where a loss is ahead of the best of it alone."""
    row = rows.get(SMALL_ON_PHOTOGRAPHS)
    ahead = {method: row.leads[method] for method in METHODS if method in _better(row)} if row else {}
    said = " and ".join(f"`{method}` is, by {gain_of(lead)}" for method, lead in ahead.items())
    return f"; on {charts.network_name(SMALL)} {said}" if said else ""


def _but_tiny(row: Line | None) -> str:
    """The exception: a student with a quarter of the channels."""
    methods = [f"`{method}`" for method in METHODS if row and method in _better(row)]
    return f", except for a tiny student, which {' and '.join(methods)} lifts" if methods else ""


def _cost(taught: str, alone: str) -> str:
    """How many times as long a step with a teacher takes, from and to, on machines that have both."""
    runs = {name: read_study(results_file(f"{name}.json"))[0] for name in (taught, alone)}
    ratios = []
    for student in (STUDENT, SMALL):
        usual = _paces(runs[alone], student, "baseline")
        for method in METHODS:
            paces = _paces(runs[taught], student, method)
            ratios += [seconds / usual[machine] for machine, seconds in paces.items() if machine in usual]
    return f"{min(ratios):.1f} to {max(ratios):.1f}"


def _paces(runs: list[dict], student: str, method: str) -> dict[str, float]:
    """Processor seconds of an image by machine."""
    own = [run for run in runs if (run["backbone"], run["method"]) == (student, method)]
    return {machine: seconds / own[0]["samples"] for machine, seconds in seconds_on(own).items()}


def _points() -> list[str]:
    """Why the table is as it is."""
    study, teachers = read("sample.json"), {name: read(f"{name}.json") for name in ("teacher", "camvid-teacher")}
    rows = tables(read_findings([results_file("sample.json")]))[""]
    seeds, epochs = len({run["seed"] for run in study["runs"]}), study["runs"][0]["settings"]["epochs"]
    settled = [row for row in rows if row.get("verdict") in ("better", "worse")]
    early = compare(*read_study(results_file("speed.json")))
    best = max((row for row in early if "gain" in row), key=lambda row: row["gain"])
    return [
        "**The teacher knows more than the student is told**, in all rows but that with a teacher of these images only "
        f"({100 * read('own-teacher.json')['teacher']['miou']:.1f} mIoU). That of drawings "
        f"({100 * study['teacher']['miou']:.1f}) learned from {teachers['teacher']['config']['images']:,} images "
        f"with right labels, that of photographs ({100 * teachers['camvid-teacher']['val']['miou']:.1f}) from ImageNet "
        f"and all labels of CamVid's training images. {_few_teacher()}",
        f"**At equal epochs gains are larger.** After {epochs} epochs, alone and with a teacher ({seeds} seeds, 500 "
        f"labels), the interval excludes zero for {gains_of(settled)}. {_explained(corrected(rows))} "
        f"{leaderboard.in_short()}",
        f"**Short baselines make large gains.** After only {early[0]['epochs']} epochs `{best['method']}` leads by "
        f"{gain_of(best)} on {charts.network_name(best['backbone'])}: a student with a teacher learns in fewer epochs, "
        f"which is not the same as becoming better. {quirks.half_schedule()} The student alone has {doublings()} (one "
        "run each).",
        undone.in_short(),
    ]


def _explained(sentence: str) -> str:
    """With a link at the word that many readers have not met."""
    return sentence.replace("Holm's correction", "[Holm's correction](docs/glossary.md)")


def _few_teacher() -> str:
    """The photographs whose teacher had few masks too."""
    leads = {"`kd`": camvid.KD_OF_FEW, "its masks": camvid.MASKS_OF_FEW}
    said = ", ".join(f"{lead(row, camvid.ALONE_46)} ({name})" for name, row in leads.items())
    return (
        f"One of ImageNet and the same 46 photographs ({100 * camvid.few_teacher():.1f}) was tried too: {said} over "
        "the student alone."
    )


def _as_many(epochs: int) -> str:
    """The method that got as many epochs as the longer student alone."""
    longer = [row for row in over_longer("sample") if row["epochs"] > epochs]
    rows = [row for row in longer if row["method"] != "baseline"]
    if not rows:
        return ""
    alone = {row["backbone"]: row["seconds"] for row in longer if row["method"] == "baseline"}
    dearest = max(row["seconds"] / alone[row["backbone"]] - 1 for row in rows)
    return (
        f" With {rows[0]['epochs']} epochs for both, in up to {dearest:.0%} more seconds, the method that val chose "
        f"leads by {gains_of(rows)}."
    )


def doublings() -> str:
    """What the baseline alone reaches with more and more epochs of all images, one run each."""
    runs = {run["variant"]: run for run in read("sample-schedule.json")["runs"]}
    names = [f"500 labels, {epochs} epochs" for epochs in (96, 192, 384)]
    return ", ".join(
        f"{100 * runs[name]['miou']:.1f} after {runs[name]['settings']['epochs']} epochs" for name in names
    )
