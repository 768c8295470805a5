"""Batches for training: in the order that belongs to a seed, this process's share of each, on the device.

Images stay uint8 until they are there. A step's batch is divided into `accumulate` parts, and each part among the
processes (`parallel.Ranks`); `batches(epoch, first)` gives this process's pieces from step `first` on.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from distill.data.folders import VOCFolder
from distill.data.transforms import View, cut, cut_on_device, draw_view, moved, normalise
from distill.errors import DistillError
from distill.files import free_memory, held, make_folder, read_json, remove_parts, replace_file, write_text
from distill.losses import IGNORE_INDEX
from distill.networks.teachers import ask_teacher
from distill.training.interrupt import ctrl_c_after
from distill.training.parallel import ALONE, Ranks
from distill.training.settings import Settings

# A whole image goes to the device, to be cut there, up to so many times the pixels of its crop: beyond, as with a
# camera's 12 million, copying it and the weights along its sides cost more than cutting it on the host.
LARGEST_ON_DEVICE = 8

PATIENCE = 3600.0  # seconds for which a process waits while another decodes the same images

# images (N, 3, H, W) float, labels (N, H, W), the teacher's output where it is cached
Batch = tuple[Tensor, Tensor, tuple[Any, ...] | None]


def batches_for(
    dataset: VOCFolder, settings: Settings, seed: int, device: torch.device, ranks: Ranks
) -> "FlippedBatches | CroppedBatches":
    kind = FlippedBatches if settings.augment == "flip" else CroppedBatches
    return kind(dataset, settings, seed, device, ranks)


class _Order:
    """Which images make which step, and which of them this process has."""

    def __init__(self, dataset: VOCFolder, settings: Settings, seed: int, ranks: Ranks) -> None:
        self.ids, self.seed, self.size = dataset.ids, seed, settings.batch_size
        pieces = settings.accumulate * ranks.world
        if len(dataset) < self.size:
            raise DistillError(
                f"{dataset.root} lists {len(dataset)} training images, fewer than the batch of {self.size}; lower "
                f"--batch-size"
            )
        if self.size % pieces:
            raise DistillError(
                f"the batch of {self.size} cannot be divided equally among {ranks.world} processes with "
                f"{settings.accumulate} parts each; make --batch-size a multiple of {pieces}"
            )
        self.piece = self.size // pieces
        self.starts = [(part * ranks.world + ranks.rank) * self.piece for part in range(settings.accumulate)]

    def __len__(self) -> int:
        return len(self.ids) // self.size

    def draw(self, epoch: int) -> tuple[Tensor, torch.Generator]:
        """The images of an epoch in their order, and the generator that drew them, for more draws."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        return torch.randperm(len(self.ids), generator=generator), generator

    def pieces(self, order: Tensor, first: int) -> Iterator[Tensor]:
        """This process's images, piece by piece, from a step on."""
        for step in range(first, len(self)):
            for start in self.starts:
                begin = step * self.size + start
                yield order[begin : begin + self.piece]

    def names(self, epoch: int, step: int) -> list[str]:
        """The images of a step, in all processes."""
        order = self.draw(epoch)[0]
        return [self.ids[index] for index in order[step * self.size : (step + 1) * self.size].tolist()]


class _Batches:
    """What both kinds have; calling one with an epoch gives its batches, from the step `first` on."""

    def __init__(
        self, dataset: VOCFolder, settings: Settings, seed: int, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        self.order, self.settings, self.device = _Order(dataset, settings, seed, ranks), settings, device
        self.names = self.order.names
        self._prepare(dataset, ranks)

    def __len__(self) -> int:
        return len(self.order)

    def _prepare(self, dataset: VOCFolder, ranks: Ranks) -> None:
        """Keep of the data what the batches are made of."""
        raise NotImplementedError


class FlippedBatches(_Batches):
    """Whole images of one size, each mirrored at random: few enough views to cache the teacher's answers."""

    def _prepare(self, dataset: VOCFolder, ranks: Ranks) -> None:
        self.processes = ranks.world  # on one machine, as a rule: each keeps all answers
        images, labels = zip(*_same_size(dataset, 2 * self.settings.crop_size), strict=True)
        self.images, self.labels = torch.stack(images), torch.stack(labels)
        if self.settings.labelled:
            self.labels[self.settings.labelled :] = IGNORE_INDEX
        self.answers: list[Tensor] | None = None

    def __call__(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        order, generator = self.order.draw(epoch)
        mirrored = torch.rand(len(order), generator=generator) < 0.5
        for index in self.order.pieces(order, first):
            yield self._batch(index, mirrored[index])

    def _batch(self, index: Tensor, mirrored: Tensor) -> Batch:
        images = torch.where(mirrored[:, None, None, None], self.images[index].flip(-1), self.images[index])
        labels = torch.where(mirrored[:, None, None], self.labels[index].flip(-1), self.labels[index])
        answer = self._answer(index + len(self.images) * mirrored)
        return _to_device(images, self.device), moved(labels, self.device).long(), answer

    def _answer(self, view: Tensor) -> tuple[Tensor, list[Tensor] | None] | None:
        if self.answers is None:
            return None
        logits, *maps = (moved(tensor[view], self.device) for tensor in self.answers)
        return logits, maps or None

    def cache_teacher(self, teacher: nn.Module, maps: bool, progress: bool) -> None:
        """Compute the teacher's answer to every view once: it is frozen, so its answers never change.

        Costs 4 bytes per pixel and class for the logits, and for the sample's six maps about two thirds of that again.
        Where that is more than half of the free memory, nothing is cached, and the teacher runs at every step.
        """
        self.answers, answers = None, None
        views = [(chunk, flipped) for flipped in (False, True) for chunk in torch.arange(len(self.images)).split(64)]
        for index, flipped in tqdm(views, desc="asking the teacher", leave=False, disable=not progress):
            images = self.images[index].flip(-1) if flipped else self.images[index]
            logits, features = ask_teacher(teacher, _to_device(images, self.device), maps, self.settings.precision)
            parts = (logits, *(features or ()))
            answers = answers or self._room_for(parts)
            if answers is None:
                return
            start = int(index[0]) + len(self.images) * flipped
            for answer, part in zip(answers, parts, strict=True):
                answer[start : start + len(part)] = part
        self.answers = answers

    def _room_for(self, parts: tuple[Tensor, ...]) -> list[Tensor] | None:
        """Empty tensors for the answers to all views, of which some are given; None where memory is short."""
        views, free = 2 * len(self.images), free_memory()
        if free is not None and views * sum(part[0].nbytes for part in parts) > free / 2 / self.processes:
            return None
        return [
            torch.empty((views, *part.shape[1:]), dtype=part.dtype, memory_format=torch.channels_last) for part in parts
        ]


def _same_size(dataset: VOCFolder, largest: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image and its labels, uint8; DistillError at the first that is of another size or above `largest`."""
    size = None
    for index in range(len(dataset)):
        image, labels = dataset[index]
        size = size or labels.shape
        if labels.shape != size or max(size) > largest:
            raise DistillError(
                f"{dataset.image_path(index)} is {labels.shape[1]} x {labels.shape[0]} pixels, and `flip` needs images "
                f"of one size, at most {largest} pixels per side; use --augment crops"
            )
        yield image.as_subclass(Tensor), labels.as_subclass(Tensor).to(torch.uint8)


class CroppedBatches(_Batches):
    """Random crops of images of any size (see `transforms`), cut by the workers of a DataLoader or on the device."""

    def _prepare(self, dataset: VOCFolder, ranks: Ranks) -> None:
        source: VOCFolder | DecodedImages = dataset
        if self.settings.cache:
            with ranks.first_alone():  # the others find the file
                source = DecodedImages(dataset, Path(self.settings.cache), self.settings.workers)
        self.crops = _Crops(source, self.settings, self.order.seed)

    def __call__(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        pieces = self.order.pieces(self.order.draw(epoch)[0], first)
        sampler = [[(epoch, index) for index in piece.tolist()] for piece in pieces]
        loader = DataLoader(
            self.crops,
            batch_sampler=sampler,
            num_workers=self.settings.workers,
            multiprocessing_context=start_of(self.settings.workers),
            generator=torch.Generator(),  # else it draws from dropout's stream whenever an epoch is begun
            collate_fn=_as_lists if self.crops.later else None,
            pin_memory=self.device.type == "cuda",
        )
        for batch in from_workers(loader):
            images, labels = self._cut(*batch) if self.crops.later else self._moved(*batch)
            yield normalise(images), labels.long(), None

    def _moved(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Crops whose channels come last, in memory too."""
        return moved(images, self.device).permute(0, 3, 1, 2), moved(labels, self.device)

    def _cut(self, images: list[Tensor], labels: list[Tensor], views: list[View]) -> tuple[Tensor, Tensor]:
        images, labels = ([moved(part, self.device) for part in parts] for parts in (images, labels))
        crops, classes = cut_on_device(images, labels, views, self.settings.crop_size, self.settings.padding)
        return crops.contiguous(memory_format=torch.channels_last), classes

    def cache_teacher(self, teacher: nn.Module, maps: bool, progress: bool) -> None:
        """Does nothing: no two crops are alike, so the teacher runs at every step."""


class _Crops(Dataset[tuple[Any, ...]]):
    """Crop `(epoch, index)`: drawn from a stream of its own, so that it does not depend on workers or on a resume.

    With `later`, the whole image and the view, for the device to cut; of an image above `LARGEST_ON_DEVICE` the crop,
    with the view that shows all of it.
    """

    def __init__(self, dataset: "VOCFolder | DecodedImages", settings: Settings, seed: int) -> None:
        self.dataset, self.seed, self.later = dataset, seed, settings.crop_on == "device"
        self.crop_size, self.padding, self.labelled = settings.crop_size, settings.padding, settings.labelled
        self.scales = settings.scale_from, settings.scale_to

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, ...]:
        epoch, index = key
        image, labels = (part.as_subclass(Tensor) for part in self.dataset[index])
        self.dataset.check_proportions(index, labels)
        labels = labels.to(torch.uint8)
        if self.labelled and index >= self.labelled:
            labels = torch.full_like(labels, IGNORE_INDEX)
        stream = torch.Generator().manual_seed(hash((self.seed, epoch, index)))
        height, width = labels.shape
        view = draw_view(height, width, self.crop_size, stream, self.scales)
        if self.later and labels.numel() <= LARGEST_ON_DEVICE * self.crop_size**2:
            return image, labels, view
        image, labels = cut(image, labels, view, self.crop_size, self.padding)
        if self.later:  # one pixel of the crop for each, so that cutting it again changes nothing
            return image, labels, View(self.crop_size, self.crop_size, 0, 0, False, 0.0)
        return image.permute(1, 2, 0), labels


def start_of(workers: int) -> str | None:
    """How a DataLoader's workers start: forked on Linux, where each would import PyTorch anew since Python 3.14."""
    return "fork" if workers and sys.platform.startswith("linux") else None


def from_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """What a DataLoader gives. Its workers are started whole, and what is wrong with an image is one sentence."""
    with ctrl_c_after():
        items = iter(loader)
    try:
        yield from items
    except DistillError as error:  # a worker's comes with its traceback in the message
        raise DistillError(str(error).strip().splitlines()[-1].split("DistillError: ", 1)[-1]) from None


def _as_lists(items: list[tuple[Any, ...]]) -> tuple[list[Any], ...]:
    """Images of different sizes make no tensor."""
    return tuple(list(part) for part in zip(*items, strict=True))


class DecodedImages:
    """A data set read from one file of decoded images, which all processes of a machine share through its memory.

    The file is made on first use, in `folder`, and serves every run on the same images: 4 bytes per pixel, which for
    VOC's and SBD's 10,582 images is 8 GB, against about 2 ms of decoding an image. It is replaced whole, and made by
    one process while all others wait, which holds a lock file beside it. The system lets go of that file when the
    process ends, even if it is killed, so that whoever holds it next knows what is left of a file to be abandoned.
    """

    def __init__(self, dataset: VOCFolder, folder: Path, workers: int = 0) -> None:
        self.dataset, self.check_proportions = dataset, dataset.check_proportions
        make_folder(folder)
        name = folder / _content(dataset)
        self.path, index = name.with_suffix(".pixels"), name.with_suffix(".json")
        if not index.exists():
            self._make(index, workers)
        self.sizes = [tuple(size) for size in read_json(index)["sizes"]]
        self.ends = np.cumsum([4 * height * width for height, width in self.sizes])
        if not self.path.exists() or self.path.stat().st_size != self.ends[-1]:
            raise DistillError(f"{self.path} is not the file that {index.name} describes; delete both")
        self.pixels: np.ndarray | None = None

    def _make(self, index: Path, workers: int) -> None:
        lock = index.with_name(f".{index.stem}.lock")
        with held(lock, PATIENCE) as alone:
            if index.exists():  # another process made it meanwhile
                return
            if alone:
                remove_parts(index.parent, index.stem)
            write_text(index, json.dumps({"sizes": _decode(self.dataset, self.path, workers)}))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.pixels is None:  # opened by every worker by itself
            self.pixels = np.memmap(self.path, np.uint8, "r")
        height, width = self.sizes[index]
        values = np.array(self.pixels[self.ends[index] - 4 * height * width : self.ends[index]])
        image, labels = torch.from_numpy(values).split([3 * height * width, height * width])
        return image.view(height, width, 3).permute(2, 0, 1), labels.view(height, width)


def _content(dataset: VOCFolder) -> str:
    """A name for these images, which changes when one of their files does."""
    files = [path for i in range(len(dataset)) for path in (dataset.image_path(i), dataset.mask_path(i))]
    try:
        told = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    except OSError as error:
        raise DistillError(
            f"{error.filename} is missing, though the split list names it; add it, or take it out"
        ) from None
    return hashlib.sha256(repr((told, dataset.num_classes)).encode()).hexdigest()[:16]


def _decode(dataset: VOCFolder, path: Path, workers: int) -> list[tuple[int, int]]:
    """Write every image and its labels to the file; their sizes."""
    sizes = []
    own = torch.Generator()  # the loader draws a number, which must not be the caller's
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=start_of(workers), generator=own
    )
    with replace_file(path) as temporary, temporary.open("wb") as file:
        for image, labels in tqdm(from_workers(loader), "decoding", len(loader), unit="image", leave=False):
            file.write(image.as_subclass(Tensor).permute(1, 2, 0).contiguous().numpy().tobytes())
            file.write(labels.as_subclass(Tensor).to(torch.uint8).numpy().tobytes())
            sizes.append(tuple(labels.shape))
    return sizes


def _to_device(images: Tensor, device: torch.device) -> Tensor:
    return normalise(moved(images, device)).contiguous(memory_format=torch.channels_last)
