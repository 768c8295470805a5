"""Weights and inputs made by a formula, and comparison with the figures in `tests/golden/`."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"


def load(name: str) -> dict:
    """The contents of `golden/<name>.json`."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def _draw(name: str, shape, low: float, high: float) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    return np.random.RandomState(seed).uniform(low, high, size=math.prod(shape)).reshape(shape)


def uniform(name: str, shape, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Float32 numbers that depend on nothing but the name, the shape and the bounds."""
    return torch.from_numpy(_draw(name, tuple(shape), low, high).astype(np.float32))


def images(shape) -> Tensor:
    """The golden input of a network, for a shape such as (2, 3, 65, 65)."""
    return uniform("input" + "x".join(map(str, shape)), shape, -2, 2)


def _weight(key: str, shape) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape)
    u = _draw(key, tuple(shape), -1, 1)
    if len(shape) == 4:
        return u * math.sqrt(3 / math.prod(shape[1:]))
    if key.endswith(("running_mean", "bias")):
        return 0.1 * u
    return 1 + 0.25 * u  # running_var, and the weight of a BatchNorm


def fill(module: nn.Module) -> nn.Module:
    """Give every tensor of the state dict the formula's values, rounded to float32; returns the module."""
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            tensor.copy_(weight(key, tensor.shape))
    return module


def weight(key: str, shape) -> Tensor:
    """The formula's values for one key of a state dict, in float32."""
    return torch.from_numpy(np.asarray(_weight(key, shape), dtype=np.float32))


def check_summary(tensor: Tensor, expected: dict, rel: float) -> None:
    """Assert shape, mean, std, largest magnitude and 24 values, each to `rel` of the largest magnitude."""
    assert list(tensor.shape) == expected["shape"]
    x = tensor.detach().double().flatten()
    figures = [x.mean(), x.std(correction=0), x.abs().max(), *x[expected["index"]]]
    wanted = [expected["mean"], expected["std"], expected["abs_max"], *expected["value"]]
    worst = (torch.stack(figures) - torch.tensor(wanted, dtype=torch.float64)).abs().max().item()
    off = worst / expected["abs_max"]
    assert off <= rel, f"off by {off:.2e} of the largest magnitude"
