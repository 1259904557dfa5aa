"""What requests are made of: the user's data, one sample a request, each with its own length.

A service does not get one tensor again and again: lengths differ, and batches form among those that fit together.
"""

from __future__ import annotations

import numpy as np

from ...models import Arrays, Model
from ...runtimes.copies import ModelCopies
from .generator import POOL_BYTES

POOL_SAMPLES = 512
"""Requests are drawn from so many samples; a seeded draw repeats them."""


def request_pool(model: Model, copies: ModelCopies, same_input: bool) -> tuple[list[Arrays], tuple[str, ...]]:
    """Inputs to draw requests from, rows first, and sentences about where they come from."""
    pool: list[Arrays] = []
    size = 0
    rows = model.fixed_batch or 1
    for inputs, _ in model.test_batches(batch_size=1, limit=rows if same_input else rows * POOL_SAMPLES):
        request = copies.rows_first(inputs)
        pool.append({name: np.ascontiguousarray(array) for name, array in request.items()})
        size += sum(array.nbytes for array in request.values())
        if size > POOL_BYTES or same_input:
            break
    if not pool:
        pool = [copies.rows_first(model.example(rows))]
    notes: tuple[str, ...] = ()
    if same_input:
        notes = ("Every request carries the same input.",)
    elif model.synthetic_data:
        notes = ("The model has no data: requests are made up.",)
    return pool, notes
