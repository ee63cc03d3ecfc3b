"""A set of samples as evaluation sees it: features, labels, figures of the images, and how all of them came about."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genflow.errors import InputError
from genflow.evaluate.cache import save_tensors
from genflow.metrics.statistics import FeatureStatistics

__all__ = ["SAMPLE_KEYS", "FeatureSet", "check_comparable", "is_feature_set", "load_feature_set", "save_feature_set"]

SAMPLE_KEYS = frozenset({"source", "count", "available", "seed", "skipped", "notes", "content_sha256", "sampling"})
"""Entries of a protocol that say which samples were taken; all others say what was done with them."""

_KIND, _VERSION = "genflow features", 1
_HEADER = "genflow"  # one entry for all: safetensors writes several in no fixed order
_IMAGES = "images."


@dataclass(frozen=True)
class FeatureSet:
    """What is known of N samples.

    Attributes:
        statistics: float64 mean, covariance and count; of a statistics file this is all there is.
        protocol: for JSON: what the features depend on (``Extractor.describe()``), and where the samples came from
            (``source``, ``count``, ``available``, ``seed``, ``skipped``, ``content_sha256``).
        features: ``(N, D)`` float32.
        labels: int64 ``(N,)``, -1 where the class is not known; None where no class is.
        class_names: names of the labels.
        predicted: int64 ``(N,)``, the feature network's own opinion.
        logits: float32 ``(N, K)``, the same before the softmax.
        names: one a sample: the file, or the place in an array.
        images: figures of single images (``saturation``, ``contrast``, ...), float32 ``(N,)`` each.
    """

    statistics: FeatureStatistics
    protocol: dict[str, Any]
    features: Tensor | None = None
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    predicted: Tensor | None = None
    logits: Tensor | None = None
    names: tuple[str, ...] | None = None
    images: dict[str, Tensor] = field(default_factory=dict)

    def only_statistics(self) -> "FeatureSet":
        """The same samples, of which nothing but mean, covariance and count are known any more."""
        return FeatureSet(self.statistics, self.protocol)


def save_feature_set(path: str | Path, feature_set: FeatureSet, *, half: bool = False) -> None:
    """Write everything to one safetensors file, atomically; the same set gives the same bytes.

    The header's entry ``genflow`` is JSON: kind, version, protocol and class names. Names are a tensor of UTF-8, since
    a header may not exceed 100 MB. ``half`` keeps features and logits as float16 (statistics stay float64, those of
    the features before rounding) at half the size.

    Raises:
        InputError: with ``half``, a feature beyond float16's 65,504.
    """
    statistics = feature_set.statistics
    tensors = {"mean": statistics.mean, "covariance": statistics.covariance}
    if statistics.count is not None:
        tensors["count"] = torch.tensor([statistics.count])
    for name in ("features", "logits"):
        tensor = getattr(feature_set, name)
        if tensor is not None:
            tensors[name] = _half(name, tensor) if half else tensor.to(torch.float32)
    for name in ("labels", "predicted"):
        if getattr(feature_set, name) is not None:
            tensors[name] = getattr(feature_set, name)
    if feature_set.names is not None:
        tensors["names"] = torch.frombuffer(bytearray(json.dumps(feature_set.names).encode()), dtype=torch.uint8)
    tensors |= {_IMAGES + name: tensor for name, tensor in feature_set.images.items()}
    header = {
        "kind": _KIND,
        "version": _VERSION,
        "protocol": feature_set.protocol,
        "class_names": feature_set.class_names,
    }
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_tensors(path, whole, {_HEADER: text})


def _half(name: str, tensor: Tensor) -> Tensor:
    small = tensor.half()
    if not bool(torch.isfinite(small).all()):
        raise InputError(f"half: {name} reach {float(tensor.abs().max()):g}; float16 ends at 65504")
    return small


def load_feature_set(path: str | Path, *, only_statistics: bool = False) -> FeatureSet:
    """Read what :func:`save_feature_set` wrote. ``only_statistics`` leaves everything else in the file.

    Raises:
        InputError: naming the file: it is missing, damaged, of another kind or of a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"features: {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(path, file.metadata())
            wanted = {"mean", "covariance", "count"} if only_statistics else set(file.keys())
            tensors = {name: file.get_tensor(name) for name in file.keys() if name in wanted}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"features: cannot read {path} ({error})") from error
    try:
        found = _assemble(tensors, header)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"features: {path} is damaged ({error})") from error
    return found


def is_feature_set(path: str | Path) -> bool:
    """Whether the safetensors file at ``path`` says of itself that :func:`save_feature_set` wrote it."""
    try:
        with safe_open(path, framework="pt") as file:
            return _HEADER in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _header(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        header = json.loads((metadata or {})[_HEADER])
        kind, version = header["kind"], header["version"]
    except (KeyError, TypeError, ValueError):
        kind = None
    if kind != _KIND:
        raise InputError(f"features: {path} is no file of features; `genflow evaluate features` writes them")
    if version != _VERSION:
        raise InputError(f"features: {path} has version {version}; this genflow reads {_VERSION}")
    return header


def _assemble(tensors: dict[str, Tensor], header: dict[str, Any]) -> FeatureSet:
    count = int(tensors["count"]) if "count" in tensors else None
    statistics = FeatureStatistics.from_moments(tensors["mean"], tensors["covariance"], count)
    names = tensors.get("names")
    class_names = header["class_names"] if "labels" in tensors else None
    found = FeatureSet(
        statistics,
        header["protocol"],
        features=_float(tensors.get("features")),
        labels=tensors.get("labels"),
        class_names=tuple(class_names) if class_names else None,
        predicted=tensors.get("predicted"),
        logits=_float(tensors.get("logits")),
        names=None if names is None else tuple(json.loads(names.numpy().tobytes())),
        images={name.removeprefix(_IMAGES): tensor for name, tensor in tensors.items() if name.startswith(_IMAGES)},
    )
    if found.features is not None and found.features.shape != (count, statistics.dimensions):
        raise ValueError(f"features of {tuple(found.features.shape)}, statistics of {count}x{statistics.dimensions}")
    rows = {name: getattr(found, name) for name in ("labels", "predicted", "logits", "names")} | found.images
    for name, value in rows.items():
        if value is not None and len(value) != count:
            raise ValueError(f"{len(value)} {name} for {count} samples")
    return found


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float32)


def check_comparable(first: FeatureSet, second: FeatureSet) -> list[str]:
    """Check that figures can be taken between two sets, and return what is left to be said about it, one line each.

    The network's weights count, not its name; all else that ``Extractor.describe()`` lists has to be equal where both
    record it, but for the number format, which costs some digits and gives a remark. A set that records no network
    (a statistics file of another tool) is taken on trust; that is a remark too.

    Raises:
        InputError: another network, resize mode, number of dimensions, ...; both sides are named.
    """
    one, two = (_processing(given) for given in (first, second))
    names = [str(given.protocol.get("source", "features")) for given in (first, second)]
    differing = {key for key in one.keys() & two.keys() if one[key] != two[key]}
    refused = sorted(differing - {"features", "dtype"})
    if refused:
        key = next((key for key in _ORDER if key in refused), refused[0])
        what, shown = _CALLED.get(key, key), [_shown(key, sides) for sides in (one, two)]
        raise InputError(
            f"features: {names[0]} has {what} {shown[0]}, {names[1]} has {what} {shown[1]}; allowed: the same for both"
        )
    remarks = []
    if "dtype" in differing:
        remarks.append(
            f"features of {names[0]} were computed in {one['dtype']}, those of {names[1]} in {two['dtype']}; "
            "part of the distance is rounding"
        )
    for name, own, other in ((names[0], one, two), (names[1], two, one)):
        if _NETWORK not in own:
            network = f"{other.get('features')}, resize {other.get('resize')}" if _NETWORK in other else "the same"
            remarks.append(f"{name} does not say which network its features are of; {network} is taken on trust")
    return remarks


_NETWORK = "features_sha256"
_ORDER = ("dimensions", _NETWORK, "resize")  # of several differences this one is named
_CALLED = {"dimensions": "dimensions", _NETWORK: "features by", "resize": "resize mode"}


def _processing(given: FeatureSet) -> dict[str, Any]:
    """What was done with the samples, as far as it is recorded."""
    protocol = {key: value for key, value in given.protocol.items() if key not in SAMPLE_KEYS and value is not None}
    return {**protocol, "dimensions": given.statistics.dimensions}


def _shown(key: str, sides: dict[str, Any]) -> str:
    if key == _NETWORK:
        return f"{sides.get('features', 'unnamed')} ({str(sides[key])[:12]})"
    return str(sides[key])
