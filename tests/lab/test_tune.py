"""Weights chosen by successive halving: who trains for how long, on which images, and what is recorded."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
from conftest import subcommands
from torch import nn

from distill import cli
from distill.data.folders import VOCFolder
from distill.files import PROJECT, read_json
from distill.lab import tune as module
from distill.lab.label import label_by_teacher
from distill.lab.pool import Job
from distill.lab.tune import hold_out, tune
from distill.methods import METHODS
from distill.networks import save_model
from distill.terms import KD, Term
from distill.training.settings import Settings


@pytest.mark.parametrize(
    "budget, epochs, rungs",
    [
        (1, 8, [(1, 8)]),
        (2, 8, [(2, 8)]),
        (4, 8, [(4, 4), (2, 8)]),
        (3, 8, [(3, 4), (2, 8)]),
        (8, 2, [(8, 1), (2, 2)]),
    ],
)
def test_half_of_the_candidates_train_twice_as_long(budget: int, epochs: int, rungs: list[tuple[int, int]]) -> None:
    assert module._rungs(budget, epochs) == rungs


def test_no_rung_ends_before_the_student_learns() -> None:
    assert module._rungs(4, 2, frozen=1) == [(4, 2)]
    assert module._rungs(8, 8, frozen=1) == [(8, 2), (4, 4), (2, 8)]


def test_data_that_have_moved_are_held_out_from_again(tiny_sample: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(tiny_sample, here)
    held = hold_out(VOCFolder(here, "train"), tmp_path / "data")
    here.rename(there)
    assert hold_out(VOCFolder(there, "train"), tmp_path / "data") == held
    assert VOCFolder(held, "val")[0][0].shape[0] == 3 and (held / "JPEGImages").is_symlink()


def test_images_that_are_links_within_their_data_set_are_held_out(tiny_sample: Path, tmp_path: Path, refused) -> None:
    own = tmp_path / "own"
    shutil.copytree(tiny_sample, own)
    (own / "JPEGImages").rename(own / "originals")
    (own / "JPEGImages").mkdir()
    for path in (own / "originals").iterdir():
        (own / "JPEGImages" / path.name).symlink_to(path)
    held = VOCFolder(hold_out(VOCFolder(own, "train"), tmp_path / "data"), "val")
    assert held[0][0].shape[0] == 3
    shutil.copyfile(held.image_path(0), tmp_path / "elsewhere.jpg")
    link = own / "JPEGImages" / held.image_path(0).name
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere.jpg")
    refused("is a link to", call=lambda: held[0])


def test_candidates_lie_around_the_usual_weight() -> None:
    assert module._candidates("kd", 3, 1.0) == [0.09, 0.9, 9.0]
    assert module._candidates("sakd", 2, 1.0) == [47.4, 474.0]


def test_the_recorded_tuning_would_try_the_same_weights_again() -> None:
    record = read_json(PROJECT / "results" / "sample-tune.json")
    for method in record["best"]:
        tried = sorted({run["weight"] for run in record["runs"] if run["method"] == method})
        assert tried == module._candidates(method, record["budget"], record["spread"])


def test_weights_that_are_none_are_told(monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    refused("kd", "--spread", call=lambda: module._candidates("kd", 64, 10.0))
    term = type("Nought", (Term,), {"__init__": partialmethod(KD.__init__, weight=0.0)})
    monkeypatch.setattr("distill.methods.METHODS", METHODS | {"nought": term})
    refused("default of nought", "above 0", call=lambda: module._candidates("nought", 4, 1.0))


def test_the_recorded_command_can_be_typed() -> None:
    given = {"lr": 0.1, "optimizer": "sgd", "nesterov": False, "output_stride": 8, "epochs": 3, "workers": 2}
    flags = module._flags(given)
    assert flags == ["--lr 0.1", "--no-nesterov", "--out-stride 8"]
    options = cli._parser().parse_args(["tune", *" ".join(flags).split()])
    assert (options.lr, options.nesterov, options.output_stride) == (0.1, False, 8)


def test_every_setting_has_a_flag_or_is_known_to_have_none() -> None:
    parser = subcommands(cli._parser())["tune"]
    flags = {action.dest for action in parser._actions}
    assert {field.name for field in fields(Settings)} - flags == set(module._NO_FLAGS)


def test_images_are_held_out_from_train_alone(tiny_sample: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    whole = VOCFolder(tiny_sample, "train")
    held = hold_out(whole, tmp_path / "data")
    train, val = VOCFolder(held, "train"), VOCFolder(held, "val")
    assert sorted(train.ids + val.ids) == sorted(whole.ids) and not set(train.ids) & set(val.ids)
    assert 0 < len(val) < len(train) and train.class_names == whole.class_names
    assert hold_out(whole, tmp_path / "data") == held  # as on the second call


def test_where_links_are_not_allowed_images_are_copied(
    tiny_sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr("os.symlink", refuse)
    held = VOCFolder(hold_out(VOCFolder(tiny_sample, "train"), tmp_path / "data"), "val")
    assert len(held) and held[0][0].shape[0] == 3 and not (tmp_path / "data" / "JPEGImages").is_symlink()
    assert not list((tmp_path / "data").glob(".copy-*"))


def test_images_are_held_out_where_val_has_every_fifth_already(tiny_sample: Path, tmp_path: Path) -> None:
    """As in a folder without lists, which is divided by the same checksum."""
    shutil.copytree(tiny_sample, tmp_path / "own")
    shutil.rmtree(tmp_path / "own" / "ImageSets")
    whole = VOCFolder(tmp_path / "own", "train")
    held = hold_out(whole, tmp_path / "data")
    assert set(VOCFolder(held, "val").ids) < set(whole.ids)


def test_no_mask_of_a_teacher_is_held_out(tiny_sample: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    few = VOCFolder(label_by_teacher(tiny_sample, tmp_path / "few", keep=0, device="cpu", progress=False), "train")
    refused("0 training images with masks that no teacher drew", call=lambda: hold_out(few, tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    some = VOCFolder(label_by_teacher(tiny_sample, tmp_path / "some", keep=12, device="cpu", progress=False), "train")
    assert set(VOCFolder(hold_out(some, tmp_path / "data"), "val").ids) <= set(some.ids[:12])


def test_every_method_gets_as_many_runs_and_they_are_kept(
    tiny_sample: Path, tiny_teacher: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tiny_teacher, tmp_path / "teacher.safetensors")
    words = f"tune --methods kd at --budget 3 --epochs 2 --data-root {tiny_sample} --device cpu --jobs 2"
    words += f" --teacher {tmp_path / 'teacher.safetensors'} --out {tmp_path / 'out'}"
    words += " --class-weights log --out-stride 16 --no-compile --workers 0"
    assert cli.main(words.split()) in (None, 0)
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert [record[key] for key in ("budget", "spread", "epochs")] == [3, 1.0, 2]
    assert record["command"].endswith("--epochs 2 --seed 100 --out-stride 16 --class-weights log --no-compile")
    assert record["settings"]["class_weights"] == "log"
    for method in ("kd", "at"):
        own = [run for run in record["runs"] if run["method"] == method]
        assert [run["epochs"] for run in own] == [1, 1, 1, 2, 2]
        better = sorted(own[:3], key=lambda run: -run["val_miou"])[:2]
        assert {run["weight"] for run in own[3:]} == {run["weight"] for run in better}
        assert record["best"][method] == max(own[3:], key=lambda run: run["val_miou"])["weight"]
        assert f"{method} = {{ weight = {record['best'][method]:g} }}" in said
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("scores.json")}
    again = tune(
        ["kd", "at"], "resnet18", str(tmp_path / "teacher.safetensors"), "sample", str(tiny_sample),
        budget=3, epochs=np.int64(2), device="cpu", out=tmp_path / "out", class_weights="log", workers=np.int64(1),
    )  # fmt: skip
    assert again["runs"] == record["runs"] and before == {path: path.stat().st_mtime_ns for path in before}
    words = [str(word) for word in words.replace("--methods kd at", "--methods kd").split()]
    assert cli.main(words) in (None, 0)
    kept = read_json(tmp_path / "out" / "tune.json")
    assert kept["best"] == record["best"] and "--methods at kd " in kept["command"], "what was tuned before stays"
    assert sorted(map(str, kept["runs"])) == sorted(map(str, record["runs"]))
    words[words.index("--budget") + 1] = "2"
    assert cli.main(words) == 2 and "records at with budget 3, and 2 is asked for" in capsys.readouterr().err


def test_a_candidate_that_diverges_is_out_and_another_question_is_refused(
    tiny_sample: Path, tiny_teacher: nn.Module, tmp_path: Path, refused: Callable[..., str]
) -> None:
    save_model(tiny_teacher, tmp_path / "teacher.safetensors")
    asked = {"teacher": str(tmp_path / "teacher.safetensors"), "data_root": str(tiny_sample), "budget": 2, "epochs": 2}
    asked |= {"device": "cpu", "optimizer": "sgd", "clip": 0.0, "lr": 0.1, "batch_size": 4, "out": tmp_path / "out"}
    record = tune(["mse"], spread=10.0, **asked)
    assert [run["val_miou"] is None for run in record["runs"]] == [False, True]
    assert record["best"] == {"mse": pytest.approx(1e-5)}
    assert "100000 (2): diverged" in module.table(record)
    unbuilt = {**asked, "out": tmp_path / "corrected"}
    refused("no backbone", call=lambda: tune(["mse"], "resnet99", **unbuilt))
    refused("jobs is 0", call=lambda: tune(["mse"], jobs=0, **{**unbuilt, "out": tmp_path / "untouched"}))
    assert not (tmp_path / "untouched").exists()
    assert tune(["mse"], **{**unbuilt, "budget": 1})["best"], (
        "nothing was trained there, so it may be asked for another"
    )
    refused("student differs", "another --out", call=lambda: tune(["mse"], "mobilenetv2", **asked))
    refused("lr differs", call=lambda: tune(["mse"], **{**asked, "lr": 0.2}))


def test_of_several_candidates_those_that_diverge_are_not_trained_longer(
    tiny_sample: Path, tiny_teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny_teacher, tmp_path / "teacher.safetensors")

    def trained(jobs: list[Job], *_: object) -> None:
        for job in jobs:
            fine = job.keywords["method_options"]["kd"]["weight"] == 0.09
            (out := Path(job.keywords["out"])).mkdir(parents=True)
            (out / ("scores.json" if fine else "diverged.txt")).touch()

    monkeypatch.setattr(module, "run_all", trained)
    monkeypatch.setattr(module, "Run", Fake)
    asked = {"teacher": str(tmp_path / "teacher.safetensors"), "data_root": str(tiny_sample), "budget": 3, "epochs": 8}
    record = tune(["kd"], out=tmp_path / "out", device="cpu", **asked)
    assert [(run["weight"], run["epochs"]) for run in record["runs"]] == [(0.09, 4), (0.9, 4), (9, 4), (0.09, 8)]
    assert record["best"] == {"kd": 0.09}


class Fake:
    """A run with nothing but what `tune` looks at."""

    def __init__(self, path: Path) -> None:
        self.config, self.environment, self.scores = {"method": {}}, {}, {"val": {"miou": 0.0}}


def test_mistakes_are_told(tmp_path: Path, refused: Callable[..., str]) -> None:
    refused("kd+at", "single term", call=lambda: tune(["kd+at"], out=tmp_path))
    refused("baseline", "single term", call=lambda: tune(["baseline"], out=tmp_path))
    refused("nothing", call=lambda: tune([], out=tmp_path))
    refused("no method 'kdd'", call=lambda: tune(["kdd"], out=tmp_path))
    refused(
        "diverges with every weight of kd", "--spread", call=lambda: module._best_first("kd", [1], {("kd", 1): None})
    )
    refused("budget is 0", call=lambda: tune(["kd"], budget=0, out=tmp_path))
