"""The measurements: that what is compared is the same work, and that the figures are what they are called."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import gpu
from distill import losses
from distill.cli import main
from distill.data.folders import VOCFolder
from distill.data.transforms import cut, draw_view
from distill.lab import bench, plain
from distill.lab.bench import Bench, choose, make_teacher, random_batch
from distill.lab.steps import PARTS, Ours, Plain, saved_for_backward
from distill.networks.deeplab import build_model
from distill.training import loop as training
from distill.training.batches import FlippedBatches
from distill.training.parallel import ALONE

SMALL = {"crop_size": 32, "batch_size": 4, "device": "cpu", "steps": 1, "progress": False}
WORDS = ["bench", "--crop-size", "32", "--batch-size", "4", "--device", "cpu", "--steps", "1"]


@pytest.fixture(scope="module")
def small() -> Bench:
    return choose(**SMALL)


@pytest.fixture(scope="module")
def steps(small: Bench) -> Callable[..., Ours | Plain]:
    """Builds a step: `steps(Ours, "sakd")`."""
    batch = random_batch(small)
    teacher = make_teacher(small, batch[0])

    def build(kind: type, method: str, backbone: str = "resnet18", **options) -> Ours | Plain:
        return kind(backbone, method, small.preset, small.settings, small.seed, teacher, batch, **options)

    return build


def maps(channels: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A student's and a teacher's, alike but not the same."""
    generator = torch.Generator().manual_seed(seed)
    student, noise = torch.randn(2, 3, channels, 9, 9, generator=generator)
    return student.requires_grad_(), student.detach() + noise


@pytest.mark.parametrize("name", plain.KNOWN)
def test_the_plain_losses_and_their_gradients_are_those_of_the_package(name: str) -> None:
    student, teacher = maps()
    margin = [-torch.rand(6, generator=torch.Generator().manual_seed(1))] if name == "ofd" else []
    values, gradients = [], []
    for module in (plain, losses):
        value = getattr(module, name)(student, teacher, *margin)
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, student)[0])
    assert values[0] == pytest.approx(values[1], rel=1e-5) and values[0] > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6 * gradients[1].abs().max().item())


@pytest.mark.parametrize("method", [*bench.METHODS, "kd+sakd"])
def test_both_recipes_compute_the_same_loss(method: str, steps: Callable) -> None:
    ours, recipe = steps(Ours, method, "mobilenetv2"), steps(Plain, method, "mobilenetv2")
    for step in (ours, recipe):
        step.student.eval(), step.teacher.eval(), step.method.eval()
    assert recipe.loss().item() == pytest.approx(ours.loss().item(), rel=1e-5)


def test_the_plain_recipe_is_plain(steps: Callable) -> None:
    recipe, ours = steps(Plain, "kd"), steps(Ours, "kd")
    assert recipe.teacher.training and all(weight.requires_grad for weight in recipe.teacher.parameters())
    assert not ours.teacher.training and not any(weight.requires_grad for weight in ours.teacher.parameters())
    wide = [
        next(p for p in step.student.parameters() if p.dim() == 4 and p[0].numel() > 100) for step in (recipe, ours)
    ]
    assert [weight.is_contiguous(memory_format=torch.channels_last) for weight in wide] == [False, True]


@pytest.mark.parametrize("method", ["baseline", "kd", "sakd"])
def test_a_step_of_ours_is_the_trainers(
    method: str, small: Bench, steps: Callable, tiny_sample: Path, tmp_path: Path
) -> None:
    ours, twin = steps(Ours, method), steps(Ours, method)
    data = VOCFolder(tiny_sample)
    parts = twin.student, twin.teacher, twin.method, data, small.settings, 0, small.device, tmp_path, False, None, ALONE
    loop = training._Loop(*parts)
    loop.step = loop._as_step()
    torch.manual_seed(0)
    ours()
    torch.manual_seed(0)
    loop._step([(twin.images, twin.labels, None)], frozen=False)
    assert same_gradients(ours, twin)


@pytest.mark.parametrize("method", ["baseline", "kd", "ofd", "kd+sakd"])
def test_a_step_in_parts_is_a_step(method: str, steps: Callable) -> None:
    whole, parted = steps(Ours, method), steps(Ours, method)
    torch.manual_seed(0)
    whole()
    torch.manual_seed(0)
    start = time.perf_counter()
    found = parted.dissect()
    spent = time.perf_counter() - start
    assert same_gradients(whole, parted)
    assert set(found) == {*PARTS, "loss"} and 0.5 * spent < sum(found.values()) <= spent + found["loss"]
    taught = method != "baseline"
    assert (found["distillation"] > 0) == (found["loss"] > 0) == taught and found["student"] > 0
    if method == "kd":
        assert found["loss"] == found["distillation"], "it has no connectors"


def same_gradients(first: Ours, second: Ours) -> bool:
    pairs = zip(
        [*first.student.parameters(), *first.method.parameters()],
        [*second.student.parameters(), *second.method.parameters()],
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)
    return True


def test_what_is_saved_for_backward_is_counted_once_and_without_weights() -> None:
    class Tiny:
        student = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
        teacher = method = nn.Module()
        inputs = torch.randn(5, 8)

        def loss(self) -> torch.Tensor:
            return self.student(self.inputs).sum()

    assert saved_for_backward(Tiny()) == 4 * (5 * 8 + 5 * 16)  # the inputs, and what ReLU gives both to and on


def test_the_plain_recipe_keeps_the_teachers_graph_too(steps: Callable) -> None:
    alone = [saved_for_backward(steps(kind, "baseline")) for kind in (Ours, Plain)]
    assert alone[0] == pytest.approx(alone[1], rel=1e-3)
    assert saved_for_backward(steps(Plain, "sakd")) > 1.5 * saved_for_backward(steps(Ours, "sakd"))


def test_everything_that_was_asked_for_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "bench.json"
    wanted = [
        "--methods",
        "baseline,kd",
        "proposed",
        "--backbones",
        "resnet18",
        "mobilenet",
        "--cache",
        "--json",
        str(out),
    ]
    assert main([*WORDS, *wanted]) == 0
    result = json.loads(out.read_text())
    rows = {(row["backbone"], row["method"]): row for row in result["steps"]}
    taught = {(student, method) for student in ("resnet18", "mobilenetv2") for method in ("kd", "sakd")}
    assert set(rows) == taught | {("resnet18", "baseline"), ("mobilenetv2", "baseline")}
    assert result["environment"]["device"] == "cpu" and result["options"]["crop_size"] == 32 and result["date"]
    for row in [*rows.values(), *result["loading"]]:
        assert row["ratio"] == row["plain"]["seconds"] / row["ours"]["seconds"]
        for found in (row["ours"], row["plain"]):
            assert 0 < found["fastest"] <= found["seconds"] <= found["slowest"]
    assert all(set(row["ours"]["parts"]) == {*PARTS, "loss"} for row in rows.values())
    assert all(row["ours"]["images_per_second"] == 4 / row["ours"]["seconds"] for row in rows.values())
    assert [row["crop_size"] for row in result["loading"]] == [32, 513]
    assert {(row["backbone"], row["method"]) for row in result["cache"]} == taught
    logits = next(row for row in result["cache"] if row["method"] == "kd")
    assert logits["views"] == 128 and logits["bytes"] == 128 * 21 * 32 * 32 * 4
    assert logits["ratio"] == logits["asked"]["seconds"] / logits["kept"]["seconds"]
    printed = capsys.readouterr().out
    assert "batch size 4, crop size 32" in printed and "saved for backward" in printed
    tables = [table.splitlines() for table in printed.strip().split("\n\n")[1:]]
    assert [len(table) - 2 for table in tables] == [12, 6, 4, 4]
    assert all(line.count("|") == table[0].count("|") for table in tables for line in table)


def test_a_step_with_kept_answers_does_not_ask(small: Bench, steps: Callable, tiny_sample: Path) -> None:
    step = steps(Ours, "kd")
    batches = FlippedBatches(VOCFolder(tiny_sample), small.settings, 0, small.device)
    batches.cache_teacher(step.asked, False, progress=False)
    step.asked = None
    step.images, step.labels, step.answers = next(batches(0))
    step()
    assert step.student.decoder.conv1.weight.grad.abs().sum() > 0


def test_a_cache_that_does_not_fit_has_no_row(small: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.training.batches.free_memory", lambda: 0)
    assert bench.measure_cache(choose(["kd"], ["resnet18"], **SMALL)) == []


def test_what_does_not_fit_on_a_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(step: Plain) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Plain, "loss", full)
    (row,) = bench.measure_steps(choose(["kd"], ["resnet18"], **SMALL))
    assert row["plain"] is None and row["ratio"] is None and row["ours"]["seconds"] > 0
    options = {"preset": "sample", "batch_size": 4, "crop_size": 32, "precision": "float32", "steps": 1}
    machine = {"device": "cpu", "threads": 1}
    report = bench.report({"options": options, "environment": machine, "steps": [row], "loading": []})
    assert "| resnet18 | kd | plain | out of memory | – | – | – |" in report


def test_steps_with_a_teacher_of_other_classes_are_measured() -> None:
    """As benchmarks/losses.py does with the teacher of photographs; `ofd` asks it for margins as well."""
    small = choose(["baseline", "ofd"], ["resnet18"], **SMALL)
    teacher = build_model("resnet18", num_classes=3, width=0.125, head_width=0.125).eval()
    alone, taught = (row["ours"] for row in bench.measure_steps(small, teacher))
    assert alone["parts"]["teacher"] < taught["parts"]["teacher"]
    assert alone["saved_for_backward_bytes"] < taught["saved_for_backward_bytes"]
    assert random_batch(small, 3)[1].unique().tolist() == [0, 1, 2, losses.IGNORE_INDEX]


def test_compiled_networks_are_measured_beside_the_others(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """Compilation itself takes a minute, so the compiler is one that only counts its calls."""
    compiled, chosen = [], choose(["sakd"], ["resnet18"], **SMALL, compile=True)
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    (row,) = bench.measure_steps(chosen)
    assert len(compiled) == 2, "teacher and student"
    assert row["compiled_ratio"] == row["ours"]["seconds"] / row["compiled"]["seconds"]
    assert {"compile_seconds", "parts"} <= set(row["compiled"])

    def broken(network: nn.Module) -> nn.Module:
        raise RuntimeError("no compiler was found\nat all")

    monkeypatch.setattr(torch, "compile", broken)
    refused("no compiler was found", "--compile", call=lambda: bench.measure_steps(chosen))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--methods bogus", "'bogus'"),
        ("--methods kd,", "''"),
        ("--methods kd+kd", "twice"),
        ("--backbones resnet50", "resnet101"),
        ("--batch-size 0", "batch_size is 0"),
        ("--crop-size 1", "crop_size is 1"),
        ("--steps 0", "steps is 0"),
        ("--seed -1", "seed is -1"),
        ("--device tpu", "'tpu'"),
        ("--precision half", "'half'"),
        ("--data /nowhere", "/nowhere"),
        ("--preset voc --cache", "--cache"),
    ],
)
def test_a_mistake_is_one_sentence(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([*WORDS, *words.split()])
    except SystemExit as left:
        code = left.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("distill: ") and error.count("\n") == 1 and said in error


def test_a_method_without_a_plain_form_is_measured_alone() -> None:
    (row,) = bench.measure_steps(choose(["dist"], ["resnet18"], **SMALL))
    assert "plain" not in row and row["ratio"] is None and row["ours"]["parts"]["loss"] > 0
    options = {"preset": "sample", "batch_size": 4, "crop_size": 32, "precision": "float32", "steps": 1}
    machine = {"device": "cpu", "threads": 1}
    report = bench.report({"options": options, "environment": machine, "steps": [row], "loading": []})
    assert "| resnet18 | dist | ours | " in report and "| resnet18 | dist | plain |" not in report


def test_both_ways_of_loading_show_the_same(tmp_path: Path) -> None:
    folder = plain.write_pictures(tmp_path, 2, (60, 45))
    dataset, generator = VOCFolder(folder), torch.Generator().manual_seed(0)
    for index in range(2):
        image, labels = dataset[index]
        for _ in range(10):
            view = draw_view(45, 60, 48, generator)._replace(mirrored=False, sigma=0.0)
            expected = cut(image, labels, view, 48)
            picture, mask = (
                torch.from_numpy(np.array(part)) for part in plain.crop(*plain.decode(dataset, index), view, 48)
            )
            assert (mask == expected[1]).float().mean() > 0.99
            assert (picture.float() - expected[0].permute(1, 2, 0).float()).abs().mean() < 0.5
    images, labels = next(plain.batches(dataset, 48, 2, generator))
    assert images.shape == (2, 3, 48, 48) and images.dtype == torch.float32 and images.is_contiguous()
    assert labels.shape == (2, 48, 48) and labels.dtype == torch.int64


def test_made_up_pictures_are_as_large_as_photographs(tmp_path: Path) -> None:
    folder = plain.write_pictures(tmp_path, 4, bench.VOC_SIZE)
    sizes = [path.stat().st_size for path in (folder / "JPEGImages").iterdir()]
    assert len(sizes) == 4 and 80_000 < sum(sizes) / 4 < 120_000, "VOC's have about 100 kB"


def test_the_gpus_script_works_at_a_tiny_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [(row["batch_size"], row["method"]) for row in result["steps"]] == [(4, "baseline"), (4, "sakd")]
    assert [row["workers"] for row in result["loading"]] == [0, 1]
    assert all(row["images_per_second"] > 0 for row in result["loading"])
    spent = [row["milliseconds"] for row in result["operators"]]
    assert len(spent) == 15 and spent == sorted(spent, reverse=True)
    assert sum(row["share"] for row in result["operators"]) <= 1
    assert result["tiny"] and result["environment"]["device"] == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpus_script_needs_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert "no GPU" in capsys.readouterr().err
