"""Softmax along the rows of pixels, and over dim 1, by the number of classes: python benchmarks/classes.py

Says where `losses.cross_entropy` and `losses.kd` should change from one to the other on a CPU (`_AT_ONCE`). One core,
about half a minute. Writes results/classes.json: how many times as long rows take, by the number of classes.
"""

import datetime
import time
from collections.abc import Callable

import torch
from torch import Tensor

from distill import losses
from distill.files import PROJECT, write_json
from distill.training.runs import environment

CLASSES = (2, 5, 8, 11, 12, 15, 16, 17, 21, 33, 60, 150)
SHAPE = (8, 128, 128)


def seconds(step: Callable[[], Tensor], repeats: int = 8) -> float:
    """Processor seconds of a loss and its gradient, without the first."""
    step().backward()
    start = time.process_time()
    for _ in range(repeats):
        step().backward()
    return (time.process_time() - start) / repeats


def ratios(classes: int) -> dict[str, float]:
    """How many times as long rows take, for the two losses."""
    images, height, width = SHAPE
    shape = (images, classes, height, width)
    student, teacher = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    student.requires_grad_()
    labels = torch.randint(0, classes, SHAPE)
    steps = {"ce": lambda: losses.cross_entropy(student, labels), "kd": lambda: losses.kd(student, teacher)}
    found = {}
    for name, step in steps.items():
        taken = {}
        for few in (False, True):
            losses._few_classes = lambda _, few=few: few
            taken[few] = seconds(step)
        found[name] = round(taken[False] / taken[True], 2)
    return found


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for classes in CLASSES:
        rows.append({"classes": classes, **ratios(classes)})
        print(rows[-1], flush=True)
    about = {"command": "python benchmarks/classes.py", "date": datetime.date.today().isoformat()}
    about |= {"environment": environment(torch.device("cpu")), "shape": SHAPE}
    write_json(PROJECT / "results" / "classes.json", {**about, "rows_over_dim_1": rows})


if __name__ == "__main__":
    main()
