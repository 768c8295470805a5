"""Exported networks: the same logits and masks as in PyTorch, and what the file says about itself."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import distill
from distill.cli import main
from distill.data.layout import voc_palette
from distill.data.sample import SAMPLE_CLASSES
from distill.data.transforms import normalise
from distill.lab import export as module
from distill.lab.export import Export, export
from distill.lab.parity import check_masks, sized
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.onnx_file import load_onnx
from distill.networks.saving import save_model
from distill.show.widgets import Explorer, Scene


@pytest.fixture(scope="module")
def network(make_student: Callable) -> DeepLabV3Plus:
    """Three classes, in eval mode, with BatchNorms that have seen images."""
    network = make_student(num_classes=3)
    network.class_names = ("ground", "cup", "spoon")
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1)))
    return network.eval()


@pytest.fixture(scope="module")
def exported(network: DeepLabV3Plus, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export(network, tmp_path_factory.mktemp("exported") / "student.onnx")


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 3, 33, 50), (1, 3, 130, 21), (2, 3, 1, 7)], ids=str)
def test_logits_are_pytorchs_for_any_number_and_size(
    shape: tuple[int, ...], exported: Export, network: DeepLabV3Plus
) -> None:
    """Read by ONNX Runtime alone, as another program would."""
    session = onnxruntime.InferenceSession(str(exported.path))
    images = pixels(*shape)
    (logits,) = session.run(["logits"], {"image": images.numpy()})
    with torch.no_grad():
        expected = network(normalise(images)).numpy()
    assert logits.dtype == np.float32 and logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_the_file_says_what_it_is(exported: Export, network: DeepLabV3Plus) -> None:
    model = onnx.load(str(exported.path))
    onnx.checker.check_model(model)
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert said == exported.metadata
    assert said["classes"] == ["ground", "cup", "spoon"] and said["palette"] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert said["parameters"] == sum(weights.numel() for weights in network.parameters())
    assert said["precision"] == "float32" and said["input"]["size"] is None and said["scores"] == {}
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [said["opset"]]


def test_it_is_one_file(exported: Export) -> None:
    """No weights beside it, and nothing left from writing it."""
    assert [path.name for path in exported.path.parent.iterdir()] == ["student.onnx"]


def test_predict_and_evaluate_take_the_file(exported: Export, network: DeepLabV3Plus, voc_folder: Callable) -> None:
    image = pixels(50, 70, 3).numpy()
    np.testing.assert_array_equal(distill.predict(exported.path, image), distill.predict(network, image))
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 3, (40, 40 + 8 * index)) for index in range(3)]
    data = distill.open_dataset(voc_folder({"val": masks}, ("ground", "cup", "spoon")), "val")
    for protocol in ("native", "resize513"):
        scores = distill.evaluate(str(exported.path), data, protocol)
        assert scores.miou == pytest.approx(distill.evaluate(network, data, protocol).miou, abs=1e-4)


def test_other_classes_than_the_datas_are_refused(exported: Export, tiny_sample: Path, refused: Callable) -> None:
    data = distill.open_dataset(tiny_sample, "val")
    refused("3 classes", "21", call=lambda: distill.evaluate(exported.path, data))


def test_without_names_of_classes_it_is_scored_as_the_network_is(
    make_student: Callable, tiny_sample: Path, tmp_path: Path
) -> None:
    nameless, data = make_student(num_classes=21).eval(), distill.open_dataset(tiny_sample, "val", limit=2)
    file = distill.export(nameless, tmp_path / "nameless.onnx").path
    assert distill.evaluate(file, data).miou == pytest.approx(distill.evaluate(nameless, data).miou, abs=1e-3)


def test_what_is_no_batch_of_pixels_is_refused(exported: Export, refused: Callable) -> None:
    for images in (torch.zeros(2, 3, 9, 10), pixels(2, 1, 9, 10), pixels(3, 9, 10)):
        refused("images (N, 3, H, W) of uint8", call=lambda images=images: load_onnx(exported.path)(images))


def test_a_network_that_is_given_stays_as_it_is(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(4, 5, 1))
    distill.export(network, tmp_path / "small.onnx")
    assert network[1].inplace


def test_the_explorer_takes_the_file(exported: Export, network: DeepLabV3Plus) -> None:
    image = pixels(24, 30, 3).numpy()
    networks = {"student": network, "exported": exported.path}
    explorer = Explorer({"noise": Scene(image)}, networks, network.class_names)
    ours, theirs = explorer.logits["noise"].values()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert "mask: exported" in explorer.choices()


def test_one_size_only_where_it_was_asked_for(network: DeepLabV3Plus, tmp_path: Path, refused: Callable) -> None:
    done = export(network, tmp_path / "fixed.onnx", size=(40, 56))
    assert done.metadata["input"]["size"] == [40, 56]
    image = pixels(40, 56, 3).numpy()
    np.testing.assert_array_equal(distill.predict(done.path, image), distill.predict(network, image))
    refused("40 x 56", "56 x 40", "--size", call=lambda: distill.predict(done.path, image.transpose(1, 0, 2)))
    images = pixels(3, 3, 40, 56)  # several at a time are asked about one by one
    assert load_onnx(done.path)(images).shape == (3, 3, 40, 56)


def test_a_damaged_file_is_one_sentence(
    exported: Export, tmp_path: Path, refused: Callable, capfd: pytest.CaptureFixture
) -> None:
    """ONNX Runtime loads files whose names are no text, and fails when it is asked for them."""
    content = exported.path.read_bytes()
    for name in (b"parameters", b"image", b"Conv"):
        path = tmp_path / "damaged.onnx"
        path.write_bytes(content.replace(name, b"\x80" + name[1:]))
        refused(str(path), "no ONNX file that ONNX Runtime can read", call=lambda: load_onnx(path))  # noqa: B023
    assert capfd.readouterr() == ("", "")


def test_a_network_that_fails_when_it_is_run_is_one_sentence(
    exported: Export, monkeypatch: pytest.MonkeyPatch, refused: Callable
) -> None:
    network = load_onnx(exported.path)

    class Failing:
        def run(self, *_: object) -> None:
            raise RuntimeError("[ONNXRuntimeError] : 6 : Non-zero status code returned")

    monkeypatch.setattr(network, "session", Failing())
    refused(
        str(exported.path), "cannot be run (Non-zero status code returned)", call=lambda: network(pixels(1, 3, 8, 8))
    )


class Foreign(nn.Module):
    """A network of another library, which answers at half the size, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.body(images)}


def test_networks_of_other_libraries(tmp_path: Path) -> None:
    network = Foreign().train()
    done = export(network, tmp_path / "foreign.onnx")
    assert network.training and done.metadata["classes"] == [f"class {index}" for index in range(5)]
    image = pixels(33, 47, 3).numpy()
    expected = distill.predict(distill.wrap(network), image)
    np.testing.assert_array_equal(distill.predict(done.path, image), expected)


def test_timms_tensorflow_padding_at_one_size(tmp_path: Path) -> None:
    network = distill.build_model("timm:tf_efficientnet_lite0", head_width=0.1, atrous_rates=(1, 2, 3)).eval()
    done = export(network, tmp_path / "lite.onnx", size=(64, 48))
    assert done.check["max_difference"] < 1e-4


def test_the_command_exports_a_run_with_its_scores(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    distill_run = tmp_path / "run"
    distill_run.mkdir()
    network = distill.build_model("mobilenetv2", width=0.1, head_width=0.1, atrous_rates=(2, 3, 4))
    network.class_names = SAMPLE_CLASSES
    save_model(network, distill_run / "student.safetensors")
    score = {"miou": 0.5, "pixel_accuracy": 0.75, "per_class_iou": {}}
    (distill_run / "scores.json").write_text(json.dumps({"best": {"val_miou": 0.5}, "val": score}))
    model = {"backbone": "mobilenetv2"}
    method = {"name": "kd", "terms": {}}
    config = {"data": "sample", "images": 8, "model": model, "method": method, "seed": 0, "start": "", "parameters": 1}
    (distill_run / "config.json").write_text(json.dumps(config | {"settings": {"epochs": 1}}))
    assert main(["export", str(distill_run), "--out", str(tmp_path / "out"), "--size", "64", "64"]) == 0
    said = load_onnx(tmp_path / "out" / "student.onnx").metadata
    assert str(tmp_path / "out" / "student.onnx") in capsys.readouterr().out
    assert said["scores"] == {"val": {"miou": 0.5, "pixel_accuracy": 0.75}}
    assert said["classes"] == list(SAMPLE_CLASSES)
    assert [part for colour in said["palette"] for part in colour] == voc_palette()[: 3 * 21]


def test_a_file_that_fails_its_check_replaces_nothing(
    network: DeepLabV3Plus, tmp_path: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter is made to get a weight wrong."""
    file = tmp_path / "student.onnx"
    file.write_bytes(b"the one before")

    def wrong(program: object, size: object) -> bytes:
        model = onnx.load_from_string(right(program, size))
        tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values.flat[0] += 1
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return model.SerializeToString()

    right = module.onnx_of
    monkeypatch.setattr(module, "onnx_of", wrong)
    refused("differ", "nothing was written", call=lambda: export(network, file, size=(32, 32)))
    assert file.read_bytes() == b"the one before" and len(list(tmp_path.iterdir())) == 1


def test_a_network_that_cannot_be_traced_says_so(tmp_path: Path, refused: Callable) -> None:
    class Branching(Foreign):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return super().forward(images) if images.mean() < 1e9 else {}

    class Bessel(Foreign):  # which torch can record, and ONNX has not
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return super().forward(torch.special.bessel_j0(images))

    refused("Branching", "cannot be exported", call=lambda: export(Branching(), tmp_path / "x.onnx"))
    refused("Bessel", "cannot be exported", call=lambda: export(Bessel(), tmp_path / "x.onnx"))
    assert not list(tmp_path.iterdir())


def test_the_name_at_the_top_is_the_labs() -> None:
    assert distill.export is export


# -------------------------------------------------------------------------------------------------------- int8


@pytest.fixture(scope="module")
def small(tiny_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    file = tmp_path_factory.mktemp("int8") / "student-int8.onnx"
    return export("student-resnet18-distilled", file, int8=True, size=(32, 32), data=tiny_sample)


def test_int8_is_a_quarter_of_the_size_and_agrees(small: Export, tiny_sample: Path) -> None:
    student = distill.load_model(distill.shipped_file("student-resnet18-distilled.safetensors"))
    assert small.metadata["precision"] == "int8"
    assert small.metadata["scores"] == {"val": {"miou": small.check["miou"]}}, "its own, not those of float32"
    assert small.path.stat().st_size < 0.4 * 4 * small.metadata["parameters"]
    model = onnx.load(str(small.path))
    weights = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    scales = {node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    lengths = [t.dims[0] for t in model.graph.initializer if t.name in scales and t.dims]
    assert len(weights) > 20 and max(lengths) >= 64, "no scale for each channel"
    data = distill.open_dataset(tiny_sample, "val")
    equal = [
        np.mean(distill.predict(small.path, image) == distill.predict(student, image)) for image in images_of(data)
    ]
    assert np.mean(equal) == pytest.approx(small.check["agreement"]) and np.mean(equal) > 0.97
    assert distill.evaluate(small.path, data).miou == pytest.approx(small.check["miou"])
    assert distill.evaluate(student, data).miou == pytest.approx(small.check["miou_pytorch"])


def images_of(data: distill.data.VOCFolder) -> list[np.ndarray]:
    return [data[index][0].permute(1, 2, 0).numpy() for index in range(len(data))]


def test_labels_are_resized_as_where_networks_are_scored(tiny_sample: Path) -> None:
    data = distill.open_dataset(tiny_sample, "val")
    (_, labels), before = next(sized(data, (20, 24))), Image.fromarray(data[0][1].numpy().astype(np.uint8))
    assert np.array_equal(labels[0].numpy(), np.array(before.resize((24, 20), Image.Resampling.NEAREST)))


@pytest.mark.parametrize(("agreement", "loss", "fine"), [(0.99, 0.01, True), (0.9, 0.0, False), (0.99, 0.03, False)])
def test_int8_has_to_agree(agreement: float, loss: float, fine: bool, refused: Callable) -> None:
    found = {"agreement": agreement, "miou": 0.7 - loss, "miou_pytorch": 0.7}
    if fine:
        check_masks(found)
    else:
        refused("nothing was written", "without --int8", call=lambda: check_masks(found))


def test_an_int8_file_that_does_not_agree_replaces_nothing(
    tiny_sample: Path, tmp_path: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantiser is made to give the network of other weights."""
    file, other = tmp_path / "student.onnx", tmp_path / "other.onnx"
    export("student-resnet18-baseline", other, size=(32, 32))
    file.write_bytes(b"the one before")
    monkeypatch.setattr(module, "quantised", lambda *_: other.read_bytes())
    choices = {"int8": True, "size": (32, 32), "data": tiny_sample}
    refused("agrees", "nothing was", call=lambda: export("student-resnet18-distilled", file, **choices))
    assert file.read_bytes() == b"the one before"


# ------------------------------------------------------------------------------------------------- torch.export


def test_pytorchs_own_format(network: DeepLabV3Plus, tmp_path: Path) -> None:
    done = export(network, tmp_path / "student.pt2", format="torch")
    extra = {"metadata.json": ""}
    program = torch.export.load(done.path, extra_files=extra).module()
    assert json.loads(extra["metadata.json"]) == done.metadata
    assert done.metadata["input"]["least_size"] == [17, 17] and "at least 17 x 17 pixels" in done.sentence
    assert program(pixels(1, 3, 17, 17)).shape[2:] == (17, 17)
    with pytest.raises(AssertionError):
        program(pixels(1, 3, 16, 17))
    images = pixels(3, 3, 50, 33)
    with torch.no_grad():
        torch.testing.assert_close(program(images), network(normalise(images)), atol=1e-4, rtol=0)


def test_pytorchs_own_format_says_from_which_size_on_a_network_is_resized(tmp_path: Path) -> None:
    class Divided(Foreign):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            assert images.shape[2] % 32 == 0 == images.shape[3] % 32
            return super().forward(images)

    done = export(Divided(), tmp_path / "divided.pt2", format="torch")
    assert done.metadata["input"]["least_size"] == [33, 33]
    program = torch.export.load(done.path).module()
    assert program(pixels(1, 3, 33, 33)).shape[2:] == (33, 33)


def test_a_network_with_names_of_its_own_is_wrapped_all_the_same(tmp_path: Path, refused: Callable) -> None:
    """An attribute `class_names` does not make it one of this package."""
    network = nn.Conv2d(3, 5, 3, stride=4, padding=1)
    network.class_names = list("abcde")
    made = export(network, tmp_path / "own.onnx")
    answer = load_onnx(made.path)(pixels(1, 3, 64, 96))
    assert answer.shape == (1, 5, 64, 96) and made.metadata["classes"] == list("abcde")
    network.class_names = None
    assert export(network, tmp_path / "own.onnx").metadata["classes"][0] == "class 0"
    refused("does not say on which", "--dataset", call=lambda: export(network, tmp_path / "own.onnx", int8=True))


def test_memory_is_measured_below_main(tmp_path: Path) -> None:
    script = "import distill\nfrom distill.lab import latency\n"
    script += "latency.measure(distill.make_student('resnet18', 5), (32, 32), ways=['float32'])\n"
    (tmp_path / "script.py").write_text(script)
    said = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    assert said.returncode == 1 and "if __name__ == '__main__':" in said.stderr.strip().splitlines()[-1]
