"""Makes jobs that profile and explain in this process, on graphs that are built node by node."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from technique_jobs import VNNI, open_baseline

from engine.context import JobContext, LoadedVariant
from engine.models import file_sha256
from engine.protocol import ExplainVariant, Explanation, InspectModel, JobSpec, ModelSource, Processor

CHANNELS = 32


def job_for(directory: Path, *variants: LoadedVariant, processor: Processor = VNNI) -> JobContext:
    """A job that knows these variants by their ids."""
    work = directory / f"work-{len(list(directory.iterdir()))}"
    work.mkdir()
    model = variants[0].model
    spec = JobSpec(
        job="job",
        task=InspectModel(),
        source=model.source,
        variants={},
        baseline=variants[0].record.id,
        session_directory=str(directory),
        work_directory=str(work),
        device="cpu",
        processor=processor,
        threads=1,
    )
    job = JobContext(spec, model, lambda message: None)
    job.variants = {one.record.id: one for one in variants}
    return job


def explain(
    directory: Path, after: LoadedVariant, before: LoadedVariant, batch_size: int = 4, **options: Any
) -> Explanation:
    """Why `after` is (not) faster than `before`, both under ONNX Runtime unless `runtime` says otherwise."""
    from engine.measurements.explaining import explain_variant

    runtime = options.pop("runtime", "onnxruntime")
    against_runtime = options.pop("against_runtime", runtime)
    job = job_for(directory, before, after, **options)
    task = ExplainVariant(
        variant=after.record.id,
        against=before.record.id,
        runtime=runtime,
        against_runtime=against_runtime,
        batch_size=batch_size,
    )
    return explain_variant(job, task)


def graph_variant(
    directory: Path, name: str, model: onnx.ModelProto, parent: LoadedVariant | None = None
) -> LoadedVariant:
    """A graph as a variant: the baseline of its own session, or a child of another variant."""
    place = directory / name
    place.mkdir()
    path = place / f"{name}.onnx"
    onnx.checker.check_model(model)
    onnx.save(model, path)
    baseline = open_baseline(ModelSource(path=str(path), kind="onnx", sha256=file_sha256(path)), place)
    changes = {"id": name, "name": name, "parent": parent.record.id if parent else None}
    changes["technique"] = "quantize-static" if parent else None
    own = msgspec.structs.replace(baseline.record, **changes)
    return LoadedVariant(own, baseline.directory, parent.model if parent else baseline.model)


@dataclasses.dataclass
class GraphMaker:
    """Collects nodes and constants of a graph that reads `x` (batch, CHANNELS, size, size)."""

    size: int = 24
    nodes: list[onnx.NodeProto] = dataclasses.field(default_factory=list)
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    random: Any = dataclasses.field(default_factory=lambda: np.random.default_rng(0))

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], f"{output}/{kind}", **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = value
        return name

    def convolution(self, value: str, output: str, quantized: str = "", full_range: bool = False) -> str:
        """A 3×3 convolution; `quantized`: "uint8" or "int8" for its data, whose pair is put in."""
        weights = self.random.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) * 0.06
        if not quantized:
            return self.add("Conv", [value, self.constant(f"{output}_w", weights)], output, pads=[1, 1, 1, 1])
        most = 127 if full_range else 63
        scale = np.float32(np.abs(weights).max() / most)
        integers = np.clip(np.rint(weights / scale), -most, most).astype(np.int8)
        names = [
            self.constant(f"{output}_wq", integers),
            self.constant(f"{output}_ws", scale),
            self.constant(f"{output}_wz", np.int8(0)),
        ]
        weight = self.add("DequantizeLinear", names, f"{output}_w")
        return self.add("Conv", [self.pair(value, quantized), weight], output, pads=[1, 1, 1, 1])

    def pair(self, value: str, kind: str) -> str:
        """The value behind Quantize and Dequantize."""
        if f"{value}_s" not in self.constants:
            self.constant(f"{value}_s", np.float32(0.05))
            self.constant(f"{value}_z", np.array(128 if kind == "uint8" and value == "x" else 0, dtype=kind))
            self.add("QuantizeLinear", [value, f"{value}_s", f"{value}_z"], f"{value}_q")
            self.add("DequantizeLinear", [f"{value}_q", f"{value}_s", f"{value}_z"], f"{value}_d")
        return f"{value}_d"

    def model(self, output: str) -> onnx.ModelProto:
        """The finished graph."""
        shape = ["batch", CHANNELS, self.size, self.size]
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(np.array(value), name) for name, value in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
