"""The site that `make docs` builds, offline, from the pages, the executed notebooks and the docstrings.

The source folder is the whole clone, so that links between README.md, docs/ and notebooks/ lead where they lead on
disk.
"""

from pathlib import Path

from sphinx.application import Sphinx

project, author, copyright = "distill", "the maintainers", "the maintainers"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx-mathjax-offline"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "notebooks/*.ipynb", "results/*.md", "benchmarks/*.md", "data/*.md"]
CONTENTS = """

```{toctree}
:hidden:
:caption: Start
docs/install
docs/commands
docs/own
docs/methods
docs/voc
docs/glossary
```

```{toctree}
:hidden:
:caption: The course
:glob:
notebooks/*
```

```{toctree}
:hidden:
:caption: Reference
docs/reference
results/README
benchmarks/README
data/README
CONTRIBUTING
CHANGELOG
```
"""

nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # no script from elsewhere
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "code"  # docstrings write `name`
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"

html_theme = "furo"
html_title = "distill"
html_favicon = "icon.svg"
html_show_copyright = False
html_copy_source = False


def setup(app: Sphinx) -> None:
    app.connect("source-read", _add_contents)
    app.connect("build-finished", _lead_to_the_first_page)


def _add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """The table of contents, which GitHub would show as a block of code in README.md."""
    if page == root_doc:
        source[0] += CONTENTS


def _lead_to_the_first_page(app: Sphinx, error: Exception | None) -> None:
    if app.builder.name == "html" and error is None:
        icon = f'<link rel="icon" href="_static/{html_favicon}">'  # or browsers ask for favicon.ico, now and then
        leads = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">'
        page = f"<!doctype html><title>distill</title>{icon}{leads}\n"
        (Path(app.outdir) / "index.html").write_text(page)
