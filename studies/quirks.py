"""What results/README.md says of the faults of the published protocol."""

from distill.lab.comparison import Findings, read_findings, tables
from distill.lab.curves import interval95
from distill.lab.tables import results_file
from distill.show import charts
from studies.shared import mean_of, paired, read, recorded_on, so_far

# Each fault: the variants that its distilled runs and its baselines are of, and the variant without it.
FAULTS = {
    "distilled students skip ASPP's dropout": ("no dropout in distilled students", "matched", "matched"),
    "the teacher is in training mode": ("teacher in training mode", "matched", "matched"),
    "baselines train half as long at twice the rate": ("matched", "another schedule for baselines", "matched"),
    "losses are divided twice": ("divided twice", "divided twice", "matched"),
    "padding is labelled background": ("crops, padding is background", "crops, padding is background", "crops"),
}


def quirks() -> str:
    """What each fault adds to the gain of a method: the gain with it less the gain without, seed by seed."""
    study, found = read("quirks.json"), read_findings([results_file("quirks.json")])
    tables(found)  # which refuses runs that cannot be compared
    head = (
        f"## quirks: the faults of the published protocol\n\nThe gain over the baseline without and with each fault, "
        f"and what the fault adds, paired by seed, with 95 % intervals, in points of test mIoU. On the sample, with "
        f"{charts.network_name(study['study']['students'][0])}, half the schedule of the study `speed` and "
        f"{len({entry['seed'] for entry in study['runs']})} seeds."
    )
    return "\n\n".join([head, faults(found), best_epochs(found), recorded_on(study)])


def long_quirks() -> str:
    """The same where students are not stopped early; without a fault are the runs of the study `sample`."""
    study, found = read("quirks-long.json"), beside_sample()
    epochs = found.records[-1]["settings"]["epochs"]
    head = (
        f"## quirks-long: the faults of the published protocol after {epochs} epochs\n\nThe gain over the baseline "
        f"without and with each fault, and what the fault adds, paired by seed, in points of test mIoU, with "
        f"{charts.network_name('resnet18')}; a row has the seeds that both have. The rows without a fault "
        f"are those of the study `sample`, over baselines that twice the epochs still improve; after "
        f"{read('quirks.json')['runs'][0]['settings']['epochs']} epochs the study `quirks`, below, has more faults."
        f"{so_far('quirks-long')}"
    )
    return "\n\n".join([head, faults(found), recorded_on(study)])


def beside_sample() -> Findings:
    """The runs with a fault of the study `quirks-long`, and those of the study `sample` as its variant `matched`."""
    found = read_findings([results_file("quirks-long.json")])
    usual = [entry for entry in read("sample.json")["runs"] if entry["backbone"] == "resnet18"]
    found.records += [entry | {"variant": "matched"} for entry in usual]
    return found


def half_schedule() -> str:
    """What README.md says a gain becomes over baselines of another schedule, as those of the published table had."""
    fair, faulty, _ = gains_with(beside_sample(), "baselines train half as long at twice the rate")
    return (
        f"Over baselines of half the epochs at twice the rate, as in the [published protocol](docs/voc.md), the gain "
        f"of `kd` on {charts.network_name('resnet18')} would be {mean_of(faulty)} instead of {mean_of(fair)}."
    )


def gains_with(found: Findings, fault: str) -> tuple[list[float], list[float], list[float]]:
    """The gains of kd without a fault and with it, and what it adds, of the seeds that all of these have."""
    runs, baselines, reference = FAULTS[fault]
    without, with_it = [(reference, "kd"), (reference, "baseline")], [(runs, "kd"), (baselines, "baseline")]
    own = [entry for entry in found.records if entry["backbone"] == "resnet18"]
    seeds = [{e["seed"] for e in own if (e["variant"], e["method"]) == row} for row in [*without, *with_it]]
    shared = Findings([entry for entry in own if entry["seed"] in set.intersection(*seeds)])
    return paired(shared, without), paired(shared, with_it), paired(shared, with_it + without[::-1])


def faults(found: Findings) -> str:
    """A row for each fault that is recorded, and which of them are settled."""
    lines = ["| fault | method | gain without | gain with | added by the fault | seeds |", f"|{'---|' * 6}"]
    real, noise = [], []
    for fault in FAULTS:
        gains = gains_with(found, fault)
        if not (added := gains[-1]):
            continue
        lines.append(f"| {fault} | kd | {' | '.join(map(mean_of, gains))} | {len(added)} |")
        (real if abs(sum(added) / len(added)) > interval95(added) else noise).append(fault)
    read_as = (
        f"The 95 % interval of what is added excludes zero for: {'; '.join(real) or 'no fault'}. It includes zero for: "
        f"{'; '.join(noise) or 'no fault'}."
    )
    return "\n".join(lines) + "\n\n" + read_as


def best_epochs(found: Findings) -> str:
    """The fault that needs no run: the best epoch, chosen on the very images that are reported."""
    matched = [entry for entry in found.records if entry["variant"] == "matched"]
    methods = list(dict.fromkeys(entry["method"] for entry in matched))
    more = {m: [e["best_val_miou"] - e["val_miou"] for e in matched if e["method"] == m] for m in methods}
    said = ", ".join(f"{mean_of(values)} for {method}" for method, values in more.items())
    return f"Reporting the best epoch on val instead of the last one raises the val mIoU by {said}."
