"""Which defaults follow from the data, and what wins over what."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distill.training.presets import TUNED, choose_options, choose_settings, defaults_for, make_student


@pytest.mark.parametrize(
    "data, preset, augment",
    [
        ("sample", "sample", None),
        ("pascal", "voc", "crops"),
        ("pascal+sbd", "voc", "crops"),
        ("pascal-mini", "sample", "crops"),
        ("data/pascal", "sample", "crops"),
        (Path("pascal"), "voc", "crops"),
        (Path("sample"), "sample", None),
        (Path("./my/sample"), "sample", "crops"),
    ],
)
def test_only_the_names_that_open_a_data_set_have_its_defaults(
    data: str | Path, preset: str, augment: str | None
) -> None:
    known = defaults_for(data)
    assert known[:2] == (preset, augment)
    assert known.options == (TUNED["sample"] if augment is None else {}) and choose_options([], data, None) == {}


@pytest.mark.parametrize(
    "preset, data, given, expected",
    [
        ("sample", "sample", {}, "flip"),
        ("voc", "sample", {}, "crops"),
        ("sample", "pascal", {}, "crops"),
        ("sample", "cups", {}, "crops"),
        ("sample", "cups", {"augment": None}, "crops"),
        ("sample", "cups", {"augment": "flip"}, "flip"),
    ],
)
def test_what_is_given_wins_then_the_data_then_the_preset(preset: str, data: str, given: dict, expected: str) -> None:
    assert choose_settings(preset, "matched", given, data).augment == expected


def test_the_width_is_a_factor_on_the_channels_of_the_preset(refused) -> None:
    for backbone in ("resnet18", "mobilenetv2"):
        usual, half = (make_student(backbone, 3, width=width).config for width in (1.0, 0.5))
        assert (half["width"], half["head_width"]) == (usual["width"] / 2, usual["head_width"] / 2)
    assert make_student("resnet18", 3, "voc", width=0.25).config["width"] == 0.25
    refused("width is 0", "give a number", call=lambda: make_student("resnet18", 3, width=0))


def test_scales_are_given_the_smaller_first(refused) -> None:
    assert choose_settings("voc", "matched", {"scale_from": 0.8, "scale_to": 1.5}).scale_to == 1.5
    given = {"scale_from": 1.5, "scale_to": 0.8}
    sentence = "scale_from is 1.5, above scale_to, 0.8"
    refused(sentence, "give the smaller first", call=lambda: choose_settings("voc", "matched", given))


def test_settings_that_flip_would_ignore_are_refused(refused: Callable[..., str]) -> None:
    refused("flip", "scale_to", "crops", call=lambda: choose_settings("sample", "matched", {"scale_to": 1.5}))
    assert choose_settings("sample", "matched", {"scale_to": 1.5, "augment": "crops"}).scale_to == 1.5
