"""What holds for any gradients: bounds, symmetries and scales that follow from the rules."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genflow.optim import SGDP, AdaBelief, AdaGradNorm, AdamP, Adan, DiffGrad, Lion, LionK, StableSPAM

ALL = [AdaBelief, Adan, AdamP, SGDP, DiffGrad, Lion, LionK, StableSPAM, AdaGradNorm]
every = pytest.mark.parametrize("cls", ALL)
# entries far from zero: eps and ties at zero are not what is meant here
entry = st.floats(0.05, 4).flatmap(lambda x: st.sampled_from([x, -x]))
tables = st.lists(st.lists(entry, min_size=6, max_size=6), min_size=1, max_size=5).map(
    lambda rows: [torch.tensor(row, dtype=torch.float64).view(2, 3) for row in rows]
)
modest = settings(deadline=None, max_examples=25)


def walk(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], grads: list[Tensor]) -> list[Tensor]:
    """The weights after each step, from a fixed start."""
    p = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.8, -1.1]], dtype=torch.float64))
    optimizer = make([p])
    path = [p.detach().clone()]
    for grad in grads:
        p.grad = grad
        optimizer.step()
        path.append(p.detach().clone())
    return path


@every
@given(grads=tables)
@modest
def test_a_zero_learning_rate_moves_nothing(cls: type, grads: list[Tensor]) -> None:
    path = walk(lambda p: cls(p, lr=0.0, weight_decay=0.1), grads)
    assert all(torch.equal(x, path[0]) for x in path)


@every
@given(grads=tables)
@modest
def test_without_decay_the_first_step_goes_against_the_gradient(cls: type, grads: list[Tensor]) -> None:
    before, after = walk(lambda p: cls(p, lr=1e-3), grads[:1])
    assert ((after - before) * grads[0]).sum().item() < 0


@every
@given(grads=tables)
@modest
def test_transposing_the_problem_transposes_the_path_unless_rows_matter(cls: type, grads: list[Tensor]) -> None:
    options = {"delta": 0.0} if cls in (AdamP, SGDP) else {}
    p = walk(lambda p: cls(p, lr=0.01, weight_decay=0.1, **options), grads)[-1]
    q = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.8, -1.1]], dtype=torch.float64).T.contiguous())
    optimizer = cls([q], lr=0.01, weight_decay=0.1, **options)
    for grad in grads:
        q.grad = grad.T.contiguous()
        optimizer.step()
    torch.testing.assert_close(p, q.detach().T, rtol=1e-10, atol=1e-10)


@given(grads=tables, scale=st.floats(1e-3, 1e3))
@modest
@pytest.mark.parametrize(
    "make",
    [
        lambda p: Lion(p, 0.01, weight_decay=0.1),
        lambda p: LionK(p, "l2", 0.01),
        lambda p: Adan(p, 0.01, eps=0.0),
        lambda p: AdamP(p, 0.01, eps=0.0, delta=0.0),
        lambda p: AdaBelief(p, 0.01, eps=0.0, rectify=False),
        lambda p: StableSPAM(p, 0.01, eps=0.0),
    ],
    ids=["lion", "lion-k l2", "adan", "adamp", "adabelief", "stable-spam"],
)
def test_adaptive_steps_do_not_depend_on_the_gradients_scale(make: Callable, grads: list[Tensor], scale: float) -> None:
    scaled = walk(make, [scale * grad for grad in grads])
    for a, b in zip(walk(make, grads), scaled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@given(grads=tables)
@modest
def test_every_entry_of_lion_moves_by_the_learning_rate(grads: list[Tensor]) -> None:
    path = walk(lambda p: Lion(p, 0.01, (0.0, 0.9)), grads)
    for before, after, grad in zip(path, path[1:], grads, strict=False):
        torch.testing.assert_close(after - before, -0.01 * grad.sign())


@given(grads=tables)
@modest
def test_adamp_and_sgdp_never_push_along_weights_that_they_project(grads: list[Tensor]) -> None:
    for make in (lambda p: AdamP(p, 0.01, delta=10.0), lambda p: SGDP(p, 0.01, 0.9, delta=10.0)):
        path = walk(make, grads)
        for before, after in itertools.pairwise(path):
            along = ((after - before) * before).sum(1)
            torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-8)
            assert (after.norm(dim=1) >= before.norm(dim=1) - 1e-12).all()


@given(grads=tables)
@modest
def test_adagrad_norm_moves_by_at_most_the_learning_rate_and_ever_less_a_gradient(grads: list[Tensor]) -> None:
    path = walk(lambda p: AdaGradNorm(p, 0.5, 1e-6), grads)
    rates = []
    for before, after, grad in zip(path, path[1:], grads, strict=False):
        assert (after - before).norm().item() <= 0.5 + 1e-12
        rates.append(((after - before).norm() / grad.norm()).item())
    assert rates == sorted(rates, reverse=True)


@given(grads=tables)
@modest
def test_diffgrads_step_is_between_half_of_adams_first_form_and_all_of_it(grads: list[Tensor]) -> None:
    grads = grads[:1]
    start, after = walk(lambda p: DiffGrad(p, 0.01, eps=0.0), grads)
    share = ((start - after) / (0.01 * grads[0].sign())).flatten()
    assert (share > 0.5).all()
    assert (share < 1).all()
