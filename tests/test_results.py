"""The recorded results, and that everything said about them agrees with them."""

import json
from pathlib import Path

import pytest
from break_things import BREAKS
from fuzz import TARGETS

import distill
from distill.data import VOCFolder
from distill.lab.tables import compare
from distill.networks.teachers import fingerprint, shipped_file
from distill.training.settings import with_every_setting
from studies.undone import chosen

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "results"
METHODS = {"baseline", "kd", "at", "ofd", "sakd", "kd+sakd"}


def read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


@pytest.mark.parametrize("name", ["sample.json", "speed.json"])
def test_every_row_of_a_study_is_there_with_three_seeds_or_more(name: str) -> None:
    runs = read(name)["runs"]
    rows, methods = compare(runs), METHODS | ({"sakd-plain"} if name == "sample.json" else set())
    students = {run["backbone"] for run in runs}
    assert {(row["backbone"], row["method"]) for row in rows} == {(b, m) for b in students for m in methods}
    assert all(len(row["seeds"]) >= 3 and row["split"] == "test" for row in rows)


@pytest.mark.parametrize("name", ["sample.json", "speed.json"])
def test_rows_of_a_seed_share_weights_at_the_start_settings_and_teacher(name: str) -> None:
    runs = read(name)["runs"]
    # A setting that did not exist yet when a run was made had its default.
    assert len({json.dumps(with_every_setting(run["settings"]), sort_keys=True) for run in runs}) == 1
    assert {run["teacher"]["weights"] for run in runs if run["method"] != "baseline"} == {
        read("teacher.json")["fingerprint"]
    }
    for backbone in ("resnet18", "mobilenetv2"):
        starts = {(run["seed"], run["start"]) for run in runs if run["backbone"] == backbone}
        assert len(starts) == len({seed for seed, _ in starts}), "two rows of a seed started from other weights"


def test_the_tuned_weights_are_the_best_of_those_tried() -> None:
    from distill.training.presets import TUNED

    tried: dict[str, dict[float, float]] = {method: {} for method in ("kd", "at", "ofd", "sakd")}
    for run in read("sample-weights.json")["runs"]:
        if run["method"] != "baseline":
            tried[run["method"]][run["terms"][run["method"]]["weight"]] = run["val_miou"]
    assert {len(weights) for weights in tried.values()} == {4}, "not equally many candidates a method"
    for method, weights in tried.items():
        assert TUNED["sample"][method]["weight"] == max(weights, key=weights.__getitem__)


def test_the_weights_of_the_newer_methods_are_those_that_tune_chose_of_equally_many() -> None:
    from distill.training.presets import TUNED

    record = read("sample-tune.json")
    for method, weight in record["best"].items():
        tried = [run for run in record["runs"] if run["method"] == method]
        last = [run for run in tried if run["epochs"] == max(run["epochs"] for run in tried)]
        assert len({run["weight"] for run in tried}) == record["budget"] == 4 and len(last) == 2
        assert TUNED["sample"][method]["weight"] == weight == max(last, key=lambda run: run["val_miou"])["weight"]


def test_the_leaderboard_has_five_seeds_of_every_method_with_its_chosen_weight() -> None:
    from distill.lab.literature import leaderboard
    from distill.training.presets import TUNED

    study, (rows, timed) = read("leaderboard.json"), leaderboard()
    chosen = {*read("sample-tune.json")["best"], "kd", "at", "ofd", "sakd", "sakd-plain"}
    assert {row["method"] for row in rows} == {"baseline"} | chosen == {"baseline", *timed}
    assert all(row["seeds"] == [0, 1, 2, 3, 4] and row["epochs"] == 96 for row in rows)
    for run in study["runs"]:
        assert (
            run["method"] == "baseline" or TUNED["sample"][run["method"]].items() <= run["terms"][run["method"]].items()
        )
    seconds = {row["method"]: row["seconds"] for row in rows}
    assert all(row["lent_seconds"] >= seconds[method] for method, row in timed.items())


def test_runs_that_the_leaderboard_shares_with_other_studies_are_the_same() -> None:
    def scores(runs: list[dict]) -> dict:
        own = [run for run in runs if run["backbone"] == "resnet18"]
        return {(run["method"], run["settings"]["epochs"], run["seed"]): run["miou"] for run in own}

    found, others = scores(read("leaderboard.json")["runs"]), scores(read("sample.json")["runs"])
    others |= scores([run for run in read("sample-long.json")["runs"] if run["method"] == "baseline"])
    shared = found.keys() & others.keys()
    assert len(shared) == 35 and all(found[key] == others[key] for key in shared)


def test_the_shipped_teacher_is_the_recorded_one() -> None:
    assert fingerprint(distill.load_teacher("sample")) == read("teacher.json")["fingerprint"]


@pytest.fixture(scope="module")
def test_split() -> VOCFolder:
    return distill.open_dataset("sample", "test")


def test_the_shipped_teacher_scores_as_recorded(test_split) -> None:
    """Other versions of the JPEG library may move a pixel here and there, hence the tolerance of 0.3 points."""
    scores = distill.evaluate(distill.load_teacher("sample"), test_split)
    assert scores.miou == pytest.approx(read("teacher.json")["scores"]["test"]["miou"], abs=0.003)


@pytest.mark.parametrize("name", ["baseline", "distilled"])
def test_the_shipped_students_score_as_recorded(name: str, test_split) -> None:
    study = read("sample-128.json")
    row = study["shipped"][name]
    (recorded,) = [
        run
        for run in study["runs"]
        if (run["variant"], run["method"], run["seed"]) == (row["variant"], row["method"], 0)
    ]
    scores = distill.evaluate(distill.load_model(shipped_file(f"student-resnet18-{name}.safetensors")), test_split)
    assert scores.miou == pytest.approx(recorded["miou"], abs=0.003)


def test_the_readme_and_the_page_of_results_say_what_was_recorded() -> None:
    from studies.report import readme_with_results, results_page

    readme = (PROJECT / "README.md").read_text()
    assert readme == readme_with_results(readme), "the README is behind results/: run python -m studies.report"
    assert (RESULTS / "README.md").read_text() == results_page(), "run python -m studies.report"


def test_the_sides_of_intervals_are_told_with_what_is_left_of_them() -> None:
    from studies.leaderboard import _sides

    def row(method: str, verdict: str, p_holm: float = 1.0) -> dict:
        return {"method": method, "verdict": verdict, "p_holm": p_holm}

    assert _sides([row("at", "not settled", 0.01)]) == "none above zero and none below"
    apart = [row("kd", "better", 0.01), row("cwd", "worse", 0.2), row("ofd", "better", 0.07)]
    said = "2 above zero (`kd`, `ofd`) and 1 below (`cwd`); Holm's correction leaves `kd` of the 3"
    assert _sides([*apart, row("at", "not settled")]) == said


def test_published_numbers_in_the_docs_are_those_on_file() -> None:
    from studies.prose import MARK, recorded

    found = MARK.findall((PROJECT / "docs" / "voc.md").read_text())
    assert len(found) == 8
    for number, name in found:
        assert number == recorded()[name]


def test_what_break_things_breaks_is_there() -> None:
    """A break that no longer finds its place would break nothing, and any test would seem to have missed it."""
    for broken in BREAKS:
        assert broken.before in (PROJECT / "distill" / f"{broken.module}.py").read_text(), broken.what
        assert broken.before != broken.after
    recorded = read("broken.json")["broken"]
    assert [entry["what"] for entry in recorded] == [broken.what for broken in BREAKS]
    assert all(entry["caught_by"] for entry in recorded)


def test_the_fuzzing_recorded_is_of_every_kind_and_of_ten_thousand_cases() -> None:
    kinds = read("fuzz.json")["kinds"]
    assert [kind["what"] for kind in kinds] == list(TARGETS)
    assert all(kind.get("read", 0) + kind.get("refused", 0) >= 10_000 for kind in kinds)


def test_the_readmes_answer_is_printed_only_where_the_rows_say_it() -> None:
    from studies.conditions import MASKS, Setting
    from studies.readme import (
        ALL_PHOTOGRAPHS,
        NOISY_LABELS,
        QUARTER,
        SMALL_ON_PHOTOGRAPHS,
        USUALLY,
        Line,
        _wider,
        in_short,
    )

    def said(usual: str, few: str, photographs: str, what: str = "kd", tiny: str = "not settled") -> str:
        place = ("sample", "")
        rows = [
            (_wider(64, place, None, place), few),
            (Setting(NOISY_LABELS, place, None), few),
            (Setting(USUALLY, place, None), usual),
            (Setting("46 photographs", place, None), photographs),
            (Setting(ALL_PHOTOGRAPHS, place, None), "not settled"),
            (Setting(QUARTER, place, None), tiny),
        ]
        lead = {"gain": 0.02, "gain_interval": 0.01}
        return " ".join(
            in_short([Line(row, [], {w: lead | {"verdict": found} for w in ("kd", what)}, "") for row, found in rows])
        )

    assert "few or wrong:** a teacher that knows better helps" in said("not settled", "better", "not settled")
    assert "no lead" in said("not settled", "better", "not settled")
    assert "Drawings" not in said("not settled", "not settled", "better") + said("better", "better", "better")
    assert "Photographs" not in said("not settled", "better", "better")
    said_of_masks = said("not settled", "better", "better", MASKS)
    assert "help, if that teacher had learned from all labels: +2.0" in said_of_masks
    both = {what: {"verdict": "better", "gain": 0.02, "gain_interval": 0.01} for what in (MASKS, "ofd")}
    few, every = (Line(Setting(name, ("sample", ""), None), [], leads, "") for name, leads in
                  (("46 photographs", both), (ALL_PHOTOGRAPHS, {"ofd": {"verdict": "not settled"}})))  # fmt: skip
    usual, noisy = (
        Line(Setting(name, ("sample", ""), None), [], {"kd": {"verdict": "better"}}, "")
        for name in (USUALLY, NOISY_LABELS)
    )
    with_few, with_all = in_short([few, every, usual, noisy])
    assert "Less sure: `ofd` with that teacher (+2.0 ± 1.0 with 46)" in with_few and "no distillation loss" in with_all
    lead = {"verdict": "better", "gain": 0.02, "gain_interval": 0.01}
    small = Line(Setting(SMALL_ON_PHOTOGRAPHS, ("sample", ""), None), [], {"ofd": lead}, "")
    assert in_short([few, every, small, usual, noisy])[-1].endswith("steps; on MobileNetV2 `ofd` is, by +2.0 ± 1.0.")
    every.leads["ofd"] = {"verdict": "better"}
    assert not in_short([few, every, usual, noisy])
    assert "except" not in said("not settled", "better", "not settled")
    assert "except for a tiny student, which `kd` lifts" in said("not settled", "better", "not settled", tiny="better")


def test_07b_undoes_the_share_of_class_weights_that_was_chosen() -> None:
    """Its prose and a cell of code name the share, which no mark can fill in."""
    text = (PROJECT / "notebooks" / "07b_real_photographs.ipynb").read_text()
    assert f"a share of `{chosen()}`" in text and f"torch.tensor(weights), {chosen()})" in text
