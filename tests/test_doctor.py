"""`python -m distill doctor`: [OK] where all is well, and what to do where it is not."""

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from distill import cli, doctor
from distill.data.folders import make_default_sample
from distill.doctor import Finding, examine


def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in examine()}


@pytest.fixture
def small_sample(tmp_path: Path, tiny_sample: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sample of its own where the doctor looks for it, to be damaged."""
    monkeypatch.setenv("DISTILL_DATA", str(tmp_path))
    return shutil.copytree(tiny_sample, tmp_path / "sample")


def test_all_is_well_here(capsys: pytest.CaptureFixture) -> None:
    make_default_sample()
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 17 and all(line.startswith("[OK] ") for line in lines)
    for name in ("Python", "torch", "torchvision", "device", "disk", "memory", "sample", "teacher"):
        assert any(line.startswith(f"[OK] {name}: ") for line in lines)


def test_a_missing_sample_is_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("DISTILL_DATA", str(tmp_path / "not" / "there"))
    assert cli.main(["doctor"]) == 2
    out, err = capsys.readouterr()
    assert "[TO DO] sample: " in out and "run: python -m distill data sample" in out
    assert out.count("[TO DO]") == 1 and err.startswith("distill: 1 of these lines")


@pytest.mark.parametrize("damage", ["gone", "torn", "list"])
def test_a_damaged_sample_is_named(damage: str, small_sample: Path) -> None:
    assert not findings()["sample"].advice
    mask = next((small_sample / "SegmentationClass").glob("*.png"))
    {
        "gone": mask.unlink,
        "torn": lambda: mask.write_bytes(mask.read_bytes()[:40]),
        "list": (small_sample / "ImageSets" / "Segmentation" / "train.txt").unlink,
    }[damage]()
    finding = findings()["sample"]
    assert f"delete {small_sample}" in finding.advice
    assert (mask.name if damage != "list" else "train.txt") in finding.found


@pytest.mark.parametrize("damage", ["gone", "torn", "other"])
def test_a_damaged_teacher_is_named(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "teacher.safetensors"
    original = doctor.shipped_file(doctor.SHIPPED)
    if damage == "other":
        path = doctor.shipped_file("student-resnet18-baseline.safetensors")
    elif damage == "torn":
        path.write_bytes(original.read_bytes()[:-100])
    monkeypatch.setattr("distill.networks.teachers.shipped_file", lambda _: path)
    monkeypatch.setattr(doctor, "shipped_file", lambda _: path)
    finding = doctor._teacher()
    assert "clone or install the project again" in str(finding) and str(finding).startswith("[TO DO]")


def test_too_little_room_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=10**8))
    monkeypatch.setattr(doctor, "data_root", lambda: Path(__file__))
    assert "is a file" in str(doctor._disk()) and doctor._disk().advice
    monkeypatch.undo()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=10**8))
    assert "0.1 GB free" in str(doctor._disk()) and "DISTILL_DATA" in doctor._disk().advice
    monkeypatch.setattr(doctor, "MEMORY", 1e18)
    assert "close other programs" in doctor._memory().advice


@pytest.mark.parametrize("there, advised", [("0.1", True), ("99.0", False)])
def test_an_old_package_is_named(there: str, advised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda _: there)
    found = {finding.name: finding for finding in doctor._packages()}
    assert bool(found["pillow"].advice) is advised
    wanted = next(need for need in doctor.requires("distill") or [] if need.startswith("pillow"))
    assert str(found["pillow"]).endswith(f"pip install '{wanted}'") is advised


def test_a_clone_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", missing)
    (finding,) = doctor._packages()
    assert str(finding).startswith("[TO DO] distill: not installed") and "pip install -e ." in finding.advice


def test_torch_and_torchvision_must_belong_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not doctor._torch_and_torchvision().advice
    monkeypatch.setattr(doctor, "requires", lambda _: ["numpy", "torch==1.0.0"])
    assert "pip install --force-reinstall torch torchvision" in doctor._torch_and_torchvision().advice


def test_a_torchvision_for_another_torch_is_a_sentence_at_the_import(tmp_path: Path) -> None:
    """As it fails where the two do not fit: with a RuntimeError while torchvision is imported."""
    (tmp_path / "torchvision").mkdir()
    code = "import torch\nraise RuntimeError('operator torchvision::nms is missing')"
    (tmp_path / "torchvision" / "__init__.py").write_text(code)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import distill"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: torchvision cannot be imported (operator torchvision::nms is missing)")


def test_the_findings_can_be_read_by_themselves() -> None:
    assert str(Finding("a", "b")) == "[OK] a: b" and str(Finding("a", "b", "c")) == "[TO DO] a: b; c"
