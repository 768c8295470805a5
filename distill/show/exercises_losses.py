"""The checks of the exercises in the notebooks on losses, 04 to 04d; see `exercises`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical

from distill import losses
from distill.networks.teachers import fingerprint
from distill.show.checking import exercise, expect
from distill.terms import KD, Output

# ------------------------------------------------------------------------------------------- what they have in common


def _scalar(loss: Any) -> torch.Tensor:
    expect(
        isinstance(loss, torch.Tensor) and loss.ndim == 0,
        "it has to return the loss, a tensor of no dimension, as a mean is",
    )
    return loss.double()


def _two_tensors(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Standing for student and teacher, float64, always the same."""
    first, second = 3 * torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return first, second


def _learning(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, as a network would give them: with a gradient, and free to be changed in place."""
    return 1 * x.clone().requires_grad_()


def _divergences(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) at every pixel, (N, H, W)."""
    both = [Categorical(logits=logits.movedim(1, -1) / temperature) for logits in (teacher_logits, student_logits)]
    return torch.distributions.kl_divergence(*both)


def _tiny_network(seed: int, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, kernel_size=3), nn.BatchNorm2d(4), nn.Dropout(dropout))


def _descended(loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, steps: int = 300) -> torch.Tensor:
    """Logits after some steps of Adam down a loss."""
    logits = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(logits).backward()
        optimizer.step()
    return logits.detach()


def _falls(loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> bool:
    return bool(loss(_descended(loss, start, steps=50)) < 0.9 * loss(start.detach()))


# --------------------------------------------------------------------------------------------- 04_distillation_losses


@exercise
def measured_margin(answer: Callable[..., Any]) -> None:
    small = torch.tensor([[[[-1.0, 2.0]], [[3.0, 4.0]]]])  # (1, 2, 1, 2): the second channel is never negative
    large = torch.tensor([[[[-4.0, -4.0]], [[1.0, 2.0]]], [[[-2.0, 0.0]], [[5.0, 0.0]]]])
    given = small.clone(), large.clone()
    margin = answer([small, large])
    kept = torch.equal(small, given[0]) and torch.equal(large, given[1])
    expect(kept, "the maps themselves were changed; work on copies")
    expect(isinstance(margin, torch.Tensor) and margin.shape == (2,), "return a tensor with one margin per channel")
    expect(bool(margin.isfinite().all()), "a channel that is never negative has no mean: give it 0")
    margin = margin.float()
    expect(margin[1] == 0, f"the second channel is never negative: its margin is 0, not {margin[1]:.2f}")
    sentence = (
        "the first channel's negative values are -1, -4, -4 and -2: their mean is -2.75, whatever the batches, not"
    )
    expect(torch.isclose(margin[0], torch.tensor(-2.75)), f"{sentence} {margin[0]:.2f}")
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 0.5, 2.0])), norm.bias.copy_(torch.tensor([0.0, 0.5, -1.0]))
        draws = torch.randn(64, 3, 24, 24, generator=torch.Generator().manual_seed(0))
        gap = (answer([norm(part) for part in draws.split(32)]) - losses.ofd_margin(norm)).abs().max()
    expect(gap < 0.03, f"where values are normal, formula and measurement agree; here they differ by {gap:.2f}")


@exercise
def quiet_student(answer: Callable[..., Any]) -> None:
    target = torch.tensor([[[[2.0, -1.0], [0.0, 0.5]], [[-3.0, 1.0], [-0.25, 4.0]]]])  # (1, 2, 2, 2)
    quiet = answer(target.clone())
    expect(isinstance(quiet, torch.Tensor) and quiet.shape == target.shape, "return a tensor, the map (N, C, H, W)")
    loss = losses.ofd(quiet, target, margin=torch.tensor([-1.0, -3.0]))  # no target lies below its margin
    expect(
        loss == 0,
        f"OFD's loss is {loss:.3f}, not 0: where the target is above zero nothing is free, and elsewhere only "
        "what is below it",
    )
    lowest = torch.tensor([[[[2.0, -11.0], [-10.0, 0.5]], [[-13.0, 1.0], [-10.25, 4.0]]]])
    sentence = "the loss is 0, but not every value that is free lies ten units below its target"
    expect(torch.equal(quiet, lowest), f"{sentence}; where the target is exactly 0 the student is free as well")


# ------------------------------------------------------------------------------------------------- 04b_self_attention


_SEES_NONE = "SAKD sees no difference: permuted channels and a turn by 180° change nothing; try another rearrangement"


@exercise
def rearrange_alike(answer: Callable[..., Any]) -> None:
    maps = _two_tensors(2, 3, 5, 5)
    moved = answer(*(each.clone() for each in maps))
    two = isinstance(moved, tuple | list) and len(moved) == 2 and all(isinstance(each, torch.Tensor) for each in moved)
    expect(two, "return two tensors, the student's map and the teacher's")
    for new, old in zip(moved, maps, strict=True):
        same = torch.equal(new.flatten().sort().values, old.flatten().sort().values)
        expect(new.shape == old.shape and same, "each map keeps its shape and its values, at other places")
    expect(torch.isclose(losses.at(*moved), losses.at(*maps)), "AT sees a difference: move both maps alike")
    equal = torch.isclose(losses.sakd(*moved), losses.sakd(*maps), rtol=1e-6, atol=0)
    expect(not equal, _SEES_NONE)


@exercise
def transformer_rows(answer: Callable[..., Any]) -> None:
    for shape in ((2, 4, 4), (1, 3, 7)):
        g = _two_tensors(*shape)[0].abs()
        attended = answer(_learning(g))
        expect(isinstance(attended, torch.Tensor), "it has to return a tensor")
        expect(attended.requires_grad, "the rows lose the gradient, and are to train: no NumPy, no_grad or detach")
        attended = attended.detach()
        expect(attended.shape == g.shape, f"a map (N, H, W) gives a map (N, H, W), not {tuple(attended.shape)}")
        published = g.shape[1] == g.shape[2] and torch.allclose(
            attended.double(), losses.self_attention_map(g.sqrt()[:, None])
        )
        expect(not published, "this is SAKD's own formula; a transformer multiplies by the values as a matrix")
        expected = F.scaled_dot_product_attention(g, g, g)
        expect(
            torch.allclose(attended.double(), expected),
            f"for a map of {shape[1]} x {shape[2]} places the numbers are others",
        )


# ---------------------------------------------------------------------------------------------- 04c_family_of_methods


@exercise
def LabelledKD(answer: Callable[..., Any]) -> None:
    term = answer(None, None, temperature=2.0)
    expect(isinstance(term, KD), "it has to be a subclass of KD, built from a teacher and a student")
    expect(type(term) is not KD and term.temperature == 2, "it keeps KD's options, temperature among them")
    student, teacher = _two_tensors(2, 3, 2, 4)
    labels = torch.tensor([[[0, 1, 2, 255], [255, 255, 0, 1]], [[2, 2, 0, 0], [1, 255, 255, 2]]])
    void = labels == 255
    student.requires_grad_(), teacher.requires_grad_()

    def loss_of(ours: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _scalar(term(Output(ours, ()), Output(teacher, ()), labels))

    loss = loss_of(student, labels)
    changed = loss_of(student.detach().flip(1).where(void[:, None], student), labels)
    sentence = "other logits under void still change the loss, from"
    expect(torch.isclose(loss, changed), f"{sentence} {loss:.3f} to {changed:.3f}")
    expected = 4 * _divergences(student, teacher, 2)[~void].mean()
    expect(torch.isclose(loss, expected), f"the mean over labelled pixels is {expected:.3f}, not {loss:.3f}")
    expect(loss.requires_grad, "the student gets no gradient")
    loss.backward()
    expect(student.grad is not None, "the student gets no gradient")
    expect(teacher.grad is None, "the teacher gets a gradient: detach its logits")
    nothing = loss_of(student, torch.full_like(labels, 255))
    expect(bool(nothing == 0), f"a batch without any labelled pixel gives 0, not {nothing:.3f}")
    expect(_falls(lambda ours: loss_of(ours, labels), student), "a student that descends it does not come nearer")


@exercise
def own_loss(answer: Callable[..., Any]) -> None:
    student, teacher = _two_tensors(4, 5, 3, 3)
    loss = _scalar(answer(student, teacher))
    expect(bool(loss.isfinite()) and loss > 0, f"for two networks that differ it has to be above 0, and is {loss:.3f}")
    equal = _scalar(answer(teacher.clone(), teacher))
    expect(equal.abs() < 1e-6, f"for a student that equals the teacher it has to be 0, and is {equal:.3g}")
    twice = _scalar(answer(*(logits.repeat(2, 1, 1, 1) for logits in (student, teacher))))
    expect(torch.isclose(loss, twice), f"the batch twice over changes the loss from {loss:.3f} to {twice:.3f}")
    ours, theirs = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    loss_of_both = answer(ours, theirs)
    expect(loss_of_both.requires_grad, "the student gets no gradient: detach the teacher's logits only")
    loss_of_both.backward()
    expect(theirs.grad is None, "the teacher gets a gradient: detach its logits")
    expect(ours.grad is not None and bool(ours.grad.isfinite().all()), "the student's gradient has to be finite")
    _is_none_of_the_courses(answer)
    expect(_falls(lambda ours: answer(ours, teacher), student), "a student that descends it does not come nearer")
    agreement = _descended(lambda ours: answer(ours, teacher), student).argmax(1) == teacher.argmax(1)
    share = agreement.double().mean()
    expect(share > 0.9, f"after 300 steps down it, the student agrees with the teacher at {share:.0%} of the pixels")


def _is_none_of_the_courses(answer: Callable[..., Any]) -> None:
    """Its ratio to each loss on logits has to differ between pairs, at every temperature from a quarter to 64."""
    generator = torch.Generator().manual_seed(0)

    def drawn(scale: float) -> torch.Tensor:
        return scale * torch.randn(4, 5, 3, 3, generator=generator, dtype=torch.float64)

    # Pairs of unlike sizes, none a copy of another: on copies many losses are the same but for a factor.
    pairs = [(drawn(ours), drawn(theirs)) for ours, theirs in ((1, 1), (3, 1), (1, 3), (0.3, 2), (4, 4))]
    given = torch.stack([answer(*pair) for pair in pairs])
    warm = [(T,) for T in torch.logspace(-2, 6, 161, base=2).tolist()]  # so close that one between two is found too
    tried: dict[Callable[..., torch.Tensor], list[Any]] = {losses.mse: [()], losses.icsd: [()]}
    tried |= dict.fromkeys((losses.kd, losses.cwd, losses.dist), warm)
    for known, options in tried.items():
        for option in options:
            ratios = given / torch.stack([known(*pair, *option) for pair in pairs])
            at = f" at a temperature of about {option[0]:.2g}" if option else ""
            fresh = (ratios / ratios.mean() - 1).abs().max() > 0.02
            expect(fresh, f"this is {known.__name__}{at}, which the course has already, but for a factor")


# --------------------------------------------------------------------------------------------------------- 04d_clinic


_NO_GRADIENT = "the student gets no gradient"
_CHANGED = "the teacher's logits themselves were changed; work on a copy"


@exercise
def repair_softening(answer: Callable[..., Any]) -> None:
    student, teacher = _two_tensors(2, 5, 3, 3)
    given = teacher.clone()

    def pull(temperature: float) -> float:
        logits = student.clone().requires_grad_()
        loss = _scalar(answer(logits, teacher, temperature))
        expect(torch.equal(teacher, given), _CHANGED)
        expect(loss.requires_grad, _NO_GRADIENT)
        (gradient,) = torch.autograd.grad(loss, logits)
        return float(gradient.norm())

    shrinks = pull(16) / pull(64)
    expect(shrinks < 2, f"from T = 16 to T = 64 the gradient still shrinks {shrinks:.0f}-fold")
    expect(shrinks > 0.5, f"from T = 16 to T = 64 the gradient now grows {1 / shrinks:.0f}-fold")
    for temperature in (1, 4):
        both = [Categorical(logits=logits.flatten(2) / temperature) for logits in (teacher, student)]
        expected = temperature**2 * torch.distributions.kl_divergence(*both).mean()
        loss = _scalar(answer(student, teacher, temperature))
        expect(torch.isclose(loss, expected), f"at T = {temperature} the loss is {loss:.3f}, not {expected:.3f}")


@exercise
def repair_kd_reduction(answer: Callable[..., Any]) -> None:
    pair = _two_tensors(3, 5, 2, 4)
    given = pair[1].clone()
    loss = _scalar(answer(_learning(pair[0]), pair[1], 4))
    expect(loss.requires_grad, _NO_GRADIENT)
    loss = loss.detach()
    expect(torch.equal(pair[1], given), _CHANGED)
    dead = torch.full((3, 15, 2, 4), -1000.0)
    more = _scalar(answer(*(torch.cat([logits, dead], dim=1) for logits in pair), 4))
    sentence = "classes that neither network believes in still change the loss, from"
    expect(torch.isclose(loss, more), f"{sentence} {loss:.3f} to {more:.3f}")
    tiled = _scalar(answer(*(logits.repeat(1, 1, 2, 2) for logits in pair), 4))
    sentence = "four copies of every image side by side change the loss, from"
    expect(torch.isclose(loss, tiled), f"{sentence} {loss:.3f} to {tiled:.3f}: take the mean over pixels too")
    for temperature in (4, 2):
        loss, expected = _scalar(answer(*pair, temperature)), temperature**2 * _divergences(*pair, temperature).mean()
        expect(
            torch.isclose(loss, expected),
            f"at T = {temperature} the loss is {loss:.3f}, not {expected:.3f}: sum over classes alone, weigh by the "
            f"teacher's probabilities, and keep T²",
        )


@exercise
def repair_void(answer: Callable[..., Any]) -> None:
    logits, other = _two_tensors(2, 3, 2, 4)
    labels = torch.tensor([[[0, 1, 2, 255], [255, 255, 0, 1]], [[2, 2, 0, 0], [1, 255, 255, 2]]])
    void, given = labels == 255, labels.clone()
    loss = _scalar(answer(_learning(logits), labels))
    expect(loss.requires_grad, _NO_GRADIENT)
    loss = loss.detach()
    changed = _scalar(answer(other.where(void[:, None], logits), labels))
    sentence = "other logits under void still change the loss, from"
    expect(torch.isclose(loss, changed), f"{sentence} {loss:.3f} to {changed:.3f}")
    places = (~void).nonzero().tolist()
    each = [-float(logits[n, :, y, x].log_softmax(0)[labels[n, y, x]]) for n, y, x in places]
    expected = sum(each) / len(each)
    sentence = "take the mean over the labelled pixels, background among them:"
    expect(np.isclose(float(loss), expected), f"{sentence} {expected:.3f}, not {loss:.3f}")
    expect(torch.equal(labels, given), "the labels themselves were changed; work on a copy")


@exercise
def repair_teacher_mode(answer: Callable[..., Any]) -> None:
    images = _two_tensors(4, 3, 6, 6)[0].float()
    teacher, student = _tiny_network(0, dropout=0.5), _tiny_network(1)
    before, buffer = fingerprint(teacher), student.get_buffer("1.running_mean").clone()
    student.eval()  # whoever repairs the step puts it into training mode
    calls = [answer(teacher, student, part) for part in (images, images, images[:2])]
    for outputs in calls:
        two = isinstance(outputs, tuple | list) and len(outputs) == 2
        two = two and all(isinstance(each, torch.Tensor) for each in outputs)
        expect(two, "it has to return teacher_logits, student_logits, two tensors")
    first, second, alone = (teacher_logits for teacher_logits, _ in calls)
    expect(torch.equal(first, second), "the teacher's answers still change from call to call on the same images")
    expect(fingerprint(teacher) == before, "the teacher's fingerprint changes: the buffers of its BatchNorm drift")
    expect(torch.allclose(first[:2], alone, atol=1e-5), "an image's answer depends on the other images of the batch")
    expect(torch.allclose(first, teacher.eval()(images), atol=1e-5), "these are not the teacher's answers")
    expect(not first.requires_grad, "the teacher's forward pass is to be without gradient, as before")
    expect(calls[0][1].requires_grad, "the student's forward pass needs a gradient")
    drifted = student.get_buffer("1.running_mean")
    expect(not torch.equal(drifted, buffer), "the student has to be in training mode")
    twin = _tiny_network(1).train()
    for part, (_, logits) in zip((images, images, images[:2]), calls, strict=True):
        expect(torch.allclose(logits, twin(part), atol=1e-5), "these are not the student's logits in training mode")
    once = torch.allclose(drifted, twin.get_buffer("1.running_mean"), atol=1e-6)
    expect(once, "the student is to see each batch once, in training mode")


@exercise
def repair_teacher_gradient(answer: Callable[..., Any]) -> None:
    images = _two_tensors(4, 3, 6, 6)[0].float()
    teacher, student = _tiny_network(0).eval(), _tiny_network(1)
    parameters = [*teacher.parameters(), *student.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, weight_decay=0.1)
    kernel = student.get_parameter("0.weight")
    before, weight = fingerprint(teacher), kernel.detach().clone()
    target, twin = teacher(images).detach(), _tiny_network(1)
    expected = (_tiny_network(1)(images) - target).square().mean()
    twins = torch.optim.SGD(twin.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(2):
        twins.zero_grad()
        (twin(images) - target).square().mean().backward()
        twins.step()
    crossed: list[bool] = []

    def watch(_module: nn.Module, _given: object, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda _gradient: crossed.append(True))

    teacher.register_forward_hook(watch)
    loss = answer(teacher, student, images, optimizer)
    touched = sum(parameter.grad is not None for parameter in teacher.parameters())
    expect(touched == 0, f"{touched} of the teacher's 4 parameters still have a gradient")
    expect(fingerprint(teacher) == before, "the step still changes the teacher: its fingerprint is another")
    expect(not torch.equal(kernel, weight), "the student learns nothing: its weights are as before")
    expect(not crossed, "the backward pass still goes through the teacher: no graph may lead there")
    expect(
        torch.isclose(_scalar(loss), expected.double()), f"the loss of the first step is {loss:.3f}, not {expected:.3f}"
    )
    second = answer(teacher, student, images, optimizer)
    expect(
        torch.allclose(kernel, twin.get_parameter("0.weight"), atol=1e-5),
        "after the second step the student's weights are others: clear its gradients at every step",
    )
    last = [second, *(answer(teacher, student, images, optimizer) for _ in range(4))][-1]
    expect(last < loss, f"after six steps the loss is {last:.3f}, and was {loss:.3f}: the student does not learn")
