"""Couplings: sorted in one dimension, unbiased draws, nothing of a class in its noise, one result for one generator."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.transport import COUPLINGS, create_coupling, sinkhorn, sinkhorn_newton, wasserstein
from genflow.transport.couplings import Groups, relative_cost
from genflow.transport.fixed_sweeps import fixed_sweeps

OPTIMAL = [name for name in COUPLINGS if name != "independent"]
ENTROPIC = [name for name in COUPLINGS if name.startswith("sinkhorn")]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def test_independent_changes_nothing_and_draws_nothing():
    x0, noise, labels, generator = normal(9, 3), normal(9, 3, seed=1), torch.arange(9), seeded()
    state = generator.get_state()
    assert create_coupling("independent").pair(x0, noise, generator, labels) == (x0, noise, labels)
    assert torch.equal(generator.get_state(), state)
    assert create_coupling("independent").partners(x0, noise, generator, labels % 2).tolist() == list(range(9))


def test_in_one_dimension_the_exact_coupling_sorts():
    x0, noise = normal(50, 1), normal(50, 1, seed=1)
    data, paired, _ = create_coupling("exact").pair(x0, noise, seeded())
    assert torch.equal(data, x0)
    order = x0[:, 0].argsort()
    assert torch.equal(paired[order, 0], noise[:, 0].sort().values)


def test_exact_is_the_cheapest_of_all_permutations_of_each_class():
    x0, noise, labels = normal(9, 2), normal(9, 2, seed=1), torch.tensor([2, 0, 2, 0, 0, 7, 2, 2, 0])
    partners = create_coupling("exact").partners(x0, noise, seeded(), labels)
    assert sorted(partners.tolist()) == list(range(9))
    for label in (0, 2, 7):
        rows = (labels == label).nonzero()[:, 0]
        assert sorted(partners[rows].tolist()) == rows.tolist()
        costs = [float((x0[rows] - noise[list(p)]).square().sum()) for p in itertools.permutations(rows.tolist())]
        assert float((x0[rows] - noise[partners[rows]]).square().sum()) == pytest.approx(min(costs), rel=1e-6)


@pytest.mark.parametrize("name", ENTROPIC)
def test_entropic_draws_are_the_plans(name):
    """Frequencies of pairs over many draws against the plan of the formula, by a chi-square statistic."""
    n, reg, copies, batches = 6, 0.5, 200, 20
    x0, noise = normal(n, 2), normal(n, 2, seed=1)
    cost = torch.cdist(x0.double(), noise.double()).square()
    centred = cost - cost.mean(1, keepdim=True)
    centred = centred - centred.mean(0)
    plan = sinkhorn(None, None, cost, reg * float(centred.square().mean().sqrt())).plan
    coupling, generator = create_coupling(name, reg=reg, tolerance=1e-6), seeded(3)
    counts = torch.zeros(n, n, dtype=torch.float64)
    labels = torch.arange(copies).repeat_interleave(n)  # the same batch many times, as so many classes
    for _ in range(batches):
        partners = coupling.partners(x0.repeat(copies, 1), noise.repeat(copies, 1), generator, labels)
        assert torch.equal(partners // n, labels)
        pairs = torch.arange(n).repeat(copies) * n + partners % n
        counts += pairs.bincount(minlength=n * n).view(n, n)
    draws = copies * batches
    expected = draws * n * plan
    statistic = float(((counts - expected) ** 2 / expected)[expected > 5].sum())
    freedom = n * (n - 1)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)
    # every noise comes once a batch on average
    assert torch.allclose(counts.sum(0) / draws, torch.ones(n).double(), atol=0.06)


@pytest.mark.parametrize("name", OPTIMAL)
def test_a_class_keeps_standard_normal_noise_if_coupled_by_itself(name):
    """Two classes at -1 and 1 of a line. Coupled as a whole each gets its half of the normal: mean sqrt(2 / pi)."""
    batches, size = 30, 128
    labels = torch.arange(size) % 2
    means, squares = {}, {}
    for class_wise in (True, False):
        coupling, generator = create_coupling(name, class_wise=class_wise), seeded()
        kept = []
        for _ in range(batches):
            x0 = (2.0 * labels - 1)[:, None] + 0.05 * torch.randn(size, 1, generator=generator)
            noise = torch.randn(size, 1, generator=generator)
            kept.append(coupling.pair(x0, noise, generator, labels)[1][labels == 1])
        kept = torch.cat(kept)
        means[class_wise], squares[class_wise] = float(kept.mean()), float(kept.square().mean())
    # entropic draws repeat noise, which makes the mean's error larger than one over the root of the count
    assert abs(means[True]) < 5 / math.sqrt(batches * size / 2)
    assert squares[True] == pytest.approx(1, abs=0.12)
    assert means[False] == pytest.approx(math.sqrt(2 / math.pi), abs=0.06)


def test_dropped_labels_must_not_be_a_class_of_their_own():
    """Coupled with their class, dropped images are the mixture of the classes' pairs, which guidance relies on."""
    size, generator = 400, seeded(3)
    classes = torch.arange(size) % 2
    x0 = (2.0 * classes - 1)[:, None].expand(size, 1) + 0.01 * normal(size, 1)
    noise = normal(size, 1, seed=1)
    dropped = torch.rand(size, generator=seeded(2)) < 0.5
    coupling = create_coupling("exact")
    by_class = coupling.pair(x0, noise, generator, classes)[1]
    by_shown = coupling.pair(x0, noise, generator, torch.where(dropped, 2, classes))[1]
    above = dropped & (classes == 1)
    assert abs(float(by_class[above].mean())) < 0.3
    assert float(by_shown[above].mean()) > 0.6


@pytest.mark.parametrize("name", ENTROPIC)
def test_regularization_leads_from_exact_to_independent(name):
    x0, noise = normal(40, 3), normal(40, 3, seed=1)
    exact = create_coupling("exact").pair(x0, noise, seeded())[1]

    def cost(reg):
        many, labels = x0.repeat(50, 1), torch.arange(50).repeat_interleave(40)  # one batch, as fifty classes
        coupling = create_coupling(name, reg=reg, tolerance=1e-3)
        return float((many - coupling.pair(many, noise.repeat(50, 1), seeded(), labels)[1]).square().sum(1).mean())

    costs = [cost(reg) for reg in (0.005, 0.1, 0.5, 1e3)]
    assert costs == sorted(costs)
    assert costs[0] == pytest.approx(float((x0 - exact).square().sum(1).mean()), rel=0.01)
    assert costs[-1] == pytest.approx(float(torch.cdist(x0, noise).square().mean()), rel=0.03)


@pytest.mark.parametrize("name", OPTIMAL)
def test_pairs_do_not_depend_on_units_or_shifts(name):
    """Of one scale for both, and of shifts and any scale of the data: they change no plan beyond rows and columns."""
    x0, noise, labels = normal(24, 2, 3), normal(24, 2, 3, seed=1), torch.arange(24) % 3
    coupling = create_coupling(name, tolerance=1e-9) if name in ENTROPIC else create_coupling(name)
    base = coupling.partners(x0, noise, seeded(), labels)
    for other in ((8 * x0, 8 * noise), (x0 + 4, noise), (0.25 * x0, noise)):
        assert torch.equal(coupling.partners(*other, seeded(), labels), base)
    assert torch.equal(coupling.partners(x0.flatten(1), noise.flatten(1), seeded(), labels), base)


def test_the_cost_is_centred_and_of_unit_size_in_each_group():
    labels = torch.tensor([0, 1, 1, 1, 0, 1, 5])
    groups = Groups.of(7, labels, labels.device)
    cost = relative_cost(normal(7, 4), normal(7, 4, seed=1), groups)
    assert groups.filled.sum(1).tolist() == [2, 4, 1]
    for part, size in zip(cost, (2, 4, 1), strict=True):
        block = part[:size, :size]
        assert block.sum(0).abs().max() < 1e-9
        assert block.sum(1).abs().max() < 1e-9
        assert float(block.square().mean()) == pytest.approx(float(size > 1))


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(COUPLINGS),
    count=st.integers(1, 20),
    classes=st.integers(0, 4),
    shape=st.sampled_from([(1,), (3,), (2, 2, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_every_batch_is_paired_within_its_classes(name, count, classes, shape, dtype, scale, seed):
    x0 = (scale * normal(count, *shape, seed=seed)).to(dtype)
    noise = normal(count, *shape, seed=seed + 1).to(dtype)
    labels = torch.randint(classes, (count,), generator=seeded(seed)) if classes else None
    coupling = create_coupling(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partners = coupling.partners(x0, noise, seeded(seed), labels)
    assert partners.dtype == torch.int64
    assert partners.shape == (count,)
    if labels is not None:
        assert torch.equal(labels[partners], labels)
    if name in ("independent", "exact"):
        assert sorted(partners.tolist()) == list(range(count))
    data, paired, kept = coupling.pair(x0, noise, seeded(seed), labels)
    assert data is x0
    assert kept is labels
    assert torch.equal(paired, noise[partners])
    assert paired.dtype == dtype


@pytest.mark.parametrize("reg", [0.05, 0.1, 1.0, 1e3])
@pytest.mark.parametrize("classes", [0, 1, 5])
@pytest.mark.parametrize("shape", [(2,), (784,)])
def test_a_fixed_number_of_sweeps_gives_the_solvers_plan(reg, classes, shape):
    x0, noise = normal(128, *shape).abs(), normal(128, *shape, seed=1)
    labels = torch.randint(classes, (128,), generator=seeded()) if classes else None
    plan = fixed_sweeps(x0, noise, labels, reg)
    groups = Groups.of(128, labels, x0.device)
    exact = sinkhorn_newton(groups.masses, groups.masses, relative_cost(x0, noise, groups), reg).plan
    expected = torch.zeros_like(plan)
    for index, filled, part in zip(groups.index, groups.filled, exact, strict=True):
        members = index[filled]
        expected[members[:, None], members] = part[filled][:, filled] * len(members)
    assert torch.allclose(plan.sum(1), torch.ones(128).double())
    assert float((plan.sum(0) - 1).abs().mean()) < 2e-3
    assert float((plan - expected).abs().sum(1).mean()) < 4e-3
    assert labels is None or not bool(plan[labels[:, None] != labels].any())


@pytest.mark.parametrize("name", ENTROPIC)
def test_on_an_accelerator_pairs_come_from_fixed_sweeps(name, monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert create_coupling(name).solves(cpu)
    assert not create_coupling(name).solves(cuda)
    assert create_coupling(name, reg=0.02).solves(cuda)
    assert create_coupling(name, tolerance=1e-6).solves(cuda)
    x0, noise, labels = normal(60, 3), normal(60, 3, seed=1), torch.arange(60) % 4
    coupling = create_coupling(name)
    monkeypatch.setattr(type(coupling), "solves", lambda self, device: False)
    partners = coupling.partners(x0, noise, seeded(), labels)
    assert torch.equal(labels[partners], labels)
    plan = fixed_sweeps(x0, noise, labels, coupling.reg)
    assert torch.equal(partners, torch.multinomial(plan, 1, generator=seeded())[:, 0])


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 40),
    classes=st.integers(0, 4),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    outlier=st.sampled_from([1.0, 1e4]),
    reg=st.sampled_from([0.05, 0.3]),
    seed=st.integers(0, 1000),
)
def test_fixed_sweeps_give_probabilities_whatever_the_points(count, classes, scale, outlier, reg, seed):
    x0, noise = scale * normal(count, 3, seed=seed), normal(count, 3, seed=seed + 1)
    x0[0] *= outlier
    labels = torch.randint(classes, (count,), generator=seeded(seed)) if classes else None
    plan = fixed_sweeps(x0, noise, labels, reg)
    assert bool(plan.isfinite().all())
    assert torch.allclose(plan.sum(1), torch.ones(count).double())
    partners = torch.multinomial(plan, 1, generator=seeded())[:, 0]
    assert labels is None or torch.equal(labels[partners], labels)


@pytest.mark.parametrize("name", OPTIMAL)
def test_coupling_lowers_the_cost_towards_the_wasserstein_distance(name):
    x0, noise = normal(64, 5) * 0.3 + 1, normal(64, 5, seed=1)
    paired = create_coupling(name, **({"reg": 0.02} if name in ENTROPIC else {})).pair(x0, noise, seeded())[1]
    cost = float((x0 - paired).square().sum(1).mean()) ** 0.5
    best = wasserstein(x0, noise)
    assert cost < 0.93 * float((x0 - noise).square().sum(1).mean()) ** 0.5
    if name == "exact":
        assert cost == pytest.approx(best, rel=1e-6)


def test_a_plan_that_is_not_reached_warns_once():
    x0, noise = normal(40, 1), normal(40, 1, seed=1)
    coupling = create_coupling("sinkhorn", reg=1e-6, tolerance=1e-12)
    with pytest.warns(RuntimeWarning, match="stopped at a marginal error"):
        coupling.partners(x0, noise, seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coupling.partners(x0, noise, seeded())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sinkhorn-newtn", {}, "did you mean 'sinkhorn-newton'"),
        ("exact", {"reg": 0.1}, "option 'reg' is not known"),
        ("sinkhorn", {"reg": 0}, "reg: got 0"),
        ("sinkhorn", {"tolerance": 2}, "tolerance: got 2"),
        ("exact", {"class_wise": "always"}, "class_wise: got 'always'"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        create_coupling(name, **options)


def test_bad_batches_are_refused():
    coupling = create_coupling("exact", class_wise=True)
    with pytest.raises(InputError, match="allowed: one shape"):
        coupling.pair(normal(4, 2), normal(5, 2), seeded(), torch.zeros(4))
    with pytest.raises(InputError, match="one for each of x0"):
        coupling.pair(normal(4, 2), normal(4, 2), seeded(), torch.zeros(5))
    with pytest.raises(InputError, match="class_wise=True"):
        coupling.pair(normal(4, 2), normal(4, 2), seeded())
