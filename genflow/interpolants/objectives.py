"""What the networks of an interpolant learn: quadratic objectives whose minimisers are the conditional means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genflow.errors import InputError, check_choice, check_number
from genflow.interpolants.base import StochasticInterpolant, check_finite
from genflow.paths import expand_like

__all__ = ["INTERPOLANT_OBJECTIVES", "InterpolantObjective", "JointObjective"]

INTERPOLANT_OBJECTIVES = ("velocity", "flow", "denoiser", "score")
"""b, v, eta and s of the table in :mod:`genflow.interpolants.base`."""


@dataclass(frozen=True)
class InterpolantObjective:
    """``|f|^2 / 2 - y f`` a coordinate, with y the target of ``kind``; least on average where f is its mean.

    That is half the square error less ``y^2 / 2``, which does not depend on f. The targets of b and s grow without
    bound towards ends where gamma vanishes; there single draws drown the mean. In an antithetic pair, ``I + gamma z``
    and ``I - gamma z`` with one z, the large terms cancel: what is left is the difference of f between the two states,
    which shrinks with gamma.

    Attributes:
        interpolant: the bridge.
        kind: ``velocity``, ``flow``, ``denoiser`` or ``score``.
        antithetic: whether each z is used with both signs (two calls of the network; in the paper always).
        margin: how far :meth:`draw_times` stays from 0 and 1 (SiT: 1e-3 for what is not a velocity).
    """

    interpolant: StochasticInterpolant
    kind: str
    antithetic: bool = True
    margin: float = 1e-3

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, INTERPOLANT_OBJECTIVES)
        check_number("margin", self.margin, at_least=0, below=0.5)
        if self.kind in ("denoiser", "score") and self.interpolant.gamma.peak == 0:
            raise InputError(f"kind: {self.kind!r} with gamma = 0 does not exist; allowed: velocity, flow")

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` times, uniform between the margins, float64 ``(count,)`` (float32 on mps)."""
        device = generator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        uniform = torch.rand(count, generator=generator, device=device, dtype=dtype)
        return self.margin + (1 - 2 * self.margin) * uniform

    def loss(
        self,
        network: Callable[..., Tensor],
        x0: Tensor,
        x1: Tensor | None,
        z: Tensor,
        t: float | Tensor,
        **conditioning: Any,
    ) -> Tensor:
        """The objective for each sample, the mean over its coordinates: ``(B,)``, float32 at least.

        Args:
            network: called as ``network(x, t, **conditioning)``, gives a tensor in ``x``'s shape.
            x0, x1, z: ``(B, ...)``; ``x1`` may be None where the interpolant does not use it.
            t: a number or ``(B,)``.

        Raises:
            InputError: shapes that do not fit, or a time at which the target is infinite.
        """
        joint = JointObjective(self.interpolant, (self.kind,), self.antithetic, self.margin)
        return joint.loss(lambda x, t, **given: {self.kind: network(x, t, **given)}, x0, x1, z, t, **conditioning)

    def target(self, x0: Tensor, x1: Tensor | None, t: float | Tensor) -> tuple[Tensor | None, float | Tensor]:
        """``(p, q)`` of the target ``p + q z``; p is None for 0, and q a number or ``(B,)``.

        Raises InputError for a time at which q is infinite.
        """
        steady = self.interpolant.mean_dot(x0, x1, t) if self.kind in ("velocity", "flow") else None
        if self.kind == "velocity":
            return steady, check_finite(self.interpolant.gamma.dot(t), "gamma'", t)
        if self.kind == "score":
            return steady, check_finite(-self.interpolant.inverse_gamma(t), "1 / gamma", t)
        return steady, 1.0 if self.kind == "denoiser" else 0.0


@dataclass(frozen=True)
class JointObjective:
    """The sum of the objectives of several kinds, for one network that learns all of them at once.

    Attributes:
        interpolant, antithetic, margin: as in :class:`InterpolantObjective`.
        kinds: what is learnt, such as ``("velocity", "denoiser")``, the two that an SDE needs.
    """

    interpolant: StochasticInterpolant
    kinds: tuple[str, ...]
    antithetic: bool = True
    margin: float = 1e-3

    def __post_init__(self) -> None:
        if not self.kinds:
            raise InputError(f"kinds: none; allowed: at least one of {', '.join(INTERPOLANT_OBJECTIVES)}")
        self._parts()

    def _parts(self) -> list[InterpolantObjective]:
        return [InterpolantObjective(self.interpolant, kind, self.antithetic, self.margin) for kind in self.kinds]

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """See :meth:`InterpolantObjective.draw_times`."""
        return self._parts()[0].draw_times(count, generator)

    def loss(
        self,
        network: Callable[..., Mapping[str, Tensor]],
        x0: Tensor,
        x1: Tensor | None,
        z: Tensor,
        t: float | Tensor,
        **conditioning: Any,
    ) -> Tensor:
        """The objective for each sample, the sum over kinds of the mean over coordinates: ``(B,)``, float32 at least.

        ``network(x, t, **conditioning)`` gives a tensor in ``x``'s shape for each kind; the other arguments, and what
        is raised, are as in :meth:`InterpolantObjective.loss`.
        """
        targets = {part.kind: part.target(x0, x1, t) for part in self._parts()}
        total = None
        for sign in (1.0, -1.0) if self.antithetic else (1.0,):
            signed = sign * z
            x = self.interpolant.interpolate(x0, x1, signed, t)
            values = network(x, t, **conditioning)
            loss = 0.0
            for kind, (steady, factor) in targets.items():
                value = values[kind].to(x.dtype)
                target = expand_like(factor, x) * signed.to(x.dtype)
                if steady is not None:
                    target = target + steady
                loss = loss + (value * (value / 2 - target)).flatten(1).mean(1)
            total = loss if total is None else (total + loss) / 2
        return total
