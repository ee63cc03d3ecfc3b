"""Log-densities against closed forms: Gaussian and mixture data, whose score is exact, on every path."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from genflow.errors import InputError, NonFiniteError
from genflow.likelihood import bits_per_dim, log_likelihood
from genflow.models import LeanUNet2DModel, from_diffusers, from_function
from genflow.paths import EDMPath, LinearPath, PFGMPlusPlusPath, TrigonometricPath, VPPath

MEANS = torch.tensor([[0.5, -0.2, 0.1], [-0.4, 0.3, 0.0]], dtype=torch.float64)
STDS = torch.tensor([[0.3, 0.5, 0.4], [0.4, 0.25, 0.6]], dtype=torch.float64)
TABLE = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
PATHS = [
    LinearPath(),
    LinearPath(shift=3.0),
    TrigonometricPath(),
    EDMPath(),
    EDMPath(sigma_max=10.0),
    VPPath.linear(),
    VPPath.scaled_linear(),
    VPPath.cosine(),
    VPPath.from_alphas_cumprod(TABLE),
    PFGMPlusPlusPath("inf"),
]
EXACT = {"divergence": "exact", "rtol": 1e-6, "atol": 1e-6}


def mixture(components, alpha, sigma):
    """The density of ``alpha x0 + sigma eps`` for a mixture of Gaussians x0."""
    means, stds = alpha * MEANS[:components], torch.hypot(alpha * STDS[:components], torch.tensor(sigma).double())
    return MixtureSameFamily(Categorical(torch.ones(components).double()), Independent(Normal(means, stds), 1))


def exact_model(path, components):
    """The exact posterior mean of x0."""

    def x0(x, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        means, variances = MEANS[:components], STDS[:components].square()
        total = alpha**2 * variances + sigma**2
        gap = x[:, None] - alpha * means
        weights = torch.softmax((-gap.square() / (2 * total) - total.log() / 2).sum(-1), dim=1)
        return (weights[..., None] * (means + alpha * variances / total * gap)).sum(1)

    return from_function(x0, path, "sample")


def prior(path, components):
    return lambda x: mixture(components, path.alpha(1.0), path.sigma(1.0)).log_prob(x)


def points(count=6):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.6


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("components", [1, 2])
def test_exact_densities(path, components):
    x, level = points(), 0.01
    found = log_likelihood(exact_model(path, components), x, noise_min=level, prior=prior(path, components), **EXACT)
    expected = mixture(components, 1.0, level).log_prob(x)
    torch.testing.assert_close(found.log_prob, expected, atol=1e-4, rtol=0)
    assert found.spread is None
    assert found.log_prob.dtype == torch.float64


@pytest.mark.parametrize("path", [EDMPath(sigma_max=10.0), VPPath.linear()], ids=repr)
def test_the_noise_alone_is_the_default_prior(path):
    model, options = exact_model(path, 1), {"divergence": "exact", "noise_min": 0.1}
    found = log_likelihood(model, points(), prior=prior(path, 1), **options)
    alone = log_likelihood(model, points(), **options)
    expected_gap = path.prior_log_prob(found.noise) - prior(path, 1)(found.noise)
    torch.testing.assert_close(alone.log_prob - found.log_prob, expected_gap, atol=1e-6, rtol=0)


def test_noise_is_the_encoding():
    """For Gaussian data the flow is linear: each trajectory keeps its standardised coordinate."""
    path, x = LinearPath(), points()
    found = log_likelihood(exact_model(path, 1), x, noise_min=1e-3, **EXACT)
    expected = (x - MEANS[0]) / STDS[0].square().add(1e-6).sqrt()
    torch.testing.assert_close(found.noise, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("D", [1.5, 6, 200])
def test_pfgmpp_densities(D):  # noqa: N803
    """The flow of Student-t noise moves its own marginals, so it has a likelihood too."""
    path, std, mean, level = PFGMPlusPlusPath(D, sigma_max=4.0), 0.5, 0.3, 1e-3
    # a Student-t vector is a Gaussian of random scale: E[x0 | x] by quadrature over that scale
    chi2 = torch.distributions.Chi2(torch.tensor(D).double())
    log_c, weights = np.polynomial.legendre.leggauss(300)
    log_c = torch.from_numpy(log_c) * 12 + math.log(D)
    scales = (D / log_c.exp()).sqrt()
    log_weights = torch.from_numpy(np.log(weights)) + chi2.log_prob(log_c.exp()) + log_c

    def log_joint(x, sigma):
        stds = torch.hypot(torch.tensor(std).double(), sigma * scales)
        density = Independent(Normal(mean, stds[:, None].expand(-1, 3)), 1).log_prob(x[:, None])
        return log_weights + density, std**2 / stds.square()

    def x0(x, t):
        joint, gains = log_joint(x, path.sigma(t))
        return mean + (torch.softmax(joint, 1) * gains).sum(1, keepdim=True) * (x - mean)

    def marginal(x, sigma=path.sigma_max):
        joint, _ = log_joint(x, sigma)
        return torch.logsumexp(joint, 1) - torch.logsumexp(log_weights, 0)

    x = points()
    model = from_function(x0, path, "sample")
    found = log_likelihood(model, x, noise_min=level, prior=marginal, **EXACT)
    torch.testing.assert_close(found.log_prob, marginal(x, level), atol=1e-4, rtol=0)
    clean = Independent(Normal(mean, torch.full((3,), std).double()), 1).log_prob(x)
    torch.testing.assert_close(found.log_prob, clean, atol=5e-3, rtol=0)
    alone = log_likelihood(model, x, noise_min=level, **EXACT)
    gap = path.prior_log_prob(found.noise) - marginal(found.noise)
    torch.testing.assert_close(alone.log_prob - found.log_prob, gap, atol=1e-6, rtol=0)
    assert gap.abs().max() < 0.5
    if D < 100:  # a Gaussian prior is another matter
        assert (EDMPath(4.0).prior_log_prob(found.noise) - marginal(found.noise)).abs().max() > 0.5


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(law):
    path, x = LinearPath(), points(3)
    options = {"noise_min": 0.05, "prior": prior(path, 2), "rtol": 1e-5, "atol": 1e-5}
    model = exact_model(path, 2)
    exact = log_likelihood(model, x, divergence="exact", **options).log_prob
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    found = log_likelihood(model, x, probes=400, probe_law=law, chunk=400, generators=generators, **options)
    assert (found.spread > 0).all()
    assert ((found.log_prob - exact).abs() < 4 * found.spread).all()
    fewer = log_likelihood(model, x, probes=25, probe_law=law, chunk=25, generators=generators, **options)
    ratio = fewer.spread / found.spread
    assert (ratio > 2).all()
    assert (ratio < 8).all()
    assert log_likelihood(model, x, probe_law=law, **options).spread is None


def test_probes_of_a_sample_are_its_own():
    model, x = exact_model(LinearPath(), 2), points(4)
    options = {"noise_min": 0.05, "method": "rk4", "steps": 10, "probes": 3}

    def seeds(*values):
        return [torch.Generator().manual_seed(value) for value in values]

    together = log_likelihood(model, x, generators=seeds(0, 1, 2, 3), **options)
    alone = log_likelihood(model, x[2:3], generators=seeds(2), **options)
    torch.testing.assert_close(alone.log_prob, together.log_prob[2:3])
    torch.testing.assert_close(alone.spread, together.spread[2:3])
    split = log_likelihood(model, x, generators=seeds(0, 1, 2, 3), chunk=2, **options)
    torch.testing.assert_close(split.log_prob, together.log_prob)
    other = log_likelihood(model, x, generators=seeds(5, 6, 7, 8), **options)
    assert (other.log_prob - together.log_prob).abs().max() > 1e-3


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_fixed_methods_converge(method, order):
    path, x = LinearPath(), points(4)
    model, options = exact_model(path, 1), {"divergence": "exact", "noise_min": 0.05, "prior": prior(path, 1)}
    expected = mixture(1, 1.0, 0.05).log_prob(x)
    errors = []
    for steps in (20, 40):
        found = log_likelihood(model, x, method=method, steps=steps, **options)
        errors.append((found.log_prob - expected).abs().mean().item())
        stages = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}[method]
        assert found.evaluations == steps * stages
    assert math.log2(errors[0] / errors[1]) > order - 0.4


@given(chunk=st.integers(1, 40), shape=st.lists(st.integers(1, 3), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_chunks_change_nothing(chunk, shape):
    path = LinearPath()
    matrix = torch.randn(math.prod(shape), math.prod(shape), dtype=torch.float64)

    def velocity(x, t):
        return torch.sin(x.flatten(1) @ matrix).reshape(x.shape) * t

    x = torch.randn(2, *shape, dtype=torch.float64)
    model = from_function(velocity, path, "flow_prediction")
    options = {"divergence": "exact", "method": "heun", "steps": 3, "noise_min": 0.0}
    found = log_likelihood(model, x, chunk=chunk, **options)
    torch.testing.assert_close(found.log_prob, log_likelihood(model, x, chunk=1, **options).log_prob)


def test_bits_of_uniform_pixels():
    """Discrete data whose density is known: independent pixels, uniform over 0 .. 255, are 8 bits each."""
    images = torch.randint(0, 256, (5, 1, 3, 3), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    seen = []

    def density(x):  # a uniform density of the cells, carried as it is by a flow that stands still
        seen.append(x)
        inside = (x.abs() <= 1 + 1 / 255).flatten(1).all(1)
        return torch.where(inside, -9 * math.log(2 * 256 / 255), -math.inf)

    still = from_function(lambda x, t: x * 0, LinearPath(), "flow_prediction")
    found = bits_per_dim(still, images, noise_min=0.0, method="euler", steps=2, prior=density, divergence="exact")
    torch.testing.assert_close(found.bits, torch.full((5,), 8.0, dtype=torch.float64), atol=1e-6, rtol=0)
    noise = (seen[0] - images) * 127.5  # within half a cell, and spread over it
    assert noise.abs().max() <= 0.5 + 1e-5
    assert noise.std() == pytest.approx(math.sqrt(1 / 12), abs=0.05)


def test_bits_of_a_network():
    """A real network, exact and estimated; images depend on their own seeds alone."""
    torch.manual_seed(0)
    network = LeanUNet2DModel(
        sample_size=4, in_channels=1, block_out_channels=(16, 16), layers_per_block=1, attention_head_dim=16,
        time_embed_dim=16,
    ).eval()  # fmt: skip
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    model = from_diffusers(network, LinearPath(), "flow_prediction")
    images = torch.randint(0, 256, (3, 1, 4, 4)) / 127.5 - 1
    options = {"method": "heun", "steps": 4}

    def seeds(*values):
        return [torch.Generator().manual_seed(value) for value in values]

    exact = bits_per_dim(model, images, divergence="exact", generators=seeds(0, 1, 2), **options)
    rough = bits_per_dim(model, images, probes=60, chunk=60, generators=seeds(0, 1, 2), **options)
    assert exact.bits.shape == (3,)
    assert ((rough.bits - exact.bits).abs() < 5 * rough.spread).all()
    assert exact.evaluations == 8
    one = bits_per_dim(model, images[1:2], divergence="exact", generators=seeds(1), **options)
    torch.testing.assert_close(one.bits, exact.bits[1:2], atol=1e-5, rtol=0)
    assert not any(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"divergence": "exat"}, "divergence: 'exat' is not known.*did you mean 'exact'"),
        ({"probes": 0}, "probes: got 0"),
        ({"probe_law": "normal"}, "probe_law: 'normal'"),
        ({"chunk": 0}, "chunk: got 0"),
        ({"noise_min": -1}, "noise_min: got -1"),
        ({"noise_min": math.nan}, "noise_min: got nan"),
        ({"method": "rk45"}, "method: 'rk45' is not known"),
        ({"method": "rk4"}, "steps: got None with method 'rk4'; allowed: a number of steps"),
        ({"steps": 10}, "steps: got 10 with method 'dopri5'; allowed: None"),
        ({"method": "rk4", "steps": 0}, "steps: got 0"),
        ({"rtol": 0}, "rtol: got 0"),
        ({"generators": [torch.Generator()]}, "generators: got 1; allowed: one for each of 2"),
    ],
)
def test_faults(options, says):
    calls = []
    model = from_function(lambda x, t: calls.append(t) or x, LinearPath(), "flow_prediction")
    with pytest.raises(InputError, match=says):
        log_likelihood(model, points(2), **options)
    assert not calls


def test_faults_of_data_and_model():
    still = from_function(lambda x, t: x * 0, LinearPath(), "flow_prediction")
    with pytest.raises(InputError, match="allowed: finite data"):
        log_likelihood(still, torch.tensor([[math.nan]]))
    with pytest.raises(InputError, match="images: allowed: values 2 k / 255 - 1"):
        bits_per_dim(still, torch.full((1, 1, 2, 2), 0.501))
    with pytest.raises(InputError, match="images: allowed"):
        bits_per_dim(still, torch.full((1, 1, 2, 2), 1 + 2 / 255))
    with pytest.raises(InputError, match="levels: got 1"):
        bits_per_dim(still, torch.ones(1, 1, 2, 2), levels=1)
    shut = from_function(torch.no_grad()(lambda x, t: x * 2), LinearPath(), "flow_prediction")
    with pytest.raises(InputError, match="prediction has no gradient"):
        log_likelihood(shut, points(2))
    bad = from_function(lambda x, t: x / 0, LinearPath(), "flow_prediction")
    with pytest.raises(NonFiniteError, match="NaN or infinity at evaluation 1"):
        log_likelihood(bad, points(2))
