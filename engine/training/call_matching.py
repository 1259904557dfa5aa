"""Which call of a PyTorch module is which node of its ONNX graph, so that training rounds exactly what is deployed.

The plan of quantization is made on the graph, where it is known what the runtime fuses. Here it is carried back: the
module and the graph run on the same inputs, and values that are equal are the same value. So nothing depends on how
the user wrote the network (layers, functions or operators), and what cannot be found again is named with the reason.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .fake_quantization import ActivationGrid, CallKey, Calls, Site, WeightGrid

if TYPE_CHECKING:
    from ..graphs.calibration import Range
    from ..graphs.onnx_graph import Graph
    from ..graphs.placement import Anchor, Plan

SAME = 1e-3
"""Two values are the same if no number differs by more than this share of the largest: float kernels vary a little."""

FOLDED = 1e-5
"""Relative difference that folding a factor into weights may make."""

RECURRENT_LIMITS = {True: 63, False: 127}
"""Largest integer in the matrices of an LSTM, which are always 7 or 8 bits: by whether the target wants 7."""


@dataclasses.dataclass
class Call:
    """One call of a PyTorch function in a forward pass."""

    key: CallKey
    operands: dict[int, torch.Tensor]
    """The tensors among the flattened (args, kwargs), the very objects."""
    values: dict[int, np.ndarray]
    """What the float ones among them held at the time."""
    result: Any
    value: np.ndarray | None
    """What the result held, if it is a float tensor."""


@dataclasses.dataclass
class Matching:
    """Where to round in the module, and what of the graph it stands for."""

    sites: dict[CallKey, Site]
    grids: list[WeightGrid | ActivationGrid]
    weights: dict[str, tuple[int, str]]
    """Anchor → (grid, name of the parameter)."""
    ranges: dict[str, int]
    """Value of the graph → grid."""
    recurrent: dict[str, int]
    """Parameter of an LSTM → grid."""
    untrained: dict[str, str]
    """Quantized node → why its rounding, or a part of it, is not in the training."""
    folded: dict[str, int | None] = dataclasses.field(default_factory=dict)
    """Anchor whose weights in the graph are a multiple of its parameter → the parameter's axis of channels."""


def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
    """Every call of a PyTorch function on tensors in one forward pass of a module in eval mode."""
    calls = Calls(module)
    recorder = _Recorder(calls)
    try:
        with torch.no_grad(), recorder:
            module(*args, **kwargs)
    finally:
        calls.close()
    return recorder.calls


class _Recorder(TorchFunctionMode):
    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._keys = calls
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        key = self._keys.key(func)
        leaves = pytree.tree_leaves((args, kwargs))
        operands = {index: leaf for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
        values = {index: _held(leaf) for index, leaf in operands.items() if not isinstance(leaf, nn.Parameter)}
        result = func(*args, **kwargs)
        parts = result if isinstance(result, tuple | list) else (result,)
        if key[1] == "__get__" or not any(isinstance(part, torch.Tensor) for part in parts):
            return result  # a property, a size
        known = {index: value for index, value in values.items() if value is not None}
        held = _held(result) if isinstance(result, torch.Tensor) else None
        self.calls.append(Call(key, operands, known, result, held))
        return result


def _held(tensor: torch.Tensor) -> np.ndarray | None:
    """A copy of what a float tensor holds now: an operator may write into it later."""
    return tensor.detach().float().cpu().numpy().copy() if tensor.is_floating_point() else None


def fold_batch_norms(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Fold each batch normalisation that alone reads a convolution or linear layer into it, as the graph will have it.

    Trained apart, a weight's levels would be those before the folding: with one scale for a whole weight they are
    others (Nagel et al., "A White Paper on Neural Network Quantization", 2021, section 5). Gives the layers' names.
    """
    calls = record(module, args, kwargs)
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    layers = dict(module.named_modules())
    readers = Counter(id(tensor) for call in calls for tensor in {id(t): t for t in call.operands.values()}.values())
    uses = Counter(call.key[0] for call in calls if call.key[1] in ("batch_norm", "linear") or "conv" in call.key[1])
    folded = []
    for call in calls:
        path = call.key[0]
        norm = layers.get(path)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or call.key[1] != "batch_norm" or uses[path] != 1:
            continue
        made = next((one for one in calls if one.result is call.operands.get(0)), None)
        if made is None or norm.running_var is None or readers[id(made.result)] != 1 or uses[made.key[0]] != 1:
            continue
        before = layers[made.key[0]]
        if type(before) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear) or len(names[id(before.weight)]) > 1:
            continue  # not one that folds, or tied to another layer, which has no such normalisation
        fuse: Any = fuse_linear_bn_eval if type(before) is nn.Linear else fuse_conv_bn_eval
        fused = fuse(before, norm)
        _put(module, made.key[0], fused)
        _put(module, path, nn.Identity())
        folded.append(made.key[0])
    return folded


def _put(module: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, layer.train(module.training))


def match(
    module: nn.Module,
    calls: Sequence[Call],
    graph: Graph,
    plan: Plan,
    ranges: Mapping[str, Range],
    observed: Mapping[str, np.ndarray],
    *,
    limit: int,
    per_channel: bool,
    symmetric: bool,
    recurrent_limit: int | None = None,
) -> Matching:
    """Carry the plan of the graph back to the module.

    `observed`: every value of `plan.values` and every anchor's activation, for the inputs of `calls`. `limit`: the
    largest integer of a weight; `recurrent_limit` that of LSTM matrices, None where those stay in float.
    """
    found = Matching({}, [], {}, {}, {}, {})
    maker = _Matcher(module, calls, graph, plan, ranges, observed, found)
    maker.results(symmetric)
    maker.weights(limit, per_channel, symmetric)
    if recurrent_limit is not None:
        maker.recurrent(recurrent_limit, per_channel)
    maker.name_the_rest()
    return found


class _Matcher:
    def __init__(
        self,
        module: nn.Module,
        calls: Sequence[Call],
        graph: Graph,
        plan: Plan,
        ranges: Mapping[str, Range],
        observed: Mapping[str, np.ndarray],
        found: Matching,
    ) -> None:
        self.calls, self.graph, self.plan, self.ranges, self.observed = calls, graph, plan, ranges, observed
        self.parameters = dict(module.named_parameters())
        self.found = found
        self.per_channel = True
        self._by_parameter: dict[str, int] = {}
        self._made: set[str] = set()
        """Values that are rounded where they are made."""

    def results(self, symmetric: bool) -> None:
        """Values that exist only as integers are rounded where they are made, for all who read them."""
        for value in sorted(self.plan.integer_values - set(self.plan.same_scale)):
            wanted = self.observed[value]
            distance, call = min(
                ((_distance(wanted, call.value), index) for index, call in enumerate(self.calls)), default=(np.inf, 0)
            )
            if distance <= SAME and self._site(self.calls[call].key).result is None:
                self._change(self.calls[call].key, result=self._range_grid(value, symmetric))
                self._made.add(value)

    def weights(self, limit: int, per_channel: bool, symmetric: bool) -> None:
        """Weights and inputs are rounded at the calls that multiply them."""
        self.per_channel = per_channel
        owners: dict[str, list[Anchor]] = {}
        axes: dict[str, int | None] = {}
        for anchor in self.plan.anchors.values():
            owner = self._owner(anchor)
            if owner is None:
                self.found.untrained[anchor.name] = "its weights are computed from the module's own in the graph"
            else:
                owners.setdefault(owner[0], []).append(anchor)
                axes[owner[0]] = owner[1] if per_channel else None
                if folded_factor(self.parameters[owner[0]], self.graph.constant(anchor.weight), owner[1]) is not None:
                    self.found.folded[anchor.name] = owner[1]
        for name, anchors in owners.items():
            parameter = self.parameters[name]
            waiting = list(anchors)
            for call in self.calls:
                for position, operand in call.operands.items():
                    if operand is parameter and waiting:
                        self._multiplication(call, position, name, waiting, limit, axes[name], symmetric)
            for anchor in waiting:
                self.found.untrained[anchor.name] = "no call in the module's forward takes its weights as they are"

    def _multiplication(
        self, call: Call, position: int, name: str, waiting: list[Anchor], limit: int, axis: int | None, symmetric: bool
    ) -> None:
        """One call that takes a parameter: find which of the anchors it is, and round what it reads."""
        candidates = [
            (_distance(self.observed[anchor.activation], value), anchor_index, operand_index)
            for anchor_index, anchor in enumerate(waiting)
            for operand_index, value in call.values.items()
        ]
        distance, index, operand = min(candidates, default=(np.inf, 0, -1))
        if distance > SAME and len(waiting) > 1:
            return
        anchor = waiting.pop(index if distance <= SAME else 0)
        operands = {position: self._weight_grid(name, limit, axis)}
        self.found.weights[anchor.name] = (operands[position], name)
        root = self.plan.same_scale.get(anchor.activation, anchor.activation)
        if distance > SAME and root not in self._made:
            self.found.untrained[anchor.name] = "its input is hidden inside a larger function: only its weights were"
        elif root not in self._made:
            grid = self._range_grid(root, symmetric)
            same = call.operands[operand]
            operands |= {index: grid for index, tensor in call.operands.items() if tensor is same}
        self._change(call.key, operands=operands)

    def recurrent(self, limit: int, per_channel: bool) -> None:
        """Matrices of LSTM layers; their scales follow from the largest weight, as the kernel's file is written."""
        for call in self.calls:
            if call.key[1] != "lstm":
                continue
            for position, operand in call.operands.items():
                name = next((name for name, one in self.parameters.items() if one is operand), None)
                if name is not None and operand.ndim == 2:
                    self.found.grids.append(WeightGrid(operand, limit, 0 if per_channel else None, learned=False))
                    self.found.recurrent[name] = len(self.found.grids) - 1
                    self._change(call.key, operands={position: self.found.recurrent[name]})

    def name_the_rest(self) -> None:
        """Values that are rounded in the graph and nowhere in the module: their ranges stay those of calibration."""
        for value in self.plan.values:
            maker = self.graph.producers.get(value)
            if value not in self.found.ranges and maker is not None:
                names = [name for name, output in self.plan.carriers.items() if output == value]
                names += [anchor.name for anchor in self.plan.anchors.values() if anchor.output == value]
                reason = "its result is never a value of its own in the module's forward"
                self.found.untrained |= {name: reason for name in names if name not in self.found.untrained}

    def _owner(self, anchor: Anchor) -> tuple[str, int | None] | None:
        """(parameter that holds an anchor's weights, its axis of output channels)."""
        weights = self.graph.constant(anchor.weight)
        assert weights is not None
        named = [anchor.weight] if anchor.weight in self.parameters else []
        for name in (*named, *self.parameters):
            held = self.parameters[name].detach().float().cpu().numpy()
            if held.shape == weights.shape and np.array_equal(held, weights):
                return name, anchor.axis
            if held.ndim == 2 and held.T.shape == weights.shape and np.array_equal(held.T, weights):
                return name, None if anchor.axis is None else 1 - anchor.axis
        for name, parameter in self.parameters.items():
            turned = parameter.ndim == 2 and anchor.op_type != "Conv"
            for axis in {anchor.axis, 1 - anchor.axis if turned and anchor.axis is not None else anchor.axis}:
                factor = folded_factor(parameter, weights, axis)
                if factor is not None and (self.per_channel or factor.size == 1):
                    return name, axis
        return None

    def _weight_grid(self, name: str, limit: int, axis: int | None) -> int:
        if name not in self._by_parameter:
            self.found.grids.append(WeightGrid(self.parameters[name], limit, axis))
            self._by_parameter[name] = len(self.found.grids) - 1
        return self._by_parameter[name]

    def _range_grid(self, value: str, symmetric: bool) -> int:
        from ..graphs.static_quantization import within_bounds

        if value not in self.found.ranges:
            seen = within_bounds(self.plan, value, self.ranges[value])
            grid = ActivationGrid(seen.low, seen.high, symmetric, self.plan.upper_bound.get(value))
            self.found.grids.append(grid)
            self.found.ranges[value] = len(self.found.grids) - 1
        return self.found.ranges[value]

    def _site(self, key: CallKey) -> Site:
        return self.found.sites.get(key, Site({}))

    def _change(self, key: CallKey, operands: Mapping[int, int] | None = None, result: int | None = None) -> None:
        before = self._site(key)
        result = before.result if result is None else result
        self.found.sites[key] = Site({**before.operands, **(operands or {})}, result)


def folded_factor(parameter: torch.Tensor, weights: np.ndarray | None, axis: int | None) -> np.ndarray | None:
    """What a parameter was multiplied by to give the weights: one number, or one for each channel along its axis.

    None where it is no such multiple, or the very same. `weights` may be the parameter turned.
    """
    held = parameter.detach().float().cpu().numpy()
    if weights is None or held.ndim < 2:
        return None
    if held.shape != weights.shape or (held.ndim == 2 and not _is_multiple(held, weights, axis)):
        weights = weights.T if held.ndim == 2 else weights
    if held.shape != weights.shape or np.array_equal(held, weights) or not _is_multiple(held, weights, axis):
        return None
    factors = _factors(held, weights, axis)
    return factors.mean(keepdims=True) if np.ptp(factors) <= FOLDED * np.abs(factors).max() else factors


def _is_multiple(held: np.ndarray, weights: np.ndarray, axis: int | None) -> bool:
    if held.shape != weights.shape:
        return False
    factors = _factors(held, weights, axis)
    shape = [1] * held.ndim
    if axis is not None:
        shape[axis] = -1
    return bool(factors.all()) and np.allclose(
        held * factors.reshape(shape), weights, rtol=FOLDED, atol=FOLDED * float(np.abs(weights).max(initial=0.0))
    )


def _factors(held: np.ndarray, weights: np.ndarray, axis: int | None) -> np.ndarray:
    """The least-squares factor of each channel (`axis` None: of the whole); 0 where there are no weights to tell."""
    others = tuple(index for index in range(held.ndim) if index != axis)
    power = (held * held).sum(axis=others, dtype=np.float64)
    products = (held * weights).sum(axis=others, dtype=np.float64)
    return np.atleast_1d(np.divide(products, power, out=np.zeros_like(products), where=power > 0))


def _distance(wanted: np.ndarray, given: np.ndarray | None) -> float:
    """Largest difference as a share of the largest number; infinite for another number of elements."""
    if given is None or given.size != wanted.size or not wanted.size:
        return np.inf
    wanted, given = wanted.reshape(-1), given.reshape(-1)
    if not (np.isfinite(wanted).all() and np.isfinite(given).all()):
        return np.inf
    return float(np.abs(wanted - given).max() / max(float(np.abs(wanted).max()), 1e-12))
