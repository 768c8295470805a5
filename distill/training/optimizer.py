"""What the settings say of a method's loss, of the optimizer, and of the schedule of its learning rate."""

import torch
from torch import Tensor

from distill.data.folders import VOCFolder
from distill.losses import IGNORE_INDEX, class_weights
from distill.methods import Method
from distill.networks.deeplab import DeepLabV3Plus, parameter_groups
from distill.networks.wrapped import Wrapped
from distill.training.settings import Settings


def pixels_by_class(dataset: VOCFolder, most: int = 0) -> Tensor:
    """Labelled pixels (C,) of each class, of the first `most` images (0: of all)."""
    counts = torch.zeros(IGNORE_INDEX + 1, dtype=torch.int64)
    for index in range(min(most, len(dataset)) if most else len(dataset)):
        counts += torch.bincount(dataset[index][1].as_subclass(Tensor).flatten(), minlength=IGNORE_INDEX + 1)
    return counts[: dataset.num_classes]


def set_up(method: Method, settings: Settings, train: VOCFolder) -> None:
    """Have a method divide, and weigh the classes of `train`, as the settings say."""
    method.divide_by = settings.batch_size if settings.divisions == "twice" else 0
    if settings.class_weights == "log":
        method.class_weights = class_weights(pixels_by_class(train, settings.labelled))


def lr_factor(step: int, steps: int, settings: Settings) -> float:
    """Share of the learning rate at a step: a linear warm-up, then a cosine, or the published (1 - step/steps)^0.9."""
    warmup = settings.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    if settings.schedule == "poly":
        return (1 - progress) ** 0.9
    return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())


def make_optimizer(student: DeepLabV3Plus | Wrapped, method: Method, settings: Settings) -> torch.optim.Optimizer:
    """The backbone at the rate `lr`, the head and the connectors at `head_lr_factor` times that; of a wrapped network,
    whose parts are not known, everything at `lr`.
    """
    backbone, head = (list(student.parameters()), []) if isinstance(student, Wrapped) else parameter_groups(student)
    head_lr = settings.lr * settings.head_lr_factor
    groups = [{"params": backbone, "lr": settings.lr}, {"params": [*head, *method.parameters()], "lr": head_lr}]
    if settings.optimizer == "sgd":
        # Not fused: that one fails once some weights have a momentum and others, frozen until now, have none.
        return torch.optim.SGD(groups, momentum=0.9, nesterov=settings.nesterov, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)


def make_schedule(
    optimizer: torch.optim.Optimizer, steps: int, settings: Settings
) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps, settings))
