"""CamVid from a host on this machine: whole, interrupted, changed; and folders made smaller."""

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill import cli, open_dataset
from distill.data import camvid as module
from distill.data.camvid import download_camvid
from distill.data.folders import VOCFolder
from distill.data.resize import resize_dataset

MASK = np.array([[0, 10, 11], [3, 3, 3]], dtype=np.uint8)


def picture(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Host:
    """Serves files by path, and their listing; `broken` are paths that it does not send."""

    def __init__(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
        self.files = {"README.md": b"hello", "CamVid/train.txt": b"x"}
        for split in ("train", "val", "test"):
            for index in range(2):
                self.files[f"CamVid/{split}/{split}_{index}.png"] = picture(noise)
                self.files[f"CamVid/{split}annot/{split}_{index}.png"] = picture(MASK)
        self.broken: set[str] = set()
        self.changed: dict[str, bytes] = {}
        self.sent: list[str] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.removeprefix("/files/")
                body = host.listing() if self.path == "/listing" else {**host.files, **host.changed}.get(path)
                if body is None or path in host.broken:
                    self.send_error(503)
                    return
                host.sent.append(path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def listing(self) -> bytes:
        sha = {path: hashlib.sha1(b"blob %d\0" % len(c) + c).hexdigest() for path, c in self.files.items()}
        return json.dumps({"tree": [{"path": path, "sha": value} for path, value in sha.items()]}).encode()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host()
    monkeypatch.setattr(module, "LISTING", f"{host.url}/listing")
    monkeypatch.setattr(module, "FILES", f"{host.url}/files/")
    monkeypatch.setattr(module, "SPLITS", {"train": 2, "val": 2, "test": 2})
    yield host
    host.server.shutdown()
    host.server.server_close()


def test_it_comes_into_voc_layout_and_trains_nothing_before_its_terms(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "download", "camvid", "--root", str(tmp_path)]) in (None, 0)
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "camvid") and err.index("research") < err.index("is ready")
    assert not any("README" in path for path in host.sent)
    for split in ("train", "val", "test"):
        dataset = open_dataset(tmp_path / "camvid", split)
        assert dataset.ids == [f"{split}_0", f"{split}_1"] and dataset.class_names == module.CLASSES
        image, labels = dataset[0]
        assert image.shape == (3, 2, 3) and labels.tolist() == [[0, 10, 255], [3, 3, 3]]
    assert not (tmp_path / "camvid.part").exists()
    assert cli.main(["data", "check", str(tmp_path / "camvid")]) in (None, 0)
    sent = len(host.sent)
    assert download_camvid(tmp_path, progress=False) == tmp_path / "camvid" and len(host.sent) == sent


def test_it_goes_on_with_the_files_that_are_missing(host: Host, tmp_path: Path, refused: Callable[..., str]) -> None:
    host.broken.add("CamVid/val/val_1.png")
    refused("val_1.png", "Service Unavailable", "again", call=lambda: download_camvid(tmp_path, progress=False))
    assert not (tmp_path / "camvid").exists()
    before, damaged = list(host.sent), tmp_path / "camvid.part" / "CamVid" / "train" / "train_0.png"
    damaged.write_bytes(b"half")
    host.broken.clear()
    download_camvid(tmp_path, progress=False)
    again = host.sent[len(before) :]
    assert "CamVid/train/train_0.png" in again and "CamVid/train/train_1.png" not in again
    assert len(VOCFolder(tmp_path / "camvid", "val")) == 2


def test_other_content_is_refused(host: Host, tmp_path: Path, refused: Callable[..., str]) -> None:
    host.changed["CamVid/train/train_0.png"] = picture(np.zeros((2, 3, 3), np.uint8))
    refused("train_0.png", "listing", call=lambda: download_camvid(tmp_path, progress=False))
    host.changed.clear()
    host.files["CamVid/trainannot/train_0.png"] = picture(np.full((2, 3), 12, np.uint8))
    refused("not a mask of 11 classes", call=lambda: download_camvid(tmp_path, progress=False))
    host.files["CamVid/trainannot/train_0.png"] = b"no picture"
    refused("cannot be read", call=lambda: download_camvid(tmp_path, progress=False))
    del host.files["CamVid/val/val_0.png"]
    refused("has 1 files in CamVid/val", "2 are expected", call=lambda: download_camvid(tmp_path, progress=False))
    host.listing = lambda: b"<html>"  # type: ignore[method-assign]
    refused("not a listing", call=lambda: download_camvid(tmp_path, progress=False))
    assert not (tmp_path / "camvid").exists()


def test_a_host_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused) -> None:
    monkeypatch.setattr(module, "LISTING", "http://127.0.0.1:9/listing")
    refused("127.0.0.1:9", "could not be fetched", call=lambda: download_camvid(tmp_path, progress=False))


def test_another_folder_of_that_name_is_left_alone(tmp_path: Path, refused) -> None:
    (tmp_path / "camvid").mkdir()
    refused("holds no CamVid", "--root", call=lambda: download_camvid(tmp_path, progress=False))


# Smaller copies


def test_a_folder_is_copied_with_smaller_images(
    voc_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], refused
) -> None:
    blocks = np.arange(4).reshape(2, 2)
    masks = {"train": [blocks.repeat(25, 0).repeat(15, 1), blocks.repeat(8, 0).repeat(6, 1)]}
    source = voc_folder({**masks, "val": [blocks.repeat(20, 0).repeat(20, 1)]})
    (source / "JPEGImages" / "more").mkdir()
    Image.new("RGB", (40, 30), "red").save(source / "JPEGImages" / "more" / "unlabelled.jpg")
    out = resize_dataset(source, tmp_path / "small", 20, progress=False)
    for split in ("train", "val"):
        large, small = VOCFolder(source, split), VOCFolder(out, split)
        assert small.ids == large.ids and small.class_names == large.class_names
        for (image, labels), (_, whole) in zip(small, large, strict=True):
            assert image.shape[1:] == labels.shape and max(labels.shape) == min(20, max(whole.shape))
            assert set(labels.unique().tolist()) <= set(whole.unique().tolist())
    assert {path.suffix for path in (out / "JPEGImages").iterdir()} == {".png", ""}
    with Image.open(out / "JPEGImages" / "more" / "unlabelled.png") as picture:
        assert picture.size == (20, 15)
    assert len(list((out / "SegmentationClass").rglob("*.png"))) == 3
    untouched = resize_dataset(source, tmp_path / "same", 5000, progress=False)
    assert torch.equal(VOCFolder(untouched, "train")[0][1], VOCFolder(source, "train")[0][1])
    refused("is there already", call=lambda: resize_dataset(source, out, 20))
    # Lists of one's own, a test split without masks as VOC's, and a file that is broken.
    (source / "ImageSets" / "Segmentation" / "hard.txt").write_text(VOCFolder(source, "val").ids[0] + "\n")
    (source / "ImageSets" / "Segmentation" / "odd.txt").write_text("elsewhere\n")
    (source / "ImageSets" / "Segmentation" / "test.txt").write_text("more/unlabelled\n")
    (source / "JPEGImages" / "broken.JPG").write_bytes(b"no picture")
    capsys.readouterr()
    again = resize_dataset(source, tmp_path / "again", 20, progress=False)
    said = capsys.readouterr().err
    assert "the list odd, with 1 images" in said and "broken.JPG cannot be read" in said
    assert VOCFolder(again, "hard").ids == VOCFolder(source, "val").ids[:1]
    assert VOCFolder(again, "test").image_path(0).exists() and not VOCFolder(again, "test").mask_path(0).exists()
    refused("side is 0", call=lambda: resize_dataset(source, tmp_path / "x", 0))
    refused("no folder", call=lambda: resize_dataset(tmp_path / "nowhere", tmp_path / "x", 20))
    assert cli.main(["data", "resize", str(source), "--side", "16", "--out", str(tmp_path / "cli")]) in (None, 0)


def test_the_list_of_train_is_mixed_where_asked(voc_folder: Callable[..., Path], tmp_path: Path) -> None:
    """The first of a mixed list are of all parts of it, and masks stay with their images."""
    source = voc_folder({"train": [np.full((8, 8), index) for index in range(20)], "val": [np.zeros((8, 8))] * 9})
    plain = VOCFolder(source, "train")
    out = tmp_path / "mixed"
    cli.main(["data", "resize", str(source), "--side", "8", "--out", str(out), "--shuffle"])
    mixed = VOCFolder(out, "train")
    assert sorted(mixed.ids) == sorted(plain.ids) and VOCFolder(out, "val").ids == VOCFolder(source, "val").ids
    places = [plain.ids.index(name) for name in mixed.ids]
    assert min(places[:5]) < 10 <= max(places[:5]) and places != sorted(places)
    assert [int(labels[0, 0]) for _, labels in mixed] == places
    again = resize_dataset(source, tmp_path / "again", 8, shuffle=True, progress=False)
    assert VOCFolder(again, "train").ids == mixed.ids
