"""Export the course's networks, compare them with PyTorch and measure them: python -m studies.export

Writes results/export.json. The teacher and ResNet-18 are the shipped ones; MobileNetV2 and timm's EfficientNet-Lite0
are trained here, for a few epochs only, into runs/export. Latencies are worth something only on a machine that has
nothing else to do: the record says how busy it was.
"""

import os
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import distill
from distill.files import PROJECT, write_json
from distill.lab.export import Export, export, from_pixels
from distill.lab.latency import measure_files
from distill.lab.parity import answer_of, compare_masks
from distill.lab.tables import results_file
from distill.training.runs import Run, environment, open_network

SIZE = (64, 64)  # of the sample's images
RUNS = PROJECT / "runs" / "export"
SHIPPED = {"resnet101": "sample", "resnet18": "student-resnet18-distilled"}
SHORT: dict[str, dict[str, Any]] = {
    "mobilenetv2": {"epochs": 16},
    "timm:tf_efficientnet_lite0": {"epochs": 2, "weights": "package"},
}


def sources() -> dict[str, tuple[Path | str, str]]:
    """By the name of its backbone, what is exported and how it was trained; trains short runs that are not there."""
    found: dict[str, tuple[Path | str, str]] = {name: (source, "shipped") for name, source in SHIPPED.items()}
    for backbone, options in SHORT.items():
        out = RUNS / backbone.replace(":", "-")
        run = distill.fit(backbone, "kd", out=out, device="cpu", **options)
        found[backbone] = run.path, f"kd, {Run(run.path).config['settings']['epochs']} epochs only"
    return found


def examine(source: Path | str, folder: Path) -> dict[str, Any]:
    """Both files of a network: parity on the sample's val, size, and what one image takes in every way."""
    files = {
        way: export(source, folder / f"{way}.onnx", size=SIZE, int8=way == "int8", data="sample")
        for way in ("onnx", "int8")
    }
    return {
        "parameters": files["onnx"].metadata["parameters"],
        "files": {way: _parity(source, file) for way, file in files.items()},
        "latency": measure_files(source, files, SIZE),
    }


def _parity(source: Path | str, file: Export) -> dict[str, Any]:
    found = {"bytes": file.path.stat().st_size, "opset": file.metadata["opset"], **file.check}
    if "agreement" not in found:
        val = distill.open_dataset("sample", "val")
        found |= compare_masks(from_pixels(open_network(source)), answer_of(file.path.read_bytes()), val)
    return found


def main() -> None:
    load = os.getloadavg()[0]
    networks = {}
    for name, (source, trained) in tqdm(sources().items(), "networks"):
        with tempfile.TemporaryDirectory() as folder:
            networks[name] = {"trained": trained, **examine(source, Path(folder))}
    libraries = {name: __import__(name).__version__ for name in ("onnx", "onnxruntime", "timm")}
    record = {
        "command": "python -m studies.export",
        "date": date.today().isoformat(),
        "environment": environment(torch.device("cpu")) | libraries,
        "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],  # before and after
        "size": list(SIZE),
        "networks": networks,
    }
    write_json(results_file("export.json"), record)


if __name__ == "__main__":
    main()
