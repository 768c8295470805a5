"""Real photographs through the same command line: python studies/camvid.py PATH/TO/CAMVID

Trains a slim teacher, then ResNet-18 without and with SAKD, on a CamVid folder in VOC layout (it is not part of this
repository), and records their scores in results/camvid.json.
"""

import argparse
import datetime
from pathlib import Path

import torch

from distill.cli import main as distill
from distill.datasets import PROJECT, open_dataset
from distill.runs import Run, record, run_folder, write_json

EPOCHS, CROP = 10, 129


def train(data: Path, backbone: str, method: str, teacher: Path | None = None) -> Path:
    """One run through the command line; its folder."""
    out = run_folder(PROJECT / "runs", "camvid", backbone, method, 0)
    line = ["train", "--backbone", backbone, "--method", method, "--dataset", str(data), "--out", str(out)]
    line += ["--epochs", str(EPOCHS), "--crop-size", str(CROP)]
    if distill(line + (["--teacher", str(teacher)] if teacher else [])) != 0:
        raise SystemExit(2)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    teacher = train(options.data, "resnet101", "baseline")
    runs = [teacher, train(options.data, "resnet18", "baseline")]
    runs.append(train(options.data, "resnet18", "sakd", teacher / "student.safetensors"))
    study = {
        "command": "python studies/camvid.py PATH/TO/CAMVID",
        "date": datetime.date.today().isoformat(),
        "environment": Run(teacher).environment,
        "images": len(open_dataset(options.data, "train")),
        "val_images": len(open_dataset(options.data, "val")),
        "epochs": EPOCHS,
        "crop_size": CROP,
        "runs": [record(Run(path)) for path in runs],
    }
    write_json(PROJECT / "results" / "camvid.json", study)
    for run in study["runs"]:
        print(f"{run['backbone']:>12} {run['method']:>9} {100 * run['miou']:6.2f}")


if __name__ == "__main__":
    main()
