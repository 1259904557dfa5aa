"""Joining the inputs of a batch and sharing out its outputs; what is checked on the way in and out."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .queue import COMPLETED, Batch, Key, Request

Arrays = dict[str, npt.NDArray[np.generic]]
"""Named tensors; the first axis is the batch."""

Run = Callable[[Arrays], Arrays]
"""The model."""


def describe(inputs: Arrays) -> tuple[int, Key]:
    """(rows, key) of a request's inputs. Raises ValueError or TypeError with a sentence if they make none."""
    if len(inputs) == 1:  # most models: a third of the time
        ((name, array),) = inputs.items()
        if isinstance(array, np.ndarray) and (shape := array.shape) and shape[0]:
            return shape[0], ((name, array.dtype, shape[1:]),)
    if not inputs:
        raise ValueError("a request needs at least one input")
    rows = -1
    key = []
    for name, array in inputs.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"input {name!r} must be a numpy array, not {type(array).__name__}")
        shape = array.shape
        if not shape:
            raise ValueError(f"input {name!r} needs a batch axis")
        if rows != shape[0]:
            if rows >= 0:
                raise ValueError(f"input {name!r} has {shape[0]} rows, another input has {rows}")
            rows = shape[0]
        key.append((name, array.dtype, shape[1:]))
    if rows < 1:
        raise ValueError("a request needs at least one row")
    if len(key) > 1:
        key.sort(key=lambda part: part[0])
    return rows, tuple(key)


def join(requests: list[Request]) -> Arrays:
    first = requests[0].inputs
    assert first is not None
    if len(requests) == 1:
        return first
    return {name: np.concatenate([request.inputs[name] for request in requests]) for name in first}  # type: ignore[index]


def split(outputs: Arrays, requests: list[Request], batch: Batch) -> None:
    """Give each request its rows. Raises ValueError if there are not as many rows as went in."""
    if not isinstance(outputs, dict) or not outputs:
        raise TypeError(f"the model must return a dictionary of arrays, not {type(outputs).__name__}")
    for name, array in outputs.items():
        shape = getattr(array, "shape", None)
        if not shape or shape[0] != batch.rows:
            found = "no batch axis" if not shape else f"{shape[0]} rows"
            raise ValueError(f"the model's output {name!r} has {found} for a batch of {batch.rows} rows")
    row = 0
    for request in requests:
        until = row + request.rows
        shares = request.outputs = {}
        for name, array in outputs.items():
            shares[name] = array[row:until]
        request.inputs = None
        request.batch = batch
        request.status = COMPLETED
        row = until
