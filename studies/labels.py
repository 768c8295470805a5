"""Few labels: what results/README.md says of the studies that have fewer than 500."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from distill.lab.comparison import Findings, markdown, read_findings, tables
from distill.lab.curves import interval95
from distill.lab.tables import compare, plus_minus, results_file
from distill.show import charts
from studies.conditions import MASKS, STUDENT, Place, lead_over, runs_of
from studies.shared import average, gain_of, mean_of, paired, read, recorded_on, score, so_far, steps, tried_alone

ALONE, TAUGHT = "alone, twice the steps", "kd"
COUNTS = (64, 128, 256)  # of labels, beside which images without labels were tried


@dataclass(frozen=True)
class Row:
    """What a student learned from, and where its runs are."""

    labels: int
    images: int
    how: str
    runs: Place
    method: str = "baseline"

    def found(self) -> list[dict]:
        return runs_of(self.runs, self.method)


TWICE = Row(128, 128, ALONE, ("sample-128", "128 labels, twice as long"))
BY_KD = Row(128, 128, TAUGHT, ("sample-128", "128 labels"), "kd")
WIDER = Row(128, 2000, TAUGHT, ("sample-128", "128 labels, 2,000 images"), "kd")
BY_MASKS = Row(128, 2000, f"the {MASKS}", ("labels-by-teacher", ""))
CEILING = Row(2000, 2000, "alone", ("labels", "2,000 labels"))
ROWS = [
    Row(64, 64, ALONE, ("labels", "64 labels")),
    Row(64, 2000, TAUGHT, ("labels", "64 labels, 2,000 images"), "kd"),
    TWICE,
    BY_KD,
    Row(128, 500, TAUGHT, ("labels", "128 labels, 500 images"), "kd"),
    WIDER,
    BY_MASKS,
    Row(128, 16000, TAUGHT, ("labels", "128 labels, 16,000 images"), "kd"),
    Row(256, 256, ALONE, ("labels", "256 labels")),
    Row(256, 2000, TAUGHT, ("labels", "256 labels, 2,000 images"), "kd"),
    Row(500, 500, ALONE, ("sample-long", "")),
    CEILING,
]


def recorded() -> list[Row]:
    return [row for row in ROWS if row.found()]


def alone(labels: int) -> Row | None:
    """The student alone on so many labels, for twice the steps; None where that is not recorded."""
    return next((row for row in recorded() if (row.labels, row.how) == (labels, ALONE)), None)


def taught(labels: int, images: int) -> Row | None:
    return next((row for row in recorded() if (row.labels, row.images, row.how) == (labels, images, TAUGHT)), None)


def lead(row: Row, over: Row) -> str:
    return gain_of(lead_over(row.found(), over.found()))


def table(rows: list[Row]) -> str:
    """The rows, each but the student alone with its lead over the student alone on as many labels."""
    bases = {row.labels: row for row in rows if row.how.startswith("alone")}
    lines = [
        "| labels | images | learns | mIoU | lead over the student alone | steps | decay | processor seconds | seeds |",
        f"|{'---|' * 9}",
    ]
    for row in rows:
        runs, base = row.found(), bases.get(row.labels)
        run, settings = runs[0], runs[0]["settings"]
        cells = [f"{row.labels:,}", f"{row.images:,}", row.how, score(runs)]
        cells.append(lead(row, base) if base and base is not row else "")
        cells += [f"{steps(run):,}", f"{settings['weight_decay']:g}"]
        lines.append(f"| {' | '.join(cells)} | {average(runs, 'cpu_seconds'):.0f} | {len(runs)} |")
    return "\n".join(lines)


def read_out() -> str:
    """The leads, the control and the ceiling in sentences."""
    told = [f"With {labels} labels, {_leads(labels)}." for labels in COUNTS if alone(labels)]
    return " ".join(filter(None, [*told, masks(), ceiling()]))


def _leads(labels: int) -> str:
    """What kd leads by, by the number of images."""
    rows = [row for row in recorded() if (row.labels, row.how) == (labels, TAUGHT)]
    base = alone(labels)
    return "kd leads by " + ", ".join(f"{lead(row, base)} ({row.images:,} images)" for row in rows if base)


def masks() -> str:
    """The control: is it the probabilities, or do the teacher's choices do?"""
    if not BY_MASKS.found():
        return ""
    own = lead_over(WIDER.found(), BY_MASKS.found())
    settled = "" if own["verdict"] in ("better", "worse") else ", which is not settled"
    begin = "The control" if own["verdict"] == "better" else "A loss may not be needed"
    return (
        f"{begin}: with the teacher's masks as labels of the {BY_MASKS.images - BY_MASKS.labels:,} images, and no "
        f"distillation, the student has {score(BY_MASKS.found())}; kd leads that by {gain_of(own)}{settled}."
    )


def ceiling() -> str:
    if not CEILING.found():
        return ""
    return (
        f"Labels for all 2,000 images give the student alone {score(CEILING.found())}; kd with 128 of them is off by "
        f"{lead(WIDER, CEILING)}."
    )


def section() -> str:
    """What results/README.md says of them."""
    study, tried = read("labels.json"), read("labels-schedule.json")["runs"]
    head = (
        f"## labels: how many labels, how many images?\n\n{charts.network_name(STUDENT)}, sample data, test split; the "
        f"rows of the studies `sample-128` and `sample-long` beside new ones. Images without labels are the student's "
        f"only: the teacher learned from {read('teacher.json')['config']['images']:,} images with labels, these among "
        f"them. A student with a teacher takes about 3,000 steps of 16 images, with the usual decay where some images "
        f"have no labels; the student alone takes twice as many, on 64 to 256 labels with the best decay tried, on "
        f"500 with the usual one, but on 2,000 no more than with a teacher. A lead therefore does not come from more "
        f"epochs, but part of it may come from the other decay. The weight of kd is the same everywhere."
        f"{so_far('labels')}"
    )
    picture = "![mIoU on validation images against processor seconds, by the number of labels](labels.png)"
    about = (
        "The runs that chose the decay of the baselines of 64 and 256 labels, and one with a larger decay for 500, on "
        "val, with a seed of their own:"
    )
    chosen = "\n".join(tried_alone("labels, decay", tried))
    return "\n\n".join([head, table(recorded()), read_out(), recorded_on(study), picture, about, chosen])


def chart() -> Figure:
    """mIoU on val against processor seconds, a panel for each number of labels."""
    histories: dict[str, dict[str, list]] = {}
    seconds = {}
    for labels in COUNTS:
        rows = {"baseline": alone(labels), "kd": taught(labels, 2000), "baseline, 2,000 labels": CEILING}
        for name, row in rows.items():
            runs = row.found() if row else []
            if runs:
                panel = f"{labels} labels"
                histories.setdefault(panel, {})[name] = [run["history"] for run in runs]
                seconds[panel, name] = average(runs, "cpu_seconds")
    return charts.time_chart(histories, seconds, read("sample-128.json")["teacher"]["val_miou"])


def converged() -> str:
    """What a teacher is worth where labels are few, against a baseline whose settings were chosen for it."""
    study, found = read("sample-128.json"), read_findings([results_file("sample-128.json")])
    seeds = len({entry["seed"] for entry in study["runs"]})
    head = (
        f"Sample data, test split. {study['study']['about']} The teacher, trained on "
        f"{read('teacher.json')['config']['images']:,} images with labels, has "
        f"**{100 * study['teacher']['miou']:.1f}** mIoU. Mean and 95 % interval over {seeds} seeds, in points."
    )
    few, more = ("128 labels", "kd"), ("128 labels, 2,000 images", "kd")
    decay = {run["variant"]: run["settings"]["weight_decay"] for run in study["runs"]}
    longer = paired(found, [("128 labels, twice as long", "baseline"), ("128 labels", "baseline")])
    read_out = (
        f"The tables differ in more than the teacher. Twice as many epochs, with the better of two decays, add "
        f"{mean_of(longer)} points to the baseline; whether a still longer one would catch up is not recorded, so part "
        f"of every gain may be speed. Images without labels add {mean_of(paired(found, [more, few]))} points to kd on "
        f"the labelled ones alone, in as many steps. The weight decay differs ({decay[more[0]]}, the usual one, and "
        f"{decay[few[0]]} on 128 images) and may be part of the difference. `Without labels` is meant for the student: "
        f"these images are among those that the teacher was trained on, with their labels. The baselines' decays "
        f"were chosen by single runs, 0.3 among four at half the length and 0.2 at the whole one, where the shorter "
        f"baseline was not tried with it; the weights of kd and ofd are those of the study `speed`. Notebook 06 has "
        f"all of these runs over the longer baseline, README.md the last ones."
    )
    title = "## sample-128: few labels, against a baseline whose settings were chosen for it"
    return "\n\n".join([title, head, markdown(found), read_out, recorded_on(study)])


def unlabelled() -> str:
    """The same question with the usual decay, and with all labels: runs that temper the rows above."""
    runs = read("sample-unlabelled.json")["runs"]
    lines = ["| images | method | mIoU, val | mIoU, test | epochs | processor seconds |", f"|{'---|' * 6}"]
    for run in runs:
        cells = [run["variant"], run["method"], *(f"{100 * run[key]:.1f}" for key in ("val_miou", "miou"))]
        lines.append(f"| {' | '.join(cells)} | {run['settings']['epochs']} | {run['cpu_seconds']:.0f} |")
    miou = {(run["variant"], run["method"]): 100 * run["miou"] for run in runs}
    few, all_of_them = ("128 labels", "128 labels, 2,000 images"), ("500 labels", "500 labels, 5,000 images")
    tried = {
        run["method"]: run
        for run in [*read("sample-schedule.json")["runs"], *read("sample-128-decay.json")["runs"]]
        if run["variant"] in ("186 epochs, decay 0.3", "128 labels, decay 0.3")
    }
    rows = [run for run in read("sample-128.json")["runs"] if run["variant"] == few[0] and run["method"] == "baseline"]
    better = [run["miou"] for run in rows]
    other = ", ".join(f"{method} {100 * run['val_miou']:.1f}" for method, run in tried.items())
    head = (
        f"One run each, with a weight decay of {runs[0]['settings']['weight_decay']:g}, the usual one, which is a "
        f"poor one on 128 images: there kd leads by {miou[few[0], 'kd'] - miou[few[0], 'baseline']:.1f} points, and "
        f"yet the student alone has {100 * sum(better) / len(better):.1f} with the decay of the study sample-128. "
        f"Images without labels are worth much where labels are few, {miou[few[1], 'kd'] - miou[few[0], 'kd']:+.1f} "
        f"for kd, and with 500 labels {miou[all_of_them[1], 'kd'] - miou[all_of_them[0], 'kd']:+.1f}. On val, with a "
        f"decay of 0.3 and 186 epochs on the 128 images, one run each: {other}."
    )
    title = "## sample-unlabelled: 128 labels with the usual decay, and 500 labels"
    return "\n\n".join([title, head, "\n".join(lines)])


def few_labels() -> str:
    """mIoU by the number of labels, and what distilling on unlabelled images adds, seed by seed."""
    study, found = read("sample-few-labels.json"), read_findings([results_file("sample-few-labels.json")])
    rows = {(name, row["method"]): row for name, part in tables(found).items() for row in part}
    head = (
        f"## sample-few-labels: short runs with fewer labels\n\n{charts.network_name(study['study']['students'][0])} "
        f"on the first of the {max(entry['images'] for entry in study['runs'])} training images alone, and with "
        f"distillation on the others too, without their labels. Test mIoU, mean and 95 % interval over "
        f"{len({entry['seed'] for entry in study['runs']})} seeds, in points. Gains are over the baseline with as many "
        f"labels. All runs take equally many steps, half of those of the study `speed`."
    )
    lines = [
        "| labels | method | mIoU | gain | mIoU, distilled on all | gain | added by images without labels |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, method in ((name, method) for name, method in rows if "distilled on" not in name):
        row, wider = rows[name, method], next((v for v in found.variants if v.get("baseline") == name), {"name": ""})
        cells = [name.removesuffix(" labels"), method, plus_minus(row["miou"], row["miou_interval"]), gain_of(row)]
        if method != "baseline" and (more := rows.get((wider["name"], method))):
            added = paired(found, [(wider["name"], method), (name, method)])
            cells += [plus_minus(more["miou"], more["miou_interval"]), gain_of(more), mean_of(added)]
        lines.append(f"| {' | '.join(cells + [''] * (7 - len(cells)))} |")
    picture = "![mIoU against the number of labelled images](few-labels.png)"
    return "\n\n".join([head, "\n".join(lines), few_labels_read(found, rows), recorded_on(study), picture])


def few_labels_read(found: Findings, rows: dict[tuple[str, str], dict]) -> str:
    """Which gains, and which additions of images without labels, are more than scatter."""
    gains = {f"{method} with {name}": row for (name, method), row in rows.items() if "gain" in row}
    added = {}
    for variant in found.variants:
        for method in ("kd", "ofd"):
            pair = [(variant["name"], method), (variant.get("baseline"), method)]
            if variant.get("baseline") and all(key in rows for key in pair):
                added[f"{method} with {variant['baseline']}"] = paired(found, pair)
    noise = [name for name, row in gains.items() if abs(row["gain"]) <= row["gain_interval"]]
    kept = [name for name, values in added.items() if abs(sum(values) / len(values)) > interval95(values)]
    last = [row for (_, method), row in rows.items() if method == "baseline"][-1]
    later = next(row for row in compare(read("sample.json")["runs"]) if row["method"] == "baseline")
    return (
        f"The 95 % interval of the gain includes zero for {'; '.join(noise) or 'no row'}, and excludes it for every "
        f"other row, none of it corrected for the number of rows. What images without labels add has an interval that "
        f"excludes zero for {'; '.join(kept) or 'no row'}, and includes it elsewhere. **These leads are about speed "
        f"too**: the student alone with all labels has {100 * last['miou']:.1f} here, and {100 * later['miou']:.1f} "
        f"after {later['epochs']} epochs; and the decay is the usual one, a poor one where labels are few."
    )
