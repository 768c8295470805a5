"""Checks that the course has everything it needs: one line each, [OK] or [TO DO] with what to do."""

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

import torch
import torchvision
from packaging.requirements import Requirement

from distill.data.check import check_dataset
from distill.data.folders import data_root
from distill.data.sample import SAMPLE_SIZES
from distill.errors import DistillError
from distill.files import free_memory, usable_cores
from distill.networks.teachers import SHIPPED, fingerprint, load_teacher, shipped_file
from distill.training.parallel import gpu_computes

SHIPPED_FINGERPRINT = "13f1f37579d025bc"  # of the weights in data/teacher-sample.safetensors
DISK, MEMORY = 2e9, 2e9  # bytes that the course needs, with room to spare


class Finding(NamedTuple):
    """One check: what was found and, where that is not enough, what to do."""

    name: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"[TO DO] {self.name}: {self.found}; {self.advice}" if self.advice else f"[OK] {self.name}: {self.found}"


def examine() -> Iterator[Finding]:
    """All findings, one after the other; reading the whole sample takes a few seconds."""
    yield Finding("Python", platform.python_version())
    yield from _packages()
    yield _torch_and_torchvision()
    yield _device()
    yield _disk()
    yield _memory()
    yield _sample()
    yield _teacher()


def _packages() -> Iterator[Finding]:
    """Those that this package needs, against their lower bounds."""
    try:
        own = requires("distill") or ()
    except PackageNotFoundError:
        yield Finding("distill", "not installed", "run, in the folder of the project: pip install -e .")
        return
    for needed in map(Requirement, own):
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):  # of an extra, or another Python
            continue
        try:
            there = version(needed.name)
        except PackageNotFoundError:
            there = "not installed"
        fits = there != "not installed" and needed.specifier.contains(there, prereleases=True)
        yield Finding(needed.name, there, "" if fits else f"run: pip install '{needed}'")


def _torch_and_torchvision() -> Finding:
    """torchvision is compiled for one version of torch, which its metadata names."""
    pair = f"{torch.__version__} with {torchvision.__version__}"
    asked = next((r for r in map(Requirement, requires("torchvision") or ()) if r.name == "torch"), None)
    fits = asked is None or asked.specifier.contains(torch.__version__.split("+")[0], prereleases=True)
    try:
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except (RuntimeError, AttributeError):
        fits = False
    advice = "" if fits else "they do not fit together; run: pip install --force-reinstall torch torchvision"
    return Finding("torch and torchvision", pair, advice)


def _device() -> Finding:
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        advice = "this PyTorch has no code for it, so the CPU computes; install a PyTorch for an older CUDA"
        found = f"{torch.cuda.get_device_name(0)}, {memory / 1e9:.0f} GB"
        return Finding("device", found, "" if gpu_computes() else advice)
    return Finding("device", f"CPU, {usable_cores()} cores, {torch.get_num_threads()} threads; no GPU was found")


def _disk() -> Finding:
    """Where data and runs go; the folder itself need not be there yet."""
    folder = data_root().resolve()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.1f} GB free in {there}"
    if not there.is_dir():
        return Finding("disk", f"{there} is a file", "set DISTILL_DATA to a folder")
    if not os.access(there, os.W_OK):
        return Finding("disk", f"{there} cannot be written to", "set DISTILL_DATA to a folder of your own")
    advice = f"make room for {DISK / 1e9:.0f} GB, or set DISTILL_DATA to another folder"
    return Finding("disk", found, "" if free > DISK else advice)


def _memory() -> Finding:
    free = free_memory()
    if free is None:
        return Finding("memory", "not known here")
    advice = f"close other programs; the course needs about {MEMORY / 1e9:.0f} GB"
    return Finding("memory", f"{free / 1e9:.1f} GB free", "" if free > MEMORY else advice)


def _sample() -> Finding:
    root = data_root() / "sample"
    if not (root / "sample.txt").exists():
        return Finding("sample", f"{root} is not there", "run: python -m distill data sample")
    try:
        report = check_dataset(root, SAMPLE_SIZES, progress=False)
        problems = [problem for found in report.values() for problem in found["problems"]]
    except DistillError as error:
        problems = [str(error)]
    if problems:
        return Finding("sample", problems[0], f"delete {root} and run: python -m distill data sample")
    return Finding("sample", f"{sum(found['images'] for found in report.values()):,} images in {root}")


def _teacher() -> Finding:
    advice = "clone or install the project again"
    try:
        found = fingerprint(load_teacher("sample"))
    except DistillError as error:
        return Finding("teacher", str(error), advice)
    if found == SHIPPED_FINGERPRINT:
        return Finding("teacher", f"fingerprint {found}")
    damaged = f"{shipped_file(SHIPPED)} holds other weights (fingerprint {found}, not {SHIPPED_FINGERPRINT})"
    return Finding("teacher", damaged, advice)
