"""Is a teacher's gain on photographs more than class weights undone? python -m studies.undone

The students of the studies on CamVid were trained with class weights, the last stage of the teacher of all masks
without. So part of what a teacher gives may be that it does not favour rare classes, and that can be had without one:
`undo_class_weights` takes the weights from the logits of a trained student. This scores the students of these studies
whose files are in runs/ with a share of the class weights undone, on val; and on training images held out the student
alone, which says what share to take. No training; some minutes. A student that is in the record is not scored again.
"""

import datetime
from functools import cache
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from distill import Run, evaluate, undo_class_weights
from distill.cli import explained
from distill.files import PROJECT, read_json, write_json
from distill.lab.plan import load_study
from distill.training.runs import environment, find_runs
from studies.shared import mean_of

RECORD = PROJECT / "results" / "camvid-undone.json"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
AGAIN = "camvid-again"  # of the study camvid, where its files were not kept, trained once more; in no other record
STUDIES = ("camvid", AGAIN, "camvid-long", "camvid-leaderboard", "camvid-labels")
STUDIES += ("camvid-by-teacher", "camvid-by-teacher-92", "camvid-few-teacher", "camvid-by-few-teacher")
HELD_OUT = "camvid-baseline"
ALONE, KD = f"{AGAIN}/resnet18/baseline", "camvid/resnet18/kd"
FEW, MORE, HALF = (f"camvid-labels/{labels}-labels/resnet18/baseline" for labels in (46, 92, 183))
OLDER, ALL = (load_study(PROJECT / "studies" / f"{name}.toml").methods for name in ("camvid", "camvid-leaderboard"))
NEWER = [method for method in ALL if method not in OLDER]
ROWS = {  # by the folder of their runs, the rows of the table and those that they are compared with
    ALONE: ("ResNet-18 alone", ""),
    "camvid-long/resnet18/baseline": ("ResNet-18 alone, twice the epochs", ALONE),
    "camvid/resnet18/kd": ("ResNet-18, kd", ALONE),
    "camvid/resnet18/at": ("ResNet-18, at", ALONE),
    f"{AGAIN}/resnet18/ofd": ("ResNet-18, ofd", ALONE),
    "camvid/resnet18/sakd": ("ResNet-18, sakd", ALONE),
    **{f"camvid-leaderboard/resnet18/{method}": (f"ResNet-18, {method}", ALONE) for method in NEWER},
    "camvid/mobilenetv2/baseline": ("MobileNetV2 alone", ""),
    "camvid-long/mobilenetv2/baseline": ("MobileNetV2 alone, twice the epochs", "camvid/mobilenetv2/baseline"),
    "camvid/mobilenetv2/kd": ("MobileNetV2, kd", "camvid/mobilenetv2/baseline"),
    "camvid/mobilenetv2/at": ("MobileNetV2, at", "camvid/mobilenetv2/baseline"),
    "camvid/mobilenetv2/ofd": ("MobileNetV2, ofd", "camvid/mobilenetv2/baseline"),
    "camvid/mobilenetv2/sakd": ("MobileNetV2, sakd", "camvid/mobilenetv2/baseline"),
    FEW: ("ResNet-18 alone, 46 masks", ""),
    "camvid-labels/46-labels-367-photographs/resnet18/kd": ("ResNet-18, 46 masks, kd", FEW),
    "camvid-labels/46-labels-367-photographs/resnet18/ofd": ("ResNet-18, 46 masks, ofd", FEW),
    "camvid-few-teacher/resnet18/kd": ("ResNet-18, 46 masks, kd, a teacher of the 46", FEW),
    "camvid-by-teacher/resnet18/baseline": ("ResNet-18, 46 masks, the teacher's masks as labels", FEW),
    "camvid-by-few-teacher/resnet18/baseline": ("ResNet-18, 46 masks, the masks of a teacher of the 46", FEW),
    MORE: ("ResNet-18 alone, 92 masks", ""),
    "camvid-labels/92-labels-367-photographs/resnet18/kd": ("ResNet-18, 92 masks, kd", MORE),
    "camvid-labels/92-labels-367-photographs/resnet18/ofd": ("ResNet-18, 92 masks, ofd", MORE),
    "camvid-by-teacher-92/resnet18/baseline": ("ResNet-18, 92 masks, the teacher's masks as labels", MORE),
    HALF: ("ResNet-18 alone, 183 masks", ""),
    "camvid-labels/183-labels-367-photographs/resnet18/kd": ("ResNet-18, 183 masks, kd", HALF),
    "camvid-labels/183-labels-367-photographs/resnet18/ofd": ("ResNet-18, 183 masks, ofd", HALF),
}


def weighted(study: str) -> list[Run]:
    """The finished runs of a study whose cross-entropy had class weights."""
    folder = PROJECT / "runs" / study
    runs = find_runs(folder) if any(folder.rglob("scores.json")) else []
    return [run for run in runs if run.config["settings"]["class_weights"] != "none"]


def scored(run: Run) -> dict[str, Any]:
    """mIoU on val with each share of the class weights undone."""
    student, weights, val = run.student(), run.class_weights(), run.images_of("val")
    return {
        "run": name_of(run),
        "backbone": run.config["model"]["backbone"],
        "method": run.config["method"]["name"],
        "seed": run.config["seed"],
        "epochs": run.config["settings"]["epochs"],
        "weight_decay": run.config["settings"]["weight_decay"],
        "machine": run.environment["processor"],
        "class_weights": [round(weight, 3) for weight in weights.tolist()],
        "miou": [round(evaluate(undo_class_weights(student, weights, share), val).miou, 6) for share in SHARES],
    }


def name_of(run: Run) -> str:
    return run.path.relative_to(PROJECT / "runs").as_posix()


def main() -> None:
    recorded = read_json(RECORD)["runs"] if RECORD.exists() else []
    known = {entry["run"]: entry for entry in recorded}
    runs = [run for study in (HELD_OUT, *STUDIES) for run in weighted(study) if name_of(run) not in known]
    known |= {name_of(run): scored(run) for run in tqdm(runs, unit="run")}
    about = {"command": "python -m studies.undone", "date": datetime.date.today().isoformat(), "shares": SHARES}
    about |= {"environment": environment(torch.device("cpu")), "runs": [known[name] for name in sorted(known)]}
    write_json(RECORD, about)


# ------------------------------------------------------------------------------------------------- what it says


@cache
def scores() -> dict[str, dict[int, list[float]]]:
    """By the folder of the runs and by seed, mIoU for each of `SHARES`."""
    found: dict[str, dict[int, list[float]]] = {}
    for entry in read_json(RECORD)["runs"]:
        found.setdefault(entry["run"].rpartition("/")[0], {})[entry["seed"]] = entry["miou"]
    return found


def chosen() -> float:
    """The share that is best for the student alone, with the study's settings, on training images held out."""
    return SHARES[int(np.argmax(held_out()))]


def held_out() -> list[float]:
    """mIoU for each of `SHARES` of the student alone, on training images held out."""
    (curve,) = scores()[f"{HELD_OUT}/class-weights/resnet18/baseline"].values()
    return curve


def weights_of(run: str) -> torch.Tensor:
    """The class weights of a recorded run, (C,)."""
    return torch.tensor(next(e["class_weights"] for e in read_json(RECORD)["runs"] if e["run"] == run))


def leads(folder: str, over: str, share: float | None = None) -> list[float]:
    """The leads of a row over another, of the seeds that both have: with that share undone, or each with its best."""
    own, others = (scores().get(row, {}) for row in (folder, over))
    seeds = sorted(own.keys() & others.keys())
    if not seeds:
        return []
    places = [_best(one) if share is None else SHARES.index(share) for one in (own, others)]
    return [own[seed][places[0]] - others[seed][places[1]] for seed in seeds]


def _best(by_seed: dict[int, list[float]]) -> int:
    return int(np.mean(list(by_seed.values()), axis=0).argmax())


def _lead(folder: str, over: str, share: float | None) -> str:
    found = leads(folder, over, share)
    return mean_of(found) if found else ""


def section() -> str:
    """What results/README.md says."""
    heads = [f"{share:.0%} undone" for share in SHARES]
    lines = [
        f"| student | {' | '.join(heads)} | lead as trained | with {chosen():.0%} undone | each with its best | seeds |"
    ]
    lines.append(f"|{'---|' * (len(SHARES) + 5)}")
    found = scores()
    for folder, (name, over) in ROWS.items():
        if folder in found:
            means = np.mean(list(found[folder].values()), axis=0)
            cells = [f"**{100 * mean:.1f}**" if mean == means.max() else f"{100 * mean:.1f}" for mean in means]
            cells += [_lead(folder, over, share) for share in (0.0, chosen(), None)]
            lines.append(f"| {name} | {' | '.join(cells)} | {len(found[folder])} |")
    record = read_json(RECORD)
    chosen_from = ", ".join(f"{100 * miou:.1f} ({share:.0%})" for miou, share in zip(held_out(), SHARES, strict=True))
    head = (
        "## camvid-undone: class weights undone\n\nThe students of the studies on photographs were trained with class "
        "weights, the last stage of the teacher of all masks without. Here a share of the logarithm of each class's "
        "weight is taken from the logits of students that are trained already (`distill.undo_class_weights`): no "
        f"training, no teacher. On training images held out the student alone has {chosen_from}, one run, which chose "
        f"{chosen():.0%}. mIoU on val, means over seeds. A lead is over the student alone with the same masks, of the "
        "seeds that both have: in as many epochs where there are 367 masks and nothing else is said; with fewer, "
        "in as many steps as the masks as labels take, and in twice as many as kd and ofd (see camvid-labels). *Each "
        "with its best* takes for either that of these shares that is best on val. Students whose files were not kept "
        "were trained again for this, so that rows may differ a little from those of the studies:"
    )
    machines = " and an ".join(sorted({run["machine"] for run in record["runs"]}))
    end = f"Scored until {record['date']} on an {machines}, PyTorch {record['environment']['torch']}."
    return "\n\n".join([head, "\n".join(lines), longer(), end])


def longer() -> str:
    """The leads over the student alone that trains about as many seconds as with a teacher."""
    told = []
    for backbone in ("resnet18", "mobilenetv2"):
        over, alone = f"camvid-long/{backbone}/baseline", (ALONE, f"camvid/{backbone}/baseline")
        folders = [row for row, (_, base) in ROWS.items() if base in alone and row != over and f"/{backbone}/" in row]
        named = [f"{lead} ({ROWS[row][0]})" for row in folders if (lead := _lead(row, over, None))]
        told += [f"Each with its best, over {ROWS[over][0]}: {', '.join(named)}."] if named else []
    return " ".join(told)


def in_short() -> str:
    """What the README says of it."""
    rise = [curve[SHARES.index(chosen())] - curve[0] for curve in scores()[ALONE].values()]
    return (
        "**Class weights can look like a teacher.** All students of photographs were trained with class weights. In as "
        f"many epochs `kd` leads {ROWS[ALONE][0]}, trained once more for this, by {_lead(KD, ALONE, 0.0)}; with "
        f"{chosen():.0%} of the class weights taken from the logits of both (`undo_class_weights`, no training) by "
        f"{_lead(KD, ALONE, chosen())}: the student alone gains {mean_of(rise)} by it.{_small()}"
    )


def _small() -> str:
    """What is left of OFD's lead on the smaller student."""
    ofd, alone = (f"camvid/mobilenetv2/{method}" for method in ("ofd", "baseline"))
    twice = "camvid-long/mobilenetv2/baseline"
    if not leads(ofd, twice):
        return ""
    equal, longer = (f"from {_lead(ofd, over, 0.0)} to {_lead(ofd, over, chosen())}" for over in (alone, twice))
    return (
        f" For `ofd` on MobileNetV2 little changes: its lead goes {equal} at equal epochs, and {longer} over the "
        "student alone with twice the epochs."
    )


if __name__ == "__main__":
    raise SystemExit(explained(main))
