"""What the loss of every method costs, as a share of a training step: python benchmarks/losses.py

The slim ResNet-18 on the CPU, in two settings: that of the sample, and that of the studies of photographs with their
teacher. Writes results/losses.json and results/camvid-losses.json, which results/README.md shows. Leave the machine
alone while it runs, about three minutes.
"""

from typing import Any

from torch import nn

from distill import load_teacher, shipped_file
from distill.cli import explained
from distill.files import PROJECT, write_json
from distill.lab.bench import Bench, choose, measure_steps
from distill.methods import METHODS
from distill.training.runs import environment

# As in studies/camvid-leaderboard.toml.
PHOTOGRAPHS: dict[str, Any] = {"batch_size": 16, "crop_size": 144, "precision": "bfloat16"}


def main() -> None:
    sample = choose(list(METHODS), ["resnet18"], device="cpu", steps=15)
    photographs = choose(list(METHODS), ["resnet18"], device="cpu", steps=7, **PHOTOGRAPHS)
    record("losses", sample)
    record("camvid-losses", photographs, load_teacher(shipped_file("camvid-teacher.safetensors")))


def record(name: str, bench: Bench, teacher: nn.Module | None = None) -> None:
    rows = measure_steps(bench, teacher)
    for row in rows:
        row.pop("plain", None)  # benchmarks/cpu.py is about it
        row.pop("ratio")
    options = {name: getattr(bench.settings, name) for name in ("batch_size", "crop_size", "precision")}
    found = {
        "command": "python benchmarks/losses.py",
        "environment": environment(bench.device),
        "options": {**options, "steps": bench.steps},
        "steps": rows,
    }
    write_json(PROJECT / "results" / f"{name}.json", found)
    print(name)
    for row in rows:
        parts, step = row["ours"]["parts"], row["ours"]["seconds"]
        print(
            f"{row['method']:12} {1000 * step:6.1f} ms per step, loss and connectors {parts['distillation'] / step:.1%}"
        )


if __name__ == "__main__":
    raise SystemExit(explained(main))
