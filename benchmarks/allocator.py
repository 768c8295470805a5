"""What keeping freed memory saves a run on a CPU (`training.allocator`): python benchmarks/allocator.py

Short runs of the sample's networks, on its own crops and on those of photographs, with and without it, in turns, a
process and one thread each. Writes results/allocator.json: seconds of the processor, those of the system among them,
pages asked for anew, and the most memory used. About ten minutes on one core.
"""

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import torch

from distill import fit
from distill.files import PROJECT, write_json
from distill.training.runs import environment

PHOTOGRAPHS = {"augment": "crops", "crop_size": 144, "batch_size": 16, "limit": 160}
SAMPLE = {"limit": 320}
RUNS: tuple[tuple[str, dict[str, Any]], ...] = tuple(
    (f"{student}, {method}, {size} pixels", {"student": student, "method": method, **given})
    for size, given in (("64", SAMPLE), ("144", PHOTOGRAPHS))
    for student in ("resnet18", "mobilenetv2")
    for method in ("baseline", "kd")
)
USUAL = {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}  # which says nothing new, and so leaves memory to glibc


def here(given: dict[str, Any]) -> dict[str, float]:
    """Train in this process; what that took."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF)
    with tempfile.TemporaryDirectory() as folder:
        fit(**given, out=f"{folder}/run", epochs=3, evaluate_every=9, device="cpu", progress=False)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = {"system": after.ru_stime - before.ru_stime, "user": after.ru_utime - before.ru_utime}
    taken = {"cpu_seconds": sum(spent.values()), "system_seconds": spent["system"]}
    return taken | {"pages": after.ru_minflt - before.ru_minflt, "peak_megabytes": after.ru_maxrss / 1024}


def elsewhere(given: dict[str, Any], kept: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--here", json.dumps(given)]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"} | ({} if kept else USUAL)
    return json.loads(subprocess.run(command, env=surroundings, check=True, capture_output=True, text=True).stdout)


def measured(name: str, given: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Medians with and without, and the ratio of the seconds of each pair."""
    pairs = [(elsewhere(given, True), elsewhere(given, False)) for _ in range(repeats)]
    row: dict[str, Any] = {"run": name}
    for word, place in (("kept", 0), ("usual", 1)):
        row[word] = {key: round(statistics.median(pair[place][key] for pair in pairs), 2) for key in pairs[0][0]}
    return row | {"ratios": sorted(round(kept["cpu_seconds"] / usual["cpu_seconds"], 3) for kept, usual in pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        return print(json.dumps(here(json.loads(options.here))))
    rows = []
    for name, given in RUNS:
        rows.append(measured(name, given, options.repeats))
        print(rows[-1], flush=True)
    about = {"command": "python benchmarks/allocator.py", "date": datetime.date.today().isoformat()}
    about |= {
        "environment": environment(torch.device("cpu")),
        "repeats": options.repeats,
        "load_average": os.getloadavg()[2],
    }
    write_json(PROJECT / "results" / "allocator.json", {**about, "runs": rows})


if __name__ == "__main__":
    main()
