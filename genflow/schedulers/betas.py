"""Discrete beta schedules by diffusers' names, in float64."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from genflow.errors import InputError, check_choice, check_number

__all__ = ["BETA_SCHEDULES", "alphas_cumprod_from", "betas_from"]

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def betas_from(config: Mapping[str, Any]) -> np.ndarray:
    """The betas a config describes: ``trained_betas``, or ``beta_schedule`` from ``beta_start`` to ``beta_end``.

    ``linear`` is DDPM's (Ho et al. 2020), ``scaled_linear`` is linear in sqrt(beta) (latent diffusion),
    ``squaredcos_cap_v2`` the cosine schedule of Nichol and Dhariwal 2021 with betas capped at 0.999.
    """
    trained = config.get("trained_betas")
    if trained is not None:
        trained = trained.detach().cpu().double().numpy() if isinstance(trained, Tensor) else trained
        return _checked("trained_betas", np.asarray(trained, dtype=np.float64))
    count = int(check_number("num_train_timesteps", config["num_train_timesteps"], at_least=2, integer=True))
    schedule = check_choice("beta_schedule", config["beta_schedule"], BETA_SCHEDULES)
    if schedule == "squaredcos_cap_v2":
        angle = (np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2
        product = np.cos(angle) ** 2
        return np.minimum(1 - product[1:] / product[:-1], 0.999)
    start = check_number("beta_start", config["beta_start"], above=0, below=1)
    end = check_number("beta_end", config["beta_end"], above=0, below=1)
    if schedule == "linear":
        return np.linspace(start, end, count)
    return np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2


def alphas_cumprod_from(betas: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Products of ``1 - beta``, with CogVideoX's SNR shift and the zero terminal SNR of Lin et al. 2023 where asked."""
    product = np.cumprod(1 - betas)
    scale = config.get("snr_shift_scale")
    if scale is not None:
        scale = check_number("snr_shift_scale", scale, above=0)
        product = product / (scale + (1 - scale) * product)
    if config.get("rescale_betas_zero_snr"):
        root = np.sqrt(product)
        product = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2  # the last is exactly 0
    return product


def _checked(name: str, betas: np.ndarray) -> np.ndarray:
    if betas.ndim != 1 or len(betas) < 2 or not np.all((betas > 0) & (betas < 1)):
        raise InputError(f"{name}: shape {betas.shape}; allowed: a list of two or more numbers between 0 and 1")
    return betas
