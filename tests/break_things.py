"""Whether the tests can fail: python tests/break_things.py

Breaks one thing at a time in a copy of the project and runs the tests in it until one fails. What no test notices is
listed too, and is a test that somebody owes. The table goes to results/broken.json.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from distill.files import PROJECT, read_json, write_json
from distill.training.runs import environment

# Those that start servers, run whole notebooks or build packages would only be slower to notice, or need a clone; those
# of the results look whether what is to be broken is there.
LEFT_OUT = ("notebooks/", "show/test_exercises", "full_scale", "package", "fuzz", "results")
# Where else a module's behaviour is tested, to find a break sooner.
NEAR = {
    "training/batches": ("training/loop",),
    "training/evaluation": ("training/parallel",),
    "training/loop": ("training/parallel",),
    "training/checkpoint": ("training/loop",),
    "training/optimizer": ("training/loop",),
    "lab/tables": ("lab/curves", "training/runs"),
}


class Break(NamedTuple):
    """One thing to break: what it is, and which piece of which module becomes what."""

    what: str
    module: str
    before: str
    after: str


BREAKS = (
    Break("KD without T²", "losses", "* (temperature**2 / pixels)", "/ pixels"),
    Break("KD's sign", "losses", "return F.kl_div(student", "return -F.kl_div(student"),
    Break(
        "KD averages over classes too",
        "losses",
        "student_logits.numel() // student_logits.shape[1]",
        "student_logits.numel()",
    ),
    Break("the ignore index of cross-entropy", "losses", "ignore_index=ignore_index, reduction", "reduction"),
    Break("AT takes |F| in place of F²", "losses", "feature_map).square().sum(dim=1)", "feature_map).abs().sum(dim=1)"),
    Break("OFD's margin has the other sign", "losses", "mean - std * density", "mean + std * density"),
    Break("OFD lets no student be", "losses", "(student > target) | (target > 0)", "student == student"),
    Break("SAKD without its square root", "losses", "attended / math.sqrt(g.shape[2])", "attended / g.shape[2]"),
    Break("SAKD attends along one dimension", "losses", "rows.softmax(dim=2) * g", "rows.softmax(dim=1) * g"),
    Break("no Euclidean length 1", "losses", "F.normalize(student.flatten(1), dim=1)", "student.flatten(1)"),
    Break("gradient into the teacher", "losses", "_widen(teacher_logits.detach())", "_widen(teacher_logits)"),
    Break("maps resized without corners", "terms", "align_corners=True", "align_corners=False"),
    Break(
        "OFD not divided by the batch", "terms", 'f"margin_{position}")) / len(student_map)', 'f"margin_{position}"))'
    ),
    Break("the weight of a term", "methods", "term.current_weight() * loss", "loss"),
    Break(
        "a teacher in training mode",
        "networks/teachers",
        "model.eval().requires_grad_(False)",
        "model.requires_grad_(False)",
    ),
    Break(
        "code in files is run",
        "networks/teachers",
        'map_location="cpu", weights_only=True',
        'map_location="cpu", weights_only=False',
    ),
    Break("the sampler's seed", "training/batches", "manual_seed(self.seed * 100_003 + epoch)", "manual_seed(epoch)"),
    Break(
        "every epoch in one order",
        "training/batches",
        "manual_seed(self.seed * 100_003 + epoch)",
        "manual_seed(self.seed)",
    ),
    Break(
        "connectors change the students",
        "training/loop",
        "with seeded(seed + 1_000_003):",
        "if True:",
    ),
    Break(
        "a resumed run forgets its dropout", "training/checkpoint", 'torch.set_rng_state(state["random"].cpu())', "pass"
    ),
    Break(
        "a resumed run forgets its optimizer",
        "training/checkpoint",
        "in parts.items():\n            part.load",
        "in list(parts.items())[:2]:\n            part.load",
    ),
    Break(
        "labels are not mirrored with images", "training/batches", "self.labels[index].flip(-1)", "self.labels[index]"
    ),
    Break("the warm-up", "training/optimizer", "return (step + 1) / (warmup + 1)", "return 1.0"),
    Break("no bound on the gradient", "training/loop", "if self.settings.clip:", "if False:"),
    Break("a loss that is no number", "training/loop", "if all(finite):", "if True:"),
    Break("a resumed run forgets where it was", "training/loop", '"partial": self.partial}', '"partial": {}}'),
    Break("pixels labelled elsewhere", "training/loop", "self.ranks.sum(labelled).clamp", "labelled.clamp"),
    Break(
        "dropout alike in all processes",
        "training/parallel",
        "kept[rank * images : (rank + 1) * images]",
        "kept[:images]",
    ),
    Break(
        "statistics of one process",
        "training/parallel",
        "if norms and isinstance(module, nn.BatchNorm2d):",
        "if False:",
    ),
    Break("all processes score all images", "training/evaluation", "range(ranks.rank * batch_size,", "range(0,"),
    Break(
        "crops mirrored without labels", "data/transforms", "pixels.flip(1), classes.flip(1)", "pixels.flip(1), classes"
    ),
    Break("a cache of other images", "training/batches", "path.stat().st_size, path.stat().st_mtime_ns", "0"),
    Break("test images in training", "data/folders", "if name not in held_out]", "]"),
    Break("links out of the folder", "data/folders", "    _check_link(path, self.ids[index])", "    pass"),
    Break("cameras held upright", "data/pictures", "= ImageOps.exif_transpose(image)", "= image"),
    Break("the label of what crops add", "data/transforms", "return 0 if padding", "return 0 if True or padding"),
    Break("colours not normalised", "data/transforms", ".div_(255).sub_(mean).div_(std)", ".div_(255)"),
    Break(
        "the confusion matrix on its side",
        "training/evaluation",
        "labels[valid].long() * num_classes + prediction[valid].long()",
        "prediction[valid].long() * num_classes + labels[valid].long()",
    ),
    Break("void counts in scores", "training/evaluation", "if not np.isnan(iou)]", "if iou > 0]"),
    Break("gains that are not paired", "lab/tables", "(entry, baseline[seed])", "(entry, baseline[min(baseline)])"),
    Break("convergence looks at the last half", "lab/curves", "at_share(entry, 0.75)", "at_share(entry, 0.5)"),
    Break("equal time is the slower run's", "lab/curves", "end = min(seconds", "end = max(seconds"),
    Break("a gain within its interval is settled", "lab/curves", "if abs(mean) > half:", "if abs(mean) > half / 2:"),
    Break("seconds of a busy machine", "lab/tables", 'clock = "cpu_seconds" if', 'clock = "seconds" if'),
    Break("rows and columns of exchanged classes", "lab/diagnose", "overlap.argmax(1)", "overlap.argmax(0)"),
    Break("a weight that fell to nothing is nothing", "lab/diagnose", '"decay": 0', '"decay": options["decay"]'),
    Break(
        "the atomic rename",
        "files",
        "        yield temporary\n",
        "        yield path\n        temporary.write_bytes(path.read_bytes())\n",
    ),
    Break("half a file is left behind", "files", "temporary.unlink(missing_ok=True)", "pass"),
    Break("the output stride", "networks/deeplab", "output_stride not in _ATROUS_RATES", "False"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="parts of the names of what is broken")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="copies of the project to break at a time")
    options = parser.parse_args()
    chosen = [broken for broken in BREAKS if not options.only or any(part in broken.what for part in options.only)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for job in range(options.jobs):
            free.put(_copy(Path(folder) / f"project{job}"))
        found = list(pool.map(lambda broken: _try(broken, free), chosen))
    path = PROJECT / "results" / "broken.json"
    if options.only:  # of what was recorded before, these are replaced
        entries = {entry["what"]: entry for entry in (*read_json(path)["broken"], *found)}
        found = [entries[broken.what] for broken in BREAKS if broken.what in entries]
    where = environment(torch.device("cpu"))
    write_json(path, {"command": "python tests/break_things.py", "environment": where, "broken": found})


def _copy(target: Path) -> Path:
    leave = shutil.ignore_patterns(".git", ".venv", "scratch", "runs", "executed", ".*_cache", "__pycache__")
    return Path(shutil.copytree(PROJECT, target, ignore=leave))


def _try(broken: Break, free: queue.SimpleQueue) -> dict:
    """Break it in a copy that is free, run the tests until one fails, and mend it again."""
    copy = free.get()
    path = copy / "distill" / f"{broken.module}.py"
    whole = path.read_text()
    path.write_text(whole.replace(broken.before, broken.after))
    start = time.perf_counter()
    caught = _first_failure(copy, broken.module)
    seconds = round(time.perf_counter() - start, 1)
    path.write_text(whole)
    free.put(copy)
    print(f"{seconds:6.0f} s  {broken.what}: {caught or 'NOTICED BY NO TEST'}", flush=True)
    return {"what": broken.what, "module": broken.module, "caught_by": caught, "seconds": seconds}


def _first_failure(copy: Path, module: str) -> str | None:
    """The module's own tests and the table of mistakes first, then all others."""
    names = sorted(path.relative_to(copy / "tests").as_posix() for path in (copy / "tests").rglob("test_*.py"))
    tests = [name for name in names if not any(part in name for part in LEFT_OUT)]
    own = [f"{Path(name).parent / f'test_{Path(name).name}.py'}" for name in (module, *NEAR.get(module, ()))]
    first = [name for name in (*own, "test_mistakes.py") if name in tests]
    for group in (first, [name for name in tests if name not in first]):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            *(f"tests/{name}" for name in group),
        ]
        result = subprocess.run(
            command, cwd=copy, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(copy)}
        )
        if result.returncode:
            named = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", result.stdout, re.M)
            return named[1] if named else result.stdout[-300:]
    return None


if __name__ == "__main__":
    main()
