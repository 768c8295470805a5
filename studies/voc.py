"""The published experiment, every row of its tables: python studies/voc.py DIR deeplab-resnet.pth.tar --gpus 2

DIR holds VOC 2012 and SBD (python -m distill data download voc --root DIR, and sbd), the file is the published teacher.
Runs that are finished are left as they are, and one that was interrupted goes on, so the same command can be started
again at any time. With several GPUs as many runs go on side by side, each on one of those that CUDA_VISIBLE_DEVICES
names, where it is set. `--dry-run` only prints the commands.
What follows `--` is added to every command, such as: -- --recipe published
"""

import argparse
import itertools
import os
import queue
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from distill.cli import explained
from distill.errors import check_number
from distill.lab.pool import slots

BACKBONES = ("resnet18", "mobilenetv2")
METHODS = ("baseline", "kd", "at", "ofd", "sakd")


def command(backbone: str, method: str, seed: int, root: str, teacher: str) -> str:
    """The line that trains one row, for any shell."""
    taught = "" if method == "baseline" else f" --teacher {shlex.quote(teacher)}"
    return (
        f"python -m distill train --preset voc --dataset pascal --use-sbd --data-root {shlex.quote(root)} --nesterov "
        f"--weights DEFAULT --backbone {backbone} --method {method} --seed {seed}{taught}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="DIR")
    parser.add_argument("teacher")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=1, help="runs at a time, each on a GPU of its own; 0: the CPU")
    parser.add_argument("--dry-run", action="store_true")
    given = sys.argv[1:] if arguments is None else arguments
    end = given.index("--") if "--" in given else len(given)
    options, added = parser.parse_args(given[:end]), given[end + 1 :]
    check_number("seeds", options.seeds, 1, 1000)
    check_number("gpus", options.gpus, 0, 1000)
    rows = itertools.product(range(options.seeds), BACKBONES, METHODS)
    lines = [command(backbone, method, seed, options.root, options.teacher) for seed, backbone, method in rows]
    lines = [" ".join([line, *map(shlex.quote, added)]) for line in lines]
    if options.dry_run:
        print(*lines, sep="\n")
        return 0
    failed = run_all(lines, options.gpus)
    print(*[f"failed: {line}" for line in failed], sep="\n", end="\n" if failed else "")
    return 2 if failed else 0


def run_all(lines: list[str], gpus: int) -> list[str]:
    """Run every command, one at a time on each GPU; those that failed."""
    places = slots("cuda" if gpus else "cpu", max(1, gpus))
    free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for place in places:
        free.put(place)

    def succeeds(line: str) -> bool:
        place = free.get()
        print(f"GPU {place['CUDA_VISIBLE_DEVICES']}: {line}" if gpus else line, flush=True)
        code = subprocess.run([sys.executable, *shlex.split(line)[1:]], env=os.environ | place).returncode
        free.put(place)
        return code == 0

    with ThreadPoolExecutor(len(places)) as pool:
        return [line for line, fine in zip(lines, pool.map(succeeds, lines), strict=True) if not fine]


if __name__ == "__main__":
    raise SystemExit(explained(main))
