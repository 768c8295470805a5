"""What a process may use of the machine that it is on, and files that are replaced whole (see test_interruptions)."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from distill import files
from distill.files import free_memory, replace_file, usable_cores


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """The files in which Linux tells a container its limits."""

    def told(**names: str) -> None:
        for name, text in names.items():
            (tmp_path / name.replace("_", ".")).write_text(text)

    monkeypatch.setattr(files, "_GROUP", tmp_path)
    return told


def test_cores_are_those_that_a_process_may_use(monkeypatch: pytest.MonkeyPatch, group: Callable[..., None]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert usable_cores() == 6
    for quota, cores in {"max 100000": 6, "250000 100000": 2, "50000 100000": 1, "900000 100000": 6}.items():
        group(cpu_max=f"{quota}\n")
        assert usable_cores() == cores
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux has containers' limits")
def test_free_memory_is_what_a_container_is_left(group: Callable[..., None]) -> None:
    whole = free_memory()
    group(memory_max="max\n", memory_current="1000\n", memory_stat="inactive_file 5\n")
    assert whole and free_memory() > 5000
    group(memory_max="4000\n", memory_current="1000\n", memory_stat="anon 7\ninactive_file 500\n")
    assert free_memory() == 3500
    group(memory_current="9000\n")
    assert free_memory() == 0


def test_on_windows_a_file_that_is_read_just_now_is_replaced_a_little_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, replace, refusals = tmp_path / "history.jsonl", Path.replace, [PermissionError("Access is denied")] * 2

    def busy(self: Path, target: Path) -> Path:
        if refusals:
            raise refusals.pop()
        return replace(self, target)

    path.write_text("old")
    monkeypatch.setattr(Path, "replace", busy)
    monkeypatch.setattr(files, "_ON_WINDOWS", True)
    with replace_file(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and not refusals and len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_no_file(refused) -> None:
    def write() -> None:
        with replace_file("."):
            pass

    refused(". is a folder", call=write)


def test_the_longest_name_that_a_disk_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("\u5199" * 83 + ".txt")  # 253 bytes
    files.write_text(path, "whole")
    assert path.read_text() == "whole" and len(list(tmp_path.iterdir())) == 1
