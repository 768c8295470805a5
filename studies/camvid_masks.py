"""Draw results/camvid-masks.png, which notebook 07b shows where CamVid is not: python -m studies.camvid_masks

The masks of the shipped teacher and students, and of the student alone with its class weights undone
(studies/undone.py), of three validation images that were chosen by their place in the list: the first, the middle one
and the last. results/camvid-masks.json has how many pixels of each class are labelled and how many each network
predicts. No photograph of CamVid and none of its masks are in this repository. The images are in the folder camvid-240
beside the sample; see studies/photographs.py.
"""

import datetime

import numpy as np
import torch

from distill import load_model, load_teacher, open_dataset, predict, undo_class_weights
from distill.cli import explained
from distill.data.camvid import COLOURS
from distill.data.folders import data_root
from distill.files import write_json
from distill.networks.teachers import shipped_file
from distill.show import plots
from distill.training.runs import environment
from studies.report import RESULTS, save
from studies.undone import chosen, weights_of

SHIPPED = "camvid/mobilenetv2/baseline/seed0"


def main() -> None:
    data = open_dataset(data_root() / "camvid-240", "val")
    networks = {
        "teacher": load_teacher(shipped_file("camvid-teacher.safetensors")),
        "alone": load_model(shipped_file("camvid-student-mobilenetv2-baseline.safetensors")).eval(),
        "taught": load_model(shipped_file("camvid-student-mobilenetv2-distilled.safetensors")).eval(),
    }
    networks["alone (undone)"] = undo_class_weights(networks["alone"], weights_of(SHIPPED), chosen())
    rows, recorded = {}, []
    for index in (0, len(data) // 2, len(data) - 1):
        image, labels = (part.numpy() for part in data[index])
        known = labels != 255
        masks = {name: predict(network, image.transpose(1, 2, 0)) for name, network in networks.items()}
        right = {name: round(float((mask == labels)[known].mean()), 4) for name, mask in masks.items()}
        rows[f"image {index + 1} of {len(data)}"] = {f"{name}: {right[name]:.0%} right": masks[name] for name in masks}
        pixels = {
            name: np.bincount(mask[known], minlength=len(data.class_names)).tolist()
            for name, mask in {"labelled": labels, **masks}.items()
        }
        recorded.append({"image": index + 1, "right": right, "pixels": pixels})
    save(plots.show_grid(rows, data.class_names, size=2.4, colours=COLOURS), RESULTS / "camvid-masks.png")
    about = {"command": "python -m studies.camvid_masks", "date": datetime.date.today().isoformat()}
    about |= {"environment": environment(torch.device("cpu")), "split": "val", "split_images": len(data)}
    write_json(RESULTS / "camvid-masks.json", {**about, "class_names": list(data.class_names), "images": recorded})


if __name__ == "__main__":
    raise SystemExit(explained(main))
