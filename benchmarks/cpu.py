"""The table of speed in results/README.md, on a CPU: python benchmarks/cpu.py

`python -m distill bench` with the slim networks of the sample and with those of full width on crops of 129 pixels, ours
in float32 and in bfloat16. Writes results/benchmark.json. Leave the machine alone while it runs, about eight minutes on
two cores.
"""

import argparse
from pathlib import Path

from distill.cli import explained
from distill.files import PROJECT, write_json
from distill.lab.bench import choose, measure, report

MEASURED = tuple(
    {**networks, "precision": precision}
    for precision in ("float32", "bfloat16")
    for networks in ({"preset": "sample"}, {"preset": "voc", "crop_size": 129, "batch_size": 4})
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--out", type=Path, default=PROJECT / "results" / "benchmark.json")
    options = parser.parse_args()
    measured = []
    for given in MEASURED:
        measured.append(measure(choose(device="cpu", steps=options.steps, **given), cache=given == MEASURED[0]))
        print(report(measured[-1]), end="\n\n", flush=True)
    write_json(options.out, {"command": "python benchmarks/cpu.py", "measured": measured})


if __name__ == "__main__":
    raise SystemExit(explained(main))
