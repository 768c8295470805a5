"""Damaged files by the thousand: python tests/fuzz.py --cases 10000

Every reader of this package is given files that were damaged at random, with hypothesis choosing the damage. It must
give what it gives for a good file, or raise a DistillError of one sentence; anything else is a fault, which hypothesis
then reduces to the smallest file that shows it. The suite runs a few hundred of the same cases (test_fuzz.py).
"""

import argparse
import base64
import copy
import io
import json
import pickle
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from distill import DistillError, build_model, load_teacher
from distill.data.check import check_dataset
from distill.data.folders import VOCFolder
from distill.data.labelme import import_labelme
from distill.data.layout import voc_palette
from distill.data.pictures import read_image, read_mask
from distill.files import PROJECT, read_json, write_json
from distill.lab.export import with_metadata
from distill.lab.tables import compare, markdown_table, read_study, record
from distill.networks.onnx_file import INPUT, OUTPUT, load_onnx
from distill.training.checkpoint import read_checkpoint
from distill.training.runs import Run, environment, find_runs, is_finished

Reader = Callable[[bytes, Path], object]  # from a damaged file's content and an empty folder

# ---------------------------------------------------------------------------------------------------- damage


@st.composite
def damaged(draw: st.DrawFn, good: list[bytes]) -> bytes:
    """A good file with up to three edits (overwritten, inserted, deleted, cut off), or no file of its kind at all."""
    content = draw(st.sampled_from([*good, b""]))
    if not content:
        return draw(st.binary(max_size=400))
    for _ in range(draw(st.integers(0, 3))):
        # Most formats have their sizes and types at the beginning, so half of the edits go there.
        place = draw(st.integers(0, min(200, len(content)))) if draw(st.booleans()) else draw(_anywhere(content))
        piece = draw(st.binary(min_size=1, max_size=8))
        match draw(st.sampled_from("ooooidc")):  # overwritten, most often, as nothing else keeps the length
            case "o":
                content = content[:place] + piece + content[place + len(piece) :]
            case "i":
                content = content[:place] + piece + content[place:]
            case "d":
                content = content[:place] + content[place + draw(st.integers(1, 50)) :]
            case "c":
                content = content[:place]
    return content


def _anywhere(content: bytes) -> st.SearchStrategy[int]:
    return st.integers(0, len(content))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**300, 10**310) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def altered(draw: st.DrawFn, good: list[Any]) -> Any:
    """A good JSON value in which up to three places were taken out or replaced by any other value."""
    value = {"": copy.deepcopy(draw(st.sampled_from(good)))}
    for _ in range(draw(st.integers(0, 3))):
        inside: Any = value
        while True:
            keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
            key = draw(st.sampled_from(keys)) if keys else None
            if key is None:
                break
            if not isinstance(inside[key], (dict, list)) or not inside[key] or draw(st.integers(0, 3)) == 0:
                if draw(st.booleans()) and inside is not value:
                    del inside[key]
                else:
                    inside[key] = draw(JSON)
                break
            inside = inside[key]
    return value[""]


def altered_json(good: list[Any]) -> st.SearchStrategy[bytes]:
    """As `altered`, or as `damaged`, as the content of a file."""
    return altered(good).map(lambda value: json.dumps(value).encode()) | damaged(
        [json.dumps(value).encode() for value in good]
    )


# ------------------------------------------------------------------------------------------------ good files


def _pictures(masks: bool) -> list[bytes]:
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    labels = Image.fromarray(rng.integers(0, 3, (9, 12), dtype=np.uint8))
    palette = labels.convert("P")
    palette.putpalette(voc_palette())
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    kinds: list[tuple[Image.Image, str, dict]] = [(labels, "PNG", {}), (palette, "PNG", {}), (palette, "GIF", {})]
    if not masks:
        kinds += [(colours, kind, {}) for kind in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")]
        kinds += [(colours, "JPEG", {"progressive": True}), (colours, "JPEG", {"exif": exif})]
        kinds += [(colours.convert(mode), "PNG", {}) for mode in ("RGBA", "LA", "1", "I;16", "P")]
        kinds += [(colours.convert("CMYK"), "JPEG", {}), (colours.convert("CMYK"), "TIFF", {})]
        kinds += [(colours, "GIF", {"save_all": True, "append_images": [labels]})]
    return [_saved(image, kind, **options) for image, kind, options in kinds]


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _sbd_mask() -> bytes:
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, {"GTcls": {"Segmentation": np.ones((5, 6), dtype=np.uint8), "CategoriesPresent": [1]}})
    return file.getvalue()


MASK = base64.b64encode(_saved(Image.fromarray(np.eye(3, dtype=np.uint8)), "PNG")).decode()
SCORE = {"miou": 0.5, "pixel_accuracy": 0.7, "per_class_iou": {"a": 0.5, "b": None}, "confusion": [[1, 0], [0, 1]]}
CONFIG = {
    "data": "sample",
    "images": 16,
    "class_names": ["a", "b"],
    "model": {"backbone": "resnet18", "num_classes": 2, "output_stride": 16, "width": 0.25},
    "parameters": 1000,
    "method": {"name": "kd", "terms": {"kd": {"weight": 1.0}}},
    "seed": 0,
    "preset": "sample",
    "teacher": {"weights": "0123456789abcdef"},
    "start": "0123456789abcdef",
    "settings": {"epochs": 2, "batch_size": 8, "lr": 0.1},
}
SCORES = {"protocol": "native", "epoch": 2, "best": {"epoch": 1, "val_miou": 0.5}, "val": SCORE, "test": SCORE}
HISTORY = [{"epoch": 1, "lr": 0.1, "loss": 2.0, "ce": 2.0, "seconds": 1.5}, {"epoch": 2, "seconds": 1.0}]
LABELME = {
    "version": "5.5.0",
    "imagePath": "a.png",
    "imageData": None,
    "imageHeight": 9,
    "imageWidth": 12,
    "shapes": [
        {"label": "cup", "points": [[1, 1], [7, 2.5], [4, 8]], "shape_type": "polygon", "flags": {}},
        {"label": "ball", "points": [[5, 5], [8, 5]], "shape_type": "circle", "group_id": None},
        {"label": "__ignore__", "points": [[2, 2], [4, 6]], "shape_type": "mask", "mask": MASK},
    ],
}
STUDY_RUN = {"data": "sample", "backbone": "resnet18", "method": "kd", "seed": 0, "split": "test", "seconds": 1.0}
STUDY = {
    "runs": [{**STUDY_RUN, "miou": 0.5}, {**STUDY_RUN, "method": "baseline", "miou": 0.4, "per_class_iou": {"a": 0.3}}],
    "teacher": {"miou": 0.8},
}


def _network() -> torch.nn.Module:
    return build_model("mobilenetv2", 2, width=0.1, head_width=0.0625, atrous_rates=(2, 3, 4))


def _weights() -> list[bytes]:
    network = _network()
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    config = json.dumps(network.config)
    few = {"a": torch.ones(2), "b": torch.zeros(2, 2, dtype=torch.int64)}
    return [save(state, {"config": config}), save(few, {"config": config}), save(few, {"x": "y"}), save(few)]


ONNX_METADATA = {
    "classes": ["a", "b"],
    "palette": [[0, 0, 0], [128, 0, 0]],
    "input": {"order": "RGB"},
    "scores": {},
    "parameters": 8,
    "distill_version": "0.1.0",
    "opset": 18,
    "precision": "float32",
}


def _onnx() -> bytes:
    """A network of one 1 x 1 convolution, without metadata; it takes images of any size."""
    tensor, numbers = onnx.helper.make_tensor_value_info, onnx.TensorProto
    weight = onnx.numpy_helper.from_array(np.ones((2, 3, 1, 1), dtype=np.float32), "weight")
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Cast", [INPUT], ["real"], to=numbers.FLOAT),
            onnx.helper.make_node("Conv", ["real", "weight"], [OUTPUT]),
        ],
        "fuzz",
        [tensor(INPUT, numbers.UINT8, ["batch", 3, "height", "width"])],
        [tensor(OUTPUT, numbers.FLOAT, ["batch", 2, "height", "width"])],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


def _checkpoints() -> list[bytes]:
    few = {"decoder.last_conv.8.weight": torch.ones(2, 3, 1, 1), "module.a": torch.zeros(2)}
    values = [few, {"epoch": 3, "state_dict": few, "best_pred": np.float64(0.7)}, [1, 2], {"state_dict": {"a": 1}}]
    files = [pickle.dumps(values), pickle.dumps({"a": print})]
    for value in values:
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(value, file, _use_new_zipfile_serialization=zipped)
            files.append(file.getvalue())
    return files


def _last() -> list[bytes]:
    network = _network()
    optimizer = torch.optim.AdamW(network.parameters())
    state = {"student": network.state_dict(), "optimizer": optimizer.state_dict(), "history": HISTORY, "best": {}}
    file = io.BytesIO()
    torch.save(state | {"method": {}, "schedule": {}, "random": torch.get_rng_state()}, file)
    return [file.getvalue()]


# --------------------------------------------------------------------------------------------------- readers


def _put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read_any_image(content: bytes, folder: Path) -> None:
    image = read_image(_put(folder, "x.jpg", content))
    assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8


def read_any_mask(content: bytes, folder: Path) -> None:
    name = "x.mat" if content[:6] == b"MATLAB" else "x.png"
    mask = read_mask(_put(folder, name, content), 3)
    assert mask.ndim == 2 and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1, 2, 255}


def read_any_list(content: bytes, folder: Path) -> None:
    """As the list of a data set, and as its class names."""
    for name in ("a", "b"):
        _put(folder, f"JPEGImages/{name}.jpg", GOOD_IMAGE)
        _put(folder, f"SegmentationClass/{name}.png", GOOD_MASK)
    path = _put(folder, "ImageSets/Segmentation/train.txt", content)
    _either(lambda: [VOCFolder(folder)[index] for index in range(len(VOCFolder(folder)))])
    _either(lambda: check_dataset(folder, progress=False))
    path.write_text("a\nb\n")
    _put(folder, "class_names.txt", content)
    dataset = VOCFolder(folder)
    assert 1 <= dataset.num_classes <= 255 and len(set(dataset.class_names)) == dataset.num_classes


def read_any_labelme(content: bytes, folder: Path) -> None:
    source = folder / "photos"
    _put(source, "a.json", content)
    _put(source, "a.png", GOOD_IMAGE)
    mask = read_mask(import_labelme(source, folder / "out", progress=False) / "SegmentationClass" / "a.png", 255)
    assert mask.shape == read_image(source / "a.png").shape[:2]


def _either(read: Callable[[], object]) -> None:
    try:
        read()
    except DistillError as error:
        one_sentence(error)


def read_any_run(content: bytes, folder: Path) -> None:
    """Four files of a run, one of them damaged: the first byte says which."""
    names = ("config.json", "scores.json", "history.jsonl", "environment.json")
    good = [CONFIG, SCORES, None, {"torch": "2", "data_root": str(folder)}]
    for name, value in zip(names, good, strict=True):
        lines = json.dumps(value) if value else "".join(json.dumps(line) + "\n" for line in HISTORY)
        _put(folder, name, lines.encode())
    _put(folder, names[content[0] % 4] if content else names[0], content[1:])
    run = Run(folder)
    _either(lambda: (run.environment, run.data_root))
    _either(lambda: is_finished(folder, CONFIG, True))
    _either(lambda: (run.history, run.scores, run.config))
    markdown_table(compare([record(found) for found in find_runs(folder)], 0.8))


def read_any_study(content: bytes, folder: Path) -> None:
    markdown_table(compare(*read_study(_put(folder, "study.json", content))))


def load_any_weights(content: bytes, folder: Path) -> None:
    load_teacher(_put(folder, "x.safetensors", content))


def load_any_checkpoint(content: bytes, folder: Path) -> None:
    load_teacher(_put(folder, "x.pth.tar", content))


def load_any_onnx(content: bytes, folder: Path) -> None:
    network = load_onnx(_put(folder, "x.onnx", content))
    assert network(torch.zeros(1, 3, *(network.size or (4, 5)), dtype=torch.uint8)).shape[1] == network.num_classes


def resume_any_checkpoint(content: bytes, folder: Path) -> None:
    network = _network()
    parts = {"student": network, "optimizer": torch.optim.AdamW(network.parameters())}
    read_checkpoint(_put(folder, "last.pt", content), parts, torch.device("cpu"))


def one_sentence(error: DistillError) -> None:
    message = str(error)
    assert message and "\n" not in message and len(message) < 1000, message


GOOD_IMAGE, GOOD_MASK = _pictures(masks=False)[3], _pictures(masks=True)[0]
LISTS = [b"a\nb\n", "a\nb ä\nc/d".encode(), b"../a\n/b\n", b"\xff\xfea\0", b"__ignore__\na\n", b"C:\\a\r\nb\r\n\r\n"]


def _config_in_header(value: Any) -> bytes:
    return save({"a": torch.ones(2)}, {"config": json.dumps(value)})


def _with_any_metadata(value: Any) -> bytes:
    return with_metadata(_onnx(), value if isinstance(value, dict) else {"classes": value})


TARGETS: dict[str, tuple[st.SearchStrategy[bytes], Reader]] = {
    "image": (damaged(_pictures(masks=False)), read_any_image),
    "mask": (damaged([*_pictures(masks=True), _sbd_mask()]), read_any_mask),
    "list of images, class names": (damaged(LISTS) | st.text(max_size=60).map(str.encode), read_any_list),
    "labelme's file": (altered_json([LABELME]), read_any_labelme),
    "run (config, scores, history, environment)": (
        st.one_of(
            altered_json([CONFIG]).map(lambda content: b"\0" + content),
            altered_json([SCORES]).map(lambda content: b"\1" + content),
            altered(HISTORY).map(lambda line: b"\2" + json.dumps(line).encode()),
            damaged(["\n".join(map(json.dumps, HISTORY)).encode()]).map(lambda content: b"\2" + content),
            altered_json([{"torch": "2", "data_root": "/nowhere"}]).map(lambda content: b"\3" + content),
        ),
        read_any_run,
    ),
    "recorded study": (altered_json([STUDY]), read_any_study),
    "load_teacher: safetensors": (
        damaged(_weights()) | altered([_network().config]).map(_config_in_header),
        load_any_weights,
    ),
    "load_teacher: checkpoint": (damaged(_checkpoints()), load_any_checkpoint),
    "ONNX file": (
        damaged([with_metadata(_onnx(), ONNX_METADATA), _onnx()]) | altered([ONNX_METADATA]).map(_with_any_metadata),
        load_any_onnx,
    ),
    "checkpoint of a run": (damaged(_last()), resume_any_checkpoint),
}


def fuzz(name: str, cases: int, seed: int = 0) -> Counter:
    """Try `cases` damaged files; returns how many were read and how many refused, and raises at the first fault."""
    strategy, reader = TARGETS[name]
    outcomes: Counter = Counter()

    @settings(
        max_examples=cases,
        derandomize=seed == 0,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def case(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                reader(content, Path(folder))
                outcomes["read"] += 1
            except DistillError as error:
                one_sentence(error)
                outcomes["refused"] += 1

    case()
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="of each kind")
    parser.add_argument("--only", choices=TARGETS, nargs="+", default=list(TARGETS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = PROJECT / "results" / "fuzz.json"
    known = {kind["what"]: kind for kind in read_json(path)["kinds"]}
    for name in options.only:
        start = time.perf_counter()
        outcomes = fuzz(name, options.cases)
        where = environment(torch.device("cpu"))
        known[name] = {"what": name, **outcomes, "seconds": round(time.perf_counter() - start, 1), "environment": where}
        print(name, dict(outcomes), flush=True)
        kinds = [known[kind] for kind in TARGETS if kind in known]
        write_json(path, {"command": f"python tests/fuzz.py --cases {options.cases}", "kinds": kinds})


if __name__ == "__main__":
    main()
