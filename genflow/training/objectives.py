"""What a network learns: a target on a path, and the times at which it is asked for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genflow.errors import InputError, check_choice, check_number
from genflow.models import EDMPreconditioning, PathModel
from genflow.paths import EDMPath, LinearPath, Path, PFGMPlusPlusPath, TrigonometricPath, working_dtype
from genflow.prediction import target

__all__ = ["OBJECTIVES", "TIMES", "Objective", "create_objective"]

OBJECTIVES = ("velocity", "epsilon", "sample", "v_prediction", "edm", "pfgm++")
TIMES = ("logit-normal", "uniform", "log-normal")

_UNIFORM_MARGIN = 1e-5  # keeps uniform times off the two ends, where some targets are not determined


@dataclass(frozen=True)
class Objective:
    """A mean square error between a prediction and its target.

    Attributes:
        path: the Gaussian path between data and noise.
        prediction_type: what the network predicts, in diffusers' names.
        times: how training times are drawn, one of :data:`TIMES`. ``logit-normal``: the sigmoid of a normal
            (Esser et al. 2024, arXiv 2403.03206, equation 19; mean 0 and deviation 1 are its "rf/lognorm(0, 1)").
            ``log-normal``: the noise level is the exponential of a normal (Karras et al. 2022, table 1; mean -1.2,
            deviation 1.2). ``uniform``: on (0, 1).
        mean, std: of that normal.
        weight: factor of the error as a function of the noise level, or None for 1.
    """

    path: Path
    prediction_type: str
    times: str = "logit-normal"
    mean: float = 0.0
    std: float = 1.0
    weight: Callable[[Tensor], Tensor] | None = None

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` training times, float64 ``(count,)``, on the generator's device."""
        options: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": torch.float64}
        if generator.device.type == "mps":  # has no float64
            options["dtype"] = torch.float32
        if self.times == "uniform":
            return torch.rand(count, **options) * (1 - 2 * _UNIFORM_MARGIN) + _UNIFORM_MARGIN
        normal = torch.randn(count, **options) * self.std + self.mean
        return self.path.time(normal.exp()) if self.times == "log-normal" else normal.sigmoid()

    def draw_noise(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        """The path's noise for ``x0`` (B, ...), in its dtype and float32 at least, on the generator's device."""
        normal = torch.randn(x0.shape, generator=generator, device=generator.device, dtype=working_dtype(x0))
        return self.path.noise(normal, generator)

    def loss(self, model: PathModel, x0: Tensor, noise: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        """Error of ``model`` on ``x0`` (B, ...) perturbed by ``noise`` to times ``t`` (B,): float32 ``(B,)``."""
        x = self.path.perturb(x0, noise, t)
        predicted = model.predict(x, t, **conditioning).to(self.prediction_type)
        wanted = target(self.prediction_type, x0, noise, self.path, t)
        error = (predicted - wanted).square().flatten(1).mean(dim=1)
        return error if self.weight is None else error * self.weight(self.path.noise_level(t)).to(error.dtype)


def create_objective(
    name: str, path: Path, times: str, mean: float = 0.0, std: float = 1.0, sigma_data: float = 0.5
) -> Objective:
    """Build one of :data:`OBJECTIVES` on ``path``.

    ``velocity`` learns eps - x0 on the linear path (conditional flow matching; Lipman et al. 2023, Liu et al. 2023)
    and v_prediction on the trigonometric one, where dx/dt is pi/2 times that. ``edm`` learns the denoised image
    under EDM's preconditioning and weight, which make the error of the network itself uniform over noise levels;
    ``sigma_data`` is theirs, 0.5 in the paper. ``pfgm++`` is the same under PFGM++'s noise (Xu et al. 2023).

    Raises:
        InputError: an unknown name, or an objective that the path does not have.
    """
    check_choice("objective.type", name, OBJECTIVES)
    check_choice("objective.times", times, TIMES)
    check_number("objective.times_std", std, above=0)
    if name == "velocity":
        if isinstance(path, LinearPath):
            kind = "flow_prediction"
        elif isinstance(path, TrigonometricPath):
            kind = "v_prediction"
        else:
            raise InputError(
                f"objective.type: 'velocity' on {path!r}; allowed: on the linear and the trigonometric path "
                "(v_prediction is its like on the others)"
            )
        return Objective(path, kind, times, mean, std)
    if name in ("edm", "pfgm++"):
        if type(path) is not (EDMPath if name == "edm" else PFGMPlusPlusPath):
            raise InputError(f"objective.type: {name!r} on {path!r}; allowed: on the {name} path")
        return Objective(path, "sample", times, mean, std, weight=EDMPreconditioning(sigma_data).loss_weight)
    return Objective(path, name, times, mean, std)
