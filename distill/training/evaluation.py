"""From predictions to scores: the confusion matrix and what follows from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms.v2 import functional as F
from tqdm.auto import tqdm

from distill.data.folders import VOCFolder
from distill.data.pictures import read_image, read_picture
from distill.data.resize import shrunk
from distill.data.transforms import normalise
from distill.errors import DistillError, check_number, first_line, lacking_memory
from distill.losses import IGNORE_INDEX
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.onnx_file import OnnxNetwork, load_onnx
from distill.networks.taps import eval_mode
from distill.networks.wrapped import Wrapped
from distill.training.batches import from_workers, start_of
from distill.training.parallel import ALONE, Ranks
from distill.training.runs import Run

PROTOCOLS = ("native", "resize513")
LARGEST_BATCH = 32 * 513 * 513  # pixels that a network scores at once: of a camera's 12 million, one image
Pair = tuple[torch.Tensor, torch.Tensor]  # an image, or several, and the labels


class Described(Protocol):
    """A data set with class names."""

    root: Path
    class_names: tuple[str, ...]
    num_classes: int


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one network on one data set; shares between 0 and 1.

    `confusion[i, j]` counts the pixels of class i that were predicted as class j; void pixels are left out. A class
    that neither occurs nor is predicted has no IoU (NaN) and does not count in `miou`; one that is predicted
    without occurring counts as 0.
    """

    confusion: np.ndarray
    class_names: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scores):
            return NotImplemented
        return self.class_names == other.class_names and np.array_equal(self.confusion, other.confusion)

    @property
    def per_class_iou(self) -> dict[str, float]:
        """By class name, a share; NaN for a class that is neither labelled nor predicted anywhere."""
        hits = np.diag(self.confusion).astype(float)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        iou = np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
        return dict(zip(self.class_names, iou.tolist(), strict=True))

    @property
    def miou(self) -> float:
        """Their mean over the classes that have one; NaN without a labelled pixel."""
        present = [iou for iou in self.per_class_iou.values() if not np.isnan(iou)]
        return float(np.mean(present)) if present else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """The share of labelled pixels whose class is right; NaN without any."""
        total = self.confusion.sum()
        return float(np.trace(self.confusion) / total) if total else float("nan")

    def to_json(self) -> dict[str, Any]:
        """All of it as values that JSON can hold; None for a class without an IoU."""
        iou = {name: None if np.isnan(value) else value for name, value in self.per_class_iou.items()}
        return {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "per_class_iou": iou,
            "confusion": self.confusion.tolist(),
        }


def confusion_matrix(prediction: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Counts (num_classes, num_classes), rows the labels, of two integer maps of one shape; void is left out."""
    valid = labels != IGNORE_INDEX
    for name, values in (("prediction", prediction), ("labels", labels)):
        if values.shape != labels.shape or bool((values[valid] >= num_classes).any()):
            raise DistillError(
                f"the {name} {tuple(values.shape)} hold a class above {num_classes - 1}, or have another shape than "
                f"the labels {tuple(labels.shape)}; give two maps of one shape, with classes below num_classes"
            )
    pairs = labels[valid].long() * num_classes + prediction[valid].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


@torch.no_grad()
def evaluate(
    model: nn.Module | Run | str | Path,
    dataset: Dataset[Pair],
    protocol: str = "native",
    batch_size: int = 32,
    progress: bool = False,
    ranks: Ranks = ALONE,
    workers: int = 0,
) -> Scores:
    """Score a network on a data set (see `folders.VOCFolder`), on the device where the network is.

    A `Run` stands for its student, and a path that ends in .onnx for the exported network in it. A network of your own
    answers to images (N, 3, H, W), normalised by `data.transforms.normalise`, with logits (N, classes, H, W) of their
    size, or is wrapped with `load_teacher`. The data may be a torch `Subset`, too.

    `native`: every image at its own size; quote this one. `resize513`: short side 513, labels resized by nearest
    neighbour as Pillow does, as in the published table. How absent classes count: see `Scores`. Of several `ranks`
    each takes every so many batches, and all give the scores of all images. So many `workers` load images, which
    changes no score; of large images fewer than `batch_size` go through the network at once. Raises DistillError when
    the classes differ, and for what is not a network or a data set.
    """
    if protocol not in PROTOCOLS:
        raise DistillError(f"there is no protocol {protocol!r}; choose {' or '.join(PROTOCOLS)}")
    check_number("batch_size", batch_size, 1, 10**6)
    check_number("workers", workers, 0, 256)
    batch_size, workers = int(batch_size), int(workers)
    model, data = _network(model), _whole(dataset)
    if hasattr(model, "num_classes"):  # another's network may not say, and its answer does
        check_classes("network", model, data)
    classes, device = data.num_classes, _weight(model).device
    confusion = torch.zeros(classes, classes, dtype=torch.long, device=device)
    with eval_mode(model):
        for images, labels in _same_size_batches(_Pairs(dataset, protocol), batch_size, progress, ranks, workers):
            logits = _ask(model, _prepare(model, images))
            if logits.shape[1] != classes:
                raise DistillError(
                    f"the network answers with {logits.shape[1]} classes and {data.root} has {classes}; take a network "
                    f"that was trained for these classes"
                )
            confusion += confusion_matrix(logits.argmax(1), labels.to(device), classes)
    ranks.sum(confusion)
    if not confusion.any():
        split = getattr(data, "split", "that was given")
        raise DistillError(f"there is no labelled pixel in the split {split} of {data.root}; label some")
    return Scores(confusion.cpu().numpy(), tuple(data.class_names))


def _network(model: nn.Module | Run | str | Path) -> nn.Module:
    """The network that is meant; DistillError for what is none."""
    if isinstance(model, Run):
        return model.student()
    if isinstance(model, str | Path) and Path(model).suffix == ".onnx":
        return load_onnx(model)
    if isinstance(model, nn.Module):
        return model
    given = f"{str(model)!r}" if isinstance(model, str | Path) else f"a {type(model).__name__}"
    raise DistillError(
        f"the network is {given}; give a network itself or a Run, and load it first, with load_model or load_teacher"
    )


def _whole(dataset: Any) -> Described:
    """The data set, of a subset that of which it is a part; DistillError for what does not know its classes."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    lacking = [name for name in ("class_names", "num_classes", "root", "__getitem__") if not hasattr(dataset, name)]
    if lacking:
        given = f"{str(dataset)!r}" if isinstance(dataset, str | Path) else f"a {type(dataset).__name__}"
        raise DistillError(
            f"the data set is {given}, which has no {lacking[0]}; give what open_dataset returns, or a Subset of it"
        )
    return dataset


def _weight(model: nn.Module) -> torch.Tensor:
    """One of the network's weights, whose device and precision its images need."""
    return next((weight for weight in model.parameters() if weight.is_floating_point()), torch.empty(0))


def _ask(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The network's logits (N, C, H, W); DistillError for another answer, whose argmax would be a wrong map."""
    size = tuple(images.shape[2:])
    try:
        logits = model(images)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, DistillError) or lacking_memory(error):
            raise
        raise DistillError(
            f"the {type(model).__name__} does not answer to images of {size[0]} x {size[1]} pixels "
            f"({first_line(error)}); if they are too small for it, give larger ones, or take these out"
        ) from error
    tensor = isinstance(logits, torch.Tensor)
    if tensor and logits.dim() == 4 and len(logits) == len(images) and tuple(logits.shape[2:]) == size:
        return logits
    found = f"a tensor of shape {tuple(logits.shape)}" if tensor else f"a {type(logits).__name__}"
    raise DistillError(
        f"the network answers with {found} and not with logits ({len(images)}, classes, {size[0]}, {size[1]}), of the "
        f"images' size; wrap it: load_teacher(network)"
    )


def check_classes(who: str, model: nn.Module, dataset: Described) -> None:
    """DistillError, which says which, where a network was trained on other classes than a data set has.

    Names count where the network knows them, without regard to case and to the underscores of `_background_`.
    """
    if not hasattr(model, "num_classes"):
        raise DistillError(f"the {who} does not say its num_classes; wrap it: load_teacher(network)")
    known = getattr(model, "class_names", None)
    theirs, ours = ([name.strip("_").lower() for name in names or ()] for names in (known, dataset.class_names))
    if model.num_classes == dataset.num_classes and (known is None or theirs == ours):
        return
    found = f"the {who} knows {model.num_classes} classes and {dataset.root} has {dataset.num_classes}"
    if known is not None:
        only_theirs, only_ours = (_some(a, b) for a, b in ((theirs, ours), (ours, theirs)))
        found += f" (only the {who} knows {only_theirs}, only the data has {only_ours})"
        found = found if only_theirs != only_ours else f"the classes of the {who} and of {dataset.root} differ in order"
    raise DistillError(f"{found}; take a network that was trained for these classes, in the order of class_names.txt")


def _some(names: list[str], without: list[str]) -> str:
    rest = [name for name in names if name not in without]
    return ", ".join(rest[:5]) + (f" and {len(rest) - 5} more" if len(rest) > 5 else "") or "none"


@torch.no_grad()
def predict(
    model: nn.Module | Run | str | Path, image: Image.Image | np.ndarray | str | Path, side: int | None = None
) -> np.ndarray:
    """Class map (H, W) uint8 of a PIL image, an (H, W, 3) uint8 array or an image file, at the image's own size.

    A network knows things at the size at which it saw them in training. With `side`, it is asked about the image with
    its longer side shrunk to so many pixels, and its answer is enlarged to the nearest.

    A PIL image is turned upright and checked as its file would be (see `read_image`). A `Run` stands for its
    student, and a path that ends in .onnx for the exported network in it. Raises DistillError for anything else, and
    for a network whose answer is not of the image's size.
    """
    array = _array(image)
    size = array.shape[:2]
    if side is not None:
        check_number("side", side, 8, 100_000)
        array = np.array(shrunk(Image.fromarray(array), int(side)))
    logits = predict_logits(model, array)
    if len(logits) > 256:
        raise DistillError(f"the network has {len(logits)} classes, and a map of bytes holds 256; use predict_logits")
    labels = logits.argmax(0).cpu()
    if side is not None:
        labels = resize_nearest(labels, size)
    return labels.to(torch.uint8).numpy()


@torch.no_grad()
def predict_logits(model: nn.Module | Run | str | Path, image: Image.Image | np.ndarray | str | Path) -> torch.Tensor:
    """Logits (C, H, W) of one image; raises what `predict` raises."""
    model, array = _network(model), _array(image)
    with eval_mode(model):
        images = torch.from_numpy(array).permute(2, 0, 1)[None]
        return _ask(model, _prepare(model, images))[0]


def _array(image: Image.Image | np.ndarray | str | Path) -> np.ndarray:
    """An image as (H, W, 3) uint8."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    array = read_picture(image) if isinstance(image, Image.Image) else np.array(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise DistillError(
            f"an image is an (H, W, 3) array of uint8, not {array.shape} of {array.dtype}; convert it first"
        )
    if array.size == 0:
        raise DistillError(f"the array of shape {array.shape} has no pixels; give an image of at least 1 x 1 pixels")
    return array


def _prepare(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) uint8 as the network takes them: exported ones normalise by themselves."""
    if isinstance(model, OnnxNetwork):
        return images
    weight = _weight(model)
    own = isinstance(model, DeepLabV3Plus | Wrapped)  # others may rely on the usual order
    layout = torch.channels_last if own else torch.contiguous_format
    return normalise(images.to(weight.device)).to(weight.dtype).contiguous(memory_format=layout)


def resize_nearest(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Labels (H, W) at another size. With Pillow: torch's two ways to the nearest round to other pixels."""
    picture = Image.fromarray(mask.numpy().astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(picture)).long()


class _Pairs(Dataset[Pair]):
    """Images and labels as a protocol scores them, plain tensors; made by the workers where there are some."""

    def __init__(self, dataset: Dataset[Pair], protocol: str) -> None:
        self.dataset, self.protocol = dataset, protocol

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # in PyTorch's types not every Dataset has a length

    def __getitem__(self, index: int) -> Pair:
        image, mask = self.dataset[index]
        if self.protocol == "resize513":
            self._check_proportions(index, mask)
            image = F.resize(image, [513], antialias=True)
            mask = resize_nearest(mask, image.shape[-2:])
        return image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)

    def _check_proportions(self, index: int, mask: torch.Tensor) -> None:
        dataset = self.dataset
        while isinstance(dataset, Subset):
            index, dataset = dataset.indices[index], dataset.dataset
        if isinstance(dataset, VOCFolder):
            dataset.check_proportions(index, mask)


def _load(pairs: _Pairs, indices: list[int], workers: int) -> Iterator[Pair]:
    """The pairs of these indices, in this order."""
    if workers == 0:
        yield from (pairs[index] for index in indices)
        return
    loader = DataLoader(
        pairs,
        batch_size=None,
        sampler=indices,
        num_workers=min(workers, max(1, len(indices))),
        multiprocessing_context=start_of(workers),
        generator=torch.Generator(),  # else it draws from the stream of the training that this scores
    )
    yield from from_workers(loader)


def _same_size_batches(pairs: _Pairs, batch_size: int, progress: bool, ranks: Ranks, workers: int) -> Iterator[Pair]:
    """Batches of neighbouring images that have one size, so that none has to be padded or cut.

    Each of the ranks has whole batches, the very ones that a single process would have.
    """
    starts = range(ranks.rank * batch_size, len(pairs), ranks.world * batch_size)
    batches = [range(start, min(start + batch_size, len(pairs))) for start in starts]
    loaded = _load(pairs, [index for batch in batches for index in batch], workers)
    for batch in tqdm(batches, desc="evaluating", unit="batch", disable=not progress or not ranks.first):
        for size, alike in groupby(islice(loaded, len(batch)), lambda pair: pair[0].shape):
            most = max(1, LARGEST_BATCH // (size[-2] * size[-1]))
            while part := list(islice(alike, most)):
                images, labels = zip(*part, strict=True)
                yield torch.stack(images), torch.stack(labels)
