"""Further images without masks: students learn from their teacher on them, and from no label."""

import hashlib
from pathlib import Path

import torch
from torchvision import tv_tensors

from distill.data.folders import MASK_FOLDERS, VOCFolder, images_below, splits_to_score
from distill.data.layout import IMAGES, LISTS
from distill.data.pictures import read_image
from distill.errors import DistillError
from distill.losses import IGNORE_INDEX


class WithUnlabelled(VOCFolder):
    """A split, and after its images those of a folder and of the folders in it, every pixel of which is void.

    Images of the split are not taken twice, and those of val and test not at all: a score would be of images that
    the student has seen. They are known by their path or content, and in a folder JPEGImages with lists or masks beside
    it, such as `resize_dataset` takes and makes, by their names too. Raises DistillError where the folder holds no
    others.
    """

    def __init__(self, labelled: VOCFolder, folder: str | Path) -> None:
        self.labelled, self.folder = labelled, Path(folder)
        self.root, self.split = labelled.root, labelled.split
        self.class_names, self.num_classes = labelled.class_names, labelled.num_classes
        if not (str(folder) and self.folder.is_dir()):
            raise DistillError(f"there is no folder {self.folder}; give one with images, for the option unlabelled")
        if (self.folder / IMAGES).is_dir():
            self.folder = self.folder / IMAGES  # and not the masks beside it
        if self.folder.name in MASK_FOLDERS and (self.folder.parent / IMAGES).is_dir():
            raise DistillError(f"{self.folder} holds masks; give {self.folder.parent / IMAGES}, the images")
        there = [path for path in images_below(self.folder) if not _is_mask(path)]
        broken = next((path for path in there if not path.exists()), None)
        if broken:
            raise DistillError(f"{broken} is a link to a file that is not there; restore that, or remove the link")
        self.extra = _others(there, self.folder, [labelled, *splits_to_score(labelled.root)])
        self.known = len(there) - len(self.extra)  # images of the splits, which are left out
        if not self.extra:
            more = f" but {len(there)} that are of its train, val and test, or have their names" if there else ""
            raise DistillError(f"{self.folder} holds no images{more}; give a folder of .jpg or .png files")
        self.ids = [*labelled.ids, *(path.stem for path in self.extra)]

    def image_path(self, index: int) -> Path:
        own = len(self.labelled)
        return self.labelled.image_path(index) if index < own else self.extra[index - own]

    def mask_path(self, index: int) -> Path:
        """Of an image without a mask the image itself, where files are only compared."""
        return self.labelled.mask_path(index) if index < len(self.labelled) else self.image_path(index)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        index = range(len(self))[index]
        if index < len(self.labelled):
            return self.labelled[index]
        image = torch.from_numpy(read_image(self.image_path(index))).permute(2, 0, 1)
        return tv_tensors.Image(image), tv_tensors.Mask(torch.full(image.shape[1:], IGNORE_INDEX))


def _others(there: list[Path], folder: Path, splits: list[VOCFolder]) -> list[Path]:
    """The images in a folder that are in none of the splits."""
    known = [split.image_path(index) for split in splits for index in range(len(split))]
    paths = {path.resolve() for path in known}
    listed = folder.name == IMAGES and any((folder.parent / name).is_dir() for name in (LISTS, *MASK_FOLDERS))
    names = {name for split in splits for name in split.ids} if listed else set()
    others = [
        path
        for path in there
        if path.resolve() not in paths and path.relative_to(folder).with_suffix("").as_posix() not in names
    ]
    sizes = {path.stat().st_size for path in others}
    twins = [path for path in known if path.exists() and path.stat().st_size in sizes]
    twin_sizes, contents = {path.stat().st_size for path in twins}, {_digest(path) for path in twins}
    return [path for path in others if path.stat().st_size not in twin_sizes or _digest(path) not in contents]


def _is_mask(path: Path) -> bool:
    """Whether it lies in a data set, beside the images."""
    return any(place.name in MASK_FOLDERS and (place.parent / IMAGES).is_dir() for place in path.parents)


def _digest(path: Path) -> bytes:
    """Of the whole content: files of images without compression can be alike at both ends."""
    return hashlib.sha256(path.read_bytes()).digest()
