"""Training one network: settings and presets, batches, the loop, checkpoints, scores, and the folder of a run."""

from distill.training.evaluation import Scores, evaluate, predict
from distill.training.loop import fit
from distill.training.presets import PRESETS, RECIPES, make_student
from distill.training.runs import Run
from distill.training.settings import Settings

__all__ = ["PRESETS", "RECIPES", "Run", "Scores", "Settings", "evaluate", "fit", "make_student", "predict"]
