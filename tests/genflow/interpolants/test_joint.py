"""One network for several conditional means: as good as one each, and asked less often."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from genflow.bridges import sample_interpolant
from genflow.errors import InputError
from genflow.interpolants import (
    INTERPOLANT_OBJECTIVES,
    EncoderDecoderInterpolant,
    InterpolantModel,
    InterpolantObjective,
    JointModel,
    JointObjective,
    LinearInterpolant,
    MirrorInterpolant,
    TrigonometricInterpolant,
)

BRIDGES = [LinearInterpolant(), TrigonometricInterpolant("parabola"), EncoderDecoderInterpolant(), MirrorInterpolant()]
FACTORS = {"velocity": 0.3, "flow": -0.7, "denoiser": 1.1, "score": 0.2}


class Counting:
    """``FACTORS[kind] x + t`` for each of ``kinds``, and how often it was asked."""

    def __init__(self, kinds) -> None:
        self.kinds, self.calls = kinds, 0

    def __call__(self, x: Tensor, t) -> dict[str, Tensor]:
        self.calls += 1
        return {kind: self.one(kind)(x, t) for kind in self.kinds}

    @staticmethod
    def one(kind: str):
        def answer(x: Tensor, t) -> Tensor:
            t = t.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype) if isinstance(t, Tensor) else t
            return FACTORS[kind] * x + t

        return answer


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("kinds", [k for n in (1, 2, 4) for k in itertools.combinations(INTERPOLANT_OBJECTIVES, n)])
@pytest.mark.parametrize("bridge", BRIDGES, ids=lambda b: b.name)
def test_the_joint_objective_is_the_sum(bridge, kinds, antithetic: bool) -> None:
    x0, x1, z = torch.randn(3, 5, 2, 3, dtype=torch.float64)
    joint = JointObjective(bridge, kinds, antithetic)
    t = joint.draw_times(5, torch.Generator().manual_seed(1))
    network = Counting(kinds)
    found = joint.loss(network, x0, x1, z, t)
    parts = [InterpolantObjective(bridge, kind, antithetic).loss(Counting.one(kind), x0, x1, z, t) for kind in kinds]
    torch.testing.assert_close(found, sum(parts))
    assert found.shape == (5,)
    assert network.calls == (2 if antithetic else 1)


@pytest.mark.parametrize("direction", [(0.1, 0.9), (0.9, 0.1)])
@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("epsilon", [0.0, 0.5])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(
    "kinds", [("velocity", "denoiser"), ("velocity", "score"), ("flow", "denoiser"), ("score", "flow")]
)
def test_the_joint_model_is_the_networks_together(kinds, relative, epsilon, method, direction) -> None:
    bridge, x, times = LinearInterpolant(), torch.randn(3, 2, dtype=torch.float64), np.linspace(*direction, 6)
    network = Counting(kinds)
    joint = JointModel(bridge, network, kinds)
    apart = InterpolantModel(bridge, **{kind: Counting.one(kind) for kind in kinds})
    assert joint.has_score
    ends = []
    for model in (joint, apart):
        seeds = [torch.Generator().manual_seed(n) for n in range(3)]
        ends.append(
            sample_interpolant(model, x, times, epsilon=epsilon, relative=relative, method=method, generators=seeds)
        )
    assert torch.equal(*ends)
    assert network.calls == 5 * (1 if method == "euler" else 2)
    for kind in kinds:
        assert torch.equal(getattr(joint, kind)(x, 0.5), FACTORS[kind] * x + 0.5)


def test_a_denoiser_is_not_asked_where_nothing_needs_it() -> None:
    network = Counting(("denoiser",))
    model = InterpolantModel(
        LinearInterpolant(), Counting.one("velocity"), denoiser=lambda x, t: network(x, t)["denoiser"]
    )
    x = torch.randn(2, 2)
    sample_interpolant(model, x, [0.0, 0.5, 1.0])
    assert network.calls == 0
    sample_interpolant(model, x, [0.0, 0.5, 1.0], epsilon=0.1, relative=True)
    assert network.calls == 4


def test_a_callback_sees_every_state() -> None:
    seen = []
    model = JointModel(LinearInterpolant(), Counting(("velocity",)), ("velocity",))
    x, times = torch.randn(2, 2), np.linspace(1, 0, 4)
    end = sample_interpolant(model, x, times, callback=lambda *state: seen.append(state))
    assert [(step, t) for step, t, _ in seen] == [(n, float(times[n + 1])) for n in range(3)]
    assert torch.equal(seen[-1][2], end)
    half = sample_interpolant(model, x, times[:2])
    assert torch.equal(seen[0][2], half)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("velocity", "velocity"), "kinds: 'velocity' stands twice"),
        (("velocitie",), "did you mean 'velocity'"),
        (("flow",), "velocity: None"),
        (("denoiser",), "velocity: None"),
        (("velocity", "denoiser", "score"), "denoiser and score: both"),
    ],
)
def test_refuses_kinds(kinds, message: str) -> None:
    with pytest.raises(InputError, match=message):
        JointModel(LinearInterpolant(), Counting(kinds), kinds)


def test_refuses_objectives() -> None:
    with pytest.raises(InputError, match="kinds: none; allowed"):
        JointObjective(LinearInterpolant(), ())
    with pytest.raises(InputError, match="'denoiser' with gamma = 0"):
        JointObjective(LinearInterpolant("zero"), ("velocity", "denoiser"))
    assert JointModel(MirrorInterpolant(), Counting(("score",)), ("score",)).has_score
