"""The house: a wing imports only from those below it, and nothing below the lab knows that it exists."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.files import PROJECT

PACKAGE = PROJECT / "distill"
# From the ground up; what shares a line may import one another.
FLOORS = (
    {"errors", "files"},
    {"losses"},
    {"data"},
    {"networks"},
    {"terms"},
    {"methods"},
    {"training"},
    {"show"},
    {"lab"},
    {"cli", "doctor"},
    {"__init__", "__main__"},
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The modules and names of this package that a file imports anywhere in it, without `distill.`"""
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "distill":
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith("distill."):
                yield node.module.removeprefix("distill.")
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("distill.") for alias in node.names if alias.name.startswith("distill.")
            )


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_import_runs_up(path: Path) -> None:
    own = FLOOR[path.parts[0].removesuffix(".py")]
    above = [name for name in imports(path) if FLOOR[name.split(".")[0]] > own]
    assert not above, f"{path} imports {', '.join(above)}, which stands above it"


@pytest.mark.parametrize("wing", ["data", "networks", "training", "show", "lab"])
def test_the_page_of_a_wing_holds_no_logic(wing: str) -> None:
    """A sentence about it, imports, and the list of their names."""
    sentence, *rest = ast.parse((PACKAGE / wing / "__init__.py").read_text()).body
    assert isinstance(sentence, ast.Expr)
    for node in rest:
        names = isinstance(node, ast.Assign) and [target.id for target in node.targets]
        assert isinstance(node, ast.ImportFrom) or names == ["__all__"]


def test_what_trains_knows_nothing_of_the_upper_floors() -> None:
    """No module below the lab imports it, or what shows pictures, even within a function.

    But `distill` itself names `export` for type checkers; at run time it is imported when it is asked for.
    """
    upper = {"show", "lab", "cli", "doctor"}
    lower = [path for path in MODULES if path.parts[0].removesuffix(".py") not in upper | {"__main__"}]
    upward = [(str(path), name) for path in lower for name in imports(path) if name.split(".")[0] in upper]
    assert upward == [("__init__.py", "lab.export")]
    loaded = (
        "import sys, distill; print([name for name in sys.modules if name.startswith(('distill.lab', 'distill.show'))])"
    )
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "[]\n"
