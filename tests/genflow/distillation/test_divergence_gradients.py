"""What the student's loss follows is the gradient of the f-divergence: against autograd through exact densities."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from genflow.distillation import (
    DIVERGENCES,
    DensityRatio,
    Divergence,
    UserDivergence,
    discriminator_loss,
    exact_weight,
    student_loss,
)
from genflow.evaluate.divergences import Mixture, MixtureStudent
from genflow.paths import EDMPath, LinearPath, Path, VPPath

# besides the named: between squared Hellinger and forward-KL, and one whose weight is bounded
USERS = (UserDivergence(lambda r: r**-1.25, "power"), UserDivergence(lambda r: 1 / (1 + r) ** 2, "bounded"))
ALL = pytest.mark.parametrize("divergence", [*DIVERGENCES.values(), *USERS], ids=lambda d: d.name)


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def teacher(dimensions: int) -> Mixture:
    means = tensor([-1.0, 0.4], [0.3, -0.8], [1.3, 0.9])[:, :dimensions]
    stds = tensor([0.6, 0.7], [0.5, 0.8], [0.7, 0.6])[:, :dimensions]
    return Mixture(means, stds, tensor(0.3, 0.45, 0.25))


def student(dimensions: int) -> MixtureStudent:
    made = MixtureStudent(tensor([-0.5, 0.1], [0.9, -0.2])[:, :dimensions], 0.6)
    with torch.no_grad():
        made.log_stds += tensor([0.1, -0.1], [-0.05, 0.2])[:, :dimensions]
    return made


def true_gradient(divergence: Divergence, path: Path, t: Tensor, dimensions: int) -> Tensor:
    """Of ``E_q[f(p / q)]`` at one time, by a sum over a grid with q's graph."""
    model = student(dimensions)
    points = 4001 if dimensions == 1 else 161
    side = 7.0 * float(path.alpha(t) + path.sigma(t))
    line = torch.linspace(-side, side, points, dtype=torch.float64)
    x = line[:, None] if dimensions == 1 else torch.cartesian_prod(line, line)
    log_p, log_q = teacher(dimensions).log_prob(x, path, t), model.density.log_prob(x, path, t)
    value = (log_q.exp() * divergence.f((log_p - log_q).exp())).sum() * (2 * side / (points - 1)) ** dimensions
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


def losses(
    model: MixtureStudent, part: Tensor, noise: Tensor, eps: Tensor, path: Path, t: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples with their graph, both exact denoised estimates, and the exact logits of the ratio."""
    generated = model(part, noise)
    with torch.no_grad():
        x = path.perturb(generated, eps, t)
        p, q = teacher(noise.shape[1]), model.density
        logits = p.log_prob(x, path, t) - q.log_prob(x, path, t)
        return generated, p.model(path).predict(x, t).x0, q.model(path).predict(x, t).x0, logits


def parameter_gradient(loss: Tensor, model: MixtureStudent) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])


def gauss_hermite(parts: int, nodes: int = 60) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Part, noise, eps and weight of a quadrature over all of a one-dimensional student's randomness."""
    points, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    weights = weights / weights.sum()
    part, i, j = torch.cartesian_prod(torch.arange(parts), torch.arange(nodes), torch.arange(nodes)).T
    return part, points[i, None], points[j, None], weights[i] * weights[j] / parts


@ALL
@pytest.mark.parametrize("path", [LinearPath(), VPPath.cosine(), EDMPath(20.0)], ids=lambda p: p.name)
@pytest.mark.parametrize("level", [0.2, 0.7, 3.0])
def test_the_loss_has_the_divergences_gradient(divergence: Divergence, path: Path, level: float) -> None:
    """In one dimension both sides by quadrature."""
    model = student(1)
    part, noise, eps, weights = gauss_hermite(len(model.means))
    t = torch.full((len(part),), path.time(level), dtype=torch.float64)
    generated, real, fake, logits = losses(model, part, noise, eps, path, t)
    per_sample = student_loss(generated, real, fake, divergence.h(logits.exp()), exact_weight(path, t, 1))
    found = parameter_gradient((weights * per_sample).sum(), model)
    expected = true_gradient(divergence, path, t[0], 1)
    assert torch.linalg.norm(found - expected) < 1e-7 * torch.linalg.norm(expected)


def sobol(count: int) -> Iterator[Tensor]:
    """A part for each of ``count`` samples, noise (count, 2), eps (count, 2): scrambled Sobol points."""
    uniform = torch.quasirandom.SobolEngine(5, scramble=True, seed=1).draw(count, dtype=torch.float64)
    normal = torch.special.ndtri(uniform[:, 1:].clamp(1e-12, 1 - 1e-12))
    yield from ((uniform[:, 0] * 2).long(), normal[:, :2], normal[:, 2:])


@ALL
@pytest.mark.parametrize("level", [0.3, 1.5])
def test_samples_and_the_normalized_ratio_in_two_dimensions(divergence: Divergence, level: float) -> None:
    """By samples through DensityRatio: the gradient over the mean weight, within 2 %."""
    path, model = LinearPath(), student(2)
    part, noise, eps = sobol(2**15)
    t = torch.full((len(part),), path.time(level), dtype=torch.float64)
    generated, real, fake, logits = losses(model, part, noise, eps, path, t)
    ratios = DensityRatio(0.1, 10.0, ratio_range=(math.exp(-10), math.exp(10)))
    h = ratios.weights(divergence, logits, path.noise_level(t))
    found = parameter_gradient(student_loss(generated, real, fake, h, exact_weight(path, t, 2)).mean(), model)
    expected = true_gradient(divergence, path, t[0], 2) / divergence.h(logits.exp()).mean()
    assert torch.linalg.norm(found - expected) < 0.02 * torch.linalg.norm(expected)


def test_other_divergences_have_other_gradients() -> None:
    """What the tests above tell apart: no two true gradients are within 3 %, after scaling, but for their own."""
    t = torch.tensor(LinearPath().time(0.3), dtype=torch.float64)
    directions = [true_gradient(d, LinearPath(), t, 2) for d in DIVERGENCES.values()]
    directions = [g / torch.linalg.norm(g) for g in directions]
    for i, a in enumerate(directions):
        for b in directions[:i]:
            assert torch.linalg.norm(a - b) > 0.03


@pytest.mark.parametrize("levels", [(0.3, 0.3), (0.05, 20.0)], ids=["one level", "many levels"])
def test_reverse_kl_is_variational_score_distillation_to_the_bit(levels: tuple[float, float]) -> None:
    path, model = LinearPath(), student(2)
    part, noise, eps = sobol(512)
    t = path.time(torch.logspace(*(math.log10(level) for level in levels), 512, dtype=torch.float64))
    generated, real, fake, logits = losses(model, part, noise, eps, path, t)
    h = DensityRatio(0.05, 20.0).weights(DIVERGENCES["reverse-kl"], logits, path.noise_level(t))
    plain = parameter_gradient(student_loss(generated, real, fake).mean(), model)
    assert torch.equal(parameter_gradient(student_loss(generated, real, fake, h).mean(), model), plain)
    # and this is DMD's: (fake - teacher) over the mean distance of sample and teacher
    step = (fake - real) / ((generated.detach() - real).abs().mean(1, keepdim=True) + 1e-6)
    direct = parameter_gradient((generated * step).mean(), model)
    torch.testing.assert_close(plain, direct, rtol=1e-12, atol=1e-14)


def test_the_discriminator_learns_the_log_ratio() -> None:
    """Logistic regression on (1, x, x^2) between two Gaussians, over quadrature points: the closed form."""
    points, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(80))
    weights = weights / weights.sum()
    (a, s), (b, r) = (0.6, 0.8), (-0.2, 1.1)  # of data and of the student
    coefficients = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def logits(x: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(x), x, x**2], dim=1) @ coefficients

    optimizer = torch.optim.LBFGS([coefficients], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weights * discriminator_loss(logits(a + s * points), logits(b + r * points))).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    constant = math.log(r / s) - a**2 / (2 * s**2) + b**2 / (2 * r**2)
    exact = tensor(constant, a / s**2 - b / r**2, 1 / (2 * r**2) - 1 / (2 * s**2))
    torch.testing.assert_close(coefficients.detach(), exact, rtol=1e-4, atol=1e-5)
