"""The course as a reader meets it: every notebook runs, one after the other, in a folder of its own."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat

from distill.runs import read_json
from studies.run_notebooks import NOTEBOOKS, PROJECT, TIMES, reference_seconds, stated_seconds


def test_every_notebook_runs_from_top_to_bottom_in_about_its_stated_time(tmp_path: Path) -> None:
    """Times are compared after allowing for how fast this machine is, by the reference command before and after."""
    before = reference_seconds()
    command = [sys.executable, "studies/run_notebooks.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    after = reference_seconds()
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in NOTEBOOKS.glob("*.ipynb")}
    for path in tmp_path.iterdir():
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    seconds = {name: float(value) for value, name in re.findall(r"([\d.]+) s  (\S+)  ok", done.stdout)}
    assert seconds.keys() == {path.name for path in tmp_path.iterdir()}
    recorded = read_json(TIMES)["reference_seconds"]
    for name, value in seconds.items():
        stated = stated_seconds(NOTEBOOKS / name)
        assert value <= 2 * stated * max(1, before / recorded, after / recorded), f"{name} took {value} s"
        assert value >= stated / 2 * min(1, before / recorded, after / recorded), f"{name} took only {value} s"
