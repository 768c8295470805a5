"""Execute the notebooks in order: python studies/run_notebooks.py [--out executed | --in-place] [NAME…]

Each runs in a kernel of its own, in the folder notebooks/, and is written without widget state and timings.
"""

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from distill.datasets import PROJECT

NOTEBOOKS = PROJECT / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
NOTE = "A widget: it works once this notebook is run. A picture follows."


def execute(path: Path, target: Path) -> bool:
    """Run one notebook and write it, as far as it came, to `target`; False if a cell failed."""
    notebook, start, error = nbformat.read(path, as_version=4), time.perf_counter(), None
    resources = {"metadata": {"path": str(path.parent)}}
    try:
        NotebookClient(
            notebook, timeout=1200, record_timing=False, coalesce_streams=True, resources=resources
        ).execute()
    except CellExecutionError as failure:
        error = failure
    tidy(notebook)
    nbformat.write(notebook, target)
    print(f"{time.perf_counter() - start:6.1f} s  {path.name}  {'FAILED' if error else 'ok'}", flush=True)
    if error:
        print(error, file=sys.stderr)
    return error is None


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Take out widget state, which GitHub cannot show, and put a sentence where each widget was."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if WIDGET in output.get("data", {}):
            output["data"] = nbformat.from_dict({"text/plain": NOTE})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of file names, such as 04 (default: every notebook)")
    parser.add_argument("--out", type=Path, default=PROJECT / "executed", help="folder for the executed notebooks")
    parser.add_argument("--in-place", action="store_true", help="refresh the committed notebooks instead")
    options = parser.parse_args()
    paths = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if not options.names or _named(path, options.names)]
    if not paths:
        print(f"no notebook in {NOTEBOOKS} matches {' '.join(options.names)}", file=sys.stderr)
        return 2
    folder = NOTEBOOKS if options.in_place else options.out
    folder.mkdir(parents=True, exist_ok=True)
    done = [execute(path, folder / path.name) for path in paths]
    return 0 if all(done) else 1


def _named(path: Path, names: list[str]) -> bool:
    return any(name in path.name for name in names)


if __name__ == "__main__":
    sys.exit(main())
