"""Draw results/camvid-masks.png, which notebook 07b shows where CamVid is not: python -m studies.camvid_masks

The masks of the shipped teacher and student, of three validation images that were chosen by their place in the list:
the first, the middle one and the last. No photograph of CamVid and none of its labels are in this repository. The
images lie in data/camvid-240; see studies/photographs.py.
"""

from distill import load_model, load_teacher, open_dataset, predict
from distill.cli import explained
from distill.data.camvid import COLOURS
from distill.files import PROJECT
from distill.networks.teachers import shipped_file
from distill.show import plots
from studies.report import RESULTS, save


def main() -> None:
    data = open_dataset(PROJECT / "data" / "camvid-240", "val")
    networks = {
        "teacher": load_teacher(shipped_file("camvid-teacher.safetensors")),
        "student": load_model(shipped_file("camvid-student-resnet18.safetensors")).eval(),
    }
    rows = {}
    for index in (0, len(data) // 2, len(data) - 1):
        image = data[index][0].numpy().transpose(1, 2, 0)
        masks = {name: predict(network, image) for name, network in networks.items()}
        rows[f"image {index + 1} of {len(data)}"] = masks
    save(plots.show_grid(rows, data.class_names, size=2.8, colours=COLOURS), RESULTS / "camvid-masks.png")


if __name__ == "__main__":
    raise SystemExit(explained(main))
