"""Real photographs: what results/README.md says of the studies on CamVid."""

from collections import Counter

from distill.lab.comparison import read_findings, tables
from distill.lab.curves import late_rise
from distill.lab.tables import class_gains, markdown_table, results_file
from distill.show import charts
from studies import leaderboard
from studies.blocks import as_long, weights
from studies.conditions import MASKS as BY_TEACHER
from studies.labels import ALONE, Row, lead, table
from studies.shared import average, read, recorded_on, said, score, so_far, tried_alone

COUNTS = (46, 92, 183)  # of labels, of 367 photographs
MASKS, MASKS_92 = (
    Row(labels, 367, f"the {BY_TEACHER}", (study, ""))
    for labels, study in ((46, "camvid-by-teacher"), (92, "camvid-by-teacher-92"))
)
BY_KD, BY_KD_92 = (
    Row(labels, 367, "kd", ("camvid-labels", f"{labels} labels, 367 photographs"), "kd") for labels in (46, 92)
)
ALONE_46 = Row(46, 46, ALONE, ("camvid-labels", "46 labels"))
OF_FEW = "a teacher of the 46"
KD_OF_FEW = Row(46, 367, f"kd, {OF_FEW}", ("camvid-few-teacher", ""), "kd")
MASKS_OF_FEW = Row(46, 367, f"the masks of {OF_FEW}", ("camvid-by-few-teacher", ""))
ALL = Row(367, 367, "alone, four times the steps", ("camvid-long", ""))


def few_rows() -> list[Row]:
    """What is recorded with few labels, by their number; the student alone on all of them comes last."""
    rows = []
    for labels in COUNTS:
        rows.append(Row(labels, labels, ALONE, ("camvid-labels", f"{labels} labels")))
        wider = ("camvid-labels", f"{labels} labels, 367 photographs")
        rows += [Row(labels, 367, method, wider, method) for method in ("kd", "ofd")]
        rows += [row for row in (MASKS, MASKS_92, KD_OF_FEW, MASKS_OF_FEW) if row.labels == labels]
    return [row for row in [*rows, ALL] if row.found()]


def few_labels() -> str:
    """Photographs of which few have labels: what a teacher is worth there."""
    head = (
        "## camvid-labels: photographs with few labels\n\nCamVid at half size, slim ResNet-18 from random weights, "
        "val. The student alone learns from the images with labels; with a teacher, from all 367, which have no labels "
        "but these, in half the steps, for one with the teacher of all takes twice as long or more. With 46, 92 "
        "and 183 labels the decay of the student alone is the better of two on images held out from train. The teacher "
        "learned from "
        f"all 367 images with labels, unless the row says {OF_FEW}."
        f"{so_far('camvid-labels')}"
    )
    chosen = "\n".join(tried_alone("labels, decay", read("camvid-labels-schedule.json")["runs"]))
    about = "The runs that chose the decays, one each, on training images held out, with a seed of their own:"
    return "\n\n".join([head, table(few_rows()), few_read(), recorded_on(read("camvid-labels.json")), about, chosen])


def few_read() -> str:
    """The leads over the student alone, the teacher that had few labels too, and the leads over the masks."""
    rows = few_rows()
    alone = {row.labels: row for row in rows if row.how == ALONE}
    told = []
    for labels, base in alone.items():
        if leads := _leads([row for row in rows if row.labels == labels and row is not base], base):
            told.append(f"With {labels} labels the student alone has {score(base.found())}; the leads are {leads}.")
            if fewer := [row for row in alone.values() if row.labels < labels and _mean(row) > _mean(base)]:
                told.append(_less_than(fewer[-1], [row for row in rows if row.labels == labels and row is not base]))
    if KD_OF_FEW in rows:  # whose record has the teacher's score
        gap = few_teacher() - _mean(ALONE_46)
        told.append(
            f"The teacher of the 46, which began with ImageNet's weights, has {100 * few_teacher():.1f}, "
            f"{100 * gap:.1f} above the student alone."
        )
    for masks, kd in ((MASKS, BY_KD), (MASKS_92, BY_KD_92), (MASKS_OF_FEW, KD_OF_FEW)):
        if masks in rows and kd in rows:
            told.append(f"With {kd.labels} labels, over {masks.how}, in half the steps: {_leads([kd], masks)}.")
    return " ".join(told)


def _mean(row: Row) -> float:
    return average(row.found(), "miou")


def _less_than(fewer: Row, rows: list[Row]) -> str:
    """What is to be said where the student alone is better with a part of these labels."""
    return (
        f"The student alone has no more than with {fewer.labels} of these labels, in as many steps: "
        f"which photographs have labels may matter more than how many, and only one choice was "
        f"tried; val is of one drive, train of three. Over the student "
        f"alone with {fewer.labels} the leads are {_leads(rows, fewer)}."
    )


def few_teacher() -> float:
    """mIoU on val of the teacher that learned from the 46."""
    return read("camvid-few-teacher.json")["teacher"]["miou"]


def _leads(rows: list[Row], base: Row) -> str:
    return ", ".join(f"{lead(row, base)} ({row.how})" for row in rows)


def section() -> str:
    """Real photographs: the teacher, and students with and without it."""
    teacher, study, masks = read("camvid-teacher.json"), read("camvid.json"), read("camvid-masks.json")
    rows = tables(read_findings([results_file("camvid.json")]))[""]
    coarse, _ = teacher["runs"]
    run, strides = study["runs"][0], [part["config"]["settings"]["output_stride"] for part in teacher["runs"]]
    alone = {row["backbone"]: row["miou"] for row in rows if row["method"] == "baseline"}
    gaps = [
        f"{100 * (teacher['val']['miou'] - miou):.1f} for {charts.network_name(name)}" for name, miou in alone.items()
    ]
    head = (
        f"CamVid, street scenes at half size, {coarse['config']['images']} training and {masks['split_images']} "
        "validation photographs, "
        f"{len(run['class_names'])} classes; students from random weights, {run['settings']['epochs']} epochs. The "
        f"teacher, DeepLabV3+ on EfficientNet-Lite0 with ImageNet weights ({teacher['parameters'] / 1e6:.2f} million "
        f"parameters), has **{100 * teacher['val']['miou']:.1f}** mIoU on val: "
        f"{100 * coarse['val']['miou']:.1f} after training at output stride {strides[0]}, the rest by further epochs "
        f"at {strides[1]}. The gap to the students alone is "
        f"{', '.join(gaps)}."
    )
    head += f"{_without_imagenet(teacher)}{so_far('camvid')}"
    told = [head, markdown_table(rows), recorded_on(study)]
    if found := said(rows):
        told.append(f"{found} What is left of the gains once class weights are undone is told in camvid-undone.")
    told += [as_long("camvid"), leaderboard.of_photographs()]
    told += [_classes(study["runs"], teacher["val"]["per_class_iou"])]
    told += [weights("camvid", "training images held out"), _schedule()]
    return "\n\n".join(["## camvid: real photographs", *told])


def _without_imagenet(teacher: dict) -> str:
    """The control of the teacher: the same network and schedules from random weights."""
    if "control" not in teacher:
        return ""
    coarse, fine = teacher["control"]
    miou = fine["val"]["miou"]
    return (
        f" The control, the same network with the same two schedules from random weights, one run, has "
        f"{100 * miou:.1f} ({100 * coarse['val']['miou']:.1f} after the first), "
        f"{100 * (teacher['val']['miou'] - miou):.1f} less. Rate and length are those that suit ImageNet's weights: in "
        f"the last quarter of the first schedule its val mIoU changed by {100 * (late_rise(coarse) or 0):+.1f}, and "
        "smaller students from random weights, with settings of their own, are above it. What ImageNet's weights are "
        "worth may be less."
    )


def _classes(runs: list[dict], teacher: dict[str, float]) -> str:
    """IoU by class: teacher, students alone, and what each method adds."""
    gains, alone = class_gains(runs), {}
    for run in (run for run in runs if run["method"] == "baseline"):
        alone.setdefault(run["backbone"], []).append(run["per_class_iou"])
    heads = [f"{charts.network_name(name)} alone" for name in alone]
    counts = Counter((run["backbone"], run["method"]) for run in runs)
    heads += [f"{method} on {charts.network_name(name)} ({counts[name, method]})" for name, method in gains]
    lines = [f"| class | teacher | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for name, iou in teacher.items():
        means = [sum(run[name] for run in found) / len(found) for found in alone.values()]
        cells = [f"{100 * value:.0f}" for value in (iou, *means)]
        cells += [f"{100 * found[name]:+.1f}" for found in gains.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "IoU by class, means over seeds, and the mean gain of each method (its seeds):\n\n" + "\n".join(lines)


def _schedule() -> str:
    """The baseline alone at half size: the runs that chose rate, schedule, class weights and decay."""
    lines = tried_alone("ResNet-18, alone", read("camvid-schedule.json")["runs"])
    head = (
        "The runs that chose the schedule, shorter ones, scored on training images held out, with one seed. Rate 0.032 "
        "and the published scales unless the row says otherwise; narrow scales are from 0.8 to 1.4 times the image's "
        "size. More epochs helped; the lower rate and the narrower scales, which the study took, are ahead by less "
        "than seeds differ:"
    )
    settings = tried_alone("ResNet-18, alone, 120 epochs", read("camvid-baseline.json")["runs"])
    also = (
        "And the runs that looked, later, whether the student alone has the class weights and the decay that suit it, "
        "on the same images. The study has those of the first row; baselines that differ in nothing but the seed lie "
        "as far apart as these rows:"
    )
    return "\n\n".join([head, "\n".join(lines), also, "\n".join(settings)])
