"""What reflow promises, where it can be seen: a Gaussian becomes straight at once, a mixture a little every round.

Liu et al. 2023 (arXiv 2209.03003): the marginals stay (theorem 3.3), no convex transport cost grows (3.5), and the flow
becomes straight (3.7). On the mixture the first teacher is exact and the students are networks of three layers.
"""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from genflow.distillation import Pairs
from genflow.distillation.reflow_task import PairStream
from genflow.distillation.teacher import clock_times
from genflow.models import from_function
from genflow.paths import EDMPath, LinearPath, VPPath
from genflow.sampling import sample, time_grid
from genflow.training.objectives import Objective, create_objective
from genflow.trajectory import sample_trajectory

PATH = LinearPath()
ANGLES = torch.arange(5) * 2 * math.pi / 5
CENTRES = 2.0 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1) + torch.tensor([0.5, 0.0])
SPREAD = 0.25
COSTS = {"square": lambda d: d.square().sum(1), "norm": lambda d: d.norm(dim=1), "fourth": lambda d: d.norm(dim=1) ** 4}


def data(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(CENTRES), (count,), generator=generator)
    return CENTRES[which] + SPREAD * torch.randn(count, 2, generator=generator)


def normal(count, seed):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


def mixture_model():
    """E[x0 | x_t] of the mixture, in closed form."""

    def x0(x, t):
        alpha, sigma = PATH.alpha(t), PATH.sigma(t)
        variance = alpha**2 * SPREAD**2 + sigma**2
        offset = x[:, None] - alpha * CENTRES
        weights = (-offset.square().sum(-1) / (2 * variance)).softmax(dim=1)
        means = CENTRES + alpha * SPREAD**2 / variance * offset
        return (weights[..., None] * means).sum(dim=1)

    return from_function(x0, PATH, "sample")


class Student(nn.Module):
    def __init__(self, width=96):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(2 + 5, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)]
        self.net = nn.Sequential(*layers, nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, t):
        t = torch.as_tensor(t, dtype=x.dtype).expand(len(x))[:, None]
        clock = [t, (math.pi * t).cos(), (math.pi * t).sin(), (2 * math.pi * t).cos(), (2 * math.pi * t).sin()]
        return self.net(torch.cat([x, *clock], dim=1))


def train(student, pairs, objective, steps=600, size=512):
    """Adam with a cosine schedule; the student as a path model."""
    model = from_function(student, PATH, "flow_prediction")
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    stream = PairStream(pairs, seed=0, size=size, slots=1, device=torch.device("cpu"))
    for step in range(steps):
        x0, noise, _, generator = stream.draw(step, 0)
        loss = objective.loss(model, x0, noise, objective.draw_times(size, generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def solve(model, noise, steps=40):
    with torch.no_grad():
        return sample(model, noise, time_grid(PATH, steps), "heun")


def energy_distance(a, b):
    """2 E|a - b| - E|a - a'| - E|b - b'|, without the diagonals: 0 for one law."""
    between, within = torch.cdist(a, b).mean(), []
    for x in (a, b):
        within.append(torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)))
    return float(2 * between - within[0] - within[1])


@pytest.fixture(scope="module")
def rounds():
    """The exact teacher, and the students of two rounds of reflow."""
    models, student = [mixture_model()], Student()
    objective = create_objective("velocity", PATH, "u-shaped")
    for number in range(2):
        noise = normal(20_000, 100 + number)
        student = copy.deepcopy(student)
        models.append(train(student, Pairs(noise, solve(models[-1], noise)), objective))
    return models


@pytest.mark.slow
def test_every_round_lowers_transport_costs_and_straightness(rounds):
    noise = normal(4000, 7)
    with torch.no_grad():
        runs = [sample_trajectory(model, noise, time_grid(PATH, 40), "heun") for model in rounds]
    bends = [run.straightness().straightness for run in runs]
    assert bends[1] < 0.2 * bends[0]
    assert bends[2] < 0.7 * bends[1]
    independent = data(len(noise), 8)
    for name, cost in COSTS.items():
        each = [cost(noise - independent), *(cost(noise - run.x) for run in runs)]
        costs = [float(values.mean()) for values in each]
        assert costs[1] < 0.95 * costs[0], name
        for before, after in itertools.pairwise(each[1:]):
            saved = before - after  # of the same noise, so that its error is small
            assert float(saved.mean()) > 3 * float(saved.std()) / len(noise) ** 0.5, name
    # few steps gain by it
    errors = []
    for model, run in zip(rounds, runs, strict=True):
        with torch.no_grad():
            one = sample(model, noise, time_grid(PATH, 1), "euler")
        errors.append(float((one - run.x).square().sum(1).mean().sqrt()))
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < errors[1]


@pytest.mark.slow
def test_every_round_keeps_the_marginals(rounds):
    count = 3000
    noise = normal(count, 9)
    # what two samples of the data themselves are apart, at its largest of a few
    chance = max(abs(energy_distance(data(count, seed), data(count, seed + 50))) for seed in range(6))
    exact = data(200_000, 3)
    for number, model in enumerate(rounds):
        made = solve(model, noise)
        assert energy_distance(made, data(count, 11)) < 3 * chance, number
        tolerance = 4 * exact.std(dim=0) / count**0.5 + 0.03 * number
        assert bool(((made.mean(dim=0) - exact.mean(dim=0)).abs() < tolerance).all())
        assert torch.allclose(made.T.cov(), exact.T.cov(), atol=0.1 + 0.05 * number)
    assert energy_distance(solve(rounds[0], noise) + 0.15, data(count, 11)) > 6 * chance  # a shift is seen


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_distillation_to_k_steps(rounds, steps):
    """The 2-rectified flow in K steps, after distillation at those K times, is nearer to its own fine solution."""
    noise = normal(20_000, 300)
    grid = tuple(time_grid(PATH, steps)[:-1].tolist())
    objective = Objective(PATH, "flow_prediction", grid=grid)
    student = copy.deepcopy(rounds[1].function)
    distilled = train(student, Pairs(noise, solve(rounds[1], noise)), objective, steps=400)
    test = normal(3000, 301)
    wanted = solve(rounds[1], test)
    errors = []
    for model in (rounds[1], distilled):
        with torch.no_grad():
            made = sample(model, test, time_grid(PATH, steps), "euler")
        errors.append(float((made - wanted).square().sum(1).mean().sqrt()))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("path", [LinearPath(), VPPath.linear(), EDMPath()])
@pytest.mark.parametrize("times", ["u-shaped", "grid"])
def test_pairs_of_a_gaussian_are_straight_at_once(path, times):
    """With x0 = m + s z no two lines cross: one velocity answers all of them, at every t, and the loss is 0.

    Independent noise has no such answer: the same prediction leaves an error.
    """
    mean, std = 0.3, 0.5

    def flow(x, t):
        alpha, sigma = (c.view(-1, 1) if isinstance(c, torch.Tensor) else c for c in (path.alpha(t), path.sigma(t)))
        z = (x - alpha * mean) / (alpha * std + sigma)
        return z - (mean + std * z)

    model = from_function(flow, path, "flow_prediction")
    grid = tuple(clock_times(path, 4)[:-1].tolist()) if times == "grid" else None
    objective = Objective(path, "flow_prediction", times="u-shaped", grid=grid)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    t = objective.draw_times(64, generator)
    loss = objective.loss(model, mean + std * noise, noise, t)
    assert float(loss.max()) < 1e-16
    others = mean + std * torch.randn(64, 3, generator=generator, dtype=torch.float64)
    assert float(objective.loss(model, others, noise, t).mean()) > 0.01
    # and its Euler step is exact, however long
    start = path.prior_std * noise if grid is None else path.perturb(mean + std * noise, noise, 1.0)
    if isinstance(path, LinearPath):
        for steps in (1, 3):
            made = sample(model, start, clock_times(path, steps), "euler")
            torch.testing.assert_close(made, mean + std * noise, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", [LinearPath(), VPPath.linear(), EDMPath()])
def test_clock_times_are_even_on_the_clock(path):
    times = clock_times(path, 8)
    clocks = path.sigma(times) / (path.alpha(times) + path.sigma(times))
    np.testing.assert_allclose(np.diff(clocks), -clocks[0] / 8, rtol=1e-9)
    assert (times[0], times[-1]) == (1.0, 0.0)
