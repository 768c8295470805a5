"""The study studies/sample-128.toml, and from its runs the two students in data/: python studies/students.py

The reader's first look: ResNet-18 of seed 0, alone on 128 labelled images at its best, and with a teacher and images
without labels beside them. Finished runs are not trained again.

A script beside the study file, because a study leaves its students in runs/, which is not shipped, and two of them are.
"""

import argparse

from distill.cli import explained
from distill.files import PROJECT, read_json, write_json
from distill.lab.comparison import markdown
from distill.lab.study import Study
from distill.lab.study_file import variant_folder
from distill.networks.saving import save_model
from distill.training.runs import Run, run_folder

SHIPPED = {
    "baseline": {"variant": "128 labels, twice as long", "method": "baseline"},
    "distilled": {"variant": "128 labels, 2,000 images", "method": "kd"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one per core)")
    options = parser.parse_args()
    study = Study(PROJECT / "studies" / "sample-128.toml")
    print(markdown(study.run(options.jobs)))
    for name, row in SHIPPED.items():
        folder = run_folder(study.folder, variant_folder(row["variant"]), "resnet18", row["method"], 0)
        path = PROJECT / "data" / f"student-resnet18-{name}.safetensors"
        save_model(Run(folder).student(), path, {**row, "seed": "0"}, half=True)
    recorded = read_json(study.results)
    runs = recorded.pop("runs")
    write_json(study.results, {**recorded, "shipped": SHIPPED, "runs": runs})


if __name__ == "__main__":
    raise SystemExit(explained(main))
