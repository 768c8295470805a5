"""The networks: golden figures, shapes and counts, maps and taps, files, and mistakes."""

import copy
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import golden_numbers
import numpy as np
import pytest
import torch
from conftest import tiny_network
from safetensors.torch import save_file
from torch import nn

from distill import networks
from distill.errors import DistillError
from distill.losses import class_weights
from distill.networks.taps import eval_mode

PARAMETERS = {"resnet101": 59_344_309, "resnet18": 16_608_181, "mobilenetv2": 5_816_053}
SLIM = {"width": 0.125, "atrous_rates": (2, 3, 4)}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small tensors gain nothing from threads, which on a busy machine wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def build():
    """`build_model` at width 1 with golden weights; each network is made once and handed out in eval mode."""
    made = {}

    def get(backbone):
        if backbone not in made:
            made[backbone] = golden_numbers.fill(networks.build_model(backbone))
        return made[backbone].float().eval()

    return get


def slim(backbone="resnet18", **changes):
    torch.manual_seed(0)
    return networks.build_model(backbone, **{**SLIM, **changes})


def images(batch=2, size=32):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


# --------------------------------------------------------------------------------------------- golden figures

CASES = golden_numbers.load("networks")["networks"]


@pytest.mark.parametrize("dtype, rel", [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['backbone']}-{case['input'][3]}")
def test_golden_figures(build, case, dtype, rel):
    model = build(case["backbone"]).to(dtype)
    with torch.no_grad():
        logits, maps = model(golden_numbers.images(case["input"]).to(dtype), return_maps=True)
    golden_numbers.check_summary(logits, case["logits"], rel)
    assert len(maps) == len(case["features"]) == len(networks.POSITIONS)
    for x, expected in zip(maps, case["features"], strict=True):
        golden_numbers.check_summary(x, expected, rel)


def test_golden_check_can_fail():
    expected = CASES[1]["logits"]
    with pytest.raises(AssertionError, match="off by"):
        golden_numbers.check_summary(torch.zeros(expected["shape"]), expected, 1e-4)


def test_checkpoint_layout(build):
    layout = golden_numbers.load("teacher_checkpoint_layout")["state_dict"]
    state = build("resnet101").state_dict()
    ours = {key: [list(value.shape), str(value.dtype).split(".")[1]] for key, value in state.items()}
    assert len(layout) == 680
    assert list(ours.items()) == list(layout.items())


# ------------------------------------------------------------------------------------------ counts and shapes


@pytest.mark.parametrize("backbone", networks.BACKBONES)
def test_parameter_count(build, backbone):
    assert count(build(backbone)) == PARAMETERS[backbone]


@pytest.mark.parametrize(
    "arguments, millions",
    [
        ({"backbone": "resnet101", "width": 0.25}, 3.73),
        ({"backbone": "resnet18", "width": 0.25}, 1.04),
        ({"backbone": "mobilenetv2", "width": 0.35, "head_width": 0.125}, 0.381),
    ],
)
def test_slim_parameter_count(arguments, millions):
    assert count(networks.build_model(**arguments)) / 1e6 == pytest.approx(millions, rel=0.005)


def test_map_channels(build):
    assert build("resnet101").map_channels == (256, 512, 1024, 2048, 256, 256)
    assert build("resnet18").map_channels == (64, 128, 256, 512, 256, 256)
    assert build("mobilenetv2").map_channels == (144, 192, 576, 320, 256, 256)


@pytest.mark.parametrize("backbone", networks.BACKBONES)
@pytest.mark.parametrize("stride, sizes", [(16, (9, 5, 3, 3, 3, 9)), (8, (9, 5, 5, 5, 5, 9))])
def test_map_shapes(backbone, stride, sizes):
    model = slim(backbone, output_stride=stride, num_classes=5).eval()
    logits, maps = model(images(size=33), return_maps=True)
    assert logits.shape == (2, 5, 33, 33)
    expected = [(2, channels, size, size) for channels, size in zip(model.map_channels, sizes, strict=True)]
    assert [tuple(x.shape) for x in maps] == expected


@pytest.mark.parametrize("backbone", networks.BACKBONES)
def test_images_of_any_size(backbone):
    assert slim(backbone).eval()(torch.zeros(1, 3, 50, 71)).shape == (1, 21, 50, 71)


def atrous(stage):
    """(stride, dilation) of the convolutions that see more than one pixel."""
    convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    return [(conv.stride[0], conv.dilation[0]) for conv in convs]


def test_atrous_stages():
    deep, shallow = slim("resnet101").backbone, slim("resnet18").backbone
    assert atrous(deep.layer4) == [(1, 2), (1, 4), (1, 8)]
    assert atrous(shallow.layer4) == [(1, 2)] * 4
    deep, shallow = slim("resnet101", output_stride=8).backbone, slim("resnet18", output_stride=8).backbone
    assert atrous(deep.layer3) == [(1, 2)] * 23
    assert atrous(deep.layer4) == [(1, 4), (1, 8), (1, 16)]
    assert atrous(shallow.layer3) == [(1, 2)] * 4
    assert atrous(shallow.layer4) == [(1, 4)] * 4
    assert atrous(slim("mobilenetv2").backbone.features[14:]) == [(1, 1)] + [(1, 2)] * 3
    strided = slim("mobilenetv2", output_stride=8).backbone.features
    assert atrous(strided[7:]) == [(1, 1)] + [(1, 2)] * 7 + [(1, 4)] * 3


@pytest.mark.parametrize("stride, rates", [(16, (6, 12, 18)), (8, (12, 24, 36))])
def test_default_atrous_rates(stride, rates):
    aspp = networks.build_model("resnet18", output_stride=stride, width=0.1).aspp
    assert [branch.atrous_conv.dilation[0] for branch in (aspp.aspp2, aspp.aspp3, aspp.aspp4)] == list(rates)


def test_narrow_shortcuts_equal_strided_convolutions():
    """In double precision, which oneDNN leaves to others."""
    model = networks.build_model("resnet18", width=0.0625, atrous_rates=(2, 3, 4)).double().eval()
    images = torch.rand(2, 3, 37, 50, dtype=torch.double)
    answers, gradients = [], []
    for strided in (False, True):
        narrow = [model.backbone.layer2[0].downsample[0], model.backbone.layer3[0].downsample[0]]
        if strided:
            for stage, own in zip((model.backbone.layer2, model.backbone.layer3), narrow, strict=True):
                stage[0].downsample[0] = nn.Conv2d(own.in_channels, own.out_channels, 1, stride=2, bias=False).double()
                stage[0].downsample[0].weight = own.weight
        else:
            assert all(own.stride == (1, 1) and own.in_channels < 16 for own in narrow)
        answers.append(model(images))
        gradients.append(torch.autograd.grad(answers[-1].square().mean(), [own.weight for own in narrow]))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_given_atrous_rates_are_used_as_given():
    aspp = slim(output_stride=8, atrous_rates=[1, 2, 5]).aspp
    assert [branch.atrous_conv.dilation[0] for branch in (aspp.aspp2, aspp.aspp3, aspp.aspp4)] == [1, 2, 5]


def test_dropout_rates():
    rates = [module.p for module in slim().modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.5, 0.5, 0.1]


def test_zero_init_residual():
    model = slim("resnet18", zero_init_residual=True)
    assert all((block.bn2.weight == 0).all() for block in model.backbone.layer3)
    assert not (slim("resnet18").backbone.layer3[0].bn2.weight == 0).any()


def test_alias():
    assert slim("mobilenet").config["backbone"] == "mobilenetv2"


def test_parameter_groups():
    model = slim()
    backbone, head = networks.parameter_groups(model)
    assert sum(p.numel() for p in backbone) + sum(p.numel() for p in head) == count(model)
    assert backbone[0] is model.backbone.conv1.weight
    assert head[-1] is model.decoder.last_conv[8].bias


# ------------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize("backbone", networks.BACKBONES)
def test_maps_leave_the_logits_alone(backbone):
    model = slim(backbone).eval()
    x = images()
    assert torch.equal(model(x, return_maps=True)[0], model(x))


@pytest.mark.parametrize("backbone", networks.BACKBONES)
@pytest.mark.parametrize("training", [True, False])
def test_maps_are_before_their_relu(backbone, training):
    _, maps = slim(backbone).train(training)(images(), return_maps=True)
    assert all((x < 0).any() and (x > 0).any() for x in maps)


def test_resnet_maps_are_the_sums_that_leave_the_stages():
    model = slim("resnet101").eval()
    stages = [f"backbone.{stage}" for stage in networks.POSITIONS[:4]]
    with networks.record(model, stages) as outputs:
        _, maps = model(images(), return_maps=True)
    for x, name in zip(maps, stages, strict=False):
        assert torch.equal(x.relu(), outputs[name])


@pytest.mark.parametrize("backbone", networks.BACKBONES)
def test_map_norms_lead_to_the_maps(backbone):
    model = slim(backbone).eval()
    norms = model.map_norms()
    names = [next(name for name, module in model.named_modules() if module is norm) for norm in norms]
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in norms)
    # Moving a norm's bias by one moves its map by one, and no map of an earlier position.
    before = [x.detach() for x in model(images(), return_maps=True)[1]]
    for index, norm in enumerate(norms):
        with torch.no_grad():
            norm.bias += 1
            after = model(images(), return_maps=True)[1]
            norm.bias -= 1
        assert torch.allclose(after[index], before[index] + 1, atol=1e-4), names[index]
        assert all(torch.equal(a, b) for a, b in zip(after[:index], before[:index], strict=True))


@pytest.mark.parametrize("backbone", networks.BACKBONES)
def test_gradient_flows_through_each_map(backbone):
    model = slim(backbone)
    first = next(model.backbone.parameters())
    _, maps = model(images(), return_maps=True)
    for x in maps:
        (gradient,) = torch.autograd.grad(x.square().sum(), first, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_forward_leaves_nothing_behind():
    model = slim()
    logits, maps = model(images(), return_maps=True)
    alive = [weakref.ref(x) for x in maps]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    twin = copy.deepcopy(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.modules())
    del logits, maps
    gc.collect()
    assert not any(reference() is not None for reference in alive)


def test_maps_in_inference_mode():
    model = slim().eval()
    with torch.inference_mode():
        logits, maps = model(images(), return_maps=True)
    assert torch.equal(logits, model(images()))
    assert len(maps) == 6


# ------------------------------------------------------------------------------------------------------- taps


def small_network(inplace=False):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=inplace), nn.Conv2d(4, 2, 1))


def test_record_any_network():
    network = small_network()
    with networks.record(network, ["1", "2:input", "2"]) as taps:
        network(images())
    assert taps["1"] is taps["2:input"]
    assert torch.equal(taps["1"].relu(), taps["2"])


def test_record_removes_its_hooks_after_an_error():
    network = small_network()
    with pytest.raises(RuntimeError), networks.record(network, ["0"]):
        network(torch.zeros(1, 7, 8, 8))
    assert not network[0]._forward_hooks


def test_record_notices_overwritten_tensors():
    network = small_network(inplace=True)
    with pytest.raises(DistillError, match=r"'1' was overwritten.*inplace"), networks.record(network, ["1"]):
        network(images())


def test_record_unknown_names():
    network = slim()
    with (
        pytest.raises(DistillError, match=r"did you mean 'backbone.layer1'"),
        networks.record(network, ["aspp", "backbone.layr1"]),
    ):
        pass
    assert not network.aspp._forward_hooks
    with pytest.raises(DistillError, match=":input"), networks.record(network, ["aspp:output"]):
        pass


# ------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("backbone", networks.BACKBONES)
def test_save_and_load(backbone, tmp_path):
    model = slim(backbone, head_width=0.125, num_classes=4, output_stride=8)
    model(images())  # moves the running statistics
    path = tmp_path / "new" / "student.safetensors"
    networks.save_model(copy.deepcopy(model).to(memory_format=torch.channels_last), path, {"data": "sample"})
    generator = torch.get_rng_state()
    loaded = networks.load_model(path)
    assert torch.equal(torch.get_rng_state(), generator)
    assert loaded.config == model.config
    assert [file.name for file in path.parent.iterdir()] == ["student.safetensors"]
    state = loaded.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value), key
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images()), model.eval()(images()))


def test_save_half(tmp_path):
    model = slim()
    model(images())
    networks.save_model(model, tmp_path / "full.safetensors")
    networks.save_model(model, tmp_path / "half.safetensors", half=True)
    half, full = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "full"))
    assert half < 0.6 * full  # the header stays as long as it was
    loaded = networks.load_model(tmp_path / "half.safetensors")
    for key, value in loaded.state_dict().items():
        assert value.dtype == (torch.int64 if key.endswith("num_batches_tracked") else torch.float32)
    assert loaded.backbone.bn1.num_batches_tracked == 1
    torch.testing.assert_close(loaded.aspp.conv1.weight, model.aspp.conv1.weight, rtol=1e-3, atol=1e-6)


def test_save_half_refuses_what_does_not_fit(tmp_path):
    model = slim()
    model.backbone.bn1.running_var.fill_(1e6)
    with pytest.raises(DistillError, match=r"backbone.bn1.running_var.*half=False"):
        networks.save_model(model, tmp_path / "half.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_config_rebuilds_the_model():
    model = slim("mobilenetv2", width=0.5, head_width=None, output_stride=8, num_classes=3)
    twin = networks.build_model(**model.config)
    assert twin.config == model.config
    assert [p.shape for p in twin.parameters()] == [p.shape for p in model.parameters()]


def test_load_mistakes(tmp_path):
    with pytest.raises(DistillError, match=r"No file .*missing.safetensors"):
        networks.load_model(tmp_path / "missing.safetensors")
    path = tmp_path / "text.safetensors"
    path.write_text("these are not weights")
    with pytest.raises(DistillError, match=r"text.safetensors' is not a readable safetensors file"):
        networks.load_model(path)
    save_file({"x": torch.zeros(1)}, path, {"made_by": "another program"})
    with pytest.raises(DistillError, match=r"no 'config'.*made_by"):
        networks.load_model(path)
    save_file({"x": torch.zeros(1)}, path, {"config": '{"backbone": "resnet18", "depth": 3}'})
    with pytest.raises(DistillError, match=r"does not build a model.*depth"):
        networks.load_model(path)
    save_file({"x": torch.zeros(1)}, path, {"config": '{"backbone": "resnet18", "width": 0.1}'})
    with pytest.raises(DistillError, match="do not fit its config"):
        networks.load_model(path)


# --------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"backbone": "resnet-18"}, "did you mean 'resnet18'"),
        ({"backbone": "vgg16"}, "there are resnet101, resnet18, mobilenetv2"),
        ({"backbone": 18}, "no backbone '18'"),
        ({"output_stride": 32}, "output_stride must be 16 or 8, not 32"),
        ({"output_stride": [16]}, r"output_stride must be 16 or 8, not \[16\]"),
        ({"num_classes": True}, "num_classes must be a whole number of at least 1, not True"),
        ({"width": 0}, "width must be a number above 0"),
        ({"width": -0.5}, "width must be a number above 0"),
        ({"head_width": 0.0}, "head_width must be a number above 0"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1"),
        ({"atrous_rates": (6, 12)}, "atrous_rates must be three whole numbers"),
        ({"atrous_rates": 6}, "atrous_rates must be three whole numbers"),
        ({"weights": "DEFAULT"}, "fit width 1.0 only, not 0.125"),
        ({"weights": "IMAGENET", "width": 1.0}, "choose None or one of IMAGENET1K_V1, DEFAULT"),
    ],
)
def test_build_mistakes(arguments, message):
    with pytest.raises(DistillError, match=message):
        networks.build_model(**{"backbone": "resnet18", **SLIM, **arguments})


def test_batch_of_one_cannot_train():
    model = slim("mobilenetv2")
    with pytest.raises(DistillError, match="batch size 1"):
        model(images(batch=1))
    model.aspp.global_avg_pool.eval()  # what the message proposes
    assert model(images(batch=1)).shape == (1, 21, 32, 32)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2"])
def test_backbone_weights(backbone, monkeypatch):
    from torchvision import models as zoo

    name = {"mobilenetv2": "mobilenet_v2"}.get(backbone, backbone)
    state = golden_numbers.fill(zoo.get_model(name)).state_dict()
    monkeypatch.setattr(zoo.WeightsEnum, "get_state_dict", lambda self, **_: state)
    model = networks.build_model(backbone, weights="DEFAULT")
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_weights_that_cannot_be_downloaded(monkeypatch):
    from torchvision.models import WeightsEnum

    def offline(self, **_):
        raise OSError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(DistillError, match=r"Could not download .*resnet18.*no route to host"):
        networks.build_model("resnet18", weights="IMAGENET1K_V1")


@pytest.mark.parametrize("backbone", networks.BACKBONES)
def test_compiled_with_maps_it_is_one_graph_with_the_same_numbers(backbone: str) -> None:
    """Hooks and their checks would break it into twenty or so."""
    torch._dynamo.reset()
    graphs = []

    def counted(graph: torch.fx.GraphModule, _: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    network = tiny_network(backbone).eval()
    images = torch.randn(2, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, maps = network(images, return_maps=True)
        compiled_logits, compiled_maps = torch.compile(network, backend=counted, fullgraph=True)(
            images, return_maps=True
        )
    assert len(graphs) == 1
    assert torch.equal(logits, compiled_logits)
    assert all(torch.equal(own, other) for own, other in zip(maps, compiled_maps, strict=True))


def test_a_config_that_would_download_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import WeightsEnum

    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: pytest.fail("it would download"))
    model = networks.build_model("resnet18", width=0.25)
    model.config = {"backbone": "resnet18", "weights": "DEFAULT"}
    networks.save_model(model, tmp_path / "strange.safetensors")
    with pytest.raises(DistillError, match="'weights'"):
        networks.load_model(tmp_path / "strange.safetensors")


def test_threads_take_turns_with_a_network_in_training_mode() -> None:
    """Else one would put the mode back in the middle of another's pass, and its statistics would move."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    before = network[1].running_mean.clone()

    def ask(_: int) -> None:
        with eval_mode(network), torch.no_grad():
            network(torch.rand(1, 3, 64, 64))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, range(200)))
    assert network.training and torch.equal(network[1].running_mean, before)
    network[1].eval()
    with eval_mode(network):
        assert not any(module.training for module in network.modules())
    assert network.training and not network[1].training, "every module gets its own mode back"


def test_numpys_numbers_are_numbers(tmp_path: Path) -> None:
    numbers = {"output_stride": np.int64(16), "width": np.float32(0.25), "atrous_rates": tuple(np.array([2, 3, 4]))}
    network = networks.build_model("resnet18", np.uint8(4) + 1, **numbers)
    networks.save_model(network, tmp_path / "network.safetensors")
    assert networks.load_model(tmp_path / "network.safetensors").num_classes == 5


def test_class_weights_are_undone_in_the_logits_and_in_a_copy(tmp_path: Path) -> None:
    network = tiny_network("resnet18").eval()
    weights = torch.linspace(0.5, 4.0, network.num_classes)
    images = torch.randn(2, 3, 33, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(images)
        networks.save_model(networks.undo_class_weights(network, weights, 0.75), tmp_path / "undone.safetensors")
        after = networks.load_model(tmp_path / "undone.safetensors").eval()(images)
        assert torch.equal(network(images), before), "the network itself is as it was"
        none = networks.undo_class_weights(network, weights, 0.0)(images)
    torch.testing.assert_close(after, before - 0.75 * weights.log().view(1, -1, 1, 1), rtol=1e-5, atol=1e-5)
    assert torch.equal(none, before)


def test_what_class_weights_cannot_be_undone_of() -> None:
    network = tiny_network("resnet18")
    for wrong in (torch.ones(3), torch.zeros(network.num_classes)):
        with pytest.raises(DistillError, match="one for each of the"):
            networks.undo_class_weights(network, wrong)
    with pytest.raises(DistillError, match="whose last layer is not known"):
        networks.undo_class_weights(nn.Conv2d(3, 21, 1), torch.ones(21))


def test_undone_class_weights_leave_the_probabilities_of_the_pixels() -> None:
    """A single logit per class, trained with weights until nothing changes, on pixels of known frequencies."""
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    weights = class_weights(torch.bincount(labels))
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(logits.expand(len(labels), 3), labels, weights.double())
        loss.backward()
        return loss

    optimizer.step(closure)
    undone = (logits.detach() - weights.double().log()).softmax(0)
    assert undone.tolist() == pytest.approx([0.7, 0.2, 0.1], abs=1e-4)
    assert logits.detach().softmax(0)[2] > 0.2, "with the weights the rarest class has more than its share"
