"""The weights of the study of speed, chosen on the sample's val split: python studies/speed_weights.py

Each method gets the same care: the same number of weights, both students, one seed that the reported runs do not use,
and half their schedule. The weight with the best mean over both students is in studies/speed.toml. The learning
rate was chosen before, on the baseline alone and at full length. It is a script and no study file because
studies/blocks.py reads results/speed-weights.json in the short form written here.
"""

import argparse
import os

import torch
from pool import run_all

from distill import Run, fit
from distill.cli import explained
from distill.data.folders import make_default_sample
from distill.files import PROJECT, write_json
from distill.training.presets import PRESETS

SEED = 100
EPOCHS, FULL = 12, 24
LEARNING_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)  # the baseline's choice, which every method then shares
WEIGHTS = {
    "kd": (0.9, 3.0, 10.0, 30.0),
    "at": (5.0, 50.0, 500.0, 5000.0),
    "ofd": (5e-4, 2e-3, 8e-3, 3.2e-2),
    "sakd": (1.0, 5.0, 30.0, 150.0),
}
BACKBONES = ("resnet18", "mobilenetv2")


def train(backbone: str, method: str, value: float, epochs: int) -> dict:
    """One short run; `value` is the learning rate of the baseline or the weight of a method."""
    torch.set_num_threads(1)
    name = f"{value:g}" if (method, epochs) != ("baseline", EPOCHS) else f"{value:g}-short"
    out = PROJECT / "runs" / "weights" / backbone / method / name
    settings = {"lr": value} if method == "baseline" else {}
    options = None if method == "baseline" else {"weight": value}
    run = fit(backbone, method, seed=SEED, out=out, progress=False, method_options=options, epochs=epochs, **settings)
    return entry(run, backbone, method, value)


def entry(run: Run, backbone: str, method: str, value: float) -> dict:
    epochs = run.config["settings"]["epochs"]
    return {
        "backbone": backbone,
        "method": method,
        "value": value,
        "epochs": epochs,
        "val_miou": run.scores["val"]["miou"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    options = parser.parse_args()
    make_default_sample()
    choices = [("baseline", rate, FULL) for rate in LEARNING_RATES]
    choices += [("baseline", PRESETS["sample"].lr, EPOCHS)]  # what the short runs are to be read against
    choices += [(method, weight, EPOCHS) for method, weights in WEIGHTS.items() for weight in weights]
    rows = [(backbone, *choice) for choice in choices for backbone in BACKBONES]
    runs = run_all(train, rows, options.jobs)
    environment = Run(PROJECT / "runs" / "weights" / "resnet18" / "kd" / "0.9").environment
    path = PROJECT / "results" / "speed-weights.json"
    write_json(
        path, {"command": "python studies/speed_weights.py", "seed": SEED, "environment": environment, "runs": runs}
    )
    for run in runs:
        print(f"{run['backbone']:>12} {run['method']:>9} {run['value']:>8g} {100 * run['val_miou']:6.2f}")


if __name__ == "__main__":
    raise SystemExit(explained(main))
