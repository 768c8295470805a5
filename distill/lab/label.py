"""A teacher's masks as labels: what to compare a distillation loss with where images have no labels."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from torch import nn
from tqdm.auto import tqdm

from distill.data.folders import VOCFolder, mask_of, read_split, split_names, splits_to_score, unlisted_images
from distill.data.layout import (
    BY_TEACHER,
    IMAGES,
    MASKS,
    left_out,
    mask_image,
    new_folder,
    write_class_names,
    write_list,
)
from distill.data.pictures import read_image
from distill.data.resize import copy_lists
from distill.errors import DistillError, check_number
from distill.files import make_folder
from distill.networks.teachers import load_teacher
from distill.training.evaluation import check_classes, predict
from distill.training.parallel import pick_device


def label_by_teacher(
    source: str | Path,
    out: str | Path,
    teacher: str | Path | nn.Module = "sample",
    keep: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Copy a folder in VOC layout to `out`, with a teacher's masks for images without labels; `out` is returned.

    These are the images that no list of train, val or test names, and with `keep` the training images after the first
    so many, but none that is in val or test too. All of them are in the copy's train split, and in a list `by_teacher`,
    with those that `source` has in such a list already, so that `tune` holds out none of them. Further lists come
    along. A teacher names a class everywhere, so its masks have no void. `teacher` is what `load_teacher` takes. `out`
    appears only when it is complete; images of no list that cannot be read are left out, and told. Raises DistillError
    when it exists already, another image cannot be read, an image that is in no list has a mask, the teacher has other
    classes, or there is nothing to label.
    """
    source, out = Path(source), Path(out)
    train, val = VOCFolder(source, "train"), VOCFolder(source, "val")
    scored = {"val": val} | {split.split: split for split in splits_to_score(source)}
    if keep is not None:
        check_number("keep", keep, 0, len(train))
        keep = int(keep)
    kept = train.ids[:keep]
    listed = {name for split in (train, *scored.values()) for name in split.ids}
    theirs = {name for split in scored.values() for name in split.ids}  # their labels stay
    further = [index for index in range(len(kept), len(train)) if train.ids[index] not in theirs]
    unlabelled = {train.ids[index]: train.image_path(index) for index in further}
    unlisted = unlisted_images(source / IMAGES, listed)
    _check_without_masks(source, unlisted)
    unlabelled |= unlisted
    before = set(read_split(source, BY_TEACHER)) if BY_TEACHER in split_names(source) else set()
    if not unlabelled:
        raise DistillError(f"{source} has no images without labels; add some to {source / IMAGES}, or give --keep N")
    network = load_teacher(teacher, pick_device(device))
    check_classes("teacher", network, train)
    tested = "test" in scored and scored["test"].has_masks()  # VOC's comes without
    with new_folder(out) as whole:
        for split in (train, *scored.values()):
            for index, name in enumerate(split.ids):
                if name in unlabelled:
                    continue
                _copy(split.image_path(index), whole / IMAGES, name)
                if split is not scored.get("test") or tested:
                    _copy(split.mask_path(index), whole / MASKS, name)
        for name, path in tqdm(list(unlabelled.items()), desc="labelling", unit="image", disable=not progress):
            try:
                labels = predict(network, read_image(path))
            except DistillError as error:
                if name not in unlisted:
                    raise
                left_out(error)
                del unlabelled[name]
                continue
            _copy(path, whole / IMAGES, name)
            mask = whole / MASKS / f"{name}.png"
            make_folder(mask.parent)
            mask_image(labels).save(mask)
        write_list(whole, "train", [*kept, *unlabelled])
        write_list(whole, BY_TEACHER, [*(name for name in kept if name in before), *unlabelled])
        for name, split in scored.items():
            write_list(whole, name, split.ids)
        copy_lists(source, whole, set(split_names(source)) - {"train", BY_TEACHER, *scored}, listed | set(unlabelled))
        write_class_names(whole, train.class_names)
        if (source / "sample.txt").exists():  # drawn scenes stay such
            shutil.copyfile(source / "sample.txt", whole / "sample.txt")
    return out


def _check_without_masks(source: Path, names: Iterable[str]) -> None:
    """DistillError where an image that is in no list has a mask: a teacher's would take the place of a human's."""
    if own := next((mask for mask in (mask_of(source, name) for name in names) if mask.exists()), None):
        raise DistillError(
            f"{own} is the mask of an image that is in no list of train, val or test, and a teacher's would take its "
            f"place; add the image's name to a list, or move the mask away"
        )


def _copy(path: Path, folder: Path, name: str) -> None:
    """Copy a file of a data set into a folder, under its name in the lists."""
    if not path.exists():
        raise DistillError(f"{path} is missing, though a list names it; add it, or remove its name from the list")
    target = folder / f"{name}{path.suffix.lower()}"
    make_folder(target.parent)  # a list may name images in folders
    shutil.copyfile(path, target)
