"""Figures: that they show the numbers they were given, in the course's one style."""

import base64
import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from distill.methods import METHODS
from distill.show import charts, plots

NAMES = ("background", "sky", "sea")
ROWS = [
    {"backbone": "resnet18", "method": "baseline", "miou": 0.5, "miou_interval": 0.02},
    {"backbone": "resnet18", "method": "kd", "miou": 0.6, "miou_interval": 0.03, "gain": 0.1, "gain_interval": 0.04},
    {
        "backbone": "mobilenetv2",
        "method": "ofd",
        "miou": 0.7,
        "miou_interval": 0.01,
        "gain": 0.2,
        "gain_interval": 0.05,
    },
]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_masks_have_vocs_colours() -> None:
    colours = plots.colour_mask(np.array([[0, 1, 2, 255]]))
    assert colours.tolist() == [[[0, 0, 0], [128, 0, 0], [0, 128, 0], [224, 224, 192]]]


def test_a_grid_draws_pixels_as_squares_and_names_regions() -> None:
    mask = np.zeros((20, 20), dtype=int)
    mask[:, 10:], mask[0, 0] = 1, 2
    image = np.zeros((20, 20, 3), dtype=np.uint8)
    figure = plots.show_grid({"first": {"image": image, "truth": mask}, "second": {"image": image}}, NAMES)
    drawn = [picture for axis in figure.axes for picture in axis.images]
    assert [picture.get_interpolation() for picture in drawn] == ["nearest"] * 3
    assert texts(figure) == ["sky"], "regions below 1.5 % and the background have no name"
    assert [axis.get_title(loc="center") for axis in figure.axes[:2]] == ["image", "truth"]
    assert [axis.get_ylabel() for axis in figure.axes][::2] == ["first", "second"]


def test_colours_of_ones_own_reach_every_class_and_void_keeps_vocs() -> None:
    colours = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    mask = np.array([[0, 1, 2, 255]])
    assert plots.colour_mask(mask, colours).tolist() == [[[1, 2, 3], [4, 5, 6], [7, 8, 9], [224, 224, 192]]]
    white = np.full((1, 4, 3), 255, dtype=np.uint8)
    drawn = plots.overlay(white, mask, [(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    assert drawn[0, :3].argmax(axis=1).tolist() == [0, 1, 2], "class 0 is a class like the others"


def test_a_first_class_that_is_no_background_has_its_name_and_flat_pictures_flat_rows() -> None:
    flat = np.zeros((10, 40), dtype=int)
    figure = plots.show_row({"street": flat}, ("sky", "road"), size=4)
    assert texts(figure) == ["sky"]
    assert figure.get_figheight() == pytest.approx(4 / 4 + 0.3) and figure.get_figwidth() == 4


def test_a_mask_over_its_image_leaves_no_class_dark_on_dark() -> None:
    mask = np.zeros((20, 20), dtype=int)
    mask[5:15, 5:15], mask[0, :] = 8, 255  # VOC's colour of class 8 is (64, 0, 0)
    drawn = plots.overlay(np.zeros((20, 20, 3), dtype=np.uint8), mask)
    assert drawn.dtype == np.uint8 and drawn.shape == (20, 20, 3)
    assert (drawn[10, 10] != drawn[2, 2]).any() and int(drawn[2, 2].sum()) - int(drawn[10, 10].sum()) > 100
    assert drawn[4, 10].tolist() == drawn[15, 5].tolist() == [255, 255, 255], "a white line around the region"
    assert drawn[0, 0].sum() > drawn[2, 2].sum(), "void is paler than the background"


def test_each_object_has_one_name_and_no_name_covers_another() -> None:
    mask = np.zeros((60, 60), dtype=int)
    mask[5:20, 5:20], mask[35:55, 35:55] = 1, 1  # two objects of one class
    figure = plots.show_row({"apart": (np.zeros((60, 60, 3), dtype=np.uint8), mask)}, NAMES)
    assert texts(figure) == ["sky", "sky"]
    mask = np.zeros((60, 60), dtype=int)
    mask[28:30, 20:40], mask[30:33, 20:40] = 1, 2  # too flat for two names
    assert texts(plots.show_row({"flat": mask}, NAMES)) == ["sea"], "the larger one has a name"


def test_bars_have_the_height_of_the_probabilities_and_each_panel_its_scale() -> None:
    panels = {"T = 1": {"a": np.array([0.9, 0.1, 0.0])}, "T = 9": {"a": np.array([0.4, 0.3, 0.3])}}
    figure = plots.probability_chart(panels, NAMES)
    assert [bar.get_height() for bar in figure.axes[1].patches] == [0.4, 0.3, 0.3]
    assert [axis.get_ylim()[1] for axis in figure.axes] == pytest.approx([0.99, 0.44])
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == list(NAMES)


def test_gains_leave_the_baseline_out_and_have_a_panel_for_each_student() -> None:
    figure = charts.gain_chart(ROWS)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["ResNet-18", "MobileNetV2"]
    assert [[tick.get_text() for tick in axis.get_yticklabels()] for axis in figure.axes] == [["KD"], ["OFD"]]
    assert figure.axes[1].lines[0].get_xdata() == pytest.approx([20.0])


def test_a_leaderboard_has_a_panel_for_each_comparison() -> None:
    row = next(row for row in ROWS if "gain" in row)
    panels = {"at equal epochs": [row], "at equal time": [row | {"gain": -0.02}, row | {"method": "cwd-maps"}]}
    figure = charts.leaderboard_chart(panels, {row["method"]: "logits", "cwd-maps": "channels", "at": "places"})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["logits", "channels"]
    assert [tick.get_text() for tick in figure.axes[1].get_yticklabels()] == [row["method"], "cwd-maps"]
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["at equal epochs", "at equal time"]
    assert figure.axes[1].lines[0].get_xdata() == pytest.approx([-2.0])


def test_exported_networks_with_a_line_through_those_that_no_other_beats() -> None:
    points = [
        {"network": "resnet18", "way": "float32", "miou": 0.7, "milliseconds": 2.0, "bytes": 4_000_000},
        {"network": "resnet18", "way": "int8", "miou": 0.69, "milliseconds": 0.5, "bytes": 1_000_000},
        {"network": "mobilenetv2", "way": "onnx", "miou": 0.6, "milliseconds": 1.0, "bytes": 500_000},
    ]
    times, sizes = charts.export_chart(points).axes
    assert times.lines[0].get_xydata().tolist() == [[0.5, 69.0], [2.0, 70.0]]  # MobileNetV2 is slower and worse
    assert sizes.lines[0].get_xydata()[:, 1].tolist() == [60.0, 69.0, 70.0]
    assert {text.get_text() for text in times.texts} == {"ResNet-18", "MobileNetV2"}
    points[2]["trained"] = False
    assert charts.export_chart(points).axes[1].lines[0].get_xydata()[:, 1].tolist() == [69.0, 70.0]


def test_losses_by_class_are_hatched() -> None:
    figure = charts.class_chart({"one": {"a": 0.1, "b": -0.2}})
    assert [bar.get_hatch() for bar in figure.axes[0].patches] == ["////", None]


def test_learning_curves_skip_epochs_without_the_key_and_show_scores_in_per_cent() -> None:
    history = [{"epoch": 1, "ce": 2.0}, {"epoch": 2, "ce": 1.0, "val_miou": 0.25}]
    figure = charts.learning_curves({"KD": history}, {"ce": "loss", "val_miou": "score"})
    assert figure.axes[0].lines[0].get_ydata().tolist() == [2.0, 1.0]
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[2.0, 25.0]]
    begun = charts.learning_curves({"KD": history, "AT": history[:1]}, {"val_miou": "score"}).axes[0]
    assert begun.lines[1].get_xydata().size == 0, "a run without a score yet has no line"


def test_classes_are_in_order_also_where_a_gain_is_unknown() -> None:
    kd, at = {"a": 0.1, "b": -0.2, "d": 0.3, "f": 0.15}, {"a": 0.1, "c": 0.02, "d": 0.3, "f": 0.15}
    nowhere = {"e": float("nan")}
    axis = charts.class_map({"resnet18": {"kd": kd | nowhere, "at": at | nowhere}}).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["d", "f", "a", "c", "b", "e"]
    charts.class_chart({"KD": kd | nowhere, "AT": at})


def test_no_two_methods_look_alike() -> None:
    looks = {method: charts._look(method) for method in METHODS}
    assert len(set(looks.values())) == len(METHODS)


def test_names_of_regions_stand_where_they_did_on_a_large_mask() -> None:
    mask = np.zeros((60, 80), dtype=np.uint8)
    mask[20:50, 10:40] = 1
    small, large = (
        plots.show_row({"mask": each}, ["background", "cat"]).axes[0].texts
        for each in (mask, mask.repeat(20, 0).repeat(20, 1))
    )
    assert len(small) == len(large) == 1
    assert np.allclose(
        np.add(small[0].get_position(), 0.5) / 80, np.add(large[0].get_position(), 0.5) / 1600, atol=0.02
    )


def test_a_displayed_figure_is_a_png_with_alternative_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple] = []
    monkeypatch.setattr("IPython.display.display", lambda output, **options: shown.append((output, options)))
    plots.display(plots.show_row({"image": np.zeros((4, 4, 3), dtype=np.uint8)}), "Black < white.")
    (bundle, options), (unseen, _) = shown
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).format == "PNG"
    assert bundle["text/plain"] == options["metadata"]["image/png"]["alt"] == "Black < white."
    assert "Black &lt; white.</div>" in unseen.data and "width: 1px" in unseen.data


def test_a_line_over_time_ends_where_the_run_was_finished() -> None:
    """Whatever epochs it had: seconds are what is compared."""
    own = [
        [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "val_miou": 0.3 + seed}, {"epoch": 4, "val_miou": 0.5}]
        for seed in (0, 0.1)
    ]
    other = [[{"epoch": 30, "val_miou": 0.4}, {"epoch": 60, "val_miou": 0.6}]]
    seconds = {("resnet18", "baseline"): 8.0, ("resnet18", "kd"): 30.0}
    figure = charts.time_chart({"resnet18": {"baseline": own, "kd": other}}, seconds, 0.8)
    first, second, teacher = figure.axes[0].get_lines()
    assert list(first.get_xdata()) == [4.0, 8.0] and list(first.get_ydata()) == pytest.approx([35.0, 50.0])
    assert list(second.get_xdata()) == [15.0, 30.0] and set(teacher.get_ydata()) == {80.0}


def test_each_panel_over_time_has_its_own_teacher() -> None:
    history = {"kd": [[{"epoch": 4, "val_miou": 0.5}]]}
    panels, seconds = ("one", "other", "without"), 8.0
    figure = charts.time_chart(
        dict.fromkeys(panels, history), {(panel, "kd"): seconds for panel in panels}, {"one": 0.8, "other": 0.7}
    )
    one, other, without = (axis.get_lines() for axis in figure.axes)
    assert set(one[-1].get_ydata()) == {80.0} and set(other[-1].get_ydata()) == {70.0} and len(without) == 1


def test_a_longer_baseline_looks_like_a_baseline_and_is_dashed() -> None:
    history = [[{"epoch": 1, "val_miou": 0.4}, {"epoch": 2, "val_miou": 0.6}]]
    methods = ("baseline", "kd", "at", "ofd", "baseline, twice the epochs")  # also when a round of dashes is over
    seconds = {("resnet18", method): 8.0 for method in methods}
    figure = charts.time_chart({"resnet18": dict.fromkeys(methods, history)}, seconds)
    first, *_, second = figure.axes[0].get_lines()
    assert first.get_color() == second.get_color() and first.get_linestyle() != second.get_linestyle()
    assert second.get_label() == "baseline, twice the epochs"
