"""Whether memory that is freed stays with the process."""

import os
import subprocess
import sys

import pytest

from distill.training.allocator import keep_freed_memory

# Blocks of 48 MB, which glibc gives back to the system by itself; pages of 4 kB that were asked for anew.
ROUNDS = """
import resource, torch
from distill.training.allocator import keep_freed_memory
print(keep_freed_memory())
for _ in range(3):
    torch.ones(12_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(12_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def rounds(**more: str) -> tuple[bool, int]:
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", ROUNDS]
    done = subprocess.run(command, env=surroundings | more, check=True, capture_output=True, text=True)
    kept, pages = done.stdout.split()
    return kept == "True", int(pages)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc, the C library of most Linux systems")
def test_memory_is_kept_unless_the_environment_says_otherwise() -> None:
    (kept, few), (usual, many) = rounds(), rounds(GLIBC_TUNABLES="glibc.malloc.perturb=0")
    assert kept and few < 1000
    assert not usual and many > 10 * 1000


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
