"""Why does SAKD not help on the sample? Variants of its schedule and positions, on val: python studies/sakd.py

The published weight, the seed and the half schedule of studies/weights.py; read the scores against its short baseline.
Nothing here enters the table of the methods, where SAKD has the form that was published. It is a script and no study
file because the variants differ in the method's options, and studies/report.py reads results/sample-sakd.json in the
short form that is written here.
"""

import argparse
import os

import torch
from pool import run_all
from weights import BACKBONES, EPOCHS, SEED

from distill import Run, fit
from distill.cli import explained
from distill.data.folders import make_default_sample
from distill.files import PROJECT, write_json

STEPS = EPOCHS * (500 // 16)
VARIANTS: dict[str, dict] = {
    "weight falls to 0 over the run": {"decay": STEPS},
    "weight rises over the first half": {"warmup": STEPS // 2},
    "large maps only: layer1, decoder": {"positions": ["layer1", "decoder"]},
    "small maps only: layer4, aspp": {"positions": ["layer4", "aspp"]},
}


def train(backbone: str, name: str) -> dict:
    torch.set_num_threads(1)
    out = PROJECT / "runs" / "sakd" / backbone / name.replace(" ", "-").replace(":", "").replace(",", "")
    options = {"weight": 150.0, **VARIANTS[name]}
    run = fit(backbone, "sakd", seed=SEED, out=out, epochs=EPOCHS, progress=False, method_options=options)
    return {"backbone": backbone, "variant": name, "val_miou": run.scores["val"]["miou"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    options = parser.parse_args()
    make_default_sample()
    rows = [(backbone, name) for name in VARIANTS for backbone in BACKBONES]
    runs = run_all(train, rows, options.jobs)
    environment = Run(PROJECT / "runs" / "weights" / BACKBONES[0] / "sakd" / "150").environment
    path = PROJECT / "results" / "sample-sakd.json"
    write_json(path, {"command": "python studies/sakd.py", "seed": SEED, "environment": environment, "runs": runs})
    for run in runs:
        print(f"{run['backbone']:>12} {100 * run['val_miou']:6.2f}  {run['variant']}")


if __name__ == "__main__":
    raise SystemExit(explained(main))
