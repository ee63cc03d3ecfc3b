"""The networks of an interpolant, read together: the velocity of its ODE and the drifts of its SDEs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genflow.errors import InputError, check_choice
from genflow.interpolants.base import StochasticInterpolant, check_finite
from genflow.interpolants.objectives import INTERPOLANT_OBJECTIVES
from genflow.paths import expand_like

__all__ = ["InterpolantModel", "JointModel"]

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

    def means(self, x: Tensor, t: float, kinds: Sequence[str], **conditioning: Any) -> dict[str, Tensor]:
        """What the networks of ``kinds`` say of states ``x`` ``(B, ...)`` at time ``t``, each in ``x``'s dtype."""
        return {kind: getattr(self, kind)(x, t, **conditioning).to(x.dtype) for kind in kinds}

    def drift(self, x: Tensor, t: float, epsilon: float, relative: bool, sign: float, **conditioning: Any) -> Tensor:
        """``b + sign epsilon s`` at states ``x`` ``(B, ...)`` and time ``t``, in ``x``'s dtype.

        With ``relative``, ``epsilon`` counts in units of gamma(t): ``epsilon gamma s = -epsilon eta`` has no 1/gamma
        and is finite at the ends. Raises InputError at an end where the networks given leave the drift undetermined.
        """
        bridge, gamma = self.interpolant, self.interpolant.gamma
        noise = "score" if self.score is not None else "denoiser" if self.denoiser is not None else None
        steady = "velocity" if self.velocity is not None else "flow" if self.flow is not None else None
        asked = noise if steady != "velocity" or epsilon > 0 else None
        means = self.means(x, t, [kind for kind in (steady, asked) if kind is not None], **conditioning)
        eta, score = means.get("denoiser"), means.get("score")
        drift = x.new_zeros(x.shape) if steady is None else means[steady]
        if steady != "velocity" and score is not None:
            drift = bridge.velocity_from_score(drift, score, t)
        elif steady != "velocity" and eta is not None:
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


class JointModel(InterpolantModel):
    """The same with one network for all: ``network(x, t, **conditioning)`` gives a mean for each of ``kinds``.

    A step asks it once, where networks of their own are asked one after the other.

    Raises InputError for a kind that is not known or stands twice, or kinds that do not determine the velocity.
    """

    network: Callable[..., Mapping[str, Tensor]]

    def __init__(
        self,
        interpolant: StochasticInterpolant,
        network: Callable[..., Mapping[str, Tensor]],
        kinds: Sequence[str],
    ) -> None:
        for index, kind in enumerate(kinds):
            check_choice("kinds", kind, INTERPOLANT_OBJECTIVES)
            if kind in kinds[:index]:
                raise InputError(f"kinds: {kind!r} stands twice in {list(kinds)}")
        object.__setattr__(self, "network", network)
        super().__init__(interpolant, **{kind: functools.partial(self._one, kind) for kind in kinds})

    def _one(self, kind: str, x: Tensor, t: float, **conditioning: Any) -> Tensor:
        return self.network(x, t, **conditioning)[kind]

    def means(self, x: Tensor, t: float, kinds: Sequence[str], **conditioning: Any) -> dict[str, Tensor]:
        """See :meth:`InterpolantModel.means`."""
        found = self.network(x, t, **conditioning)
        return {kind: found[kind].to(x.dtype) for kind in kinds}
