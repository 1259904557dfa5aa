"""Weights of matrix products and rows of embeddings in 4 bits, block by block; everything else stays as it is.

Two forms. "matmul-nbits": ONNX Runtime's MatMulNBits and GatherBlockQuantized, for its CPU and CUDA providers only.
"qdq": standard DequantizeLinear with blocks (opset 21) in front of a plain MatMul, which TensorRT and OpenVINO read and
ONNX Runtime turns into MatMulNBits when it loads the graph. Activations keep their type.

Only the second moments of the products' inputs are needed of calibration data; they are summed in passes that hold at
most `MOMENTS_BYTES` of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .calibration import Batch, observed_session
from .four_bits import Blocks, compensated, least_error, output_error, rounded
from .int4_plan import LEAST_BLOCK, Form, Plan, Product, Table
from .onnx_graph import Graph

Method = Literal["rtn", "least-error", "gptq"]

BLOCK_OPSET = 21
"""DequantizeLinear knows blocks and 4-bit types from here on."""

FOUR_BIT_IR = 10
"""Version of the file format that knows 4-bit types."""

MOMENTS_BYTES = 512 << 20
"""Second moments held at once."""

VALUES_AT_ONCE = 12
"""Activations watched in one pass over the data."""

COMPUTE_LEVELS = {"float32": 1, "int8": 4}
"""What MatMulNBits multiplies in → its accuracy_level."""

Watch = Callable[[float, str], None]
"""Called with the share done, in 0…1, and what is being done; may raise to cancel."""


@dataclasses.dataclass
class Written:
    """The new graph and what is in 4 bits in it."""

    model: onnx.ModelProto
    touched: list[str]
    left: dict[str, str]
    quantized_elements: int
    total_elements: int

    @property
    def share(self) -> float:
        """Share of the model's floating-point numbers that are now 4-bit integers."""
        return self.quantized_elements / self.total_elements if self.total_elements else 0.0


@dataclasses.dataclass
class Moments:
    """Σ x xᵀ over the vectors an activation held, (inner, inner), and how many they were."""

    total: np.ndarray
    vectors: int = 0

    def add(self, value: np.ndarray) -> None:
        rows = value.reshape(-1, len(self.total)).astype(np.float32)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # numbers that are not finite are looked for where it is used
            self.total += rows.T @ rows
        self.vectors += len(rows)


def second_moments(
    plan: Plan,
    sets: Sequence[Sequence[Batch]],
    threads: int,
    consume: Callable[[str, list[Moments]], None],
    watch: Watch,
) -> None:
    """Give `consume` each activation's name with its moments over each set of batches, one activation at a time."""
    graph = Graph(plan.model)
    widths = {one.activation: len(_matrix(graph, one)) for one in plan.products}
    groups: list[list[str]] = [[]]
    room = MOMENTS_BYTES
    for name, width in widths.items():
        needed = 8 * width * width * len(sets)
        if groups[-1] and (room < needed or len(groups[-1]) == VALUES_AT_ONCE):
            groups.append([])
            room = MOMENTS_BYTES
        groups[-1].append(name)
        room -= needed
    for done, names in enumerate(groups):
        session = observed_session(plan.model, names, threads)
        wanted = [value.name for value in session.get_inputs()]
        found = {name: [Moments(np.zeros((widths[name], widths[name]))) for _ in sets] for name in names}
        for index, batches in enumerate(sets):
            for batch in batches:
                watch(done / len(groups), "watching the inputs of layers")
                values = session.run(names, {name: batch[name] for name in wanted})
                for name, value in zip(names, values, strict=True):
                    found[name][index].add(value)
        for name in names:
            consume(name, found.pop(name))


def choose_blocks(
    plan: Plan,
    method: Method,
    block: int,
    symmetric: bool,
    learn: Sequence[Batch],
    judge: Sequence[Batch],
    threads: int,
    watch: Watch,
) -> dict[Product, Blocks]:
    """The 4-bit numbers of every product. The batches are only looked at for "gptq".

    GPTQ learns from the first and is taken for a layer where its outputs on the second are nearer than those of the
    scales of least error. Raises ValueError where a layer's inputs are not finite in either.
    """
    graph = Graph(plan.model)
    chosen: dict[Product, Blocks] = {}

    def tell(what: str) -> None:
        watch(len(chosen) / len(plan.products), what)

    if method != "gptq":
        for one in plan.products:
            tell(f"rounding {one.node}")
            matrix = _matrix(graph, one)
            chosen[one] = (rounded if method == "rtn" else least_error)(
                matrix, _block_for(len(matrix), block), symmetric
            )
        return chosen

    def consume(name: str, moments: list[Moments]) -> None:
        for one in plan.products:
            if one.activation == name:
                tell(f"rounding {one.node}")
                if not all(np.isfinite(seen.total).all() for seen in moments):
                    raise ValueError(f"the inputs of {one.node} are not all finite on the calibration data")
                chosen[one] = _best(_matrix(graph, one), moments[0], moments[1].total, block, symmetric)

    second_moments(plan, (learn, judge), threads, consume, lambda share, what: tell(what))
    return chosen


def _best(matrix: np.ndarray, seen: Moments, unseen: np.ndarray, block: int, symmetric: bool) -> Blocks:
    size = _block_for(len(matrix), block)
    candidates = (
        compensated(matrix, seen.total, seen.vectors, size, symmetric),
        least_error(matrix, size, symmetric, np.diag(seen.total)),
        least_error(matrix, size, symmetric),
    )
    return min(candidates, key=lambda blocks: output_error(matrix, blocks, unseen))


def write_int4(
    plan: Plan,
    chosen: Mapping[Product, Blocks],
    form: Form,
    block: int,
    symmetric: bool,
    compute: Literal["auto", "float32", "int8"] = "auto",
    tables_by_error: bool = True,
) -> Written:
    """A new graph with these numbers, of IR version 10 or later, which knows 4-bit types.

    `compute`: what MatMulNBits multiplies in; "auto" is int8.
    """
    model = onnx.ModelProto()
    model.CopyFrom(plan.model)
    graph = Graph(model)
    writer = _Writer(graph, form, COMPUTE_LEVELS["int8" if compute == "auto" else compute])
    nodes = {node.name: node for node in graph.proto.node}
    for one, blocks in chosen.items():
        writer.product(nodes[one.node], one, blocks)
    for table in plan.tables:
        values = graph.constant(table.weight)
        assert values is not None
        size = _block_for(values.shape[1], block)
        method = least_error if tables_by_error else rounded
        writer.table(nodes[table.node], table, method(np.ascontiguousarray(values.T), size, symmetric))
    if form == "matmul-nbits":
        graph.require_opset("com.microsoft", 1)
    model.ir_version = max(model.ir_version, FOUR_BIT_IR)
    del graph.proto.value_info[:]
    graph.reindex()
    graph.sort()
    touched = [one.node for one in chosen] + [table.node for table in plan.tables]
    return Written(model, touched, dict(plan.left), sum(writer.elements.values()), plan.total_elements)


class _Writer:
    """Puts quantized weights in the place of float ones; weights that several nodes share are written once."""

    def __init__(self, graph: Graph, form: Form, level: int) -> None:
        self.graph, self.form, self.level = graph, form, level
        self.elements: dict[str, int] = {}
        self._packed: dict[tuple[str, bool, float], list[str]] = {}
        self._plain: dict[tuple[str, bool, float], str] = {}

    def product(self, node: onnx.NodeProto, one: Product, blocks: Blocks) -> None:
        inner, outputs = blocks.codes.shape
        key = (one.weight, one.transposed, one.factor)
        self.elements[one.weight] = inner * outputs
        new: list[onnx.NodeProto] = []
        if self.form == "matmul-nbits":
            if key not in self._packed:
                self._packed[key] = self._constants(one.weight, blocks.packed())
            inputs = [one.activation, *self._packed[key]]
            if one.bias:
                inputs += [""] * (5 - len(inputs)) + [one.bias]
            new.append(
                helper.make_node(
                    "MatMulNBits",
                    inputs,
                    [node.output[0]],
                    node.name,
                    domain="com.microsoft",
                    K=inner,
                    N=outputs,
                    bits=4,
                    block_size=blocks.block,
                    accuracy_level=self.level,
                )
            )
        else:
            if key not in self._plain:
                codes, zeros = blocks.typed()
                real = self.graph.unique(f"{one.weight}_real")
                dequantize = self.graph.unique(f"{node.name}/dequantize")
                names = self._constants(one.weight, (codes, blocks.scales, zeros))
                new.append(
                    helper.make_node("DequantizeLinear", names, [real], dequantize, axis=0, block_size=blocks.block)
                )
                self._plain[key] = real
            output = self.graph.unique(f"{node.output[0]}_product") if one.bias else node.output[0]
            new.append(helper.make_node("MatMul", [one.activation, self._plain[key]], [output], node.name))
            if one.bias:
                name = self.graph.unique(f"{node.name}/bias")
                new.append(helper.make_node("Add", [output, one.bias], [node.output[0]], name))
        self._replace(node, new)

    def table(self, node: onnx.NodeProto, table: Table, blocks: Blocks) -> None:
        """Rows in blocks along the row: what four_bits calls (inner, outputs), turned."""
        width, rows = blocks.codes.shape
        key = (table.weight, False, 0.0)
        self.elements[table.weight] = width * rows
        if key not in self._packed:
            codes, zeros = blocks.typed()
            parts = (codes.T, blocks.scales.T, None if zeros is None else zeros.T)
            self._packed[key] = self._constants(table.weight, parts)
        codes_name, *rest = self._packed[key]
        new = helper.make_node(
            "GatherBlockQuantized",
            [codes_name, node.input[1], *rest],
            [node.output[0]],
            node.name,
            domain="com.microsoft",
            gather_axis=0,
            quantize_axis=1,
            block_size=blocks.block,
        )
        self._replace(node, [new])

    def _constants(self, base: str, arrays: Iterable[np.ndarray | None]) -> list[str]:
        names = []
        for part, array in zip(("codes", "scales", "zeros"), arrays, strict=True):
            if array is not None:
                name = self.graph.unique(f"{base}_{part}")
                self.graph.proto.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
                names.append(name)
        return names

    def _replace(self, old: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
        for node in new:
            node.metadata_props.extend(old.metadata_props)
        self.graph.proto.node.remove(old)
        self.graph.proto.node.extend(new)


def _block_for(inner: int, block: int) -> int:
    """The block, halved while half of it would still hold every weight of an output."""
    while block // 2 >= max(inner, LEAST_BLOCK):
        block //= 2
    return block


def _matrix(graph: Graph, one: Product) -> np.ndarray:
    weights = graph.constant(one.weight)
    assert weights is not None
    turned = weights.T if one.transposed else weights
    return np.ascontiguousarray(turned * np.float32(one.factor))
