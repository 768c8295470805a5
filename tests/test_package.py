"""The distributions: what `python -m build` makes, installed somewhere else without the clone, and used there."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from email import message_from_bytes
from email.message import Message
from importlib.metadata import PathDistribution
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import distill

PROJECT = Path(__file__).resolve().parent.parent
STUDENT = "student-resnet18-distilled.safetensors"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, PROJECT]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def site(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip has installed the wheel in."""
    target, (wheel,) = tmp_path_factory.mktemp("site"), built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(install, check=True)
    return target


@pytest.fixture
def use(site: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs Python in a folder of its own, where `distill` is the installed one, and gives what it printed."""

    def run(*arguments: str | Path) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site)}
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_distributions_are_small(built: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in built.iterdir()}
    assert len(sizes) == 2 and all(size < 15_000_000 for size in sizes.values()), sizes


def test_the_shipped_student_predicts_from_the_installed_package(
    use: Callable[..., str], site: Path, tmp_path: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    code = (
        "import distill, numpy; print(distill.__file__)\n"
        f"student = distill.load_model(distill.shipped_file('{STUDENT}'))\n"
        "numpy.save('mask.npy', distill.predict(student, 'image.png'))\n"
    )
    assert Path(use("-c", code).strip()).is_relative_to(site)
    student = distill.load_model(distill.shipped_file(STUDENT))
    assert np.array_equal(np.load(tmp_path / "mask.npy"), distill.predict(student, image))


def test_the_installed_command_line_finds_the_shipped_teacher(use: Callable[..., str], tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    use("-m", "distill", "predict", "sample", "image.png", "--out", "masks")
    assert (tmp_path / "masks" / "image_mask.png").is_file()


def test_nothing_that_the_package_reads_is_left_out(site: Path) -> None:
    """Every file of `distill/` that git knows, among them the explorer's script and the marker of types."""
    listed = subprocess.run(["git", "ls-files", "distill"], cwd=PROJECT, capture_output=True, text=True, check=True)
    files = listed.stdout.split()
    assert {"distill/py.typed", "distill/show/picture.js"} <= set(files)
    assert [name for name in files if not (site / name).is_file()] == []


def test_every_entry_point_leads_to_a_function(site: Path) -> None:
    (information,) = site.glob("*.dist-info")
    for entry in PathDistribution(information).entry_points:
        assert callable(entry.load()), entry


def test_the_metadata_says_what_is_offered(site: Path) -> None:
    (information,) = site.glob("*.dist-info")
    metadata: Message = message_from_bytes((information / "METADATA").read_bytes())
    assert metadata["License-Expression"] == "MIT" and (information / "licenses" / "LICENSE").is_file()
    classifiers = metadata.get_all("Classifier") or []
    assert "Typing :: Typed" in classifiers
    oldest = min(re.findall(r"Python :: 3\.(\d+)", " ".join(classifiers)), key=int)
    assert metadata["Requires-Python"] == f">=3.{oldest}"


def test_no_file_is_too_large_for_a_clone() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    sizes = {name: (PROJECT / name).stat().st_size for name in listed.split("\0") if (PROJECT / name).is_file()}
    assert sizes, "git lists no files"
    assert max(sizes.values()) < 15_000_000
    assert sum(sizes.values()) < 60_000_000


@pytest.mark.parametrize(("given", "kept"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_waiting_threads_go_to_sleep_sooner_unless_told_otherwise(given: dict[str, str], kept: str) -> None:
    """Set before PyTorch is imported, as libgomp reads it then."""
    code = (
        "import os, sys, importlib.abc\n"
        "class Watch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch': print(os.environ.get('GOMP_SPINCOUNT'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import distill\n"
    )
    usual = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    asked = [sys.executable, "-c", code]
    assert subprocess.run(asked, env=usual | given, capture_output=True, text=True, check=True).stdout == f"{kept}\n"
