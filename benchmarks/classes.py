"""Softmax along the rows of pixels, and over dim 1, by the number of classes: python benchmarks/classes.py

Says where `losses.cross_entropy` and `losses.kd` should change from one to the other on a CPU (`_AT_ONCE`). One core.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from distill import losses

CLASSES = (2, 5, 8, 11, 12, 15, 16, 17, 21, 33, 60, 150)
SHAPE = (8, 128, 128)


def seconds(step: Callable[[], Tensor], repeats: int = 8) -> float:
    """Processor seconds of a loss and its gradient, without the first."""
    step().backward()
    start = time.process_time()
    for _ in range(repeats):
        step().backward()
    return (time.process_time() - start) / repeats


def ratios(classes: int) -> list[float]:
    """How many times as long rows take, for the two losses."""
    images, height, width = SHAPE
    shape = (images, classes, height, width)
    student, teacher = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    student.requires_grad_()
    labels = torch.randint(0, classes, SHAPE)
    steps = (lambda: losses.cross_entropy(student, labels), lambda: losses.kd(student, teacher))
    found = []
    for step in steps:
        taken = {}
        for few in (False, True):
            losses._few_classes = lambda _, few=few: few
            taken[few] = seconds(step)
        found.append(taken[False] / taken[True])
    return found


def main() -> None:
    torch.set_num_threads(1)
    print("classes   rows / dim 1: cross-entropy, kd")
    for classes in CLASSES:
        print(f"{classes:7}   " + "  ".join(f"{ratio:.2f}" for ratio in ratios(classes)))


if __name__ == "__main__":
    main()
