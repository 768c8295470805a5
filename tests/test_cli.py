"""The command line: what it prints and writes, and how it speaks of mistakes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import subcommands
from PIL import Image

from distill import Run, cli, evaluate, open_dataset, save_model
from distill.cli import main
from distill.data.layout import voc_palette
from distill.files import PROJECT
from distill.networks.deeplab import DeepLabV3Plus


def approximately(value: float, abs: float = 0.002) -> object:
    """Equal but for a few pixels: the layout of weights in memory decides near-ties of a barely trained network."""
    return pytest.approx(value, rel=0, abs=abs)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: DeepLabV3Plus) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "tiny.safetensors"
    save_model(tiny_teacher, path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_sample: Path, teacher_file: Path) -> Path:
    """A folder with two runs that the command line made: a baseline and kd."""
    root = tmp_path_factory.mktemp("runs")
    for method in ("baseline", "kd"):
        assert main(train_arguments(root / method, tiny_sample, teacher_file, "--method", method)) == 0
    return root


def train_arguments(out: Path, data: Path, teacher: Path, *more: str) -> list[str]:
    fixed = f"train --backbone mobilenetv2 --teacher {teacher} --data-root {data} --out {out} --device cpu"
    return [*fixed.split(), "--epochs", "1", "--batch-size", "8", *more]


@pytest.fixture
def mistaken(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs a command that must end with exit code 2 and one line that holds the given words."""

    def check(*words: object, arguments: list[str]) -> None:
        try:
            code = main(arguments)
        except SystemExit as left:  # argparse leaves by itself
            code = left.code
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("distill: ")]
        assert code == 2
        assert len(lines) == 1 and captured.err.rstrip().endswith(lines[0]) and "Traceback" not in captured.err
        for word in words:
            assert str(word) in lines[0]

    return check


def test_help_runs_as_a_program() -> None:
    result = subprocess.run([sys.executable, "-m", "distill", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    for command in ("train", "evaluate", "predict", "compare", "data"):
        assert command in result.stdout


def _every_command() -> list[str]:
    of = {name: subcommands(parser) for name, parser in subcommands(cli._parser()).items()}
    return [*of, *(f"{name} {what}" for name, kinds in of.items() for what in kinds)]


@pytest.mark.parametrize("command", _every_command())
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command.split(), "--help"])
    assert left.value.code == 0 and "usage: python -m distill" in capsys.readouterr().out


def test_data_sample_makes_a_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    command = f"data sample --out {out} --train 3 --val 2 --test 1 --size 32 --seed 5".split()
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert len(open_dataset(out, "train")) == 3 and len(open_dataset(out, "test")) == 1
    assert main(command) == 0  # once more changes nothing


def test_data_sample_refuses_another_default(mistaken: Callable[..., None]) -> None:
    mistaken("--out", arguments=["data", "sample", "--train", "3"])


def test_data_check_reports_a_sound_folder(tiny_sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tiny_sample)]) == 0
    printed = capsys.readouterr().out
    assert "21 classes" in printed and "train: 24 images, 32 x 32" in printed and "problem" not in printed
    assert main(["data", "check", str(tiny_sample), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["val"]["images"] == 6


def test_data_check_lists_faults_and_fails(voc_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = voc_folder({"train": [np.zeros((4, 4))] * 2, "val": [np.zeros((4, 4))]})
    (root / "SegmentationClass/train1.png").unlink()
    assert main(["data", "check", str(root)]) == 2
    captured = capsys.readouterr()
    assert "problem: " in captured.out and "train1.png" in captured.out
    assert "faults, 1 in all" in captured.err


def test_train_prints_scores_and_the_run(
    tmp_path: Path, tiny_sample: Path, teacher_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_arguments(tmp_path / "run", tiny_sample, teacher_file, "--method", "sakd", "--lr", "0.001")) == 0
    run = Run(tmp_path / "run")
    *_, val, test, last = capsys.readouterr().out.splitlines()
    assert val == f"val mIoU {100 * run.scores['val']['miou']:.2f}"
    assert test == f"test mIoU {100 * run.scores['test']['miou']:.2f}"
    assert last == f"run: {tmp_path / 'run'}"
    settings = run.config["settings"]
    assert (settings["lr"], settings["epochs"], settings["batch_size"], settings["augment"]) == (0.001, 1, 8, "flip")
    assert run.config["method"]["name"] == "sakd"


def test_train_flags_reach_the_run(tmp_path: Path, tiny_sample: Path, teacher_file: Path) -> None:
    more = "--method kd --weight 0.5 --preset voc --crop-size 32 --scale-to 1.5 --workers 0 --out-stride 8"
    more += " --seed 4 --limit 16 --nesterov --precision bfloat16"
    assert main(train_arguments(tmp_path / "run", tiny_sample, teacher_file, *more.split())) == 0
    config = Run(tmp_path / "run").config
    assert config["preset"] == "voc" and config["seed"] == 4 and config["images"] == 16
    assert config["model"]["output_stride"] == 8 and config["settings"]["crop_size"] == 32
    assert (config["settings"]["scale_from"], config["settings"]["scale_to"]) == (0.5, 1.5)
    assert config["settings"]["precision"] == "bfloat16"
    assert config["settings"]["nesterov"] and config["method"]["terms"]["kd"]["weight"] == 0.5


def test_evaluate_prints_a_table_of_the_data_it_was_trained_on(
    trained: Path, tiny_sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained / "kd"), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 23 and lines[0].split()[0] == "background"
    name, miou = lines[-2].split()
    assert name == "mIoU" and float(miou) == approximately(100 * Run(trained / "kd").scores["val"]["miou"], abs=0.2)


def test_evaluate_gives_json_to_programs(trained: Path, tiny_sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", str(trained / "kd"), "--split", "test", "--json", "--device", "cpu"]
    assert main(arguments) == 0
    scores = json.loads(capsys.readouterr().out)
    expected = evaluate(Run(trained / "kd").student(), open_dataset("sample", "test", tiny_sample))
    assert np.abs(np.array(scores["confusion"]) - expected.confusion).sum() <= 8
    assert np.sum(scores["confusion"]) == expected.confusion.sum()
    assert scores["miou"] == approximately(expected.miou)


def test_evaluate_takes_weights_and_a_folder_of_ones_own(
    trained: Path, tiny_sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(trained / "kd" / "student.safetensors")
    assert main(["evaluate", weights, "--dataset", str(tiny_sample), "--json", "--device", "cpu"]) == 0
    miou = json.loads(capsys.readouterr().out)["miou"]
    assert miou == approximately(Run(trained / "kd").scores["val"]["miou"])
    assert miou != approximately(Run(trained / "baseline").scores["val"]["miou"])


def test_predict_writes_masks_and_overlays_of_any_size(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (40, 61)), ("b.png", (33, 20))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    images, out = [str(tmp_path / "a.jpg"), str(tmp_path / "b.png")], tmp_path / "out"
    assert main(["predict", str(trained / "kd"), *images, "--out", str(out), "--device", "cpu"]) == 0
    assert {path.name for path in out.iterdir()} == {"a_mask.png", "a_overlay.png", "b_mask.png", "b_overlay.png"}
    assert str(out / "a_mask.png") in capsys.readouterr().out
    with Image.open(out / "a_mask.png") as mask, Image.open(out / "b_overlay.png") as overlay:
        assert (mask.mode, mask.size, mask.getpalette()[:60]) == ("P", (61, 40), voc_palette()[:60])
        assert np.array(mask).max() < 21
        assert (overlay.mode, overlay.size) == ("RGB", (20, 33))


def test_predict_replaces_none_of_its_images(trained: Path, tmp_path: Path, capsys) -> None:
    for name in ("a.png", "a_mask.png"):
        Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(tmp_path / name)
    words = ["predict", str(trained / "kd"), str(tmp_path / "a*.png"), "--device", "cpu", "--out"]
    assert main([*words, str(tmp_path)]) == 2 and "a_mask.png would be replaced" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a_mask.png"}
    assert main([*words, str(tmp_path / "out")]) == 0


def test_a_page_is_written_though_nobody_reads_the_table(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "distill", "compare", str(PROJECT / "results" / "label-noise.json")]
    words += ["--markdown", str(tmp_path / "page.md")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    assert "| resnet18 | kd |" in (tmp_path / "page.md").read_text()


def test_predict_takes_patterns_that_no_shell_has_expanded(trained: Path, tmp_path: Path, tiny_sample: Path) -> None:
    pattern = tiny_sample / "JPEGImages" / "val_0000[01].*"
    assert main(["predict", str(trained / "kd"), str(pattern), "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert {path.name for path in tmp_path.glob("*_mask.png")} == {"val_00000_mask.png", "val_00001_mask.png"}


def test_names_that_the_terminal_cannot_show_are_written_in_codes(voc_folder: Callable[..., Path]) -> None:
    masks = [np.arange(32 * 32).reshape(32, 32) % 2] * 2
    folder = voc_folder({"train": masks, "val": masks}, ("ground", "кот"))
    words = [sys.executable, "-m", "distill", "data", "check", str(folder)]
    done = subprocess.run(words, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert b"Traceback" not in done.stderr and rb"\u043a\u043e\u0442" in done.stdout


def test_compare_prints_a_table(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(trained)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[2].startswith("| mobilenetv2 | baseline |")
    assert lines[5].startswith("The baseline of mobilenetv2 was scored too rarely")


def test_compare_gives_json_without_nan_to_programs(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(trained / "baseline"), str(trained / "kd"), "--json"]) == 0

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    baseline, distilled = json.loads(capsys.readouterr().out, parse_constant=refuse)
    scores = [Run(trained / method).scores["test"]["miou"] for method in ("baseline", "kd")]
    assert distilled["gain"] == pytest.approx(scores[1] - scores[0])
    assert baseline["miou_interval"] is None and distilled["gain_interval"] is None


def test_compare_reads_a_recorded_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"data": "sample", "backbone": "resnet18", "seed": 0, "split": "test", "seconds": 5.0}
    runs = [{**row, "method": "baseline", "miou": 0.5}, {**row, "method": "kd", "miou": 0.6}]
    (tmp_path / "study.json").write_text(json.dumps({"runs": runs, "teacher": {"miou": 0.7}}))
    assert main(["compare", str(tmp_path / "study.json")]) == 0
    assert "| resnet18 | kd | 60.0 | +10.0 | 50% | not settled: one seed | 1 |  | 5 |" in capsys.readouterr().out


def test_mistakes_end_with_code_2_and_one_line(
    mistaken: Callable[..., None], tmp_path: Path, tiny_sample: Path, teacher_file: Path, trained: Path
) -> None:
    train = train_arguments(tmp_path / "run", tiny_sample, teacher_file)
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    mistaken("kdd", arguments=[*train, "--method", "kdd"])
    mistaken("resnet19", arguments=[*train, "--backbone", "resnet19"])
    mistaken("batch of 99", arguments=[*train, "--batch-size", "99"])
    mistaken("none.safetensors", arguments=[*train, "--teacher", "none.safetensors"])
    mistaken("nowhere", arguments=["train", "--dataset", "nowhere", "--teacher", str(teacher_file)])
    mistaken("takes none", arguments=[*train, "--method", "baseline", "--weight", "3"])
    mistaken("config.json", arguments=["evaluate", str(tmp_path)])
    mistaken("none.pth.tar", arguments=["evaluate", "none.pth.tar"])
    mistaken("test2", arguments=["evaluate", str(trained / "kd"), "--split", "test2"])
    mistaken("none.jpg", arguments=["predict", str(trained / "kd"), "none.jpg", "--out", str(tmp_path / "out")])
    mistaken("'abacus'", arguments=["predict", str(trained / "kd"), str(picture), "--device", "abacus"])
    mistaken("no finished run", arguments=["compare", str(tmp_path)])
    mistaken("nowhere", arguments=["data", "check", "nowhere"])


def test_mistyped_commands_end_with_code_2_and_one_line(mistaken: Callable[..., None]) -> None:
    mistaken("epochs", "'many'", "--help", arguments=["train", "--epochs", "many"])
    mistaken("precision", "'half'", arguments=["train", "--precision", "half"])
    mistaken("trian", arguments=["trian"])
    mistaken("--bogus", arguments=["train", "--bogus"])
    mistaken("command", arguments=[])


def test_a_place_that_cannot_be_written_to_is_named(
    mistaken: Callable[..., None], tmp_path: Path, trained: Path
) -> None:
    (tmp_path / "file").write_text("")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    arguments = ["predict", str(trained / "kd"), str(tmp_path / "a.png"), "--out", str(tmp_path / "file")]
    mistaken(tmp_path / "file", arguments=[*arguments, "--device", "cpu"])
    mistaken(tmp_path / "file", arguments=["data", "sample", "--out", str(tmp_path / "file"), "--train", "1"])


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*arguments, **options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distill.cli.fit", interrupted)
    assert main(["train"]) == 130
    assert "start the same command again" in capsys.readouterr().err


def test_ctrl_c_while_the_libraries_are_imported_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise KeyboardInterrupt")  # as if it came in the middle of it
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PROJECT)])}
    words = [sys.executable, "-m", "distill", "doctor"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "distill: interrupted\n")


def test_use_sbd_belongs_to_pascal(mistaken: Callable[..., None], tiny_sample: Path, tmp_path: Path) -> None:
    mistaken("--use-sbd", "sample", arguments=["train", "--use-sbd", "--out", str(tmp_path / "run")])
    arguments = ["train", "--dataset", "pascal", "--use-sbd", "--data-root", str(tiny_sample)]
    mistaken("SegmentationClassAug", arguments=[*arguments, "--device", "cpu", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_the_preset_follows_the_data(tiny_sample: Path, tmp_path: Path) -> None:
    """VOC under its own name gets the published settings; --preset has the last word."""
    fixed = f"train --method baseline --data-root {tiny_sample} --device cpu --crop-size 33 --batch-size 8 --workers 0"
    for name, more, expected in (
        ("pascal", "--backbone mobilenetv2 --epochs 1", "voc"),
        ("pascal", "--preset sample --epochs 1 --augment crops", "sample"),
    ):
        out = tmp_path / expected
        assert main([*fixed.split(), "--dataset", name, *more.split(), "--out", str(out)]) == 0
        assert Run(out).config["preset"] == expected
