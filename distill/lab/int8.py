"""Static quantisation by ONNX Runtime: weights and activations in 8 bits, calibrated on images."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.folders import VOCFolder
from distill.lab.parity import Size, sized
from distill.networks.onnx_file import INPUT, library

CALIBRATED_ON = 100  # images of train


def quantised(content: bytes, dataset: VOCFolder, size: Size) -> bytes:
    """The content of an ONNX file with 8-bit weights, a scale for each output channel, and 8-bit activations, each
    tensor's range being what it had on the images of `dataset`.

    Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, section 3.
    """
    library("onnxruntime")
    from onnxruntime import quantization  # type: ignore[import-untyped]
    from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        images: Iterator[Any] = sized(dataset, size)

        def get_next(self) -> dict[str, np.ndarray] | None:
            found = next(self.images, None)
            return None if found is None else {INPUT: found[0].numpy()}

    with tempfile.TemporaryDirectory() as folder:
        plain, folded, small = (Path(folder) / f"{name}.onnx" for name in ("plain", "folded", "small"))
        plain.write_bytes(content)
        quant_pre_process(plain, folded, skip_symbolic_shape=True)  # BatchNorms into convolutions
        quantization.quantize_static(
            folded,
            small,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,  # 7 bits of weights: products of 8 overflow on processors without VNNI
        )
        return small.read_bytes()
