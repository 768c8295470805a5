"""The trainer: fair between methods, exact when repeated or resumed, and clear about mistakes."""

import copy
import json
import math
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import distill
from distill import DistillError, Run, build_model, evaluate, fit, load_teacher, open_dataset
from distill.data.transforms import normalise
from distill.losses import class_weights
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.teachers import ask_teacher, fingerprint
from distill.training import batches
from distill.training import loop as training
from distill.training.batches import CroppedBatches, FlippedBatches
from distill.training.optimizer import lr_factor, pixels_by_class
from distill.training.presets import PRESETS, TUNED, choose_options, choose_settings
from distill.training.runs import name_of
from distill.training.settings import Settings

METHODS = ("baseline", "kd", "at", "ofd", "sakd")
CPU = torch.device("cpu")
SMALL = {"data": "sample", "device": "cpu", "progress": False, "limit": 16, "batch_size": 8, "evaluate_every": 2}
CROPS = {**SMALL, "preset": "voc", "crop_size": 33, "workers": 0}


@pytest.fixture
def train(
    tmp_path: Path,
    tiny_sample: Path,
    tiny_teacher: DeepLabV3Plus,
    make_student: Callable[..., DeepLabV3Plus],
) -> Callable[..., Run]:
    """`fit` on 16 images for one epoch of two steps; every default can be overridden."""

    def run(method: str = "baseline", out: str = "run", student: str | nn.Module | None = None, **changes) -> Run:
        given = {**SMALL, "epochs": 1, "teacher": tiny_teacher, "data_root": tiny_sample, **changes}
        return fit(student or make_student(), method, out=tmp_path / out, **given)

    return run


@pytest.fixture(scope="module")
def rows(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_sample: Path,
    tiny_teacher: DeepLabV3Plus,
    make_student: Callable[..., DeepLabV3Plus],
) -> dict[str, tuple[Run, list[Tensor]]]:
    """Every method trained for two epochs at seed 0, and the labels of its batches in the order they came."""
    result = {}
    with pytest.MonkeyPatch.context() as patched:
        for method in METHODS:
            seen: list[Tensor] = []

            class Recorded(FlippedBatches):
                def __call__(self, epoch: int, first: int = 0, seen: list[Tensor] = seen):
                    for batch in super().__call__(epoch, first):
                        seen.append(batch[1])
                        yield batch

            patched.setattr(batches, "FlippedBatches", Recorded)
            out = tmp_path_factory.mktemp(method) / "run"
            run = fit(make_student(), method, tiny_teacher, epochs=2, out=out, data_root=tiny_sample, **SMALL)
            result[method] = run, seen
    return result


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.path / "student.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def untimed(run: Run) -> list[dict]:
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in run.history]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C arrives during the given optimisation step."""
    original, calls = training._Loop._step, []

    def stopped(self, *batch) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return original(self, *batch)

    monkeypatch.setattr(training._Loop, "_step", stopped)


# ------------------------------------------------------------------------------------------------- fairness


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str, rows: dict) -> None:
    run, _ = rows[method]
    terms = set() if method == "baseline" else {method}
    assert [line["epoch"] for line in run.history] == [1, 2]
    for line in run.history:
        assert terms | {"ce", "loss", "lr", "seconds", "cpu_seconds"} <= line.keys()
        assert math.isfinite(line["loss"])
        assert line["loss"] == pytest.approx(sum(line[name] for name in terms | {"ce"}), rel=1e-5)
    assert all(value.isfinite().all() for value in weights(run).values())


def test_every_method_leads_elsewhere(rows: dict) -> None:
    ends = {json.dumps(weights(run)["decoder.last_conv.8.weight"].tolist()) for run, _ in rows.values()}
    assert len(ends) == len(METHODS)


def test_every_method_starts_from_the_same_weights(rows: dict, make_student: Callable[..., DeepLabV3Plus]) -> None:
    assert {run.config["start"] for run, _ in rows.values()} == {fingerprint(make_student())}


def test_every_method_sees_the_same_images_in_the_same_order(rows: dict) -> None:
    _, expected = rows["baseline"]
    assert len(expected) == 4
    for _, seen in rows.values():
        assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    assert not torch.equal(expected[0], expected[2])  # the second epoch has an order of its own


def test_every_method_has_the_same_settings_and_regularisation(rows: dict) -> None:
    settings = [run.config["settings"] for run, _ in rows.values()]
    assert all(value == settings[0] for value in settings)


def test_the_config_tells_the_teacher_apart(rows: dict, tiny_teacher: DeepLabV3Plus) -> None:
    assert rows["baseline"][0].config["teacher"] is None
    assert rows["kd"][0].config["teacher"] == {"weights": fingerprint(tiny_teacher), **tiny_teacher.config}


def test_the_baseline_takes_no_notice_of_a_teacher(train: Callable[..., Run]) -> None:
    assert same(weights(train(out="a", teacher=None)), weights(train(out="b")))


@pytest.mark.parametrize("preset", [SMALL, CROPS])
def test_the_teacher_does_not_change(preset: dict, train: Callable[..., Run], tiny_teacher: DeepLabV3Plus) -> None:
    before = fingerprint(tiny_teacher)  # of weights and buffers
    train("kd+sakd", **{**preset, "connector_epochs": 0})
    assert fingerprint(tiny_teacher) == before
    assert not any(module.training for module in tiny_teacher.modules())
    assert all(parameter.grad is None for parameter in tiny_teacher.parameters())


def test_a_teacher_in_training_mode_is_frozen_first(
    train: Callable[..., Run], make_student: Callable[..., DeepLabV3Plus]
) -> None:
    teacher = make_student("resnet101", seed=4).train()
    before = fingerprint(teacher)
    train("kd", teacher=teacher)
    assert fingerprint(teacher) == before and not teacher.training


# ---------------------------------------------------------------------------------------------- repetition


@pytest.mark.parametrize("method", ["baseline", "sakd"])
def test_the_same_seed_gives_the_same_bits(method: str, rows: dict, train: Callable[..., Run]) -> None:
    torch.manual_seed(123)  # the caller's own random numbers play no part
    again, (first, _) = train(method, epochs=2), rows[method]
    assert same(weights(again), weights(first))
    assert untimed(again) == untimed(first) and again.scores == first.scores


def test_another_seed_gives_another_order_and_other_weights(train: Callable[..., Run]) -> None:
    assert not same(weights(train(out="a", seed=0)), weights(train(out="b", seed=1)))


def test_a_named_backbone_starts_from_its_seed(train: Callable[..., Run]) -> None:
    runs = [
        train(student="mobilenetv2", out=name, seed=seed, method=method)
        for name, seed, method in (("a", 0, "baseline"), ("b", 0, "sakd"), ("c", 1, "baseline"))
    ]
    first, second, third = (run.config["start"] for run in runs)
    assert first == second != third


def test_the_callers_random_numbers_are_left_alone(train: Callable[..., Run]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train("sakd")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["baseline", "sakd", "kd+ofd"])
@pytest.mark.parametrize("preset", [SMALL, CROPS], ids=["flipped", "cropped"])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(
    method: str, preset: dict, train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = train(method, "whole", epochs=3, **preset)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(patched, step=4)  # two steps an epoch: in the middle of the second
        train(method, "resumed", epochs=3, **preset)
    stopped = Run(tmp_path / "resumed")
    assert not stopped.finished and [line["epoch"] for line in stopped.history] == [1]
    torch.rand(3)
    resumed = train(method, "resumed", epochs=3, **preset)
    assert same(weights(resumed), weights(whole))
    assert untimed(resumed) == untimed(whole) and resumed.scores == whole.scores
    ends = [torch.load(run.path / "last.pt", weights_only=True) for run in (resumed, whole)]
    assert same(ends[0]["method"], ends[1]["method"])
    assert torch.equal(ends[0]["random"], ends[1]["random"])


def test_a_run_interrupted_before_its_first_checkpoint_starts_again(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(patched, step=1)
        train()
    assert same(weights(train()), weights(train(out="whole")))


def test_a_run_interrupted_before_its_scores_is_only_scored(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "_final_scores", interrupted)
        train("kd")
    monkeypatch.setattr(training._Loop, "_step", None)  # would fail if it trained again
    assert train("kd").scores["val"]["miou"] >= 0


def interrupted(*arguments) -> dict:
    raise KeyboardInterrupt


def test_a_finished_run_is_returned_as_it_is(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = train("kd")
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
    monkeypatch.setattr(training, "_Loop", None)  # would fail if it trained again
    assert train("kd").scores == run.scores
    assert {path: path.stat().st_mtime_ns for path in run.path.iterdir()} == before


@pytest.mark.parametrize(
    "change, word",
    [
        ({"lr": 0.1}, "settings"),
        ({"seed": 5}, "seed"),
        ({"method": "at"}, "method"),
        ({"limit": 8}, "images"),
        ({"method_options": {"weight": 2.0}}, "method"),
    ],
)
def test_another_configuration_does_not_continue_a_run(
    change: dict, word: str, train: Callable[..., Run], refused
) -> None:
    run = train("kd")
    before = weights(run)
    refused(run.path, word, "--out", call=lambda: train(**{"method": "kd", **change}))
    assert same(weights(run), before)


def test_another_teacher_or_start_does_not_continue_a_run(
    train: Callable[..., Run], make_student: Callable[..., DeepLabV3Plus], refused
) -> None:
    train("kd")
    refused("teacher", call=lambda: train("kd", teacher=make_student("resnet101", seed=4)))
    refused("start", call=lambda: train("kd", student=make_student(seed=4)))


def test_without_resume_an_unfinished_run_is_refused(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(patched, step=3)
        train(epochs=2)
    refused("unfinished", call=lambda: train(epochs=2, resume=False))


def test_a_run_from_before_there_was_a_precision_is_still_the_same_run(train: Callable[..., Run], refused) -> None:
    run = train("kd")
    config = run.config
    del config["settings"]["precision"]
    (run.path / "config.json").write_text(json.dumps(config))
    assert train("kd").scores == run.scores
    refused("settings", call=lambda: train("kd", precision="bfloat16"))


def test_a_damaged_checkpoint_is_named(train: Callable[..., Run], refused) -> None:
    run = train()
    (run.path / "scores.json").unlink()
    (run.path / "last.pt").write_bytes(b"half")
    refused(run.path / "last.pt", "delete", call=train)


# ------------------------------------------------------------------------------------- looked at while it runs


@pytest.mark.parametrize("preset", [SMALL, CROPS], ids=["flipped", "cropped"])
def test_looking_at_a_run_changes_nothing(preset: dict, train: Callable[..., Run]) -> None:
    def look(line: dict, student: DeepLabV3Plus) -> None:
        line["loss"] = torch.rand(5)  # draws from the stream that dropout uses
        student.train()

    plain, looked = train("kd", "plain", epochs=3, **preset), train("kd", "looked", epochs=3, on_epoch=look, **preset)
    assert same(weights(looked), weights(plain))
    assert untimed(looked) == untimed(plain) and looked.scores == plain.scores
    ends = [torch.load(run.path / "last.pt", weights_only=True) for run in (looked, plain)]
    assert torch.equal(ends[0]["random"], ends[1]["random"])


def test_every_epoch_is_shown_with_its_line_and_network_when_its_files_are_there(
    train: Callable[..., Run], make_student: Callable[..., DeepLabV3Plus], tmp_path: Path
) -> None:
    lines, student = [], make_student()

    def look(line: dict, network: DeepLabV3Plus) -> None:
        run = Run(tmp_path / "run")
        assert network is student and not any(module.training for module in network.modules())
        assert fingerprint(network) == fingerprint(run.student()) and (run.path / "last.pt").exists()
        assert run.history[-1] == line and not run.finished
        lines.append(line)

    run = train(epochs=3, student=student, on_epoch=look)
    assert lines == run.history and ["val_miou" in line for line in lines] == [False, True, True]
    assert not student.training  # as without a look


def test_a_run_stopped_while_it_was_looked_at_is_resumed(train: Callable[..., Run], tmp_path: Path) -> None:
    whole, seen = train("kd", "whole", epochs=3), []
    with pytest.raises(KeyboardInterrupt):
        train("kd", epochs=3, on_epoch=interrupted)
    stopped = Run(tmp_path / "run")
    assert not stopped.finished and [line["epoch"] for line in stopped.history] == [1]
    resumed = train("kd", epochs=3, on_epoch=lambda line, student: seen.append(line["epoch"]))
    assert seen == [2, 3]  # the restored epoch is not shown again
    assert same(weights(resumed), weights(whole))
    assert untimed(resumed) == untimed(whole) and resumed.scores == whole.scores


# ------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("method, preset", [("kd", SMALL), ("ofd", SMALL), ("kd+sakd", CROPS)])
def test_bfloat16_trains_nearly_like_float32(method: str, preset: dict, train: Callable[..., Run]) -> None:
    full = train(method, "full", **preset)
    mixed = train(method, "mixed", precision="bfloat16", **preset)
    assert full.config["settings"]["precision"] == "float32" and mixed.config["settings"]["precision"] == "bfloat16"
    assert mixed.config["start"] == full.config["start"]
    for name in ("loss", "ce"):
        assert mixed.history[0][name] == pytest.approx(full.history[0][name], rel=0.05)
    assert not same(weights(mixed), weights(full))
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights(mixed).values())
    assert all(value.isfinite().all() for value in weights(mixed).values())


@pytest.mark.parametrize("preset", [SMALL, CROPS], ids=["flipped", "cropped"])
def test_bfloat16_is_for_passes_of_training_and_not_for_losses_or_scores(
    preset: dict,
    train: Callable[..., Run],
    make_student: Callable[..., DeepLabV3Plus],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    networks = {"teacher": make_student("resnet101", seed=4), "student": make_student()}
    seen = {"teacher": set(), "student": set(), "losses": set()}
    for name, network in networks.items():
        network.aspp.conv1.register_forward_hook(lambda *arguments, name=name: seen[name].add(arguments[-1].dtype))
    original = training.Method.forward

    def forward(self, student_output, teacher_output, labels, count):
        for logits, maps in (student_output, teacher_output):
            seen["losses"].update(tensor.dtype for tensor in (logits, *maps))
        return original(self, student_output, teacher_output, labels, count)

    monkeypatch.setattr(training.Method, "forward", forward)
    train("kd+ofd", **preset, **networks, precision="bfloat16")
    assert seen["teacher"] == {torch.bfloat16} and seen["losses"] == {torch.float32}
    assert seen["student"] == {torch.bfloat16, torch.float32}  # float32 where it is scored


def test_a_resumed_run_in_bfloat16_ends_with_the_bits_of_an_uninterrupted_one(train: Callable[..., Run]) -> None:
    whole = train("kd+ofd", "whole", epochs=2, precision="bfloat16")
    with pytest.raises(KeyboardInterrupt):
        train("kd+ofd", epochs=2, precision="bfloat16", on_epoch=interrupted)
    assert same(weights(train("kd+ofd", epochs=2, precision="bfloat16")), weights(whole))


# ------------------------------------------------------------------------------------------- what is on disk


def test_a_run_leaves_the_documented_files(train: Callable[..., Run], tiny_sample: Path, tmp_path: Path) -> None:
    run = train("sakd", epochs=3)
    assert {path.name for path in run.path.iterdir()} == {
        "config.json",
        "environment.json",
        "history.jsonl",
        "last.pt",
        "student.safetensors",
        "best.safetensors",
        "scores.json",
        ".lock",
    }
    assert run.config["settings"]["epochs"] == 3
    assert run.config["method"]["terms"]["sakd"]["weight"] == TUNED["sample"]["sakd"]["weight"]
    assert run.data_root == tiny_sample.resolve()
    assert json.loads((run.path / "environment.json").read_text())["torch"] == torch.__version__
    assert ["val_miou" in line for line in run.history] == [False, True, True]


def test_a_given_option_leaves_what_was_tuned_beside_it(train: Callable[..., Run]) -> None:
    terms = train("kd", method_options={"temperature": 2}).config["method"]["terms"]
    assert (terms["kd"]["weight"], terms["kd"]["temperature"]) == (TUNED["sample"]["kd"]["weight"], 2)
    tuned = {"kd": {"weight": 10.0}, "sakd": {"weight": 1.0}}
    assert choose_options(["kd", "sakd"], "sample", None) == tuned
    given = {"proposed": {"weight": 3.0}, "kd": {"temperature": 2}}
    merged = {"kd": {"weight": 10.0, "temperature": 2}, "sakd": {"weight": 3.0}}
    assert choose_options(["kd", "sakd"], "sample", given) == merged
    assert choose_options(["sakd"], "elsewhere", {"decay": 9}) == {"sakd": {"decay": 9}}
    assert choose_options(["sakd"], "sample", {"weight": 7.0}) == {"sakd": {"weight": 7.0}}
    assert TUNED["sample"]["kd"] == {"weight": 10.0}


def test_terms_count_the_optimizers_steps_in_however_many_pieces(train: Callable[..., Run]) -> None:
    for pieces in (1, 4):
        run = train("kd", f"in{pieces}", accumulate=pieces, method_options={"warmup": 3})
        assert torch.load(run.path / "last.pt", weights_only=True)["method"]["terms.kd.calls"] == 2


def test_scores_belong_to_the_last_epochs_network(train: Callable[..., Run], tiny_sample: Path) -> None:
    run = train(epochs=2, evaluate_every=1)
    for split in ("val", "test"):
        scores = evaluate(run.student(), open_dataset("sample", split, tiny_sample))
        difference = np.abs(np.array(run.scores[split]["confusion"]) - scores.confusion).sum()
        assert difference <= 16  # the layout of weights in memory decides near-ties
    assert run.scores["val"]["miou"] == pytest.approx(run.history[-1]["val_miou"])
    assert run.scores["best"]["val_miou"] == max(line["val_miou"] for line in run.history)
    best = load_teacher(run.path / "best.safetensors")
    assert evaluate(best, open_dataset("sample", "val", tiny_sample)).miou == pytest.approx(
        run.scores["best"]["val_miou"], abs=0.002
    )


def test_a_network_given_is_trained_in_place(
    train: Callable[..., Run], make_student: Callable[..., DeepLabV3Plus]
) -> None:
    student = make_student()
    run = train("kd", student=student)
    assert same(weights(run), dict(student.state_dict()))
    assert not same(weights(run), dict(make_student().state_dict()))


def test_the_default_folder_tells_what_the_run_is(
    train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_sample: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run = fit("mobilenet", "baseline", None, epochs=1, seed=3, data_root=tiny_sample, **SMALL)
    assert run.path == Path("runs/sample/mobilenetv2/baseline/seed3")


# ---------------------------------------------------------------------------------------------- the batches


def test_whole_images_are_mirrored_together_with_their_labels(tiny_sample: Path) -> None:
    dataset = open_dataset("sample", "train", tiny_sample)
    made = FlippedBatches(dataset, Settings(batch_size=7, crop_size=32), 0, CPU)
    known = {}
    for index in range(len(dataset)):
        labels = dataset[index][1].as_subclass(Tensor)
        known[labels.numpy().tobytes()] = index, False
        known[labels.flip(-1).numpy().tobytes()] = index, True
    seen = []
    for images, labels, answer in made(0):
        assert answer is None and len(images) == 7
        for image, mask in zip(images, labels, strict=True):
            index, flipped = known[mask.numpy().tobytes()]
            expected = normalise(dataset[index][0].as_subclass(Tensor))
            assert torch.equal(image, expected.flip(-1) if flipped else expected)
            seen.append((index, flipped))
    assert len(seen) == len({index for index, _ in seen}) == 21  # each once; the rest of 24 make no batch
    assert 3 < sum(flipped for _, flipped in seen) < 18


@pytest.mark.parametrize("maps", [False, True])
def test_cached_answers_are_those_of_asking_live(maps: bool, tiny_sample: Path, tiny_teacher: DeepLabV3Plus) -> None:
    dataset = open_dataset("sample", "train", tiny_sample)
    made = FlippedBatches(dataset, Settings(batch_size=6, crop_size=32), 0, CPU)
    made.cache_teacher(tiny_teacher, maps, progress=False)
    for images, _, (logits, cached) in made(1):
        expected, live = ask_teacher(tiny_teacher, images, maps)
        assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5)
        assert (cached is None) == (live is None) == (not maps)
        for a, b in zip(cached or [], live or [], strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [FlippedBatches, CroppedBatches])
def test_the_order_belongs_to_the_seed_and_to_the_epoch(
    kind: type, tiny_sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "cut", lambda image, labels, *_: (image, labels))
    dataset = open_dataset("sample", "train", tiny_sample, limit=16)
    known = {}
    for index, name in enumerate(dataset.ids):
        labels = dataset[index][1].as_subclass(Tensor)
        known |= {labels.numpy().tobytes(): name, labels.flip(-1).numpy().tobytes(): name}

    def order(seed: int, epoch: int) -> list[str]:
        made = kind(dataset, Settings(batch_size=4, crop_size=32), seed, CPU)
        found = [[known[labels.numpy().tobytes()] for labels in batch] for _, batch, _ in made(epoch)]
        assert found == [made.names(epoch, step) for step in range(4)]
        return [name for batch in found for name in batch]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(names) == sorted(dataset.ids) for names in orders)
    assert len({tuple(names) for names in orders}) == 4
    assert order(1, 1) == orders[3]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_crops_depend_on_seed_and_epoch_but_not_on_workers(tiny_sample: Path) -> None:
    dataset = open_dataset("sample", "train", tiny_sample, limit=8)

    def crops(seed: int, epoch: int, workers: int = 0) -> Tensor:
        settings = Settings(batch_size=4, crop_size=24, augment="crops", workers=workers)
        return torch.cat([images for images, _, _ in CroppedBatches(dataset, settings, seed, CPU)(epoch)])

    first = crops(0, 0)
    torch.rand(5)
    assert torch.equal(crops(0, 0), first) and torch.equal(crops(0, 0, workers=2), first)
    assert not torch.equal(crops(0, 1), first) and not torch.equal(crops(1, 0), first)
    one_image = CroppedBatches(dataset, Settings(batch_size=4, crop_size=24), 0, CPU).crops
    assert not torch.equal(one_image[0, 3][0], one_image[1, 3][0])  # a new crop in every epoch


def test_images_of_several_sizes_are_cropped_but_not_mirrored_whole(
    voc_folder: Callable[..., Path], train: Callable[..., Run], make_student: Callable[..., DeepLabV3Plus], refused
) -> None:
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 3, size) for size in ((40, 40), (40, 56), (40, 40))]  # first and last are alike
    root = voc_folder({"train": masks, "val": masks[:2]}, ("a", "b", "c"))
    given = {"data": root, "data_root": None, "batch_size": 3, "teacher": None, "crop_size": 32}
    refused("train1.jpg", "56 x 40", call=lambda: train(student=make_student("resnet18", 3), augment="flip", **given))
    run = train(student=make_student("resnet18", 3), **given)  # a folder's images are cropped unless one says flip
    assert run.config["settings"]["augment"] == "crops"
    assert run.config["data"] == "own" and run.config["class_names"] == ["a", "b", "c"]
    assert "test" not in run.scores


def test_large_images_are_not_kept_whole(voc_folder: Callable[..., Path], train: Callable[..., Run], refused) -> None:
    root = voc_folder({"train": [np.zeros((70, 70))] * 8, "val": [np.zeros((70, 70))]})
    refused("70 x 70", "crops", call=lambda: train(data=root, data_root=None, crop_size=32, augment="flip"))


def test_a_test_list_without_masks_is_left_unscored(voc_folder: Callable[..., Path], train: Callable[..., Run]) -> None:
    masks = [np.zeros((32, 32))] * 8
    root = voc_folder({"train": masks, "val": masks[:1], "test": masks[:1]})
    (root / "SegmentationClass/test0.png").unlink()  # as VOC publishes its test images
    assert set(train(data=root, data_root=None).scores) == {"protocol", "epoch", "best", "val"}


# --------------------------------------------------------------------------------------------- the schedule


def test_warm_up_and_cosine() -> None:
    settings = Settings(warmup=0.1, schedule="cosine")
    factors = [lr_factor(step, 100, settings) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11) and factors[9] == pytest.approx(10 / 11)
    assert factors[10] == 1.0 == max(factors)
    assert factors[55] == pytest.approx(0.5, abs=1e-6)
    assert 0 < factors[99] < 1e-3 and factors[100] == pytest.approx(0, abs=1e-7)
    assert factors[:11] == sorted(factors[:11]) and factors[10:] == sorted(factors[10:], reverse=True)


def test_polynomial_decay_is_the_published_one() -> None:
    for step in (0, 1, 50, 99, 100):
        assert lr_factor(step, 100, PRESETS["voc"]) == pytest.approx((1 - step / 100) ** 0.9)


def test_a_run_of_one_step_learns() -> None:
    assert lr_factor(0, 1, Settings()) > 0


def test_the_published_preset_is_the_published_recipe() -> None:
    voc = PRESETS["voc"]
    assert (voc.optimizer, voc.weight_decay, voc.nesterov, voc.schedule) == ("sgd", 5e-4, True, "poly")
    assert (voc.lr, voc.epochs, voc.batch_size, voc.crop_size, voc.head_lr_factor) == (0.0035, 100, 12, 513, 10.0)
    assert (voc.output_stride, voc.connector_epochs, voc.augment) == (16, 1, "crops")


def test_head_and_connectors_learn_at_their_own_rate(train: Callable[..., Run]) -> None:
    run = train("sakd", **CROPS, lr=0.01)
    backbone, head = torch.load(run.path / "last.pt", weights_only=True)["optimizer"]["param_groups"]
    assert (backbone["initial_lr"], head["initial_lr"]) == (0.01, 0.1)
    connectors = len(list(torch.load(run.path / "last.pt", weights_only=True)["method"])) // 2
    assert len(head["params"]) > connectors > 0
    assert backbone["momentum"] == 0.9 and backbone["nesterov"]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_connector_epochs_move_connectors_and_no_weight_of_the_student(
    optimizer: str, train: Callable[..., Run], make_student: Callable[..., DeepLabV3Plus]
) -> None:
    start = copy.deepcopy(dict(make_student().named_parameters()))
    given = {"optimizer": optimizer, "weight_decay": 0.5, "connector_epochs": 1, "method_options": {"weight": 150.0}}
    student = make_student()
    run = train("sakd", student=student, **given)
    assert all(torch.equal(value, start[name]) for name, value in student.named_parameters())  # no decay either
    method = torch.load(run.path / "last.pt", weights_only=True)["method"]
    biases = [value for name, value in method.items() if name.endswith(".1.bias")]
    assert len(biases) == 6 and all((bias != 0).any() for bias in biases)  # BatchNorm's bias starts at 0
    student = make_student()
    train("sakd", "longer", student=student, epochs=2, **given)
    assert not all(torch.equal(value, start[name]) for name, value in student.named_parameters())


def test_a_run_whose_student_learns_nothing_says_so(train: Callable[..., Run], capsys) -> None:
    for method, epochs, told in (("sakd", 1, True), ("sakd", 2, False), ("kd", 1, False)):
        train(method, f"{method}{epochs}", epochs=epochs, connector_epochs=1, progress=True)
        assert ("the student itself does not" in capsys.readouterr().out) is told


def test_the_masks_that_are_used_have_to_hold_something(
    train: Callable[..., Run], tiny_sample: Path, tmp_path: Path, refused
) -> None:
    shutil.copytree(tiny_sample, tmp_path / "void")
    data = open_dataset("sample", "train", tmp_path / "void")
    for index in range(3):
        Image.fromarray(np.full(data[index][1].shape, 255, np.uint8)).save(data.mask_path(index))
    refused("no labelled pixel", call=lambda: train(labelled=3, data_root=tmp_path / "void"))
    assert train(labelled=4, data_root=tmp_path / "void").finished


def test_a_wrapped_student_with_a_pooled_norm_needs_two_images(train: Callable[..., Run], refused) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.pooled = nn.Conv2d(3, 21, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))

        def forward(self, images: Tensor) -> Tensor:
            return self.head(images + self.pooled(images))

    few = {"batch_size": 2, "accumulate": 2, "limit": 4}
    refused("a single value per channel from 1 image", call=lambda: train(student=distill.wrap(Pooled()), **few))


def test_methods_without_connectors_have_no_frozen_epoch(
    train: Callable[..., Run], make_student: Callable[..., DeepLabV3Plus]
) -> None:
    student = make_student()
    train("kd", student=student, connector_epochs=1)
    start = dict(make_student().named_parameters())  # BatchNorms' statistics move in a frozen epoch too
    assert not all(torch.equal(value, start[name]) for name, value in student.named_parameters())


def test_training_lowers_the_loss(train: Callable[..., Run]) -> None:
    history = train(epochs=12, lr=4e-3).history
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


@pytest.mark.parametrize("method", ["baseline", "ofd"])
def test_the_voc_preset_works_on_crops(method: str, train: Callable[..., Run]) -> None:
    run = train(method, **{**CROPS, "epochs": 2})
    assert run.config["preset"] == "voc" and run.config["settings"]["optimizer"] == "sgd"
    assert [line["val_miou"] >= 0 for line in run.history if "val_miou" in line] == [True]


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "change, words",
    [
        ({"preset": "pascal"}, ["preset 'pascal'", "sample, voc"]),
        ({"epoch": 3}, ["setting 'epoch'", "epochs"]),
        ({"epochs": 0}, ["epochs is 0"]),
        ({"lr": -1.0}, ["lr is -1.0"]),
        ({"lr": math.nan}, ["lr is nan"]),
        ({"batch_size": 1}, ["batch_size is 1", "two images"]),
        ({"optimizer": "adam"}, ["optimizer is 'adam'", "adamw or sgd"]),
        ({"schedule": "step"}, ["schedule is 'step'", "cosine or poly"]),
        ({"augment": "mixup"}, ["augment is 'mixup'", "flip or crops"]),
        ({"precision": "float16"}, ["precision is 'float16'", "float32 or bfloat16"]),
        ({"method": "kdd"}, ["'kdd'", "kd"]),
        ({"method": "kd", "teacher": None}, ["kd needs a teacher"]),
        ({"method": "kd", "method_options": {"heat": 2}}, ["'heat'", "temperature"]),
        ({"student": "resnet19"}, ["resnet19", "resnet18"]),
        ({"device": "abacus"}, ["'abacus'", "cpu or cuda"]),
        ({"batch_size": 17}, ["16 training images", "batch of 17"]),
        ({"batch_size": 17, "augment": "crops"}, ["16 training images", "batch of 17"]),
        ({"data": "nowhere", "data_root": None}, ["nowhere"]),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_mistakes_are_explained_and_leave_no_folder(
    change: dict, words: list[str], train: Callable[..., Run], tmp_path: Path, refused
) -> None:
    refused(*words, call=lambda: train(**change))
    assert not (tmp_path / "run").exists()


def test_a_mended_mistake_can_use_the_same_folder(train: Callable[..., Run], refused) -> None:
    refused("lower --batch-size", call=lambda: train(batch_size=17))
    assert train(batch_size=16).finished


def test_a_student_of_other_classes_is_refused(
    train: Callable[..., Run], make_student: Callable[..., DeepLabV3Plus], refused
) -> None:
    refused("3 classes", "21", call=lambda: train(student=make_student("resnet18", 3)))
    refused("3", "21", call=lambda: train("kd", student=make_student("resnet18", 3)))


def test_a_network_cannot_teach_itself(
    train: Callable[..., Run], make_student: Callable[..., DeepLabV3Plus], tmp_path: Path, refused
) -> None:
    student = make_student()
    refused("one network", "copy", call=lambda: train("kd", student=student, teacher=student))
    assert all(weight.requires_grad for weight in student.parameters()) and not (tmp_path / "run").exists()
    assert train("kd", student=student, teacher=copy.deepcopy(student)).finished


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(train: Callable[..., Run], refused) -> None:
    refused("no GPU", "--device cpu", call=lambda: train(device="cuda"))


def test_any_network_can_teach_logits(train: Callable[..., Run], tiny_teacher: DeepLabV3Plus) -> None:
    class Plain(nn.Module):
        num_classes = 21

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 21, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images)

    assert train("kd", teacher=Plain()).finished


def test_a_network_too_narrow_for_the_cpu_is_refused(train: Callable[..., Run], tmp_path: Path) -> None:
    narrow = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 21, 1, stride=2))
    with pytest.raises(DistillError, match="fewer than 16"):
        train(student=distill.wrap(narrow))
    assert not (tmp_path / "run").exists()


def test_a_student_of_four_channels_trains(tiny_sample: Path, tmp_path: Path) -> None:
    narrow = build_model("resnet18", width=0.0625, atrous_rates=(2, 3, 4))
    run = fit(narrow, "baseline", None, "sample", data_root=tiny_sample, out=tmp_path / "run", crop_size=32, epochs=1)
    assert run.finished


# ------------------------------------------------------------------------------------------------- recipes

FAULTS = {
    "distilled_dropout": (True, False),
    "teacher_mode": ("eval", "train"),
    "divisions": ("once", "twice"),
    "padding": ("void", "background"),
}


def test_the_published_recipe_is_the_four_faults_together_and_each_can_be_taken_back() -> None:
    matched, published = (choose_settings("voc", recipe, {}) for recipe in ("matched", "published"))
    assert matched == PRESETS["voc"]
    for name, (ours, theirs) in FAULTS.items():
        assert (getattr(matched, name), getattr(published, name)) == (ours, theirs)
    assert choose_settings("voc", "published", dict.fromkeys(FAULTS) | {"padding": "void"}).padding == "void"
    same = {name: ours for name, (ours, _) in FAULTS.items()}
    assert choose_settings("voc", "published", same) == matched


def test_distilled_students_can_skip_aspps_dropout_and_baselines_cannot(train: Callable[..., Run]) -> None:
    """With and without: a baseline draws the same, a distilled student trains otherwise."""
    for method, alike in (("baseline", True), ("kd", False)):
        ours, theirs = (train(method, f"{method}{skip}", distilled_dropout=not skip) for skip in (False, True))
        assert (fingerprint(ours.student()) == fingerprint(theirs.student())) == alike


def test_without_dropout_aspps_answer_is_that_of_evaluation(
    train: Callable[..., Run], make_student: Callable[..., DeepLabV3Plus], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, seen = make_student(), []
    step = training._Loop._step

    def looked(self: object, *arguments: object) -> dict:
        seen.append((student.aspp.dropout.training, student.decoder.training, student.aspp.bn1.training))
        return step(self, *arguments)

    monkeypatch.setattr(training._Loop, "_step", looked)
    train("kd", student=student, epochs=2, evaluate_every=1, distilled_dropout=False)
    assert seen == [(False, True, True)] * 4, "only ASPP's dropout is left out, after an evaluation too"


@pytest.mark.parametrize("preset", [{}, CROPS], ids=["flip", "crops"])
def test_a_teacher_in_training_mode_drifts_in_a_copy_and_resumes(
    preset: dict, train: Callable[..., Run], tiny_teacher: DeepLabV3Plus, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(tiny_teacher)
    given = {**preset, "epochs": 2, "teacher_mode": "train", "evaluate_every": 1}
    whole = train("kd", "whole", **given)
    assert fingerprint(tiny_teacher) == before and not tiny_teacher.training
    assert fingerprint(whole.student()) != fingerprint(
        train("kd", "eval", **given | {"teacher_mode": "eval"}).student()
    )
    statistics = torch.load(whole.path / "last.pt", weights_only=True)["teacher_statistics"]
    moved = [name for name, buffer in tiny_teacher.named_buffers() if not torch.equal(buffer, statistics[name])]
    assert any(name.endswith("running_mean") for name in moved)

    class Stop(Exception):
        pass

    def stop(line: dict, student: nn.Module) -> None:
        raise Stop

    with pytest.raises(Stop):
        train("kd", "broken", on_epoch=stop, **given)
    assert fingerprint(train("kd", "broken", **given).student()) == fingerprint(whole.student())


def test_class_weights_follow_from_the_labels_that_are_used(
    train: Callable[..., Run], tiny_sample: Path, tmp_path: Path
) -> None:
    """In the first step of a run both start from the same weights. With 8 of 16 labelled, only those are counted."""
    counted = pixels_by_class(open_dataset("sample", "train", tiny_sample, 16), 8)
    slow = sum(
        torch.bincount(mask.as_subclass(Tensor).flatten(), minlength=256)
        for _, mask in (open_dataset("sample", "train", tiny_sample)[index] for index in range(8))
    )
    assert torch.equal(counted, slow[: len(counted)])
    given = {"limit": 8, "epochs": 1}
    plain, weighted = (train("kd", name, class_weights=name, **given).history[0] for name in ("none", "log"))
    assert weighted["ce"] != pytest.approx(plain["ce"], rel=1e-3)
    assert weighted["kd"] == pytest.approx(plain["kd"])
    run = train("baseline", "few labels", class_weights="log", labelled=8, limit=16, epochs=1)
    assert torch.equal(run.class_weights(), class_weights(counted))
    with pytest.raises(DistillError, match="without class weights"):
        train("kd", "none", class_weights="none", **given).class_weights()
    shutil.copytree(tiny_sample, tmp_path / "changed")
    listed = tmp_path / "changed" / "ImageSets" / "Segmentation" / "train.txt"
    listed.write_text("\n".join(reversed(listed.read_text().split())))
    with pytest.raises(DistillError, match="is another than the one of"):
        run.class_weights(tmp_path / "changed")


def test_divided_twice_the_losses_are_smaller_by_batch_and_classes(train: Callable[..., Run]) -> None:
    """In the first step of a run both start from the same weights; batch 8, 21 classes."""
    given = {"limit": 8, "epochs": 1}
    once, twice = (train("kd+sakd", d, divisions=d, **given).history[0] for d in ("once", "twice"))
    assert twice["ce"] == pytest.approx(once["ce"] / 8)
    assert twice["kd"] == pytest.approx(once["kd"] / (8 * 21))
    assert twice["sakd"] == pytest.approx(once["sakd"])
    assert twice["loss"] == pytest.approx(twice["ce"] + twice["kd"] + twice["sakd"])


def test_padding_can_be_called_background(tiny_sample: Path) -> None:
    dataset = open_dataset("sample", root=tiny_sample)

    def labels(padding: str) -> Tensor:
        settings = Settings(augment="crops", crop_size=96, batch_size=8, padding=padding)
        return torch.cat([labels for _, labels, _ in CroppedBatches(dataset, settings, 0, CPU)(0)])

    void, background = labels("void"), labels("background")
    changed = void != background
    assert changed.any() and (void[changed] == 255).all() and (background[changed] == 0).all()
    assert (background == 255).any(), "what the annotators left void stays void"


def test_an_unknown_recipe_is_named(train: Callable[..., Run], refused) -> None:
    refused("paper", "matched", "published", call=lambda: train(recipe="paper"))
    refused("teacher_mode", "eval or train", call=lambda: train(teacher_mode="frozen"))


# ------------------------------------------------------------------------------------------------- at scale


@pytest.mark.parametrize("preset", [SMALL, CROPS], ids=["flipped", "cropped"])
@pytest.mark.parametrize("method", ["baseline", "kd+sakd"])
def test_a_run_stopped_within_an_epoch_goes_on_within_it(
    method: str, preset: dict, train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**preset, "batch_size": 4, "epochs": 2, "checkpoint_minutes": 0.0}
    whole = train(method, "whole", **given)
    taken = []
    step = training._Loop._step

    def counted(self: object, *batch: object) -> dict[str, Tensor]:
        taken.append(1)
        if len(taken) == 7:  # the third of the second epoch's four
            raise KeyboardInterrupt
        return step(self, *batch)

    monkeypatch.setattr(training._Loop, "_step", counted)
    with pytest.raises(KeyboardInterrupt):
        train(method, "cut", **given)
    state = torch.load(tmp_path / "cut" / "last.pt", weights_only=True)
    assert state["partial"]["step"] == 2 and len(state["history"]) == 1
    cut = train(method, "cut", **given)
    assert len(taken) == 7 + 2, "the two steps that were done are not done again"
    assert same(weights(cut), weights(whole)) and untimed(cut) == untimed(whole)


def test_settings_that_change_no_result_may_change_between_resumes(train: Callable[..., Run], tmp_path: Path) -> None:
    whole = train("kd", "whole", epochs=2, **CROPS)
    with pytest.raises(KeyboardInterrupt):
        train("kd", epochs=2, on_epoch=interrupted, **CROPS)
    other = {**CROPS, "workers": 1, "cache": tmp_path / "cache", "checkpoint_minutes": 0, "tensorboard": True}
    assert same(weights(train("kd", epochs=2, **other)), weights(whole))


def test_workers_load_images_for_scoring_too(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        training, "evaluate", lambda *given, **named: (seen.append(named["workers"]), evaluate(*given, **named))[1]
    )
    train("baseline", epochs=1, **{**CROPS, "workers": 1})
    assert seen == [1, 1, 1]  # val in the epoch, val and test at the end


def test_tensorboard_is_given_every_epoch(train: Callable[..., Run]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train("kd", epochs=2, tensorboard=True)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    for name in ("loss", "ce", "kd", "lr"):
        told = [(event.step, event.value) for event in events.Scalars(name)]
        assert told == [(line["epoch"], pytest.approx(line[name], rel=1e-6)) for line in run.history]
    assert not (train("kd", "without").path / "tensorboard").exists()


def test_tensorboard_that_is_not_installed_is_a_sentence(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused("pip install tensorboard", call=lambda: train(tensorboard=True))


def test_a_compiled_run_is_the_same_run_save_for_rounding(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compilation itself takes a minute, so the compiler is one that only counts its calls."""
    compiled = []

    def counted(network: nn.Module) -> nn.Module:
        compiled.append(network)
        return network

    monkeypatch.setattr(torch, "compile", counted)
    eager, run = train("kd", "eager"), train("kd", "compiled", compile=True)
    assert len(compiled) == 2, "teacher and student"
    assert same(weights(eager), weights(run)) and run.config["settings"]["compile"]


def test_what_is_left_to_the_device_is_decided_before_it_is_recorded(train: Callable[..., Run]) -> None:
    settings = train().config["settings"]
    assert (settings["precision"], settings["crop_on"]) == ("float32", "host")


# --------------------------------------------------------------------------------------- what a run is


def test_other_images_of_the_same_names_are_another_run(
    train: Callable[..., Run], tiny_sample: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Two folders of one name and size, images that were drawn anew, a mask that was mended."""
    other = shutil.copytree(tiny_sample, tmp_path / "other")
    train()
    assert train(data_root=other).finished  # the same content elsewhere is the same data
    image = next(path for path in sorted((other / "JPEGImages").iterdir()) if path.stem.startswith("train"))
    Image.fromarray(255 - np.array(Image.open(image))).save(image)
    refused("content (images, masks", "--out", call=lambda: train(data_root=other))
    again = shutil.copytree(tiny_sample, tmp_path / "again")
    mask = open_dataset("sample", "val", again).mask_path(0)
    mask.write_bytes(mask.read_bytes() + b"\0")
    refused("content (images, masks", call=lambda: train(data_root=again))


@pytest.mark.parametrize("folder, lost", [("JPEGImages", True), ("JPEGImages", False), ("SegmentationClass", True)])
def test_a_run_begins_once_a_faulty_file_is_mended(
    folder: str, lost: bool, train: Callable[..., Run], tiny_sample: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    data = shutil.copytree(tiny_sample, tmp_path / "data")
    path = [path for path in sorted((data / folder).iterdir()) if path.stem.startswith("train")][9]
    content = path.read_bytes()
    path.unlink() if lost else path.write_bytes(content[:-200])
    refused(path, call=lambda: train(data_root=data, **CROPS))
    assert not (tmp_path / "run").exists(), "it was found before the run began"
    path.write_bytes(content)
    assert train(data_root=data, **CROPS).finished


def test_a_run_that_saved_nothing_makes_room_for_another_and_one_that_did_does_not(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(patched, step=1)
        train(lr=0.1)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(patched, step=3)
        train(epochs=2)
    refused("settings differ", "--out", call=lambda: train(epochs=2, lr=0.1))
    assert same(weights(train(epochs=2)), weights(train(epochs=2, out="whole")))


def test_a_faulty_list_of_the_test_split_is_told_before_training(
    train: Callable[..., Run], tiny_sample: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    data = shutil.copytree(tiny_sample, tmp_path / "data")
    (data / "ImageSets" / "Segmentation" / "test.txt").write_text("test_00000\ntest_00000\n")
    refused("test.txt", "'test_00000' twice", call=lambda: train(data_root=data))
    assert not (tmp_path / "run").exists()
    (data / "ImageSets" / "Segmentation" / "test.txt").write_text("\n")  # as of a sample without test images
    assert "test" not in train(data_root=data).scores


def test_runs_that_were_made_before_content_was_recorded_are_still_theirs(train: Callable[..., Run]) -> None:
    run = train()
    config = json.loads((run.path / "config.json").read_text())
    del config["content"]
    (run.path / "config.json").write_text(json.dumps(config))
    assert train().finished


def test_a_finished_run_gives_its_weights_to_the_callers_student(
    train: Callable[..., Run], make_student: Callable[..., DeepLabV3Plus]
) -> None:
    first, second = make_student(), make_student()
    train(student=first)
    train(student=second)
    assert same(first.state_dict(), second.state_dict())


def test_weights_that_the_last_step_spoilt_are_not_saved(
    train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    original = training._Loop._step

    def spoilt(self: training._Loop, *batch: object) -> dict[str, Tensor]:
        losses = original(self, *batch)
        with torch.no_grad():
            next(self.student.parameters()).fill_(float("nan"))
        return losses

    monkeypatch.setattr(training._Loop, "_step", spoilt)
    monkeypatch.setattr(training._Loop, "_check_finite", lambda *_: None)  # as if every loss had been a number
    refused("not finite numbers", "learning rate", call=train)
    assert not (tmp_path / "run" / "student.safetensors").exists()


def test_a_folder_above_does_not_lead_a_run_out_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos" / "inner")
    assert name_of("..") == "photos"
    assert name_of("pascal+sbd") == "pascal+sbd"
    assert name_of("/") == "data"
    (tmp_path / "camvid").symlink_to(tmp_path / "photos")
    assert name_of(tmp_path / "camvid") == "camvid"


def test_seeds_leave_the_callers_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed seeds every GPU as well, and the fork of the CPU's generator does not put that back."""
    seeded_gpus: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_gpus.append)
    distill.make_student("resnet18", 21)
    assert not seeded_gpus


@pytest.mark.parametrize("student", [nn.Conv2d(3, 21, 1), Path("run"), 3])
def test_what_cannot_be_a_student_is_told_so(student: object, train: Callable[..., Run], refused) -> None:
    refused(type(student).__name__, "build_model", call=lambda: train(student=student))


def test_the_callers_modes_change_nothing(train: Callable[..., Run], make_student: Callable) -> None:
    usual = weights(train("kd", "usual"))
    modes = {"no_grad": torch.no_grad(), "inference": torch.inference_mode()}
    modes["autocast"] = torch.autocast("cpu", torch.bfloat16)
    for name, mode in modes.items():
        student = make_student()
        with mode:
            run = train("kd", name, student=student)
        assert same(weights(run), usual), name
    with torch.inference_mode(), pytest.raises(DistillError, match="build it outside"):
        train("kd", "built there")


def test_two_threads_do_not_train_at_once(train: Callable[..., Run], make_student: Callable) -> None:
    """Both would draw from one generator of random numbers."""
    said: list[str] = []

    def other(line: dict, student: nn.Module) -> None:
        def ask() -> None:
            try:
                train("baseline", "other", student=make_student())
            except DistillError as error:
                said.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

    train("baseline", "first", on_epoch=other)
    assert len(said) == 1 and "another thread" in said[0]


def test_a_given_student_is_in_eval_mode_afterwards(train: Callable[..., Run], make_student: Callable) -> None:
    for _ in range(2):  # trained, and finished before
        student = make_student()
        train("baseline", student=student)
        assert not student.training


def test_a_folder_in_a_root_or_in_its_place(tmp_path: Path, tiny_sample: Path) -> None:
    shutil.copytree(tiny_sample, tmp_path / "own")
    for data, root in (("own", tmp_path), ("another name", tmp_path / "own"), (tiny_sample, tmp_path / "own")):
        assert open_dataset(data, root=root).root == tmp_path / "own"
    assert open_dataset(tmp_path / "own").root == tmp_path / "own"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": 5}, "the data are a int"),
        ({"method": None}, "the method is None"),
        ({"limit": 8.5}, "limit is 8.5"),
        ({"seed": "0"}, "seed is '0'"),
    ],
)
def test_arguments_of_other_types(train: Callable[..., Run], given: dict, said: str) -> None:
    with pytest.raises(DistillError, match=said):
        train(**{"method": "baseline", "data_root": None} | given)


def test_numbers_of_numpy_are_numbers(train: Callable[..., Run]) -> None:
    run = train("kd", limit=np.int64(16), method_options={"weight": np.float32(0.5), "temperature": np.int64(2)})
    assert (
        run.config["method"]["terms"]["kd"] | {"weight": 0.5, "temperature": 2} == run.config["method"]["terms"]["kd"]
    )


def test_faults_of_what_is_scored_are_found_before_the_first_epoch(
    voc_folder: Callable[..., Path], refused: Callable[..., str], tmp_path: Path, make_student: Callable
) -> None:
    masks = [np.indices((32, 32)).sum(0) % 2] * 4
    root = voc_folder({"train": masks, "val": masks, "test": masks}, class_names=("background", "thing"))
    for split in ("val", "test"):
        path = root / "SegmentationClass" / f"{split}3.png"
        kept = path.read_bytes()
        Image.fromarray(np.full((32, 32), 9, dtype=np.uint8)).save(path)
        run = {"data": root, "epochs": 2, "batch_size": 4, "crop_size": 32, "device": "cpu", "progress": False}
        student = make_student(num_classes=2)
        refused(path, "9", call=lambda s=student, r=run: fit(s, "baseline", out=tmp_path / "run", **r))
        assert not (tmp_path / "run").exists()
        path.write_bytes(kept)


def test_a_teacher_teaches_the_same_as_a_network_and_from_its_file(
    tiny_sample: Path, tiny_teacher: DeepLabV3Plus, make_student: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "teacher.safetensors"
    distill.save_model(tiny_teacher, path)
    common = {"data": "sample", "data_root": tiny_sample, "epochs": 1, "batch_size": 8, "device": "cpu"}
    runs = [
        fit(make_student(), "sakd", teacher, out=tmp_path / f"{index}", progress=False, **common)
        for index, teacher in enumerate((path, copy.deepcopy(tiny_teacher).to(memory_format=torch.contiguous_format)))
    ]
    first, second = (load_file(run.path / "student.safetensors") for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_stride_of_a_network_that_is_there_already_is_not_asked_for(
    tiny_sample: Path, make_student: Callable, refused: Callable[..., str], tmp_path: Path
) -> None:
    student = make_student()
    refused(
        "output_stride",
        "given by name",
        call=lambda: fit(
            student, "baseline", data="sample", data_root=tiny_sample, output_stride=8, out=tmp_path / "r"
        ),
    )
