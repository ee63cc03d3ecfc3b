"""From what a user names as samples, reference or training set to its features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genflow import assets
from genflow.data import image_files
from genflow.errors import InputError, check_number, nearest
from genflow.evaluate.evaluation import Side
from genflow.evaluate.extraction import draw_indices, extract
from genflow.evaluate.feature_set import FeatureSet, check_comparable, is_feature_set, load_feature_set
from genflow.evaluate.reference import REFERENCES, is_reference, load_reference
from genflow.evaluate.sources import holds_images, is_statistics_file, open_source
from genflow.evaluate.statistics_files import load_statistics
from genflow.metrics import create_extractor
from genflow.metrics.extractors import EXTRACTORS
from genflow.metrics.features import Extractor
from genflow.metrics.statistics import FeatureStatistics

if TYPE_CHECKING:
    from genflow.evaluate.sources import ImageSource

__all__ = ["Given", "choose_extractor", "complete", "recognise", "samples_of", "take_rows"]

_DATA_SET = "fashion-mnist"  # of which there is a network of its own


@dataclass(frozen=True)
class Given:
    """What a user named, before any image is seen.

    Attributes:
        argument: ``samples``, ``reference`` or ``train``; messages begin with it.
        name: as given.
        known: features or statistics that a file holds already.
        source: images still to be seen. Beside statistics (ADM's reference files hold both) these stay the statistics.
        extractor: that a shipped reference brings with it.
    """

    argument: str
    name: str
    known: FeatureSet | None = None
    source: "ImageSource | None" = None
    extractor: Extractor | None = None

    @property
    def number(self) -> int | None:
        """How many samples there are; None where a statistics file does not say."""
        return len(self.source) if self.source is not None else self.known.statistics.count

    @property
    def has_features(self) -> bool:
        """Whether features are known or can be had."""
        return self.source is not None or self.known.features is not None

    @property
    def has_labels(self) -> bool:
        """Whether the class of any sample is known."""
        labels = self.source.labels if self.source is not None else self.known.labels
        return labels is not None and bool((labels >= 0).any())


def recognise(argument: str, value: str | Path, *, features: str | Path | None = None, **options: Any) -> Given:
    """Tell images, features and statistics apart; files of the latter two are read.

    A shipped reference that is asked for in other ``features`` than its own is the data set of the same name.
    ``options`` go to the shipped reference's extractor.

    Raises:
        InputError: nothing there, or a file that is damaged.
    """
    name = str(value)
    if argument != "samples" and _is_reference(value) and not (name in REFERENCES and features not in (None, name)):
        kept = load_reference(value, **options)
        return Given(argument, name, kept.feature_set, extractor=kept.extractor)
    path = Path(value).expanduser()
    if path.is_file() and path.suffix.lower() == ".safetensors":
        return Given(argument, name, load_feature_set(path) if is_feature_set(path) else load_statistics(path))
    spatial = str(features) == "inception:spatial"  # sFID's, which ADM's files hold beside the FID's
    known = load_statistics(path, spatial=spatial) if path.is_file() and is_statistics_file(path) else None
    if known is not None and not holds_images(path):
        return Given(argument, name, known)
    try:
        source = open_source(value, argument=argument)
    except InputError as error:
        hint = "" if path.exists() or argument != "reference" else nearest(name, REFERENCES)
        raise InputError(f"{error}{hint}") from error
    return Given(argument, name, known if argument == "reference" else None, source)


def samples_of(samples: str | Path | None, model: str | Path | None, num: int | None, **options: Any) -> Given:
    """What is to be judged: ``samples``, or ``num`` images of ``model``, made as they are asked for.

    Raises InputError where both or neither are given, and where :func:`recognise` does.
    """
    if model is None:
        if num is not None:
            raise InputError("num: how many images of a model; name one by model, or take fewer samples by count")
        if samples is None:
            raise InputError("samples: none given; name images or a file of features, or a model by model and num")
        return recognise("samples", samples)
    if samples is not None:
        raise InputError(f"model: got {str(model)!r} and samples {str(samples)!r}; allowed: one of the two")
    if num is None:
        raise InputError(f"num: missing; say how many images of {model} to make")
    check_number("num", num, at_least=2, integer=True)
    from genflow.evaluate.sources import PipelineSource  # diffusers, which takes seconds

    source = PipelineSource(model, num, **options)
    return Given("samples", f"model {source.name}", source=source)


def _is_reference(value: str | Path) -> bool:
    """Images count before a file of features that lies among them."""
    return is_reference(value) and (str(value) in REFERENCES or not image_files(Path(value)))


def choose_extractor(
    givens: Sequence[Given],
    features: str | Path | None,
    *,
    weights: str | Path | None = None,
    resize: str | None = None,
    dtype: str = "float32",
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
) -> Extractor | None:
    """The network that sees the images among ``givens``; None where all is known already.

    Without ``features`` it is the one that made the features that are there, with their resize mode; without such
    features ``fashion-mnist`` for that data set and ``inception`` for any other images.

    Raises:
        InputError: no such network, or no weights; features that are there are of another; an option for a network
            where none is needed.
    """
    options: dict[str, Any] = {"weights": weights, "resize": resize, "batch_size": batch_size}
    known = next((given for given in givens if given.known is not None and "features" in given.known.protocol), None)
    if all(given.source is None for given in givens):
        for name, value in (("features", features), ("weights", weights), ("resize", resize)):
            if value is not None:
                raise InputError(f"{name}: got {str(value)!r}, but there are no images to be seen, only their features")
        return None
    if features is None and known is not None:
        if known.extractor is not None and weights is None and resize is None:
            return known.extractor
        features, options["resize"] = _network_of(known), resize or known.known.protocol.get("resize")
    elif features is None:
        reference = next(given.name for given in givens if given.argument == "reference")
        data_set = reference.partition(":")[0] == _DATA_SET and not Path(reference).exists()
        features = _DATA_SET if data_set else "inception"
    extractor = create_extractor(features, device=device, dtype=dtype, **options)
    for given in givens:
        if given.known is not None:
            # before any image is seen; what is left to be said is said afterwards
            check_comparable(FeatureSet(FeatureStatistics(extractor.dimensions), _described(extractor)), given.known)
    return extractor


def _described(extractor: Extractor) -> dict[str, Any]:
    return {**extractor.describe(), "source": f"--features {extractor.name}"}


def _network_of(given: Given) -> str | Path:
    """What :func:`~genflow.metrics.create_extractor` makes the network of known features from."""
    name = str(given.known.protocol["features"])
    shipped = assets.ROOT / name
    if name.partition(":")[0] in EXTRACTORS:
        return name
    if (shipped / "config.json").is_file():
        return shipped
    raise InputError(
        f"features: {given.name} is of {name!r}, which does not ship with genflow; name its file or folder"
    )


def complete(
    given: Given,
    extractor: Extractor | None,
    *,
    class_names: Sequence[str] | None = None,
    count: int | None = None,
    seed: int = 0,
    need_features: bool = True,
    **options: Any,
) -> Side:
    """See the images, where there are any, and give all that is known.

    Args:
        class_names: by which labels are understood.
        count, seed: take this many, drawn by ``seed``; all by default.
        need_features: where False and statistics are known, the images beside them are left alone.
        options: of :func:`~genflow.evaluate.extraction.extract`.

    Raises:
        InputError: fewer than ``count``, ``count`` of statistics alone, an image that cannot be read (named).
    """
    if given.source is None or (given.known is not None and not need_features):
        found = given.known
        if count is not None:
            if found.features is None:
                raise InputError(f"count: {given.name} holds statistics alone, from which no samples can be drawn")
            rows = draw_indices(len(found.features), count, seed)
            found = replace(
                take_rows(found, torch.tensor(rows)), protocol={**found.protocol, "count": count, "seed": seed}
            )
        return Side(_relabelled(found, class_names))
    source = given.source
    if class_names is not None:
        source = source.among(class_names)
    found = extract(source, extractor, count=count, seed=seed, **options)
    if given.known is not None:
        found = replace(found, statistics=given.known.statistics)
    return Side(_relabelled(found, class_names), source)


def take_rows(feature_set: FeatureSet, rows: Tensor) -> FeatureSet:
    """These samples of it, with statistics of their own; the protocol stays."""

    def taken(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[rows]

    names = feature_set.names
    features = feature_set.features[rows]
    return replace(
        feature_set,
        statistics=FeatureStatistics.from_features(features),
        features=features,
        labels=taken(feature_set.labels),
        predicted=taken(feature_set.predicted),
        logits=taken(feature_set.logits),
        names=None if names is None else tuple(names[row] for row in rows.tolist()),
        images={name: figure[rows] for name, figure in feature_set.images.items()},
    )


def _relabelled(found: FeatureSet, class_names: Sequence[str] | None) -> FeatureSet:
    """Labels as numbers in ``class_names``, told by name, where both sides have names for them."""
    if found.labels is None or not class_names or not found.class_names or found.class_names == tuple(class_names):
        return found
    number = {name: index for index, name in enumerate(class_names)}
    table = torch.tensor([number.get(name, -1) for name in found.class_names] + [-1])  # the last is that of -1
    return replace(found, labels=table[found.labels], class_names=tuple(class_names))
