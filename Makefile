# make tutorial   everything a reader needs, from an empty clone to executed notebooks
#   TORCH=cpu     with a PyTorch without CUDA, which takes less space
# make test       the whole test suite
# make lab        JupyterLab on the notebooks; LAB="--no-browser" gives it flags
# make app        the explorer of notebook 07 as a web page, without code
# make sample     only the environment and the sample data
# make docs       README, docs, notebooks and the reference as a site: build/docs/index.html
# make page       build/page: a folder for any static host, in which the networks run in the reader's browser

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA := data/sample/sample.txt

.PHONY: tutorial sample test lab app docs page clean

tutorial: $(VENV)/installed $(DATA)
	$(BIN)/python studies/run_notebooks.py --out executed
	$(BIN)/python -m distill compare results/sample.json
	@echo "The executed notebooks are in executed/. Open the course with: make lab"

sample: $(VENV)/installed $(DATA)

# The sample is made first: several processes would make it at once. One thread in each: there is one for every core, and
# threads that wait for each other in a loop take ten times as long where another program wants the core.
test: $(VENV)/installed-for-tests $(DATA)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --dist worksteal

lab: $(VENV)/installed $(DATA)
	$(BIN)/jupyter lab --notebook-dir=notebooks $(LAB)

app: $(VENV)/installed $(DATA)
	JUPYTER_PATH=studies $(BIN)/voila notebooks/07_visualize.ipynb --template=offline

docs: $(VENV)/installed-for-docs
	$(BIN)/sphinx-build --quiet -c docs . build/docs
	@echo "Open build/docs/index.html"

page: $(VENV)/installed-for-page
	$(BIN)/python studies/page.py

# The stamp is touched last, so that an interrupted installation is taken up again.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; give one, as in: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(BIN)/pip install --quiet uv)
	$(if $(TORCH),$(BIN)/uv pip install --quiet --python $(VENV) --torch-backend $(TORCH) torch torchvision)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/installed-for-page: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[page]"
	touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/installed-for-docs: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@

$(DATA): | $(VENV)/installed
	$(BIN)/python -m distill data sample

clean:
	rm -rf $(VENV) build executed runs data/sample
