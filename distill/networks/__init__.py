"""Networks: DeepLabV3+ and its backbones, their files, teachers from anywhere, and a look inside any network."""

from distill.networks.backbones import POSITIONS
from distill.networks.deeplab import BACKBONES, DeepLabV3Plus, build_model, parameter_groups, undo_class_weights
from distill.networks.saving import load_model, save_model
from distill.networks.taps import record
from distill.networks.teachers import load_teacher, shipped_file
from distill.networks.wrapped import suggest_positions, wrap

__all__ = [
    "BACKBONES",
    "POSITIONS",
    "DeepLabV3Plus",
    "build_model",
    "load_model",
    "load_teacher",
    "parameter_groups",
    "record",
    "save_model",
    "shipped_file",
    "suggest_positions",
    "undo_class_weights",
    "wrap",
]
