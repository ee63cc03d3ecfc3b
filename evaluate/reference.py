"""Reference features: what samples are compared with, kept with the identity of the network that made them.

``python -m genflow.evaluate.reference`` makes ``assets/fashion-mnist-reference`` again: features of Fashion-MNIST's
10,000 test images by ``assets/fashion-mnist-classifier``. About ten seconds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from genflow import assets
from genflow.errors import InputError, check_choice
from genflow.evaluate.console import progress_bar, run
from genflow.files import atomic_path, write_text
from genflow.metrics.accuracy import class_accuracy
from genflow.metrics.features import FeatureExtractor
from genflow.metrics.statistics import FeatureStatistics

__all__ = ["ASSETS", "REFERENCES", "Reference", "load_reference", "save_reference"]

ASSETS = assets.ROOT
REFERENCES = {"fashion-mnist": "fashion-mnist-reference"}
"""Names of shipped references and their folders under ``assets/``."""

CARD = """# fashion-mnist-reference

Features of Fashion-MNIST's {count:,} {split} images by `fashion-mnist-classifier`, against which `genflow evaluate`
measures samples.

| | |
| --- | --- |
| features.safetensors | `features` ({count}, {dimensions}) float16; `labels` ({count},) int64 |
| statistics.safetensors | of the float32 features, in float64: `mean`, `covariance` (divided by N - 1), `count` |
| data | Fashion-MNIST, {split} images; MIT licence, (c) 2017 Zalando SE |
| classifier | {accuracy:.2%} of these images in their class; SHA-256 of its tensors {sha256} |

Made by `python -m genflow.evaluate.reference`. No seed: nothing in it is random.
"""


@dataclass(frozen=True)
class Reference:
    """Features ``(N, D)`` float32, labels ``(N,)`` and float64 statistics, with the extractor that made them."""

    name: str
    description: str
    extractor: FeatureExtractor
    features: Tensor
    labels: Tensor
    statistics: FeatureStatistics


def save_reference(
    folder: str | Path,
    description: str,
    extractor: FeatureExtractor,
    features: Tensor,
    labels: Tensor,
) -> None:
    """Write ``features.safetensors`` and ``statistics.safetensors`` of ``(N, D)`` float32 features, each atomically."""
    folder = Path(folder)
    header = {"data": description, "classifier": extractor.name, "classifier_sha256": extractor.sha256}
    with atomic_path(folder / "features.safetensors") as temporary:
        temporary.write_bytes(save({"features": features.half(), "labels": labels}, header))
    FeatureStatistics.from_features(features).save(folder / "statistics.safetensors", header)


def load_reference(reference: str | Path, *, device: str | torch.device = "cpu") -> Reference:
    """A shipped reference by name (``"fashion-mnist"``), or the folder of one that :func:`save_reference` wrote.

    The classifier that it names is looked for beside the folder, then among the shipped ones. Raises InputError where
    something is missing or damaged, or where the classifier is not the one that made the features.
    """
    folder = Path(reference)
    if str(reference) in REFERENCES:
        folder = ASSETS / REFERENCES[str(reference)]
    elif not folder.is_dir():
        check_choice("reference", str(reference), REFERENCES)
    file = folder / "features.safetensors"
    if not file.is_file():
        raise InputError(f"reference: {file} does not exist")
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            features, labels = opened.get_tensor("features").float(), opened.get_tensor("labels")
    except (SafetensorError, OSError) as error:
        raise InputError(f"reference: cannot read {file} ({error})") from error
    name = header.get("classifier", "")
    homes = [home for home in (folder.parent / name, ASSETS / name) if (home / "config.json").is_file()]
    if not name or not homes:
        raise InputError(f"reference: {file} names the classifier {name!r}, which is neither beside it nor shipped")
    extractor = FeatureExtractor.from_folder(homes[0], device=device)
    if extractor.sha256 != header.get("classifier_sha256"):
        raise InputError(
            f"reference: {homes[0]} is not the classifier that made {file}; make the reference again with "
            "python -m genflow.evaluate.reference"
        )
    statistics = FeatureStatistics.load(folder / "statistics.safetensors")
    if features.ndim != 2 or features.shape != (statistics.count, statistics.dimensions):
        raise InputError(f"reference: {file} holds {tuple(features.shape)}, the statistics are of {statistics.count}")
    return Reference(folder.name, header.get("data", ""), extractor, features, labels, statistics)


def main(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = ASSETS / REFERENCES["fashion-mnist"],
    classifier: Annotated[Path, typer.Option(help="Folder of the classifier.")] = ASSETS / "fashion-mnist-classifier",
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
) -> None:
    """Write the features of Fashion-MNIST's images, their statistics and a card."""
    from genflow.data import load_images

    data = load_images("fashion-mnist", split=split)
    extractor = FeatureExtractor.from_folder(classifier)
    with progress_bar("features", len(data)) as advance:
        features = extractor(data.images, advance)
    save_reference(out, f"fashion-mnist:{split}", extractor, features.values, data.labels)
    card = CARD.format(
        count=len(data),
        split=split,
        dimensions=features.values.shape[1],
        accuracy=class_accuracy(features.predicted, data.labels),
        sha256=extractor.sha256,
    )
    write_text(out / "card.md", card)
    print(f"features of {len(data)} images written to {out}")


if __name__ == "__main__":
    run(main)
