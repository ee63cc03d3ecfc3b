"""The measures of samples against the routes people take now: Frechet distance, kernel distance, neighbours."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genflow.evaluate.timing import best_times

__all__ = ["compare_metrics"]


def compare_metrics(quick: bool) -> list[dict[str, Any]]:
    """Rows for :mod:`genflow.evaluate.speed`: seconds of ours and of the peer, measured in turn."""
    return [row for rows in (_frechet_rows, _kernel_rows, _neighbour_rows) for row in rows(quick)]


def _row(what: str, ours: tuple[str, Callable[[], Any]], peer: tuple[str, Callable[[], Any]], repeats: int) -> dict:
    seconds = best_times((ours[1], peer[1]), repeats)
    return {"what": what, "ours_name": ours[0], "peer_name": peer[0], "ours": seconds[0], "peer": seconds[1]}


def _frechet_rows(quick: bool) -> list[dict[str, Any]]:
    """From features to the distance, covariances included: more samples than dimensions, and fewer. Then from ready
    covariances, with eigenvalues over seven decades, as Inception's have."""
    from genflow.metrics.frechet import frechet_distance, frechet_distance_from_features

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
    mixing = torch.randn(dimensions, dimensions, generator=generator) / dimensions**0.5
    decay = torch.logspace(0, -3.5, dimensions)
    gaussians = []
    for scale in (1.0, 1.1):
        features = (torch.randn(large, dimensions, generator=generator) * decay @ mixing * scale).double()
        gaussians += [features.mean(0), features.T.cov()]
    arrays = [value.numpy() for value in gaussians]
    what = f"Frechet distance, covariances {dimensions} x {dimensions}, eigenvalues over 7 decades"
    ours, peer = lambda: frechet_distance(*gaussians), lambda: gaussians_by_scipy(*arrays)
    return [*rows, _row(what, ("frechet_distance", ours), ("scipy.linalg.sqrtm", peer), repeats=1)]


def frechet_by_scipy(first: Tensor, second: Tensor) -> float:
    """The usual route from features: covariances by numpy first."""
    import numpy as np

    one, two = first.double().numpy(), second.double().numpy()
    return gaussians_by_scipy(one.mean(0), np.cov(one, rowvar=False), two.mean(0), np.cov(two, rowvar=False))


def gaussians_by_scipy(mean1: Any, covariance1: Any, mean2: Any, covariance2: Any) -> float:
    """The usual route: the root of the covariances' product as a general matrix, real part."""
    import numpy as np
    import scipy.linalg

    root = scipy.linalg.sqrtm(covariance1 @ covariance2).real
    shift = mean1 - mean2
    return float(shift @ shift + np.trace(covariance1) + np.trace(covariance2) - 2 * np.trace(root))


def _kernel_rows(quick: bool) -> list[dict[str, Any]]:
    """KID over 100 subsets of 1,000, ours in float64 and in float32, which is what torchmetrics computes in."""
    from torchmetrics.image.kid import poly_mmd

    from genflow.metrics.kernel import kernel_distance, subset_indices

    dimensions, counts, subsets, size = (64, (100,), 4, 50) if quick else (2048, (2500, 10_000), 100, 1000)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for count in counts:
        real, generated = torch.randn(2, count, dimensions, generator=generator)
        for dtype in (torch.float64, torch.float32):

            def ours(real=real, generated=generated, dtype=dtype) -> Any:
                return kernel_distance(real, generated, subsets=subsets, subset_size=size, dtype=dtype)

            def peer(real=real, generated=generated, count=count) -> list[Tensor]:
                chosen = subset_indices(count, count, subsets=subsets, subset_size=size)
                return [poly_mmd(real[one], generated[two]) for one, two in zip(*chosen, strict=True)]

            what = f"KID, {subsets} subsets of {size} from {count} x {dimensions} features"
            names = f"kernel_distance, {str(dtype).removeprefix('torch.')}", "torchmetrics' poly_mmd, float32"
            rows.append(_row(what, (names[0], ours), (names[1], peer), repeats=1))
    return rows


def _neighbour_rows(quick: bool) -> list[dict[str, Any]]:
    from genflow.evaluate.speed_neighbours import compare_with_prdc
    from genflow.metrics.neighbours import neighbour_radii

    dimensions, points = (64, 500) if quick else (2048, 10_000)
    features = torch.randn(points, dimensions, generator=torch.Generator().manual_seed(0))
    what = f"k-NN radii, {points} x {dimensions} features, float32"
    ours = ("neighbour_radii", lambda: neighbour_radii(features, (3,)))
    radii = _row(what, ours, ("torch.cdist, kthvalue", lambda: radii_by_cdist(features, 3)), repeats=2)
    return [*compare_with_prdc(quick), radii]


def radii_by_cdist(features: Tensor, k: int) -> Tensor:
    """The usual route: the whole matrix of distances, then kthvalue (the sample itself being the first)."""
    return torch.cdist(features, features).kthvalue(k + 1, dim=1).values
