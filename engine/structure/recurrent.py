"""Recurrent layers (LSTM, GRU, RNN): which layers read their hidden units, and how units are taken out.

Torch-Pruning does not follow them, so we find the readers by trying: change one hidden unit in the layer's output and
see which input columns of which later layer move. What moves is put back at the first reader, so nothing beyond it is
mistaken for one. Only if every unit arrives in columns of its own at linear or recurrent layers can units be removed.

One `nn.LSTM` is a stack of cells (layers × directions) of one common width: the same number of units goes from each,
though not the same units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..protocol import Left

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
"""Row blocks in the weights of a cell, by `RNNBase.mode`."""

PROBE = 1.0
"""How far a hidden unit is moved to see who reads it: as much as a unit can ever say."""


@dataclasses.dataclass
class RecurrentLayer:
    """One recurrent module and those that read it."""

    name: str
    layer: nn.RNNBase
    consumers: dict[nn.Module, dict[tuple[int, int], list[int]]]
    """Reader → (cell, unit) → its input columns."""

    @property
    def directions(self) -> int:
        return 2 if self.layer.bidirectional else 1

    @property
    def cells(self) -> int:
        return self.layer.num_layers * self.directions

    def suffix(self, cell: int) -> str:
        """What PyTorch appends to the names of this cell's weights."""
        level, direction = divmod(cell, self.directions)
        return f"l{level}{'_reverse' if direction else ''}"

    def importance(self, mass: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """(cells, units): the mass of the rows that make a unit, over all gates. `mass`: weight → its own shape."""
        gates, width = GATES[self.layer.mode], self.layer.hidden_size
        scores = torch.zeros(self.cells, width)
        for cell in range(self.cells):
            for kind in ("weight_ih", "weight_hh"):
                rows = mass(getattr(self.layer, f"{kind}_{self.suffix(cell)}")).sum(1)
                scores[cell] += rows.reshape(gates, width).sum(0).cpu()
        return scores

    @torch.no_grad()
    def remove(self, units: Sequence[Sequence[int]]) -> None:
        """Take units out: one list per cell, all of the same length."""
        layer, width, gates = self.layer, self.layer.hidden_size, GATES[self.layer.mode]
        kept = [[unit for unit in range(width) if unit not in set(units[cell])] for cell in range(self.cells)]
        for cell in range(self.cells):
            level = cell // self.directions
            rows = torch.tensor([gate * width + unit for gate in range(gates) for unit in kept[cell]])
            own = torch.tensor(kept[cell])
            below = [
                direction * width + unit
                for direction in range(self.directions)
                for unit in kept[(level - 1) * self.directions + direction]
            ]
            suffix = self.suffix(cell)
            _replace(layer, f"weight_ih_{suffix}", rows, torch.tensor(below) if level else None)
            _replace(layer, f"weight_hh_{suffix}", rows, own)
            if layer.bias:
                _replace(layer, f"bias_ih_{suffix}", rows, None)
                _replace(layer, f"bias_hh_{suffix}", rows, None)
        layer.hidden_size = len(kept[0])
        for consumer, columns in self.consumers.items():
            gone = {c for (cell, unit), found in columns.items() if unit in set(units[cell]) for c in found}
            _drop_columns(consumer, gone)
        self._renumber(kept)
        layer.flatten_parameters()

    def _renumber(self, kept: list[list[int]]) -> None:
        """The columns of the readers as they are counted now."""
        for consumer, columns in self.consumers.items():
            present = {c for (cell, unit), found in columns.items() if unit in kept[cell] for c in found}
            others = {c for found in columns.values() for c in found}
            total = _width_in(consumer) + len(others) - len(present)
            place, new = {}, 0
            for column in range(total):
                if column in others and column not in present:
                    continue
                place[column] = new
                new += 1
            self.consumers[consumer] = {
                (cell, kept[cell].index(unit)): [place[c] for c in found]
                for (cell, unit), found in columns.items()
                if unit in kept[cell]
            }

    @torch.no_grad()
    def silence(self, twin: nn.Module, units: Sequence[int]) -> None:
        """Zero everything that makes these units in a copy of the layer: then they are 0 at every step."""
        width = self.layer.hidden_size
        rows = [gate * width + unit for gate in range(GATES[self.layer.mode]) for unit in units]
        for name, parameter in twin.named_parameters():
            if name.startswith(("weight", "bias")):
                parameter[rows] = 0


def find_recurrent(
    module: nn.Module,
    call: Callable[[nn.Module], Any],
    left: list[Left],
    on_step: Callable[[int, int, str], None] = lambda done, total, layer: None,
) -> Iterator[RecurrentLayer]:
    """Every recurrent layer whose hidden units can be removed; the others go to `left` with the reason.

    Costs a forward pass for every unit of every cell; `on_step(done, total, layer)` is told before each of a layer's,
    and may raise to stop.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.RNNBase)}
    for name, layer in layers.items():
        if layer.proj_size:
            left.append(Left(name=name, reason="its hidden state goes through a projection of its own"))
            continue
        try:
            consumers = _consumers(module, name, layer, call, on_step)
        except _Unclear as unclear:
            left.append(Left(name=name, reason=str(unclear)))
            continue
        yield RecurrentLayer(name, layer, consumers)


class _Unclear(Exception):
    """The readers of a recurrent layer could not be found; the text is the reason."""


@torch.no_grad()
def _consumers(
    module: nn.Module,
    name: str,
    layer: nn.RNNBase,
    call: Callable[[nn.Module], Any],
    on_step: Callable[[int, int, str], None],
) -> dict[nn.Module, dict[tuple[int, int], list[int]]]:
    """Reader → (cell, unit) → columns. Raises _Unclear."""
    leaves = [m for m in module.modules() if m is not layer and any(True for _ in m.parameters(recurse=False))]
    recorded: dict[tuple[nn.Module, int], tuple[torch.Tensor, Any]] = {}
    made: list[Any] = []
    counts: dict[nn.Module, int] = {}
    moved: dict[nn.Module, set[int]] = {}
    probing = False

    def on_layer(_: nn.Module, __: Any, output: Any) -> None:
        made.append(output)

    def on_leaf(leaf: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        counts[leaf] = counts.get(leaf, 0) + 1
        key = (leaf, counts[leaf])
        given = inputs[0].data if isinstance(inputs[0], nn.utils.rnn.PackedSequence) else inputs[0]
        if not probing:
            recorded[key] = (given.clone(), pytree.tree_map_only(torch.Tensor, torch.clone, output))
            return output
        before, answer = recorded[key]
        if given.shape != before.shape or not torch.equal(given, before):
            columns = (given != before).reshape(-1, given.shape[-1]).any(0).nonzero().flatten().tolist()
            moved.setdefault(leaf, set()).update(columns)
            return answer  # nothing beyond the first reader shall move
        return output

    hooks = [layer.register_forward_hook(on_layer), *(leaf.register_forward_hook(on_leaf) for leaf in leaves)]
    consumers: dict[nn.Module, dict[tuple[int, int], list[int]]] = {}
    try:
        before = _tensors(call(module))
        if len(made) != 1:
            raise _Unclear(f"it is called {len(made)} times in one forward pass")
        hooks.pop(0).remove()
        probing = True
        directions = 2 if layer.bidirectional else 1
        for cell in range(layer.num_layers * directions):
            for unit in range(layer.hidden_size):
                on_step(cell * layer.hidden_size + unit, layer.num_layers * directions * layer.hidden_size, name)
                answer = _with_unit_moved(made[0], layer, cell, unit, directions)
                layer.forward = lambda *_, answer=answer, **__: answer
                counts.clear()
                moved.clear()
                if any(not torch.equal(a, b) for a, b in zip(before, _tensors(call(module)))):
                    raise _Unclear("its output reaches the model's output without a linear layer between")
                for leaf, touched in moved.items():
                    if not isinstance(leaf, (nn.Linear, nn.RNNBase)):
                        raise _Unclear(f"a {type(leaf).__name__} reads it, which cannot be made narrower here")
                    consumers.setdefault(leaf, {})[(cell, unit)] = sorted(touched)
    finally:
        layer.__dict__.pop("forward", None)
        for hook in hooks:
            hook.remove()
    for leaf, found in consumers.items():
        columns = [column for some in found.values() for column in some]
        if len(columns) != len(set(columns)):
            raise _Unclear(f"its units are mixed before the {type(leaf).__name__} that reads them")
    if not consumers:
        raise _Unclear("nothing reads it")
    return consumers


def _tensors(outputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def _with_unit_moved(output: Any, layer: nn.RNNBase, cell: int, unit: int, directions: int) -> Any:
    """The layer's recorded output with one unit of one cell moved by `PROBE`, wherever it shows."""
    states, last = output
    level, direction = divmod(cell, directions)
    if level == layer.num_layers - 1:
        column = direction * layer.hidden_size + unit
        if isinstance(states, nn.utils.rnn.PackedSequence):
            data = states.data.clone()
            data[:, column] += PROBE
            states = states._replace(data=data)
        else:
            states = states.clone()
            states[..., column] += PROBE

    def shifted(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[cell, ..., unit] += PROBE
        return tensor

    return states, pytree.tree_map(shifted, last)


def _replace(layer: nn.Module, name: str, rows: torch.Tensor, columns: torch.Tensor | None) -> None:
    old = getattr(layer, name)
    new = old.detach()[rows] if columns is None else old.detach()[rows][:, columns]
    setattr(layer, name, nn.Parameter(new.clone(), requires_grad=old.requires_grad))


def _drop_columns(consumer: nn.Module, gone: set[int]) -> None:
    if not gone:
        return
    kept = torch.tensor([column for column in range(_width_in(consumer)) if column not in gone])
    if isinstance(consumer, nn.Linear):
        consumer.weight = nn.Parameter(consumer.weight.detach()[:, kept].clone())
        consumer.in_features = len(kept)
        return
    assert isinstance(consumer, nn.RNNBase)
    for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
        if hasattr(consumer, name):
            setattr(consumer, name, nn.Parameter(getattr(consumer, name).detach()[:, kept].clone()))
    consumer.input_size = len(kept)
    consumer.flatten_parameters()


def _width_in(consumer: nn.Module) -> int:
    width = consumer.in_features if isinstance(consumer, nn.Linear) else consumer.input_size
    assert isinstance(width, int)
    return width
