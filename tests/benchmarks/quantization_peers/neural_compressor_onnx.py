"""Intel Neural Compressor's quantization of ONNX files with its documented defaults, in an environment of its own.

    python neural_compressor_onnx.py MODEL.onnx CALIBRATION.npz DIRECTORY

Prints one line of JSON for each way (see `peer.py`). Versions from 3.0 on quantize PyTorch and TensorFlow only; 2.6
is the last that reads ONNX, with the onnx and ONNX Runtime of its time. Shapes noted in the file are taken out of
it beforehand: it turns the weights of a Gemm and then trips over their old shape.
"""

from pathlib import Path

import numpy as np
import onnx
import peer
from neural_compressor import PostTrainingQuantConfig, quantization


class Loader:
    """The calibration data in batches of 32, with a label that nobody reads."""

    batch_size = 32

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays

    def __iter__(self):  # type: ignore[no-untyped-def]
        return ((batch, None) for batch in peer.batches(self._arrays, self.batch_size))


def main(model: Path, arrays: dict[str, np.ndarray], directory: Path) -> None:
    """Every way, one after the other."""
    plain = onnx.load(model)
    del plain.graph.value_info[:]
    source = directory / "source.onnx"
    onnx.save(plain, source)
    count = len(next(iter(arrays.values())))

    def quantize(path: Path, **options: object) -> None:
        settings = PostTrainingQuantConfig(**options)
        static = settings.approach == "post_training_static_quant"
        quantized = quantization.fit(str(source), settings, calib_dataloader=Loader(arrays) if static else None)
        if quantized is None:
            raise RuntimeError("it found no quantized model (its log says why)")
        quantized.save(str(path))

    peer.attempt("dynamic", directory, lambda path: quantize(path, approach="dynamic"))
    peer.attempt("static", directory, lambda path: quantize(path, approach="static", calibration_sampling_size=count))


if __name__ == "__main__":
    peer.run(main)
