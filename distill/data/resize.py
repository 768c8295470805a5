"""A copy of a folder in VOC layout with smaller images."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from distill.data.folders import IMAGE_ENDINGS, VOCFolder, read_image
from distill.data.sample import mask_image, write_list
from distill.errors import DistillError, check_number
from distill.files import make_folder, write_text


def resize_dataset(source: str | Path, out: str | Path, side: int, progress: bool = True) -> Path:
    """Write the folder `source` to `out` with images whose longer side has at most `side` pixels; `out` is returned.

    Images are averaged over the pixels that become one, masks take the nearest; smaller images stay as they are. Images
    that no list names come along, as a student may learn on them by a teacher. `out` appears only when it is complete.
    Raises DistillError when it exists already, or an image cannot be read.
    """
    source, out = Path(source), Path(out)
    check_number("side", side, 8, 100_000)
    if out.exists():
        raise DistillError(f"{out} is there already; choose another folder, or delete it")
    listed = [path.stem for path in (source / "ImageSets" / "Segmentation").glob("*.txt")]
    chosen = [split for split in ("train", "val", "test") if split in (listed or ("train", "val"))]
    splits = {split: VOCFolder(source, split) for split in chosen or ["train"]}
    others = _others(source / "JPEGImages", splits.values())
    total = sum(map(len, splits.values())) + len(others)
    make_folder(out.parent)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        whole = Path(temporary) / out.name
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            make_folder(whole / folder)
        with tqdm(total=total, desc="resizing", unit="image", disable=not progress) as bar:
            for split, dataset in splits.items():
                for index, name in enumerate(dataset.ids):
                    image, labels = (tensor.numpy() for tensor in dataset[index])
                    mask = mask_image(labels.astype(np.uint8))
                    _save(mask, whole / "SegmentationClass" / f"{name}.png", side, Image.Resampling.NEAREST)
                    _save_image(image.transpose(1, 2, 0), whole, name, side)
                    bar.update()
                write_list(whole, split, dataset.ids)
            for name, path in others.items():
                _save_image(read_image(path), whole, name, side)
                bar.update()
        names = next(iter(splits.values())).class_names
        write_text(whole / "class_names.txt", "\n".join(names) + "\n")
        whole.rename(out)
    return out


def _others(folder: Path, splits: Iterable[VOCFolder]) -> dict[str, Path]:
    """The images of a folder that are in none of the splits, by their names without ending."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in IMAGE_ENDINGS)
    named = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    listed = {name for dataset in splits for name in dataset.ids}
    return {name: path for name, path in named.items() if name not in listed}


def _save_image(image: np.ndarray, out: Path, name: str, side: int) -> None:
    _save(Image.fromarray(image), out / "JPEGImages" / f"{name}.png", side, Image.Resampling.BOX)


def _save(picture: Image.Image, path: Path, side: int, how: Image.Resampling) -> None:
    scale = min(1.0, side / max(picture.size))
    width, height = (max(1, round(length * scale)) for length in picture.size)
    make_folder(path.parent)  # a list may name images in folders
    picture.resize((width, height), how).save(path)
