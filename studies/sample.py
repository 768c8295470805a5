"""Both students, every method, several seeds on the sample: python studies/sample.py

Trains what is not yet in runs/sample, one run per core at a time and one thread each, and writes
results/sample.json, from which the README and notebook 06 take their tables. The weights of the methods were chosen
on the val split with another seed (studies/weights.py); the scores reported are those of the last epoch on the test
split.
"""

import argparse
import datetime
import os
from pathlib import Path

import torch
from pool import run_all

from distill import fit, load_teacher
from distill.cli import explained
from distill.datasets import PROJECT, make_default_sample
from distill.models import save_model
from distill.runs import Run, compare, markdown_table, read_json, record, run_folder, write_json

BACKBONES = ("resnet18", "mobilenetv2")
METHODS = ("baseline", "kd", "at", "ofd", "sakd", "kd+sakd")
RUNS = PROJECT / "runs"


def train(backbone: str, method: str, seed: int) -> Path:
    """One run in a process of its own, or nothing if it is there already."""
    torch.set_num_threads(1)
    out = run_folder(RUNS, "sample", backbone, method, seed)
    return fit(backbone, method, "sample", "sample", seed=seed, out=out, progress=False).path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    options = parser.parse_args()
    make_default_sample()
    rows = [(b, m, seed) for seed in range(options.seeds) for m in METHODS for b in BACKBONES]
    run_all(train, rows, options.jobs)
    paths = [run_folder(RUNS, "sample", *row) for row in rows]
    study = write_study([Run(path) for path in paths])
    print(markdown_table(compare(study["runs"], study["teacher"]["miou"])))


def write_study(runs: list[Run]) -> dict:
    """Gather the runs into results/sample.json, and ship two students."""
    teacher = read_json(PROJECT / "results" / "teacher.json")["scores"]
    parameters = sum(p.numel() for p in load_teacher("sample").parameters())
    records = [record(run) for run in runs]
    study = {
        "command": "python studies/sample.py",
        "date": datetime.date.today().isoformat(),
        "environment": runs[0].environment,
        "teacher": {
            "miou": teacher["test"]["miou"],
            "val_miou": teacher["val"]["miou"],
            "per_class_iou": teacher["test"]["per_class_iou"],
            "parameters": parameters,
        },
        "shipped": ship_students(records),
        "runs": records,
    }
    write_json(PROJECT / "results" / "sample.json", study)
    return study


def ship_students(runs: list[dict]) -> dict[str, str]:
    """The reader's first look: ResNet-18 of seed 0, its baseline and the method that did best on average on val."""
    rows = [entry for entry in runs if entry["backbone"] == "resnet18" and entry["method"] != "baseline"]
    methods = sorted({entry["method"] for entry in rows})
    best = max(methods, key=lambda method: sum(entry["val_miou"] for entry in rows if entry["method"] == method))
    shipped = {"baseline": "baseline", "distilled": best}
    for name, method in shipped.items():
        student = Run(run_folder(RUNS, "sample", "resnet18", method, 0)).student()
        path = PROJECT / "data" / f"student-resnet18-{name}.safetensors"
        save_model(student, path, {"method": method, "seed": "0"}, half=True)
    return shipped


if __name__ == "__main__":
    raise SystemExit(explained(main))
