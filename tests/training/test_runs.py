"""Runs on disk, and tables from records of them."""

import json
import math
import shutil
import subprocess
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from distill.files import read_json
from distill.lab import comparison
from distill.lab.curves import interval95
from distill.lab.tables import compare, markdown_table
from distill.training import runs
from distill.training.parallel import ALONE
from distill.training.runs import Run, find_runs, open_network, run_folder, run_of


def entry(method: str, seed: int, miou: float, backbone: str = "resnet18", seconds: float = 60.0) -> dict:
    return {
        "data": "sample",
        "backbone": backbone,
        "method": method,
        "seed": seed,
        "split": "test",
        "miou": miou,
        "seconds": seconds,
    }


@pytest.fixture
def records() -> list[dict]:
    baseline, distilled = (0.50, 0.54, 0.58), (0.53, 0.56, 0.62)
    return [
        *(entry("baseline", seed, miou) for seed, miou in enumerate(baseline)),
        *(entry("sakd", seed, miou, seconds=90.0) for seed, miou in enumerate(distilled)),
    ]


def test_images_of_a_folder_that_is_called_sample_are_its_own(
    tmp_path: Path, tiny_sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "sample"
    shutil.copytree(tiny_sample, own)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(Run, "config", {"data": "sample"})
    for root in (None, own):
        monkeypatch.setattr(Run, "data_root", own if root is None else None)
        assert Run(tmp_path).images_of("val", root, 3).root == own
    (own / "sample.txt").unlink()  # no drawn scenes, then, but somebody's images
    assert len(Run(tmp_path).images_of("val", own, 3)) == 3


# mean ± t · s / sqrt(n) with t from a printed table
@pytest.mark.parametrize(
    "values, half_width",
    [
        ([1.0, 3.0], 12.706 * math.sqrt(2) / math.sqrt(2)),
        ([1.0, 2.0, 3.0], 4.303 * 1.0 / math.sqrt(3)),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2.776 * math.sqrt(2.5) / math.sqrt(5)),
        ([0.0, 2.0] * 6, 2.201 * math.sqrt(12 / 11) / math.sqrt(12)),
        ([0.0, 2.0] * 15 + [1.0], 2.042 * 1.0 / math.sqrt(31)),
    ],
)
def test_interval_is_students(values: list[float], half_width: float) -> None:
    assert interval95(values) == pytest.approx(half_width, rel=2e-3)


def test_one_value_has_no_interval() -> None:
    assert math.isnan(interval95([0.5])) and math.isnan(interval95([]))


def test_gain_is_paired_by_seed(records: list[dict]) -> None:
    row = compare(records)[1]
    assert (row["data"], row["backbone"], row["method"]) == ("sample", "resnet18", "sakd")
    assert row["seeds"] == [0, 1, 2] and row["split"] == "test" and row["seconds"] == 90
    assert row["miou"] == pytest.approx(0.57)
    assert row["gain"] == pytest.approx(0.03)
    gains = (0.03, 0.02, 0.04)
    deviation = math.sqrt(sum((gain - 0.03) ** 2 for gain in gains) / 2)
    assert row["gain_interval"] == pytest.approx(4.302653 * deviation / math.sqrt(3))
    assert row["gain_interval"] < row["miou_interval"] / 2  # pairing takes the spread between seeds away


def test_order_of_the_records_does_not_matter(records: list[dict]) -> None:
    (gain,) = (row["gain"] for row in compare(records[::-1]) if row["method"] == "sakd")
    assert gain == pytest.approx(0.03)


def test_seeds_without_a_baseline_do_not_enter_the_gain(records: list[dict]) -> None:
    row = compare([*records, entry("sakd", 9, 0.99)])[1]
    assert row["gain"] == pytest.approx(0.03) and row["seeds"] == [0, 1, 2, 9]
    alone = compare([entry("sakd", 9, 0.99)])[0]
    assert "gain" not in alone and "closed" not in alone


def test_the_baseline_has_no_gain(records: list[dict]) -> None:
    assert "gain" not in compare(records, teacher_miou=0.9)[0]


def test_students_are_compared_with_their_own_baseline(records: list[dict]) -> None:
    other = [entry("baseline", 0, 0.30, "mobilenetv2"), entry("sakd", 0, 0.40, "mobilenetv2")]
    rows = {(row["backbone"], row["method"]): row for row in compare(records + other)}
    assert rows["mobilenetv2", "sakd"]["gain"] == pytest.approx(0.10)
    assert rows["resnet18", "sakd"]["gain"] == pytest.approx(0.03)


def test_closed_gap_is_the_gains_share_of_the_way_to_the_teacher(records: list[dict]) -> None:
    assert compare(records, teacher_miou=0.69)[1]["closed"] == pytest.approx(0.03 / (0.69 - 0.54))
    assert "closed" not in compare(records, teacher_miou=0.40)[1]  # a teacher below the baseline leaves no gap
    assert "closed" not in compare(records)[1]


def test_table_is_markdown_in_points(records: list[dict]) -> None:
    lines = markdown_table(compare(records, teacher_miou=0.69)).splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1 and "scored too rarely" in lines[5]
    assert lines[2] == "| resnet18 | baseline | 54.0 ± 9.9 |  |  |  | 3 |  | 60 |"
    assert lines[3] == "| resnet18 | sakd | 57.0 ± 11.4 | +3.0 ± 2.5 | 20% | better at equal epochs | 3 |  | 90 |"


def test_a_single_seed_is_shown_without_an_interval_and_a_loss_with_its_sign() -> None:
    table = markdown_table(compare([entry("baseline", 0, 0.5), entry("kd", 0, 0.45)]))
    assert "| 50.0 |" in table and "| -5.0 |" in table and "±" not in table and "nan" not in table


CONFIG = {
    "data": "sample",
    "images": 500,
    "model": {"backbone": "resnet18"},
    "method": {"name": "baseline", "terms": {}},
    "seed": 3,
    "start": "0123456789abcdef",
    "parameters": 1000,
    "teacher": None,
    "settings": {"epochs": 2},
}


def make_run(folder: Path, finished: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if finished:
        score = {"miou": 0.25, "pixel_accuracy": 0.5, "per_class_iou": {}}
        (folder / "scores.json").write_text(json.dumps({"val": score, "best": {"epoch": 1, "val_miou": 0.25}}))
    return folder


def test_a_run_is_read_from_its_folder(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    history = [{"epoch": epoch, "seconds": 1.5} for epoch in (1, 2)]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    for run in (Run(folder), Run(str(folder))):
        assert run.finished and run.config == CONFIG and run.scores["val"]["miou"] == 0.25
        assert run.history == history


def test_a_loss_may_be_any_number_of_float32(tmp_path: Path, refused) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "history.jsonl").write_text('{"epoch": 1, "seconds": 1.5, "loss": 3e38}\n')
    assert Run(folder).history[0]["loss"] == 3e38
    (folder / "history.jsonl").write_text('{"epoch": 1, "seconds": 1.5, "loss": 3e39}\n')
    refused("history.jsonl", "loss", call=lambda: Run(folder).history)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, refused) -> None:
    refused(tmp_path, "config.json", call=lambda: Run(tmp_path))
    refused("config.json", call=lambda: Run(tmp_path / "nothing"))


def test_an_unfinished_run_has_no_scores_yet(tmp_path: Path, refused) -> None:
    run = Run(make_run(tmp_path / "run", finished=False))
    assert not run.finished and run.history == []
    refused("not finished", "resume", call=lambda: run.scores)


def test_a_broken_file_is_named(tmp_path: Path, refused) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "config.json").write_text('{"seed": ')
    refused(folder / "config.json", "JSON", call=lambda: Run(folder).config)
    refused("student.safetensors", call=lambda: Run(folder).student())
    refused("none.json", call=lambda: read_json(tmp_path / "none.json"))


def test_finished_runs_are_found_at_any_depth(tmp_path: Path, refused) -> None:
    paths = [make_run(tmp_path / "a" / "b" / f"seed{seed}") for seed in (0, 1)]
    make_run(tmp_path / "a" / "b" / "seed2", finished=False)
    assert [run.path for run in find_runs(tmp_path)] == paths
    assert [run.path for run in find_runs(paths[0], tmp_path / "a")] == paths
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "a", target_is_directory=True)
    assert [run.path.name for run in find_runs(tmp_path / "here")] == ["seed0", "seed1"]
    (tmp_path / "a" / "back").symlink_to(tmp_path, target_is_directory=True)  # round and round
    assert [run.path for run in find_runs(tmp_path)] == paths, "one run was found by two ways"
    refused("nowhere", "train one first", call=lambda: find_runs(tmp_path / "nowhere"))


def test_the_surroundings_of_a_clone_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        if name == "distill":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(runs, "version", missing)
    found = runs.environment(torch.device("mps"))
    assert found["distill"] is None and found["torchvision"] == version("torchvision") and found["device"] == "mps"


def test_the_commit_is_that_of_the_clone_and_of_no_repository_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    inside = tmp_path / "site-packages"
    for folder in (tmp_path, inside):
        (folder / "distill").mkdir(parents=True)
        (folder / "distill" / "file").write_text("a")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(runs, "PROJECT", tmp_path.resolve())
    commit = runs._commit()
    assert commit and len(commit) >= 4 and not commit.endswith("+")
    (tmp_path / "distill" / "file").write_text("b")
    assert runs._commit() == f"{commit}+"
    monkeypatch.setattr(runs, "PROJECT", inside.resolve())
    assert runs._commit() is None


def test_the_folder_of_a_run_tells_what_it_is() -> None:
    assert run_folder("runs", "sample", "resnet18", "kd", 4) == Path("runs/sample/resnet18/kd/seed4")


def test_a_folder_does_not_hide_a_shipped_network_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").mkdir()
    assert open_network("sample").num_classes == 21
    assert run_of("sample") is None
    refused("sample holds no config.json", call=lambda: run_of("./sample"))


def test_git_speaks_of_paths_in_their_own_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the locale is: a clone may lie in a folder called Ágnes."""
    said = SimpleNamespace(stdout="/home/Ágnes/distill\n".encode())
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    assert runs._git("rev-parse", "--show-toplevel") == "/home/Ágnes/distill"


def test_where_nothing_can_be_locked_the_files_of_other_processes_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / ".last.pt.0123.part"
    monkeypatch.setattr(runs, "_write_config", lambda *_: None)
    for alone, stays in ((False, True), (True, False)):
        part.touch()
        monkeypatch.setattr(runs, "held", lambda _, alone=alone: nullcontext(alone))
        with runs.begun(tmp_path, {}, True, tmp_path, torch.device("cpu"), ALONE) as finished:
            assert not finished and part.exists() == stays


def test_figures_on_another_drive_are_linked_by_their_whole_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = tmp_path / "figures" / "gains.png"
    assert comparison._relative(figure, tmp_path) == "figures/gains.png"

    def refuse(*_: object) -> str:
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr("os.path.relpath", refuse)
    assert comparison._relative(figure, tmp_path) == figure.as_uri()


def test_a_run_scores_its_own_folder_even_if_that_holds_another_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in (tmp_path / "small", tmp_path / "small" / "small"):
        for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (root / name).mkdir(parents=True)
        (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(Run, "config", {"data": "small"})
    monkeypatch.setattr(Run, "_surroundings", {"data_root": str(tmp_path / "small")})
    assert Run(tmp_path).images_of("val").root == tmp_path / "small"
