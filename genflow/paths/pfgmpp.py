"""PFGM++ (Xu et al., ICML 2023, arXiv 2302.04265): noise of a heavier-tailed law, on EDM's path and on others."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from scipy.special import betaln
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.paths.analytic import EDMPath, LinearPath, TrigonometricPath
from genflow.paths.base import Path, expand_like, working_dtype
from genflow.paths.vp import VPLinearPath, VPTablePath

__all__ = [
    "PFGMPlusPlusLinearPath",
    "PFGMPlusPlusPath",
    "PFGMPlusPlusTrigonometricPath",
    "PFGMPlusPlusVPLinearPath",
    "PFGMPlusPlusVPTablePath",
    "StudentTNoise",
    "with_student_t",
]


class StudentTNoise(Path):
    """Mixed into a path, makes its noise a multivariate Student-t vector with ``D`` degrees of freedom a sample.

    The states are ``alpha x0 + sigma n``. Given x0, those of N dimensions have a density proportional to
    ``(||x / alpha - x0||^2 + r^2)^(-(N + D) / 2)`` at ``r = D^(1/2) sigma / alpha``, PFGM++'s kernel in the noise
    level. The probability-flow ODE is that of the Gaussian path with ``E[n | x]`` in the place of ``E[eps | x]``: every
    solver, prediction type and preconditioning applies as it stands, and only the noise differs.

    Attributes:
        D: dimensions of the augmentation, a number > 0 or ``math.inf`` for Gaussian noise.
    """

    def __init__(self, D: float | str, *args: Any, **options: Any) -> None:  # noqa: N803 (the paper's letter)
        super().__init__(*args, **options)
        self.D = _dimension(D)

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "D": "inf" if math.isinf(self.D) else self.D}

    @property
    def noise_law(self) -> str:
        return super().noise_law if math.isinf(self.D) else f"Student-t with D={self.D:g}"

    def noise(self, normal: Tensor, generators: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
        """``normal * sqrt(D / c)``, c one chi-squared draw with D degrees of freedom for each sample.

        Exact, without the clipped Beta law of the paper's code, for any N and D. The draw is made in float64 on the
        generator's device. With one generator a sample, a sample depends on its own alone; one for all draws the
        whole batch in turn. D = inf gives ``normal`` itself and draws nothing.

        Args:
            normal: standard normal ``(B, ...)``.
            generators: one for each sample, one for all, or None for torch's own.

        Returns:
            ``(B, ...)``, in float32 at least (heavy tails overflow half precision).

        Raises:
            InputError: another number of generators than samples.
        """
        if math.isinf(self.D):
            return normal
        if normal.ndim == 0:
            raise InputError("normal: a scalar; allowed: (B, ...)")
        count = normal.shape[0]
        if generators is None or isinstance(generators, torch.Generator):
            gamma = _gamma(self.D / 2, count, generators, normal.device)
        elif len(generators) != count:
            raise InputError(f"generators: got {len(generators)}; allowed: one for each of {count} samples")
        else:
            draws = [_gamma(self.D / 2, 1, generator, normal.device) for generator in generators]
            gamma = torch.cat(draws) if draws else torch.ones(0)
        return normal.to(working_dtype(normal)) * expand_like((self.D / 2 / gamma).sqrt(), normal)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        if math.isinf(self.D):
            return super().prior_log_prob(x)
        x, scale = x.flatten(1).double(), self.prior_std
        dims, D = x.shape[1], self.D  # noqa: N806
        # the ratio of two gamma functions by way of the beta function, which does not cancel for a huge D
        constant = math.lgamma(dims / 2) - float(betaln(D / 2, dims / 2)) - dims / 2 * math.log(D * math.pi)
        constant -= dims * math.log(scale)
        return constant - (D + dims) / 2 * torch.log1p(x.square().sum(1) / (D * scale**2))


class PFGMPlusPlusPath(StudentTNoise, EDMPath):
    """PFGM++ as published: ``x = x0 + sigma_max t n`` and ``dx/dsigma = (x - E[x0 | x]) / sigma``, EDM's equation.

    D = inf is EDM itself, D = 1 the first PFGM. The variance is infinite for D <= 2; below about D = 0.3 a rare draw
    exceeds float32 and is inf.

    Args:
        D: any number > 0; 128 and 2048 were the paper's best on CIFAR-10. ``"inf"`` (as in JSON) or ``math.inf`` for
            Gaussian noise.
        sigma_max: the noise level at t = 1; 80, as EDM.

    Raises:
        InputError: D or sigma_max not positive.
    """

    name = "pfgm++"
    option_names = ("D", "sigma_max")

    def __init__(self, D: float | str, sigma_max: float = 80.0) -> None:  # noqa: N803
        super().__init__(D, sigma_max)


class PFGMPlusPlusLinearPath(StudentTNoise, LinearPath):
    """PFGM++'s noise on the linear path of a rectified flow."""

    name = "pfgm++_linear"
    option_names = ("D", *LinearPath.option_names)


class PFGMPlusPlusTrigonometricPath(StudentTNoise, TrigonometricPath):
    """PFGM++'s noise on the trigonometric path."""

    name = "pfgm++_trigonometric"
    option_names = ("D", *TrigonometricPath.option_names)


class PFGMPlusPlusVPLinearPath(StudentTNoise, VPLinearPath):
    """PFGM++'s noise on a VP path with linear betas."""

    name = "pfgm++_vp_linear"
    option_names = ("D", *VPLinearPath.option_names)


class PFGMPlusPlusVPTablePath(StudentTNoise, VPTablePath):
    """PFGM++'s noise on a discrete VP schedule."""

    name = "pfgm++_vp_table"
    option_names = ("D", *VPTablePath.option_names)

    def __repr__(self) -> str:
        return f"PFGMPlusPlusVPTablePath(D={self.D:g}, <{self.num_train_timesteps} values>)"


_LIKES: dict[type[Path], type[StudentTNoise]] = {
    EDMPath: PFGMPlusPlusPath,
    LinearPath: PFGMPlusPlusLinearPath,
    TrigonometricPath: PFGMPlusPlusTrigonometricPath,
    VPLinearPath: PFGMPlusPlusVPLinearPath,
    VPTablePath: PFGMPlusPlusVPTablePath,
}


def with_student_t(path: Path, D: float | str | None) -> Path:  # noqa: N803
    """``path`` with PFGM++'s noise; None leaves it as it is. Raises InputError for a bad D or a path without a like."""
    if D is None:
        return path
    if type(path) not in _LIKES:
        raise InputError(f"D: got {D!r} on {path!r}; allowed: on {', '.join(c.name for c in _LIKES)}")
    return _LIKES[type(path)](D, **path._options())


def _dimension(value: float | str) -> float:
    """The paper's D as a float; raises InputError."""
    if value in ("inf", math.inf):
        return math.inf
    try:
        return float(check_number("D", value, above=0))
    except InputError:
        raise InputError(f"D: got {value!r}; allowed: a number > 0, or 'inf' for Gaussian noise") from None


def _gamma(shape: float, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """``count`` draws of Gamma(shape, 1), float64, from ``generator``, on its device or the host."""
    if generator is not None:
        device = generator.device
    if device.type not in ("cpu", "cuda"):  # no float64 or no gamma sampler there: a seed of its own for the host
        seed = torch.randint(2**31, (1,), generator=generator, device=device)
        device, generator = torch.device("cpu"), torch.Generator().manual_seed(int(seed))
    return torch._standard_gamma(torch.full((count,), shape, dtype=torch.float64, device=device), generator=generator)
