"""What `pip install .` gives somewhere else: the package, and the files it needs at run time."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=PROJECT, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_an_installed_package_finds_its_own_teacher(unpacked_wheel: Path, tmp_path: Path) -> None:
    code = "from distill.networks.teachers import *; load_teacher('sample'); print(shipped_file(SHIPPED))"
    environment = {**os.environ, "PYTHONPATH": str(unpacked_wheel)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(unpacked_wheel))


def test_the_wheel_carries_the_shipped_students(unpacked_wheel: Path) -> None:
    names = {path.name for path in (unpacked_wheel / "distill" / "shipped").iterdir()}
    assert {"student-resnet18-baseline.safetensors", "student-resnet18-distilled.safetensors"} <= names


def test_no_file_is_too_large_for_a_clone() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    sizes = {name: (PROJECT / name).stat().st_size for name in listed.split("\0") if (PROJECT / name).is_file()}
    assert sizes, "git lists no files"
    assert max(sizes.values()) < 15_000_000
    assert sum(sizes.values()) < 60_000_000


def test_the_wheel_carries_the_browsers_half_of_the_explorer(unpacked_wheel: Path) -> None:
    carried = unpacked_wheel / "distill" / "show" / "picture.js"
    assert carried.read_text() == (PROJECT / "distill" / "show" / "picture.js").read_text()
