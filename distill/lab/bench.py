"""Speed and memory of training, each beside a plain implementation (`plain`), measured in the same run.

A step of ours and one of the plain implementation (see `steps`) take turns on the same networks and the same batch, so
that a machine that slows down does so for both. The first two of each are not counted; the median of the others is
given with the fastest and the slowest. Loading is measured in the same way, but for one turn that is not counted.

Images and weights are random, and nothing is learnt.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from distill.data.folders import VOC_CLASSES, VOCFolder
from distill.errors import DistillError, check_number, first_line
from distill.lab import plain
from distill.lab.steps import PARTS, Batch, Ours, Plain, Step, classes_of, in_threads, saved_for_backward, seconds
from distill.losses import IGNORE_INDEX
from distill.methods import method_terms
from distill.networks.deeplab import build_model
from distill.networks.teachers import freeze
from distill.training.batches import CroppedBatches, FlippedBatches
from distill.training.parallel import pick_device
from distill.training.presets import PRESETS, choose_settings, make_student
from distill.training.runs import environment
from distill.training.settings import Settings, for_device

METHODS = ("baseline", *plain.KNOWN)
STUDENTS = ("resnet18", "mobilenetv2")
VOC_SIZE, VOC_CROP = (500, 375), 513  # pixels of most of its images, and of the published crops


@dataclass(frozen=True)
class Bench:
    """What to measure, with what, and how often; see `choose`."""

    methods: tuple[str, ...]
    backbones: tuple[str, ...]
    preset: str
    settings: Settings
    device: torch.device
    seed: int
    steps: int
    progress: bool


def choose(
    methods: Sequence[str] = METHODS,
    backbones: Sequence[str] = STUDENTS,
    preset: str = "sample",
    device: str = "auto",
    seed: int = 0,
    steps: int = 5,
    progress: bool = True,
    **settings: Any,
) -> Bench:
    """What is to be measured, checked. `settings` are those of a run, such as `batch_size`, `precision`, `compile`."""
    check_number("seed", seed, 0, 2**32 - 1)
    check_number("steps", steps, 1, 100_000)
    combined = [method_terms(name) for name in methods]
    with torch.device("meta"):  # nothing is drawn: only to see whether there are such networks
        students = [str(build_model(backbone).config["backbone"]) for backbone in backbones]
    target = pick_device(device)
    chosen = for_device(choose_settings(preset, "matched", settings), target)
    names = dict.fromkeys("+".join(terms) or "baseline" for terms in combined)
    return Bench(tuple(names), tuple(dict.fromkeys(students)), preset, chosen, target, seed, steps, progress)


def measure(bench: Bench, data: str | Path | None = None, cache: bool = False) -> dict[str, Any]:
    """All of it, as JSON values: steps, loading (from the folder `data`, or made-up pictures), on request the cache."""
    if cache and bench.settings.augment != "flip":
        raise DistillError(
            f"the teacher's answers are cached for views that recur, and the preset {bench.preset} draws crops; "
            f"leave out --cache, or use --preset sample"
        )
    names = ("batch_size", "crop_size", "output_stride", "optimizer", "precision", "compile")
    options: dict[str, Any] = {"preset": bench.preset, "seed": bench.seed, "steps": bench.steps}
    options |= {name: getattr(bench.settings, name) for name in names}
    result: dict[str, Any] = {"date": date.today().isoformat(), "environment": environment(bench.device)}
    result["options"] = options
    result["loading"] = measure_loading(bench, data)
    result["steps"] = measure_steps(bench)
    if cache:
        result["cache"] = measure_cache(bench)
    return result


# -------------------------------------------------------------------------------------------------- one step


def measure_steps(bench: Bench, teacher: nn.Module | None = None) -> list[dict[str, Any]]:
    """One row per student and method; `teacher`: another than the preset's ResNet-101 with random weights."""
    batch = random_batch(bench, len(VOC_CLASSES) if teacher is None else classes_of(teacher))
    teacher = make_teacher(bench, batch[0]) if teacher is None else teacher
    pairs = list(product(bench.backbones, bench.methods))
    bar = tqdm(pairs, desc="steps", leave=False, disable=not bench.progress)
    return [_step_row(bench, backbone, method, teacher, batch) for backbone, method in bar]


def random_batch(bench: Bench, classes: int = len(VOC_CLASSES)) -> Batch:
    size, count = bench.settings.crop_size, bench.settings.batch_size
    generator = torch.Generator().manual_seed(bench.seed)
    images = torch.randn(count, 3, size, size, generator=generator)
    labels = torch.randint(classes, (count, size, size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.05] = IGNORE_INDEX
    return images.to(bench.device), labels.to(bench.device)


def make_teacher(bench: Bench, images: Tensor) -> nn.Module:
    """The preset's ResNet-101 with random weights, whose BatchNorms know the images: or its maps would overflow."""
    teacher = make_student("resnet101", len(VOC_CLASSES), bench.preset, bench.settings.output_stride, bench.seed)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        teacher.to(bench.device).train()(images)
    return freeze(teacher)


def _step_row(bench: Bench, backbone: str, method: str, teacher: nn.Module, batch: Batch) -> dict[str, Any]:
    """Ours and the plain implementation, where the method has one, in turns; None for what does not fit in a GPU."""
    kinds: dict[str, Callable[..., Step]] = {"ours": Ours}
    if set(method_terms(method)) <= set(plain.KNOWN):
        kinds["plain"] = Plain
    if bench.settings.compile:
        kinds["compiled"] = partial(Ours, compiled=True)
    row: dict[str, Any] = {"backbone": backbone, "method": method, **dict.fromkeys(kinds)}
    steps: dict[str, Step] = {}
    for name, kind in kinds.items():
        make = partial(kind, backbone, method, bench.preset, bench.settings, bench.seed, teacher, batch)
        ready = _warm(make, bench.device, name == "compiled")
        if ready is not None:
            steps[name], row[name] = ready
    times: dict[str, list[float]] = {name: [] for name in steps}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(bench.steps):
        for name, step in steps.items():
            times[name].append(seconds(step, bench.device))
            if isinstance(step, Ours):
                parts[name].append(step.dissect())
    for name in steps:
        row[name] |= _summary(times[name], bench.settings.batch_size)
        if parts[name]:
            row[name]["parts"] = {part: median(found[part] for found in parts[name]) for part in parts[name][0]}
    row["ratio"] = _quotient(row.get("plain"), row["ours"])
    if bench.settings.compile:
        row["compiled_ratio"] = _quotient(row["ours"], row["compiled"])
    return row


def _warm(make: Callable[[], Step], device: torch.device, compiled: bool) -> tuple[Step, dict[str, Any]] | None:
    """A step after two calls, and the memory it needs; None where a GPU has not as much."""
    gpu, facts = device.type == "cuda", {}
    if gpu:
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    try:
        step = make()
        first, second = (seconds(step, device) for _ in range(2))
        if gpu:
            facts["peak_bytes"] = torch.cuda.max_memory_allocated(device) - held
        elif not compiled:
            facts["saved_for_backward_bytes"] = saved_for_backward(step)
        if isinstance(step, Ours):
            step.dissect()
    except torch.OutOfMemoryError:
        return None
    except Exception as error:
        if not compiled:
            raise
        raise DistillError(f"torch.compile does not work here ({first_line(error)}); leave out --compile") from None
    return step, facts | ({"compile_seconds": first - second} if compiled else {})


# --------------------------------------------------------------------------------------------------- loading


def measure_loading(bench: Bench, data: str | Path | None = None) -> list[dict[str, Any]]:
    """Images per second that one process with one thread loads, at the crop of the steps and at the published one."""
    with tempfile.TemporaryDirectory() as folder, in_threads(1):
        dataset = VOCFolder(data or plain.write_pictures(Path(folder), 24, VOC_SIZE, bench.seed), "train", limit=24)
        if len(dataset) < 2:
            raise DistillError(
                f"{dataset.root} has one training image, and a batch has two or more; give another --data"
            )
        sizes = sorted({bench.settings.crop_size, VOC_CROP})
        bar = tqdm(sizes, desc="loading", leave=False, disable=not bench.progress)
        return [_loading(bench, dataset, size) for size in bar]


def _loading(bench: Bench, dataset: VOCFolder, crop_size: int) -> dict[str, Any]:
    count, places = min(8, len(dataset)), range(len(dataset))
    settings = replace(PRESETS["voc"], crop_size=crop_size, batch_size=count, workers=0, crop_on="host")
    ours = CroppedBatches(dataset, settings, bench.seed, torch.device("cpu"))
    generator = torch.Generator().manual_seed(bench.seed)
    actions = {
        "ours": lambda: _exhaust(ours(0)),
        "plain": lambda: _exhaust(plain.batches(dataset, crop_size, count, generator)),
        "ours_decode": lambda: _exhaust(dataset[place] for place in places),
        "plain_decode": lambda: _exhaust(plain.decode(dataset, place) for place in places),
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(bench.steps + 1):  # the first reads the files from the disk, and is not counted
        for name, action in actions.items():
            spent = seconds(action, torch.device("cpu"))
            times[name] += [spent] if turn else []
    loaded = len(dataset) // count * count
    row: dict[str, Any] = {"crop_size": crop_size, "images": len(dataset)}
    for name in ("ours", "plain"):
        row[name] = _summary(times[name], loaded)
        decode = median(times[f"{name}_decode"]) / len(dataset)
        row[name] |= {"decode_seconds": decode, "transform_seconds": row[name]["seconds"] / loaded - decode}
    return row | {"ratio": _quotient(row["plain"], row["ours"])}


# ----------------------------------------------------------------------------------------------------- cache


def measure_cache(bench: Bench) -> list[dict[str, Any]]:
    """What it costs to ask the teacher once about 64 images and their mirror images, and what a step saves by it."""
    size, count = bench.settings.crop_size, max(64, bench.settings.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        dataset = VOCFolder(plain.write_pictures(Path(folder), count, (size, size), bench.seed))
        batches = FlippedBatches(dataset, bench.settings, bench.seed, bench.device)
    teacher = make_teacher(bench, next(batches(0))[0])
    taught = [row for row in product(bench.backbones, bench.methods) if row[1] != "baseline"]
    bar = tqdm(taught, desc="cache", leave=False, disable=not bench.progress)
    rows = [_cache_row(bench, batches, teacher, backbone, method) for backbone, method in bar]
    return [row for row in rows if row is not None]


def _cache_row(
    bench: Bench, batches: FlippedBatches, teacher: nn.Module, backbone: str, method: str
) -> dict[str, Any] | None:
    """None where the answers would not fit in memory."""
    batches.answers = None
    step = Ours(backbone, method, bench.preset, bench.settings, bench.seed, teacher, next(batches(0))[:2])
    step()
    cost = seconds(lambda: batches.cache_teacher(step.asked, step.method.needs_maps, progress=False), bench.device)
    kept: list[Tensor] | None = batches.answers  # as `cache_teacher` left them
    if kept is None:
        return None
    answers = {"asked": None, "kept": kept}

    def load_and_step(name: str) -> None:
        batches.answers = answers[name]
        step.images, step.labels, step.answers = next(batches(0))
        step()

    times: dict[str, list[float]] = {name: [] for name in answers}
    for _ in range(bench.steps):
        for name in times:
            times[name].append(seconds(partial(load_and_step, name), bench.device))
    row: dict[str, Any] = {"backbone": backbone, "method": method, "views": 2 * len(batches.images), "seconds": cost}
    row["bytes"] = sum(tensor.nbytes for tensor in kept)
    row |= {name: _summary(times[name], bench.settings.batch_size) for name in times}
    return row | {"ratio": _quotient(row["asked"], row["kept"])}


# --------------------------------------------------------------------------------------------- tables


def _exhaust(items: Iterable[Any]) -> None:
    for _ in items:
        pass


def _summary(times: list[float], images: int) -> dict[str, Any]:
    middle = median(times)
    return {"seconds": middle, "fastest": min(times), "slowest": max(times), "images_per_second": images / middle}


def _quotient(above: dict[str, Any] | None, below: dict[str, Any] | None) -> float | None:
    return above["seconds"] / below["seconds"] if above and below else None


def report(result: dict[str, Any]) -> str:
    """The Markdown tables of `measure`'s result."""
    options, machine = result["options"], result["environment"]
    where = f"{machine['threads']} threads" if machine["device"] == "cpu" else machine["device"]
    names = ("preset", "batch_size", "crop_size", "precision")
    head = ", ".join(f"{name.replace('_', ' ')} {options[name]}" for name in names)
    head = f"{head}; {where}; the median of {options['steps']} (fastest to slowest)"
    steps, loading = (_lines(result[part], ("ours", "plain", "compiled")) for part in ("steps", "loading"))
    tables = [_table(steps, _STEP_COLUMNS), _table([line for line in steps if "parts" in line], _PART_COLUMNS)]
    tables += [_table(loading, _LOADING_COLUMNS)]
    tables += [_table(result["cache"], _CACHE_COLUMNS)] if result.get("cache") else []
    return "\n\n".join([head, *tables])


def _lines(rows: list[dict[str, Any]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """One line for each of `names` that a row has."""
    return [{**row, "kind": name, **(row[name] or {})} for row, name in product(rows, names) if name in row]


Columns = dict[str, Callable[[dict[str, Any]], object]]


def _table(lines: list[dict[str, Any]], columns: Columns) -> str:
    cells = [list(columns), ["---"] * len(columns), *([str(cell(line)) for cell in columns.values()] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _spread(found: dict[str, Any]) -> str:
    if "seconds" not in found:
        return "out of memory"
    middle, least, most = (_ms(found[name]) for name in ("seconds", "fastest", "slowest"))
    return f"{middle} ({least} to {most})"


def _ms(time: float) -> str:
    return f"{1000 * time:.{1 if time < 0.1 else 0}f}"


def _rate(line: dict[str, Any]) -> str:
    return f"{line['images_per_second']:.0f}" if "seconds" in line else "–"


def _ratio(line: dict[str, Any]) -> str:
    """Speed-up over the plain implementation, whose own line has 1."""
    ratio = _quotient(line.get("plain"), line if "seconds" in line else None)
    return "–" if ratio is None else f"{ratio:.2f}"


def _megabytes(line: dict[str, Any]) -> str:
    kinds = {"peak_bytes": "at the peak", "saved_for_backward_bytes": "saved for backward"}
    return next((f"{line[key] / 1e6:.0f} {kind}" for key, kind in kinds.items() if key in line), "–")


def _share(part: str, line: dict[str, Any]) -> str:
    return f"{line['parts'][part] / line['seconds']:.1%}"


_ROW: Columns = {"student": itemgetter("backbone"), "method": itemgetter("method")}

_STEP_COLUMNS: Columns = {
    **_ROW,
    "step": itemgetter("kind"),
    "ms per step": _spread,
    "images/s": _rate,
    "times plain": _ratio,
    "MB": _megabytes,
    "s to compile": lambda line: f"{line['compile_seconds']:.0f}" if "compile_seconds" in line else "",
}

_PART_COLUMNS: Columns = {
    **_ROW,
    "step": itemgetter("kind"),
    "teacher forward": partial(_share, "teacher"),
    "student forward and backward": partial(_share, "student"),
    "cross-entropy": partial(_share, "cross-entropy"),
    "loss and connectors": partial(_share, "distillation"),
    "optimizer": partial(_share, "optimizer"),
    "the loss alone": partial(_share, "loss"),
    "limited by": lambda line: max(PARTS, key=line["parts"].get),
}

_LOADING_COLUMNS: Columns = {
    "crop": itemgetter("crop_size"),
    "loading": itemgetter("kind"),
    "images/s per core": _rate,
    "times plain": _ratio,
    "decoding, ms per image": lambda line: _ms(line["decode_seconds"]),
    "the rest, ms per image": lambda line: _ms(line["transform_seconds"]),
}

_CACHE_COLUMNS: Columns = {
    **_ROW,
    "teacher asked, ms per step": lambda row: _spread(row["asked"]),
    "answers kept, ms per step": lambda row: _spread(row["kept"]),
    "asked / kept": lambda row: f"{row['ratio']:.2f}",
    "cost, ms per view": lambda row: _ms(row["seconds"] / row["views"]),
    "kB per view": lambda row: f"{row['bytes'] / row['views'] / 1e3:.0f}",
}
