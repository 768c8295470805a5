"""The newer losses against numbers that published code gave: value, and gradients of the student and of the weights.

`golden/newer_losses.json` names repository, files, commits and inputs, and says where the published number differs.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from golden_numbers import load
from torch import Tensor, nn

from distill import losses
from distill.terms import Attention, connector

GOLDEN = load("newer_losses")
CASES = {case["name"]: case for case in GOLDEN["cases"]}
TOLERANCE = 1e-6


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(case: dict) -> tuple[Tensor, Tensor]:
    student, teacher = (random(*case[who], seed=seed) * case["scale"] for who, seed in (("student", 0), ("teacher", 1)))
    return student.requires_grad_(), teacher


def labels() -> Tensor:
    drawn = torch.randint(0, 5, (2, 8, 12), generator=torch.Generator().manual_seed(2))
    return drawn.masked_fill(drawn == 4, losses.IGNORE_INDEX)


def filled(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


# Ours where the formula is the same; where it is not, ours with the published step in place of ours


def skd_with_constant_lengths(student: Tensor, teacher: Tensor) -> Tensor:
    def cosines(x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 2).flatten(2)
        x = x / x.norm(dim=1, keepdim=True).detach()
        return x.mT @ x

    return (cosines(student) - cosines(teacher)).square().mean()


def icsd_by_steps(
    student: Tensor,
    teacher: Tensor,
    over: tuple[int, ...] = (2, 3),
    logarithm: bool = True,
    mirrored: bool = False,
    merged: bool = False,
) -> Tensor:
    """ICSD; with other than the default arguments, as published code computes it.

    over: the dimensions of the softmax; logarithm: of the second class's p; mirrored: the lower half of the matrix
    replaces the upper; merged: one matrix, the batch's mean.
    """

    def matrix(logits: Tensor) -> Tensor:
        p = (logits - logits.amax(dim=over, keepdim=True)).exp()
        p = p / p.sum(dim=over, keepdim=True)
        entropy = -(p * p.log()).sum(dim=(2, 3))
        found = -entropy[:, :, None] - torch.einsum("nihw,njhw->nij", p, p.log() if logarithm else p)
        if mirrored:
            found = found.tril() + found.tril(-1).mT
        if merged:
            found = found.mean(dim=0, keepdim=True)
        return F.normalize(found, dim=2)

    return (matrix(student) - matrix(teacher)).square().mean() / (len(student) if merged else 1)


def icsd_published(student: Tensor, teacher: Tensor, over: tuple[int, ...] = (2, 3)) -> Tensor:
    return icsd_by_steps(student, teacher, over, logarithm=False, mirrored=True, merged=True)


def attnfd_as_one_image(student: Tensor, teacher: Tensor) -> Tensor:
    return losses.attnfd(student.flatten(0, 1)[None], teacher.flatten(0, 1)[None])


def fitnet() -> tuple[Callable[[Tensor, Tensor], Tensor], nn.Module]:
    convolution = filled(nn.Conv2d(5, 7, kernel_size=1, bias=False), seed=3)
    return lambda student, teacher: losses.fitnet(convolution(student), teacher), convolution


def attnfd() -> tuple[Callable[[Tensor, Tensor], Tensor], nn.Module]:
    attend, connect = filled(Attention(32), seed=4), filled(connector(32, 48), seed=5)

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return losses.attnfd(connect(attend(student)), losses.refined(teacher))

    return loss, nn.ModuleList([attend, connect])


OURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": losses.mse,
    "skd": losses.skd,
    "skd-authors": skd_with_constant_lengths,
    "ifvd": lambda student, teacher: losses.ifvd(student, teacher, labels()),
    "cwd": lambda student, teacher: losses.cwd(student, teacher, temperature=4.0),
    "dist": losses.dist,
    "cirkd": lambda student, teacher: losses.cirkd(student, teacher, temperature=0.1),
    "nfd": losses.nfd,
    "icsd": icsd_published,
    "icsd-columns": lambda student, teacher: icsd_published(student, teacher, over=(2,)),
    "attnfd-batch": attnfd_as_one_image,
}
WITH_WEIGHTS = {"fitnet": fitnet, "attnfd": attnfd}


def check_gradient(gradient: Tensor, expected: dict) -> None:
    """Norm, and entries to the tolerance of the norm."""
    assert gradient.norm().item() == pytest.approx(expected["norm"], rel=TOLERANCE)
    entries = gradient.flatten()[expected["index"]].tolist()
    assert entries == pytest.approx(expected["value"], rel=0, abs=TOLERANCE * expected["norm"])


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_are_those_of_published_code(name: str) -> None:
    case = CASES[name]
    student, teacher = pair(case)
    loss, weights = WITH_WEIGHTS[name]() if name in WITH_WEIGHTS else (OURS[name], None)
    value = loss(student, teacher) * (case["factor"] or 1)
    value.backward()
    assert value.item() == pytest.approx(case["value"], rel=TOLERANCE)
    check_gradient(student.grad, case["gradient"])
    for parameter, expected in zip(weights.parameters() if weights else [], case.get("weights", []), strict=True):
        check_gradient(parameter.grad, expected)


def test_every_newer_loss_has_a_case_with_a_commit() -> None:
    newer = {"mse", "fitnet", "nfd", "skd", "ifvd", "cwd", "dist", "icsd", "cirkd", "attnfd"}
    assert {case["loss"] for case in CASES.values()} == newer
    assert all(len(commit) == 40 for case in CASES.values() for commit in case["files"].values())


# How ours differs from the published number where no factor takes one to the other


def test_skd_differs_from_the_authors_code_in_its_gradient_alone() -> None:
    case = CASES["skd-authors"]
    student, teacher = pair(case)
    value = losses.skd(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(case["value"], rel=TOLERANCE)
    assert student.grad.norm().item() < 0.9 * case["gradient"]["norm"]


def test_icsd_without_the_published_steps_is_ours() -> None:
    student, teacher = pair(CASES["icsd"])
    ours, ours_by_steps = losses.icsd(student, teacher), icsd_by_steps(student, teacher)
    assert ours_by_steps.item() == pytest.approx(ours.item(), rel=1e-9)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (ours, ours_by_steps)]
    assert (gradients[0] - gradients[1]).norm() < 1e-9 * gradients[0].norm()
    for step in ({"over": (2,)}, {"logarithm": False}, {"mirrored": True}, {"merged": True}):  # each one changes it
        assert icsd_by_steps(student, teacher, **step).item() != pytest.approx(ours.item(), rel=0.01)


def test_attnfd_is_n_times_the_published_number_where_images_are_equally_long() -> None:
    student, teacher = (F.normalize(x.detach().flatten(1), dim=1).view_as(x) for x in pair(CASES["attnfd-batch"]))
    assert losses.attnfd(student, teacher).item() == pytest.approx(
        attnfd_as_one_image(student, teacher).item(), rel=TOLERANCE
    )
