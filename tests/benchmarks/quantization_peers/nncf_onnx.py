"""NNCF's ONNX backend with its documented defaults. Runs in an environment of its own.

    python nncf_onnx.py MODEL.onnx CALIBRATION.npz DIRECTORY

Prints one line of JSON for each way (see `peer.py`): the default preset, the mixed one, and for transformers the
model type its documentation asks for.
"""

from pathlib import Path

import nncf
import numpy as np
import onnx
import peer


def main(model: Path, arrays: dict[str, np.ndarray], directory: Path) -> None:
    """Every way, one after the other; samples are shown one by one, as the documentation does."""
    samples = peer.batches(arrays, 1)

    def quantize(path: Path, **options: object) -> None:
        onnx.save(nncf.quantize(onnx.load(model), nncf.Dataset(samples), subset_size=len(samples), **options), path)

    peer.attempt("default", directory, quantize)
    peer.attempt("mixed preset", directory, lambda path: quantize(path, preset=nncf.QuantizationPreset.MIXED))
    if peer.operators(model) & {"Softmax", "LayerNormalization"}:
        peer.attempt(
            "transformer model type", directory, lambda path: quantize(path, model_type=nncf.ModelType.TRANSFORMER)
        )


if __name__ == "__main__":
    peer.run(main)
