"""A PyTorch module as an ONNX graph, with the batch axis open and the user's names on everything.

Two exporters are tried in this order: `torch.export` (dynamo), then TorchScript, which follows one example but
copes with modules the first cannot trace. What one may rely on afterwards: inputs and outputs carry the names and
open axes that were asked for, constants are folded, equal weights are stored once, and nodes are called after
the layer they came from (`blocks.0.conv1/Conv`). Nothing is verified here: see `verification.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import DeduplicateInitializersPass
from torch.utils import _pytree as pytree

from .onnx_graph import reads, subgraphs_of

DEFAULT_OPSET = 20
"""New enough for Gelu and LayerNormalization as one node, old enough for every runtime we name."""

TRACE_BATCH = 2
"""Batch size to trace with: 0 and 1 are specialised by torch.export, and would close the axis."""


FOLD_ALL: dict[str, Any] = {"input_size_limit": 1 << 30, "output_size_limit": 1 << 30}
"""Fold weights too: recurrent layers come as dozens of Slices of their weights. The default limit is 8 KiB."""


class ExportFailed(Exception):
    """No exporter could do it; the text is one sentence that names the operator or layer where it is known."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """A graph and how it was made."""

    model: onnx.ModelProto
    exporter: str
    """"torch.export" or "TorchScript"."""
    fallback_reason: str | None
    """Why the first exporter could not do it."""
    nodes_before_folding: int
    log: str
    """What the exporters printed."""


def export_module(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    input_names: Sequence[str],
    output_names: Sequence[str],
    open_axes: Mapping[str, Mapping[int, str]],
    opset: int = DEFAULT_OPSET,
) -> Exported:
    """Export `module(*args, **kwargs)`.

    The example's tensors, in the order in which a reader meets them, are the inputs `input_names`; the tensors
    among the outputs, in the same sense, are `output_names`. `open_axes`: input name → {axis: name of the size}.
    Axes with the same name have the same size. Raises ExportFailed.
    """
    tensors, wrapped = _flat_module(module, args, kwargs)
    if len(tensors) != len(input_names):
        raise ExportFailed(f"The example input holds {len(tensors)} tensors, but the model names {len(input_names)}.")
    captured = io.StringIO()
    reasons: list[str] = []
    for exporter, function in (("torch.export", _with_torch_export), ("TorchScript", _with_torchscript)):
        try:
            with _captured(captured), torch.no_grad():
                raw = function(wrapped, tensors, input_names, output_names, open_axes, opset)
                model, before = _finish(raw, input_names, output_names)
        except Exception as error:
            # an exporter may raise anything, from its own errors to those of the user's forward
            captured.write(f"\n{exporter} failed: {type(error).__name__}: {error}\n")
            reasons.append(f"{exporter}: {explain_failure(error)}")
            continue
        log = "\n".join(line for line in captured.getvalue().splitlines() if line.strip())
        return Exported(model, exporter, reasons[0] if reasons else None, before, log)
    raise ExportFailed(f"PyTorch could not export this model. {'; '.join(reasons)}.") from None


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested tuples, lists, dictionaries and dataclasses, in reading order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for part in value for tensor in tensors_of(part)]


def explain_failure(error: BaseException) -> str:
    """The part of an exporter's error that a user can act on: the operator and the layer, else its first line."""
    chain: BaseException | None = error
    text = ""
    while chain is not None:
        text += f"{chain}\n"
        chain = chain.__cause__ or chain.__context__
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    operator = re.search(
        r"No ONNX function found for <OpOverload\(op='([\w.]+)'|operator '?([\w:]+)'? to ONNX"
        r"|[Uu]nsupported[^\n]*?(aten[:.]+\w+)|Exporting the operator '([\w:]+)'",
        text,
    )
    layer = re.search(r"L\['self'\]((?:\._modules\['[\w.]+'\])+)", text)
    parts = re.findall(r"'([\w.]+)'\]", layer.group(1)) if layer else []
    where = f" in layer {'.'.join(parts)}" if parts else ""
    if operator:
        found = next(group for group in operator.groups() if group)
        return f"the operator {found} has no ONNX form{where}"
    if "data-dependent" in text or "Could not guard" in text or "GuardOnDataDependentSymNode" in text:
        return f"its control flow depends on the values of a tensor{where}"
    root = error
    while (below := root.__cause__ or root.__context__) is not None:
        root = below
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    return f"{type(root).__name__}: {lines[0][:200] if lines else 'no message'}{where}".rstrip(".")


def _flat_module(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[torch.Tensor, ...], torch.nn.Module]:
    """The example's tensors, and a module that takes exactly these and gives a flat tuple of tensors.

    So exporters meet neither keyword arguments, dictionaries nor the user's own output classes.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    positions = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            filled = list(leaves)
            for index, tensor in zip(positions, tensors, strict=True):
                filled[index] = tensor
            call_args, call_kwargs = pytree.tree_unflatten(filled, spec)
            return tuple(tensors_of(self.module(*call_args, **call_kwargs)))

    return tuple(leaves[index] for index in positions), Flat().eval()


def _with_torch_export(
    module: torch.nn.Module,
    tensors: tuple[torch.Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    open_axes: Mapping[str, Mapping[int, str]],
    opset: int,
) -> onnx.ModelProto:
    shapes = tuple(dict(open_axes.get(name, {})) or None for name in input_names)
    program = torch.onnx.export(
        module,
        tensors,
        input_names=list(input_names),
        output_names=list(output_names),
        opset_version=opset,
        dynamo=True,
        dynamic_shapes=(shapes,),
        optimize=False,  # done in _finish, so that what was folded can be counted
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _with_torchscript(
    module: torch.nn.Module,
    tensors: tuple[torch.Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    open_axes: Mapping[str, Mapping[int, str]],
    opset: int,
) -> onnx.ModelProto:
    axes = {name: dict(axes) for name, axes in open_axes.items() if axes}
    batch = next((names[0] for names in open_axes.values() if 0 in names), None)
    if batch is not None:
        axes |= {name: {0: batch} for name in output_names}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        torch.onnx.export(
            module,
            tensors,
            str(path),
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=opset,
            dynamo=False,
            dynamic_axes=axes,
            do_constant_folding=False,
        )
        return onnx.load(path)


def _finish(
    raw: onnx.ModelProto, input_names: Sequence[str], output_names: Sequence[str]
) -> tuple[onnx.ModelProto, int]:
    """Fold constants, store equal weights once, name nodes after their layers, drop the exporter's source paths."""
    before = len(raw.graph.node)
    model = _folded(raw, **FOLD_ALL)
    if weight_bytes(model) > 1.02 * weight_bytes(raw):
        model = _folded(raw)  # folding made copies (a tied embedding transposed, an expanded constant)
    got = [value.name for value in model.graph.output]
    if len(got) != len(output_names):
        raise ExportFailed(f"the graph has {len(got)} outputs, the module {len(output_names)}")
    kept = [value.name for value in model.graph.input]
    missing = [name for name in input_names if name not in kept]
    if missing:
        raise ExportFailed(f"the exporter dropped the input {missing[0]}")
    _name_after_layers(model.graph)
    return model, before


def _folded(raw: onnx.ModelProto, **limits: Any) -> onnx.ModelProto:
    graph = ir.from_proto(raw)
    onnxscript.optimizer.optimize(graph, **limits)
    DeduplicateInitializersPass()(graph)
    return ir.to_proto(graph)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers."""
    return sum(tensor.ByteSize() for tensor in model.graph.initializer)


def _name_after_layers(graph: onnx.GraphProto) -> None:
    """`node_conv2d_3` → `blocks.0.conv1/Conv`.

    From the weight's name, else from the module path the exporter notes on each node.
    """
    _drop_prefix(graph)
    seen: Counter[str] = Counter()
    readers = Counter(name for node in graph.node for name in reads(node))
    for node in graph.node:
        path = _layer_of(node, readers)
        name = f"{path}/{node.op_type}" if path else node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        del node.metadata_props[:]
        if path:
            node.metadata_props.append(onnx.StringStringEntryProto(key="layer", value=path))


def _drop_prefix(graph: onnx.GraphProto) -> None:
    """Weights get the names the user's module has for them, wherever nothing else in the graph has that name."""
    outputs = {value.name for value in graph.output}
    weights = [tensor.name for tensor in graph.initializer if tensor.name not in outputs]
    taken = _names(graph)
    renamed: dict[str, str] = {}
    for name in weights:
        short = name.removeprefix("module.")
        if short not in taken:
            taken.add(short)
            renamed[name] = short
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    _rename_reads(graph, renamed)


def _names(graph: onnx.GraphProto) -> set[str]:
    """Every value's name, those in subgraphs included."""
    names = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        names.update(node.output)
        for inner in subgraphs_of(node):
            names |= _names(inner)
    return names


def _rename_reads(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Let nodes, and the results of subgraphs, read values by their new names."""
    for value in (*graph.value_info, *graph.output):
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        for inner in subgraphs_of(node):
            _rename_reads(inner, renamed)


def _layer_of(node: onnx.NodeProto, readers: Counter[str]) -> str:
    weight = node.input[1] if node.op_type in ("Conv", "ConvTranspose", "Gemm") else ""
    if weight.endswith(".weight") and readers[weight] == 1:
        return weight.removesuffix(".weight")  # a folded BatchNorm would give its own name
    noted = {entry.key: entry.value for entry in node.metadata_props}
    scopes = re.findall(r"'([^']*)'", noted.get("pkg.torch.onnx.name_scopes", ""))
    if len(scopes) >= 2:
        path = scopes[-2].removeprefix("module").lstrip(".")  # the last one is the operation itself
        return "" if path.startswith("_empty_nn_module_stack") else path
    # TorchScript calls nodes /module/blocks/blocks.0/conv1/Conv
    return ".".join(part.rpartition(".")[2] for part in node.name.split("/")[2:-1])


@contextlib.contextmanager
def _captured(text: io.StringIO) -> Iterator[None]:
    """What exporters print, warn and log goes to `text`: it belongs in the job's log, not on a terminal."""
    handler = logging.StreamHandler(text)
    # torch gives every logger of its own a handler that writes to standard error
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("torch", "onnxscript")]
    loggers = [logging.getLogger(name) for name in {"torch", "onnxscript", "onnx_ir", *names}]

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        text.write(f"{message}\n")

    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
        try:
            yield
        finally:
            for logger, handlers, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate


__all__ = ["DEFAULT_OPSET", "TRACE_BATCH", "ExportFailed", "Exported", "explain_failure", "export_module", "tensors_of"]
