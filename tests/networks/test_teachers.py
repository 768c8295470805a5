"""Teachers from the shipped file and from published checkpoints; files that must not be trusted."""

import collections
import json
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import golden_numbers
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchvision.models.segmentation import deeplabv3_resnet101

import distill
from distill import build_method, build_model, load_teacher, predict, save_model
from distill.networks import teachers
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.taps import record
from distill.networks.teachers import fingerprint, freeze, shipped_file, tap_torchvision
from distill.networks.wrapped import Wrapped

GOLDEN = Path(__file__).parent.parent / "golden"


class Hostile:
    """Runs a shell command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.witness}",)


@pytest.fixture
def slim_published(monkeypatch: pytest.MonkeyPatch, make_student: Callable[..., DeepLabV3Plus]) -> DeepLabV3Plus:
    """Published checkpoints are taken for a tiny ResNet-101 here; gives the network whose weights they hold."""

    def build(backbone: str, num_classes: int) -> DeepLabV3Plus:
        assert backbone == "resnet101"
        return make_student("resnet101", num_classes, seed=99)

    monkeypatch.setattr(teachers, "build_model", build)
    return make_student("resnet101", seed=1)


def checkpoint(state: dict, best_pred: object = 0.77) -> dict:
    return {"epoch": 45, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}, "best_pred": best_pred}


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_shipped_teacher_loads_within_a_second_frozen() -> None:
    seconds = []
    for _ in range(3):  # the best of three: other programs may be busy
        start = time.process_time()
        teacher = load_teacher("sample")
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.num_classes == 21 and teacher.config["backbone"] == "resnet101"
    assert all(value.isfinite().all() for value in teacher.state_dict().values())


def test_the_shipped_teacher_is_small_enough_to_ship() -> None:
    assert shipped_file("teacher-sample.safetensors").stat().st_size < 15e6


def test_a_shipped_file_that_is_missing_is_named(refused) -> None:
    refused("teacher-none.safetensors", call=lambda: shipped_file("teacher-none.safetensors"))


def test_a_safetensors_file_is_a_teacher(tmp_path: Path, make_student: Callable[..., DeepLabV3Plus]) -> None:
    model = make_student("mobilenetv2", seed=3)
    save_model(model, tmp_path / "own.safetensors")
    teacher = load_teacher(tmp_path / "own.safetensors")
    assert same_weights(teacher, model) and not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_published_checkpoint_fits_at_full_size(tmp_path: Path) -> None:
    """A file with the published keys and shapes, written as nn.DataParallel writes it."""
    layout = json.loads((GOLDEN / "teacher_checkpoint_layout.json").read_text())["state_dict"]
    state = {
        f"module.{key}": torch.full(shape, 1 + index % 3, dtype=getattr(torch, kind))
        for index, (key, (shape, kind)) in enumerate(layout.items())
    }
    path = tmp_path / "deeplab-resnet.pth.tar"
    torch.save(checkpoint(state, np.float64(0.7739)), path)
    teacher = load_teacher(path)
    path.unlink()
    assert sum(parameter.numel() for parameter in teacher.parameters()) == 59_344_309
    assert all(torch.equal(value, state[f"module.{key}"]) for key, value in teacher.state_dict().items())
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_published_checkpoint_gives_the_golden_logits(tmp_path: Path) -> None:
    """Weights by the golden formula, in a file as nn.DataParallel and NumPy leave it behind."""
    case = next(case for case in golden_numbers.load("networks")["networks"] if case["backbone"] == "resnet101")
    layout = golden_numbers.load("teacher_checkpoint_layout")["state_dict"]
    state = {f"module.{key}": golden_numbers.weight(key, shape) for key, (shape, _) in layout.items()}
    path = tmp_path / "deeplab-resnet.pth.tar"
    torch.save(checkpoint(state, np.float64(0.7739)), path)
    teacher = load_teacher(path)
    path.unlink()
    with torch.no_grad():
        logits, maps = teacher(golden_numbers.images(case["input"]), return_maps=True)
    golden_numbers.check_summary(logits, case["logits"], 1e-4)
    for position, expected in zip(maps, case["features"], strict=True):
        golden_numbers.check_summary(position, expected, 1e-4)


@pytest.mark.parametrize("best_pred", [0.7, np.float64(0.7), np.float32(0.7), np.int64(1), torch.tensor(0.7)])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_checkpoints_load(
    tmp_path: Path, slim_published: DeepLabV3Plus, prefix: str, best_pred: object
) -> None:
    state = collections.OrderedDict((prefix + key, value) for key, value in slim_published.state_dict().items())
    torch.save(checkpoint(state, best_pred), tmp_path / "teacher.pth.tar")
    assert same_weights(load_teacher(tmp_path / "teacher.pth.tar"), slim_published)


def test_the_format_of_older_pytorch_loads(tmp_path: Path, slim_published: DeepLabV3Plus) -> None:
    content = checkpoint(slim_published.state_dict(), np.float64(0.7))
    torch.save(content, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    assert same_weights(load_teacher(str(tmp_path / "old.pth.tar")), slim_published)


def test_a_score_written_by_numpy_1_loads(tmp_path: Path, slim_published: DeepLabV3Plus) -> None:
    torch.save(checkpoint(slim_published.state_dict(), np.float64(0.7)), tmp_path / "new.pth.tar")
    with zipfile.ZipFile(tmp_path / "new.pth.tar") as new, zipfile.ZipFile(tmp_path / "old.pth.tar", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert same_weights(load_teacher(tmp_path / "old.pth.tar"), slim_published)


def test_a_bare_state_dict_loads(tmp_path: Path, slim_published: DeepLabV3Plus) -> None:
    torch.save(slim_published.state_dict(), tmp_path / "bare.pth")
    assert same_weights(load_teacher(tmp_path / "bare.pth"), slim_published)


def test_the_number_of_classes_is_read_off_the_checkpoint(
    tmp_path: Path, slim_published: DeepLabV3Plus, make_student: Callable[..., DeepLabV3Plus]
) -> None:
    torch.save(checkpoint(make_student("resnet101", 11).state_dict()), tmp_path / "camvid.pth.tar")
    assert load_teacher(tmp_path / "camvid.pth.tar").num_classes == 11


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_checkpoint_is_refused_and_does_not_run(tmp_path: Path, zipped: bool, refused) -> None:
    witness, path = tmp_path / "witness", tmp_path / "hostile.pth.tar"
    content = checkpoint({"a": torch.ones(2)}, Hostile(witness))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused(path, "system", call=lambda: load_teacher(path))
    assert not witness.exists()


def test_a_hostile_plain_pickle_is_refused_and_does_not_run(tmp_path: Path, refused) -> None:
    witness, path = tmp_path / "witness", tmp_path / "hostile.pth.tar"
    path.write_bytes(pickle.dumps(Hostile(witness), protocol=2))
    refused(path, call=lambda: load_teacher(path))
    assert not witness.exists()
    pickle.loads(path.read_bytes())  # the file does run code where it is trusted
    assert witness.exists()


def test_truncated_checkpoints_are_refused(tmp_path: Path, slim_published: DeepLabV3Plus, refused) -> None:
    path = tmp_path / "cut.pth.tar"
    for zipped in (True, False):
        torch.save(checkpoint(slim_published.state_dict()), path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for length in (0, 1, 2, 60, 500, 5000, len(whole) // 2, len(whole) - 20):
            path.write_bytes(whole[:length])
            refused(path, call=lambda: load_teacher(path))


def test_damaged_checkpoints_are_refused(tmp_path: Path, refused) -> None:
    path = tmp_path / "damaged.pth.tar"
    torch.save(checkpoint({"a": torch.ones(2)}), path, _use_new_zipfile_serialization=False)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):  # a byte more or less may still be a checkpoint, but never this network
        damaged = bytearray(whole)
        damaged[rng.integers(60, len(whole))] = rng.integers(256)
        path.write_bytes(damaged)
        refused(path, call=lambda: load_teacher(path))


@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>", b"PK\x03\x04", b"\x80\x02."])
def test_other_files_are_refused(tmp_path: Path, content: bytes, refused) -> None:
    path = tmp_path / "page.pth.tar"
    path.write_bytes(content)
    refused(path, "checkpoint", call=lambda: load_teacher(path))


@pytest.mark.parametrize("name", ["none.pth.tar", "none.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str, refused) -> None:
    refused(tmp_path / name, call=lambda: load_teacher(tmp_path / name))


def test_a_folder_is_no_teacher(tmp_path: Path, refused) -> None:
    refused(tmp_path, call=lambda: load_teacher(tmp_path))


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"a": 1}}, {"state_dict": {1: torch.ones(1)}}, "text"])
def test_checkpoints_without_tensors_are_refused(tmp_path: Path, content: object, refused) -> None:
    torch.save(content, tmp_path / "odd.pth.tar")
    refused("odd.pth.tar", "state dict", call=lambda: load_teacher(tmp_path / "odd.pth.tar"))


def test_checkpoints_of_other_networks_are_refused(
    tmp_path: Path, slim_published: DeepLabV3Plus, make_student: Callable[..., DeepLabV3Plus], refused
) -> None:
    path = tmp_path / "other.pth.tar"
    torch.save(checkpoint({"fc.weight": torch.ones(2, 2)}), path)
    refused(path, "not a DeepLabV3+", call=lambda: load_teacher(path))
    torch.save(checkpoint(make_student("resnet18").state_dict()), path)
    refused(path, "ResNet-101", call=lambda: load_teacher(path))


def test_freeze_stops_training_mode_and_gradients(make_student: Callable[..., DeepLabV3Plus]) -> None:
    model = make_student().train()
    assert freeze(model) is model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_fingerprint_tells_weights_and_buffers_apart(make_student: Callable[..., DeepLabV3Plus]) -> None:
    first, second = make_student(seed=0), make_student(seed=0)
    assert fingerprint(first) == fingerprint(second) != fingerprint(make_student(seed=1))
    assert fingerprint(second.to(memory_format=torch.channels_last)) == fingerprint(first)
    second.aspp.bn1.running_mean[0] += 1
    assert fingerprint(second) != fingerprint(first)


def test_build_model_has_the_published_keys() -> None:
    layout = json.loads((GOLDEN / "teacher_checkpoint_layout.json").read_text())["state_dict"]
    with torch.device("meta"):
        state = build_model("resnet101").state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == {
        key: shape for key, (shape, _) in layout.items()
    }


# ------------------------------------------------------------------------------------------- torchvision


@pytest.fixture(scope="module")
def torchvision_teacher() -> Wrapped:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return freeze(tap_torchvision(deeplabv3_resnet101(weights=None, weights_backbone=None, num_classes=21)))


def test_torchvisions_network_gives_maps_at_the_corresponding_positions(torchvision_teacher: Wrapped) -> None:
    images = torch.randn(1, 3, 65, 65, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, maps = torchvision_teacher(images, return_maps=True)
        assert_close(torchvision_teacher(images), logits)
        assert_close(torchvision_teacher.network(images)["out"], logits)
    assert logits.shape == (1, 21, 65, 65) and torchvision_teacher.num_classes == 21
    assert [tuple(m.shape[1:]) for m in maps] == [
        (256, 17, 17), (512, 9, 9), (1024, 9, 9), (2048, 9, 9), (256, 9, 9), (256, 9, 9)
    ]  # fmt: skip
    assert torchvision_teacher.map_channels == (256, 512, 1024, 2048, 256, 256)
    assert all((m < 0).any() for m in maps), "a map was taken after its ReLU"


def test_torchvisions_maps_are_what_the_next_layer_gets(torchvision_teacher: Wrapped) -> None:
    images, network = torch.randn(1, 3, 65, 65), torchvision_teacher.network
    with torch.no_grad(), record(network, ["backbone.layer2", "backbone.layer4", "classifier.3"]) as after:
        _, maps = torchvision_teacher(images, return_maps=True)
    for index, name in ((1, "backbone.layer2"), (3, "backbone.layer4"), (5, "classifier.3")):
        assert_close(maps[index].relu(), after[name])


@pytest.mark.parametrize("name", ["kd", "at", "ofd", "sakd"])
def test_torchvisions_network_teaches_by_every_method(
    name: str, torchvision_teacher: Wrapped, make_student: Callable[..., DeepLabV3Plus]
) -> None:
    student = make_student().train()
    method = build_method(name, torchvision_teacher, student)
    images, labels = torch.randn(2, 3, 65, 65), torch.randint(0, 21, (2, 65, 65))
    with torch.no_grad():
        answer = torchvision_teacher(images, return_maps=True)
    loss, parts = method(student(images, return_maps=True), answer, labels)
    loss.backward()
    assert set(parts) == {"ce", name} and parts[name] > 0 and torch.isfinite(loss)
    assert all(p.grad is None for p in torchvision_teacher.parameters())


def test_torchvisions_network_predicts_at_the_images_size(torchvision_teacher: Wrapped) -> None:
    mask = predict(torchvision_teacher, np.zeros((65, 48, 3), np.uint8))
    assert mask.shape == (65, 48) and mask.dtype == np.uint8


def test_torchvisions_network_refuses_a_student_of_other_classes(
    torchvision_teacher: Wrapped, make_student: Callable[..., DeepLabV3Plus], refused: Callable[..., str]
) -> None:
    student = make_student(num_classes=11)
    refused("21 classes", "11", call=lambda: build_method("kd", torchvision_teacher, student))


def test_torchvisions_weights_are_loaded_frozen_and_without_the_auxiliary_classifier(
    monkeypatch: pytest.MonkeyPatch, torchvision_teacher: Wrapped
) -> None:
    state = torchvision_teacher.network.state_dict() | {"aux_classifier.0.weight": torch.ones(1)}
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *arguments, **options: state)
    before = torch.random.get_rng_state()
    teacher = load_teacher("torchvision")
    assert torch.equal(torch.random.get_rng_state(), before), "random weights were drawn only to be replaced"
    assert same_weights(teacher, torchvision_teacher)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_weights_that_cannot_be_downloaded_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        assert options["weights_only"] is True
        raise OSError("no route to host\nand a second line")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    folder = tmp_path / "hub" / "checkpoints"
    words = "no route to host", f"put deeplabv3_resnet101_coco-586e9e4e.pth into {folder}"
    refused(*words, call=lambda: load_teacher("torchvision"))


@pytest.mark.parametrize("kind", ["empty", "page", "hostile", "other network", "no network"])
def test_a_file_in_the_place_of_torchvisions_weights_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    witness, path = tmp_path / "witness", tmp_path / "hub" / "checkpoints" / "deeplabv3_resnet101_coco-586e9e4e.pth"
    path.parent.mkdir(parents=True)
    contents = {"hostile": {"a": Hostile(witness)}, "other network": {"a": torch.ones(2)}, "no network": [1, 2]}
    if kind in contents:
        torch.save(contents[kind], path)
    else:
        path.write_bytes({"empty": b"", "page": b"<html>404 not found</html>"}[kind])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    message = refused(path, "replace it", call=lambda: load_teacher("torchvision"))
    assert "weights_only" not in message, "PyTorch's own message advises to let the file run its code"
    assert not witness.exists()


# ------------------------------------------------------------------------------------ networks of other libraries

STAGES = ("layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def smp_network() -> torch.nn.Module:
    """segmentation_models_pytorch's DeepLabV3+ on ResNet-18, with random weights: images must be multiples of 16."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    return smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=21)


@pytest.fixture(scope="module")
def segformer() -> torch.nn.Module:
    """A small SegFormer of Hugging Face's transformers, with random weights: its stages have no BatchNorm."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    shape = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]}
    return SegformerForSemanticSegmentation(SegformerConfig(**shape, decoder_hidden_size=16, num_labels=21))


SMP_POSITIONS = {
    **{stage: f"encoder.{stage}.1.relu:input" for stage in STAGES},
    "aspp": "decoder.aspp.0.project.1",
    "decoder": "decoder.block2.1",
}
# The blocks of a stage give tokens (N, H·W, C); the head's BatchNorm gives a map.
SEGFORMER_POSITIONS = {
    **{stage: f"segformer.stages.{index}.blocks.0" for index, stage in enumerate(STAGES)},
    "decoder": "decode_head.batch_norm",
}


@pytest.fixture
def foreign(request: pytest.FixtureRequest) -> tuple[Wrapped, tuple[str, ...]]:
    """One of the two networks as a teacher, and the positions at which it has maps."""
    positions = {"smp_network": SMP_POSITIONS, "segformer": SEGFORMER_POSITIONS}[request.param]
    return load_teacher(request.getfixturevalue(request.param), positions=positions), tuple(positions)


both = pytest.mark.parametrize("foreign", ["smp_network", "segformer"], indirect=True)


@both
def test_a_foreign_network_is_frozen_and_answers_at_any_size(foreign: tuple[Wrapped, tuple[str, ...]]) -> None:
    teacher, positions = foreign
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.num_classes == 21
    for height, width in ((64, 96), (65, 65), (50, 33)):
        logits, maps = teacher(torch.randn(2, 3, height, width), return_maps=True)
        assert logits.shape == (2, 21, height, width)
        assert tuple(feature.shape[1] for feature in maps) == teacher.map_channels
        for position, feature in zip(distill.POSITIONS, maps, strict=True):
            present = position in positions
            assert (feature.numel() > 0) == present and feature.dim() == 4
            if present:  # a map has the image's proportions, up to a place
                stride = -(-height // teacher.divisor) * teacher.divisor / feature.shape[2]
                assert abs(feature.shape[3] - -(-width // teacher.divisor) * teacher.divisor / stride) <= 1


def test_a_network_that_takes_multiples_only_gets_its_own_logits_where_it_can(smp_network: torch.nn.Module) -> None:
    teacher, images = load_teacher(smp_network), torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        assert torch.equal(teacher(images), smp_network(images))
    assert teacher.divisor == 16 and predict(teacher, np.zeros((50, 33, 3), np.uint8)).shape == (50, 33)


def test_maps_of_tokens_keep_rows_and_columns_apart(segformer: torch.nn.Module) -> None:
    """A stage's own output is its last block's tokens, normalised and put in place by the library itself."""
    teacher = load_teacher(segformer, positions={"layer1": "segformer.stages.0.layer_norm"})
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad(), record(segformer, ["segformer.stages.0"]) as stage:
        _, maps = teacher(images, return_maps=True)
    assert torch.equal(maps[0], stage["segformer.stages.0"])


@both
@pytest.mark.parametrize("name", ["kd", "at", "ofd", "sakd"])
def test_a_foreign_network_teaches(
    foreign: tuple[Wrapped, tuple[str, ...]],
    name: str,
    make_student: Callable[..., DeepLabV3Plus],
    tiny_sample: Path,
    tmp_path: Path,
) -> None:
    teacher, positions = foreign
    positions = ("decoder",) if name == "ofd" and len(positions) == 5 else positions  # where SegFormer has a BatchNorm
    chosen = {} if name == "kd" else {"positions": [p for p in positions if name != "at" or p in STAGES]}
    settings = {"epochs": 1, "batch_size": 8, "crop_size": 32, "progress": False, "device": "cpu"}
    before = fingerprint(teacher)
    run = distill.fit(
        make_student(), name, teacher, "sample", data_root=tiny_sample, out=tmp_path, method_options=chosen, **settings
    )
    assert run.history[-1][name] > 0 and np.isfinite(run.history[-1]["loss"])
    assert fingerprint(teacher) == before == run.config["teacher"]["weights"]


def test_margins_come_from_the_batchnorm_before_each_map(smp_network: torch.nn.Module) -> None:
    """ResNet-18 registers its only ReLU before bn2: what ran last counts, not what was named last."""
    norms = load_teacher(smp_network, positions=SMP_POSITIONS).map_norms()
    assert norms[:4] == [smp_network.get_submodule(f"encoder.{stage}.1.bn2") for stage in STAGES]
    assert norms[5] is smp_network.get_submodule("decoder.block2.1")
    given = load_teacher(smp_network, positions=SMP_POSITIONS, norms={"layer1": "encoder.layer1.0.bn2"})
    assert given.map_norms()[0] is smp_network.get_submodule("encoder.layer1.0.bn2")


def test_ofd_says_where_a_teacher_has_no_batchnorm(
    segformer: torch.nn.Module, make_student: Callable[..., DeepLabV3Plus], refused: Callable[..., str]
) -> None:
    teacher = load_teacher(segformer, positions=SEGFORMER_POSITIONS)
    words = "no BatchNorm at layer1", "sakd or kd instead"
    refused(*words, call=lambda: build_method("ofd", teacher, make_student(), positions=STAGES))
    refused("no map at aspp", "kd", call=lambda: build_method("sakd", teacher, make_student()))
    refused("no map at layer1", call=lambda: build_method("at", load_teacher(segformer), make_student()))


def test_faults_in_naming_positions_are_named(smp_network: torch.nn.Module, refused: Callable[..., str]) -> None:
    def load(**given: object) -> None:
        load_teacher(smp_network, **given)

    refused("encoder.layer9", "did you mean", call=lambda: load(positions={"layer1": "encoder.layer9"}))
    refused("stem", "positions", call=lambda: load(positions={"stem": "encoder.layer1"}))
    refused("positions", "six", call=lambda: load(positions=["encoder.layer1"] * 7))
    refused("no submodule", call=lambda: load(norms={"layer1": "encoder.nothing"}))
    refused("21 classes", "2 class_names", call=lambda: load(class_names=["a", "b"]))
    refused("layer", "tuple", call=lambda: load_teacher(Pair(), positions={"layer1": "twin"}))
    refused("sample", "has its own", call=lambda: load_teacher("sample", positions={"layer1": "backbone.layer1"}))


class Pair(torch.nn.Module):
    """A network with a layer that gives a tuple."""

    class Twin(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple:
            return x, x

    def __init__(self) -> None:
        super().__init__()
        self.twin, self.conv = Pair.Twin(), torch.nn.Conv2d(3, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(self.twin(images)[0])


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (torch.nn.Linear(3, 4), ("does not answer", "normalised images")),
        (torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 4)), ("Tensor",)),
    ],
)
def test_a_network_that_gives_no_logits_is_refused(
    network: torch.nn.Module, words: tuple[str, ...], refused: Callable[..., str]
) -> None:
    refused(*words, call=lambda: load_teacher(network))


# ------------------------------------------------------------------------------------------------- classes


def test_a_teacher_of_other_classes_is_refused_and_the_classes_are_named(
    voc_folder: Callable[..., Path], make_student: Callable[..., DeepLabV3Plus], refused: Callable[..., str]
) -> None:
    masks = [np.zeros((40, 40), np.uint8)] * 2
    names = ("_background_", "road", "tree")
    root = voc_folder({"train": masks, "val": masks}, names)
    teacher = make_student("resnet101", num_classes=3)

    def train(*known: str) -> None:
        teacher.class_names = known
        distill.fit(make_student(num_classes=3), "kd", teacher, root, crop_size=32, out=root / "run", device="cpu")

    refused("only the teacher knows river", "only the data has road", call=lambda: train("background", "river", "tree"))
    refused("differ in order", call=lambda: train("background", "tree", "road"))
    refused("21 classes", "3", call=lambda: distill.fit(make_student(num_classes=3), "kd", "sample", root))
    assert not (root / "run").exists()


def test_the_samples_teacher_is_not_taken_for_vocs(
    voc_folder: Callable[..., Path], refused: Callable[..., str]
) -> None:
    masks = [np.zeros((40, 40), np.uint8)] * 2
    root = voc_folder({"train": masks, "val": masks})
    refused(
        "only the teacher knows", "aeroplane", call=lambda: distill.fit("resnet18", "kd", data="pascal", data_root=root)
    )
    refused("network", "aeroplane", call=lambda: distill.evaluate(load_teacher(), distill.open_dataset(root, "val")))


def test_further_metadata_does_not_take_the_place_of_the_models_own(
    tmp_path: Path, make_student: Callable[..., DeepLabV3Plus]
) -> None:
    network = make_student()
    network.class_names = None
    save_model(network, tmp_path / "m.safetensors", metadata={"class_names": ["a", "b"], "of": "mine"})
    assert distill.load_model(tmp_path / "m.safetensors").class_names is None


def test_class_names_are_kept_with_the_weights(tmp_path: Path, make_student: Callable[..., DeepLabV3Plus]) -> None:
    model = make_student(num_classes=2)
    model.class_names = ("sky", "straße")
    save_model(model, tmp_path / "named.safetensors")
    assert load_teacher(tmp_path / "named.safetensors").class_names == ("sky", "straße")
    assert load_teacher(tmp_path / "named.safetensors", class_names=["a", "b"]).class_names == ("a", "b")


def test_names_of_another_number_of_classes_are_refused(refused: Callable[..., str]) -> None:
    refused("2 class_names", "21 classes", call=lambda: load_teacher("sample", class_names=["a", "b"]))


def test_norms_alone_are_refused_where_they_would_be_ignored(refused: Callable[..., str]) -> None:
    network = build_model("resnet18", width=0.25)
    refused("positions", call=lambda: load_teacher(network, norms={"aspp": "aspp.bn1"}))


def test_other_taps_make_another_run(tmp_path: Path, tiny_sample: Path, refused: Callable[..., str]) -> None:
    """With the same weights: which layers are compared shapes a run as much as what they hold."""
    from conftest import tiny_network

    def run(layer: str) -> distill.Run:
        network = tiny_network("resnet18", seed=7)
        teacher = load_teacher(network, positions={"layer4": layer})
        options = {"positions": ["layer4"]}
        given = {"data_root": tiny_sample, "epochs": 1, "batch_size": 8, "limit": 8, "progress": False, "device": "cpu"}
        return distill.fit(tiny_network(), "sakd", teacher, out=tmp_path / "run", method_options=options, **given)

    found = run("aspp.bn1").config["teacher"]["taps"]
    assert found["positions"] == {"layer4": "aspp.bn1"}
    assert found["norms"] == {"layer4": "aspp.bn1"}
    refused("teacher", "--out", call=lambda: run("decoder.last_conv.5"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_teacher_in_half_precision_answers_in_float32(dtype: torch.dtype) -> None:
    network = build_model("resnet18", width=0.25).to(dtype)
    teacher = load_teacher(network)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    assert teacher(torch.zeros(1, 3, 33, 33)).dtype == torch.float32


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", True])
def test_a_device_that_there_is_not_is_named(device: object, refused) -> None:
    refused(repr(device), "choose cpu", call=lambda: load_teacher("sample", device))
