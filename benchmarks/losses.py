"""What the loss of every method costs, as a share of a training step: python benchmarks/losses.py

The slim ResNet-18 of the sample, on the CPU. Writes results/losses.json, which results/README.md shows. Leave the
machine alone while it runs, about two minutes.
"""

from distill.cli import explained
from distill.files import PROJECT, write_json
from distill.lab.bench import choose, measure_steps
from distill.methods import METHODS
from distill.training.runs import environment


def main() -> None:
    bench = choose(list(METHODS), ["resnet18"], device="cpu", steps=15)
    rows = measure_steps(bench)
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
    write_json(PROJECT / "results" / "losses.json", found)
    for row in rows:
        parts, step = row["ours"]["parts"], row["ours"]["seconds"]
        print(
            f"{row['method']:12} {1000 * step:6.1f} ms per step, loss and connectors {parts['distillation'] / step:.1%}"
        )


if __name__ == "__main__":
    raise SystemExit(explained(main))
