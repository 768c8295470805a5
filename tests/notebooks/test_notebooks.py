"""The committed notebooks: executed in order, without errors, widget state or machine paths, short and linked.

Running them is another test's business; this one reads the files and the recorded times only.
"""

import ast
import base64
import json
import os
import re
import statistics
import subprocess
import sys
import zipfile
from collections import Counter
from functools import cache

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from distill.files import PROJECT
from studies.prose import MARK, TABLE, fill, recorded
from studies.run_notebooks import NOTE, packed, stated_seconds

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"

COLAB = """\
import os
import site
import subprocess
import sys

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported: threads that wait go to sleep sooner
if "google.colab" in sys.modules:  # only there: docs/install.md says how to make course.zip
    steps = "python -m zipfile -e course.zip . && pip install -q --editable 'course[timm,export]'"
    subprocess.run(steps, shell=True, check=True, cwd="/content")
    site.main()  # finds what has just been installed"""

TIMES = json.loads((PROJECT / "results" / "notebooks.json").read_text())

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@cache
def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def outputs(path):
    return [output for cell in code_cells(path) for output in cell.outputs]


def prose(path):
    cells = read(path).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@each
def test_is_a_valid_notebook_below_a_megabyte_for_the_default_kernel(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert path.stat().st_size < 1_000_000


@each
def test_was_executed_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@each
def test_shows_neither_errors_nor_warnings(path):
    for output in outputs(path):
        assert output.output_type != "error", output.evalue
        assert output.get("name") != "stderr", output.text


@each
def test_holds_no_widget_state(path):
    assert "widgets" not in read(path).metadata
    assert not any(WIDGET in output.get("data", {}) for output in outputs(path))


@each
def test_every_widget_is_followed_by_a_picture(path):
    cells = code_cells(path)
    for index, cell in enumerate(cells):
        if any(NOTE in output.get("data", {}).get("text/plain", "") for output in cell.outputs):
            assert any("image/png" in output.get("data", {}) for output in cells[index + 1].outputs)


@each
def test_every_picture_is_packed(path):
    """With a palette: a clone holds every version of every picture."""
    for output in outputs(path):
        if picture := output.get("data", {}).get("image/png"):
            assert b"PLTE" in base64.b64decode(picture)[:100] and packed(picture) == picture


@each
def test_every_picture_has_alternative_text(path):
    for output in outputs(path):
        if "image/png" in output.get("data", {}):
            assert len(output.metadata["image/png"]["alt"]) > 20


@each
def test_cells_are_short(path):
    lines = [len(cell.source.splitlines()) for cell in code_cells(path)[1:]]  # without the one for Colab
    assert statistics.median(lines) <= 6
    assert max(lines) <= 35


def test_no_function_is_defined_in_two_notebooks():
    defined = Counter()
    for path in NOTEBOOKS:
        trees = [ast.parse(cell.source) for cell in code_cells(path)]
        defined.update({node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)})
    assert [name for name, count in defined.items() if count > 1] == []


def test_the_course_is_complete_and_short():
    assert [path.stem for path in NOTEBOOKS] == [
        "00_start_here",
        "01_data",
        "02_teacher",
        "03_students",
        "04_distillation_losses",
        "04b_self_attention",
        "04c_family_of_methods",
        "04d_clinic",
        "05_training",
        "05b_precision_and_devices",
        "06_compare",
        "06b_where_it_helps",
        "07_visualize",
        "07b_real_photographs",
        "08_full_scale_voc",
        "09_exercises_solutions",
        "10_ship_it",
        "11_your_own",
    ]
    assert set(TIMES["seconds"]) == {path.name for path in NOTEBOOKS}
    assert sum(TIMES["seconds"].values()) < 15 * 60 and max(TIMES["seconds"].values()) < 3 * 60


@each
def test_the_stated_time_is_the_recorded_one_within_a_factor_of_two(path):
    assert TIMES["seconds"][path.name] / 2 <= stated_seconds(path) <= 2 * TIMES["seconds"][path.name]


@each
def test_recorded_numbers_in_the_prose_are_those_recorded(path):
    values = recorded()
    for number, name in MARK.findall(prose(path)):
        assert number == values[name], f"{name} is {values[name]}: run python studies/prose.py --fill"
    assert prose(path).count("<!-- =") == len(MARK.findall(prose(path))), "a mark without a number before it"
    assert fill(prose(path)) == prose(path), "a table is behind results/: run python studies/prose.py --fill"


@each
def test_measured_numbers_in_the_prose_are_marked(path):
    """A decimal, a share or points that no mark ties to results/ would stay when the results change."""
    text = TABLE.sub(" ", MARK.sub(" ", prose(path)))
    text = re.sub(r"```.*?```|\$\$.*?\$\$|`[^`]*`|\$[^$]*\$|\]\([^)]*\)|95 %", " ", text, flags=re.DOTALL)
    found = re.search(r"\d+\.\d+|\d+ ?%|\d+ per cent|\d+ (points|mIoU)", text)
    assert found is None, text[max(0, found.start() - 60) : found.end() + 20]


@each
def test_outputs_name_no_folder_of_the_machine_that_ran_it(path):
    for output in outputs(path):
        text = output.get("text", "") + "".join(
            str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")
        )
        found = re.search(r"(?<![\w.])(/(work|home|root|Users|tmp|usr|opt|mnt)/|[A-Z]:\\)\S*", text)
        assert found is None, found.group()


def needed(*extras):
    """The packages that the project and these extras of its install, without those that they bring along."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    found = set(map(canonicalize_name, (Requirement(text).name for text in project["dependencies"])))
    for extra in extras:
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            own = canonicalize_name(requirement.name) == "distill"
            found |= needed(*requirement.extras) if own else {canonicalize_name(requirement.name)}
    return found


@each
def test_what_is_imported_is_what_make_tutorial_installs(path):
    """`make tutorial` and environment.yml install the extra `dev`."""
    trees = [ast.parse(cell.source) for cell in code_cells(path)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    called = {"PIL": "pillow", "IPython": "jupyterlab", "contourpy": "matplotlib"}  # what installs them
    tops = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"distill"}
    assert {called.get(top, top) for top in tops} <= needed("dev")


@each
def test_begins_with_the_cell_for_colab(path):
    """Hidden in JupyterLab and left out of the site: elsewhere it installs nothing."""
    cell = code_cells(path)[0]
    assert cell.source == COLAB and cell.metadata == {"jupyter": {"source_hidden": True}, "tags": ["remove-cell"]}


def test_the_cell_for_colab_installs_the_course_there(tmp_path, monkeypatch):
    """With a module google.colab, and a pip that only writes down what it is asked for."""
    with zipfile.ZipFile(tmp_path / "course.zip", "w") as archive:
        archive.writestr("course/pyproject.toml", "")
    pip = tmp_path / "bin" / "pip"
    pip.parent.mkdir()
    pip.write_text('#!/bin/sh\necho "$@" > asked.txt\n')
    pip.chmod(0o755)
    monkeypatch.setenv("PATH", f"{pip.parent}:{os.environ['PATH']}")
    cell = COLAB.replace("/content", str(tmp_path)).replace("python -m", f"{sys.executable} -m")
    script = f"import sys, types\nsys.modules['google.colab'] = types.ModuleType('colab')\n{cell}"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (tmp_path / "asked.txt").read_text() == "install -q --editable course[timm,export]\n"
    assert (tmp_path / "course" / "pyproject.toml").exists()
    subprocess.run([sys.executable, "-c", COLAB], check=True)  # elsewhere it installs nothing


@each
def test_code_needs_no_path_tricks(path):
    for cell in code_cells(path):
        assert "sys.path" not in cell.source
        assert not re.search(r"^\s*[%!]", cell.source, re.MULTILINE)


@each
def test_opens_with_title_needs_and_time_and_closes_with_takeaways(path):
    first, text = read(path).cells[0].source, prose(path)
    assert first.startswith("# ")
    assert "**You will learn**" in first
    assert "**You need**" in first
    assert stated_seconds(path)
    last = path.stem == "09_exercises_solutions"
    for part in ("## Three takeaways", "**Next:**", *(() if last else ("## Exercises", "09_exercises_solutions"))):
        assert part in text
    assert last or re.search(r"python -m distill|make app|python studies/", text), "which script does the same?"


@each
def test_links_lead_to_files(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose(path)):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target


def test_a_loss_of_ones_own_takes_twelve_lines_and_trains_a_student():
    """The cell of notebook 04c, run as it stands in a process that knows nothing of it."""
    import torch

    import distill
    from distill.methods import METHODS

    notebook = nbformat.read(PROJECT / "notebooks" / "04c_family_of_methods.ipynb", as_version=4)
    (source,) = (cell.source for cell in notebook.cells if "own-loss" in cell.metadata.get("tags", []))
    assert len([line for line in source.splitlines() if line.strip()]) <= 12
    imports = [line for cell in notebook.cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    space: dict = {}
    exec("\n".join(line for line in imports if re.match(r"(from|import) ", line)), space)
    exec(source, space)
    try:
        teacher, student = (
            distill.build_model("resnet18", num_classes=3, width=0.125, head_width=0.125, atrous_rates=(1, 2, 3))
            for _ in range(2)
        )
        teacher.eval().requires_grad_(False)
        method = distill.build_method("kd+borders", teacher, student)
        images, labels = torch.rand(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
        loss, parts = method(student(images, return_maps=True), teacher(images, return_maps=True), labels)
        loss.backward()
        assert parts["borders"] > 0 and all(p.grad is None for p in teacher.parameters())
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone.parameters())
        equal = teacher(images, return_maps=True)
        assert method.terms["borders"](*2 * [distill.terms.Output(*equal)], labels) == 0
    finally:
        METHODS.pop("borders", None)


def test_the_loss_of_the_capstone_takes_twelve_lines_and_is_kd_where_the_teacher_is_equally_sure():
    import torch

    import distill
    from distill import losses
    from distill.methods import METHODS

    notebook = nbformat.read(PROJECT / "notebooks" / "11_your_own.ipynb", as_version=4)
    (source,) = (cell.source for cell in notebook.cells if "own-loss" in cell.metadata.get("tags", []))
    assert len([line for line in source.splitlines() if line.strip()]) <= 12
    try:
        exec(source, {"distill": distill})
        term = METHODS["sure-kd"](None, None, temperature=2.0)
        answers = torch.randn(2, 4, 3, 5), torch.tensor([3.0, 1.0, 0.0, 0.0]).view(1, 4, 1, 1).expand(2, 4, 3, 5)
        student, teacher = (distill.terms.Output(logits, ()) for logits in answers)
        torch.testing.assert_close(term(student, teacher, None), losses.kd(*answers, 2.0))
        assert term(teacher, teacher, None) == 0
        unsure = answers[1].clone()
        unsure[0] /= 100  # the teacher knows nothing of the first image
        weighed = term(student, distill.terms.Output(unsure, ()), None)
        assert not torch.isclose(weighed, losses.kd(answers[0], unsure, 2.0))
    finally:
        METHODS.pop("sure-kd", None)


SHORT = [path for path in NOTEBOOKS if path.stem.startswith(("06", "07", "08", "11"))]


@pytest.mark.parametrize("path", SHORT, ids=lambda path: path.stem)
def test_notebooks_after_training_have_45_cells_at_most(path):
    assert len(read(path).cells) <= 46  # with the cell for Colab


@pytest.mark.parametrize("path", sorted((PROJECT / "notebooks").glob("0[0-5]*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_up_to_training_are_short_and_follow_each_other(path):
    notebooks = sorted((PROJECT / "notebooks").glob("*.ipynb"))
    assert len(read(path).cells) <= 46  # with the cell for Colab
    assert f"]({notebooks[notebooks.index(path) + 1].name})" in prose(path).split("**Next:**")[1]
