"""The metrics by name: what each is called, what it needs, what it means, and how it comes from features.

A Frechet distance is called FID only in the features of the Inception network that everybody's FID uses; the same
figure of other features is FD, with their name, and belongs beside figures of those features alone.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from genflow.errors import InputError, check_choice
from genflow.evaluate.pair import Pair

__all__ = [
    "COVERING",
    "DEFAULT",
    "INTRA",
    "MEASURES",
    "NEEDS",
    "Measure",
    "Naming",
    "choose",
    "label",
    "meaning",
    "missing",
    "parse_metrics",
]

_ANY, _SHARE = (-math.inf, math.inf), (0.0, 1.0)


@dataclass(frozen=True)
class Measure:
    """One metric.

    Attributes:
        label: what tables call it; ``{features}`` is the network's name.
        direction: ``"up"`` where more is better, ``"down"`` where less is, None where neither.
        form: how tables write it.
        meaning: in a line, with fields of the protocol.
        needs: names in :data:`NEEDS`.
        value: the figure.
        spread: its standard deviation over subsets or splits, where it is a mean of such.
        each: of a mean of single samples' values, exactly or to the first order: those values.
        over: whose samples these are, ``"generated"`` or ``"reference"``; what a bootstrap draws from.
        bounds: between which it lies by its nature, and so do its intervals.
        again: of any other: the figure of these rows of the generated samples, for a bootstrap.
        together: of any other: the figures of many resamples at once, from how often each holds each sample.
    """

    label: str
    direction: Literal["up", "down"] | None
    form: str
    meaning: str
    needs: tuple[str, ...]
    value: Callable[[Pair], float]
    spread: Callable[[Pair], float] | None = None
    each: Callable[[Pair], Tensor] | None = None
    over: Literal["generated", "reference"] = "generated"
    bounds: tuple[float, float] = (0.0, math.inf)
    again: Callable[[Pair, Tensor], float] | None = None
    together: Callable[[Pair, Tensor], Tensor] | None = None


def _frechet(name: str) -> Measure:
    return Measure(
        name,
        "down",
        "{:.4f}",
        "squared Frechet distance of Gaussians fitted to the features; 0 is best",
        (),
        lambda pair: pair.frechet.distance,
        each=lambda pair: pair.frechet_shares,
    )


def _extrapolated(name: str) -> Measure:
    return Measure(
        name,
        "down",
        "{:.4f}",
        "the same for endless samples: extrapolated in 1/N",
        ("features",),
        lambda pair: pair.extrapolation.value,
        bounds=_ANY,
        each=lambda pair: pair.extrapolation_shares,
    )


def _within_classes(name: str) -> Measure:
    return Measure(
        name,
        "down",
        "{:.4f}",
        "mean over classes of the distance between samples and reference of that class",
        ("features", "labels", "reference_labels"),
        lambda pair: pair.within_classes,
        each=lambda pair: pair.within_classes_shares,
    )


def _covering(
    name: str, meaning: str, each: Callable[[Any], Tensor], over: Literal["generated", "reference"] = "generated"
) -> Measure:
    """One of those that come from the one pass over nearest neighbours."""
    return Measure(
        name,
        "up",
        "{:.4f}",
        meaning,
        ("features",),
        lambda pair: getattr(pair.neighbours.metrics, name),
        each=lambda pair: each(pair.neighbours),
        over=over,
        bounds=(0, math.inf) if name == "density" else _SHARE,
    )


def _of_images(name: str, meaning: str) -> Measure:
    return Measure(
        name,
        None,
        "{:.4f}",
        meaning,
        (f"images.{name}",),
        lambda pair: float(pair.generated.images[name].double().mean()),
        each=lambda pair: pair.generated.images[name],
    )


MEASURES: Mapping[str, Measure] = {
    "fid": _frechet("FID"),
    "fd": _frechet("FD ({features})"),
    "fid_infinity": _extrapolated("FID-infinity"),
    "fd_infinity": _extrapolated("FD-infinity ({features})"),
    "intra_fid": _within_classes("intra-FID"),
    "intra_fd": _within_classes("intra-FD ({features})"),
    "kid": Measure(
        "KID ({features})",
        "down",
        "{:.5f}",
        "kernel distance, unbiased: mean of {kid_subsets} subsets of {kid_subset_size}",
        ("features",),
        lambda pair: pair.kernel.mean,
        spread=lambda pair: pair.kernel.std,
        bounds=_ANY,
        together=Pair.kernel_of,
    ),
    "is": Measure(
        "Inception Score ({features})",
        "up",
        "{:.4f}",
        "sure of each image, and of all classes in turn: mean of {is_splits} splits",
        ("logits",),
        lambda pair: pair.inception.mean,
        spread=lambda pair: pair.inception.std,
        bounds=(1, math.inf),
        again=lambda pair, rows: pair.inception_of(rows).mean,
    ),
    "precision": _covering("precision", "share of samples near real images (k = {k})", lambda found: found.precise),
    "recall": _covering(
        "recall", "share of real images near samples (k = {k})", lambda found: found.recalled, "reference"
    ),
    "density": _covering(
        "density", "real balls a sample is in, over k = {density_k}", lambda found: found.held / found.density_k
    ),
    "coverage": _covering(
        "coverage",
        "share of real balls with a sample inside (k = {density_k})",
        lambda found: found.covered,
        "reference",
    ),
    "authenticity": _covering(
        "authenticity",
        "share of samples farther from the nearest real image than that is from the next",
        lambda found: found.authentic,
    ),
    "memorization": Measure(
        "memorization",
        "down",
        "{:.4f}",
        "share of samples under {memorization_ratio:.2f} times as far from the nearest training image as from the next",
        ("features", "train"),
        lambda pair: pair.memorization.share,
        each=lambda pair: pair.memorization.copied,
        bounds=_SHARE,
    ),
    "accuracy": Measure(
        "accuracy",
        "up",
        "{:.2%}",
        "share in the class asked for, of {labelled} samples whose class is known",
        ("labels", "classes"),
        lambda pair: pair.accuracy,
        each=lambda pair: pair.right,
        bounds=_SHARE,
    ),
    "saturation": _of_images("saturation", "mean of HSV's S: 0 is grey, 1 pure colours"),
    "contrast": _of_images("contrast", "standard deviation of the luma within an image, 0 to 0.5"),
    "colourfulness": _of_images("colourfulness", "0 is grey, 33 moderately colourful (Hasler and Suesstrunk)"),
    "clipped_share": _of_images("clipped_share", "share of values that are black or full"),
}
"""In the order of tables."""

DEFAULT = ("fd", "precision", "recall", "density", "coverage", "memorization", "accuracy")
"""Those of them that can be had, where none is asked for."""

COVERING = frozenset({"precision", "recall", "density", "coverage", "authenticity"})
"""Those of nearest neighbours."""

INTRA = frozenset({"intra_fid", "intra_fd"})
"""Those that need every class."""

NEEDS = {
    "features": "the features of both sides, of which statistics are not enough",
    "logits": "class scores, which {features} does not give",
    "images": "the pictures, of which there are only features",
    "labels": "the classes of the samples: in PNG metadata, one folder a class, or an array of labels",
    "reference_labels": "the classes of the reference: in PNG metadata, one folder a class, or an array of labels",
    "classes": "a network that knows the samples' classes, which {features} does not",
    "train": "--train DATA, the images that the model was trained on",
}
"""What a metric needs, in words that follow "needs"."""

_INCEPTION = {"fd": "fid", "fd_infinity": "fid_infinity", "intra_fd": "intra_fid"}
_PLAIN = {fid: fd for fd, fid in _INCEPTION.items()}
_OTHER_NAMES = {"colorfulness": "colourfulness", "inception_score": "is"}


def parse_metrics(metrics: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """``"fid,fd-infinity"`` or names one by one to keys of :data:`MEASURES`, each once; None stays None.

    Hyphens and underscores are the same. Raises InputError for an unknown name, with the nearest that is known.
    """
    if metrics is None:
        return None
    words = metrics.split(",") if isinstance(metrics, str) else list(metrics)
    keys: dict[str, None] = {}
    for word in words:
        key = word.strip().lower().replace("-", "_")
        key = _OTHER_NAMES.get(key, key)
        if key not in MEASURES:
            check_choice("metrics", word.strip(), [name.replace("_", "-") for name in MEASURES])
        keys[key] = None
    if not keys:
        raise InputError(f"metrics: none given; allowed: {', '.join(MEASURES)}")
    return tuple(keys)


@dataclass(frozen=True)
class Naming:
    """What the features are called, and whether a Frechet distance in them is called FID."""

    features: str
    fid: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, features: str, *, published: bool, wanted: Sequence[str] | None) -> "Naming":
        """``published``: whether these are Inception's with the weights that everybody's FID uses.

        Of an Inception whose weights are not known as such a distance is called FID where it is asked for by that name.
        """
        asked = any(key in _PLAIN for key in wanted or ())
        if features == "inception" and published:
            return cls(features, True)
        if features == "inception" and asked:
            note = "called FID as asked for; these Inception weights are not known here as the published ones"
            return cls(features, True, (note,))
        if features == "inception":
            note = "called FD, since these Inception weights are not known here as the published ones"
            return cls(features, False, (note,))
        note = f"fid is in Inception's features; in those of {features} it is called FD, and no FID compares with it"
        return cls(features, False, (note,) if asked else ())


def choose(
    wanted: Sequence[str] | None, facts: Mapping[str, bool | None], naming: Naming, extra: Sequence[str] = ()
) -> tuple[str, ...]:
    """The keys to compute, in the order of tables: what is wanted, by default all of :data:`DEFAULT` that can be had.

    Args:
        facts: of what is in :data:`NEEDS`, whether it is there; None where that is not known yet. ``images.NAME``
            stands for each figure of images.
        extra: wanted too.

    Raises:
        InputError: one that is wanted cannot be had; the message says why.
    """
    keys = [key for key in DEFAULT if missing(key, facts) is None] if wanted is None else list(wanted)
    for key in (*keys, *extra):
        lacking = missing(key, facts)
        if lacking is not None:
            reason = NEEDS[lacking.partition(".")[0]].format(features=naming.features)
            raise InputError(f"metrics: {key.replace('_', '-')} needs {reason}")
    names = _INCEPTION if naming.fid else _PLAIN
    chosen = {names.get(key, key) for key in (*keys, *extra)}
    return tuple(key for key in MEASURES if key in chosen)


def missing(key: str, facts: Mapping[str, bool | None]) -> str | None:
    """The first of the metric's needs that is known not to be there."""
    return next((need for need in MEASURES[key].needs if facts.get(need) is False), None)


def label(key: str, features: str) -> str:
    """What tables call the metric in these features."""
    return MEASURES[key].label.format(features=features.removesuffix("-classifier"))


def meaning(key: str, protocol: Mapping[str, Any]) -> str:
    """The metric in a line, with the numbers of this protocol."""
    text = MEASURES[key].meaning.format_map(protocol)
    aim = protocol["reference_images"].get(key)
    return text if aim is None else f"{text}; {MEASURES[key].form.format(aim)} in the reference"
