"""Execute the notebooks in order: python studies/run_notebooks.py [--out executed | --in-place] [NAME…]

Each runs in a kernel of its own, in the folder notebooks/, and is written without widget state and timings, its
pictures with 256 colours each, which takes less than half the space in the repository. With
--in-place the seconds each took are recorded in results/notebooks.json, beside those of a reference command, by which
a slower or faster machine can be told. Of some notebooks the seconds are converted to the speed that the others were
recorded at.
"""

import argparse
import base64
import datetime
import io
import re
import subprocess
import sys
import time
from pathlib import Path
from queue import Empty

import nbformat
import torch
from jupyter_client import AsyncKernelClient
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from distill import DistillError
from distill.files import PROJECT, read_json, write_json
from distill.training.runs import environment

NOTEBOOKS = PROJECT / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURE = "image/png"
TIMES = PROJECT / "results" / "notebooks.json"
REFERENCE = ["-m", "distill", "evaluate", "sample", "--split", "test", "--json", "--device", "cpu"]
NOTE = "A widget: it works once this notebook is run. A picture follows."


class Client(NotebookClient):
    """Looks anew, every second, whether a cell's answer has come.

    What nbclient itself sends for the sake of a widget can swallow the news that the answer is there, and it would wait
    until its timeout (its issue 312).
    """

    async def async_start_new_kernel_client(self) -> AsyncKernelClient:
        client = await super().async_start_new_kernel_client()
        wait = client.shell_channel.get_msg

        async def look_every_second(timeout: float | None = None) -> dict:
            end = time.monotonic() + (float("inf") if timeout is None else timeout)
            while True:
                try:
                    return await wait(timeout=max(0.0, min(1.0, end - time.monotonic())))
                except Empty:
                    if time.monotonic() >= end:
                        raise

        client.shell_channel.get_msg = look_every_second
        return client


def execute(path: Path, target: Path) -> float | None:
    """Run one notebook and write it, as far as it came, to `target`; its seconds, or None if a cell failed."""
    notebook, start, error = nbformat.read(path, as_version=4), time.perf_counter(), None
    resources = {"metadata": {"path": str(path.parent)}}
    try:
        client = Client(notebook, timeout=1200, record_timing=False, coalesce_streams=True, resources=resources)
        # Newer kernels warn about an unencrypted connection, which never leaves this machine.
        client.extra_arguments = ["--IPKernelApp.log_level=40"]
        client.execute()
    except CellExecutionError as failure:
        error = failure
    seconds = time.perf_counter() - start
    tidy(notebook)
    nbformat.write(notebook, target)
    print(f"{seconds:6.1f} s  {path.name}  {'FAILED' if error else 'ok'}", flush=True)
    if error:
        print(error, file=sys.stderr)
    return None if error else seconds


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Take out widget state, which GitHub cannot show, put a sentence where each widget was, and pack pictures."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if WIDGET in output.get("data", {}):
            output["data"] = nbformat.from_dict({"text/plain": NOTE})
        if PICTURE in output.get("data", {}):
            output["data"][PICTURE] = packed(output["data"][PICTURE])


def packed(picture: str) -> str:
    """A PNG with a palette of 256 colours, in base64 as notebooks hold it; one that has a palette already stays."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    if image.mode == "P":
        return picture
    small, file = image.convert("RGB"), io.BytesIO()  # the default method leaves too few colours to faint textures
    small = small.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    small.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def stated_seconds(path: Path) -> int:
    """The time that a notebook's first cell promises."""
    first = nbformat.read(path, as_version=4).cells[0].source
    stated = re.search(r"\*\*Time:\*\* about (\d+) s on 2 CPU cores", first)
    if stated is None:
        raise DistillError(f"{path.name} states no time; write `**Time:** about N s on 2 CPU cores.` in its first cell")
    return int(stated[1])


def reference_seconds() -> float:
    """How long this machine takes to start Python and score the teacher: the measure of its speed."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *REFERENCE], check=True, capture_output=True)
    return time.perf_counter() - start


def record_times(seconds: dict[str, float], reference: float) -> None:
    """`reference`: the seconds that the reference command took meanwhile."""
    names = {path.name for path in NOTEBOOKS.glob("*.ipynb")}
    earlier = read_json(TIMES) if TIMES.exists() and set(seconds) != names else None
    scale = earlier["reference_seconds"] / reference if earlier else 1.0
    known = earlier["seconds"] if earlier else {}
    known |= {name: round(value * scale, 1) for name, value in seconds.items()}
    write_json(
        TIMES,
        {
            "command": "python studies/run_notebooks.py --in-place",
            "date": datetime.date.today().isoformat(),
            "environment": environment(torch.device("cpu")),
            "reference": f"python {' '.join(REFERENCE)}",
            "reference_seconds": earlier["reference_seconds"] if earlier else round(reference, 1),
            "seconds": {name: known[name] for name in sorted(known) if name in names},
        },
    )


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
    before = reference_seconds() if options.in_place else 0.0
    done = {path.name: seconds for path in paths if (seconds := execute(path, folder / path.name)) is not None}
    if len(done) < len(paths):
        return 1
    if options.in_place:
        record_times(done, (before + reference_seconds()) / 2)
    return 0


def _named(path: Path, names: list[str]) -> bool:
    return any(name in path.name for name in names)


if __name__ == "__main__":
    sys.exit(main())
