"""Unstructured pruning from end to end: masks, fine-tuning under them, and a record that does not promise speed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ..context import JobContext, LoadedVariant, VariantFiles
from ..models.torch_model import save_module
from ..protocol import Changed
from .cost import parameters_of
from .linears import ordinary_linears
from .masks import Masks, apply_masks, compressed_bytes, magnitude_masks, sparsity_of, two_of_four_masks
from .network import CannotPrune
from .protecting import unmatched
from .retraining import Retraining

if TYPE_CHECKING:
    from ..techniques.pruning import PruneUnstructured


def zero_weights(source: LoadedVariant, parameters: PruneUnstructured, job: JobContext) -> VariantFiles:
    """The technique `prune-unstructured`. Raises CannotPrune when no weight could be chosen."""
    retraining = Retraining(source, parameters, job, "prune-unstructured")
    module = source.module()
    unknown = unmatched(module, parameters.protect)
    if unknown:
        raise CannotPrune(unknown)
    ordinary_linears(module)
    if parameters.pattern == "2:4":
        masks, left = two_of_four_masks(module, parameters.protect)
    else:
        masks, left = magnitude_masks(module, parameters.sparsity, parameters.scope == "global", parameters.protect)
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    if not zeros:
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in left[:3])
        raise CannotPrune(f"No weight was set to zero ({reasons or 'no linear, convolution or recurrent layer'}).")
    apply_masks(module, masks)
    accuracy_cut, accuracy = None, None
    retraining.settle(module)
    if retraining.has_data:
        accuracy_cut = accuracy = retraining.accuracy(module)
    if parameters.fine_tune_epochs > 0:
        outcome = retraining.fine_tune(
            module, parameters.fine_tune_epochs, "fine-tuning", after_step=functools.partial(apply_masks, module, masks)
        )
        accuracy = outcome.accuracy
    apply_masks(module, masks)
    path = job.work / "model.pt"
    save_module(module, path)
    figures = retraining.figures(module, source.record.macs)
    figures |= _sparsity_figures(masks, module)
    figures |= {
        "compressed_bytes_before": compressed_bytes(retraining.original),
        "compressed_bytes": compressed_bytes(module),
        **retraining.held_out_figures(accuracy_cut, accuracy),
    }
    retraining.checkpoints.remove()
    return VariantFiles(
        format="pytorch",
        files=[path],
        changed=Changed(
            summary=_summary(figures, parameters.pattern, parameters_of(module)),
            touched=tuple(masks),
            left=tuple(left),
            figures=figures,
        ),
        parameter_count=parameters_of(module),
        macs=source.record.macs,
    )


def _sparsity_figures(masks: Masks, module: Any) -> dict[str, Any]:
    found = sparsity_of(module)
    pruned = sum(mask.numel() for mask in masks.values())
    zeros = sum(found[name] * mask.numel() for name, mask in masks.items())
    return {
        "sparsity": round(zeros / pruned, 6),
        "pruned_weights": pruned,
        "sparsity_by_layer": ", ".join(f"{name} {share:.1%}" for name, share in found.items() if name in masks),
    }


def _summary(figures: dict[str, Any], pattern: str, total: int) -> str:
    text = (
        f"{figures['sparsity']:.1%} of {figures['pruned_weights']:,} weights are zero ({total:,} parameters in all); "
        f"compressed {figures['compressed_bytes_before'] / 1e6:.2f} → {figures['compressed_bytes'] / 1e6:.2f} MB. "
        "Dense runtimes compute the zeros too: neither latency nor the file's size changes"
    )
    if pattern == "2:4":
        return text + "; the 2:4 pattern can bring 1–20 % on NVIDIA GPUs with sparse tensor cores (TensorRT)."
    return text + "."
