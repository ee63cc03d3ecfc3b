"""Adaptive batch sizes: the tests' statistics, the controller, and that it pays."""

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from genflow.errors import InputError
from genflow.optim import (
    BatchSizeController,
    GradientStatistics,
    MicroBatchGradients,
    ResizableBatchSampler,
    gradient_statistics,
    per_sample_gradients,
    required_batch_size,
)

TOY = torch.sin(0.9 * torch.arange(40, dtype=torch.float64)).view(8, 5)


# statistics


def test_published_numbers() -> None:
    statistics = gradient_statistics([TOY])
    expected = {
        "norm": 384.037114047018,
        "coordinate": 77673.98478919949,
        "inner-product": 176.05386798878106,
        "orthogonality": 207.98324605823692,
        "augmented": 207.98324605823692,
    }
    for test, value in expected.items():
        assert required_batch_size(statistics, test, eta=0.5, theta=0.5, nu=0.5) == pytest.approx(value, rel=1e-9)


@given(
    number=st.integers(2, 8),
    size=st.integers(1, 9),
    cut=st.integers(0, 6),
    seed=st.integers(0, 999),
    shift=st.floats(0.01, 10),
)
@settings(deadline=None, max_examples=40)
def test_statistics_by_their_definitions_however_parameters_are_cut(
    number: int, size: int, cut: int, seed: int, shift: float
) -> None:
    g = torch.randn(number, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift
    found = gradient_statistics([part for part in (g[:, :cut], g[:, cut:]) if part.shape[1]], size)
    mean = g.mean(0)
    inner = g @ mean
    orthogonal = g - (inner / mean.square().sum())[:, None] * mean
    expected = (
        size * g.var(0).sum(),
        size * inner.var(),
        size * orthogonal.var(0).sum(),
        mean.square().sum(),
        size * (g.var(0) / mean.square()).max(),
    )
    assert found[:5] == pytest.approx([float(x) for x in expected], rel=1e-6, abs=1e-12)
    assert found.samples == number * size
    assert found.variance == pytest.approx(found.along / found.norm_square + found.across)  # Pythagoras


def test_one_coordinate_near_zero_decides_the_largest_ratio_but_not_a_quantile() -> None:
    largest, median = gradient_statistics([TOY]).coordinate, gradient_statistics([TOY], quantile=0.5).coordinate
    assert largest > 50 * median
    assert gradient_statistics([TOY], floor=0.5).coordinate < 0.02 * largest
    padded = torch.cat([TOY, torch.zeros(8, 2, dtype=torch.float64)], 1)
    assert gradient_statistics([padded], floor=0.0).coordinate == pytest.approx(largest)


def test_per_sample_gradients_are_those_of_batches_of_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model[0].bias.requires_grad_(False)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    trained = [p for p in model.parameters() if p.requires_grad]
    for chunk in (None, 2):
        found = per_sample_gradients(loss, model, x, y, chunk_size=chunk)
        for i in range(5):
            expected = torch.autograd.grad(loss(model, x[i : i + 1], y[i : i + 1]), trained)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a[i], b)
    assert all(p.grad is None for p in trained)


def test_micro_batches_estimate_what_samples_give() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    x = torch.randn(6400, 3, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + torch.randn(6400, dtype=torch.float64)
    exact = gradient_statistics([-2 * (y - x @ weight.detach())[:, None] * x])
    recorder = MicroBatchGradients([weight])
    for part in range(400):
        rows = slice(16 * part, 16 * part + 16)
        ((y[rows] - x[rows] @ weight).square().mean() / 400).backward()
        recorder.record(scale=400)
    found = recorder.statistics(16)
    assert found.norm_square == pytest.approx(exact.norm_square)
    assert found.samples == exact.samples
    for a, b in zip(found[:3], exact[:3], strict=True):
        assert a == pytest.approx(b, rel=0.2)
    with pytest.raises(InputError, match="no micro-batch recorded"):
        recorder.statistics(16)


def test_statistics_refuse_what_has_none() -> None:
    with pytest.raises(InputError, match="gradients: got 1; allowed: at least 2"):
        gradient_statistics([torch.ones(1, 3)])
    with pytest.raises(InputError, match=r"gradients: got \[2, 3\]"):
        gradient_statistics([torch.ones(2, 3), torch.ones(3, 3)])
    with pytest.raises(InputError, match="size: got 0"):
        gradient_statistics([TOY], 0)
    with pytest.raises(InputError, match="quantile: got 0"):
        gradient_statistics([TOY], quantile=0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(InputError, match="model: 1 is a BatchNorm1d in training mode"):
        per_sample_gradients(lambda m, x: m(x).sum(), model, torch.ones(4, 2))
    assert len(per_sample_gradients(lambda m, x: m(x).sum(), model.eval(), torch.ones(4, 2))) == 4


# the controller


def statistics(variance: float, norm_square: float = 1.0) -> GradientStatistics:
    return GradientStatistics(variance, variance / 2, variance / 2, norm_square, variance, 8)


def test_it_grows_to_what_the_test_asks_and_never_shrinks() -> None:
    controller = BatchSizeController(8, 1000, eta=0.5)
    assert not controller.update(statistics(1.0))  # 4 would do
    assert controller.update(statistics(10.1))
    assert controller.batch_size == 41
    assert not controller.update(statistics(1.0))
    assert not controller.update(statistics(math.nan))
    assert controller.batch_size == 41
    assert controller.update(statistics(1.0, norm_square=0.0))
    assert controller.batch_size == 1000
    assert controller.history == [(0, 8), (2, 41), (5, 1000)]
    assert not controller.update(statistics(0.0, norm_square=0.0))  # nothing varies: nothing is asked


@given(asked=st.integers(1, 5000), micro=st.integers(1, 300), world=st.integers(1, 9), start=st.integers(1, 50))
@settings(deadline=None, max_examples=60)
def test_micro_batches_grow_first_then_their_number(asked: int, micro: int, world: int, start: int) -> None:
    controller = BatchSizeController(start, 5000, eta=1.0, max_micro_batch_size=micro, world_size=world)
    controller.update(statistics(float(asked)))
    wanted = max(asked, start)
    assert controller.micro_batch_size <= micro
    assert controller.batch_size == world * controller.micro_batch_size * controller.accumulation
    assert wanted <= controller.batch_size < wanted + world * controller.accumulation
    if wanted <= world * micro:
        assert controller.accumulation == 1


def test_interval_and_state() -> None:
    controller = BatchSizeController(4, interval=3)
    controller.update(statistics(2.0))
    assert not controller.is_due()
    controller.update()
    controller.update(statistics(1e6))  # not due
    assert controller.batch_size == 8
    with pytest.raises(InputError, match="statistics: got None"):
        controller.update()
    resumed = BatchSizeController(4, interval=3)
    resumed.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    for each in (controller, resumed):
        each.update(statistics(100.0))
        each.update()
    assert controller.state_dict() == resumed.state_dict()
    assert controller.history == resumed.history
    for state, message in (
        ({"batchsize": 1}, "unknown key 'batchsize'"),
        ({"batch_size": 1}, "'updates' is missing"),
        ({"batch_size": 10**6, "updates": 0, "history": []}, "batch_size: got 1000000; allowed: .* <= 50000"),
    ):
        with pytest.raises(InputError, match=message):
            resumed.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"batch_size": 10, "max_batch_size": 5}, "max_batch_size: got 5; allowed: an integer >= 10"),
        ({"batch_size": 4, "test": "inner"}, "test: 'inner' is not known .did you mean 'inner-product'"),
        ({"batch_size": 4, "eta": 0}, "eta: got 0"),
        ({"batch_size": 4, "theta": -1}, "theta: got -1"),
        ({"batch_size": 4, "nu": math.inf}, "nu: got inf"),
        ({"batch_size": 4, "interval": 0}, "interval: got 0"),
        ({"batch_size": 4, "max_micro_batch_size": 0}, "max_micro_batch_size: got 0"),
        ({"batch_size": 4, "world_size": 0.5}, "world_size: got 0.5"),
    ],
)
def test_bad_values_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchSizeController(**options)


# in training


def test_the_sampler_takes_the_size_of_the_moment() -> None:
    controller = BatchSizeController(2, 50, eta=1.0)
    sampler = ResizableBatchSampler(SequentialSampler(range(13)), controller)
    assert len(sampler) == 7
    loader = DataLoader(TensorDataset(torch.arange(13)), batch_sampler=sampler)
    sizes = []
    for (batch,) in loader:
        sizes.append(len(batch))
        if len(sizes) == 2:
            controller.update(statistics(5.0))
    assert sizes == [2, 2, 5, 4]
    assert len(sampler) == 3
    assert len(ResizableBatchSampler(range(13), controller, drop_last=True)) == 2
    assert [len(b) for b in ResizableBatchSampler(range(13), controller, drop_last=True)] == [5, 5]


def test_accumulation_under_accelerate() -> None:
    """Micro-batches of 4 at most, then more of them. accelerate draws a batch ahead: the first comes late."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    controller = BatchSizeController(2, 16, eta=1.0, max_micro_batch_size=4)
    data = TensorDataset(torch.arange(64.0)[:, None])
    loader = DataLoader(data, batch_sampler=ResizableBatchSampler(SequentialSampler(data), controller))
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    seen: list[float] = []
    updates = []
    for (x,) in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(x).mean())
            seen += x.flatten().tolist()
            if accelerator.sync_gradients:
                updates.append((len(seen), model.weight.grad.item(), sum(seen) / len(seen)))
                seen = []
                controller.update(statistics(3.0 if len(updates) < 4 else 12.0))
                optimizer.step()
                optimizer.zero_grad()
                controller.apply_to(accelerator)
    assert [count for count, *_ in updates[:7]] == [2, 2, 3, 3, 3 + 2 * 4, 12, 12]
    for _, gradient, mean in (updates[i] for i in (0, 1, 2, 3, 5, 6)):
        assert gradient == pytest.approx(mean, rel=1e-5)
