"""Rewrites for speed alone are kept where they pay and leave the answers, also with a stronger form of them."""

import pytest
from test_masks import attention, mask_of
from test_residuals import block

from engine.graphs import touches
from engine.graphs.masks import DOUBT
from engine.graphs.touches import touch_up, touchable, touched


@pytest.fixture
def gain(monkeypatch):
    """What each rewrite is pretended to give."""
    gains = {"Sum": 1.0, "_raised": 1.0}

    def pretended(models, feeds, threads, seconds):
        before, after = (str(model.graph) for model in models)
        return [1.0, next((value for key, value in gains.items() if key in after and key not in before), 1.0)]

    monkeypatch.setattr(touches, "time_in_turns", pretended)
    return gains


def test_what_pays_is_kept_and_told(gain):
    gain |= {"Sum": 1.3, "_raised": 1.5}
    told: list[str] = []
    for model, parameter, ratio in ((block(), "residuals", 1.3), (attention(mask_of(-100.0)), "masks", 1.5)):
        done = touch_up(model, [], 1, 0.1, lambda model: True, told.append)
        assert dict(done.counts) == {parameter: 1}
        assert done.gain == ratio
        assert done.model == touched(model, [parameter]).model
        assert done.sentence.startswith("1 ")
    assert [f"{ratio:.2f}× of that" in text for ratio, text in zip((1.3, 1.5), told, strict=True)] == [True, True]


def test_what_does_not_pay_is_not_done(gain):
    model = block()
    done = touch_up(model, [], 1, 0.1, lambda model: True)
    assert (dict(done.counts), done.gain, done.model) == ({}, 1.0, model)


def test_a_mask_that_changes_answers_only_in_its_stronger_form_is_left(gain):
    gain["_raised"] = 1.5
    told: list[str] = []

    def right(model) -> bool:
        return f"{DOUBT:g}" not in {f"{value:g}" for value in _masks(model)}

    done = touch_up(attention(mask_of(-100.0)), [], 1, 0.1, right, told.append)
    assert not done.counts
    assert "the answers change" in told[0]


def test_a_rewrite_that_cannot_run_is_told_and_left(gain):
    def right(model) -> bool:
        raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED")

    told: list[str] = []
    assert not touch_up(block(), [], 1, 0.1, right, told.append).counts
    assert "NOT_IMPLEMENTED" in told[0]


def test_touchable_says_whether_there_is_anything_to_try():
    assert touchable(block())
    assert touchable(attention(mask_of(-100.0)))
    assert not touchable(block(bias=True))
    assert not touchable(attention(mask_of(-20.0)))


def _masks(model) -> list[float]:
    from onnx import numpy_helper

    return [float(numpy_helper.to_array(tensor).min()) for tensor in model.graph.initializer if tensor.data_type == 1]
