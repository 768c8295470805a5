"""The teacher of the study `camvid`, shipped in data/, and how it was trained: python studies/photographs.py

DeepLabV3+ on EfficientNet-Lite0 with ImageNet weights, on the 367 training photographs of CamVid at half size. They lie
in data/camvid-240, which `python -m distill data download camvid` and `python -m distill data resize` make. First at
output stride 16, where a step is cheap, with rare classes counting for more; then shortly at output stride 8, where
poles and signs are told apart, without. About 45 minutes on one core; an interrupted run goes on where it stopped.

`--control` trains the same network from random weights instead, and adds to the record what ImageNet is worth;
`--student METHOD` stores the MobileNetV2 of the study's seed 0 in data/.

A script beside studies/camvid.toml, because the teacher is a part of the repository: students trained elsewhere, and
later, then have the very same one.
"""

import argparse
import datetime

import torch

from distill import Run, build_model, evaluate, fit, load_teacher, open_dataset
from distill.cli import explained
from distill.files import PROJECT, read_json, write_json
from distill.networks.saving import save_model
from distill.networks.teachers import fingerprint
from distill.training.runs import run_folder

DATA, RECORD = PROJECT / "data" / "camvid-240", PROJECT / "results" / "camvid-teacher.json"
TEACHER = PROJECT / "data" / "camvid-teacher.safetensors"
SETTINGS = {"crop_size": 176, "scale_from": 0.82, "scale_to": 1.6, "weight_decay": 0.01, "precision": "bfloat16"}
COARSE = {"epochs": 40, "lr": 1e-3, "head_lr_factor": 3.0, "class_weights": "log", "evaluate_every": 8}
FINE = {"epochs": 10, "lr": 3e-4, "head_lr_factor": 2.0, "output_stride": 8, "evaluate_every": 2}
FINE_RATES = (4, 6, 8)  # of ASPP: twice the pixels, for half the stride


def train(weights: str | None) -> tuple[Run, Run]:
    """Both runs; the second goes on with the first one's weights."""
    out = PROJECT / "runs" / ("camvid-teacher" if weights else "camvid-control")
    name = "timm:tf_efficientnet_lite0"
    coarse = fit(name, "baseline", None, DATA, weights=weights, out=out / "coarse", **SETTINGS, **COARSE)
    student = coarse.student()
    finer = build_model(**student.config | {"output_stride": 8, "atrous_rates": FINE_RATES})
    finer.load_state_dict(student.state_dict())
    return coarse, fit(finer, "baseline", None, DATA, out=out / "fine", **SETTINGS, **FINE)


def told(run: Run) -> dict:
    seconds = round(sum(line["cpu_seconds"] for line in run.history))
    return {"config": run.config, "history": run.history, "seconds": seconds, "val": run.scores["val"]}


def store_student(method: str) -> None:
    """The smaller of the study's students: with the teacher, one alone and one with a method fit into 10 MB."""
    folder = run_folder(PROJECT / "runs", "camvid", "mobilenetv2", method, 0)
    kind = "baseline" if method == "baseline" else "distilled"
    path = PROJECT / "data" / f"camvid-student-mobilenetv2-{kind}.safetensors"
    save_model(Run(folder).student(), path, {"method": method, "seed": "0"}, half=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--control", action="store_true", help="the same network from random weights")
    parser.add_argument("--student", metavar="METHOD", help="store the study's MobileNetV2 of seed 0")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.student:
        store_student(options.student)
        return
    runs = train(None if options.control else "package")
    if options.control:
        control = [told(run) | {"environment": run.environment} for run in runs]  # it may be another machine
        write_json(RECORD, read_json(RECORD) | {"control": control})
        return
    save_model(runs[-1].student(), TEACHER, half=True)
    teacher = load_teacher(TEACHER)  # the stored file is what students and readers get
    write_json(
        RECORD,
        {
            "command": "python studies/photographs.py",
            "date": datetime.date.today().isoformat(),
            "environment": runs[-1].environment,
            "parameters": sum(weight.numel() for weight in teacher.parameters()),
            "fingerprint": fingerprint(teacher),
            "val": evaluate(teacher, open_dataset(DATA, "val")).to_json(),
            "runs": [told(run) for run in runs],
        },
    )


if __name__ == "__main__":
    raise SystemExit(explained(main))
