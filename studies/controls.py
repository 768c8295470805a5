"""What the gap between teacher and student is made of: python studies/controls.py

Three controls on the sample, scored on the test split, each with the trainer and schedule of the study `speed`:
the students on 12,000 of the teacher's images, each seen once, the teacher's network on the students' 500, and
colour alone.

A script and no study file: all rows of a study share its data, while the first control draws another sample; and the
last one is a lookup of colours, no network that could be trained.
"""

import argparse
import os

import numpy as np
import torch
from pool import run_all

from distill import fit, open_dataset
from distill.cli import explained
from distill.data.folders import VOCFolder
from distill.data.sample import SAMPLE_SIZES, make_sample
from distill.files import PROJECT, write_json
from distill.training.evaluation import Scores, confusion_matrix
from distill.training.runs import environment

BITS = 4  # colours are told apart by the first 4 bits of each channel
MANY = 20_000
EPOCHS = 24


def train(backbone: str, many: bool, seed: int = 0) -> dict:
    """A baseline of as many samples as the study's, on few images or on the teacher's many."""
    torch.set_num_threads(1)
    root = PROJECT / "data" / "sample-teacher" if many else None  # None: the sample, made on first use
    samples = EPOCHS * SAMPLE_SIZES["train"]
    limit = samples if many else SAMPLE_SIZES["train"]  # many: every image is seen once
    out = PROJECT / "runs" / "controls" / f"{backbone}-{limit}"
    run = fit(
        backbone,
        "baseline",
        None,
        data_root=root,
        limit=limit,
        out=out,
        seed=seed,
        progress=False,
        epochs=samples // limit,
        evaluate_every=6,
    )
    what = f"{backbone} without a teacher on {limit:,} images, {samples:,} samples"
    return {
        "name": f"{backbone}-{limit}",
        "what": what,
        "split": "test",
        "miou": run.scores["test"]["miou"],
        "seed": seed,
    }


def colour_only() -> dict:
    """Predict every pixel from its own colour: the most frequent class of that colour in the train split."""
    train_split, test_split = open_dataset("sample", "train"), open_dataset("sample", "test")
    counts = np.zeros((1 << 3 * BITS, train_split.num_classes + 1), dtype=np.int64)
    for image, labels in _pixels(train_split):
        np.add.at(counts, (image, labels), 1)
    lookup = counts[:, :-1].argmax(1)
    confusion = sum(
        confusion_matrix(torch.from_numpy(lookup[image]), torch.from_numpy(np.where(labels == 21, 255, labels)), 21)
        for image, labels in _pixels(test_split)
    )
    miou = Scores(confusion.numpy(), test_split.class_names).miou
    return {"name": "colour-only", "what": "each pixel by its own colour", "split": "test", "miou": miou, "seed": None}


def _pixels(dataset: VOCFolder):
    """Colour codes and labels of each image, flat; void becomes 21."""
    for index in range(len(dataset)):
        image, labels = dataset[index]
        red, green, blue = image.numpy().reshape(3, -1).astype(np.int64) >> (8 - BITS)
        flat = labels.numpy().ravel()
        yield (red << 2 * BITS) + (green << BITS) + blue, np.where(flat == 255, 21, flat)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    options = parser.parse_args()
    make_sample(PROJECT / "data" / "sample-teacher", **{**SAMPLE_SIZES, "train": MANY})
    rows = [("resnet101", False), ("resnet18", True), ("mobilenetv2", True)]
    controls = [colour_only(), *run_all(train, rows, options.jobs)]
    path = PROJECT / "results" / "sample-controls.json"
    write_json(
        path,
        {
            "command": "python studies/controls.py",
            "environment": environment(torch.device("cpu")),
            "controls": controls,
        },
    )
    for control in controls:
        print(f"{100 * control['miou']:6.2f}  {control['what']}")


if __name__ == "__main__":
    raise SystemExit(explained(main))
