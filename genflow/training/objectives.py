"""What a network learns: a target on a path, the times at which it is asked for it, and how an error counts."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genflow.errors import InputError, check_choice, check_number
from genflow.models import EDMPreconditioning, PathModel
from genflow.paths import EDMPath, LinearPath, Path, PFGMPlusPlusPath, TrigonometricPath, working_dtype
from genflow.prediction import Prediction, target

__all__ = ["ERRORS", "OBJECTIVES", "TIMES", "Objective", "create_objective"]

OBJECTIVES = ("velocity", "epsilon", "sample", "v_prediction", "edm", "pfgm++")
TIMES = ("logit-normal", "uniform", "log-normal", "u-shaped")
ERRORS = ("l2", "pseudo-huber", "lpips-huber")

_UNIFORM_MARGIN = 1e-5  # keeps uniform times off the two ends, where some targets are not determined
_HUBER = 5.4e-4  # a dimension; sangyun884/rfpp, train.py, the code of Lee et al. 2024


@functools.lru_cache(maxsize=8)
def _on_device(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, device=device, dtype=dtype)


@dataclass(frozen=True)
class Objective:
    """An error between a prediction and its target.

    Attributes:
        path: the Gaussian path between data and noise.
        prediction_type: what the network predicts, in diffusers' names.
        times: how training times are drawn, one of :data:`TIMES`. ``logit-normal``: the sigmoid of a normal
            (Esser et al. 2024, arXiv 2403.03206, equation 19; mean 0 and deviation 1 are its "rf/lognorm(0, 1)").
            ``log-normal``: the noise level is the exponential of a normal (Karras et al. 2022, table 1; mean -1.2,
            deviation 1.2). ``uniform``: on (0, 1). ``u-shaped``: density in proportion to
            ``exp(shape t) + exp(shape (1 - t))`` (Lee et al. 2024, arXiv 2405.20320, as their code draws it).
        mean, std: of that normal.
        weight: factor of the error as a function of the noise level, or None for 1.
        shape: of ``u-shaped``; 4 is theirs.
        error: one of :data:`ERRORS`. ``l2``: the mean square over dimensions. ``pseudo-huber``:
            ``(sqrt(|e|^2 + c^2) - c) / d`` with ``c = 0.00054 d`` over d dimensions. ``lpips-huber``: that times
            ``1 - t``, and LPIPS between the predicted x0 and x0 (theirs, on the linear path).
        perceptual: LPIPS, ``(predicted, x0) -> (B,)``; see :func:`genflow.training.perceptual.create_lpips`.
        grid: the only times that are drawn, each as often, in the place of ``times``; for a sampler of these steps.
    """

    path: Path
    prediction_type: str
    times: str = "logit-normal"
    mean: float = 0.0
    std: float = 1.0
    weight: Callable[[Tensor], Tensor] | None = None
    shape: float = 4.0
    error: str = "l2"
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    grid: tuple[float, ...] | None = None

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` training times, float64 ``(count,)``, on the generator's device."""
        options: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": torch.float64}
        if generator.device.type == "mps":  # has no float64
            options["dtype"] = torch.float32
        if self.grid is not None:
            index = torch.randint(len(self.grid), (count,), generator=generator, device=generator.device)
            return _on_device(self.grid, generator.device, options["dtype"])[index]
        if self.times == "u-shaped":
            # the distribution function, 1/2 + sinh(a (t - 1/2)) / (2 sinh(a / 2)), inverted
            odd = 2 * torch.rand(count, **options) - 1
            t = 0.5 + torch.asinh(odd * math.sinh(self.shape / 2)) / self.shape
            return t * (1 - 2 * _UNIFORM_MARGIN) + _UNIFORM_MARGIN
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
        prediction = model.predict(x, t, **conditioning)
        wanted = target(self.prediction_type, x0, noise, self.path, t)
        difference = (prediction.to(self.prediction_type) - wanted).flatten(1)
        error = self._measure(difference, prediction, x0, t)
        return error if self.weight is None else error * self.weight(self.path.noise_level(t)).to(error.dtype)

    def _measure(self, difference: Tensor, prediction: Prediction, x0: Tensor, t: Tensor) -> Tensor:
        if self.error == "l2":
            return difference.square().mean(dim=1)
        size = difference.shape[1]
        huber = ((difference.square().sum(dim=1) + (_HUBER * size) ** 2).sqrt() - _HUBER * size) / size
        if self.perceptual is None:
            return huber
        return (1 - t).to(huber.dtype) * huber + self.perceptual(prediction.x0, x0).to(huber.dtype)


def create_objective(
    name: str,
    path: Path,
    times: str,
    mean: float = 0.0,
    std: float = 1.0,
    sigma_data: float = 0.5,
    **options: Any,
) -> Objective:
    """Build one of :data:`OBJECTIVES` on ``path``; ``options`` are :class:`Objective`'s further fields.

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
    check_number("objective.times_shape", options.get("shape", 4.0), above=0, at_most=1000)
    error = check_choice("objective.error", options.get("error", "l2"), ERRORS)
    if error == "lpips-huber" and (not isinstance(path, LinearPath) or options.get("perceptual") is None):
        raise InputError(f"objective.error: 'lpips-huber' on {path!r}; allowed: on the linear path, with LPIPS")
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
        return Objective(path, kind, times, mean, std, **options)
    if name in ("edm", "pfgm++"):
        if type(path) is not (EDMPath if name == "edm" else PFGMPlusPlusPath):
            raise InputError(f"objective.type: {name!r} on {path!r}; allowed: on the {name} path")
        weight = EDMPreconditioning(sigma_data).loss_weight
        return Objective(path, "sample", times, mean, std, weight, **options)
    return Objective(path, name, times, mean, std, **options)
