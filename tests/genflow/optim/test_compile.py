"""``torch.compile``: our ``compile=True`` and a caller's own, against the eager step."""

import math
import shutil
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch._dynamo.utils import counters

from genflow.optim import SGDP, AdaBelief, AdaGradNorm, AdamP, Adan, DiffGrad, Lion, LionK, StableSPAM

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler"),
]
CASES: list[tuple[type, dict[str, Any]]] = [
    (AdaBelief, {}),
    (Adan, {"max_grad_norm": 0.5}),
    (AdamP, {}),
    (SGDP, {"momentum": 0.9}),
    (DiffGrad, {}),
    (Lion, {}),
    (LionK, {"kappa": {"name": "l2", "dim": -1}}),
    (StableSPAM, {"gap": 3}),
    (AdaGradNorm, {}),
]


def run(
    cls: type, options: dict[str, Any], own: bool = False, schedule: bool = True, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    params = [nn.Parameter(torch.linspace(-1, 1, n).view(shape).to(dtype)) for n, shape in ((12, (4, 3)), (3, (3,)))]
    optimizer = cls(params, lr=0.01, weight_decay=0.1, **options)
    step = torch.compile(optimizer.step) if own else optimizer.step
    for t in range(8):
        if schedule:
            optimizer.param_groups[0]["lr"] = 0.01 * (t + 1)
        for p in params:
            p.grad = torch.sin(torch.arange(p.numel()) + t).view(p.shape).to(p.dtype)
        step()
    return [p.detach() for p in params]


@pytest.mark.parametrize(
    ("cls", "options", "dtype"),
    [*((*case, torch.float32) for case in CASES), (Lion, {}, torch.bfloat16)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_compiled_is_eager_with_one_graph(cls: type, options: dict[str, Any], dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    counters.clear()
    compiled = run(cls, {"compile": True, **options}, dtype=dtype)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    for a, b in zip(compiled, run(cls, options, dtype=dtype), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-6)


def test_a_callers_own_compilation_of_the_step_makes_one_graph_and_one_for_the_first_step() -> None:
    torch._dynamo.reset()
    counters.clear()
    compiled = run(AdaBelief, {}, own=True, schedule=False)
    assert counters["stats"]["unique_graphs"] == 2
    for a, b in zip(compiled, run(AdaBelief, {}, schedule=False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_joined_state_is_saved_loaded_and_stepped_on_as_any_other() -> None:
    """Small tensors share a buffer, large ones go in packs; some gradients pause; the run goes on from a checkpoint."""
    torch._dynamo.reset()
    counters.clear()
    shapes = [(3, 2), (5,), (200, 100), (2, 2), *[(130, 130)] * 9]

    def make(options: dict[str, Any]) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        params = [nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).view(shape)) for shape in shapes]
        params[3].data = params[3].data.t()
        return params, AdaBelief(params, lr=0.01, weight_decay=0.1, **options)

    def steps(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, times: range) -> None:
        for t in times:
            for index, p in enumerate(params):
                p.grad = None if index == t % 3 else torch.sin(torch.arange(p.numel()) + t).view(p.shape)
            optimizer.step()

    eager, compiled = make({}), make({"compile": True})
    steps(*eager, range(7))
    steps(*compiled, range(7))
    state = compiled[1].state_dict()
    # state lies as its parameter does, and one of these is transposed
    tensors = {
        f"{index}.{key}": v.contiguous() for index, entries in state["state"].items() for key, v in entries.items()
    }
    kept = safetensors.torch.load(safetensors.torch.save(tensors))
    for index, entries in state["state"].items():
        state["state"][index] = {key: kept[f"{index}.{key}"] for key in entries}
    again = make({"compile": True})
    for p, q in zip(again[0], compiled[0], strict=True):
        p.data.copy_(q)
    again[1].load_state_dict(state)
    for run in (eager, compiled, again):
        steps(*run, range(7, 10))
    for a, b, c in zip(eager[0], compiled[0], again[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert torch.equal(b, c)
    # two optimizers, each with joined, packed and single tensors, of one size and then of any
    assert counters["stats"]["unique_graphs"] <= 16
