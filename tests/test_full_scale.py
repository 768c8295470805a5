"""Pascal VOC on miniature trees of the true layout: what docs/voc.md and notebook 08 tell readers to type, typed."""

import json
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from conftest import tiny_network
from PIL import Image

import distill
from distill import cli, open_dataset
from distill.data.layout import voc_palette
from distill.data.sample import scene
from distill.files import PROJECT
from distill.lab.plan import load_study, plan
from distill.networks import teachers
from distill.networks.deeplab import DeepLabV3Plus
from distill.training import presets
from distill.training.parallel import Ranks
from distill.training.presets import choose_settings
from distill.training.settings import Settings

SMALL = "--crop-size 33 --batch-size 4 --epochs 2 --workers 0 --device cpu"
TRAIN, VAL, FURTHER = 6, 3, 4  # images of VOC's lists, and of SBD's that are in neither


def _save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture)
    if picture.ndim == 2:
        image.putpalette(voc_palette())
    image.save(path)


def _write_list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


@pytest.fixture
def voc_tree(tmp_path: Path) -> Path:
    """DIR with VOC 2012 alone, its 21 classes on scenes of the sample, of several sizes."""
    root = tmp_path / "DIR"
    home = root / "VOCdevkit" / "VOC2012"
    for split, count in (("train", TRAIN), ("val", VAL)):
        names = [f"2007_{split}{index}" for index in range(count)]
        for index, name in enumerate(names):
            image, labels = scene(split, index, size=48)
            height = 36 + 4 * (index % 3)
            _save(home / "JPEGImages" / f"{name}.jpg", image[:height])
            _save(home / "SegmentationClass" / f"{name}.png", labels[:height])
        _write_list(home / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    return root


def _further() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {f"2010_{index}": scene("train", 100 + index, size=48) for index in range(FURTHER)}


@pytest.fixture
def sbd_tree(voc_tree: Path) -> Path:
    """With SBD as its own archive holds it: .mat files, and lists that name images of VOC's train and val too."""
    sbd, further = voc_tree / "sbd", _further()
    (sbd / "cls").mkdir(parents=True)
    for name, (image, labels) in further.items():
        _save(sbd / "img" / f"{name}.jpg", image)
        content = np.zeros((1, 1), dtype=[("Segmentation", object)])
        content["Segmentation"][0, 0] = np.where(labels == 255, 0, labels).astype(np.uint8)  # SBD has no void
        scipy.io.savemat(sbd / "cls" / f"{name}.mat", {"GTcls": content})
    names = list(further)
    _write_list(sbd / "train.txt", [*names[:3], "2007_val0"])
    _write_list(sbd / "val.txt", [*names[3:], "2007_train0"])
    return voc_tree


@pytest.fixture
def aug_tree(voc_tree: Path) -> Path:
    """With SBD as many projects hand it on: SegmentationClassAug, and a list of pairs of paths."""
    home = voc_tree / "VOCdevkit" / "VOC2012"
    for name, (image, labels) in _further().items():
        _save(home / "JPEGImages" / f"{name}.jpg", image)
        _save(home / "SegmentationClassAug" / f"{name}.png", labels)
    names = [*(f"2007_train{index}" for index in range(TRAIN)), *_further()]
    pairs = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in names]
    _write_list(home / "ImageSets" / "Segmentation" / "trainaug.txt", pairs)
    return voc_tree


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> DeepLabV3Plus:
    """The published networks, thin; ImageNet weights are asked for, and not fetched. Gives the teacher's."""

    def build(backbone: str, num_classes: int, *shape: object, weights: str | None = None) -> DeepLabV3Plus:
        assert weights == ("DEFAULT" if backbone != "resnet101" else None)
        return tiny_network(backbone, num_classes)

    monkeypatch.setattr(presets, "build_model", build)
    monkeypatch.setattr(teachers, "build_model", build)
    return tiny_network("resnet101", seed=3)


def _type(line: str, capsys: pytest.CaptureFixture) -> str:
    """Run what stands after `python -m distill`, and give what it printed."""
    code = cli.main(line.split())
    printed = capsys.readouterr()
    assert code == 0, f"{line}\n{printed.err}"
    return printed.out


def _published_lines() -> list[str]:
    """The training commands that the loop in docs/voc.md gives, as bash expands them."""
    loop = re.search(r"^for backbone in .*?^done$", (PROJECT / "docs" / "voc.md").read_text(), flags=re.M | re.S)
    script = f'python() {{ echo "${{@:3}}"; }}\n{loop[0]}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("tree", ["sbd_tree", "aug_tree"])
@pytest.mark.parametrize("line", _published_lines(), ids=lambda line: "-".join(line.split()[-7:-4]))
def test_every_row_of_the_published_tables_runs_as_the_docs_say(
    line: str,
    tree: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    small_networks: DeepLabV3Plus,
    capsys: pytest.CaptureFixture,
) -> None:
    root, teacher = request.getfixturevalue(tree), tmp_path / "deeplab-resnet.pth.tar"
    state = {f"module.{key}": value for key, value in small_networks.state_dict().items()}
    torch.save({"epoch": 45, "state_dict": state, "optimizer": {}, "best_pred": np.float64(0.77)}, teacher)
    typed = line.replace(" DIR ", f" {root} ").replace("deeplab-resnet.pth.tar", str(teacher))
    _type(f"{typed} {SMALL} --out {tmp_path}/run", capsys)
    run = distill.Run(tmp_path / "run")
    assert run.config["images"] == TRAIN + FURTHER
    assert run.config["settings"]["nesterov"] and run.config["preset"] == "voc"
    assert len(run.history) == 2 and np.isfinite(run.history[-1]["loss"]) and 0 <= run.scores["val"]["miou"] <= 1


def _asked(keywords: dict[str, object]) -> dict[str, object]:
    """What a run is made of, without the place where it lies; a baseline's teacher is nobody's."""
    row = {key: keywords[key] for key in ("student", "method", "data", "data_root", "seed", "preset", "recipe")}
    row["teacher"] = None if row["method"] == "baseline" else keywords["teacher"]
    named = {field.name for field in fields(Settings)}
    settings = {key: value for key, value in keywords.items() if key in named}
    return row | {"weights": keywords["weights"], "settings": choose_settings("voc", row["recipe"], settings)}


def test_the_study_has_every_row_of_the_docs_and_of_notebook_08(monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[dict[str, object]] = []

    def fit(student: str, method: str, teacher: str, data: str, **keywords: object) -> None:
        typed.append(_asked({"student": student, "method": method, "teacher": teacher, "data": data} | keywords))

    monkeypatch.setattr(cli, "fit", fit)
    monkeypatch.setattr(cli, "this_rank", lambda: Ranks(1, 2))  # which prints no scores
    assert all(cli.main(line.split()) == 0 for line in _published_lines())
    study = load_study(PROJECT / "studies" / "voc-matched.toml")
    planned = [_asked(run.keywords) for run in plan(study, Path(), "DIR")]
    assert typed == [row for row in planned if row["seed"] == 0] and len(typed) == 10 and len(planned) == 30
    notebook = json.loads((PROJECT / "notebooks" / "08_full_scale_voc.ipynb").read_text())
    printed = "".join(
        "".join(output.get("text", ())) for cell in notebook["cells"] for output in cell.get("outputs", ())
    )
    lines, typed[:] = re.findall(r"^python -m distill (train --preset voc .*)$", printed, flags=re.M), []
    assert all(cli.main(line.split()) == 0 for line in lines)
    assert typed == [row for row in planned if row["seed"] == 0], "notebook 08 has other commands"
    written = "".join(line for cell in notebook["cells"] for line in cell["source"])
    for text in (written, (PROJECT / "docs" / "voc.md").read_text()):
        assert "python -m distill study studies/voc-matched.toml --data-root DIR\n" in text
        assert "python -m distill compare runs/voc-matched\n" in text.replace("  ", " ")


def test_the_study_trains_a_row(sbd_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As a reader would try it: a copy of the file, with one small row that needs no download."""
    text = (PROJECT / "studies" / "voc-matched.toml").read_text()
    for key, value in {"students": ["resnet18"], "methods": ["baseline"], "seeds": 1, "preset": "sample"}.items():
        text = re.sub(f"^{key} = .*$", f"{key} = {json.dumps(value)}", text, flags=re.M)
    text = text.replace('weights = "DEFAULT"', "[settings]\ncrop_size = 33\nbatch_size = 4\nepochs = 2\nworkers = 0")
    (tmp_path / "small.toml").write_text(text)
    _type(f"study {tmp_path}/small.toml --data-root {sbd_tree} --runs {tmp_path}/runs --device cpu --jobs 1", capsys)
    run = distill.Run(tmp_path / "runs" / "small" / "resnet18" / "baseline" / "seed0")
    assert run.finished and run.config["images"] == TRAIN + FURTHER and run.config["data"] == "pascal+sbd"


@pytest.mark.parametrize("tree", ["voc_tree", "sbd_tree", "aug_tree"])
def test_the_commands_around_the_rows(
    tree: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Check, train, score both ways, predict."""
    root = request.getfixturevalue(tree)
    checked = _type(f"data check {root}/VOCdevkit/VOC2012", capsys)
    assert "21 classes" in checked and f"train: {TRAIN} images" in checked and f"val: {VAL} images" in checked
    assert (f"trainaug: {TRAIN + FURTHER} images" in checked) == (tree == "aug_tree")
    sbd = "" if tree == "voc_tree" else " --use-sbd"
    line = f"train --dataset pascal --data-root {root}{sbd} --preset sample --backbone mobilenetv2 --method baseline"
    _type(f"{line} {SMALL} --out {tmp_path}/run", capsys)
    native = _type(f"evaluate {tmp_path}/run --device cpu", capsys)
    resized = _type(f"evaluate {tmp_path}/run --protocol resize513 --device cpu", capsys)
    assert "aeroplane" in native and "mIoU" in native and "mIoU" in resized
    photograph = root / "VOCdevkit/VOC2012/JPEGImages/2007_val0.jpg"
    _type(f"predict {tmp_path}/run {photograph} --out {tmp_path}/predictions --device cpu", capsys)
    with Image.open(tmp_path / "predictions" / "2007_val0_mask.png") as mask, Image.open(photograph) as image:
        assert mask.size == image.size and mask.mode == "P"


def test_sbds_own_lists_bring_no_image_of_vocs_val(sbd_tree: Path) -> None:
    train, val = (open_dataset("pascal+sbd", split, sbd_tree) for split in ("train", "val"))
    assert set(train.ids) == {*(f"2007_train{index}" for index in range(TRAIN)), *_further()}
    assert not set(train.ids) & set(val.ids) and len(val) == VAL
    for index, name in enumerate(train.ids):
        image, labels = train[index]
        assert image.shape[1:] == labels.shape
        if name in _further():
            assert np.array_equal(labels.numpy(), np.where(_further()[name][1] == 255, 0, _further()[name][1]))


def test_what_a_labelling_tool_exports_goes_through_the_same_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """No lists, `__ignore__` and `_background_`, images of several sizes and kinds; a teacher first, then a student."""
    root = tmp_path / "my cups"
    for index in range(12):
        labels = np.full((40 + index, 56), 255, np.uint8)
        labels[4:, 4:] = index % 3
        _save(root / "SegmentationClass" / f"IMG_{index}.png", labels)
        mode, ending = (("RGBA", "png"), ("L", "jpg"), ("CMYK", "jpg"))[index % 3]
        image = Image.effect_noise((56, 40 + index), 60).convert("RGB").convert(mode)
        (root / "JPEGImages").mkdir(exist_ok=True)
        image.save(root / "JPEGImages" / f"IMG_{index}.{ending}")
    (root / "class_names.txt").write_text("__ignore__\n_background_\ncup\nspoon\n")
    checked = cli.main(["data", "check", str(root)])
    assert checked == 0 and "no lists" in capsys.readouterr().out
    for backbone, method, out in (("resnet101", "baseline", "teacher"), ("resnet18", "sakd", "student")):
        line = ["train", "--dataset", str(root), "--backbone", backbone, "--method", method, *SMALL.split()]
        line += ["--out", str(tmp_path / out), "--teacher", str(tmp_path / "teacher" / "student.safetensors")]
        assert cli.main(line) == 0, capsys.readouterr().err
    for protocol in ("native", "resize513"):
        assert cli.main(["evaluate", str(tmp_path / "student"), "--protocol", protocol, "--device", "cpu"]) == 0
    assert "spoon" in capsys.readouterr().out
    assert distill.load_model(tmp_path / "student" / "student.safetensors").class_names == (
        "_background_",
        "cup",
        "spoon",
    )
