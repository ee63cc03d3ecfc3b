"""Samples and their reference, with everything that is computed of the two: each thing when it is first asked for."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from genflow.errors import InputError, check_flag, check_number
from genflow.evaluate.console import progress_bar
from genflow.evaluate.feature_set import FeatureSet
from genflow.metrics.accuracy import class_accuracy
from genflow.metrics.classifier_score import InceptionSpread, inception_score
from genflow.metrics.copies import Memorization, memorization
from genflow.metrics.extrapolation import Extrapolation, fd_infinity
from genflow.metrics.frechet import FrechetReport, frechet_report
from genflow.metrics.influence import frechet_influence
from genflow.metrics.kernel import KernelSpread, kernel_distance
from genflow.metrics.neighbours import NeighbourDetails, neighbour_details
from genflow.metrics.per_class import ClassFrechet, class_frechet_distances
from genflow.metrics.resampled_kernel import resampled_kernel_distances
from genflow.processes import processes

__all__ = ["IS_SPLITS", "KID_SUBSETS", "KID_SUBSET_SIZE", "MEMORIZATION_RATIO", "Pair", "Settings"]

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
"""Binkowski et al. 2018, as torch-fidelity takes them; a subset is no larger than the smaller side."""

IS_SPLITS = 10
"""Salimans et al. 2016; no more than there are samples."""

MEMORIZATION_RATIO = 1 / 3
"""A sample is a copy where its nearest training image is a third as far as the next (Yoon et al. 2023)."""


@dataclass(frozen=True)
class Settings:
    """What the metrics depend on beside the features.

    Attributes:
        k: neighbours for precision and recall (Kynkaanniemi et al. 2019 use 3).
        density_k: neighbours for density and coverage (Naeem et al. 2020 use 5).
        strict: whether a point on a ball's edge is outside.
        seed: of subsets, splits and resamples.
        device: where distances are computed.
        progress: whether bars are shown.
    """

    k: int = 3
    density_k: int = 5
    strict: bool = False
    seed: int = 0
    device: str | torch.device = "cpu"
    progress: bool = False

    def __post_init__(self) -> None:
        check_number("k", self.k, at_least=1, integer=True)
        check_number("density_k", self.density_k, at_least=1, integer=True)
        check_number("seed", self.seed, at_least=0, integer=True)
        check_flag("strict", self.strict)


class Pair:
    """Both sides, and their figures. What needs features or classes that are not there must not be asked for."""

    def __init__(
        self, generated: FeatureSet, reference: FeatureSet, settings: Settings, train: FeatureSet | None = None
    ) -> None:
        self.generated, self.reference, self.settings, self.train = generated, reference, settings, train
        # float64, which Apple's mps has not
        self._team = processes(cpu=torch.device(settings.device).type == "cpu")
        self._place = "cpu" if torch.device(settings.device).type == "mps" else settings.device

    def done(self, name: str) -> object | None:
        """What the property of this name gave, if it was ever asked for."""
        return self.__dict__.get(name)

    @property
    def number(self) -> int:
        """Samples whose features are known."""
        return len(self.generated.features)

    @cached_property
    def frechet(self) -> FrechetReport:
        """Squared Frechet distance, ranks, and what too few samples add to it."""
        # By fewer features than dimensions it takes a fraction of the time.
        few = (
            self.generated.features is not None and len(self.generated.features) < self.generated.statistics.dimensions
        )
        ours = self.generated.features if few else self.generated.statistics
        return frechet_report(ours, self.reference.statistics)

    @cached_property
    def frechet_shares(self) -> Tensor:
        """One value a sample, float64 ``(M,)``, whose mean is the distance, and nearly that of a resample its mean of
        the values drawn: by the distance's first derivative. Resampling itself would count copies as neighbours of the
        mean, near the reference at twice the true scatter, and take seconds a draw at 2048 dimensions."""
        return self.frechet.distance + frechet_influence(self.reference.statistics, self.generated.features)

    @cached_property
    def within_classes_shares(self) -> Tensor:
        """The same of the mean of the distances within classes, for the samples whose class is known."""
        ours, theirs = self.generated.labels, self.reference.labels
        found = torch.full((len(ours),), self.within_classes, dtype=torch.float64)
        known, labels = int((ours >= 0).sum()), sorted(self.classes.distances)
        for label in labels:
            rows = ours == label
            values = frechet_influence(self.reference.features[theirs == label], self.generated.features[rows])
            found[rows] += values * known / (len(labels) * len(values))
        return found[ours >= 0]

    @cached_property
    def extrapolation(self) -> Extrapolation:
        """The distance at several sizes, and its limit."""
        return fd_infinity(self.reference.statistics, self.generated.features, seed=self.settings.seed)

    @cached_property
    def extrapolation_shares(self) -> Tensor:
        """One value a sample, float64 ``(M,)``, whose mean is the limit, and nearly that of a resample its mean.

        The limit is a sum of the subsets' distances with the weights of a line's intercept, and each of these, to the
        first order, a mean over its subset. Subsets drawn like those of the limit serve as well as these.
        """
        found, count = self.extrapolation, self.number
        inverse = 1 / found.sizes.to(torch.float64)
        offsets = inverse - inverse.mean()
        weights = 1 / len(inverse) - inverse.mean() * offsets / offsets.square().sum()
        generator = torch.Generator().manual_seed(self.settings.seed)
        held = torch.zeros(count, dtype=torch.float64)
        for size, weight in zip(found.sizes.tolist(), weights.tolist(), strict=True):
            held[torch.randperm(count, generator=generator)[:size]] += weight / size
        shares = (self.frechet_shares - self.frechet.distance) * held * count
        return found.value + shares - shares.mean()

    @cached_property
    def classes(self) -> ClassFrechet:
        """The distance within each class that both sides have, and the mean."""
        return class_frechet_distances(
            self.reference.features, self.reference.labels, self.generated.features, self.generated.labels
        )

    @property
    def within_classes(self) -> float:
        """The mean of these. Raises InputError where a class has too few samples for a distance."""
        if self.classes.intra is None:
            label, why = next(iter(self.classes.left_out.items()))
            raise InputError(f"metrics: no mean over classes: class {label} has {why}")
        return self.classes.intra

    @property
    def can_tell_classes(self) -> bool:
        """Whether the network's classes are the samples'. Inception's are ImageNet's, in an order of its own."""
        network = str(self.generated.protocol.get("features", ""))
        return self.generated.predicted is not None and not network.startswith("inception")

    @cached_property
    def neighbours(self) -> NeighbourDetails:
        """Precision, recall, density, coverage and authenticity, sample by sample."""
        real, generated = self.reference.features, self.generated.features
        with progress_bar("neighbours", 2 * len(real) + len(generated), self.settings.progress) as advance:
            return neighbour_details(
                real.to(self._place),
                generated.to(self._place),
                k=self.settings.k,
                density_k=self.settings.density_k,
                strict=self.settings.strict,
                progress=advance,
                processes=self._team,
            )

    @cached_property
    def memorization(self) -> Memorization:
        """How much nearer each sample's nearest training image is than the next."""
        with progress_bar("memorization", len(self.generated.features), self.settings.progress) as advance:
            return memorization(
                self.train.features.to(self._place),
                self.generated.features.to(self._place),
                ratio=MEMORIZATION_RATIO,
                progress=advance,
                processes=self._team,
            )

    @property
    def kid_subset_size(self) -> int:
        """1,000, or the smaller side."""
        return min(KID_SUBSET_SIZE, len(self.reference.features), len(self.generated.features))

    @cached_property
    def kernel(self) -> KernelSpread:
        """Mean and standard deviation over subsets."""
        return kernel_distance(
            self.reference.features,
            self.generated.features,
            subsets=KID_SUBSETS,
            subset_size=self.kid_subset_size,
            seed=self.settings.seed,
        )

    def kernel_of(self, counts: Tensor) -> Tensor:
        """The distances on all samples of resamples that hold each sample ``counts`` ``(draws, M)`` times."""
        real, generated = self.reference.features, self.generated.features
        rows = len(real) + 2 * len(generated)
        with progress_bar("intervals of kid", rows, self.settings.progress) as advance:
            return resampled_kernel_distances(real, generated, counts, progress=advance)

    @property
    def is_splits(self) -> int:
        """10, or fewer where there are not so many samples."""
        return min(IS_SPLITS, len(self.generated.logits))

    @cached_property
    def inception(self) -> InceptionSpread:
        """Mean and standard deviation over splits."""
        return self.inception_of(None)

    def inception_of(self, rows: Tensor | None) -> InceptionSpread:
        """The same of these rows of the samples."""
        logits = self.generated.logits if rows is None else self.generated.logits[rows]
        return inception_score(logits, splits=self.is_splits, seed=self.settings.seed)

    @cached_property
    def right(self) -> Tensor:
        """Whether each sample whose class is known is of that class, bool ``(n,)``."""
        known = self.generated.labels >= 0
        return self.generated.predicted[known] == self.generated.labels[known]

    @property
    def accuracy(self) -> float:
        """The share of those."""
        return class_accuracy(self.generated.predicted, self.generated.labels)
