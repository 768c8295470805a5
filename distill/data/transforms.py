"""The published augmentation, of an image and its labels together: flip, scale, crop, blur.

What a crop shows is drawn first (`draw_view`), and cut out afterwards: on the host (`cut`), an image at a time, or on
the device (`cut_on_device`), a batch at a time. Both scale only what the crop shows, which is why they are quick, and
give what scaling the whole image would.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.losses import IGNORE_INDEX

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MEAN_COLOUR = tuple(round(255 * mean) for mean in IMAGENET_MEAN)


def normalise(images: Tensor) -> Tensor:
    """Images (..., 3, H, W) of values from 0 to 255 to float, with ImageNet's mean and standard deviation."""
    mean, std = _colour(IMAGENET_MEAN, images.device), _colour(IMAGENET_STD, images.device)
    return images.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)  # in place: large crops are slow to copy


@lru_cache(maxsize=32)
def _colour(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Three numbers as (3, 1, 1), copied to a device once; not to be written to."""
    with torch.inference_mode(False):  # what is made in it could not be used with gradients later
        return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without waiting for it where that is a GPU: for that a tensor has to be pinned."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


class View(NamedTuple):
    """What a crop shows of an image: scaled to `height` x `width`, cut from `top`, `left` on, and mirrored or not.

    `top` or `left` is negative where the scaled image is smaller than the crop, which then shows padding. `sigma`, in
    pixels of the crop, is the width of the blur, 0 for none.
    """

    height: int
    width: int
    top: int
    left: int
    mirrored: bool
    sigma: float


def draw_view(
    height: int,
    width: int,
    crop_size: int,
    generator: torch.Generator | None = None,
    scales: tuple[float, float] = (0.5, 2.0),
) -> View:
    """A view of an image of height x width, as published where `scales` is not given.

    The short side from half to twice the crop, or between the crop times `scales`; at `crop_size` 513 from 256 to 1026;
    the crop anywhere in it; mirrored every second time; blurred every second time.
    """
    side, top, left, flip, blurred, sigma = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    shortest, longest = (int(scale * crop_size) for scale in scales)
    short = shortest + int(side * (longest - shortest + 1))
    tall, wide = (max(1, length * short // min(height, width)) for length in (height, width))
    top, left = (_offset(share, length - crop_size) for share, length in ((top, tall), (left, wide)))
    return View(tall, wide, top, left, flip < 0.5, 0.1 + 0.9 * sigma if blurred < 0.5 else 0.0)


def _offset(share: float, room: int) -> int:
    """A place for the crop along a side: in the image where that has room for it, else somewhere around the image."""
    return int(share * (abs(room) + 1)) * (1 if room >= 0 else -1)


def published_crops(crop_size: int, padding: str = "void") -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function that draws a view, from PyTorch's global generator, and cuts it: see `cut`."""

    def crop(image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        height, width = labels.shape[-2:]
        return cut(image, labels, draw_view(height, width, crop_size), crop_size, padding)

    return crop


def cut(image: Tensor, labels: Tensor, view: View, crop_size: int, padding: str = "void") -> tuple[Tensor, Tensor]:
    """One crop: an image (3, H, W) uint8 and its labels (H, W) to the same, `crop_size` a side.

    The area beyond a small image has ImageNet's mean colour and is labelled void; or 0 with `padding="background"`,
    as in the published code, which thus teaches a class where there is no image.
    """
    height, width = image.shape[-2:]
    rows, columns = _shown(view.top, view.height, crop_size), _shown(view.left, view.width, crop_size)
    down, across = height / view.height, width / view.width
    # Pillow takes the place of a part in fractions of pixels, so that nothing is lost by not scaling the rest.
    left, top = (view.left + columns.start) * across, (view.top + rows.start) * down
    right, bottom = min(width, (view.left + columns.stop) * across), min(height, (view.top + rows.stop) * down)
    box = left, top, right, bottom
    size = columns.stop - columns.start, rows.stop - rows.start
    crop, mask = (frame.copy() for frame in _padding(crop_size, padding))
    crop[rows, columns] = _part(image.permute(1, 2, 0), size, Image.Resampling.BILINEAR, box)
    mask[rows, columns] = _part(labels.to(torch.uint8), size, Image.Resampling.NEAREST, box)
    pixels, classes = torch.from_numpy(crop), torch.from_numpy(mask)
    if view.sigma:
        weights = _bell(torch.tensor(view.sigma)).tolist()
        pixels = _smooth(_smooth(pixels.float(), weights, 0), weights, 1).round_().to(torch.uint8)
    if view.mirrored:
        pixels, classes = pixels.flip(1), classes.flip(1)
    return pixels.permute(2, 0, 1), classes.to(labels.dtype)


@lru_cache(maxsize=8)
def _padding(crop_size: int, padding: str) -> tuple[np.ndarray, np.ndarray]:
    """A crop that shows nothing, and its labels; to be copied."""
    pixels = np.full((crop_size, crop_size, 3), _MEAN_COLOUR, dtype=np.uint8)
    return pixels, np.full((crop_size, crop_size), _label_of(padding), dtype=np.uint8)


def _part(
    pixels: Tensor, size: tuple[int, int], how: Image.Resampling, box: tuple[float, float, float, float]
) -> Image.Image:
    return Image.fromarray(pixels.numpy()).resize(size, how, box)


def _shown(start: int, length: int, crop_size: int) -> slice:
    """Where, along a side of the crop, there is image and no padding."""
    return slice(max(0, -start), min(crop_size, length - start))


def _label_of(padding: str) -> int:
    return 0 if padding == "background" else IGNORE_INDEX


def _bell(sigma: Tensor) -> Tensor:
    """A Gaussian of five pixels from its middle on, (3, ...) for sigma (...); 1, 0, 0 where that is 0."""
    steps = torch.arange(3, device=sigma.device).view(3, *[1] * sigma.dim())
    bell = torch.exp(-0.5 * (steps / sigma.clamp(min=1e-3)) ** 2)
    return bell / (bell[0] + 2 * bell[1:].sum(0))


def _smooth(values: Tensor, weights: Tensor | list[float], axis: int) -> Tensor:
    """Blur along one axis by `_bell`'s weights, numbers or one per row; beyond the ends the values are reflected."""
    length = values.shape[axis]
    part = values.narrow
    ends = part(axis, 1, 2).flip(axis), part(axis, length - 3, 2).flip(axis)
    part = torch.cat([ends[0], values, ends[1]], axis).narrow
    smooth = part(axis, 2, length) * weights[0]
    for place, weight in zip((1, 3, 0, 4), (weights[1], weights[1], weights[2], weights[2]), strict=True):
        neighbour = part(axis, place, length)
        if isinstance(weight, float):
            smooth.add_(neighbour, alpha=weight)
        else:
            smooth.addcmul_(neighbour, weight)
    return smooth


def cut_on_device(
    images: Sequence[Tensor], labels: Sequence[Tensor], views: Sequence[View], crop_size: int, padding: str = "void"
) -> tuple[Tensor, Tensor]:
    """`cut` for a whole batch, on the device where the images are: (N, 3, S, S) and (N, S, S), both uint8.

    Scaling, cutting, mirroring and blurring are linear, so along each side they are one matrix per image, and the crop
    is the product of the image with the two. Pixels may differ from `cut`'s by 1, which rounds in between; labels may
    differ in whole rows or columns, where the nearest pixel is one of two that are equally near.
    """
    device, stack = images[0].device, _stacked(images, 0)
    # Nothing here may ask the device for a value: that would wait until it has done all that it was given to do.
    told = [(*image.shape[-2:], *view) for image, view in zip(images, views, strict=True)]
    sizes, view = moved(torch.tensor(told, dtype=torch.float64), device).split([2, 6], 1)
    tallest, widest = stack.shape[-2:]
    down, seen_rows, rows = _side(sizes[:, 0], tallest, view[:, 0], view[:, 2], torch.zeros_like(view[:, 4]), crop_size)
    across, seen_columns, columns = _side(sizes[:, 1], widest, view[:, 1], view[:, 3], view[:, 4], crop_size)
    weights = _bell(view[:, 5].float())[..., None, None]
    down, across, tall, wide = (
        _smooth(side, weights, 1)
        for side in (down, across, *(seen[..., None].float() for seen in (seen_rows, seen_columns)))
    )
    pixels = torch.einsum("nsh,nchw,ntw->ncst", down, stack.float(), across)
    pixels += _colour(_MEAN_COLOUR, device) * (1 - tall @ wide.mT)[:, None]
    one = torch.arange(len(images), device=device)[:, None, None]
    classes = _stacked(labels, IGNORE_INDEX)[one, rows[:, :, None], columns[:, None, :]]
    seen = seen_rows[:, :, None] & seen_columns[:, None, :]
    return pixels.round_().clamp_(0, 255).to(torch.uint8), classes.masked_fill(~seen, _label_of(padding))


def _side(
    lengths: Tensor, longest: int, scaled: Tensor, start: Tensor, mirrored: Tensor, crop_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Along one side of N crops, what each pixel is made of.

    Its weights (N, crop_size, longest), a triangle as wide as a scaled pixel, all 0 in the padding; whether it shows
    the image (N, crop_size); and the nearest pixel of the image (N, crop_size).
    """
    places = torch.arange(crop_size, device=lengths.device, dtype=torch.float64).expand(len(lengths), -1)
    places = torch.where(mirrored[:, None] > 0, places.flip(1), places) + start[:, None]
    seen = (places >= 0) & (places < scaled[:, None])
    step = (lengths / scaled)[:, None]
    centre = (places + 0.5) * step
    pixels = torch.arange(longest, device=lengths.device)
    weights = 1 - (pixels + 0.5 - centre[..., None]).abs() / step.clamp(min=1)[..., None]
    weights = weights.clamp(min=0) * (pixels < lengths[:, None])[:, None] * seen[..., None]
    weights = weights / weights.sum(2, keepdim=True).clamp(min=1e-9)
    return weights.float(), seen, centre.long().clamp(min=0).minimum(lengths.long()[:, None] - 1)


def _stacked(tensors: Sequence[Tensor], fill: int) -> Tensor:
    """Tensors of different sizes in one, each in the corner of a frame that the largest fills."""
    height, width = (max(tensor.shape[axis] for tensor in tensors) for axis in (-2, -1))
    stack = tensors[0].new_full((len(tensors), *tensors[0].shape[:-2], height, width), fill)
    for slot, tensor in zip(stack, tensors, strict=True):
        slot[..., : tensor.shape[-2], : tensor.shape[-1]] = tensor
    return stack
