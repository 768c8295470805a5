"""Methods: names, options, connectors, schedules, and what a step returns. Networks are tiny stand-ins."""

import json

import pytest
import torch
from golden_numbers import uniform
from test_losses import CASES, golden_maps
from torch import nn

from distill import losses, methods, terms
from distill.errors import DistillError
from distill.methods import DIVIDERS, METHODS, POSITIONS, Term, build_method

SIZES = [(8, 8), (4, 4), (4, 4), (4, 4), (4, 4), (8, 8)]
TEACHER_CHANNELS, STUDENT_CHANNELS = (8, 12, 16, 20, 8, 8), (3, 4, 5, 6, 7, 8)
EVERY = ["baseline", "kd", "at", "ofd", "sakd", "kd+sakd", "kd+at+ofd+sakd"]
LABELS = (torch.arange(2 * 16 * 16).view(2, 16, 16) * 7) % 4


class Fake(nn.Module):
    """Answers like a network, with free tensors for logits and maps."""

    def __init__(self, channels, num_classes=4, sizes=SIZES, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.map_channels, self.num_classes = channels, num_classes
        self.logits = nn.Parameter(torch.randn(2, num_classes, 16, 16, generator=generator))
        self.maps = nn.ParameterList(
            torch.randn(2, c, *size, generator=generator) for c, size in zip(channels, sizes, strict=True)
        )
        self.norms = [nn.BatchNorm2d(c) for c in channels]

    def map_norms(self):
        return self.norms

    def forward(self, return_maps=True):
        return (self.logits, list(self.maps)) if return_maps else self.logits


def make(name, **options):
    torch.manual_seed(0)
    teacher, student = Fake(TEACHER_CHANNELS, seed=1), Fake(STUDENT_CHANNELS, seed=2)
    return teacher, student, build_method(name, teacher, student, **options)


def step(name, **options):
    teacher, student, method = make(name, **options)
    return method(student(), teacher(), LABELS)


# A step


@pytest.mark.parametrize("name", EVERY)
def test_parts_sum_to_the_loss_and_the_teacher_stays_still(name):
    teacher, student, method = make(name)
    loss, parts = method(student(), teacher(), LABELS)
    assert list(parts) == ["ce", *(part for part in name.split("+") if part != "baseline")]
    assert sum(parts.values()).item() == pytest.approx(loss.item(), rel=1e-6)
    assert all(not part.requires_grad and part.item() > 0 for part in parts.values())
    loss.backward()
    assert student.logits.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in method.parameters())


@pytest.mark.parametrize("name", ["at", "ofd", "sakd"])
def test_map_methods_move_every_map_they_name(name):
    teacher, student, method = make(name)
    method(student(), teacher(), LABELS)[0].backward()
    moved = [m.grad is not None and m.grad.abs().sum().item() > 0 for m in student.maps]
    assert moved == [position in method.terms[name].positions for position in POSITIONS]


def test_every_method_changes_the_students_gradient():
    gradients = {}
    for name in EVERY:
        teacher, student, method = make(name)
        method(student(), teacher(), LABELS)[0].backward()
        pieces = [
            student.logits.grad,
            *(m.grad if m.grad is not None else torch.zeros_like(m) for m in student.maps),
        ]
        gradients[name] = torch.cat([piece.flatten() for piece in pieces])
    for name in EVERY[1:]:
        assert not torch.allclose(gradients[name], gradients["baseline"], rtol=1e-3, atol=0)


def test_needs():
    needs = {name: make(name)[2] for name in EVERY}
    assert [n for n, m in needs.items() if not m.needs_teacher] == ["baseline"]
    assert [n for n, m in needs.items() if m.needs_maps] == ["at", "ofd", "sakd", "kd+sakd", "kd+at+ofd+sakd"]
    assert [n for n, m in needs.items() if m.needs_logits] == ["kd", "kd+sakd", "kd+at+ofd+sakd"]


def test_bare_logits_will_do_where_no_maps_are_needed():
    teacher, student, method = make("kd")
    bare, _ = method(student(return_maps=False), teacher(return_maps=False), LABELS)
    assert torch.equal(bare, method((student.logits, None), teacher(), LABELS)[0])
    baseline = build_method("baseline", None, student)
    loss, parts = baseline(student.logits, None, LABELS)
    assert loss.item() == parts["ce"].item() == losses.cross_entropy(student.logits, LABELS).item()


def test_missing_maps_and_logits_are_named():
    teacher, student, method = make("kd+sakd")
    with pytest.raises(DistillError, match=r"teacher's maps.*return_maps=True"):
        method(student(), teacher(return_maps=False), LABELS)
    with pytest.raises(DistillError, match="student's maps"):
        method(student.logits, teacher(), LABELS)
    with pytest.raises(DistillError, match="teacher's logits"):
        method(student(), None, LABELS)


def test_void_labels_leave_only_the_distillation():
    teacher, student, method = make("kd")
    loss, parts = method(student(), teacher(), torch.full_like(LABELS, 255))
    assert parts["ce"].item() == 0 and loss.item() == parts["kd"].item()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["tag"])
def test_the_published_totals_come_out_of_a_step(case):
    """Without connectors the golden student maps reach the losses as they are."""
    outputs, models = [], []
    for who in ("student", "teacher"):
        logits = uniform(f"{case['tag']}/{who}_logits", (case["batch"], 21, 33, 33), -4, 4).double()
        outputs.append((logits, golden_maps(case, who, torch.float64)))
        models.append(Fake(tuple(case["teacher_channels"]), num_classes=21, sizes=[(1, 1)] * 6).double())
    for i, norm in enumerate(models[1].norms):
        norm.weight.data = uniform(f"{case['tag']}/gamma{i}", norm.weight.shape, -1.5, 1.5).double()
        norm.bias.data = uniform(f"{case['tag']}/beta{i}", norm.bias.shape, -1, 1).double()
    unconnected = {"connectors": False}
    method = build_method("kd+at+ofd+sakd", models[1], models[0], ofd=unconnected, sakd=unconnected)
    _, parts = method(*outputs, torch.zeros(case["batch"], 33, 33, dtype=torch.long))
    assert parts["kd"].item() == pytest.approx(0.9 * case["kd_pixelwise_mean_times_T2"]["4.0"], rel=1e-6)
    assert parts["at"].item() == pytest.approx(500 * sum(case["at_mean_per_position"][:4]), rel=1e-6)
    assert parts["ofd"].item() == pytest.approx(case["ofd_weighted_per_image_1e-5"], rel=1e-6)
    assert parts["sakd"].item() == pytest.approx(150 * case["sakd_total_over_dividers"], rel=1e-6)


def test_sakd_without_self_attention_is_attention_transfer_at_its_positions():
    teacher, student, method = make("sakd", sakd={"self_attention": False, "connectors": False, "weight": 1.0})
    parts = method(student(), teacher(), LABELS)[1]
    by_hand = [losses.at(s, t) / DIVIDERS[p] for p, s, t in zip(POSITIONS, student.maps, teacher.maps, strict=True)]
    assert parts["sakd"].item() == pytest.approx(sum(by_hand).item(), rel=1e-6)
    attending = step("sakd", sakd={"connectors": False, "weight": 1.0})[1]["sakd"]
    assert attending.item() != pytest.approx(parts["sakd"].item(), rel=1e-3)


def test_options_that_came_later_are_those_that_runs_had_before():
    now = make("sakd")[2].describe()["terms"]
    before = {"sakd": {name: value for name, value in now["sakd"].items() if name != "self_attention"}}
    assert methods.with_every_option(before) == now


# Names


def test_aliases_and_joins():
    assert make("proposed")[2].name == make(" SAKD ")[2].name == "sakd"
    assert make("baseline+kd")[2].name == "kd"
    assert make("baseline")[2].name == "baseline"
    assert make("sakd + kd")[2].name == "sakd+kd"
    assert torch.equal(step("proposed")[0], step("sakd")[0])
    joined, alone = step("kd+sakd")[1], step("kd")[1] | step("sakd")[1]
    assert {name: part.item() for name, part in joined.items()} == {n: alone[n].item() for n in joined}


@pytest.mark.parametrize(
    "name, message",
    [
        ("sadk", "did you mean 'sakd'"),
        ("kd+oft", "did you mean 'ofd'"),
        ("propose", "did you mean 'proposed'"),
        ("", "there are baseline"),
        ("kd+", "there are"),
        ("kd+kd", "twice"),
        ("sakd+proposed", "twice"),
    ],
)
def test_wrong_names_are_mended(name, message):
    with pytest.raises(DistillError, match=message):
        make(name)


def test_a_new_method_takes_a_class_and_an_entry(monkeypatch):
    class Mimic(Term):
        needs_logits = True

        def __init__(self, teacher, student, *, weight: float = 2.0, warmup: int = 0, decay: int = 0):
            super().__init__(weight, warmup, decay)

        def forward(self, student, teacher, labels):
            return (student.logits - teacher.logits.detach()).square().mean()

    monkeypatch.setitem(METHODS, "mimic", Mimic)
    _, parts = step("mimic+kd", mimic={"weight": 3})
    assert list(parts) == ["ce", "mimic", "kd"] and parts["mimic"] > 0
    assert make("mimic")[2].describe()["terms"] == {"mimic": {"weight": 2.0, "warmup": 0, "decay": 0}}


# Options


def test_options_flat_and_by_term():
    assert step("kd", weight=1.8)[1]["kd"].item() == pytest.approx(2 * step("kd")[1]["kd"].item())
    assert make("kd", temperature=2)[2].terms["kd"].temperature == 2
    both = make("kd+sakd", sakd={"weight": 30}, kd={"temperature": 2})[2]
    assert (both.terms["sakd"].weight, both.terms["kd"].temperature, both.terms["kd"].weight) == (30, 2, 0.9)
    assert make("proposed", proposed={"weight": 7})[2].terms["sakd"].weight == 7


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("kd", {"temprature": 2}, "did you mean 'temperature'"),
        ("kd+sakd", {"weight": 2}, "by term"),
        ("kd", {"sakd": {"weight": 1}}, "cannot use the option 'sakd'"),
        ("baseline", {"weight": 1}, "takes none"),
        ("kd", {"weight": float("nan")}, "finite"),
        ("kd", {"weight": -1}, "not negative"),
        ("kd", {"temperature": 0}, "from 0.01 to 1,000"),
        ("kd", {"temperature": 1e300}, "from 0.01 to 1,000"),
        ("kd", {"warmup": 5, "decay": 5}, "more calls than warmup"),
        ("at", {"positions": ["layer9"]}, "did you mean 'layer"),
        ("at", {"positions": []}, "at least one"),
        ("at", {"positions": [4]}, "no position 4"),
        ("kd", {"warmup": "3"}, "warmup is '3'"),
        ("kd", {"decay": 2.5}, "decay is 2.5"),
        ("sakd", {"positions": ["layer4", "layer4"]}, "none twice"),
        ("sakd", {"dividers": [1, 2]}, "each of the 6 positions"),
        ("ofd", {"dividers": [0] * 6}, "above 0"),
    ],
)
def test_wrong_options_are_mended(name, options, message):
    with pytest.raises(DistillError, match=message):
        make(name, **options)


def test_positions_and_dividers():
    chosen = {"sakd": {"positions": ("decoder", "layer2")}, "at": {"positions": "layer4"}}
    terms = make("kd+at+ofd+sakd", **chosen)[2].terms
    assert terms["sakd"].dividers == (16, 4) and terms["at"].positions == ("layer4",)
    assert terms["ofd"].dividers == tuple(DIVIDERS.values()) == (8, 4, 2, 1, 1, 16)
    whole, half = (step("sakd", dividers=[d] * 6)[1]["sakd"].item() for d in (1, 2))
    assert whole == pytest.approx(2 * half)


@pytest.mark.parametrize("name", EVERY)
def test_describe_is_json_and_builds_the_same_method(name):
    teacher, student, method = make(name)
    description = json.loads(json.dumps(method.describe()))
    assert description["name"] == name
    again = build_method(description["name"], teacher, student, **description["terms"])
    assert again.describe() == method.describe() == description
    if name == "sakd":
        assert description["terms"]["sakd"] == {
            "weight": 150.0, "positions": list(POSITIONS), "dividers": [8, 4, 2, 1, 1, 16],
            "connectors": True, "self_attention": True, "warmup": 0, "decay": 0,
        }  # fmt: skip


# Connectors


def test_connectors_are_the_only_parameters_and_have_the_right_shapes():
    for name in ("baseline", "kd", "at"):
        assert list(make(name)[2].parameters()) == []
    for name in ("ofd", "sakd"):
        connect = make(name)[2].terms[name].connect
        assert list(connect) == list(POSITIONS)
        channels = zip(STUDENT_CHANNELS, TEACHER_CHANNELS, strict=True)
        for (convolution, norm), (s, t) in zip(connect.values(), channels, strict=True):
            assert convolution.weight.shape == (t, s, 1, 1) and convolution.bias is None
            assert norm.num_features == t
    both = make("ofd+sakd")[2]
    assert len(list(both.parameters())) == 2 * 6 * 3
    assert len(list(make("sakd", connectors=False)[2].parameters())) == 0


def test_connectors_start_with_the_published_spread():
    torch.manual_seed(0)
    weight = methods.connector(300, 200)[0].weight
    assert weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert abs(weight.mean().item()) < 1e-3


@pytest.mark.parametrize("name", ["at", "ofd", "sakd"])
def test_students_maps_of_another_size_are_resized(name):
    sizes = [(6, 6), (5, 5), (2, 2), (2, 2), (2, 2), (16, 16)]
    teacher, student = Fake(TEACHER_CHANNELS), Fake(STUDENT_CHANNELS, sizes=sizes)
    loss, _ = build_method(name, teacher, student)(student(), teacher(), LABELS)
    assert loss.isfinite()


def test_corners_stay_where_they_are_when_a_map_is_resized():
    """By hand: with align_corners the new rows and columns lie exactly between the old ones."""
    resized = terms._resize_to(torch.tensor([[[[0.0, 3.0], [6.0, 9.0]]]]), torch.zeros(1, 1, 4, 4))
    assert torch.allclose(resized[0, 0], torch.arange(4.0) + 2 * torch.arange(4.0)[:, None])


def test_maps_that_are_not_square_work():
    sizes = [(8, 6), (4, 3), (4, 3), (4, 3), (4, 3), (8, 6)]
    teacher, student = Fake(TEACHER_CHANNELS, sizes=sizes), Fake(STUDENT_CHANNELS, sizes=sizes)
    assert build_method("at+ofd+sakd", teacher, student)(student(), teacher(), LABELS)[0].isfinite()


def test_the_method_follows_the_students_precision():
    teacher, student = Fake(TEACHER_CHANNELS).double(), Fake(STUDENT_CHANNELS).double()
    method = build_method("ofd+sakd", teacher, student)
    assert method(student(), teacher(), LABELS)[0].dtype == torch.float64
    assert method.terms["sakd"].calls.dtype == torch.long


# Teachers that cannot serve


@pytest.mark.parametrize("other", [nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), None])
def test_a_teacher_without_batchnorm_cannot_teach_ofd(other):
    teacher, student = Fake(TEACHER_CHANNELS), Fake(STUDENT_CHANNELS)
    teacher.norms[4] = other
    with pytest.raises(DistillError, match=r"no BatchNorm at aspp.*sakd or kd"):
        build_method("ofd", teacher, student)
    assert build_method("ofd", teacher, student, positions=POSITIONS[:4]).needs_teacher
    teacher.norms = []
    with pytest.raises(DistillError, match="layer1"):
        build_method("ofd", teacher, student)


def test_margins_come_from_the_teachers_norms():
    teacher, student = Fake(TEACHER_CHANNELS), Fake(STUDENT_CHANNELS)
    teacher.norms[2].bias.data.fill_(-0.5)
    buffers = dict(build_method("ofd", teacher, student).named_buffers())
    assert torch.equal(buffers["terms.ofd.margin_layer3"], losses.ofd_margin(teacher.norms[2]))


def test_other_classes_and_missing_teachers_are_named():
    student = Fake(STUDENT_CHANNELS, num_classes=4)
    teacher = Fake(TEACHER_CHANNELS, num_classes=21)
    with pytest.raises(DistillError, match="21 classes and the student 4, but kd compares"):
        build_method("kd+sakd", teacher, student)
    with pytest.raises(DistillError, match="21 classes and the student 4, but sakd needs"):
        build_method("sakd", teacher, student)
    assert not build_method("baseline", teacher, student).needs_teacher
    with pytest.raises(DistillError, match="needs a teacher"):
        build_method("kd", None, student)
    with pytest.raises(DistillError, match="map_channels"):
        build_method("sakd", nn.Conv2d(1, 1, 1), student)


# Schedules and resuming


def weights_over(calls, **options):
    teacher, student, method = make("kd", weight=2.0, **options)
    raw = losses.kd(student.logits, teacher.logits, 4.0).item()
    return [method(student(), teacher(), LABELS)[1]["kd"].item() / raw for _ in range(calls)]


def test_warmup_rises_and_decay_falls_linearly():
    assert weights_over(3) == pytest.approx([2, 2, 2])
    assert weights_over(6, warmup=4) == pytest.approx([0.5, 1, 1.5, 2, 2, 2])
    assert weights_over(7, warmup=2, decay=6) == pytest.approx([1, 2, 1.5, 1, 0.5, 0, 0])
    assert weights_over(5, decay=4) == pytest.approx([1.5, 1, 0.5, 0, 0])


def test_eval_mode_does_not_advance_the_schedule():
    teacher, student, method = make("kd", warmup=4)
    method(student(), teacher(), LABELS)
    method.eval()
    parts = [method(student(), teacher(), LABELS)[1]["kd"].item() for _ in range(2)]
    assert parts[0] == parts[1] and method.terms["kd"].calls == 1


def test_pieces_of_a_batch_advance_the_schedule_once():
    teacher, student, method = make("kd", weight=2.0, warmup=4)
    raw = losses.kd(student.logits, teacher.logits, 4.0).item()
    method.pieces = 2
    weights = [method(student(), teacher(), LABELS)[1]["kd"].item() / raw for _ in range(5)]
    assert weights == pytest.approx([0.5, 0.5, 1, 1, 1.5]) and method.terms["kd"].calls == 3


def test_state_dict_resumes_exactly():
    teacher, student, method = make("kd+ofd+sakd", kd={"warmup": 5}, sakd={"warmup": 3, "decay": 9})
    for _ in range(2):
        method(student(), teacher(), LABELS)
    torch.manual_seed(99)
    again = build_method("kd+ofd+sakd", teacher, student, kd={"warmup": 5}, sakd={"warmup": 3, "decay": 9})
    assert not torch.equal(again(student(), teacher(), LABELS)[0], method(student(), teacher(), LABELS)[0])
    again.load_state_dict(method.state_dict())
    assert torch.equal(again(student(), teacher(), LABELS)[0], method(student(), teacher(), LABELS)[0])
    assert all("logits" not in key and "maps" not in key for key in method.state_dict())
