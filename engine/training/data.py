"""The user's training data as training needs it: pass after pass, with a part held out to judge the progress on.

Test data is never touched: a network that was tuned while looking at it would make every later accuracy figure a lie.
The held-out part comes from, in this order,
1. `validation_data()`, where the model file has it;
2. a seeded split by index, where `train_data()` gives a DataLoader over a dataset that can be indexed;
3. the first batches of a pass, which later passes leave out, where every pass has the same order;
4. the first batches of a pass, where passes are shuffled by code of the user's that we cannot look into. Later passes
   then contain these samples, too, and accuracy on them is rosy: `held_out_exact` is False and the log says so.

Pass k is the same in every process, so that a training that was stopped goes on with the samples it had not seen: the
generators of a DataLoader are seeded by the number of the pass, and what has a `set_epoch(k)` (as PyTorch's distributed
samplers) is told it. Data that shuffles by Python's, numpy's or PyTorch's global generators is kept in step by whoever
seeds those before a pass (`team.begin_pass`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, cast

import numpy as np
import torch

from ..models import Model, ModelError
from ..models.datasets import opened
from ..models.importing import run_user_code
from ..models.tensors import tensors_by_path
from .losses import moved
from .rows import Rows

HELD_OUT_SAMPLES = 2000
"""At most so many samples judge the progress: an evaluation is to cost a few seconds, not minutes."""

HELD_OUT_SHARE = 0.1
"""At most this share of the training data is held out."""

HELD_OUT_BYTES = 1024 * 1024 * 1024
"""The held-out batches stay in memory: no further one is taken once they are larger than this."""

COUNTED_BATCHES = 1_000_000
COUNTED_SECONDS = 300.0
"""Data that does not say how long it is is counted up to here: it may have no end."""

INEXACT = (
    "train_data() shuffles by itself, so the samples that judge the progress are also trained on: "
    "their accuracy is a little rosy. Give validation_data() or a DataLoader to keep them apart."
)
"""What to say where `held_out_exact` is False."""

LOOK_SECONDS = 20.0
"""So long the data are looked through for what made a training fail."""

Batch = tuple[Any, Any]
"""(inputs, labels) as the user gives them, but tensors where they are arrays."""


class TrainingData:
    """Batches for training and, apart from them, batches to judge by.

    `held_out` is kept in memory. `steps` is the number of training batches in a pass, as train_data() says it until a
    pass has shown that it is less. `rows` says where in a batch its samples lie. `samples` and `seed` are what it was
    made with: the same ones make the same data again.
    """

    def __init__(self, model: Model, samples: int = HELD_OUT_SAMPLES, seed: int = 0) -> None:
        self.samples, self.seed = samples, seed
        self.rows = Rows.of(model)
        self._model = model
        self._iterable: Any = model.train_data()
        self._skip = 0
        self.held_out: list[Batch] = []
        self.held_out_exact = True
        function = getattr(model, "function", None)
        validation = function("validation_data") if function else None
        if validation is not None:
            given = run_user_code(model.path, "validation_data()", opened, validation)
            self.held_out = list(self._up_to(self._watched(given, "validation_data()"), samples, "validation_data()"))
        elif _splittable(self._iterable):
            self._iterable, held_out = _split(self._iterable, samples, seed)
            self.held_out = list(self._up_to(self._watched(held_out), samples))
        self.steps = counted = self._count()
        if not self.held_out:
            self._hold_out_first(samples)
        if counted > 1 and not self.held_out:
            raise ModelError(
                f"{model.path.name}: train_data() gives its batches only once, and training goes through them many "
                "times: return a list, a DataLoader, or a new generator at each call."
            )
        if self.steps < 1:
            raise ModelError("train_data() gives too little to train on: two batches are the least.")

    def batches(self, skip: int = 0, number: int = 0) -> Iterator[Batch]:
        """Pass `number`, without the held-out batches and the first `skip` others."""
        passed = itertools.islice(self._fresh(number), self._skip + skip, self._skip + self.steps)
        return (_checked(batch) for batch in passed)

    def finite(self) -> bool:
        """No batch holds NaN or infinity, as far as can be seen in `LOOK_SECONDS`."""
        end = time.monotonic() + LOOK_SECONDS
        for batch in itertools.takewhile(lambda _: time.monotonic() < end, self.batches()):
            if not all(bool(tensor.isfinite().all()) for tensor in tensors_by_path(batch).values()):
                return False
        return True

    @property
    def held_out_samples(self) -> int:
        return sum(self.rows.count(batch) for batch in self.held_out)

    @property
    def labelled(self) -> bool:
        """The batches have labels."""
        return self.held_out[0][1] is not None

    @property
    def repeats(self) -> bool:
        """Every pass seems to give the very same batches, so that it pays to keep a teacher's answers to them."""
        first, second = (next(iter(self._fresh(number)), None) for number in range(2))
        return first is not None and second is not None and _same(first, second)

    def _fresh(self, number: int = 0) -> Iterator[Any]:
        """The batches again, from the beginning of this pass; a one-shot iterator is asked for anew."""
        iterable = self._iterable
        if isinstance(iterable, Iterator):
            iterable = self._model.train_data()
        _begin(iterable, self.seed, number)
        return self._watched(iterable)

    def _watched(self, iterable: Iterable[Any], name: str = "train_data()") -> Iterator[Any]:
        """What it gives; an error in the user's code is told with the name of their function and its line."""
        path, end = self._model.path, object()
        items = run_user_code(path, name, iter, iterable)
        while (item := run_user_code(path, name, next, items, end)) is not end:
            yield item

    def _count(self) -> int:
        try:
            return len(self._iterable)
        except TypeError:
            pass
        count, end = 0, time.monotonic() + COUNTED_SECONDS
        for _ in self._fresh():
            count += 1
            if count >= COUNTED_BATCHES or time.monotonic() > end:
                raise ModelError(
                    f"train_data() did not end after {count:,} batches: let it end after one pass over the data, or "
                    "return an object whose __len__() says how many batches a pass has."
                )
        return count

    def _hold_out_first(self, samples: int) -> None:
        limit = max(1, int(self.steps * HELD_OUT_SHARE))
        self.held_out = list(self._up_to(itertools.islice(self._fresh(0), limit), samples))
        again = [_checked(batch) for batch in itertools.islice(self._fresh(1), len(self.held_out) + 1)]
        if len(again) <= len(self.held_out):  # a pass is over already, whatever its length says
            self.steps = len(again)
            del self.held_out[max(1, int(self.steps * HELD_OUT_SHARE)) :]
        # Inputs may be distorted anew in every pass, so labels say more, where they say anything.
        part = 1 if _differ([labels for _, labels in self.held_out]) else 0
        in_order = len(again) >= len(self.held_out) and all(
            _same(one[part], other[part]) for one, other in zip(self.held_out, again)
        )
        if in_order and self.steps > len(self.held_out):
            self._skip = len(self.held_out)
            self.steps -= self._skip
        else:
            self.held_out_exact = False

    def _up_to(self, batches: Iterable[Any], samples: int, name: str = "train_data()") -> Iterator[Batch]:
        """Whole batches until `samples` or `HELD_OUT_BYTES` are reached."""
        seen = size = 0
        for batch in batches:
            checked = _checked(batch, name)
            yield checked
            seen += self.rows.count(checked)
            size += sum(tensor.numel() * tensor.element_size() for tensor in tensors_by_path(checked).values())
            if seen >= samples or size >= HELD_OUT_BYTES:
                return


def _begin(iterable: Any, seed: int, number: int) -> None:
    """Make what is iterated next pass `number`."""
    parts = [iterable]
    if isinstance(iterable, torch.utils.data.DataLoader):
        batches = getattr(iterable, "batch_sampler", None)
        parts += [iterable.dataset, getattr(iterable.dataset, "dataset", None)]
        parts += [iterable.sampler, batches, getattr(batches, "sampler", None)]
    for part in parts:
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(number)
        if isinstance(getattr(part, "generator", None), torch.Generator):
            part.generator.manual_seed(seed + number)


def _checked(batch: Any, name: str = "train_data()") -> Batch:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ModelError(f"{name} must give (inputs, labels) pairs, batch by batch.")
    return moved(batch[0], None), moved(batch[1], None)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, (tuple, list)):
        return isinstance(other, (tuple, list)) and len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _differ(labels: list[Any]) -> bool:
    """The samples' labels are not all the same, so that samples in another order have other labels, too."""
    batches = [list(tensors_by_path(one).values()) for one in labels]
    return any(
        one.shape[1:] != first.shape[1:] or not torch.equal(one, first[:1].expand_as(one))
        for batch in batches
        for one, first in zip(batch, batches[0])
        if one.ndim and first.ndim and first.numel()
    )


def _splittable(iterable: Any) -> bool:
    """A DataLoader that batches an indexable dataset by itself, so that it can be made again over a part of it."""
    if (
        not isinstance(iterable, torch.utils.data.DataLoader)
        or isinstance(iterable.dataset, torch.utils.data.IterableDataset)
        or iterable.batch_size is None
    ):
        return False
    sampler, dataset = iterable.sampler, cast(Sized, iterable.dataset)
    if isinstance(sampler, torch.utils.data.RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(dataset)
    return isinstance(sampler, torch.utils.data.SequentialSampler)


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
            worker_init_fn=loader.worker_init_fn,
            drop_last=drop_last,
            generator=torch.Generator() if shuffle else None,  # seeded at the beginning of each pass
        )

    shuffled = isinstance(loader.sampler, torch.utils.data.RandomSampler)
    training = over(sorted(order[count:]), shuffled, loader.drop_last)
    return training, over(sorted(order[:count]), False, False)
