"""Exact likelihood of data under a model: the log-density carried along the probability-flow ODE.

The flow ``dx/dt = v(x, t)`` moves the density of the data to that of the noise, and along a trajectory
``d log p / dt = -div v`` (Chen et al. 2018; Song et al. 2021, arXiv 2011.13456, appendix D.2). It is integrated in the
velocity frame, ``z = x / (alpha + sigma)`` over ``u = sigma / (alpha + sigma)``, where ``dz/du`` is bounded on every
path; the scale adds its own logarithm at the two ends. PFGM++'s flow moves the marginals of its own noise, so that
the same holds there, with a Student-t prior.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.errors import InputError, check_choice, check_number
from genflow.models import PathModel
from genflow.sampling import ProbabilityFlow, time_grid

__all__ = ["BitsPerDim", "LogLikelihood", "bits_per_dim", "log_likelihood"]

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "rk4": "rk4"}  # torchdiffeq's names


@dataclass(frozen=True)
class LogLikelihood:
    """What :func:`log_likelihood` found.

    Attributes:
        log_prob: log-density in nats, float64 ``(B,)``.
        spread: standard error of ``log_prob`` over the probes, ``(B,)``; None with the exact divergence or one probe.
        noise: where the trajectories ended, the state at ``t = 1``, ``(B, ...)``.
        evaluations: how often the network was asked; each time its gradient was taken once for every probe, or every
            dimension.
    """

    log_prob: Tensor
    spread: Tensor | None
    noise: Tensor
    evaluations: int


@dataclass(frozen=True)
class BitsPerDim:
    """What :func:`bits_per_dim` found.

    Attributes:
        bits: bits per dimension of each image, float64 ``(B,)``.
        spread: standard error of ``bits`` over the probes, ``(B,)``, or None.
        evaluations: how often the network was asked.
    """

    bits: Tensor
    spread: Tensor | None
    evaluations: int


def log_likelihood(
    model: PathModel,
    x: Tensor,
    *,
    divergence: str = "hutchinson",
    probes: int = 1,
    probe_law: str = "rademacher",
    chunk: int = 16,
    generators: Sequence[torch.Generator] | None = None,
    method: str = "dopri5",
    steps: int | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    noise_min: float = 0.002,
    prior: Callable[[Tensor], Tensor] | None = None,
    **conditioning: Any,
) -> LogLikelihood:
    """Log-density of the data ``x`` ``(B, ...)`` under ``model``, in nats.

    It is the density of data with noise of level ``noise_min`` added, as the model knows it, in the data's own scale.

    Args:
        model: any path model, with independent samples (no batch norm in training mode).
        x: the data.
        divergence: ``exact``, one gradient a dimension; or ``hutchinson``, an unbiased estimate from ``probes`` random
            vectors (Grathwohl et al. 2019, arXiv 1810.01367), the same ones all along a trajectory.
        probes: how many; 1 as Song et al. use.
        probe_law: ``rademacher`` (signs; less variance) or ``gaussian``.
        chunk: how many gradients are taken at once where many are wanted; more is faster and takes more memory.
        generators: one for each sample, for the probes; None draws from torch's own generator.
        method: an adaptive method of torchdiffeq (``dopri5``, ``dopri8``, ``bosh3``, ``fehlberg2``,
            ``adaptive_heun``), or with ``steps`` a fixed one (``euler``, ``midpoint``, ``heun``, ``rk4``).
        steps: of a fixed method, on noise levels spaced as in Karras et al. 2022 (rho 7).
        rtol, atol: tolerances of an adaptive one, on the state and on the log-density; 1e-5 (Song et al. 2021).
        noise_min: where integration starts; 0.002 (Karras et al. 2022). 0 only for networks that predict a velocity
            or v_prediction.
        prior: log-density ``(B,)`` of the states at ``t = 1``; by default the path's noise alone, without what is left
            of the data where alpha(1) is not 0.
        **conditioning: handed to the model (``class_labels``, ...).

    Raises:
        InputError: an option out of range, before any work.
        NonFiniteError: the network gave NaN or infinity; the message names the time.
    """
    path = model.path
    check_choice("divergence", divergence, ("exact", "hutchinson"))
    check_number("chunk", chunk, at_least=1, integer=True)
    check_number("noise_min", noise_min, at_least=0, below=path.noise_level(1.0))
    options = _options(method, steps, rtol, atol)
    if x.ndim < 2 or not bool(torch.isfinite(x).all()):
        raise InputError(f"x: shape {tuple(x.shape)} or NaN or infinite values; allowed: finite data (B, ...)")
    vectors = None
    if divergence == "hutchinson":
        vectors = _probes(x, probes, probe_law, generators)
    low = path.time(float(noise_min))
    flow = ProbabilityFlow(model, low, 1.0, conditioning)
    times = np.array([1.0, low])
    if steps is not None:
        # with a last level of 0 the grid's own smallest level comes before it
        count, level = (steps + 1, noise_min) if noise_min else (steps, None)
        times = time_grid(path, count, "karras", noise_min=level)[: steps + 1]
        times[-1] = low

    def slope(u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = state[0].detach().requires_grad_()
            dz = flow(u, z)
            change = _divergence(dz, z, vectors, int(chunk))
        return dz.detach(), change

    dtype = torch.float32 if x.device.type == "mps" else torch.float64  # a density is a sum over many dimensions
    start = x.to(dtype) * (path.alpha(low) / flow.scale(low))
    changes = torch.zeros(1 if vectors is None else len(vectors), len(x), dtype=dtype, device=x.device)
    z, changes = _integrate(slope, (start, changes), flow.clock(times)[::-1].copy(), **options)
    noise = z * flow.scale(1.0)
    top = path.prior_log_prob(noise) if prior is None else prior(noise)
    # z's density at the two ends is that of the state times a power of the scale
    scales = math.log(flow.scale(1.0)) - math.log(flow.scale(low) / path.alpha(low))
    each = top + x[0].numel() * scales + changes
    spread = each.std(dim=0) / len(each) ** 0.5 if len(each) > 1 else None
    return LogLikelihood(each.mean(dim=0), spread, noise, flow.evaluations)


def bits_per_dim(
    model: PathModel,
    images: Tensor,
    *,
    levels: int = 256,
    generators: Sequence[torch.Generator] | None = None,
    **options: Any,
) -> BitsPerDim:
    """Bits per dimension of quantised images ``(B, ...)`` in [-1, 1], with uniform dequantisation.

    A pixel k of 0 .. levels - 1 stands at ``2 k / (levels - 1) - 1``, as genflow trains on them. Uniform noise fills
    the cell of width ``2 / (levels - 1)`` around it, and the bits are those of the density times the cell's volume:
    ``-log2 p / N + log2((levels - 1) / 2)``, an upper bound of the discrete likelihood's in expectation (Theis et al.
    2016). (Papers that scale a pixel to ``2 (k + u) / 256 - 1`` add log2(128) = 7 instead of 6.994.)

    Args:
        model, options: as in :func:`log_likelihood`.
        images: on the grid of levels.
        levels: 256 for 8 bits.
        generators: one for each image, for its noise and then its probes; None draws from torch's own.

    Raises:
        InputError: as :func:`log_likelihood`, and for images that are not on the grid.
    """
    cells = int(check_number("levels", levels, at_least=2, integer=True)) - 1
    wide = images.double() if images.device.type != "mps" else images.float()
    pixels = (wide + 1) * (cells / 2)
    if not bool(
        ((pixels - pixels.round()).abs() < 0.02).all() and (pixels > -0.5).all() and (pixels < cells + 0.5).all()
    ):
        raise InputError(f"images: allowed: values 2 k / {cells} - 1 with k an integer from 0 to {cells}")
    noise = _per_sample(images, generators, torch.rand, 1)[0]
    found = log_likelihood(model, (pixels.round() + noise - 0.5) * (2 / cells) - 1, generators=generators, **options)
    unit = images[0].numel() * math.log(2)
    spread = None if found.spread is None else found.spread / unit
    return BitsPerDim(-found.log_prob / unit + math.log2(cells / 2), spread, found.evaluations)


def _options(method: str, steps: int | None, rtol: float, atol: float) -> dict[str, Any]:
    check_choice("method", method, (*ADAPTIVE, *FIXED))
    if (steps is None) != (method in ADAPTIVE):
        allowed = "None with an adaptive method" if steps is not None else "a number of steps with a fixed method"
        raise InputError(f"steps: got {steps!r} with method {method!r}; allowed: {allowed}")
    if steps is not None:
        check_number("steps", steps, at_least=1, integer=True)
        return {"method": FIXED[method]}
    return {"method": method, "rtol": check_number("rtol", rtol, above=0), "atol": check_number("atol", atol, above=0)}


def _integrate(
    slope: Callable[..., Any], state: tuple[Tensor, ...], clocks: np.ndarray, **options: Any
) -> list[Tensor]:
    from torchdiffeq import odeint

    grid = torch.as_tensor(clocks, dtype=torch.float64, device=state[0].device)
    ends = grid[[0, -1]]
    if "rtol" in options:
        options["options"] = {"dtype": torch.float64, "step_t": ends[-1:]}
    else:
        options["options"] = {"grid_constructor": lambda *_: grid}
    with torch.no_grad():
        return [part[-1] for part in odeint(slope, state, ends, **options)]


def _per_sample(x: Tensor, generators: Any, draw: Callable[..., Tensor], count: int) -> Tensor:
    """``(count, *x.shape)`` of ``draw`` (torch.rand or randn), each sample's from its own generator, in float32."""
    if generators is not None and len(generators) != len(x):
        raise InputError(f"generators: got {len(generators)}; allowed: one for each of {len(x)} samples")
    columns = []
    for generator in [torch.default_generator] * len(x) if generators is None else generators:
        options = {"generator": generator, "device": generator.device, "dtype": torch.float32}
        columns.append(draw((count, *x.shape[1:]), **options).to(x.device))
    return torch.stack(columns, dim=1)


def _probes(x: Tensor, count: int, law: str, generators: Any) -> Tensor:
    """``(count, *x.shape)`` vectors of unit covariance."""
    check_choice("probe_law", law, ("rademacher", "gaussian"))
    count = int(check_number("probes", count, at_least=1, integer=True))
    if law == "gaussian":
        return _per_sample(x, generators, torch.randn, count)
    return torch.where(_per_sample(x, generators, torch.rand, count) < 0.5, -1.0, 1.0)


def _trace(dz: Tensor, z: Tensor, vectors: Tensor, last: bool) -> Tensor:
    """``v^T (d dz / d z) v`` for each of the vectors ``(C, B, ...)``: ``(C, B)``."""
    if len(vectors) == 1:
        gradients = torch.autograd.grad(dz, z, vectors[0], retain_graph=not last)[0][None]
    else:
        gradients = torch.autograd.grad(dz, z, vectors, retain_graph=not last, is_grads_batched=True)[0]
    return (gradients * vectors).flatten(2).sum(2)


def _divergence(dz: Tensor, z: Tensor, vectors: Tensor | None, chunk: int) -> Tensor:
    """The divergence of dz at z: one estimate for each of the vectors, or exactly where there are none: ``(C, B)``."""
    if not dz.requires_grad:
        raise InputError("model: its prediction has no gradient; allowed: a model that does not switch gradients off")
    if vectors is not None:
        parts = vectors.to(dz.dtype).split(chunk)
        return torch.cat([_trace(dz, z, part, part is parts[-1]) for part in parts])
    dims, total = z[0].numel(), torch.zeros(len(z), dtype=dz.dtype, device=dz.device)
    for first in range(0, dims, chunk):
        count = min(chunk, dims - first)
        axes = torch.zeros(count, dims, dtype=dz.dtype, device=dz.device)
        axes[torch.arange(count), torch.arange(first, first + count)] = 1
        axes = axes.reshape(count, 1, *z.shape[1:]).expand(count, *z.shape)
        total += _trace(dz, z, axes, first + count == dims).sum(0)
    return total[None]
