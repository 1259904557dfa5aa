"""The user's training data as training needs it: pass after pass, with a part held out to judge the progress on.

Test data is never touched: a network that was tuned while looking at it would make every later accuracy figure a lie.
The held-out part comes from, in this order,
1. `validation_data()`, where the model file has it;
2. a seeded split by index, where `train_data()` gives a DataLoader over a dataset that can be indexed;
3. the first batches of a pass, which later passes leave out, where every pass has the same order;
4. the first batches of a pass, where passes are shuffled by code of the user's that we cannot look into. Later passes
   then contain these samples, too, and accuracy on them is rosy: `held_out_exact` is False and the log says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..models import Model, ModelError

HELD_OUT_SAMPLES = 2000
"""At most so many samples judge the progress: an evaluation is to cost a few seconds, not minutes."""

HELD_OUT_SHARE = 0.1
"""At most this share of the training data is held out."""

Batch = tuple[Any, Any]
"""(inputs, labels) as the user gives them."""


class TrainingData:
    """Batches for training and, apart from them, batches to judge by.

    `held_out` is kept in memory. `steps` is the number of training batches in a pass. `samples` and `seed` are what it
    was made with: the same ones make the same data again.
    """

    def __init__(self, model: Model, samples: int = HELD_OUT_SAMPLES, seed: int = 0) -> None:
        self.samples, self.seed = samples, seed
        self._model = model
        self._iterable: Any = model.train_data()
        self._skip = 0
        self.held_out: list[Batch] = []
        self.held_out_exact = True
        function = getattr(model, "function", None)
        validation = function("validation_data") if function else None
        if validation is not None:
            self.held_out = list(_up_to(validation(), samples))
        elif _splittable(self._iterable):
            self._iterable, held_out = _split(self._iterable, samples, seed)
            self.held_out = [_checked(batch) for batch in held_out]
        self.steps = self._count()
        if not self.held_out:
            self._hold_out_first(samples)
        if self.steps < 1:
            raise ModelError("train_data() gives too little to train on: two batches are the least.")

    def batches(self, skip: int = 0) -> Iterator[Batch]:
        """One pass, without the held-out batches and the first `skip` others."""
        passed = itertools.islice(self._fresh(), self._skip + skip, None)
        return (_checked(batch) for batch in passed)

    @property
    def repeats(self) -> bool:
        """Every pass gives the very same batches, so a teacher's answers to them can be kept."""
        first, second = (next(iter(self._fresh()), None) for _ in range(2))
        return first is not None and second is not None and _same(first, second)

    def _fresh(self) -> Iterable[Batch]:
        """The iterable again; a one-shot iterator is asked for anew."""
        if iter(self._iterable) is self._iterable:
            return self._model.train_data()
        return self._iterable

    def _count(self) -> int:
        try:
            return len(self._iterable)
        except TypeError:
            return sum(1 for _ in self._fresh())

    def _hold_out_first(self, samples: int) -> None:
        limit = max(1, int(self.steps * HELD_OUT_SHARE))
        self.held_out = list(_up_to(itertools.islice(self._fresh(), limit), samples))
        again = [_checked(batch) for batch in itertools.islice(self._fresh(), len(self.held_out))]
        in_order = len(again) == len(self.held_out) and all(
            _same(one[1], other[1]) for one, other in zip(self.held_out, again)
        )
        if in_order and self.steps > len(self.held_out):
            self._skip = len(self.held_out)
            self.steps -= self._skip
        else:
            self.held_out_exact = False


def batch_size(batch: Batch) -> int:
    """How many samples a batch has."""
    value = batch[0]
    while not isinstance(value, torch.Tensor):
        value = next(iter(value.values() if hasattr(value, "values") else value))
    return value.shape[0]


def _up_to(batches: Iterable[Any], samples: int) -> Iterator[Batch]:
    """Whole batches until `samples` are reached."""
    seen = 0
    for batch in batches:
        yield _checked(batch)
        seen += batch_size(batch)
        if seen >= samples:
            return


def _checked(batch: Any) -> Batch:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ModelError("train_data() must give (inputs, labels) pairs, batch by batch.")
    return batch[0], batch[1]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other))
    return bool(one == other)


def _splittable(iterable: Any) -> bool:
    """A DataLoader that batches an indexable dataset by itself, so that it can be made again over a part of it."""
    return (
        isinstance(iterable, torch.utils.data.DataLoader)
        and not isinstance(iterable.dataset, torch.utils.data.IterableDataset)
        and iterable.batch_size is not None
        and isinstance(iterable.sampler, (torch.utils.data.SequentialSampler, torch.utils.data.RandomSampler))
    )


def _split(loader: Any, samples: int, seed: int) -> tuple[Any, Any]:
    """Two loaders like the given one: over the part to train on, and over the part held out."""
    total = len(loader.dataset)
    count = max(1, min(samples, int(total * HELD_OUT_SHARE)))
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()

    def over(indices: list[int], shuffle: bool, drop_last: bool) -> Any:
        return torch.utils.data.DataLoader(
            torch.utils.data.Subset(loader.dataset, indices),
            batch_size=loader.batch_size,
            shuffle=shuffle,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            drop_last=drop_last,
            generator=torch.Generator().manual_seed(seed) if shuffle else None,
        )

    shuffled = isinstance(loader.sampler, torch.utils.data.RandomSampler)
    training = over(sorted(order[count:]), shuffled, loader.drop_last)
    return training, over(sorted(order[:count]), False, False)
