"""README.md and the pages in docs/: short, complete, and every link, option and command in them there."""

import re
from pathlib import Path

import nbformat
import pytest
from conftest import subcommands

from distill import cli
from distill.files import PROJECT
from studies.shared import anchor

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
README = (PROJECT / "README.md").read_text()
PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md", "benchmarks/README.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
]
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
ELSEWHERE = {"--fill"}  # options of scripts that the text names beside our own


def _named(page: Path) -> str:
    return str(page.relative_to(PROJECT))


def _prose(page: Path) -> str:
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = nbformat.read(page, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_the_readme_is_short() -> None:
    results = README.partition("<!-- results:begin -->")[2].partition("<!-- results:end -->")[0]
    assert len(README.splitlines()) <= 110
    assert len(re.findall(r"^\|--", results, flags=re.M)) == 1, "not one table"
    assert len(re.findall(r"^\|", results, flags=re.M)) <= 2 + 12, "not a small one"


def test_every_notebook_has_a_row_in_the_readmes_table() -> None:
    rows = re.findall(r"^\| \[([\w.]+)\]\(notebooks/([\w.]+)\.ipynb\) \| .+ \|$", README, flags=re.M)
    assert rows == [(path.stem, path.stem) for path in sorted((PROJECT / "notebooks").glob("*.ipynb"))]


def test_every_extra_has_a_row_in_the_table_of_extras() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    table = (PROJECT / "docs" / "install.md").read_text().partition("## Extras")[2]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, flags=re.M)) == sorted(extras)


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_links_into_a_page_lead_to_its_headings(page: Path) -> None:
    for target, place in re.findall(r"\]\(([\w./-]*)#([^)]+)\)", page.read_text()):
        headings = re.findall(r"^#+ (.+)$", (page.parent / target if target else page).read_text(), flags=re.M)
        assert place in map(anchor, headings), f"{target}#{place}"


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=_named)
def test_commands_and_options_exist(page: Path) -> None:
    """Of every `python -m distill COMMAND --option` in a block of code, and of every `make` target."""
    text = _prose(page).replace("\\\n", " ")
    commands = subcommands(cli._parser())
    for name, rest in re.findall(r"python -m distill +([a-z]+)([^#`\n]*)", text):
        assert name in commands, name
        known = {name: parser for name, parser in subcommands(commands[name]).items() if name in rest.split()}
        options = {option for parser in (commands[name], *known.values()) for option in parser._option_string_actions}
        assert set(re.findall(r"--[\w-]+", rest)) <= options, f"{name}{rest}"
    every = [parser for one in commands.values() for parser in (one, *subcommands(one).values())]
    known_options = {option for parser in every for option in parser._option_string_actions} | ELSEWHERE
    assert set(re.findall(r"`(--[a-z][\w-]+)", text)) <= known_options
    targets = re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), flags=re.M)
    assert set(re.findall(r"(?:`|^)make ([\w-]+)", text, flags=re.M)) <= set(targets)


def test_every_command_has_a_row_in_the_table_of_commands() -> None:
    table = (PROJECT / "docs" / "commands.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.M)) == set(subcommands(cli._parser()))


def test_every_method_has_a_row_in_the_table_of_methods() -> None:
    from distill import METHODS

    table = (PROJECT / "docs" / "methods.md").read_text()
    named = {
        name for row in re.findall(r"^\| (`.*?`) \|", table, flags=re.M) for name in re.findall(r"`([\w-]+)`", row)
    }
    assert named >= {name for name in METHODS if name != "proposed"}
