"""Against the public implementations that install from the registry; where they leave the paper, the test says so."""

import contextlib
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from genflow.optim import SGDP, AdaBelief, AdamP, Adan, DiffGrad, Lion, StableSPAM

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in ((6, 4), (4,), (3, 2, 2))
    ]


def run(make: Make, steps: int = 40) -> list[Tensor]:
    params = weights()
    with contextlib.redirect_stdout(io.StringIO()):  # adabelief-pytorch prints a table
        optimizer = make(params)
    for t in range(steps):
        for index, p in enumerate(params):
            pull = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * (index + 1.5) + 0.3 * t).view(p.shape)
            # the last one's gradient is orthogonal to it: AdamP and SGDP project there
            p.grad = pull - p.detach() * ((pull * p.detach()).sum() / p.detach().square().sum() if index == 2 else -0.1)
        optimizer.step()
    return [p.detach() for p in params]


def assert_equal(ours: Make, theirs: Make, tolerance: float = 1e-10, steps: int = 40) -> None:
    for a, b in zip(run(ours, steps), run(theirs, steps), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def differ(ours: Make, theirs: Make) -> bool:
    return any(not torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(run(ours), run(theirs), strict=True))


@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("decouple", [True, False])
def test_adabelief_pytorch(rectify: bool, decouple: bool) -> None:
    theirs = pytest.importorskip("adabelief_pytorch")
    options = {"lr": 0.01, "weight_decay": 0.1, "weight_decouple": decouple, "rectify": rectify}
    assert_equal(
        lambda p: AdaBelief(p, **options), lambda p: theirs.AdaBelief(p, eps=1e-16, print_change_log=False, **options)
    )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("delta", [0.1, 10.0])
def test_adamp(nesterov: bool, delta: float) -> None:
    theirs = pytest.importorskip("adamp")
    options = {"lr": 0.01, "weight_decay": 0.1, "nesterov": nesterov, "delta": delta}
    assert_equal(lambda p: AdamP(p, **options), lambda p: theirs.AdamP(p, **options))


def test_sgdp() -> None:
    theirs = pytest.importorskip("adamp")
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "dampening": 0.2}
    assert_equal(lambda p: SGDP(p, nesterov=True, **options), lambda p: theirs.SGDP(p, nesterov=True, **options))
    # without Nesterov the authors' update is the buffer itself, which their projection then changes; the paper's
    # Algorithm 1 projects the update only, as we do
    assert differ(lambda p: SGDP(p, **options), lambda p: theirs.SGDP(p, **options))
    assert_equal(lambda p: SGDP(p, delta=0, **options), lambda p: theirs.SGDP(p, delta=0, **options))


def test_lion_pytorch() -> None:
    theirs = pytest.importorskip("lion_pytorch")
    options = {"lr": 0.01, "weight_decay": 0.1}
    assert_equal(lambda p: Lion(p, **options), lambda p: theirs.Lion(p, use_triton=False, **options))


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "tolerance"),
    [
        ("Lion", lambda p: Lion(p, 0.01, weight_decay=0.1), {"lr": 0.01, "weight_decay": 0.1}, 1e-10),
        ("Adan", lambda p: Adan(p, 0.01, weight_decay=0.1), {"lr": 0.01, "weight_decay": 0.1}, 1e-10),
        (
            "AdaBelief",
            lambda p: AdaBelief(p, 0.01, weight_decay=0.1),
            {"lr": 0.01, "weight_decay": 0.1, "rectify": True},
            1e-10,
        ),
        (
            "DiffGrad",
            lambda p: DiffGrad(p, 0.01, weight_decay=0.1),
            {"lr": 0.01, "weight_decay": 0.1, "weight_decouple": False},
            1e-10,
        ),
        # its scalars of the decay are float32: 1e-7 from the authors' code, which ours equals above
        ("AdamP", lambda p: AdamP(p, 0.01, weight_decay=0.1), {"lr": 0.01, "weight_decay": 0.1}, 1e-5),
        (
            "SGDP",
            lambda p: SGDP(p, 0.05, 0.9, weight_decay=0.01),
            {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
            1e-5,
        ),
        (
            "StableSPAM",
            lambda p: StableSPAM(p, 0.01, weight_decay=0.1, gap=15),
            {"lr": 0.01, "weight_decay": 0.1, "update_proj_gap": 15},
            1e-10,
        ),
    ],
)
def test_pytorch_optimizer(name: str, ours: Make, theirs: dict, tolerance: float) -> None:
    library = pytest.importorskip("pytorch_optimizer")
    cls = getattr(library, name)
    assert_equal(ours, lambda p: cls(p, **theirs), tolerance)


def test_pytorch_optimizers_stable_spam_cosine_is_late_and_keeps_a_factor() -> None:
    """It steps torch's recursive scheduler with a gap at the start; ours is the cosine itself (twin in test_rules)."""
    library = pytest.importorskip("pytorch_optimizer")
    assert differ(lambda p: StableSPAM(p, 0.01, total_steps=60), lambda p: library.StableSPAM(p, lr=0.01, t_max=60))


def test_where_pytorch_optimizer_leaves_the_paper() -> None:
    """Its Adan with ``maximize`` seeds the previous gradient before the change of sign: the first difference is -2g."""
    library = pytest.importorskip("pytorch_optimizer")

    def flipped(p: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = Adan(p, 0.01)

        def negate(*_: object) -> None:
            for q in p:
                q.grad = -q.grad

        optimizer.register_step_pre_hook(negate)
        return optimizer

    assert_equal(lambda p: Adan(p, 0.01, maximize=True), flipped)
    assert differ(lambda p: Adan(p, 0.01, maximize=True), lambda p: library.Adan(p, 0.01, maximize=True))
