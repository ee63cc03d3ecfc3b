"""The measures as torchmetrics classes: batches in, figures out, on one process or many.

    metric = FrechetDistance(create_extractor("fashion-mnist"))
    metric.update(real_images, real=True)
    metric.update(generated_images, real=False)
    metric.compute()

``compute`` gives float64 and does not depend on the order of the samples, their batches or the process that saw them,
beyond rounding. States are not in the state dict before ``metric.persistent(True)``, as with any torchmetrics class.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from genflow.errors import InputError, check_flag, check_number
from genflow.metrics.classifier_score import inception_score
from genflow.metrics.extrapolation import Extrapolation, fd_infinity
from genflow.metrics.frechet import FrechetReport, frechet_report
from genflow.metrics.image_statistics import colourfulness, contrast, saturation
from genflow.metrics.kernel import kernel_distance
from genflow.metrics.modular_base import FeatureMetric, Network, in_own_order
from genflow.metrics.neighbours import neighbour_metrics

__all__ = ["FDInfinity", "FrechetDistance", "ImageStatistics", "InceptionScore", "KernelDistance", "PrecisionRecall"]


class _TwoSets(FeatureMetric):
    """A metric between real and generated samples."""

    real_state: str
    generated_state: str

    def update(self, images: Tensor, real: bool) -> None:
        """Add a batch of real or generated images, or of features ``(N, D)`` where the metric has no network.

        Raises InputError on NaN, on features of another width than before, and on what the network refuses.
        """
        name = self.real_state if check_flag("real", real) else self.generated_state
        self.keep(name, self.extract(images))

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Figure and axes with the current value, or with those given, by torchmetrics."""
        return self._plot(val, ax)


class _TwoMoments(_TwoSets):
    real_state, generated_state = "real_moments", "generated_moments"


class _TwoTables(_TwoSets):
    real_state, generated_state = "real_features", "generated_features"

    def __init__(self, network: Network | None = None, *, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(network, reset_real_features=reset_real_features, **kwargs)
        self.add_rows("real_features")
        self.add_rows("generated_features")

    def tables(self) -> tuple[Tensor, Tensor]:
        """Real and generated features."""
        return self.rows("real_features", "real"), self.rows("generated_features", "generated")


class FrechetDistance(_TwoMoments):
    """Frechet distance (FID, where the features are Inception's) from running float64 statistics.

    Memory does not grow with the samples: the state is one mean and scatter matrix a side. Arguments as of
    :class:`~genflow.metrics.modular_base.FeatureMetric`.
    """

    higher_is_better = False

    def __init__(self, network: Network | None = None, *, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(network, reset_real_features=reset_real_features, **kwargs)
        self.add_moments("real_moments")
        self.add_moments("generated_moments")

    def report(self) -> FrechetReport:
        """The distance with its bias, ranks and warnings; of this process's samples, unless it is synced."""
        return frechet_report(
            self.statistics("real_moments", "real"), self.statistics("generated_moments", "generated")
        )

    def compute(self) -> Tensor:
        """The squared distance. Raises InputError with fewer than two samples on a side."""
        return _value(self.report().distance, self)


class KernelDistance(_TwoTables):
    """KID: mean and standard deviation over seeded subsets, see :func:`~genflow.metrics.kernel.kernel_distance`.

    Keeps every feature. The subsets depend on the samples and the seed only.
    """

    higher_is_better = False
    plot_lower_bound = None  # the unbiased estimate may be below zero

    def __init__(
        self,
        network: Network | None = None,
        *,
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 0,
        degree: int = 3,
        gamma: float | None = None,
        coef: float = 1.0,
        reset_real_features: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, reset_real_features=reset_real_features, **kwargs)
        check_number("subsets", subsets, at_least=1, integer=True)
        check_number("subset_size", subset_size, at_least=2, integer=True)
        self.options = {
            "subsets": subsets,
            "subset_size": subset_size,
            "seed": seed,
            "degree": degree,
            "gamma": gamma,
            "coef": coef,
        }

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation. Raises InputError with fewer samples on a side than a subset takes."""
        found = kernel_distance(*map(in_own_order, self.tables()), **self.options)
        return _value(found.mean, self), _value(found.std, self)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """The mean, as of :meth:`_TwoSets.plot`."""
        return self._plot(self.compute()[0] if val is None else val, ax)


class PrecisionRecall(_TwoTables):
    """Precision, recall, density, coverage and authenticity, by name: see
    :func:`~genflow.metrics.neighbours.neighbour_metrics`, whose options these are. Keeps every feature."""

    higher_is_better = True

    def __init__(
        self,
        network: Network | None = None,
        *,
        k: int = 3,
        density_k: int = 5,
        strict: bool = False,
        reset_real_features: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, reset_real_features=reset_real_features, **kwargs)
        check_number("k", k, at_least=1, integer=True)
        check_number("density_k", density_k, at_least=1, integer=True)
        self.options = {"k": k, "density_k": density_k, "strict": check_flag("strict", strict)}

    def compute(self) -> dict[str, Tensor]:
        """The figures. Raises InputError where a set has no k-th neighbour."""
        found = neighbour_metrics(*self.tables(), **self.options)
        return {name: _value(value, self) for name, value in vars(found).items()}


class FDInfinity(_TwoSets):
    """Frechet distance extrapolated to infinitely many samples: :func:`~genflow.metrics.extrapolation.fd_infinity`.

    Keeps every generated feature, of the real ones their statistics.
    """

    higher_is_better = False
    plot_lower_bound = None
    real_state, generated_state = "real_moments", "generated_features"

    def __init__(
        self,
        network: Network | None = None,
        *,
        points: int = 15,
        smallest: int | None = None,
        seed: int = 0,
        reset_real_features: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, reset_real_features=reset_real_features, **kwargs)
        check_number("points", points, at_least=3, integer=True)
        self.options = {"points": points, "smallest": smallest, "seed": seed}
        self.add_moments("real_moments")
        self.add_rows("generated_features")

    def extrapolation(self) -> Extrapolation:
        """The line with its points; of this process's samples, unless it is synced."""
        generated = in_own_order(self.rows("generated_features", "generated"))
        return fd_infinity(self.statistics("real_moments", "real"), generated, **self.options)

    def compute(self) -> Tensor:
        """The value at infinitely many samples. Raises InputError with too few of them."""
        return _value(self.extrapolation().value, self)


class InceptionScore(FeatureMetric):
    """Inception Score of logits: mean and standard deviation over splits of a seeded shuffle.

    The network gives logits ``(N, K)``, or features with logits. See
    :func:`~genflow.metrics.classifier_score.inception_score`: scores by different networks cannot be compared.
    """

    higher_is_better = True
    _takes = "logits"

    def __init__(
        self, network: Network | None = None, *, splits: int = 10, seed: int = 0, shuffle: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(network, **kwargs)
        check_number("splits", splits, at_least=1, integer=True)
        self.options = {"splits": splits, "seed": seed, "shuffle": check_flag("shuffle", shuffle)}
        self.add_rows("logits")

    def update(self, images: Tensor) -> None:
        """Add a batch of images, or of logits ``(N, K)`` where the metric has no network."""
        self.keep("logits", self.extract(images))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation. Raises InputError with fewer samples than splits."""
        logits = self.rows("logits", "logits")
        found = inception_score(in_own_order(logits) if self.options["shuffle"] else logits, **self.options)
        return _value(found.mean, self), _value(found.std, self)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Figure and axes with the mean, or with the values given, by torchmetrics."""
        return self._plot(self.compute()[0] if val is None else val, ax)


class ImageStatistics(Metric):
    """Means over images of saturation, contrast and colourfulness, see :mod:`genflow.metrics.image_statistics`."""

    is_differentiable = False
    full_state_update = False
    higher_is_better = None
    plot_lower_bound = 0.0
    measures = {"saturation": saturation, "contrast": contrast, "colourfulness": colourfulness}  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # float64 in one tensor, counts included: exact for any number of images that there will be
        self.add_state("sums", torch.zeros(1 + len(self.measures), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        """Add images ``(N, C, H, W)``, C 1 or 3: uint8, or float in [-1, 1]. Raises InputError on others."""
        if images.dtype == torch.uint8:
            images = images.to(torch.float32) / 127.5 - 1
        figures = [measure(images).sum(dtype=torch.float64) for measure in self.measures.values()]
        self.sums += torch.stack([figures[0].new_tensor(len(images)), *figures]).to(self.sums.device)

    def compute(self) -> dict[str, Tensor]:
        """Mean of each figure, by name. Raises InputError before the first image."""
        if not float(self.sums[0]):
            raise InputError("images: none yet; call update before compute")
        return dict(zip(self.measures, (self.sums[1:] / self.sums[0]).unbind(), strict=True))

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Figure and axes with the current values, or with those given, by torchmetrics."""
        return self._plot(val, ax)

    def _apply(self, fn: Any, exclude_state: Sequence[str] = "") -> Any:
        self._computed = None
        super()._apply(fn, exclude_state=[*exclude_state, "sums"])
        self.sums = self.sums.to(fn(self.sums.new_empty(0)).device)  # to another device, but never to another dtype
        return self


def _value(value: float, metric: Metric) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device=metric.device)
