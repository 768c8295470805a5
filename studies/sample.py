"""The study studies/sample.toml, and from its runs the two students in data/: python studies/sample.py

What is trained, and how it was chosen, stands in the study file; results/sample.json, from which the README and the
notebooks take their tables, is what it records. Finished runs are not trained again.

A script beside the study file, because a study leaves its students in runs/, which is not shipped, and two of them are.
"""

import argparse

from distill.cli import explained
from distill.files import PROJECT, read_json, write_json
from distill.lab.comparison import markdown
from distill.lab.study import Study
from distill.networks.saving import save_model
from distill.training.runs import Run, run_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one a core)")
    options = parser.parse_args()
    study = Study(PROJECT / "studies" / "sample.toml")
    print(markdown(study.run(options.jobs)))
    recorded = read_json(study.results)
    runs = recorded.pop("runs")
    write_json(study.results, {**recorded, "shipped": ship_students(study, runs), "runs": runs})


def ship_students(study: Study, runs: list[dict]) -> dict[str, str]:
    """The reader's first look: ResNet-18 of seed 0, its baseline and the method that did best on average on val."""
    own = [entry for entry in runs if (entry["variant"], entry["backbone"]) == ("all methods", "resnet18")]
    rows = [entry for entry in own if entry["method"] != "baseline"]
    methods = sorted({entry["method"] for entry in rows})
    best = max(methods, key=lambda method: sum(entry["val_miou"] for entry in rows if entry["method"] == method))
    shipped = {"baseline": "baseline", "distilled": best}
    for name, method in shipped.items():
        student = Run(run_folder(study.folder, "all-methods", "resnet18", method, 0)).student()
        path = PROJECT / "data" / f"student-resnet18-{name}.safetensors"
        save_model(student, path, {"method": method, "seed": "0"}, half=True)
    return shipped


if __name__ == "__main__":
    raise SystemExit(explained(main))
