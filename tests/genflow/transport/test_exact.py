"""Costs, assignments and Wasserstein distances against closed forms, scipy and POT."""

import itertools
import math

import ot
import pytest
import scipy.stats
import torch

from genflow.errors import InputError
from genflow.transport import exact_assignment, pairwise_cost, wasserstein


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_costs_are_powers_of_distances(p):
    x, y = torch.randn(7, 3), torch.randn(5, 3)
    expected = torch.stack([(row - y).double().norm(dim=-1) ** p for row in x])
    torch.testing.assert_close(pairwise_cost(x, y, p), expected, rtol=1e-6, atol=1e-6)


def test_costs_far_from_the_origin_keep_their_digits():
    x, y = (torch.randn(50, 4, dtype=torch.float64) + 1e5 for _ in range(2))
    expected = (x[:, None] - y[None]).square().sum(-1)
    torch.testing.assert_close(pairwise_cost(x, y), expected, rtol=1e-10, atol=1e-10)


def test_images_and_batches_of_sets_are_taken():
    x, y = torch.randn(4, 3, 5, 5), torch.randn(6, 3, 5, 5)
    torch.testing.assert_close(pairwise_cost(x, y), pairwise_cost(x.flatten(1), y.flatten(1)))
    sets = pairwise_cost(torch.randn(2, 4, 3), torch.randn(2, 6, 3))
    assert sets.shape == (2, 4, 6)


@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((4,), (4,)), ((2, 4, 3), (3, 4, 3)), ((0, 3), (4, 3))])
def test_points_that_do_not_fit_are_refused(shapes):
    with pytest.raises(InputError, match="allowed"):
        pairwise_cost(*(torch.zeros(shape) for shape in shapes))


def test_assignments_are_the_best_of_all_permutations():
    costs = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    columns = exact_assignment(costs)
    assert columns.dtype == torch.int64
    for cost, chosen in zip(costs.reshape(-1, 5, 5), columns.reshape(-1, 5), strict=True):
        best = min(sum(float(cost[i, j]) for i, j in enumerate(order)) for order in itertools.permutations(range(5)))
        assert float(cost[range(5), chosen].sum()) == pytest.approx(best)


def test_on_a_line_the_assignment_sorts():
    x, y = torch.randn(30, 1), torch.randn(30, 1)
    columns = exact_assignment(pairwise_cost(x, y))
    assert torch.equal(y[columns][x[:, 0].argsort(), 0], y[:, 0].sort().values)


def test_wide_and_forbidden_assignments():
    cost = torch.tensor([[0.0, 1.0, 2.0], [0.0, 5.0, torch.inf]])
    assert exact_assignment(cost).tolist() == [1, 0]
    for bad in (cost.mT, torch.full((2, 2), torch.inf), cost[:, :2] * torch.nan):
        with pytest.raises(InputError, match="cost: "):
            exact_assignment(bad)


@pytest.mark.parametrize("p", [1, 2])
def test_the_distance_of_a_translated_set_is_the_translation(p):
    x = torch.randn(40, 3, dtype=torch.float64)
    shift = torch.tensor([3.0, 4.0, 12.0], dtype=torch.float64)
    assert wasserstein(x, x[torch.randperm(40)] + shift, p) == pytest.approx(13, rel=1e-12)
    assert wasserstein(x, x, p) == pytest.approx(0, abs=1e-7)


def test_on_a_line_the_distance_is_scipys_and_that_of_sorted_samples():
    x, y = torch.randn(60, 1), torch.randn(60, 1) * 2
    assert wasserstein(x, y, 1) == pytest.approx(scipy.stats.wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-6)
    of_sorted = (x.sort(0).values - y.sort(0).values).double().square().mean().sqrt()
    assert wasserstein(x, y, 2) == pytest.approx(float(of_sorted), rel=1e-6)


@pytest.mark.parametrize("p", [1, 2])
def test_entropic_distances_close_in_on_the_exact_one(p):
    x, y = torch.randn(40, 2, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64) + 1
    cost = pairwise_cost(x, y, p)
    exact = float(ot.emd2([], [], cost.numpy()))
    for reg in (0.1, 0.001):
        value = wasserstein(x, y, p, reg, tolerance=1e-9) ** p
        assert exact - 1e-8 <= value <= exact + reg * math.log(30)


def test_sizes_that_differ_need_a_regularization():
    with pytest.raises(InputError, match="reg: got None for 4 and 5 samples"):
        wasserstein(torch.zeros(4, 2), torch.zeros(5, 2))
    with pytest.raises(InputError, match="p: got 0.5"):
        wasserstein(torch.zeros(4, 2), torch.zeros(4, 2), 0.5)
    with pytest.raises(InputError, match="one set each"):
        wasserstein(torch.zeros(2, 4, 2), torch.zeros(2, 4, 2))
