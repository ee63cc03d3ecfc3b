"""Too much guidance in too few steps: momentum tames the samples that run away (Wizadwongsa et al. 2024).

The model is exact: every pixel's law is a mixture of five narrow modes, and a class says which of them it is.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from genflow.guidance import CFG
from genflow.metrics import magnitude_score
from genflow.models import PathModel, from_function
from genflow.paths import VPPath
from genflow.sampling import sample
from genflow.solvers import create_solver

MODES, STD = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]), 0.3
CLASSES, SHAPE = 4, (4, 16, 16)
FALLING = [("ab", {"order": 4}), *(("ghvb", {"order": order}) for order in (3.7, 2.7, 1.8, 1.0, 0.7))]


def stiff_model() -> PathModel:
    path = VPPath.scaled_linear()
    patterns = torch.randint(len(MODES), (CLASSES, *SHAPE), generator=torch.Generator().manual_seed(1))

    def posterior_mean(x: Tensor, t: float, class_labels: Tensor) -> Tensor:
        alpha, sigma = path.alpha(t), path.sigma(t)
        variance = (alpha * STD) ** 2 + sigma**2
        apart = x.unsqueeze(-1) - alpha * MODES
        means = MODES + alpha * STD**2 / variance * apart
        anything = (torch.softmax(-(apart**2) / (2 * variance), -1) * means).sum(-1)
        known = class_labels < CLASSES
        mode = patterns[class_labels.clamp(max=CLASSES - 1)].unsqueeze(-1)
        return torch.where(known.view(-1, 1, 1, 1), means.gather(-1, mode).squeeze(-1), anything)

    return from_function(posterior_mean, path, "sample", num_classes=CLASSES)


def scores(steps: int, scale: float, solvers: list[tuple[str, dict]]) -> list[float]:
    model = stiff_model()
    noise = torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(0))
    times, labels = np.linspace(1, 0, steps + 1), torch.arange(CLASSES)
    std = math.hypot(float(MODES.std(correction=0)), STD)
    found = []
    for name, options in solvers:
        x = sample(model, noise, times, create_solver(name, **options), CFG(scale=scale), class_labels=labels)
        found.append(float(magnitude_score(x, 0.0, std).mean()))
    return found


@pytest.mark.parametrize("steps", [10, 15])
def test_the_magnitude_score_falls_from_adams_bashforth_to_more_momentum(steps: int) -> None:
    found = scores(steps, 15.0, FALLING)
    assert all(after <= 0.95 * before for before, after in itertools.pairwise(found) if before > 0), found
    assert found[0] > 3 * found[3] > 0
    assert found[-1] < 1


def test_heavy_ball_tames_the_rule_it_is_put_around() -> None:
    found = scores(10, 15.0, [("hb", {"order": 4, "beta": beta}) for beta in (1.0, 0.9, 0.8)])
    assert found[0] > found[1] > found[2]
    assert found[0] == pytest.approx(scores(10, 15.0, FALLING[:1])[0])


def test_nothing_runs_away_without_guidance_or_with_enough_steps() -> None:
    assert max(scores(15, 1.0, FALLING)) == 0
    assert max(scores(120, 15.0, FALLING[:3])) == 0
