"""A copy of a folder in VOC layout with smaller images."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from distill.data.folders import VOCFolder, mask_of, read_split, split_names, unlisted_images
from distill.data.layout import IMAGES, MASKS, left_out, mask_image, new_folder, write_class_names, write_list
from distill.data.pictures import read_image, read_mask
from distill.errors import DistillError, check_number
from distill.files import make_folder


def resize_dataset(
    source: str | Path, out: str | Path, side: int, progress: bool = True, shuffle: bool = False
) -> Path:
    """Write the folder `source` to `out` with images whose longer side has at most `side` pixels; `out` is returned.

    Images are averaged over the pixels that become one, masks take the nearest; smaller images stay as they are. Images
    that no list names come along, with their masks, if any, as a student may learn on them by a teacher, and so do
    further lists, of images of train, val and test; what is left out is told. `out` appears only when it is complete.
    With `shuffle` the list of train is mixed, the same way everywhere: the first images may all be of one street, and
    `labelled` and `limit` keep the first. Raises DistillError when `out` exists already, or an image that is listed
    cannot be read.
    """
    source, out = Path(source), Path(out)
    check_number("side", side, 8, 100_000)
    listed = split_names(source)
    chosen = [split for split in ("train", "val", "test") if split in (listed or ("train", "val"))]
    splits = {split: VOCFolder(source, split) for split in chosen or ["train"]}
    first = next(iter(splits.values()))
    listed_ids = {name for dataset in splits.values() for name in dataset.ids}
    others = unlisted_images(source / IMAGES, listed_ids)
    total = sum(map(len, splits.values())) + len(others)
    unscored = "test" in splits and not splits["test"].has_masks()  # as VOC's: images alone
    with new_folder(out) as whole, tqdm(total=total, desc="resizing", unit="image", disable=not progress) as bar:
        for split, dataset in splits.items():
            for index, name in enumerate(dataset.ids):
                if split == "test" and unscored:
                    image = read_image(dataset.image_path(index))
                else:
                    pixels, labels = (tensor.numpy() for tensor in dataset[index])
                    image = pixels.transpose(1, 2, 0)
                    _save_mask(labels.astype(np.uint8), whole, name, side)
                _save_image(image, whole, name, side)
                bar.update()
            mixed = shuffle and split == "train"
            write_list(whole, split, sorted(dataset.ids, key=_checksum) if mixed else dataset.ids)
        copy_lists(source, whole, set(listed) - set(splits), listed_ids)
        for name, path in others.items():
            try:
                image, own = read_image(path), mask_of(source, name)
                if own.exists():  # so that nobody takes it for an image without one
                    _save_mask(read_mask(own, first.num_classes), whole, name, side)
                _save_image(image, whole, name, side)
            except DistillError as error:
                left_out(error)
            bar.update()
        write_class_names(whole, first.class_names)
    return out


def copy_lists(source: Path, out: Path, splits: set[str], copied: set[str]) -> None:
    """Further lists, of images that were all copied; what is left out is told."""
    for split in sorted(splits):
        try:
            names = read_split(source, split)
        except DistillError as error:  # such as a list of pairs of files, which others read
            left_out(error)
            continue
        if further := set(names) - copied:
            left_out(f"the list {split}, with {len(further)} images of no other list")
        else:
            write_list(out, split, names)


def _checksum(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _save_image(image: np.ndarray, out: Path, name: str, side: int) -> None:
    _save(Image.fromarray(image), out / IMAGES / f"{name}.png", side, Image.Resampling.BOX)


def _save_mask(labels: np.ndarray, out: Path, name: str, side: int) -> None:
    _save(mask_image(labels), out / MASKS / f"{name}.png", side, Image.Resampling.NEAREST)


def _save(picture: Image.Image, path: Path, side: int, how: Image.Resampling) -> None:
    make_folder(path.parent)  # a list may name images in folders
    shrunk(picture, side, how).save(path)


def shrunk(picture: Image.Image, side: int, how: Image.Resampling = Image.Resampling.BOX) -> Image.Image:
    """A picture whose longer side has at most `side` pixels; a smaller one stays as it is."""
    scale = min(1.0, side / max(picture.size))
    width, height = (max(1, round(length * scale)) for length in picture.size)
    return picture.resize((width, height), how)
