"""The torchmetrics classes: torchmetrics' own numbers, whatever the batches, casts and copies; what they refuse."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore as TorchmetricsInceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from genflow.errors import InputError
from genflow.metrics import (
    FDInfinity,
    Features,
    FrechetDistance,
    ImageStatistics,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    fd_infinity,
    frechet_distance_from_features,
    inception_score,
    kernel_distance,
    neighbour_metrics,
    saturation,
)

mpl.use("Agg")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torchmetrics")  # it warns of memory and of empty states

MAKERS = {
    "FrechetDistance": FrechetDistance,
    "KernelDistance": lambda *a, **k: KernelDistance(*a, subsets=4, subset_size=10, **k),
    "PrecisionRecall": PrecisionRecall,
    "FDInfinity": lambda *a, **k: FDInfinity(*a, points=4, **k),
}


class Network(nn.Module):
    """A feature network with what trips metrics: batch norm and dropout, which evaluation mode must still."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def images(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 4, 4, generator=generator) ** (1 + seed % 3)


def table(seed: int, count: int, dimensions: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimensions, generator=generator) + seed % 2


def filled(name: str, real: torch.Tensor, generated: torch.Tensor, parts: int = 1, **options):
    metric = MAKERS[name](**options)
    for rows, is_real in ((real, True), (generated, False)):
        for part in rows.tensor_split(parts):
            metric.update(part, real=is_real)
    return metric


def figures(metric) -> list[float]:
    found = metric.compute()
    values = found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else [found]
    assert all(value.dtype == torch.float64 for value in values)
    return [float(value) for value in values]


def test_frechet_is_torchmetrics_from_the_same_features():
    network = Network()
    ours, theirs = FrechetDistance(network), FrechetInceptionDistance(network, normalize=True)
    assert not network.training
    for seed, count, real in ((0, 70, True), (1, 50, False), (2, 31, True), (3, 64, False)):
        ours.update(images(seed, count), real=real)
        theirs.update(images(seed, count), real=real)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_kernel_is_torchmetrics_where_a_subset_is_all():
    network = Network().double()
    ours = KernelDistance(network, subsets=2, subset_size=40)
    theirs = KernelInceptionDistance(network, subsets=2, subset_size=40)
    for metric in (ours, theirs):
        metric.update(images(0, 40).double(), real=True)
        metric.update(images(1, 40).double(), real=False)
    assert figures(ours) == pytest.approx([float(value) for value in theirs.compute()], rel=1e-6, abs=1e-12)


def test_the_score_is_torchmetrics_where_a_split_is_all():
    network = Network().double()
    ours, theirs = InceptionScore(network, splits=1), TorchmetricsInceptionScore(network, splits=1)
    for metric in (ours, theirs):
        metric.update(images(0, 40).double())
        metric.update(images(2, 30).double())
    assert float(ours.compute()[0]) == pytest.approx(float(theirs.compute()[0]), rel=1e-6)


def test_each_is_its_function():
    x, y = table(0, 60), table(1, 50)
    assert figures(filled("FrechetDistance", x, y, 3))[0] == pytest.approx(frechet_distance_from_features(x, y))
    expected = neighbour_metrics(x, y)
    assert {n: float(v) for n, v in filled("PrecisionRecall", x, y, 3).compute().items()} == vars(expected)
    spread = kernel_distance(x, y, subsets=4, subset_size=50)
    metric = KernelDistance(subsets=400, subset_size=25)
    metric.update(x, real=True)
    metric.update(y, real=False)
    assert figures(metric)[0] == pytest.approx(spread.mean, rel=0.1)
    value = figures(filled("FDInfinity", x, y, 2))[0]
    assert value == pytest.approx(fd_infinity(x, y, points=4).value, rel=0.5)
    score = InceptionScore(splits=1)
    score.update(x)
    assert figures(score) == pytest.approx([inception_score(x, splits=1).mean, 0.0])


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), parts=st.integers(1, 9), processes=st.integers(1, 4))
def test_neither_order_nor_batches_nor_shares_matter(name, seed, parts, processes):
    """Random shares of the samples, in any order, merged as processes are: some with no sample."""
    x, y = table(seed, 40), table(seed + 1, 45)
    whole = figures(filled(name, x, y))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(45, generator=generator)
    assert figures(filled(name, x.flip(0), y[order], parts)) == pytest.approx(whole, rel=1e-8)
    owners = torch.randint(processes, (85,), generator=generator)
    shares = []
    for process in range(processes):
        share = MAKERS[name]()
        share.update(x[owners[:40] == process], real=True)
        share.update(y[order][owners[40:] == process], real=False)
        shares.append(share)
    merged = shares[0]
    for share in shares[1:]:
        merged.merge_state(share)
    assert figures(merged) == pytest.approx(whole, rel=1e-8)


@pytest.mark.parametrize("name", MAKERS)
def test_forward_gives_the_batch_and_keeps_the_rest(name):
    """The real samples, which stay, are not counted again with each batch."""
    x, y = table(0, 90), table(1, 80)
    metric = MAKERS[name](reset_real_features=False)
    metric.update(x, real=True)
    for batch in y.tensor_split(2):
        found = metric(batch, real=False)
        alone = MAKERS[name]()
        alone.update(x, real=True)
        alone.update(batch, real=False)
        expected = alone.compute()
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    assert figures(metric) == pytest.approx(figures(filled(name, x, y)), rel=1e-8)


@pytest.mark.parametrize("name", MAKERS)
def test_forward_on_a_batch_without_a_value_loses_nothing(name):
    x, y = table(0, 50), table(1, 40)
    metric = filled(name, x, y)
    expected = figures(metric)
    with pytest.raises(InputError, match="real: "):
        metric(y, real=False)  # alone it has no real samples
    assert figures(metric) == expected
    metric.update(table(3, 30), real=False)
    assert figures(metric) == pytest.approx(figures(filled(name, x, torch.cat([y, table(3, 30)]))), rel=1e-8)


def test_reset_forgets_the_real_samples_only_when_told():
    x, y, z = table(0, 50), table(1, 40), table(3, 45)
    for name in MAKERS:
        kept = filled(name, x, y, reset_real_features=False)
        kept.reset()
        with pytest.raises(InputError, match="generated: "):
            kept.compute()
        kept.update(z, real=False)
        assert figures(kept) == pytest.approx(figures(filled(name, x, z)), rel=1e-9)
        gone = filled(name, x, y)
        gone.reset()
        gone.update(z, real=False)
        with pytest.raises(InputError, match="real: "):
            gone.compute()


@pytest.mark.parametrize("name", MAKERS)
def test_casts_do_not_touch_what_was_summed(name):
    """``.to(bfloat16)`` of a module that holds the metric, ``set_dtype``, ``half``: the figures stay as they are."""
    x, y = table(0, 50) + 1000, table(1, 40) + 1000
    expected = figures(filled(name, x, y, 2))
    holder = nn.Module()
    holder.metric = filled(name, x, y, 2)
    holder.to(torch.bfloat16)
    holder.half()
    holder.metric.half()
    holder.metric.set_dtype(torch.float16)
    assert figures(holder.metric) == expected
    holder.metric.update(y[:0], real=False)
    assert figures(holder.metric) == expected


def test_a_network_of_half_precision_is_summed_in_float64():
    network = Network().to(torch.bfloat16)
    metric = FrechetDistance(network)
    x, y = images(0, 40).bfloat16(), images(1, 40).bfloat16()
    metric.update(x, real=True)
    metric.update(y, real=False)
    with torch.no_grad():
        expected = frechet_distance_from_features(network(x), network(y))
    assert figures(metric)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("always::UserWarning")
def test_state_dict_round_trip(name, recwarn):
    metric = filled(name, table(0, 50), table(1, 40), 2)
    assert not metric.state_dict()  # torchmetrics' way
    metric.persistent(True)
    fresh = MAKERS[name]()
    fresh.load_state_dict(metric.state_dict())
    assert figures(fresh) == figures(metric)
    assert not [warning for warning in recwarn if "was called before" in str(warning.message)]
    assert figures(metric.clone()) == figures(metric)


def test_a_module_network_stays_in_evaluation_mode_and_moves_along():
    network = Network()
    metric = FrechetDistance(network)
    holder = nn.ModuleDict({"metric": metric})
    holder.train()
    assert metric.training
    assert not network.training
    assert any(parameter is network.layers[1].weight for parameter in holder.parameters())


def test_extractors_and_functions_are_networks():
    class Doubling:
        def __call__(self, images: torch.Tensor) -> Features:
            values = images.flatten(1).float()
            return Features(2 * values, values.argmax(1), 3 * values)

    x, y = images(0, 50), images(1, 50)
    metric = FrechetDistance(Doubling())
    metric.update(x, real=True)
    metric.update(y, real=False)
    expected = frechet_distance_from_features(2 * x.flatten(1), 2 * y.flatten(1))
    assert figures(metric)[0] == pytest.approx(expected, rel=1e-9)
    score = InceptionScore(Doubling(), splits=1)
    score.update(x)
    assert figures(score)[0] == pytest.approx(inception_score(3 * x.flatten(1), splits=1).mean)
    plain = FrechetDistance(lambda values: values.flatten(1))
    plain.update(x, real=True)
    plain.update(y, real=False)
    assert figures(plain)[0] == pytest.approx(expected / 4, rel=1e-9)


def test_a_collection_shares_what_is_the_same():
    x, y = table(0, 50), table(1, 40)
    names = ("FrechetDistance", "KernelDistance", "PrecisionRecall")
    together = MetricCollection({name: MAKERS[name]() for name in names})
    for part in range(2):
        together.update(x[part::2], real=True)
        together.update(y[part::2], real=False)
    found = together.compute()
    assert float(found["FrechetDistance"]) == pytest.approx(figures(filled("FrechetDistance", x, y))[0])
    assert float(found["precision"]) == neighbour_metrics(x, y).precision


@pytest.mark.parametrize("name", MAKERS)
def test_plots(name):
    metric = filled(name, table(0, 50), table(1, 40))
    figure, axes = metric.plot()
    assert axes.has_data()
    mpl.pyplot.close(figure)
    series = [metric.compute()] * 3
    series = [value[0] if isinstance(value, tuple) else value for value in series]
    figure, axes = metric.plot(series)
    assert axes.lines
    mpl.pyplot.close(figure)


def test_reports_and_points_come_along():
    x, y = table(0, 50), table(1, 40)
    assert filled("FrechetDistance", x, y).report().counts == (50, 40)
    assert filled("FDInfinity", x, y).extrapolation().sizes.tolist()[-1] == 40


def test_image_statistics_are_means_of_images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (30, 3, 8, 8), dtype=torch.uint8, generator=generator)
    metric, floats = ImageStatistics(), ImageStatistics()
    for part in x.split(7):
        metric.update(part)
    floats.update(x.flip(0).float() / 127.5 - 1)
    holder = nn.ModuleList([metric])
    holder.to(torch.bfloat16)
    found = metric.compute()
    assert sorted(found) == ["colourfulness", "contrast", "saturation"]
    assert float(found["saturation"]) == pytest.approx(float(saturation(x.float() / 127.5 - 1).mean()), rel=1e-5)
    other = floats.compute()
    np.testing.assert_allclose([float(v) for v in found.values()], [float(other[n]) for n in found], rtol=1e-6)
    floats.merge_state(metric)
    assert float(floats.compute()["contrast"]) == pytest.approx(float(found["contrast"]), rel=1e-6)
    figure, _ = metric.plot()
    mpl.pyplot.close(figure)
    with pytest.raises(InputError, match="images: none yet"):
        ImageStatistics().compute()
    with pytest.raises(InputError, match="allowed: -1 to 1"):
        metric.update(x.float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(torch.zeros(4), real=True), r"features: got \(4,\); allowed"),
        (lambda m: m.update(torch.zeros(4, 3), real=True), r"features: got shape \(4, 3\); before, D was 5"),
        (lambda m: m.update(torch.full((4, 5), torch.nan), real=True), "features: some are NaN"),
        (lambda m: m.update(torch.zeros(4, 5), real="yes"), "real: got 'yes'"),
    ],
)
@pytest.mark.parametrize("name", MAKERS)
def test_bad_batches_are_named_and_change_nothing(name, change, message):
    metric = filled(name, table(0, 50), table(1, 40))
    expected = figures(metric)
    with pytest.raises(InputError, match=message):
        change(metric)
    assert figures(metric) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FrechetDistance(5), "network: got 5"),
        (lambda: FrechetDistance(reset_real_features=1), "reset_real_features: got 1"),
        (lambda: KernelDistance(subset_size=1), "subset_size: got 1"),
        (lambda: KernelDistance(subsets=0), "subsets: got 0"),
        (lambda: PrecisionRecall(k=0), "k: got 0"),
        (lambda: PrecisionRecall(strict=2), "strict: got 2"),
        (lambda: FDInfinity(points=2), "points: got 2"),
        (lambda: InceptionScore(splits=0), "splits: got 0"),
        (lambda: InceptionScore(lambda x: Features(x)).update(torch.zeros(3, 2)), "features: got NoneType"),
        (lambda: FrechetDistance(lambda x: x[0]).update(torch.zeros(3, 2), real=True), r"features: got \(2,\)"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
