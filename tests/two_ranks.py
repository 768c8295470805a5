"""What the tests of `training.parallel` run in one process and, through torchrun, in two: two_ranks.py OUT SAMPLE"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from conftest import tiny_network
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distill import build_model, evaluate, fit, load_model, open_dataset, wrap
from distill.methods import build_method
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.teachers import freeze
from distill.training.loop import _Step
from distill.training.parallel import Ranks, join, shared_layers

# Plain SGD with a small rate: AdamW's first steps are as large for a gradient that is rounding as for any other.
RUNS = {
    "baseline-flip": {"method": "baseline"},
    "kd+sakd-crops": {"method": "kd+sakd", "augment": "crops"},
    "ofd-flip": {"method": "ofd", "connector_epochs": 1},
    "wrapped-flip": {"method": "kd"},
}
BACKBONES = ("resnet18", "mobilenetv2", *(["timm:mobilenetv3_small_050"] if find_spec("timm") else []))
SETTINGS = {"optimizer": "sgd", "lr": 1e-3, "epochs": 2, "batch_size": 8, "evaluate_every": 1}


class _WithAuxiliary(nn.Module):
    """A network with a part that gives no logits, as heads for training alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.other = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 21, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body(x).relu()
        return {"out": self.head(maps), "aux": self.other(maps)}


def _student(backbone: str) -> DeepLabV3Plus:
    if not backbone.startswith("timm:"):
        return tiny_network(backbone)
    torch.manual_seed(0)
    return build_model(backbone, 21, head_width=0.0625, atrous_rates=(2, 3, 4))  # timm's have no width


def gradients(backbone: str, ranks: Ranks) -> dict[str, Tensor]:
    """Loss, gradients and buffers after one step of kd+ofd+sakd on eight images, with dropout, in float64."""
    torch.set_default_dtype(torch.float64)
    student, teacher = _student(backbone).train(), freeze(tiny_network("resnet101", seed=7))
    torch.manual_seed(1)
    images, labels = torch.randn(8, 3, 48, 48), torch.randint(0, 21, (8, 48, 48))
    labels[0] = 255  # so the two have different numbers of labelled pixels
    method = build_method("kd+ofd+sakd", teacher, student)
    share = slice(ranks.rank * 8 // ranks.world, (ranks.rank + 1) * 8 // ranks.world)
    step: nn.Module = _Step(student, method, "float32", False)
    with shared_layers(ranks, [student, method], True):
        running = DistributedDataParallel(step) if ranks.world > 1 else step
        answer = teacher(images[share], return_maps=True)
        torch.manual_seed(2)
        loss, _ = running(images[share], labels[share], answer, (labels != 255).sum() / ranks.world)
        loss.backward()
    torch.set_default_dtype(torch.float32)
    assert not any("Shared" in type(layer).__name__ for layer in student.modules())
    weights = {name: weight.grad for name, weight in step.named_parameters()}
    return weights | dict(step.named_buffers()) | {"loss": ranks.sum(loss.detach().clone()) / ranks.world}


def main(out: Path, sample: Path) -> None:
    torch.set_num_threads(1)
    ranks = join(torch.device("cpu"))
    found: dict[str, dict] = {name: gradients(name, ranks) for name in BACKBONES}
    model = load_model(out / "student.safetensors")
    for split in ("val", "test"):
        scores = evaluate(model, open_dataset("sample", split, sample), batch_size=4, ranks=ranks)
        found[split] = {"confusion": torch.from_numpy(scores.confusion)}
    torch.save(found, out / f"{ranks.world}-{ranks.rank}.pt")
    teacher = freeze(tiny_network("resnet101", seed=7))
    for name, given in RUNS.items():
        folder = out / f"{name}-{ranks.world}"
        asked = {"student": "resnet18", "teacher": teacher} | SETTINGS | given
        asked |= {"student": wrap(_WithAuxiliary())} if name.startswith("wrapped") else {}
        fit(data_root=sample, out=folder, progress=False, **asked)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
