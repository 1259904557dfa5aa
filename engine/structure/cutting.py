"""Structured pruning from end to end: find the groups, decide the widths, cut, fine-tune, again, and record it.

A job that was stopped goes on: the module after each cut is kept beside the training's checkpoint, because the
structure is decided at the cut and cannot be told from the weights alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from torch import nn

from ..context import JobContext, LoadedVariant, VariantFiles
from ..models.torch_model import save_module
from ..protocol import Changed
from . import sensitivity
from .cost import example_call, macs_of, parameters_of, time_share
from .following import Call
from .importance import Mass, squares, taylor_mass, unit_scores
from .network import CannotPrune, PrunableNetwork
from .protecting import unmatched
from .retraining import Retraining
from .widths import Curve, OverBudget, Scores, search, shrink, widths_at

if TYPE_CHECKING:
    from ..techniques.pruning import PruneStructured

SCAN_SAMPLES = 500
"""Held-out samples that a sensitivity scan judges each trial by."""


def cut(source: LoadedVariant, parameters: PruneStructured, job: JobContext) -> VariantFiles:
    """The technique `prune-structured`. Raises CannotPrune with the reason when nothing can be removed."""
    return _Cutting(source, parameters, job).run()


class _Cutting:
    def __init__(self, source: LoadedVariant, parameters: PruneStructured, job: JobContext) -> None:
        self.parameters, self.job = parameters, job
        self.retraining = Retraining(source, parameters, job, "prune-structured")
        self.original = self.retraining.original
        unknown = unmatched(self.original, parameters.protect)
        if unknown:
            raise CannotPrune(unknown)
        self.call, self.samples = example_call(job.model)
        job.progress(0, None, "following the layers")
        self.whole = PrunableNetwork(source.module(), self.call, parameters.protect, on_probe=self._probing)
        self.widths_before = {group.name: group.width for group in self.whole.groups}
        self.macs_before = macs_of(self.original, self.call, self.samples)
        self.timed: tuple[Call, int] | None = None
        self.scanned: dict[str, Any] | None = None
        self.curves: dict[str, Curve] | None = None
        self.after_cut: float | None = None

    def run(self) -> VariantFiles:
        if self.parameters.scan or (self.parameters.scope == "sensitivity" and not self.parameters.widths):
            self._scan()
        cycles, first, network = self.parameters.cycles, 1, None
        for cycle in range(cycles, 0, -1):
            module = self.retraining.checkpoints.load_module(f"cut-{cycle}")
            if module is not None:
                first, network = cycle, self._found_again(module)
                break
        outcome = None
        for cycle in range(first, cycles + 1):
            if network is None or cycle > first:
                network = (network or self.whole).copy()
                self._cut_once(network, cycle)
                self.retraining.settle(network.module)
                if self.parameters.fine_tune_epochs > 0:
                    self.retraining.checkpoints.save_module(f"cut-{cycle}", network.module)
            if self.retraining.has_data:
                self.after_cut = self.retraining.accuracy(network.module)
            if self.parameters.fine_tune_epochs > 0:
                stage = "fine-tuning" if cycles == 1 else f"fine-tuning {cycle} of {cycles}"
                epochs = self.parameters.fine_tune_epochs / cycles
                outcome = self.retraining.fine_tune(network.module, epochs, stage)
        assert network is not None
        files = self._files(network, outcome.accuracy if outcome else None)
        self.retraining.checkpoints.remove()
        return files

    # --- the steps

    def _found_again(self, module: nn.Module) -> PrunableNetwork:
        """A kept module as a network, with the groups that were found and tried in the uncut one."""
        return PrunableNetwork(module, self.call, known=self.whole.groups, on_probe=self._probing)

    def _probing(self, done: int, total: int, layer: str) -> None:
        self.job.progress(done, total, f"finding what reads {layer}: unit {done + 1} of {total}")

    def _cut_once(self, network: PrunableNetwork, cycle: int) -> None:
        """Bring the network to the widths of this cycle: equal factors lead from the whole to the last one."""
        from ..techniques.pruning import DEFAULT_RATIO

        share = cycle / self.parameters.cycles
        scores = self._scores(network)
        self.job.progress(0, None, f"cutting ({cycle} of {self.parameters.cycles})")
        widths = self._pinned(network, share)
        if widths is None:
            widths = self._searched(network, scores, share)
        if widths is None:
            strength = 1 - (1 - (self.parameters.ratio or DEFAULT_RATIO)) ** share
            widths = self._widths_at(network, scores)(strength)
        shrink(network, widths, scores)

    def _scores(self, network: PrunableNetwork) -> Scores:
        mass: Mass = squares
        if self.parameters.importance == "taylor":
            self.job.progress(0, None, "measuring what each channel does to the loss")
            network.module.to(self.retraining.device)
            mass = taylor_mass(network.module, self.retraining.data, self.retraining.objective)
            network.module.to("cpu")
        return {group.name: unit_scores(network, group, self.parameters.importance, mass) for group in network.groups}

    def _widths_at(self, network: PrunableNetwork, scores: Scores) -> Callable[[float], dict[str, int]]:
        asked = self.parameters
        return lambda strength: widths_at(strength, network.groups, scores, asked.scope, asked.round_to, self.curves)

    def _pinned(self, network: PrunableNetwork, share: float) -> dict[str, int] | None:
        from ..techniques.pruning import parse_widths

        pinned = parse_widths(self.parameters.widths)
        if not pinned:
            return None
        unknown = sorted(set(pinned) - set(self.widths_before))
        if unknown:
            known = next((f" ({left.reason})" for left in self.whole.left if left.name == unknown[0]), "")
            raise CannotPrune(f"widths names {unknown[0]}, which is no layer that can be made narrower here{known}.")
        widths = {}
        for name, last in pinned.items():
            before = self.widths_before[name]
            if last > before:
                raise CannotPrune(f"widths asks for {last} of {name}, which has {before}: nothing is made wider.")
            widths[name] = last if share == 1 else round(before * (last / before) ** share)
        return widths

    def _searched(self, network: PrunableNetwork, scores: Scores, share: float) -> dict[str, int] | None:
        """The widths that meet a budget; None when there is none."""
        asked, call = self.parameters, self.call
        macs_before, parameters_before = self.macs_before, parameters_of(self.original)
        if asked.keep_macs is not None:
            if macs_before is None:
                raise CannotPrune("its multiply-adds cannot be counted: use keep_parameters or keep_latency.")
            budget, cost = asked.keep_macs, lambda m: (macs_of(m, call, self.samples) or 0) / macs_before
        elif asked.keep_parameters is not None:
            budget, cost = asked.keep_parameters, lambda m: parameters_of(m) / parameters_before
        elif asked.keep_latency is not None:
            budget, cost = asked.keep_latency, self._time_share
        else:
            return None

        def tell(strength: float, share: float) -> None:
            self.job.progress(0, None, f"searching: strength {strength:.3f} keeps {share:.1%}")

        try:
            _, widths = search(network, budget**share, cost, self._widths_at(network, scores), scores, tell)
        except OverBudget as over:
            raise CannotPrune(self._unmet(over.least)) from over
        return widths

    def _unmet(self, least: float) -> str:
        """That the budget cannot be met, and what can be: `least` is the share that the strongest pruning keeps."""
        from ..techniques.pruning import BUDGETS

        asked = self.parameters
        name = next(name for name in BUDGETS if getattr(asked, name) is not None)
        enough = math.ceil(1000 * least) / 1000
        ways = f"Give at least {name} = {enough:g}" + (", or lower round_to." if asked.round_to > 1 else ".")
        return (
            f"{name} = {getattr(asked, name):g} cannot be met: the strongest pruning still keeps {least:.2%} of the "
            f"{BUDGETS[name]}. {ways}"
        )

    def _time_share(self, module: nn.Module) -> float:
        """Of the uncut network's time, on the job's device, for the largest batch that is measured."""
        if self.timed is None:
            self.timed = example_call(self.job.model, max(self.job.spec.batch_sizes), self.retraining.device)
        return time_share(module, self.original, self.timed[0], self.retraining.device)

    def _scan(self) -> None:
        """Scan, unless the source has been scanned already: then what the user saw is what counts."""
        retraining, known = self.retraining, self.job.spec.scan
        self.scanned = retraining.checkpoints.load("scan")
        if self.scanned is None and known is not None and self.parameters.importance == "l2":
            self.scanned = sensitivity.as_scan(known, self.whole.groups)
            if self.scanned is not None:
                self.job.log("The recorded sensitivity scan is used: nothing is scanned again.")
        if self.scanned is None:
            self.scanned = sensitivity.scan(
                self.whole,
                self._scores(self.whole),
                lambda module: retraining.accuracy(module, SCAN_SAMPLES),
                lambda done, total, layer: self.job.progress(done, total, f"scanning {layer}"),
                round_to=self.parameters.round_to,
                settle=lambda module: retraining.settle(module, sensitivity.TRIAL_BATCHES),
            )
        if self.parameters.fine_tune_epochs > 0:
            retraining.checkpoints.save("scan", self.scanned)
        self.curves = sensitivity.curves(self.scanned)

    # --- the result

    def _files(self, network: PrunableNetwork, accuracy: float | None) -> VariantFiles:
        widths = {group.name: group.width for group in network.groups}
        changed = {
            name: (before, widths[name]) for name, before in self.widths_before.items() if before != widths[name]
        }
        if not changed and self.parameters.widths:
            raise CannotPrune("nothing was removed: widths names every layer with the width that it has already.")
        if not changed:
            raise CannotPrune(
                f"nothing was removed: rounding to multiples of {self.parameters.round_to} left every layer as wide as "
                "it was. Raise the ratio or lower round_to."
            )
        macs = macs_of(network.module, self.call, self.samples)
        figures = self.retraining.figures(network.module, macs)
        figures["macs_before"] = self.macs_before
        figures |= self.retraining.held_out_figures(
            self.after_cut, accuracy if accuracy is not None else self.after_cut
        )
        if self.parameters.keep_latency is not None:
            figures["latency_share"] = round(self._time_share(network.module), 4)
            figures["latency_timed"] = self._timed_in_words()
        figures["widths"] = ", ".join(f"{name} {before}→{after}" for name, (before, after) in changed.items())
        files = [self.job.work / "model.pt"]
        if self.scanned is not None and self.retraining.objective.scored:
            figures["sensitivity"] = json.dumps(self.scanned)
            files.append(sensitivity.write_scan(self.scanned, self.job.work / "sensitivity.json"))
        save_module(network.module, files[0])
        pinned = self._as_asked() | {"widths": [f"{name}={width}" for name, width in widths.items()]}
        return VariantFiles(
            format="pytorch",
            files=files,
            deployed=files[:1],
            changed=Changed(
                summary=_summary(figures, len(changed)),
                touched=tuple(changed),
                left=tuple(self.whole.left),
                figures=figures,
            ),
            parameters=pinned,
            parameter_count=figures["parameter_count"],
            macs=macs,
        )

    def _as_asked(self) -> dict[str, Any]:
        """The parameters, with the ratio that an empty one stood for; a budget stays beside the widths it led to."""
        from ..techniques.pruning import BUDGETS, DEFAULT_RATIO

        asked = msgspec.to_builtins(self.parameters)
        asked.pop("type", None)
        if not asked["widths"] and all(asked[name] is None for name in BUDGETS):
            asked["ratio"] = asked["ratio"] or DEFAULT_RATIO
        return asked

    def _timed_in_words(self) -> str:
        """What a latency budget was timed under."""
        assert self.timed is not None
        return f"eager PyTorch on {self.retraining.device}, batch {self.timed[1]}"


def _summary(figures: dict[str, Any], layers: int) -> str:
    parts = [f"{layers} layers made narrower"]
    if figures.get("macs") and figures["macs_before"]:
        parts.append(f"{1 - figures['macs'] / figures['macs_before']:.0%} fewer multiply-adds")
    parts.append(f"{1 - figures['parameter_count'] / figures['parameter_count_before']:.0%} fewer parameters")
    if "latency_share" in figures:
        parts.append(f"{figures['latency_share']:.0%} of the time a call took under {figures['latency_timed']}")
    text = ", ".join(parts)
    for quality, shown in (("accuracy", ".2%"), ("loss", ".4g")):
        found = [figures.get(f"held_out_{quality}{when}") for when in ("_before", "_after_cut", "")]
        if None not in found:
            before, cut, end = (format(value, shown) for value in found)
            text += f"; {quality} on held-out training data {before} before, {cut} after cutting, {end} at the end"
    return text + "."
