"""Each loss against the published numbers, a slow reference, and what its docstring promises."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_numbers import uniform
from torch import nn

from distill import losses
from distill.errors import DistillError

CASES = json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())["losses"]
PRECISIONS = [(torch.float64, 1e-6), (torch.float32, 1e-4)]


@pytest.fixture(params=CASES, ids=lambda case: case["tag"])
def case(request):
    return request.param


@pytest.fixture(params=PRECISIONS, ids=["float64", "float32"])
def precision(request):
    return request.param


def golden_maps(case, who, dtype):
    shapes = [(case["batch"], c, s, s) for c, s in zip(case["teacher_channels"], case["sizes"], strict=True)]
    return [uniform(f"{case['tag']}/{who}{i}", shape, -1, 1).to(dtype) for i, shape in enumerate(shapes)]


def golden_margins(case, dtype):
    margins = []
    for i, channels in enumerate(case["teacher_channels"]):
        norm = nn.BatchNorm2d(channels).to(dtype)
        norm.weight.data = uniform(f"{case['tag']}/gamma{i}", (channels,), -1.5, 1.5).to(dtype)
        norm.bias.data = uniform(f"{case['tag']}/beta{i}", (channels,), -1, 1).to(dtype)
        margins.append(losses.ofd_margin(norm))
    return margins


def random_map(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# The published numbers


def test_margins_are_the_published_ones(case, precision):
    dtype, tolerance = precision
    for margin, golden in zip(golden_margins(case, dtype), case["margin"], strict=True):
        assert list(margin.shape) == golden["shape"] and margin.dtype == dtype
        assert margin[golden["index"]].tolist() == pytest.approx(golden["value"], rel=tolerance)
        assert margin.mean().item() == pytest.approx(golden["mean"], rel=tolerance)
        assert margin.std(correction=0).item() == pytest.approx(golden["std"], rel=tolerance)
        assert margin.abs().max().item() == pytest.approx(golden["abs_max"], rel=tolerance)


def test_ofd_is_the_published_one(case, precision):
    dtype, tolerance = precision
    triples = zip(
        golden_maps(case, "student", dtype),
        golden_maps(case, "teacher", dtype),
        golden_margins(case, dtype),
        strict=True,
    )
    sums = [losses.ofd(*triple).item() for triple in triples]
    total = sum(s / d for s, d in zip(sums, case["loss_divider"], strict=True))
    assert sums == pytest.approx(case["ofd_sum_per_position"], rel=tolerance)
    assert total == pytest.approx(case["ofd_total_over_dividers"], rel=tolerance)
    assert 1e-5 * total / case["batch"] == pytest.approx(case["ofd_weighted_per_image_1e-5"], rel=tolerance)


def test_sakd_and_at_are_the_published_ones(case, precision):
    dtype, tolerance = precision
    pairs = list(zip(golden_maps(case, "student", dtype), golden_maps(case, "teacher", dtype), strict=True))
    sakd = [losses.sakd(*pair).item() for pair in pairs]
    at = [losses.at(*pair).item() for pair in pairs]
    total = sum(s / d for s, d in zip(sakd, case["loss_divider"], strict=True))
    # abs=0: pytest's own absolute tolerance would hide relative errors of numbers as small as these.
    assert sakd == pytest.approx(case["sakd_per_position"], rel=tolerance, abs=0)
    assert total == pytest.approx(case["sakd_total_over_dividers"], rel=tolerance, abs=0)
    assert at == pytest.approx(case["at_mean_per_position"], rel=tolerance, abs=0)


def test_kd_is_the_published_one(case, precision):
    dtype, tolerance = precision
    shape = (case["batch"], 21, 33, 33)
    student, teacher = (
        uniform(f"{case['tag']}/{who}_logits", shape, -4, 4).to(dtype) for who in ("student", "teacher")
    )
    for temperature, golden in case["kd_pixelwise_mean_times_T2"].items():
        assert losses.kd(student, teacher, float(temperature)).item() == pytest.approx(golden, rel=tolerance)


# Slow references, written from the formulas, one number at a time


def softmax(values):
    powers = np.exp(np.asarray(values) - np.max(values))
    return powers / powers.sum()


def slow_kd(student, teacher, temperature):
    n, _, h, w = student.shape
    total = 0.0
    for i, y, x in np.ndindex(n, h, w):
        p, q = softmax(teacher[i, :, y, x] / temperature), softmax(student[i, :, y, x] / temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / (n * h * w)


def slow_attention(image):
    c, h, w = image.shape
    return np.array([[sum(image[k, y, x] ** 2 for k in range(c)) / c for x in range(w)] for y in range(h)])


def slow_self_attention(image):
    g = slow_attention(image)
    h, w = g.shape
    a = np.array([[sum(g[i, k] * g[j, k] for k in range(w)) for j in range(h)] for i in range(h)])
    down = np.stack([softmax(a[:, j]) for j in range(h)], axis=1)
    across = np.stack([softmax(a[i, :]) for i in range(h)], axis=0)
    return g + (down * g + across * g) / math.sqrt(w)


def slow_difference(student, teacher, attention):
    n = len(student)
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        a, b = attention(s), attention(t)
        total += np.mean((a / math.sqrt((a * a).sum()) - b / math.sqrt((b * b).sum())) ** 2)
    return total / n


def slow_ofd(student, teacher, margin):
    total = 0.0
    for n, c, y, x in np.ndindex(student.shape):
        s, target = student[n, c, y, x], max(teacher[n, c, y, x], margin[c])
        if s > target or target > 0:
            total += (s - target) ** 2
    return total


def slow_margin(weight, bias):
    """The mean below zero by summing a finely sampled normal density, with no closed form."""
    x = np.linspace(bias - 12 * abs(weight), 0, 400_001)
    density = np.exp(-(((x - bias) / weight) ** 2) / 2)
    return (x * density).sum() / density.sum()


def test_against_slow_references():
    s, t = random_map(2, 3, 4, 4), random_map(2, 3, 4, 4, seed=1)
    margin = torch.tensor([-0.2, -0.9, -1.4], dtype=torch.float64)
    arrays = s.numpy(), t.numpy()
    assert losses.kd(s, t, 2.5).item() == pytest.approx(slow_kd(*arrays, 2.5), rel=1e-10)
    assert losses.at(s, t).item() == pytest.approx(slow_difference(*arrays, slow_attention), rel=1e-10)
    assert losses.sakd(s, t).item() == pytest.approx(slow_difference(*arrays, slow_self_attention), rel=1e-10)
    assert losses.ofd(s, t, margin).item() == pytest.approx(slow_ofd(*arrays, margin.numpy()), rel=1e-10)


def test_cross_entropy_against_a_slow_reference():
    logits, labels = random_map(2, 5, 3, 4), torch.arange(24).view(2, 3, 4) % 5
    labels[0, 0, :2] = 255
    terms = [
        -math.log(softmax(logits[n, :, y, x].numpy())[labels[n, y, x]])
        for n, y, x in np.ndindex(2, 3, 4)
        if labels[n, y, x] != 255
    ]
    assert losses.cross_entropy(logits, labels).item() == pytest.approx(np.mean(terms), rel=1e-10)


@pytest.mark.parametrize("classes", [3, 21])
def test_labels_of_another_shape_are_refused(classes, refused):
    """Where both are flattened, a wrong shape of as many pixels would give a wrong number."""
    logits, labels = torch.zeros(1, classes, 2, 3), torch.zeros(1, 3, 2, dtype=torch.long)
    for wrong in (labels, labels.mT[:, None]):
        refused("(N, H, W)", call=lambda wrong=wrong: losses.cross_entropy(logits, wrong))
    assert losses.cross_entropy(logits, labels.mT) == pytest.approx(math.log(classes))


def test_void_may_be_a_negative_label_of_one_byte():
    """156 as a byte is -100 as a signed one, and no void."""
    labels = torch.tensor([[[0, 156]]], dtype=torch.uint8)
    loss = losses.cross_entropy(torch.zeros(1, 200, 1, 2), labels, ignore_index=-100)
    assert loss == pytest.approx(math.log(200))


@pytest.mark.parametrize(
    "loss", [losses.kd, losses.at, losses.sakd, losses.mse, losses.skd, losses.cwd, losses.dist, losses.nfd]
)
def test_one_image_is_no_batch(loss, refused):
    refused("(N, C, H, W)", call=lambda: loss(torch.zeros(5, 8, 8), torch.zeros(5, 8, 8)))


def test_weighted_cross_entropy_against_a_slow_reference():
    logits, labels = random_map(2, 5, 3, 4), torch.arange(24).view(2, 3, 4) % 5
    labels[0, 0, :2] = 255
    pixels = torch.tensor([900, 60, 30, 10, 0])
    weights = losses.class_weights(pixels)
    slow = np.array([1 / math.log(1.02 + count / 1000) for count in pixels.tolist()])
    slow /= (slow * pixels.numpy() / 1000).sum()
    assert weights.tolist() == pytest.approx(slow, rel=1e-6)
    terms = [
        -slow[labels[n, y, x]] * math.log(softmax(logits[n, :, y, x].numpy())[labels[n, y, x]])
        for n, y, x in np.ndindex(2, 3, 4)
        if labels[n, y, x] != 255
    ]
    assert losses.cross_entropy(logits, labels, class_weights=weights).item() == pytest.approx(np.mean(terms), rel=1e-6)


def test_weights_of_classes_that_are_alike_or_absent_change_nothing():
    assert losses.class_weights(torch.tensor([7, 7, 7])).tolist() == pytest.approx([1, 1, 1])
    assert losses.class_weights(torch.zeros(3)).isfinite().all()


@pytest.mark.parametrize("weight, bias", [(1.0, 0.0), (0.7, -0.4), (-0.7, 0.9), (0.2, -3.0), (1.3, 3.9)])
def test_margin_is_the_mean_of_the_negative_half(weight, bias):
    assert margin_of(weight, bias) == pytest.approx(slow_margin(weight, bias), rel=1e-4)


# Margins at the edges


def margin_of(weight, bias):
    norm = nn.BatchNorm2d(1).double()
    norm.weight.data.fill_(weight)
    norm.bias.data.fill_(bias)
    return losses.ofd_margin(norm).item()


@pytest.mark.parametrize(
    "weight, bias, expected",
    [
        (0.5, 2.0, -1.5),  # Φ(-4) is below 0.001
        (-0.5, 2.0, -1.5),
        (0.001, 1.0, -0.003),  # Φ underflows to 0
        (0.001, -1.0, -1.0),
        (0.0, -0.3, -0.3),
        (0.0, 0.3, 0.0),
        (0.0, 0.0, 0.0),
        (1e-300, -1.0, -1.0),
        (1e-300, 0.0, 0.0),
    ],
)
def test_margin_at_the_edges(weight, bias, expected):
    assert margin_of(weight, bias) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_margin_of_a_norm_without_weights_or_in_half_precision():
    plain = losses.ofd_margin(nn.BatchNorm2d(3, affine=False))
    assert torch.allclose(plain, torch.full((3,), -math.sqrt(2 / math.pi)))
    assert losses.ofd_margin(nn.BatchNorm2d(3).half()).isfinite().all()


# What the docstrings promise


MAP_LOSSES = [losses.kd, losses.at, losses.sakd, lambda s, t: losses.ofd(s, t, torch.full((3,), -1.0))]
NAMES = ["kd", "at", "sakd", "ofd"]
each_loss = pytest.mark.parametrize("loss", MAP_LOSSES, ids=NAMES)


@each_loss
def test_equal_inputs_give_zero(loss):
    t = random_map(2, 3, 4, 4).clamp(min=-1)  # above the margin, so that ofd's target is t itself
    assert loss(t, t).item() == 0


def test_ofd_is_zero_where_the_student_meets_the_target_or_both_are_silent():
    t, margin = random_map(2, 3, 4, 4), torch.tensor([-0.1, -0.5, -1.0]).double()
    target = torch.maximum(t, margin.view(1, 3, 1, 1))
    assert losses.ofd(target, t, margin).item() == 0
    silent = torch.full_like(t, -1.0)
    assert losses.ofd(silent - 5, silent, margin).item() == 0
    assert losses.ofd(silent + 5, silent, margin).item() > 0


@each_loss
def test_gradient_moves_the_student_and_never_the_teacher(loss):
    student = random_map(2, 3, 4, 4).requires_grad_()
    teacher = random_map(2, 3, 4, 4, seed=1).requires_grad_()
    before = loss(student, teacher)
    before.backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    step = 1e-3 / student.grad.norm()
    assert loss(student - step * student.grad, teacher) < before


@each_loss
def test_gradients_match_finite_differences(loss):
    student, teacher = random_map(1, 3, 3, 3).requires_grad_(), random_map(1, 3, 3, 3, seed=1)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


@each_loss
def test_wrong_sizes_are_refused_rather_than_broadcast(loss):
    with pytest.raises(DistillError, match="resize"):
        loss(random_map(2, 3, 4, 4), random_map(2, 3, 1, 1))


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(loss, dtype):
    s, t = random_map(2, 3, 8, 8).to(dtype), random_map(2, 3, 8, 8, seed=1).to(dtype)
    assert loss(s, t).dtype == torch.float32
    assert loss(s, t).item() == pytest.approx(loss(s.double(), t.double()).item(), rel=1e-4)
    assert loss(100 * s, 100 * t).isfinite()  # fourth powers leave the range of float16


def test_sakd_is_not_rounded_by_autocast():
    s, t = (random_map(2, 3, 8, 8, seed=seed, dtype=torch.float32) for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = losses.sakd(s, t)
    assert torch.equal(inside, losses.sakd(s, t))


def test_at_and_sakd_take_any_number_of_channels_and_ignore_scale_in_at():
    s, t = random_map(2, 3, 4, 4), random_map(2, 7, 4, 4)
    assert losses.sakd(s, t) > 0
    assert losses.at(s, t).item() == pytest.approx(losses.at(5 * s, 0.1 * t).item(), rel=1e-10)


def test_kd_gradient_keeps_its_size_across_temperatures():
    norms = []
    for temperature in (4.0, 16.0, 64.0):
        student = random_map(2, 5, 4, 4).requires_grad_()
        losses.kd(student, random_map(2, 5, 4, 4, seed=1), temperature).backward()
        norms.append(student.grad.norm().item())
    assert max(norms) / min(norms) < 1.2


def test_kd_and_ofd_normalise_as_documented():
    s, t, margin = random_map(2, 3, 4, 4), random_map(2, 3, 4, 4, seed=1), torch.full((3,), -1.0).double()
    twice = torch.cat([s, s]), torch.cat([t, t])
    assert losses.kd(*twice, 2.0).item() == pytest.approx(losses.kd(s, t, 2.0).item())
    assert losses.at(*twice).item() == pytest.approx(losses.at(s, t).item())
    assert losses.sakd(*twice).item() == pytest.approx(losses.sakd(s, t).item())
    assert losses.ofd(*twice, margin).item() == pytest.approx(2 * losses.ofd(s, t, margin).item())
    assert losses.ofd(3 * s, 3 * t, 3 * margin).item() == pytest.approx(9 * losses.ofd(s, t, margin).item())


def test_cross_entropy_is_the_same_however_it_is_summed():
    """A GPU's way, on the CPU, in both layouts of memory; and what PyTorch makes of the whole map."""
    labels = torch.randint(0, 5, (2, 6, 7), generator=torch.Generator().manual_seed(3))
    labels[0, :2] = 255
    for layout in (torch.contiguous_format, torch.channels_last):
        logits = random_map(2, 5, 6, 7).contiguous(memory_format=layout).requires_grad_()
        rows = losses._pixels(logits).flatten(0, -2)
        sums = [losses._summed_cross_entropy(rows, labels.flatten(), 255, None, at_once) for at_once in (True, False)]
        sums.append(nn.functional.cross_entropy(logits, labels, ignore_index=255, reduction="sum"))
        first, second, third = (torch.autograd.grad(total, logits, retain_graph=True)[0] for total in sums)
        assert torch.equal(first, second) and torch.allclose(first, third, rtol=1e-12)
        assert [total.shape for total in sums] == [()] * 3
        assert [total.item() for total in sums] == pytest.approx([sums[0].item()] * 3, rel=1e-12)


@pytest.mark.parametrize("cuda", [False, True])
def test_cross_entropy_is_summed_as_suits_the_device(cuda, monkeypatch):
    asked = []

    def look(logits, classes, ignore_index, weights, at_once):
        asked.append(at_once)
        return logits.sum()

    class Logits(torch.Tensor):
        is_cuda = cuda

    monkeypatch.setattr(losses, "_summed_cross_entropy", look)
    losses.cross_entropy(random_map(1, 3, 2, 2).as_subclass(Logits), torch.zeros(1, 2, 2))
    assert asked == [not cuda]


@pytest.mark.parametrize("classes", [3, 20])
def test_softmax_over_few_classes_and_over_many_is_the_same(classes, monkeypatch):
    """Over dim 1 or along the rows of pixels: the way that the number of classes does not ask for agrees too."""
    student, teacher = (random_map(2, classes, 5, 6, seed=seed).requires_grad_() for seed in (0, 1))
    labels = torch.randint(0, classes, (2, 5, 6), generator=torch.Generator().manual_seed(3))
    labels[0, :2] = 255
    weights = torch.rand(classes, generator=torch.Generator().manual_seed(4))
    found = []
    for few in (True, False):
        monkeypatch.setattr(losses, "_few_classes", lambda _, few=few: few)
        for total in (
            losses.cross_entropy(student, labels, class_weights=weights),
            losses.cross_entropy(student, labels),
            losses.kd(student, teacher),
        ):
            found.append((total.item(), torch.autograd.grad(total, student)[0]))
    for (one, gradient), (other, other_gradient) in zip(found[:3], found[3:], strict=True):
        assert one == pytest.approx(other, rel=1e-12) and torch.allclose(gradient, other_gradient, rtol=1e-10)


def test_void_pixels_do_not_contribute_to_cross_entropy():
    logits, labels = random_map(2, 5, 4, 4).requires_grad_(), torch.zeros(2, 4, 4, dtype=torch.uint8)
    labels[0, :2] = 255
    before = losses.cross_entropy(logits, labels)
    before.backward()
    assert (logits.grad[0, :, :2] == 0).all() and (logits.grad[0, :, 2:] != 0).all()
    changed = logits.detach().clone()
    changed[0, :, :2] += 100 * random_map(5, 2, 4)
    assert losses.cross_entropy(changed, labels).item() == before.item()


def test_a_batch_of_void_gives_zero_and_a_gradient():
    logits = random_map(2, 5, 4, 4).requires_grad_()
    loss = losses.cross_entropy(logits, torch.full((2, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


# Attention maps


def test_attention_maps_have_the_documented_shapes():
    t = random_map(2, 3, 4, 4)
    assert losses.attention_map(t).shape == losses.self_attention_map(t).shape == (2, 4, 4)
    assert torch.equal(losses.attention_map(t), t.square().mean(1))


@pytest.mark.parametrize("size", [(4, 7), (7, 4), (1, 5), (5, 1)])
def test_sakd_works_on_maps_that_are_not_square(size):
    student, teacher = random_map(2, 3, *size).requires_grad_(), random_map(2, 3, *size, seed=1)
    assert losses.self_attention_map(teacher).shape == (2, min(size), min(size))
    losses.sakd(student, teacher).backward()
    assert student.grad.isfinite().all()
    assert losses.sakd(teacher, teacher).item() == 0


def test_square_maps_are_never_resampled(monkeypatch):
    monkeypatch.setattr(losses.F, "interpolate", None)
    t = random_map(2, 3, 5, 5)
    g = t.pow(2).mean(1)
    a = g @ g.transpose(1, 2)
    published = g + (torch.softmax(a, 1) * g + torch.softmax(a, 2) * g) / 5**0.5
    assert torch.equal(losses.self_attention_map(t), published)


def test_dead_maps_give_finite_gradients():
    for loss in (losses.at, losses.sakd):
        student = torch.zeros(2, 3, 4, 4, requires_grad=True)
        loss(student, random_map(2, 3, 4, 4, dtype=torch.float32)).backward()
        assert student.grad.isfinite().all()
