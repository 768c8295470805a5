"""Write the README's results block and pictures from results/: python studies/report.py"""

from pathlib import Path

from matplotlib.figure import Figure

from distill import load_model, load_teacher, open_dataset, plots, predict
from distill.datasets import PROJECT
from distill.files import replace_file, write_text
from distill.runs import compare, markdown_table, read_json, results_file
from distill.teachers import shipped_file

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
RESULTS = PROJECT / "results"


def read(name: str) -> dict:
    return read_json(results_file(name))


def readme_with_results(readme: str) -> str:
    """The README's text with everything between the two marks made anew from results/."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{results_block()}\n{END}{rest.split(END)[1]}"


def results_block() -> str:
    return "\n\n".join([_sample(), _reading(), _sakd(), _controls(), _camvid()])


def _sample() -> str:
    study, teacher = read("sample.json"), read("teacher.json")
    environment = study["environment"]
    run = study["runs"][0]
    teacher_miou, teacher_images = study["teacher"]["miou"], teacher["config"]["images"]
    head = (
        f"Sample data, test split; {run['images']} training images, {run['samples']:,} samples a run. The teacher, "
        f"trained on {teacher_images:,} images, has **{100 * teacher_miou:.1f}** mIoU. Mean and 95 % interval over "
        f"seeds, in points. A gain is over the baseline of the same seed, which started from the same weights and "
        f"saw the same images in the same order. The gap is that between baseline and teacher."
    )
    rows = compare(study["runs"], study["teacher"]["miou"])
    foot = (
        f"Recorded {study['date']} on {environment['cores']} cores of an {environment['processor']}, PyTorch "
        f"{environment['torch']}, one thread a run and one run a core. Every method's weight was chosen on the val "
        f"split with another seed, from equally many candidates "
        f"([results/sample-weights.json](results/sample-weights.json))."
    )
    return f"{head}\n\n{markdown_table(rows)}\n\n{foot}\n\n![Gain of every method over the baseline](results/gains.png)"


def _reading() -> str:
    """What the intervals allow to say, method by method."""
    study = read("sample.json")
    words = {"better": [], "worse": [], "not distinguishable from the baseline": []}
    for row in compare(study["runs"], study["teacher"]["miou"]):
        if "gain" in row:
            name = f"{row['method']} on {row['backbone']}"
            words[verdict(row)].append(name)
    said = [f"{word}: {', '.join(names)}" for word, names in words.items() if names]
    return f"Read with the 95 % intervals, against the baseline: {'; '.join(said)}."


def verdict(row: dict) -> str:
    """Whether the interval of a row's gain lies above zero, below it, or holds it."""
    if row["gain"] - row["gain_interval"] > 0:
        return "better"
    return "worse" if row["gain"] + row["gain_interval"] < 0 else "not distinguishable from the baseline"


def _sakd() -> str:
    """SAKD by weight and by variant, each against the baseline of the same seed and schedule."""
    tried = read("sample-weights.json")["runs"]
    short = {run["backbone"]: run["val_miou"] for run in tried if run["method"] == "baseline" and run["epochs"] == 12}
    scores: dict[str, dict[str, float]] = {}
    for run in tried:
        if run["method"] == "sakd":
            scores.setdefault(f"weight {run['value']:g}", {})[run["backbone"]] = run["val_miou"]
    for run in read("sample-sakd.json")["runs"]:
        scores.setdefault(f"weight 150, {run['variant']}", {})[run["backbone"]] = run["val_miou"]
    lines = [f"| SAKD, half schedule | {' | '.join(short)} |", f"|---|{'---|' * len(short)}"]
    for name, row in scores.items():
        gains = [f"{100 * (row[backbone] - miou):+.1f}" for backbone, miou in short.items()]
        lines.append(f"| {name} | {' | '.join(gains)} |")
    head = (
        "How SAKD depends on its weight, its schedule and its positions: gain over the baseline on val, one seed each "
        "and half the schedule, so differences of a few points are noise. 150 is the published weight."
    )
    return head + "\n\n" + "\n".join(lines)


def _controls() -> str:
    lines = [
        f"- {control['what']}: {100 * control['miou']:.1f}" for control in read("sample-controls.json")["controls"]
    ]
    return "What the gap is made of (test mIoU, one run each, same trainer):\n\n" + "\n".join(lines)


def _camvid() -> str:
    study = read("camvid.json")
    train, val = study["check"]["train"], study["check"]["val"]
    teacher, *students = study["runs"]
    epochs, longer = (run["settings"]["epochs"] for run in (students[0], teacher))
    prediction = study["prediction"]
    head = (
        f"Real photographs: CamVid, street scenes, {train['images']} training and {val['images']} validation images, "
        f"{len(train['class_share'])} classes. The slim networks, from scratch, crops of {study['crop_size']} pixels, "
        f"{epochs} epochs for students and {longer} for the teacher. Validation mIoU of the last epoch by both "
        f"protocols, one seed: it shows that the path works, and is no comparison of methods."
    )
    alone, *taught = (run["miou"] for run in students)
    if max(taught) < alone:
        head += (
            f" Neither method helped here: with {100 * (teacher['miou'] - alone):+.1f} points against the student "
            f"alone, the teacher has little to teach."
        )
    rows = [
        f"| {run['backbone']} | {run['method']} | {100 * run['miou_by_protocol']['native']:.1f} | "
        f"{100 * run['miou_by_protocol']['resize513']:.1f} |"
        for run in study["runs"]
    ]
    foot = (
        f"`data check` found {train['faults'] + val['faults']} faults. `predict` with the last of them, on the "
        f"photograph {prediction['image']}, gives a mask that is right at {100 * prediction['right']:.0f} % of the "
        f"labelled pixels."
    )
    table = ["| network | method | native | resize513 |", "|---|---|---|---|", *rows]
    return "\n".join([head, "", *table, "", foot])


def draw_masks(count: int = 4) -> None:
    """The README's first picture: the first test images under the shipped networks, chosen by their order alone."""
    study, data = read("sample.json"), open_dataset("sample", "test")
    distilled = f"student, {plots.method_name(study['shipped']['distilled'])}"
    networks = {
        "teacher": load_teacher("sample"),
        "student, baseline": load_model(shipped_file("student-resnet18-baseline.safetensors")),
        distilled: load_model(shipped_file("student-resnet18-distilled.safetensors")),
    }
    rows = {}
    for index in range(count):
        image, labels = (tensor.numpy() for tensor in data[index])
        image = image.transpose(1, 2, 0)
        masks = {name: predict(network, image) for name, network in networks.items()}
        rows[" " * index] = {"image": image, "labels": labels.astype("uint8"), **masks}
    save(plots.show_grid(rows, data.class_names), RESULTS / "masks.png")


def draw_gains() -> None:
    study = read("sample.json")
    save(plots.gain_chart(compare(study["runs"], study["teacher"]["miou"])), RESULTS / "gains.png")


def save(figure: Figure, path: Path) -> None:
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor="white")


def main() -> None:
    draw_masks()
    draw_gains()
    path = PROJECT / "README.md"
    write_text(path, readme_with_results(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
