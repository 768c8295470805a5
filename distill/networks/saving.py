"""Networks in safetensors files: weights, and in the header the configuration that builds the network again."""

from __future__ import annotations

import json
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.errors import DistillError, first_line
from distill.files import make_folder, replace_file
from distill.networks.deeplab import DeepLabV3Plus, build_model
from distill.networks.timm_backbone import PREFIX
from distill.networks.wrapped import Wrapped, wrap


def save_model(
    model: DeepLabV3Plus | Wrapped,
    path: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
    half: bool = False,
) -> None:
    """Write weights, buffers, `model.config` and `model.class_names` to one safetensors file, which appears whole
    or not at all.

    Args:
        metadata: further strings for the file's header; "config" and "class_names" are taken by the model's own.
        half: store floating-point numbers with 16 bits, for half the size.

    Raises:
        DistillError: a value is too large for 16 bits, the file cannot be written, or the network is another library's
            and not wrapped.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(model, DeepLabV3Plus | Wrapped):
        raise DistillError(f"a {type(model).__name__} has no config to save beside its weights; wrap it: wrap(network)")
    path = Path(path)
    state = {name: _storable(name, tensor, half) for name, tensor in model.state_dict().items()}
    if isinstance(model, Wrapped):  # two names may be one tensor, which safetensors refuses
        state = {name: tensor.clone() for name, tensor in state.items()}
    own = {"config": json.dumps(model.config)}
    if model.class_names is not None:
        own["class_names"] = json.dumps(model.class_names)
    further = {name: str(value) for name, value in (metadata or {}).items() if name not in ("config", "class_names")}
    make_folder(path.parent)
    with replace_file(path, lasting=True) as temporary:
        save_file(state, temporary, further | own)


def _storable(name: str, tensor: Tensor, half: bool) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise DistillError(f"'{name}' is a {type(tensor).__name__}, and a file holds tensors only; keep it elsewhere.")
    tensor = tensor.detach().cpu().contiguous()  # safetensors refuses channels_last
    if not half or not tensor.is_floating_point():
        return tensor
    if tensor.isfinite().all() and not tensor.half().isfinite().all():
        raise DistillError(f"'{name}' holds numbers above 65504, too large for 16 bits; use half=False.")
    return tensor.half()


def load_into(network: Wrapped, path: str | os.PathLike[str]) -> Wrapped:
    """Put the weights of a file that `save_model` wrote of a wrapped network into one that was built in the same way.

    Raises:
        DistillError: the file cannot be read, or holds the weights of another network.
    """
    path = Path(path)
    state, metadata = _read(path)
    own = network.state_dict()
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (own, state)]
    wrong = sorted(name for name in own.keys() | state.keys() if shapes[0].get(name) != shapes[1].get(name))
    if wrong:  # before anything is overwritten
        raise DistillError(
            f"The weights in '{path}' do not fit the {type(network.network).__name__} ({wrong[0]} differs); build it "
            f"as it was built for training."
        )
    network.load_state_dict(state)
    network.class_names = _class_names(path, metadata) or network.class_names
    return network


def _class_names(path: Path, metadata: dict[str, str]) -> tuple[str, ...] | None:
    try:
        return tuple(map(str, json.loads(metadata["class_names"]))) if "class_names" in metadata else None
    except (ValueError, TypeError) as error:
        raise DistillError(
            f"The 'class_names' in '{path}' are not a list ({first_line(error)}); save it again."
        ) from None


@overload
def load_model(path: str | os.PathLike[str], network: None = None) -> DeepLabV3Plus: ...


@overload
def load_model(path: str | os.PathLike[str], network: nn.Module) -> Wrapped: ...


def load_model(path: str | os.PathLike[str], network: nn.Module | None = None) -> DeepLabV3Plus | Wrapped:
    """Rebuild a network from a file that `save_model` wrote: on the CPU, in training mode, in float32 if it
    was stored in half precision. Draws no random numbers.

    `network`: for a network of another library, one that is built as that was; it gets the weights, in float32, and
    is returned wrapped.

    Raises:
        DistillError: the file is missing, is not safetensors, has no configuration, or does not match it or the
            network.
    """
    path = Path(path)
    state, metadata = _read(path)
    if network is not None:
        taps = _taps(path, metadata)
        inner = network.network if isinstance(network, Wrapped) else network
        return load_into(wrap(inner.float(), taps["positions"], taps["norms"]), path).train()
    model = _rebuild(path, metadata)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise DistillError(
            f"The weights in '{path}' do not fit its config ({mismatch(error)}); save it again."
        ) from error
    return model


def _taps(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Positions and norms of a wrapped network, as its file has them."""
    try:
        taps = json.loads(metadata.get("config", "{}")).get("wrapped")
        if taps is not None:
            return {"positions": taps["positions"], "norms": taps["norms"]}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DistillError(f"The 'config' in '{path}' is damaged ({first_line(error)}); save it again.") from error
    raise DistillError(f"'{path}' holds a network of this package, which is built from the file; give no network")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata of a safetensors file."""
    if not path.is_file():
        raise DistillError(f"No file '{path}' to load a model from; check the path, or train a model first.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: _loadable(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as error:
        raise DistillError(
            f"'{path}' is not a readable safetensors file ({first_line(error)}); load a file that save_model wrote, "
            "and other checkpoints with load_teacher."
        ) from error
    return state, metadata


def mismatch(error: RuntimeError) -> str:
    """The first of what may be hundreds of keys that load_state_dict complains of."""
    lines = str(error).splitlines()
    return re.split('", |: copying', lines[min(1, len(lines) - 1)].strip())[0].replace('"', "")


def _loadable(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
    return tensor.to(dtype, copy=True)  # a copy, so that the model does not hang on the file's memory map


def _rebuild(path: Path, metadata: dict[str, str]) -> DeepLabV3Plus:
    if "config" not in metadata:
        raise DistillError(
            f"'{path}' has weights but no 'config' in its metadata (found: {sorted(metadata) or 'nothing'}); "
            "build the model with build_model and save it with save_model."
        )
    _check_config(path, metadata["config"])
    class_names = _class_names(path, metadata)
    try:
        config = json.loads(metadata["config"])
        # On the meta device nothing is allocated or drawn: the weights come from the file. But some of timm's networks
        # have buffers that are in no file.
        foreign = str(config["backbone"]).startswith(PREFIX)
        with torch.random.fork_rng(devices=[]), nullcontext() if foreign else torch.device("meta"):
            model = build_model(**config)
        model.class_names = class_names
        return model
    except DistillError as error:
        raise DistillError(f"The 'config' in '{path}' does not build a model: {error}") from error
    except Exception as error:  # a stranger's file may hold any value
        raise DistillError(
            f"The 'config' in '{path}' does not build a model ({first_line(error)}); save it again."
        ) from error


def _check_config(path: Path, text: str) -> None:
    """DistillError for what a config of ours never holds: `weights`, for one, would have torchvision download."""
    try:
        config = json.loads(text)
    except ValueError:  # said by whoever builds from it
        return
    if isinstance(config, dict) and "wrapped" in config:
        raise DistillError(
            f"'{path}' holds the weights of a {config.get('backbone')} of another library, which only its owner can "
            f"build; do that in Python, and give it as well: load_model(file, network), or Run.student(network)."
        )
    known = ("backbone", "num_classes", "output_stride", "width", "head_width", "atrous_rates")
    strange = [key for key in config if key not in known] if isinstance(config, dict) else []
    if strange:
        raise DistillError(
            f"The 'config' in '{path}' does not build a model (it has {strange[0]!r}, and only "
            f"{', '.join(known)} are known); save it again with save_model."
        )
