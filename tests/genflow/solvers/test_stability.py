"""Stability: the momentum paper's experiment on the linear test equation, and large guidance at few steps."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from genflow.models import from_function
from genflow.paths import LinearPath, VPPath
from genflow.prediction import Prediction
from genflow.sampling import sample, time_grid
from genflow.solvers import GHVB, HB, AdamsBashforth, Solver

ADAMS = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
GAMMA = [1, 1 / 2, 5 / 12, 3 / 8]
BETAS = (1.0, 0.8, 0.6, 0.4)


def differences(weights: list[float]) -> np.ndarray:
    """``sum_j weights[j] nabla^j`` as weights of the values, newest first."""
    result, power = np.zeros(len(weights)), np.array([1.0])
    for weight in weights:
        result[: len(power)] += weight * power
        power = np.convolve(power, [1.0, -1.0])
    return result


def radius(kind: str, k: int, beta: float, z: complex) -> float:
    """Spectral radius of one step of the rule on ``x' = lambda x``, ``z = step * lambda``; beta = 1 is AB of order k.

    The state is (x_n, ..., x_{n-k}, v_{n-1}, ..., v_{n-k}); the rules are written out as in the paper.
    """
    size = 2 * k + 1
    matrix = np.zeros((size, size), dtype=complex)
    if kind == "ghvb":
        # v_n = (1 - beta) v_{n-1} + beta x_n, then x_{n+1} = x_n + z sum_j c_j v_{n-j}
        weights = differences([GAMMA[j] + ((1 - beta) / beta * GAMMA[j - 1] if j else 0) for j in range(k)])
        v = np.zeros(size, dtype=complex)
        v[0], v[k + 1] = beta, 1 - beta
        matrix[0] = z * weights[0] * v
        for j in range(1, k):
            matrix[0, k + j] += z * weights[j]
    else:
        # v_n = (1 - beta) v_{n-1} + beta AB_k(x), then x_{n+1} = x_n + z v_n
        v = np.zeros(size, dtype=complex)
        v[:k] = beta * np.array(ADAMS[k])
        v[k + 1] = 1 - beta
        matrix[0] = z * v
    matrix[0, 0] += 1
    matrix[1 : k + 1, :k] = np.eye(k)
    matrix[k + 1] = v
    matrix[k + 2 :, k + 1 : -1] = np.eye(k - 1)
    return np.abs(np.linalg.eigvals(matrix)).max()


REAL, IMAGINARY = np.linspace(-4.4, 0.3, 48), np.linspace(0.02, 2.4, 25)
GRID = REAL[None, :] + 1j * IMAGINARY[:, None]


def solver_for(kind: str, k: int, beta: float) -> Solver:
    return GHVB(k - 1 + beta, "velocity") if kind == "ghvb" else HB(k, beta, frame="velocity")


@pytest.mark.parametrize("kind", ["hb", "ghvb"])
def test_momentum_widens_the_region_of_stability(kind: str) -> None:
    for k in (2, 3, 4):
        areas = []
        for beta in BETAS:
            stable = np.array([radius(kind, k, beta, z) <= 1 for z in GRID.ravel()])
            areas.append(stable.mean())
        assert all(b > 1.1 * a for a, b in pairwise(areas)), (kind, k, areas)


@pytest.mark.parametrize("beta", [1.0, 0.7, 0.3])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["hb", "ghvb"])
def test_the_solver_has_the_region_of_the_paper(kind: str, k: int, beta: float) -> None:
    """Run on e' = lambda e for every lambda of the grid at once: it decays exactly where the radius is below 1."""
    path, steps = LinearPath(), 400
    times = np.linspace(1.0, 0.2, steps + 1)
    z = torch.from_numpy(GRID.ravel())
    rates = z / (times[1] - times[0])
    solver = solver_for(kind, k, beta)
    solver.start(path, times)
    x = torch.ones_like(z)
    for i, t in enumerate(solver.evaluations.tolist()):
        x = solver.step(x, Prediction(rates * x, "flow_prediction", x, path, t), i)
    expected = np.array([radius(kind, k, beta, value) for value in GRID.ravel()])
    size = torch.nan_to_num(x.abs(), nan=torch.inf).numpy()
    assert (size[expected < 0.97] < 1).all()
    assert (size[expected > 1.03] > 1).all()
    assert (expected < 0.97).sum() > 4


class Stiff:
    """Class-conditional latents (4, 8, 8): a narrow law inside a wide one, so that guidance makes a stiff equation."""

    def __init__(self, path: VPPath, scale: float) -> None:
        self.path, self.scale = path, scale
        generator = torch.Generator().manual_seed(5)
        self.means = 1.7 * torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64)

    def denoise(self, x: Tensor, t: float, means: Tensor, std: float) -> Tensor:
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        variance = alpha**2 * std**2 + sigma**2
        offset = x[:, None] - alpha * means
        share = torch.softmax(-offset.flatten(2).pow(2).sum(-1) / (2 * variance), dim=1)
        x0 = means + alpha * std**2 / variance * offset
        return (share[..., None, None, None] * x0).sum(1)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        conditional = self.denoise(x, t, self.means[:1], 0.3)
        unconditional = self.denoise(x, t, self.means, 1.0)
        return unconditional + self.scale * (conditional - unconditional)


def magnitude(latents: Tensor) -> float:
    """The paper's score: largest magnitude over channels, 4x4 max-pooled, values below 3 dropped, averaged."""
    pooled = torch.nn.functional.max_pool2d(latents.abs().amax(1, keepdim=True), 4)
    return torch.where(pooled < 3, 0.0, pooled).mean().item()


@pytest.mark.parametrize("steps", [10, 15])
def test_guidance_of_15_diverges_less_as_the_order_falls(steps: int) -> None:
    path = VPPath.scaled_linear()
    model = from_function(Stiff(path, 15.0), path, "sample")
    x = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = time_grid(path, steps, end=0.02)
    rules = [AdamsBashforth(4, "epsilon"), *(GHVB(order, "epsilon") for order in (3.7, 3.3, 2.7, 2.3, 1.7))]
    scores = [magnitude(sample(model, x, times, rule)) for rule in rules]
    assert all(b < a for a, b in pairwise(scores)), scores
    fine = magnitude(sample(model, x, time_grid(path, 300, end=0.02), "euler"))
    assert scores[0] > 1000 * fine
    assert scores[-1] == pytest.approx(fine, rel=0.15)
