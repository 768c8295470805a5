"""Has it converged, who is ahead at equal time, is a gain settled? Each against a slow or known answer."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from distill.cli import main
from distill.files import PROJECT, read_json, write_json
from distill.lab.comparison import Findings, at_equal_time, markdown, read_findings
from distill.lab.curves import (
    MANY,
    gain_at_equal_time,
    holm,
    interval95,
    late_rise,
    p_value,
    seeds_to_settle,
    twice_as_long,
    verdict,
)
from distill.lab.tables import compare, markdown_table, not_converged, read_study


def run(scores: dict[int, float], method: str = "baseline", seed: int = 0, **more) -> dict:
    """A record whose history has these scores by epoch."""
    history = [{"epoch": epoch, "val_miou": score} for epoch, score in scores.items()]
    about = {"data": "sample", "backbone": "resnet18", "method": method, "seed": seed, "split": "test"}
    return {**about, "miou": list(scores.values())[-1], "seconds": 10.0, "history": history, **more}


def test_a_curve_rises_by_what_it_gained_in_its_last_quarter() -> None:
    assert late_rise(run({3: 0.2, 6: 0.4, 9: 0.5, 12: 0.53})) == pytest.approx(0.03)
    assert late_rise(run({1: 0.2, 2: 0.3})) == pytest.approx(0.05), "between epochs it is a straight line"
    assert late_rise(run({4: 0.6, 8: 0.5})) == pytest.approx(-0.05)


@pytest.mark.parametrize("scores", [{12: 0.5}, {10: 0.4, 12: 0.5}])
def test_a_curve_scored_too_rarely_says_nothing(scores: dict[int, float]) -> None:
    assert late_rise(run(scores)) is None
    (row,) = compare([run(scores)])
    assert "late_rise" not in row and not not_converged([row])
    assert "scored too rarely to tell whether it has converged" in markdown_table(
        compare([run(scores), run(scores, "kd")])
    )
    assert late_rise({"history": None}) is None


def test_two_runs_of_one_seed_are_refused(refused: Callable[..., str]) -> None:
    one = run({2: 0.5})
    refused("two runs are recorded", "one study at a time", call=lambda: compare([one, one]))
    variants = [{**one, "variant": variant} for variant in ("few", "many")]
    refused("two runs are recorded", "one variant at a time", call=lambda: compare(variants))


def test_a_row_says_of_how_many_seeds_its_gain_is() -> None:
    runs = [run({2: 0.5, 4: 0.6}, seed=seed) for seed in range(2)]
    runs += [run({2: 0.5, 4: 0.65 + seed / 1000}, "kd", seed) for seed in range(5)]
    assert "| 5, gain of 2 |" in markdown_table(compare(runs)) and compare(runs)[1]["pairs"] == 2
    alone = markdown_table(compare(runs[1:]))
    assert "| not settled: one seed | 5, gain of 1 |" in alone


def test_at_equal_time_both_curves_are_read_when_the_faster_run_is_finished() -> None:
    slow, fast = run({5: 0.4, 10: 0.6}), run({5: 0.3, 10: 0.5})
    assert gain_at_equal_time(slow, fast, 20.0, 19.0) == pytest.approx(0.58 - 0.5)
    assert gain_at_equal_time(slow, fast, 19.0, 20.0) == pytest.approx(0.6 - 0.48)
    assert gain_at_equal_time(slow, fast, 10.0, 10.0) == pytest.approx(0.1)
    assert gain_at_equal_time(run({10: 0.6}), fast, 20.0, 19.0) is None, "it was not scored by then"
    assert gain_at_equal_time({**slow, "history": []}, fast, 1.0, 1.0) is None
    assert gain_at_equal_time(slow, fast, 0.0, 1.0) is None


def test_a_run_cut_in_the_middle_of_its_schedule_is_not_compared_at_equal_time() -> None:
    """At a high rate a network scores less than a whole schedule of that length would give it."""
    slow, fast = run({5: 0.4, 10: 0.6}), run({5: 0.3, 10: 0.5})
    assert gain_at_equal_time(slow, fast, 20.0, 16.9) is None and gain_at_equal_time(slow, fast, 16.9, 20.0) is None
    runs = [run({2: 0.5, 4: 0.6}, seed=seed) for seed in range(3)]
    runs += [run({2: 0.5, 4: 0.65 + seed / 1000}, "kd", seed, seconds=20.0) for seed in range(3)]
    assert "gain_at_equal_time" not in compare(runs)[1] and "| better at equal epochs" in markdown_table(compare(runs))
    for entry in runs[:3]:
        entry["seconds"] = 30.0
    assert "| better, so far |" in markdown_table(compare(runs)), "in less time"


def test_a_term_makes_no_step_shorter() -> None:
    """Where the clock says so it is noise, and the baseline is not cut for it."""
    runs = [run({9: 0.5, 10: 0.6}, samples=80), run({9: 0.6, 10: 0.7}, "kd", seconds=9.5, samples=80)]
    assert compare(runs)[1]["gain_at_equal_time"] == pytest.approx(0.7 - 0.6)
    runs[1]["samples"] = 76
    assert compare(runs)[1]["gain_at_equal_time"] == pytest.approx(0.7 - 0.55)


def test_a_gain_over_a_baseline_of_another_length_is_not_called_one_at_equal_epochs() -> None:
    runs = [run({10: 0.6}, settings={"epochs": 10}), run({9: 0.7}, "kd", settings={"epochs": 9})]
    assert "gain, equal epochs" not in markdown_table(compare(runs))
    runs[1]["settings"] = {"epochs": 10}
    assert "gain, equal epochs" in markdown_table(compare(runs))


def test_the_processors_seconds_count_where_they_are_known() -> None:
    runs = [run({1: 0.5, 2: 0.6}, seconds=90.0, cpu_seconds=19.0), run({1: 0.5, 2: 0.7}, "kd", cpu_seconds=20.0)]
    rows = compare(runs)
    assert [row["seconds"] for row in rows] == [19.0, 20.0]
    assert rows[1]["gain_at_equal_time"] == pytest.approx(0.68 - 0.6) and "processor seconds" in markdown_table(rows)
    del runs[1]["cpu_seconds"]
    assert [row["seconds"] for row in compare(runs)] == [90.0, 10.0], "one clock for a whole table"


def test_a_gain_is_settled_where_its_interval_excludes_zero() -> None:
    assert verdict([0.02, 0.03, 0.025]) == "better" and verdict([-0.02, -0.03, -0.025]) == "worse"
    assert verdict([0.01, 0.05, 0.03]) == "not settled", "all are gains, and their scatter is too large"
    assert verdict([0.05, -0.01, 0.02]) == "not settled" and verdict([0.9]) == "not settled"


@pytest.mark.parametrize("scatter", [0.001, 0.01, 0.03, 0.1])
def test_seeds_that_settle_a_point_are_the_fewest_whose_interval_is_a_point(scatter: float) -> None:
    values = [0.1 - scatter, 0.1 + scatter]  # its standard deviation is scatter times the root of two
    found = seeds_to_settle(values)

    def half(seeds: int) -> float:
        sample = np.zeros(seeds)
        sample[:2] = scatter, -scatter
        return interval95(list(sample * (values[1] - 0.1) * 2**0.5 / np.std(sample, ddof=1)))

    assert found is not None and half(found) <= 0.0100001
    assert found == 2 or half(found - 1) > 0.01


def test_one_value_says_nothing_about_seeds_and_a_wild_scatter_wants_many() -> None:
    small = [run({4: 0.5}, seed=seed) for seed in range(3)]
    small += [run({4: 0.5 + gain}, "kd", seed) for seed, gain in enumerate((0.001, -0.001, 0.0015))]
    assert "| less than a point |" in markdown_table(compare(small)), "more seeds would settle no point"
    wide = small[:3] + [run({4: 0.5 + gain}, "kd", seed) for seed, gain in enumerate((0.003, 0.008, 0.010))]
    assert "| +0.7 ± 0.9 |" in markdown_table(compare(wide)) and "| not settled |" in markdown_table(compare(wide))
    assert seeds_to_settle([0.1]) is None and seeds_to_settle([0.0, 1.0]) == MANY


def test_the_table_itself_says_which_baseline_has_not_converged() -> None:
    rising, flat = {1: 0.1, 2: 0.3, 3: 0.4, 4: 0.5}, {1: 0.1, 2: 0.4, 3: 0.495, 4: 0.5}
    table = markdown_table(compare([run(rising), run({4: 0.6}, "kd")]))
    assert "| still rising |" in table and "not settled: one seed |" in table
    assert "baseline of resnet18 may not have converged: its mIoU on val still rose by 10.0 points" in table
    settled = [run(flat, seed=seed) for seed in (0, 1)] + [run({4: 0.6 + seed / 1000}, "kd", seed) for seed in (0, 1)]
    table = markdown_table(compare(settled))
    assert "still rising" not in table and "| better |" in table


def test_the_studies_of_speed_are_called_unconverged() -> None:
    """The first study of this project, whose gains were those of students that had not finished learning."""
    study = read_json(PROJECT / "results" / "speed.json")
    rises = not_converged(compare(study["runs"]))
    assert set(rises) == {"resnet18", "mobilenetv2"} and all(math.isfinite(rise) for rise in rises.values())


def test_the_p_value_is_scipys_and_agrees_with_the_verdict() -> None:
    for gains in ([0.01, 0.03], [0.02, 0.05, 0.01, -0.02], [-0.02, -0.021, -0.0195]):
        assert p_value(gains) == pytest.approx(scipy.stats.ttest_1samp(gains, 0).pvalue)
        assert (p_value(gains) < 0.05) == (verdict(gains) != "not settled")
    assert p_value([0.1]) is None
    assert (p_value([0.0, 0.0]), p_value([0.1, 0.1])) == (1.0, 0.0)


def test_holms_correction() -> None:
    """Four p-values by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04, which may not be below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([]) == [] and holm([0.04]) == [0.04]


def test_a_table_of_several_methods_says_what_is_left_after_holm() -> None:
    runs = [run({4: 0.5}, seed=seed) for seed in range(3)]
    for method, gains in {"kd": (0.05, 0.051, 0.049), "at": (0.01, 0.02, 0.012), "ofd": (-0.02, 0.03, 0.0)}.items():
        runs += [run({4: 0.5 + gain}, method, seed) for seed, gain in enumerate(gains)]
    table = markdown_table(compare(runs))
    assert "2 of 3 intervals exclude zero; about 0.15 would by chance" in table
    assert table.endswith("With Holm's correction for that many comparisons these stay settled: kd.")
    assert "Holm" not in markdown_table(compare([entry for entry in runs if entry["method"] in ("baseline", "kd")]))


def test_wall_clock_times_of_a_shared_cpu_say_nothing_about_equal_time(tmp_path: Path) -> None:
    runs = [run({3: 0.4, 4: 0.5}), run({3: 0.5, 4: 0.6}, "kd")]
    for device, known in (("cpu", False), ("NVIDIA H100", True)):
        write_json(tmp_path / "study.json", {"runs": runs, "environment": {"device": device}})
        rows = compare(read_study(tmp_path / "study.json")[0])
        assert ("gain_at_equal_time" in rows[1]) == known
        assert ("nothing is said about equal time" in markdown_table(rows)) != known
    with_both = [entry | {"cpu_seconds": 9.0} for entry in runs]
    write_json(tmp_path / "study.json", {"runs": with_both, "environment": {"device": "cpu"}})
    assert "gain_at_equal_time" in compare(read_study(tmp_path / "study.json")[0])[1]


def test_seconds_of_different_machines_are_not_compared(tmp_path: Path) -> None:
    runs = [run({3: 0.4, 4: 0.5}, cpu_seconds=9.0), run({3: 0.5, 4: 0.6}, "kd", cpu_seconds=9.0)]
    old = {"runs": runs, "environment": {"device": "cpu", "processor": "an old one"}}
    write_json(tmp_path / "study.json", old)
    one = read_study(tmp_path / "study.json")[0]
    assert [entry["machine"] for entry in one] == ["an old one"] * 2 and "gain_at_equal_time" in compare(one)[1]
    rows = compare([one[0], one[1] | {"machine": "a new one"}])
    assert "gain_at_equal_time" not in rows[1] and not rows[1]["as_fast"] and rows[1]["gain"] == pytest.approx(0.1)
    assert "several machines (a new one, an old one)" in markdown_table(rows)
    write_json(tmp_path / "study.json", old | {"environments": [old["environment"]] * 2})
    assert not any("machine" in entry for entry in read_study(tmp_path / "study.json")[0])


def test_twice_the_epochs_are_looked_up_among_runs_that_are_equal_otherwise() -> None:
    def of(epochs: int, miou: float, **settings) -> dict:
        return run({epochs: miou}) | {"val_miou": miou, "settings": {"epochs": epochs, "lr": 0.1, **settings}}

    short, longer = of(10, 0.5, evaluate_every=2), of(20, 0.53, evaluate_every=4)
    assert twice_as_long(short, [of(20, 0.9, lr=0.2), of(30, 0.9), longer]) == pytest.approx(0.03)
    assert twice_as_long(longer, [short, longer]) is None


def of_variant(variant: str, epochs: int, miou: float, cpu: float, method: str = "baseline", seed: int = 0) -> dict:
    about = {"variant": variant, "cpu_seconds": cpu, "samples": 500 * epochs, "settings": {"epochs": epochs}}
    return run({epochs: miou}, method, seed, **about)


def test_each_method_is_compared_with_the_shortest_baseline_that_took_as_long() -> None:
    records = []
    for seed in (0, 1, 2):
        luck = seed / 1000
        records += [of_variant("96", 96, 0.50 + luck, 100 + seed, seed=seed)]
        records += [of_variant("120", 120, 0.52 + luck, 125, seed=seed), of_variant("168", 168, 0.55, 170, seed=seed)]
        records += [of_variant("96", 96, 0.54 + luck * (seed + 1), 90, "at", seed)]
        records += [of_variant("96", 96, 0.54 + luck * (seed + 1), 101.5 + seed, "kd", seed)]
        records += [of_variant("96", 96, 0.54, 130, "dist", seed), of_variant("96", 96, 0.9, 180, "icsd", seed)]
    found = {row["method"]: row for row in at_equal_time(Findings(records), "96")}
    assert {method: row["lent_epochs"] for method, row in found.items()} == {"at": 120, "kd": 120, "dist": 168}
    assert [row["gain"] for row in found.values()] == pytest.approx([0.02 + 0.005 / 3, 0.02 + 0.005 / 3, -0.01])
    per_epoch = (125 + 170) / (120 + 168)  # of the longer ones
    assert found["kd"]["lent_seconds"] == pytest.approx(120 * per_epoch) and found["kd"]["verdict"] == "better"
    raw = [row["p"] for row in found.values()]
    assert [row["p_holm"] for row in found.values()] == pytest.approx(holm(raw))


def test_longer_baselines_are_of_the_kind_that_a_variant_names() -> None:
    decays = {"weak": 0.02, "strong": 0.2, "taught": 0.02, "strong, longer": 0.2}
    records = [of_variant("weak", 60, 0.4, 120), of_variant("strong", 60, 0.51, 120)]
    records += [of_variant("taught", 24, 0.5, 110, "ofd"), of_variant("strong, longer", 90, 0.53, 180)]
    for entry in records:
        entry["settings"] = entry["settings"] | {"weight_decay": decays[entry["variant"]]}
    variants = [{"name": name, "settings": {"weight_decay": decay, "epochs": 1}} for name, decay in decays.items()]
    variants[2]["baseline"] = "strong"
    (row,) = at_equal_time(Findings(records, variants), "taught")
    assert row["gain"] == pytest.approx(-0.01) and row["lent_epochs"] == 60
    records[2]["cpu_seconds"] = 150.0
    assert [row["lent_epochs"] for row in at_equal_time(Findings(records, variants), "taught")] == [90]


def test_programs_get_both_tables_and_a_record_may_have_any_name(tmp_path: Path, capsys, refused) -> None:
    records = [of_variant("96", 96, 0.5, 100), of_variant("96", 96, 0.6, 110, "kd"), of_variant("120", 120, 0.58, 120)]
    write_json(tmp_path / "record", {"runs": records})
    assert main(["compare", str(tmp_path / "record"), "--json"]) == 0
    alone, taught, _ = json.loads(capsys.readouterr().out)
    assert "over_longer_baseline" not in alone and taught["gain"] == pytest.approx(0.1)
    assert taught["over_longer_baseline"]["gain"] == pytest.approx(0.02)
    (tmp_path / "own.toml").write_text("")
    refused("own.toml is a study file", call=lambda: read_findings([tmp_path / "own.toml"]))


def test_the_tables_of_a_study_with_longer_baselines_have_the_gains_over_them() -> None:
    records = [of_variant("96", 96, 0.5, 100), of_variant("96", 96, 0.6, 110, "kd"), of_variant("120", 120, 0.58, 120)]
    variants = [{"name": "96"}, {"name": "120"}]
    table = markdown(Findings(records, variants))
    assert "| resnet18 | kd | +2.0 | not settled | 1 | 96 | 110 | 120 | 120 |" in table
    assert "at least as many" not in markdown(Findings(records[:2], variants[:1]))


def test_where_time_is_unknown_nothing_is_said_of_equal_time() -> None:
    records = [of_variant("", 96, 0.5, 100), of_variant("", 96, 0.6, 90, "kd"), of_variant("more", 99, 0.5, 100)]
    assert [row["method"] for row in at_equal_time(Findings(records), "")] == ["kd"]
    for entry in records:
        entry["shared_clock"] = True
    del records[1]["cpu_seconds"]
    assert at_equal_time(Findings(records), "") == []
    none = [entry | {"cpu_seconds": 0.0, "shared_clock": False} for entry in records]
    assert at_equal_time(Findings(none), "") == []


def test_a_method_is_compared_at_equal_time_with_baselines_of_its_own_machine() -> None:
    records = [of_variant("96", 96, 0.5, 100), of_variant("96", 96, 0.6, 110, "kd"), of_variant("120", 120, 0.5, 120)]
    records += [of_variant("144", 144, 0.5, 300) | {"machine": "another"}]
    assert [row["lent_epochs"] for row in at_equal_time(Findings(records), "96")] == [120]
    records[1]["machine"] = "another"
    assert [row["lent_seconds"] for row in at_equal_time(Findings(records), "96")] == [300]


def test_a_slow_short_baseline_does_not_choose_the_rival() -> None:
    """With its 201 seconds an epoch would seem to take so long that 120 of them were fewer seconds than kd's 291."""
    records = [of_variant("96", 96, 0.5, 150), of_variant("96", 96, 0.6, 291, "kd")]
    records += [of_variant("120", 120, 0.5, 301), of_variant("192", 192, 0.5, 481)]
    assert [row["lent_epochs"] for row in at_equal_time(Findings(records), "96")] == [120]


def test_baselines_that_differ_in_more_than_their_epochs_are_no_rivals() -> None:
    records = [of_variant("96", 96, 0.5, 100), of_variant("96", 96, 0.6, 110, "kd"), of_variant("120", 120, 0.5, 120)]
    records[2]["settings"] = {"epochs": 120, "lr": 0.5}
    assert at_equal_time(Findings(records), "96") == []
    records[2]["settings"] = {"epochs": 120, "evaluate_every": 40}
    assert [row["lent_epochs"] for row in at_equal_time(Findings(records), "96")] == [120]
