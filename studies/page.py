"""Build the page, a folder of static files: python studies/page.py [--out build/page]

It holds the files in page/, the three shipped networks as ONNX, scenes with their labels, and
onnxruntime-web, which npm fetches once and build/npm keeps. Any static host serves the folder, and so does
`python -m http.server`.
"""

import argparse
import base64
import colorsys
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from distill import load_model, load_teacher
from distill.cli import explained
from distill.data.layout import voc_palette
from distill.data.sample import FAMILIES, SAMPLE_CLASSES, VOID, scene, shape_pieces
from distill.errors import DistillError
from distill.files import PROJECT, make_folder, replace_file
from distill.lab.export import export
from distill.networks.teachers import shipped_file
from distill.show.widgets import TEMPERATURES

SOURCE = PROJECT / "page"
OUT = PROJECT / "build" / "page"
CACHE = PROJECT / "build" / "npm"
MOST_BYTES = 15_000_000  # of the whole folder
SCENES = 12  # the first of the test split

RUNTIME = "onnxruntime-web"
VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# With these two files it runs on the processor, with SIMD and, where the browser allows, threads. Those for WebGPU are
# half a megabyte to three megabytes larger, and networks as slim as ours are no faster with it.
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"

NETWORKS = {
    "teacher": lambda: load_teacher("sample"),
    "student, distilled": lambda: load_model(shipped_file("student-resnet18-distilled.safetensors")),
    "student, alone": lambda: load_model(shipped_file("student-resnet18-baseline.safetensors")),
}
HUES = dict(zip(("red", "orange", "yellow", "green", "turquoise", "blue", "purple"), FAMILIES, strict=True))


def build(out: Path = OUT, cache: Path = CACHE) -> Path:
    """Make the page in the folder `out` and return it; an older page there is replaced whole.

    Raises DistillError when npm cannot fetch onnxruntime-web, the page becomes too large, or `out` is no page.
    """
    if out.exists() and not (out / "page.json").exists() and any(out.iterdir()):
        raise DistillError(f"{out} is not empty and holds no page; choose another folder")
    make_folder(out.parent)
    package = fetch_runtime(cache)
    with tempfile.TemporaryDirectory(prefix=".page-", dir=out.parent) as folder:
        made = Path(folder) / "page"
        shutil.copytree(SOURCE, made)
        palette = np.reshape(voc_palette(), (-1, 3))[: len(SAMPLE_CLASSES)].copy()
        palette[0] = 255  # from white all but two of the classes differ by 3 : 1 or more, from black eight do not
        manifest = {
            "classes": list(SAMPLE_CLASSES),
            "palette": palette.tolist(),
            "temperatures": list(TEMPERATURES),
            "runtime": write_runtime(package, made),
            "networks": [write_network(name, made) for name in NETWORKS],
            "scenes": [write_scene(index, made) for index in range(SCENES)],
            "shapes": {
                name: [[add, points.tolist()] for add, points in shape_pieces(name)] for name in SAMPLE_CLASSES[1:]
            },
            "colours": {name: _css(hue, 0.7, 0.8) for name, hue in HUES.items()} | {"grey": "#8b8f88"},
        }
        (made / "page.json").write_text(json.dumps(manifest), encoding="utf-8")
        size = folder_size(made)
        if size > MOST_BYTES:
            raise DistillError(
                f"the page has {size / 1e6:.1f} MB and may have {MOST_BYTES / 1e6:.0f}; choose a smaller version of "
                f"{RUNTIME} in {Path(__file__).name}"
            )
        made.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        made.rename(out)
    return out


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------------- runtime


def fetch_runtime(cache: Path) -> Path:
    """The package of onnxruntime-web as npm has it, checked; fetched where the folder `cache` does not hold it."""
    path = cache / f"{RUNTIME}-{VERSION}.tgz"
    if not path.exists():
        make_folder(cache)
        with tempfile.TemporaryDirectory(dir=cache) as folder, replace_file(path) as temporary:
            _npm_pack(Path(folder))
            shutil.copyfile(Path(folder) / path.name, temporary)
    found = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != INTEGRITY:
        raise DistillError(f"{path} is not {RUNTIME} {VERSION} (its checksum is {found}); delete it and build again")
    return path


def _npm_pack(folder: Path) -> None:
    """Download the package into a folder; nothing of it is run."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    npm = shutil.which("npm", path=path)
    if npm is None:
        raise DistillError("the page needs npm, and there is none; pip install -e '.[page]' brings it")
    command = [npm, "pack", f"{RUNTIME}@{VERSION}", "--fetch-retries=1", "--pack-destination", str(folder)]
    # The npm of the extra `page` finds its node beside it.
    result = subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    if result.returncode:
        said = [line for line in result.stderr.splitlines() if "error" in line.lower()]
        raise DistillError(
            f"npm could not fetch {RUNTIME} {VERSION} ({said[0] if said else 'it gave no reason'}); connect to the "
            f"network once, or put {RUNTIME}-{VERSION}.tgz into {CACHE}"
        )


def write_runtime(package: Path, folder: Path) -> dict:
    """The script as it is, the WebAssembly compressed: not every host compresses what it sends."""
    with tarfile.open(package) as archive:
        script, wasm = (archive.extractfile(f"package/dist/{name}").read() for name in (SCRIPT, WASM))
    # Its last line names a source map that is not here, which browsers would look for.
    lines = [line for line in script.decode().splitlines() if not line.startswith("//# sourceMappingURL")]
    (folder / "ort.js").write_text("\n".join(lines), encoding="utf-8")
    return {"version": VERSION, **write_packed(wasm, folder / "ort.bin")}


def write_packed(content: bytes, path: Path) -> dict:
    """A gzip file, under a name that no host treats in a way of its own."""
    packed = gzip.compress(content, 9, mtime=0)
    path.write_bytes(packed)
    return {"file": path.name, "bytes": len(packed)}


# ------------------------------------------------------------------------------------------------------ networks


def write_network(name: str, folder: Path) -> dict:
    with tempfile.TemporaryDirectory() as temporary:
        exported = export(NETWORKS[name](), Path(temporary) / "network.onnx")
        model = halved(onnx.load(exported.path))
    file = name.replace(", ", "-") + ".bin"
    packed = write_packed(model.SerializeToString(), folder / file)
    return {"name": name, "parameters": int(exported.metadata["parameters"]), **packed}


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with weights that are stored in half precision and cast to single when it is loaded.

    It computes in float32 as before. The shipped weights are in half precision themselves; only their products with
    the BatchNorms', which the export made, are rounded again.
    """
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < 64:  # scales of the input stay exact
            continue
        name = weight.name
        half = numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


# -------------------------------------------------------------------------------------------------------- scenes


def write_scene(index: int, folder: Path) -> dict:
    """A scene of the test split as a PNG file, and its labels, a byte for each pixel."""
    image, labels = scene("test", index)
    names = {"image": f"scene{index}.png", "labels": f"scene{index}-labels.bin"}
    Image.fromarray(image).save(folder / names["image"])
    (folder / names["labels"]).write_bytes(labels.astype(np.uint8).tobytes())  # a byte is a class
    shown = [SAMPLE_CLASSES[label] for label in np.unique(labels) if label not in (0, VOID)]
    return {**names, "classes": shown}


def _css(hue: float, saturation: float, value: float) -> str:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return f"#{red:02x}{green:02x}{blue:02x}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where to (default: build/page)")
    out = build(parser.parse_args().out)
    print(f"{out}: {folder_size(out) / 1e6:.1f} MB. See it: python -m http.server --bind 127.0.0.1 --directory {out}")


if __name__ == "__main__":
    raise SystemExit(explained(main))
