"""Speed on one GPU at the published size: python benchmarks/gpu.py

Both students with every method, full width, 513 x 513, by batch size: ours in bfloat16 beside the plain implementation
in float32, and ours once more through torch.compile. Images loaded per second by number of workers, with crops cut on
the host and on the device. The operators that take most of the GPU in a step of each student with sakd.

What is measured is written after every row, so that a run that is cut off leaves what it has. `--tiny` goes through all
of it at a size for a CPU.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from distill.cli import explained
from distill.data.folders import VOCFolder
from distill.files import PROJECT, make_folder, write_json
from distill.lab import plain
from distill.lab.bench import METHODS, STUDENTS, VOC_SIZE, Bench, choose, make_teacher, measure_steps, random_batch
from distill.lab.steps import Ours, seconds
from distill.training.batches import CroppedBatches
from distill.training.presets import PRESETS
from distill.training.runs import environment
from distill.training.settings import for_device

FULL = {
    "batch_sizes": (16, 32, 64),
    "compile": (False, True),
    "workers": (1, 2, 4, 8, 16),
    "crop_on": ("host", "device"),
    "pictures": 512,
    "bench": {
        "methods": METHODS,
        "backbones": STUDENTS,
        "preset": "voc",
        "crop_size": 513,
        "precision": "bfloat16",
        "steps": 10,
    },
}
TINY = {
    "batch_sizes": (4,),
    "compile": (False,),
    "workers": (0, 1),
    "crop_on": ("host",),
    "pictures": 12,
    "bench": {
        "methods": ("baseline", "sakd"),
        "backbones": ("resnet18",),
        "preset": "sample",
        "crop_size": 32,
        "precision": "float32",
        "steps": 1,
    },
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, to see that it works")
    parser.add_argument("--out", type=Path, default=PROJECT / "results" / "benchmark-gpu.json")
    parser.add_argument("--batch-sizes", nargs="+", type=int, metavar="N")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(arguments)
    return explained(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    sizes = TINY if options.tiny else FULL
    count, device = options.batch_sizes or sizes["batch_sizes"], "cpu" if options.tiny else options.device
    bench = choose(**sizes["bench"], device=device, batch_size=count[0])
    make_folder(options.out.parent)
    result = {"date": date.today().isoformat(), "environment": environment(bench.device), "tiny": options.tiny}
    settings = ("crop_size", "output_stride", "optimizer", "precision")
    result["options"] = {"preset": bench.preset, "seed": bench.seed, "steps": bench.steps}
    result["options"] |= {name: getattr(bench.settings, name) for name in settings}
    parts = {"steps": [], "operators": [], "loading": []}
    compiled = [False] if not options.compile else sizes["compile"]  # last, because it takes longest
    for name, rows in (
        ("steps", step_rows(bench, count, False)),
        ("operators", operator_rows(bench)),
        ("loading", loading_rows(bench, sizes)),
        *(("steps", step_rows(bench, count, True)) for wanted in compiled if wanted),
    ):
        for row in rows:
            parts[name].append(row)
            write_json(options.out, result | parts)
            print(name, *(f"{key} {value}" for key, value in row.items() if not isinstance(value, dict | list)))


def step_rows(bench: Bench, batch_sizes: list[int], compiled: bool) -> Iterator[dict]:
    """Rows of `measure_steps`, one student and method at a time, with their batch size."""
    for count in batch_sizes:
        settings = replace(bench.settings, batch_size=count, compile=compiled)
        for backbone in bench.backbones:
            for method in bench.methods:
                one = replace(bench, backbones=(backbone,), methods=(method,), settings=settings, progress=False)
                yield from ({"batch_size": count, **row} for row in measure_steps(one))


def loading_rows(bench: Bench, sizes: dict) -> Iterator[dict]:
    """Images per second by workers, from the first batch of an epoch on: before it they start."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = VOCFolder(plain.write_pictures(Path(folder), sizes["pictures"], VOC_SIZE))
        for crop_on in sizes["crop_on"]:
            for workers in sizes["workers"]:
                settings = replace(
                    PRESETS["voc"], batch_size=4, crop_size=bench.settings.crop_size, workers=workers, crop_on=crop_on
                )
                batches = CroppedBatches(dataset, for_device(settings, bench.device), bench.seed, bench.device)
                rate = _rate(iter(batches(0)), 4 * (len(batches) - 1), bench.device)
                yield {"crop_on": crop_on, "workers": workers, "images_per_second": rate}


def _rate(batches: Iterator, images: int, device: torch.device) -> float:
    next(batches)
    return images / seconds(lambda: [None for _ in batches], device)


def operator_rows(bench: Bench, most: int = 15) -> Iterator[dict]:
    """The operators that take longest in one step, by their own kernels; on a CPU by their own time."""
    batch = random_batch(bench)
    teacher, gpu = make_teacher(bench, batch[0]), bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if gpu else [])
    for backbone in bench.backbones:
        step = Ours(backbone, "sakd", bench.preset, bench.settings, bench.seed, teacher, batch)
        seconds(step, bench.device), seconds(step, bench.device)
        with profile(activities=activities) as found:
            seconds(step, bench.device)
        key = "self_device_time_total" if gpu else "self_cpu_time_total"
        events = [event for event in found.key_averages() if event.device_type == DeviceType.CPU]  # no kernels
        events = sorted(((getattr(event, key), event.count, event.key) for event in events), reverse=True)
        total = sum(spent for spent, *_ in events)
        for spent, calls, name in events[:most]:
            yield {
                "backbone": backbone,
                "method": "sakd",
                "operator": name,
                "calls": calls,
                "milliseconds": spent / 1000,
                "share": spent / total,
            }


if __name__ == "__main__":
    raise SystemExit(main())
