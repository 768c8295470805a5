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
    expect(bool(absent.isfinite().all()), "a class without pixels has a weight too, and a finite one")


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
        expect(shown == lost, f"of every {step}th row and column {lost} are lost here, not {shown}")
