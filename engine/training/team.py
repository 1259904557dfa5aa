"""The ranks that train one network together: who takes which rows of a batch, and what they tell each other.

Every rank goes through the same batches in the same order and takes every n-th row, so the batch that a step sees is
the user's own, however many devices there are: learning rates, steps and curves mean the same on one GPU and on eight.
Gradients are averaged by DistributedDataParallel; slices of unequal length are weighted so that the average is that of
the whole batch. What stays different is batch normalisation, which sees the rows of its own rank in training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .data import Batch
from .objectives import Objective
from .precision import Precision
from .randomness import seed_everything
from .rows import Rows
from .teacher import Teaching


class StepLoss(nn.Module):
    """The loss of one step as a module: what DistributedDataParallel calls, and so sees all parameters of."""

    def __init__(
        self, module: nn.Module, objective: Objective, teaching: Teaching | None, precision: Precision
    ) -> None:
        super().__init__()
        self.trained = nn.ModuleList([module, *(teaching.trained_modules if teaching else [])])
        self._objective, self._teaching, self._precision = objective, teaching, precision

    def forward(self, inputs: Any, labels: Any, key: bytes | None = None) -> torch.Tensor:
        """The network runs in the plan's precision, the loss in float32. `key`: by what the teacher knows them."""
        outputs = self._objective.answer(self.trained[0], inputs, self._precision)
        teaching = self._teaching
        # Where the teacher alone counts there may be no labels, so no loss is asked for.
        hard = None if teaching and teaching.alpha == 1 else self._objective.loss(outputs, labels)
        if teaching is None:
            assert hard is not None
            return hard
        return teaching.mixed(hard, outputs, inputs, labels, key, self._precision)


class Team:
    """One rank among `size`. Alone (size 1) nothing is sent and no process group is needed.

    `rows` says where in a batch its samples lie.
    """

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1, rows: Rows | None = None) -> None:
        self.device, self.rank, self.size, self._rows = device, rank, size, rows or Rows()

    @property
    def leads(self) -> bool:
        """This rank judges, reports and keeps checkpoints."""
        return self.rank == 0

    def joined(self, step: StepLoss) -> nn.Module:
        """The step with gradients averaged over the ranks; all start with the weights of the first."""
        if self.size == 1:
            return step
        places = [self.device] if self.device.type == "cuda" else None
        # Real networks have parameters that a batch does not reach: a pooler without a loss, an unused head.
        return nn.parallel.DistributedDataParallel(step, device_ids=places, find_unused_parameters=True)

    def share(self, batch: Batch) -> tuple[Batch, float]:
        """(this rank's rows, what its mean loss counts for). A batch too small to be split goes to everyone whole."""
        if self.size == 1 or (count := self._rows.count(batch)) < 2 * self.size:
            return batch, 1.0
        own = self._rows.taken(batch, slice(self.rank, None, self.size))
        return own, self._rows.count(own) * self.size / count

    def begin_pass(self, seed: int, number: int) -> None:
        """Data that shuffles by the global generators gives the same pass to all ranks, and again after a stop."""
        seed_everything(seed + number)
        if self.size > 1 and self.device.type == "cuda":
            torch.cuda.manual_seed(seed + number + 7919 * self.rank)  # dropout is each rank's own

    def mean(self, loss: torch.Tensor) -> torch.Tensor:
        """The weighted losses of all ranks as the loss of the whole batch."""
        loss = loss.detach().float()
        if self.size > 1:
            torch.distributed.all_reduce(loss)
            loss /= self.size
        return loss

    def agreed(self, choice: bool) -> bool:
        """The leading rank's choice, for everyone."""
        if self.size == 1:
            return choice
        said = torch.tensor([float(choice)], device=self.device)
        torch.distributed.broadcast(said, 0)
        return bool(said.item())
