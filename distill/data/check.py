"""Whether every image and mask of a folder in VOC layout can be read, and what they hold."""

import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from distill.data.folders import (
    AUGMENTED_LISTS,
    IMAGE_ENDINGS,
    AugmentedVOC,
    VOCFolder,
    mask_of,
    masks_of,
    read_class_names,
    read_split,
    split_names,
    unlisted_images,
)
from distill.data.layout import IMAGES, LISTS
from distill.errors import DistillError
from distill.losses import IGNORE_INDEX


def check_dataset(
    root: str | Path, splits: Iterable[str] | None = None, progress: bool = True
) -> dict[str, dict[str, Any]]:
    """Read every image and mask of a folder in VOC layout, and report by split.

    Returns for each split: `images`, `sizes` (smallest and largest, width x height), `class_share` (share of the
    labelled pixels by class), `void_share` and `problems` (one sentence each). A list of test images that is empty is
    no split, as where a sample was made without; nor, unless asked for, is one whose masks are not there, as VOC's.
    """
    root = Path(root)
    names = read_class_names(root)
    found = split_names(root)
    opened = {split: _open_split(root, split) for split in splits or found or ["train", "val"]}
    unscored = "val" in opened and "test" in opened and not opened["test"].has_masks()
    if unscored and not splits:
        del opened["test"]
    report = {split: _check_split(dataset, names, progress) for split, dataset in opened.items()}
    if not splits and found and "val" not in found:
        missing = root / LISTS / "val.txt"
        report[found[0]]["problems"].append(
            f"{missing} is missing, the list of images to score; write it, one name per line"
        )
    for split in ("val", "test"):
        if "train" in opened and split in opened:
            report[split]["problems"] += _shared(opened["train"], opened[split])
    return report


def unlisted(root: str | Path) -> tuple[int, int]:
    """How many images no list names, and how many of them have a mask; they are not read."""
    root = Path(root)
    listed: set[str] = set()
    for split in split_names(root) or ["train", "val"]:
        with suppress(DistillError):  # such as a list of pairs of files, which others read
            listed.update(read_split(root, split))
    names = unlisted_images(root / IMAGES, listed)
    return len(names), sum(mask_of(root, name).exists() for name in names)


def _shared(train: VOCFolder, scored: VOCFolder) -> list[str]:
    both = sorted(set(train.ids) & set(scored.ids))
    if not both:
        return []
    return [
        f"{len(both)} images of {scored.split} are in the list of train too, such as {both[0]}, and a score would be "
        f"of images that the student has seen; remove them from one of the two"
    ]


def unlearnable(dataset: VOCFolder, values: set[int]) -> str | None:
    """What is wrong with a split whose masks hold these values: nothing but void, or a class drawn as void."""
    place = f"the split {dataset.split} of {dataset.root}"
    if values == {IGNORE_INDEX}:
        return f"there is no labelled pixel in {place}, only void (255); label some"
    if values == {0, IGNORE_INDEX} and dataset.num_classes > 1:
        return (
            f"the masks of {place} hold only 0 and 255, and 255 is void, pixels without a label; where it means a "
            f"class, save that as 1"
        )
    return None


def _open_split(root: Path, split: str) -> VOCFolder:
    """A split of a folder; for SBD's list, with the masks that belong to it."""
    augmented = f"{split}.txt" in AUGMENTED_LISTS and (root / "SegmentationClassAug").is_dir()
    return AugmentedVOC(root) if augmented else VOCFolder(root, split)


def _several(dataset: VOCFolder, index: int) -> list[str]:
    """Where two files have the name of one image or mask: which is read depends on their endings and folders."""
    name, image, mask = dataset.ids[index], dataset.image_path(index), dataset.mask_path(index)
    found = [(image, image.parent / f"{Path(name).name}{ending}") for ending in IMAGE_ENDINGS]
    found += [(mask, path) for path in masks_of(dataset.root, name) if mask.suffix != ".mat"]  # SBD's own
    others = [(read, path) for read, path in found if path.exists() and not path.samefile(read)]
    return [
        f"{path} has the name of {read}, which is read in its place; remove one of the two" for read, path in others
    ]


def _check_split(dataset: VOCFolder, names: tuple[str, ...], progress: bool) -> dict[str, Any]:
    counts, sizes, problems = np.zeros(256, dtype=np.int64), [], []
    for index in tqdm(range(len(dataset)), desc=f"checking {dataset.split}", unit="image", disable=not progress):
        try:
            image, labels = dataset[index]
            dataset.check_proportions(index, labels)
        except DistillError as error:
            problems.append(str(error))
            continue
        problems += _several(dataset, index)
        sizes.append((image.shape[2], image.shape[1]))
        counts += np.bincount(labels.numpy().ravel(), minlength=256)
    if fault := unlearnable(dataset, set(np.flatnonzero(counts).tolist())):
        problems.append(fault)
    labelled = max(1, counts[:IGNORE_INDEX].sum())
    return {
        "images": len(dataset),
        "problems": problems,
        "sizes": [min(sizes, key=math.prod), max(sizes, key=math.prod)] if sizes else [],
        "class_share": {name: float(counts[label] / labelled) for label, name in enumerate(names)},
        "void_share": float(counts[IGNORE_INDEX] / max(1, counts.sum())),
    }
