"""The kinds of problem on which the paper measures, small."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from genflow.evaluate.transport import KINDS, make_problem


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def random_problem() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """``random_problem(n, m, batch=())``: masses of total 1 and a uniform cost, float64."""

    def make(n: int, m: int, batch: tuple[int, ...] = (), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        a, b, cost = (torch.rand(*batch, *shape, generator=draw, dtype=torch.float64) for shape in ((n,), (m,), (n, m)))
        return (a + 0.1) / (a + 0.1).sum(-1, keepdim=True), (b + 0.1) / (b + 0.1).sum(-1, keepdim=True), cost

    return make


@pytest.fixture
def paper_problem(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """A problem of one of the paper's kinds of about 64 points, costs up to 1."""
    return make_problem(kind, 64)
