"""Lanczos, traces and quadrature against torch.linalg.eigvalsh."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError, NonFiniteError
from genflow.optim.dynamics import Hessian, Operator, Spectrum, lanczos, largest_eigenvalue, slq, trace


def symmetric(values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = len(values)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    return basis @ torch.tensor(values, dtype=torch.float64).diag() @ basis.T


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(0, 1000), st.integers(1, 14))
def test_lanczos_invariants(size, seed, steps):
    matrix = torch.randn(size, size, generator=generator(seed), dtype=torch.float64)
    matrix = matrix + matrix.T
    result = lanczos(matrix, torch.randn(size, generator=generator(seed + 1), dtype=torch.float64), steps)
    basis, k = result.basis, len(result.diagonal)
    assert k == min(size, steps)
    torch.testing.assert_close(basis @ basis.T, torch.eye(k, dtype=torch.float64), atol=1e-12, rtol=0)
    inner = torch.diag(result.off_diagonal, 1)
    expected = result.diagonal.diag() + inner + inner.T
    torch.testing.assert_close(basis @ matrix @ basis.T, expected, atol=1e-10, rtol=0)
    if k == size:
        torch.testing.assert_close(result.eigen()[0], torch.linalg.eigvalsh(matrix), atol=1e-10, rtol=0)


def test_lanczos_stays_orthogonal_where_the_plain_recurrence_does_not():
    matrix = symmetric([*torch.linspace(0, 1, 97).tolist(), 50.0, 100.0, 1e4])
    basis = lanczos(matrix, torch.ones(100, dtype=torch.float64), 80).basis
    assert (basis @ basis.T - torch.eye(len(basis), dtype=torch.float64)).abs().max() < 1e-12


def test_lanczos_ends_with_the_krylov_space():
    matrix = symmetric([2.0] * 5 + [3.0] * 4 + [7.0])
    result = lanczos(matrix, torch.ones(10, dtype=torch.float64), 10)
    torch.testing.assert_close(result.eigen()[0], torch.tensor([2.0, 3.0, 7.0], dtype=torch.float64))
    assert result.residual == 0
    zero = largest_eigenvalue(torch.zeros(4, 4))
    assert (zero.value, zero.error, zero.products) == (0, 0, 1)


def test_spikes_of_the_specification():
    """60 dimensions, spikes 5 and 9 on zeros: exact after a few steps."""
    values = lanczos(symmetric([0.0] * 58 + [5.0, 9.0]), torch.ones(60, dtype=torch.float64), 12).eigen()[0]
    torch.testing.assert_close(values[-2:], torch.tensor([5.0, 9.0], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["lanczos", "power"])
@pytest.mark.parametrize("which", ["algebraic", "magnitude"])
def test_ends_of_the_spectrum(method, which):
    matrix = symmetric([-8.0, -1.0, 0.0, 0.5, 1.0, 2.0, 5.0])
    found = largest_eigenvalue(matrix, steps=400, tolerance=1e-9, which=which, method=method)
    assert found.value == pytest.approx(5.0 if which == "algebraic" else -8.0, rel=1e-9)
    assert found.error <= 1e-8 * abs(found.value)
    residual = matrix @ found.vector - found.value * found.vector
    assert residual.norm() < 1e-6
    assert found.products < 400


@pytest.mark.parametrize("method", ["lanczos", "power"])
def test_the_error_bounds_the_distance_to_an_eigenvalue(method):
    matrix = symmetric(torch.linspace(-1, 3, 50).tolist())
    values = torch.linalg.eigvalsh(matrix)
    for steps in (1, 2, 5, 10):
        found = largest_eigenvalue(matrix, steps=steps, tolerance=0, method=method)
        assert found.products == steps
        assert (values - found.value).abs().min() <= found.error + 1e-12
        assert found.value <= values[-1] + 1e-12


def test_of_a_network(problem, exact):
    network, loss, (x, y) = problem
    values = torch.linalg.eigvalsh(exact)
    hessian = Hessian(loss, network.parameters(), [(x[:16], y[:16]), (x[16:], y[16:])])
    top = largest_eigenvalue(hessian, steps=60, tolerance=1e-8)
    assert top.value == pytest.approx(values[-1].item(), rel=1e-7)
    assert hessian.products == top.products < 60
    bottom = largest_eigenvalue(Operator(lambda v: -hessian(v), hessian.size, torch.float64), steps=79, tolerance=1e-9)
    assert -bottom.value == pytest.approx(values[0].item(), rel=1e-6)

    short = slq(hessian, steps=5, probes=2)
    torch.testing.assert_close(short.nodes, slq(exact, steps=5, probes=2).nodes, rtol=1e-9, atol=1e-10)
    spectrum = slq(exact, steps=25, probes=200, generator=generator(1))
    assert spectrum.largest == pytest.approx(values[-1].item(), rel=1e-6)
    assert spectrum.smallest == pytest.approx(values[0].item(), rel=1e-3)
    for order in range(1, 5):
        value, error = spectrum.moment(order)
        assert abs(value - values.pow(order).mean().item()) < 4 * error + 1e-12
    assert spectrum.moment(0).value == pytest.approx(1)
    assert abs(spectrum.trace().value - values.sum().item()) < 4 * spectrum.trace().error

    grid = torch.linspace(values[0].item() - 1, values[-1].item() + 1, 2001, dtype=torch.float64)
    width = 0.05
    density = spectrum.density(grid, width)
    kernel = (-((grid[:, None] - values) / width).square() / 2).exp() / (width * math.sqrt(2 * math.pi))
    expected = kernel.mean(1)
    step = grid[1] - grid[0]
    assert density.sum() * step == pytest.approx(1, rel=1e-6)
    assert (density - expected).abs().sum() * step < 0.05


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(0, 1000))
def test_moments_of_a_probe_are_exact_to_twice_its_steps(steps, seed):
    matrix = symmetric(torch.linspace(-1, 1.5, 20).tolist(), seed)
    spectrum = slq(matrix, steps=steps, probes=1, generator=generator(seed))
    signs = torch.randint(0, 2, (20,), generator=generator(seed)).double() * 2 - 1
    power = signs.clone()
    for order in range(2 * steps):
        assert spectrum.moment(order).value == pytest.approx((signs @ power).item() / 20, abs=1e-10)
        power = matrix @ power
    assert spectrum.moment(1).error is None


def test_hutchinson_and_its_error():
    matrix = symmetric(torch.linspace(-1, 3, 40).tolist())
    # over many seeds the estimate is unbiased and the error it names is the one it makes
    estimates = [trace(matrix, probes=8, generator=generator(seed)) for seed in range(200)]
    values = torch.tensor([e.value for e in estimates])
    off = 2 * (matrix.square().sum() - matrix.diagonal().square().sum())  # the variance of one probe
    assert values.mean().item() == pytest.approx(40.0, abs=4 * math.sqrt(off / 1600))
    assert values.std().item() == pytest.approx(math.sqrt(off / 8), rel=0.15)
    named = math.sqrt(sum(e.error**2 for e in estimates) / 200)
    assert named == pytest.approx(math.sqrt(off / 8), rel=0.15)
    square = trace(matrix, probes=400, square=True)
    assert abs(square.value - matrix.square().sum().item()) < 4 * square.error
    assert trace(torch.eye(5), probes=1) == (5.0, None)


def test_results_repeat(problem):
    network, loss, batch = problem
    hessian = Hessian(loss, network.parameters(), [batch])
    assert largest_eigenvalue(hessian).value == largest_eigenvalue(hessian).value
    assert trace(hessian, probes=2) == trace(hessian, probes=2)
    first, second = (slq(hessian, steps=4, probes=2, generator=generator(3)) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert slq(hessian, steps=4, probes=2, generator=generator(4)).to_json() != first.to_json()


def test_spectrum_through_json():
    spectrum = slq(symmetric([1.0, 2.0, 2.0, 5.0]), steps=3, probes=2)
    again = Spectrum.from_json(json.loads(json.dumps(spectrum.to_json())))
    assert again.to_json() == spectrum.to_json()
    with pytest.raises(InputError, match="spectrum: cannot be read"):
        Spectrum.from_json({"size": 3})
    with pytest.raises(InputError, match="do not fit"):
        Spectrum.from_json({"size": 3, "nodes": [[1.0]], "weights": [[0.5, 0.5]]})


def test_bad_input():
    matrix = torch.eye(3)
    with pytest.raises(InputError, match="square matrix"):
        largest_eigenvalue(torch.ones(2, 3))
    with pytest.raises(InputError, match="steps: got 0"):
        slq(matrix, steps=0)
    with pytest.raises(InputError, match="probes: got 0"):
        trace(matrix, probes=0)
    with pytest.raises(InputError, match="method: 'lanczs' is not known .did you mean 'lanczos'"):
        largest_eigenvalue(matrix, method="lanczs")
    with pytest.raises(InputError, match="norm"):
        lanczos(matrix, torch.zeros(3), 2)
    with pytest.raises(InputError, match="width"):
        slq(matrix).density(torch.zeros(1), 0.0)
    for method in ("lanczos", "power"):
        with pytest.raises(NonFiniteError, match="NaN or infinity"):
            largest_eigenvalue(matrix * float("nan"), method=method)
