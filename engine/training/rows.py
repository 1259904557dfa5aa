"""Where in a batch its samples lie: along the first axis of most inputs, not of all (time comes first in many RNNs)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..models import Model, ModelError
from ..models.tensors import tensors_by_path


class Rows:
    """Counts and takes samples of batches (inputs, labels), as the axes of the example inputs say."""

    def __init__(self, order: tuple[str, ...] = (), axes: Mapping[str, int | None] | None = None) -> None:
        """`order`: names of the inputs where they come without; `axes`: the samples' axis of each, None: there is none.

        An input that is not named has its samples along the first axis, if any.
        """
        self._order, self._axes = order, axes or {}
        if not any(axis is not None for axis in self._axes.values()):
            self._axes = {}  # a model with one fixed batch size shows no axis

    @classmethod
    def of(cls, model: Model) -> Rows:
        return cls(getattr(getattr(model, "structure", None), "order", ()), getattr(model, "axes", None))

    def count(self, batch: tuple[Any, Any]) -> int:
        """How many samples a batch has. Raises ModelError when there is no tensor in its inputs."""
        for tensor, axis in self._placed(batch[0]):
            if axis is not None and axis < tensor.ndim:
                return tensor.shape[axis]
        raise ModelError("train_data() gives inputs without a tensor that has an axis of samples.")

    def taken(self, batch: tuple[Any, Any], rows: slice) -> tuple[Any, Any]:
        """Some of a batch's samples; what has no axis of samples is passed on whole."""
        count = self.count(batch)
        placed = self._placed(batch[0])
        taken = {id(tensor): _cut(tensor, axis, count, rows) for tensor, axis in placed}
        leading, first = next((tensor.shape, axis) for tensor, axis in placed if axis is not None)

        def label(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            along = value.shape[: first + 1] == leading[: first + 1]  # labels by time and sample, as the inputs
            axis = first if along or value.shape[:1] != (count,) else 0
            return _cut(value, axis, count, rows)

        inputs = pytree.tree_map(lambda value: taken.get(id(value), value), batch[0])
        return inputs, pytree.tree_map(label, batch[1])

    def _placed(self, inputs: Any) -> list[tuple[torch.Tensor, int | None]]:
        """The tensors among the inputs, each with its axis of samples."""
        placed = []
        for path, tensor in tensors_by_path(inputs).items():
            key = path[0] if path else 0
            name = key if isinstance(key, str) else self._order[key] if key < len(self._order) else ""
            placed.append((tensor, self._axes.get(name, 0)))
        return placed


def _cut(tensor: torch.Tensor, axis: int | None, count: int, rows: slice) -> torch.Tensor:
    if axis is None or axis >= tensor.ndim or tensor.shape[axis] != count:
        return tensor
    return tensor[(slice(None),) * axis + (rows,)]
