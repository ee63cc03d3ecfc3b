"""torchcfm's sampler on our plans: the plan is POT's, draws follow it, labels go with their points."""

import ot
import pytest
import torch

from genflow.errors import InputError
from genflow.transport import CouplingSampler, exact_assignment, pairwise_cost


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def torchcfm_plan(x0, x1, method, reg, normalize_cost):
    """OTPlanSampler.get_map of torchcfm 1.0.7, by its formula: squared distances, POT, uniform masses."""
    cost = torch.cdist(x0.flatten(1), x1.flatten(1)) ** 2
    cost = (cost / cost.max() if normalize_cost else cost).numpy()
    a, b = ot.unif(len(x0)), ot.unif(len(x1))
    return torch.from_numpy(ot.emd(a, b, cost) if method == "exact" else ot.sinkhorn(a, b, cost, reg, stopThr=1e-12))


@pytest.mark.parametrize("normalize_cost", [False, True])
@pytest.mark.parametrize("method", ["exact", "sinkhorn", "sinkhorn-newton"])
def test_the_plan_is_the_one_that_torchcfm_takes_from_pot(method, normalize_cost):
    x0, x1 = normal(20, 3, 2), normal(20, 3, 2, seed=1)
    ours = CouplingSampler(method, reg=0.3, normalize_cost=normalize_cost).get_map(x0, x1)
    torch.testing.assert_close(ours, torchcfm_plan(x0, x1, method, 0.3, normalize_cost), rtol=0, atol=1e-8)


def test_entropic_plans_take_sides_of_two_sizes():
    x0, x1 = normal(7, 2), normal(11, 2, seed=1)
    ours = CouplingSampler("sinkhorn-newton", reg=0.5).get_map(x0, x1)
    torch.testing.assert_close(ours, torchcfm_plan(x0, x1, "sinkhorn", 0.5, False), rtol=0, atol=1e-8)
    with pytest.raises(InputError, match="as many of both"):
        CouplingSampler("exact").get_map(x0, x1)


@pytest.mark.parametrize("replace", [True, False])
def test_pairs_are_drawn_in_proportion_to_the_plan(replace):
    plan = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.15, 0.25]])
    sampler, counts = CouplingSampler("exact", generator=seeded()), torch.zeros(2, 3)
    for _ in range(20 if replace else 4000):
        i, j = sampler.sample_map(plan, 1000 if replace else 1, replace)
        counts.index_put_((i, j), torch.ones(len(i)), accumulate=True)
    assert torch.allclose(counts / counts.sum(), plan, atol=0.02)
    assert counts[0, 2] == 0
    i, j = sampler.sample_map(plan, 5, replace=False)
    assert len({*zip(i.tolist(), j.tolist(), strict=True)}) == 5
    with pytest.raises(InputError, match="6 different ones of 5 pairs"):
        sampler.sample_map(plan, 6, replace=False)


def test_points_come_in_pairs_of_the_plan_with_their_labels():
    x0, x1, y0, y1 = normal(30, 2), normal(30, 2, seed=1), torch.arange(30), torch.arange(30) + 100
    drawn0, drawn1, labels0, labels1 = CouplingSampler("exact", generator=seeded()).sample_plan_with_labels(
        x0, x1, y0, y1
    )
    assert torch.equal(drawn0, x0[labels0])
    assert torch.equal(drawn1, x1[labels1 - 100])
    assert torch.equal(exact_assignment(pairwise_cost(x0, x1))[labels0], labels1 - 100)
    again = CouplingSampler("exact", generator=seeded())
    assert all(map(torch.equal, again.sample_plan(x0, x1), (drawn0, drawn1)))
    assert CouplingSampler("exact").sample_plan_with_labels(x0, x1, None, y1)[2] is None
    once = CouplingSampler("exact", generator=seeded()).sample_plan(x0, x1, replace=False)
    assert torch.equal(once[0].sort(0).values, x0.sort(0).values)


def test_trajectories_go_along_the_matchings():
    """In one dimension the exact plan keeps the order, all along."""
    x = torch.stack([normal(12, 1, seed=seed) for seed in range(4)], dim=1)
    chains = CouplingSampler("exact").sample_trajectory(x)
    assert torch.equal(chains[:, 0], x[:, 0])
    order = x[:, 0, 0].argsort()
    assert torch.equal(chains[order], x.sort(dim=0).values)


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="method: 'unbalanced'"):
        CouplingSampler("unbalanced")
    with pytest.raises(InputError, match="reg: got -1"):
        CouplingSampler("sinkhorn", reg=-1)
    with pytest.raises(InputError, match="normalize_cost"):
        CouplingSampler("sinkhorn", normalize_cost="max")
