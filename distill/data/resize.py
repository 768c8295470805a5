"""A copy of a folder in VOC layout with smaller images."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from distill.data.folders import VOCFolder
from distill.data.sample import mask_image, write_list
from distill.errors import DistillError, check_number
from distill.files import make_folder, write_text


def resize_dataset(source: str | Path, out: str | Path, side: int, progress: bool = True) -> Path:
    """Write the folder `source` to `out` with images whose longer side has at most `side` pixels; `out` is returned.

    Images are averaged over the pixels that become one, masks take the nearest; smaller images stay as they are. `out`
    appears only when it is complete. Raises DistillError when it exists already, or an image cannot be read.
    """
    source, out = Path(source), Path(out)
    check_number("side", side, 8, 100_000)
    if out.exists():
        raise DistillError(f"{out} is there already; choose another folder, or delete it")
    listed = [path.stem for path in (source / "ImageSets" / "Segmentation").glob("*.txt")]
    chosen = [split for split in ("train", "val", "test") if split in (listed or ("train", "val"))]
    splits = {split: VOCFolder(source, split) for split in chosen or ["train"]}
    make_folder(out.parent)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        whole = Path(temporary) / out.name
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            make_folder(whole / folder)
        with tqdm(total=sum(map(len, splits.values())), desc="resizing", unit="image", disable=not progress) as bar:
            for split, dataset in splits.items():
                for index, name in enumerate(dataset.ids):
                    image, labels = (tensor.numpy() for tensor in dataset[index])
                    _save(image.transpose(1, 2, 0), labels, whole, name, side)
                    bar.update()
                write_list(whole, split, dataset.ids)
        names = next(iter(splits.values())).class_names
        write_text(whole / "class_names.txt", "\n".join(names) + "\n")
        whole.rename(out)
    return out


def _save(image: np.ndarray, labels: np.ndarray, out: Path, name: str, side: int) -> None:
    height, width = labels.shape
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    mask = mask_image(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    for folder, picture in (
        ("SegmentationClass", mask),
        ("JPEGImages", Image.fromarray(image).resize(size, Image.Resampling.BOX)),
    ):
        path = out / folder / f"{name}.png"
        make_folder(path.parent)  # a list may name images in folders
        picture.save(path)
