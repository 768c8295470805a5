"""The committed notebooks: executed in order, without errors, widget state or machine paths, short and linked.

Running them is another test's business; this one reads the files only.
"""

import re
import statistics
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def outputs(path):
    return [output for cell in code_cells(path) for output in cell.outputs]


def prose(path):
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_is_a_valid_notebook_below_a_megabyte_for_the_default_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert path.stat().st_size < 1_000_000


def test_was_executed_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


def test_shows_neither_errors_nor_warnings(path):
    for output in outputs(path):
        assert output.output_type != "error", output.evalue
        assert output.get("name") != "stderr", output.text


def test_holds_no_widget_state(path):
    assert "widgets" not in nbformat.read(path, as_version=4).metadata
    assert not any(WIDGET in output.get("data", {}) for output in outputs(path))


def test_every_widget_is_followed_by_a_picture(path):
    cells = code_cells(path)
    for index, cell in enumerate(cells):
        if "interactive(" in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cells[index + 1].outputs)


def test_every_picture_has_alternative_text(path):
    for output in outputs(path):
        if "image/png" in output.get("data", {}):
            assert len(output.metadata["image/png"]["alt"]) > 20


def test_cells_are_short(path):
    lines = [len(cell.source.splitlines()) for cell in code_cells(path)]
    assert statistics.median(lines) <= 8
    assert max(lines) <= 35


def test_outputs_name_no_folder_of_the_machine_that_ran_it(path):
    for output in outputs(path):
        text = output.get("text", "") + "".join(
            str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")
        )
        found = re.search(r"(?<![\w.])(/(work|home|root|Users|tmp|usr|opt|mnt)/|[A-Z]:\\)\S*", text)
        assert found is None, found.group()


def test_code_needs_no_path_tricks(path):
    for cell in code_cells(path):
        assert "sys.path" not in cell.source
        assert not re.search(r"^\s*[%!]", cell.source, re.MULTILINE)


def test_opens_with_title_needs_and_time_and_closes_with_takeaways(path):
    first, text = nbformat.read(path, as_version=4).cells[0].source, prose(path)
    assert first.startswith("# ")
    assert "**You will learn**" in first
    assert "**You need**" in first
    assert re.search(r"\*\*Time:\*\* about \d+ s on 2 CPU cores", first)
    for part in ("## Three takeaways", "## Exercises", "**Next:**", "python -m distill"):
        assert part in text


def test_links_lead_to_files(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose(path)):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target
