"""FRUGAL against a twin from Algorithm 1, published numbers, its limits, and what it does with state."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genflow.errors import InputError
from genflow.optim import FRUGAL, SGDP, AdaBelief, AdaGradNorm, AdamP, Adan, DiffGrad, Lion, LionK, StableSPAM
from genflow.optim.subspaces import SUBSPACES, count

GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "optimizers.json").read_text())
X = torch.sin(0.7 * torch.arange(192, dtype=torch.float64)).view(32, 6)
Y = (X @ torch.cos(torch.arange(24, dtype=torch.float64)).view(4, 6).T).argmax(1)
STEPS = 50
SHAPES = [(15, (5, 3)), (36, (3, 3, 2, 2))]


def start(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    weight = 0.3 * torch.sin(1.3 * torch.arange(24, dtype=torch.float64)).view(4, 6)
    kernel = torch.cos(torch.arange(18, dtype=torch.float64)).view(3, 3, 2)
    params = [weight, torch.zeros(4, dtype=torch.float64), kernel]
    return [p.to(dtype).requires_grad_() for p in params]


def loss_of(params: list[Tensor], t: int) -> Tensor:
    rows = slice(8 * (t % 4), 8 * (t % 4) + 8)
    weight, bias, kernel = params
    target = torch.sin(t + torch.arange(18, dtype=torch.float64)).to(kernel.dtype).view_as(kernel)
    return F.cross_entropy(X[rows].to(weight.dtype) @ weight.T + bias, Y[rows]) + (kernel - target).square().mean()


def train(optimizer: torch.optim.Optimizer, params: list[Tensor], times: range) -> None:
    for t in times:
        optimizer.zero_grad()
        loss_of(params, t).backward()
        optimizer.step()


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# the rule


@pytest.mark.parametrize("state_free", ["sign", "sgd", "none"])
@pytest.mark.parametrize("select", list(SUBSPACES))
def test_rule_follows_algorithm_1(select: str, state_free: str) -> None:
    """Adam on the coordinates in the subspace, written with explicit projections; scales and decay are in."""
    lr, full, free, wd, gap, (b1, b2), eps = 1e-2, 0.7, 0.3, 0.1, 7, (0.9, 0.99), 1e-8
    params = start()
    optimizer = FRUGAL(
        params,
        lr,
        wd,
        base_options={"betas": (b1, b2)},
        density=0.4,
        update_gap=gap,
        select=select,
        state_free=state_free,
        full_lr_scale=full,
        free_lr_scale=free,
        reset="always",  # with few rows, the same may be drawn twice
    )
    rho = {"sign": torch.sign, "sgd": lambda r: r, "none": torch.zeros_like}[state_free]
    own = [p.detach().clone() for p in params]
    states: list[dict[str, Any]] = [{} for _ in own]
    for t in range(STEPS):
        leaves = [p.clone().requires_grad_() for p in own]
        grads = torch.autograd.grad(loss_of(leaves, t), leaves)
        train(optimizer, params, range(t, t + 1))
        for i, (p, g) in enumerate(zip(own, grads, strict=True)):
            matrix, g_matrix, scale = p.reshape(p.shape[0], -1), g.reshape(p.shape[0], -1), full
            chosen = optimizer.state[params[i]].get("chosen")
            if p.ndim == 1:
                left, right, mask, scale = torch.eye(4, dtype=p.dtype), torch.eye(1, dtype=p.dtype), None, 1
            elif chosen.is_floating_point():  # a projection from the left or the right
                wide = matrix.shape[0] < matrix.shape[1]
                left = chosen.T if wide else torch.eye(matrix.shape[0], dtype=p.dtype)
                right = chosen if not wide else torch.eye(matrix.shape[1], dtype=p.dtype)
                mask = None
            else:
                mask = torch.zeros_like(matrix)
                if select == "columns":
                    mask[:, chosen] = 1
                elif select == "rows":
                    mask[chosen] = 1
                else:
                    mask.view(-1)[chosen.long()] = 1
                left, right = (torch.eye(n, dtype=p.dtype) for n in matrix.shape)

            def down(x: Tensor, mask: Tensor | None = mask, left: Tensor = left, right: Tensor = right) -> Tensor:
                return x * mask if mask is not None else left @ x @ right

            def up(x: Tensor, mask: Tensor | None = mask, left: Tensor = left, right: Tensor = right) -> Tensor:
                return x * mask if mask is not None else left.T @ x @ right.T

            g_full = down(g_matrix)
            if t % gap == 0 and p.ndim > 1:
                states[i] = {}
            s = states[i]
            s["t"] = s.get("t", 0) + 1
            s["m"] = b1 * s.get("m", 0) + (1 - b1) * g_full
            s["v"] = b2 * s.get("v", 0) + (1 - b2) * g_full**2
            update = s["m"] / (1 - b1 ** s["t"]) / ((s["v"] / (1 - b2 ** s["t"])).sqrt() + eps)
            residual = g_matrix - up(g_full)
            if p.ndim == 1 or residual.abs().max() < 1e-13:
                residual = torch.zeros_like(residual)
            new = (1 - lr * wd) * matrix - lr * scale * up(update) - lr * free * rho(residual)
            own[i] = new.view(p.shape)
    for p, q in zip(params, own, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-10, atol=1e-10)


def golden_run(**options: Any) -> dict[str, float]:
    weight, bias, _ = start()
    optimizer = FRUGAL([weight, bias], lr=1e-2, update_gap=10, **options)
    for t in range(STEPS):
        optimizer.zero_grad()
        rows = slice(8 * (t % 4), 8 * (t % 4) + 8)
        F.cross_entropy(X[rows] @ weight.T + bias, Y[rows]).backward()
        optimizer.step()
    loss = F.cross_entropy(X @ weight.T + bias, Y)
    return {"loss": loss.item(), "Wn": weight.norm().item(), "W00": weight[0, 0].item(), "b0": bias[0].item()}


def test_published_numbers_that_depend_on_no_draw() -> None:
    """The authors' code: with state reset at every choice, without state, and on the gradient's singular vectors.

    Singular vectors with the sign in the rest (their loss: .3993) are left out: gradients of this problem have rank 2,
    so their rest is rounding, of which they take the sign.
    """
    for key, value in golden_run(density=1.0, reset="always").items():
        assert value == pytest.approx(GOLDEN["frugal adamw 1"][key], abs=1e-10)
    no_state = golden_run(density=0.0)
    assert no_state["loss"] == pytest.approx(0.34672829709496167, abs=1e-10)
    assert no_state["W00"] == pytest.approx(-0.4987769576991176, abs=1e-10)
    svd = golden_run(density=0.5, select="svd", state_free="none")
    assert svd["loss"] == pytest.approx(0.4329260939128632, abs=2e-8)  # theirs are computed in float32
    assert svd["W00"] == pytest.approx(-0.4266839596018072, abs=1e-7)


# limits

BASES: list[tuple[type, dict[str, Any]]] = [
    (torch.optim.AdamW, {}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.RMSprop, {}),
    (AdaBelief, {}),
    (AdaGradNorm, {}),
    (AdamP, {"nesterov": True}),
    (Adan, {}),
    (DiffGrad, {}),
    (Lion, {}),
    (LionK, {"kappa": "l2"}),
    (SGDP, {"momentum": 0.9}),
    (StableSPAM, {"gap": 10}),
]


@pytest.mark.parametrize(("base", "options"), BASES, ids=[cls.__name__ for cls, _ in BASES])
@pytest.mark.parametrize("select", ["columns", "svd", "blocks"])
def test_density_1_is_the_state_full_optimizer(base: type, options: dict[str, Any], select: str) -> None:
    ours, theirs = start(torch.float32), start(torch.float32)
    split = FRUGAL(
        ours, 0.02, 0.01, base=base, base_options=options, density=1.0, select=select, update_gap=5, full_lr_scale=0.5
    )
    train(split, ours, range(23))
    if base in (torch.optim.AdamW, torch.optim.SGD):
        options = options | {"fused": True}
    train(base(theirs, lr=0.02, weight_decay=0.01, **options), theirs, range(23))
    assert equal(ours, theirs)


@pytest.mark.parametrize("select", [*SUBSPACES, "blocks"])
def test_density_0_is_the_sign_alone_and_keeps_no_state(select: str) -> None:
    params, lr, wd = start(), 0.01, 0.1
    optimizer = FRUGAL(params, lr, wd, density=0.0, select=select)
    expected = [p.detach().clone() for p in params]
    for t in range(10):
        train(optimizer, params, range(t, t + 1))
        for i in (0, 2):
            expected[i] = (1 - lr * wd) * expected[i] - lr * params[i].grad.sign()
            torch.testing.assert_close(params[i].detach(), expected[i])
    assert set(optimizer.state[params[0]]) == {"step"}
    assert "base_exp_avg" in optimizer.state[params[1]]  # the vector has its moments all the same


def test_vectors_and_groups_of_density_1_are_the_base_optimizers() -> None:
    params, alone = start(), start()
    train(FRUGAL([{"params": params[:2]}, {"params": params[2:], "density": 1.0}]), params, range(9))
    train(torch.optim.AdamW(alone, lr=1e-3, fused=True), alone, range(9))
    assert torch.equal(params[2], alone[2])
    bias, weight = params[1].clone(), params[0]
    assert not torch.equal(weight, alone[0])
    assert bias.shape == (4,)


# subspaces


@given(
    select=st.sampled_from(sorted(SUBSPACES)),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    density=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_a_subspace_and_the_rest_make_up_the_matrix(select: str, shape: Any, density: float, seed: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    subspace = SUBSPACES[select]
    chosen = subspace.choose(x, density, torch.Generator().manual_seed(seed))
    part = subspace.take(x, chosen)
    rest = x - subspace.lift(x, chosen, part)
    assert part.square().sum() + rest.square().sum() == pytest.approx(x.square().sum().item())
    torch.testing.assert_close(subspace.take(rest, chosen), torch.zeros_like(part))
    sides = {"columns": shape[1], "rows": shape[0], "entries": x.numel()}
    assert chosen.shape[-1] == count(sides.get(select, min(shape)), density) >= 1


def test_the_svd_choice_keeps_most_of_the_gradient() -> None:
    grad = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    svd, drawn = (
        SUBSPACES[name].take(grad, SUBSPACES[name].choose(grad, 0.4, torch.Generator().manual_seed(1))).norm()
        for name in ("svd", "random")
    )
    singular = torch.linalg.svdvals(grad)
    torch.testing.assert_close(svd, singular[:2].norm())
    assert drawn < svd


def test_a_residual_of_rounding_is_no_direction() -> None:
    """A gradient of rank 1 lies in its singular basis; of what rounding leaves, the sign would be a full step."""
    weight = nn.Parameter(torch.zeros(6, 9))
    weight.grad = torch.outer(torch.arange(1.0, 7), torch.arange(2.0, 11).cos())
    FRUGAL([weight], select="svd", density=0.4, base="sgd", weight_decay=0.0, lr=0.1).step()
    torch.testing.assert_close(weight.detach(), -0.1 * weight.grad)


def test_choices_change_every_gap_and_depend_on_the_seed_alone() -> None:
    def choices(seed: int) -> list[list[int]]:
        params = start()
        optimizer = FRUGAL(params, density=0.5, update_gap=3, seed=seed)
        seen = []
        for t in range(12):
            torch.manual_seed(t + seed)
            train(optimizer, params, range(t, t + 1))
            seen.append(optimizer.state[params[0]]["chosen"].tolist())
        return seen

    first = choices(0)
    assert all(first[t] == first[t - t % 3] for t in range(12))
    assert len({tuple(c) for c in first}) > 2
    assert first == choices(0)
    assert first != choices(1)


@pytest.mark.parametrize("order", ["random", "ascending", "descending", "mirror"])
def test_blocks_take_turns(order: str) -> None:
    params = [nn.Parameter(torch.ones(2, 2)) for _ in range(4)]
    optimizer = FRUGAL(params, density=0.25, update_gap=2, select="blocks", block_order=order, base="lion")
    turns = []
    for _ in range(16):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        (active,) = [i for i, p in enumerate(params) if "base_exp_avg" in optimizer.state[p]]
        turns.append(active)
    assert turns[::2] == turns[1::2]
    passes = [turns[:8:2], turns[8::2]]
    assert [sorted(p) for p in passes] == [[0, 1, 2, 3]] * 2
    up = [0, 1, 2, 3]
    expected = {"ascending": [up, up], "descending": [up[::-1]] * 2, "mirror": [up, up[::-1]]}
    assert passes == expected.get(order, passes)


def test_reset() -> None:
    counts = {}
    for reset in ("changed", "always", "never"):
        params = start()
        optimizer = FRUGAL(params, density=0.5, update_gap=4, reset=reset)
        train(optimizer, params, range(10))
        counts[reset] = [int(optimizer.state[p]["base_step"]) for p in params]
    assert counts == {"changed": [2, 10, 2], "always": [2, 10, 2], "never": [10, 10, 10]}


def test_options_may_change_midway() -> None:
    params = start()
    optimizer = FRUGAL(params, density=0.5, update_gap=4)
    train(optimizer, params, range(6))
    group = optimizer.param_groups[0]
    for change in ({"select": "svd"}, {"density": 0.9}, {"density": 1.0}, {"select": "blocks", "density": 0.5}):
        group.update(change)
        group["updates"] = 0
        train(optimizer, params, range(6))
    assert all(torch.isfinite(p).all() for p in params)


# state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("base", ["adamw", "stable-spam", "adagrad-norm"])
@pytest.mark.parametrize("select", ["columns", "entries", "svd", "blocks"])
def test_a_saved_run_goes_on_bit_by_bit(select: str, base: str, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"select": select, "base": base, "density": 0.5, "update_gap": 4, "reset": "never"}
    params = start(dtype)
    optimizer = FRUGAL(params, lr=0.01, **options)
    train(optimizer, params, range(6))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    copies = [p.detach().clone().requires_grad_() for p in params]
    resumed = FRUGAL(copies, lr=0.5, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    twins = [p.detach().clone().requires_grad_() for p in params]
    copied = copy.deepcopy(optimizer)
    copied.param_groups[0]["params"] = twins
    copied.state.update({q: copied.state.pop(p) for p, q in zip(list(copied.state), twins, strict=True)})
    for which, tensors in ((optimizer, params), (resumed, copies), (copied, twins)):
        train(which, tensors, range(6, 15))
    assert equal(params, copies)
    assert equal(params, twins)
    for p, q in zip(params, copies, strict=True):
        a, b = optimizer.state[p], resumed.state[q]
        assert a.keys() == b.keys()
        assert all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_16_bit_weights_have_float32_moments_and_are_rounded_once() -> None:
    low, wide = start(torch.bfloat16), [p.detach().bfloat16().float().requires_grad_() for p in start()]
    options: dict[str, Any] = {"density": 0.5, "lr": 0.1}
    optimizers = FRUGAL(low, **options), FRUGAL(wide, **options)
    for p, q in zip(low, wide, strict=True):
        q.grad = torch.cos(torch.arange(q.numel())).view_as(q).bfloat16().float()
        p.grad = q.grad.bfloat16()
    for optimizer in optimizers:
        optimizer.step()
    assert equal(low, [q.bfloat16() for q in wide])
    assert optimizers[0].state[low[0]]["base_exp_avg"].dtype == torch.float32


# the rest


def test_gradients_stay_and_maximize_is_the_negated_loss() -> None:
    for select in (*SUBSPACES, "blocks"):
        up, down = start(), start()
        a, b = FRUGAL(up, select=select, maximize=True, update_gap=2), FRUGAL(down, select=select, update_gap=2)
        for t in range(5):
            for p, q in zip(up, down, strict=True):
                q.grad = torch.sin(torch.arange(q.numel(), dtype=q.dtype) + t).view_as(q)
                p.grad = -q.grad
            kept = [p.grad.clone() for p in up]
            a.step()
            b.step()
            assert equal(kept, [p.grad for p in up])
        assert equal(up, down)


def test_a_parameter_without_gradient_waits() -> None:
    params = start()
    optimizer = FRUGAL(params, update_gap=2)
    before = params[0].detach().clone()
    for t in range(3):
        loss_of([params[0].detach(), *params[1:]], t).backward()
        optimizer.step()
    assert torch.equal(params[0], before)
    assert params[0] not in optimizer.state
    train(optimizer, params, range(3, 5))
    assert not torch.equal(params[0], before)


def test_late_groups_schedulers_strides_and_hooks() -> None:
    params = start()
    columns_last = nn.Parameter(torch.randn(4, 3, 2, 2).double().contiguous(memory_format=torch.channels_last))
    optimizer = FRUGAL(params[:2], lr=0.1, density=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(optimizer, params, range(2))
    optimizer.add_param_group({"params": [columns_last, nn.Parameter(torch.zeros(3, 2).T.double())], "lr": 0.2})
    before = columns_last.detach().clone()
    for p in optimizer.param_groups[1]["params"]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    torch.testing.assert_close(columns_last.detach(), before * (1 - 0.2 * 0.01) - 0.2)  # Adam's first step, and a sign


@pytest.mark.parametrize("select", [*SUBSPACES, "blocks"])
def test_strides_do_not_matter(select: str) -> None:
    plain = [nn.Parameter(torch.cos(torch.arange(n, dtype=torch.float64)).view(*s)) for n, s in SHAPES]
    strided = [
        nn.Parameter(plain[0].detach().T.contiguous().T),
        nn.Parameter(plain[1].detach().contiguous(memory_format=torch.channels_last)),
    ]
    optimizers = [FRUGAL(p, lr=0.1, density=0.5, update_gap=2, select=select) for p in (plain, strided)]
    for t in range(5):
        for p, q in zip(plain, strided, strict=True):
            p.grad = torch.sin(torch.arange(p.numel(), dtype=p.dtype) + t).view_as(p)
            q.grad = p.grad.clone()  # contiguous under strided weights
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(plain, strided, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.slow
def test_compiled_steps_of_the_base_optimizer_are_the_same() -> None:
    params, plain = start(torch.float32), start(torch.float32)
    options: dict[str, Any] = {"base": "lion", "density": 0.5, "update_gap": 3}
    train(FRUGAL(params, compile=True, **options), params, range(8))
    train(FRUGAL(plain, **options), plain, range(8))
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q)


def test_a_gradient_scaler_skips_and_unscales() -> None:
    params, plain = start(torch.float32), start(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaled, alone = FRUGAL(params, density=0.5), FRUGAL(plain, density=0.5)
    for t in range(4):
        scaled.zero_grad()
        scaler.scale(loss_of(params, t)).backward()
        if t == 2:
            params[0].grad[0, 0] = float("inf")
        else:
            train(alone, plain, range(t, t + 1))
        scaler.step(scaled)
        scaler.update(256.0)
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q)
    assert scaled.param_groups[0]["updates"] == 3


def test_autograd_sees_that_weights_changed() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    loss = weight.square().sum()
    weight.grad = torch.ones(2, 2)
    FRUGAL([weight], density=1.0).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 1.5}, "density: got 1.5"),
        ({"update_gap": 0}, "update_gap: got 0; allowed: an integer"),
        ({"select": "column"}, "select: 'column' is not known .did you mean 'columns'"),
        ({"block_order": "up"}, "block_order"),
        ({"state_free": "adam"}, "state_free: 'adam'"),
        ({"full_lr_scale": 0}, "full_lr_scale: got 0"),
        ({"free_lr_scale": -1}, "free_lr_scale: got -1"),
        ({"reset": True}, "reset: True"),
        ({"seed": 0.5}, "seed"),
        ({"lr": -1.0}, "lr"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"capturable": True}, "capturable"),
        ({"differentiable": True}, "differentiable"),
        ({"compile": True}, "compile: AdamW of torch.optim has no compiled step"),
    ],
)
def test_bad_values_are_named_in_the_constructor_and_in_added_groups(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FRUGAL(start(), **options)
    optimizer = FRUGAL(start())
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": start(), **options})
    assert len(optimizer.param_groups) == 1


def test_bad_base_optimizers_and_parameters_are_named() -> None:
    with pytest.raises(InputError, match="'lyon' is not known .did you mean 'lion'"):
        FRUGAL(start(), base="lyon")
    with pytest.raises(InputError, match="base: got "):
        FRUGAL(start(), base=FRUGAL)
    with pytest.raises(InputError, match="base_options: AdamW.*momentum"):
        FRUGAL(start(), base_options={"momentum": 0.9})
    with pytest.raises(InputError, match="base_options: 'maximize' is FRUGAL's own"):
        FRUGAL(start(), base_options={"maximize": True})
    with pytest.raises(InputError, match=r"betas\[0\]: got 2"):
        FRUGAL(start(), base="lion", base_options={"betas": (2, 0.9)})
    with pytest.raises(InputError, match="parameter 'w' is complex"):
        FRUGAL([("w", torch.zeros(2, 2, dtype=torch.complex64, requires_grad=True))])
    saved = FRUGAL(start(), base="lion").state_dict()
    with pytest.raises(InputError, match="base: the state is one of Lion, this FRUGAL's is AdamW"):
        FRUGAL(start()).load_state_dict(saved)
