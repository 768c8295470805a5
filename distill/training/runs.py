"""What a run leaves on disk.

config.json         every value that shaped the run        history.jsonl        one line an epoch
environment.json    versions, device, commit               last.pt              everything needed to resume
scores.json         scores of the last epoch (and best)    student.safetensors  last epoch; best.safetensors
"""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from distill.errors import DistillError
from distill.files import NUMBER, _parse, _read_text, checked, read_json
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.saving import load_model

SCORE = {"miou": NUMBER, "pixel_accuracy": NUMBER, "per_class_iou": dict}
CONFIG = {
    "data": str,
    "images": int,
    "model": {"backbone": str},
    "method": {"name": str, "terms": dict},
    "seed": int,
    "start": str,
    "parameters": int,
    "settings": {"epochs": int},
}


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run in the folder `path`."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not (self.path / "config.json").exists():
            raise DistillError(
                f"{self.path} holds no config.json, so it is not a run; give the folder that `train` wrote"
            )

    @property
    def config(self) -> dict:
        """Every value that shaped the run."""
        path = self.path / "config.json"
        return checked(read_json(path), CONFIG, path, "the config of a run")

    @property
    def environment(self) -> dict:
        """Versions, hardware and commit, to be published with the scores; without the folders of this machine."""
        return {key: value for key, value in self._surroundings.items() if key != "data_root"}

    @property
    def _surroundings(self) -> dict:
        path = self.path / "environment.json"
        return checked(read_json(path), {}, path, "the environment of a run") if path.exists() else {}

    @property
    def data_root(self) -> Path | None:
        """The folder of the data it was trained on, if that is still there."""
        root = self._surroundings.get("data_root")
        return Path(root) if isinstance(root, str) and os.path.isdir(root) else None

    @property
    def scores(self) -> dict:
        """`val` and, where there is a test split, `test`: the last epoch's; `best`: the best epoch seen on val."""
        path = self.path / "scores.json"
        if not path.exists():
            raise DistillError(
                f"{self.path} has no scores.json: the run is not finished; start the same command to resume it"
            )
        scores = checked(read_json(path), {"best": {"val_miou": NUMBER}, "val": SCORE}, path, "the scores of a run")
        return checked(scores, {"test": SCORE}, path, "the scores of a run") if "test" in scores else scores

    @property
    def finished(self) -> bool:
        return (self.path / "scores.json").exists()

    @property
    def history(self) -> list[dict]:
        """One dict an epoch: epoch, lr, loss, each part of the loss, seconds, and at times val_miou."""
        path = self.path / "history.jsonl"
        lines = _read_text(path).splitlines() if path.exists() else []
        return [
            checked(_parse(line, path, number), {"seconds": NUMBER}, path, f"line {number} of a history")
            for number, line in enumerate(lines, 1)
        ]

    def student(self) -> DeepLabV3Plus:
        """The network of the last epoch, in eval mode."""
        return load_model(self.path / "student.safetensors").eval()


def run_folder(root: str | Path, data: str, backbone: str, method: str, seed: int) -> Path:
    return Path(root) / data / backbone / method / f"seed{seed}"


def find_runs(*folders: str | Path) -> list[Run]:
    """All finished runs at or below the folders."""
    paths = sorted({path.parent for folder in folders for path in Path(folder).rglob("scores.json")})
    runs = [Run(path) for path in paths if (path / "config.json").exists()]
    if not runs:
        raise DistillError(f"there is no finished run in {', '.join(map(str, folders))}; train one first")
    return runs


def environment(device: torch.device) -> dict:
    """Versions, hardware and commit of this process, as JSON values."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": version("numpy"),
        "pillow": version("pillow"),
        "distill": version("distill"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _commit() -> str | None:
    """The commit of the clone that this package runs from, with `+` where files were changed; None elsewhere."""
    folder = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "."], cwd=folder, capture_output=True, text=True
        )
    except OSError:
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "") if commit.returncode == 0 else None
