"""Transforms that move an image and its labels together, on torchvision.transforms.v2."""

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

IGNORE_INDEX = 255
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MEAN_COLOUR = [round(255 * mean) for mean in IMAGENET_MEAN]
_PADDING = {tv_tensors.Image: _MEAN_COLOUR, tv_tensors.Mask: IGNORE_INDEX}


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 images (..., 3, H, W) to float, with ImageNet's mean and standard deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def published_crops(crop_size: int, padding: str = "void") -> v2.Transform:
    """The published augmentation: flip, short side from half to twice the crop, random crop, blur every second time.

    At `crop_size` 513 the short side is drawn from 256 to 1026. Takes and gives a uint8 image (3, H, W) and its
    mask (H, W), as tv_tensors; the result is `crop_size` a side. What lies beyond a small image is labelled void; or
    0 with `padding="background"`, as in the published code, which so teaches a class where there is no image.
    """
    fill = _PADDING | ({tv_tensors.Mask: 0} if padding == "background" else {})
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomResize(crop_size // 2, 2 * crop_size + 1, antialias=True),
            v2.RandomCrop(crop_size, pad_if_needed=True, fill=fill),
            v2.RandomApply([v2.GaussianBlur(5, sigma=(0.1, 1.0))], p=0.5),
        ]
    )
