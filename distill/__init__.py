"""Distil segmentation networks: teachers, students, losses, one trainer, and scores."""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

# On Linux the threads that share a convolution wait for each other in a loop, which takes many times as long where
# another program wants the processor (benchmarks/waiting.py); so they go to sleep sooner. Read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

try:
    import torchvision  # noqa: F401 (only to see whether it can be imported)
except (ImportError, RuntimeError, OSError) as error:
    if "torch" not in sys.modules:  # torch itself could not be imported, and has said why
        raise
    raise ImportError(
        f"torchvision cannot be imported ({error}), most likely because it was built for another version of torch; "
        f"run: pip install --force-reinstall torch torchvision"
    ) from error
except KeyboardInterrupt:  # `python -m distill` comes here, and spends its seconds here, before it reads __main__
    if sys.argv[0] != "-m":
        raise
    print("distill: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

from distill.data import open_dataset
from distill.errors import DistillError
from distill.methods import METHODS, build_method, load_methods, register_method
from distill.networks import (
    POSITIONS,
    build_model,
    load_model,
    load_teacher,
    save_model,
    shipped_file,
    suggest_positions,
    undo_class_weights,
    wrap,
)
from distill.training import Run, Scores, evaluate, fit, make_student, predict

__all__ = [
    "METHODS",
    "POSITIONS",
    "DistillError",
    "Run",
    "Scores",
    "build_method",
    "build_model",
    "evaluate",
    "export",
    "fit",
    "load_methods",
    "load_model",
    "load_teacher",
    "make_student",
    "open_dataset",
    "predict",
    "register_method",
    "save_model",
    "shipped_file",
    "suggest_positions",
    "undo_class_weights",
    "wrap",
]


if TYPE_CHECKING:  # a __getattr__ that type checkers see would have every misspelt name pass
    from distill.lab.export import export
else:

    def __getattr__(name: str) -> object:
        """`export` is the lab's, which nothing below it needs, and is imported when it is first asked for."""
        if name == "export":
            return import_module("distill.lab.export").export
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
