"""What it saves that waiting threads go to sleep sooner (see distill/__init__.py): python benchmarks/waiting.py

Short runs of the sample's ResNet-18 with all threads, in PyTorch's usual way and in ours, in turns: on an idle machine,
and beside one program of another terminal that wants a processor, with which Linux shares its processors by halves.
Writes results/waiting.json: seconds on the clock. About four minutes on two cores.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

from distill import fit
from distill.files import PROJECT, write_json
from distill.training.runs import environment

USUAL, OURS = "300000", "1000"  # turns of the loop; the first is libgomp's own default
BUSY = "while True: pass"


def here() -> float:
    """Train in this process; the seconds on the clock."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fit("resnet18", "baseline", None, out=f"{folder}/run", limit=64, epochs=3, evaluate_every=9, progress=False)
    return time.perf_counter() - begun


def elsewhere(turns: str) -> float:
    command = [sys.executable, __file__, "--here"]
    surroundings = os.environ | {"GOMP_SPINCOUNT": turns}
    return float(subprocess.run(command, env=surroundings, check=True, capture_output=True, text=True).stdout)


def measured(name: str, others: int, repeats: int) -> dict[str, Any]:
    """Medians of both, and the ratio of each pair, beside so many other programs."""
    command = [sys.executable, "-c", BUSY]
    busy = [subprocess.Popen(command, start_new_session=True) for _ in range(others)]  # as of another terminal
    try:
        pairs = [(elsewhere(OURS), elsewhere(USUAL)) for _ in range(repeats)]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    ours, usual = (round(statistics.median(times), 2) for times in zip(*pairs, strict=True))
    return {"machine": name, "ours": ours, "usual": usual, "ratios": sorted(round(a / b, 3) for a, b in pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        return print(here())
    rows = []
    for name, others in (("idle", 0), ("beside one busy program", 1)):
        rows.append(measured(name, others, options.repeats))
        print(json.dumps(rows[-1]), flush=True)
    about: dict[str, Any] = {"command": "python benchmarks/waiting.py", "date": datetime.date.today().isoformat()}
    about |= {"environment": environment(torch.device("cpu")), "repeats": options.repeats}
    write_json(PROJECT / "results" / "waiting.json", {**about, "runs": rows})


if __name__ == "__main__":
    main()
