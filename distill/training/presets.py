"""Default values: presets, recipes, and what was tuned for the sample."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from distill.data.folders import PASCAL
from distill.errors import DistillError, check_number, nearest
from distill.methods import options_by_term
from distill.networks.deeplab import DeepLabV3Plus, build_model, canonical
from distill.networks.timm_backbone import PREFIX
from distill.training.parallel import seeded
from distill.training.settings import Settings, what_to_give

# `matched`: every row has the same regularisation, and losses are what their formulas say. `published`: four faults
# of the published code put back, each also a setting by itself. Schedules are equal for all rows in both.
RECIPES: dict[str, dict[str, Any]] = {
    "matched": {},
    "published": {
        "distilled_dropout": False,
        "teacher_mode": "train",
        "divisions": "twice",
        "padding": "background",
    },
}


# A preset is nothing but default values.
PRESETS: dict[str, Settings] = {
    "sample": Settings(),
    "voc": Settings(
        epochs=100,
        batch_size=12,
        crop_size=513,
        optimizer="sgd",
        lr=0.0035,
        head_lr_factor=10.0,
        weight_decay=5e-4,
        nesterov=True,
        schedule="poly",
        warmup=0.0,
        connector_epochs=1,
        clip=0.0,
        augment="crops",
        evaluate_every=1,
        workers=4,
    ),
}


# The slim networks of the sample preset; the published networks are build_model's own defaults.
SLIM: dict[str, dict[str, Any]] = {
    "resnet101": {"width": 0.25, "atrous_rates": (2, 3, 4), "zero_init_residual": True},
    "resnet18": {"width": 0.25, "atrous_rates": (2, 3, 4), "zero_init_residual": True},
    "mobilenetv2": {"width": 0.35, "head_width": 0.125, "atrous_rates": (2, 3, 4)},
    "timm": {"head_width": 0.25, "atrous_rates": (2, 3, 4)},  # their backbones have the width that timm gives them
}


# By data set: weights for the sample's small maps, chosen on its val split by studies/sample-weights.toml, or by
# `python -m distill tune` on training images held out (results/sample-tune.json). On other data the published weights
# hold.
TUNED: dict[str, dict[str, dict[str, Any]]] = {
    "sample": {
        "kd": {"weight": 10.0},
        "at": {"weight": 0.5},
        "ofd": {"weight": 3.2e-3},
        "sakd": {"weight": 1.0},
        "sakd-plain": {"weight": 1.0},  # that of sakd, which it is the ablation of
        "mse": {"weight": 31.6},
        "fitnet": {"weight": 3.16},
        "cwd": {"weight": 9.49},
        "cwd-maps": {"weight": 1.58},
        "cirkd": {"weight": 0.0316},
        "dist": {"weight": 3.16},
        "skd": {"weight": 0.316},
        "ifvd": {"weight": 0.632},
        "nfd": {"weight": 0.316},
        "icsd": {"weight": 31.6},
        "attnfd": {"weight": 0.632},
    },
}


class Defaults(NamedTuple):
    """What follows from the data alone: `augment` None leaves it to the preset; `options` are those tuned for the
    data, by the term's name.
    """

    preset: str
    augment: str | None
    options: dict[str, dict[str, Any]]


def defaults_for(data: str | Path) -> Defaults:
    """The defaults of what `open_dataset` opens under the name `data`: whatever is not a name there is a folder."""
    data = str(data)
    if data == "sample":
        return Defaults("sample", None, TUNED["sample"])
    if data in PASCAL:
        return Defaults("voc", "crops", {})
    return Defaults("sample", "crops", {})  # images of all sizes, and larger ones than fit in memory


def choose_settings(preset: str, recipe: str, given: dict[str, Any], data: str | Path = "sample") -> Settings:
    """A preset's settings, changed by the data's defaults, by a recipe, and by what was given.

    None leaves a value as it is. Raises DistillError for unknown names and impossible values.
    """
    for kind, name, known in (("preset", preset, PRESETS), ("recipe", recipe, RECIPES)):
        if name not in known:
            raise DistillError(f"there is no {kind} {name!r}{nearest(str(name), known)}")
    names = [field.name for field in fields(Settings)]
    for name in given:
        if name not in names:
            raise DistillError(f"there is no setting {name!r}{nearest(name, names)}")
    given = {name: value for name, value in given.items() if value is not None}
    augment = defaults_for(data).augment or PRESETS[preset].augment
    try:
        chosen = replace(PRESETS[preset], **({"augment": augment} | RECIPES[recipe] | given))
    except ValidationError as error:
        raise DistillError(_sentence(error)) from None
    idle = [name for name in ("scale_from", "scale_to", "padding") if name in given and chosen.augment == "flip"]
    if idle:
        raise DistillError(f"augment flip takes whole images, without {idle[0]}; leave that out, or take augment crops")
    if chosen.scale_from > chosen.scale_to:
        scales = f"scale_from is {chosen.scale_from}, above scale_to, {chosen.scale_to}"
        raise DistillError(f"{scales}; give the smaller first")
    return chosen


def _sentence(error: ValidationError) -> str:
    """What the first setting is that cannot be so, and what it may be."""
    first = error.errors(include_url=False)[0]
    name, value = str(first["loc"][0]), first["input"]
    why = "; BatchNorm needs two images per batch" if (name, value) == ("batch_size", 1) else ""
    return f"{name} is {value!r}{why}; {what_to_give(name)}"


def choose_options(terms: list[str], data: str | Path, given: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """By the term's name, the options that were tuned for the data, and over them the given ones.

    `given` has either form that `build_method` takes. Raises DistillError for unknown options.
    """
    tuned = defaults_for(data).options
    return {term: {**tuned.get(term, {}), **own} for term, own in options_by_term(terms, given or {}).items()}


def make_student(
    backbone: str,
    num_classes: int,
    preset: str = "sample",
    output_stride: int = 16,
    seed: int = 0,
    weights: str | None = None,
    width: float = 1.0,
) -> DeepLabV3Plus:
    """A network of a preset with the initial weights of a seed: slim for `sample`, as published for `voc`.

    `width` is a factor on the preset's channels: 0.5 makes a student with half of them.
    """
    if preset not in PRESETS:
        raise DistillError(f"there is no preset {preset!r}{nearest(str(preset), PRESETS)}")
    check_number("seed", seed, 0, 2**32 - 1)
    backbone = canonical(backbone)
    shape = dict(SLIM.get("timm" if backbone.startswith(PREFIX) else backbone, {}) if preset == "sample" else {})
    check_number("width", width, 0.01, 8, whole=False)
    if width != 1.0:
        for name in ("width", "head_width") if "head_width" in shape else ("width",):
            shape[name] = width * shape.get(name, 1.0)
    with seeded(int(seed)):
        return build_model(backbone, num_classes, output_stride, weights=weights, **shape)
