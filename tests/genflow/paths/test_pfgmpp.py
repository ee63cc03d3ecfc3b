"""PFGM++'s noise against its exact radial law, and everything that must not depend on the batch."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from genflow.errors import InputError
from genflow.paths import EDMPath, LinearPath, Path, PFGMPlusPlusPath, TrigonometricPath, VPPath, with_student_t


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def noise(path, count, dims, seed=0, dtype=torch.float64):
    generator = seeded(seed)
    return path.noise(torch.randn(count, dims, generator=generator, dtype=dtype), generator)


@pytest.mark.parametrize(
    ("dims", "D"),
    [(3072, 128), (784, 2048), (784, 3e6), (8, 4), (8, 1), (64, 1), (1, 3), (2, 0.5), (3072, 0.7)],
)
def test_radius_has_the_exact_law(dims, D):  # noqa: N803
    """R^2 / (R^2 + r^2) ~ Beta(N/2, D/2) with r = sigma sqrt(D) (Xu et al. 2023, section 3.1)."""
    path, sigma, count = PFGMPlusPlusPath(D, sigma_max=10.0), 2.5, 1500
    x = path.perturb(torch.zeros(count, dims, dtype=torch.float64), noise(path, count, dims), path.time(sigma))
    squared = x.square().sum(1).numpy()
    beta = squared / (squared + sigma**2 * D)
    assert stats.kstest(beta, stats.beta(dims / 2, D / 2).cdf).pvalue > 1e-3
    if D < 1000:  # a Gaussian is told apart
        gaussian = sigma**2 * np.random.default_rng(0).chisquare(dims, count)
        assert stats.kstest(gaussian / (gaussian + sigma**2 * D), stats.beta(dims / 2, D / 2).cdf).pvalue < 1e-6


def test_no_draw_is_clipped():
    """The paper's code clips the Beta draw to [1e-3, 1 - 1e-3]: at N = D/1000 half of it lies outside."""
    path = PFGMPlusPlusPath(3_072_000)
    squared = noise(path, 500, 3072).square().sum(1) / path.D
    assert 0.3 < (squared / (squared + 1) < 1e-3).double().mean() < 0.7


@pytest.mark.parametrize("D", [1, 5, 128])
def test_direction_is_uniform(D):  # noqa: N803
    directions = torch.nn.functional.normalize(noise(PFGMPlusPlusPath(D), 40_000, 6), dim=1)
    assert directions.mean(0).abs().max() < 0.01
    torch.testing.assert_close(
        directions.T @ directions / len(directions), torch.eye(6).double() / 6, atol=5e-3, rtol=0
    )
    # a coordinate of a uniform direction: c^2 ~ Beta(1/2, (N - 1)/2), whatever the radius
    squares = directions[:, 2].square().numpy()
    assert stats.kstest(squares, stats.beta(0.5, 2.5).cdf).pvalue > 1e-3


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    D=st.one_of(st.floats(0.5, 1e7), st.just("inf")),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_dtype(shape, dtype, D, seed):  # noqa: N803
    path = PFGMPlusPlusPath(D)
    normal = torch.randn(shape, generator=seeded(seed)).to(dtype)
    result = path.noise(normal, [seeded(seed + i) for i in range(shape[0])])
    assert result.shape == normal.shape
    assert result.isfinite().all()
    if D == "inf":
        assert result is normal
        return
    assert result.dtype == torch.promote_types(dtype, torch.float32)
    flat, source = result.double().reshape(shape[0], -1), normal.double().reshape(shape[0], -1)
    factors = (flat * source).sum(1) / source.square().sum(1)  # one factor a sample
    torch.testing.assert_close(flat, factors[:, None] * source, rtol=1e-5, atol=1e-6)
    assert (factors > 0).all()


def test_a_sample_depends_on_its_own_generator():
    path = PFGMPlusPlusPath(3.0)
    normal = torch.randn(5, 2, 3)
    together = path.noise(normal, [seeded(i) for i in range(5)])
    apart = torch.cat([path.noise(normal[i : i + 1], [seeded(i)]) for i in range(5)])
    assert torch.equal(together, apart)
    assert torch.equal(path.noise(normal, seeded(7)), path.noise(normal, seeded(7)))
    assert not torch.equal(path.noise(normal, seeded(7)), path.noise(normal, seeded(8)))
    torch.manual_seed(4)
    first = path.noise(normal)
    torch.manual_seed(4)
    assert torch.equal(path.noise(normal), first)


def test_infinity_is_gaussian_and_draws_nothing():
    normal, generator = torch.randn(3, 4, dtype=torch.float16), seeded(0)
    before = generator.get_state()
    for infinity in (math.inf, "inf"):
        path = PFGMPlusPlusPath(infinity)
        assert path.noise(normal, generator) is normal
        assert path.noise_law == EDMPath().noise_law == "Gaussian"
    assert torch.equal(generator.get_state(), before)
    assert PFGMPlusPlusPath(2.5).noise_law == "Student-t with D=2.5"


def test_half_precision_does_not_overflow():
    path = PFGMPlusPlusPath(0.5)
    x = path.noise(torch.ones(2000, 3, dtype=torch.float16), seeded(0)) * path.prior_std
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert x.max() > torch.finfo(torch.float16).max


@pytest.mark.parametrize("D", [0.5, 128, 3_000_000, "inf"])
def test_configuration(D):  # noqa: N803
    path = PFGMPlusPlusPath(D, sigma_max=40)
    config = json.loads(json.dumps(path.to_config(), allow_nan=False))
    again = Path.from_config(config)
    assert again == path
    assert hash(again) == hash(path)
    assert again != EDMPath(40)
    assert again != PFGMPlusPlusPath(7, sigma_max=40)
    assert isinstance(path, EDMPath)
    assert path.noise_level(0.5) == 20


@pytest.mark.parametrize("D", [1, 4, 200, "inf"])
def test_prior_density(D):  # noqa: N803
    path = PFGMPlusPlusPath(D, sigma_max=3.0)
    x = torch.randn(20, 4, dtype=torch.float64) * 5
    expected = stats.multivariate_t(shape=9 * np.eye(4), df=path.D).logpdf(x.numpy())
    np.testing.assert_allclose(path.prior_log_prob(x.reshape(20, 2, 2)).numpy(), expected, rtol=1e-9)

    def density(x):
        return math.exp(path.prior_log_prob(torch.tensor([[x]]).double()).item())

    huge = PFGMPlusPlusPath(1e14, sigma_max=3.0).prior_log_prob(x)
    torch.testing.assert_close(huge, EDMPath(sigma_max=3.0).prior_log_prob(x))
    assert integrate.quad(density, -math.inf, math.inf)[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("D", [0, -1, math.nan, -math.inf, "Inf", "4", None, True, [3]])
def test_bad_dimension(D):  # noqa: N803
    with pytest.raises(InputError, match="D: got .*; allowed: a number > 0, or 'inf' for Gaussian noise"):
        PFGMPlusPlusPath(D)


def test_every_family_of_schedulers_has_its_like():
    table = VPPath.from_alphas_cumprod([0.9, 0.5, 0.1])
    for path in (EDMPath(3.0), LinearPath(2.0), TrigonometricPath(), VPPath.linear(), table):
        like = with_student_t(path, 5)
        assert isinstance(like, type(path))
        assert like != path
        assert Path.from_config(json.loads(json.dumps(like.to_config()))) == like
        assert "D=5" in repr(like)
        assert (like.alpha(0.3), like.sigma(0.3)) == (path.alpha(0.3), path.sigma(0.3))
        assert with_student_t(path, None) is path
    with pytest.raises(
        InputError, match="D: got 5 on VPCosinePath.*allowed: on edm, linear, trigonometric, vp_linear, vp_table"
    ):
        with_student_t(VPPath.cosine(), 5)


def test_bad_generators():
    with pytest.raises(InputError, match="generators: got 2; allowed: one for each of 3 samples"):
        PFGMPlusPlusPath(4).noise(torch.randn(3, 2), [seeded(0), seeded(1)])
    with pytest.raises(InputError, match="normal: a scalar"):
        PFGMPlusPlusPath(4).noise(torch.randn(()))
