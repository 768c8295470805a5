"""Why is there no gain? Each cause is planted, and has to be found; where none is planted, none may be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from distill import DistillError, Run, fit, load_teacher, losses, open_dataset, wrap
from distill.cli import main
from distill.data.sample import make_sample
from distill.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise
from distill.files import read_json, write_json
from distill.lab.diagnose import (
    Finding,
    _gradient_norm,
    _without_labels,
    confidence,
    diagnose,
    exchanged_classes,
    gradient_ratios,
)
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.saving import save_model
from distill.training.evaluation import Scores

SETTINGS = {"epochs": 4, "batch_size": 8, "evaluate_every": 1, "progress": False}


class Scaled(nn.Module):
    """The shipped teacher for images from 0 to 1, which ours are not."""

    def __init__(self) -> None:
        super().__init__()
        self.network = load_teacher("sample")

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        return self.network((images - mean) / std)


def exchanged() -> DeepLabV3Plus:
    """The shipped teacher, which calls a heart a mushroom and a mushroom a heart."""
    teacher = load_teacher("sample")
    order = [0, 2, 1, *range(3, 21)]
    last = teacher.decoder.last_conv[-1]
    with torch.no_grad():
        last.weight.copy_(last.weight[order])
        last.bias.copy_(last.bias[order])
    return teacher


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few training images of the size that the shipped teacher knows, and enough to score it on."""
    return make_sample(tmp_path_factory.mktemp("data") / "scenes", train=16, val=60, test=1, progress=False)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, scenes: Path, make_student: Callable) -> Callable[..., Path]:
    """A baseline and one method, trained for moments; the folder above them. What was trained once is copied."""
    baseline, kept = tmp_path_factory.mktemp("runs"), dict[str, Path]()

    def to(teacher: object = "sample", method: str = "kd", **options: object) -> Path:
        folder, key = tmp_path_factory.mktemp("runs"), f"{method} {options}"
        if teacher == "sample" and key in kept:
            return shutil.copytree(kept[key], folder, symlinks=True, dirs_exist_ok=True)
        if not (baseline / "seed0").exists():
            asked = {"data_root": scenes, "out": baseline / "seed0", **SETTINGS}
            fit(make_student(), "baseline", None, "sample", **asked)
        (folder / "baseline").symlink_to(baseline)
        asked = {"data_root": scenes, "out": folder / method / "seed0", "method_options": options, **SETTINGS}
        fit(make_student(), method, teacher, "sample", **asked)
        if teacher == "sample":
            kept[key] = shutil.copytree(folder, tmp_path_factory.mktemp("runs") / "kept", symlinks=True)
        return folder

    return to


def by_check(folder: Path, teacher: object = None) -> dict[str, Finding]:
    return {finding.check: finding for finding in diagnose([folder / "baseline", folder], teacher)}


def test_of_a_good_teacher_nothing_is_said_against_it(train: Callable[..., Path]) -> None:
    found = by_check(train(weight=1.0))
    order = ["teacher", "convergence", "overfitting", "labels", "gradient", "classes", "normalisation", "confidence"]
    assert list(found) == order
    assert all(found[check].fine for check in order if check != "convergence"), found
    assert "better on" in found["teacher"].sentence and "pulls" in found["gradient"].sentence


def test_one_folder_may_be_given_alone(train: Callable[..., Path], refused: Callable[..., str]) -> None:
    refused("there is no baseline", call=lambda: list(diagnose(str(train(weight=1.0) / "kd"))))


def test_images_whose_labels_are_not_used_are_images_without_labels(
    train: Callable[..., Path], scenes: Path, make_student: Callable
) -> None:
    """Of kd on 16 images of which 8 keep their labels, beside a baseline on these 8."""
    folder, asked = train(weight=1.0), {"data_root": scenes, **SETTINGS}
    fit(make_student(), "baseline", None, "sample", limit=8, out=folder / "few" / "seed0", **asked)
    fit(make_student(), "kd", "sample", "sample", labelled=8, out=folder / "half" / "seed0", **asked)
    found = {finding.check: finding for finding in diagnose([folder / "few", folder / "half"])}
    assert "8 training images that have labels" in found["labels"].sentence
    baseline, distilled = (Run(folder / name / "seed0").config for name in ("few", "half"))
    assert (_without_labels(baseline), _without_labels(distilled)) == (0, 8)


def test_exchanged_classes_are_named(train: Callable[..., Path]) -> None:
    teacher = exchanged()
    found = by_check(train(teacher), teacher)
    assert not found["classes"].fine and "'heart' 'mushroom', 'mushroom' 'heart'" in found["classes"].sentence
    assert found["normalisation"].fine


def test_another_normalisation_is_found(train: Callable[..., Path]) -> None:
    teacher = load_teacher(Scaled())
    found = by_check(train(teacher), teacher)
    assert not found["normalisation"].fine and "from 0 to 1 and not normalised" in found["normalisation"].sentence


@pytest.mark.parametrize("weight, advice", [(1e-4, "try larger ones"), (1e4, "try smaller ones")])
def test_a_weight_out_of_all_proportion_is_found(train: Callable[..., Path], weight: float, advice: str) -> None:
    found = by_check(train(weight=weight))["gradient"]
    assert not found.fine and advice in found.sentence


def test_a_teacher_that_knows_nothing_is_found(train: Callable[..., Path], make_student: Callable) -> None:
    teacher = load_teacher(make_student("resnet101"))
    found = by_check(train(teacher), teacher)
    assert not found["teacher"].fine and "Train a better teacher" in found["teacher"].sentence
    assert not found["labels"].fine and "without labels" in found["labels"].sentence


def test_a_baseline_that_knows_its_images_by_heart_is_found(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So far above val is no student after four epochs, so the bound is lowered for it."""
    folder = train(weight=1.0)
    assert by_check(folder)["overfitting"].fine
    monkeypatch.setattr("distill.lab.diagnose.OVERFIT", -1.0)
    found = by_check(folder)["overfitting"]
    assert not found.fine and "overfits" in found.sentence and "weight decay" in found.sentence


def test_wrong_labels_are_found(train: Callable[..., Path], make_student: Callable, tmp_path: Path) -> None:
    noisy = make_sample(tmp_path / "noisy", train=16, val=60, test=1, label_noise=0.5, progress=False)
    for method in ("baseline", "kd"):
        teacher = None if method == "baseline" else "sample"
        fit(make_student(), method, teacher, "sample", data_root=noisy, out=tmp_path / method / "seed0", **SETTINGS)
    found = by_check(tmp_path)["labels"]
    assert not found.fine and "masks of train are wrong" in found.sentence


def test_images_without_labels_leave_something_to_teach(train: Callable[..., Path], make_student: Callable) -> None:
    teacher = load_teacher(make_student("resnet101"))
    folder = train(teacher)
    config = folder / "kd" / "seed0" / "config.json"
    write_json(config, {**read_json(config), "unlabelled": 9})
    found = by_check(folder, teacher)["labels"]
    assert found.fine and "9 images without labels" in found.sentence


def test_the_gradients_are_those_of_training(train: Callable[..., Path], scenes: Path) -> None:
    """With the weight doubled the ratio doubles; and it is what the whole loss's gradient is made of."""
    folder = train(weight=1.0)
    run, teacher = Run(folder / "kd" / "seed0"), load_teacher("sample")
    train_split = open_dataset("sample", "train", scenes)
    (ratio,) = gradient_ratios(run, teacher, train_split).values()
    student = run.student().train()
    student.aspp.dropout.eval()
    images = normalise(torch.stack([train_split[i][0] for i in range(8)]))
    labels = torch.stack([train_split[i][1] for i in range(8)])
    logits = student(images)
    norms = []
    for value in (losses.kd(logits, teacher(images), 4.0), losses.cross_entropy(logits, labels)):
        student.zero_grad()
        value.backward(retain_graph=True)
        norms.append(sum(float(weight.grad.square().sum()) for weight in student.parameters()) ** 0.5)
    assert 0.4 < ratio / (norms[0] / norms[1]) < 2.5, "other images, and dropout, but no other order of size"
    config = read_json(run.path / "config.json")
    config["method"]["terms"]["kd"]["weight"] = 2.0
    write_json(run.path / "config.json", config)
    (doubled,) = gradient_ratios(Run(run.path), teacher, train_split).values()
    assert doubled == pytest.approx(2 * ratio, rel=1e-4)


def test_a_part_of_the_student_may_be_frozen_and_its_labelled_images_few(
    train: Callable[..., Path], scenes: Path
) -> None:
    run = Run(train(weight=1.0) / "kd" / "seed0")
    few = open_dataset("sample", "train", scenes, limit=3)  # the batch may hold more, of images without labels
    (whole,) = gradient_ratios(run, load_teacher("sample"), few).values()
    config = read_json(run.path / "config.json")
    config["frozen"] = [name for name, _ in run.student().named_parameters() if name.startswith("backbone.")]
    write_json(run.path / "config.json", config)
    student = run.student()
    (ratio,) = gradient_ratios(Run(run.path), load_teacher("sample"), few, student).values()
    assert ratio > 0 and ratio != pytest.approx(whole, rel=1e-3), "measured over weights that did not learn"
    assert not student.backbone.bn1.training and student.decoder.last_conv[1].training


def test_a_term_on_frozen_maps_has_no_gradient() -> None:
    assert _gradient_norm(torch.ones(()), torch.nn.Linear(2, 2)) == 0.0


def test_exchanged_classes_want_a_clear_case() -> None:
    names = ("a", "b", "c")
    assert exchanged_classes(Scores(torch.tensor([[9, 1, 0], [1, 9, 0], [3, 0, 7]]).numpy(), names)) == []
    swapped = torch.tensor([[1, 9, 0], [9, 1, 0], [0, 0, 7]]).numpy()
    assert exchanged_classes(Scores(swapped, names)) == [("a", "b"), ("b", "a")]
    turned = torch.tensor([[0, 9, 0], [0, 1, 9], [9, 0, 0]]).numpy()
    assert exchanged_classes(Scores(turned, names)) == [("a", "b"), ("b", "c"), ("c", "a")]


def test_confidence_is_the_mean_probability_of_the_choice(scenes: Path) -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([0.6, 0.3, 0.1]).log().view(1, 3, 1, 1).expand(1, 3, *images.shape[2:])

    data = Subset(open_dataset("sample", "val", scenes), [0, 3])
    assert confidence(Constant(), data) == pytest.approx(0.6)


def test_a_teacher_without_doubts_is_named(train: Callable[..., Path]) -> None:
    class Certain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = load_teacher("sample")

        def forward(self, images: Tensor) -> Tensor:
            return 1e4 * self.network(images)

    teacher = load_teacher(Certain())
    found = by_check(train(teacher), teacher)["confidence"]
    assert not found.fine and "1.000 on training images" in found.sentence and "raise the temperature" in found.sentence


def test_mistakes_are_one_sentence(train: Callable[..., Path], refused) -> None:
    folder = train(weight=1.0)
    refused("no baseline", call=lambda: list(diagnose([folder / "kd"])))
    refused("no run of a method", call=lambda: list(diagnose([folder / "baseline"])))
    other = exchanged()
    refused("is not the teacher of", call=lambda: list(diagnose([folder / "baseline", folder], other)))


def test_the_teacher_that_a_study_trained_is_no_baseline(train: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(train(weight=1.0), tmp_path / "study" / "resnet18")
    (tmp_path / "study" / "study.json").write_text("{}")
    teacher = shutil.copytree(folder / "kd" / "seed0", tmp_path / "study" / "teacher")
    config = read_json(teacher / "config.json")
    write_json(teacher / "config.json", {**config, "method": {"name": "baseline", "terms": {}}})
    score = {"miou": 0.99, "pixel_accuracy": 1.0, "per_class_iou": {}}
    write_json(teacher / "scores.json", {"best": {"val_miou": 0.99}, "val": score})
    with pytest.raises(DistillError, match="not the teacher"):  # it is taken for the teacher
        by_check(folder)
    given = load_teacher("sample")
    assert by_check(folder, given)["teacher"].fine


def test_the_teacher_is_the_one_that_the_study_file_names(train: Callable[..., Path], tmp_path: Path, refused) -> None:
    save_model(exchanged(), tmp_path / "own.safetensors")
    folder = shutil.copytree(train(str(tmp_path / "own.safetensors"), weight=1.0), tmp_path / "study" / "resnet18")
    described = {"study": {"teacher": str(tmp_path / "own.safetensors"), "students": ["resnet18"]}}
    write_json(tmp_path / "study" / "study.json", described)
    assert not by_check(folder)["classes"].fine
    write_json(tmp_path / "study" / "study.json", {"study": {"teacher": str(tmp_path / "moved.safetensors")}})
    refused("moved.safetensors", call=lambda: by_check(folder))


def test_a_teacher_in_double_precision_is_the_same(train: Callable[..., Path]) -> None:
    assert by_check(train(), teacher=load_teacher("sample").double())["classes"].fine


def test_runs_on_other_images_are_not_pooled(train: Callable[..., Path], refused) -> None:
    folder = train(weight=1.0)
    config = read_json(folder / "kd" / "seed0" / "config.json")
    write_json(folder / "kd" / "seed0" / "config.json", {**config, "images": 8})
    refused("on 16 labelled images", "on 8 labelled images", call=lambda: by_check(folder))


def test_baselines_of_other_variants_are_left_out(train: Callable[..., Path], tmp_path: Path, refused) -> None:
    """As in a study of wrong labels, whose baselines have decays of their own."""
    study, trained = tmp_path / "study", train(weight=1.0)
    for variant, run in [("as-usual", "kd"), ("as-usual", "baseline"), ("decay-0.1", "baseline"), ("third", "kd")]:
        shutil.copytree(trained / run / "seed0", study / variant / "resnet18" / run / "seed0")
    variants = [{"name": "as usual"}, {"name": "decay 0.1"}, {"name": "third", "baseline": "decay 0.1"}]
    write_json(study / "study.json", {"study": {"variants": variants, "teacher": "sample"}})
    rising = study / "decay-0.1" / "resnet18" / "baseline" / "seed0" / "history.jsonl"
    lines = [json.loads(line) for line in rising.read_text().splitlines()]
    changed = [json.dumps({**line, "val_miou": line["epoch"] / 5}) for line in lines]
    rising.write_text("\n".join(changed) + "\n")

    refused("2 variants", "'as usual' and 'third'", call=lambda: list(diagnose([study])))
    shutil.rmtree(study / "third")
    rise = "rose by 20.0 points"
    assert rise not in {finding.check: finding for finding in diagnose([study])}["convergence"].sentence
    variants[0]["baseline"] = "decay 0.1"
    write_json(study / "study.json", {"study": {"variants": variants, "teacher": "sample"}})
    assert rise in {finding.check: finding for finding in diagnose([study])}["convergence"].sentence

    shutil.copytree(study / "as-usual" / "resnet18" / "baseline", study / "third" / "resnet18" / "baseline")
    variants[0]["baseline"], variants[0]["name"], variants[2]["name"] = "fourth", "as usual, again", "third"
    shutil.move(study / "as-usual", study / "as-usual-again")
    shutil.rmtree(study / "as-usual-again" / "resnet18" / "baseline")
    write_json(study / "study.json", {"study": {"variants": variants, "teacher": "sample"}})
    refused("2 variants", "none belongs to 'as usual, again'", call=lambda: list(diagnose([study])))


def test_a_weight_that_fell_to_nothing_is_read_at_its_full_size(train: Callable[..., Path], scenes: Path) -> None:
    train_split, teacher = open_dataset("sample", "train", scenes), load_teacher("sample")
    (ratio,) = gradient_ratios(Run(train(weight=1.0, decay=3) / "kd" / "seed0"), teacher, train_split).values()
    assert ratio > 0


def test_the_command_prints_a_line_a_check(train: Callable[..., Path], capsys) -> None:
    folder = train(weight=1.0)
    assert main(["diagnose", str(folder / "baseline"), str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and lines[0].split()[:2] == ["teacher", "fine"]
    assert {line.split()[1] for line in lines} <= {"fine", "LOOK"}


class Small(nn.Module):
    """A network of another library."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 21, 1))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.interpolate(self.convs(images), images.shape[2:])


def test_students_of_another_library_are_diagnosed_with_one_that_is_built_again(
    scenes: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    for method in ("baseline", "kd"):
        fit(wrap(Small()), method, "sample", data_root=scenes, out=tmp_path / method, **SETTINGS)
    refused("Small of another library", "network", call=lambda: list(diagnose([tmp_path])))
    again = Small()
    before = {name: value.clone() for name, value in again.state_dict().items()}
    assert len(list(diagnose([tmp_path], network=again, most=4))) == 8
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())
