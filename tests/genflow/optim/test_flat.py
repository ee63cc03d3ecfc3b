"""Entrywise rules on joined and cut tensors: as one tensor after another, whatever lies how."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genflow.optim import AdaBelief, Adan, DiffGrad, Lion, LionK, flat
from genflow.optim.flat import FlatSteps, Sizes

CASES: list[tuple[type, dict[str, Any]]] = [
    (AdaBelief, {"rectify": False}),
    (Adan, {"max_grad_norm": 0.5}),
    (DiffGrad, {"weight_decouple": True}),
    (Lion, {}),
    (LionK, {"kappa": "huber"}),
]
every = pytest.mark.parametrize(("cls", "options"), CASES, ids=lambda value: getattr(value, "__name__", ""))
LAYOUTS = {
    "plain": lambda x: x,
    "reversed": lambda x: (
        x.permute(tuple(reversed(range(x.ndim)))).contiguous().permute(tuple(reversed(range(x.ndim))))
    ),
    "every other": lambda x: torch.stack([x, x], -1)[..., 0],
}


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which a few entries are joined, whole and cut."""
    monkeypatch.setattr("genflow.optim.base.eager_sizes", lambda buffers: Sizes(joined=8, block=20, piece=10, pack=1))


def make(shapes: list[tuple[int, ...]], layouts: list[str], dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    values = [torch.linspace(-1, 1, max(math.prod(shape), 1))[: math.prod(shape)].view(shape) for shape in shapes]
    return [nn.Parameter(LAYOUTS[how](x.to(dtype))) for x, how in zip(values, layouts, strict=True)]


def fill(params: list[nn.Parameter], t: int, layouts: list[str] | None = None) -> None:
    for index, p in enumerate(params):
        grad = torch.sin(torch.arange(p.numel()) * (index + 1.0) + t).view(p.shape).to(p.dtype)
        p.grad = LAYOUTS[layouts[index]](grad) if layouts else grad


def steps(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], times: range) -> None:
    for t in times:
        fill(params, t)
        optimizer.step()


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=7),
    data=st.data(),
    case=st.sampled_from(CASES),
    maximize=st.booleans(),
)
def test_the_flat_form_is_the_single_form(shapes: list[Any], data: st.DataObject, case: Any, maximize: bool) -> None:
    some = st.lists(st.sampled_from(list(LAYOUTS)), min_size=len(shapes), max_size=len(shapes))
    layouts, of_grads = data.draw(some), data.draw(some)
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    cls, options = case
    options = options | {"weight_decay": 0.1, "lr": 0.05, "maximize": maximize}
    both = make(shapes, layouts, dtype), make(shapes, layouts, dtype)
    flat, single = cls(both[0], **options), cls(both[1], foreach=False, **options)
    for t in range(3):
        for params, optimizer in zip(both, (flat, single), strict=True):
            fill(params, t, of_grads)
            params[t % len(params)].grad = None if t else params[0].grad  # others take turns
            optimizer.step()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@every
def test_state_is_joined_once_and_what_replaces_it_is_taken_up(cls: type, options: dict[str, Any]) -> None:
    params, others = (make([(2, 2), (3,), (4, 5), (1,)], ["plain"] * 4) for _ in range(2))
    optimizer, single = cls(params, **options), cls(others, foreach=False, **options)
    steps(optimizer, params, range(2))
    steps(single, others, range(2))
    name = cls.buffers[0]
    held = [optimizer.state[p][name] for p in params]
    assert len({x.untyped_storage().data_ptr() for x in held}) == 2  # the small ones' block and the large one
    steps(optimizer, params, range(2, 3))
    steps(single, others, range(2, 3))
    assert all(optimizer.state[p][name] is x for p, x in zip(params, held, strict=True))
    for one, both in ((optimizer, params), (single, others)):
        for p in (both[1], both[2]):
            one.state[p][name] = torch.ones_like(p)
        both[0].data = 2 * both[0].data
        both[2].data = both[2].data.t().contiguous().t()  # other strides
        steps(one, both, range(3, 6))
    for a, b in zip(params, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every
def test_state_that_lies_otherwise_than_its_parameter_continues_bit_by_bit(cls: type, options: dict[str, Any]) -> None:
    """A file may hold contiguous state for a transposed parameter: the joined columns have one order all the same."""
    shapes, layouts = [(2, 3), (2, 2), (4, 5)], ["reversed", "plain", "reversed"]
    params = make(shapes, layouts)
    optimizer = cls(params, weight_decay=0.1, **options)
    steps(optimizer, params, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state.update({key: value.contiguous() for key, value in state.items()})
    again = make(shapes, layouts)
    for a, b in zip(again, params, strict=True):
        a.data.copy_(b)
    other = cls(again, weight_decay=0.1, **options)
    other.load_state_dict(saved)
    steps(optimizer, params, range(3, 6))
    steps(other, again, range(3, 6))
    for a, b in zip(params, again, strict=True):
        assert torch.equal(a, b)


def test_a_batch_is_covered_once_in_blocks_and_pieces() -> None:
    sizes = [3, 8, 25, 9, 15, 16, 8, 8, 8]
    params = [torch.arange(float(n)) for n in sizes]
    states = [{"step": torch.zeros(()), "m": p.clone()} for p in params]
    rounds = list(FlatSteps(params, states, Sizes(8, 20, 10, 2))([p.clone() for p in params]))
    lengths = [[x.numel() for x in each.params] for each in rounds]
    # blocks of 3 + 8 + 8 and 8 + 8; those up to one and a half pieces as they are; the pieces of the others
    assert lengths == [[19], [16], [9, 15], [10, 10, 5, 10, 6]]
    for each in rounds[2:]:
        for param, grad, state in zip(*each, strict=True):
            assert torch.equal(param, grad)
            assert torch.equal(param, state["m"])


def test_strides_of_dimensions_of_one_do_not_count() -> None:
    """Gradients of 1x1 convolutions have other strides there than their weights; no copy is needed."""
    param = torch.zeros(4, 5, 1, 1)
    grad = torch.arange(20.0).as_strided((4, 5, 1, 1), (5, 1, 7, 3))
    (each,) = FlatSteps([param], [{"step": torch.zeros(())}], Sizes(8, 20, None, 1))([grad])
    assert each.grads[0].data_ptr() == grad.data_ptr()
    assert torch.equal(each.grads[0], torch.arange(20.0))


def test_sizes_grow_with_threads_and_shrink_with_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert flat.eager_sizes(4).piece == 4 * 65536
    assert flat.eager_sizes(1).piece == 2 * flat.eager_sizes(4).piece
    assert flat.compiled_sizes(torch.device("cuda")).joined > flat.compiled_sizes(torch.device("cpu")).joined


def test_copies_of_an_optimizer_do_not_share_state() -> None:
    params = make([(2, 2), (3,)], ["plain"] * 2)
    optimizer = Lion(params)
    steps(optimizer, params, range(2))
    twin = copy.deepcopy(optimizer)
    before = [state["exp_avg"].clone() for state in optimizer.state.values()]
    others: list[Tensor] = twin.param_groups[0]["params"]
    steps(twin, others, range(3))
    for state, kept in zip(optimizer.state.values(), before, strict=True):
        assert torch.equal(state["exp_avg"], kept)
    assert all(state["step"] == 5 for state in twin.state.values())
    assert all(state["step"] == 2 for state in optimizer.state.values())
