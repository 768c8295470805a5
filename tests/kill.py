"""Kill a run at random moments, start it again each time, and compare its end with a run that was left alone.

    python tests/kill.py            # twenty kills, in one process and in two; writes results/kills.json

The tests do the same with fewer kills.
"""

import argparse
import contextlib
import datetime
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from distill.data.sample import make_sample
from distill.files import PROJECT, write_json
from distill.training.runs import Run, environment

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")


def command(out: Path, sample: Path, processes: int = 1, port: int = 29500) -> list[str]:
    """The words of a run of a few seconds that saves a checkpoint after about every second step."""
    parallel = [*TORCHRUN, str(port)] if processes > 1 else []
    data = ["--dataset", "sample", "--data-root", str(sample), "--augment", "crops", "--crop-size", "33"]
    short = ["--epochs", "12", "--limit", "24", "--batch-size", "4", "--evaluate-every", "4", "--device", "cpu"]
    often = ["--checkpoint-minutes", "0.001", "--method", "kd", "--seed", "3"]
    return [sys.executable, *parallel, "-m", "distill", "train", "--out", str(out), *data, *short, *often]


def start(words: list[str]) -> subprocess.Popen:
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=surroundings, text=True)


def finish(words: list[str]) -> float:
    """Run to the end; how many seconds it took."""
    begun = time.perf_counter()
    process = start(words)
    _, said = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(said[-2000:])
    return time.perf_counter() - begun


def family(pid: int) -> list[int]:
    """A process and all that it started: torchrun gives its own a session each, so that no signal reaches them all."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *(member for child in children for member in family(int(child)))]


def kill_and_resume(
    words: list[str], folder: Path, kills: int, longest: float, draw: random.Random, soon: float | None = None
) -> list[dict]:
    """Kill a run at a random moment of each start, until it ends earlier or was killed `kills` times; then finish it.

    That is within `longest` seconds. With `soon` the first, third, … come in training for sure, within so many seconds
    of the first checkpoint that follows the start. What was on disk after each kill.
    """
    found = []
    while len(found) < kills:
        before, process = saved_at(folder), start(words)
        trained = soon is not None and len(found) % 2 == 0
        while trained and process.poll() is None and saved_at(folder) == before:
            time.sleep(0.02)
        moment = draw.uniform(0, soon if trained else longest)
        time.sleep(moment)
        early = process.poll() is not None
        for member in family(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        process.wait()
        if early:  # nothing left to kill
            break
        found.append({"after_seconds": round(moment, 2), **on_disk(folder)})
    finish(words)
    return found


def saved_at(folder: Path) -> int:
    """When the last checkpoint was written, in nanoseconds; 0 before there is one."""
    try:
        return (folder / "last.pt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def on_disk(folder: Path) -> dict:
    """How far the checkpoint is."""
    if not (folder / "last.pt").exists():
        return {"epochs": 0, "steps": 0}
    state = torch.load(folder / "last.pt", weights_only=True)
    return {"epochs": len(state["history"]), "steps": state["partial"].get("step", 0)}


def same_end(one: Path, other: Path) -> bool:
    """Whether two runs have the same weights to the bit, the same losses and the same scores."""
    weights = [load_file(folder / "student.safetensors") for folder in (one, other)]
    losses = [[line["loss"] for line in Run(folder).history] for folder in (one, other)]
    scores = [Run(folder).scores["val"] for folder in (one, other)]
    alike = weights[0].keys() == weights[1].keys()
    alike = alike and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    return alike and losses[0] == losses[1] and scores[0] == scores[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sample = make_sample(root / "sample", train=24, val=6, test=6, size=32)
        for processes in (1, 2):
            whole = root / f"whole{processes}"
            seconds = finish(command(whole, sample, processes))
            draw, kills, ends = random.Random(options.seed + processes), [], []
            while len(kills) < options.kills:  # a run that ended is followed by another
                cut = root / f"cut{processes}-{len(ends)}"
                # A start is mostly spent on importing PyTorch: three quarters of a whole run reach well beyond that.
                left = options.kills - len(kills)
                kills += kill_and_resume(command(cut, sample, processes), cut, left, 0.75 * seconds, draw)
                ends.append(same_end(whole, cut))
            results.append({"processes": processes, "kills": kills, "runs": len(ends), "same_end": all(ends)})
            print(
                f"{processes} processes: {len(kills)} kills of {len(ends)} runs, all the same end: {all(ends)}",
                flush=True,
            )
    study = {
        "command": "python tests/kill.py",
        "date": datetime.date.today().isoformat(),
        "environment": environment(torch.device("cpu")),
        "seed": options.seed,
        "runs": results,
    }
    write_json(PROJECT / "results" / "kills.json", study)


if __name__ == "__main__":
    main()
