"""The course as a reader meets it: every notebook runs, one after the other, in a folder of its own, in its time."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from distill.files import read_json
from studies.run_notebooks import NOTEBOOKS, PROJECT, TIMES, reference_seconds, stated_seconds

NAMES = [path.name for path in sorted(NOTEBOOKS.glob("*.ipynb"))]


def run(out: Path, *names: str) -> dict[str, tuple[float, float, float]]:
    """Run notebooks, all or those named; seconds by name, and between what they may lie by the stated time.

    How fast this machine is just now is told by the reference command, before and after.
    """
    speed = [1.0, reference_seconds() / read_json(TIMES)["reference_seconds"]]
    command = [sys.executable, "studies/run_notebooks.py", "--out", str(out), *names]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    speed.append(reference_seconds() / read_json(TIMES)["reference_seconds"])
    seconds = {name: float(value) for value, name in re.findall(r"([\d.]+) s  (\S+)  ok", done.stdout)}
    stated = {name: stated_seconds(NOTEBOOKS / name) for name in seconds}
    return {
        name: (value, stated[name] / 2 * min(speed), stated[name] * 2 * max(speed)) for name, value in seconds.items()
    }


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[float, float, float]]]:
    folder = tmp_path_factory.mktemp("executed")
    return folder, run(folder)


def test_every_notebook_runs_from_top_to_bottom(executed: tuple) -> None:
    folder, seconds = executed
    assert sorted(path.name for path in folder.iterdir()) == sorted(seconds) == NAMES
    for path in folder.iterdir():
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_every_notebook_takes_its_stated_time_within_a_factor_of_two(executed: tuple, tmp_path: Path) -> None:
    """One that does not is run once more, by itself: another program may have held the machine up."""
    wrong = [name for name, (value, low, high) in executed[1].items() if not low <= value <= high]
    again = run(tmp_path, *wrong) if wrong else {}
    wrong = {name: times for name, times in again.items() if not times[1] <= times[0] <= times[2]}
    assert not wrong, f"seconds taken, and the bounds by the stated time: {wrong}"
