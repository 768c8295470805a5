"""A plain implementation, as a first reading of the papers gives it, for `bench` to compare with: correct, not fast.

Losses are their formulas in as many operations. The teacher stays in training mode and its gradients are recorded,
though nothing uses them, as in the published code. Loading opens, flips, scales, pads, crops and blurs the whole
picture with Pillow. Everything is in float32, one operation at a time, channels before height and width in memory.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import Tensor

from distill.data.folders import VOC_CLASSES, VOCFolder
from distill.data.layout import IMAGES, MASKS, make_folders, voc_palette, write_list
from distill.data.transforms import IMAGENET_MEAN, IMAGENET_STD, View, draw_view
from distill.losses import IGNORE_INDEX
from distill.methods import Method
from distill.networks.backbones import POSITIONS
from distill.terms import AT, KD, OFD, MapTerm

KNOWN = ("kd", "at", "ofd", "sakd")  # terms of a method that have a plain form here

# ------------------------------------------------------------------------------------------------------ losses


def kd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Hinton et al. 2015: the divergence of softened logits, averaged over pixels."""
    target = F.softmax(teacher.detach() / temperature, dim=1)
    divergence = F.kl_div(F.log_softmax(student / temperature, dim=1), target, reduction="none")
    return divergence.sum(1).mean() * temperature**2


def at(student: Tensor, teacher: Tensor) -> Tensor:
    """Zagoruyko and Komodakis 2017: squared difference of attention maps of length 1."""
    return _distance(student.pow(2).mean(1), teacher.detach().pow(2).mean(1))


def ofd(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Heo et al. 2019: the partial L2 distance, by a mask as large as the maps."""
    target = torch.max(teacher.detach(), margin[None, :, None, None])
    squares = (student - target) ** 2
    return torch.where((student > target) | (target > 0), squares, torch.zeros_like(squares)).sum()


def sakd(student: Tensor, teacher: Tensor) -> Tensor:
    """The method under study, on square maps: squared difference of self-attended maps of length 1."""
    return _distance(_attended(student), _attended(teacher.detach()))


def _attended(feature: Tensor) -> Tensor:
    g = feature.pow(2).mean(1)
    similar = g @ g.transpose(1, 2)
    return g + (F.softmax(similar, dim=1) * g + F.softmax(similar, dim=2) * g) / g.shape[2] ** 0.5


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    return (F.normalize(student.flatten(1), dim=1) - F.normalize(teacher.flatten(1), dim=1)).pow(2).mean()


def loss(method: Method, student: tuple[Any, ...], teacher: tuple[Any, ...] | None, labels: Tensor) -> Tensor:
    """Cross-entropy and the terms of `method`, whose weights, dividers, connectors and margins are taken.

    `student` and `teacher` are what the networks returned: logits and the six maps.
    """
    total = F.cross_entropy(student[0], labels, ignore_index=IGNORE_INDEX)
    if teacher is None:  # as the baseline's
        return total
    for term in method.terms.values():
        if isinstance(term, KD):
            total = total + term.weight * kd(student[0], teacher[0], term.temperature)
        elif isinstance(term, MapTerm):
            total = total + term.weight * _over_maps(term, student[1], teacher[1])
    return total


def _over_maps(term: MapTerm, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    total = torch.tensor(0.0)
    for position, divider in zip(term.positions, term.dividers, strict=True):
        own, other = (maps[POSITIONS.index(position)] for maps in (student, teacher))
        if own.shape[2:] != other.shape[2:]:
            own = F.interpolate(own, other.shape[2:], mode="bilinear", align_corners=True)
        if term.connectors:
            own = term.connect[position](own)
        if isinstance(term, OFD):
            total = total + ofd(own, other, getattr(term, f"margin_{position}")) / divider / len(own)
        else:
            total = total + (at if isinstance(term, AT) else sakd)(own, other) / divider
    return total


# ----------------------------------------------------------------------------------------------------- loading


def batches(
    dataset: VOCFolder, crop_size: int, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in a random order: images (N, 3, S, S) and labels (N, S, S), a last incomplete batch left out."""
    order = torch.randperm(len(dataset), generator=generator).tolist()
    for start in range(0, len(order) - batch_size + 1, batch_size):
        items = [_load(dataset, index, crop_size, generator) for index in order[start : start + batch_size]]
        images, labels = zip(*items, strict=True)
        yield torch.stack(images), torch.stack(labels)


def decode(dataset: VOCFolder, index: int) -> tuple[Image.Image, Image.Image]:
    """A picture and its mask, whole."""
    image, mask = Image.open(dataset.image_path(index)).convert("RGB"), Image.open(dataset.mask_path(index))
    mask.load()
    return image, mask


def _load(dataset: VOCFolder, index: int, crop_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    image, mask = decode(dataset, index)
    image, mask = crop(image, mask, draw_view(image.height, image.width, crop_size, generator), crop_size)
    pixels = np.array(image).astype(np.float32)
    pixels /= 255.0
    pixels -= np.array(IMAGENET_MEAN, np.float32)
    pixels /= np.array(IMAGENET_STD, np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1)), torch.from_numpy(np.array(mask).astype(np.int64))


def crop(image: Image.Image, mask: Image.Image, view: View, crop_size: int) -> tuple[Image.Image, Image.Image]:
    """What `view` shows of a picture and its mask, `crop_size` a side."""
    if view.mirrored:
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    image = image.resize((view.width, view.height), Image.Resampling.BILINEAR)
    mask = mask.resize((view.width, view.height), Image.Resampling.NEAREST)
    left, top = max(0, -view.left), max(0, -view.top)
    border = left, top, max(0, crop_size - view.width - left), max(0, crop_size - view.height - top)
    red, green, blue = (round(255 * mean) for mean in IMAGENET_MEAN)
    image = _pad(image, border, (red, green, blue))
    mask = _pad(mask, border, IGNORE_INDEX)
    corner = max(0, view.left), max(0, view.top)
    box = *corner, corner[0] + crop_size, corner[1] + crop_size
    image, mask = image.crop(box), mask.crop(box)
    return image.filter(ImageFilter.GaussianBlur(view.sigma)) if view.sigma else image, mask


def _pad(image: Image.Image, border: tuple[int, int, int, int], fill: int | tuple[int, int, int]) -> Image.Image:
    if not any(border):
        return image
    padded = Image.new(image.mode, (image.width + border[0] + border[2], image.height + border[1] + border[3]), fill)
    padded.paste(image, border[:2])
    return padded


def write_pictures(folder: Path, count: int, size: tuple[int, int], seed: int = 0) -> Path:
    """A folder in VOC layout, with pictures that are about as hard to decode as photographs: soft, noisy, with shapes.

    `size` is width and height.
    """
    rng = np.random.default_rng(seed)
    make_folders(folder)
    for index in range(count):
        picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        mask = Image.new("P", size)
        mask.putpalette(voc_palette())
        for label in rng.integers(1, len(VOC_CLASSES), 4).tolist():
            x, y = sorted(rng.integers(0, size[0], 2).tolist()), sorted(rng.integers(0, size[1], 2).tolist())
            ImageDraw.Draw(mask).ellipse((x[0], y[0], x[1], y[1]), label, IGNORE_INDEX)
            ImageDraw.Draw(picture).ellipse((x[0], y[0], x[1], y[1]), tuple(rng.integers(0, 256, 3).tolist()))
        noisy = np.asarray(picture) + rng.normal(0, 20, (size[1], size[0], 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / IMAGES / f"{index}.jpg", quality=90)
        mask.save(folder / MASKS / f"{index}.png")
    write_list(folder, "train", map(str, range(count)))
    return folder
