"""What each layer costs when it alone is made narrower, found out without pruning anything."""

from pathlib import Path

import pytest
from engines import open_model, until, write_model
from learning_models import CNN_FILE, baseline, make_job, open_text

from engine.client import connect
from engine.measurements.sensitivity import RATIOS, scan_sensitivity
from engine.models import ModelError
from engine.protocol import MeasureVariant, RunAccepted, Sensitivity, Snapshot

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
        assert layer.macs[0] < found.macs
    assert all(tensor.equal(before[name]) for name, tensor in source.module().state_dict().items())
    assert "of their units" in found.sentence
    assert any("scanning blocks.0.conv1" in getattr(message, "message", "") for message in messages)


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
