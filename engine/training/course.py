"""What the stages of one training job share: curves, progress, checkpoints."""

from __future__ import annotations

from typing import Any

from ..context import JobContext
from .checkpoints import Checkpoints


class Course:
    """What the stages of one training job share: curves, progress, checkpoints."""

    def __init__(
        self,
        job: JobContext,
        checkpoints: Checkpoints | None = None,
        total_steps: int | None = None,
        told: bool = False,
    ) -> None:
        """`told`: the curve so far was sent already, by the process that this one works for."""
        self.job, self.checkpoints, self.total_steps = job, checkpoints, total_steps
        self.step = 0
        self.points: list[tuple[str, float, int]] = []
        self.going_on = ""
        """", going on from step 35" for a job that goes on from a checkpoint: what its progress says, too."""
        self._resumed = (checkpoints.load("training") if checkpoints else None) or {}
        if self._resumed:
            self.step, self.points = self._resumed["step"], [tuple(point) for point in self._resumed["points"]]
            self.going_on = f", going on from step {self.step}"
            if not told:
                for name, value, step in self.points:
                    job.metric(name, value, step)
                self.fact("checkpoint", self.step)
                job.log(f"Going on from the checkpoint at step {self.step}.")

    def point(self, name: str, value: float) -> None:
        """A point of a curve at the present step."""
        self.points.append((name, value, self.step))
        self.job.metric(name, value, self.step)

    def fact(self, name: str, value: float) -> None:
        """A number that holds for the whole job, which the charts are drawn by; sent again when the job goes on.

        "steps_per_epoch" and "total_steps" are the axis (sent by `train`), "accuracy_before" is the held-out accuracy
        of the network before it was changed, which the accuracy limit is counted from (sent by the technique),
        "checkpoint" the step that the same work would go on from if it were stopped now.
        """
        self.job.metric(name, value, self.step)

    def judged(self, quality: float, scored: bool) -> None:
        """A point of the held-out accuracy, or of the held-out loss where labels cannot be scored."""
        if scored:
            self.point("accuracy", quality)
        else:
            self.point("held_out_loss", -quality)

    def resumed(self, stage: str) -> dict[str, Any] | None:
        """The checkpoint, if it was taken in this stage."""
        return self._resumed if self._resumed.get("stage") == stage else None

    def keep(self, stage: str, state: dict[str, Any]) -> None:
        if self.checkpoints is not None:
            self.checkpoints.save("training", state | {"stage": stage, "step": self.step, "points": self.points})
            self.fact("checkpoint", self.step)
