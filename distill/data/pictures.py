"""Reading the files of images and masks: what they hold, or one sentence on what is wrong with them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from distill.errors import DistillError, first_line
from distill.losses import IGNORE_INDEX


def read_image(path: Path) -> np.ndarray:
    """An image file as RGB, (H, W, 3) uint8, upright as labelling tools show it, however the camera was held.

    Grey, palette, RGBA and CMYK files are converted. Raises DistillError for what is no image or several (an
    animation), and for 16 bits per channel, which a conversion would cut off.
    """
    missing = f"there is no image {path}; check the path or, if a split list names it, add the image or remove its name"
    with _opened(path, "an image", missing) as image:
        return _upright(image, path)


def read_picture(image: Image.Image) -> np.ndarray:
    """An image that Pillow has opened or made, just as `read_image` reads its file; it is left as it is."""
    name = getattr(image, "filename", "") or "the picture"
    if 0 in image.size:
        raise DistillError(f"{name} is {image.width} x {image.height} pixels; give an image with pixels")
    with _readable(name, "an image"):
        _check_frames(image, name, "an image")
        return _upright(image, name)


def _upright(image: Image.Image, name: str | Path) -> np.ndarray:
    if image.mode.startswith(("I", "F")) or _is_deep(image):
        raise DistillError(f"{name} has more than 8 bits per channel (mode {image.mode}); save it with 8 bits")
    image = ImageOps.exif_transpose(image)  # a new one: the caller may go on with theirs
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _is_deep(image: Image.Image) -> bool:
    """Whether a PNG or TIFF file has more than 8 bits per channel, of which Pillow may keep 8 without a word."""
    bits = getattr(image, "tag_v2", {}).get(258, ())  # TIFF's BitsPerSample
    return _raw_mode(image).endswith(";16B") or max(bits, default=8) > 8


def _raw_mode(image: Image.Image) -> str:
    """How the file holds its pixels, as "L;4" for grey of 4 bits; nothing where Pillow does not say, or not any more.

    It says so until the pixels are read.
    """
    given = next((tile[3] for tile in getattr(image, "tile", ())), "")
    given = given[0] if isinstance(given, tuple) and given else given
    return given if isinstance(given, str) else ""


def read_mask(path: Path, num_classes: int) -> np.ndarray:
    """A palette or grey mask, or one of SBD's .mat files, as class indices (H, W) uint8; 255 is void.

    Raises DistillError when a value is neither below `num_classes` nor void.
    """
    if path.suffix == ".mat":
        mode, mask = "L", _read_sbd_mask(path)
    else:
        missing = f"{path} is missing, though the split list names it; add the mask or remove its name"
        with _opened(path, "a mask", missing) as picture:
            few = re.match("L;([24])", _raw_mode(picture))  # what Pillow stretches to 0 to 255
            if few:
                raise DistillError(
                    f"{path} is grey of {few[1]} bits, whose values would be read as others; export it again as a "
                    f"palette or 8-bit grey PNG"
                )
            if picture.format in ("JPEG", "MPO"):  # whatever the file's ending says
                raise DistillError(
                    f"{path} is a JPEG file, which changes the values that were drawn; export the mask again as a "
                    f"palette or 8-bit grey PNG"
                )
            mode, mask = picture.mode, np.array(ImageOps.exif_transpose(picture))  # turned as its image is
    if mode not in ("P", "L") or mask.ndim != 2:
        raise DistillError(
            f"{path} is a {mode} image, and a mask is a palette or 8-bit grey PNG of class indices; "
            f"export it again as such"
        )
    wrong = np.unique(mask[(mask >= num_classes) & (mask != IGNORE_INDEX)])
    if len(wrong):
        raise DistillError(
            f"{path} holds the value {wrong[0]}, and with {num_classes} classes only 0 to "
            f"{num_classes - 1} and 255 (void) may occur; correct the mask or class_names.txt"
        )
    return mask


def _read_sbd_mask(path: Path) -> np.ndarray:
    """The class indices in one of SBD's .mat files, (H, W) uint8."""
    from scipy.io import loadmat  # here, as it takes a while and most data have no such files

    try:
        with path.open("rb") as file:
            return np.asarray(loadmat(file)["GTcls"]["Segmentation"][0][0], dtype=np.uint8)
    except FileNotFoundError:
        raise DistillError(f"{path} is missing, though SBD's list names it; add the mask or remove its name") from None
    except Exception as error:  # a damaged file can raise anything
        raise DistillError(f"{path} cannot be read as one of SBD's masks ({error}); replace the file") from None


@contextmanager
def _opened(path: Path, kind: str, missing: str) -> Iterator[Image.Image]:
    """An open picture; Pillow's errors, on opening it or reading its pixels, become a DistillError."""
    with _readable(path, kind):
        try:
            image = Image.open(path)
        except FileNotFoundError:
            raise DistillError(missing) from None
        except IsADirectoryError:
            raise DistillError(f"{path} is a folder; give the files in it") from None
        with image:
            _check_frames(image, path, kind)
            yield image


def _check_frames(image: Image.Image, name: str | Path, kind: str) -> None:
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: cameras add a preview
    if frames > 1:
        raise DistillError(f"{name} has {frames} frames, and {kind} has one; save one of them by itself")


@contextmanager
def _readable(name: str | Path, kind: str) -> Iterator[None]:
    """Turns Pillow's errors about a picture into a DistillError."""
    try:
        yield
    except DistillError:  # a ValueError too, and a sentence already
        raise
    except Exception as error:  # a damaged file can raise anything
        raise DistillError(f"{name} cannot be read as {kind} ({first_line(error)}); replace the file") from None
