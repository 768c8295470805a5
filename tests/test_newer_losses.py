"""The newer losses: against slow references written from the formulas, at equal inputs, gradients, and in `fit`."""

import copy
import math
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import distill
from distill import DistillError, losses, methods
from distill.methods import METHODS, MapTerm, Term, build_method, register_method

NEWER = ["mse", "fitnet", "skd", "ifvd", "cwd", "cwd-maps", "dist", "cirkd", "nfd", "icsd", "attnfd"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


S, T = random(2, 4, 4, 6), random(2, 4, 4, 6, seed=1)
LABELS = torch.tensor([[[0, 0, 1], [2, 255, 1]], [[3, 3, 3], [0, 255, 255]]])  # half the size of the maps


# Slow references, one number at a time


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(a * a)) / math.sqrt(sum(b * b)))


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - np.max(values))
    return powers / powers.sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p.ravel(), q.ravel(), strict=True))


def slow_mse(s: np.ndarray, t: np.ndarray) -> float:
    return sum((s[i] - t[i]) ** 2 for i in np.ndindex(s.shape)) / s.size


def slow_nfd(s: np.ndarray, t: np.ndarray) -> float:
    def normal(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        for n, c in np.ndindex(x.shape[:2]):
            out[n, c] = (x[n, c] - x[n, c].mean()) / math.sqrt(x[n, c].var() + 1e-5)
        return out

    return slow_mse(normal(s), normal(t))


def slow_skd(s: np.ndarray, t: np.ndarray) -> float:
    def cosines(x: np.ndarray) -> np.ndarray:
        c, h, w = x.shape
        blocks = [x[:, y : y + 2, z : z + 2].reshape(c, -1).max(1) for y in range(0, h, 2) for z in range(0, w, 2)]
        return np.array([[cosine(a, b) for b in blocks] for a in blocks])

    return float(np.mean([(cosines(a) - cosines(b)) ** 2 for a, b in zip(s, t, strict=True)]))


def slow_ifvd(s: np.ndarray, t: np.ndarray, labels: np.ndarray) -> float:
    total = 0.0
    n, _, h, w = s.shape
    for i, y, x in np.ndindex(n, h, w):
        label = labels[i, y // 2, x // 2]
        if label == 255:
            continue
        same = [(v, u) for v, u in np.ndindex(h, w) if labels[i, v // 2, u // 2] == label]
        means = [np.mean([m[i, :, v, u] for v, u in same], axis=0) for m in (s, t)]
        total += (cosine(s[i, :, y, x], means[0]) - cosine(t[i, :, y, x], means[1])) ** 2
    return total / (n * h * w)


def slow_cwd(s: np.ndarray, t: np.ndarray, temperature: float) -> float:
    n, c = s.shape[:2]
    pairs = [(softmax(t[i] / temperature), softmax(s[i] / temperature)) for i in np.ndindex(n, c)]
    return temperature**2 * sum(kl(p, q) for p, q in pairs) / (n * c)


def slow_dist(s: np.ndarray, t: np.ndarray) -> float:
    def rows(x: np.ndarray) -> np.ndarray:
        n, _, h, w = x.shape
        return np.array([softmax(x[i, :, y, z]) for i, y, z in np.ndindex(n, h, w)])

    a, b = rows(s), rows(t)
    across = np.mean([np.corrcoef(p, q)[0, 1] for p, q in zip(a, b, strict=True)])
    within = np.mean([np.corrcoef(p, q)[0, 1] for p, q in zip(a.T, b.T, strict=True)])
    return float((1 - across) + (1 - within))


def slow_icsd(s: np.ndarray, t: np.ndarray) -> float:
    def matrix(x: np.ndarray) -> np.ndarray:
        p = [softmax(channel) for channel in x]
        found = np.array([[kl(a, b) for b in p] for a in p])
        return found / np.sqrt((found**2).sum(1, keepdims=True))

    return float(np.mean([(matrix(a) - matrix(b)) ** 2 for a, b in zip(s, t, strict=True)]))


def slow_cirkd(s: np.ndarray, t: np.ndarray, temperature: float) -> float:
    n, _, h, w = s.shape
    total = 0.0
    for i, j in np.ndindex(n, n):
        for y, x in np.ndindex(h, w):
            rows = [
                softmax(np.array([cosine(m[i, :, y, x], m[j, :, v, u]) for v, u in np.ndindex(h, w)]) / temperature)
                for m in (t, s)
            ]
            total += kl(*rows) / (h * w)
    return total / n**2


def slow_attnfd(s: np.ndarray, t: np.ndarray) -> float:
    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).sum())

    return float(np.mean([((unit(a) - unit(b)) ** 2).sum() for a, b in zip(s, t, strict=True)]))


REFERENCES: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., float], tuple]] = {
    "mse": (losses.mse, slow_mse, ()),
    "fitnet": (losses.fitnet, slow_mse, ()),
    "nfd": (losses.nfd, slow_nfd, ()),
    "skd": (losses.skd, slow_skd, ()),
    "ifvd": (losses.ifvd, slow_ifvd, (LABELS,)),
    "cwd": (losses.cwd, slow_cwd, (4.0,)),
    "dist": (losses.dist, slow_dist, ()),
    "icsd": (losses.icsd, slow_icsd, ()),
    "cirkd": (losses.cirkd, slow_cirkd, (0.1,)),
    "attnfd": (losses.attnfd, slow_attnfd, ()),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_against_a_slow_reference(name: str) -> None:
    fast, slow, more = REFERENCES[name]
    told = [value.numpy() if isinstance(value, torch.Tensor) else value for value in more]
    assert fast(S, T, *more).item() == pytest.approx(slow(S.numpy(), T.numpy(), *told), rel=1e-9)


@pytest.mark.parametrize("name", REFERENCES)
def test_equal_inputs_cost_nothing_and_only_the_student_gets_a_gradient(name: str) -> None:
    fast, _, more = REFERENCES[name]
    assert fast(S, S.clone(), *more).item() == pytest.approx(0, abs=1e-12)
    student, teacher = S.clone().requires_grad_(), T.clone().requires_grad_()
    fast(student, teacher, *more).backward()
    assert teacher.grad is None and student.grad is not None and student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: fast(x, T, *more), (S.clone().requires_grad_(),), atol=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_half_precision_is_widened_and_wrong_sizes_are_refused(name: str, refused: Callable[..., str]) -> None:
    fast, _, more = REFERENCES[name]
    narrow = fast(S.bfloat16(), T.bfloat16(), *more)
    assert narrow.dtype == torch.float32 and torch.isfinite(narrow)
    refused("(2, 4, 4, 5)", call=lambda: fast(S[..., :5], T, *more))


def test_icsd_is_refused_where_it_could_teach_nothing() -> None:
    student = distill.make_student("resnet18", num_classes=2)
    with pytest.raises(DistillError, match="three classes or more"):
        distill.build_method("icsd", distill.make_student("resnet18", num_classes=2, seed=1), student)


@pytest.mark.parametrize("name", ["nfd", "skd", "ifvd", "dist", "icsd", "cirkd", "attnfd"])
def test_maps_without_a_direction_have_no_gradient_that_drowns_all_others(name: str) -> None:
    fast, _, more = REFERENCES[name]
    for constant in (0.0, 1.0):
        student = torch.full_like(S, constant).float()
        one = S.float().clone()
        one[0, :, 0, 0] = constant  # a single place
        for values in (student, one):
            values = values.requires_grad_()
            fast(values, T.float(), *more).backward()
            assert values.grad.isfinite().all() and values.grad.norm() < 1e4, name


def test_images_without_labels_give_nothing_to_compare() -> None:
    assert losses.ifvd(S, T, torch.full_like(LABELS, 255)).item() == 0


def test_classes_that_are_nearly_alike_are_told_apart_in_float32() -> None:
    """As at the beginning of training: logits that hardly differ from place to place."""
    wide = [random(1, 5, 40, 40, seed=seed) * 0.01 for seed in (2, 3)]
    exact, narrow = (w.clone().requires_grad_() for w in (wide[0], wide[0].float()))
    losses.icsd(exact, wide[1]).backward()
    losses.icsd(narrow, wide[1].float()).backward()
    assert (narrow.grad.double() - exact.grad).norm() < 0.2 * exact.grad.norm()


@pytest.mark.parametrize("name", ["skd", "ifvd", "icsd", "cirkd"])
def test_products_stay_in_float32_under_autocast(name: str) -> None:
    fast, _, more = REFERENCES[name]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = fast(S.float(), T.float(), *more)
    assert mixed.item() == pytest.approx(fast(S.float(), T.float(), *more).item(), rel=1e-6)


def test_the_teachers_attention_has_no_weights() -> None:
    x = random(1, 2, 2, 2)[0]
    channel = np.array([1 / (1 + math.exp(-(c.mean() + c.max()))) for c in x.numpy()])
    weighed = x.numpy() * channel[:, None, None]
    places = 1 / (1 + np.exp(-(weighed.mean(0) + weighed.max(0))))
    assert losses.refined(x[None])[0].numpy() == pytest.approx(weighed * places)


# As methods


@pytest.mark.parametrize("name", NEWER)
def test_each_trains_a_student_of_the_sample(
    name: str, tiny_sample: Path, tiny_teacher: nn.Module, tmp_path: Path
) -> None:
    asked = {"data_root": tiny_sample, "limit": 8, "batch_size": 4, "epochs": 2, "device": "cpu", "progress": False}
    run = distill.fit("resnet18", name, tiny_teacher, out=tmp_path, **asked)
    assert len(run.history) == 2 and all(math.isfinite(line[name]) and line[name] > 0 for line in run.history)


@pytest.mark.parametrize("name", NEWER)
def test_its_gradient_reaches_the_student_and_not_the_teacher(name: str, tiny_teacher: nn.Module) -> None:
    student, teacher = distill.make_student("mobilenetv2", 21), copy.deepcopy(tiny_teacher)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    method = build_method(name, teacher, student)
    images, labels = random(2, 3, 64, 64).float(), torch.randint(0, 21, (2, 64, 64))
    _, parts = method(student(images, return_maps=True), teacher(images, return_maps=True), labels)
    method.summands(student(images, return_maps=True), teacher(images, return_maps=True), labels)[name].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters()) and parts[name] > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


# A method of one's own


def test_labels_and_margins_of_another_shape_are_refused(refused: Callable[..., str]) -> None:
    """They would be broadcast."""
    for labels in (LABELS[:1], LABELS[:, None]):
        refused("labels", "of the same N images", call=lambda labels=labels: losses.ifvd(S, T, labels))
    refused("margin is (1,)", "4 channels", call=lambda: losses.ofd(S, T, torch.zeros(1)))


class Own(Term):
    needs_logits = True

    def __init__(self, teacher: nn.Module, student: nn.Module, *, weight: float = 0.5, power: float = 1.0):
        super().__init__(weight, 0, 0)
        self.power = power

    def forward(self, student: methods.Term, teacher: methods.Term, labels: torch.Tensor) -> torch.Tensor:
        return (student.logits - teacher.logits).abs().pow(self.power).mean()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "METHODS", dict(METHODS))


def test_a_method_of_ones_own_is_registered_trained_and_joined(
    registry: None, tiny_sample: Path, tiny_teacher: nn.Module, tmp_path: Path
) -> None:
    register_method("own", Own)
    register_method("own", Own)  # a cell that is run again
    asked = {"data_root": tiny_sample, "limit": 8, "batch_size": 4, "epochs": 1, "device": "cpu", "progress": False}
    run = distill.fit("resnet18", "kd+own", tiny_teacher, out=tmp_path, method_options={"own": {"power": 2.0}}, **asked)
    assert run.config["method"]["terms"]["own"] == {"weight": 0.5, "power": 2.0} and run.history[0]["own"] > 0


def test_what_cannot_be_registered_is_told(registry: None, refused: Callable[..., str]) -> None:
    class NoDefault(Term):
        def __init__(self, teacher: nn.Module, student: nn.Module, *, weight: float):
            super().__init__(weight, 0, 0)

    refused("kd", "already", call=lambda: register_method("kd", Own))
    refused("proposed", "already", call=lambda: register_method("proposed", Own))
    refused("'k d'", "small letters", call=lambda: register_method("k d", Own))
    refused("not a method", "subclass", call=lambda: register_method("own", nn.Linear))
    refused("no default", "weight", call=lambda: register_method("own", NoDefault))
    for word in ("ce", "loss", "epoch", "keys"):
        refused(repr(word), "another name", call=lambda word=word: register_method(word, Own))
    refused("kd", "already", call=lambda: register_method("kd", type("KD", (Own,), {})))

    refused("weight", "another use", call=lambda: register_method("weight", Own))
    refused("positions", "another use", call=lambda: register_method("positions", Own))
    refused(
        "Empty", "forward(self", call=lambda: register_method("own", type("Empty", (Own,), {"forward": Term.forward}))
    )
    no_maps = type("NoMaps", (MapTerm,), {"__init__": partialmethod(MapTerm.__init__, weight=1.0)})
    refused("NoMaps", "compare(self", call=lambda: register_method("own", no_maps))
    for loss in (F.mse_loss, lambda s, t: (s - t).square().mean()):
        unbound = type("Unbound", (methods.PlainMapTerm,), {"__init__": methods.METHODS["at"].__init__, "loss": loss})
        refused("Unbound", "staticmethod", call=lambda unbound=unbound: register_method("own", unbound))

    class Teacherless(Term):
        def __init__(self, *, weight: float = 1.0):
            super().__init__(weight, 0, 0)

    class Forgetful(Own):
        def __init__(self, teacher: nn.Module, student: nn.Module, *, weight: float = 1.0, power: float = 1.0):
            Term.__init__(self, weight, 0, 0)

    refused("Teacherless", "teacher and a student", call=lambda: register_method("own", Teacherless))
    register_method("own", Forgetful)
    student = distill.make_student("resnet18", 3)
    built = build_method("own", distill.make_student("resnet18", 3, seed=1), student)
    refused("Forgetful", "self.power", call=built.describe)
    refused("known to this process alone", call=lambda: methods.check_known_elsewhere(["kd+own"]))
    refused(
        "weight is '3'",
        call=lambda: build_method("kd", distill.make_student("resnet18", 3, seed=1), student, weight="3"),
    )
    refused(
        "positions is 3",
        call=lambda: build_method("nfd", distill.make_student("resnet18", 3, seed=1), student, positions=3),
    )
