"""Real photographs: what README.md and results/README.md say of the studies on CamVid."""

from distill.lab.comparison import read_findings, tables
from distill.lab.tables import class_gains, markdown_table, results_file
from distill.show import charts
from studies.blocks import (
    as_long,
    corrected,
    gains_of,
    over_longer,
    read,
    recorded_on,
    said,
    so_far,
    tried_alone,
    weights,
)


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
    head += so_far("camvid")
    told = [head, markdown_table(rows), recorded_on(study)]
    if found := said(rows):
        told.append(found)
    told += [as_long("camvid")]
    told += [_classes(study["runs"], teacher["val"]["per_class_iou"])]
    told += [weights("camvid", "training images held out"), _schedule()]
    return "\n\n".join(["## camvid: real photographs", *told])


def in_short() -> str:
    """What a teacher adds on CamVid, and what twice the epochs add without one."""
    study, teacher = read("camvid.json"), read("camvid-teacher.json")
    rows = tables(read_findings([results_file("camvid.json")]))[""]
    alone = [row for row in rows if "gain" not in row]
    beside = [row for row in over_longer("camvid") if "gain" in row and row["epochs"] == alone[0]["epochs"]]
    added = [row | {"gain": -row["gain"]} for row in beside if row["method"] == "baseline"]
    leads = [row for row in beside if row["method"] != "baseline"]
    ahead = [row for row in leads if row["verdict"] == "better"]
    scores = " and ".join(f"{100 * row['miou']:.1f}" for row in alone)
    return (
        f"On photographs ({study['runs'][0]['images']} of CamVid, half size; a teacher that began with ImageNet's "
        f"weights, {100 * teacher['val']['miou']:.1f} mIoU on val; [07b](notebooks/07b_real_photographs.ipynb)), after "
        f"{alone[0]['epochs']} epochs: {gains_of([row for row in rows if 'gain' in row])}, over the {scores} of the "
        f"student alone. {corrected(rows)} Twice the epochs add {gains_of(added, of='')} to the student alone, for "
        f"about the seconds of a run with a teacher; over these longer runs the leads are {gains_of(leads)}. "
        f"{gains_of(ahead) + ' leads' if ahead else 'None leads: more than speed is not shown'}."
    )


def _classes(runs: list[dict], teacher: dict[str, float]) -> str:
    """IoU by class: teacher, students alone, and what each method adds."""
    gains, alone = class_gains(runs), {}
    for run in (run for run in runs if run["method"] == "baseline"):
        alone.setdefault(run["backbone"], []).append(run["per_class_iou"])
    heads = [f"{charts.network_name(name)} alone" for name in alone]
    heads += [f"{method} on {charts.network_name(name)}" for name, method in gains]
    lines = [f"| class | teacher | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for name, iou in teacher.items():
        means = [sum(run[name] for run in found) / len(found) for found in alone.values()]
        cells = [f"{100 * value:.0f}" for value in (iou, *means)]
        cells += [f"{100 * found[name]:+.1f}" for found in gains.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "IoU by class, means over seeds, and the mean gain of each method:\n\n" + "\n".join(lines)


def _schedule() -> str:
    """The baseline alone at half size: the first step of a comparison whose baseline has converged."""
    lines = tried_alone("ResNet-18, alone", read("camvid-schedule.json")["runs"])
    head = (
        "The runs that chose the schedule, shorter ones, scored on training images held out, with one seed. Rate 0.032 "
        "and the published scales unless the row says otherwise; narrow scales are from 0.8 to 1.4 times the image's "
        "size. Photographs need a lower rate than the sample, more epochs, and scales near that of the image:"
    )
    return head + "\n\n" + "\n".join(lines)
