"""The measures of samples against the routes people take now: Frechet distance, kernel distance, neighbours."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genflow.evaluate.timing import best_times

__all__ = ["compare_metrics"]


def compare_metrics(quick: bool) -> list[dict[str, Any]]:
    """Rows for :mod:`genflow.evaluate.speed`: seconds of ours and of the peer, measured in turn."""
    return [row for rows in (_frechet_rows, _neighbour_rows) for row in rows(quick)]


def _row(what: str, ours: tuple[str, Callable[[], Any]], peer: tuple[str, Callable[[], Any]], repeats: int) -> dict:
    seconds = best_times((ours[1], peer[1]), repeats)
    return {"what": what, "ours_name": ours[0], "peer_name": peer[0], "ours": seconds[0], "peer": seconds[1]}


def _frechet_rows(quick: bool) -> list[dict[str, Any]]:
    """From features to the distance, covariances included: more samples than dimensions, and fewer."""
    from genflow.metrics.frechet import frechet_distance_from_features

    dimensions, large, small = (64, 200, 40) if quick else (2048, 4096, 1000)
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(1, 0.01, dimensions)
    rows = []
    for count in (large, small):
        first = torch.randn(count, dimensions, generator=generator) * scales
        second = torch.randn(count, dimensions, generator=generator) * scales.flip(0)
        rows.append(
            _row(
                f"Frechet distance, {count} x {dimensions} features",
                ("frechet_distance_from_features", lambda a=first, b=second: frechet_distance_from_features(a, b)),
                ("numpy.cov, scipy.linalg.sqrtm", lambda a=first, b=second: frechet_by_scipy(a, b)),
                repeats=1,
            )
        )
    return rows


def frechet_by_scipy(first: Tensor, second: Tensor) -> float:
    """The usual route: covariances, then the root of their product as a general matrix, real part."""
    import numpy as np
    import scipy.linalg

    one, two = first.double().numpy(), second.double().numpy()
    covariance1, covariance2 = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = scipy.linalg.sqrtm(covariance1 @ covariance2).real
    shift = one.mean(0) - two.mean(0)
    return float(shift @ shift + np.trace(covariance1) + np.trace(covariance2) - 2 * np.trace(root))


def _neighbour_rows(quick: bool) -> list[dict[str, Any]]:
    from genflow.metrics.neighbours import neighbour_radii

    dimensions, points = (64, 500) if quick else (2048, 10_000)
    features = torch.randn(points, dimensions, generator=torch.Generator().manual_seed(0))
    what = f"k-NN radii, {points} x {dimensions} features, float32"
    ours = ("neighbour_radii", lambda: neighbour_radii(features, (3,)))
    return [_row(what, ours, ("torch.cdist, kthvalue", lambda: radii_by_cdist(features, 3)), repeats=2)]


def radii_by_cdist(features: Tensor, k: int) -> Tensor:
    """The usual route: the whole matrix of distances, then kthvalue (the sample itself being the first)."""
    return torch.cdist(features, features).kthvalue(k + 1, dim=1).values
