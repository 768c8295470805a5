"""Downloads: whole, interrupted, forged and hostile ones, from a host on this machine."""

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision.datasets import SBDataset, VOCSegmentation, voc

from distill import cli, open_dataset
from distill.data import download as module
from distill.data.download import download

pytestmark = pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"), reason="`data download` refuses this Python, which cannot unpack safely"
)

MASK = np.array([[0, 1, 2, 255]] * 3, dtype=np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)  # does not compress


class Host:
    """Serves bytes; `stop_after` closes a connection in the middle, `ranges` says whether parts can be asked for.

    With `silent` it sends half of the bytes and then nothing; `raw` is sent in place of any proper answer.
    """

    def __init__(self) -> None:
        self.content, self.stop_after, self.ranges, self.status = b"", None, True, 200
        self.raw, self.silent, self.closing = b"", False, threading.Event()
        self.asked: list[str | None] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                host.asked.append(asked)
                if host.raw:
                    self.wfile.write(host.raw)
                    return
                start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked and host.ranges else 0
                if host.status != 200 or (start and start >= len(host.content)):
                    self.send_error(416 if host.status == 200 else host.status)
                    return
                body = host.content[start:]
                self.send_response(206 if asked and host.ranges else 200)
                self.send_header("Content-Length", str(len(body)))
                if asked and host.ranges:
                    self.send_header("Content-Range", f"bytes {start}-{len(host.content) - 1}/{len(host.content)}")
                self.end_headers()
                self.wfile.write(body[: len(body) // 2 if host.silent else host.stop_after])
                if host.silent:
                    host.closing.wait(10)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()  # seconds between looks

    def serve(self, content: bytes) -> str:
        """From now on send these bytes; their MD5."""
        self.content = content
        return hashlib.md5(content).hexdigest()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.closing.set()
    host.server.shutdown()
    host.server.server_close()


def packed(files: dict[str, bytes], *others: tarfile.TarInfo, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in others:
            archive.addfile(info)
    return buffer.getvalue()


def picture(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("P" if pixels.ndim == 2 else "RGB").save(buffer, kind)
    return buffer.getvalue()


def voc_archive(*others: tarfile.TarInfo) -> bytes:
    home = "VOCdevkit/VOC2012"
    files = {f"{home}/ImageSets/Segmentation/{split}.txt": f"{split}0\n".encode() for split in ("train", "val")}
    for name in ("train0", "val0"):
        files[f"{home}/JPEGImages/{name}.jpg"] = picture(NOISE[:3, :4], "JPEG")
        files[f"{home}/SegmentationClass/{name}.png"] = picture(MASK, "PNG")
    files[f"{home}/JPEGImages/other.jpg"] = picture(NOISE, "PNG")
    return packed(files, *others)


def sbd_archive() -> bytes:
    home, files = "benchmark_RELEASE/dataset", {}
    for name in ("extra0", "val0"):
        content, buffer = np.zeros((1, 1), dtype=[("Segmentation", object)]), io.BytesIO()
        content["Segmentation"][0, 0] = np.zeros((3, 4), np.uint8)
        scipy.io.savemat(buffer, {"GTcls": content})
        files[f"{home}/cls/{name}.mat"] = buffer.getvalue()
        files[f"{home}/img/{name}.jpg"] = picture(NOISE[:3, :4], "JPEG")
    files[f"{home}/train.txt"], files[f"{home}/val.txt"] = b"extra0\n", b"val0\n"
    return packed(files, mode="w:gz")


@pytest.fixture
def known(host: Host, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Makes `voc` an archive of these bytes on the host, as torchvision would know it."""

    def know(content: bytes, md5: str | None = None) -> None:
        entry = voc.DATASET_YEAR_DICT["2012"] | {"url": f"{host.url}/v.tar", "filename": "v.tar"}
        monkeypatch.setitem(voc.DATASET_YEAR_DICT, "2012", entry | {"md5": md5 or host.serve(content)})

    return know


def fetch(root: Path) -> Path:
    return download("voc", root, progress=False)


def left(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_both_archives_end_where_the_data_sets_look(
    host: Host, known: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "DIR"
    known(voc_archive())
    assert cli.main(["data", "download", "voc", "--root", str(root)]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(root) and f"{root / 'v.tar'} (0.0 GB) may be deleted" in printed.err
    monkeypatch.setattr(SBDataset, "md5", host.serve(sbd_archive()))
    monkeypatch.setattr(SBDataset, "url", f"{host.url}/benchmark.tgz")
    assert cli.main(["data", "download", "sbd", "--root", str(root)]) == 0
    train = open_dataset("pascal+sbd", "train", root)
    assert train.ids == ["train0", "extra0"] and [labels.shape for _, labels in train] == [(3, 4), (3, 4)]
    assert len(VOCSegmentation(root, "2012", "train")) == 1  # torchvision finds them too
    assert len(SBDataset(root / "sbd", "train", mode="segmentation")) == 1
    assert left(root) == {"VOCdevkit", "sbd", "v.tar", "benchmark.tgz"}


def test_the_archives_are_torchvisions() -> None:
    assert module.archive("voc").md5 == "6cd6e144f989b92b3379bac3b3de84fd"
    assert module.archive("voc").url.endswith("/VOCtrainval_11-May-2012.tar")
    assert module.archive("sbd")[:3] == (SBDataset.url, SBDataset.filename, SBDataset.md5)


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(
    host: Host, known: Callable, tmp_path: Path, ranges: bool, refused: Callable[..., str]
) -> None:
    content = voc_archive()
    known(content)
    host.stop_after, host.ranges = 100_000, ranges
    refused("v.tar.part", "0.1 MB", "same command again", call=lambda: fetch(tmp_path))
    assert (tmp_path / "v.tar.part").read_bytes() == content[:100_000] and left(tmp_path) == {"v.tar.part"}
    host.stop_after = None
    fetch(tmp_path)
    assert host.asked == [None, "bytes=100000-"]
    assert (tmp_path / "v.tar").read_bytes() == content and "v.tar.part" not in left(tmp_path)


def test_a_part_that_is_complete_is_only_verified(host: Host, known: Callable, tmp_path: Path) -> None:
    known(voc_archive())
    (tmp_path / "v.tar.part").write_bytes(host.content)
    fetch(tmp_path)
    assert host.asked == [f"bytes={len(host.content)}-"] and left(tmp_path) == {"VOCdevkit", "v.tar"}


def test_what_is_there_is_not_fetched(
    host: Host, known: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    known(voc_archive())
    (tmp_path / "v.tar").write_bytes(host.content)  # by hand
    assert fetch(tmp_path) == fetch(tmp_path) == tmp_path and open_dataset("pascal", root=tmp_path).ids == ["train0"]
    assert cli.main(["data", "download", "voc", "--root", str(tmp_path)]) == 0
    assert "VOC2012 is there already; there is nothing to do\n" in capsys.readouterr().err
    assert host.asked == []


def test_another_year_stays_where_it_is(known: Callable, tmp_path: Path) -> None:
    (tmp_path / "VOCdevkit" / "VOC2007").mkdir(parents=True)
    known(voc_archive())
    fetch(tmp_path)
    assert left(tmp_path / "VOCdevkit") == {"VOC2007", "VOC2012"}


def test_other_bytes_are_not_unpacked(host: Host, known: Callable, tmp_path: Path, refused: Callable[..., str]) -> None:
    host.serve(b"<html>this page has moved</html>")
    known(b"", md5="0" * 32)
    refused("v.tar.part", "0" * 32, "again", call=lambda: fetch(tmp_path))
    assert left(tmp_path) == set()
    (tmp_path / "v.tar").write_bytes(b"somebody's file")
    refused("v.tar", "delete it", call=lambda: fetch(tmp_path))
    assert (tmp_path / "v.tar").read_bytes() == b"somebody's file"


@pytest.mark.parametrize("status", [404, 503])
def test_a_host_that_refuses_is_named(
    host: Host, known: Callable, tmp_path: Path, status: int, refused: Callable[..., str]
) -> None:
    known(voc_archive())
    host.status = status
    refused(host.url, "v.tar", f"into {tmp_path}", call=lambda: fetch(tmp_path))


def test_a_host_that_does_not_answer_is_named(
    host: Host, known: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    known(voc_archive())
    host.server.shutdown()
    host.server.server_close()
    assert cli.main(["data", "download", "voc", "--root", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert f"{host.url}/v.tar" in message and "another way" in message and message.count("\n") == 1


def test_a_host_that_falls_silent_is_named(
    host: Host, known: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    known(voc_archive())
    host.silent = True
    monkeypatch.setattr(module, "_TIMEOUT", 0.3)
    refused(host.url, "timed out", "again to continue", call=lambda: fetch(tmp_path))
    assert 0 < len((tmp_path / "v.tar.part").read_bytes()) < len(host.content)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"no HTTP\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabcd", "IncompleteRead"),
    ],
    ids=["another protocol", "cut between lengths"],
)
def test_an_answer_that_is_broken_is_named(
    host: Host, known: Callable, tmp_path: Path, raw: bytes, said: str, refused: Callable[..., str]
) -> None:
    known(voc_archive())
    host.raw = raw
    refused(host.url, said, "another way", call=lambda: fetch(tmp_path))


def test_a_range_that_was_not_asked_for_spoils_nothing(
    host: Host, known: Callable, tmp_path: Path, refused: Callable[..., str]
) -> None:
    known(voc_archive())
    (tmp_path / "v.tar.part").write_bytes(host.content[:1000])
    host.raw = b"HTTP/1.1 206 OK\r\nContent-Length: 4\r\nContent-Range: bytes 0-3/9\r\n\r\nabcd"
    refused("byte 1000", "bytes 0-3/9", call=lambda: fetch(tmp_path))
    assert (tmp_path / "v.tar.part").read_bytes() == host.content[:1000]


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../evil"),
        tarfile.TarInfo("VOCdevkit/../../evil"),
        link("VOCdevkit/out", "/etc"),
        link("a", "../.."),
    ],
    ids=["above", "above by a detour", "absolute link", "link above"],
)
def test_an_archive_that_leaves_its_folder_is_refused(
    member: tarfile.TarInfo, known: Callable, tmp_path: Path, refused: Callable[..., str]
) -> None:
    known(voc_archive(member))
    root = tmp_path / "DIR"
    refused("v.tar", "cannot be unpacked", member.name, call=lambda: fetch(root))
    assert left(tmp_path) == {"DIR"} and left(root) == {"v.tar"}


@pytest.mark.parametrize("content", [packed({"readme.txt": b"hello"}), voc_archive()[:5000], b"no archive"])
def test_an_archive_without_the_folder_or_damaged_is_refused(
    content: bytes, known: Callable, tmp_path: Path, refused: Callable[..., str]
) -> None:
    known(content)
    refused("v.tar", "delete it", call=lambda: fetch(tmp_path))
    assert left(tmp_path) == {"v.tar"}


def test_an_archive_that_torchvision_cannot_read_is_refused(
    known: Callable, tmp_path: Path, refused: Callable[..., str]
) -> None:
    known(packed({"VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt": b"train0\n"}))
    refused("v.tar", "torchvision", "JPEGImages/train0.jpg", call=lambda: fetch(tmp_path))
    assert left(tmp_path) == {"v.tar"}


def test_an_interrupted_unpacking_leaves_nothing_that_looks_whole(
    known: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(voc_archive())
    write, count = tarfile.TarFile.makefile, iter(range(100))

    def stop(*arguments: object) -> None:
        if next(count) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tarfile.TarFile, "makefile", stop)
        fetch(tmp_path)
    assert left(tmp_path) == {"v.tar"}
    assert (fetch(tmp_path) / "VOCdevkit" / "VOC2012" / "JPEGImages" / "other.jpg").exists()


def test_a_full_disk_is_noticed_before_the_download(
    known: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    known(voc_archive())
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    refused("free", "make room", call=lambda: fetch(tmp_path))


def test_another_name_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    refused("coco", "voc or sbd", call=lambda: download("coco", tmp_path))
