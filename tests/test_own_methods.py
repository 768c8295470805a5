"""Methods in a file of one's own: in runs, studies and tuning, whose processes read it too."""

import json
import linecache
import sys
from collections.abc import Callable
from functools import cache, cached_property, partial, partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from distill import DistillError, Run, fit, losses, methods
from distill.cli import main
from distill.methods import METHODS, load_methods
from distill.networks.saving import save_model

OWN = """
import distill


class Gap(distill.methods.Term):
    needs_logits = True

    def __init__(self, teacher, student, *, weight=2.0):
        super().__init__(weight, warmup=0, decay=0)

    def forward(self, student, teacher, labels):
        return (student.logits.softmax(1) - teacher.logits.softmax(1)).abs().mean()


distill.register_method("gap", Gap)
"""
STUDY = """
about = "A method of one's own beside one of the package."
data = "sample"
teacher = "{teacher}"
students = ["resnet18"]
methods = ["baseline", "kd+gap"]
seeds = 1

[settings]
epochs = 1
batch_size = 4
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(methods, "METHODS", dict(METHODS))
    monkeypatch.setattr(methods, "_OWN", {})
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def test_a_study_and_a_tuning_train_it_in_processes_of_their_own(
    own: Path, tiny_sample: Path, tiny_teacher: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    save_model(tiny_teacher, teacher)
    (tmp_path / "own.toml").write_text(STUDY.format(teacher=teacher))
    where = ["--data-root", str(tiny_sample), "--device", "cpu", "--own-methods", str(own)]
    asked = ["study", str(tmp_path / "own.toml"), "--runs", str(tmp_path / "runs"), *where]
    assert main(asked) == 0, capsys.readouterr().err
    assert "kd+gap" in capsys.readouterr().out
    recorded = json.loads((tmp_path / "runs/own/results.json").read_text())["runs"][1]
    assert recorded["method"] == "kd+gap" and recorded["terms"]["gap"] == {"weight": 2.0}
    assert list(recorded["code"]) == ["gap"] and len(recorded["code"]["gap"]) == 64

    tuned = ["tune", "--methods", "gap", "--budget", "2", "--epochs", "1", "--batch-size", "4", *where]
    assert main([*tuned, "--teacher", str(teacher), "--out", str(tmp_path / "tune")]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "tune/tune.json").read_text())["best"]["gap"] > 0

    # Two runs with another loss under one name are not one row, and neither goes on from the other.
    own.write_text(OWN.replace(".abs()", ".square()"))
    assert main(asked) == 2 and "the code of gap is" in capsys.readouterr().err
    assert main([*tuned, "--teacher", str(teacher), "--out", str(tmp_path / "tune")]) == 2
    assert "was trained with other code of gap" in capsys.readouterr().err
    assert Run(tmp_path / "runs/own/resnet18/kd+gap/seed0").finished


def test_a_file_may_import_what_lies_beside_it(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    own.with_name("gap_of.py").write_text("from pathlib import Path\n\nHOME = Path(__file__).parent\n")
    own.write_text(
        f"from pathlib import Path\n\nfrom gap_of import HOME\n\nassert HOME == Path(__file__).parent\n{OWN}"
    )
    load_methods(own)
    assert "gap" in methods.METHODS


def test_without_its_file_the_method_is_not_there(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--method", "gap"]) == 2
    assert "no method 'gap'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "registers no method"),
        (OWN.replace("class Gap", "1 / 0\n\n\nclass Gap"), "line 5: ZeroDivisionError"),
        (OWN.replace("def forward(", "def forward("[:-1]), "line 11: SyntaxError"),
        (OWN.replace('"gap"', '"kd"'), "there is a method 'kd' already"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(text: str, word: str, own: Path, refused: Callable[..., str]) -> None:
    own.write_text(text)
    refused(word, call=lambda: load_methods(own))
    own.write_text(OWN)
    load_methods(own)  # mended
    first = methods.METHODS["gap"]
    load_methods(own)  # a cell that is run again
    assert methods.METHODS["gap"] is first
    own.write_text(OWN.replace("weight=2.0", "weight=3.0"))
    before = methods.code_of(["gap", "kd"])
    load_methods(own)
    assert methods.METHODS["gap"].__init__.__kwdefaults__ == {"weight": 3.0}
    assert list(before) == ["gap"] and before != methods.code_of(["gap"])


def test_a_file_that_fails_changes_nothing_and_one_that_changed_forgets(own: Path, refused: Callable[..., str]) -> None:
    load_methods(own)
    known, places, code = dict(methods.METHODS), list(sys.path), methods.code_of(["gap"])
    own.write_text(OWN + '\ndistill.register_method("second", Gap)\n1 / 0\n')
    refused("ZeroDivisionError", call=lambda: load_methods(own))
    other = own.parent / "elsewhere" / "theirs.py"
    other.parent.mkdir()
    other.write_text("1 / 0\n")
    refused("theirs.py, line 1", call=lambda: load_methods(other))
    assert (methods.METHODS, sys.path, methods.code_of(["gap"])) == (known, places, code)

    own.write_text(OWN.replace('"gap"', '"gulf"'))
    load_methods(own)
    assert "gulf" in methods.METHODS and "gap" not in methods.METHODS and not methods.code_of(["gap"])


def test_a_class_that_is_registered_again_with_another_loss_does_not_pass_for_the_first(
    own: Path, tiny_sample: Path, tiny_teacher: nn.Module, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """As in a notebook, whose cells Python can read but whose module has no file."""

    def run_cell(text: str, number: int) -> None:
        name = f"<cell {number}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), {"__name__": "__main__"})

    def train() -> Run:
        where = {"data": "sample", "data_root": tiny_sample, "device": "cpu", "out": tmp_path / "run"}
        return fit("resnet18", "gap", tiny_teacher, epochs=1, batch_size=4, progress=False, **where)

    run_cell(OWN, 1)
    scores = train().scores
    run_cell(OWN, 2)  # the same cell again
    assert train().scores == scores
    run_cell(OWN.replace(".abs()", ".square()"), 3)
    refused("holds a run whose code of the method differ", call=train)
    run_cell(OWN.replace("    needs_logits = True", "    needs_logits = True\n    scale = 2.0"), 4)
    refused("code of the method", call=train)
    run_cell(OWN, 5)
    assert train().scores == scores
    linecache.clearcache()
    exec(OWN.replace("Gap", "Typed").replace('"gap"', '"typed"'), {"__name__": "__main__"})  # at a prompt
    assert list(methods.code_of(["gap", "typed", "kd"])) == ["gap"]


def test_the_code_of_a_method_is_all_that_its_class_holds() -> None:
    """A changed list, tensor, partial function or property would make another loss of it."""

    def temperature(value: float) -> property:
        if value == 2.0:
            return property(lambda self: 2.0)
        return property(lambda self: 8.0)

    def holding(**attributes: object) -> str:
        return methods._source_of(type("Own", (methods.PlainMapTerm,), {"__module__": "own", **attributes}))

    pairs = [
        ({"scales": [1.0]}, {"scales": [1.0, 4.0]}),
        ({"by": {"aspp": 1}}, {"by": {"aspp": 2}}),
        ({"_private": 1.0}, {"_private": 2.0}),
        ({"factors": torch.ones(2)}, {"factors": torch.zeros(2)}),
        ({"loss": partial(losses.cwd, temperature=1.0)}, {"loss": partial(losses.cwd, temperature=8.0)}),
        ({"__init__": partialmethod(methods.PlainMapTerm.__init__, weight=1.0)},
         {"__init__": partialmethod(methods.PlainMapTerm.__init__, weight=2.0)}),
        ({"loss": staticmethod(cache(losses.cwd))}, {"loss": staticmethod(cache(losses.skd))}),
        ({"value": temperature(2.0)}, {"value": temperature(8.0)}),
        ({"value": cached_property(losses.cwd)}, {"value": cached_property(losses.skd)}),
        ({"kinds": {"a", "b"}}, {"kinds": {"a", "c"}}),
        ({"distance": functional.mse_loss}, {"distance": functional.l1_loss}),
    ]  # fmt: skip
    for one, other in pairs:
        assert holding(**one) == holding(**one) != "" and holding(**one) != holding(**other), one
    assert "0x" not in holding(distance=torch.dot, layer=nn.ReLU, network=nn.ReLU()), "no address, which changes"
    assert holding(limit=3, name="x", pair=(1,)) == "limit = 3\nname = 'x'\npair = (1,)"


def test_what_is_no_python_file_is_told(own: Path, refused: Callable[..., str]) -> None:
    refused("nothing.py cannot be read (No such file", call=lambda: load_methods(own.with_name("nothing.py")))
    refused("(Is a directory)", call=lambda: load_methods(own.parent))
    own.write_bytes(b"\x89PNG\0")
    refused("mine.py, line 1", call=lambda: load_methods(own))


class Square(methods.PlainMapTerm):
    """A loss that keeps both maps for its gradient."""

    loss = staticmethod(functional.mse_loss)

    def __init__(self, teacher: nn.Module, student: nn.Module, *, weight: float = 1.0) -> None:
        super().__init__(teacher, student, weight=weight)


@pytest.mark.parametrize("augment", ["flip", "crops"])
def test_its_loss_may_keep_the_teachers_maps(
    augment: str, own: Path, tiny_sample: Path, tiny_teacher: nn.Module, tmp_path: Path
) -> None:
    """Those of stored answers, and those of a teacher that is asked at every step."""
    methods.register_method("square", Square)
    asked = {"data_root": tiny_sample, "limit": 8, "batch_size": 4, "epochs": 1, "device": "cpu", "progress": False}
    run = fit("resnet18", "square", tiny_teacher, augment=augment, out=tmp_path / "run", **asked)
    assert run.history[-1]["square"] > 0


def _method(forward: Callable, keeps: bool = False, option: object = 1.0) -> type[methods.Term]:
    class Own(methods.Term):
        needs_logits = True

        def __init__(self, teacher: nn.Module, student: nn.Module, *, weight: float = 1.0, extra: object = option):
            super().__init__(weight, warmup=0, decay=0)
            self.extra = extra
            if keeps:
                self.student = student

        def forward(self, student: methods.Output, teacher: methods.Output, labels: object) -> object:
            return forward(student.logits, teacher.logits)

    return Own


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (_method(lambda s, t: (s - t).square().mean((1, 2, 3))), "a tensor of one number"),
        (_method(lambda s, t: float((s - t).detach().mean())), "is a float"),
        (_method(lambda s, t: (s - t).mean(), keeps=True), "as a part of itself"),
        (_method(lambda s, t: (s - t).mean(), option=Path("x")), "the option extra"),
    ],
    ids=["a loss per image", "a float", "keeps the student", "an option that no file holds"],
)
def test_a_method_that_cannot_be_trained_is_one_sentence(
    own: Path, term: type, said: str, tiny_sample: Path, tiny_teacher: nn.Module, make_student: Callable, tmp_path: Path
) -> None:
    methods.register_method("mine", term)
    with pytest.raises(DistillError, match=said):
        fit(
            make_student(),
            "mine",
            tiny_teacher,
            data_root=tiny_sample,
            out=tmp_path / "run",
            limit=8,
            epochs=1,
            batch_size=8,
            progress=False,
            device="cpu",
        )


@pytest.mark.parametrize(
    "loss",
    [lambda s, t: (s - t).abs().mean().detach(), lambda s, t: (s.argmax(1) != t.argmax(1)).sum()],
    ids=["detached", "a count"],
)
def test_a_loss_without_a_gradient_is_one_sentence(
    own: Path, loss: Callable, tiny_teacher: nn.Module, make_student: Callable, refused: Callable[..., str]
) -> None:
    """Else the baseline would be trained, and recorded under the method's name."""
    methods.register_method("mine", _method(loss))
    method, images = methods.build_method("mine", tiny_teacher, student := make_student()), torch.randn(2, 3, 32, 32)
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    refused("mine has no gradient", call=lambda: method(student(images), tiny_teacher(images), labels))
    with torch.no_grad():  # as where a student is scored
        assert method(student(images), tiny_teacher(images), labels)[1]["mine"] > 0


def test_nothing_to_learn_in_one_batch_is_no_mistake(
    own: Path, tiny_teacher: nn.Module, make_student: Callable
) -> None:
    methods.register_method("mine", _method(lambda s, t: s.new_zeros(())))
    method, images = methods.build_method("mine", tiny_teacher, student := make_student()), torch.randn(2, 3, 32, 32)
    assert method(student(images), tiny_teacher(images), torch.zeros(2, 32, 32, dtype=torch.long))[1]["mine"] == 0


def test_what_a_class_forgot_is_one_sentence(
    own: Path, tiny_teacher: nn.Module, make_student: Callable, refused: Callable[..., str]
) -> None:
    class Unbuilt(methods.Term):
        def __init__(self, teacher: nn.Module, student: nn.Module, *, weight: float = 1.0) -> None:
            self.__dict__["weight"] = weight

        def forward(self, student: methods.Output, teacher: methods.Output, labels: object) -> object: ...

    class Lossless(methods.PlainMapTerm):
        __init__ = METHODS["at"].__init__

    class Mapless(methods.Term):
        needs_logits = True

        def __init__(self, teacher: nn.Module, student: nn.Module, *, weight: float = 1.0) -> None:
            super().__init__(weight, 0, 0)

        def forward(self, student: methods.Output, teacher: methods.Output, labels: object) -> torch.Tensor:
            return student.maps[0].mean()

    student = make_student()
    for name, term in {"unbuilt": Unbuilt, "lossless": Lossless, "mapless": Mapless}.items():
        methods.register_method(name, term)
    refused("Unbuilt", "super().__init__", call=lambda: methods.build_method("unbuilt", tiny_teacher, student))
    refused("Lossless has no loss", call=lambda: methods.build_method("lossless", tiny_teacher, student))
    method, images = methods.build_method("mapless", tiny_teacher, student), torch.randn(2, 3, 32, 32)
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    refused(
        "mapless fails (IndexError",
        "needs_maps = True",
        call=lambda: method(student(images), tiny_teacher(images), labels),
    )


def test_a_method_of_the_package_under_another_name_is_known_here_only(own: Path, refused: Callable[..., str]) -> None:
    methods.register_method("kd2", METHODS["kd"])
    refused("kd2 is known to this process alone", call=lambda: methods.check_known_elsewhere(["kd2"]))


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(DistillError, match="cannot be called 5"):
        methods.register_method(5, _method(lambda s, t: s))


def test_a_file_that_ends_the_program_takes_no_method_away(own: Path) -> None:
    load_methods(own)
    own.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(SystemExit):
        load_methods(own)
    assert "gap" in methods.METHODS
