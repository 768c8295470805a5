"""Scores against sums done by hand and an independent reference; predictions of single images."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision import tv_tensors

from distill import Run, evaluate, load_teacher, predict, wrap
from distill.data.folders import VOCFolder, open_dataset
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.saving import save_model
from distill.training import evaluation
from distill.training.evaluation import Scores, confusion_matrix, predict_logits
from distill.training.parallel import Ranks

NAMES = ("a", "b", "c")


class Listed(Dataset):
    """Images and labels from a list."""

    root = Path("listed")

    def __init__(self, pairs: list[tuple[torch.Tensor, torch.Tensor]], class_names: tuple[str, ...]) -> None:
        self.pairs, self.class_names, self.num_classes = pairs, class_names, len(class_names)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, labels = self.pairs[index]
        return tv_tensors.Image(image), tv_tensors.Mask(labels)


def random_pairs(sizes: list[tuple[int, int]], classes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for height, width in sizes:
        labels = torch.randint(0, classes, (height, width), generator=generator)
        labels[torch.rand(height, width, generator=generator) < 0.2] = 255
        pairs.append((torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8), labels))
    return pairs


def reference_iou(predictions: list[np.ndarray], labels: list[np.ndarray], classes: int) -> list[float]:
    """Intersection over union class by class, with sets of pixels instead of a confusion matrix."""
    prediction, truth = np.concatenate([p.ravel() for p in predictions]), np.concatenate([t.ravel() for t in labels])
    prediction, truth = prediction[truth != 255], truth[truth != 255]
    result = []
    for label in range(classes):
        predicted, true = prediction == label, truth == label
        union = np.logical_or(predicted, true).sum()
        result.append(np.logical_and(predicted, true).sum() / union if union else math.nan)
    return result


@pytest.fixture(scope="module")
def network(make_student: Callable[..., DeepLabV3Plus]) -> DeepLabV3Plus:
    return make_student("mobilenetv2", num_classes=3).eval()


def test_confusion_counts_labels_in_rows_and_leaves_void_out() -> None:
    labels, prediction = torch.tensor([[0, 0, 1], [2, 255, 1]]), torch.tensor([[0, 1, 1], [0, 2, 1]])
    assert confusion_matrix(prediction, labels, 3).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_confusion_takes_uint8_maps_without_overflow() -> None:
    labels = torch.full((2, 2), 20, dtype=torch.uint8)
    assert confusion_matrix(labels, labels, 21)[20, 20] == 4


def test_scores_are_equal_where_their_counts_and_names_are() -> None:
    scores = [Scores(np.array([[1, 1], [0, count]]), ("a", "b")) for count in (2, 2, 3)]
    assert scores[0] == scores[1] and scores[0] != scores[2] and scores[0] != "scores"


def test_scores_are_those_worked_out_by_hand() -> None:
    scores = Scores(np.array([[1, 1, 0], [0, 2, 0], [1, 0, 0]]), NAMES)
    assert scores.per_class_iou == pytest.approx({"a": 1 / 3, "b": 2 / 3, "c": 0.0})
    assert scores.miou == pytest.approx(1 / 3)
    assert scores.pixel_accuracy == pytest.approx(3 / 5)


def test_an_absent_class_does_not_count_but_a_wrongly_predicted_one_does() -> None:
    absent = Scores(np.array([[4, 0, 0], [0, 4, 0], [0, 0, 0]]), NAMES)
    assert absent.miou == 1.0 and math.isnan(absent.per_class_iou["c"])
    predicted = Scores(np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]]), NAMES)
    assert predicted.per_class_iou["c"] == 0.0
    assert predicted.miou == pytest.approx((3 / 4 + 1 + 0) / 3)


def test_without_a_labelled_pixel_there_is_no_score() -> None:
    scores = Scores(np.zeros((3, 3), dtype=int), NAMES)
    assert math.isnan(scores.miou) and math.isnan(scores.pixel_accuracy)


def test_scores_as_json_name_absent_classes_null() -> None:
    value = json.loads(json.dumps(Scores(np.array([[4, 0, 0], [1, 3, 0], [0, 0, 0]]), NAMES).to_json()))
    assert value["per_class_iou"] == {"a": 0.8, "b": 0.75, "c": None}
    assert value["confusion"] == [[4, 0, 0], [1, 3, 0], [0, 0, 0]]
    assert value["miou"] == pytest.approx(0.775) and value["pixel_accuracy"] == pytest.approx(7 / 8)


@pytest.mark.parametrize("classes", [2, 5, 21])
def test_scores_agree_with_an_independent_reference(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels = [rng.integers(0, max(2, classes - 2), (9, 11)) for _ in range(4)]  # the last classes do not occur
    labels = [np.where(rng.random(truth.shape) < 0.1, 255, truth) for truth in labels]
    predictions = [rng.integers(0, max(2, classes - 1), (9, 11)) for _ in range(4)]
    total = sum(
        confusion_matrix(torch.from_numpy(p), torch.from_numpy(t), classes)
        for p, t in zip(predictions, labels, strict=True)
    )
    scores = Scores(total.numpy(), tuple(map(str, range(classes))))
    expected = reference_iou(predictions, labels, classes)
    assert list(scores.per_class_iou.values()) == pytest.approx(expected, nan_ok=True)
    assert scores.miou == pytest.approx(np.nanmean(expected))


@pytest.mark.parametrize("seed", range(20))
def test_scores_agree_with_scikit_learn_on_random_maps(seed: int) -> None:
    """Void left out; classes that neither occur nor are predicted, and classes that are predicted without occurring."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 30))
    occurring, predicted = (rng.choice(classes, size=max(1, classes // 2), replace=False) for _ in range(2))
    truth, prediction = rng.choice(occurring, (3, 31, 17)), rng.choice(predicted, (3, 31, 17))
    truth[rng.random(truth.shape) < 0.15] = 255
    confusion = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(truth), classes).numpy()
    scores = Scores(confusion, tuple(map(str, range(classes))))
    labelled, either = truth != 255, np.union1d(occurring, predicted)
    reference = jaccard_score(truth[labelled], prediction[labelled], labels=either, average=None)
    assert [scores.per_class_iou[str(label)] for label in either] == pytest.approx(reference.tolist(), abs=1e-12)
    assert scores.miou == pytest.approx(reference.mean(), abs=1e-12)
    assert scores.pixel_accuracy == pytest.approx(accuracy_score(truth[labelled], prediction[labelled]))
    absent = set(range(classes)) - set(either.tolist())
    assert all(math.isnan(scores.per_class_iou[str(label)]) for label in absent)


@pytest.mark.parametrize("protocol", ["native", "resize513"])
def test_images_of_any_size_are_scored_one_at_a_time_or_together_alike(protocol: str, network: DeepLabV3Plus) -> None:
    sizes = [(1, 1), (17, 40), (17, 40), (40, 17), (33, 33), (5, 60)]
    sizes = sizes if protocol == "native" else sizes[1:3]
    data = Listed(random_pairs(sizes, 3), NAMES)
    alone, together = (evaluate(network, data, protocol, batch_size=size) for size in (1, 8))
    assert alone.confusion.sum() == together.confusion.sum() > 0
    assert alone.miou == pytest.approx(together.miou, abs=0.01)  # near-ties may fall either way


def test_evaluate_agrees_with_predicting_one_by_one(network: DeepLabV3Plus) -> None:
    pairs = random_pairs([(32, 32), (32, 32), (20, 33), (33, 20), (33, 20), (32, 32)], 3)
    dataset = Listed(pairs, NAMES)
    predictions = [predict(network, image.permute(1, 2, 0).numpy()) for image, _ in pairs]
    expected = reference_iou(predictions, [labels.numpy() for _, labels in pairs], 3)
    scores = evaluate(network, dataset)
    assert list(scores.per_class_iou.values()) == pytest.approx(expected, nan_ok=True)
    assert scores.confusion.sum() == sum((labels != 255).sum().item() for _, labels in pairs)
    for batch_size in (1, 2):
        assert np.array_equal(evaluate(network, dataset, batch_size=batch_size).confusion, scores.confusion)


def test_large_images_are_scored_few_at_once(network: DeepLabV3Plus, monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = Listed(random_pairs([(20, 30)] * 5 + [(90, 90)], 3), NAMES), []
    expected = evaluate(network, data)
    monkeypatch.setattr(evaluation, "LARGEST_BATCH", 2 * 20 * 30)
    counting = copy.deepcopy(network)
    counting.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    assert np.array_equal(evaluate(counting, data).confusion, expected.confusion)
    assert seen == [2, 2, 1, 1]


def test_resize513_scores_at_a_short_side_of_513(network: DeepLabV3Plus) -> None:
    image, labels = torch.zeros(3, 10, 12, dtype=torch.uint8), torch.ones(10, 12, dtype=torch.long)
    labels[:, :6] = 255
    seen = []
    handle = network.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[-2:])))
    scores = evaluate(network, Listed([(image, labels)], NAMES), protocol="resize513")
    handle.remove()
    assert seen[0][0] == 513 and seen[0][1] in (615, 616)
    assert scores.confusion[1].sum() == pytest.approx(513 * 616 / 2, rel=0.01)
    assert scores.confusion[[0, 2]].sum() == 0  # labels are resized to the nearest: no new value arises


@pytest.mark.parametrize("size", [(40, 52), (257, 114), (766, 575), (33, 538), (513, 700)])
def test_resize513_takes_the_labels_that_pillow_takes(
    network: DeepLabV3Plus, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, labels = random_pairs([size], 3)[0]
    seen = []
    monkeypatch.setattr(network, "forward", lambda images: torch.zeros(len(images), 3, *images.shape[2:]))
    monkeypatch.setattr(
        evaluation, "confusion_matrix", lambda *maps: (seen.append(maps[1][0]), confusion_matrix(*maps))[1]
    )
    evaluate(network, Listed([(image, labels)], NAMES), protocol="resize513")
    height, width = seen[0].shape
    assert min(height, width) == 513
    picture = Image.fromarray(labels.numpy().astype(np.uint8))
    assert np.array_equal(seen[0].numpy(), np.array(picture.resize((width, height), Image.Resampling.NEAREST)))


@pytest.mark.parametrize("protocol", ["native", "resize513"])
def test_workers_change_no_score_and_draw_nothing(protocol: str, network: DeepLabV3Plus) -> None:
    sizes = [(32, 40), (32, 40), (20, 33), (33, 20), (33, 20), (32, 40), (32, 40)]
    dataset = Listed(random_pairs(sizes[: 7 if protocol == "native" else 3], 3), NAMES)
    expected, state = evaluate(network, dataset, protocol, batch_size=2), torch.get_rng_state()
    scores = evaluate(network, dataset, protocol, batch_size=2, workers=2)
    assert np.array_equal(scores.confusion, expected.confusion)
    assert torch.equal(torch.get_rng_state(), state)


class Apart(Ranks):
    """One of several processes, which keeps its sums to itself."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


@pytest.mark.parametrize("workers", [0, 2])
def test_each_process_scores_batches_of_its_own(network: DeepLabV3Plus, workers: int) -> None:
    data = Listed(random_pairs([(32, 40), (32, 40), (20, 33), (33, 20), (33, 20), (32, 40), (32, 40)], 3), NAMES)
    parts = [
        evaluate(network, data, batch_size=2, ranks=Apart(rank, 2), workers=workers).confusion for rank in range(2)
    ]
    assert np.array_equal(sum(parts), evaluate(network, data, batch_size=2).confusion)
    first = Listed([data.pairs[index] for index in (0, 1, 4, 5)], NAMES)
    assert np.array_equal(parts[0], evaluate(network, first, batch_size=2).confusion)


def test_a_workers_mistake_is_one_sentence(voc_folder: Callable[..., Path], network: DeepLabV3Plus, refused) -> None:
    root = voc_folder({"val": [np.ones((32, 32))] * 3}, NAMES)
    (root / "SegmentationClass" / "val1.png").unlink()
    dataset = VOCFolder(root, "val")
    alone = refused("val1.png", call=lambda: evaluate(network, dataset))
    assert refused(call=lambda: evaluate(network, dataset, workers=2)) == alone


@pytest.mark.parametrize("name, value", [("batch_size", -1), ("batch_size", 0), ("workers", -1), ("workers", 1.5)])
def test_numbers_that_make_no_sense_are_refused(network: DeepLabV3Plus, name: str, value: float, refused) -> None:
    refused(name, value, call=lambda: evaluate(network, Listed(random_pairs([(8, 8)], 3), NAMES), **{name: value}))


class Own(nn.Module):
    """Somebody's network, which answers in its own way and says nothing of its classes."""

    def __init__(self, answer: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.layer, self.answer = nn.Conv2d(3, 3, 1), answer

    def forward(self, images: torch.Tensor) -> object:
        return self.answer(self.layer(images))


ANSWERS = {
    "smaller": (lambda x: x[:, :, ::4, ::4], "(1, 3, 8, 8)"),
    "a dict": (lambda x: {"out": x}, "a dict"),
    "an object": (lambda x: SimpleNamespace(logits=x[:, :, ::4, ::4]), "a SimpleNamespace"),
    "a class map": (lambda x: x.argmax(1), "(1, 32, 32)"),
    "no batch": (lambda x: x.flatten(1), "(1, 3072)"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_of_another_size_or_kind_is_no_mask(name: str, refused) -> None:
    answer, found = ANSWERS[name]
    dataset = Listed(random_pairs([(32, 32)], 3), NAMES)
    refused(found, "load_teacher", call=lambda: predict(Own(answer), np.zeros((32, 32, 3), np.uint8)))
    refused(found, "load_teacher", call=lambda: evaluate(Own(answer), dataset))
    if name != "a class map" and name != "no batch":
        wrapped = load_teacher(Own(answer))
        assert predict(wrapped, np.zeros((32, 32, 3), np.uint8)).shape == (32, 32)
        assert evaluate(wrapped, dataset).confusion.sum() > 0


def test_a_bare_network_is_scored_by_its_answer(refused) -> None:
    pairs, own = random_pairs([(32, 32)], 3), Own(lambda x: x)
    prediction = torch.from_numpy(predict(own, pairs[0][0].permute(1, 2, 0).numpy()))
    expected = confusion_matrix(prediction, pairs[0][1], 3).numpy()
    assert np.array_equal(evaluate(own, Listed(pairs, NAMES)).confusion, expected)
    assert evaluate(nn.Identity(), Listed(pairs, NAMES)).confusion.sum() == expected.sum()  # has no weights at all
    refused("3 classes", "listed has 2", call=lambda: evaluate(own, Listed(random_pairs([(32, 32)], 2), NAMES[:2])))


def test_a_run_stands_for_its_student(make_student: Callable[..., DeepLabV3Plus], tmp_path: Path) -> None:
    model = make_student(num_classes=3).eval()
    save_model(model, tmp_path / "student.safetensors")
    (tmp_path / "config.json").write_text("{}")
    dataset, image = Listed(random_pairs([(32, 32)], 3), NAMES), np.zeros((32, 32, 3), np.uint8)
    assert np.array_equal(predict(Run(tmp_path), image), predict(model, image))
    assert np.array_equal(evaluate(Run(tmp_path), dataset).confusion, evaluate(model, dataset).confusion)


@pytest.mark.parametrize("given", ["resnet18", Path("student.safetensors"), None, {"weight": 1}, DeepLabV3Plus])
def test_what_is_no_network_is_refused(given: object, refused) -> None:
    word = given if isinstance(given, str | Path) else type(given).__name__
    refused(word, "load_model", call=lambda: predict(given, np.zeros((32, 32, 3), np.uint8)))
    refused(word, "load_model", call=lambda: evaluate(given, Listed(random_pairs([(8, 8)], 3), NAMES)))


@pytest.mark.parametrize("protocol", ["native", "resize513"])
def test_a_subset_is_scored_as_the_images_it_holds(protocol: str, network: DeepLabV3Plus) -> None:
    data = Listed(random_pairs([(32, 32)] * 4, 3), NAMES)
    nested = Subset(Subset(data, [3, 1, 0]), [0, 1])
    expected = evaluate(network, Listed([data.pairs[3], data.pairs[1]], NAMES), protocol)
    assert np.array_equal(evaluate(network, nested, protocol).confusion, expected.confusion)


def test_a_subsets_image_too_long_for_resize513_is_named(
    voc_folder: Callable[..., Path], network: DeepLabV3Plus, refused
) -> None:
    part = Subset(VOCFolder(voc_folder({"val": [np.ones((32, 32)), np.ones((2, 400))]}, NAMES), "val"), [1])
    refused("val1.jpg", "too long", call=lambda: evaluate(network, part, "resize513"))


@pytest.mark.parametrize("given", ["sample", Path("data"), None, [], TensorDataset(torch.zeros(2, 3, 8, 8))])
def test_what_is_no_data_set_is_refused(network: DeepLabV3Plus, given: object, refused) -> None:
    word = given if isinstance(given, str | Path) else type(given).__name__
    refused(word, "open_dataset", call=lambda: evaluate(network, given))


def test_another_number_of_classes_is_refused(network: DeepLabV3Plus, tiny_sample: Path, refused) -> None:
    refused("3 classes", "21", tiny_sample, call=lambda: evaluate(network, VOCFolder(tiny_sample, "val")))


def test_an_unknown_protocol_is_refused(network: DeepLabV3Plus, refused) -> None:
    refused("'best'", "native or resize513", call=lambda: evaluate(network, Listed([], NAMES), protocol="best"))


@pytest.mark.parametrize("size", [(32, 32), (17, 45), (64, 31), (1, 1), (3, 50)])
def test_predict_gives_a_class_map_of_the_images_size(network: DeepLabV3Plus, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    prediction = predict(network, image)
    assert prediction.shape == size and prediction.dtype == np.uint8 and prediction.max() < 3


def test_predict_takes_a_picture_an_array_or_a_path(network: DeepLabV3Plus, tmp_path: Path) -> None:
    array = np.random.default_rng(1).integers(0, 256, (30, 26, 3), dtype=np.uint8)
    picture = Image.fromarray(array)
    picture.save(tmp_path / "a.png")
    expected = predict(network, array)
    assert len(np.unique(expected)) > 1
    for image in (picture, tmp_path / "a.png", str(tmp_path / "a.png"), picture.convert("RGBA")):
        assert np.array_equal(predict(network, image), expected)
    assert predict(network, picture.convert("L")).shape == (30, 26)
    assert np.array_equal(predict_logits(network, array).argmax(0).numpy(), expected)


def test_predict_asks_about_a_smaller_image_where_it_is_told(network: DeepLabV3Plus, refused) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    half = np.array(Image.fromarray(image).resize((48, 32), Image.Resampling.BOX))
    assert np.array_equal(predict(network, image, side=48), predict(network, half).repeat(2, 0).repeat(2, 1))
    assert np.array_equal(predict(network, image, side=500), predict(network, image)), "nothing is enlarged"
    refused("side is 0", call=lambda: predict(network, image, side=0))


def test_predict_refuses_more_classes_than_a_byte_counts(refused) -> None:
    many = wrap(torch.nn.Conv2d(3, 300, 1))
    refused("300 classes", "predict_logits", call=lambda: predict(many, np.zeros((8, 8, 3), dtype=np.uint8)))


def test_predict_takes_a_mirrored_view_of_an_array(network: DeepLabV3Plus) -> None:
    array = np.random.default_rng(1).integers(0, 256, (30, 26, 3), dtype=np.uint8)
    assert np.array_equal(predict(network, array[:, ::-1]), predict(network, array[:, ::-1].copy()))


@pytest.mark.parametrize("shape, kind", [((8, 8), np.uint8), ((8, 8, 4), np.uint8), ((8, 8, 3), np.float32)])
def test_predict_refuses_other_arrays(network: DeepLabV3Plus, shape: tuple, kind: type, refused) -> None:
    refused("(H, W, 3)", np.dtype(kind).name, call=lambda: predict(network, np.zeros(shape, kind)))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_a_picture_and_its_path_give_one_mask(network: DeepLabV3Plus, tmp_path: Path, turn: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn  # how the camera was held
    path = tmp_path / f"a.{ending}"
    pixels = np.random.default_rng(turn).integers(0, 256, (30, 26, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    expected = predict(network, path)
    assert expected.shape == ((26, 30) if turn > 4 else (30, 26))
    with Image.open(path) as picture:
        assert np.array_equal(predict(network, picture), expected)
        assert np.array_equal(predict(network, picture), expected)  # the first time has not turned it


def test_a_picture_is_refused_as_its_path_is(network: DeepLabV3Plus, tmp_path: Path, refused) -> None:
    deep, moving, cut = tmp_path / "deep.png", tmp_path / "moving.gif", tmp_path / "cut.jpg"
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(deep)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(moving, save_all=True, append_images=frames[1:])
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    for path, words in ((deep, "8 bits"), (moving, "2 frames"), (cut, "replace")):
        said = refused(path, words, call=lambda path=path: predict(network, path))
        with Image.open(path) as picture:
            assert refused(call=lambda picture=picture: predict(network, picture)) == said
    refused("the picture", "8 bits", call=lambda: predict(network, Image.new("I;16", (8, 8))))


@pytest.mark.parametrize("shape", [(0, 8, 3), (8, 0, 3), (0, 0, 3)])
def test_an_image_without_pixels_is_refused(network: DeepLabV3Plus, shape: tuple, refused) -> None:
    refused(shape, "no pixel", call=lambda: predict(network, np.zeros(shape, np.uint8)))
    size = shape[1::-1]
    refused(f"{size[0]} x {size[1]}", call=lambda: predict(network, Image.new("RGB", size)))


def test_predict_names_a_missing_file(network: DeepLabV3Plus, tmp_path: Path, refused) -> None:
    refused(tmp_path / "a.jpg", "no image", call=lambda: predict(network, tmp_path / "a.jpg"))


@pytest.mark.parametrize("score", [False, True])
def test_training_mode_comes_back_and_nothing_moves(
    score: bool, make_student: Callable[..., DeepLabV3Plus], tiny_sample: Path
) -> None:
    model = make_student().train()
    model.aspp.eval()  # a part that its owner froze stays frozen
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    if score:
        evaluate(model, open_dataset("sample", "val", tiny_sample))
    else:
        predict(model, np.zeros((32, 32, 3), np.uint8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_mode_comes_back_after_a_fault(make_student: Callable[..., DeepLabV3Plus]) -> None:
    model = make_student().train()
    model.decoder.forward = None
    with pytest.raises(TypeError):
        predict(model, np.zeros((32, 32, 3), np.uint8))
    assert all(module.training for module in model.modules())


def test_dropout_and_batch_statistics_play_no_part(make_student: Callable[..., DeepLabV3Plus]) -> None:
    model: nn.Module = make_student().train()
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert torch.equal(predict_logits(model, image), predict_logits(model, image))


class _Asks(nn.Module):
    """Relies on the usual order in memory, and takes no images below 16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 21, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if min(x.shape[2:]) < 16:
            raise ValueError("too few pixels")
        return self.head(x.view(len(x) * 3, 1, *x.shape[2:]).view(x.shape))


def test_a_network_of_ones_own_need_not_take_another_order_and_may_be_too_large_for_an_image(
    tiny_sample: Path, refused: Callable[..., str]
) -> None:
    assert 0 <= evaluate(_Asks(), VOCFolder(tiny_sample, "val")).miou <= 1
    small = np.zeros((8, 8, 3), dtype=np.uint8)
    refused("_Asks", "8 x 8 pixels", "too few pixels", call=lambda: predict(_Asks(), small))
