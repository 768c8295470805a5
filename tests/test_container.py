"""The Dockerfile and the development container: what they name is there, and agrees with pyproject.toml and Makefile.

No image is built here: that would take a daemon, and minutes of downloads.
"""

import json
import re
import shlex
import subprocess

import pytest
from packaging.specifiers import SpecifierSet
from test_readme import PYPROJECT

from distill.files import PROJECT

DOCKERFILE = re.sub(r"^#.*\n", "", (PROJECT / "Dockerfile").read_text(), flags=re.M)
DEVELOPMENT = json.loads((PROJECT / ".devcontainer" / "devcontainer.json").read_text())
COMMANDS = {
    "Dockerfile, RUN": shlex.split(re.findall(r"^RUN (make .*)$", DOCKERFILE, flags=re.M)[0]),
    "Dockerfile, CMD": json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, flags=re.M)[0]),
    "development container, after creation": shlex.split(DEVELOPMENT["postCreateCommand"]),
    "development container, after attaching": shlex.split(DEVELOPMENT["postAttachCommand"]),
}


def planned(command: list[str]) -> str:
    """What `make` would do, from a clone in which nothing is installed yet."""
    assert command[0] == "make"
    dry = [*command, "--dry-run", "VENV=not-there", "DATA=not-there.txt"]
    done = subprocess.run(dry, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_python_is_one_that_the_package_supports() -> None:
    (version,) = re.findall(r"^FROM python:(3\.\d+)-slim AS", DOCKERFILE, flags=re.M)
    assert version in SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert f"Programming Language :: Python :: {version}" in PYPROJECT["project"]["classifiers"]


@pytest.mark.parametrize("name", COMMANDS)
def test_its_commands_are_targets_of_the_makefile(name: str) -> None:
    """Installing is with a PyTorch without CUDA; JupyterLab starts on the course, and its flags arrive."""
    command = COMMANDS[name]
    steps = planned(command)
    if "lab" in command:
        (flags,) = [part.removeprefix("LAB=") for part in command if part.startswith("LAB=")]
        assert re.search(rf"jupyter lab --notebook-dir=notebooks {flags}$", steps, flags=re.M)
    else:
        assert "--torch-backend cpu torch torchvision" in steps and "distill data sample" in steps


def test_ports_and_stages_agree() -> None:
    assert [str(port) for port in DEVELOPMENT["forwardPorts"]] == re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, flags=re.M)
    build = DEVELOPMENT["build"]
    assert (PROJECT / ".devcontainer" / build["dockerfile"]).resolve() == PROJECT / "Dockerfile"
    assert build["target"] in re.findall(r" AS (\w+)$", DOCKERFILE, flags=re.M)
    assert DEVELOPMENT["remoteUser"] in re.findall(r"useradd .* (\w+)$", DOCKERFILE, flags=re.M)


def test_what_git_ignores_stays_out_of_the_image() -> None:
    """Large folders that a reader's clone may have, and which the image makes itself."""
    left_out = {line.strip("/") for line in (PROJECT / ".dockerignore").read_text().splitlines()}
    ignored = {line.strip("/") for line in (PROJECT / ".gitignore").read_text().splitlines()}
    for name in sorted(ignored - {"__pycache__", ".ipynb_checkpoints", "*.egg-info"}):
        assert name in left_out or (name.endswith("_cache") and ".*_cache" in left_out), name
