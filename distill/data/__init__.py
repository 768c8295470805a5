"""Data: folders in VOC layout, the sample that is made here, crops, and (in `download`) Pascal VOC and SBD."""

from distill.data.check import check_dataset
from distill.data.folders import VOCFolder, open_dataset
from distill.data.sample import make_sample

__all__ = ["VOCFolder", "check_dataset", "make_sample", "open_dataset"]
