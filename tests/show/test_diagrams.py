"""Diagrams: that they draw what they are given, every word inside the picture."""

from collections.abc import Callable

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from distill import losses
from distill.lab import literature
from distill.methods import METHODS
from distill.show import diagrams, diagrams_training
from distill.show.diagrams_results import fair_pair, own_project, reading_a_gain, where_faults_are

SHAPES = [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 4, 4), (32, 4, 4), (16, 16, 16)]
G = torch.tensor([[1.0, 0, 0], [2, 1, 0], [0, 1, 3]])
DIAGRAMS: dict[str, Callable[[], Figure]] = {
    "teacher, student, loss": diagrams.teacher_student_loss,
    "fair pair": fair_pair,
    "reading a gain": reading_a_gain,
    "faults": where_faults_are,
    "own project": own_project,
    "positions": lambda: diagrams.deeplab_positions(SHAPES),
    "OFD's target": diagrams.ofd_target,
    "SAKD": lambda: diagrams.sakd_steps(G),
    "training step": diagrams_training.training_step,
    "dilated taps": lambda: diagrams_training.dilated_taps(4, (1, 2, 3, 4)),
    "family": lambda: diagrams.family(literature.families(), literature.QUESTIONS),
}


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def boxes(figure: Figure) -> list[tuple[str, Bbox]]:
    """The words that stand in the pictures, and the pixels they cover."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = [text for axis in figure.axes for text in axis.texts if text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in found]


@pytest.mark.parametrize("draw", DIAGRAMS.values(), ids=DIAGRAMS)
def test_words_lie_inside_the_picture_and_not_on_each_other(draw: Callable[[], Figure]) -> None:
    figure = draw()
    found = boxes(figure)
    room = figure.bbox.padded(1)
    assert [word for word, box in found if not (room.contains(*box.min) and room.contains(*box.max))] == []
    covered = [
        (word, other)
        for index, (word, box) in enumerate(found)
        for other, place in found[index + 1 :]
        if box.padded(-2).overlaps(place.padded(-2))
    ]
    assert covered == []


def test_positions_are_numbered_and_have_their_sizes() -> None:
    found = words(diagrams.deeplab_positions(SHAPES))
    assert {"1", "2", "3", "4", "5", "6"} <= set(found)
    assert [f"{channels} ch.\n{height} × {width}" for channels, height, width in SHAPES] == [
        text for text in found if "ch." in text
    ]


def test_the_steps_of_sakd_are_those_of_the_loss() -> None:
    figure = diagrams.sakd_steps(G)
    pictures = {axis.get_title(loc="center"): axis.images[0].get_array() for axis in figure.axes}
    attended = losses.self_attention_map(G.sqrt()[None, None])[0]
    assert torch.allclose(torch.tensor(pictures["g' = g + added"]), attended)
    assert torch.allclose(torch.tensor(pictures["softmax₁(A)"]).sum(0), torch.ones(3))
    assert torch.allclose(torch.tensor(pictures["softmax₂(A)"]).sum(1), torch.ones(3))
    assert torch.tensor(pictures["g' / ‖g'‖"]).norm() == pytest.approx(1)


def test_ofds_curves_are_those_of_the_loss() -> None:
    margin = -0.8
    _, right = diagrams.ofd_target(margin).axes
    curves = [line for line in right.lines if len(line.get_xdata()) > 2]
    for line, teacher in zip(curves, (1.2, -0.4, -2.0), strict=True):
        for x, y in list(zip(*line.get_data(), strict=True))[::50]:
            maps = (torch.tensor(value, dtype=torch.float64).view(1, 1, 1, 1) for value in (x, teacher))
            assert float(losses.ofd(*maps, torch.tensor([margin]))) == pytest.approx(float(y), abs=1e-6)


def test_the_family_has_every_method() -> None:
    found = words(DIAGRAMS["family"]())
    assert set(METHODS) - {"baseline"} <= set(found)


def test_taps_are_on_the_map_where_a_convolution_reads_something() -> None:
    figure = diagrams_training.dilated_taps(4, (1, 2, 3, 4))
    for axis, rate in zip(figure.axes, (1, 2, 3, 4), strict=True):
        conv = torch.nn.Conv2d(1, 1, 3, padding=rate, dilation=rate, bias=False)
        conv(torch.ones(1, 1, 4, 4))[0, 0, 0, 0].backward()  # the first place
        dots = [c for c in axis.collections if tuple(c.get_facecolor()[0][:3]) == (0, 0x72 / 255, 0xB2 / 255)]
        assert len(dots) == int((conv.weight.grad != 0).sum())


def test_every_fault_has_its_place() -> None:
    assert sorted(word for word in words(where_faults_are()) if word.isdigit()) == list("123456789")
