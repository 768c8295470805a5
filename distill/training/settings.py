"""Every value that shapes a run."""

import os
from dataclasses import fields, replace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from distill.errors import DistillError


def _plain(value: object) -> object:
    """NumPy's numbers are no JSON."""
    return value.item() if isinstance(value, np.generic) else value


def _whole(value: object) -> object:
    value = _plain(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(path: object) -> object:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_plain)]
Switch = Annotated[bool, BeforeValidator(_plain)]
Folder = Annotated[str, BeforeValidator(_text)]


# `strict`: "no" is no switch and "3" no number. The largest values are far beyond what makes sense: they are there for
# slips of the hand.
@dataclass(frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False))
class Settings:
    """Everything about training that is not the data, the networks or the method.

    `lr` is the backbone's rate; the head and the connectors learn at `head_lr_factor` times that, but all of a network
    of your own at `lr`. `warmup` is the share of all steps over which the rate rises. During the first
    `connector_epochs` only connectors are trained. `clip` bounds the norm of the student's gradient (0: no bound).
    `augment`: `flip`, or `crops` (see `transforms.draw_view`) of images whose short side is scaled to between
    `scale_from` and `scale_to` crops. `crop_size` in pixels; `flip` takes whole images of up to twice that.
    `output_stride`, 16 or 8, is that of a student given by name. `labelled`: only this many of the first images keep
    their labels for cross-entropy, 0 for all.
    `class_weights` `log`: cross-entropy counts rare classes for more, see `losses.class_weights`.

    `batch_size` is the batch of one step, for any number of processes that share it (see `parallel`) and of parts in
    which each computes its share (`accumulate`); `dist` and `cirkd` compare what is in one share. With
    `sync_batchnorm` they share BatchNorm's statistics too; parts do not.
    `precision`: `float32`, or `bfloat16` for the forward passes of both networks under `torch.autocast`; weights,
    losses, optimizer and scores stay in float32. `compile`: both networks through `torch.compile`. `crop_on`: `host`
    or `device` cut, scale and blur the crops, see `transforms`. `auto` chooses what suits the device.

    The settings in `NEUTRAL` change no result, and may differ when a run is resumed. `workers` load crops. `cache`: a
    folder for a file of decoded images, "" for none. `checkpoint_minutes`: how much work may be lost within an epoch.
    `tensorboard`: losses and scores as TensorBoard reads them, in the run's folder.

    The last four measure the effect of four faults of the published code; see `RECIPES`.
    `distilled_dropout` False: students that have a teacher skip ASPP's dropout. `teacher_mode` `train`: the teacher
    uses the batch's statistics and dropout, and its running statistics drift. `divisions` `twice`: cross-entropy is
    divided by the batch once more, and KD's divergence by the classes and the batch. `padding` `background`: what
    `crops` add beyond an image is labelled 0 instead of void.
    """

    epochs: Annotated[Whole, Field(ge=1, le=1_000_000)] = 96
    batch_size: Annotated[Whole, Field(ge=2, le=100_000)] = 16
    crop_size: Annotated[Whole, Field(ge=8, le=10_000)] = 64
    output_stride: Annotated[Literal[8, 16], BeforeValidator(_whole)] = 16
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[Number, Field(ge=1e-9, le=1000)] = 3.2e-2
    head_lr_factor: Annotated[Number, Field(ge=1e-9, le=1e6)] = 1.0
    weight_decay: Annotated[Number, Field(ge=0, le=100)] = 0.02
    nesterov: Switch = False
    schedule: Literal["cosine", "poly"] = "cosine"
    warmup: Annotated[Number, Field(ge=0, le=1)] = 0.1
    connector_epochs: Annotated[Whole, Field(ge=0, le=1_000_000)] = 0
    clip: Annotated[Number, Field(ge=0, le=1e9)] = 5.0
    augment: Literal["flip", "crops"] = "flip"
    scale_from: Annotated[Number, Field(ge=0.1, le=10)] = 0.5
    scale_to: Annotated[Number, Field(ge=0.1, le=10)] = 2.0
    evaluate_every: Annotated[Whole, Field(ge=1, le=1_000_000)] = 8
    labelled: Annotated[Whole, Field(ge=0, le=100_000_000)] = 0
    class_weights: Literal["none", "log"] = "none"
    accumulate: Annotated[Whole, Field(ge=1, le=10_000)] = 1
    sync_batchnorm: Switch = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Switch = False
    crop_on: Literal["auto", "host", "device"] = "auto"
    workers: Annotated[Whole, Field(ge=0, le=256)] = 0
    cache: Folder = ""
    checkpoint_minutes: Annotated[Number, Field(ge=0, le=1e6)] = 10.0
    tensorboard: Switch = False
    distilled_dropout: Switch = True
    teacher_mode: Literal["eval", "train"] = "eval"
    divisions: Literal["once", "twice"] = "once"
    padding: Literal["void", "background"] = "void"


def choices_of(name: str) -> tuple[Any, ...]:
    """What the setting `name` may be; empty where it is not one of a few."""
    kind = get_type_hints(Settings)[name]
    return get_args(kind) if get_origin(kind) is Literal else ()


def what_to_give(name: str) -> str:
    """The end of a sentence about a value that the setting `name` cannot have."""
    kind = get_type_hints(Settings)[name]
    if choices := choices_of(name):
        return f"choose {' or '.join(map(str, choices))}"
    if kind not in (int, float):
        return "give True or False" if kind is bool else "give the path of a folder"
    every = get_type_hints(Settings, include_extras=True)[name].__metadata__
    least, most = next(part.metadata for part in every if isinstance(part, FieldInfo))
    return f"give {'a whole number' if kind is int else 'a number'} from {kind(least.ge):,} to {kind(most.le):,}"


NEUTRAL = ("workers", "cache", "checkpoint_minutes", "tensorboard")

# What runs had in effect that were made before a setting existed, where that is not its default.
BEFORE: dict[str, str] = {"precision": "float32", "crop_on": "host"}


def for_device(settings: Settings, device: torch.device) -> Settings:
    """The settings with every `auto` decided. Raises DistillError for what the device cannot do."""
    gpu = device.type == "cuda"
    mixed = False
    if gpu:
        with torch.cuda.device(device):
            mixed = torch.cuda.is_bf16_supported(including_emulation=False)
    precision = ("bfloat16" if mixed else "float32") if settings.precision == "auto" else settings.precision
    crop_on = ("device" if gpu else "host") if settings.crop_on == "auto" else settings.crop_on
    if (crop_on, device.type) == ("device", "mps"):
        raise DistillError("crops are computed in float64, which Apple's GPUs do not have; leave out --crop-on device")
    return replace(settings, precision=precision, crop_on=crop_on)


def with_every_setting(settings: dict[str, Any]) -> dict[str, Any]:
    """The recorded settings of a run, with those that were added to `Settings` since it was made."""
    return {field.name: BEFORE.get(field.name, field.default) for field in fields(Settings)} | settings
