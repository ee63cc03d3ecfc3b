"""The same steps as diffusers' schedulers and as the papers' algorithms."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor

from genflow.models import from_function
from genflow.paths import EDMPath, LinearPath, VPPath
from genflow.sampling import sample, time_grid


def network(x: Tensor, time: float) -> Tensor:
    """Any nonlinear function of state and time does."""
    return torch.tanh(x.roll(1, dims=-1) * (0.5 + time)) + 0.3 * x


def noise(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_euler_on_a_vp_table_is_ddim(prediction_type: str, zero_snr: bool) -> None:
    if zero_snr and prediction_type == "epsilon":
        pytest.skip("noise does not determine data at zero SNR")
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        clip_sample=False,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing" if zero_snr else "leading",
    )
    scheduler.set_timesteps(20)
    x = noise()
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep / 1000), timestep, x, eta=0.0).prev_sample

    path = VPPath.from_alphas_cumprod(scheduler.alphas_cumprod)
    model = from_function(lambda x, t: network(x, (1000 * t - 1) / 1000), path, prediction_type)
    times = np.append((scheduler.timesteps.numpy() + 1) / 1000, 0.0)
    torch.testing.assert_close(sample(model, noise(), times, "euler"), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_the_linear_path_is_flow_match_euler(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(12)
    x = noise()
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep / 1000), timestep, x).prev_sample

    model = from_function(network, LinearPath(), "flow_prediction")
    torch.testing.assert_close(sample(model, noise(), scheduler.sigmas.numpy(), "euler"), x, rtol=1e-5, atol=1e-5)
    # the same run with the shift in the path: time is moved, the noise levels are not
    shifted = LinearPath(shift)
    model = from_function(lambda x, t: network(x, shifted.sigma(t)), shifted, "flow_prediction")
    times = shifted.time(LinearPath().noise_level(np.minimum(scheduler.sigmas.numpy().astype(float), 1.0)))
    torch.testing.assert_close(sample(model, noise(), times, "euler"), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_on_the_linear_path_is_flow_match_heun(shift: float) -> None:
    scheduler = FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(9)
    x = noise()
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep / 1000), timestep, x).prev_sample

    sigmas = np.append(scheduler.sigmas.numpy()[[0, *range(1, 17, 2)]], 0.0)
    evaluations = []

    def counted(x: Tensor, t: float) -> Tensor:
        evaluations.append(t)
        return network(x, t)

    result = sample(from_function(counted, LinearPath(), "flow_prediction"), noise(), sigmas, "heun")
    torch.testing.assert_close(result, x, rtol=1e-5, atol=1e-5)
    assert 1000 * np.array(evaluations) == pytest.approx(scheduler.timesteps.numpy(), rel=1e-6)


def test_heun_on_the_edm_path_is_algorithm_1_of_karras_et_al() -> None:
    """The paper's Algorithm 1 with its schedule t_i = sigma_i (eq. 5), 18 steps, written from the page."""
    n, rho, low, high = 18, 7.0, 0.002, 80.0
    sigma = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)] + [
        0.0
    ]

    def denoiser(x: Tensor, level: float) -> Tensor:
        return network(x / (1 + level), level / 80)

    x = high * noise(torch.float64)
    for i in range(n):
        d = (x - denoiser(x, sigma[i])) / sigma[i]
        x_next = x + (sigma[i + 1] - sigma[i]) * d
        if sigma[i + 1] != 0:
            d_next = (x_next - denoiser(x_next, sigma[i + 1])) / sigma[i + 1]
            x_next = x + (sigma[i + 1] - sigma[i]) * (d + d_next) / 2
        x = x_next

    path = EDMPath(80.0)
    model = from_function(lambda x, t: denoiser(x, path.sigma(t)), path, "sample")
    times = time_grid(path, n, "karras")
    np.testing.assert_allclose(path.sigma(times), sigma, rtol=1e-12, atol=0)
    result = sample(model, path.prior_std * noise(torch.float64), times, "heun")
    torch.testing.assert_close(result, x, rtol=1e-10, atol=1e-10)
