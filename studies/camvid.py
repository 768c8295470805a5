"""Real photographs through the same command line: python studies/camvid.py PATH/TO/CAMVID

Checks a CamVid folder in VOC layout (it is not part of this repository), trains a slim teacher for three times as long
as the students, then ResNet-18 alone, with KD and with SAKD; scores every network by both protocols, predicts one
photograph from its file, and records all of it in results/camvid.json.

A script, beside the study file studies/camvid-full.toml: a study trains and scores by one protocol, while this one
checks the folder, scores by both, and trains and predicts through the command line, as a reader would.
"""

import argparse
import datetime
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distill import evaluate
from distill.cli import explained
from distill.cli import main as distill
from distill.data.check import check_dataset
from distill.data.folders import open_dataset
from distill.files import PROJECT, write_json
from distill.lab.tables import record
from distill.training.evaluation import PROTOCOLS
from distill.training.runs import Run, run_folder

EPOCHS, TEACHER_EPOCHS, CROP = 10, 30, 129


def run(*words: object) -> None:
    """A line of the command line; a fault in it ends the study."""
    if distill([str(word) for word in words]) != 0:
        raise SystemExit(2)


def train(data: Path, backbone: str, method: str, epochs: int, teacher: Path | None = None) -> Path:
    """One run; its folder."""
    out = run_folder(PROJECT / "runs", "camvid", backbone, method, 0)
    line = ["train", "--backbone", backbone, "--method", method, "--dataset", data, "--out", out]
    run(*line, "--epochs", epochs, "--crop-size", CROP, *(["--teacher", teacher] if teacher else []))
    return out


def check(data: Path) -> dict:
    """What the folder's check found, in short."""
    report = check_dataset(data)
    kept = ("images", "sizes", "void_share", "class_share")
    return {
        split: {key: found[key] for key in kept} | {"faults": len(found["problems"])} for split, found in report.items()
    }


def predict(folder: Path, data: Path) -> dict:
    """One validation photograph through `predict`; the share of labelled pixels at which the written mask is right."""
    val = open_dataset(data, "val")
    with tempfile.TemporaryDirectory() as out:
        run("predict", folder, val.image_path(0), "--out", out)
        with Image.open(Path(out) / f"{val.ids[0]}_mask.png") as file:
            mask, size = np.array(file), file.size
    labels = val[0][1].numpy()
    right = (mask == labels)[labels != 255].mean()
    return {"image": val.ids[0], "size": list(size), "right": round(float(right), 4)}


def scored(folder: Path, data: Path) -> dict:
    """The run's record, with its score by every protocol."""
    val, finished = open_dataset(data, "val"), Run(folder)
    scores = {protocol: evaluate(finished.student(), val, protocol).miou for protocol in PROTOCOLS}
    return record(finished) | {"miou_by_protocol": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = check(options.data)
    teacher = train(options.data, "resnet101", "baseline", TEACHER_EPOCHS)
    runs = [teacher]
    for method in ("baseline", "kd", "sakd"):
        given = None if method == "baseline" else teacher / "student.safetensors"
        runs.append(train(options.data, "resnet18", method, EPOCHS, given))
    study = {
        "command": "python studies/camvid.py PATH/TO/CAMVID",
        "date": datetime.date.today().isoformat(),
        "environment": Run(teacher).environment,
        "check": found,
        "crop_size": CROP,
        "runs": [scored(folder, options.data) for folder in runs],
        "prediction": predict(runs[-1], options.data),
    }
    write_json(PROJECT / "results" / "camvid.json", study)
    for line in study["runs"]:
        by_protocol = "  ".join(f"{name} {100 * score:5.2f}" for name, score in line["miou_by_protocol"].items())
        print(f"{line['backbone']:>12} {line['method']:>9} {by_protocol}")


if __name__ == "__main__":
    raise SystemExit(explained(main))
