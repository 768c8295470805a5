"""Whether an exported network answers as PyTorch's does: the difference of logits, and the share of equal pixels."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from distill.data.folders import VOCFolder
from distill.errors import DistillError
from distill.networks.onnx_file import INPUT, OUTPUT, session_of
from distill.training.evaluation import Scores, confusion_matrix, resize_nearest

Size: TypeAlias = "tuple[int, int] | None"  # (H, W), or any
Answer: TypeAlias = Callable[[Tensor], Tensor]  # images (N, 3, H, W) uint8 to logits (N, C, H, W)

TOLERANCE = 1e-4  # of float32 logits, beside PyTorch's
LEAST_AGREEMENT, MOST_LOSS = 0.95, 0.02  # of int8: share of pixels, and mIoU
_SHAPES = ((1, 64, 64), (2, 65, 97))  # of images where any size is allowed: (N, H, W)


def answer_of(content: bytes) -> Answer:
    """An ONNX file's content as a function."""
    session = session_of(content)
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


@torch.no_grad()
def check_logits(network: nn.Module, answer: Answer, size: Size) -> dict[str, Any]:
    """The largest difference between an answer's logits and PyTorch's on random images.

    Raises DistillError where it is larger than `TOLERANCE` or, where logits are larger than 1, that share of them.
    """
    generator, largest, difference = torch.Generator().manual_seed(0), 1.0, 0.0
    for count, height, width in [(1, *size)] if size else _SHAPES:
        images = torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
        ours, theirs = network(images), answer(images)
        if ours.shape != theirs.shape:
            raise DistillError(
                f"the exported network gives logits {tuple(theirs.shape)} and PyTorch {tuple(ours.shape)}; nothing was "
                f"written; give --size H W"
            )
        largest = max(largest, float(ours.abs().max()))
        difference = max(difference, float((ours - theirs).abs().nan_to_num(nan=float("inf")).max()))
    if difference > TOLERANCE * largest:
        raise DistillError(
            f"the exported network's logits differ from PyTorch's by {difference:.2g}, and at most "
            f"{TOLERANCE * largest:.2g} is allowed; nothing was written; try --size H W"
        )
    return {"max_difference": difference, "largest_logit": largest}


@torch.no_grad()
def compare_masks(network: nn.Module, answer: Answer, dataset: VOCFolder, size: Size = None) -> dict[str, Any]:
    """`agreement`, the share of pixels of the same class as PyTorch's, and the mIoU of both on a data set."""
    equal, pixels, confusions = 0, 0, torch.zeros(2, dataset.num_classes, dataset.num_classes, dtype=torch.long)
    for image, labels in sized(dataset, size):
        ours, theirs = (logits.argmax(1) for logits in (network(image), answer(image)))
        equal, pixels = equal + int((ours == theirs).sum()), pixels + ours.numel()
        for confusion, mask in zip(confusions, (ours, theirs), strict=True):
            confusion += confusion_matrix(mask, labels, dataset.num_classes)
    ours, theirs = (Scores(confusion.numpy(), dataset.class_names).miou for confusion in confusions)
    return {"agreement": equal / pixels, "miou": theirs, "miou_pytorch": ours, "images": len(dataset)}


def check_masks(found: dict[str, Any]) -> None:
    """DistillError where too many pixels have another class than in PyTorch, or too much mIoU is lost."""
    loss = found["miou_pytorch"] - found["miou"]
    if not (found["agreement"] >= LEAST_AGREEMENT and loss <= MOST_LOSS):  # NaN fails too
        raise DistillError(
            f"the int8 network agrees with PyTorch in {found['agreement']:.1%} of pixels and loses {100 * loss:.1f} "
            f"points of mIoU, where {LEAST_AGREEMENT:.0%} and {100 * MOST_LOSS:.0f} are the limits; nothing was "
            f"written; export it without --int8"
        )


def sized(dataset: VOCFolder, size: Size = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (1, 3, H, W) uint8 and labels (1, H, W), one after the other, resized where `size` is given."""
    for index in tqdm(range(len(dataset)), "comparing", leave=False, disable=None):  # shown in a terminal only
        image, labels = dataset[index]
        if size:
            image = F.resize(image, list(size), antialias=True)
            labels = resize_nearest(labels.as_subclass(Tensor), size)
        yield image.as_subclass(Tensor)[None], labels.as_subclass(Tensor)[None]
