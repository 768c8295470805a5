"""The recorded numbers that prose may quote: python studies/prose.py lists them, with --fill it puts them in.

In the prose of a notebook, of README.md or of a page in docs/ a recorded number carries its name in a comment that
readers do not see:

    The teacher has 84.1<!-- =teacher.test --> % mIoU.

A whole table stands between two such comments:

    <!-- table: photographs -->
    ...
    <!-- end of table -->

`fill` puts the recorded values in, and a test fails where the two disagree.
"""

import math
import re
import sys
from functools import cache

import nbformat

from distill.files import PROJECT, read_json
from distill.lab.curves import interval95
from distill.lab.literature import alone_elsewhere, leaderboard, on_photographs, paired_difference
from distill.lab.tables import results_file
from studies import camvid, undone
from studies.conditions import lead_over
from studies.labels import ALONE
from studies.leaderboard import in_lesson
from studies.shared import loss_costs

NOTEBOOKS = PROJECT / "notebooks"
MARK = re.compile(r"([+-]?\d[\d,]*(?:\.\d+)?)<!-- =([\w.+-]+) -->")

TABLE = re.compile(r"<!-- table: ([\w-]+) -->\n(?:.*?\n)?<!-- end of table -->", re.DOTALL)
TABLES = {"photographs": in_lesson}


@cache
def recorded() -> dict[str, str]:
    """Name to value as prose writes it; scores in points of mIoU."""
    teacher = read_json(results_file("teacher.json"))
    values = {f"teacher.{split}": f"{100 * teacher['scores'][split]['miou']:.1f}" for split in ("val", "test")}
    values["teacher.images"] = f"{teacher['config']['images']:,}"
    for control in read_json(results_file("sample-controls.json"))["controls"]:
        values[f"control.{control['name']}"] = f"{100 * control['miou']:.1f}"
    for student, leads in paired_difference("sakd", "sakd-plain").items():
        values[f"attention.{student}.gain"] = f"{100 * sum(leads) / len(leads):+.1f}"
        values[f"attention.{student}.interval"] = f"{100 * interval95(leads):.1f}"
    values |= _leaderboard() | _photographs() | _undone()
    seconds = sum(read_json(results_file("notebooks.json"))["seconds"].values())
    return values | {"notebooks.minutes": f"{math.ceil(seconds / 60)}"} | _losses() | _published()


def _leaderboard() -> dict[str, str]:
    """Gains of every method at equal epochs, and at equal time or, on photographs, over the longer student alone."""
    (alone, *taught), timed = leaderboard()
    values = {"leaderboard.seconds.alone": f"{alone['seconds']:.0f}"}
    for seconds in alone_elsewhere(alone, timed).values():
        values["leaderboard.seconds.elsewhere"] = f"{seconds:.0f}"
    (_, *equal), (_, *longer) = on_photographs()
    tables = {"leaderboard.equal": taught, "leaderboard.timed": timed.values()}
    for name, rows in (tables | {"photographs.equal": equal, "photographs.longer": longer}).items():
        for row in rows:
            values[f"{name}.{row['method']}.gain"] = f"{100 * row['gain']:+.1f}"
            values[f"{name}.{row['method']}.interval"] = f"{100 * row['gain_interval']:.1f}"
    return values


def _losses() -> dict[str, str]:
    """What each loss takes: its share of a step, and what is kept for the backward pass, in baselines."""
    values = {}
    for name, record in {"loss": "losses", "photographs.loss": "camvid-losses"}.items():
        for method, (share, kept) in loss_costs(record).items():
            values |= {f"{name}.{method}.share": f"{100 * share:.0f}", f"{name}.{method}.kept": f"{kept:.1f}"}
    return values


def _photographs() -> dict[str, str]:
    """Leads over the student alone where few photographs have masks."""
    rows, values = camvid.few_rows(), {}
    names = {camvid.MASKS: "masks", camvid.MASKS_92: "masks"}
    names |= {camvid.KD_OF_FEW: "few.kd", camvid.MASKS_OF_FEW: "few.masks"}
    alone = {row.labels: row.found() for row in rows if row.how == ALONE}
    for row in rows:
        if row.how != ALONE and row.labels in alone:
            name = f"photographs.{row.labels}.{names.get(row, row.method)}"
            for base in sorted(labels for labels in alone if labels <= row.labels):
                lead, over = lead_over(row.found(), alone[base]), "" if base == row.labels else f".over_{base}"
                values[f"{name}{over}.gain"] = f"{100 * lead['gain']:+.1f}"
                values[f"{name}{over}.interval"] = f"{100 * lead['gain_interval']:.1f}"
    return values


def _undone() -> dict[str, str]:
    """Scores and leads of students of photographs, as trained and with the best share of class weights undone."""
    held = undone.held_out()
    values = {"undone.held_out.trained": f"{100 * held[0]:.1f}", "undone.held_out.chosen": f"{100 * max(held):.1f}"}
    for run in read_json(results_file("camvid-baseline.json"))["runs"]:
        if run["variant"] == "no class weights":
            values["undone.held_out.without"] = f"{100 * run['val_miou']:.1f}"
    for folder, (_, over) in undone.ROWS.items():
        if by_seed := undone.scores().get(folder):
            means = [100 * sum(curve) / len(by_seed) for curve in zip(*by_seed.values(), strict=True)]
            name = "undone." + folder.replace("/", ".")
            values |= {f"{name}.trained": f"{means[0]:.1f}", f"{name}.best": f"{max(means):.1f}"}
            for kind, share in {"trained": 0.0, "chosen": undone.chosen(), "best": None}.items():
                longer = f"camvid-long/{folder.split('/')[1]}/baseline"
                with_all = over == undone.ALONE or folder.startswith("camvid/")
                for which, beside in {"": over, "longer.": longer if with_all else ""}.items():
                    if found := undone.leads(folder, beside, share):
                        values[f"{name}.{which}lead.{kind}"] = f"{100 * sum(found) / len(found):+.1f}"
                        some = len(found) > 1
                        values |= {f"{name}.{which}interval.{kind}": f"{100 * interval95(found):.1f}"} if some else {}
    return values


def _published() -> dict[str, str]:
    """The published table on Pascal VOC, as its authors printed it, and OFD's on val; not measured by us."""
    published = read_json(results_file("published.json"))
    values = {}
    for name, table in (("published", published["voc"]), ("ofd_val", published["ofd_val"])):
        values[f"{name}.teacher"] = f"{table['teacher']:.2f}"
        for backbone, rows in table["students"].items():
            values |= {f"{name}.{backbone}.{method}": f"{miou:.2f}" for method, miou in rows.items()}
    for backbone, rows in published["ofd_val"]["students"].items():
        for method, miou in rows.items():
            lead = published["voc"]["students"][backbone]["sakd"] - miou
            values[f"sakd_over_val.{backbone}.{method}"] = f"{lead:.2f}"
    return values


def fill(text: str) -> str:
    """The text with every marked number, and every marked table, set to what is recorded."""
    values = recorded()
    text = MARK.sub(lambda match: f"{values[match[2]]}<!-- ={match[2]} -->", text)
    return TABLE.sub(lambda match: f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end of table -->", text)


def fill_notebooks() -> None:
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = fill(cell.source)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    if sys.argv[1:] == ["--fill"]:
        fill_notebooks()
    else:
        for name, value in recorded().items():
            print(f"{name:40} {value}")
