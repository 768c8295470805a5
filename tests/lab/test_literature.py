"""What others wrote about the methods: complete, with sources, and beside figures that are computed."""

import re

import pytest

from distill.files import read_json
from distill.lab import literature
from distill.lab.comparison import read_findings, tables
from distill.lab.tables import results_file
from distill.methods import METHODS

RECORD = literature.literature()


def test_every_method_has_its_entry_and_its_family() -> None:
    assert set(RECORD["methods"]) == set(METHODS) - {"baseline"}
    assert {name for methods in literature.families().values() for name in methods} == set(RECORD["methods"])


@pytest.mark.parametrize("name", RECORD["methods"])
def test_sources_are_numbers_and_repositories(name: str) -> None:
    entry = RECORD["methods"][name]
    assert entry["arxiv"] is None or re.fullmatch(r"\d{4}\.\d{5}|1[2-4]\d\d\.\d{4}", entry["arxiv"])
    assert entry["code"] is None or re.fullmatch(r"[\w.-]+/[\w.-]+", entry["code"])
    assert (entry["authors"] is None) == (entry["year"] is None) == (entry["title"] is None)


@pytest.mark.parametrize("claim", RECORD["claims"], ids=lambda claim: f"{claim['method']}-{claim['distilled']}")
def test_a_claim_names_its_setting_and_its_source(claim: dict) -> None:
    assert claim["method"] in METHODS and claim["by"] in ("authors", "others")
    assert claim["setting"] and claim["source"]
    assert 30 < claim["baseline"] < 90 and 30 < claim["distilled"] < 90


def test_claims_of_the_published_table_are_those_recorded_of_it() -> None:
    published = results_file("published.json").read_text()
    for claim in RECORD["claims"]:
        if "CRGuan/SAKD" in claim["source"]:
            assert f'"{claim["method"]}": {claim["distilled"]:.2f}' in published


def test_gains_measured_here_stand_beside_the_published_ones() -> None:
    rows = tables(read_findings([results_file("sample.json")]))[""]
    table = literature.published_beside_measured()
    for row in (row for row in rows if row["method"] in ("kd", "sakd")):
        assert f"| {row['backbone']} | {row['method']} | " in table
        assert f"{100 * row['gain']:+.1f}" in table
        assert f"{100 * row['gain']:+.1f}" in literature.claims_table(literature.gains_here())
    assert "| `icsd` | +2.53: 67.50 → 70.03" in literature.claims_table({})


def test_differences_are_paired_by_seed() -> None:
    records = read_findings([results_file("sample.json")]).records
    scores = {(r["method"], r["seed"]): r["miou"] for r in records if r["backbone"] == "resnet18"}
    seeds = sorted(seed for method, seed in scores if method == "sakd" and ("sakd-plain", seed) in scores)
    expected = [scores["sakd", seed] - scores["sakd-plain", seed] for seed in seeds]
    assert literature.paired_difference("sakd", "sakd-plain")["resnet18"] == expected
    assert all(values == [] for values in literature.paired_difference("sakd", "nfd").values())


def test_methods_on_photographs_are_also_beside_the_longer_student() -> None:
    """From scores as they were recorded, without the tables."""
    (alone, *equal), (longer, *over) = literature.on_photographs()
    assert (alone["method"], longer["method"]) == ("baseline", "baseline") and longer["epochs"] == 2 * alone["epochs"]
    assert [row["gain"] for row in equal] == sorted((row["gain"] for row in equal), reverse=True)
    assert {row["method"] for row in over} == {row["method"] for row in equal}
    found = {row["method"]: row["gain"] for row in over}
    scores = {}
    for name in (literature.PHOTOGRAPHS, "camvid-long"):
        for run in read_json(results_file(f"{name}.json"))["runs"]:
            if run["backbone"] == alone["backbone"]:
                scores.setdefault((name, run["method"]), {})[run["seed"]] = run["miou"]
    twice = scores["camvid-long", "baseline"]
    for row in equal:
        own = scores[literature.PHOTOGRAPHS, row["method"]]
        assert found[row["method"]] == pytest.approx(sum(own[seed] - twice[seed] for seed in own) / len(own))
