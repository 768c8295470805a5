"""Writing a folder in VOC layout: its palette, masks, lists and class names, and the folder whole or not at all."""

import errno
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from distill.errors import DistillError
from distill.files import make_folder, write_text

IMAGES, MASKS, LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
BY_TEACHER = "by_teacher"  # a list of the images whose masks a teacher drew


def make_folders(root: Path) -> None:
    """Those of images, masks and lists."""
    for folder in (IMAGES, MASKS, LISTS):
        make_folder(root / folder)


def voc_palette() -> list[int]:
    """The 256 colours of VOC's masks, flat RGB: bit k of a label sets bit 7 - k // 3 of a channel."""
    palette = np.zeros((256, 3), dtype=int)
    for label in range(256):
        for bit in range(8):
            palette[label, bit % 3] |= (label >> bit & 1) << (7 - bit // 3)
    return palette.ravel().tolist()


def mask_image(labels: np.ndarray) -> Image.Image:
    """Labels (H, W) uint8 as a palette image in VOC's colours."""
    image = Image.fromarray(labels).convert("P")
    image.putpalette(voc_palette())
    return image


def write_list(root: Path, split: str, names: Iterable[str]) -> None:
    """The images of a split, one name a line; DistillError for a name that would be read as another."""
    names = list(names)
    if strange := next((name for name in names if [name.strip()] != name.splitlines()), None):
        raise DistillError(f"the image {strange!r} has a name that no list can hold; rename it")
    write_text(root / LISTS / f"{split}.txt", "".join(f"{name}\n" for name in names))


def write_class_names(root: Path, names: Iterable[str]) -> None:
    """The names of the classes 0, 1, …, one a line."""
    write_text(root / "class_names.txt", "".join(f"{name}\n" for name in names))


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Ends by an exception, so that what was begun is removed; elsewhere than in the main thread nothing can be set."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: not one of Python's


def left_out(what: object) -> None:
    """Told beside a progress bar, and not where a command prints its result."""
    tqdm.write(f"left out: {what}", file=sys.stderr)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that has those of images, masks and lists; it becomes `out`, or is removed after an error.

    Raises DistillError when `out` exists, would lie among the images of a data set, or cannot be written.
    """
    if out.exists():
        raise DistillError(f"{out} is there already; choose another folder, or delete it")
    if among := next((place for place in out.absolute().parents if place.name in (IMAGES, MASKS)), None):
        raise DistillError(f"{out} would lie among the files of {among.parent}; choose a folder elsewhere")
    make_folder(out.parent)
    try:
        holder = tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent)
    except OSError as error:
        raise DistillError(
            f"nothing can be written into {out.parent} ({error.strerror}); choose a place in another folder"
        ) from None
    with _ended_by_sigterm(), holder as temporary:
        whole = Path(temporary) / out.name
        try:
            make_folders(whole)
            yield whole
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise DistillError(
                f"{out} could not be written ({error.strerror}); make room, or choose a folder on another disk"
            ) from None
        try:
            whole.rename(out)
        except OSError as error:  # as where two processes made it at once
            raise DistillError(f"{out} could not be made ({error.strerror}); choose another folder") from None
