"""Diagrams of how results come about, for notebooks 06, 08 and 11; their parts are those of `diagrams`."""

from matplotlib.figure import Figure

from distill.show.diagrams import _arrow, _box, _canvas, _number
from distill.show.plots import style


def fair_pair() -> Figure:
    """Two runs of one seed that differ in the loss alone, and what becomes of their scores."""
    with style():
        figure = Figure(figsize=(9.6, 3.0))
        axis = _canvas(figure, 13.2, 4.1)
        _box(axis, 0.0, 1.3, 2.3, 1.5, "one seed:\nfirst weights,\norder, mirroring", "data")
        for y, fill, text in (
            (2.6, "plain", "baseline\ncross-entropy"),
            (0.3, "student", "method\n+ weight × its loss"),
        ):
            _box(axis, 3.2, y, 2.7, 1.2, text, fill)
            _box(axis, 6.8, y + 0.2, 1.6, 0.8, "score", "plain")
            _arrow(axis, (2.3, 2.05), (3.2, y + 0.6))
            _arrow(axis, (5.9, y + 0.6), (6.8, y + 0.6))
            _arrow(axis, (8.4, y + 0.6), (9.1, 2.05 + (0.35 if y > 1 else -0.35)))
        _box(axis, 9.1, 1.45, 1.5, 1.2, "difference:\nits gain", "loss")
        _arrow(axis, (10.6, 2.05), (11.3, 2.05))
        _box(axis, 11.3, 1.3, 1.8, 1.5, "mean and\ninterval\nover seeds", "loss")
        words = "equal in both: images, epochs, rate, decay, network, images that are scored"
        axis.text(4.7, -0.15, words, size=9, ha="center", va="top")
        axis.set(xlim=(-0.1, 13.2), ylim=(-0.6, 3.9))
    return figure


_QUESTIONS = (
    ("Has the baseline\nconverged?", "it may be a gain\nin speed: train\nboth longer"),
    ("Were its settings\nchosen with as\nmuch care?", "it may be a gain\nby settings: tune\nthe baseline too"),
    ("Does the interval\nleave out zero?", "not settled:\nmore seeds"),
    ("Is it ahead of a\nstudent alone of\nas many seconds?", "better per epoch,\nnot per second"),
)


def reading_a_gain() -> Figure:
    """The questions to ask of a gain, in order; where one is answered with no, what the gain may be."""
    with style():
        figure = Figure(figsize=(9.6, 3.1))
        axis = _canvas(figure, 13.4, 4.3)
        for index, (question, otherwise) in enumerate(_QUESTIONS):
            left = 2.95 * index
            _box(axis, left, 2.4, 2.25, 1.4, question, "teacher", size=9)
            _box(axis, left, 0.0, 2.25, 1.4, otherwise, "student", size=9)
            _arrow(axis, (left + 1.12, 2.4), (left + 1.12, 1.4))
            axis.text(left + 1.25, 1.9, "no", size=9, va="center")
            _arrow(axis, (left + 2.25, 3.1), (left + 2.95, 3.1), "yes", above=0.12)
        _box(axis, 11.8, 2.4, 1.4, 1.4, "better", "loss")
        axis.set(xlim=(-0.1, 13.3), ylim=(-0.1, 4.1))
    return figure


_STAGES = (
    ("images,\ncrops", "data", (7,)),
    ("teacher", "teacher", (5,)),
    ("student", "student", (1, 8)),
    ("losses", "loss", (6,)),
    ("schedule", "plain", (2, 9)),
    ("choice of\nthe epoch", "plain", (3,)),
    ("table", "plain", (4,)),
)


def where_faults_are() -> Figure:
    """The published protocol from images to table, with the numbers of its nine faults where they happen."""
    with style():
        figure = Figure(figsize=(9.6, 1.5))
        axis = _canvas(figure, 13.4, 2.1)
        for index, (text, fill, faults) in enumerate(_STAGES):
            left = 1.92 * index
            _box(axis, left, 0.0, 1.45, 1.1, text, fill, size=9)
            for place, fault in enumerate(faults):
                _number(axis, left + 1.45 - 0.5 * place, 1.15, fault)
            if index:
                _arrow(axis, (left - 0.47, 0.55), (left, 0.55))
        axis.set(xlim=(-0.1, 13.3), ylim=(-0.15, 1.7))
    return figure


_STEPS = (
    (("your folder,\nlabelme's files", "data"), ("data labelme\ndata check", "plain"), ("train a\nteacher", "teacher")),
    (
        ("better than the\nstudent alone?", "loss"),
        ("distil on images\nwithout labels", "student"),
        ("read the\nresult", "loss"),
    ),
)


def own_project() -> Figure:
    """From a folder of images to a network that is handed over, and the two places where one may have to go back."""
    with style():
        figure = Figure(figsize=(9.6, 3.0))
        axis = _canvas(figure, 13.4, 4.3)
        for row, (line, y) in enumerate(zip(_STEPS, (2.7, 0.4), strict=True)):
            for column, (text, fill) in enumerate(line):
                left = 3.4 * column
                _box(axis, left, y, 2.6, 1.2, text, fill)
                _number(axis, left + 2.6, y + 1.2, 3 * row + column + 1)
                if column:
                    _arrow(axis, (left - 0.8, y + 0.6), (left, y + 0.6))
        axis.plot([9.4, 10.3, 10.3], [3.3, 3.3, 2.15], color="#222222", lw=1.2)
        axis.plot([10.3, -0.35, -0.35], [2.15, 2.15, 1.0], color="#222222", lw=1.2)
        _arrow(axis, (-0.35, 1.0), (0.0, 1.0))
        _box(axis, 10.3, 0.4, 2.6, 1.2, "export", "data")
        _number(axis, 12.9, 1.6, 7)
        _arrow(axis, (9.4, 1.0), (10.3, 1.0))
        for start, text in (
            (1.3, "no: a better teacher, or label more"),
            (8.1, "not settled: more seeds, more labels"),
        ):
            axis.plot([start, start], [0.4, 0.1], color="#B24700", lw=1.2, ls=(0, (4, 2)))
            axis.text(start + 0.15, 0.05, text, color="#B24700", size=9, va="center")
        axis.set(xlim=(-0.5, 13.3), ylim=(-0.2, 4.3))
    return figure
