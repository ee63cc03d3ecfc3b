r"""Learning rates over batch sizes, from the spectra of batch Hessians.

Granziol, Zohren and Roberts, "Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural
Network Training", JMLR 23 (2022), arXiv 2006.09092: the Hessian of a batch is that of all data plus a noise matrix
whose entries have variance :math:`s^2/b`. With :math:`\nu = P s^2` for P parameters, an outlier :math:`\lambda` of the
full Hessian stands in the batch Hessian at

.. math::
    \lambda_b = \lambda + \frac{\nu}{b \lambda} \quad (\lambda > \sqrt{\nu/b}), \qquad
    \lambda_b = 2 \sqrt{\nu/b} \quad \text{else (the edge of the noise)}.

The largest stable learning rate is :math:`2/\lambda_b`: for small batches linear in b, flat far beyond
:math:`\nu/\lambda^2`. A method preconditioned by about the root of the curvature bears :math:`2/\sqrt{\lambda_b}`:
the square root of b. Batches drawn without replacement from n samples have :math:`1/b - 1/n` in place of 1/b.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from genflow.errors import InputError, check_choice, check_number
from genflow.optim.dynamics.hutchinson import Estimate
from genflow.optim.dynamics.krylov import largest_eigenvalue
from genflow.optim.dynamics.operators import Operator

__all__ = ["BatchSharpness", "measure_batches", "scale_lr", "suggest_lr_momentum"]


@dataclass(frozen=True)
class BatchSharpness:
    """The largest eigenvalue of a batch Hessian as a function of the batch size.

    sharpness: :math:`\\lambda` of the full Hessian, > 0.
    noise: :math:`\\nu = P s^2`, >= 0.
    dataset: number of samples that batches are drawn from without replacement; None: with replacement, or no end.
    """

    sharpness: float
    noise: float
    dataset: int | None = None

    def __post_init__(self) -> None:
        check_number("sharpness", self.sharpness, above=0)
        check_number("noise", self.noise, at_least=0)
        if self.dataset is not None:
            check_number("dataset", self.dataset, at_least=1, integer=True)

    def at(self, batch: float) -> float:
        """The largest eigenvalue expected at this batch size.

        Raises:
            InputError: a batch size that is not positive, or above the size of the data set.
        """
        variance = self.noise * _share(batch, self.dataset)
        return _edge(self.sharpness, variance)

    @property
    def critical_batch(self) -> float:
        """Where noise and curvature matter alike, :math:`\\nu/\\lambda^2`: below it the noise decides."""
        return self.noise / self.sharpness**2

    def max_lr(self, batch: float, *, adaptive: bool = False) -> float:
        """The largest stable learning rate of plain SGD; for an adaptive method up to a factor that is its own."""
        value = self.at(batch)
        return 2 / math.sqrt(value) if adaptive else 2 / value

    @classmethod
    def fit(cls, measured: Mapping[int, float], dataset: int | None = None) -> "BatchSharpness":
        """From largest eigenvalues measured at two batch sizes or more (:func:`measure_batches`).

        Least squares of the logarithms, so that every size counts alike.

        Raises:
            InputError: fewer than two sizes, or an eigenvalue that is not positive.
        """
        if len(measured) < 2:
            raise InputError(f"measured: got {len(measured)} batch sizes; allowed: at least two")
        shares = torch.tensor([_share(batch, dataset) for batch in measured], dtype=torch.float64)
        values = [check_number(f"measured[{batch}]", value, above=0) for batch, value in measured.items()]
        from scipy.optimize import least_squares

        logs = torch.tensor(values, dtype=torch.float64).log()
        low, largest = min(values), float(shares.max())

        def residuals(unknown: Sequence[float]) -> list[float]:
            sharpness, noise = math.exp(unknown[0]), math.exp(unknown[1])
            return [
                math.log(_edge(sharpness, noise * share)) - log
                for share, log in zip(shares.tolist(), logs.tolist(), strict=True)
            ]

        # the surface has a fold between the two regimes: from several starts
        starts = [(math.log(low * a), math.log(low**2 * c / largest)) for a in (0.3, 0.9) for c in (0.01, 0.3, 10.0)]
        best = min((least_squares(residuals, start) for start in starts), key=lambda result: result.cost)
        return cls(math.exp(best.x[0]), math.exp(best.x[1]), dataset)


def _share(batch: float, dataset: int | None) -> float:
    """Variance of a batch mean, relative to that of one sample."""
    check_number("batch", batch, above=0, at_most=math.inf if dataset is None else dataset)
    return 1 / batch - (0 if dataset is None else 1 / dataset)


def _edge(sharpness: float, variance: float) -> float:
    root = math.sqrt(variance)
    return sharpness + variance / sharpness if sharpness > root else 2 * root


def measure_batches(
    hessian: Callable[[int, torch.Generator], Operator],
    sizes: Sequence[int],
    *,
    draws: int = 4,
    steps: int = 20,
    tolerance: float = 0.02,
    seed: int = 0,
) -> dict[int, Estimate]:
    """Largest eigenvalues of batch Hessians: the mean over ``draws`` batches of each size, and its standard error.

    Args:
        hessian: gives the Hessian of a batch of the given size, drawn with the given generator.
        sizes: batch sizes; two are enough for :meth:`BatchSharpness.fit`.
        draws: batches of each size.
        steps, tolerance: see :func:`~genflow.optim.dynamics.largest_eigenvalue`.
        seed: of the batches.
    """
    check_number("draws", draws, at_least=1, integer=True)
    found = {}
    for size in sizes:
        check_number("sizes", size, at_least=1, integer=True)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + size)
        samples = []
        for _ in range(draws):
            top = largest_eigenvalue(hessian(size, generator), steps=steps, tolerance=tolerance, generator=generator)
            samples.append(top.value)
        found[size] = Estimate.of(samples)
    return found


def scale_lr(
    lr: float,
    batch: float,
    new_batch: float,
    rule: Literal["linear", "sqrt", "rmt"] = "linear",
    *,
    fit: BatchSharpness | None = None,
    adaptive: bool = False,
) -> float:
    """The learning rate at another batch size.

    Args:
        lr: what works at ``batch``.
        batch, new_batch: batch sizes.
        rule: "linear" for SGD, "sqrt" for adaptive methods, both for batches below the critical size; "rmt" by the
            measured spectra ``fit``, for all batches.
        fit: the measured law, for "rmt".
        adaptive: with "rmt", the law's square root.

    Raises:
        InputError: a number that is not positive, an unknown rule, "rmt" without ``fit``.
    """
    check_number("lr", lr, above=0)
    check_number("batch", batch, above=0)
    check_number("new_batch", new_batch, above=0)
    check_choice("rule", rule, ("linear", "sqrt", "rmt"))
    if rule == "rmt":
        if fit is None:
            raise InputError("fit: got None with rule='rmt'; allowed: a BatchSharpness")
        return lr * fit.max_lr(new_batch, adaptive=adaptive) / fit.max_lr(batch, adaptive=adaptive)
    if fit is not None or adaptive:
        raise InputError(f"fit, adaptive: given with rule={rule!r}; allowed: with 'rmt'")
    ratio = new_batch / batch
    return lr * (ratio if rule == "linear" else math.sqrt(ratio))


def suggest_lr_momentum(largest: float, smallest: float) -> tuple[float, float]:
    r"""Learning rate and momentum of heavy-ball descent that are fastest on a quadratic with these eigenvalues.

    :math:`\eta = (2/(\sqrt L + \sqrt\mu))^2`, :math:`\beta = ((\sqrt\kappa - 1)/(\sqrt\kappa + 1))^2` with
    :math:`\kappa = L/\mu` (Polyak, 1964). For ``largest`` take that of the batch Hessian.

    Raises:
        InputError: not 0 < smallest <= largest.
    """
    check_number("largest", largest, above=0)
    check_number("smallest", smallest, above=0, at_most=largest)
    top, bottom = math.sqrt(largest), math.sqrt(smallest)
    return (2 / (top + bottom)) ** 2, ((top - bottom) / (top + bottom)) ** 2
