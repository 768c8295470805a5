"""Many jobs side by side, each in a process of its own, which runs `python -m distill.lab.pool`.

A job is a function by its name, and keywords that JSON can hold. It hears no Ctrl-C, which is its parent's to answer,
and ends with its parent, however that ends: then its standard input is closed.

It is no concurrent.futures.ProcessPoolExecutor, for three reasons. There, a child that is killed, as when memory runs
out, breaks the pool and ends all its other children, hours into their runs; here they are finished. Its workers have
one environment in common, while each job here has its own (CUDA_VISIBLE_DEVICES, OMP_NUM_THREADS), which must be there
before torch is imported. And when the parent is killed, its workers go on with what they are at.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from tqdm.auto import tqdm

from distill.errors import DistillError, Diverged, check_number, enough_memory, first_line
from distill.files import usable_cores
from distill.methods import load_methods, loaded_files
from distill.training.parallel import pick_device

_DIVERGED = 3  # what a process exits with, whose run was the fault of its own settings


@dataclass(frozen=True)
class Job:
    """What one process does: `function`, such as "distill.training.loop.fit", with `keywords`.

    `progress` tells how many of its `units` are done, whenever it is asked; `finished` is called when all are.
    """

    name: str
    function: str
    keywords: dict[str, Any]
    units: int = 0
    progress: Callable[[], int] = lambda: 0
    finished: Callable[[], None] = lambda: None


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen[bytes]
    slot: dict[str, str]
    said: IO[bytes]


def slots(device: str, jobs: int | None = None) -> list[dict[str, str]]:
    """What each place for a process adds to its environment: every GPU is one place, or on the CPU every core."""
    if jobs is not None:
        check_number("jobs", jobs, 1, 1000)
    target = pick_device(device)
    if target.type != "cuda":
        return [{"CUDA_VISIBLE_DEVICES": ""}] * (jobs or usable_cores())
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = seen.split(",") if seen else [str(index) for index in range(torch.cuda.device_count())]
    gpus = gpus if target.index is None else [gpus[target.index]]
    return [{"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} for place in range(jobs or len(gpus))]


def run_all(
    jobs: Iterable[Job], places: list[dict[str, str]], threads: int | None, bar: "tqdm[Any]", log: Path
) -> None:
    """Do the jobs in their order, as many at a time as there are places.

    After a failure nothing new is begun, but where training diverged, which says nothing of other runs. What runs is
    finished, and a DistillError says what failed, and why; unforeseen failures leave their output in the file `log`.
    On Ctrl-C, all children are ended.
    """
    log.unlink(missing_ok=True)
    waiting, free = deque(jobs), list(places)
    children: list[_Child] = []
    failed: list[tuple[str, str]] = []
    before, done, ended = bar.n, 0, False
    try:
        while children or (waiting and not ended):
            while waiting and free and not ended:
                children.append(_start(waiting.popleft(), free.pop(0), threads))
            for child in [child for child in children if child.process.poll() is not None]:
                children.remove(child)
                free.append(child.slot)
                if child.process.returncode:
                    ended = ended or child.process.returncode != _DIVERGED
                    failed.append((child.job.name, _reason(child, log)))
                else:
                    done += child.job.units
                    child.job.finished()
                child.said.close()
            bar.set_postfix_str(", ".join(child.job.name for child in children), refresh=False)
            bar.update(before + done + sum(child.job.progress() for child in children) - bar.n)
            time.sleep(0.2)
    finally:
        _end(children)
    if failed:
        more = f" ({len(failed) - 1} more failed too)" if len(failed) > 1 else ""
        raise DistillError(f"{failed[0][0]} failed{more}: {failed[0][1]}; what is finished is kept")


def _start(job: Job, slot: dict[str, str], threads: int | None) -> _Child:
    said = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the child has ended
    process = subprocess.Popen(
        [sys.executable, "-m", "distill.lab.pool"],
        stdin=subprocess.PIPE,
        stdout=said,
        stderr=said,
        env={**os.environ, **slot, **({"OMP_NUM_THREADS": str(threads)} if threads else {})},
        start_new_session=True,  # which a terminal's Ctrl-C does not reach
    )
    order = {"function": job.function, "keywords": job.keywords, "threads": threads, "methods": loaded_files()}
    assert process.stdin is not None  # it is the pipe that was asked for
    process.stdin.write(json.dumps(order).encode() + b"\n")
    process.stdin.flush()  # and left open: its end is the parent's
    return _Child(job, process, slot, said)


def _end(children: list[_Child]) -> None:
    """At once: whatever they write is replaced whole or not at all."""
    for child in children:
        child.process.kill()
    for child in children:
        child.process.wait()
        child.said.close()


def _reason(child: _Child, log: Path) -> str:
    """Why a process failed, in half a sentence."""
    code = child.process.returncode
    child.said.seek(0)
    said = child.said.read().decode(errors="replace").strip()
    last = (said.splitlines() or ["it said nothing"])[-1]
    if code in (2, _DIVERGED) and last.startswith("distill: "):
        return last.removeprefix("distill: ")
    if code < 0:
        return f"its process was ended by signal {-code}, as the system does when memory runs out; lower --jobs"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{child.job.name}\n\n{said}\n\n")
    return f"{last[:200]} (its whole output is in {log})"


def progress_bar(total: int, done: int) -> "tqdm[Any]":
    """The bar of a whole study, in epochs; one line per minute where nobody watches."""
    often = 0.5 if sys.stderr.isatty() else 60
    return tqdm(total=total, initial=done, unit="epoch", dynamic_ncols=True, mininterval=often, miniters=0)


# ------------------------------------------------------------------------------------------------ the child


def main() -> int:
    """Do the job that stands on the first line of standard input."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, args=(_take_stdin(),), daemon=True).start()
    if order["threads"]:
        torch.set_num_threads(order["threads"])
    module, _, name = order["function"].rpartition(".")
    try:
        for path in order["methods"]:
            load_methods(path)
        with enough_memory("lower --jobs, or use a smaller network"):
            getattr(importlib.import_module(module), name)(**order["keywords"])
    except DistillError as error:
        print(f"distill: {error}", file=sys.stderr)
        return _DIVERGED if isinstance(error, Diverged) else 2
    except OSError as error:
        print(f"distill: {first_line(error)}", file=sys.stderr)
        return 2
    return 0


def _take_stdin() -> int:
    """The pipe from the parent, which nothing that is started from here inherits as its standard input.

    Windows lets no process start whose standard input somebody is reading from (Python's issue 78961).
    """
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return pipe


def _end_with_parent(pipe: int) -> None:
    """Wait for the end of what was standard input."""
    os.read(pipe, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
