"""Objectives against closed forms: Gaussian data has an exact best prediction and an exact smallest loss."""

import math

import pytest
import torch
from scipy import stats

from genflow.errors import InputError
from genflow.models import EDMPreconditioning, from_function
from genflow.paths import EDMPath, LinearPath, PFGMPlusPlusPath, TrigonometricPath, VPPath
from genflow.training.objectives import create_objective

MEAN, STD = 0.3, 0.7
VP = VPPath.linear()


def exact_model(path, shift=0.0):
    """The best prediction of x0 for data of normal(MEAN, STD^2), off by ``shift``."""

    def x0(x, t):
        alpha, sigma = (c.view(-1, 1) for c in (path.alpha(t), path.sigma(t)))
        return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN) + shift

    return from_function(x0, path, "sample")


def draws(objective, count=4000):
    generator = torch.Generator().manual_seed(0)
    t = objective.draw_times(count, generator)
    x0 = torch.randn(count, 50, generator=generator, dtype=torch.float64) * STD + MEAN
    return x0, torch.randn(count, 50, generator=generator, dtype=torch.float64), t


CASES = [
    ("velocity", LinearPath(), "logit-normal", 0.0, 1.0),
    ("velocity", TrigonometricPath(), "uniform", 0.0, 1.0),
    ("epsilon", VP, "uniform", 0.0, 1.0),
    ("v_prediction", VP, "uniform", 0.0, 1.0),
    ("sample", LinearPath(), "uniform", 0.0, 1.0),
    ("edm", EDMPath(), "log-normal", -1.2, 1.2),
]


@pytest.mark.parametrize(("name", "path", "times", "mean", "std"), CASES)
def test_exact_model_has_the_exact_smallest_loss(name, path, times, mean, std):
    objective = create_objective(name, path, times, mean, std)
    x0, noise, t = draws(objective)
    loss = objective.loss(exact_model(path), x0, noise, t)
    assert loss.shape == t.shape

    alpha, sigma = path.alpha(t), path.sigma(t)
    left = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)  # variance of x0 given x
    # any kind is p x0 + q eps, and eps = (x - alpha x0) / sigma, so its error is that of x0 times p - q alpha / sigma
    factor = {
        "flow_prediction": 1 + alpha / sigma,
        "epsilon": alpha / sigma,
        "v_prediction": (sigma + alpha**2 / sigma) / torch.hypot(alpha, sigma),
        "sample": torch.ones_like(t),
    }[objective.prediction_type]
    expected = left * factor**2
    if name == "edm":
        expected = expected * EDMPreconditioning().loss_weight(path.noise_level(t))
    assert (loss / expected).mean().item() == pytest.approx(1.0, abs=4 * math.sqrt(2 / 50 / len(t)))

    worse = objective.loss(exact_model(path, shift=0.1), x0, noise, t)
    assert worse.mean() > loss.mean()


def test_noise_has_the_law_of_the_path():
    x0 = torch.zeros(2000, 6)
    objective = create_objective("pfgm++", PFGMPlusPlusPath(3), "log-normal", -1.2, 1.2)
    squared = objective.draw_noise(x0, torch.Generator().manual_seed(0)).square().sum(1)
    assert stats.kstest((squared / (squared + 3)).numpy(), stats.beta(3, 1.5).cdf).pvalue > 0.01
    again = objective.draw_noise(x0, torch.Generator().manual_seed(0)).square().sum(1)
    assert torch.equal(squared, again)
    gaussian = create_objective("edm", EDMPath(), "log-normal", -1.2, 1.2)
    plain = gaussian.draw_noise(x0, torch.Generator().manual_seed(0))
    assert torch.equal(plain, torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)))


def test_the_best_prediction_under_pfgmpp_noise_is_its_own():
    """Two points: the exact denoiser of the Student-t kernel beats that of the Gaussian one, and any shift of it."""
    path, points = PFGMPlusPlusPath(1.0), torch.tensor([[-1.0] * 8, [1.0] * 8], dtype=torch.float64)

    def model(kernel, shift=0.0):
        def x0(x, t):
            distance = torch.cdist(x, points).square() / path.sigma(t)[:, None] ** 2
            log_kernel = -distance / 2 if kernel == "gaussian" else -(8 + path.D) / 2 * torch.log1p(distance / path.D)
            return torch.softmax(log_kernel, dim=1) @ points + shift

        return from_function(x0, path, "sample")

    objective, generator = create_objective("pfgm++", path, "log-normal", 0.5, 1.0), torch.Generator().manual_seed(0)
    x0 = points[torch.randint(2, (20000,), generator=generator)]
    noise, t = objective.draw_noise(x0, generator), objective.draw_times(len(x0), generator)
    losses = [objective.loss(m, x0, noise, t) for m in (model("t"), model("gaussian"), model("t", 0.2))]
    best = losses[0].mean()
    assert all((other - losses[0]).mean() > 3 * (other - losses[0]).std() / len(x0) ** 0.5 for other in losses[1:])
    assert losses[1].mean() > 1.02 * best


def test_sigma_data_reaches_the_weight():
    objective = create_objective("edm", EDMPath(), "log-normal", -1.2, 1.2, sigma_data=2.0)
    assert objective.weight(3.0) == EDMPreconditioning(2.0).loss_weight(3.0)


def test_distributions_of_times():
    generator = torch.Generator().manual_seed(0)
    logit = create_objective("velocity", LinearPath(), "logit-normal", 0.5, 2.0).draw_times(20000, generator)
    assert stats.kstest(torch.logit(logit), stats.norm(0.5, 2.0).cdf).pvalue > 0.01
    uniform = create_objective("velocity", LinearPath(), "uniform").draw_times(20000, generator)
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    path = EDMPath()
    level = path.noise_level(create_objective("edm", path, "log-normal", -1.2, 1.2).draw_times(20000, generator))
    assert stats.kstest(level.log(), stats.norm(-1.2, 1.2).cdf).pvalue > 0.01


def test_float32_images_keep_float32_loss_and_a_gradient():
    objective = create_objective("velocity", LinearPath(), "logit-normal")
    x0, noise, t = draws(objective, 8)
    scale = torch.tensor(1.0, requires_grad=True)
    model = from_function(lambda x, t: x * scale, LinearPath(), "flow_prediction")
    loss = objective.loss(model, x0.float(), noise.float(), t)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    x = (1 - t[:, None]) * x0 + t[:, None] * noise
    assert scale.grad.item() == pytest.approx((2 * x * (x - (noise - x0))).mean().item(), rel=1e-4)


def test_faults():
    with pytest.raises(InputError, match="'velocity' on EDMPath"):
        create_objective("velocity", EDMPath(), "uniform")
    with pytest.raises(InputError, match="'edm' on PFGMPlusPlusPath.*allowed: on the edm path"):
        create_objective("edm", PFGMPlusPlusPath(4), "uniform")
    with pytest.raises(InputError, match="'pfgm\\+\\+' on EDMPath"):
        create_objective("pfgm++", EDMPath(), "uniform")
    with pytest.raises(InputError, match="'edm' on LinearPath"):
        create_objective("edm", LinearPath(), "uniform")
    with pytest.raises(InputError, match="did you mean 'epsilon'"):
        create_objective("epsilom", VP, "uniform")
    with pytest.raises(InputError, match="objective.times"):
        create_objective("epsilon", VP, "sometimes")
    with pytest.raises(InputError, match="times_std"):
        create_objective("epsilon", VP, "logit-normal", 0, 0)
