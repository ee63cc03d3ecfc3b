"""The bootstrap: intervals hold the truth as often as they say, tests reject as often as they say, seeds decide all."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.metrics import (
    bootstrap,
    holm,
    interval_from_draws,
    p_value_from_draws,
    paired_bootstrap,
    resample_counts,
    resamples,
    resampling,
)


def values(seed: int, n: int, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset


def test_resamples_depend_on_the_seed_alone(monkeypatch):
    expected = torch.cat(list(resamples(50, 40, seed=3)))
    assert expected.shape == (40, 50)
    assert (expected.min(), expected.max()) == (0, 49)
    monkeypatch.setattr(resampling, "_ENTRIES", 120)
    parts = list(resamples(50, 40, seed=3))
    assert len(parts) == 20
    assert torch.equal(torch.cat(parts), expected)
    assert not torch.equal(torch.cat(list(resamples(50, 40, seed=4))), expected)
    counts = resample_counts(50, 40, seed=3)
    assert torch.equal(counts, torch.stack([row.bincount(minlength=50) for row in expected]).double())


def test_values_and_a_function_of_indices_agree():
    x = values(1, 300)
    quick = bootstrap(x, draws=50, seed=5)
    slow = bootstrap(lambda indices: float(x[indices].mean()), 300, draws=50, seed=5)
    assert (quick.value, quick.low, quick.high) == pytest.approx((slow.value, slow.low, slow.high), abs=1e-14)
    counts = resample_counts(300, 50, seed=5)
    again = interval_from_draws(quick.value, counts @ x / 300, method="percentile")
    assert (quick.low, quick.high) == pytest.approx((again.low, again.high), abs=1e-14)


@pytest.mark.parametrize("method", ["percentile", "basic"])
def test_against_scipy(method):
    x = values(2, 200) ** 3  # skewed by chance, so that the two methods differ
    found = bootstrap(lambda indices: float(x[indices].quantile(0.7)), 200, draws=4000, method=method)
    expected = scipy.stats.bootstrap(
        (x.numpy(),),
        lambda x, axis: np.quantile(x, 0.7, axis=axis),
        n_resamples=4000,
        method=method,
        rng=np.random.default_rng(0),
    )
    width = found.high - found.low
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.08 * width)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.08 * width)
    assert found.error == pytest.approx(expected.standard_error, rel=0.06)


def test_the_three_methods_by_hand():
    draws = torch.arange(101, dtype=torch.float64)  # mean 50
    at = {m: interval_from_draws(30.0, draws, 0.9, m) for m in ("percentile", "centred", "basic")}
    assert (at["percentile"].low, at["percentile"].high) == pytest.approx((5, 95))
    assert (at["centred"].low, at["centred"].high) == pytest.approx((-15, 75))
    assert (at["basic"].low, at["basic"].high) == pytest.approx((-35, 55))
    assert interval_from_draws(30.0, draws, 0.9).method == "centred"


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_of_a_mean_hold_the_truth(level):
    runs, n = 400, 80
    hits = 0
    for run in range(runs):
        found = bootstrap(values(run, n).square(), draws=150, level=level, seed=run)
        hits += found.low <= 1 <= found.high
    # The law is skewed, and percentiles of 80 samples fall short of their level by a few parts in a hundred.
    assert level - 0.03 - 4 * (level * (1 - level) / runs) ** 0.5 < hits / runs < level + 0.03


def test_p_values_of_no_difference_are_uniform_and_of_one_are_small():
    runs = 300
    p = torch.tensor(
        [paired_bootstrap([values(2 * r, 60), values(2 * r + 1, 60)], paired=False, draws=99, seed=r)[0].p
         for r in range(runs)]
    )  # fmt: skip
    for level in (0.1, 0.3, 0.7):
        assert abs((p <= level).double().mean() - level) < 4 * (level * (1 - level) / runs) ** 0.5
    shifted = paired_bootstrap([values(1, 60), values(2, 60, offset=2.0)], paired=False, draws=99)[0]
    assert shifted.p == 0.01
    assert shifted.low < shifted.value < shifted.high < 0


def test_pairs_find_what_sets_drawn_apart_do_not():
    common = 10 * values(1, 100)
    first, second = common + values(2, 100), common + values(3, 100, offset=1.0)
    together = paired_bootstrap([first, second], draws=500)[0]
    apart = paired_bootstrap([first, second], paired=False, draws=500)[0]
    assert together.value == apart.value == pytest.approx(float((first - second).mean()))
    assert together.p < 0.01 < 0.2 < apart.p
    expected = (first - second).std() / 10
    assert together.high - together.low == pytest.approx(2 * 1.96 * float(expected), rel=0.2)
    both = (first.var() / 100 + second.var() / 100).sqrt()
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * float(both), rel=0.2)


def test_equal_sets_do_not_differ():
    x = values(1, 50)
    assert paired_bootstrap([x, x.clone()])[0].p == 1.0
    assert paired_bootstrap([x, x.clone()], paired=False)[0].p == 1.0


def test_all_pairs_of_sets_of_several_sizes_with_functions_and_values():
    x, y, z = values(1, 50), values(2, 70), values(3, 60, offset=3.0)
    found = paired_bootstrap([x, lambda i: float(y[i].mean()), z], [50, 70, 60], paired=False, draws=199)
    assert [(one.first, one.second) for one in found] == [(0, 1), (0, 2), (1, 2)]
    assert [one.p_corrected for one in found] == holm([one.p for one in found])
    assert found[0].p_corrected > 0.05 > found[1].p_corrected == found[2].p_corrected == pytest.approx(3 * 0.005)
    assert found == paired_bootstrap([x, lambda i: float(y[i].mean()), z], [50, 70, 60], paired=False, draws=199)
    assert found != paired_bootstrap([x, y, z], paired=False, draws=199, seed=1)


def test_a_p_value_by_hand():
    draws = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])  # about their mean: 2, 1, 0, 1, 2
    assert p_value_from_draws(2.0, draws) == 3 / 6
    assert p_value_from_draws(-1.0, draws) == 5 / 6
    assert p_value_from_draws(7.0, draws) == 1 / 6


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_holm_keeps_order_and_does_not_depend_on_it(p, random):
    corrected = holm(p)
    assert all(a <= b <= 1 for a, b in zip(p, corrected, strict=True))
    ordered = [c for _, c in sorted(zip(p, corrected, strict=True))]
    assert ordered == sorted(corrected)
    places = list(range(len(p)))
    random.shuffle(places)
    assert holm([p[i] for i in places]) == [corrected[i] for i in places]
    assert min(corrected) == min(1.0, len(p) * min(p))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap(values(0, 9), 8), "statistic: got shape"),
        (lambda: bootstrap(values(0, 9)[None]), "statistic: got shape"),
        (lambda: bootstrap(torch.full((9,), torch.nan)), "statistic: some values are NaN"),
        (lambda: bootstrap(lambda i: 0.0), "n: needed"),
        (lambda: bootstrap(lambda i: 0.0, 0), "n: got 0"),
        (lambda: bootstrap(values(0, 9), draws=1), "draws: got 1"),
        (lambda: bootstrap(values(0, 9), level=1.0), "level: got 1.0"),
        (lambda: bootstrap(values(0, 9), method="bca"), "method: 'bca' is not known"),
        (lambda: bootstrap(lambda i: math.nan, 5), "draws: the figure of some resample is NaN"),
        (lambda: interval_from_draws(0.0, torch.zeros(1)), "draws: got shape"),
        (lambda: paired_bootstrap([values(0, 9)]), "statistics: got 1"),
        (lambda: paired_bootstrap([values(0, 9), values(1, 8)]), "paired: sets of 9, 8 samples"),
        (lambda: paired_bootstrap([values(0, 9), values(1, 9)], [9]), "counts: got 1"),
        (lambda: paired_bootstrap([values(0, 9), values(1, 9)], paired=1), "paired: got 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
