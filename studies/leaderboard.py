"""The leaderboard: what README.md and results/README.md say of all methods, at equal epochs and at equal time."""

from distill.lab.literature import PHOTOGRAPHS, alone_elsewhere, families, leaderboard, on_photographs
from distill.lab.tables import (
    not_converged,
    plus_minus,
    read_study,
    results_file,
    seconds_of,
    seconds_on,
    verdict_of,
)
from distill.lab.tune import percent
from distill.show import charts
from studies.shared import anchor, loss_costs, read, recorded_on, so_far

SIDES = "A verdict here says only on which side of zero the interval lies."


def section() -> str:
    study, (equal, timed) = read("leaderboard.json"), leaderboard()
    alone, *taught = equal
    head = (
        f"## {_heading(taught)}\n\n"
        f"{charts.network_name(alone['backbone'])} on the sample, test split, {alone['epochs']} epochs. *At equal "
        f"time* is the gain over the student alone with a longer schedule, the shortest tried that takes at least as "
        f"many of the processor's seconds as the method; its epochs stand behind it, and its seconds, which are the "
        f"mean seconds of an epoch, over its longer schedules on that machine, times the epochs. *Loss* is the share "
        f"of a step that the loss takes with its connectors, and *kept* what a step keeps for the backward pass, as "
        f"a multiple of the baseline's; both are of a benchmark that asks the teacher at every step "
        f"(results/losses.json), while these runs store its answers. That some methods took fewer seconds than the "
        f"baseline is the noise of the clock between days. {SIDES} {_elsewhere(alone, timed)}"
    )
    return "\n\n".join(
        [head, _table(equal, timed), _settled(taught, list(timed.values())), recorded_on(study), tuned()]
    )


def _heading(taught: list[dict]) -> str:
    return f"leaderboard: {len(taught)} methods at equal epochs and at equal time"


def _elsewhere(alone: dict, timed: dict[str, dict]) -> str:
    """What seconds with a star are of."""
    found = [
        f"Seconds with a star are of another machine ({machine}), on which the student alone would take "
        f"{seconds:.0f}, by its longer schedules; methods there are compared with longer schedules there."
        for machine, seconds in alone_elsewhere(alone, timed).items()
    ]
    return " ".join(found)


def in_short() -> str:
    """What the README says of it."""
    (_, *taught), timed = leaderboard()
    shortest, network = min(row["lent_epochs"] for row in timed.values()), charts.network_name(taught[0]["backbone"])
    place = f"results/README.md#{anchor(_heading(taught))}"
    return (
        f"Of {len(taught)} methods on {network} ([leaderboard]({place})) an interval lies above zero at "
        f"equal epochs for {_ahead(taught)}, and for {_ahead(list(timed.values()))} where the student alone trains at "
        f"least as many seconds ({shortest} epochs or more)."
    )


def ahead_at_equal_time() -> list[str]:
    """The methods that are ahead of a student alone that trains at least as many seconds."""
    return [method for method, row in leaderboard()[1].items() if row["verdict"] == "better"]


def _ahead(rows: list[dict]) -> str:
    """Which gains have an interval above zero, and which of them Holm's correction leaves."""
    ahead = [row for row in rows if row["verdict"] == "better"]
    kept = ", ".join(f"`{row['method']}`" for row in ahead if row.get("p_holm", 1) < 0.05)
    left = f" ({kept or 'none'} after Holm's correction)" if ahead else ""
    names = ", ".join(f"`{row['method']}`" for row in ahead)
    return f"{names or 'none'}{left}"


def _table(equal: list[dict], timed: dict[str, dict]) -> str:
    compares, costs, unfinished = _kinds(), loss_costs("losses"), not_converged(equal)
    lines = [
        "| method | compares | mIoU | seeds | gain, equal epochs | verdict | gain, equal time | verdict "
        "| processor seconds | loss | kept |",
        f"|{'---|' * 11}",
    ]
    for row in equal:
        method, (share, kept), lent = row["method"], costs[row["method"]], timed.get(row["method"])
        cells = [
            f"`{method}`" if "gain" in row else method,
            compares.get(method, ""),
            plus_minus(row["miou"], row["miou_interval"]),
            f"{len(row['seeds'])}",
            plus_minus(row["gain"], row["gain_interval"], "+") if "gain" in row else "",
            row["verdict"] if row.get("verdict") in ("better", "worse") else verdict_of(row, unfinished),
            f"{plus_minus(lent['gain'], lent['gain_interval'], '+')} ({_rival(lent)})" if lent else "",
            lent["verdict"] if lent else "",
            f"{row['seconds']:.0f}{'' if row['machines'] == equal[0]['machines'] else ' *'}",
            f"{share:.0%}" if "gain" in row else "",
            f"{kept:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _kinds() -> dict[str, str]:
    """What each method compares."""
    return {method: kind for kind, methods in families().items() for method in methods}


def of_photographs() -> str:
    """What results/README.md says of the methods whose weights were chosen on photographs."""
    equal, (twice, *over) = on_photographs()
    alone, *taught = equal
    network = alone["backbone"]
    runs, longer = (read_study(results_file(f"{name}.json"))[0] for name in (PHOTOGRAPHS, "camvid-long"))
    lead = {row["method"]: row for row in over}
    compares, costs = _kinds(), loss_costs("camvid-losses")
    lines = [
        "| method | compares | mIoU | seeds | gain, equal epochs | verdict | lead over twice the epochs | verdict "
        "| processor seconds | loss | kept |",
        f"|{'---|' * 11}",
    ]
    for row in [twice, *equal]:
        method, other = row["method"], lead.get(row["method"])
        name = f"`{method}`" if "gain" in row else f"{method}, {row['epochs']} epochs"
        cells = [name, compares.get(method, ""), plus_minus(row["miou"], row["miou_interval"]), f"{len(row['seeds'])}"]
        for one in (row, other) if other else ():
            short = one["verdict"] if one["verdict"] in ("better", "worse") else verdict_of(one, {})
            cells += [plus_minus(one["gain"], one["gain_interval"], "+"), short]
        cells += [] if other else 4 * [""]
        among = longer if row is twice else runs
        own = [run for run in among if (run["backbone"], run["method"]) == (network, method)]
        cells.append(seconds_of(seconds_on(own)))
        share, kept = costs[method]
        cells += [f"{share:.0%}" if other else "", f"{kept:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    head = (
        f"### {PHOTOGRAPHS}: methods on photographs\n\n{charts.network_name(network)} on CamVid at half "
        f"size, val, {alone['epochs']} epochs: the runs of the study camvid, and those of newer methods. "
        f"Runs with a teacher take {_times_as_long(runs, network)} times the seconds of the student alone on the same "
        f"machine, so that the lead over the student alone for twice the epochs is the one at about equal time. "
        f"*Loss* and *kept* are as in the leaderboard of the sample, at these sizes and with this teacher "
        f"(results/camvid-losses.json). {SIDES}{so_far(PHOTOGRAPHS)}"
    )
    return "\n\n".join([head, "\n".join(lines), _settled(taught, over, "Over twice the epochs")])


def in_lesson() -> str:
    """What notebook 07b says of all methods on photographs: a table, and on which side of zero intervals lie."""
    (_, *equal), (_, *longer) = on_photographs()
    ideas = {method: idea for methods in families().values() for method, idea in methods.items()}
    over = {row["method"]: row for row in longer}
    lines = ["| method | what is compared | lead in as many epochs | over the student alone, twice the epochs |"]
    lines.append(f"|{'---|' * 4}")
    for row in equal:
        leads = [plus_minus(one["gain"], one["gain_interval"], "+") for one in (row, over[row["method"]])]
        lines.append(f"| `{row['method']}` | {ideas[row['method']]} | {' | '.join(leads)} |")
    said = (
        f"Where do the intervals of these {len(equal)} methods lie? In as many epochs {_sides(equal)}. Over the "
        f"student alone with twice the epochs {_sides(longer)}."
    )
    return "\n".join([*lines, "", said])


def _sides(rows: list[dict]) -> str:
    """Whose intervals lie above zero and whose below, and which of these Holm's correction leaves."""
    said, apart = [], []
    for side, verdict in {"above zero": "better", "below": "worse"}.items():
        found = [row for row in rows if row["verdict"] == verdict]
        apart += found
        said.append(f"{len(found) or 'none'} {side}{_named(found, ' ({})')}")
    kept = [row for row in apart if row.get("p_holm", 1) < 0.05]
    holm = f"; Holm's correction leaves {_named(kept) or 'none'} of the {len(apart)}" if apart else ""
    return " and ".join(said) + holm


def _named(rows: list[dict], within: str = "{}") -> str:
    """The methods of the rows, in a frame where there are any."""
    return within.format(", ".join(f"`{row['method']}`" for row in rows)) if rows else ""


def _times_as_long(runs: list[dict], network: str) -> str:
    """From and to how many times the seconds of the student alone, where both were trained on one machine."""
    own = [run for run in runs if run["backbone"] == network]
    seconds = {method: seconds_on([run for run in own if run["method"] == method]) for method in _methods(own)}
    alone = seconds.pop("baseline")
    times = [taken / alone[machine] for by in seconds.values() for machine, taken in by.items() if machine in alone]
    return f"{min(times):.1f} to {max(times):.1f}"


def _methods(runs: list[dict]) -> list[str]:
    return list(dict.fromkeys(run["method"] for run in runs))


def _rival(row: dict) -> str:
    """The student alone that trained as long."""
    pairs = "" if row["pairs"] == len(row["seeds"]) else f", {row['pairs']} seeds"
    return f"{row['lent_epochs']} epochs, {row['lent_seconds']:.0f} s{pairs}"


def _settled(equal: list[dict], timed: list[dict], when: str = "At equal time") -> str:
    """What Holm's correction leaves of each of the two columns."""
    said = []
    for name, found in {"At equal epochs": equal, when: timed}.items():
        apart = [row for row in found if row["verdict"] != "not settled"]
        kept = [f"`{row['method']}` ({row['verdict']})" for row in found if row.get("p_holm", 1) < 0.05]
        said.append(
            f"{name} {len(apart)} of {len(found)} intervals exclude zero, where about {0.05 * len(found):.1f} would by "
            f"chance if no method had any effect; with Holm's correction {', '.join(kept) or 'none'} "
            f"{'stays' if len(kept) < 2 else 'stay'} settled."
        )
    return " ".join(said)


def tuned() -> str:
    """How the weights of the newer methods were chosen."""
    record = read("sample-tune.json")
    lines = ["| method | weight (epochs): mIoU on the images held out |", "|---|---|"]
    edges = []
    for method, best in record["best"].items():
        tried = [run for run in record["runs"] if run["method"] == method]
        cells = [f"{run['weight']:g} ({run['epochs']}): {percent(run['val_miou'])}" for run in tried]
        lines.append(f"| `{method}` | {', '.join(cells)}; **{best:g}** |")
        weights = [run["weight"] for run in tried]
        edges += [f"`{method}`"] if best in (min(weights), max(weights)) else []
    head = (
        f"The weights of the newer methods were chosen by `{record['command']}`, seed {record['seed']}, on training "
        f"images held out: {record['budget']} candidates each, the best two of them for all {record['epochs']} epochs; "
        f"bold is the choice. It is the smallest or largest candidate for {', '.join(edges) or 'no method'}, so that a "
        f"better one may lie beyond. The images held out are few, and one run one draw: a point or two decide nothing."
    )
    return head + "\n\n" + "\n".join(lines)
