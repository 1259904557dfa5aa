"""What the inputs of an ONNX graph are, and how some are made up where there is no data.

Axes: an axis is fixed, open, or "batch" (the one along which samples lie). The batch axis is an open axis 0 whose
name does not speak of something else, and every axis of the same name; other open axes are asked for in one
sentence unless the user gave them (`shapes`), because any size guessed here would make the figures arbitrary.

Values: integers stay within the embedding tables they index, masks are ones, states are zeros, the rest is
seeded Gaussian noise. Good enough to time and to compare, never to judge.
"""

import re
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, ValueInfoProto

from ..protocol import TensorSpec
from .model import BATCH, Arrays, ModelError, batch_axis

NOT_A_BATCH = re.compile(r"seq|len|time|frame|token|height|width|step", re.IGNORECASE)
"""An open axis 0 with such a name holds one sample's parts, not samples."""

MASK = re.compile(r"mask", re.IGNORECASE)
STATE = re.compile(
    r"(^|[_./])(h|c|h_?n|c_?n|h_?0|c_?0|state\d*|hidden.*|cell.*|cache.*|past.*|context.*|prev.*)$", re.IGNORECASE
)
"""Names of inputs that carry what an earlier call gave back: zeros at the start."""

PASSES_ON = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Clip", "Slice"}
"""Nodes whose output holds the same integers as their first input."""

Bounds = dict[str, int]
"""Integer input → how many values it may take: 0 … n-1."""


def tensor_inputs(model: ModelProto) -> tuple[ValueInfoProto, ...]:
    """The graph's inputs that a caller must give: initializers left out. Raises ModelError for sequences and maps."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    values = tuple(value for value in model.graph.input if value.name not in constants)
    for value in values:
        if not value.type.HasField("tensor_type"):
            kind = (value.type.WhichOneof("value") or "value of no type").replace("_type", "")
            raise ModelError(f"The input {value.name} is a {kind}, not a tensor: such a graph cannot be measured.")
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            raise ModelError(
                f"The input {value.name} takes strings: put the text processing before the model and leave it out."
            )
    if not values:
        raise ModelError("The graph has no inputs: it always gives the same answer.")
    return values


def input_specs(values: tuple[ValueInfoProto, ...], shapes: dict[str, list[int | str]]) -> tuple[TensorSpec, ...]:
    """The inputs with every axis a size or "batch". Raises ModelError asking for `shapes` where an axis is open."""
    names = [value.name for value in values]
    for name in shapes:
        if name not in names:
            raise ModelError(f"shapes names {name!r}, which is no input; the inputs are {', '.join(names)}.")
    declared = {value.name: _declared(value) for value in values}
    known: dict[str, int | str] = {}
    resolved: dict[str, list[int | str]] = {}
    for name, wanted in shapes.items():
        resolved[name] = _as_given(name, wanted, declared[name])
        known.update(
            {axis: size for axis, size in zip(declared[name], resolved[name], strict=True) if isinstance(axis, str)}
        )
    if BATCH not in known.values():
        leading = [
            axes[0] for name, axes in declared.items() if name not in shapes and axes and not isinstance(axes[0], int)
        ]
        known.update({axis: BATCH for axis in leading[:1] if isinstance(axis, str) and not NOT_A_BATCH.search(axis)})
        known.update(
            {
                axis: BATCH
                for axis in leading
                if isinstance(axis, str) and re.fullmatch(r"(?i)n|b|bs|batch.*|none|unk.*", axis)
            }
        )
    for name, axes in declared.items():
        if name not in resolved:
            resolved[name] = [_size(axis, position, known) for position, axis in enumerate(axes)]
    _ask_for_open_axes(resolved)
    dtypes = {
        value.name: str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)) for value in values
    }
    return tuple(TensorSpec(name=name, dtype=dtypes[name], shape=tuple(resolved[name])) for name in names)


def value_bounds(model: ModelProto) -> Bounds:
    """For each integer input that indexes a table: the table's length. Follows nodes that only reshape or cast."""
    bounds: Bounds = {}
    tables = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    tables[node.output[0]] = tuple(attribute.t.dims)
    comes_from = {value.name: value.name for value in model.graph.input if value.name not in tables}
    for node in model.graph.node:  # in topological order, as ONNX demands
        if node.op_type in PASSES_ON and node.input and node.input[0] in comes_from:
            comes_from[node.output[0]] = comes_from[node.input[0]]
        for index, table, axis in _lookups(node):
            if index in comes_from and table in tables and len(tables[table]) > axis:
                name = comes_from[index]
                bounds[name] = min(bounds.get(name, 2**31), tables[table][axis])
    return bounds


def made_up(specs: tuple[TensorSpec, ...], bounds: Bounds, batch_size: int, seed: int) -> Arrays:
    """Inputs of one call with `batch_size` samples: the same for the same seed."""
    random = np.random.default_rng([seed, batch_size])
    arrays = {}
    for spec in specs:
        shape = tuple(batch_size if axis == BATCH else int(axis or 1) for axis in spec.shape)
        arrays[spec.name] = _values(spec, shape, bounds.get(spec.name), random)
    return arrays


def fixed_batch_of(specs: tuple[TensorSpec, ...]) -> int | None:
    """The one batch size of a graph without an open batch axis: its inputs' common first size, else 1. None: open."""
    if any(batch_axis(spec) is not None for spec in specs):
        return None
    firsts = {int(spec.shape[0] or 1) for spec in specs if spec.shape}
    return firsts.pop() if len(firsts) == 1 else 1


def _values(spec: TensorSpec, shape: tuple[int, ...], bound: int | None, random: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b" or MASK.search(spec.name):
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        if bound is not None:
            return random.integers(0, max(1, min(bound, np.iinfo(dtype).max)), shape).astype(dtype)
        if dtype.itemsize == 1:  # pixels or bytes
            return random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)
        return np.ones(shape, dtype)
    if STATE.search(spec.name):
        return np.zeros(shape, dtype)
    return random.standard_normal(shape).astype(dtype)


def _declared(value: ValueInfoProto) -> list[int | str | None]:
    """Axes as the graph declares them: a size, the name of an open axis, or None for an open axis without a name."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise ModelError(f"The input {value.name} declares no shape at all: export the model with its input shapes.")
    axes: list[int | str | None] = []
    for dim in kind.shape.dim:
        axes.append(dim.dim_value if dim.dim_value > 0 else dim.dim_param or None)
    return axes


def _as_given(name: str, wanted: list[int | str], declared: list[int | str | None]) -> list[int | str]:
    """What the user gave for one input; the graph's own name of a batch axis stands for "batch"."""
    if len(wanted) != len(declared):
        raise ModelError(f"shapes gives {name} {len(wanted)} axes; the graph declares {len(declared)}.")
    wanted = [
        BATCH if isinstance(size, str) and size == axis and not NOT_A_BATCH.search(size) else size
        for size, axis in zip(wanted, declared, strict=True)
    ]
    for position, (size, axis) in enumerate(zip(wanted, declared, strict=True)):
        if (isinstance(size, str) and size != BATCH) or (isinstance(size, int) and size < 1):
            raise ModelError(
                f'shapes gives axis {position} of {name} as {size!r}: it must be a size, or "batch" where samples lie.'
            )
        if isinstance(axis, int) and size != axis:
            raise ModelError(f"shapes gives axis {position} of {name} as {size!r}; the graph fixes it to {axis}.")
    if wanted.count(BATCH) > 1:
        raise ModelError(f'shapes gives {name} two axes called "batch".')
    return wanted


def _size(axis: int | str | None, position: int, known: dict[str, int | str]) -> int | str:
    if isinstance(axis, int):
        return axis
    if axis is None:
        return BATCH if position == 0 else "?"
    return known.get(axis, "?")


def _ask_for_open_axes(resolved: dict[str, list[int | str]]) -> None:
    lines = []
    for name, axes in resolved.items():
        positions = [str(position) for position, axis in enumerate(axes) if axis == "?"]
        if positions:
            lines.append(f"{name} (axis {' and '.join(positions)})")
    if lines:
        example = ", ".join(
            f"{_key(name)} = [{', '.join(chr(34) + BATCH + chr(34) if axis == BATCH else str(axis) for axis in axes)}]"
            for name, axes in resolved.items()
            if "?" in axes
        )
        raise ModelError(
            f"The graph leaves axes open beside the batch: {', '.join(lines)}. Give them as shapes = {{ {example} }}, "
            'each ? a size ("batch" for one that grows with the batch).'
        )


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else '"' + name + '"'


def _lookups(node: NodeProto) -> Iterator[tuple[str, str, int]]:
    """(indices, table, axis) of every table a node looks up."""
    if node.op_type == "Gather":
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if axis >= 0:
            yield node.input[1], node.input[0], axis
    elif node.op_type in ("EmbedLayerNormalization", "QEmbedLayerNormalization"):
        for index, table in ((0, 2), (1, 4)):
            if len(node.input) > table and node.input[index] and node.input[table]:
                yield node.input[index], node.input[table], 0
