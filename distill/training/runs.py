"""The files of a run.

config.json         every value that shaped the run        history.jsonl        one line per epoch
environment.json    versions, device, commit               last.pt              everything needed to resume
scores.json         scores of the last epoch (and best)    student.safetensors  last epoch; best.safetensors
.lock               held by the one process that writes
"""

import copy
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn
from typing_extensions import NotRequired, TypedDict  # pydantic wants these before Python 3.12

from distill.data.folders import PASCAL, VOCFolder, open_dataset
from distill.data.layout import IMAGES
from distill.data.unlabelled import WithUnlabelled
from distill.errors import DistillError, nearest
from distill.files import (
    PROJECT,
    Number,
    checked,
    held,
    is_whole,
    make_folder,
    read_json,
    read_json_lines,
    remove_parts,
    write_json,
    write_text,
)
from distill.losses import class_weights
from distill.methods import Method, with_every_option
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.onnx_file import OnnxNetwork, load_onnx
from distill.networks.saving import load_model
from distill.networks.teachers import fingerprint, load_teacher, shipped_file
from distill.networks.wrapped import Wrapped, taps_of, wrap
from distill.training.optimizer import pixels_by_class
from distill.training.parallel import Ranks
from distill.training.settings import NEUTRAL, Settings, with_every_setting

KEPT = ("last.pt", "student.safetensors", "scores.json")  # what a run has made, when it has made something
SHIPPED_STUDENTS = ("student-resnet18-baseline", "student-resnet18-distilled")
NAMES = ("sample", "torchvision", *SHIPPED_STUDENTS)  # of networks, whatever folders are called


# What must be in the files that a program goes on with; there is more in them.
class _Score(TypedDict):
    miou: Number
    pixel_accuracy: Number
    per_class_iou: dict[str, Any]


class _Best(TypedDict):
    val_miou: Number


class _Scores(TypedDict):
    best: _Best
    val: _Score
    test: NotRequired[_Score]


class RecordedEpoch(TypedDict):
    """What a record keeps of a line of the history."""

    epoch: int
    loss: NotRequired[Number]
    ce: NotRequired[Number]
    val_miou: NotRequired[Number]


class _Epoch(RecordedEpoch):
    seconds: Number
    cpu_seconds: NotRequired[Number]


class _Taps(TypedDict):
    positions: dict[str, str]
    norms: dict[str, str]


class _Model(TypedDict):
    backbone: str
    wrapped: NotRequired[_Taps]


class _Method(TypedDict):
    name: str
    terms: dict[str, Any]


class _Settings(TypedDict):
    epochs: int


class _Config(TypedDict):
    data: str
    images: int
    model: _Model
    method: _Method
    seed: int
    start: str
    parameters: int
    settings: _Settings


@dataclass(frozen=True, init=False)
class Run:
    """A finished or interrupted run in the folder `path`."""

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path))
        if not is_whole(self.path / "config.json"):
            raise DistillError(
                f"{self.path} holds no config.json, so it is not a run; give the folder that `train` wrote"
            )

    @property
    def config(self) -> dict[str, Any]:
        """Every value that shaped the run."""
        path = self.path / "config.json"
        return checked(read_json(path), _Config, path, "the config of a run")

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware and commit, to publish with the scores; without folders of this machine."""
        return {key: value for key, value in self._surroundings.items() if key != "data_root"}

    @property
    def _surroundings(self) -> dict[str, Any]:
        path = self.path / "environment.json"
        return checked(read_json(path), dict[str, Any], path, "the environment of a run") if path.exists() else {}

    @property
    def data_root(self) -> Path | None:
        """The folder of the data that it was trained on, if it still exists."""
        root = self._surroundings.get("data_root")
        return Path(root) if isinstance(root, str) and os.path.isdir(root) else None

    def images_of(self, split: str, root: str | Path | None = None, limit: int | None = None) -> VOCFolder:
        """A split of the data that it was trained on, in `root` where they lie elsewhere now."""
        data, named = self.config["data"], ("sample", *PASCAL)
        if root is None and self.data_root and data not in named:  # its folder, which may hold another of its name
            return open_dataset(self.data_root, split, limit=limit)
        root = root or self.data_root
        if root is None and data not in named and not Path(data).is_dir():
            raise DistillError(
                f"the data of {self.path}, a folder called {data}, are no longer where they were; give data_root "
                f"(--data-root), where they are now"
            )
        if data == "sample" and root and (Path(root) / IMAGES).is_dir() and not (Path(root) / "sample.txt").exists():
            return open_dataset(Path(root), split, limit=limit)  # a folder of that name, and not the drawn scenes
        return open_dataset(data, split, root, limit)

    @property
    def scores(self) -> dict[str, Any]:
        """Scores of the last epoch, `val` and, with a test split, `test`; and of the `best` epoch seen on val."""
        path = self.path / "scores.json"
        if not is_whole(path):
            raise DistillError(
                f"{self.path} has no scores.json: the run is not finished; start the same command to resume it"
            )
        return checked(read_json(path), _Scores, path, "the scores of a run")

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end and scored."""
        return is_whole(self.path / "scores.json")

    @property
    def history(self) -> list[dict[str, Any]]:
        """One dict per epoch with epoch, lr, loss, each part of the loss, seconds, and at times val_miou."""
        path = self.path / "history.jsonl"
        lines = read_json_lines(path) if path.exists() else []
        return [checked(line, _Epoch, path, f"line {number} of a history") for number, line in enumerate(lines, 1)]

    @overload
    def student(self, network: None = None) -> DeepLabV3Plus: ...

    @overload
    def student(self, network: nn.Module) -> Wrapped: ...

    def student(self, network: nn.Module | None = None) -> DeepLabV3Plus | Wrapped:
        """The network of the last epoch, in eval mode.

        `network`: for a network of another library, one that is built in the same way; it gets the weights and
        is returned wrapped. Raises DistillError when it is missing or another one.
        """
        return load_model(self.path / "student.safetensors", network).eval()

    def class_weights(self, root: str | Path | None = None) -> torch.Tensor:
        """What its cross-entropy was multiplied with, (C,) by class; the masks of its train split are read for that.

        `root`: the data set, where it lies elsewhere now. Raises DistillError for a run without class weights, and
        where the images or masks are others than those of the run (of one with `unlabelled` images that is not told).
        """
        config = self.config
        if config["settings"].get("class_weights", "none") == "none":
            raise DistillError(f"{self.path} was trained without class weights; there is nothing to undo")
        train = self.images_of("train", root, config["images"])
        trained_on = (config.get("content") or {}).get("train")
        if trained_on and not config.get("unlabelled") and train.fingerprint() != trained_on:
            raise DistillError(
                f"the train split in {train.root} is another than the one of {self.path}: its list, images or masks "
                f"have changed; give the folder that it was trained on"
            )
        return class_weights(pixels_by_class(train, config["settings"].get("labelled", 0)))


def open_network(source: Run | str | Path | nn.Module) -> nn.Module:
    """The network that is meant, in eval mode; a network itself as it is.

    `source` is a run or its folder, a file (.safetensors, .onnx or .pth.tar), the name of a shipped network ("sample",
    the teacher; "student-resnet18-distilled"), "torchvision", or a network itself.

    Raises DistillError where there is no such network.
    """
    if isinstance(source, nn.Module):
        inner = getattr(source, "_orig_mod", source)  # of a compiled one
        if isinstance(inner, DeepLabV3Plus | Wrapped | OnnxNetwork):
            return source
        return wrap(copy.deepcopy(source), class_names=getattr(source, "class_names", None))  # it changes its ReLUs
    if isinstance(source, Run):
        return source.student()
    if run := run_of(source):
        return run.student()
    path = Path(source)
    if str(source) in SHIPPED_STUDENTS:
        path = shipped_file(f"{source}.safetensors")
    if path.suffix == ".onnx":
        return load_onnx(path)
    if path.suffix == ".pt2":
        raise DistillError(
            f"{path} is an exported program, for torch.export.load; give the run that it is of, or an export to ONNX"
        )
    if not (path.suffix or path.exists() or str(source) in NAMES):
        raise DistillError(
            f"there is no run or network at {path}{nearest(str(source), NAMES)}, folders of runs, and files that end "
            "in .safetensors, .onnx or .pth.tar"
        )
    return load_model(path).eval() if path.suffix == ".safetensors" else load_teacher(source)


def run_of(source: object) -> Run | None:
    """The run that is meant, where it is one or its folder; a folder that is called as a network is `./sample`."""
    if isinstance(source, str | Path) and str(source) not in NAMES and Path(source).is_dir():
        return Run(Path(source))
    return source if isinstance(source, Run) else None


def run_folder(root: str | Path, data: str, backbone: str, method: str, seed: int) -> Path:
    return Path(root) / data / backbone.replace(":", "-") / method / f"seed{seed}"  # a colon is no name on Windows


def epochs_trained(folder: Path) -> int:
    """How many epochs of a run are trained, also while it is."""
    try:
        return (folder / "history.jsonl").read_bytes().count(b"\n")
    except OSError:  # not there yet; or, on Windows, just being replaced
        return 0


def find_runs(*folders: str | Path) -> list[Run]:
    """All finished runs at or below the folders, each once; links to folders are followed."""
    paths, seen = [], set()
    for place, below, files in chain.from_iterable(os.walk(folder, followlinks=True) for folder in folders):
        if (real := os.path.realpath(place)) in seen:  # a link to where the walk has been, or is
            below.clear()
            continue
        seen.add(real)
        below.sort()
        paths += [Path(place)] if "scores.json" in files else []
    paths.sort()
    runs = [Run(path) for path in paths if is_whole(path / "config.json") and is_whole(path / "scores.json")]
    if not runs:
        raise DistillError(f"there is no finished run in {', '.join(map(str, folders))}; train one first")
    return runs


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and commit of this process, as JSON values."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": version("numpy"),
        "pillow": version("pillow"),
        "distill": own_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "commit": _commit(),
    }


def own_version() -> str | None:
    """None where the clone runs without being installed."""
    try:
        return version("distill")
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _commit() -> str | None:
    """The commit of the clone that this package runs from, with `+` where files were changed; None elsewhere.

    Elsewhere may be within another repository, whose commit says nothing of this package.
    """
    try:
        if Path(_git("rev-parse", "--show-toplevel")).resolve() != PROJECT:
            return None
        return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    folder = PROJECT / "distill"
    found = subprocess.run(["git", *words], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return os.fsdecode(found.stdout).strip()


def config_of(
    data: str | Path,
    train: VOCFolder,
    val: VOCFolder,
    student: DeepLabV3Plus | Wrapped,
    teacher: nn.Module | None,
    method: Method,
    seed: int,
    preset: str,
    settings: Settings,
    ranks: Ranks,
) -> dict[str, Any]:
    """Every value that shapes a run, the content of its images and masks included.

    `images` are those of the split; `unlabelled` and `frozen` are there only where there are any.
    """
    extra = len(train.extra) if isinstance(train, WithUnlabelled) else 0
    frozen = sorted(name for name, weight in student.named_parameters() if not weight.requires_grad)
    return {
        "data": name_of(data),
        "images": len(train) - extra,
        **({"unlabelled": extra} if extra else {}),
        **({"frozen": frozen} if frozen else {}),
        "class_names": list(train.class_names),
        "content": {"train": train.fingerprint(), "val": val.fingerprint()},
        "model": student.config,
        "parameters": sum(p.numel() for p in student.parameters()),
        "method": method.describe(),
        "seed": seed,
        "preset": preset,
        "teacher": _teacher(teacher),
        "start": fingerprint(student),
        "settings": asdict(settings),
        # Without common statistics of BatchNorm the number of processes shapes the result.
        "processes": 1 if settings.sync_batchnorm else ranks.world,
    }


def _teacher(teacher: nn.Module | None) -> dict[str, Any] | None:
    """Its weights, what builds it and, of another library's network, which layers are tapped."""
    if teacher is None:
        return None
    taps = taps_of(teacher)
    config = {"taps": taps} if taps else getattr(teacher, "config", {})
    return {"weights": fingerprint(teacher), **config}


def name_of(data: str | Path) -> str:
    """What data are called: the name of a data set, or of a folder, wherever it is seen from."""
    return Path(os.path.abspath(data)).name or "data"  # a link keeps its own name


def is_finished(folder: Path, config: dict[str, Any], resume: bool) -> bool:
    """Whether the folder holds this run, finished; DistillError if it holds another, or one not to be resumed.

    Another that was stopped before anything was saved, as by an image that had to be mended, makes room for this one.
    """
    if not (folder / "config.json").exists():
        _refuse_strangers(folder)
    if not is_whole(folder / "config.json"):
        return False
    there, config = _decisive(Run(folder).config), _decisive(_as_json(config))
    config["content"] = config["content"] if "content" in there else None  # runs of before do not tell
    different = sorted(key for key in config.keys() | there.keys() if config.get(key) != there.get(key))
    if different and keeps_nothing(folder):
        return False
    if different:
        said = {
            "content": "content (images, masks, lists or class names)",
            "data": "name of the data",
            "code": "code of the method",
            "start": "first weights (of a network of yours: set PyTorch's seed)",
        }
        what = ", ".join(said.get(key, key) for key in different)
        raise DistillError(f"{folder} holds a run whose {what} differ from what is asked for; choose another --out")
    finished = Run(folder).finished
    if not finished and not resume:
        raise DistillError(f"{folder} holds an unfinished run; resume it, or choose another --out")
    return finished


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a configuration another run: without what changes no result, and with every default."""
    every = with_every_setting(config["settings"])
    method = {name: value for name, value in config["method"].items() if name != "code"}
    method["terms"] = with_every_option(method["terms"])
    told = {name: value for name, value in config.items() if name != "initial_weights"}  # `start` tells more
    return (
        {"processes": 1}
        | told
        | {
            "settings": {name: value for name, value in every.items() if name not in NEUTRAL},
            "method": method,
            "code": config["method"].get("code"),
        }
    )


def keeps_nothing(folder: Path) -> bool:
    """Whether a run that was begun there has saved nothing yet, so that another one may take its place."""
    return not any((folder / name).exists() for name in KEPT)


def _refuse_strangers(folder: Path) -> None:
    """DistillError for a folder with files that a run would replace, and with no run that they are of."""
    there = next((folder / name for name in (*KEPT, "best.safetensors") if (folder / name).exists()), None)
    if there:
        raise DistillError(f"{there} is of no run and would be replaced; choose another --out, or move it away")


@contextmanager
def begun(
    folder: Path, config: dict[str, Any], resume: bool, data_root: Path, device: torch.device, ranks: Ranks
) -> Iterator[bool]:
    """Hold the folder of a run for this process alone; gives whether the run is finished already.

    The first rank holds a file that is never replaced, and only then looks at what is there: of two that start at
    once, the second sees the config of the first.
    """
    if not ranks.first:
        yield False
        return
    make_folder(folder)
    with held(folder / ".lock") as alone:
        finished = is_finished(folder, config, resume)
        if not finished:
            if alone:
                remove_parts(folder)
            _write_config(folder, config, data_root, device, ranks)
            keep_place(folder, data_root)
        yield finished


def _write_config(folder: Path, config: dict[str, Any], data_root: Path, device: torch.device, ranks: Ranks) -> None:
    if not is_whole(folder / "config.json") or keeps_nothing(folder):
        about = {**environment(device), "processes": ranks.world, "data_root": str(data_root.resolve())}
        write_json(folder / "environment.json", about)
        write_json(folder / "config.json", config)


def keep_place(folder: Path, data_root: Path) -> None:
    """Where the data are now, which may have been moved since the run was begun."""
    path, place = folder / "environment.json", str(data_root.resolve())
    there = read_json(path) if is_whole(path) else None
    if isinstance(there, dict) and there.get("data_root") != place:
        write_json(path, {**there, "data_root": place})


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value))


def write_history(folder: Path, history: list[dict[str, Any]]) -> None:
    write_text(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in history))
