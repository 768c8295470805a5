"""The course as a reader meets it: every notebook runs, in a kernel of its own, in the time that it states."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from distill.files import read_json
from studies.run_notebooks import NOTEBOOKS, PROJECT, TIMES, reference_seconds, stated_seconds

NAMES = [path.name for path in sorted(NOTEBOOKS.glob("*.ipynb"))]


def run(name: str, out: Path) -> float:
    """Run one notebook into `out`; its seconds, as a reader waits for them."""
    command = [sys.executable, "studies/run_notebooks.py", "--out", str(out), name]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return float(done.stdout.split()[0])


def slowness() -> float:
    """The time of the reference command here and now, as a multiple of the recorded one."""
    return reference_seconds() / read_json(TIMES)["reference_seconds"]


@pytest.fixture(scope="module")
def slow() -> float:
    return slowness()


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom_in_its_time(name: str, slow: float, tmp_path: Path) -> None:
    """Within a factor of two. One that is not is run once more: another program may have held the machine up."""
    stated, seconds = stated_seconds(NOTEBOOKS / name), run(name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    cells = [cell for cell in nbformat.read(tmp_path / name, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    speeds = [1.0, slow]
    if not stated / 2 * min(speeds) <= seconds <= stated * 2 * max(speeds):
        speeds = [1.0, slowness()]
        seconds = run(name, tmp_path)
        speeds.append(slowness())
    assert stated / 2 * min(speeds) <= seconds <= stated * 2 * max(speeds), f"{seconds} s; {name} states {stated} s"
