"""Mean and covariance in the files in which other tools keep and look for them.

``.npz`` with ``mu`` (D,) and ``sigma`` (D, D) is what pytorch-fid, clean-fid, EDM, EDM2 and ADM's evaluator read and
write; ADM's also hold ``mu_s`` and ``sigma_s`` (of sFID's spatial features) and the images themselves. None of them
records how many images there were, nor which network and resize mode made the features.
"""

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from genflow.errors import InputError
from genflow.evaluate.feature_set import FeatureSet, is_feature_set, load_feature_set
from genflow.files import atomic_path
from genflow.metrics.statistics import FeatureStatistics

__all__ = ["holds_only_statistics", "load_statistics", "save_statistics_npz"]

_NOTES = "genflow"
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    EOFError,
    RuntimeError,  # encrypted, or compressed in an unknown way
    zipfile.BadZipFile,
    zlib.error,
)
_SINGLE, _DOUBLE = 1e-5, 1e-12  # of the largest entry: an asymmetry that rounding in float32 or in float64 may leave


def load_statistics(path: str | Path, *, spatial: bool = False) -> FeatureSet:
    """A statistics file: ``.npz`` as above, or a safetensors file of ours, of which only the statistics are read.

    ``spatial`` reads ``mu_s`` and ``sigma_s`` of an ``.npz``, those of sFID's features, in the place of mu and sigma.

    Of other tools' files ``statistics.count`` is None and the protocol has ``source`` alone: which network made them
    is taken on trust (see :func:`~genflow.evaluate.feature_set.check_comparable`).

    Raises:
        InputError: naming the file: missing, damaged, without mu and sigma, or with ones that cannot be a mean and a
            covariance.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"statistics: {path} does not exist")
    if path.suffix == ".npz":
        return _load_npz(path, *(("mu_s", "sigma_s") if spatial else ("mu", "sigma")))
    if path.suffix in (".pkl", ".pickle"):
        raise InputError(f"statistics: {path} is a pickle, which genflow never opens; save mu and sigma as .npz")
    if is_feature_set(path):
        return load_feature_set(path, only_statistics=True)
    return FeatureSet(FeatureStatistics.load(path), {"source": str(path)})


def holds_only_statistics(path: str | Path) -> bool:
    """Whether the ``.npz`` at ``path`` has mu and sigma and nothing that :func:`save_statistics_npz` does not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist()) <= {"mu.npy", "sigma.npy", f"{_NOTES}.npy"}
    except (OSError, zipfile.BadZipFile):
        return False


def _load_npz(path: Path, mu: str, sigma: str) -> FeatureSet:
    try:
        if not zipfile.is_zipfile(path):
            raise InputError(f"statistics: cannot read {path} (it is no .npz, or is cut short)")
        with np.load(path, allow_pickle=False) as archive:
            absent = [name for name in (mu, sigma) if name not in archive.files]
            if absent:
                held = ", ".join(archive.files[:8]) or "nothing"
                raise InputError(f"statistics: {path} has no {' and no '.join(absent)}; it holds {held}")
            mean, covariance = archive[mu], archive[sigma]
            notes = json.loads(str(archive[_NOTES])) if _NOTES in archive.files else {}
            count, protocol = notes.get("count"), dict(notes.get("protocol", {}))
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(f"statistics: cannot read {path} ({error})") from error
    covariance = _checked(path, mean, covariance)
    try:
        statistics = FeatureStatistics.from_moments(mean, covariance, count)
    except InputError as error:
        raise InputError(f"statistics: {path}: {error}") from error
    return FeatureSet(statistics, {**protocol, "source": str(path)})


def _checked(path: Path, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The covariance in float64, symmetric where it was so but for rounding."""
    dimensions = len(mean) if mean.ndim == 1 else 0
    if dimensions == 0 or covariance.shape != (dimensions, dimensions):
        raise InputError(
            f"statistics: {path} holds mu {mean.shape} and sigma {covariance.shape}; allowed: (D,) and (D, D)"
        )
    for name, array in (("mu", mean), ("sigma", covariance)):
        if array.dtype.kind != "f":
            raise InputError(f"statistics: {path} holds {name} of {array.dtype}; allowed: floating point")
    covariance = covariance.astype(np.float64)
    asymmetry, largest = (float(np.abs(values).max()) for values in (covariance - covariance.T, covariance))
    if asymmetry > _SINGLE * largest:
        raise InputError(f"statistics: {path} holds a sigma that is not symmetric; it is no covariance")
    return (covariance + covariance.T) / 2 if asymmetry > _DOUBLE * largest else covariance


def save_statistics_npz(path: str | Path, feature_set: FeatureSet) -> None:
    """Write ``mu`` and ``sigma`` (float64, divided by N - 1), as pytorch-fid, clean-fid, EDM and ADM read them.

    A third entry ``genflow`` holds JSON with count and protocol; others pass it over.

    Raises:
        InputError: a name that does not end in ``.npz``, which numpy would append.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"out: {path} does not end in .npz")
    statistics = feature_set.statistics
    notes: dict[str, Any] = {"count": statistics.count, "protocol": feature_set.protocol}
    with atomic_path(path) as temporary:
        text = np.array(json.dumps(notes, allow_nan=False))
        np.savez(temporary, mu=statistics.mean.numpy(), sigma=statistics.covariance.numpy(), **{_NOTES: text})
