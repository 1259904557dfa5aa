"""Fine-tuning with fake quantization, from end to end: plan on the graph, train the module, write the graph.

1. Batch normalisations are folded and the module is exported and quantized as plain static quantization would do it.
   That gives the plan (what ONNX Runtime fuses), the first ranges, and the accuracy that is to be beaten.
2. The plan is carried back to the module's calls, and the module is trained with that rounding in it.
3. The trained module is exported again; the graph gets the learned ranges and scales, not newly calibrated ones.
   Its answers are compared with those of the training's simulation, so what was trained is what is deployed.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
import torch
from torch import nn

from ..context import JobContext, LoadedVariant
from ..graphs.calibration import Range, observed_session
from ..graphs.exporting import TRACE_BATCH, export_module
from ..graphs.integers import weight_limit
from ..graphs.onnx_graph import Graph, save_graph
from ..graphs.preparation import LEAST_OPSET, prepare
from ..graphs.static_recipe import Quantizer, Result, Settings, Trained
from ..graphs.verification import compare_outputs, run_graph
from ..models.finite import finite_calibration
from ..targets import Target
from . import Course, Plan, held_out_accuracy, train
from .call_matching import RECURRENT_LIMITS, Matching, fold_batch_norms, folded_factor, match, record
from .checkpoints import checkpoints_for
from .data import INEXACT, TrainingData
from .fake_quantization import ActivationGrid, FakeQuantized, WeightGrid
from .objectives import Objective, label_array
from .teacher import Teaching

if TYPE_CHECKING:
    from ..techniques.quantization_aware_training import QuantizeAware

STAGE = "quantization-aware training"


class NothingToTrain(Exception):
    """No layer would be quantized, or none of them can be found in the module; the text says why."""


@dataclasses.dataclass
class Deployed:
    """The graph and what is known about it."""

    result: Result
    untrained: dict[str, str]
    """Quantized node → why its rounding was not a part of the training."""
    folded: int
    difference: Any
    """From the module before training: `verification.Difference`."""
    figures: dict[str, Any]


def train_quantized(source: LoadedVariant, parameters: QuantizeAware, job: JobContext, target: Target) -> Deployed:
    """The technique `quantize-aware-training`. Raises NothingToTrain, ExportFailed, OpsetTooOld and ModelError."""
    return _Work(source, parameters, job, target).run()


class _Work:
    def __init__(self, source: LoadedVariant, parameters: QuantizeAware, job: JobContext, target: Target) -> None:
        self.source, self.parameters, self.job, self.target = source, parameters, job, target
        self.model: Any = job.model
        self.objective = Objective(job.model)
        self.device = torch.device(job.spec.device)
        self.threads = job.spec.threads
        self.example = self.model.example(self.model.fixed_batch or TRACE_BATCH)
        size = self.model.fixed_batch or min(32, parameters.samples)
        self.calibration = finite_calibration(self.model, size, max(parameters.samples, size), job.log)

    def run(self) -> Deployed:
        parameters, job, target = self.parameters, self.job, self.target
        job.progress(0, None, "exporting")
        module = self.source.module()
        original = copy.deepcopy(module)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            for parameter in module.parameters():  # saved frozen, for inference: it has to learn all the same
                parameter.requires_grad_(parameter.is_floating_point())
        call = self.model.torch_args(self.example)
        folded = fold_batch_norms(module, *call)
        prepared = self._graph(module)
        settings = self._settings(prepared)
        plain = Quantizer(prepared, lambda: self.calibration, settings, self._watch)
        before = plain.quantize()
        if not before.touched:
            raise NothingToTrain(_reasons(before.left) or "it has no convolution and no matrix product")
        matching = self._match(module, call, plain, prepared, before)
        if not matching.weights and not matching.recurrent:
            raise NothingToTrain(_reasons(matching.untrained))

        job.progress(0, None, "measuring what plain static quantization gives")
        data = TrainingData(job.model, seed=job.spec.seed)
        if not data.held_out_exact:
            job.log(INEXACT)
        float_accuracy = self._float_accuracy(original, data)
        figures: dict[str, Any] = {
            "held_out_samples": data.held_out_samples,
            "held_out_accuracy_before": float_accuracy,
            "held_out_accuracy_static": self._deployed_accuracy(before.model, data),
        }
        job.log(f"Held-out accuracy before training: {figures}.")
        key = {"target": target.name, **msgspec.to_builtins(parameters)}
        checkpoints = checkpoints_for(job, "quantize-aware-training", key, self.source)
        course = Course(job, checkpoints, total_steps=max(1, round(parameters.epochs * data.steps)))
        if self.objective.scored:
            course.fact("accuracy_before", float_accuracy)
        wrapped = FakeQuantized(module, matching.sites, matching.grids)
        teaching = None
        if parameters.distillation > 0:
            teaching = Teaching(original, parameters.distillation, parameters.temperature)
        plan = Plan(
            epochs=parameters.epochs,
            learning_rate=parameters.learning_rate,
            weight_decay=0.0,  # pulls weights across the borders between levels for nothing
            precision=parameters.precision,
            seed=job.spec.seed,
        )
        outcome = train(wrapped, data, self.objective, plan, course, stage=STAGE, teaching=teaching)

        job.progress(course.total_steps or outcome.steps, course.total_steps, "writing the INT8 graph")
        wrapped.cpu()
        simulated = self.model.call(wrapped, self.example)
        graph, trained = self._settle(wrapped, matching)
        after = Quantizer(
            graph,
            lambda: self.calibration,
            dataclasses.replace(settings, bias_correction=False),
            trained=trained,
        ).quantize()
        figures |= {
            "held_out_accuracy": self._deployed_accuracy(after.model, data),
            "held_out_accuracy_simulated": outcome.accuracy,
            "simulation_cosine": round(self._difference([simulated], after.model, [self.example]).cosine, 6),
            "steps": outcome.steps,
        }
        batches = [self.model.example(self.model.fixed_batch or 8, seed=seed) for seed in (1, 2)]
        original.cpu()
        answers = [self.model.call(original, batch) for batch in batches]
        checkpoints.remove()
        return Deployed(
            result=after,
            untrained=_untrained(after, matching, prepared),
            folded=len(folded),
            difference=self._difference(answers, after.model, batches),
            figures=figures,
        )

    def _settings(self, prepared: onnx.ModelProto) -> Settings:
        parameters, target = self.parameters, self.target
        return Settings(
            calibration=parameters.calibration,
            per_channel=parameters.per_channel,
            seven_bit=target.weights_7_bit,
            symmetric=target.symmetric_activations,
            float_bias=target.device_class == "cuda",
            dynamic_rest=target.device_class != "cuda",
            exclude=_excluded(prepared, parameters.exclude),
            threads=self.threads,
            weight_bits=parameters.weight_bits,
        )

    def _graph(self, module: nn.Module) -> onnx.ModelProto:
        """The module as a clean float graph."""
        model = self.model
        args, kwargs = model.torch_args(self.example)
        axes = {
            spec.name: {i: size for i, size in enumerate(spec.shape) if isinstance(size, str)} for spec in model.inputs
        }
        exported = export_module(module, args, kwargs, model.input_names, model.output_names, axes)
        path = self.job.work / "float.onnx"
        files = save_graph(exported.model, path)
        try:
            return prepare(path, True, 19 if self.target.float_type == "float16" else LEAST_OPSET, fold=True)
        finally:
            for file in files:
                Path(file).unlink(missing_ok=True)

    def _match(
        self, module: nn.Module, call: Any, quantizer: Quantizer, prepared: onnx.ModelProto, result: Result
    ) -> Matching:
        """The plan of the graph on the calls of the module."""
        plan, ranges = quantizer.settled()
        names = sorted({*plan.values, *(anchor.activation for anchor in plan.anchors.values())})
        graph = Graph(prepared)
        session = observed_session(prepared, [name for name in names if name not in graph.inputs], self.threads)
        inner = [name for name in names if name not in graph.inputs]
        feed = {value.name: self.example[value.name] for value in session.get_inputs()}
        observed = feed | (dict(zip(inner, session.run(inner, feed), strict=True)) if inner else {})
        kinds = {node.name: node.op_type for node in prepared.graph.node}
        recurrent = any(kinds.get(name) == "LSTM" for name in result.touched)
        return match(
            module,
            record(module, *call),
            graph,
            plan,
            ranges,
            observed,
            limit=weight_limit(self.target.weights_7_bit, self.parameters.weight_bits),
            per_channel=self.parameters.per_channel,
            symmetric=self.target.symmetric_activations,
            recurrent_limit=RECURRENT_LIMITS[self.target.weights_7_bit] if recurrent else None,
        )

    def _settle(self, wrapped: FakeQuantized, matching: Matching) -> tuple[onnx.ModelProto, Trained]:
        """Put the rounded weights into the module; give its graph and what that has to be written with."""
        grids = wrapped.grids
        module = wrapped.close()
        parameters = dict(module.named_parameters())
        rounded = {name: index for index, name in matching.weights.values()} | matching.recurrent
        scales: dict[str, np.ndarray] = {}
        ranges: dict[str, Range] = {}
        with torch.no_grad():
            for name, index in rounded.items():
                parameters[name].copy_(grids[index](parameters[name]))
            prepared = self._graph(module)
            graph = Graph(prepared)
            weights = {node.name: node.input[1] for node in prepared.graph.node if node.name in matching.weights}
            for anchor, (index, name) in matching.weights.items():
                grid = grids[index]
                assert isinstance(grid, WeightGrid)
                scales[anchor] = grid.scales.numpy()
                if anchor in matching.folded:  # what is folded into the weights was trained too
                    constant = graph.constant(weights[anchor])
                    factor = folded_factor(parameters[name], constant, matching.folded[anchor])
                    if factor is not None:
                        scales[anchor] = (scales[anchor] * np.abs(factor)).astype(np.float32)
            for value, index in matching.ranges.items():
                grid = grids[index]
                assert isinstance(grid, ActivationGrid)
                low, high = grid.ends().tolist()
                ranges[value] = Range(low, high)
        return prepared, Trained(ranges, scales)

    def _float_accuracy(self, module: nn.Module, data: TrainingData) -> float:
        value = held_out_accuracy(module.to(self.device), data, self.objective, self.device)
        module.cpu()
        return value

    def _deployed_accuracy(self, model: onnx.ModelProto, data: TrainingData) -> float | None:
        """Of a graph, on the held-out part of the training data; None where its batch size does not fit."""
        if self.model.fixed_batch:
            return None
        batches = [self.model.structure.arrays(inputs) for inputs, _ in data.held_out]
        answered = run_graph(model, batches, self.threads)
        if self.objective.metric is not None:
            truth = [label_array(labels) for _, labels in data.held_out]
            return self.objective.metric_of(list(zip(answered, truth, strict=True)))
        right = 0.0
        for answers, batch in zip(answered, data.held_out, strict=True):
            self.job.progress(0, None, "judging the INT8 graph on held-out data")
            outputs = self.model.output_structure.rebuild(answers)
            right += self.objective.quality(outputs, batch[1]) * data.rows.count(batch)
        return right / data.held_out_samples

    def _difference(self, answers: list[Any], model: onnx.ModelProto, batches: list[Any]) -> Any:
        return compare_outputs(answers, run_graph(model, batches, self.threads))

    def _watch(self, share: float, what: str) -> None:
        self.job.progress(0, None, what)


def _excluded(prepared: onnx.ModelProto, patterns: list[str]) -> tuple[str, ...]:
    """Nodes whose name, or the layer it begins with, fits a pattern. Raises NothingToTrain for one that fits none."""
    names: list[str] = []
    for pattern in patterns:
        fitting = [
            node.name
            for node in prepared.graph.node
            if fnmatch.fnmatch(node.name, pattern) or fnmatch.fnmatch(node.name.partition("/")[0], pattern)
        ]
        if not fitting:
            raise NothingToTrain(f"there is no layer {pattern!r} to exclude")
        names += fitting
    return tuple(dict.fromkeys(names))


def _untrained(result: Result, matching: Matching, prepared: onnx.ModelProto) -> dict[str, str]:
    """Of the quantized nodes those whose rounding was not in the training, or not wholly."""
    tables = {node.name for node in prepared.graph.node if node.op_type == "Gather"}
    reasons = dict.fromkeys(tables, "its rows are stored as bytes with a scale each, which costs next to nothing")
    return {name: reason for name, reason in (reasons | matching.untrained).items() if name in result.touched}


def _reasons(left: dict[str, str]) -> str:
    """The commonest reasons first."""
    counted = list(left.values())
    return "; ".join(sorted(set(counted), key=lambda reason: -counted.count(reason))[:3])
