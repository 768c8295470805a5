"""What users' scripts do, as the documentation shows it. Nothing runs this; `mypy` has to accept it as it stands."""

import numpy as np
import torch
from torch import nn

import distill
from distill.data.transforms import normalise
from distill.show import plots


def train(folder: str) -> None:
    teacher = distill.load_teacher("sample")
    run = distill.fit("resnet18", method="kd", teacher=teacher, data="sample", seed=0)
    student = distill.Run(folder).student()
    distill.evaluate(student, distill.open_dataset("sample", "val"))
    distill.export(run, "student.onnx")
    rebuilt = distill.build_model(**student.config)
    weights = run.class_weights()
    miou = {share: distill.evaluate(distill.undo_class_weights(rebuilt, weights, share), run.images_of("val")).miou
            for share in (0.0, 0.5)}  # fmt: skip
    distill.save_model(teacher, f"{max(miou, key=lambda share: miou[share])}.safetensors")


def teach_anothers_network(network: nn.Module, again: nn.Module) -> None:
    student = distill.wrap(network, ["layer4"])
    run = distill.fit(student, "at", "sample", "masks")
    student = run.student(again)


def look(mask: np.ndarray) -> None:
    for image, labels in distill.open_dataset("sample", "test"):
        logits = distill.load_teacher()(normalise(image[None]))
        plots.show_row(
            {"image": image.permute(1, 2, 0), "labels": labels, "teacher": logits[0].argmax(0), "mine": mask}
        )


def mistakes() -> None:
    """Of these mypy has to complain: where it does not, it complains of the comment."""
    distill.lod_model("student.safetensors")  # type: ignore[attr-defined]
    distill.undo_class_weights(torch.ones(3), torch.ones(3))  # type: ignore[arg-type]
