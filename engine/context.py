"""What a technique or a measurement is given: its job, and variants it can load.

Techniques and measurements never import each other or the store. What they need of each other they get here:
`job.measure_accuracy`, `job.measure_latency`. The worker fills these in (`engine/worker.py`).
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .protocol import Accuracy, Changed, Format, JobSpec, Latency, Steer, Variant, WorkerMessage

if TYPE_CHECKING:
    import torch

    from .models import Model


class JobCancelled(BaseException):
    """Raised out of `progress` once the user has cancelled, or out of any line by the worker's signal handler.

    Let it pass. It is no Exception, so that whoever tries something that may raise anything does not take it for a
    failure of what was tried.
    """


@dataclasses.dataclass(frozen=True)
class LoadedVariant:
    """A variant's record with the directory that holds its files, and the model file it belongs to.

    Nothing heavy is loaded until `module()` is called or `path` is read by whoever wants the graph.
    """

    record: Variant
    directory: Path
    model: Model

    @property
    def path(self) -> Path:
        """The file a runtime loads: the `.onnx`, the `.pt`, or the baseline's weights."""
        return self.directory / self.record.files[0].path

    def module(self) -> torch.nn.Module:
        """A new PyTorch module of this variant, in eval mode, on the CPU.

        Raises ValueError for a variant that is not in PyTorch format.
        """
        return self.model.load_module(self)


@dataclasses.dataclass(frozen=True)
class VariantFiles:
    """A variant as a technique made it: files in the job's work directory and what was changed.

    `files[0]` is what a runtime loads; `deployed` are those that count as its size (default: all files).
    """

    format: Format
    files: list[Path]
    changed: Changed
    label: str | None = None
    deployed: list[Path] | None = None
    parameters: dict[str, Any] | None = None
    parameter_count: int | None = None
    macs: int | None = None
    portable: bool = True
    target: str | None = None


@dataclasses.dataclass
class JobContext:
    """A job as seen by the code that does it. `send` passes a message to the engine."""

    spec: JobSpec
    model: Model
    send: Callable[[WorkerMessage], None]
    variants: dict[str, LoadedVariant] = dataclasses.field(default_factory=dict)
    measure_latency: Callable[..., list[Latency]] = dataclasses.field(default=None)  # type: ignore[assignment]
    """`(variant, runtime, batch_sizes) -> list[Latency]`, paired with the baseline."""
    measure_accuracy: Callable[..., Accuracy] = dataclasses.field(default=None)  # type: ignore[assignment]
    """`(variant, runtime, limit, samples=None) -> Accuracy`, paired with the baseline."""
    hear: Callable[[Callable[[Steer], None]], None] = dataclasses.field(default=lambda take: None)
    """Have what the engine says while the job runs (a load test's knobs) handed to a function, in another thread."""
    _cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def work(self) -> Path:
        """The directory this job may write to."""
        return Path(self.spec.work_directory)

    @property
    def cancelled(self) -> bool:
        """The user wants this job to end. Code with loops of its own looks here; `progress` does it too."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Called by the worker's signal handler."""
        self._cancelled.set()

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Tell how far the job is. Cheap enough for every batch: the worker thins it to about 10 a second.

        Raises JobCancelled once the user has cancelled.
        """
        from .protocol import Progressed

        if self.cancelled:
            raise JobCancelled
        self.send(Progressed(done=done, total=total, message=message))

    def metric(self, name: str, value: float, step: int) -> None:
        """A point of a curve: `loss`, `accuracy`, … at a step (epoch or batch) of this job."""
        from .protocol import MetricReported

        self.send(MetricReported(name=name, value=float(value), step=int(step)))

    def log(self, text: str) -> None:
        """A line (or several) for the job's log and the dashboard's log pane."""
        from .protocol import Logged

        self.send(Logged(text=text))
