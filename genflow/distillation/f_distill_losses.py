"""The losses of f-distill (Xu, Nie, Vahdat 2025, arXiv 2502.15681), one value a sample.

Everything is in x0 space, where predictions of any teacher on any path mean the same. Scores and denoised estimates
are tied by ``s = (alpha x0 - x) / sigma^2``, so ``s_p - s_q = alpha / sigma^2 (x0_p - x0_q)``: what the student follows
is the fake score's estimate less the teacher's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genflow.errors import InputError
from genflow.models import EDMNetworkModel, NetworkModel, PathModel
from genflow.paths import Path, expand_like, working_dtype
from genflow.training.objectives import Objective

__all__ = [
    "approximate_r1",
    "discriminator_loss",
    "exact_weight",
    "fake_score_loss",
    "fake_score_objective",
    "generator_loss",
    "perturb_for_r1",
    "student_loss",
]

_SMALLEST = 1e-6  # of the mean distance that a sample's weight is divided by (DMD's code)


def student_loss(
    generated: Tensor, teacher_x0: Tensor, fake_x0: Tensor, h: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Loss of the student whose gradient at ``generated`` is ``h weight (fake_x0 - teacher_x0) / dimensions``.

    By default the weight is ``1 / mean|generated - teacher_x0|``, which makes the steps of all noise levels about
    equally long (DMD, Yin et al. 2024); :func:`exact_weight` is the one of the true gradient. The loss is
    ``1/2 mean (generated - stop_gradient(generated - g))^2``, so its value is half the mean square of that step g.

    Args:
        generated: the student's samples G (B, ...), with their graph.
        teacher_x0, fake_x0: what teacher and fake score make of ``alpha G + sigma eps``, in G's shape; constants here.
        h: the divergence's weights (B,), see :meth:`DensityRatio.weights`; None is reverse-KL, plain variational
            score distillation.
        weight: (B,), or None for DMD's.

    Returns:
        (B,), float32 at least.

    Raises:
        InputError: shapes that do not fit.
    """
    for name, value in (("teacher_x0", teacher_x0), ("fake_x0", fake_x0)):
        if value.shape != generated.shape:
            raise InputError(f"{name}: shape {tuple(value.shape)} does not fit generated {tuple(generated.shape)}")
    for name, value in (("h", h), ("weight", weight)):
        if value is not None and value.shape != generated.shape[:1]:
            raise InputError(f"{name}: shape {tuple(value.shape)}; allowed: ({generated.shape[0]},)")
    dtype = working_dtype(generated, teacher_x0, fake_x0)
    sample = generated.to(dtype)
    with torch.no_grad():
        teacher, fake, clean = teacher_x0.to(dtype), fake_x0.to(dtype), sample.detach()
        if weight is None:
            weight = 1 / ((clean - teacher).abs().flatten(1).mean(1) + _SMALLEST)
        if h is not None:
            weight = weight * h
        wanted = clean - expand_like(weight, clean) * (fake - teacher)
    return (sample - wanted).square().flatten(1).mean(1) / 2


def exact_weight(path: Path, t: Tensor, dimensions: int) -> Tensor:
    """The weight (B,) with which :func:`student_loss` has the gradient of the f-divergence at the times ``t`` (B,).

    It is ``alpha^2 / sigma^2`` (a score per x0, and dx_t/dG) times the dimensions that the loss averages over.
    """
    return dimensions / path.noise_level(t).square()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """``softplus(-l)`` of the student's samples, in their shape: how far they are from being taken for data."""
    return F.softplus(-fake_logits)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """``softplus(l_fake) + softplus(-l_real)`` (B,): its minimizer is ``l = log p / q``, p real and q fake."""
    return F.softplus(fake_logits) + F.softplus(-real_logits)


def approximate_r1(logits: Tensor, perturbed_logits: Tensor) -> Tensor:
    """``(l(x) - l(x + std n))^2`` (B,), about ``std^2 |dl/dx|^2`` in the mean over n: R1 by a finite difference.

    Lin et al. 2025 (arXiv 2501.08316, section 3.4) weigh it by 100 with noise of std 0.1 around real samples.
    """
    return (logits - perturbed_logits).square()


def perturb_for_r1(x: Tensor, noise: Tensor, path: Path, t: float | Tensor, std: float = 0.1) -> Tensor:
    """The states ``x`` (B, ...) at times ``t`` moved by ``std`` of their own scale, ``hypot(alpha, sigma)``.

    On a variance exploding path 0.1 would be nothing beside sigma; on the others the scale is near 1.
    """
    alpha, sigma = expand_like(path.alpha(t), x), expand_like(path.sigma(t), x)
    return (x + std * (alpha**2 + sigma**2) ** 0.5 * noise).to(x.dtype)


def fake_score_objective(teacher: PathModel, times: str = "uniform", mean: float = 0.0, std: float = 1.0) -> Objective:
    """The objective that a copy of ``teacher`` learns the student's score by: the kind and weight of its own.

    EDM's has EDM's weight; ``times``, ``mean`` and ``std`` as in :class:`Objective`.

    Raises:
        InputError: a teacher that is not a network on a path (:func:`genflow.models.from_diffusers`).
    """
    if not isinstance(teacher, NetworkModel):
        raise InputError(f"teacher: got {type(teacher).__name__}; allowed: a network wrapped by from_diffusers")
    if isinstance(teacher, EDMNetworkModel):
        return Objective(teacher.path, "sample", times, mean, std, teacher.preconditioning.loss_weight)
    return Objective(teacher.path, teacher.prediction_type, times, mean, std)


def fake_score_loss(
    objective: Objective, fake_score: PathModel, generated: Tensor, noise: Tensor, t: Tensor, **conditioning: Any
) -> Tensor:
    """Denoising loss (B,) of the fake score on the student's samples, which get no gradient from it."""
    return objective.loss(fake_score, generated.detach(), noise, t, **conditioning)
