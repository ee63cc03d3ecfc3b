"""MKOR against a twin with dense inverses, what its hooks see, and what it refuses."""

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genflow.errors import InputError
from genflow.optim import MKOR, MKORH, create_optimizer
from genflow.optim.kronecker import precondition, stabilize_, update_inverse_
from genflow.optim.layer_statistics import LayerStatistics, mean_input

X = torch.sin(0.7 * torch.arange(192, dtype=torch.float64)).view(32, 6)
Y = (X @ torch.cos(torch.arange(24, dtype=torch.float64)).view(4, 6).T).argmax(1)
STEPS = 50


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 4, bias=False)).to(dtype)


def batch(t: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rows = slice(8 * (t % 4), 8 * (t % 4) + 8)
    return X[rows].to(dtype), Y[rows]


def train(optimizer: torch.optim.Optimizer, model: nn.Module, times: range, observe: bool = False) -> list[float]:
    losses = []
    for t in times:
        x, y = batch(t, next(model.parameters()).dtype)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).double(), y)
        loss.backward()
        if observe:
            optimizer.observe(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


def update_inverse(inverse: Tensor, *args: Any) -> Tensor:
    update_inverse_(result := inverse.clone(), *args)
    return result


def stabilize(inverse: Tensor, *args: float) -> Tensor:
    stabilize_(result := inverse.clone(), *args)
    return result


def spd(size: int, seed: int) -> Tensor:
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


# the inverses


@given(size=st.integers(1, 12), decay=st.floats(0.05, 0.99), scale=st.floats(0.01, 100), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_the_exact_form_is_the_inverse_and_both_stay_positive_definite(
    size: int, decay: float, scale: float, seed: int
) -> None:
    factor = spd(size, seed)
    v = scale * torch.randn(size, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    exact = update_inverse(torch.linalg.inv(factor), v, decay)
    dense = torch.linalg.inv(decay * factor + (1 - decay) * torch.outer(v, v))
    torch.testing.assert_close(exact, dense, rtol=1e-8, atol=1e-10 * dense.abs().max().item())
    for form in ("exact", "paper"):
        inverse = update_inverse(torch.linalg.inv(factor), v, decay, form)
        torch.testing.assert_close(inverse, inverse.T)
        assert torch.linalg.eigvalsh(inverse).min() > 0


def test_the_papers_form_by_its_equation_and_it_is_not_the_inverse() -> None:
    inverse, decay, v = spd(6, 0), 0.9, torch.arange(1.0, 7, dtype=torch.float64) / 6
    u = inverse @ v
    expected = decay * inverse + (1 - decay) / (decay**2 * (1 + decay * (1 - decay) * v @ u)) * torch.outer(u, u)
    paper = update_inverse(inverse, v, decay, "paper")
    torch.testing.assert_close(paper, expected)
    dense = torch.linalg.inv(decay * torch.linalg.inv(inverse) + (1 - decay) * torch.outer(v, v))
    assert (paper - dense).norm() > 0.05 * dense.norm()


def test_a_hundred_updates_stay_symmetric_and_bounded() -> None:
    inverse, generator = torch.eye(7), torch.Generator().manual_seed(0)
    for _ in range(300):
        inverse = stabilize(inverse, 2.0, 0.1)
        inverse = update_inverse(inverse, torch.randn(7, generator=generator), 0.95)
    assert torch.linalg.eigvalsh(inverse).min() > 0
    assert torch.equal(inverse, inverse.T)
    for _ in range(300):  # nothing comes in: without the stabilizer, 1 / 0.95 a step
        inverse = update_inverse(stabilize(inverse, 2.0, 0.1), torch.zeros(7), 0.95)
    assert inverse.abs().max() < 2.2


def test_the_stabilizer_acts_beyond_the_threshold_only() -> None:
    inverse = torch.tensor([[1.5, 0.2], [0.2, 1.0]])
    assert torch.equal(stabilize(inverse, 1.5, 0.25), inverse)
    torch.testing.assert_close(stabilize(inverse, 1.4, 0.25), 0.75 * inverse + 0.25 * torch.eye(2))


def test_a_vector_that_is_not_finite_changes_nothing() -> None:
    inverse = spd(3, 0)
    for bad in (math.nan, math.inf):
        assert torch.equal(update_inverse(inverse, torch.tensor([1.0, bad, 0.0], dtype=torch.float64), 0.9), inverse)


def test_preconditioning_keeps_the_norm_and_a_zero_gradient() -> None:
    grad = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = precondition(grad, spd(3, 1), spd(5, 2))
    assert result.norm() == pytest.approx(grad.norm().item())
    direction = spd(3, 1) @ grad @ spd(5, 2)
    torch.testing.assert_close(result / result.norm(), direction / direction.norm())
    assert torch.equal(precondition(torch.zeros(3, 5), torch.eye(3), torch.eye(5)), torch.zeros(3, 5))


# what the hooks see


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 3, 3, stride=2, padding=1),
        nn.Conv2d(2, 3, 3),
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2)),
        nn.Conv2d(2, 3, 3, padding="same"),
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect", stride=2),
        nn.Conv3d(2, 3, 2),
    ],
    ids=str,
)
def test_the_mean_patch_is_what_the_weight_meets(layer: nn.Module) -> None:
    """The mean over samples and positions of the output is weight times mean patch, plus bias."""
    x = torch.randn(4, 2, *[7] * len(layer.kernel_size), generator=torch.Generator().manual_seed(0))
    patch = mean_input(layer, x)
    wanted = layer(x).transpose(0, 1).flatten(1).mean(1)
    torch.testing.assert_close(layer.weight.flatten(1) @ patch + layer.bias, wanted)
    one = mean_input(layer, x[0])  # without a batch
    torch.testing.assert_close(layer.weight.flatten(1) @ one + layer.bias, layer(x[0]).flatten(1).mean(1))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(3, 2), (8, 3)), (nn.Linear(3, 2), (8, 5, 3)), (nn.Conv2d(3, 2, 3, padding=1), (8, 3, 4, 4))],
    ids=["linear", "tokens", "conv"],
)
def test_output_gradients_are_the_bias_gradient_per_position_and_parts_add_up(layer: nn.Module, shape: Any) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    whole, parts = LayerStatistics(lambda: True), LayerStatistics(lambda: True)
    whole.watch(layer)
    layer(x).square().mean().backward()
    a, b = whole.take()
    positions = math.prod(shape[1:]) // 3
    torch.testing.assert_close(b, layer.bias.grad / positions)
    whole.stop()
    parts.watch(layer)
    for part in x.split(4):
        (layer(part).square().mean() / 2).backward()
    in_parts = parts.take()
    torch.testing.assert_close(in_parts[0], a)
    torch.testing.assert_close(in_parts[1], b)
    assert parts.take() is None


def test_only_passes_with_gradients_count_and_in_place_operations_may_follow() -> None:
    layer, x = nn.Linear(3, 2), torch.ones(4, 3)
    statistics = LayerStatistics(lambda: True)
    statistics.watch(layer)
    with torch.no_grad():
        layer(x)
    layer(100 * x)  # no backward pass
    assert statistics.take() is None
    F.relu_(layer(x)).sum().backward()
    torch.testing.assert_close(statistics.take()[0], torch.ones(3))
    statistics.stop()
    layer(x).sum().backward()
    assert statistics.take() is None


def test_hooks_of_copied_networks_gather_nothing() -> None:
    model = network()
    optimizer = MKOR(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(X).sum().backward()
        assert all(layer.statistics.take() is None for layer in optimizer._layers)
    model(X).sum().backward()
    assert all(layer.statistics.take() is not None for layer in optimizer._layers)


def test_checkpointed_layers_count_once() -> None:
    from torch.utils.checkpoint import checkpoint

    layer, x = nn.Linear(3, 2), torch.randn(4, 3, requires_grad=True)
    statistics = LayerStatistics(lambda: True)
    statistics.watch(layer)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(statistics.take()[1], torch.full((2,), 4.0))


# the optimizer


@pytest.mark.parametrize(
    "options", [{}, {"inverse_gap": 3, "warmup": 4}, {"form": "paper", "threshold": 1.05}], ids=str
)
def test_rule_follows_algorithm_1(options: dict[str, Any]) -> None:
    """The twin inverts dense factors, and differentiates by itself; the base is SGD with momentum."""
    lr, decay, blend, gap = 0.05, 0.9, 0.2, options.get("inverse_gap", 1)
    warmup, threshold, form = options.get("warmup", 0), options.get("threshold", 2.0), options.get("form", "exact")
    model = network()
    settings = {"decay": decay, "stabilization": blend, "inverse_gap": gap} | options
    optimizer = MKOR(model, lr=lr, weight_decay=0.01, **settings)
    own = [p.detach().clone() for p in model.parameters()]  # w1, b1, scale, shift, w2
    inverses = [torch.eye(n, dtype=torch.float64) for n in (7, 5, 5, 4)]  # with the bias' 1: 6 + 1
    momenta: list[Tensor | None] = [None] * 5

    def blended(inverse: Tensor, v: Tensor) -> Tensor:
        if inverse.abs().max() > threshold:
            inverse = (1 - blend) * inverse + blend * torch.eye(len(inverse), dtype=torch.float64)
        if form == "exact":
            inverse = torch.linalg.inv(decay * torch.linalg.inv(inverse) + (1 - decay) * torch.outer(v, v))
            return (inverse + inverse.T) / 2
        u = inverse @ v
        return decay * inverse + (1 - decay) / (decay**2 * (1 + decay * (1 - decay) * v @ u)) * torch.outer(u, u)

    for t in range(STEPS):
        x, y = batch(t)
        leaves = [p.clone().requires_grad_() for p in own]
        first = x @ leaves[0].T + leaves[1]
        hidden = F.layer_norm(first.tanh(), (5,), leaves[2], leaves[3])
        last = hidden @ leaves[4].T
        grads = list(torch.autograd.grad(F.cross_entropy(last, y), [*leaves, first, last]))
        of_first, of_last = grads.pop(5), grads.pop(5)
        if t < warmup or t % gap == 0:
            vectors = [
                torch.cat([x.mean(0), torch.ones(1, dtype=torch.float64)]),
                (len(x) * of_first).mean(0),
                hidden.detach().mean(0),
                (len(x) * of_last).mean(0),
            ]
            inverses = [blended(i, v) for i, v in zip(inverses, vectors, strict=True)]
        joint = torch.cat([grads[0], grads[1][:, None]], 1)
        moved = inverses[1] @ joint @ inverses[0]
        moved = moved * joint.norm() / moved.norm()
        grads[0], grads[1] = moved[:, :-1], moved[:, -1]
        moved = inverses[3] @ grads[4] @ inverses[2]
        grads[4] = moved * grads[4].norm() / moved.norm()
        for i, (p, g) in enumerate(zip(own, grads, strict=True)):
            g = g + 0.01 * p
            momenta[i] = g if momenta[i] is None else 0.9 * momenta[i] + g
            own[i] = p - lr * momenta[i]
        train(optimizer, model, range(t, t + 1))
    for p, q in zip(model.parameters(), own, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cls", [MKOR, MKORH])
@pytest.mark.parametrize("base", ["sgd", "adamw", "lion"])
@pytest.mark.parametrize("options", [{}, {"half_precision": True}], ids=["float32", "float16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_saved_run_goes_on_bit_by_bit(cls: type, base: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return cls(model, lr=0.01, base=base, inverse_gap=3, **options)

    model, other = network(dtype), network(dtype)
    optimizer = make(model)
    train(optimizer, model, range(7), observe=True)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(model.state_dict())
    resumed = make(other)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for o, m in ((optimizer, model), (resumed, other)):
        train(o, m, range(7, 20), observe=True)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        a, b = optimizer.state[p], resumed.state[q]
        assert a.keys() == b.keys()
        assert all(a[k] is b[k] is None or (a[k].dtype == b[k].dtype and torch.equal(a[k], b[k])) for k in a)
    assert optimizer.state[model[0].weight]["input_inverse"].dtype == (torch.float16 if options else torch.float32)


def test_identity_inverses_are_the_base_optimizer() -> None:
    """decay close to 1 leaves the inverses at the identity."""
    model, alone = network(), network()
    train(MKOR(model, lr=0.1, decay=1 - 1e-12), model, range(10))
    train(torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9), alone, range(10))
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_gradients_stay_accumulation_is_the_whole_batch_and_unused_layers_get_plain_steps() -> None:
    whole, parts = network(), network()
    a, b = MKOR(whole, lr=0.1, inverse_gap=1), MKOR(parts, lr=0.1, inverse_gap=1)
    for t in range(4):
        x, y = batch(t)
        a.zero_grad(), b.zero_grad()
        F.cross_entropy(whole(x), y).backward()
        for half in (slice(4), slice(4, 8)):
            (F.cross_entropy(parts(x[half]), y[half]) / 2).backward()
        kept = whole[0].weight.grad.clone()
        a.step(), b.step()
        assert torch.equal(kept, whole[0].weight.grad)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    optimizer = MKOR(model, lr=1.0, base_options={})
    model["unused"].weight.grad = torch.ones(2, 2)
    before = model["unused"].weight.detach().clone()
    model["used"](torch.ones(3, 2)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model["unused"].weight.detach(), before - 1)


def test_maximize_and_loss_scale() -> None:
    up, down = network(), network()
    a, b = MKOR(up, lr=0.1, maximize=True, inverse_gap=1), MKOR(down, lr=0.1, inverse_gap=1, loss_scale=lambda: 1024.0)
    for t in range(5):
        x, y = batch(t)
        a.zero_grad(), b.zero_grad()
        (-F.cross_entropy(up(x), y)).backward()
        (1024 * F.cross_entropy(down(x), y)).backward()
        for p in down.parameters():
            p.grad /= 1024
        a.step(), b.step()
    for p, q in zip(up.parameters(), down.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_convolutions_tied_weights_and_groups_of_options() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.down, self.up = nn.Conv2d(2, 3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.up.weight = self.down.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.down(self.conv(x).mean((2, 3))).relu_())

    torch.manual_seed(0)
    model = Tied()
    optimizer = create_optimizer("mkor", model, lr=0.05, weight_decay=0.1, inverse_gap=1)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    x = torch.randn(16, 2, 6, 6)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - x.mean((1, 2, 3))[:, None]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert optimizer.state[model.conv.weight]["input_inverse"].shape == (19, 19)
    assert optimizer.state[model.down.weight]["input_inverse"].shape == (3, 3)  # two biases: neither takes part


# MKOR-H


def test_mkor_h_is_mkor_until_the_loss_stops_falling_then_its_base_for_good() -> None:
    model, other = network(), network()
    hybrid = MKORH(model, lr=0.05, inverse_gap=2, patience=3, loss_beta=0.5)
    plain = MKOR(other, lr=0.05, inverse_gap=2)
    train(hybrid, model, range(4), observe=True)
    train(plain, other, range(4))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not hybrid.first_order

    def closure() -> Tensor:
        hybrid.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        return torch.tensor(1.0)  # a plateau

    for _ in range(20):
        assert hybrid.step(closure) == 1.0
    assert hybrid.first_order
    assert "input_inverse" not in hybrid.state[model[0].weight]
    resumed = MKORH(model, lr=0.05)
    resumed.load_state_dict(hybrid.state_dict())
    assert resumed.first_order
    before, moved = [p.detach().clone() for p in model.parameters()], []
    closure()
    buffers = [hybrid.state[p]["base_momentum_buffer"].clone() for p in model.parameters()]
    hybrid.step()  # the loss need not be told any more
    moved = [b - 0.05 * (0.9 * m + p.grad) for b, m, p in zip(before, buffers, model.parameters(), strict=True)]
    for p, q in zip(model.parameters(), moved, strict=True):
        torch.testing.assert_close(p.detach(), q)


def test_mkor_h_stays_while_the_loss_falls_steadily() -> None:
    model = network()
    optimizer = MKORH(model, lr=0.0, inverse_gap=1)
    for t in range(60):
        train_loss = 10.0 - 0.1 * t
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.observe(train_loss)
        optimizer.step()
    assert not optimizer.first_order
    optimizer.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    with pytest.raises(RuntimeError, match="MKOR-H needs the loss: call observe"):
        optimizer.step()


# bad input


def test_layers_that_cannot_be_are_named() -> None:
    frozen = network()
    frozen[0].weight.requires_grad_(False)
    with pytest.raises(InputError, match="parameter '0.weight': it is frozen"):
        MKOR(frozen)
    MKOR(frozen, exclude=["0"])
    odd = nn.Sequential(nn.Embedding(3, 4), nn.Conv2d(4, 4, 1, groups=2), nn.Linear(2, 2))
    with pytest.raises(InputError, match="parameter '0.weight': MKOR has no factors for Embedding.*unsupported=base"):
        MKOR(odd)
    with pytest.raises(InputError, match="parameter '1.weight': MKOR has no factors for Conv2d with groups=2"):
        MKOR(odd, exclude=["0.*"])
    optimizer = MKOR(odd, unsupported="base")
    odd[2](odd[0](torch.tensor([0, 1]))[:, :2]).sum().backward()
    optimizer.step()
    with pytest.raises(InputError, match="parameter 'weight' is complex; MKOR takes whole, real tensors"):
        MKOR(nn.Linear(2, 2, dtype=torch.complex64))
    model = network()
    with pytest.raises(InputError, match="parameter '3.weight': it is not among the optimizer's parameters"):
        MKOR(model[0].parameters(), model)
    with pytest.raises(InputError, match="exclude: 'head' matches no parameter"):
        MKOR(model, exclude=["head"])
    with pytest.raises(InputError, match="exclude: got '0'; allowed: a sequence"):
        MKOR(model, exclude="0")
    with pytest.raises(InputError, match="model: got None"):
        MKOR(model.parameters())
    copied = torch.optim.Optimizer.__new__(MKOR)
    copied.__setstate__(MKOR(model).__getstate__())
    with pytest.raises(RuntimeError, match=r"MKOR watches no layer: call attach\(model\) first"):
        copied.step()
    copied.attach(model)
    train(copied, model, range(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "decay: got 1.0"),
        ({"inverse_gap": 0}, "inverse_gap: got 0"),
        ({"warmup": -1}, "warmup: got -1"),
        ({"threshold": 0.5}, "threshold: got 0.5"),
        ({"stabilization": 1.5}, "stabilization: got 1.5"),
        ({"stabilization": 0.05}, "stabilization: got 0.05; allowed: a finite number > 0.05"),
        ({"form": "released"}, "form: 'released'"),
        ({"clip": 0}, "clip: got 0"),
        ({"half_precision": 1}, "half_precision: got 1"),
        ({"unsupported": "skip"}, "unsupported: 'skip'"),
        ({"loss_scale": 0}, "loss_scale: got 0"),
        ({"base": "mkor"}, "base: got 'mkor'"),
        ({"capturable": True}, "capturable: True does not go with MKOR"),
        ({"lr": -1.0}, "lr: got -1"),
    ],
)
def test_bad_values_are_named(options: dict[str, Any], message: str) -> None:
    for cls in (MKOR, MKORH):
        with pytest.raises(InputError, match=message):
            cls(network(), **options)


@pytest.mark.parametrize("name", ["fallback_ratio", "loss_beta", "patience"])
def test_bad_values_of_mkor_h_are_named(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: got -1"):
        MKORH(network(), **{name: -1})
