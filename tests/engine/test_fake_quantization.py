"""Fake quantization rounds as the graph's integers do, learns its ranges, and finds the graph's values again."""

import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.graphs.calibration import Range
from engine.graphs.integers import activation_scale, dequantize_weights, quantize_weights
from engine.training.call_matching import fold_batch_norms, record
from engine.training.fake_quantization import ActivationGrid, Calls, FakeQuantized, Site, WeightGrid


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("ends", [(-1.3, 4.1), (0.0, 6.0), (-2.0, 0.0), (0.5, 3.0)])
def test_an_activation_is_rounded_as_the_graph_does(ends, symmetric):
    value = torch.linspace(-5, 8, 1001)
    scale = activation_scale(Range(*ends), symmetric)
    least, most = (-128, 127) if symmetric else (0, 255)
    integers = np.clip(np.rint(value.numpy() / scale.scale) + scale.zero_point, least, most)
    expected = (integers - scale.zero_point) * scale.scale
    assert np.allclose(ActivationGrid(*ends, symmetric)(value).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("limit", [7, 63, 127])
def test_a_weight_is_rounded_as_the_graph_does(limit, axis):
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 3)
    grid = WeightGrid(weight, limit, axis)
    bits = limit.bit_length() + 1
    integers, scales = quantize_weights(weight.numpy(), axis, False, bits=bits, given=grid.scales.detach().numpy())
    assert np.abs(integers).max() <= limit
    assert np.allclose(grid(weight).detach().numpy(), dequantize_weights(integers, scales, axis), atol=1e-6)


def test_a_weights_range_starts_where_the_error_is_least():
    torch.manual_seed(0)
    weight = torch.randn(8, 64)
    extremes = weight.abs().max() / 3  # three levels on each side: covering the extremes is far from best
    covering = ((weight / extremes).round().clamp(-3, 3) * extremes - weight).square().sum()
    assert (WeightGrid(weight, 3, None)(weight) - weight).square().sum() < 0.8 * covering


@pytest.mark.parametrize(("low", "high"), [(-20.0, 20.0), (-0.5, 0.5)], ids=["too wide", "too narrow"])
def test_ranges_are_learned(low, high):
    torch.manual_seed(0)
    value = torch.randn(4096)
    grid = ActivationGrid(low, high, False)
    before = (grid(value) - value).square().mean().item()
    optimizer = torch.optim.Adam(grid.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        (grid(value) - value).square().mean().backward()
        optimizer.step()
    assert (grid(value) - value).square().mean().item() < before / 4


def test_the_gradient_passes_inside_the_range_only():
    value = torch.tensor([-3.0, 0.2, 0.9, 3.0], requires_grad=True)
    ActivationGrid(-1.0, 1.0, False)(value).sum().backward()
    assert value.grad.tolist() == [0, 1, 1, 0]


def test_a_range_behind_a_relu_starts_at_zero_and_ends_at_the_clip():
    grid = ActivationGrid(0.0, 5.0, False, bound=6.0)
    with torch.no_grad():
        grid.stretch.fill_(1.0)
    assert grid.ends().tolist() == [0.0, 6.0]


def test_pruned_weights_stay_zero():
    weight = torch.randn(16, 16)
    weight[::2] = 0
    grid = WeightGrid(weight, 127, 0)
    moved = nn.Parameter(weight + 0.1)  # an optimizer's momentum pushes zeros away
    rounded = grid(moved)
    assert not rounded[::2].any()
    rounded.sum().backward()
    assert not moved.grad[::2].any()
    assert moved.grad[1::2].any()


class Mixed(nn.Module):
    """A layer, a function, an operator in place, a function that works in place, and dropout."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        y = F.relu(self.norm(self.first(x)), inplace=True)
        y = self.dropout(y)
        y += x
        return self.second(y)


def test_calls_have_the_same_keys_in_training_and_in_evaluation():
    def keys(module):
        calls = Calls(module)
        found = []

        class Listing(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                found.append(calls.key(func))
                return func(*args, **(kwargs or {}))

        with Listing():
            module(torch.randn(3, 4))
        calls.close()
        return found

    module = Mixed()
    training, evaluating = keys(module.train()), keys(module.eval())
    assert set(evaluating) <= set(training)
    assert ("first", "linear", 1) in evaluating
    assert ("", "add_", 1) in evaluating


def test_results_and_operands_are_rounded_where_they_are_made_and_read():
    module = Mixed().eval()
    grid, weight = ActivationGrid(-2.0, 2.0, False), WeightGrid(module.second.weight, 1, None)
    sites = {("", "add_", 1): Site({}, 0), ("second", "linear", 1): Site({1: 1})}
    wrapped = FakeQuantized(module, sites, [grid, weight])
    x = torch.randn(5, 4)
    with torch.no_grad():
        hidden = F.relu(module.norm(module.first(x))) + x
        expected = F.linear(grid(hidden), weight(module.second.weight), module.second.bias)
    assert torch.allclose(wrapped(x), expected, atol=1e-6)
    wrapped.train()(x).sum().backward()
    assert all(p.grad is not None for p in wrapped.parameters())
    assert torch.equal(wrapped.close().eval()(x), module(x))
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_it_rounds_alike_after_a_journey_to_another_process():
    grid = ActivationGrid(-0.5, 0.5, False)
    wrapped = FakeQuantized(Mixed().eval(), {("", "add_", 1): Site({}, 0)}, [grid])
    file, x = io.BytesIO(), torch.randn(5, 4)
    torch.save(wrapped, file)
    file.seek(0)
    arrived = torch.load(file, weights_only=False)
    assert torch.equal(arrived(x), wrapped(x))
    with torch.no_grad():
        arrived.grids[0].stretch.fill_(0.1)
    assert not torch.equal(arrived(x), wrapped(x))
    arrived.close()
    assert not arrived.module._forward_pre_hooks


def test_a_batch_norm_that_stays_keeps_its_statistics():
    module = Mixed()
    before = module.norm.running_mean.clone()
    wrapped = FakeQuantized(module, {}, []).train()
    wrapped(torch.randn(32, 4) + 5)
    assert torch.equal(module.norm.running_mean, before)


class Folding(nn.Module):
    """One normalisation that folds, one behind a layer that is read twice, one that is used twice."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head, self.bn4 = nn.Linear(4, 2), nn.BatchNorm1d(2)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        y = self.conv2(x)
        x = self.bn2(y) + y
        x = self.bn3(self.conv3(self.bn3(self.conv3(x))))
        return self.bn4(self.head(x.mean((2, 3))))


def test_batch_norms_are_folded_where_the_answers_stay_the_same():
    torch.manual_seed(0)
    module = Folding().train()
    for _ in range(3):
        module(torch.randn(16, 3, 8, 8))
    module.eval()
    x = torch.randn(2, 3, 8, 8)
    expected = module(x)
    assert fold_batch_norms(module, (x,), {}) == ["conv1", "head"]
    assert isinstance(module.bn1, nn.Identity)
    assert isinstance(module.bn2, nn.BatchNorm2d)
    assert torch.allclose(module(x), expected, atol=1e-5)


def test_recorded_values_are_those_of_the_time():
    module, x = Mixed().eval(), torch.randn(3, 4)
    calls = {call.key: call for call in record(module, (x,), {})}
    made = calls["norm", "batch_norm", 1]
    with torch.no_grad():
        assert np.allclose(made.value, module.norm(module.first(x)))  # a ReLU has written over it since
    assert not np.allclose(made.value, made.result)
