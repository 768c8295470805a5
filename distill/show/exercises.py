"""The exercises of the course: `check(answer)` tries a reader's function and says what is missing.

A notebook gives the head of a function and what it should do; the reader fills it in. Notebook 09 solves them all, in
functions with `solution_` before the name. Each check here is written without looking at the solution: it knows small
cases whose answers can be had in another way.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

from distill import losses
from distill.networks.teachers import fingerprint
from distill.training.evaluation import Scores

CHECKS: dict[str, Callable[[Callable[..., Any]], None]] = {}


def check(answer: Callable[..., Any]) -> None:
    """Try the function that answers an exercise; print `OK` or one sentence on what is missing.

    The exercise is found by the function's name. Whatever the function raises is caught: an unfinished answer never
    stops a notebook.
    """
    lacking = what_is_missing(answer)
    print(f"not yet: {lacking}" if lacking else f"OK: {answer.__name__}")


def what_is_missing(answer: Callable[..., Any]) -> str:
    """One sentence that begins with the exercise's name; empty when the answer passes."""
    name = answer.__name__.removeprefix("solution_")
    if name not in CHECKS:
        return f"{name}: there is no such exercise; keep the function's name"

    def asked(*given: object, **options: object) -> object:
        result = answer(*given, **options)
        _expect(result is not None, "it returns None; put your code into the function")
        return result

    try:
        CHECKS[name](asked)
    except Exception as error:
        return f"{name}: {_reason(error)}"
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, AssertionError):
        return str(error) or "an assertion failed"
    return f"it raised {type(error).__name__}: {error}"


def _exercise(test: Callable[[Callable[..., Any]], None]) -> Callable[[Callable[..., Any]], None]:
    """Register a check under its function's name."""
    CHECKS[test.__name__] = test
    return test


def _expect(condition: object, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)


# -------------------------------------------------------------------------------------- 00_start_here


@_exercise
def hardest_class(answer: Callable[..., Any]) -> None:
    # By rows the truth, by columns the answers: IoU 6/8 for sky, 1/3 for kite; there is no fish.
    confusion = np.array([[0, 0, 0], [0, 6, 1], [0, 1, 1]])
    _expect(answer(Scores(confusion[1:, 1:], ("sky", "kite"))) == "kite", "the kite's IoU is 1/3, the sky's 6/8")
    _expect(
        answer(Scores(confusion[:0:-1, :0:-1], ("kite", "sky"))) == "kite", "the order of the classes does not matter"
    )
    _expect(
        answer(Scores(confusion, ("fish", "sky", "kite"))) == "kite",
        "a class that neither occurs nor is predicted has IoU NaN, which is neither high nor low: leave it out",
    )


@_exercise
def images_won(answer: Callable[..., Any]) -> None:
    truth, ours, theirs = np.array([[1, 2, 255, 255]]), np.array([[1, 2, 3, 3]]), np.array([[1, 0, 255, 255]])
    one, other = ({"truth": truth, "a": a, "b": b} for a, b in ((ours, theirs), (theirs, ours)))
    _expect(
        answer({0: one}, "a", "b") == 1, "of two labelled pixels `a` has two right and `b` one; void does not count"
    )
    _expect(answer({0: one}, "b", "a") == 0, "the first name is the one whose wins are counted")
    _expect(answer({0: one, 20: one, 40: other}, "a", "b") == 2, "here `a` wins two images of three")
    _expect(answer({0: one, 20: one | {"b": ours}}, "a", "b") == 1, "a tie is no win")


# -------------------------------------------------------------------------------------------- 01_data


@_exercise
def class_shares(answer: Callable[..., Any]) -> None:
    labels = torch.tensor([[0, 0, 0, 2], [255, 255, 2, 3]])
    shares = answer(labels, 5)
    _expect(isinstance(shares, torch.Tensor) and shares.shape == (5,), "return a tensor with one share a class")
    _expect(abs(float(shares.sum()) - 1) < 1e-6, "the shares of the labelled pixels add up to 1; leave void out")
    expected = torch.tensor([3 / 6, 0, 2 / 6, 1 / 6, 0])
    _expect(torch.allclose(shares.float(), expected), f"for {labels.tolist()} the shares are {expected.tolist()}")


@_exercise
def mirror(answer: Callable[..., Any]) -> None:
    image, labels = torch.arange(24).view(3, 2, 4), torch.tensor([[0, 1, 2, 3], [4, 5, 255, 7]])
    result = answer(image, labels)
    _expect(isinstance(result, tuple | list) and len(result) == 2, "return the image and the labels, as a pair")
    for name, given, got in zip(("image", "labels"), (image, labels), result, strict=True):
        _expect(isinstance(got, torch.Tensor) and got.shape == given.shape, f"the shape of the {name} must not change")
        left_to_right = torch.stack([given[..., column] for column in (3, 2, 1, 0)], dim=-1)
        _expect(torch.equal(got, left_to_right), f"the {name} must be mirrored left to right")


# ----------------------------------------------------------------------------------------- 02_teacher


@_exercise
def entropy(answer: Callable[..., Any]) -> None:
    logits = torch.zeros(2, 4, 1, 3)
    logits[0, 0] = 1000.0  # in the first image one class has everything
    values = answer(logits)
    _expect(isinstance(values, torch.Tensor) and values.shape == (2, 1, 3), "return a tensor (N, H, W)")
    _expect(bool(values.isfinite().all()), "for logits of 1000 it must stay finite; use log_softmax")
    _expect(torch.allclose(values[0], torch.zeros(1, 3), atol=1e-5), "where one class has everything, entropy is 0")
    _expect(torch.allclose(values[1], torch.tensor(4.0).log().expand(1, 3)), "of four equal classes it is log 4")
    odds = torch.tensor([0.5, 0.25, 0.25]).log().view(1, 3, 1, 1) + 7
    _expect(torch.allclose(answer(odds), 1.5 * torch.tensor(2.0).log()), "of 1/2, 1/4 and 1/4 it is 1.5 log 2")


@_exercise
def second_choice(answer: Callable[..., Any]) -> None:
    logits = torch.tensor([[5.0, 1.0, -2.0], [4.0, 3.0, -1.0], [0.0, 2.0, -3.0]]).view(1, 3, 1, 3)
    choice = answer(logits)
    _expect(isinstance(choice, torch.Tensor) and choice.shape == (1, 1, 3), "return a tensor (N, H, W)")
    _expect(not choice.is_floating_point(), "return class indices, not logits")
    _expect(choice.flatten().tolist() == [1, 2, 0], "at three places the classes in second place are 1, 2 and 0")


# ---------------------------------------------------------------------------------------- 03_students


_TWO_GROUPS = (
    "two groups, kernel 1 x 3: 6 outputs, 2 inputs each, 3 places of the kernel, 10 places of the output; the stride "
    "is already in the output's size"
)


@_exercise
def multiply_adds(answer: Callable[..., Any]) -> None:
    plain = nn.Conv2d(3, 8, 5)
    _expect(answer(plain, 4, 7) == 3 * 8 * 25 * 4 * 7, "3 to 8 channels, kernel 5, at 4 x 7 places: 16,800")
    depthwise = nn.Conv2d(6, 6, 3, groups=6)
    _expect(answer(depthwise, 10, 10) == 6 * 9 * 100, "in a depthwise convolution a channel sees itself only")
    wide = nn.Conv2d(4, 6, (1, 3), groups=2, stride=2)
    _expect(answer(wide, 2, 5) == 6 * 2 * 3 * 10, _TWO_GROUPS)


@_exercise
def widest_within(answer: Callable[..., Any]) -> None:
    cases: list[tuple[float, Callable[[float], float], int]] = [
        (0.5, lambda width: 100 * width, 50),
        (0.3, lambda width: round(1e6 * width**2), 90_000),
        (1.0, lambda width: 10 * width, 10),
    ]
    for limit, count, budget in cases:
        width = answer(count, budget)
        _expect(isinstance(width, float | int) and 0 <= width <= 1, "return a width between 0 and 1")
        _expect(count(width) <= budget, f"at the width {width} the count is above the budget")
        _expect(limit - width <= 0.0011, f"the largest width is {limit}, and {width} is not within 0.001 of it")


# ----------------------------------------------------------------------------- 04_distillation_losses


def _scalar(loss: Any) -> torch.Tensor:
    _expect(isinstance(loss, torch.Tensor) and loss.ndim == 0, "it has to return the loss, a tensor of one number")
    return loss


def _two_tensors(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Standing for student and teacher, float64, always the same."""
    first, second = 3 * torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return first, second


def _divergences(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) at every pixel, (N, H, W)."""
    both = [Categorical(logits=logits.movedim(1, -1) / temperature) for logits in (teacher_logits, student_logits)]
    return torch.distributions.kl_divergence(*both)


def _tiny_network(seed: int, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, kernel_size=3), nn.BatchNorm2d(4), nn.Dropout(dropout))


@_exercise
def repair_kd_scale(answer: Callable[..., Any]) -> None:
    student, teacher = _two_tensors(2, 5, 3, 3)

    def pull(temperature: float) -> float:
        logits = student.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_scalar(answer(logits, teacher, temperature)), logits)
        return float(gradient.norm())

    shrinks = pull(16) / pull(64)
    _expect(shrinks < 2, f"from T = 16 to T = 64 the gradient still shrinks {shrinks:.0f}-fold")
    _expect(shrinks > 0.5, f"from T = 16 to T = 64 the gradient now grows {1 / shrinks:.0f}-fold")
    for temperature in (1, 4):
        expected = temperature**2 * _divergences(student, teacher, temperature).mean()
        loss = answer(student, teacher, temperature)
        _expect(torch.isclose(loss, expected), f"at T = {temperature} the loss is {loss:.3f}, not {expected:.3f}")


@_exercise
def repair_kd_reduction(answer: Callable[..., Any]) -> None:
    pair = _two_tensors(2, 5, 3, 3)
    loss = _scalar(answer(*pair, 4))
    dead = torch.full((2, 15, 3, 3), -1000.0)
    more = answer(*(torch.cat([logits, dead], dim=1) for logits in pair), 4)
    sentence = "classes that neither network believes in still change the loss, from"
    _expect(torch.isclose(loss, more), f"{sentence} {loss:.3f} to {more:.3f}")
    tiled = answer(*(logits.repeat(1, 1, 2, 2) for logits in pair), 4)
    sentence = "four copies of every image side by side change the loss, from"
    _expect(torch.isclose(loss, tiled), f"{sentence} {loss:.3f} to {tiled:.3f}: take the mean over pixels too")
    expected = 16 * _divergences(*pair, 4).mean()
    _expect(torch.isclose(loss, expected), f"the loss is {loss:.3f}, not {expected:.3f}: sum over classes alone")


@_exercise
def repair_void(answer: Callable[..., Any]) -> None:
    logits, other = _two_tensors(2, 3, 2, 4)
    labels = torch.tensor([[[0, 1, 2, 255], [255, 255, 0, 1]], [[2, 2, 0, 0], [1, 255, 255, 2]]])
    void, given = labels == 255, labels.clone()
    loss = _scalar(answer(logits, labels))
    changed = answer(other.where(void[:, None], logits), labels)
    sentence = "other logits under void still change the loss, from"
    _expect(torch.isclose(loss, changed), f"{sentence} {loss:.3f} to {changed:.3f}")
    places = (~void).nonzero().tolist()
    each = [-float(logits[n, :, y, x].log_softmax(0)[labels[n, y, x]]) for n, y, x in places]
    expected = sum(each) / len(each)
    sentence = "take the mean over the labelled pixels, background among them:"
    _expect(np.isclose(float(loss), expected), f"{sentence} {expected:.3f}, not {loss:.3f}")
    _expect(torch.equal(labels, given), "the labels themselves were changed; work on a copy")


@_exercise
def repair_teacher_mode(answer: Callable[..., Any]) -> None:
    images = _two_tensors(4, 3, 6, 6)[0].float()
    teacher, student = _tiny_network(0, dropout=0.5), _tiny_network(1)
    before, buffer = fingerprint(teacher), student.get_buffer("1.running_mean").clone()
    student.eval()  # whoever repairs the step puts it into training mode
    calls = [answer(teacher, student, part) for part in (images, images, images[:2])]
    for outputs in calls:
        _expect(
            isinstance(outputs, tuple | list) and len(outputs) == 2, "it has to return teacher_logits, student_logits"
        )
    first, second, alone = (teacher_logits for teacher_logits, _ in calls)
    _expect(torch.equal(first, second), "the teacher's answers still change from call to call on the same images")
    _expect(fingerprint(teacher) == before, "the teacher's fingerprint changes: the buffers of its BatchNorm drift")
    _expect(torch.allclose(first[:2], alone, atol=1e-5), "an image's answer depends on the other images of the batch")
    _expect(torch.allclose(first, teacher.eval()(images), atol=1e-5), "these are not the teacher's answers")
    _expect(not first.requires_grad, "the teacher's forward pass is to be without gradient, as before")
    _expect(calls[0][1].requires_grad, "the student's forward pass needs a gradient")
    _expect(not torch.equal(student.get_buffer("1.running_mean"), buffer), "the student has to be in training mode")


@_exercise
def repair_teacher_gradient(answer: Callable[..., Any]) -> None:
    images = _two_tensors(4, 3, 6, 6)[0].float()
    teacher, student = _tiny_network(0).eval(), _tiny_network(1)
    parameters = [*teacher.parameters(), *student.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, weight_decay=0.1)
    kernel = student.get_parameter("0.weight")
    before, weight = fingerprint(teacher), kernel.detach().clone()
    expected = (_tiny_network(1)(images) - teacher(images)).square().mean()
    loss = answer(teacher, student, images, optimizer)
    touched = sum(parameter.grad is not None for parameter in teacher.parameters())
    _expect(touched == 0, f"{touched} of the teacher's 4 parameters still have a gradient")
    _expect(fingerprint(teacher) == before, "the step still changes the teacher: its fingerprint is another")
    _expect(not torch.equal(kernel, weight), "the student learns nothing: its weights are as before")
    _expect(torch.isclose(_scalar(loss), expected), f"the loss of the first step is {loss:.3f}, not {expected:.3f}")
    last = [answer(teacher, student, images, optimizer) for _ in range(5)][-1]
    _expect(last < loss, f"after six steps the loss is {last:.3f}, and was {loss:.3f}: the student does not learn")


_SEES_NONE = "SAKD sees no difference: permuted channels and a turn by 180° change nothing; try another rearrangement"


@_exercise
def rearrange_alike(answer: Callable[..., Any]) -> None:
    maps = _two_tensors(2, 3, 5, 5)
    moved = answer(*(each.clone() for each in maps))
    _expect(isinstance(moved, tuple | list) and len(moved) == 2, "it has to return two maps, student's and teacher's")
    for new, old in zip(moved, maps, strict=True):
        same = torch.equal(new.flatten().sort().values, old.flatten().sort().values)
        _expect(new.shape == old.shape and same, "each map keeps its shape and its values, at other places")
    _expect(torch.isclose(losses.at(*moved), losses.at(*maps)), "AT sees a difference: move both maps alike")
    equal = torch.isclose(losses.sakd(*moved), losses.sakd(*maps), rtol=1e-6, atol=0)
    _expect(not equal, _SEES_NONE)


@_exercise
def quiet_student(answer: Callable[..., Any]) -> None:
    target = torch.tensor([[[[2.0, -1.0], [0.0, 0.5]], [[-3.0, 1.0], [-0.25, 4.0]]]])  # (1, 2, 2, 2)
    quiet = answer(target.clone())
    _expect(isinstance(quiet, torch.Tensor) and quiet.shape == target.shape, "it has to return a map (N, C, H, W)")
    loss = losses.ofd(quiet, target, margin=torch.tensor([-1.0, -3.0]))  # no target lies below its margin
    _expect(loss == 0, f"OFD's loss is {loss:.3f}, not 0: where the target is above zero, nothing is free")
    lowest = torch.tensor([[[[2.0, -11.0], [-10.0, 0.5]], [[-13.0, 1.0], [-10.25, 4.0]]]])
    sentence = "the loss is 0, but not every value that is free lies ten units below its target"
    _expect(torch.equal(quiet, lowest), f"{sentence}; where the target is exactly 0 the student is free as well")


# ------------------------------------------------------------------------------------ 05_train_on_gpu


@_exercise
def average_gradients(answer: Callable[..., Any]) -> None:
    weight, bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, -10.0])
    gradients = [[weight, bias], [torch.zeros(2, 2), torch.tensor([2.0, 6.0])]]
    whole = answer(gradients, [1, 3])
    _expect(len(whole) == 2, f"two parameters have two gradients, not {len(whole)}: average over devices")
    _expect([tuple(g.shape) for g in whole] == [(2, 2), (2,)], "a parameter's gradient keeps its shape")
    _expect(
        torch.allclose(whole[1], torch.tensor([4.0, 2.0])),  # (1 * 10 + 3 * 2) / 4 and (1 * -10 + 3 * 6) / 4
        "weigh each device by its labelled pixels, and divide by all of them",
    )
    _expect(torch.allclose(whole[0], torch.tensor([[0.25, 0.5], [0.75, 1.0]])), "each parameter has its own average")
    _expect(weight[0, 0] == 1 and bias[0] == 10, "the devices' own tensors were changed; make new ones")
    three = [[torch.tensor([float(device)])] for device in range(3)]
    _expect(torch.allclose(answer(three, [5, 0, 5])[0], torch.tensor([1.0])), "a device whose share is void counts 0")
    pixels = torch.tensor([1.0, 4.0, 7.0, 2.0, 6.0])  # the gradient of a mean of w * x is the mean of x
    parts = [[part.mean()[None]] for part in (pixels[:2], pixels[2:])]
    _expect(torch.allclose(answer(parts, [2, 3])[0], pixels.mean()), "five pixels on two devices average to their mean")


@_exercise
def warmed_lr(answer: Callable[..., Any]) -> None:
    rates = [answer(step, 10, 0.1, 8, 32) for step in range(30)]
    _expect(np.isclose(rates[0], 0.1), "step 0 has the rate that is right for a single batch")
    _expect(np.isclose(rates[10], 0.4), "a global batch of 32 in place of 8 has four times the rate when warmed up")
    _expect(np.allclose(rates[10:], 0.4), "from step warmup_steps on the rate stays where it is")
    _expect(np.allclose(np.diff(rates[:11]), 0.03), "it rises by equal amounts from step to step")
    _expect(np.isclose(answer(3, 10, 0.1, 8, 8), 0.1), "a global batch of one device's size changes nothing")
    _expect(np.isclose(answer(0, 0, 0.1, 8, 16), 0.2), "without warm-up the scaled rate holds from step 0")


# ----------------------------------------------------------------------------------------- 06_compare


@_exercise
def seeds_needed(answer: Callable[..., Any]) -> None:
    # From a table of Student's t, e.g. 3 seeds: 4.303 / sqrt(3) = 2.484; 5 seeds: 2.776 / sqrt(5) = 1.241
    for seeds, needed in {2: 3, 3: 5, 5: 13, 10: 33}.items():
        count = answer(seeds)
        _expect(count == needed, f"to halve the interval of {seeds} seeds, {needed} are needed, not {count}")


@_exercise
def pairing_factor(answer: Callable[..., Any]) -> None:
    for method, baseline, gain, factor in ((0.03, 0.04, 0.02, 2.5), (0.05, 0.12, 0.26, 0.5)):
        rows = {"miou_interval": method, "gain_interval": gain}, {"miou_interval": baseline}
        value = answer(*rows)
        _expect(
            np.isclose(value, factor),
            f"intervals {method} and {baseline} unpaired, {gain} paired: {factor} times as wide, not {value:.3g}",
        )


# --------------------------------------------------------------------------------------- 07_visualize


@_exercise
def disagreement_share(answer: Callable[..., Any]) -> None:
    first, second = np.array([[0, 1], [2, 3]]), np.array([[0, 5], [2, 7]])
    _expect(answer(first, second, np.zeros((2, 2), int)) == 0.5, "two of four pixels differ, so the share is 0.5")
    half_void = np.array([[0, 1], [255, 255]])
    _expect(answer(first, second, half_void) == 0.5, "void pixels count neither above nor below the line")
    _expect(answer(first, second, np.array([[0, 255], [255, 3]])) == 0.5, "leave out void, wherever it lies")
    _expect(answer(first, first, half_void) == 0, "a mask does not differ from itself")


@_exercise
def inherited_errors(answer: Callable[..., Any]) -> None:
    labels = np.array([[0, 0, 0, 0], [1, 1, 1, 255]])
    student = np.array([[0, 2, 2, 3], [1, 4, 1, 5]])  # wrong at four labelled pixels
    teacher = np.array([[0, 2, 0, 4], [1, 4, 2, 5]])  # gives the same wrong class at two of them
    share = answer(teacher, student, labels)
    _expect(abs(share - 2 / 4) < 1e-9, f"the student has four errors, two of them the teacher's: 0.5, not {share}")


# ----------------------------------------------------------------------------------- 08_full_scale_voc


@_exercise
def steps_of_a_run(answer: Callable[..., Any]) -> None:
    _expect(answer(100, 10, 3) == 30, "100 images in batches of 10 make 10 steps an epoch, 30 in three epochs")
    _expect(answer(109, 10, 3) == 30, "the incomplete last batch of every epoch is left out")
    _expect(answer(10_582, 12, 50) == 44_050, "10,582 images in batches of 12 make 881 steps an epoch")


@_exercise
def best_epoch_bias(answer: Callable[..., Any]) -> None:
    scores = np.array([[1.0, 4.0, 2.0], [3.0, 2.0, 1.0]])  # best 4 and 3, last 2 and 1
    _expect(np.isclose(answer(scores), 2.0), "the best epochs are 4 and 3, the last 2 and 1: the mean rises by 2")
    _expect(np.isclose(answer(np.full((4, 7), 0.7)), 0.0), "where nothing scatters, nothing is gained")
    _expect(np.isclose(answer(scores[:, :1]), 0.0), "with one epoch, the best is the last")
