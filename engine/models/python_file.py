"""A Python model file: the functions of the contract that it has, and nothing it does not.

`load_model()` and `example_input(batch_size)` are required; `train_data`, `validation_data`, `calibration_data`,
`test_data`, `student_model`, `loss`, `accuracy`, `metric`, `dynamic_shapes`, `raw_inputs` and `preprocess` are used
where they are.
Data may be a function, a generator function, or simply an iterable of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from ..protocol import ModelSource
from .datasets import Batch, normalised, opened, rebatched, rows_of, split
from .importing import import_model_file, run_user_code
from .model import Arrays, ModelError
from .scoring import by_user, for_user, top_1
from .torch_model import TorchModel

OPTIONAL = (
    "train_data", "validation_data", "calibration_data", "test_data", "student_model", "loss", "accuracy", "metric",
    "dynamic_shapes", "raw_inputs", "preprocess",
)  # fmt: skip
"""What a model file may offer beside load_model and example_input."""

SYNTHETIC_SAMPLES = 512
"""How many example inputs stand in for test data where there is none (then only agreement can be said)."""


class PythonModel(TorchModel):
    """Made by `open_model` for a source of kind "python"."""

    def __init__(self, source: ModelSource) -> None:
        super().__init__(source)
        self.file = import_model_file(self.path)
        for name in ("load_model", "example_input"):
            if not callable(getattr(self.file, name, None)):
                raise ModelError(
                    f"{self.path.name} has no function {name}{'(batch_size)' if name[0] == 'e' else '()'}."
                )
        self.settle_shapes(self._user_example(1), self._user_example(2))
        self.metric = getattr(self.file, "metric", None)
        self.synthetic_data = "test_data" not in self.offers
        if self.synthetic_data:
            self.notes = ("There is no test_data(): accuracy is agreement on example inputs.",)
        self._labelled: bool | None = None

    @property
    def offers(self) -> tuple[str, ...]:
        return tuple(name for name in OPTIONAL if getattr(self.file, name, None) is not None)

    def function(self, name: str) -> Callable[..., Any] | None:
        """One of the optional functions, or None when the file has none of that name."""
        return getattr(self.file, name, None)

    def build(self) -> Any:
        return self.file.load_model()

    def student(self) -> torch.nn.Module:
        """A new student for distillation, untrained or as the user made it, on the CPU. Raises ModelError."""
        if "student_model" not in self.offers:
            raise ModelError(f"{self.path.name} has no student_model().")
        student = run_user_code(self.path, "student_model()", self.file.student_model)
        if not isinstance(student, torch.nn.Module):
            raise ModelError(
                f"{self.path.name}: student_model() returned a {type(student).__name__}, not a torch.nn.Module."
            )
        return student.cpu()

    # --- data

    def example(self, batch_size: int, seed: int = 0) -> Arrays:
        inputs = self.structure.arrays(self._user_example(batch_size, seed))
        wrong = next(
            (n for n, axis in self.axes.items() if axis is not None and inputs[n].shape[axis] != batch_size), None
        )
        if wrong is not None:
            raise ModelError(
                f"{self.path.name}: example_input({batch_size}) gave {wrong} the shape {inputs[wrong].shape}, which is "
                f"no batch of {batch_size}."
            )
        return inputs

    def test_batches(self, batch_size: int = 64, limit: int | None = None) -> Iterator[Batch]:
        if self.synthetic_data:
            batches = self._examples(batch_size, min(limit or SYNTHETIC_SAMPLES, SYNTHETIC_SAMPLES))
        else:
            batches = self._data("test_data")
            if self._calibrates_on_test_data:
                batches = split(batches, self.axes, calibration=False)
        return rebatched(batches, batch_size, self.axes, limit)

    def calibration_batches(self, batch_size: int = 64, limit: int | None = None) -> Iterator[Arrays]:
        name = next((n for n in ("calibration_data", "train_data", "test_data") if n in self.offers), None)
        if name is None:
            raise ModelError(f"{self.path.name} has no data to calibrate on: add calibration_data() to it.")
        batches = self._data(name)
        if name == "test_data":
            batches = split(batches, self.axes, calibration=True)
        return (inputs for inputs, _ in rebatched(batches, batch_size, self.axes, limit))

    def train_data(self) -> Iterable[Any]:
        if "train_data" not in self.offers:
            return super().train_data()
        return run_user_code(self.path, "train_data()", opened, self.file.train_data)

    @property
    def has_calibration_data(self) -> bool:
        return bool({"calibration_data", "train_data", "test_data"} & set(self.offers))

    @property
    def labelled(self) -> bool:
        if self._labelled is None:
            self._labelled = not self.synthetic_data and next(self.test_batches(1, 1), (None, None))[1] is not None
        return self._labelled

    def score(self, outputs: Arrays, labels: np.ndarray) -> np.ndarray:
        accuracy = self.function("accuracy")
        if accuracy is None:
            return top_1(outputs, labels)
        rebuild = self.output_structure.rebuild

        def one_sample(i: int) -> Any:
            return rebuild(rows_of(outputs, dict.fromkeys(outputs, 0), slice(i, i + 1)))

        return run_user_code(self.path, "accuracy()", by_user, accuracy, rebuild(outputs), labels, one_sample)

    def metric_value(self, outputs: Arrays, labels: np.ndarray) -> float:
        if self.metric is None:
            return super().metric_value(outputs, labels)
        rebuilt = self.output_structure.rebuild(outputs)
        return float(run_user_code(self.path, "metric()", self.metric, rebuilt, for_user(labels)))

    @property
    def _calibrates_on_test_data(self) -> bool:
        return not {"calibration_data", "train_data"} & set(self.offers)

    def _data(self, name: str) -> Iterator[Batch]:
        """The samples of one of the data functions; an error in the user's code is told with its line."""
        ranks = {spec.name: len(spec.shape) for spec in self.inputs}

        def watched() -> Iterator[Any]:
            items = iter(run_user_code(self.path, f"{name}()", opened, getattr(self.file, name)))
            end = object()
            while (item := run_user_code(self.path, f"{name}()", next, items, end)) is not end:
                yield item

        return normalised(watched(), self.structure, ranks, self.axes, f"{name}() in {self.path.name}")

    def _examples(self, size: int, count: int) -> Iterator[Batch]:
        """Example inputs with other seeds; only one batch of them if the user's function ignores the seed."""
        first = self.example(size, seed=1)
        yield first, None
        for seed in range(2, 1 + -(-count // size)):
            inputs = self.example(size, seed)
            if all(np.array_equal(inputs[name], first[name]) for name in inputs):
                return
            yield inputs, None

    def _user_example(self, batch_size: int, seed: int = 0) -> Any:
        """`example_input(batch_size)` with every usual source of chance seeded and put back afterwards."""
        state = np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            try:
                return run_user_code(self.path, f"example_input({batch_size})", self.file.example_input, batch_size)
            finally:
                np.random.set_state(state)
