"""The networks of an interpolant, read together: the velocity of its ODE and the drifts of its SDEs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genflow.errors import InputError
from genflow.interpolants.base import StochasticInterpolant, check_finite
from genflow.paths import expand_like

__all__ = ["InterpolantModel"]

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class InterpolantModel:
    """An interpolant with one or two networks, each called as ``network(x, t, **conditioning)``.

    Attributes:
        interpolant: the bridge the networks were trained on.
        velocity: b. May be left out where ``flow`` and one of ``denoiser`` and ``score`` are given (a mirror
            interpolant has flow 0 and needs the latter alone).
        flow: v.
        denoiser: eta, the mean of z.
        score: s. An SDE needs ``denoiser`` or ``score``.

    Raises:
        InputError: networks that do not determine the velocity, or both of ``denoiser`` and ``score``.
    """

    interpolant: StochasticInterpolant
    velocity: Network | None = None
    flow: Network | None = None
    denoiser: Network | None = None
    score: Network | None = None

    def __post_init__(self) -> None:
        noisy = self.denoiser is not None or self.score is not None
        if self.denoiser is not None and self.score is not None:
            raise InputError("denoiser and score: both were given; allowed: one of them (s = -eta / gamma)")
        steady = self.flow is not None or self.interpolant.name == "mirror"
        flat = self.interpolant.gamma.peak == 0 and steady
        if self.velocity is None and not (steady and noisy) and not flat:
            raise InputError("velocity: None; allowed: velocity, or flow together with denoiser or score")

    @property
    def has_score(self) -> bool:
        """Whether an SDE can be run."""
        return self.denoiser is not None or self.score is not None

    def drift(self, x: Tensor, t: float, epsilon: float, relative: bool, sign: float, **conditioning: Any) -> Tensor:
        """``b + sign epsilon s`` at states ``x`` ``(B, ...)`` and time ``t``, in ``x``'s dtype.

        With ``relative``, ``epsilon`` counts in units of gamma(t): ``epsilon gamma s = -epsilon eta`` has no 1/gamma
        and is finite at the ends. Raises InputError at an end where the networks given leave the drift undetermined.
        """
        bridge, gamma = self.interpolant, self.interpolant.gamma
        eta = None if self.denoiser is None else self.denoiser(x, t, **conditioning).to(x.dtype)
        score = None if self.score is None else self.score(x, t, **conditioning).to(x.dtype)
        if self.velocity is not None:
            drift = self.velocity(x, t, **conditioning).to(x.dtype)
        else:
            drift = x.new_zeros(x.shape) if self.flow is None else self.flow(x, t, **conditioning).to(x.dtype)
            if score is not None:
                drift = bridge.velocity_from_score(drift, score, t)
            elif eta is not None:
                drift = bridge.velocity_from_denoiser(drift, eta, t)
        if epsilon == 0:
            return drift
        if score is not None:
            return drift + sign * epsilon * (gamma.value(t) if relative else 1.0) * score
        if eta is None:
            raise InputError("epsilon: above 0 without a denoiser or a score; allowed: 0, or give one of them")
        if relative:
            return drift - sign * epsilon * eta
        inverse = check_finite(bridge.inverse_gamma(t), "1 / gamma", t)
        return drift - sign * epsilon * expand_like(inverse, eta) * eta
