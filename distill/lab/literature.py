"""What others wrote about the methods beside what is measured here: tables made from `results/`."""

from collections.abc import Mapping, Sequence
from typing import Any

from distill.errors import DistillError
from distill.files import read_json
from distill.lab.comparison import Findings, at_equal_time, read_findings, tables
from distill.lab.tables import compare, not_converged, plus_minus, read_study, results_file, verdict_of

# What each kind of method asks of teacher and student.
QUESTIONS = {
    "logits": "does each pixel get the same classes?",
    "places": "do the same places respond strongly?",
    "channels": "do channels have the same values?",
    "pairs": "are the same places alike?",
    "classes": "are classes spread and related alike?",
}


def literature() -> dict[str, Any]:
    """`methods` by name, with what each compares and where it comes from, and `claims` made of them, with sources."""
    return read_json(results_file("literature.json"))


def families() -> dict[str, dict[str, str]]:
    """Kind to method to a line about it, in the order of `QUESTIONS`: what `diagrams.family` draws."""
    methods = literature()["methods"]
    return {
        kind: {
            name: f"{entry['idea']} ({entry['year']})" if entry["year"] else entry["idea"]
            for name, entry in methods.items()
            if entry["compares"] == kind
        }
        for kind in QUESTIONS
    }


def sources_table() -> str:
    """Every method with authors, year, arXiv number and code, as Markdown; a dash where none could be confirmed."""
    lines = ["| method | authors | year | paper | arXiv | code |", "|---|---|---|---|---|---|"]
    for name, entry in literature()["methods"].items():
        number, code = entry["arxiv"], entry["code"]
        cells = [
            f"`{name}`",
            entry["authors"] or "–",
            str(entry["year"] or "–"),
            entry["title"] or "–",
            f"[{number}](https://arxiv.org/abs/{number})" if number else "–",
            f"[{code}](https://github.com/{code})" if code else "–",
        ]
        cells[-1] += f": {entry['note']}" if "note" in entry else ""
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def claims_table(measured: Mapping[str, str]) -> str:
    """Claimed by authors, reported by others, measured here: one line per method; `measured` as from `gains_here`."""
    record = literature()
    lines = ["| method | claimed by its authors | reported by others | measured here |", "|---|---|---|---|"]
    for name in record["methods"]:
        said = {by: _claims(record["claims"], name, by) for by in ("authors", "others")}
        if any(said.values()) or name in measured:
            own = measured.get(name, "not yet")
            lines.append(f"| `{name}` | {said['authors'] or '–'} | {said['others'] or '–'} | {own} |")
    return "\n".join(lines)


def _claims(claims: Sequence[dict[str, Any]], method: str, by: str) -> str:
    return "<br>".join(
        f"{claim['distilled'] - claim['baseline']:+.2f}: {claim['baseline']:.2f} → {claim['distilled']:.2f} "
        f"({claim['setting']}; {claim['source']})"
        for claim in claims
        if (claim["method"], claim["by"]) == (method, by)
    )


def gains_here(names: Sequence[str] = ("sample.json", "leaderboard.json")) -> dict[str, str]:
    """Method to its gain for each student, of the first recorded study that has it: interval, verdict and seeds."""
    said: dict[str, dict[str, str]] = {}
    for rows in map(_rows, names):
        unfinished = not_converged(rows)
        for row in (row for row in rows if "gain" in row):
            gain = plus_minus(row["gain"], row["gain_interval"], "+")
            text = f"{gain} on {row['backbone']} ({len(row['seeds'])} seeds): {verdict_of(row, unfinished)}"
            said.setdefault(row["method"], {}).setdefault(row["backbone"], text)
    return {method: "<br>".join(texts.values()) for method, texts in said.items()}


def leaderboard(name: str = "leaderboard.json") -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The rows of a recorded study's first variant at equal epochs, the baseline and then the methods by their gain;
    and by method the rows at equal time, as `comparison.at_equal_time` has them.

    Raises DistillError where the study has not just one student, or a method without a gain.
    """
    found = _findings(name)
    variant, (alone, *taught) = next(iter(tables(found).items()))
    if alone["method"] != "baseline" or not all("gain" in row for row in taught):
        raise DistillError(f"{name} is no leaderboard: it has not one student, with a baseline for every method")
    taught.sort(key=lambda row: -float(row["gain"]))
    return [alone, *taught], {row["method"]: row for row in at_equal_time(found, variant)}


PHOTOGRAPHS = "camvid-leaderboard"


def on_photographs() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The recorded study of photographs: its rows at equal epochs, and those over the student alone for twice as many.

    In either the baseline comes first; those at equal epochs are in the order of their gains. The longer student's
    runs are those of the study camvid-long: most were made on other days and machines than those with a teacher, so
    no seconds are compared.
    """
    equal, _ = leaderboard(f"{PHOTOGRAPHS}.json")
    runs, longer = (read_study(results_file(f"{name}.json"))[0] for name in (PHOTOGRAPHS, "camvid-long"))
    alone = [run for run in longer if run["backbone"] == equal[0]["backbone"]]
    return equal, compare([*alone, *(run for run in runs if run["method"] != "baseline")])


def alone_elsewhere(alone: Mapping[str, Any], timed: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """By machine, on those where `alone` was not trained, the seconds that the student would take for as many epochs.

    That follows from its longer schedules there, which are in `timed`; `leaderboard` gives both.
    """
    others = [row for row in timed.values() if row["machines"] != alone["machines"]]
    return {row["machines"][0]: alone["epochs"] * row["lent_seconds"] / row["lent_epochs"] for row in others}


def published_beside_measured() -> str:
    """The published table on Pascal VOC beside the studies `sample` and `speed`: gains over the baseline, in points.

    A star marks a score on val less a baseline's on the test server: of the published rows only OFD's is on the latter.
    """
    published = read_json(results_file("published.json"))["voc"]["students"]
    studies = ("sample.json", "speed.json")
    rows = {name: {(row["backbone"], row["method"]): row for row in _rows(name)} for name in studies}
    heads = [f"here, {_epochs(rows[name])} epochs, {_seeds(rows[name])} seeds" for name in studies]
    lines = [f"| student | method | published | {' | '.join(heads)} |", "|---|---|---|---|---|"]
    for backbone, scores in published.items():
        for method, miou in scores.items():
            if method != "baseline":
                found = [rows[name].get((backbone, method)) for name in studies]
                own = [plus_minus(row["gain"], row["gain_interval"], "+") if row else "not yet" for row in found]
                gain = f"{miou - scores['baseline']:+.2f}{'' if method == 'ofd' else ' *'}"
                lines.append(f"| {backbone} | {method} | {gain} | {' | '.join(own)} |")
    return "\n".join(lines)


def paired_difference(first: str, second: str, name: str = "sample.json") -> dict[str, list[float]]:
    """By student, mIoU of one method less that of another, seed by seed, as shares; of seeds that both have."""
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for entry in _findings(name).records:
        scores.setdefault((entry["backbone"], entry["method"]), {})[entry["seed"]] = entry["miou"]
    students = dict.fromkeys(backbone for backbone, _ in scores)
    pairs = {student: (scores.get((student, first), {}), scores.get((student, second), {})) for student in students}
    return {s: [own[k] - other[k] for k in sorted(own.keys() & other.keys())] for s, (own, other) in pairs.items()}


def _findings(name: str) -> Findings:
    return read_findings([results_file(name)])


def _rows(name: str) -> list[dict[str, Any]]:
    """Of a recorded study's first variant, or of all where it has none."""
    return next(iter(tables(_findings(name)).values()))


def _seeds(rows: Mapping[Any, Mapping[str, Any]]) -> str:
    """How many seeds the rows have: 5, or 3 to 5."""
    counts = sorted({len(row["seeds"]) for row in rows.values()})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _epochs(rows: Mapping[Any, Mapping[str, Any]]) -> int:
    return max(row["epochs"] for row in rows.values())
