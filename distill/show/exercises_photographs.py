"""The checks of the exercises in notebook 07b, on real photographs; see `exercises`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from distill.show.checking import exercise, expect


@exercise
def log_weights(answer: Callable[..., Any]) -> None:
    pixels = torch.tensor([970, 30])
    weights = answer(pixels)
    expect(isinstance(weights, torch.Tensor) and weights.shape == (2,), "return a tensor with one weight per class")
    # By hand: 1 / ln 1.99 = 1.4532 and 1 / ln 1.05 = 20.4959, whose mean over the pixels is 2.0245.
    ratio = float(weights[1] / weights[0])
    expect(
        abs(ratio - 14.10) < 0.01, f"of shares 0.97 and 0.03 the second counts 14.1 times the first, not {ratio:.1f}"
    )
    mean = float((weights * pixels / pixels.sum()).sum())
    expect(abs(mean - 1) < 1e-4, f"scale them so that their mean over all pixels is 1, not {mean:.3f}")
    more = answer(100 * pixels)
    expect(torch.allclose(more, weights), "only shares count: a hundred times the pixels give the same weights")
    absent = answer(torch.tensor([970, 30, 0]))
    known = bool(absent.isfinite().all()) and bool(absent[2] > absent[1])
    expect(known, "a class without pixels has a weight too, a finite one and the largest")


@exercise
def vanished(answer: Callable[..., Any]) -> None:
    labels = np.zeros((6, 8), dtype=int)
    labels[:, 3], labels[1, 5:], labels[5, 7] = 2, 9, 255  # a pole one pixel wide, and a thin class
    labels[0, 0] = 4
    for step, lost in ((2, [2, 9]), (3, [9]), (1, [])):
        found = answer(labels, step)
        expect(isinstance(found, list | tuple | np.ndarray), "return a list of classes")
        shown = [int(label) for label in found]
        expect(255 not in shown, "void, 255, is no class")
        expect(shown == lost, f"with a step of {step} the classes {lost} are lost here, not {shown}")
    small = np.array([[255, 7, 255], [0, 3, 7]])  # void survives, and the background, 0, does not
    given = small.copy()
    shown = [int(label) for label in answer(small, 2)]
    expect(shown == [0, 3, 7], f"of {small.tolist()} every second row and column loses [0, 3, 7], not {shown}")
    expect(bool((small == given).all()), "the labels themselves were changed; work on a copy")


@exercise
def unweighted(answer: Callable[..., Any]) -> None:
    """At one pixel p = (0.7, 0.2, 0.1) and w = (0.5, 1, 4), so that w p = (0.35, 0.2, 0.4); by hand with half of it:
    (0.7 · √0.5, 0.2, 0.1 · √4) = (0.4950, 0.2, 0.2), divided by their sum (0.5531, 0.2235, 0.2235).
    """
    weights = torch.tensor([0.5, 1.0, 4.0])
    logits = torch.randn(2, 3, 4, 3, generator=torch.Generator().manual_seed(0))  # as many columns as classes
    logits[1, :, 2, 0] = torch.tensor([0.35, 0.2, 0.4]).log() + 5.0
    before = logits.clone()
    found = answer(logits, weights, 1.0)
    expect(isinstance(found, torch.Tensor) and found.shape == logits.shape, "return a tensor (N, C, H, W)")
    expect(torch.equal(logits, before), "leave the logits that were given as they are")
    seen = [round(float(p), 3) for p in found.softmax(1)[1, :, 2, 0]]
    expect(
        np.allclose(seen, (0.7, 0.2, 0.1), atol=2e-3),
        f"a pixel of probabilities (0.35, 0.2, 0.4) / 0.95 with weights (0.5, 1, 4) has (0.7, 0.2, 0.1) without, "
        f"not {tuple(seen)}",
    )
    half = [round(float(p), 3) for p in answer(logits, weights, 0.5).softmax(1)[1, :, 2, 0]]
    expect(
        np.allclose(half, (0.553, 0.223, 0.223), atol=2e-3),
        f"with a share of 0.5 the same pixel has (0.553, 0.223, 0.223), not {tuple(half)}",
    )
    same = torch.allclose(answer(logits, weights, 0.0).float().softmax(1), logits.softmax(1))
    expect(same, "with a share of 0, no change")
