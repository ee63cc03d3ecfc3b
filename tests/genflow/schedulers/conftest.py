"""Every scheduler of the registry on every family of configs that it takes: the argument ``combo``."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from genflow.errors import InputError
from genflow.prediction import Prediction
from genflow.schedulers import SCHEDULERS, PathScheduler, create_scheduler

FAMILIES = {
    "beta": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "flow": {"shift": 3.0},
    "edm": {"sigma_data": 0.5, "sigma_max": 80.0},
}
STD = 0.5


@dataclass(frozen=True)
class Combo:
    """A short name and a family of configs."""

    name: str
    family: str

    def make(self, **options: Any) -> PathScheduler:
        """The scheduler, for a network of this family."""
        return create_scheduler(self.name, None, **{**FAMILIES[self.family], **options})

    def accepted(self) -> bool:
        """Whether the scheduler takes this family at all."""
        try:
            self.make()
        except InputError:
            return False
        return True

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return self.make().make_solver().stochastic


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise by all accepted combinations."""
    if "combo" in metafunc.fixturenames:
        combos = [Combo(name, family) for name in SCHEDULERS for family in FAMILIES]
        combos = [combo for combo in combos if combo.accepted()]
        metafunc.parametrize("combo", combos, ids=lambda combo: f"{combo.name}-{combo.family}")


class Helpers:
    """What the tests of this folder share."""

    std = STD

    @staticmethod
    def noise(seed: int = 0, shape: tuple[int, ...] = (2, 3, 4, 4), dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    @staticmethod
    def network(scheduler: PathScheduler, x: Tensor, timestep: Any) -> Tensor:
        """The exact network for data normal(0, STD^2), in the scheduler's own prediction type."""
        t = float(scheduler.family.time(float(timestep)))
        alpha, sigma = scheduler.path.alpha(t), scheduler.path.sigma(t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        prediction = Prediction(gain * x.double(), "sample", x.double(), scheduler.path, t)
        return scheduler.family.model_output(prediction).to(x.dtype)

    @classmethod
    def run(cls, scheduler: PathScheduler, x: Tensor, begin: int = 0, generator: Any = None) -> Tensor:
        """The loop of a pipeline, from entry ``begin`` of the schedule."""
        for t in scheduler.timesteps[begin:]:
            x = scheduler.step(cls.network(scheduler, x, t), t, x, generator=generator).prev_sample
        return x

    @staticmethod
    def exact(scheduler: PathScheduler, x: Tensor, begin: int = 0) -> Tensor:
        """Where the probability-flow ODE takes ``x`` for that data."""
        t = float(scheduler.times[begin])
        return x * STD / (scheduler.path.alpha(t) ** 2 * STD**2 + scheduler.path.sigma(t) ** 2) ** 0.5


@pytest.fixture
def lab() -> type[Helpers]:
    """Shared helpers (this folder's tests cannot import each other)."""
    return Helpers
