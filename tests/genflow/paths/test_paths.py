"""Paths against their definitions, finite differences, their own inverses and diffusers' tables."""

import json
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.paths import PATHS, EDMPath, LinearPath, Path, TrigonometricPath, VPPath, expand_like

TABLE = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod
ZERO_SNR = DDIMScheduler(rescale_betas_zero_snr=True).alphas_cumprod
EXAMPLES = [
    LinearPath(),
    LinearPath(shift=3.0),
    LinearPath(shift=0.4),
    VPPath.linear(),
    VPPath.linear(2.0, 2.0),
    VPPath.scaled_linear(),
    VPPath.scaled_linear(3.0, 3.0),
    VPPath.cosine(),
    VPPath.from_alphas_cumprod(TABLE),
    VPPath.from_alphas_cumprod(ZERO_SNR),
    VPPath.from_alphas_cumprod([0.9, 0.0]),
    EDMPath(),
    TrigonometricPath(),
]
examples = pytest.mark.parametrize("path", EXAMPLES, ids=repr)
PURE_NOISE = [p for p in EXAMPLES if p.alpha(1.0) == 0]


@examples
def test_ends(path: Path) -> None:
    assert path.alpha(0.0) == pytest.approx(1, abs=1e-15)
    assert path.sigma(0.0) == 0
    assert path.noise_level(0.0) == 0
    assert path.time(0.0) == 0
    assert path.log_snr(0.0) == math.inf
    assert path.prior_std == path.sigma(1.0) > 0
    if path.alpha(1.0) == 0:
        assert path.sigma(1.0) == 1
        assert path.noise_level(1.0) == math.inf
        assert path.time(math.inf) == pytest.approx(1, abs=1e-15)
    else:
        assert path.time(math.inf) >= 1
    for t in (0.0, 1.0):
        assert not math.isnan(path.alpha_dot(t))
        assert not math.isnan(path.sigma_dot(t))
        assert math.isfinite(path.alpha_dot(t))


def test_which_paths_end_in_pure_noise() -> None:
    assert [type(p).__name__ for p in PURE_NOISE] == [
        *["LinearPath"] * 3,
        "VPCosinePath",
        *["VPTablePath"] * 2,
        "TrigonometricPath",
    ]


@pytest.mark.parametrize("path", [VPPath.linear(), VPPath.scaled_linear(), VPPath.cosine()], ids=repr)
def test_sigma_dot_is_infinite_at_the_clean_end_of_a_continuous_vp_path(path: Path) -> None:
    assert path.sigma_dot(0.0) == math.inf


@examples
def test_derivatives_match_autograd(path: Path) -> None:
    t = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for value, dot in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        (gradient,) = torch.autograd.grad((value(t) + 0 * t).sum(), t)
        torch.testing.assert_close(dot(t.detach()), gradient, rtol=1e-9, atol=1e-11)


@examples
def test_derivatives_at_the_ends_match_one_sided_differences(path: Path) -> None:
    h = 1e-7
    for value, dot in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        assert (value(1.0) - value(1 - h)) / h == pytest.approx(dot(1.0), rel=1e-3, abs=1e-4)
        if math.isfinite(dot(0.0)):
            assert (value(h) - value(0.0)) / h == pytest.approx(dot(0.0), rel=1e-3, abs=1e-4)


@examples
def test_noise_level_rises_and_time_inverts_it(path: Path) -> None:
    t = np.concatenate([[0.0, 1e-9, 1e-6], np.linspace(1e-4, 1 - 1e-4, 997), [1 - 1e-6, 1.0]])
    level = path.noise_level(t)
    assert (np.diff(level) > 0).all()
    # relative accuracy at small times, absolute at large ones (near pure noise 1 - t is what can be known)
    np.testing.assert_allclose(path.time(level), t, rtol=2e-13, atol=0)


@given(level=st.floats(1e-8, 1e4), index=st.integers(0, len(EXAMPLES) - 1))
@settings(deadline=None, max_examples=200)
def test_level_round_trip(level: float, index: int) -> None:
    path = EXAMPLES[index]
    if level < path.noise_level(1.0):
        # d level / dt is large near pure noise, so a rounding of t shows there
        t = path.time(level)
        slack = 4e-16 * level * (1 + abs(path.sigma_dot(t) / path.sigma(t)) + abs(path.alpha_dot(t) / path.alpha(t)))
        assert path.noise_level(t) == pytest.approx(level, rel=1e-12, abs=10 * slack)


@pytest.mark.parametrize("path", [p for p in EXAMPLES if isinstance(p, (VPPath, TrigonometricPath))], ids=repr)
def test_variance_is_preserved(path: Path) -> None:
    t = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, 1, rtol=1e-14)


@given(shift=st.floats(0.1, 20), t=st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_shift_scales_the_noise_level(shift: float, t: float) -> None:
    level = LinearPath(shift).noise_level(t)
    assert level == pytest.approx(shift * LinearPath().noise_level(t), rel=1e-12)


@pytest.mark.parametrize("constant", [VPPath.linear(2.0, 2.0), VPPath.scaled_linear(2.0, 2.0)], ids=repr)
def test_constant_beta_is_an_ornstein_uhlenbeck_process(constant: Path) -> None:
    t = np.linspace(0, 1, 11)
    np.testing.assert_allclose(constant.alpha(t), np.exp(-t), rtol=1e-14)


@pytest.mark.parametrize("table", [TABLE, ZERO_SNR], ids=["sd", "zero-snr"])
def test_table_knots(table: torch.Tensor) -> None:
    path = VPPath.from_alphas_cumprod(table)
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    torch.testing.assert_close(path.alpha(t) ** 2, table.double(), rtol=1e-11, atol=1e-15)
    assert path.num_train_timesteps == 1000


def test_table_is_continuous_and_lies_between_its_knots() -> None:
    path = VPPath.from_alphas_cumprod(ZERO_SNR)
    knots = np.arange(1, 1000) / 1000
    for value in (path.alpha, path.sigma):
        np.testing.assert_allclose(value(knots - 1e-12), value(knots + 1e-12), rtol=0, atol=1e-10)
    log_level = np.log(path.noise_level(np.array([0.5, 0.5005, 0.501])))
    assert log_level[1] == pytest.approx(log_level[[0, 2]].mean(), rel=1e-12)  # linear between knots


def test_table_interpolates_as_diffusers_does() -> None:
    path = VPPath.from_alphas_cumprod(TABLE)
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    log_sigmas = np.log(((1 - TABLE.numpy()) / TABLE.numpy()) ** 0.5)
    for level in (0.05, 0.3, 1.0, 3.0, 14.0):
        theirs = float(scheduler._sigma_to_t(np.array([level]), log_sigmas)[0])
        assert 1000 * path.time(level) - 1 == pytest.approx(theirs, abs=2e-3)


def test_continuous_beta_schedules_match_their_fine_tables() -> None:
    """A table of N betas of size beta/N tends to the continuous path as N grows."""
    n = 200_000
    for path, betas in (
        (VPPath.linear(0.1, 20.0), np.linspace(0.1, 20.0, n) / n),
        (VPPath.scaled_linear(0.85, 12.0), np.linspace(0.85**0.5, 12.0**0.5, n) ** 2 / n),
    ):
        alphas = np.sqrt(np.cumprod(1 - betas))
        t = (np.arange(n) + 1) / n
        np.testing.assert_allclose(alphas[n // 10 :: 7919], path.alpha(t)[n // 10 :: 7919], rtol=2e-3)


@examples
def test_config_round_trip(path: Path) -> None:
    again = Path.from_config(json.loads(json.dumps(path.to_config())))
    assert again == path
    assert hash(again) == hash(path)
    assert type(path).__name__ in repr(path)
    t = np.linspace(0, 1, 17)
    np.testing.assert_array_equal(again.alpha(t), path.alpha(t))


def test_every_path_has_a_config_name() -> None:
    assert set(PATHS) == {
        "linear",
        "trigonometric",
        "edm",
        "pfgm++",
        "pfgm++_linear",
        "pfgm++_trigonometric",
        "pfgm++_vp_linear",
        "pfgm++_vp_table",
        "vp_linear",
        "vp_scaled_linear",
        "vp_cosine",
        "vp_table",
    }
    assert LinearPath() != LinearPath(2.0)
    assert LinearPath() != "linear"


@examples
def test_kinds_of_time(path: Path) -> None:
    value = path.sigma(0.25)
    assert isinstance(value, float)
    assert isinstance(path.sigma(np.float32(0.25)), float)
    assert isinstance(path.sigma(1), float)
    array = path.sigma(np.array([0.25, 0.5], dtype=np.float32))
    assert array.dtype == np.float64
    tensor = path.sigma(torch.tensor([[0.25], [0.5]], dtype=torch.float16))
    assert tensor.dtype == torch.float64
    assert tensor.shape == (2, 1)
    assert value == array[0] == tensor[0, 0].item()
    with pytest.raises(InputError, match="time: got str"):
        path.sigma("half")


@examples
def test_perturb(path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.0, 0.3, 1.0])
    x = path.perturb(x0, noise, t)
    for i in range(3):
        one = path.perturb(x0[i], noise[i], float(t[i]))
        expected = path.alpha(float(t[i])) * x0[i] + path.sigma(float(t[i])) * noise[i]
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(x[i], one, rtol=1e-6, atol=1e-5)  # t was float32
    half = path.perturb(x0.half(), noise.half(), 0.3)
    assert half.dtype == torch.float16
    assert path.perturb(x0.bfloat16(), noise, t).dtype == torch.bfloat16


def test_perturb_refuses_shapes_that_do_not_fit() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(InputError, match="noise: shape"):
        LinearPath().perturb(x, torch.zeros(3, 1), 0.5)
    with pytest.raises(InputError, match=r"shape \(2,\) does not fit"):
        LinearPath().perturb(x, x, torch.rand(2))
    with pytest.raises(InputError, match="does not fit"):
        expand_like(torch.rand(3, 1), x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearPath(shift=0), "shift"),
        (lambda: LinearPath(shift=math.nan), "shift"),
        (lambda: EDMPath(sigma_max=-1), "sigma_max"),
        (lambda: VPPath.linear(0.0, 1.0), "beta_min"),
        (lambda: VPPath.linear(2.0, 1.0), "beta_max"),
        (lambda: VPPath.cosine(0.0), "offset"),
        (lambda: VPPath.from_alphas_cumprod([0.5]), "alphas_cumprod"),
        (lambda: VPPath.from_alphas_cumprod([0.5, 0.6]), "alphas_cumprod"),
        (lambda: VPPath.from_alphas_cumprod([1.0, 0.6]), "alphas_cumprod"),
        (lambda: VPPath.from_alphas_cumprod([0.5, -0.1]), "alphas_cumprod"),
        (lambda: VPPath.from_alphas_cumprod([0.5, math.nan]), "alphas_cumprod"),
        (lambda: Path.from_config({"path": "liner"}), "did you mean 'linear'"),
        (lambda: Path.from_config({}), "path"),
        (lambda: Path.from_config({"path": "linear", "shfit": 2.0}), "did you mean 'shift'"),
        (lambda: Path.from_config({"path": "trigonometric", "shift": 2.0}), "allowed: none"),
    ],
)
def test_bad_options(build: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize("path", EXAMPLES)
def test_a_schedule_evaluated_at_once_gives_the_numbers_of_single_evaluations(path):
    times = np.linspace(1, 0, 11)
    single = [(path.alpha(t), path.sigma(t), path.noise_level(t)) for t in times.tolist()]
    fresh = Path.from_config(path.to_config())
    fresh.remember(times)
    for t, expected in zip(times.tolist(), single, strict=True):
        assert (fresh.alpha(t), fresh.sigma(t), fresh.noise_level(t)) == pytest.approx(expected, rel=1e-14)
    assert fresh == path


def test_a_table_in_a_configuration_keeps_every_bit() -> None:
    path = VPPath.from_alphas_cumprod(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    again = Path.from_config(json.loads(json.dumps(path.to_config())))
    assert again == path
    assert again.alpha(0.3) == path.alpha(0.3)
