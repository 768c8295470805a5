"""Further images without masks: students learn from their teacher on them, and from no label."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision import tv_tensors

from distill.data.folders import IMAGE_ENDINGS, VOCFolder, read_image
from distill.data.transforms import IGNORE_INDEX
from distill.errors import DistillError


class WithUnlabelled(VOCFolder):
    """A split, and after its images those that lie in a folder, every pixel of which is void.

    Images of the split are not taken twice, and those of val and test not at all: a score would be of images that
    the student has seen. Raises DistillError where the folder holds no others.
    """

    def __init__(self, labelled: VOCFolder, folder: str | Path) -> None:
        self.labelled, self.folder = labelled, Path(folder)
        self.root, self.split = labelled.root, labelled.split
        self.class_names, self.num_classes = labelled.class_names, labelled.num_classes
        if not self.folder.is_dir():
            raise DistillError(f"there is no folder {self.folder}; give one with images, for the option unlabelled")
        there = sorted(path for path in self.folder.iterdir() if path.suffix in IMAGE_ENDINGS)
        known = {
            split.image_path(index).resolve() for split in (labelled, *_scored(labelled)) for index in range(len(split))
        }
        self.extra = [path for path in there if path.resolve() not in known]
        if not self.extra:
            more = f" but the {len(there)} of its train, val and test" if there else ""
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


def _scored(labelled: VOCFolder) -> Iterator[VOCFolder]:
    """The splits of the same folder that scores are of."""
    for split in ("val", "test"):
        try:
            yield VOCFolder(labelled.root, split)
        except DistillError:  # there is none
            continue
