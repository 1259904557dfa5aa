"""Attention heads: where they are, which columns belong to one, and how the module is told that some are gone.

A group of layers counts as attention when a module around them says how many heads it has (`num_heads`, `heads`, …)
and one linear layer reads a third of what the others make: queries, keys and values of the same width. That keeps the
multi-layer perceptron of a block that has both apart from its attention. Heads are contiguous blocks of the output
projection's input, which is how every implementation that reshapes to (batch, tokens, heads, size) lays them out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "nhead", "heads")
"""Attributes that hold the number of heads."""

KEY_VALUE_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
"""Attributes of attention in which several heads share keys and values."""

INNER_WIDTHS = ("all_head_size", "inner_dim", "attn_dim", "inner_width", "split_size")
"""Attributes that hold heads × size of a head, without doubt."""


@dataclasses.dataclass
class Heads:
    """The heads of one attention module."""

    owner: nn.Module
    """Says how many heads there are."""
    attribute: str
    output: nn.Linear
    """The projection that reads all heads."""
    count: int
    size: int
    """Columns a head."""
    packed: nn.Linear | None = None
    """The one projection that makes all queries, then all keys, then all values, where Torch-Pruning loses them (1.6.1
    does behind a split); its rows are then taken out here."""

    def columns(self, heads: Sequence[int]) -> list[int]:
        """The columns of `output` that these heads feed."""
        return [head * self.size + i for head in heads for i in range(self.size)]

    def rows(self, heads: Sequence[int]) -> list[int]:
        """The rows of `packed` that make these heads."""
        assert self.packed is not None
        inner = self.count * self.size
        chunks = range(0, self.packed.out_features, inner)
        return [start + column for start in chunks for column in self.columns(heads)]

    @torch.no_grad()
    def remove_packed(self, heads: Sequence[int]) -> None:
        """Take heads out of `packed` and of `output`."""
        assert self.packed is not None
        kept = [head for head in range(self.count) if head not in set(heads)]
        rows, columns = torch.tensor(self.rows(kept)), torch.tensor(self.columns(kept))
        self.packed.weight = nn.Parameter(self.packed.weight[rows].clone())
        if self.packed.bias is not None:
            self.packed.bias = nn.Parameter(self.packed.bias[rows].clone())
        self.output.weight = nn.Parameter(self.output.weight[:, columns].clone())
        self.packed.out_features, self.output.in_features = len(rows), len(columns)

    def packed_mass(self, mass: Callable[[torch.Tensor], torch.Tensor], with_bias: bool) -> torch.Tensor:
        """(heads,): the mass of the rows of `packed` that make each head. `mass`: weight → its own shape."""
        assert self.packed is not None
        rows = mass(self.packed.weight).sum(1)
        if with_bias and self.packed.bias is not None:
            rows = rows + mass(self.packed.bias)
        return rows.reshape(-1, self.count, self.size).sum((0, 2))

    def shrink(self, removed: int) -> None:
        """Tell the module that so many heads are gone."""
        old = self.count * self.size
        self.count -= removed
        setattr(self.owner, self.attribute, self.count)
        for name in INNER_WIDTHS:
            if getattr(self.owner, name, None) == old:
                setattr(self.owner, name, self.count * self.size)


def find_owner(layer: str, module: nn.Module) -> str | None:
    """The path of the nearest module around `layer` that has heads; None when the layer is no part of attention."""
    parts = layer.split(".")
    for end in range(len(parts) - 1, max(-1, len(parts) - 4), -1):
        path = ".".join(parts[:end])
        if _head_count(module.get_submodule(path)) is not None:
            return path
    return None


def heads_of(module: nn.Module, owner: str, group: Any) -> Heads | str | None:
    """The heads of the attention at `owner`, given Torch-Pruning's group of one of its projections.

    A string instead says why they are not offered; None says that these layers are no attention.
    """
    import torch_pruning as tp

    makers, readers = _linears(group, tp.prune_linear_out_channels), _linears(group, tp.prune_linear_in_channels)
    if _is_perceptron(makers, readers):
        return None
    place = module.get_submodule(owner)
    attribute, count = _head_count(place) or ("", 0)
    for name in KEY_VALUE_COUNTS:
        if getattr(place, name, count) != count:
            return "several heads share their keys and values"
    if len(readers) != 1:
        return "no single linear layer reads all heads"
    output = readers[0]
    if sum(maker.out_features for maker in makers) != 3 * output.in_features:
        return "its queries, keys and values are not of one width"
    if count < 1 or output.in_features % count:
        return f"its {output.in_features} columns do not divide into {count} heads"
    return Heads(place, attribute, output, count, output.in_features // count)


def packed_projection(heads: Heads, followed: Any) -> nn.Linear | None:
    """The projection of queries, keys and values in one, if Torch-Pruning's group `followed` misses a part of it.

    `followed` is the group of the output projection's columns of one head.
    """
    import torch_pruning as tp

    for item in followed:
        layer = item.dep.target.module
        if item.dep.handler == tp.prune_linear_out_channels and isinstance(layer, nn.Linear):
            parts, rest = divmod(layer.out_features, heads.output.in_features)
            if not rest and parts > 1 and len(item.idxs) != parts * heads.size:
                return layer
    return None


@torch.no_grad()
def silence(output: nn.Module, heads: Heads, chosen: Sequence[int]) -> None:
    """Zero what these heads feed into the output projection: the network as if they were not there."""
    assert isinstance(output, nn.Linear)
    output.weight[:, heads.columns(chosen)] = 0


def _linears(group: Any, prune: Any) -> list[nn.Linear]:
    """The linear layers that a group prunes in this way, each once."""
    found = (item.dep.target.module for item in group if item.dep.handler == prune)
    return list(dict.fromkeys(layer for layer in found if isinstance(layer, nn.Linear)))


def _is_perceptron(makers: list[nn.Linear], readers: list[nn.Linear]) -> bool:
    """Whether what the makers make is read as it is, or is first halved by a gate, as in SwiGLU."""
    widths = {reader.in_features for reader in readers}
    made = [maker.out_features for maker in makers]
    plain = len(makers) <= 2 and set(made) <= widths
    return plain or (len(makers) == 1 and len(widths) == 1 and made[0] == 2 * next(iter(widths)))


def _head_count(module: nn.Module) -> tuple[str, int] | None:
    for name in HEAD_COUNTS:
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return name, value
    return None
