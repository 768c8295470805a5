"""Images without masks beside a split: which they are, that no label is learnt from them, and that they count."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from distill import fit
from distill.data.folders import VOCFolder
from distill.data.resize import resize_dataset
from distill.data.unlabelled import WithUnlabelled
from distill.lab.comparison import read_findings, tables
from distill.lab.diagnose import diagnose
from distill.lab.plan import load_study, plan
from distill.lab.study import Study
from distill.networks import save_model


@pytest.fixture
def extra(tiny_sample: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "extra"
    folder.mkdir()
    for path in sorted((tiny_sample / "JPEGImages").glob("val_*"))[:4]:
        ImageOps.mirror(Image.open(path)).save(folder / path.name)  # another image than that of val
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_they_come_after_the_labelled_images_and_are_void(tiny_sample: Path, extra: Path) -> None:
    split = VOCFolder(tiny_sample, "train", 6)
    both = WithUnlabelled(split, extra)
    assert len(both) == 10 and both.ids[:6] == split.ids and both.ids[6:] == sorted(p.stem for p in extra.glob("*.jpg"))
    assert torch.equal(both[2][0], split[2][0]) and torch.equal(both[2][1], split[2][1])
    assert all((both[index][1] == 255).all() and both[index][0].shape == split[0][0].shape for index in range(6, 10))
    assert both.fingerprint() != split.fingerprint()
    assert len(list(both)) == 10


def test_images_of_the_split_and_those_that_are_scored_are_left_out(tiny_sample: Path) -> None:
    few, every = VOCFolder(tiny_sample, "train", 6), VOCFolder(tiny_sample, "train")
    both = WithUnlabelled(few, tiny_sample / "JPEGImages")
    assert sorted(both.ids) == sorted(every.ids) and both.ids[:6] == few.ids


def test_copies_of_them_are_left_out_too(tiny_sample: Path, tmp_path: Path) -> None:
    """Resized ones by their names, and others by their content."""
    split = VOCFolder(tiny_sample, "train")
    half = resize_dataset(tiny_sample, tmp_path / "half", 32, progress=False)
    shutil.copy(half / "JPEGImages" / f"{split.ids[0]}.png", half / "JPEGImages" / "new.png")
    (half / "JPEGImages" / "2024").mkdir()
    shutil.copy(split.image_path(3), half / "JPEGImages" / "2024" / "another-name.jpg")
    shutil.copy(half / "JPEGImages" / f"{split.ids[1]}.png", half / "JPEGImages" / "2024" / "new.PNG")
    (half / "JPEGImages" / "._new.png").write_bytes(b"of another system")
    for folder in (half, half / "JPEGImages"):
        extra = WithUnlabelled(split, folder).extra
        assert [path.relative_to(half / "JPEGImages").as_posix() for path in extra] == ["2024/new.PNG", "new.png"]


def test_images_that_are_alike_at_both_ends_of_their_files_are_others(tiny_sample: Path, tmp_path: Path) -> None:
    """As uncompressed ones with black borders are."""
    split = VOCFolder(shutil.copytree(tiny_sample, tmp_path / "own"), "train", 2)
    (tmp_path / "more").mkdir()
    for grey in (90, 200):
        image = Image.new("RGB", (64, 64))
        image.paste((grey, grey, grey), (0, 30, 64, 34))
        image.save(tmp_path / "more" / f"{grey}.bmp")
    split.image_path(0).unlink()
    image.save(split.image_path(0).with_suffix(".bmp"))
    assert WithUnlabelled(VOCFolder(tmp_path / "own", "train", 2), tmp_path / "more").ids[2:] == ["90"]


def test_the_photographs_that_were_resized_are_known_by_their_names(tiny_sample: Path, tmp_path: Path) -> None:
    """In a folder without lists too, beside its masks."""
    shutil.copytree(tiny_sample, tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole" / "ImageSets")
    small = resize_dataset(tmp_path / "whole", tmp_path / "small", 32, progress=False)
    new = tmp_path / "whole" / "JPEGImages" / "new.jpg"
    ImageOps.mirror(Image.open(VOCFolder(small, "train").image_path(0))).save(new)
    assert WithUnlabelled(VOCFolder(small, "train"), tmp_path / "whole").extra == [new]


def test_mistakes_are_told(tiny_sample: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    split = VOCFolder(tiny_sample, "train", 2)
    refused("no folder", call=lambda: WithUnlabelled(split, ""))
    refused("no folder", tmp_path / "nowhere", call=lambda: WithUnlabelled(split, tmp_path / "nowhere"))
    refused("holds no images", call=lambda: WithUnlabelled(split, tmp_path))
    masks = tiny_sample / "SegmentationClass"
    refused("holds masks", "JPEGImages", call=lambda: WithUnlabelled(split, masks))
    ImageOps.mirror(Image.open(split.image_path(0))).save(tmp_path / "mirrored.jpg")
    assert len(WithUnlabelled(split, tmp_path)) == 3
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    refused("broken.jpg", "not there", call=lambda: WithUnlabelled(split, tmp_path))
    (tmp_path / "broken.jpg").unlink()
    asked = {"data_root": tiny_sample, "unlabelled": tmp_path, "device": "cpu"}
    refused("baseline", "leave them out", call=lambda: fit("resnet18", "baseline", None, **asked))
    refused("ifvd", "leave them out", call=lambda: fit("resnet18", "ifvd", "sample", **asked))


def test_no_label_is_learnt_from_them(
    tiny_sample: Path, tiny_teacher: torch.nn.Module, extra: Path, tmp_path: Path
) -> None:
    """The cross-entropy of six labelled images and four others is that of the six, but for BatchNorm's statistics."""
    asked = {"data_root": tiny_sample, "limit": 6, "epochs": 1, "device": "cpu", "progress": False}
    asked |= {"method_options": {"weight": 1e-12}}
    lines = {}
    for name, more in {"alone": {"batch_size": 6}, "both": {"batch_size": 10, "unlabelled": extra}}.items():
        run = fit("resnet18", "kd", tiny_teacher, out=tmp_path / name, **asked, **more)
        lines[name] = run.history[0]
        assert run.config["images"] == 6 and run.config.get("unlabelled", 0) == (4 if "unlabelled" in more else 0)
    assert lines["both"]["kd"] != lines["alone"]["kd"] and lines["both"]["ce"] == pytest.approx(
        lines["alone"]["ce"], rel=0.2
    )


def test_a_study_has_them_for_methods_and_not_for_baselines(tmp_path: Path) -> None:
    text = 'data = "sample"\nteacher = "sample"\nstudents = ["resnet18"]\nmethods = ["baseline", "kd"]\nseeds = 1\n'
    (tmp_path / "s.toml").write_text(text + 'unlabelled = "photos"\n')
    runs = plan(load_study(tmp_path / "s.toml"), Path(), device="cpu")
    assert {run.keywords["method"]: run.keywords["unlabelled"] for run in runs} == {"baseline": None, "kd": "photos"}


def test_a_study_of_them_is_trained_compared_and_diagnosed(
    tiny_sample: Path, tiny_teacher: torch.nn.Module, extra: Path, tmp_path: Path
) -> None:
    save_model(tiny_teacher, tmp_path / "teacher.safetensors")
    text = f'data = "sample"\ndata_root = "{tiny_sample}"\nteacher = "{tmp_path / "teacher.safetensors"}"\n'
    text += f'students = ["resnet18"]\nmethods = ["baseline", "kd"]\nseeds = 1\nlimit = 8\nunlabelled = "{extra}"\n'
    (tmp_path / "s.toml").write_text(text + "[settings]\nepochs = 1\nbatch_size = 4\n")
    study = Study(tmp_path / "s.toml", tmp_path / "runs", device="cpu")
    rows = {row["method"]: row for row in tables(study.run(jobs=1))[""]}
    assert "gain" in rows["kd"]
    records = {entry["method"]: entry for entry in study.findings().records}
    assert [records[m]["images"] for m in ("baseline", "kd")] == [8, 8] and records["kd"]["unlabelled"] == 4
    Study(tmp_path / "s.toml", tmp_path / "runs", device="cpu").run(jobs=1)  # nothing is left to do
    assert tables(read_findings([tmp_path / "runs" / "s"]))[""]
    assert list(diagnose([tmp_path / "runs" / "s"], str(tmp_path / "teacher.safetensors"), str(tiny_sample)))


def test_masks_below_the_folder_are_no_photographs(tiny_sample: Path) -> None:
    few = VOCFolder(tiny_sample, "train", 6)
    both = WithUnlabelled(few, tiny_sample.parent)
    assert {path.parent.name for path in both.extra} == {"JPEGImages"} and len(both.extra) == 18
