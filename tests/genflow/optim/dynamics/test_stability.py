"""Thresholds against what optimizers do on quadratics, and the monitor's records; the edge is in tests/evaluate."""

import json
import math

import pytest
import torch

from genflow.errors import InputError, NonFiniteError
from genflow.optim import AdaBelief, AdamP, Adan, Lion
from genflow.optim.dynamics import (
    Hessian,
    LinearStep,
    StabilityMonitor,
    as_operator,
    batch_sharpness,
    linear_steps,
    stability_ratio,
    stability_threshold,
)

OLD = 1e12  # steps: bias corrections are 1
SLOW = 1 - 1e-9  # second moments stay what they are

CASES = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "sgd, decay": (torch.optim.SGD, {"lr": 0.1, "weight_decay": 2.0}),
    "heavy ball": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "heavy ball, dampening": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "dampening": 0.3}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 1.0}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "betas": (0.9, SLOW), "weight_decay": 3.0}),
    "adam, amsgrad": (torch.optim.Adam, {"lr": 1e-2, "betas": (0.5, SLOW), "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "betas": (0.9, SLOW), "weight_decay": 20.0}),
    "radam": (torch.optim.RAdam, {"lr": 1e-2, "betas": (0.8, SLOW)}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-2, "alpha": SLOW, "momentum": 0.7, "weight_decay": 1.0}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2, "weight_decay": 1.0}),
    "adamp": (AdamP, {"lr": 1e-2, "betas": (0.9, SLOW), "nesterov": True}),
    "adabelief": (AdaBelief, {"lr": 1e-2, "betas": (0.9, SLOW), "rectify": False}),
    "adan": (Adan, {"lr": 1e-2, "betas": (0.9, 0.8, SLOW), "weight_decay": 5.0}),
    "adan, no_prox": (Adan, {"lr": 1e-2, "betas": (0.98, 0.92, SLOW), "weight_decay": 5.0, "no_prox": True}),
}


def settled(cls, options):
    """An optimizer in two groups of other learning rates, long after its start, and its parameters."""
    params = [torch.full((3,), 1e-9, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    lr = options["lr"]
    optimizer = cls([{"params": params[:1]}, {"params": params[1:], "lr": lr / 3, "weight_decay": 0.0}], **options)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for index, param in enumerate(params):
        param.detach().fill_(1e-9)  # decay in the gradient has moved it
        state = optimizer.state[param]
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.shape == param.shape:
                value.zero_()
        for key in ("exp_avg_sq", "exp_avg_var", "square_avg", "sum", "max_exp_avg_sq"):
            if key in state:
                state[key].copy_(torch.tensor([1.0, 4.0, 9.0]) + index)
        if "step" in state and "sum" not in state:
            state["step"].fill_(OLD)
    return optimizer, params


def leaves(optimizer, params, matrix, steps=1200):
    """Whether the weights grow a thousandfold on a quadratic."""
    for _ in range(steps):
        flat = torch.cat([p.detach() for p in params])
        if flat.norm() > 1e-6:
            return True
        for param, grad in zip(params, (matrix @ flat).split(3), strict=True):
            param.grad = grad
        optimizer.step()
    return False


@pytest.mark.parametrize("case", CASES)
def test_an_optimizer_diverges_above_its_threshold_alone(case):
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = root @ root.T
    for wanted in (0.96, 1.04):
        optimizer, params = settled(*CASES[case])
        low, high = 1e-6, 1e6
        for _ in range(80):  # coupled decay makes the ratio no multiple of the curvature
            middle = math.sqrt(low * high)
            ratio = stability_ratio(as_operator(middle * matrix), optimizer, tolerance=0)
            low, high = (low, middle) if ratio > wanted else (middle, high)
        assert ratio == pytest.approx(wanted, rel=1e-9)
        assert leaves(optimizer, params, middle * matrix) == (wanted > 1)


@pytest.mark.parametrize("lr", [0.0199, 0.0201])
def test_gradient_descent_diverges_above_two_over_lambda(lr):
    curvature = torch.tensor([100.0, 10.0, 1.0, 0.0], dtype=torch.float64)
    x = torch.ones(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=lr)

    def loss():
        return (curvature * x.square()).sum() / 2

    monitor = StabilityMonitor(optimizer, tolerance=0)
    record = monitor.measure(loss)
    assert record.sharpness == pytest.approx(100)
    assert record.threshold == pytest.approx(2 / lr)
    assert record.ratio == pytest.approx(50 * lr)
    for _ in range(3000):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert (loss().item() > 50) == (lr > 2 / 100)
    assert (loss().item() > 50) == (record.ratio > 1)


def test_named_thresholds():
    weight = torch.ones(2, requires_grad=True)
    assert stability_threshold(torch.optim.SGD([weight], lr=0.1)) == pytest.approx(20)
    assert stability_threshold(torch.optim.SGD([weight], lr=0.1, momentum=0.9)) == pytest.approx(38)
    adam = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.0)
    assert stability_threshold(adam) is None
    weight.grad = torch.ones(2)
    adam.step()
    assert stability_threshold(adam) == pytest.approx(38_000)  # Cohen et al. 2022: 38 over lr
    lion = Lion([weight])
    lion.step()
    assert stability_threshold(lion) is None
    assert LinearStep(0.0).threshold == math.inf


def test_the_first_step_of_adam_is_its_scale():
    """D times the gradient is the step, bias corrections and all, where momentum holds one gradient."""
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for cls in (torch.optim.Adam, torch.optim.RAdam, AdamP):
        with torch.no_grad():
            weight.zero_()
        optimizer = cls([weight], lr=0.1)
        weight.grad = torch.tensor([1.0, -2.0, 1e-3], dtype=torch.float64)
        optimizer.step()
        ((_, step),) = linear_steps(optimizer)
        momentum = optimizer.state[weight]["exp_avg"]
        torch.testing.assert_close(weight.detach(), -0.1 * step.scale * momentum, rtol=1e-6, atol=1e-12)


def test_frozen_and_wrapped_parameters(problem):
    from accelerate import Accelerator

    network, loss, batch = problem
    network[0].weight.requires_grad_(False)
    plain = torch.optim.SGD(network.parameters(), lr=0.1)
    wrapped = Accelerator(cpu=True).prepare_optimizer(plain)
    first, second = (StabilityMonitor(optimizer).measure(loss, [batch]) for optimizer in (plain, wrapped))
    assert first.to_json() | {"seconds": 0} == second.to_json() | {"seconds": 0}
    assert first.ratio == pytest.approx(first.sharpness / 20, rel=1e-9)


def test_a_record_is_what_its_parts_say(problem, tmp_path):
    network, loss, (x, y) = problem
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    loss((x, y)).backward()
    optimizer.step()
    optimizer.zero_grad()
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    weights = [8, 24]
    before = [p.detach().clone() for p in network.parameters()]
    rng = torch.get_rng_state()
    monitor = StabilityMonitor(optimizer, steps=79, tolerance=1e-7, probes=3)
    record = monitor.measure(loss, batches, weights=weights, step=7)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))

    hessian = Hessian(loss, network.parameters(), batches, weights=weights)
    dense = hessian.dense()
    scale = torch.cat([step.scale.flatten() for _, step in linear_steps(optimizer)])
    values = torch.linalg.eigvalsh(dense)
    preconditioned = torch.linalg.eigvalsh(scale.sqrt()[:, None] * dense * scale.sqrt())[-1].item()
    assert record.sharpness == pytest.approx(values[-1].item(), rel=1e-6)
    assert record.preconditioned_sharpness == pytest.approx(preconditioned, rel=1e-6)
    assert record.threshold == pytest.approx(3800 * (2 - 1e-4) / 2, rel=1e-6)
    assert record.ratio == pytest.approx(preconditioned / record.threshold, rel=1e-6)
    assert record.loss == pytest.approx(loss((x, y)).item())
    assert abs(record.trace - values.sum().item()) < 5 * record.trace_error
    samples = []
    for index in range(2):
        part = hessian.batch(index)
        _, gradient = part.gradient()
        samples.append((gradient @ part.dense() @ gradient / gradient.square().sum()).item())
    assert record.batch_sharpness == pytest.approx(sum(samples) / 2)
    assert batch_sharpness(hessian).value == record.batch_sharpness
    assert 0 < record.products <= monitor.most_products + 2

    again = monitor.measure(loss, batches, weights=weights, step=7)
    assert again.to_json() | {"seconds": 0} == record.to_json() | {"seconds": 0}
    monitor.save(tmp_path / "deep" / "records.jsonl")
    lines = (tmp_path / "deep" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [7, 7]
    assert json.loads(lines[0])["spectrum"]["size"] == hessian.size


def test_divergence_and_bad_input():
    x = torch.tensor([float("inf")], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    with pytest.raises(NonFiniteError, match="loss"):
        StabilityMonitor(optimizer).measure(lambda: x.square().sum())
    with pytest.raises(InputError, match="steps: got 0"):
        StabilityMonitor(optimizer, steps=0)
    with pytest.raises(InputError, match="probes: got -1"):
        StabilityMonitor(optimizer, probes=-1)
