"""Write the results in README.md, all of results/README.md, and their pictures from results/: python -m studies.report

README.md has one small table and its verdict, results/README.md has everything that was recorded.
"""

from pathlib import Path

from matplotlib.figure import Figure

from distill import load_model, load_teacher, open_dataset, predict
from distill.files import PROJECT, replace_file, write_text
from distill.lab.comparison import by_labels, read_findings, tables
from distill.lab.literature import paired_difference
from distill.lab.tables import markdown_table, results_file
from distill.networks.teachers import shipped_file
from distill.show import charts, plots
from studies import blocks, camvid, conditions, labels, leaderboard, quirks, readme, undone
from studies.prose import fill
from studies.shared import anchor, mean_of, read, recorded_on, said, so_far

RESULTS = PROJECT / "results"


def readme_with_results(text: str) -> str:
    """The README's text with its marked numbers, and everything between its two marks, made anew from results/."""
    begin, end = "<!-- results:begin -->", "<!-- results:end -->"
    before, rest = fill(text).split(begin)
    return f"{before}{begin}\n{readme.results()}\n{end}{rest.split(end)[1]}"


def results_page() -> str:
    """results/README.md: every recorded study."""
    head = (
        "# All recorded results\n\n`python -m studies.report` writes this page from the JSON files beside it; "
        "those of runs name the command that made them. mIoU and gains are in points, and differences are taken before "
        "rounding; the number after ± is half the width of the 95 % confidence interval over seeds, which with three "
        "seeds is itself rough. A gain is over the baseline of the same seed, which starts from the same weights and, "
        "where images and epochs are the same, sees the same images in the same order.\n\nColumns:\n\n"
        "- *mIoU* and *gain*: on the images that the heading names.\n"
        "- *Gain on val, equal time*: the lead on val when the quicker run ends; empty where the slower run has by "
        "then completed less than 85 % of its schedule, and left out where no row has it.\n"
        "- *Gap closed*: the gain as a share of the teacher's lead over that baseline.\n"
        "- *Verdict*: *better* or *worse* where the interval excludes zero; *at equal epochs* where the method takes "
        "longer, and the interval at equal time includes zero or is not known; *so far* where the baseline's mIoU on "
        "val still rose by more than a point over the last quarter (*still rising*); *less than a point* where the "
        "whole interval lies within a point of zero; *not settled* otherwise, with the number of seeds, counting "
        "those already run, that would bring ± down to a point. That is a guess from their scatter: from three seeds, "
        "12 may mean 5 or 300.\n"
        "- *Processor seconds*: those that the run itself took; other programs lengthen plain seconds far more."
    )
    converged = [
        better(),
        blocks.as_long("sample"),
        leaderboard.section(),
        self_attention(),
        blocks.weights(),
        labels.converged(),
        labels.section(),
        labels.unlabelled(),
        blocks.schedule(),
        *map(conditions.section, conditions.recorded()),
        blocks.small_schedule(),
        quirks.long_quirks(),
    ]
    short = [blocks.speed(), blocks.reading(), blocks.sakd(), blocks.controls(), labels.few_labels(), quirks.quirks()]
    few = [camvid.few_labels()] if camvid.few_rows() != [camvid.ALL] else []
    last = [camvid.section(), undone.section(), *few, steps(), blocks.exported(), blocks.page()]
    page = "\n\n".join([*converged, *short, *last])
    return f"{head}\n\nOn this page:\n\n{_contents(page)}\n\n{page}\n"


def _contents(page: str) -> str:
    """Links to the sections of a page in Markdown."""
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    return "\n".join(f"- [{heading}](#{anchor(heading)})" for heading in headings)


def better() -> str:
    """The main study: every method, equal epochs."""
    study = read("sample.json")
    rows = tables(read_findings([results_file("sample.json")]))[""]
    run, published = study["runs"][0], read("published.json")["voc"]
    teacher = study["teacher"]["miou"]
    gaps = [
        f"{100 * (teacher - row['miou']):.1f} for {charts.network_name(row['backbone'])} (on Pascal VOC, as published, "
        f"{published['teacher'] - published['students'][row['backbone']]['baseline']:.1f})"
        for row in rows
        if row["method"] == "baseline"
    ]
    head = (
        f"## sample: {run['images']} labels, {run['settings']['epochs']} epochs\n\n"
        f"Sample data, test split; {run['images']} training images, {run['settings']['epochs']} epochs. The teacher, "
        f"trained on {read('teacher.json')['config']['images']:,} images, has **{100 * teacher:.1f}** mIoU. The "
        f"gap between student and teacher is {', '.join(gaps)}."
    )
    head += so_far("sample")
    picture = f"![Gain of every method over the baseline of {run['settings']['epochs']} epochs](gains.png)"
    return "\n\n".join([head, markdown_table(rows), recorded_on(study), picture, said(rows)])


def self_attention() -> str:
    """The ablation: SAKD less the same without its self-attention, seed by seed."""
    leads = paired_difference("sakd", "sakd-plain")
    added = [f"{mean_of(found)} for {charts.network_name(backbone)}" for backbone, found in leads.items()]
    return (
        f"What self-attention adds to SAKD: {', '.join(added)}. Without it (`sakd-plain`) SAKD is attention transfer "
        f"at its six positions, with its connectors and divisors. It has SAKD's weight; none was chosen for it, nor "
        f"for `kd+sakd`, which has those of its two parts."
    )


def steps() -> str:
    """A step and loading beside the plain implementation, by networks and precision."""
    measured = read("benchmark.json")["measured"]
    machine, methods = measured[0]["environment"], [row["method"] for row in measured[0]["steps"]]
    methods = list(dict.fromkeys(methods))
    lines = [f"| networks | student | {' | '.join(methods)} |", f"|---|---|{'---|' * len(methods)}"]
    for one in measured:
        options = one["options"]
        width = "slim" if options["preset"] == "sample" else "full width"
        what = f"{width}, {options['crop_size']} pixels, {options['precision']}"
        for student in dict.fromkeys(row["backbone"] for row in one["steps"]):
            ratios = {row["method"]: f"{row['ratio']:.2f}" for row in one["steps"] if row["backbone"] == student}
            lines.append(f"| {what} | {student} | {' | '.join(ratios[method] for method in methods)} |")
    no_gpu = "" if (RESULTS / "benchmark-gpu.json").is_file() else "; no GPU was available to run it"
    head = (
        f"## Speed of a training step\n\nSpeed-up of a training step over a plain implementation, which computes in "
        f"float32, keeps PyTorch's default memory format, runs the teacher in training mode and records its gradients, "
        f"and writes the losses as the papers do. `python benchmarks/cpu.py` measures this table; `python -m distill "
        f"bench` measures your machine, with a GPU or without. `benchmarks/gpu.py` measures the published size on one "
        f"GPU in one call{no_gpu}. Medians of "
        f"{measured[0]['options']['steps']} steps each, in turns, on {machine['threads']} cores of an "
        f"{machine['processor']}, PyTorch {machine['torch']}, {measured[0]['date']}."
    )
    return "\n\n".join(
        [
            head,
            "\n".join(lines),
            _limits(measured),
            _loading(measured),
            blocks.losses(),
            blocks.kept_memory(),
            blocks.waiting_threads(),
        ]
    )


def _limits(measured: list[dict]) -> str:
    """What a step's time goes to, over the float32 rows that have a teacher."""
    said = []
    for one in (one for one in measured if one["options"]["precision"] == "float32"):
        rows = [row["ours"] for row in one["steps"] if row["method"] != "baseline"]
        shares = {
            part: [row["parts"][part] / row["seconds"] for row in rows]
            for part in ("student", "teacher", "distillation", "loss")
        }
        spans = {part: f"{min(values):.0%} to {max(values):.0%}" for part, values in shares.items()}
        width = "slim" if one["options"]["preset"] == "sample" else "full-width"
        said.append(
            f"with {width} networks the student's passes take {spans['student']} of a distillation step, the teacher's "
            f"{spans['teacher']}, the distillation loss {spans['distillation']} with its connectors and "
            f"{spans['loss']} without"
        )
    kept = [row["ratio"] for row in measured[0]["cache"]]
    return (
        f"The passes of the networks take most of the time: in float32, {'; '.join(said)}. On the sample "
        f"the teacher's answers are cached, which makes a step {min(kept):.1f} to {max(kept):.1f} times as fast again "
        "as in the table."
    )


def _loading(measured: list[dict]) -> str:
    row = max(measured[0]["loading"], key=lambda row: row["crop_size"])
    ours, plain = (f"{row[name]['images_per_second']:.0f}" for name in ("ours", "plain"))
    return (
        f"Loading, crops of {row['crop_size']} pixels of images of 500 x 375: {ours} images per second "
        f"per core, {row['ratio']:.1f} times as many as the plain implementation's {plain}."
    )


def draw_masks() -> None:
    """The README's first picture: the first test images under the shipped networks, chosen by their order alone."""
    data = open_dataset("sample", "test")
    networks = {
        "teacher": load_teacher("sample"),
        "student alone": load_model(shipped_file("student-resnet18-baseline.safetensors")),
        "student distilled": load_model(shipped_file("student-resnet18-distilled.safetensors")),
    }
    rows = {}
    for index in range(4):
        image, labels = (tensor.numpy() for tensor in data[index])
        image = image.transpose(1, 2, 0)
        masks = {name: predict(network, image) for name, network in networks.items()}
        rows[" " * index] = {"image": image, "labels": labels.astype("uint8"), **masks}
    save(plots.show_grid(rows, data.class_names), RESULTS / "masks.png")


def draw_gains() -> None:
    for name, picture in (("sample.json", "gains.png"), ("speed.json", "speed-gains.png")):
        save(charts.gain_chart(tables(read_findings([results_file(name)]))[""]), RESULTS / picture)


def draw_few_labels() -> None:
    save(labels.chart(), RESULTS / "labels.png")
    found = read_findings([results_file("sample-few-labels.json")])
    save(charts.label_chart(by_labels(found), found.teacher["miou"]), RESULTS / "few-labels.png")


def draw_conditions() -> None:
    for condition in conditions.recorded():
        save(condition.chart(), RESULTS / f"{condition.record}.png")


def draw_export() -> None:
    save(charts.export_chart(blocks.export_points()), RESULTS / "export.png")


def save(figure: Figure, path: Path) -> None:
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor="white")


def main() -> None:
    draw_masks()
    draw_gains()
    draw_few_labels()
    draw_conditions()
    draw_export()
    path = PROJECT / "README.md"
    write_text(path, readme_with_results(path.read_text(encoding="utf-8")))
    write_text(RESULTS / "README.md", results_page())


if __name__ == "__main__":
    main()
