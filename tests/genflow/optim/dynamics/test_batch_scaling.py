"""Batch sharpness against random matrices and a network's own batches; the rules for learning rates."""

import math

import pytest
import torch
from torch import nn

from genflow.errors import InputError
from genflow.optim.dynamics import (
    BatchSharpness,
    Hessian,
    as_operator,
    largest_eigenvalue,
    measure_batches,
    scale_lr,
    suggest_lr_momentum,
)


@pytest.mark.parametrize("batch", [1, 4, 16, 64, 256])
def test_the_law_against_random_matrices(batch):
    """A spike of 3 in 400 dimensions, plus symmetric noise of entry variance s^2 / b."""
    size, spike, noise = 400, 3.0, 100.0
    law = BatchSharpness(spike, noise)
    generator = torch.Generator().manual_seed(batch)
    found = []
    for _ in range(3):
        half = torch.randn(size, size, generator=generator, dtype=torch.float64)
        matrix = (half + half.T) / math.sqrt(2) * math.sqrt(noise / size / batch)
        matrix[0, 0] += spike
        found.append(largest_eigenvalue(as_operator(matrix), steps=150, tolerance=1e-3).value)
    assert sum(found) / 3 == pytest.approx(law.at(batch), rel=0.04)
    assert (spike > math.sqrt(noise / batch)) == (batch > law.critical_batch)


def test_limits_of_the_law():
    law = BatchSharpness(2.0, 8.0)
    assert law.critical_batch == 2
    assert law.at(1e9) == pytest.approx(2)
    edge = [law.at(law.critical_batch * (1 + e)) for e in (-1e-7, 1e-7)]  # continuous, at twice the sharpness
    assert edge == pytest.approx([4, 4], rel=1e-6)
    # at the edge of the noise the learning rate goes with the root of b, a spike's with b while noise decides
    assert law.max_lr(0.2) / law.max_lr(0.05) == pytest.approx(2)
    assert law.max_lr(0.2, adaptive=True) / law.max_lr(0.05, adaptive=True) == pytest.approx(math.sqrt(2))
    assert BatchSharpness(2.0, 8.0, dataset=50).at(50) == pytest.approx(2)


@pytest.mark.parametrize("law", [BatchSharpness(2.0, 40.0), BatchSharpness(7.0, 3.0), BatchSharpness(0.5, 90.0, 500)])
def test_the_fit_finds_the_law(law):
    sizes = (2, 8, 40, 400)
    fitted = BatchSharpness.fit({size: law.at(size) for size in sizes}, law.dataset)
    assert fitted.sharpness == pytest.approx(law.sharpness, rel=1e-3)
    assert fitted.noise == pytest.approx(law.noise, rel=1e-3)
    pair = BatchSharpness.fit({size: law.at(size) for size in (40, 400)}, law.dataset)
    assert pair.at(100) == pytest.approx(law.at(100), rel=0.02)


def test_rules():
    assert scale_lr(0.1, 32, 128) == pytest.approx(0.4)
    assert scale_lr(0.1, 32, 128, "sqrt") == pytest.approx(0.2)
    law = BatchSharpness(2.0, 80.0)
    expected = 0.1 * law.at(32) / law.at(128)
    assert scale_lr(0.1, 32, 128, "rmt", fit=law) == pytest.approx(expected)
    assert scale_lr(0.1, 32, 128, "rmt", fit=law, adaptive=True) == pytest.approx(0.1 * math.sqrt(expected / 0.1))
    assert scale_lr(scale_lr(0.1, 8, 512, "rmt", fit=law), 512, 8, "rmt", fit=law) == pytest.approx(0.1)
    # far beyond the critical batch there is nothing more to gain
    assert scale_lr(0.1, 1e5, 2e5, "rmt", fit=law) == pytest.approx(0.1, rel=1e-3)


def test_heavy_ball_with_the_suggestion_is_as_fast_as_promised():
    largest, smallest = 100.0, 1.0
    lr, momentum = suggest_lr_momentum(largest, smallest)
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    curvature = torch.tensor([largest, 10.0, smallest], dtype=torch.float64)
    optimizer = torch.optim.SGD([x], lr=lr, momentum=momentum)
    for _ in range(200):
        x.grad = curvature * x.detach()
        optimizer.step()
    rate = math.log(x.detach().norm().item()) / 200
    assert rate == pytest.approx(math.log(momentum) / 2, rel=0.15)
    assert suggest_lr_momentum(4.0, 4.0) == (0.25, 0.0)


def test_bad_input():
    law = BatchSharpness(2.0, 8.0, 100)
    for call, message in (
        (lambda: BatchSharpness(0.0, 1.0), "sharpness"),
        (lambda: law.at(101), "batch: got 101"),
        (lambda: BatchSharpness.fit({4: 1.0}), "at least two"),
        (lambda: BatchSharpness.fit({4: 1.0, 8: -1.0}), r"measured\[8\]"),
        (lambda: scale_lr(0.1, 1, 2, "root"), "rule: 'root'"),
        (lambda: scale_lr(0.1, 1, 2, "rmt"), "fit: got None"),
        (lambda: scale_lr(0.1, 1, 2, "sqrt", fit=law), "allowed: with 'rmt'"),
        (lambda: scale_lr(0.1, 0, 2), "batch"),
        (lambda: suggest_lr_momentum(1.0, 2.0), "smallest"),
        (lambda: measure_batches(lambda size, generator: None, [0]), "sizes"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def classifier():
    torch.manual_seed(0)
    data = torch.randn(4096, 10)
    labels = (data @ torch.randn(10, 4) + 2 * torch.randn(4096, 4)).argmax(1)
    network = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(data), labels).backward()
        optimizer.step()
    optimizer.zero_grad()

    def hessian(size, generator):
        rows = torch.randperm(4096, generator=generator)[:size]
        loss = lambda: nn.functional.cross_entropy(network(data[rows]), labels[rows])  # noqa: E731
        return Hessian(loss, network.parameters())

    return hessian


def test_of_a_network():
    """The law through two sizes gives the others to 12 per cent, on both sides of the critical batch (25)."""
    hessian = classifier()
    measured = measure_batches(hessian, (4, 8, 16, 64, 256, 1024), draws=24)
    values = {size: estimate.value for size, estimate in measured.items()}
    assert sorted(values.values(), reverse=True) == list(values.values())
    law = BatchSharpness.fit({size: values[size] for size in (8, 256)}, dataset=4096)
    assert 10 < law.critical_batch < 50
    for size in (4, 16, 64, 1024):
        assert law.at(size) == pytest.approx(values[size], rel=0.12)
    repeat = measure_batches(hessian, (8,), draws=24)
    assert repeat[8] == measured[8]
