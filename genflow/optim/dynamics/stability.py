"""The sharpness of the loss against what the optimizer's step bears, watched while a network trains.

Gradient descent can stay at a minimum only where the largest eigenvalue of the Hessian is at most 2/lr, and in full
batches it trains at that edge (Cohen et al., arXiv 2103.00065). For SGD the trace at most 2/lr is necessary near a
minimum that interpolates (Wu and Su, ICML 2023), and what settles at 2/lr is the batch sharpness, the mean of
g'Hg / |g|^2 over batches (Andreyev and Beneventano, arXiv 2412.20553).
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from genflow.errors import check_flag, check_number
from genflow.files import write_text
from genflow.optim.dynamics.hessian import Hessian
from genflow.optim.dynamics.hutchinson import Estimate
from genflow.optim.dynamics.krylov import largest_eigenvalue
from genflow.optim.dynamics.linear_step import LinearStep, linear_steps
from genflow.optim.dynamics.operators import Operator, flatten, scaled
from genflow.optim.dynamics.spectrum import Spectrum, slq

__all__ = ["StabilityMonitor", "StabilityRecord", "batch_sharpness", "stability_ratio", "stability_threshold"]


def stability_threshold(optimizer: Optimizer) -> float | None:
    """The largest stable sharpness: 2/lr for plain SGD, :mod:`genflow.optim.dynamics.linear_step` for the others.

    For an adaptive method it belongs to the preconditioned Hessian. Of several groups the one with the lowest
    threshold counts. None where the step has no linear form.
    """
    steps = linear_steps(optimizer)
    return min(step.threshold for _, step in steps) if steps else None


def _step_operator(hessian: Operator, steps: Sequence[tuple[Tensor, LinearStep]]) -> Operator | float:
    """What has largest eigenvalue 1 at the threshold; a number where it is that multiple of the Hessian."""
    factors = [step.gain * step.lr / (2 - step.decoupled) for _, step in steps]
    if all(step.scale is None and not step.coupled for _, step in steps) and len(set(factors)) == 1:
        return factors[0]
    scales, diagonals = [], []
    for (param, step), factor in zip(steps, factors, strict=True):
        scale = torch.ones_like(param) if step.scale is None else step.scale
        scales.append(scale.detach().to(hessian.dtype) * factor)
        diagonals.append(torch.full_like(param, step.coupled, dtype=hessian.dtype))
    coupled = any(step.coupled for _, step in steps)
    return scaled(hessian, flatten(scales), flatten(diagonals) if coupled else None)


def stability_ratio(
    hessian: Operator,
    optimizer: Optimizer,
    *,
    steps: int = 20,
    tolerance: float = 0.02,
    generator: torch.Generator | None = None,
) -> float | None:
    """The largest eigenvalue that the optimizer's step sees over the one that it bears; above 1 it is unstable.

    Groups with learning rates and decays of their own are taken together exactly. The arguments are those of
    :func:`~genflow.optim.dynamics.largest_eigenvalue`. None where the step has no linear form.
    """
    linear = linear_steps(optimizer)
    if not linear:
        return None
    operator = _step_operator(hessian, linear)
    factor = 1.0
    if not isinstance(operator, Operator):
        operator, factor = hessian, operator
    return factor * largest_eigenvalue(operator, steps=steps, tolerance=tolerance, generator=generator).value


def batch_sharpness(hessian: Hessian) -> Estimate:
    """The mean of g'Hg / |g|^2 over the micro-batches, each with its own gradient and Hessian.

    A batch with a zero gradient counts 0. Those of all processes count where the Hessian is ``distributed``.
    """
    samples: list[float] = []
    for index in range(len(hessian.weights)):
        part = hessian.batch(index)
        _, gradient = part.gradient()
        square = float(gradient @ gradient)
        samples.append(float(gradient @ part(gradient)) / square if square else 0.0)
    if hessian.distributed:
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, samples)
        samples = [sample for some in gathered for sample in some]
    return Estimate.of(samples)


@dataclass(frozen=True)
class StabilityRecord:
    """One measurement. What was not asked for, or does not exist, is None.

    step: as the caller counts.
    loss: mean over the batches measured on.
    lr: of the first group.
    sharpness: largest eigenvalue of the Hessian; sharpness_error: some eigenvalue is this near.
    preconditioned_sharpness: the same of the preconditioned Hessian, for an adaptive method.
    threshold: what the optimizer's step bears, in units of the preconditioned sharpness where there is one.
    ratio: of what the step sees to what it bears; above 1 it is unstable.
    gradient_norm: of the mean gradient.
    batch_sharpness: mean of g'Hg / |g|^2 over the batches.
    trace, trace_error: of the Hessian, with its standard error.
    spectrum: :meth:`~genflow.optim.dynamics.Spectrum.to_json`.
    products: products with the Hessian spent; each costs about two gradients, and four on several batches.
    seconds: wall-clock time spent.
    """

    step: int
    loss: float
    lr: float
    sharpness: float
    sharpness_error: float
    preconditioned_sharpness: float | None
    threshold: float | None
    ratio: float | None
    gradient_norm: float
    batch_sharpness: float | None
    trace: float | None
    trace_error: float | None
    spectrum: dict[str, Any] | None
    products: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Numbers, None and lists alone."""
        return asdict(self)


class StabilityMonitor:
    """Measures sharpness, thresholds and the spectrum of the loss at an optimizer's present weights.

    Measuring changes nothing: no weights, no gradients, no state, no random numbers. Measurements repeat: the probes
    depend on the seed and the step alone.

    Args:
        optimizer: whose parameters and state are looked at; one of torch's, of genflow's or accelerate's wrapper.
        steps: Lanczos steps, at most, for an eigenvalue; default 20.
        tolerance: relative error at which to stop earlier; default 0.02.
        probes: probes of the spectral density and the trace, each of ``steps`` products; default 0: none.
        batches: measure the batch sharpness too, for one product a micro-batch; default True.
        seed: of the probes.
        distributed: the batches given to :meth:`measure` are this process's share; every process measures at the same
            time, and finds the same. Default False.

    Raises:
        InputError: a number out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        steps: int = 20,
        tolerance: float = 0.02,
        probes: int = 0,
        batches: bool = True,
        seed: int = 0,
        distributed: bool = False,
    ) -> None:
        check_number("steps", steps, at_least=1, integer=True)
        check_number("tolerance", tolerance, at_least=0)
        check_number("probes", probes, at_least=0, integer=True)
        check_number("seed", seed, at_least=0, integer=True)
        self.optimizer = optimizer
        self.steps, self.tolerance, self.probes, self.batches, self.seed = steps, tolerance, probes, batches, seed
        self.distributed = check_flag("distributed", distributed)
        self.records: list[StabilityRecord] = []

    @property
    def most_products(self) -> int:
        """Products with the Hessian that a measurement may take, without those of the batch sharpness."""
        return self.steps * (2 + self.probes)

    def measure(
        self,
        loss: Callable[..., Tensor],
        batches: Sequence[Any] | None = None,
        *,
        weights: Sequence[float] | None = None,
        step: int | None = None,
    ) -> StabilityRecord:
        """Measure now, and append to :attr:`records`.

        Args:
            loss, batches, weights: see :class:`~genflow.optim.dynamics.Hessian`. Keep them the same over a run, so
                that measurements compare; for a diffusion loss the noise and times too.
            step: the number to file it under; by default a count of the measurements.

        Raises:
            NonFiniteError: the loss or a product is NaN or infinite.
        """
        started = time.perf_counter()
        step = len(self.records) if step is None else step
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        hessian = Hessian(loss, params, batches, weights=weights, distributed=self.distributed)
        value, gradient = hessian.gradient()
        top = largest_eigenvalue(hessian, **self._lanczos(step, 0))
        preconditioned, threshold, ratio = self._stability(hessian, top.value, step)
        spectrum = self._spectrum(hessian, step)
        trace = spectrum.trace() if spectrum else Estimate(0.0, None)
        products = hessian.products
        if self.batches:
            sharpness = batch_sharpness(hessian)
            products += len(hessian.weights)
        record = StabilityRecord(
            step=step,
            loss=value,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            sharpness=top.value,
            sharpness_error=top.error,
            preconditioned_sharpness=preconditioned,
            threshold=threshold,
            ratio=ratio,
            gradient_norm=float(gradient.norm()),
            batch_sharpness=sharpness.value if self.batches else None,
            trace=trace.value if spectrum else None,
            trace_error=trace.error,
            spectrum=spectrum.to_json() if spectrum else None,
            products=products,
            seconds=time.perf_counter() - started,
        )
        self.records.append(record)
        return record

    def save(self, path: str | Path) -> None:
        """Write the records as JSON lines."""
        lines = [json.dumps(record.to_json(), allow_nan=False) + "\n" for record in self.records]
        write_text(path, "".join(lines))

    def _generator(self, step: int, use: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + step) * 4 + use)

    def _lanczos(self, step: int, use: int) -> dict[str, Any]:
        return {"steps": self.steps, "tolerance": self.tolerance, "generator": self._generator(step, use)}

    def _spectrum(self, hessian: Hessian, step: int) -> Spectrum | None:
        if not self.probes:
            return None
        return slq(hessian, steps=self.steps, probes=self.probes, generator=self._generator(step, 2))

    def _stability(
        self, hessian: Hessian, sharpness: float, step: int
    ) -> tuple[float | None, float | None, float | None]:
        """Preconditioned sharpness, threshold and their ratio."""
        linear = linear_steps(self.optimizer)
        if not linear or not any(step.lr for _, step in linear):
            return None, None, None
        threshold = min(step.threshold for _, step in linear)
        operator = _step_operator(hessian, linear)
        if isinstance(operator, Operator):
            ratio = largest_eigenvalue(operator, **self._lanczos(step, 1)).value
        else:
            ratio = operator * sharpness
        adaptive = any(step.scale is not None for _, step in linear)
        return (ratio * threshold if adaptive else None), (threshold if math.isfinite(threshold) else None), ratio
