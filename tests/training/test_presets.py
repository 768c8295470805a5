"""Which defaults follow from the data, and what wins over what."""

from pathlib import Path

import pytest

from distill.training.presets import TUNED, choose_options, choose_settings, defaults_for


@pytest.mark.parametrize(
    "data, kind, preset, augment",
    [
        ("sample", "sample", "sample", None),
        ("pascal", "pascal", "voc", "crops"),
        ("pascal+sbd", "pascal", "voc", "crops"),
        ("pascal-mini", "folder", "sample", "crops"),
        ("data/pascal", "folder", "sample", "crops"),
        (Path("pascal"), "pascal", "voc", "crops"),
        (Path("sample"), "sample", "sample", None),
        (Path("./my/sample"), "folder", "sample", "crops"),
    ],
)
def test_only_the_names_that_open_a_data_set_have_its_defaults(
    data: str | Path, kind: str, preset: str, augment: str | None
) -> None:
    known = defaults_for(data)
    assert known[:3] == (kind, preset, augment)
    assert known.options == (TUNED["sample"] if kind == "sample" else {}) and choose_options([], data, None) == {}


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
