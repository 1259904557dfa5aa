"""What a variant takes and gives, as the server tells it and holds requests to it: names, types, axes.

Names and types are found by calling the variant. Which axes are open is read from the graph of an ONNX variant (a
model file's own shapes are the sizes it is measured at); a PyTorch module does not say, so there an axis is open when
it differs among the user's data.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..batching import BatchPolicy
from ..models import Model, ModelError
from ..models.model import batch_axis
from ..runtimes import RuntimeUnavailable
from .tensors import DATATYPES, Arrays, ServedTensor

if TYPE_CHECKING:
    from ..context import LoadedVariant
    from ..runtimes.copies import ModelCopies

SAMPLES = 64
"""Of the user's data that are looked at for axes that differ."""

Axes = dict[str, list[int | None]]
"""Sizes by name, rows left out; None is open."""


def describe(
    variant: LoadedVariant, copies: ModelCopies, policy: BatchPolicy
) -> tuple[list[ServedTensor], list[ServedTensor]]:
    """(inputs, outputs); every copy is warmed up on the way. Raises ModelError, and RuntimeUnavailable for text."""
    model = variant.model
    requests = _requests(model, copies)
    try:
        copies.warm_up(policy.instances, requests[0], policy.max_batch_size)
        run = copies.runs(policy.instances)[0]
        answers = [run(request) for request in requests]
    except (ModelError, RuntimeUnavailable):
        raise
    except Exception as error:
        raise ModelError(
            f"{variant.record.name} fails on a batch of up to {policy.max_batch_size} rows: "
            f"{type(error).__name__}: {error}"
        ) from error
    taken, given = _declared(variant)
    return _tensors(requests, taken), _tensors(answers, given)


def _requests(model: Model, copies: ModelCopies) -> list[Arrays]:
    """An example, and the smallest and the largest of the user's data."""
    rows = model.fixed_batch or 1
    found: dict[Any, Arrays] = {}
    for inputs, _ in itertools.islice(model.test_batches(batch_size=rows, limit=rows * SAMPLES), SAMPLES):
        request = copies.rows_first(inputs)
        if next(iter(request.values())).shape[0] == rows:
            found.setdefault(tuple(sorted((name, array.shape) for name, array in request.items())), request)
    shapes = sorted(found)
    return [copies.rows_first(model.example(rows)), *(found[shape] for shape in (*shapes[:1], *shapes[-1:]))]


def _declared(variant: LoadedVariant) -> tuple[Axes, Axes]:
    """The axes of inputs and outputs as the graph of an ONNX variant declares them; ({}, {}) for another format."""
    if variant.record.format != "onnx":
        return {}, {}
    import onnx

    graph = onnx.load(str(variant.path), load_external_data=False).graph
    model = variant.model
    return _axes_of(graph.input, model.inputs), _axes_of(graph.output, model.outputs)


def _axes_of(values: Sequence[Any], specs: Sequence[Any]) -> Axes:
    rows = {spec.name: batch_axis(spec) or 0 for spec in specs}
    axes: Axes = {}
    for value in values:
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
            axes[value.name] = [size for number, size in enumerate(sizes) if number != rows.get(value.name, 0)]
    return axes


def _tensors(calls: Sequence[Arrays], declared: Axes) -> list[ServedTensor]:
    tensors = []
    for name, array in calls[0].items():
        if array.dtype.name not in DATATYPES:
            raise RuntimeUnavailable(f"{name} is {array.dtype}: only tensors of numbers can be served.")
        shapes = [call[name].shape[1:] for call in calls]
        if len({len(shape) for shape in shapes}) > 1:
            raise RuntimeUnavailable(f"{name} has now {len(shapes[0])} axes beside the rows, now another number.")
        known = declared.get(name, [])
        shape: list[int | None] = []
        for number, sizes in enumerate(zip(*shapes)):
            is_open = len(set(sizes)) > 1 or (len(known) == len(shapes[0]) and known[number] is None)
            shape.append(None if is_open else int(sizes[0]))
        tensors.append(ServedTensor(name, np.dtype(array.dtype), tuple(shape)))
    return tensors
