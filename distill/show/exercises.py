"""The exercises of the course: `check(answer)` tests a reader's function and says what is missing.

A notebook gives the head of a function and what it should do; the reader fills it in. Notebook 09 solves them all, in
functions with `solution_` before the name. Each check is independent of the solution: it has small cases
whose answers are known in another way. Those of the notebooks on losses are in `exercises_losses`, those of 06 to 08
and 11 in `exercises_results`, those of 07b in `exercises_photographs`, those of 10 in `exercises_ship`.
"""

import operator
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import distill.show.exercises_losses
import distill.show.exercises_photographs
import distill.show.exercises_results
import distill.show.exercises_ship  # noqa: F401  (all four enter their checks)
from distill.errors import first_line
from distill.show.checking import CHECKS
from distill.show.checking import exercise as _exercise
from distill.show.checking import expect as _expect
from distill.show.checking import number as _number
from distill.training.evaluation import Scores


def check(answer: Callable[..., Any]) -> None:
    """Try the function that answers an exercise; print `OK` or one sentence on what is missing.

    The exercise is found by the function's name. Whatever the function raises is caught: an unfinished answer never
    stops a notebook.
    """
    lacking = what_is_missing(answer)
    print(f"not yet: {lacking}" if lacking else f"OK: {answer.__name__}")


def what_is_missing(answer: Callable[..., Any]) -> str:
    """One sentence that begins with the exercise's name; empty when the answer passes."""
    if not hasattr(answer, "__name__"):
        return f"give `check` the function itself, without parentheses behind its name, not a {type(answer).__name__}"
    name = answer.__name__.removeprefix("solution_").removeprefix("Solution")
    if name not in CHECKS:
        return f"{name}: there is no such exercise; keep the function's name, which `def` gives it"

    def asked(*given: object, **options: object) -> object:
        result = answer(*given, **options)
        _expect(result is not None, "it returns None; put your code into the function, and return the result")
        return result

    try:
        CHECKS[name](asked)
    except Exception as error:
        return f"{name}: {_reason(error)}"
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, AssertionError):
        return str(error).strip().partition("\n")[0] or "an assertion failed"
    said = f": {first_line(error)}" if str(error).strip() else ""
    return f"it raised {type(error).__name__}{said}"


# -------------------------------------------------------------------------------------- 00_start_here


@_exercise
def hardest_class(answer: Callable[..., Any]) -> None:
    # By rows the truth, by columns the answers: IoU 6/8 for sky, 1/3 for kite; there is no fish.
    confusion = np.array([[0, 0, 0], [0, 6, 1], [0, 1, 1]])
    named = answer(Scores(confusion[1:, 1:], ("sky", "kite")))
    _expect(isinstance(named, str), f"return the name of a class, not a {type(named).__name__}")
    _expect(named == "kite", "the kite's IoU is 1/3, the sky's 6/8")
    _expect(
        answer(Scores(confusion[:0:-1, :0:-1], ("kite", "sky"))) == "kite", "the order of the classes does not matter"
    )
    for order in ([0, 1, 2], [2, 0, 1]):  # NaN first, and after the lowest
        names = tuple(("fish", "sky", "kite")[index] for index in order)
        _expect(
            answer(Scores(confusion[np.ix_(order, order)], names)) == "kite",
            "a class that neither occurs nor is predicted has IoU NaN, which is neither high nor low: leave it out",
        )
    missed = np.array([[0, 0, 2], [0, 6, 1], [0, 1, 1]])
    _expect(
        answer(Scores(missed, ("background", "sky", "kite"))) == "background",
        "a class of which no pixel was found has IoU 0, the lowest there is, whatever its name: do not leave it out",
    )


@_exercise
def images_won(answer: Callable[..., Any]) -> None:
    truth, ours, theirs = np.array([[1, 2, 255, 255]]), np.array([[1, 2, 3, 3]]), np.array([[1, 0, 255, 255]])
    one, other = ({"truth": truth, "a": a, "b": b} for a, b in ((ours, theirs), (theirs, ours)))
    _expect(
        _number(answer({0: one}, "a", "b")) == 1,
        "of two labelled pixels `a` has two right and `b` one; void does not count",
    )
    _expect(_number(answer({0: one}, "b", "a")) == 0, "the first name is the one whose wins are counted")
    _expect(_number(answer({0: one, 20: one, 40: other}, "a", "b")) == 2, "here `a` wins two images of three")
    _expect(_number(answer({0: one, 20: one | {"b": ours}}, "a", "b")) == 1, "a tie is no win")
    mixed = {"truth": np.array([[0, 0, 0, 1]]), "a": np.array([[0, 0, 0, 2]]), "b": np.array([[3, 3, 3, 1]])}
    for names, wins in ((("a", "b"), 1), (("b", "a"), 0)):
        _expect(
            _number(answer({7: mixed}, *names)) == wins,
            "of four pixels, three of them background, `a` has three right and `b` the fourth: one image for `a`",
        )


# -------------------------------------------------------------------------------------------- 01_data


@_exercise
def class_shares(answer: Callable[..., Any]) -> None:
    labels = torch.tensor([[0, 0, 0, 2], [255, 255, 2, 3]])
    given = labels.clone()
    shares = answer(labels, 5)
    _expect(torch.equal(labels, given), "the labels themselves were changed; work on a copy")
    _expect(isinstance(shares, torch.Tensor) and shares.shape == (5,), "return a tensor with one share per class")
    _expect(abs(float(shares.sum()) - 1) < 1e-6, "the shares of the labelled pixels add up to 1; leave void out")
    expected = torch.tensor([3 / 6, 0, 2 / 6, 1 / 6, 0])
    _expect(torch.allclose(shares.float(), expected), f"for {labels.tolist()} the shares are {expected.tolist()}")
    for shape in ((8,), (2, 2, 2)):
        again = answer(labels.view(shape), 5)
        _expect(
            torch.allclose(again.float(), expected),
            f"labels of shape {shape} with the same pixels have the same shares",
        )


@_exercise
def labels_from_colours(answer: Callable[..., Any]) -> None:
    palette = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 0, 128]], dtype=np.uint8)
    labels = np.array([[0, 1, 2], [3, 3, 1]])
    result = answer(palette[labels], palette)
    _expect(isinstance(result, np.ndarray) and result.shape == (2, 3), "return an array (H, W)")
    _expect(np.issubdtype(result.dtype, np.integer), "return integers, the indices of classes")
    _expect(np.array_equal(result, labels), f"for the colours of {labels.tolist()} it returns {result.tolist()}")
    strange = palette[labels]
    strange[0, 0], strange[1, 2] = (128, 1, 0), (224, 224, 192)
    result = answer(strange, palette)
    _expect(result[0, 0] == 255 and result[1, 2] == 255, "a colour of no class is void, 255, however close it is")
    _expect(np.array_equal(result[:, 1], labels[:, 1]), "one strange pixel must not change the others")


# ----------------------------------------------------------------------------------------- 02_teacher


@_exercise
def entropy(answer: Callable[..., Any]) -> None:
    logits = torch.zeros(2, 4, 1, 3)
    logits[0, 0] = 1000.0  # in the first image one class has everything
    values = answer(logits)
    _expect(isinstance(values, torch.Tensor) and values.shape == (2, 1, 3), "return a tensor (N, H, W)")
    values = values.float()
    _expect(bool(values.isfinite().all()), "for logits of 1000 it must stay finite; use log_softmax")
    _expect(torch.allclose(values[0], torch.zeros(1, 3), atol=1e-5), "where one class has everything, entropy is 0")
    _expect(torch.allclose(values[1], torch.tensor(4.0).log().expand(1, 3)), "of four equal classes it is log 4")
    odds = torch.tensor([0.5, 0.25, 0.25]).log().view(1, 3, 1, 1) + 7
    _expect(torch.allclose(answer(odds).float(), 1.5 * torch.tensor(2.0).log()), "of 1/2, 1/4 and 1/4 it is 1.5 log 2")
    close = torch.tensor([1000.0, 999.0, 0.0]).view(1, 3, 1, 1)  # shares 0.7311, 0.2689 and 0
    _expect(
        torch.allclose(answer(close).float(), torch.tensor(0.5822), atol=1e-3),
        "of logits 1000, 999 and 0 it is 0.582: nothing but the impossible class may vanish, so do not cut logits off",
    )


@_exercise
def seen_taps(answer: Callable[..., Any]) -> None:
    for size, rate in ((4, 4), (4, 3), (5, 4), (1, 1), (33, 18), (2, 1), (33, 33), (4, 6), (33, 6)):
        conv = nn.Conv2d(1, 1, 3, padding=rate, dilation=rate, bias=False)
        conv(torch.ones(1, 1, size, size)).sum().backward()
        assert conv.weight.grad is not None
        count, given = int((conv.weight.grad != 0).sum()), answer(size, rate)
        seen = _number(given)
        _expect(
            not isinstance(given, bool) and seen == count,
            f"on {size} x {size} places {count} of the taps at dilation {rate} see something, not {seen:g}",
        )


# ---------------------------------------------------------------------------------------- 03_students


_TWO_GROUPS = (
    "two groups, kernel 1 x 3: 6 outputs, 2 inputs each, 3 places of the kernel, 10 places of the output; the stride "
    "is already in the output's size"
)


@_exercise
def multiply_adds(answer: Callable[..., Any]) -> None:
    plain = nn.Conv2d(3, 8, 5)
    try:
        operator.index(answer(plain, 4, 7))
    except TypeError:
        _expect(False, "return an integer: divide with //")
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
        (1.0, lambda width: 10 * width, 50),
        (0.0437, lambda width: 1e4 * width, 437),
        (0.6, lambda width: int(10 * width + 1e-9), 5),  # whole channels: a stair
    ]
    for limit, count, budget in cases:
        tried: list[float] = []

        def counted(width: float, count: Callable[[float], float] = count, tried: list[float] = tried) -> float:
            tried.append(float(width))
            return count(float(width))

        width = _number(answer(counted, budget))
        _expect(0 <= width <= 1, "return a width between 0 and 1")
        _expect(
            all(0 <= one <= 1 for one in tried), "`count` takes a width between 0 and 1, and was asked about others"
        )
        _expect(count(width) <= budget, f"at the width {width} the count is above the budget")
        _expect(limit - width <= 0.0011, f"the largest width is {limit}, and {width} is not within 0.001 of it")


# ---------------------------------------------------------------------------------------- 05_training


@_exercise
def gradient_in_parts(answer: Callable[..., Any]) -> None:
    asked: list[int] = []
    kept: list[int] = []
    graphs: list[Any] = []

    class Watched(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            asked.append(len(input))
            kept.append(sum(graph() is not None for graph in graphs))
            output = super().forward(input)
            if output.requires_grad:
                graph = _Alive()
                graphs.append(weakref.ref(graph))
                output.register_hook(graph)  # as long as the output's graph
            return output

    generator = torch.Generator().manual_seed(0)
    network, images = Watched(3, 4, 1), torch.randn(6, 3, 5, 5, generator=generator)
    labels = torch.randint(0, 4, (6, 5, 5), generator=generator)
    labels[:2, 1:], labels[3] = 255, 255  # parts with few labels, and one image without any
    loss = nn.functional.cross_entropy(
        nn.functional.conv2d(images, network.weight, network.bias), labels, ignore_index=255
    )
    expected = torch.autograd.grad(loss, list(network.parameters()))
    for parts in (3, 2, 1, 6, 3):  # the last again: old gradients must not stay
        for seen in (asked, kept, graphs):
            seen.clear()
        found = answer(network, images, labels, parts)
        _expect(
            max(kept, default=0) < 2,
            "graphs of earlier parts are still there: call backward after each, and keep no loss but detached",
        )
        _expect(_are_tensors(found), "return a list of tensors, one per parameter")
        _expect(len(found) == 2 and all(a.shape == b.shape for a, b in zip(found, expected, strict=True)), _PARTS)
        most = max(asked, default=0)
        _expect(most == 6 // parts, f"the network was asked about {most} images at a time, and {6 // parts} fit")
        same = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
        _expect(same, f"in {parts} parts the gradient is not that of the whole batch's mean over labelled pixels")


def _are_tensors(given: Any) -> bool:
    return isinstance(given, list | tuple) and all(isinstance(each, torch.Tensor) for each in given)


class _Alive:
    def __call__(self, gradient: torch.Tensor) -> None: ...


_PARTS = "return one gradient per parameter, of the parameter's shape"


@_exercise
def choose_weight(answer: Callable[..., Any]) -> None:
    # No seed alone, no two of them, neither the best nor the worst nor the middle one choose as their mean does.
    table = {1: (0.22, 0.36, 0.39), 10: (0.28, 0.43, 0.27), 100: (0.26, 0.42, 0.34), 1000: (0.9, float("nan"), 0.9)}
    asked: list[tuple[float, int]] = []

    def score(weight: float, seed: int) -> float:
        asked.append((weight, seed))
        return table[int(weight)][seed - 100]

    seeds = [100, 101, 102]
    best = _number(answer([1, 10, 100], seeds, score))
    _expect(best == 100, f"the means are 0.323, 0.327 and 0.340, so the weight is 100, not {best:g}")
    _expect(len(asked) == len(set(asked)) == 9, f"three weights and three seeds are nine runs; it trained {len(asked)}")
    for weights in ([1000, 1, 10, 100], [100, 1000]):
        best = _number(answer(weights, seeds, score))
        _expect(best == 100, f"a weight that broke down for one seed is out, wherever it is listed; it chose {best:g}")
    _expect(answer([1, 10], [100], score) == 10, "of one seed the mean is its score")


# ----------------------------------------------------------------------- 05b_precision_and_devices


@_exercise
def average_gradients(answer: Callable[..., Any]) -> None:
    weight, bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, -10.0])
    gradients = [[weight, bias], [torch.zeros(2, 2), torch.tensor([2.0, 6.0])]]
    given = [[gradient.clone() for gradient in device] for device in gradients]
    whole = answer(gradients, [1, 3])
    _expect(_are_tensors(whole), "return a list of gradients, one tensor per parameter")
    _expect(len(whole) == 2, f"two parameters have two gradients, not {len(whole)}: average over devices")
    _expect([tuple(g.shape) for g in whole] == [(2, 2), (2,)], "a parameter's gradient keeps its shape")
    _expect(
        torch.allclose(whole[1].float(), torch.tensor([4.0, 2.0])),  # (1 * 10 + 3 * 2) / 4 and (1 * -10 + 3 * 6) / 4
        "weigh each device by its labelled pixels, and divide by all of them",
    )
    _expect(
        torch.allclose(whole[0].float(), torch.tensor([[0.25, 0.5], [0.75, 1.0]])), "each parameter has its own average"
    )
    kept = all(
        torch.equal(a, b) for old, new in zip(given, gradients, strict=True) for a, b in zip(old, new, strict=True)
    )
    _expect(kept, "the devices' own tensors were changed; make new ones")
    three = [[torch.tensor([gradient])] for gradient in (0.0, 1.0, 5.0)]
    _expect(
        torch.allclose(answer(three, [5, 0, 5])[0].float(), torch.tensor([2.5])),
        "of three devices with 5, 0 and 5 labelled pixels, the second, whose share is void, counts 0",
    )
    pixels = torch.tensor([1.0, 4.0, 7.0, 2.0, 6.0])  # the gradient of a mean of w * x is the mean of x
    parts = [[part.mean()[None]] for part in (pixels[:2], pixels[2:])]
    _expect(
        torch.allclose(answer(parts, [2, 3])[0].float(), pixels.mean()),
        "five pixels on two devices average to their mean",
    )


@_exercise
def warmed_lr(answer: Callable[..., Any]) -> None:
    def rate(*given: float) -> float:
        return _number(answer(*given))

    rates = [rate(step, 10, 0.1, 8, 32) for step in range(30)]
    _expect(np.isclose(rates[0], 0.1), "step 0 has the rate that is right for a single batch")
    _expect(np.isclose(rates[10], 0.4), "a global batch of 32 in place of 8 has four times the rate when warmed up")
    _expect(np.allclose(rates[10:], 0.4), "from step warmup_steps on the rate stays where it is")
    _expect(np.allclose(np.diff(rates[:11]), 0.03), "it rises by equal amounts from step to step")
    _expect(np.isclose(rate(3, 10, 0.1, 8, 8), 0.1), "a global batch of one device's size changes nothing")
    _expect(np.isclose(rate(9, 4, 0.1, 8, 12), 0.15), "a global batch of 12 in place of 8 has 1.5 times the rate")
    _expect(np.isclose(rate(9, 4, 0.1, 8, 4), 0.05), "a global batch of 4 in place of 8 has half the rate")
    _expect(np.isclose(rate(2, 4, 0.2, 4, 8), 0.3), "half way from a rate of 0.2 to one of 0.4 it is 0.3")
    _expect(np.isclose(rate(0, 0, 0.1, 8, 16), 0.2), "without warm-up the scaled rate holds from step 0")
