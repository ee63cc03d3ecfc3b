"""One diffusers network for the conditional means of an interpolant."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genflow.errors import InputError
from genflow.interpolants import JointModel, StochasticInterpolant
from genflow.models.adapters import call_network
from genflow.paths import working_dtype

__all__ = ["NetworkHeads"]

_TIMESTEPS = 1000.0  # what the networks are told of t = 1, as on Gaussian paths


class NetworkHeads:
    """``network(x, t, **conditioning)`` with the output's channels dealt out: those of each kind in turn.

    Calling it gives ``{kind: (B, C, H, W)}`` for ``x`` ``(B, C, H, W)``, in float32 at least. The network runs in its
    own dtype and is told ``1000 t``.

    Attributes:
        network: any that :func:`genflow.models.from_diffusers` takes, with ``len(kinds)`` times as many output channels
            as input channels.
        kinds: names of :data:`genflow.interpolants.INTERPOLANT_OBJECTIVES`.
    """

    def __init__(self, network: nn.Module, kinds: Sequence[str]) -> None:
        self.network = network
        self.kinds = tuple(kinds)

    def __call__(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> dict[str, Tensor]:
        output = call_network(self.network, x, t * _TIMESTEPS, **conditioning)
        channels = x.shape[1]
        if output.shape[1] != len(self.kinds) * channels:
            raise InputError(
                f"network: {output.shape[1]} output channels; allowed: {channels} for each of {', '.join(self.kinds)}"
            )
        parts = torch.split(output.to(working_dtype(output, x)), channels, dim=1)
        return dict(zip(self.kinds, parts, strict=True))

    def model(self, interpolant: StochasticInterpolant) -> JointModel:
        """The network on ``interpolant``, for :func:`genflow.bridges.sample_interpolant`.

        Raises InputError for kinds that do not determine the interpolant's velocity.
        """
        return JointModel(interpolant, self, self.kinds)
