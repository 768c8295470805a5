"""The checks of the exercises in the notebooks on results, 06 to 08, and in the last one, 11; see `exercises`."""

import tempfile
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.data.sample import make_sample
from distill.show.checking import exercise, expect, number
from distill.training.loop import fit
from distill.training.presets import make_student
from distill.training.settings import NEUTRAL

# ----------------------------------------------------------------------------------------- 06_compare


@exercise
def seeds_needed(answer: Callable[..., Any]) -> None:
    # From a table of Student's t, e.g. 3 seeds: 4.303 / sqrt(3) = 2.484; 5 seeds: 2.776 / sqrt(5) = 1.241
    for seeds, needed in {2: 3, 3: 5, 5: 13, 10: 33}.items():
        count = answer(seeds)
        expect(count == needed, f"to halve the interval of {seeds} seeds, {needed} are needed, not {count}")


@exercise
def pairing_factor(answer: Callable[..., Any]) -> None:
    for method, baseline, gain, factor in ((0.03, 0.04, 0.02, 2.5), (0.05, 0.12, 0.26, 0.5)):
        rows = {"miou_interval": method, "gain_interval": gain}, {"miou_interval": baseline}
        value = number(answer(*rows))
        expect(
            np.isclose(value, factor),
            f"intervals {method} and {baseline} unpaired, {gain} paired: {factor} times as wide, not {value:.3g}",
        )


@exercise
def unfair_baseline(answer: Callable[..., Any]) -> None:
    fair: dict[str, Any] = {
        "seed": 0,
        "epochs": 2,
        "lr": 0.01,
        "limit": 8,
        "batch_size": 4,
        "weight_decay": 0.02,
        "width": 1.0,
    }
    fair |= {"augment": "crops"}
    handed = dict(fair)
    given = answer(handed)
    expect(
        isinstance(given, dict) and set(fair) <= set(given), "return all arguments as a dict, with one value changed"
    )
    expect(handed == fair, "the arguments of both runs were changed; return a copy")
    expect(given != fair, "nothing is changed: this pair is fair")
    expect(given.get("seed") == 0, "another seed is no unfairness: give the baseline the same one, and other work")
    expect("evaluate_every" not in given, "evaluate_every changes when a student is scored, not how it is trained")
    for name in ("epochs", "limit", "width"):
        value = given.get(name)
        expect(
            isinstance(value, Real) and value <= fair[name],
            f"{name} {value} helps the baseline: put it at a disadvantage",
        )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        more: dict[str, Any] = {"crop_size": 32, "device": "cpu", "progress": False}
        data = make_sample(root / "data", train=12, val=2, test=0, size=32, progress=False)
        runs = []
        for name, method, arguments in (("a", "kd", fair), ("b", "baseline", given)):
            teacher = None if method == "baseline" else make_student("resnet18", 21, seed=1)
            runs.append(fit("resnet18", method, teacher, data, out=root / "runs" / name, **more | arguments))
        taught, alone = (run.config for run in runs)
    # What `compare` reads of two runs; the lab, where it is done, stands above this module.
    if any(taught[name] != alone[name] for name in ("images", "model", "start")):
        return
    if any(taught["settings"][name] != value for name, value in alone["settings"].items() if name not in NEUTRAL):
        return
    changed = ", ".join(name for name in given if given[name] != fair.get(name))
    expect(False, f"`compare` puts both runs into one table: it takes no offence at {changed}")


# ---------------------------------------------------------------------------------- 06b_where_it_helps


@exercise
def wrong_share(answer: Callable[..., Any]) -> None:
    truth = np.array([[0, 1, 1, 255], [2, 2, 0, 255]])
    mask = np.array([[0, 1, 3, 4], [2, 255, 5, 255]])
    value = number(answer(mask, truth))
    expect(np.isclose(value, 0.4), f"of 5 pixels that have a label in both, 2 differ: 0.4, not {value:.3g}")
    value = number(answer(truth, truth))
    expect(value == 0, f"a mask has nothing wrong beside itself; yours says {value:.3g}")


@exercise
def corrected(answer: Callable[..., Any]) -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(4, 0.3), (6, 7)).transpose(2, 0, 1)
    mask = random.integers(0, 4, (6, 7))
    mask[0] = 255
    mask[1, 0], probabilities[:, 1, 0] = 3, (0.25, 0.5, 0.25, 0)  # exactly at least 0.5 sure
    given = mask.copy()
    for sure in (0.5, 0.9, 0.3):
        wanted = mask.copy()
        for place in np.ndindex(mask.shape):
            best = int(probabilities[(slice(None), *place)].argmax())
            if mask[place] != 255 and probabilities[(best, *place)] >= sure:
                wanted[place] = best
        found = np.asarray(answer(mask, probabilities, sure))
        expect(found.shape == mask.shape, f"give a mask of {mask.shape}, as the one given; yours is {found.shape}")
        expect(np.issubdtype(found.dtype, np.integer), f"a mask holds integers, and yours {found.dtype}")
        expect(bool((found[0] == 255).all()), "void, 255, stays void")
        wrong = int((found != wanted).sum())
        expect(wrong == 0, f"{wrong} of {mask.size} pixels differ where the teacher has to be at least {sure} sure")
    expect(bool((mask == given).all()), "the mask itself was changed; work on a copy")


@exercise
def what_a_gain_is(answer: Callable[..., Any]) -> None:
    cases = [
        ("better", [0.05, 0.06, 0.055], [0.03, 0.035, 0.03]),
        ("faster", [0.05, 0.06, 0.055], [0.01, -0.02, 0.005]),
        ("faster", [0.05, 0.06, 0.055], [-0.03, -0.031, -0.029]),  # clearly behind the longer one
        ("not settled", [-0.05, -0.06, -0.055], [-0.03, -0.031, -0.029]),  # clearly behind both
        ("not settled", [0.0125, 0.0225, 0.0325], [0.01, -0.03, -0.02]),  # 0.0225 +- 0.0248
        ("faster", [0.05, 0.01, 0.03, 0.02, 0.04], [0.01, -0.02, 0.005, 0.0, 0.01]),  # five seeds: 0.030 +- 0.020
        ("not settled", [0.05, -0.04, 0.02], [0.01, -0.05, 0.0]),
        ("not settled", [0.06, 0.01, 0.03], [0.01, -0.03, -0.02]),  # every gain above zero, and the interval not
    ]
    for word, equal, longer in cases:
        found = answer(equal, longer)
        expect(found == word, f"{equal} over equal epochs and {longer} over twice as many: {word!r}, not {found!r}")
    found = answer([0.05, -0.04, 0.02], [0.03, 0.035, 0.03])
    expect(found == "better", f"what is ahead of the longer baseline is better, whatever the shorter did: {found!r}")


# --------------------------------------------------------------------------------------- 07_visualize


@exercise
def fitting_temperature(answer: Callable[..., Any]) -> None:
    random = torch.Generator().manual_seed(0)
    true = 2 * torch.randn(2, 5, 40, 40, generator=random)
    labels = torch.multinomial(true.movedim(1, -1).flatten(0, 2).softmax(1), 1, generator=random).view(2, 40, 40)
    labels[:, :3] = 255
    for factor, what in ((2.6, "2.6 times as sure as it should be"), (0.6, "0.6 times as sure as it should be")):
        logits = factor * true
        logits[:, 1, :3] = 1000  # under void
        given, marks = logits.clone(), labels.clone()
        value = number(answer(logits, labels))
        kept = torch.equal(logits, given) and torch.equal(labels, marks) and not logits.requires_grad
        expect(kept, "the logits or the labels themselves were changed; work on a copy")
        said = f"for a network that is {what} the best temperature is about {factor:g}, not {value:.3g}"
        expect(abs(value / factor - 1) < 0.08, f"{said}; void counts neither way")


@exercise
def inherited_errors(answer: Callable[..., Any]) -> None:
    labels = np.array([[0, 0, 0, 0], [1, 1, 1, 255]])
    student = np.array([[0, 2, 2, 3], [0, 4, 1, 5]])  # wrong at five labelled pixels, at one as background
    teacher = np.array([[0, 2, 0, 4], [1, 4, 1, 5]])  # wrong at three, and at two of them as the student is
    share = number(answer(teacher, student, labels))
    expect(abs(share - 2 / 5) < 1e-6, f"the student has five errors, two of them the teacher's: 0.4, not {share:.3g}")


# ----------------------------------------------------------------------------------- 08_full_scale_voc


@exercise
def added_by_fault(answer: Callable[..., Any]) -> None:
    runs = {  # score by seed; three seeds lack one run each, and the order in which they stand says nothing
        ("fair", "kd"): {103: 71, 0: 70, 1: 72, 5: 73},
        ("fair", "baseline"): {0: 60, 1: 61, 103: 64, 4: 66},  # gains of 10 and 7 at seeds 0 and 103
        ("fault", "kd"): {0: 75, 103: 70, 4: 71, 1: 74, 5: 76},
        ("fault", "baseline"): {4: 62, 103: 61, 0: 62, 5: 60},  # gains of 13 and 9 there
    }
    score = {(*row, seed): value for row, seeds in runs.items() for seed, value in seeds.items()}

    def asked(*pairs: tuple[str, str]) -> list[float]:
        added = answer(score, *pairs)
        expect(np.ndim(added) == 1, f"return a list, one number per seed, not {added}")
        return [float(one) for one in added]

    added = asked(("fault", "fault"), ("fair", "fair"))
    expect(
        added == [3, 2], f"at seeds 0 and 103, gains of 13 and 9 with the fault, 10 and 7 without: [3, 2], not {added}"
    )
    added = asked(("fair", "fault"), ("fair", "fair"))  # the fault is the baseline's alone
    sentence = "the first name is the variant of the method, the second that of its baseline"
    expect(added == [-2, 3], f"{sentence}: [-2, 3], not {added}")
    added = asked(("fault", "fault"), ("fair", "fault"))
    expect(added == [5, 3, -1], f"{sentence}, in `without` too: [5, 3, -1], not {added}")


@exercise
def best_epoch_bias(answer: Callable[..., Any]) -> None:
    scores = np.array([[1.0, 4.0, 2.0], [3.0, 2.0, 1.0]])  # best 4 and 3, last 2 and 1
    expect(
        np.isclose(number(answer(scores)), 2.0), "the best epochs are 4 and 3, the last 2 and 1: the mean rises by 2"
    )
    expect(np.isclose(answer(np.full((4, 7), 0.7)), 0.0), "where nothing scatters, nothing is gained")
    expect(np.isclose(answer(scores[:, :1]), 0.0), "with one epoch, the best is the last")
    scores = np.array([[1.0, 4.0, 2.0], [3.0, 2.0, 1.0], [1.0, 2.0, 5.0]])
    expect(
        np.isclose(answer(scores), 4 / 3),
        "where the last epoch is the best, nothing is gained: 2, 2 and 0 are 4/3 on average",
    )


# ------------------------------------------------------------------------------------------ 11_your_own


@exercise
def best_on_val(answer: Callable[..., Any]) -> None:
    scores = {1.0: (0.50, 0.80), 3.0: (0.64, 0.60), 10.0: (0.61, 0.95), 30.0: (0.20, 0.90)}  # on val, on test
    asked: list[float] = []

    class Trained:
        def __init__(self, weight: float) -> None:
            asked.append(weight)
            self.scores = {"val": {"miou": scores[weight][0]}, "test": {"miou": scores[weight][1]}}

    weight = number(answer(Trained, list(scores)))
    expect(sorted(asked) == sorted(scores), f"train each weight once; {len(asked)} runs were made for {len(scores)}")
    test = max(scores, key=lambda one: scores[one][1])
    expect(weight != test, f"{weight:g} is best on test: choose on val, and read test once, at the end")
    expect(weight == 3.0, f"of these, 3 is best on val, not {weight:g}")


@exercise
def labels_to_reach(answer: Callable[..., Any]) -> None:
    scores = {50: 0.3, 100: 0.4, 200: 0.6}
    for target, needed in ((0.4, 100), (0.5, 100 * 2**0.5), (0.35, 50 * 2**0.5), (0.6, 200), (0.2, 50)):
        count = answer(dict(scores), target)
        expect(
            count is not None and abs(count - needed) < 1.01,  # rounded up, down or not at all
            f"{target:g} lies where labels, on a logarithmic axis, are {needed:.1f}, not {count}",
        )
    expect(answer(dict(scores), 0.7) == float("inf"), "no number that was tried reaches 0.7: return np.inf")
