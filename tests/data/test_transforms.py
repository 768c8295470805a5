"""Crops that keep image and labels together."""

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from distill.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    View,
    cut,
    cut_on_device,
    draw_view,
    moved,
    normalise,
    published_crops,
)
from distill.losses import IGNORE_INDEX


def coded(height: int, width: int, cell: int = 8) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """An image whose grey tells the label of every pixel: 0, 60, 120 or 180 in blocks, with labels 0 to 3."""
    rows, columns = torch.arange(height)[:, None] // cell, torch.arange(width)[None] // cell
    labels = (rows + 2 * columns) % 4
    return tv_tensors.Image((labels * 60).to(torch.uint8).expand(3, -1, -1).clone()), tv_tensors.Mask(labels)


def test_normalise_uses_imagenets_mean_and_deviation() -> None:
    black, white = normalise(torch.zeros(2, 3, 4, 5, dtype=torch.uint8)), normalise(torch.full((3, 1, 1), 255))
    assert black.shape == (2, 3, 4, 5) and black.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        assert black[1, channel, 2, 2].item() == pytest.approx(-mean / std, rel=1e-6)
        assert white[channel].item() == pytest.approx((1 - mean) / std, rel=1e-6)
    assert (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (16, 90), (7, 9), (200, 130)])
def test_a_crop_has_its_size_whatever_the_images(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    crops = published_crops(33)
    for _ in range(8):
        image, labels = crops(*coded(*size))
        assert image.shape == (3, 33, 33) and image.dtype == torch.uint8
        assert labels.shape == (33, 33) and labels.dtype == torch.int64


def test_image_and_labels_stay_together() -> None:
    """The label read off the grey agrees with the label that travelled along, save where borders were blended."""
    torch.manual_seed(1)
    crops, matched, seen = published_crops(48), 0, 0
    for _ in range(40):
        image, labels = crops(*coded(64, 80, cell=16))
        valid = labels != IGNORE_INDEX
        matched += ((image[0].float() / 60).round().long() == labels)[valid].sum().item()
        seen += valid.sum().item()
    assert matched / seen > 0.85
    shuffled = labels.roll(16, 0)
    assert ((image[0].float() / 60).round().long() == shuffled)[valid].float().mean() < 0.6  # the check can fail


def test_padding_is_void_in_the_labels_and_never_background() -> None:
    torch.manual_seed(2)
    image = tv_tensors.Image(torch.full((3, 20, 20), 255, dtype=torch.uint8))
    padded = 0
    for _ in range(20):
        pixels, labels = published_crops(64)(image, tv_tensors.Mask(torch.ones(20, 20, dtype=torch.long)))
        assert set(labels.unique().tolist()) <= {1, IGNORE_INDEX}
        if (labels == IGNORE_INDEX).any():
            padded += 1
            assert labels[0, 0] == IGNORE_INDEX  # padding lies on the outside, in the image's mean colour
            assert pixels[:, 0, 0].tolist() == pytest.approx([255 * mean for mean in IMAGENET_MEAN], abs=1)
    assert padded


def test_the_short_side_is_drawn_from_half_to_twice_the_crop() -> None:
    torch.manual_seed(0)
    sides = [min(draw_view(375, 500, 513)[:2]) for _ in range(4000)]
    assert min(sides) in range(256, 262) and max(sides) in range(1020, 1027)
    assert sum(side < 641 for side in sides) / len(sides) == pytest.approx(0.5, abs=0.03)


def test_other_scales_can_be_asked_for() -> None:
    torch.manual_seed(0)
    sides = [min(draw_view(180, 240, 100, scales=(0.8, 1.5))[:2]) for _ in range(2000)]
    assert (min(sides), max(sides)) == (80, 150)


def test_about_half_of_the_crops_are_mirrored() -> None:
    torch.manual_seed(3)
    ramp = torch.arange(32).repeat(32, 1)
    pair = tv_tensors.Image(ramp.to(torch.uint8).expand(3, -1, -1)), tv_tensors.Mask(ramp)
    labels = [published_crops(16)(*pair)[1] for _ in range(200)]
    mirrored = sum(bool(crop[8, 8] > crop[8, 9] or crop[8, 4] > crop[8, 11]) for crop in labels)
    assert 70 < mirrored < 130


def test_crops_repeat_with_the_seed() -> None:
    def draw() -> list[torch.Tensor]:
        torch.manual_seed(5)
        return [part for _ in range(3) for part in published_crops(24)(*coded(40, 50))]

    assert all(torch.equal(a, b) for a, b in zip(draw(), draw(), strict=True))


# ------------------------------------------------------------------------------------ the two ways to cut


def scene(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth colours with some noise, and blocks of labels."""
    colours = F.resize(torch.rand(3, 6, 6), [height, width]) * 230 + 25 * torch.rand(3, height, width)
    labels = F.resize(torch.randint(0, 5, (1, 5, 5)), [height, width], interpolation=InterpolationMode.NEAREST)[0]
    return colours.to(torch.uint8), labels.to(torch.uint8)


def whole_scaled(image: torch.Tensor, labels: torch.Tensor, view: View, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """torchvision's own operations, one after another, on the whole image."""
    image = F.resize(image, [view.height, view.width], antialias=True)
    labels = F.resize(labels[None], [view.height, view.width], interpolation=InterpolationMode.NEAREST_EXACT)
    room = [max(0, -view.left), max(0, -view.top), size, size]
    place = max(0, view.top), max(0, view.left), size, size
    image = F.crop(F.pad(image, room, fill=[round(255 * mean) for mean in IMAGENET_MEAN]), *place)
    labels = F.crop(F.pad(labels, room, fill=IGNORE_INDEX), *place)[0]
    image = F.gaussian_blur(image, [5, 5], [view.sigma] * 2) if view.sigma else image
    return (image.flip(2), labels.flip(1)) if view.mirrored else (image, labels)


def test_a_crop_is_what_scaling_the_whole_image_would_give() -> None:
    torch.manual_seed(0)
    drawn = []
    for size in [(61, 83), (83, 61), (37, 131), (29, 31), (127, 113)]:
        image, labels = scene(*size)
        for _ in range(12):
            view = draw_view(*size, 47)
            drawn.append(view)
            (ours, our_labels), (theirs, their_labels) = (f(image, labels, view, 47) for f in (cut, whole_scaled))
            assert (ours.int() - theirs.int()).abs().max() <= 2, view  # each rounds more than once
            assert (our_labels == their_labels).float().mean() > 0.99, view
    assert {view.mirrored for view in drawn} == {True, False} and {view.sigma > 0 for view in drawn} == {True, False}
    assert any(view.top < 0 for view in drawn) and any(view.top > 0 for view in drawn)


@pytest.mark.parametrize("padding", ["void", "background"])
def test_the_device_cuts_what_the_host_cuts(padding: str) -> None:
    """A batch of images of several sizes at once."""
    torch.manual_seed(1)
    sizes = [(61, 83), (83, 61), (37, 131), (29, 31), (127, 113), (47, 47)] * 4
    images, labels = zip(*(scene(*size) for size in sizes), strict=True)
    views = [draw_view(*size, 47) for size in sizes]
    together, together_labels = cut_on_device(images, labels, views, 47, padding)
    assert together.dtype == torch.uint8 and together.shape == (24, 3, 47, 47) and together_labels.shape == (24, 47, 47)
    for index, view in enumerate(views):
        alone, alone_labels = cut(images[index], labels[index], view, 47, padding)
        assert (together[index].int() - alone.int()).abs().max() <= 2, view
        assert (together_labels[index] == alone_labels).float().mean() > 0.99, view


def test_cutting_asks_the_device_for_nothing() -> None:
    """The device `meta` computes shapes alone, and fails when it is asked for a value."""
    images, labels = zip(*(scene(*size) for size in [(61, 83), (29, 131)]), strict=True)
    views = [draw_view(*mask.shape, 47) for mask in labels]
    images, labels = ([part.to("meta") for part in parts] for parts in (images, labels))
    crops, classes = cut_on_device(images, labels, views, 47)
    assert crops.shape == (2, 3, 47, 47) and classes.shape == (2, 47, 47)
    assert normalise(crops).device.type == "meta"


def test_constants_are_copied_to_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with torch.inference_mode():
        first = normalise(image)
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(normalise(image), first)
    assert normalise(image.float().requires_grad_()).requires_grad  # also when they were made without gradients


@pytest.mark.parametrize("pinned", [True, False])
def test_a_gpu_is_not_waited_for(pinned: bool) -> None:
    """What is not pinned already is, and only what is pinned can be copied in the background."""
    called = []

    class Part:
        is_cuda = False

        def is_pinned(self) -> bool:
            return pinned

        def pin_memory(self) -> "Part":
            called.append("pinned")
            return self

        def to(self, device: torch.device, non_blocking: bool = False) -> "Part":
            called.append(non_blocking)
            return self

    moved(Part(), torch.device("cuda"))
    assert called == (["pinned"] if not pinned else []) + [True]
    called.clear()
    moved(Part(), torch.device("cpu"))
    assert called == [False]


def test_an_image_of_one_pixel_can_be_cut() -> None:
    image, labels = torch.full((3, 1, 1), 7, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.uint8)
    for view in (draw_view(1, 1, 16), View(16, 16, 0, 0, True, 0.5)):
        for crop, classes in (cut(image, labels, view, 16), cut_on_device([image], [labels], [view], 16)):
            assert crop.shape[-3:] == (3, 16, 16) and classes.shape[-2:] == (16, 16)
