"""Studies: their files, the order of their runs, what survives an interruption, and what is made of the results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from distill import Run, fit
from distill.cli import main
from distill.errors import DistillError, Diverged
from distill.files import PROJECT, read_json, usable_cores, write_json
from distill.lab import pool
from distill.lab import study as study_module
from distill.lab.comparison import (
    STUDY_FILE,
    Findings,
    _declared,
    by_labels,
    figures,
    is_studys_teacher,
    read_findings,
    report,
    tables,
)
from distill.lab.plan import Planned, load_study, plan, plan_teacher
from distill.lab.pool import Job, progress_bar, run_all, slots
from distill.lab.study import Study
from distill.lab.study_file import Variant, _other_kind
from distill.lab.tables import check_comparable
from studies import conditions, labels, quirks, shared

GOOD = """
about = "A study."
data = "sample"
teacher = "sample"
students = ["resnet18", "mobilenetv2"]
methods = ["kd", "baseline", "kd+sakd"]
seeds = 2

[settings]
epochs = 3

[method_options.kd]
temperature = 2.0

[[variants]]
name = "all labels"

[[variants]]
name = "8 labels"
baseline = "all labels"
methods = ["kd"]
students = ["resnet18"]
limit = 16
recipe = "published"
settings = { epochs = 5, labelled = 8 }
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A study file with GOOD's text, of which one piece is replaced."""

    def to(before: str = "", after: str = "", text: str = GOOD) -> Path:
        assert before in text
        path = tmp_path / "tiny.toml"
        path.write_text(text.replace(before, after, 1))
        return path

    return to


# ----------------------------------------------------------------------------------------------- the file


def test_runs_come_seed_by_seed_and_baselines_first(write: Callable[..., Path]) -> None:
    runs = plan(load_study(write()), Path("runs/tiny"), device="cpu")
    names = [run.name for run in runs]
    assert names == [
        f"{row}/seed{seed}"
        for seed in (0, 1)
        for row in (
            *(f"all labels/{b}/{m}" for b in ("resnet18", "mobilenetv2") for m in ("baseline", "kd", "kd+sakd")),
            "8 labels/resnet18/kd",
        )
    ]
    assert runs[0].folder == Path("runs/tiny/all-labels/resnet18/baseline/seed0")
    plain = plan(load_study(write()).model_copy(update={"variants": [Variant()]}), Path("runs/tiny"), device="cpu")
    assert plain[1].folder == Path("runs/tiny/resnet18/kd/seed0") and plain[1].name == "resnet18/kd/seed0"


def test_a_run_has_the_settings_of_the_file_and_its_variant(write: Callable[..., Path]) -> None:
    study = load_study(write())
    first, *_, last = plan(study, Path("runs/tiny"), data_root="elsewhere", device="cpu")
    assert first.keywords["teacher"] is None and first.keywords["method_options"] == {}
    assert (first.settings.epochs, first.settings.labelled, first.settings.precision) == (3, 0, "float32")
    asked = {
        "teacher": "sample",
        "limit": 16,
        "recipe": "published",
        "labelled": 8,
        "seed": 1,
        "data_root": "elsewhere",
    }
    assert asked.items() <= last.keywords.items()
    assert (last.settings.epochs, last.settings.divisions) == (5, "twice")
    # What was tuned for the sample stays, and what the file says comes on top.
    assert last.keywords["method_options"] == {"kd": {"weight": 10.0, "temperature": 2.0}}
    joined = next(run for run in plan(study, Path()) if run.keywords["method"] == "kd+sakd")
    assert joined.keywords["method_options"]["sakd"] == {"weight": 1.0}


def test_a_variant_has_options_of_its_own_over_those_of_the_file(write: Callable[..., Path]) -> None:
    own = "limit = 16\nmethod_options = { kd = { weight = 3.0 } }"
    runs = plan(load_study(write("limit = 16", own)), Path(), device="cpu")
    found = {run.variant: run.keywords["method_options"]["kd"] for run in runs if run.keywords["method"] == "kd"}
    assert found["8 labels"] == {"weight": 3.0, "temperature": 2.0}
    assert found["all labels"] == {"weight": 10.0, "temperature": 2.0}


@pytest.mark.parametrize(
    "value, default", [("kl", "mse"), (3, None), ("kl", None), ([1], (2,)), (2, 1.0), (True, False)]
)
def test_an_option_may_be_of_the_kind_of_its_default(value: object, default: object) -> None:
    assert _other_kind(value, default) == ""


@pytest.mark.parametrize(
    "value, default, asked",
    [(3, "mse", "a text"), ("kl", 1.0, "a number"), (3, (2,), "a list"), (1, True, "true or false")],
)
def test_an_option_of_another_kind_is_told_which(value: object, default: object, asked: str) -> None:
    assert _other_kind(value, default) == asked


def test_a_variant_may_have_narrower_students(write: Callable[..., Path], refused) -> None:
    refused("width 0.5", "all labels have 1", call=lambda: load_study(write("limit = 16", "limit = 16\nwidth = 0.5")))
    runs = plan(load_study(write('baseline = "all labels"', "width = 0.5")), Path(), device="cpu")
    assert {run.variant: run.keywords["width"] for run in runs} == {"8 labels": 0.5, "all labels": 1.0}
    refused("width is 0", "give a number", call=lambda: load_study(write("limit = 16", "limit = 16\nwidth = 0.0")))


def test_a_variant_that_borrows_baselines_inherits_none(write: Callable[..., Path]) -> None:
    runs = plan(load_study(write('methods = ["kd"]\nstudents', "students")), Path(), device="cpu")
    own = [run.keywords["method"] for run in runs if run.variant == "8 labels" and run.keywords["seed"] == 0]
    assert own == ["kd", "kd+sakd"]


def test_a_teacher_that_is_trained_gets_all_labels(write: Callable[..., Path]) -> None:
    table = 'teacher = { backbone = "resnet101" }\nlimit = 12'
    text = GOOD.replace("epochs = 3", "epochs = 3\nlabelled = 4")
    study = load_study(write('teacher = "sample"', table, text))
    teacher = plan_teacher(study, Path(), device="cpu")
    assert teacher.settings.labelled == 0 and teacher.keywords["limit"] is None and teacher.settings.epochs == 3
    assert plan(study, Path(), device="cpu")[0].settings.labelled == 4


def test_what_a_power_cut_left_empty_is_neither_begun_nor_finished(write: Callable[..., Path], tmp_path: Path) -> None:
    run = plan(load_study(write()), tmp_path, device="cpu")[0]
    run.folder.mkdir(parents=True)
    for name in ("config.json", "scores.json"):
        (run.folder / name).touch()
    assert not run.begun and not run.finished
    write_json(run.folder / "scores.json", {})
    assert not run.finished, "its config.json is empty"


def test_a_run_that_saved_nothing_is_not_begun(write: Callable[..., Path], tmp_path: Path) -> None:
    """As one that diverged at its first step: the file that is mended may ask for other settings."""
    run = plan(load_study(write()), tmp_path, device="cpu")[0]
    run.folder.mkdir(parents=True)
    write_json(run.folder / "config.json", {"seed": 5})
    assert not run.begun
    (run.folder / "last.pt").touch()
    assert run.begun


def test_a_file_may_begin_with_a_byte_order_mark(write: Callable[..., Path]) -> None:
    path = write()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_study(path).about == "A study."


def test_a_folders_images_are_cropped_and_its_name_is_only_a_name(write: Callable[..., Path]) -> None:
    for data, preset, augment in (("sample", "sample", "flip"), ("pascal-mini", "sample", "crops")):
        run = plan(load_study(write('data = "sample"', f'data = "{data}"')), Path(), device="cpu")[0]
        assert (run.keywords["preset"], run.settings.augment) == (preset, augment)


def test_a_teacher_may_be_trained_first_and_on_other_data(write: Callable[..., Path]) -> None:
    table = 'teacher = { backbone = "resnet101", data = "other", limit = 9, settings = { lr = 0.5 } }'
    study = load_study(write('teacher = "sample"', table))
    teacher = plan_teacher(study, Path("runs/tiny"), data_root="elsewhere", device="cpu")
    assert teacher.folder == Path("runs/tiny/teacher") and (teacher.settings.lr, teacher.settings.epochs) == (0.5, 3)
    asked = {"student": "resnet101", "method": "baseline", "data": "other", "data_root": None, "limit": 9, "seed": 0}
    assert asked.items() <= teacher.keywords.items()
    runs = plan(study, Path("runs/tiny"), device="cpu")
    assert {run.keywords["teacher"] for run in runs} == {None, "runs/tiny/teacher/student.safetensors"}
    assert plan_teacher(load_study(write()), Path()) is None


MISTAKES = {
    "no TOML": ("seeds = 2", "seeds = = 2", "cannot be read as a study"),
    "a key is misspelt": ("methods =", "method =", "no key 'method'; did you mean 'methods'"),
    "a key is missing": ("seeds = 2", "", "seeds is missing"),
    "a key of a variant": ("limit = 16", "limits = 16", "variant 8 labels", "did you mean 'limit'"),
    "a text for a list": ('["resnet18", "mobilenetv2"]', '"resnet18"', "students is 'resnet18'", "a list"),
    "an empty list": ('["resnet18", "mobilenetv2"]', "[]", "students is []"),
    "a list of numbers": ('["kd"]', "[1]", "methods is [1]", "each of it a text"),
    "true for a number": ("limit = 16", "limit = true", "limit is True", "a whole number"),
    "an unknown student": ("mobilenetv2", "mobilenetv3", "no student 'mobilenetv3'", "did you mean 'mobilenetv2'"),
    "an unknown method": ('["kd"]', '["kdd"]', "no method 'kdd'"),
    "a method twice": ('["kd"]', '["sakd", "proposed"]', "methods names sakd twice"),
    "no seed": ("seeds = 2", "seeds = 0", "seeds is 0"),
    "a seed twice": ("seeds = 2", "seeds = [1, 1]", "seeds names 1 twice"),
    "a negative seed": ("seeds = 2", "seeds = [-1]", "a seed is -1"),
    "an unknown setting": ("epochs = 3", "epohcs = 3", "variant all labels", "'epohcs'; did you mean 'epochs'"),
    "an impossible setting": ("epochs = 3", "epochs = 0", "epochs is 0"),
    "an unknown recipe": ('"published"', '"publshed"', "variant 8 labels", "did you mean 'published'"),
    "an unknown option": ("temperature", "temprature", "no option of kd 'temprature'"),
    "an option of nothing": ("options.kd", "options.dk", "no method with options 'dk'"),
    "an option of a variant": (
        "limit = 16",
        "method_options = { kd = { wieght = 1 } }",
        "variant 8 labels",
        "'wieght'",
    ),
    "an option of another kind": ("temperature = 2.0", 'temperature = "2"', "kd.temperature is '2'; give a number"),
    "a true option": ("temperature = 2.0", "temperature = true", "temperature is True; give a number"),
    "no list of positions": ("kd]\ntemperature = 2.0", 'sakd]\npositions = "aspp"', "positions is 'aspp'; give a list"),
    "no images": ("limit = 16", "limit = 0", "limit is 0", "at least 1"),
    "an option that is no table": ("[method_options.kd]\ntemperature", "[method_options]\nkd", "method_options.kd"),
    "a variant without a name": ('name = "8 labels"', "", "variant is called ''"),
    "two variants in one folder": ('"8 labels"', '"all-labels"', "called 'all labels'"),
    "two variants that differ in capitals": ('"8 labels"', '"All labels"', "called 'all labels'"),
    "a variant named as a network": ('"8 labels"', '"resnet18"', "other than a network's"),
    "baselines of nowhere": ('baseline = "all', 'baseline = "al', "did you mean 'all labels'"),
    "no teacher": ('teacher = "sample"', "", "teacher is missing", "kd and sakd"),
    "a teacher without a network": ('teacher = "sample"', "teacher = { seed = 1 }", "teacher: backbone is missing"),
    "images for a teacher that has none": (
        'teacher = "sample"',
        'teacher = { backbone = "resnet101", unlabelled = "more" }',
        "teacher: there is no key 'unlabelled'",
    ),
    "a student wider than there are": (
        "limit = 16",
        "limit = 16\nwidth = 20.0",
        "width is 20.0; give a number",
    ),
    "baselines of a variant that has none": (
        'name = "all labels"',
        'name = "all labels"\nmethods = ["kd"]',
        "has none",
    ),
    "baselines that are borrowed and trained": (
        'methods = ["kd"]\nstudents',
        'methods = ["baseline", "kd"]\nstudents',
        "has baseline among its own methods",
    ),
    "a student whose baselines nobody lends": (
        'students = ["resnet18"]\nlimit',
        'students = ["resnet101"]\nlimit',
        "has the student resnet101",
        "all labels",
    ),
    "an option that no method takes": (
        "[method_options.kd]\ntemperature = 2.0",
        "[method_options.at]\nweight = 2.0",
        "method_options has at",
        "no method there",
    ),
    "an option that no method of a variant takes": (
        "limit = 16",
        "limit = 16\nmethod_options = { sakd = { weight = 1.0 } }",
        "variant 8 labels has sakd",
    ),
    "a weight below zero": ("temperature = 2.0", "weight = -1.0", "weight is -1.0"),
    "a temperature of zero": ("temperature = 2.0", "temperature = 0.0", "temperature is 0.0"),
    "no position": (
        "[method_options.kd]\ntemperature = 2.0",
        '[method_options.sakd]\npositions = ["nowhere"]',
        "variant all labels",
        "no position 'nowhere'",
    ),
    "an empty teacher": ('teacher = "sample"', 'teacher = ""', "teacher: it is empty"),
    "a network of timm without a name": ('"mobilenetv2"]', '"timm:"]', "no student 'timm:'"),
    "a teacher's network": ('teacher = "sample"', 'teacher = { backbone = "resnet11" }', "did you mean 'resnet101'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_file_is_one_sentence(mistake: str, write: Callable[..., Path], refused) -> None:
    before, after, *words = MISTAKES[mistake]
    path = write(before, after)
    refused(path, *words, call=lambda: load_study(path))


def test_a_file_that_is_not_there_is_named(tmp_path: Path, refused) -> None:
    refused("nothing.toml", "No such file", call=lambda: load_study(tmp_path / "nothing.toml"))


@pytest.mark.parametrize("path", sorted((PROJECT / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_the_studies_that_are_shipped_can_be_planned(path: Path, tmp_path: Path, capsys) -> None:
    assert main(["study", str(path), "--dry-run", "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{len(plan(load_study(path), tmp_path))} runs, 0 of them finished" in lines[0]
    assert path.stem.startswith("voc") == ("not run by us" in load_study(path).about)
    assert not any(tmp_path.iterdir())


def test_few_labels_take_equally_many_steps() -> None:
    runs = plan(load_study(PROJECT / "studies" / "sample-few-labels.toml"), Path())
    steps = {run.variant: run.settings.epochs * ((run.keywords["limit"] or 500) // 16) for run in runs}
    assert len(steps) == 7 and max(steps.values()) <= 1.015 * min(steps.values())


def test_every_gpu_is_a_place_and_on_the_cpu_every_core(monkeypatch: pytest.MonkeyPatch, refused) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert slots("cpu", 3) == [{"CUDA_VISIBLE_DEVICES": ""}] * 3 and len(slots("cpu")) == usable_cores()
    refused("jobs is 0", call=lambda: slots("cpu", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(pool, "pick_device", torch.device)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in slots("cuda")] == ["0", "1"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in slots("cuda", 3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in slots("cuda")] == ["5", "7"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in slots("cuda:1")] == ["7"]


# ------------------------------------------------------------------------------- a study, interrupted twice

TINY = """
about = "A teacher and three runs."
data = "sample"
students = ["resnet18"]
methods = ["baseline", "kd"]
seeds = 1
limit = 16

[settings]
epochs = 12
batch_size = 8
evaluate_every = 6

[teacher]
backbone = "resnet101"
settings = { epochs = 1 }

[[variants]]
name = "16 labels"

[[variants]]
name = "8 labels"
baseline = "16 labels"
methods = ["kd"]
settings = { labelled = 8, epochs = 2 }
"""


class Interrupted:
    """The study TINY, killed in its first run and stopped by Ctrl-C in its second, then run to its end."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root, self.data = root, data
        self.file, self.folder, self.results = root / "tiny.toml", root / "runs" / "tiny", root / "tiny.json"
        self.file.write_text(TINY)
        self.first, self.second, self.third = (
            self.folder / name / "seed0"
            for name in ("16-labels/resnet18/baseline", "16-labels/resnet18/kd", "8-labels/resnet18/kd")
        )
        self.killed = self.stop(self.first, signal.SIGKILL)
        self.stopped = self.stop(self.second, signal.SIGINT)
        self.partly = read_json(self.results)
        self.before = {path: path.stat().st_mtime_ns for path in self.first.iterdir()}
        self.ended = self.start()
        self.ended.said = self.ended.communicate(timeout=300)

    def words(self, *more: str) -> list[str]:
        places = ["--runs", self.root / "runs", "--results", self.results, "--data-root", self.data]
        return ["study", *map(str, [self.file, *places]), "--device", "cpu", "--jobs", "1", *more]

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "distill", *self.words()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as from a terminal
        )

    def stop(self, run: Path, how: signal.Signals) -> subprocess.Popen:
        """Start it, and send a signal to it alone once that run has a checkpoint."""
        process = self.start()
        while not (run / "last.pt").exists() and process.poll() is None:
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(how)
        process.said = process.communicate(timeout=60)
        process.left = wait_for_end(children)
        process.epochs = len(Run(run).history)
        return process


def wait_for_end(children: list[str]) -> list[str]:
    """Those of the processes that have not ended after some seconds."""
    for _ in range(100):
        left = [child for child in children if Path(f"/proc/{child}").exists()]
        if not left:
            break
        time.sleep(0.05)
    return left


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, tiny_sample: Path) -> Interrupted:
    return Interrupted(tmp_path_factory.mktemp("study"), tiny_sample)


def test_runs_end_with_the_study_however_it_ends(interrupted: Interrupted) -> None:
    assert interrupted.killed.returncode == -signal.SIGKILL and interrupted.stopped.returncode == 130
    for process in (interrupted.killed, interrupted.stopped):
        assert process.left == [] and 1 <= process.epochs < 12
    said = interrupted.stopped.said[1].strip().splitlines()
    assert said[-1] == "distill: the study was interrupted after 1 of 3 runs; the same command continues"
    assert "Traceback" not in interrupted.stopped.said[1]
    assert [entry["method"] for entry in interrupted.partly["runs"]] == ["baseline"]


def test_an_interrupted_study_ends_with_the_weights_of_one_that_was_not(
    interrupted: Interrupted, tmp_path: Path
) -> None:
    assert interrupted.ended.returncode == 0, interrupted.ended.said[1][-2000:]
    study = Study(interrupted.file, interrupted.root / "runs", data_root=str(interrupted.data), device="cpu")
    for number, run in enumerate(study.runs):
        whole = fit(**{**run.keywords, "out": tmp_path / str(number)})
        states = [load_file(folder / "student.safetensors") for folder in (whole.path, run.folder)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]), run.name
        assert whole.scores == Run(run.folder).scores


def test_finished_runs_are_not_trained_again(interrupted: Interrupted) -> None:
    assert {path: path.stat().st_mtime_ns for path in interrupted.first.iterdir()} == interrupted.before
    assert "16 labels/resnet18/baseline" not in interrupted.ended.said[0]
    assert "8 labels/resnet18/kd/seed0: test mIoU" in interrupted.ended.said[0]


def test_the_record_is_complete(interrupted: Interrupted) -> None:
    recorded = read_json(interrupted.results)
    assert recorded["command"] == "python -m distill study tiny.toml" and "environments" not in recorded
    assert recorded["environment"]["threads"] == 1 and recorded["image_size"] == [32, 32]
    assert recorded["study"]["settings"]["epochs"] == 12
    assert {"miou", "val_miou", "per_class_iou", "parameters"} <= recorded["teacher"].keys()
    assert [(run["variant"], run["method"]) for run in recorded["runs"]] == [
        ("16 labels", "baseline"),
        ("16 labels", "kd"),
        ("8 labels", "kd"),
    ]
    for run in recorded["runs"]:
        assert run["history"][-1]["epoch"] == run["settings"]["epochs"] and run["images"] == 16
        assert {"epoch", "loss", "ce", "val_miou"} == run["history"][-1].keys()
    assert str(interrupted.root) not in json.dumps(recorded["runs"])


def test_tables_are_those_of_the_variants(interrupted: Interrupted, capsys: pytest.CaptureFixture) -> None:
    """From the folders and from the record alike; the teacher's own run is in none of them."""
    found = [read_findings([path]) for path in (interrupted.folder, interrupted.results)]
    for findings in found:
        rows = tables(findings)
        assert [(name, row["method"]) for name in rows for row in rows[name]] == [
            ("16 labels", "baseline"),
            ("16 labels", "kd"),
            ("8 labels", "baseline"),
            ("8 labels", "kd"),
        ]
        scores = [entry["miou"] for entry in findings.records]
        assert rows["8 labels"][1]["gain"] == pytest.approx(scores[2] - scores[0])
    assert main(["compare", str(interrupted.folder)]) == 0
    assert "### 8 labels (baselines of: 16 labels)" in capsys.readouterr().out
    assert main(["compare", str(interrupted.results), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in rows] == ["16 labels", "16 labels", "8 labels", "8 labels"]


def test_a_dry_run_says_what_is_there_and_writes_nothing(interrupted: Interrupted, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in interrupted.root.rglob("*")}
    assert main(interrupted.words("--dry-run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("3 runs, 3 of them finished, 0 begun")
    rows = ("16 labels/resnet18/baseline/seed0", "16 labels/resnet18/kd/seed0", "8 labels/resnet18/kd/seed0")
    assert [line.split(maxsplit=1) for line in lines[1:]] == [["finished", name] for name in ("teacher", *rows)]
    assert {path: path.stat().st_mtime_ns for path in interrupted.root.rglob("*")} == before


@pytest.mark.parametrize(
    "before, after, words",
    [
        ("epochs = 12", "epochs = 13", ("settings.epochs is 13 in the one and 12 in the other", "16 labels/resnet18")),
        ("limit = 16", "limit = 20", ("images is 20 in the one and 16",)),
        ("labelled = 8", "labelled = 4", ("settings.labelled is 4", "8 labels/resnet18/kd/seed0")),
        (
            "[teacher]",
            "[method_options.kd]\nweight = 3.0\n[teacher]",
            ("terms.kd is", "'weight': 3.0", "'weight': 10.0"),
        ),
        ("epochs = 1 ", "epochs = 2 ", ("its teacher's run", "settings.epochs is 2")),
    ],
)
def test_runs_of_other_settings_are_refused_before_anything_is_trained(
    before: str, after: str, words: tuple[str, ...], interrupted: Interrupted, tmp_path: Path, refused
) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY.replace(before, after, 1))
    places = {"runs": interrupted.root / "runs", "data_root": str(interrupted.data), "device": "cpu"}
    study = Study(file, results=tmp_path / "tiny.json", **places)
    refused(f"the study {file}", "cannot be in one table", *words, call=study.run)
    assert not (tmp_path / "tiny.json").exists()


def test_figures_and_a_page_are_written(interrupted: Interrupted, tmp_path: Path, capfd) -> None:
    out = tmp_path / "figures"
    words = ["compare", str(interrupted.results), "--figures", str(out), "--markdown", str(tmp_path / "page.md")]
    assert main(words) == 0
    names = {str(path.relative_to(out).with_suffix("")) for path in out.rglob("*.*")}
    assert names == {"variants", "labels"} | {
        f"{variant}/{name}"
        for variant in ("16-labels", "8-labels")
        for name in ("gains", "classes", "time", "curves", "sizes")
    } | {path for path in names if path.endswith("closed")}
    for name in names:
        with Image.open(out / f"{name}.png") as picture:
            assert min(picture.size) > 100 and len(picture.convert("L").getcolors()) > 10
        assert (out / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    page = (tmp_path / "page.md").read_text()
    assert page.count("![") == len(names) and "](figures/16-labels/gains.png)" in page
    assert "Gain over the baseline by class" in page and capfd.readouterr().err == ""


# ------------------------------------------------------------------------------------------------- shards

FOUR = """
data = "sample"
students = ["resnet18"]
methods = ["baseline"]
seeds = 4
limit = 8

[settings]
epochs = 1
batch_size = 8
"""


def _in_this_process(jobs: Iterable[Job], *_: object) -> None:
    for job in jobs:
        fit(**job.keywords)
        job.finished()


def test_shards_one_after_the_other_give_the_record_of_the_whole(
    tmp_path: Path, tiny_sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "run_all", _in_this_process)
    (tmp_path / "four.toml").write_text(FOUR)
    records = []
    for place, shards in (("whole", [None]), ("shards", ["2/3", "1/3", "3/3"])):
        there = (tmp_path / "four.toml", tmp_path / place, tmp_path / f"{place}.json", str(tiny_sample), "cpu")
        for count, shard in enumerate(shards, 1):
            Study(*there, shard).run(jobs=1)
            records.append(read_json(tmp_path / f"{place}.json"))
            assert len(records[-1]["runs"]) == (4 if shard is None else (1, 3, 4)[count - 1])
    whole, *_, divided = records
    for run in (*whole["runs"], *divided["runs"]):
        del run["seconds"], run["cpu_seconds"]
    assert {**whole, "date": ""} == {**divided, "date": ""}


def test_a_study_goes_on_from_its_record_where_the_runs_are_gone(
    tmp_path: Path, tiny_sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, refused
) -> None:
    monkeypatch.setattr(study_module, "run_all", _in_this_process)
    file, record = tmp_path / "four.toml", tmp_path / "four.json"
    file.write_text(FOUR)
    Study(file, tmp_path / "first", record, str(tiny_sample), "cpu", "2/3").run(jobs=1)
    for entry in (there := read_json(record))["runs"]:
        del entry["machine"]  # as in a record that is older than this
    write_json(record, there | {"environment": there["environment"] | {"processor": "another"}})
    before = read_json(record)["runs"]
    words = ["study", file, "--runs", tmp_path / "second", "--results", record, "--data-root", tiny_sample]
    assert main([*map(str, words), "--dry-run", "--keep-recorded"]) == 0
    assert "4 runs, 1 of them finished, 0 begun" in capsys.readouterr().out
    Study(file, tmp_path / "second", record, str(tiny_sample), "cpu", keep_recorded=True).run(jobs=1)
    after = read_json(record)
    assert [run["seed"] for run in after["runs"]] == [0, 1, 2, 3]
    assert after["runs"][1] == before[0] | {"machine": "another"} and after["runs"][0]["machine"] != "another"
    assert [about["processor"] == "another" for about in after["environments"]] == [True, False]
    assert sorted(path.name for path in (tmp_path / "second" / "four").rglob("seed*")) == ["seed0", "seed2", "seed3"]
    file.write_text(FOUR.replace("epochs = 1", "epochs = 2"))
    changed = Study(file, tmp_path / "third", record, str(tiny_sample), "cpu", keep_recorded=True)
    refused("epochs", call=lambda: changed.run(jobs=1))


def test_runs_that_are_compared_are_in_one_shard(write: Callable[..., Path], tmp_path: Path) -> None:
    """Seconds of two machines cannot be compared."""
    shards = [Study(write(), tmp_path, device="cpu", shard=f"{number}/2").own for number in (1, 2)]
    everything = sorted(run.name for run in Study(write(), tmp_path).runs)
    assert sorted(run.name for own in shards for run in own) == everything
    first, second = ({(run.keywords["student"], run.keywords["seed"]) for run in own} for own in shards)
    assert not first & second and len(first) == len(second) == 2
    alone = [Study(write(), tmp_path, device="cpu", shard=f"{number}/14").own for number in range(1, 15)]
    assert [len(own) for own in alone] == [1] * 14, "with more shards than tables"


def test_images_that_changed_are_refused_before_anything_is_trained(
    tmp_path: Path, tiny_sample: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    monkeypatch.setattr(study_module, "run_all", _in_this_process)
    data, file = tmp_path / "data", tmp_path / "four.toml"
    shutil.copytree(tiny_sample, data)
    file.write_text(FOUR.replace("seeds = 4", "seeds = 1"))
    Study(file, tmp_path / "runs", tmp_path / "four.json", str(data), "cpu").run(jobs=1)
    assert [run["initial_weights"] for run in read_json(tmp_path / "four.json")["runs"]] == ["random"]
    mask = sorted((data / "SegmentationClass").glob("train_*.png"))[0]
    with Image.open(mask) as picture:
        picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(mask)
    file.write_text(FOUR.replace("seeds = 4", "seeds = 2"))
    changed = Study(file, tmp_path / "runs", tmp_path / "four.json", str(data), "cpu")
    refused("content of train", "four.toml", call=lambda: changed.run(jobs=1))
    assert not (tmp_path / "runs" / "four" / "resnet18" / "baseline" / "seed1").exists()


def test_an_option_that_left_the_file_is_refused(tmp_path: Path, refused) -> None:
    text = (PROJECT / "studies" / "camvid-leaderboard.toml").read_text()
    gone = "[method_options.dist]\nweight = 3.0\n"
    assert gone in text
    (tmp_path / "camvid-leaderboard.toml").write_text(text.replace(gone, ""))
    record = PROJECT / "results" / "camvid-leaderboard.json"
    changed = Study(tmp_path / "camvid-leaderboard.toml", tmp_path, record, device="cpu", keep_recorded=True)
    refused("terms.dist is", "'weight': 3.0", call=changed.check)


def test_shards_at_the_same_time_train_nothing_twice(tmp_path: Path, tiny_sample: Path) -> None:
    (tmp_path / "four.toml").write_text(FOUR)
    words = [sys.executable, "-m", "distill", "study", str(tmp_path / "four.toml"), "--runs", str(tmp_path / "runs")]
    words += ["--results", str(tmp_path / "four.json"), "--data-root", str(tiny_sample), "--device", "cpu"]
    both = [
        subprocess.Popen([*words, "--jobs", "1", "--shard", shard], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for shard in ("1/2", "2/2")
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    for seeds, (out, _) in zip(((0, 2), (1, 3)), said, strict=True):
        lines = [line for line in out.decode().splitlines() if ": test mIoU" in line]
        assert [line.split(":")[0] for line in lines] == [f"resnet18/baseline/seed{seed}" for seed in seeds]
    assert [run["seed"] for run in read_json(tmp_path / "four.json")["runs"]] == [0, 1, 2, 3]


def test_a_record_written_late_takes_no_run_of_another_shard_away(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While this shard writes what it read, another one finishes a run and records it."""
    study = Study(write(), tmp_path / "runs", tmp_path / "new.json", device="cpu", shard="1/2")
    study.folder.mkdir(parents=True)
    study.environments = [{"torch": "2"}]
    read = iter([1, 2])
    monkeypatch.setattr(
        study, "_finished", lambda: [ROW | {"method": "kd", "seed": seed} for seed in range(next(read, 2))]
    )
    study.record()
    assert len(read_json(tmp_path / "new.json")["runs"]) == 2


def test_a_dry_run_lists_only_the_runs_of_the_shard(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.replace("seeds = 1", "seeds = 2"))
    listed = []
    for shard in ("1/2", "2/2"):
        assert main(["study", str(path), "--runs", str(tmp_path / "runs"), "--dry-run", "--shard", shard]) == 0
        head, *lines = capsys.readouterr().out.splitlines()
        assert f"shard {shard}: 3 runs, 0 of them finished" in head
        listed.append([line.split("  ")[-1] for line in lines])
    everything = [run.name for run in plan(load_study(path), tmp_path)]
    assert listed == [["teacher", *everything[:3]], everything[3:]]


def test_runs_are_chosen_by_their_names(tmp_path: Path, write: Callable[..., Path], capsys, refused) -> None:
    whole = Study(write(), tmp_path / "runs")
    names = [run.name for run in whole.runs if "/kd/" in run.name]
    assert 0 < len(names) < len(whole.runs)
    assert main(["study", str(whole.path), "--runs", str(tmp_path / "runs"), "--dry-run", "--only", "*/kd/*"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert f": {len(names)} runs" in head and [line.split(maxsplit=2)[-1] for line in lines] == names
    message = refused("no run of", "like kd;", call=lambda: Study(write(), tmp_path / "runs", only="kd"))
    assert whole.runs[0].name in message
    refused("in shard 1/14", call=lambda: Study(write(), tmp_path / "runs", shard="1/14", only=whole.runs[-1].name))
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    assert not Study(path, tmp_path / "runs", device="cpu", only="*/baseline/*")._own_teacher(), "nobody is taught"
    assert Study(path, tmp_path / "runs", device="cpu", only="*/kd/*")._own_teacher()


def test_a_variant_may_go_back_from_the_published_recipe_and_borrow_baselines() -> None:
    fair = {"name": "fair", "recipe": "matched", "methods": ["kd"], "baseline": "published"}
    assert "settings.distilled_dropout" in _declared(fair) and "settings.distilled_dropout" not in _declared({})


def test_a_run_beside_a_study_is_not_its_teacher(tmp_path: Path) -> None:
    write_json(tmp_path / STUDY_FILE, {})
    for name in ("teacher", "mine"):
        assert is_studys_teacher(SimpleNamespace(path=tmp_path / name)) is (name == "teacher")


def test_pictures_in_a_folder_with_spaces_are_linked(tmp_path: Path) -> None:
    page = report(Findings(), [(tmp_path / "my figures (1)" / "gains.png", "Gains.")], tmp_path)
    assert "![Gains.](my%20figures%20%281%29/gains.png)" in page


def test_only_the_first_shard_trains_the_teacher(tmp_path: Path, refused) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    study = Study(path, tmp_path / "runs", device="cpu", shard="2/3")
    refused("teacher of the study", "not trained yet", "first with --shard 1/3", call=study.run)
    assert not (tmp_path / "runs").exists() and Study(path, tmp_path / "runs", shard="1/3")._own_teacher()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1/15", "2", "1/", "/2", "a/b", "1/2/3", "-1/2", ""])
def test_a_shard_that_there_is_not_is_one_sentence(shard: str, write: Callable[..., Path], tmp_path, refused) -> None:
    refused(f"the shard is {shard!r}", "14 runs", "K/N", call=lambda: Study(write(), tmp_path / "runs", shard=shard))


# ------------------------------------------------------------------------------------------------- the pool


@pytest.mark.parametrize("visible", ["0,1", "2,3"])
def test_jobs_run_side_by_side_on_the_gpus_that_are_ones_own(
    visible: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a machine that others use too: each process sees one of them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(pool, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    # Each waits until both have written: one after the other, they would not end.
    script = 'echo "$CUDA_VISIBLE_DEVICES" > {0}; until [ -e one ] && [ -e two ]; do sleep 0.1; done'
    jobs = [
        Job(name, "subprocess.run", {"args": ["sh", "-c", script.format(name)], "cwd": str(tmp_path), "timeout": 60})
        for name in ("one", "two")
    ]
    with progress_bar(1, 0) as bar:
        run_all(jobs, slots("cuda"), 1, bar, tmp_path / "log")
    assert [(tmp_path / name).read_text().strip() for name in ("one", "two")] == visible.split(",")


def test_a_failure_is_told_when_the_others_are_done(tmp_path: Path, refused) -> None:
    done: list[str] = []
    jobs = [
        Job("bad", "distill.networks.saving.load_model", {"path": str(tmp_path / "none.safetensors")}),
        Job("good", "subprocess.run", {"args": ["sleep", "3"]}, finished=lambda: done.append("good")),
        Job("late", "os.getcwd", {}, finished=lambda: done.append("late")),
    ]
    with progress_bar(1, 0) as bar:
        refused(
            "bad failed",
            "none.safetensors",
            "what is finished is kept",
            call=lambda: run_all(jobs, slots("cpu", 2), 1, bar, tmp_path / "log"),
        )
    assert done == ["good"], "what ran beside it was not finished, or something new was begun"
    assert not (tmp_path / "log").exists()


def diverge(path: str) -> None:
    Path(path).touch()
    raise Diverged("the loss is nan")


def test_a_run_that_diverges_does_not_keep_others_from_theirs(tmp_path: Path, refused, monkeypatch) -> None:
    tests = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
    jobs = [Job("bad", "test_study.diverge", {"path": str(tmp_path / "bad")}), Job("late", "os.getcwd", {})]
    done: list[str] = []
    jobs[1] = replace(jobs[1], finished=lambda: done.append("late"))
    with progress_bar(1, 0) as bar:
        refused("bad failed: the loss is nan", call=lambda: run_all(jobs, slots("cpu", 1), 1, bar, tmp_path / "log"))
    assert done == ["late"] and not (tmp_path / "log").exists()


def test_what_nobody_foresaw_is_kept_in_a_file(tmp_path: Path, refused) -> None:
    jobs = [Job("odd", "json.loads", {"s": "{"}), Job("dead", "os.abort", {})]
    for job, words in zip(jobs, (("JSONDecodeError", tmp_path / "log"), ("signal 6", "lower --jobs")), strict=True):
        with progress_bar(1, 0) as bar:
            refused(job.name, *words, call=lambda job=job: run_all([job], slots("cpu", 1), 1, bar, tmp_path / "log"))
    assert not (tmp_path / "log").exists(), "it is of the last call"
    two = [Job(name, "json.loads", {"s": "{"}) for name in ("one", "two")]
    with progress_bar(1, 0) as bar:
        refused("1 more failed", call=lambda: run_all(two, slots("cpu", 2), 1, bar, tmp_path / "log"))
    said = (tmp_path / "log").read_text()
    assert said.count("Traceback") == 2 and "one\n\nTraceback" in said and "two\n\nTraceback" in said


# ------------------------------------------------------------------------------------ what may be in one table


def record_of(run: Planned, miou: float, **more: object) -> dict:
    """A made-up record of a planned run."""
    keywords = run.keywords
    images = keywords["limit"] or 500
    return {
        "variant": run.variant,
        "data": "sample",
        "backbone": keywords["student"],
        "method": keywords["method"],
        "seed": keywords["seed"],
        "start": f"start of {keywords['student']}, {keywords['seed']}",
        "images": images,
        "samples": images * run.settings.epochs,
        "split": "test",
        "miou": miou,
        "val_miou": miou,
        "best_val_miou": miou + 0.01,
        "per_class_iou": {"ground": miou, "cup": None, "spoon": miou / 2},
        "seconds": 1.0,
        "settings": {"epochs": run.settings.epochs, "labelled": run.settings.labelled},
        "teacher": None if keywords["method"] == "baseline" else {"weights": "abc"},
        **more,
    }


def recorded(name: str, worth: Callable[[Planned], float]) -> dict:
    """A made-up record of a shipped study."""
    study = load_study(PROJECT / "studies" / f"{name}.toml")
    runs = [record_of(run, 0.5 + 0.01 * run.keywords["seed"] + worth(run)) for run in plan(study, Path())]
    environment = {"cores": 2, "processor": "processor", "torch": "2"}
    about = {
        "command": "",
        "date": "today",
        "environment": environment,
        "study": study.as_written(),
        "teacher": {"miou": 0.9},
    }
    return {**about, "runs": runs}


ROW = {"data": "sample", "backbone": "resnet18", "seed": 0, "start": "a", "images": 500}


@pytest.mark.parametrize(
    "first, second, word",
    [
        ({}, {"data": "camvid"}, "data is 'sample' in the one and 'camvid' in the other"),
        ({}, {"images": 64}, "images is 500"),
        ({"class_names": ["a"]}, {"class_names": ["b"]}, "class_names"),
        ({"preset": "voc"}, {"preset": "sample"}, "preset"),
        ({"settings": {"epochs": 24}}, {"settings": {"epochs": 12}}, "settings.epochs is 24 in the one and 12"),
        ({"settings": {}}, {"settings": {"divisions": "twice"}}, "settings.divisions is 'once' in the one and 'twice'"),
        ({"teacher": {"weights": "a"}}, {"teacher": {"weights": "b"}}, "teacher is 'a'"),
        ({"samples": 3}, {"samples": 4}, "samples"),
        ({}, {"start": "b"}, "start is 'a' in the one and 'b'"),
        ({"model": {"width": 1}}, {"model": {"width": 2}, "seed": 1}, "model"),
        ({"method": "kd", "terms": {"kd": 1}}, {"method": "kd", "terms": {"kd": 2}, "seed": 1}, "terms"),
        ({"content": {"val": "a"}}, {"content": {"val": "b"}}, "the content of val is 'a'"),
        ({"content": {"train": "a"}}, {"content": {"train": "b"}}, "the content of train is 'a'"),
        ({"code": {"own": "a"}}, {"code": {"own": "b"}}, "the code of own is 'a'"),
    ],
)
def test_runs_that_differ_in_more_than_they_may_are_refused(first: dict, second: dict, word: str, refused) -> None:
    pair = [{**ROW, "method": "baseline", **first}, {**ROW, "method": "sakd", **second}]
    refused(word, "resnet18/", "/seed0", "in one table", call=lambda: check_comparable(pair))
    check_comparable(pair, apart=[word.partition(" is ")[0]])


@pytest.mark.parametrize(
    "second",
    [
        {"backbone": "mobilenetv2", "start": "b"},
        {"seed": 1, "start": "b"},
        {"teacher": {"weights": "a"}},
        {"terms": {"kd": 3}},
        {"content": {"train": "a"}},  # of which the baseline's record tells nothing
        {"settings": {"workers": 4, "precision": "float32"}},  # does not count; what all had before there was a choice
    ],
)
def test_rows_may_differ_in_student_method_and_seed(second: dict) -> None:
    check_comparable([{**ROW, "method": "baseline", "settings": {}}, {**ROW, "method": "kd", "settings": {}, **second}])


def test_the_command_line_refuses_to_mix(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    study = {
        "runs": [{**ROW, "method": method, "miou": 0.5, "split": "test", "seconds": 1} for method in ("baseline", "kd")]
    }
    study["runs"][1]["settings"] = {"epochs": 3}
    study["runs"][0]["settings"] = {"epochs": 4}
    write_json(tmp_path / "mixed.json", study)
    assert main(["compare", str(tmp_path / "mixed.json")]) == 2
    assert "settings.epochs is 4 in the one and 3 in the other" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- the record


def test_a_record_with_other_runs_stays_until_all_are_there(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write("variants]]\nname", "variants]]\nname", GOOD)
    study = Study(path, tmp_path / "runs", tmp_path / "old.json", device="cpu")
    names = ("variant", "backbone", "method", "seed")
    entries = {run.folder: dict(zip(names, study_module._key_of(run), strict=True)) for run in study.runs}
    study.before = {"shipped": {"a": "b"}, "runs": list(entries.values())[1:6]}
    study.folder.mkdir(parents=True)
    study.environments = [{"torch": "2"}]
    for count, replaced in ((4, False), (5, False), (6, True), (14, True)):
        study.records = dict(list(entries.items())[:count])
        write_json(study.results, study.before)
        study.record()
        now = read_json(study.results)
        assert len(now["runs"]) == (count if replaced else 5) and now["shipped"] == {"a": "b"}
    assert len(study.runs) == 14


def test_the_teachers_scores_stay_where_it_is_not_loaded_again(write: Callable[..., Path], tmp_path: Path) -> None:
    study = Study(write("seeds = 2", "seeds = 1"), tmp_path / "runs", tmp_path / "old.json", device="cpu")
    study.folder.mkdir(parents=True)
    write_json(study.folder / "teacher.json", scored := {"weights": "a", "miou": 0.5})
    for loaded, found in ((None, scored), ("a", scored), ("b", None)):
        study.weights = loaded
        assert study._teacher_scores() == found
    study.weights, study.scored_on = "a", {"val": "1"}
    assert study._teacher_scores() == scored, "an old file, which does not say its images"
    for images, found in (({"val": "1"}, True), ({"val": "2"}, False)):
        write_json(study.folder / "teacher.json", scored | {"images": images})
        assert bool(study._teacher_scores()) == found, "a score on other images is not taken"
    (study.folder / "teacher.json").write_text("[1]")
    with pytest.raises(DistillError, match="is not a teacher's scores"):
        study._teacher_scores()


def test_a_record_is_not_shortened_by_a_shorter_study_file(write: Callable[..., Path], tmp_path: Path, refused) -> None:
    there = [
        {"variant": v, "backbone": "resnet18", "method": "kd", "seed": s} for v in ("8 labels", "9") for s in (0, 1)
    ]
    write_json(tmp_path / "old.json", {"runs": there})
    study = Study(write("seeds = 2", "seeds = 1"), tmp_path / "runs", tmp_path / "old.json", device="cpu")
    refused(
        "old.json is not a recorded study: data is missing", call=lambda: study.run(jobs=1)
    )  # a record that lacks scores
    scored = [{**entry, "data": "sample", "split": "val", "miou": 0.5, "seconds": 1.0} for entry in there]
    write_json(tmp_path / "old.json", {"runs": scored})
    refused("old.json records 3 runs", "8 labels/resnet18/kd/seed1", "--results", call=lambda: study.run(jobs=1))
    write_json(tmp_path / "old.json", {"runs": [{**scored[0], "data": "elsewhere"}]})
    study = Study(write("seeds = 2", "seeds = 1"), tmp_path / "runs", tmp_path / "old.json", device="cpu")
    refused("old.json records runs on elsewhere", "asks for sample", "--results", call=lambda: study.run(jobs=1))


def test_a_record_that_is_whole_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Date, teacher and all, though neither runs nor a teacher's score are there."""
    study = "own-teacher"
    shutil.copy(PROJECT / "results" / f"{study}.json", tmp_path / "record.json")
    words = ["study", PROJECT / "studies" / f"{study}.toml", "--results", tmp_path / "record.json", "--keep-recorded"]
    words += ["--runs", tmp_path / "runs"]
    assert main([*map(str, words), "--dry-run"]) == 0
    assert "6 runs, 6 of them finished" in (said := capsys.readouterr().out) and "  teacher" not in said
    for more in ([], ["--shard", "2/2"]):
        assert main([*map(str, words), *more]) == 0
        assert f"recorded in {tmp_path / 'record.json'}" in capsys.readouterr().err
        assert read_json(tmp_path / "record.json") == read_json(PROJECT / "results" / f"{study}.json")


def test_runs_of_other_machines_are_told(write: Callable[..., Path], tmp_path: Path) -> None:
    study = Study(write(), tmp_path / "runs", tmp_path / "new.json", device="cpu")
    study.folder.mkdir(parents=True)
    study.records = {run.folder: ROW | {"method": "baseline"} for run in study.runs}
    study.environments = [{"torch": "2"}, {"torch": "3"}]
    study.record()
    assert [entry["torch"] for entry in read_json(tmp_path / "new.json")["environments"]] == ["2", "3"]


def test_a_study_of_the_clone_is_recorded_in_its_results(tmp_path: Path) -> None:
    assert (
        Study(PROJECT / "studies" / "sample.toml", tmp_path, device="cpu").results
        == PROJECT / "results" / "sample.json"
    )
    (tmp_path / "own.toml").write_text(GOOD)
    assert Study(tmp_path / "own.toml", tmp_path, device="cpu").results == tmp_path / "own" / "results.json"


def test_a_study_of_ones_own_in_the_clone_is_recorded_beside_its_runs(tmp_path: Path, monkeypatch) -> None:
    """There it could have the name of a record that came with the clone."""
    for folder in ("studies", "results"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(study_module, "PROJECT", tmp_path)
    for path, results in {"patience.toml": "runs/patience/results.json", "studies/a.toml": "results/a.json"}.items():
        (tmp_path / path).write_text(GOOD)
        assert Study(tmp_path / path, tmp_path / "runs", device="cpu").results == tmp_path / results


def test_folders_that_are_links_and_variants_with_another_name(interrupted: Interrupted, tmp_path: Path) -> None:
    """A link to another disk is not followed; of a variant that the file names no longer, the folder tells its name."""
    shutil.copytree(interrupted.folder, tmp_path / "tiny")
    (tmp_path / "tiny/16-labels/resnet18").rename(tmp_path / "disk")
    (tmp_path / "tiny/16-labels/resnet18").symlink_to(tmp_path / "disk")
    expected = str(tables(read_findings([interrupted.folder])))  # as text, in which NaN equals NaN
    assert str(tables(read_findings([tmp_path / "tiny"]))) == expected
    described = read_json(tmp_path / "tiny" / STUDY_FILE)
    described["study"]["variants"] = [{"name": "another"}]
    write_json(tmp_path / "tiny" / STUDY_FILE, described)
    assert {entry["variant"] for entry in read_findings([tmp_path / "tiny"]).records} == {"16-labels", "8-labels"}


RESULTS = PROJECT / "results"
RECORDED = [path for path in sorted((PROJECT / "studies").glob("*.toml")) if (RESULTS / f"{path.stem}.json").exists()]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_every_record_is_what_its_study_file_asks_for(path: Path, tmp_path: Path) -> None:
    study = Study(path, tmp_path, device="cpu", keep_recorded=True)
    study.check()
    assert len(study.records) == len(read_json(RESULTS / f"{path.stem}.json")["runs"])


def test_a_study_file_that_changed_does_not_keep_other_networks(tmp_path: Path, refused) -> None:
    text = (PROJECT / "studies" / "student-size.toml").read_text()
    assert text.count("width = 0.5") == 2
    (tmp_path / "student-size.toml").write_text(text.replace("width = 0.5", "width = 0.75"))
    results = RESULTS / "student-size.json"
    changed = Study(tmp_path / "student-size.toml", tmp_path, results, device="cpu", keep_recorded=True)
    refused("holds a run whose model's width is 0.125", "asks for 0.1875", call=changed.check)
    (tmp_path / "own.toml").write_text(GOOD)
    study = Study(tmp_path / "own.toml", tmp_path, device="cpu")
    entry = {"backbone": study.runs[0].keywords["student"], "seed": 77}
    refused("seed is 77", call=lambda: study._check_network(study.runs[0], entry))
    refused("backbone is resnet101", call=lambda: study._check_network(study.runs[0], {"backbone": "resnet101"}))
    others = {"initial_weights": "DEFAULT"}
    refused("initial weights is DEFAULT", "for random", call=lambda: study._check_network(study.runs[0], others))


# ------------------------------------------------------------------------------------------------ what it shows


def test_every_table_has_the_gap_to_its_own_teacher(tmp_path: Path, refused) -> None:
    """Whichever studies are compared in one call, and in whichever order."""

    def gaps(found: Findings) -> list[tuple]:
        return [(row["backbone"], row["method"], row.get("closed")) for row in tables(found)[""]]

    alone = gaps(read_findings([PROJECT / "results" / "camvid.json"]))
    assert any(closed is not None for *_, closed in alone)
    held_out = PROJECT / "results" / "camvid-weights.json"  # the same teacher, scored on other images
    for order in ([held_out, PROJECT / "results" / "camvid.json"], [PROJECT / "results" / "camvid.json", held_out]):
        assert gaps(read_findings(order)) == alone
    paths = [PROJECT / "results" / name for name in ("camvid.json", "label-noise.json")]
    for order in (paths, paths[::-1]):
        found = read_findings(order)
        assert gaps(found) == alone and found.teacher is None
    for run in found.records:  # as of a teacher whose scores no study has
        run["teacher"] = run["teacher"] and {**run["teacher"], "weights": "0" * 16}
    assert all(closed is None for *_, closed in gaps(found)) and "The teacher has" not in report(found, [], tmp_path)
    write_json(tmp_path / "other.json", recorded("sample-few-labels", lambda run: 0.0))
    other = read_json(tmp_path / "other.json")
    other["study"]["variants"][0]["limit"] = 32
    write_json(tmp_path / "another.json", other)
    pair = [tmp_path / "other.json", tmp_path / "another.json"]
    refused("another.json", "'64 labels'", call=lambda: read_findings(pair))


def test_lines_by_labels_meet_where_all_images_have_labels(tmp_path: Path) -> None:
    def worth(run: Planned) -> float:
        return 0.1 * (run.keywords["method"] != "baseline") + 0.05 * bool(run.settings.labelled)

    write_json(tmp_path / "labels.json", recorded("sample-few-labels", worth))
    lines = by_labels(read_findings([tmp_path / "labels.json"]))
    assert lines.keys() == {"baseline", "KD", "OFD", "KD, distilled on 500", "OFD, distilled on 500"}
    assert all(list(line) == [64, 128, 256, 500] for line in lines.values())
    assert lines["KD, distilled on 500"][64][0] == pytest.approx(0.66) and lines["KD"][64][0] == pytest.approx(0.61)
    assert lines["KD, distilled on 500"][500] == lines["KD"][500]


def test_the_readme_can_show_few_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worth(run: Planned) -> float:
        return 0.1 * (run.keywords["method"] == "kd") + 0.05 * bool(run.settings.labelled)

    write_json(tmp_path / "sample-few-labels.json", recorded("sample-few-labels", worth))
    shutil.copy(PROJECT / "results" / "sample.json", tmp_path)  # whose baselines the text names
    monkeypatch.setattr(shared, "results_file", lambda name: tmp_path / name)
    monkeypatch.setattr(labels, "results_file", lambda name: tmp_path / name)
    block = labels.few_labels()
    assert "| 64 | kd | 61.0 ± 2.5 | +10.0 ± 0.0 | 66.0 ± 2.5 | +15.0 ± 0.0 | +5.0 ± 0.0 |" in block
    assert "| 500 | baseline | 51.0 ± 2.5 |  |  |  |  |" in block and "nan" not in block


def test_the_readme_can_show_what_faults_are_worth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worth(run: Planned) -> float:
        method, changed = run.keywords["method"], run.variant not in ("matched", "crops")
        return 0.1 * (method == "kd") + 0.02 * (method == "kd" and changed) - 0.03 * (changed and method == "baseline")

    write_json(tmp_path / "quirks.json", recorded("quirks", worth))
    for module in (shared, quirks):
        monkeypatch.setattr(module, "results_file", lambda name: tmp_path / name)
    block = quirks.quirks()
    assert "| distilled students skip ASPP's dropout | kd | +10.0 ± 0.0 | +12.0 ± 0.0 | +2.0 ± 0.0 | 3 |" in block
    assert "| losses are divided twice | kd | +10.0 ± 0.0 | +15.0 ± 0.0 | +5.0 ± 0.0 | 3 |" in block
    assert "at twice the rate | kd | +10.0 ± 0.0 | +13.0 ± 0.0 | +3.0 ± 0.0 | 3 |" in block
    assert "| padding is labelled background | kd |" in block and "+1.0 ± 0.0 for baseline" in block

    long, usual = recorded("quirks-long", worth), recorded("sample", lambda run: 0.1 * (run.keywords["method"] == "kd"))
    long["runs"] = [run for run in long["runs"] if (run["variant"], run["seed"]) != ("divided twice", 2)]
    long["runs"] = [run for run in long["runs"] if run["variant"] != "teacher in training mode"]  # not there yet
    write_json(tmp_path / "quirks-long.json", long)
    write_json(tmp_path / "sample.json", usual)
    block = quirks.long_quirks()
    assert "after 96 epochs" in block and "training mode" not in block and "padding" not in block
    assert "| losses are divided twice | kd | +10.0 ± 0.0 | +15.0 ± 0.0 | +5.0 ± 0.0 | 4 |" in block
    assert "| distilled students skip ASPP's dropout | kd | +10.0 ± 0.0 | +12.0 ± 0.0 | +2.0 ± 0.0 | 5 |" in block
    assert "would be +13.0 ± 0.0 instead of +10.0 ± 0.0" in quirks.half_schedule()


def test_a_condition_stands_beside_the_usual_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worth(run: Planned) -> float:
        more = 0.06 * (run.variant == "decay 0.3") + 0.04 * (run.settings.epochs == 192)
        return 0.1 * (run.keywords["method"] == "ofd") + more

    for name in ("label-noise", "teacher-masks", "sample", "sample-long"):
        study = recorded(name, worth)
        study["teacher"]["val_miou"] = 0.9
        for run in study["runs"]:
            run |= {"cpu_seconds": 1.0, "history": [{"epoch": run["settings"]["epochs"], "val_miou": 0.5}]}
            run["settings"]["weight_decay"] = 0.02
        write_json(tmp_path / f"{name}.json", study)
    shutil.copy(PROJECT / "results" / "teacher.json", tmp_path)  # whose number of images the text names
    monkeypatch.setattr(shared, "results_file", lambda name: tmp_path / name)
    (noise,) = [one for one in conditions.CONDITIONS if one.record == "label-noise"]
    block = conditions.section(noise)
    assert "| as in the study sample | ofd | 96 | 0.02 | 1 | 62.0 ± 2.0 | +10.0 ± 0.0 | +6.0 ± 0.0 | 5 |" in block
    assert (
        "| as in the study sample | baseline, twice the epochs | 192 | 0.02 | 1 | 56.0 ± 2.0 |  | the best | 5 |"
        in block
    )
    assert "| three labels in ten wrong | ofd | 96 | 0.02 | 1 | 61.0 ± 2.5 | +10.0 ± 0.0 | +4.0 ± 0.0 | 3 |" in block
    assert "lies above zero for ofd (as in the study sample); ofd (three labels in ten wrong)" in block
    assert "| three labels in ten wrong | teacher's masks as labels | 96 | 0.02 | 1 | 51.0 ± 2.5 | +0.0" in block
    titles = [axis.get_title(loc="left") for axis in noise.chart().axes]
    assert titles == ["as in the study sample", "three labels in ten wrong"]


def test_few_labels_are_compared_with_the_student_alone_on_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worth(run: Planned) -> float:
        return 0.2 * (run.keywords["method"] == "kd") + 0.1 * (run.variant in ("256 labels", "2,000 labels"))

    for name in ("labels", "labels-by-teacher", "labels-schedule", "sample-128", "sample-long"):
        study = recorded(name, worth)
        for run in study["runs"]:
            run |= {"cpu_seconds": 1.0, "val_miou": 0.5, "samples": 16 * run["settings"]["epochs"]}
            run["history"] = [{"epoch": run["settings"]["epochs"], "val_miou": 0.5}]
            run["settings"] |= {"weight_decay": 0.02, "batch_size": 16}
        study["teacher"]["val_miou"] = 0.9
        write_json(tmp_path / f"{name}.json", study)
    shutil.copy(PROJECT / "results" / "teacher.json", tmp_path)
    monkeypatch.setattr(shared, "results_file", lambda name: tmp_path / name)
    section = labels.section()
    assert "| 64 | 2,000 | kd | 71.0 ± 2.5 | +20.0 ± 0.0 | 24 | 0.02 | 1 | 3 |" in section
    assert "| 64 | 64 | alone, twice the steps | 51.0 ± 2.5 |  | 1,488 | 0.02 | 1 | 3 |" in section
    assert "With 256 labels, kd leads by +10.0 ± 0.0 (2,000 images)." in section
    assert "The control: with" in section and "kd leads that by +20.0 ± 0.0." in section
    assert "Labels for all 2,000 images give the student alone 61.0 ± 2.5" in section
    assert len(labels.chart().axes) == 3

    shorter = read_json(tmp_path / "labels.json")
    shorter["runs"] = [run for run in shorter["runs"] if run["method"] == "kd"]  # the rest is not there yet
    write_json(tmp_path / "labels.json", shorter)
    assert "So far" in labels.section() and "Labels for all" not in labels.section()


def test_networks_that_cannot_be_built_here_cost_no_other_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> list[float]:
        raise DistillError("timm is not installed")

    monkeypatch.setattr("distill.lab.comparison.milliseconds", fails)
    found = {figure: name for name, figure, _ in figures(read_findings([PROJECT / "results" / "own-teacher.json"]))}
    assert "no latency of some networks: they cannot be built from the record, or not here" in found
    assert "sizes" in found.values()


def test_what_a_record_does_not_hold_is_said(tmp_path: Path) -> None:
    """Records of before there were histories and networks in them."""
    write_json(tmp_path / "labels.json", recorded("sample-few-labels", lambda run: 0.0))
    said = [figure for _, figure, _ in figures(read_findings([tmp_path / "labels.json"])) if isinstance(figure, str)]
    assert any("no learning curves of 64 labels" in sentence for sentence in said)
    assert any("how many parameters" in sentence for sentence in said)
