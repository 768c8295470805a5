"""The course as a reader meets it: every notebook runs, one after the other, in a folder of its own."""

import subprocess
import sys
from pathlib import Path

import nbformat

from studies.run_notebooks import NOTEBOOKS, PROJECT


def test_every_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    command = [sys.executable, "studies/run_notebooks.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in NOTEBOOKS.glob("*.ipynb")}
    for path in tmp_path.iterdir():
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
