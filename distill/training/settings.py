"""Every value that shapes a run."""

from dataclasses import dataclass, fields, replace

import torch


@dataclass(frozen=True)
class Settings:
    """Everything about training that is not the data, the networks or the method.

    `lr` belongs to the backbone; the head and the connectors learn at `head_lr_factor` times that. `warmup` is the
    share of all steps over which the rate rises. During the first `connector_epochs` only connectors are trained.
    `clip` bounds the norm of the gradient (0: no bound). `augment`: `flip`, or `crops` (see
    `transforms.published_crops`). `output_stride`, `crop_size` in pixels. `labelled`: only so many of the first images
    keep their labels for cross-entropy, 0 for all.

    `batch_size` is the batch of one step, however many processes share it (see `parallel`), and in however many parts
    each computes its share (`accumulate`). With `sync_batchnorm` they share BatchNorm's statistics too; parts do not.
    `precision`: `float32`, or `bfloat16` for the forward passes of both networks under `torch.autocast`; weights,
    losses, optimizer and scores stay in float32. `compile`: both networks through `torch.compile`. `crop_on`: `host`
    or `device` cut, scale and blur the crops, see `transforms`. `auto` is what suits the device.

    What is in `NEUTRAL` changes no result, and may differ when a run is resumed. `workers` load crops. `cache`: a
    folder for a file of decoded images, "" for none. `checkpoint_minutes`: how much work may be lost within an epoch.
    `tensorboard`: losses and scores as TensorBoard reads them, in the run's folder.

    The last four are for measuring what four faults of the published code are worth; see `RECIPES`.
    `distilled_dropout` False: students that have a teacher skip ASPP's dropout. `teacher_mode` `train`: the teacher
    uses the batch's statistics and dropout, and its running statistics drift. `divisions` `twice`: cross-entropy is
    divided by the batch once more, and KD's divergence by the classes and the batch. `padding` `background`: what
    `crops` add beyond an image is labelled 0 instead of void.
    """

    epochs: int = 24
    batch_size: int = 16
    crop_size: int = 64
    output_stride: int = 16
    optimizer: str = "adamw"
    lr: float = 3.2e-2
    head_lr_factor: float = 1.0
    weight_decay: float = 0.02
    nesterov: bool = False
    schedule: str = "cosine"
    warmup: float = 0.1
    connector_epochs: int = 0
    clip: float = 5.0
    augment: str = "flip"
    evaluate_every: int = 6
    labelled: int = 0
    accumulate: int = 1
    sync_batchnorm: bool = True
    precision: str = "auto"
    compile: bool = False
    crop_on: str = "auto"
    workers: int = 0
    cache: str = ""
    checkpoint_minutes: float = 10.0
    tensorboard: bool = False
    distilled_dropout: bool = True
    teacher_mode: str = "eval"
    divisions: str = "once"
    padding: str = "void"


# Smallest and largest value of each number, the latter far beyond what makes sense: it is there for slips of the hand.
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 1_000_000),
    "batch_size": (2, 100_000),
    "crop_size": (8, 10_000),
    "lr": (1e-9, 1000.0),
    "head_lr_factor": (1e-9, 1e6),
    "weight_decay": (0.0, 100.0),
    "warmup": (0.0, 1.0),
    "connector_epochs": (0, 1_000_000),
    "clip": (0.0, 1e9),
    "evaluate_every": (1, 1_000_000),
    "labelled": (0, 100_000_000),
    "accumulate": (1, 10_000),
    "workers": (0, 256),
    "checkpoint_minutes": (0.0, 1e6),
}

CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": ("adamw", "sgd"),
    "schedule": ("cosine", "poly"),
    "augment": ("flip", "crops"),
    "precision": ("auto", "float32", "bfloat16"),
    "crop_on": ("auto", "host", "device"),
    "teacher_mode": ("eval", "train"),
    "divisions": ("once", "twice"),
    "padding": ("void", "background"),
}

NEUTRAL = ("workers", "cache", "checkpoint_minutes", "tensorboard")

# What runs had in effect that were made before a setting existed, where that is not its default.
BEFORE: dict[str, str] = {"precision": "float32", "crop_on": "host"}


def for_device(settings: Settings, device: torch.device) -> Settings:
    """The settings with every `auto` decided."""
    gpu = device.type == "cuda"
    mixed = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    precision = ("bfloat16" if mixed else "float32") if settings.precision == "auto" else settings.precision
    crop_on = ("device" if gpu else "host") if settings.crop_on == "auto" else settings.crop_on
    return replace(settings, precision=precision, crop_on=crop_on)


def with_every_setting(settings: dict) -> dict:
    """The recorded settings of a run, with those that were added to `Settings` since it was made."""
    return {field.name: BEFORE.get(field.name, field.default) for field in fields(Settings)} | settings
