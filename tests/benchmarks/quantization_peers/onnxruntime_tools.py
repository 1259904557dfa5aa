"""ONNX Runtime's own quantization tools with their documented ways. Runs in an environment of its own.

    python onnxruntime_tools.py MODEL.onnx CALIBRATION.npz DIRECTORY [ARCHITECTURE]

Prints one line of JSON for each way (see `peer.py`). The documentation's advice for x86-64 is tried beside the
defaults: pre-processing first, unsigned activations with weights per channel, and for transformers the fused graph
of `onnxruntime.transformers.optimizer` as the start, which is told the architecture.
"""

import sys
from pathlib import Path

import numpy as np
import peer
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):
    """The calibration data in batches of 32."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._batches = iter(peer.batches(arrays, 32))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def main(model: Path, arrays: dict[str, np.ndarray], directory: Path) -> None:
    """Every way, one after the other."""
    source = directory / "preprocessed.onnx"
    try:
        quant_pre_process(model, source)
    except Exception:  # symbolic shape inference fails on many exports: the documented way out
        quant_pre_process(model, source, skip_symbolic_shape=True)
    peer.attempt("dynamic", directory, lambda path: quantize_dynamic(source, path))
    peer.attempt("static", directory, lambda path: quantize_static(source, path, Reader(arrays)))
    peer.attempt(
        "static u8/s8 per channel",
        directory,
        lambda path: quantize_static(
            source,
            path,
            Reader(arrays),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        ),
    )
    architecture = sys.argv[4] if len(sys.argv) > 4 else ""
    if architecture:
        peer.attempt(
            "transformer optimizer, dynamic", directory, lambda path: _fused(source, architecture, directory, path)
        )


def _fused(source: Path, architecture: str, directory: Path, path: Path) -> None:
    """Fuse, then quantize. Level 0: pre-processing has done ONNX Runtime's own part, which asks for torch here."""
    from onnxruntime.transformers.optimizer import optimize_model

    fused = directory / "fused.onnx"
    optimize_model(str(source), model_type=architecture, opt_level=0).save_model_to_file(str(fused))
    quantize_dynamic(fused, path)


if __name__ == "__main__":
    peer.run(main)
