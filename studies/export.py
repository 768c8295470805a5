"""Export the course's networks, compare them with PyTorch and measure them: python -m studies.export [--compile]

Writes results/export.json. The teacher and ResNet-18 are the shipped ones; MobileNetV2 and timm's EfficientNet-Lite0
are trained here, for a few epochs only, into runs/export. Latencies are worth something only on a machine that has
nothing else to do: the record says how busy it was. --compile measures torch.compile too, which takes minutes.
"""

import os
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import distill
from distill.files import PROJECT, write_json
from distill.lab.export import Export, export, from_pixels
from distill.lab.latency import WAYS, measure_files
from distill.lab.parity import answer_of, compare_masks
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


def export_both(source: Path | str, folder: Path) -> dict[str, Export]:
    """The float32 and the int8 file of a network."""
    return {
        way: export(source, folder / f"{way}.onnx", size=SIZE, int8=way == "int8", data="sample")
        for way in ("onnx", "int8")
    }


def parity(source: Path | str, file: Export) -> dict[str, Any]:
    """Its size, and how far it agrees with PyTorch on the sample's val split."""
    found = {"bytes": file.path.stat().st_size, "opset": file.metadata["opset"], **file.check}
    if "agreement" not in found:
        val = distill.open_dataset("sample", "val")
        found |= compare_masks(from_pixels(open_network(source)), answer_of(file.path.read_bytes()), val)
    return found


def measured(
    networks: dict[str, dict[str, Any]], files: dict[str, dict[str, Export]], chosen: dict[str, tuple[Path | str, str]]
) -> dict[str, Any]:
    """The whole record. Latencies come last, all together: only then does the machine have to be quiet."""
    ways = WAYS if "--compile" in sys.argv else tuple(way for way in WAYS if way != "compiled")
    load = os.getloadavg()[0]
    for name, (source, _) in tqdm(chosen.items(), "latency"):
        networks[name]["latency"] = measure_files(source, files[name], SIZE, ways)
    libraries = {name: version(name) for name in ("onnx", "onnxruntime", "timm")}
    return {
        "command": " ".join(["python -m studies.export", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "environment": environment(torch.device("cpu")) | libraries,
        "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],  # before and after
        "size": list(SIZE),
        "networks": networks,
    }


def main() -> None:
    chosen, files, networks = sources(), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (source, trained) in tqdm(chosen.items(), "export"):
            files[name] = export_both(source, Path(folder) / name.replace(":", "-"))
            networks[name] = {
                "trained": trained,
                "parameters": files[name]["onnx"].metadata["parameters"],
                "files": {way: parity(source, file) for way, file in files[name].items()},
            }
        write_json(PROJECT / "results" / "export.json", measured(networks, files, chosen))


if __name__ == "__main__":
    main()
