"""Train the teacher that is shipped in data/, and record how: python studies/teacher.py

DeepLabV3+ with a slim ResNet-101 on 20,000 sample scenes, the first 500 of which are the students'. It goes through
the same trainer as every student. About half an hour on one core; an interrupted run goes on where it stopped.
"""

import argparse
import datetime

import torch

from distill import Run, fit, load_teacher, open_dataset
from distill.cli import explained
from distill.data.sample import SAMPLE_SIZES, make_sample
from distill.files import PROJECT, write_json
from distill.networks.saving import save_model
from distill.networks.teachers import SHIPPED, fingerprint
from distill.training.evaluation import evaluate

IMAGES = 20_000
SETTINGS = {"epochs": 4, "lr": 3e-3, "evaluate_every": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    root = make_sample(PROJECT / "data" / "sample-teacher", **{**SAMPLE_SIZES, "train": IMAGES})
    out = PROJECT / "runs" / "teacher"
    run = fit("resnet101", "baseline", None, "sample", data_root=root, out=out, seed=0, **SETTINGS)
    ship(run)


def ship(run: Run) -> None:
    """Store the run's network in half precision, and score the stored file, for that is what readers load."""
    save_model(run.student(), PROJECT / "data" / SHIPPED, half=True)
    teacher = load_teacher("sample")
    scores = {split: evaluate(teacher, open_dataset("sample", split)).to_json() for split in ("val", "test")}
    write_json(
        PROJECT / "results" / "teacher.json",
        {
            "command": "python studies/teacher.py",
            "date": datetime.date.today().isoformat(),
            "environment": run.environment,
            "config": run.config,
            "history": run.history,
            "seconds": round(sum(line["seconds"] for line in run.history)),
            "fingerprint": fingerprint(teacher),
            "scores": scores,
        },
    )


if __name__ == "__main__":
    raise SystemExit(explained(main))
