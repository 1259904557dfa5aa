"""The error of a graph layer by layer: every value of one variant against the same value of another.

Both graphs run as written, in float with the rounding that their Quantize/Dequantize pairs do, because a value that is
looked at can not be fused away: errors of the kernels themselves (sums that saturate) are not in it, and
`kernel_cosine` tells how much those add. A value that is quantized is taken behind its pair, as its readers see it;
channels that were equalised are brought back to their size, the nearest to what they are compared with.
Layers are told by the names of the graph that is compared with: quantization takes nodes apart (`head/bias`), and only
the name before it is one that people know and that the technique leaves in float on request.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
import onnxruntime

from ..graphs.equalisation import LEAST, MOST, divided_along
from ..graphs.onnx_graph import EXTERNAL_DATA_BYTES, FLOAT_TYPES, Graph, save_graph
from ..graphs.verification import compare_outputs, cpu_session
from ..protocol import LayerError

AT_A_TIME = 32
"""Values fetched in one call: all values of a big network at once would not fit in memory."""

MASK, LOWEST = -5000.0, -1e30
"""What is below `MASK` in what is compared with, or below `LOWEST` in the variant, is a mask before a softmax: Trimtab
raises those itself (`graphs/masks.py`), and their squares would drown every other value."""

EXACT_DB = 60.0
"""An SQNR from here on counts as exact when a node's own loss is reckoned."""


class Matched(NamedTuple):
    """A value that both graphs have."""

    node: onnx.NodeProto
    """The variant's node that computes it."""
    value: str
    """Its name in the variant, behind the pair where it has one."""
    reference: str
    twin: onnx.NodeProto
    """The other graph's node that computes the reference."""


def layer_errors(
    variant: Path,
    against: Path,
    inputs: dict[str, np.ndarray],
    threads: int,
    work: Path,
    quantized: Collection[str] = (),
) -> tuple[LayerError, ...]:
    """The error of every value the two graphs share, in the variant's order of execution; () when they share none.

    `quantized`: names of the nodes that the variant's technique says it touched; only those can be excluded from it.
    """
    ours, theirs = Graph(onnx.load(variant)), Graph(onnx.load(against))
    matched = _matched(ours, theirs)
    if not matched:
        return ()
    first = _session(ours.model, [one.value for one in matched], threads, work / "variant_values.onnx")
    second = _session(theirs.model, [one.reference for one in matched], threads, work / "against_values.onnx")
    touched = frozenset(quantized)
    errors: dict[str, LayerError] = {}
    levels: dict[str, float] = {}
    for start in range(0, len(matched), AT_A_TIME):
        chunk = matched[start : start + AT_A_TIME]
        values = _fetch(first, [one.value for one in chunk], inputs)
        references = _fetch(second, [one.reference for one in chunk], inputs)
        for one in chunk:
            error = _error(one, values[one.value], references[one.reference])
            if error is None:
                continue
            level = EXACT_DB if error.sqnr_db is None else min(EXACT_DB, error.sqnr_db)
            before = min(_levels_before(ours, one.node, levels), default=EXACT_DB)
            errors[one.node.output[0]] = msgspec.structs.replace(_named(error, one, touched), drop_db=before - level)
            levels[one.node.output[0]] = level
    return tuple(errors.values())


def kernel_cosine(path: Path, inputs: dict[str, np.ndarray], threads: int) -> float:
    """Cosine between what the runtime's kernels give and what the graph says: below 1 where integer sums saturate."""
    feeds = [inputs]
    outputs = []
    for optimize in (False, True):
        session = cpu_session(path, threads, optimize)
        names = [value.name for value in session.get_outputs()]
        outputs.append([_fetch(session, names, batch) for batch in feeds])
    return compare_outputs(*outputs).cosine


def seven_bit_cosine(path: Path, inputs: dict[str, np.ndarray], threads: int) -> float:
    """Cosine between what the graph says and what it would say if its weights had 7 bits: what saving sums costs."""
    model = onnx.load(path)
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    looked_up = {node.input[0] for node in rounded.graph.node if node.op_type == "Gather"}  # never multiplied
    for tensor in rounded.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and tensor.name not in looked_up and len(tensor.dims) > 1:
            values = onnx.numpy_helper.to_array(tensor)
            # every other integer is what 7 bits with twice the scale can tell apart
            even = np.clip(2 * np.rint(values / 2), -126, 126).astype(np.int8)
            tensor.CopyFrom(onnx.numpy_helper.from_array(even, tensor.name))
    outputs = []
    for one in (model, rounded):
        session = cpu_session(one, threads, optimize=False)
        outputs.append([_fetch(session, [value.name for value in session.get_outputs()], inputs)])
    return compare_outputs(*outputs).cosine


def _matched(ours: Graph, theirs: Graph) -> list[Matched]:
    """By the value's name; for a node whose value was renamed by its own name, when it is of the same kind."""
    by_name = {node.name: node for node in theirs.proto.node if node.name}
    found: dict[str, Matched] = {}
    for node in ours.proto.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant", "Shape") or not node.output:
            continue
        value = node.output[0]
        twin = by_name.get(node.name)
        reference = value if value in theirs.producers else None
        if reference is None and twin is not None and twin.op_type == node.op_type:
            reference = twin.output[0]
        if reference is not None and _may_be_float(theirs, reference):
            # one row a layer: a cast behind it hands its value on under the old name
            found.pop(reference, None)
            found[reference] = Matched(node, _behind_pair(ours, value), reference, theirs.producers[reference])
    return list(found.values())


def _named(error: LayerError, one: Matched, quantized: Collection[str]) -> LayerError:
    """The error under the layer's name before it was quantized, with the name that leaves it in float.

    That is the other graph's name; or the variant's own, where a ReLU behind the node was absorbed; or its own without
    the part that quantization appended, where the other graph gave its nodes no names.
    """
    names = (one.twin.name, one.node.name, one.node.name.rpartition("/")[0])
    exclude = next((name for name in names if name and name in quantized), None)
    kind = one.node.op_type if exclude == one.node.name else one.twin.op_type
    return msgspec.structs.replace(error, node=exclude or one.twin.name or error.node, type=kind, exclude=exclude)


def _may_be_float(graph: Graph, value: str) -> bool:
    kind = graph.element_type(value)
    return kind is None or kind in FLOAT_TYPES


def _behind_pair(graph: Graph, value: str) -> str:
    """The value as its readers see it: behind Quantize and Dequantize, when all of them read it there."""
    reader = graph.only_reader(value)
    if reader is not None and reader.op_type == "QuantizeLinear":
        for behind in graph.readers.get(reader.output[0], []):
            if behind.op_type == "DequantizeLinear":
                return behind.output[0]
    return value


def _session(model: onnx.ModelProto, values: list[str], threads: int, place: Path) -> onnxruntime.InferenceSession:
    """A session that gives these values beside the graph's outputs."""
    outputs = {value.name for value in model.graph.output}
    for name in dict.fromkeys(values):
        if name not in outputs:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    if model.ByteSize() <= EXTERNAL_DATA_BYTES:
        return cpu_session(model, threads, optimize=False)
    return cpu_session(save_graph(model, place)[0], threads, optimize=False)


def _fetch(
    session: onnxruntime.InferenceSession, names: list[str], inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
    feed = {}
    for value in session.get_inputs():
        array = inputs[value.name]
        feed[value.name] = array.astype(kinds[value.type]) if value.type in kinds else array
    names = list(dict.fromkeys(names))
    return dict(zip(names, session.run(names, feed), strict=True))


def _error(one: Matched, value: np.ndarray, reference: np.ndarray) -> LayerError | None:
    """None when the two cannot be compared."""
    if value.dtype.kind != "f" or reference.dtype.kind != "f" or value.shape != reference.shape or not value.size:
        return None
    wanted, given = reference.astype(np.float64), value.astype(np.float64)
    both = np.isfinite(wanted) & np.isfinite(given) & (wanted > MASK) & (given > LOWEST)
    if not both.any() and (wanted <= MASK).any():
        return None
    for axis in (divided_along(one.node), divided_along(one.twin)):
        if axis is not None:
            given = _brought_back(given, wanted, both, axis)
    wanted, given = wanted[both], given[both]
    noise, power = float(((wanted - given) ** 2).sum()), float(wanted @ wanted)
    norms = np.sqrt(power * float(given @ given))
    cosine = float(wanted @ given / norms) if norms else 1.0 if noise == 0 else 0.0
    sqnr = None if noise == 0 else float(10 * np.log10(max(power, 1e-30) / noise))
    return LayerError(node=one.node.name or one.node.output[0], type=one.node.op_type, cosine=cosine, sqnr_db=sqnr)


def _brought_back(given: np.ndarray, wanted: np.ndarray, both: np.ndarray, axis: int) -> np.ndarray:
    """The value, each channel times the number that brings it nearest to the other: equalisation divided it by one."""
    others = tuple(other for other in range(given.ndim) if other != axis % given.ndim)
    power = (given**2).sum(others, keepdims=True, where=both)
    common = (given * wanted).sum(others, keepdims=True, where=both)
    return given * np.clip(common / np.where(power > 0, power, 1), LEAST, MOST)


def _levels_before(graph: Graph, node: onnx.NodeProto, levels: dict[str, float]) -> list[float]:
    """SQNR of the nearest values before a node that were compared."""
    found, seen, waiting = [], set(), [name for name in node.input if name]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in levels:
            found.append(levels[value])
        elif value in graph.producers:
            waiting += [name for name in graph.producers[value].input if name]
    return found
