"""Pascal VOC and SBD, fetched and unpacked: addresses and checksums are torchvision's.

    DIR/VOCdevkit/VOC2012    DIR/sbd

A download that stops goes on where it stopped. Nothing is unpacked before its checksum agrees, nothing is written
outside DIR, and a folder appears under its name only when it is whole.
"""

import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from torchvision.datasets import SBDataset, utils, voc
from tqdm.auto import tqdm

from distill.datasets import data_root
from distill.errors import DistillError

_TIMEOUT, _PIECE = 60, 1 << 16  # seconds without an answer, bytes


class Archive(NamedTuple):
    """What to fetch, which folder of it is wanted, and where that goes below DIR."""

    url: str
    file: str
    md5: str
    inside: str
    folder: str


def archive(name: str) -> Archive:
    """The archive of `voc` or `sbd`; DistillError for another name."""
    if name == "voc":
        known = voc.DATASET_YEAR_DICT["2012"]
        home = Path(known["base_dir"]).as_posix()
        return Archive(known["url"], known["filename"], known["md5"], home, home)
    if name == "sbd":
        return Archive(SBDataset.url, SBDataset.filename, SBDataset.md5, "benchmark_RELEASE/dataset", "sbd")
    raise DistillError(f"there is no data set {name!r} to download; choose voc or sbd")


def download(name: str, root: str | Path | None = None, progress: bool = True) -> Path:
    """Fetch `voc` (2012, train and val, 2.0 GB) or `sbd` (1.4 GB), check it and unpack it; the folder it is in then.

    `root` is DIR, by default `data_root()`, and what `open_dataset("pascal", root=DIR)` takes. A folder that is there
    already is left as it is. The archive stays in DIR and may be deleted; one that was fetched in another way and put
    there is used. Raises DistillError when the host does not answer, or what it sends is not the archive.
    """
    wanted, root = archive(name), Path(root) if root else data_root()
    folder = root / wanted.folder
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    path = root / wanted.file
    if path.exists():
        _verify(path, wanted, f"delete it, or put the right {wanted.file} there")
    else:
        part = root / f"{wanted.file}.part"
        _fetch(part, wanted, progress)
        try:
            _verify(part, wanted, "it was deleted; start the same command again")
        except DistillError:
            part.unlink()
            raise
        part.rename(path)
    _unpack(path, wanted, folder)
    return folder


def _verify(path: Path, wanted: Archive, advice: str) -> None:
    found = utils.calculate_md5(path)
    if found != wanted.md5:
        raise DistillError(f"{path} has the MD5 {found} and {wanted.md5} was expected; {advice}")


def _fetch(part: Path, wanted: Archive, progress: bool) -> None:
    """Append what is still missing to `part`."""
    with _connection_errors(part, wanted):
        there = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(wanted.url, headers={"Range": f"bytes={there}-"} if there else {})
        try:
            answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing lies beyond: the part is complete, or its checksum will tell
                return
            raise
        with answer:
            goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {there}-")
            there = there if goes_on else 0  # a host that knows no ranges sends everything again
            rest = answer.length
            _check_space(part, wanted, rest)
            shown = {"desc": wanted.file, "unit": "B", "unit_scale": True, "disable": not progress}
            bar = tqdm(total=rest and there + rest, initial=there, **shown)
            with bar, part.open("ab" if there else "wb") as file:
                while piece := answer.read(_PIECE):
                    file.write(piece)
                    bar.update(len(piece))
            if rest and part.stat().st_size < there + rest:
                raise ConnectionError("the connection ended early")


def _check_space(part: Path, wanted: Archive, rest: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if rest and free < rest:
        raise DistillError(
            f"{part.parent} has {free / 1e9:.1f} GB free and {wanted.file} needs {rest / 1e9:.1f} GB more, and as much "
            f"again to be unpacked; make room, or give another --root"
        )


@contextmanager
def _connection_errors(part: Path, wanted: Archive) -> Iterator[None]:
    """Whatever goes wrong on the way becomes one sentence that says how to go on."""
    try:
        yield
    except OSError as error:  # URLError and time-outs are OSErrors too
        reason = getattr(error, "reason", None) or error
        there = part.stat().st_size if part.exists() else 0
        raise DistillError(
            f"{wanted.url} could not be fetched ({reason}; {there / 1e6:.1f} MB are in {part.name}); start the same "
            f"command again to go on, or fetch it in another way and put {wanted.file} into {part.parent}"
        ) from None


def _unpack(path: Path, wanted: Archive, folder: Path) -> None:
    """Unpack into a folder of its own, from which only what is wanted is moved to its place."""
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=path.parent) as temporary:
        try:
            with tarfile.open(path) as file:
                file.extractall(temporary, filter="data")  # refuses whatever would leave the folder
        except (tarfile.TarError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise DistillError(f"{path} cannot be unpacked ({reason}); delete it and start the command again") from None
        inside = Path(temporary) / wanted.inside
        if not inside.is_dir():
            raise DistillError(f"{path} holds no folder {wanted.inside}; delete it and start the command again")
        folder.parent.mkdir(parents=True, exist_ok=True)
        inside.rename(folder)
