"""Pascal VOC and SBD, fetched and unpacked: addresses and checksums are torchvision's.

    DIR/VOCdevkit/VOC2012    DIR/sbd

An interrupted download continues where it stopped. Nothing is unpacked before its checksum agrees, nothing is written
outside DIR, and a folder appears under its name only when it is whole.
"""

import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from torchvision.datasets import SBDataset, VOCSegmentation, utils, voc
from tqdm.auto import tqdm

from distill.data.folders import data_root
from distill.errors import DistillError
from distill.files import make_folder

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
    """Fetch `voc` (2012, train and val, 2.0 GB) or `sbd` (1.4 GB), check it and unpack it; DIR is returned.

    DIR is `root`, by default `data_root()`, and what `open_dataset("pascal", root=DIR)` takes. A folder that is there
    already is left as it is. The archive stays in DIR and may be deleted; one that was fetched in another way and put
    there is used. `progress` shows bars and notes, on the error stream. Raises DistillError when the host does not
    answer, or sends something else than the archive.
    """
    wanted, root = archive(name), Path(root) if root else data_root()
    folder = root / wanted.folder
    if folder.is_dir():
        note(f"{folder} is there already; there is nothing to do", progress)
        return root
    if not hasattr(tarfile, "data_filter"):  # Python 3.10.12 and 3.11.4 have it
        raise DistillError("this Python cannot unpack archives safely; update it to its newest 3.10, 3.11 or later")
    make_folder(root)
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
    _unpack(path, wanted, folder, progress)
    note(f"{folder} is ready; {path} ({path.stat().st_size / 1e9:.1f} GB) may be deleted", progress)
    return root


def note(text: str, progress: bool) -> None:
    if progress:  # not on the output stream, which a script may read
        print(text, file=sys.stderr)


def reason_of(error: Exception) -> str:
    """Why something could not be fetched, in one line."""
    return " ".join(str(getattr(error, "reason", None) or error).split())


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
            error.close()
            if error.code == 416:  # nothing lies beyond: the part is complete, or its checksum will tell
                return
            raise
        with answer:
            span = answer.headers.get("Content-Range", "none")
            if answer.status != 206:
                there = 0  # a host that knows no ranges sends everything again
            elif not span.startswith(f"bytes {there}-"):  # would spoil what is there
                raise ConnectionError(f"it was asked to go on from byte {there} and sent the range {span}")
            rest = answer.length
            _check_space(part, wanted, rest)
            total = rest and there + rest
            bar = tqdm(total=total, initial=there, desc=wanted.file, unit="B", unit_scale=True, disable=not progress)
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
    except (OSError, HTTPException) as error:  # URLError and time-outs are OSErrors too
        there = part.stat().st_size if part.exists() else 0
        raise DistillError(
            f"{wanted.url} could not be fetched ({reason_of(error)}; {there / 1e6:.1f} MB are in {part.name}); start "
            f"the same command again to continue, or fetch it in another way and put {wanted.file} into {part.parent}"
        ) from None


def _unpack(path: Path, wanted: Archive, folder: Path, progress: bool) -> None:
    """Unpack into a folder of its own, from which only what is wanted is moved to its place."""
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=path.parent) as temporary:
        try:
            with tarfile.open(path) as file:
                members = tqdm(file, desc=f"unpacking {wanted.file}", unit="file", disable=not progress)
                file.extractall(temporary, members, filter="data")  # refuses whatever would leave the folder
        except (tarfile.TarError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise DistillError(f"{path} cannot be unpacked ({reason}); delete it and start the command again") from None
        inside = Path(temporary) / wanted.inside
        if not inside.is_dir():
            raise DistillError(f"{path} holds no folder {wanted.inside}; delete it and start the command again")
        _open_as_torchvision(path, wanted, inside)
        make_folder(folder.parent)
        inside.rename(folder)


def _open_as_torchvision(path: Path, wanted: Archive, inside: Path) -> None:
    """Read one image and its mask with torchvision's class, so that its other users can share DIR."""
    try:
        if wanted.folder != "sbd":
            _, mask = VOCSegmentation(inside.parent.parent, "2012", "train")[0]
            mask.load()  # which also closes its file
        else:
            SBDataset(inside, "train", mode="segmentation")[0]
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).replace(f"{inside}/", "").split())
        raise DistillError(
            f"torchvision cannot read what {path} holds ({reason}); delete it and start the command again"
        ) from None
