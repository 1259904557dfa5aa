"""What the peers' scripts share. Needs numpy and onnx only: it runs in the peers' environments, not in ours.

A script prints, among whatever its library prints, one line for each way it tried:
`{"way": …, "file": path or null, "failure": sentence or null, "seconds": …}`.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx


def run(main: Callable[[Path, dict[str, np.ndarray], Path], None]) -> None:
    """Call `main` with the model, the calibration arrays and the directory of the command line."""
    model, calibration, directory = (Path(argument) for argument in sys.argv[1:4])
    with np.load(calibration) as arrays:
        main(model, dict(arrays), directory)


def attempt(way: str, directory: Path, quantize: Callable[[Path], object]) -> None:
    """Let `quantize` write a file, and tell what came of it."""
    path = directory / f"{re.sub('[^a-z0-9]+', '-', way)}.onnx"
    began, failure = time.perf_counter(), None
    try:
        quantize(path)
    except BaseException as error:  # these libraries raise what they like, SystemExit included
        text = str(error).strip().splitlines()
        failure = f"{type(error).__name__}: {text[0][:160] if text else 'no message'}"
    told = {
        "way": way,
        "file": str(path) if failure is None and path.exists() else None,
        "failure": failure if failure or path.exists() else "it wrote no file",
        "seconds": round(time.perf_counter() - began, 1),
    }
    print("\n" + json.dumps(told), flush=True)


def batches(arrays: dict[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    """The calibration samples in batches."""
    count = len(next(iter(arrays.values())))
    return [{name: array[first : first + size] for name, array in arrays.items()} for first in range(0, count, size)]


def operators(model: Path) -> set[str]:
    """Kinds of node in a graph."""
    return {node.op_type for node in onnx.load(model, load_external_data=False).graph.node}
