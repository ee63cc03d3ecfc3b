"""Reference features: what samples are compared with, kept with the identity of the network that made them.

``python -m genflow.evaluate.reference`` makes ``assets/fashion-mnist-reference`` again: features of Fashion-MNIST's
10,000 test images by ``assets/fashion-mnist-classifier``. About ten seconds.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genflow import assets
from genflow.errors import InputError, check_choice
from genflow.evaluate.console import run
from genflow.evaluate.feature_set import FeatureSet, is_feature_set, load_feature_set, save_feature_set
from genflow.files import write_text
from genflow.metrics.accuracy import class_accuracy
from genflow.metrics.features import FeatureExtractor
from genflow.metrics.statistics import FeatureStatistics

__all__ = ["ASSETS", "REFERENCES", "Reference", "is_reference", "load_reference", "save_reference"]

ASSETS = assets.ROOT
REFERENCES = {"fashion-mnist": "fashion-mnist-reference"}
"""Names of shipped references and their folders under ``assets/``."""

_FEATURES, _STATISTICS = "features.safetensors", "statistics.safetensors"

CARD = """# fashion-mnist-reference

Features of Fashion-MNIST's {count:,} {split} images by `fashion-mnist-classifier`, against which `genflow evaluate`
measures samples.

| | |
| --- | --- |
| features.safetensors | `features` ({count}, {dimensions}) float16; `labels` ({count},) int64; before rounding, \
in float64: `mean`, `covariance` (divided by N - 1), `count` |
| data | Fashion-MNIST, {split} images; MIT licence, (c) 2017 Zalando SE |
| classifier | {accuracy:.2%} of these images in their class; SHA-256 of its tensors {sha256} |

Made by `python -m genflow.evaluate.reference`. No seed: nothing in it is random.
"""


@dataclass(frozen=True)
class Reference:
    """Features with their labels and statistics, and the extractor that made them."""

    name: str
    extractor: FeatureExtractor
    feature_set: FeatureSet

    @property
    def description(self) -> str:
        """The data, as whoever made the reference called it."""
        return str(self.feature_set.protocol.get("source", ""))

    @property
    def features(self) -> Tensor:
        """``(N, D)`` float32."""
        return self.feature_set.features

    @property
    def labels(self) -> Tensor | None:
        """``(N,)`` int64."""
        return self.feature_set.labels

    @property
    def statistics(self) -> FeatureStatistics:
        """In float64, of the features before they were rounded for the file."""
        return self.feature_set.statistics


def save_reference(folder: str | Path, feature_set: FeatureSet) -> None:
    """Write ``features.safetensors`` to ``folder``: features in half precision, statistics of the full ones."""
    save_feature_set(Path(folder) / _FEATURES, feature_set, half=True)


def is_reference(reference: str | Path) -> bool:
    """Whether :func:`load_reference` is the one to load this: a shipped name, or a folder with features."""
    return str(reference) in REFERENCES or (Path(reference) / _FEATURES).is_file()


def load_reference(reference: str | Path, **options: Any) -> Reference:
    """A shipped reference by name (``"fashion-mnist"``), or the folder of one that :func:`save_reference` wrote.

    The classifier that it names is looked for beside the folder, then among the shipped ones; ``options`` (``device``,
    ``batch_size``, ``dtype``) go to :class:`~genflow.metrics.FeatureExtractor`. Raises InputError where something is
    missing or damaged, or where the classifier is not the one that made the features.
    """
    folder = Path(reference)
    if str(reference) in REFERENCES:
        folder = ASSETS / REFERENCES[str(reference)]
    elif not folder.is_dir():
        check_choice("reference", str(reference), REFERENCES)
    file = folder / _FEATURES
    if not file.is_file():
        raise InputError(f"reference: {file} does not exist")
    kept = load_feature_set(file) if is_feature_set(file) else _load_pair(folder)
    name = str(kept.protocol.get("features", ""))
    homes = [home for home in (folder.parent / name, ASSETS / name) if (home / "config.json").is_file()]
    if not name or not homes:
        raise InputError(f"reference: {file} names the classifier {name!r}, which is neither beside it nor shipped")
    extractor = FeatureExtractor.from_folder(homes[0], **options)
    if extractor.sha256 != kept.protocol.get("features_sha256"):
        raise InputError(
            f"reference: {homes[0]} is not the classifier that made {file}; make the reference again with "
            "python -m genflow.evaluate.reference"
        )
    if kept.features is None:
        raise InputError(f"reference: {file} holds statistics alone; a reference has features")
    if kept.labels is not None and kept.class_names is None:
        kept = replace(kept, class_names=extractor.class_names)
    return Reference(folder.name, extractor, kept)


def _load_pair(folder: Path) -> FeatureSet:
    """A reference of genflow's first format: features and statistics in a file each, of an unresized classifier."""
    file = folder / _FEATURES
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            features, labels = opened.get_tensor("features").float(), opened.get_tensor("labels")
    except (SafetensorError, OSError) as error:
        raise InputError(f"reference: cannot read {file} ({error})") from error
    statistics = FeatureStatistics.load(folder / _STATISTICS)
    if features.ndim != 2 or features.shape != (statistics.count, statistics.dimensions):
        raise InputError(f"reference: {file} holds {tuple(features.shape)}, the statistics are of {statistics.count}")
    protocol = {
        "features": header.get("classifier", ""),
        "features_sha256": header.get("classifier_sha256"),
        "dimensions": statistics.dimensions,
        "resize": "none",
        "dtype": "float32",
        "source": header.get("data", ""),
        "count": statistics.count,
        "available": statistics.count,
        "seed": None,
        "skipped": [],
    }
    return FeatureSet(statistics, protocol, features=features, labels=labels)


def main(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = ASSETS / REFERENCES["fashion-mnist"],
    classifier: Annotated[Path, typer.Option(help="Folder of the classifier.")] = ASSETS / "fashion-mnist-classifier",
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
) -> None:
    """Write the features of Fashion-MNIST's images, their statistics and a card."""
    from genflow.evaluate.extraction import extract
    from genflow.evaluate.sources import open_source

    extractor = FeatureExtractor.from_folder(classifier)
    found = extract(open_source(f"fashion-mnist:{split}"), extractor)
    save_reference(out, found)
    (out / _STATISTICS).unlink(missing_ok=True)  # of the first format
    card = CARD.format(
        count=found.statistics.count,
        split=split,
        dimensions=found.statistics.dimensions,
        accuracy=class_accuracy(found.predicted, found.labels),
        sha256=extractor.sha256,
    )
    write_text(out / "card.md", card)
    print(f"features of {found.statistics.count} images written to {out}")


if __name__ == "__main__":
    run(main)
