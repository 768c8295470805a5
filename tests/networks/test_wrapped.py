"""Networks of other libraries as students: positions, training, files, and what is said where something is missing."""

import copy
import itertools
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn

import distill
from distill import fit, load_teacher, suggest_positions, wrap
from distill.errors import DistillError, Interrupted
from distill.methods import POSITIONS
from distill.networks import load_model, save_model
from distill.networks.teachers import fingerprint

CLASSES = 21
NARROW = {"decoder_channels": (32, 16, 8, 8, 8)}


def unet() -> nn.Module:
    torch.manual_seed(0)
    return smp.Unet("mobilenet_v2", encoder_weights=None, classes=CLASSES, **NARROW)


def segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(1)
    sizes = {"hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 16, "depths": [1, 1, 1, 1]}
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=CLASSES, **sizes))


class Plain(nn.Module):
    """One part, which goes down and comes up again."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(c, 8, 3, stride=2, padding=1) for c in (3, 8, 8))
        self.up, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2:]
        for layer in self.down:
            x = torch.relu(layer(x))
        x = self.up(nn.functional.interpolate(x, scale_factor=2))
        return nn.functional.interpolate(self.last(x), size)


# Which layers


def test_positions_are_the_last_layers_of_each_stride(capsys: pytest.CaptureFixture[str]) -> None:
    assert suggest_positions(unet()) == {
        "layer1": "encoder.features.4.conv.0.2:input",
        "layer2": "encoder.features.7.conv.0.2:input",
        "layer3": "encoder.features.14.conv.0.2:input",
        "layer4": "encoder.features.18.2:input",
        "decoder": "decoder.blocks.4.conv2.2:input",
    }
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["position", "stride", "channels", "layer"] and len(table) == 6
    assert table[4].split() == ["layer4", "32", "1280", "encoder.features.18.2:input"]


def test_tokens_and_what_attention_shrinks_do_not_mislead_it() -> None:
    stages = {f"layer{i + 1}": f"segformer.stages.{i}" for i in range(4)}
    assert suggest_positions(segformer(), show=False) == stages | {"decoder": "decode_head.activation:input"}


def test_our_own_network_gets_our_own_positions() -> None:
    network = distill.make_student("resnet18", CLASSES)
    found = suggest_positions(network, show=False)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours = dict(zip(POSITIONS, network.eval()(images, return_maps=True)[1], strict=True))
        theirs = dict(zip(POSITIONS, wrap(network, found).eval()(images, return_maps=True)[1], strict=True))
    assert found.keys() == {"layer1", "layer2", "layer4", "aspp", "decoder"}  # two of its stages have stride 16
    assert all(torch.equal(ours[position], theirs[position]) for position in found)


def test_a_network_of_one_part_and_one_of_no_maps(refused: Callable[..., str]) -> None:
    assert suggest_positions(Plain(), show=False) == {"layer1": "down.1", "layer4": "down.2", "decoder": "up"}
    refused("no maps of two sizes", call=lambda: suggest_positions(nn.Conv2d(3, CLASSES, 1)))


class Reused(nn.Module):
    """One ReLU for all layers, of which `record` would see the last run alone."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 8, 3, stride=2, padding=1) for c in (3, 8, 8))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.relu, self.last = nn.ReLU(), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        size = x.shape[2:]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.relu(norm(conv(x)))
        return {"logits": nn.functional.interpolate(self.last(x), size)}


def test_a_relu_that_runs_several_times_stands_for_no_map_but_its_last() -> None:
    found = suggest_positions(Reused(), show=False)
    assert found == {"layer1": "norms.1", "layer4": "relu:input"}
    maps = wrap(Reused(), found).eval()(torch.randn(1, 3, 64, 64), return_maps=True)[1]
    assert [m.shape[-1] for m in maps[:4] if m.numel()] == [16, 8]


class Within(nn.Module):
    """A network in another, which is given its images by name and answers with a tuple unless `alone`."""

    def __init__(self, network: nn.Module, alone: bool = True) -> None:
        super().__init__()
        self.inner, self.alone = network, alone

    def forward(self, x: torch.Tensor) -> Any:
        answer = self.inner(x=x) if isinstance(self.inner, smp.Unet) else self.inner(x)
        return answer if self.alone else (answer, x)


def test_a_head_for_training_alone_is_no_decoder() -> None:
    deeplab = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large
    network = deeplab(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    found = suggest_positions(network, show=False)
    assert found["aspp"].startswith("classifier.") and found["layer4"].startswith("backbone.")
    assert not any(tap.startswith("aux_classifier") for tap in found.values())
    assert suggest_positions(Within(network), show=False) == {key: f"inner.{tap}" for key, tap in found.items()}


def test_a_decoder_with_as_many_channels_as_classes_is_found() -> None:
    network = smp.Unet("mobilenet_v2", encoder_weights=None, classes=8, **NARROW)
    assert suggest_positions(network, show=False) == suggest_positions(unet(), show=False)


def test_layers_that_pad_are_no_maps(capsys: pytest.CaptureFixture[str]) -> None:
    found = suggest_positions(smp.Unet("efficientnet-b0", encoder_weights=None, classes=CLASSES))
    strides = [int(line.split()[1]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert list(found) == ["layer1", "layer2", "layer3", "layer4", "decoder"] and strides == [4, 8, 16, 32, 1]


def test_what_a_layer_that_is_called_by_name_gets_is_recorded(refused: Callable[..., str]) -> None:
    images = torch.zeros(1, 3, 64, 64)
    maps = wrap(Within(unet()), {"layer1": "inner:input"}).eval()(images, return_maps=True)[1]
    assert maps[0].shape == images.shape
    refused("'decoder.blocks'", "name one in it", call=lambda: wrap(unet(), {"decoder": "decoder.blocks"}))
    refused("answers with a tuple", "small module", call=lambda: wrap(Within(Plain(), alone=False)))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm(8), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return nn.functional.interpolate(self.last(y), x.shape[2:])


def test_maps_with_their_channels_last_are_refused(refused: Callable[..., str]) -> None:
    refused("'norm'", "channels last", call=lambda: wrap(ChannelsLast(), {"layer1": "norm"}))


class Finished(nn.Module):
    """A head that upsamples by itself has its logits as a layer's output at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(*(nn.Conv2d(c, 8, 3, stride=2, padding=1) for c in (3, 8, 8)))
        self.head = nn.Module()
        self.head.conv, self.head.relu, self.head.last = nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1)
        self.head.forward = self.answer

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.interpolate(x, scale_factor=2)
        return nn.functional.interpolate(self.head.last(self.head.relu(self.head.conv(x))), scale_factor=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(x))


def test_a_head_that_upsamples_by_itself_does_not_hide_its_logits() -> None:
    assert suggest_positions(Finished(), show=False)["decoder"] == "head.relu:input"


class Fixed(nn.Module):
    """Only for images of 128 x 128 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.last = nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, CLASSES, 1)
        self.places = nn.Parameter(torch.zeros(1, 8, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(self.last(self.down(x) + self.places), size=x.shape[2:])


def test_a_network_of_one_size_is_refused(refused: Callable[..., str]) -> None:
    refused("(1, 3, 129, 193)", "any size", call=lambda: wrap(Fixed()))


class Ordered(nn.Module):
    """Takes its maps apart with `view`, which needs their numbers in the usual order."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.query, self.last = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.query(self.down(x))
        images, channels, height, width = maps.shape
        heads = maps.view(images * 2, channels // 2, height * width)
        maps = (heads @ (heads.transpose(1, 2) @ heads).softmax(-1)).reshape(images, channels, height, width)
        return nn.functional.interpolate(self.last(maps), size=x.shape[2:])


class Deep(Ordered):
    """And with a weight of five dimensions, for which PyTorch has no such order."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale[0]


@pytest.mark.parametrize("kind", [Ordered, Deep])
def test_a_network_that_relies_on_the_usual_order_in_memory_is_trained_and_scored(
    kind: type[nn.Module], train: Callable[..., distill.Run], tiny_sample: Path
) -> None:
    val = distill.open_dataset("sample", "val", tiny_sample)
    assert 0 <= distill.evaluate(wrap(kind()), val).miou < 1
    run = train(wrap(kind()), "kd", load_teacher(kind()), epochs=1)
    assert run.history[-1]["kd"] > 0
    assert wrap(unet()).channels_last, "where convolutions are quicker"


class Answer(NamedTuple):
    out: torch.Tensor
    aux: torch.Tensor


class Two(nn.Module):
    """Answers with a tuple that has names."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.aux = nn.Conv2d(3, CLASSES, 1), nn.Conv2d(3, 5, 1)

    def forward(self, x: torch.Tensor) -> Answer:
        return Answer(self.out(x), self.aux(x))


def test_a_refused_teacher_is_left_as_it_was(train: Callable[..., distill.Run], refused: Callable[..., str]) -> None:
    teacher = unet()
    refused("num_classes", "load_teacher", call=lambda: train("resnet18", "kd", teacher))
    assert teacher.training and all(weight.requires_grad for weight in teacher.parameters())


def test_logits_may_be_the_out_of_a_tuple_with_names() -> None:
    assert wrap(Two()).num_classes == CLASSES


def test_a_network_in_half_precision_is_asked_in_it(tiny_sample: Path) -> None:
    network = wrap(unet().bfloat16())
    assert distill.predict(network, torch.zeros(20, 30, 3, dtype=torch.uint8).numpy()).shape == (20, 30)
    assert 0 <= distill.evaluate(network, distill.open_dataset("sample", "val", tiny_sample)).miou < 1
    assert next(network.parameters()).dtype == torch.bfloat16


def test_a_compiled_file_of_another_library_is_a_teacher_of_logits(train: Callable[..., distill.Run]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, CLASSES, 1))
        scripted = torch.jit.script(layers)
        run = train("resnet18", "kd", load_teacher(scripted), epochs=1)
    assert run.history[-1]["kd"] > 0


class Caching(nn.Module):
    """Keeps a grid for every size of image, as many transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.grids = nn.Conv2d(3, CLASSES, 1), dict[tuple[int, ...], torch.Tensor]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = tuple(x.shape[2:])
        if size not in self.grids:
            self.grids[size] = torch.linspace(0, 1, size[1]).expand(1, 1, *size) * 2
        return self.last(x) * self.grids[size]


def test_what_a_network_keeps_from_being_scored_does_not_spoil_its_training(
    train: Callable[..., distill.Run], tiny_sample: Path
) -> None:
    student = wrap(Caching())
    distill.evaluate(student, distill.open_dataset("sample", "val", tiny_sample))
    assert train(student, "baseline", None, epochs=1).history[-1]["ce"] > 0


# Training


@pytest.fixture
def train(tiny_sample: Path, tmp_path: Path) -> Callable[..., distill.Run]:
    def run(student: Any, method: str, teacher: Any, out: str = "run", **more: Any) -> distill.Run:
        asked = {"data": "sample", "data_root": tiny_sample, "batch_size": 4, "limit": 8, "epochs": 2, "device": "cpu"}
        asked |= {"progress": False, "evaluate_every": 1, "lr": 1e-3, "out": tmp_path / out}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fit(student, method, teacher, **{**asked, **more})

    return run


@pytest.mark.parametrize("method", ["kd", "at", "sakd"])
def test_a_u_net_learns_from_a_segformer(method: str, train: Callable[..., distill.Run]) -> None:
    network, teacher = unet(), segformer()
    start = copy.deepcopy(network.state_dict())
    theirs = load_teacher(teacher, positions=suggest_positions(teacher, show=False))
    student = wrap(network, suggest_positions(network, show=False))
    options = {} if method == "kd" else {"positions": ["layer2", "layer4"]}
    run = train(student, method, theirs, method_options=options)
    assert any(not torch.equal(start[name], value) for name, value in network.state_dict().items())
    again = run.student(unet())
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in again.state_dict().items())
    assert distill.predict(again, torch.zeros(20, 30, 3, dtype=torch.uint8).numpy()).shape == (20, 30)
    assert run.config["model"]["backbone"] == "Unet" and run.config["model"]["wrapped"]["positions"]


@pytest.mark.parametrize("method", ["kd", "ofd", "sakd"])
def test_a_segformer_learns_from_our_deeplab(method: str, train: Callable[..., distill.Run], tiny_teacher) -> None:
    network = segformer()
    options = {} if method == "kd" else {"positions": ["layer1", "layer4"]}
    run = train(wrap(network, suggest_positions(network, show=False)), method, tiny_teacher, method_options=options)
    assert len(run.history) == 2 and method in run.history[-1]


def test_it_is_resumed_to_the_same_weights(train: Callable[..., distill.Run]) -> None:
    def stop(line: dict[str, Any], student: object) -> None:
        raise KeyboardInterrupt

    whole = train(wrap(unet()), "baseline", None, "whole").student(unet())
    with pytest.raises(Interrupted):
        train(wrap(unet()), "baseline", None, "broken", on_epoch=stop)
    again = train(wrap(unet()), "baseline", None, "broken")
    assert len(again.history) == 2
    resumed = again.student(unet()).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.state_dict().items())
    finished = wrap(unet())  # asked for once more, the caller's network gets the weights
    train(finished, "baseline", None, "broken")
    assert all(torch.equal(value, resumed[name]) for name, value in finished.state_dict().items())


def test_another_network_is_not_the_same_run(train: Callable[..., distill.Run], refused: Callable[..., str]) -> None:
    run = train(wrap(unet()), "baseline", None)
    refused("model", "choose another --out", call=lambda: train(wrap(segformer()), "baseline", None))
    refused("do not fit the SegformerForSemanticSegmentation", call=lambda: run.student(segformer()))
    refused("Unet", "Run.student", call=run.student)


def test_norms_that_were_named_come_back(train: Callable[..., distill.Run]) -> None:
    named = {"positions": {"layer4": "last"}, "norms": {"layer4": "norms.0"}}
    run = train(wrap(Reused(), **named), "baseline", None)
    again = run.student(Reused())
    assert again.map_norms()[3] is again.network.norms[0]


def test_half_a_network_is_trained_in_float32(train: Callable[..., distill.Run]) -> None:
    assert len(train(wrap(Reused().bfloat16()), "baseline", None).history) == 2


def test_what_is_frozen_stays_and_belongs_to_the_run(
    train: Callable[..., distill.Run], refused: Callable[..., str]
) -> None:
    torch.manual_seed(0)
    network = Reused()
    whole = copy.deepcopy(network)
    for part in (network.convs[0], network.norms[0]):
        part.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run = train(wrap(network), "baseline", None)
    assert run.config["frozen"] == [
        "network.convs.0.bias",
        "network.convs.0.weight",
        "network.norms.0.bias",
        "network.norms.0.weight",
    ]
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if ".0." in name)
    assert not torch.equal(after["norms.1.running_mean"], before["norms.1.running_mean"])
    refused("frozen", "choose another --out", call=lambda: train(wrap(whole), "baseline", None))
    refused("frozen", "build another", call=lambda: train(load_teacher(Reused()), "baseline", None, "x"))


def test_a_refused_file_leaves_the_network_as_it_was(train: Callable[..., distill.Run], refused) -> None:
    run, other = train(wrap(Reused()), "baseline", None), Plain()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    refused("do not fit the Plain", call=lambda: run.student(other))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


# What cannot be


def test_mistakes_are_told(
    train: Callable[..., distill.Run], tiny_teacher: nn.Module, tmp_path: Path, refused: Callable[..., str]
) -> None:
    refused("a str cannot be wrapped", "nn.Module", call=lambda: wrap("unet"))
    refused("no submodule 'encoder.nothing'", call=lambda: wrap(unet(), {"layer1": "encoder.nothing"}))
    refused("student is a Unet", "wrap", call=lambda: train(unet(), "baseline", None))
    refused("student has no map at layer1", "wrap", call=lambda: train(wrap(unet()), "sakd", tiny_teacher))
    refused("distilled_dropout", call=lambda: train(wrap(unet()), "kd", tiny_teacher, distilled_dropout=False))
    refused("width", "given by name", call=lambda: train(wrap(unet()), "baseline", None, width=0.5))
    refused("no weights", call=lambda: wrap(nn.Identity()))
    refused("positions", "layer4", call=lambda: wrap(unet(), {"layer4": 3}))
    refused("norm of layer4 is a Conv2d", call=lambda: wrap(Reused(), {"layer4": "last"}, {"layer4": "convs.0"}))
    refused("positions is 5", "layer4", call=lambda: wrap(unet(), 5))
    refused("a str cannot be wrapped", call=lambda: suggest_positions("unet"))
    run = train("resnet18", "baseline", None, "ours")
    refused("of this package", call=lambda: run.student(unet()))


def test_a_file_is_put_into_a_network_that_is_built_again(tmp_path: Path, refused: Callable[..., str]) -> None:
    names, path = [f"class {label}" for label in range(CLASSES)], tmp_path / "u.safetensors"
    own = wrap(unet(), {"layer4": "encoder.features.18.2:input"}, class_names=names)
    save_model(own, path)
    refused("Unet of another library", "load_model(file, network)", call=lambda: load_model(path))
    again = load_model(path, smp.Unet("mobilenet_v2", classes=CLASSES, encoder_weights=None, **NARROW).half())
    assert (again.taps, again.class_names) == (own.taps, own.class_names)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in own.state_dict().items())
    save_model(distill.make_student("resnet18", CLASSES), path)
    refused("of this package", call=lambda: load_model(path, unet()))


def test_a_wrapped_student_whose_sides_must_be_divisible_is_exported_for_all_sizes(tmp_path: Path) -> None:
    network = wrap(smp.FPN("mobilenet_v2", encoder_weights=None, classes=CLASSES)).eval()
    assert network.divisor > 1
    exported = distill.export(network, tmp_path / "any.onnx")
    for height, width in ((64, 96), (37, 53), (100, 33), (1, 1)):
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert (distill.predict(exported.path, image) == distill.predict(network, image)).mean() > 0.99, (height, width)


class Staged(nn.Module):
    """Its stages are attributes of the network itself, as in most that one writes."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 8, 12, 16, 24, 32)
        for i, (before, after) in enumerate(itertools.pairwise(channels)):
            layer = nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())
            setattr(self, f"down{i}", layer)
        self.up = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2:]
        for i in range(5):
            x = getattr(self, f"down{i}")(x)
        x = self.up(nn.functional.interpolate(x, scale_factor=4))
        return nn.functional.interpolate(self.head(x), size)


def test_stages_that_are_attributes_of_the_network_itself() -> None:
    assert suggest_positions(Staged(), show=False) == {
        "layer1": "down1.2:input",
        "layer2": "down2.2:input",
        "layer3": "down3.2:input",
        "layer4": "down4.2:input",
        "decoder": "up.2:input",
    }


def test_maps_that_several_threads_ask_for_are_their_own() -> None:
    network = wrap(Staged(), {"layer4": "down4.2:input", "decoder": "up.2:input"}).eval()
    images = [torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    with torch.no_grad():
        expected = [network(image, return_maps=True)[1] for image in images]

    def ask(index: int) -> bool:
        with torch.no_grad():
            maps = network(images[index % 4], return_maps=True)[1]
        return all(torch.equal(a, b) for a, b in zip(maps, expected[index % 4], strict=True))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, range(200)))


class _Noted(nn.Conv2d):
    """Keeps more than tensors beside its weights."""

    def get_extra_state(self) -> dict:
        return {"note": 1}

    def set_extra_state(self, state: dict) -> None: ...


def test_what_is_no_tensor_beside_the_weights_is_left_alone() -> None:
    network = wrap(nn.Sequential(_Noted(3, CLASSES, 1)))
    assert fingerprint(network) == fingerprint(wrap(copy.deepcopy(network.network)))


def test_a_network_that_is_not_wrapped_is_not_saved(tmp_path: Path, refused: Callable[..., str]) -> None:
    refused("Staged", "wrap it", call=lambda: save_model(Staged(), tmp_path / "plain.safetensors"))


def test_a_teacher_that_says_its_classes_but_is_not_wrapped(
    tmp_path: Path, tiny_sample: Path, make_student: Callable
) -> None:
    class Named(nn.Module):
        num_classes = 21

        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(3, 21, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": self.last(x)}

    small = {"data_root": tiny_sample, "limit": 8, "epochs": 1, "batch_size": 8, "progress": False, "device": "cpu"}
    with pytest.raises(DistillError, match="answers with a dict and not with logits; wrap it"):
        fit(make_student(), "kd", Named(), out=tmp_path / "run", **small)


def test_a_stage_ends_before_the_first_block_of_the_next() -> None:
    """A bottleneck's first layer is at the stride of the stage before it."""
    network = distill.build_model("resnet101", CLASSES, width=0.125, atrous_rates=(2, 3, 4))
    found = suggest_positions(network, show=False)
    assert found["layer1"] == "backbone.layer1.2.relu:input" and found["layer2"] == "backbone.layer2.3.relu:input"


class _WritesIntoItsInput(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place, self.down, self.head = in_place, nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mul_(100.0) if self.in_place else x * 100.0
        return nn.functional.interpolate(self.head(self.down(x)), x.shape[2:])


class _OfSidesOf8(_WritesIntoItsInput):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError("sides of 8")
        return super().forward(x)


@pytest.mark.parametrize("kind", [_WritesIntoItsInput, _OfSidesOf8])
def test_a_network_that_writes_into_its_input_leaves_the_images_of_others_alone(kind: type[nn.Module]) -> None:
    network, images = wrap(kind(True)), torch.rand(2, 3, 32, 32)
    given, plain = images.clone(), wrap(kind(False))
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network(images), plain(images)) and torch.equal(images, given)
    assert not plain.writes  # whose images need no copy


def test_it_can_be_wrapped_where_pytorch_counts_no_writing() -> None:
    network = _WritesIntoItsInput(True)
    with torch.inference_mode():
        assert wrap(network).writes


def test_class_names_are_a_list(refused: Callable[..., str]) -> None:
    refused("class_names", "'ab'", "list", call=lambda: wrap(_WritesIntoItsInput(False), class_names="ab"))


# Answers that are no logits of the whole image


class Answers(nn.Module):
    """One convolution, and what `then` makes of it."""

    def __init__(self, then: Callable[[torch.Tensor], torch.Tensor], classes: int = 3, **layer: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.then = nn.Conv2d(3, classes, **{"kernel_size": 3, "padding": 1, **layer}), then

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.then(self.layer(images))


def test_probabilities_are_no_logits(refused: Callable[..., str]) -> None:
    soft = Answers(lambda x: x.softmax(1))
    refused("probabilities", "its last softmax", call=lambda: wrap(soft))
    refused("probabilities", call=lambda: load_teacher(soft))
    assert wrap(Answers(lambda x: x.softmax(1) + 1)).num_classes == 3
    assert wrap(Answers(lambda x: x.sigmoid(), classes=1)).num_classes == 1


def test_logits_of_a_part_of_the_image_are_refused(refused: Callable[..., str]) -> None:
    refused("do not show the whole image", call=lambda: wrap(Answers(lambda x: x, kernel_size=25, padding=0)))
    assert wrap(Answers(lambda x: x, padding=0)).divisor == 1, "but for a pixel"


def test_a_network_that_pads_gets_images_that_fit() -> None:
    """It takes every size, and its logits are of the padded image."""
    padded = wrap(Answers(lambda x: nn.functional.interpolate(x, scale_factor=32), stride=32, kernel_size=1, padding=0))
    whole = Answers(lambda x: nn.functional.interpolate(x, scale_factor=32), stride=32, kernel_size=1, padding=0)
    assert padded.divisor == 32 and wrap(whole)(torch.rand(1, 3, 65, 97)).shape == (1, 3, 65, 97)


@pytest.mark.parametrize("patch", [12, 14, 24, 28, 48, 128])
def test_patches_of_other_sides_than_powers_of_two(patch: int) -> None:
    class Patches(Answers):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.shape[2] % patch == 0 == images.shape[3] % patch
            return super().forward(images)

    assert wrap(Patches(lambda x: x, kernel_size=patch, stride=patch, padding=0)).divisor == patch


def test_a_pooled_pyramid_is_no_position() -> None:
    network = smp.PSPNet("mobilenet_v2", encoder_weights=None, classes=3)
    taps = suggest_positions(network, show=False)
    assert not any("psp.blocks" in tap for tap in taps.values()) and "layer4" in taps
    maps = wrap(network, taps)(torch.rand(1, 3, 128, 192), return_maps=True)[1]
    assert all(one.shape[3] * 2 == one.shape[2] * 3 for one in maps if one.shape[1])


def test_norms_may_be_exchanged_after_wrapping(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))
    wrapped = wrap(network, {"decoder": "1"})
    wrapped = nn.SyncBatchNorm.convert_sync_batchnorm(wrapped)
    assert wrapped.map_norms()[POSITIONS.index("decoder")] is wrapped.network[1]
    assert isinstance(wrapped.network[1], nn.SyncBatchNorm)
    save_model(wrapped, tmp_path / "student.safetensors")
    assert wrapped.config["wrapped"] == {"positions": {"decoder": "1"}, "norms": {"decoder": "1"}}


def test_the_statistics_of_an_instance_are_no_batchnorm(refused: Callable[..., str]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.InstanceNorm2d(8), nn.Conv2d(8, 3, 1))
    assert not wrap(network, {"decoder": "1"}).norms
    refused("name a BatchNorm", call=lambda: wrap(network, {"decoder": "1"}, norms={"decoder": "1"}))


class Functional(nn.Module):
    """A block whose ReLU is a function, after which its BatchNorm has no margin."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.norm(self.conv(images)))


def test_a_map_after_a_functional_relu_has_no_margin(refused: Callable[..., str]) -> None:
    network = nn.Sequential(Functional(), nn.Conv2d(8, 3, 1))
    teacher, student = (wrap(copy.deepcopy(network), {"decoder": tap}) for tap in ("0", "0.norm"))
    assert teacher.norms == {} and student.norms == {"decoder": "0.norm"}
    build = distill.methods.build_method
    refused("BatchNorm", "decoder", call=lambda: build("ofd", teacher, student, positions=["decoder"]))


def test_what_no_file_holds_is_told_before_training(tiny_sample: Path, refused: Callable[..., str]) -> None:
    class Keeping(nn.Conv2d):
        def get_extra_state(self) -> dict[str, int]:
            return {"seen": 1}

    student = wrap(Keeping(3, CLASSES, 3, padding=1))
    where = {"data": "sample", "data_root": tiny_sample, "device": "cpu", "progress": False}
    refused("_extra_state", "no tensor", call=lambda: fit(student, "baseline", None, **where))
