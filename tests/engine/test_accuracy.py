"""Accuracy is paired with the baseline, and the verdict is a test on the interval."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opened_models import CLASSIFIER, LABELLED, baseline_of, job_on, linear_graph, opened, stored, write

from engine.context import JobCancelled, JobContext, LoadedVariant
from engine.measurements.accuracy import batch_size_for, drop_verdict, measure_accuracy
from engine.measurements.agreement import Agreement, answers
from engine.measurements.statistics import Interval
from engine.models import ModelError
from engine.models.torch_model import save_module
from engine.protocol import VariantDraft


def python_job(directory: Path, more: str) -> JobContext:
    return job_on(baseline_of(opened(write(directory, CLASSIFIER + more)), directory), directory)


def changed_by(job: JobContext, directory: Path, name: str, change: Any) -> LoadedVariant:
    """A PyTorch variant of the baseline whose module `change` has changed in place."""
    module = job.variants["baseline"].module()
    with torch.no_grad():
        change(module)
    where = directory / "variants" / name
    where.mkdir(parents=True)
    save_module(module, where / "module.pt")
    draft = VariantDraft(label=None, format="pytorch", files=("module.pt",), deployed_files=("module.pt",))
    job.variants[name] = stored(job.model, draft, where, name, "baseline")
    return job.variants[name]


def a_little(module: torch.nn.Module) -> None:
    module.body[0].weight[0, 0] += 0.05  # type: ignore[index, union-attr, operator]


def beyond_use(module: torch.nn.Module) -> None:
    module.body[2].weight.neg_()  # type: ignore[index, union-attr, operator]


def not_a_number(module: torch.nn.Module) -> None:
    module.body[2].bias.fill_(torch.nan)  # type: ignore[index, union-attr, operator]


def test_the_baseline_has_its_value_and_no_drop(tmp_path: Path) -> None:
    job = python_job(tmp_path, LABELLED)
    accuracy = measure_accuracy(job, job.variants["baseline"], "pytorch", 0.01)
    assert (accuracy.kind, accuracy.value, accuracy.samples) == ("accuracy", 1.0, 300)
    assert (accuracy.drop, accuracy.low, accuracy.high, accuracy.verdict) == (0, 0, 0, "PASS")


def test_a_ruined_variant_fails(tmp_path: Path) -> None:
    job = python_job(tmp_path, LABELLED)
    accuracy = measure_accuracy(job, changed_by(job, tmp_path, "ruined", beyond_use), "pytorch", 0.01)
    assert accuracy.verdict == "FAIL"
    assert accuracy.baseline_value == 1.0
    assert accuracy.drop == pytest.approx(1 - accuracy.value)
    assert accuracy.flipped_to_wrong == round(300 * accuracy.drop)
    assert accuracy.flipped_to_right == 0
    assert "beyond the limit of 1 point." in accuracy.sentence


def test_an_unchanged_variant_passes_only_with_enough_samples(tmp_path: Path) -> None:
    job = python_job(tmp_path, LABELLED)
    same = changed_by(job, tmp_path, "same", lambda module: None)
    few = measure_accuracy(job, same, "pytorch", 0.01)
    assert (few.drop, few.verdict) == (0, "NOT ENOUGH DATA")
    assert few.high > 0.01
    assert "samples would tell" in few.sentence

    wider = measure_accuracy(job, same, "pytorch", 0.05)
    assert wider.verdict == "PASS"
    assert "within the limit of 5 points." in wider.sentence


def test_the_number_of_samples_can_be_limited(tmp_path: Path) -> None:
    job = python_job(tmp_path, LABELLED)
    assert measure_accuracy(job, job.variants["baseline"], "pytorch", 0.01, samples=70).samples == 70


def test_outputs_that_are_not_numbers_fail_whatever_the_labels(tmp_path: Path) -> None:
    job = python_job(tmp_path, LABELLED)
    accuracy = measure_accuracy(job, changed_by(job, tmp_path, "nan", not_a_number), "pytorch", 1.0)
    assert accuracy.verdict == "FAIL"
    assert "not finite numbers" in accuracy.sentence
    assert accuracy.value == 0


def test_without_labels_it_is_agreement_and_called_so(tmp_path: Path) -> None:
    job = python_job(tmp_path, "def test_data():\n    return [samples(500, 1)]\ncalibration_data = [samples(8, 2)]\n")
    accuracy = measure_accuracy(job, changed_by(job, tmp_path, "near", a_little), "pytorch", 0.05)
    assert accuracy.kind == "agreement"
    assert accuracy.value == pytest.approx(1 - accuracy.drop)
    assert 0 <= accuracy.low <= accuracy.drop <= accuracy.high
    assert accuracy.cosine is not None
    assert 0.99 < accuracy.cosine < 1
    assert accuracy.sqnr_db is not None
    assert 20 < accuracy.sqnr_db < 80
    assert accuracy.sentence.startswith("Answers changed")
    assert accuracy.baseline_value is None


def test_agreement_on_made_up_inputs_says_so(tmp_path: Path) -> None:
    job = python_job(tmp_path, "")
    accuracy = measure_accuracy(job, changed_by(job, tmp_path, "same", lambda module: None), "pytorch", 0.01)
    assert (accuracy.kind, accuracy.samples, accuracy.verdict) == ("agreement", 512, "PASS")
    assert accuracy.sentence.endswith("The samples are made-up inputs, not data.")


METRIC = """
def metric(outputs, labels):
    assert outputs.shape == (300, 3) and labels.shape == (300,)
    right = outputs.argmax(dim=1) == labels
    return float(right.float().mean() ** 2)
"""


def test_a_metric_that_is_no_mean_is_compared_by_bootstrap(tmp_path: Path) -> None:
    job = python_job(tmp_path, LABELLED + METRIC)
    baseline = measure_accuracy(job, job.variants["baseline"], "pytorch", 0.01)
    assert (baseline.kind, baseline.value) == ("metric", 1.0)
    ruined = measure_accuracy(job, changed_by(job, tmp_path, "ruined", beyond_use), "pytorch", 0.01)
    assert ruined.verdict == "FAIL"
    assert ruined.low < ruined.drop < ruined.high
    assert ruined.drop == pytest.approx(1 - ruined.value)


SHARES = """
def accuracy(outputs, labels):
    return 1 - (outputs.softmax(dim=1) - torch.nn.functional.one_hot(labels, 3)).abs().mean(dim=1)
"""


def test_shares_per_sample_are_compared_in_pairs(tmp_path: Path) -> None:
    job = python_job(tmp_path, LABELLED + SHARES)
    accuracy = measure_accuracy(job, changed_by(job, tmp_path, "near", a_little), "pytorch", 0.01)
    assert accuracy.flipped_to_wrong is None
    assert accuracy.high - accuracy.low < 0.01
    assert accuracy.verdict == "PASS"


def test_the_users_accuracy_of_a_mean_gives_the_same_figures(tmp_path: Path) -> None:
    mean = "def accuracy(outputs, labels):\n    return (outputs.argmax(dim=1) == labels).float().mean().item()\n"
    job = python_job(tmp_path, LABELLED + mean)
    ruined = changed_by(job, tmp_path, "ruined", beyond_use)
    by_mean = measure_accuracy(job, ruined, "pytorch", 0.01)

    (tmp_path / "top1").mkdir()
    job = python_job(tmp_path / "top1", LABELLED)
    by_top_1 = measure_accuracy(job, changed_by(job, tmp_path / "top1", "ruined", beyond_use), "pytorch", 0.01)
    assert (by_mean.value, by_mean.low, by_mean.high) == (by_top_1.value, by_top_1.low, by_top_1.high)


def test_labelled_graphs_are_measured_from_their_npz(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((600, 6)).astype(np.float32)
    graph = linear_graph(tmp_path / "net.onnx")
    plain = opened(graph)
    labels = np.concatenate([_scores(plain, x[i : i + 1]).argmax(axis=1) for i in range(600)])
    np.savez(tmp_path / "data.npz", x=x, labels=labels)
    job = job_on(baseline_of(opened(graph, data=str(tmp_path / "data.npz")), tmp_path), tmp_path)
    accuracy = measure_accuracy(job, job.variants["baseline"], "onnxruntime", 0.01)
    assert (accuracy.kind, accuracy.value) == ("accuracy", 1.0)
    assert 480 < accuracy.samples < 600, "an eighth is set aside for calibration"


def _scores(model: Any, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(model.path).run(None, {"x": x})[0]


def test_the_baselines_outputs_are_kept_for_the_next_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.measurements import baseline_outputs

    job = python_job(tmp_path, LABELLED)
    variant = changed_by(job, tmp_path, "near", a_little)
    first = measure_accuracy(job, variant, "pytorch", 0.01)
    assert len(list((tmp_path / "cache").iterdir())) == 1

    monkeypatch.setattr(baseline_outputs, "load", lambda *arguments: pytest.fail("the baseline was run again"))
    again = measure_accuracy(job, variant, "pytorch", 0.01)
    assert (again.value, again.drop, again.baseline_value) == (first.value, first.drop, first.baseline_value)

    next((tmp_path / "cache").iterdir()).write_bytes(b"cut short")
    monkeypatch.undo()
    assert measure_accuracy(job, variant, "pytorch", 0.01).value == first.value


def test_data_in_another_order_is_never_matched_with_old_outputs(tmp_path: Path) -> None:
    shuffled = """
def test_data():
    x = samples(300, 1)
    labels = load_model()(x).argmax(dim=1)
    order = torch.randperm(300)
    return [(x[order], labels[order])]
calibration_data = [samples(8, 2)]
"""
    job = python_job(tmp_path, shuffled)
    same = changed_by(job, tmp_path, "same", lambda module: None)
    for seed in range(3):
        torch.manual_seed(seed)
        accuracy = measure_accuracy(job, same, "pytorch", 0.05)
        assert (accuracy.drop, accuracy.baseline_value, accuracy.cosine) == (0, 1.0, pytest.approx(1))


def test_labels_that_fit_nothing_are_told(tmp_path: Path) -> None:
    data = "def test_data():\n    yield samples(8, 0), torch.rand(8)\ncalibration_data = [samples(8, 2)]\n"
    job = python_job(tmp_path, data)
    with pytest.raises(ModelError, match="add accuracy"):
        measure_accuracy(job, job.variants["baseline"], "pytorch", 0.01)


def test_cancelling_ends_it(tmp_path: Path) -> None:
    job = python_job(tmp_path, LABELLED)
    job.cancel()
    with pytest.raises(JobCancelled):
        measure_accuracy(job, job.variants["baseline"], "pytorch", 0.01)


def test_batches_are_small_where_samples_are_large(tmp_path: Path) -> None:
    text = CLASSIFIER.replace("torch.randn(batch_size, 6)", "torch.zeros(batch_size, 2_000_000, 6)")
    assert batch_size_for(opened(write(tmp_path, text))) == 1
    (tmp_path / "small").mkdir()
    assert batch_size_for(opened(write(tmp_path / "small", CLASSIFIER))) == 64


@pytest.mark.parametrize(
    ("drop", "verdict"),
    [
        (Interval(0.002, -0.001, 0.005), "PASS"),
        (Interval(0.008, 0.002, 0.014), "NOT ENOUGH DATA"),
        (Interval(0.012, 0.008, 0.016), "NOT ENOUGH DATA"),
        (Interval(0.03, 0.02, 0.04), "FAIL"),
    ],
)
def test_the_verdict_looks_at_the_interval_and_not_at_the_point(drop: Interval, verdict: str) -> None:
    assert drop_verdict(drop, 0.01) == verdict


def test_answers_are_found_along_the_class_axis() -> None:
    assert answers(np.zeros((4, 10), np.float32)).shape == (4,)  # type: ignore[union-attr]
    assert answers(np.zeros((4, 7, 10), np.float32)).shape == (4, 7)  # type: ignore[union-attr]
    assert answers(np.zeros((4, 10, 5, 5), np.float32)).shape == (4, 5, 5)  # type: ignore[union-attr]
    assert answers(np.zeros((4, 1), np.float32)) is None


def test_single_numbers_change_when_they_move_by_a_twentieth_of_their_spread() -> None:
    base = np.random.default_rng(0).standard_normal((200, 1)).astype(np.float32)
    moved = base.copy()
    moved[:50] += 0.2
    moved[50:] += 0.01
    agreement = Agreement()
    agreement.add({"y": base}, {"y": moved})
    assert agreement.changed().value == 0.25


def test_an_integer_that_is_no_samples_own_is_passed_over() -> None:
    count, scores = np.array(3), np.eye(4, dtype=np.float32)
    agreement = Agreement()
    agreement.add({"count": count, "y": scores}, {"count": count, "y": scores[[0, 1, 2, 2]]})
    assert agreement.changed().value == 0.25


def test_equal_outputs_have_the_highest_ratio_and_cosine_1() -> None:
    agreement = Agreement()
    agreement.add({"y": np.ones((3, 4), np.float32)}, {"y": np.ones((3, 4), np.float32)})
    assert agreement.sqnr_db == 200
    assert agreement.cosine == pytest.approx(1)
    assert agreement.changed().value == 0
