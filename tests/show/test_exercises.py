"""Every exercise of the course: the template in its notebook fails the check, the solution in notebook 09 passes it."""

import ast
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill import losses
from distill.lab.curves import interval95
from distill.show import exercises
from studies.run_notebooks import NOTEBOOKS

SOLUTIONS = NOTEBOOKS / "09_exercises_solutions.ipynb"


def cells(path: Path, tag: str) -> list[str]:
    found = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in found if tag in cell.metadata.get("tags", [])]


def imports(path: Path) -> str:
    """The import statements of a notebook, one a line: what its functions may rely on."""
    nodes = [
        node
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
        for node in ast.parse(cell.source).body
    ]
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


@functools.cache
def functions(path: Path, tag: str) -> dict[str, Callable]:
    """The functions that the cells with a tag define, by name; every cell of its own, after the notebook's imports."""
    found: dict[str, Callable] = {}
    imported: dict = {}
    exec(imports(path), imported)
    for source in cells(path, tag):
        space = dict(imported)
        before = set(space)
        exec(source, space)
        found |= {name: space[name] for name in set(space) - before if callable(space[name])}
    return found


TEMPLATES = {
    name: function
    for path in sorted(NOTEBOOKS.glob("*.ipynb"))
    for name, function in functions(path, "exercise").items()
    if name != "check"
}


def solved(name: str) -> str:
    """What the solution of an exercise is called; classes are written in one word."""
    return f"solution_{name}" if name.islower() else f"Solution{name}"


def test_every_notebook_but_that_of_solutions_has_two_exercises_or_more() -> None:
    for path in (path for path in NOTEBOOKS.glob("*.ipynb") if path != SOLUTIONS):
        assert len(cells(path, "exercise")) >= 2, path.name


def test_there_is_a_check_for_every_template_and_no_other() -> None:
    assert set(TEMPLATES) == set(exercises.CHECKS)


def test_every_exercise_is_solved_in_the_last_notebook() -> None:
    assert set(functions(SOLUTIONS, "solution")) >= {solved(name) for name in exercises.CHECKS}


@pytest.mark.parametrize("name", sorted(exercises.CHECKS))
def test_template_fails_and_solution_passes(name: str) -> None:
    lacking = exercises.what_is_missing(TEMPLATES[name])
    assert lacking.startswith(f"{name}: ") and "\n" not in lacking and len(lacking) < 300
    solution = functions(SOLUTIONS, "solution")[solved(name)]
    assert exercises.what_is_missing(solution) == ""


@pytest.mark.parametrize("name", sorted(exercises.CHECKS))
@pytest.mark.parametrize("value", [None, 0, 1.0, "word", [], True])
def test_no_constant_passes(name: str, value: object) -> None:
    def answer(*given: object, **options: object) -> object:
        return value

    answer.__name__ = name
    assert exercises.what_is_missing(answer)


def test_a_wrong_name_and_an_exception_are_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    def no_such_exercise() -> None: ...

    exercises.check(no_such_exercise)
    assert "not yet: no_such_exercise: there is no such exercise" in capsys.readouterr().out

    def inherited_errors(teacher: object, student: object, labels: object) -> float:
        raise KeyError("mask")

    exercises.check(inherited_errors)
    assert "it raised KeyError" in capsys.readouterr().out


def test_the_committed_outputs_say_so() -> None:
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text = json.dumps([cell.get("outputs", []) for cell in nbformat.read(path, as_version=4).cells])
        if path == SOLUTIONS:
            assert text.lower().count("ok: solution") == len(exercises.CHECKS) and "not yet" not in text
        else:
            assert text.count("not yet: ") == len(cells(path, "exercise")), path.name


def test_the_student_has_to_be_put_into_training_mode() -> None:
    def repair_teacher_mode(teacher, student, images):
        teacher.eval()
        with torch.no_grad():
            teacher_logits = teacher(images)
        return teacher_logits, student(images)

    assert "training mode" in exercises.what_is_missing(repair_teacher_mode)


IN_THREE_LEVELS = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if path != SOLUTIONS]


@pytest.mark.parametrize("path", IN_THREE_LEVELS, ids=lambda path: path.stem)
def test_exercises_have_three_levels(path: Path) -> None:
    """A check, a hint that is folded before it, and the way to the solution."""
    found = nbformat.read(path, as_version=4).cells
    for before, cell in itertools.pairwise(found):
        if "exercise" in cell.metadata.get("tags", []):
            assert "<details><summary>Hint</summary>" in before.source and "check(" in cell.source
    assert any("09_exercises_solutions.ipynb" in cell.source for cell in found if cell.cell_type == "markdown")


LOSSES = {
    "every batch counts alike": (
        "measured_margin",
        lambda maps: sum(m.clamp(max=0).sum((0, 2, 3)) / (m < 0).sum((0, 2, 3)).clamp(min=1) for m in maps) / len(maps),
    ),
    "no mean of a channel that is never negative": (
        "measured_margin",
        lambda maps: torch.stack([x[x < 0].mean() for x in torch.cat([m.transpose(0, 1).flatten(1) for m in maps], 1)]),
    ),
    "the root after the softmax": ("transformer_rows", lambda g: (g @ g.mT).softmax(2) @ g / g.shape[2] ** 0.5),
    "a softmax over the wrong dimension": (
        "transformer_rows",
        lambda g: (g @ g.mT / g.shape[2] ** 0.5).softmax(1) @ g,
    ),
    "a loss that is there already": ("own_loss", lambda s, t: 7 * losses.kd(s, t)),
    "the teacher learns": ("own_loss", lambda s, t: (s.softmax(1) - t.softmax(1)).abs().sum(1).mean()),
    "a sum over the batch": ("own_loss", lambda s, t: (s.softmax(1) - t.detach().softmax(1)).abs().sum()),
    "a loss that only says whether they agree": (
        "own_loss",
        lambda s, t: (s.argmax(1) != t.argmax(1)).float().mean() + 0 * s.sum(),
    ),
    "the classes of each place": ("repair_softening", losses.kd),
}


def gradients(loss_of: Callable) -> Callable:
    """An answer to `gradient_in_parts` that adds up the gradients of `loss_of(network, x, y, labels, parts)`."""

    def answer(network, images, labels, parts):
        network.zero_grad()
        for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            loss_of(network, x, y, labels, parts).backward()
        return [p.grad.clone() for p in network.parameters()]

    return answer


TRAINING = {
    "the nearest colour": (
        "labels_from_colours",
        lambda colours, palette: ((colours[:, :, None].astype(int) - palette) ** 2).sum(-1).argmin(-1),
    ),
    "one channel is enough": (
        "labels_from_colours",
        lambda colours, palette: (colours[..., None, 0] == palette[:, 0]).argmax(-1),
    ),
    "taps that lie inside from the middle": ("seen_taps", lambda size, rate: 9 if rate <= size // 2 else 1),
    "taps at the very edge": ("seen_taps", lambda size, rate: 9 if rate <= size else 1),
    "every part counts alike": (
        "gradient_in_parts",
        gradients(lambda network, x, y, labels, parts: losses.cross_entropy(network(x), y) / parts),
    ),
    "a mean over all pixels": (
        "gradient_in_parts",
        gradients(
            lambda network, x, y, labels, parts: losses.cross_entropy(network(x), y) * y.numel() / labels.numel()
        ),
    ),
    "all images at once": (
        "gradient_in_parts",
        lambda network, images, labels, parts: torch.autograd.grad(
            losses.cross_entropy(network(images), labels), list(network.parameters())
        ),
    ),
    "the best single run": (
        "choose_weight",
        lambda weights, seeds, score: max(weights, key=lambda weight: max(score(weight, seed) for seed in seeds)),
    ),
    "no look at runs that broke down": (
        "choose_weight",
        lambda weights, seeds, score: max(weights, key=lambda weight: sum(score(weight, seed) for seed in seeds)),
    ),
}


RESULTS = {
    "void counts": ("wrong_share", lambda mask, truth: (mask != truth).mean()),
    "void is corrected": ("corrected", lambda mask, p, sure: np.where(p.max(0) >= sure, p.argmax(0), mask)),
    "never mind how sure": ("corrected", lambda mask, p, sure: np.where(mask != 255, p.argmax(0), mask)),
    "the means alone": (
        "what_a_gain_is",
        lambda equal, longer: "better" if sum(longer) > 0 else "faster" if sum(equal) > 0 else "not settled",
    ),
    "the smallest gain above zero": (
        "what_a_gain_is",
        lambda equal, longer: "better" if min(longer) > 0 else "faster" if min(equal) > 0 else "not settled",
    ),
    "far from zero on either side": (
        "what_a_gain_is",
        lambda equal, longer: (
            "better"
            if abs(np.mean(longer)) > interval95(longer)
            else "faster"
            if np.mean(equal) > interval95(equal)
            else "not settled"
        ),
    ),
    "behind both": (
        "what_a_gain_is",
        lambda equal, longer: (
            "better"
            if np.mean(longer) > interval95(longer)
            else "faster"
            if abs(np.mean(equal)) > interval95(equal)
            else "not settled"
        ),
    ),
    "the scatter of these seeds alone": (
        "what_a_gain_is",
        lambda equal, longer: next(
            (
                word
                for word, gains in (("better", longer), ("faster", equal))
                if np.mean(gains) > interval95(gains) * np.sqrt((len(gains) - 1) / len(gains))
            ),
            "not settled",
        ),
    ),
    "the shorter baseline alone": (
        "what_a_gain_is",
        lambda equal, longer: "better" if np.mean(equal) > interval95(equal) else "not settled",
    ),
}


def _in_place(values):
    scale = (max(values.max(), 0.0) - min(values.min(), 0.0)) / 255
    zero = round(-min(values.min(), 0.0) / scale)
    values *= 1 / scale
    return scale, zero, (values.round() + zero).clip(0, 255).astype(np.uint8)


def _codes(round_last=False, clip=True, high=0.0):
    def answer(values):
        low, top = min(values.min(), 0.0), max(values.max(), high)
        scale = (top - low) / 255
        zero = round(-low / scale)
        codes = ((values - low) / scale).round() if round_last else (values / scale).round() + zero
        return scale, zero, (codes.clip(0, 255) if clip else codes.astype(int) % 256).astype(np.uint8)

    return answer


def _by_place(score, with_fault, without):
    def of(variant, method):
        return np.array([value for key, value in score.items() if key[:2] == (variant, method)])

    four = [of(pair[i], method) for pair in (with_fault, without) for i, method in enumerate(("kd", "baseline"))]
    a, b, c, d = (values[: min(map(len, four))] for values in four)
    return list((a - b) - (c - d))


def _of_seeds(seeds=None):
    """With no seeds given: those of the method, whether or not their baseline is there."""

    def answer(score, with_fault, without):
        def has(seed, *pairs):
            rows = [(pair[i], method) for pair in pairs for i, method in enumerate(("kd", "baseline"))]
            return all((*row, seed) in score for row in (rows if seeds else rows[:3]))

        def gain(seed, pair):
            return score[pair[0], "kd", seed] - score[pair[1], "baseline", seed]

        asked = seeds or sorted({seed for *_, seed in score})
        return [gain(s, with_fault) - gain(s, without) for s in asked if has(s, with_fault, without)]

    return answer


def _without_zero_grad(teacher, student, images, optimizer):
    loss = (student(images) - teacher(images).detach()).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _graphs_kept(network, images, labels, parts):
    total = sum(
        losses.cross_entropy(network(x), y) * (y != 255).sum() / (labels != 255).sum()
        for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True)
    )
    return torch.autograd.grad(total, list(network.parameters()))


def _last_seed(weights, seeds, score):
    found = {weight: score(weight, seed) for weight in weights for seed in seeds}  # each seed replaces the one before
    return max((weight for weight, value in found.items() if value == value), key=found.get)


def _not_above(scores):
    best, low = None, 2.0
    for name, iou in scores.per_class_iou.items():
        if not iou > low:
            best, low = name, iou
    return best


def _warmed(step, warmup, lr, factor):
    return lr + min(1, step / warmup if warmup else 1) * lr * (factor - 1)


MORE = {
    "the teacher's errors": (
        "inherited_errors",
        lambda teacher, student, labels: (student == teacher)[(teacher != labels) & (labels != 255)].mean(),
    ),
    "void is background": (
        "fitting_temperature",
        lambda logits, labels: min(
            np.geomspace(0.2, 8, 200),
            key=lambda t: torch.nn.functional.cross_entropy(logits / t, labels.where(labels != 255, 0)).item(),
        ),
    ),
    "few temperatures": (
        "fitting_temperature",
        lambda logits, labels: min(
            (0.25, 0.5, 1, 2, 3, 4),
            key=lambda t: torch.nn.functional.cross_entropy(logits / t, labels, ignore_index=255),
        ),
    ),
    "seeds by their places": ("added_by_fault", _by_place),
    "the seeds of the notebook's table": ("added_by_fault", _of_seeds(range(5))),
    "seeds that have no fair baseline": ("added_by_fault", _of_seeds()),
    "labels without their logarithm": (
        "labels_to_reach",
        lambda scores, target: np.interp(target, list(scores.values()), list(scores), right=np.inf),
    ),
    "codes that wrap around": ("to_uint8", _codes(clip=False)),
    "rounded once": ("to_uint8", _codes(round_last=True)),
    "the largest value without 0": ("to_uint8", _codes(high=-np.inf)),
    "the values themselves": ("to_uint8", _in_place),
    "no class of IoU 0": (
        "hardest_class",
        lambda scores: min((k for k, v in scores.per_class_iou.items() if v > 0), key=scores.per_class_iou.get),
    ),
    "a broken run counts 0": (
        "choose_weight",
        lambda weights, seeds, score: max(weights, key=lambda w: np.nan_to_num([score(w, s) for s in seeds]).mean()),
    ),
    "all graphs are kept": ("gradient_in_parts", _graphs_kept),
    "kd at another temperature": ("own_loss", lambda s, t: losses.kd(s, t, 1.0)),
    "the last seed alone": ("choose_weight", _last_seed),
    "the middle seed": (
        "choose_weight",
        lambda weights, seeds, score: max(weights, key=lambda w: np.median([score(w, s) for s in seeds])),
    ),
    "taps counted in strides": ("seen_taps", lambda size, rate: (1 + 2 * ((size - 1) // rate)) ** 2),
    "what is not above the lowest": ("hardest_class", _not_above),
    "rows without a gradient": ("transformer_rows", lambda g: F.scaled_dot_product_attention(g, g, g).detach()),
    "maps destroyed": (
        "measured_margin",
        lambda maps: (
            sum(m.clamp_(max=0).sum((0, 2, 3)) for m in maps) / sum((m < 0).sum((0, 2, 3)) for m in maps).clamp(min=1)
        ),
    ),
    "a list of a rate": ("warmed_lr", lambda step, warmup, lr, size, batch: [_warmed(step, warmup, lr, batch / size)]),
    "one size of batch": ("warmed_lr", lambda step, warmup, lr, size, batch: _warmed(step, warmup, lr, batch / 8)),
    "a student asked in evaluation mode": (
        "repair_teacher_mode",
        lambda teacher, student, images: (
            teacher.eval()(images).detach(),
            [student.train()(images), student.eval()][1](images),
        ),
    ),
    "a void loss without a gradient": (
        "repair_void",
        lambda logits, labels: F.cross_entropy(logits.detach(), labels, ignore_index=255),
    ),
    "kd at a temperature between": ("own_loss", lambda s, t: 2 * losses.kd(s, t.detach(), 2.53)),
    "dist at a high temperature": ("own_loss", lambda s, t: losses.dist(s, t.detach(), 40.0)),
    "scored more often": ("unfair_baseline", lambda fair: fair | {"evaluate_every": 1}),
    "what it is already": ("unfair_baseline", lambda fair: fair | {"augment": "crops"}),
    "gradients pile up": ("repair_teacher_gradient", _without_zero_grad),
    "a coarse grid": (
        "widest_within",
        lambda count, budget: max((w / 100 for w in range(101) if count(w / 100) <= budget), default=0.0),
    ),
    "below the budget": (
        "widest_within",
        lambda count, budget: max((w / 2000 for w in range(2001) if count(w / 2000) < budget), default=0.0),
    ),
    "surer than asked for": (
        "corrected",
        lambda mask, p, sure: np.where((mask != 255) & (p.max(0) > sure), p.argmax(0), mask),
    ),
    "logits cut off": (
        "entropy",
        lambda logits: -(logits.clamp(-20, 20).softmax(1) * logits.clamp(-20, 20).log_softmax(1)).sum(1),
    ),
    "no background": (
        "images_won",
        lambda cached, a, b: sum(
            ((m[a] == m["truth"]) & (m["truth"] % 255 > 0)).sum()
            > ((m[b] == m["truth"]) & (m["truth"] % 255 > 0)).sum()
            for m in cached.values()
        ),
    ),
    "whole batches alone": (
        "warmed_lr",
        lambda step, warm, lr, batch, whole: lr + (min(1, step / warm) if warm else 1) * (lr * (whole // batch) - lr),
    ),
    "the median": ("best_epoch_bias", lambda s: np.median(s.max(1) - s[:, -1])),
    "a fraction": ("multiply_adds", lambda conv, h, w: conv.weight.numel() * h * w / 1),
    "a temperature by heart": ("repair_kd_reduction", lambda s, t, temperature: losses.kd(s, t, 4.0)),
    "background never vanishes": (
        "vanished",
        lambda labels, step: [c for c in np.setdiff1d(labels, labels[::step, ::step]) if 0 < c < 255],
    ),
    "weights of the last axis": ("unweighted", lambda logits, weights, share: logits - share * weights.log()),
    "weights in place of their logarithms": (
        "unweighted",
        lambda logits, weights, share: logits - share * weights.view(1, -1, 1, 1),
    ),
    "the logits themselves": (
        "unweighted",
        lambda logits, weights, share: logits.sub_(share * weights.log().view(1, -1, 1, 1)),
    ),
}
MISTAKES = LOSSES | TRAINING | RESULTS | MORE


@pytest.mark.parametrize(("name", "wrong"), MISTAKES.values(), ids=MISTAKES)
def test_plausible_mistakes_do_not_pass(name: str, wrong: Callable) -> None:
    def answer(*given: object, **options: object) -> object:
        return wrong(*given, **options)

    answer.__name__ = name
    assert exercises.what_is_missing(answer)


RIGHT = {
    "rounded up": (
        "labels_to_reach",
        lambda scores, target: (
            np.inf
            if target > max(scores.values())
            else int(np.ceil(np.exp(np.interp(target, list(scores.values()), np.log(list(scores)))) - 1e-9))
        ),
    ),
    "in double precision": ("entropy", lambda x: -(x.double().softmax(1) * x.double().log_softmax(1)).sum(1)),
    "in NumPy": (
        "average_gradients",
        lambda gradients, counts: [
            torch.as_tensor(np.average(np.stack([g.numpy() for g in each]), axis=0, weights=counts))
            for each in zip(*gradients, strict=True)
        ],
    ),
    "a number of NumPy's": (
        "widest_within",
        lambda count, budget: np.float32(max(w / 2000 for w in range(2001) if count(w / 2000) <= budget)),
    ),
    "in single precision": ("transformer_rows", lambda g: ((g @ g.mT / g.shape[2] ** 0.5).softmax(2) @ g).float()),
    "angles of logits": ("own_loss", lambda s, t: (1 - F.cosine_similarity(s, t.detach(), dim=1)).mean()),
    "divergence the other way": (
        "own_loss",
        lambda s, t: (
            F.kl_div(t.detach().log_softmax(1), s.log_softmax(1), reduction="batchmean", log_target=True)
            / s[0, 0].numel()
        ),
    ),
    "the views of another recipe": ("unfair_baseline", lambda fair: fair | {"augment": "flip"}),
    "epochs of NumPy's": ("unfair_baseline", lambda fair: fair | {"epochs": np.int64(1)}),
    "probabilities divided": (
        "unweighted",
        lambda logits, weights, share: (logits.softmax(1) / weights.view(1, -1, 1, 1) ** share).log(),
    ),
}


@pytest.mark.parametrize(("name", "right"), RIGHT.values(), ids=RIGHT)
def test_right_answers_in_another_style_pass(name: str, right: Callable) -> None:
    def answer(*given: object, **options: object) -> object:
        return right(*given, **options)

    answer.__name__ = name
    assert exercises.what_is_missing(answer) == ""


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("wrong_share", lambda mask, truth: mask != truth, "return one number, not a ndarray of shape (2, 4)"),
        ("to_uint8", lambda values: values.astype(np.uint8), "return three things in this order"),
        ("undominated", lambda points: points, "return indices"),
        ("unfair_baseline", lambda fair: {"epochs": 1}, "return all arguments as a dict"),
        (
            "to_uint8",
            lambda values: (0.0, 0, np.zeros(3, np.uint8)) if not values.any() else _codes()(values),
            "is 1 and",
        ),
        ("best_epoch_bias", lambda scores: scores.max(1), "return one number"),
        ("own_loss", lambda s, t: (s.detach() - t.detach()).square().mean(), "the student gets no gradient"),
    ],
)
def test_an_answer_of_the_wrong_kind_is_told_what_to_return(name: str, answer: Callable, said: str) -> None:
    def asked(*given: object, **options: object) -> object:
        return answer(*given, **options)

    asked.__name__ = name
    assert said in exercises.what_is_missing(asked)


def test_what_is_no_function_is_a_sentence_too(capsys: pytest.CaptureFixture[str]) -> None:
    exercises.check("hardest_class")
    assert "not yet: give `check` the function itself" in capsys.readouterr().out
