"""Rows, numbers and sentences that several sections of results/README.md share."""

import re
from pathlib import Path

from distill.files import PROJECT, read_json
from distill.lab.comparison import Findings
from distill.lab.curves import interval95, late_rise, verdict
from distill.lab.plan import load_study, plan
from distill.lab.tables import plus_minus, read_study, results_file, seconds_on
from distill.show import charts


def read(name: str) -> dict:
    return read_json(results_file(name))


def anchor(heading: str) -> str:
    """The link's target that GitHub and the site make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def recorded_on(study: dict) -> str:
    """When and on what, and whether all runs were alike in that."""
    environment = study["environment"]
    others = len(study.get("environments", ())) - 1
    more = "; some runs on another machine or version, which the file names" if others > 0 else ""
    return (
        f"Recorded {study['date']} on {environment['cores']} cores of an {environment['processor']}, PyTorch "
        f"{environment['torch']}, one thread per run and one run per core{more}."
    )


def so_far(name: str) -> str:
    """How much of a study is recorded, where that is not all of it."""
    recorded, planned = (
        len(read(f"{name}.json")["runs"]),
        len(plan(load_study(PROJECT / "studies" / f"{name}.toml"), Path())),
    )
    return f" So far {recorded} of the study's {planned} runs are recorded." if recorded < planned else ""


def said(rows: list[dict]) -> str:
    """What the intervals allow to say, by verdict."""
    words = {
        "better": "The 95 % interval of the gain lies above zero for {}.",
        "worse": "The 95 % interval of the gain lies below zero for {}.",
        "not settled": "The 95 % interval of the gain includes zero for {}.",
    }
    found = []
    for word, sentence in words.items():
        named = [row for row in rows if row.get("verdict") == word and len(row["seeds"]) > 1]
        if named:
            methods: dict[str, list[str]] = {}
            for row in named:
                methods.setdefault(charts.network_name(row["backbone"]), []).append(f"`{row['method']}`")
            found.append(sentence.format("; ".join(f"{', '.join(m)} on {network}" for network, m in methods.items())))
    return " ".join(found)


def mean_of(values: list[float]) -> str:
    return plus_minus(sum(values) / len(values), interval95(values), "+") if values else "no seed has all of it"


def gain_of(row: dict) -> str:
    return plus_minus(row["gain"], row["gain_interval"], "+") if "gain" in row else ""


def gains_of(rows: list[dict]) -> str:
    return ", ".join(f"{gain_of(row)} (`{row['method']}` on {charts.network_name(row['backbone'])})" for row in rows)


def corrected(rows: list[dict]) -> str:
    """What Holm's correction leaves of a table's intervals."""
    tested = [row for row in rows if row.get("p_holm") is not None]
    kept = said([row for row in tested if row["p_holm"] < 0.05])
    return f"After Holm's correction for {len(tested)} comparisons: {kept or 'no interval excludes zero.'}"


def average(runs: list[dict], key: str) -> float:
    return sum(run[key] for run in runs) / len(runs)


def steps(run: dict) -> int:
    """Of a run; what is left of an epoch's images after its last whole batch is not used in it."""
    epochs = run["settings"]["epochs"]
    return epochs * (run["samples"] // epochs // run["settings"]["batch_size"])


def loss_costs(record: str) -> dict[str, tuple[float, float]]:
    """By method, as benchmarks/losses.py recorded them: the loss's share of a step, and what a step keeps for the
    backward pass, in steps of the baseline.
    """
    steps = {row["method"]: row["ours"] for row in read(f"{record}.json")["steps"]}
    kept = {method: step["saved_for_backward_bytes"] for method, step in steps.items()}
    shares = {method: step["parts"]["distillation"] / step["seconds"] for method, step in steps.items()}
    return {method: (shares[method], kept[method] / kept["baseline"]) for method in steps}


def score(runs: list[dict]) -> str:
    """The mean mIoU of runs, and half of its interval."""
    return plus_minus(average(runs, "miou"), interval95([run["miou"] for run in runs]))


def paired(found: Findings, rows: list[tuple[str, str]], backbone: str = "resnet18") -> list[float]:
    """Scores of the first (variant, method) less those of the second, plus those of the third …, of the same seed."""
    own = [entry for entry in found.records if entry["backbone"] == backbone]
    by_seed = [{e["seed"]: e["miou"] for e in own if (e.get("variant") or "", e["method"]) == row} for row in rows]
    seeds = [seed for seed in by_seed[0] if all(seed in scores for scores in by_seed)]
    return [sum((-1) ** place * scores[seed] for place, scores in enumerate(by_seed)) for seed in seeds]


def lead_row(runs: list[dict], alone: dict[int, dict]) -> dict:
    """A row of runs of one method, with their lead over the runs of the same seed in `alone`, which may be empty."""
    leads = [run["miou"] - alone[run["seed"]]["miou"] for run in runs] if alone else []
    gain = {}
    if leads:
        gain = {"gain": sum(leads) / len(leads), "gain_interval": interval95(leads), "verdict": verdict(leads)}
    about = {key: runs[0][key] for key in ("backbone", "method")} | {"epochs": runs[0]["settings"]["epochs"]}
    scores = {"scores": [run["miou"] for run in runs], "seconds": average(runs, "cpu_seconds")}
    return about | gain | scores | {"seconds_on": seconds_on(runs)}


def over_longer(name: str) -> list[dict]:
    """By student and method of a study, and of the one with twice its epochs, the lead over the latter's baselines.

    Each row has what `compare` would call backbone, method, gain, its interval and verdict, and the scores, epochs and
    processor seconds; the longer baseline's own row has no gain.
    """
    rows = []
    longer, short = (read_study(results_file(f"{study}.json"))[0] for study in (f"{name}-long", name))
    for backbone in dict.fromkeys(run["backbone"] for run in longer):
        own = [run for run in longer if run["backbone"] == backbone]
        alone = {run["seed"]: run for run in own if run["method"] == "baseline"}
        rows.append(lead_row([*alone.values()], {}))
        for runs in ([run for run in own if run["method"] != "baseline"], short):
            there = [run for run in runs if run["backbone"] == backbone and run["seed"] in alone]
            for method in dict.fromkeys(run["method"] for run in there):
                rows.append(lead_row([run for run in there if run["method"] == method], alone))
    return rows


def tried_alone(what: str, runs: list[dict]) -> list[str]:
    """The rows of runs of a baseline that differ in their settings."""
    lines = [f"| {what} | mIoU | rise in the last quarter | seconds |", "|---|---|---|---|"]
    for run in runs:
        cells = [f"{100 * run['val_miou']:.1f}", f"{100 * (late_rise(run) or 0):+.1f}", f"{run['cpu_seconds']:.0f}"]
        lines.append(f"| {run['variant']} | {' | '.join(cells)} |")
    return lines
