"""What each layer costs when it alone is made narrower, found out without pruning anything."""

import json
from pathlib import Path

import msgspec
import pytest
from engines import open_model, until, write_model
from learning_models import CNN_FILE, baseline, make_job, open_text
from torch import nn

from engine.client import connect
from engine.measurements.sensitivity import RATIOS, scan_sensitivity
from engine.models import ModelError
from engine.protocol import ApplyTechnique, MeasureVariant, RunAccepted, Sensitivity, Snapshot
from engine.structure.importance import squares, unit_scores
from engine.structure.network import PrunableNetwork
from engine.structure.sensitivity import TRIAL_BATCHES, scan
from engine.techniques.pruning import PruneStructured, prune_structured
from engine.training import reestimate_batch_norm
from engine.training.data import TrainingData
from engine.training.objectives import Objective
from tui.heat import kept

SMALL = CNN_FILE.replace("batches(1024, 1)", "batches(256, 1)").replace("batches(512, 2)", "batches(64, 2)")
"""Little data: the scan is to run, not to be right."""


def test_every_layer_is_judged_at_every_ratio_and_nothing_is_changed(tmp_path: Path) -> None:
    model = open_text(tmp_path, SMALL)
    job, messages = make_job(model, tmp_path)
    source = baseline(model, tmp_path)
    before = {name: tensor.clone() for name, tensor in source.module().state_dict().items()}
    found = scan_sensitivity(job, source)
    assert found.ratios == RATIOS
    assert {layer.name for layer in found.layers} >= {"blocks.0.conv1", "blocks.1.conv1"}
    for layer in found.layers:
        assert len(layer.accuracy) == len(layer.macs) == len(RATIOS)
        assert all(0 <= value <= 1 for value in layer.accuracy)
        assert list(layer.macs) == sorted(layer.macs, reverse=True), "the more is removed, the less there is to do"
        assert layer.macs[-1] < found.macs
        for at, keep in enumerate(layer.kept):
            unrecorded = msgspec.structs.replace(layer, kept=())
            assert keep == kept(found, unrecorded, at), "as pruning rounds, and as the heat map says"
            assert (layer.macs[at] == found.macs) == (keep == layer.width)
            assert keep < layer.width or layer.accuracy[at] == found.accuracy
    assert all(tensor.equal(before[name]) for name, tensor in source.module().state_dict().items())
    assert "of their units" in found.sentence
    assert any("scanning blocks.0.conv1" in getattr(message, "message", "") for message in messages)


def test_a_trial_measures_batch_normalisation_anew_and_tries_a_width_once(tmp_path: Path) -> None:
    model = open_text(tmp_path, SMALL)
    inputs = model.torch_args(model.example(2))[0]
    network = PrunableNetwork(model.module(), lambda module: module(*inputs))
    scores = {group.name: unit_scores(network, group, "l2", squares) for group in network.groups}
    data, objective = TrainingData(model), Objective(model)
    seen: list[tuple[int, float]] = []

    def settle(module: nn.Module) -> None:
        reestimate_batch_norm(module, data, objective, batches=TRIAL_BATCHES)

    def judged(module: nn.Module) -> float:
        seen.append((module.blocks[0].conv1.out_channels, float(module.blocks[0].bn1.running_mean.abs().max())))
        return 0.5

    found = scan(network, scores, judged, lambda *_: None, (0.4, 0.5, 0.6), 8, settle)
    assert [layer["kept"] for layer in found["layers"]] == [[8, 8, 8]] * 3
    assert sorted(width for width, _ in seen) == [8, 16, 16, 16], "the whole once, each of the layers once"
    assert [mean > 0 for _, mean in seen] == [False, True, True, True]


@pytest.mark.parametrize("fits", [True, False])
def test_pruning_by_sensitivity_uses_the_scan_that_the_user_saw(fits: bool, tmp_path: Path) -> None:
    model = open_text(tmp_path, SMALL)
    job, _ = make_job(model, tmp_path)
    source = baseline(model, tmp_path)
    seen = scan_sensitivity(job, source)
    rows = {"blocks.0.conv1": (0.9,) * 7}  # costs nothing, the others all
    layers = tuple(msgspec.structs.replace(layer, accuracy=rows.get(layer.name, (0.1,) * 7)) for layer in seen.layers)
    if not fits:
        layers = tuple(msgspec.structs.replace(layer, width=24) for layer in layers)
    seen = msgspec.structs.replace(seen, accuracy=0.9, layers=layers)
    job, messages = make_job(model, tmp_path)
    job.spec = msgspec.structs.replace(job.spec, scan=seen)
    asked = PruneStructured(scope="sensitivity", ratio=0.9, round_to=1, fine_tune_epochs=0)
    (files,) = prune_structured(source, asked, job)
    scanned = any("scanning" in getattr(message, "message", "") for message in messages)
    assert scanned != fits
    if fits:
        assert files.changed.touched == ("blocks.0.conv1",)
    job, messages = make_job(model, tmp_path)
    again = msgspec.convert(files.parameters | {"type": "prune-structured"}, PruneStructured)
    prune_structured(source, again, job)
    assert not any("scanning" in getattr(message, "message", "") for message in messages), "its widths are pinned"


def test_labels_that_cannot_be_scored_are_a_sentence(tmp_path: Path) -> None:
    regression = SMALL + "\ndef loss(outputs, labels):\n    return (outputs[:, 0] - labels).square().mean()\n"
    model = open_text(tmp_path, regression.replace("return images, labels", "return images, labels.float() + 0.5"))
    job, _ = make_job(model, tmp_path)
    with pytest.raises(ModelError, match="cannot be scored"):
        scan_sensitivity(job, baseline(model, tmp_path))


async def test_the_scan_is_kept_with_the_session_and_made_once(session: Path, tmp_path: Path) -> None:
    client = await connect(session, client="test")
    try:
        run = await open_model(client, write_model(tmp_path, SMALL))
        await until(client, lambda state: finished(state, run.id))
        accepted = await client.request(MeasureVariant(request=0, variant="baseline", kinds=("sensitivity",)))
        assert isinstance(accepted, RunAccepted)
        state = await until(client, lambda state: finished(state, accepted.run.id))
        scans = [one for one in state.measurements if isinstance(one, Sensitivity)]
        assert len(scans) == 1, state.runs
        await client.reconnect()
        assert [one for one in client.state.measurements if isinstance(one, Sensitivity)] == scans
        asked = {"scope": "sensitivity", "fine_tune_epochs": 0, "round_to": 2}
        accepted = await client.request(
            ApplyTechnique(request=0, technique="prune-structured", source="baseline", parameters=asked, measure=False)
        )
        state = await until(client, lambda state: finished(state, accepted.run.id))
        pruned = next(one for one in state.variants if one.technique == "prune-structured")
        recorded = json.loads(pruned.changed.figures["sensitivity"])
        assert recorded["ratios"] == list(RATIOS), "the scan that was there, not pruning's own coarser one"
    finally:
        await client.aclose()


async def test_without_training_data_the_reason_is_given(session: Path, tmp_path: Path) -> None:
    client = await connect(session, client="test")
    try:
        run = await open_model(client, write_model(tmp_path))
        await until(client, lambda state: finished(state, run.id))
        accepted = await client.request(MeasureVariant(request=0, variant="baseline", kinds=("sensitivity",)))
        assert isinstance(accepted, RunAccepted)
        state = await until(client, lambda state: finished(state, accepted.run.id))
        (step,) = next(one for one in state.runs if one.id == accepted.run.id).steps
        assert step.status == "failed"
        assert "add train_data()" in (step.reason or "")
    finally:
        await client.aclose()


def finished(state: Snapshot, run: str) -> bool:
    return any(one.id == run and one.finished is not None for one in state.runs)
