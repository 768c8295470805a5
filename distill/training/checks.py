"""Checks before a run for what would spoil it."""

from pathlib import Path

from torch import Tensor, nn
from tqdm.auto import tqdm

from distill.data.check import unlearnable
from distill.data.folders import VOCFolder
from distill.data.unlabelled import WithUnlabelled
from distill.errors import DistillError
from distill.losses import IGNORE_INDEX
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.wrapped import Wrapped
from distill.training.settings import Settings


def check_student(student: object, train: VOCFolder, settings: Settings) -> None:
    """A student may come from other data, so only its number of classes has to match."""
    if not isinstance(student, DeepLabV3Plus | Wrapped):
        raise DistillError(
            f"the student is a {type(student).__name__}; give a backbone's name, such as resnet18, a network that "
            f"build_model or make_student made, or any other network through wrap"
        )
    if isinstance(student, Wrapped) and not settings.distilled_dropout:
        raise DistillError(
            "distilled_dropout is False, and a wrapped network has no ASPP whose dropout could be skipped; set it True"
        )
    if not any(weight.requires_grad for weight in student.parameters()):
        raise DistillError("the student is frozen, as teachers are, so no weight of it can learn; build another")
    if any(weight.is_inference() for weight in student.parameters()):
        raise DistillError("the student was built in torch.inference_mode, where nothing learns; build it outside")
    if other := next((name for name, value in student.state_dict().items() if not isinstance(value, Tensor)), None):
        raise DistillError(
            f"the student keeps '{other}', which is no tensor, and files hold tensors only; leave it out"
        )
    if student.num_classes != train.num_classes:
        raise DistillError(
            f"the student has {student.num_classes} classes and {train.root} names {train.num_classes}; build it with "
            f"num_classes={train.num_classes}"
        )


def with_unlabelled(train: VOCFolder, folder: str | Path, terms: list[str]) -> WithUnlabelled:
    if not set(terms) - {"ifvd"}:
        alone = "ifvd compares labelled places only" if terms else "the baseline has no teacher"
        raise DistillError(f"unlabelled images need a teacher's answers, and {alone}; leave them out")
    return WithUnlabelled(train, folder)


def check_labelled(dataset: VOCFolder, first: int = 0, whole: bool = False) -> None:
    """DistillError where nothing can be learned from the masks; in nearly all data the first image settles it.

    `first`: only so many of the masks count, 0 for all. With `whole` every image and mask is read all the same, so that
    a faulty one is found before the training.
    """
    found: set[int] = set()
    for index in range(first or len(dataset)):
        found |= set(dataset[index][1].unique().tolist())
        settled = found - {0, IGNORE_INDEX} or (0 in found and dataset.num_classes == 1)
        if settled and not whole:
            return
    if fault := unlearnable(dataset, found):
        raise DistillError(fault)


def check_every_image(train: VOCFolder, progress: bool) -> None:
    """Read every image and mask once, those without labels too, as random crops do.

    So a faulty one is found before training, and not in its midst: mending it makes other data of them, with which no
    run goes on.
    """
    for index in tqdm(range(len(train)), desc="reading train", unit="image", delay=5, disable=not progress):
        train.check_proportions(index, train[index][1])


def frozen_norms(student: nn.Module) -> list[nn.Module]:
    """BatchNorms with weights none of which learns."""
    norms = [module for module in student.modules() if hasattr(module, "running_mean")]
    weights = {norm: list(norm.parameters()) for norm in norms}
    return [norm for norm, own in weights.items() if own and not any(weight.requires_grad for weight in own)]


def check_width(student: nn.Module) -> None:
    """oneDNN, behind PyTorch's CPU convolutions, damages memory in this case (its issue 6035)."""
    for name, layer in student.named_modules():
        strided = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1)
        if strided and layer.in_channels < 16:
            raise DistillError(
                f"the student's {name} has {layer.in_channels} input channels, and on the CPU PyTorch cannot train a "
                f"strided 1x1 convolution of fewer than 16 safely; build the student with more channels"
            )
