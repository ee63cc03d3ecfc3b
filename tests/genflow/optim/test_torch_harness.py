# ruff: noqa: PT009, PT027 - torch's TestCase compares nested structures of tensors, which assert does not
"""torch's own machinery for optimizer tests (``torch.testing._internal.common_optimizers``) over our optimizers.

What torch's suite checks and cannot apply here:

* ``fused`` kernels: we have none; ``compile=True`` takes their place (test_compile.py).
* sparse gradients: refused by name (test_base.py).
* tests that need CUDA (``capturable`` under graphs, several devices, peak memory): the meta device in test_base.py
  proves that nothing is read back.
* error messages of torch's own hyperparameter checks: ours are InputErrors that name the argument (test_base.py).
"""

import io
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from genflow.optim import FRUGAL, SGDP, AdaBelief, AdaGradNorm, AdamP, Adan, DiffGrad, Lion, LionK, StableSPAM

pytest.importorskip("expecttest", reason="torch's test machinery needs it")
try:  # private to torch: it may move
    from torch.testing._internal.common_device_type import instantiate_device_type_tests
    from torch.testing._internal.common_optimizers import (
        OptimizerErrorEnum,
        OptimizerInfo,
        OptimizerInput,
        get_error_inputs_for_all_optims,
        optims,
    )
    from torch.testing._internal.common_utils import TestCase
except ImportError as error:
    pytest.skip(f"torch's optimizer test machinery moved: {error}", allow_module_level=True)

COMMON: list[dict[str, Any]] = [{}, {"lr": 0.01}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "maximize": True}]
OWN: dict[type, list[dict[str, Any]]] = {
    AdaBelief: [{"rectify": False}, {"weight_decouple": False, "weight_decay": 0.1}],
    Adan: [{"no_prox": True, "weight_decay": 0.1}, {"max_grad_norm": 0.5}],
    AdamP: [{"nesterov": True}, {"delta": 10.0}],
    SGDP: [{"momentum": 0.9, "nesterov": True}],
    DiffGrad: [{"weight_decouple": True, "weight_decay": 0.1}],
    Lion: [{"betas": (0.5, 0.9)}],
    LionK: [{"kappa": "l2"}, {"kappa": {"name": "huber", "e": 0.1}}],
    StableSPAM: [{"gap": 2}, {"clip": False}, {"normalize": False}],
    AdaGradNorm: [{"scope": "tensor"}],
    FRUGAL: [{"density": 0.5, "update_gap": 2}, {"select": "svd"}, {"select": "blocks", "base": "lion"}],
}


def inputs_of(cls: type) -> Any:
    return lambda device, dtype=None: [OptimizerInput(None, dict(kw), str(kw)) for kw in COMMON + OWN[cls]]


DB = [
    OptimizerInfo(
        cls,
        optim_inputs_func=inputs_of(cls),
        optim_error_inputs_func=get_error_inputs_for_all_optims,
        supported_impls=("foreach", "differentiable"),
        has_capturable_arg=True,
    )
    for cls in OWN
]


def problem(device: str, dtype: torch.dtype, seed: int = 0) -> tuple[list[nn.Parameter], Any]:
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(6, 3, generator=generator, dtype=torch.float64).to(device, dtype))
    bias = nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64).to(device, dtype))
    x = torch.randn(3, generator=generator, dtype=torch.float64).to(device, dtype)

    def loss() -> torch.Tensor:
        return (weight.mv(x) + bias).square().sum()

    return [weight, bias], loss


class TestOurOptimizers(TestCase):
    """Named as torch's suite names them."""

    def steps(self, optimizer: torch.optim.Optimizer, loss: Any, count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
        return loss().item()

    @optims(DB, dtypes=[torch.float32])
    def test_forloop_goes_right_direction(self, device, dtype, optim_info):
        for given in optim_info.optim_inputs_func(device=device):
            for foreach in (False, True):
                params, loss = problem(device, dtype)
                first = loss().item()
                last = self.steps(optim_info.optim_cls(params, foreach=foreach, **given.kwargs), loss, 30)
                if given.kwargs.get("maximize"):
                    self.assertGreater(last, first)
                else:
                    self.assertLess(last, first)

    @optims(DB, dtypes=[torch.float32])
    def test_param_group_with_lrscheduler_goes_right_direction(self, device, dtype, optim_info):
        for schedulers in optim_info.scheduler_inputs:
            params, loss = problem(device, dtype)
            first = loss().item()
            optimizer = optim_info.optim_cls([{"params": params[:1]}, {"params": params[1:], "lr": 0.01}])
            made = [scheduler(optimizer) for scheduler in schedulers]
            for _ in range(20):
                value = self.steps(optimizer, loss, 1)
                for scheduler in made:
                    plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                    scheduler.step(value) if plateau else scheduler.step()
            self.assertLess(loss().item(), first)

    @optims(DB, dtypes=[torch.float64])
    def test_foreach_matches_forloop(self, device, dtype, optim_info):
        for given in optim_info.optim_inputs_func(device=device):
            results = []
            for foreach in (False, True):
                params, loss = problem(device, dtype)
                optimizer = optim_info.optim_cls(params, foreach=foreach, **given.kwargs)
                self.steps(optimizer, loss, 7)
                results.append((params, [dict(optimizer.state[p]) for p in params]))
            self.assertEqual(results[0], results[1])

    @optims(DB, dtypes=[torch.complex64])
    def test_complex_2d(self, device, dtype, optim_info):
        for given in optim_info.optim_inputs_func(device=device):
            if optim_info.optim_cls in (AdamP, SGDP, FRUGAL):
                continue  # one dimension: they warn that they project nothing, see test_base.py; FRUGAL refuses
            values = torch.randn(2, dtype=dtype, device=device)
            whole, parts = nn.Parameter(values.clone()), nn.Parameter(torch.view_as_real(values).clone().flatten())
            optimizers = [optim_info.optim_cls([p], **given.kwargs) for p in (whole, parts)]
            for _ in range(5):
                for p, optimizer in zip((whole, parts), optimizers, strict=True):
                    optimizer.zero_grad()
                    real = torch.view_as_real(p).flatten() if p.is_complex() else p
                    ((1 - real[::2]).square() + 10 * (real[1::2] - real[::2] ** 2).square()).sum().backward()
                    optimizer.step()
            self.assertEqual(torch.view_as_real(whole).flatten(), parts)

    @optims(DB, dtypes=[torch.float32])
    def test_step_is_noop_when_params_have_no_grad(self, device, dtype, optim_info):
        params, _ = problem(device, dtype)
        before = [p.detach().clone() for p in params]
        optimizer = optim_info.optim_cls(params, weight_decay=0.1)
        optimizer.step()
        self.assertEqual(params, before)
        self.assertEqual(len(optimizer.state), 0)

    @optims(DB, dtypes=[torch.float32])
    def test_grads_are_never_inplaced_into(self, device, dtype, optim_info):
        for given in optim_info.optim_inputs_func(device=device):
            for foreach in (False, True):
                params, loss = problem(device, dtype)
                optimizer = optim_info.optim_cls(params, foreach=foreach, **given.kwargs)
                for _ in range(3):
                    optimizer.zero_grad()
                    loss().backward()
                    versions = [p.grad._version for p in params]
                    optimizer.step()
                    self.assertEqual([p.grad._version for p in params], versions)

    @optims(DB, dtypes=[torch.float32])
    def test_save_load_equality_with_weights_only(self, device, dtype, optim_info):
        for given in optim_info.optim_inputs_func(device=device):
            params, loss = problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **given.kwargs)
            self.steps(optimizer, loss, 3)
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            other = optim_info.optim_cls(params, **given.kwargs)
            other.load_state_dict(torch.load(file, weights_only=True))
            self.assertEqual(optimizer.state_dict(), other.state_dict())

    @optims(DB, dtypes=[torch.float32])
    def test_state_dict_deterministic(self, device, dtype, optim_info):
        for given in optim_info.optim_inputs_func(device=device):
            params, loss = problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **given.kwargs)
            self.steps(optimizer, loss, 2)
            self.assertEqual(optimizer.state_dict(), optimizer.state_dict())
            copies, other = deepcopy((params, optimizer))
            for _ in range(3):
                for p, q in zip(params, copies, strict=True):
                    p.grad = torch.ones_like(p)
                    q.grad = torch.ones_like(q)
                optimizer.step()
                other.step()
            self.assertEqual(params, copies)

    @optims(DB, dtypes=[torch.float32])
    def test_can_load_older_state_dict(self, device, dtype, optim_info):
        for given in optim_info.optim_inputs_func(device=device):
            params, loss = problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **given.kwargs)
            self.steps(optimizer, loss, 2)
            old = deepcopy(optimizer.state_dict())
            for group in old["param_groups"]:
                for flag in optim_info.not_og_supported_flags:
                    group.pop(flag, None)
            optimizer.load_state_dict(old)
            self.steps(optimizer, loss, 1)

    @optims(DB, dtypes=[torch.float32])
    def test_load_nontensor_step(self, device, dtype, optim_info):
        params, loss = problem(device, dtype)
        optimizer = optim_info.optim_cls(params)
        self.steps(optimizer, loss, 2)
        saved = deepcopy(optimizer.state_dict())
        for state in saved["state"].values():
            state["step"] = state["step"].item()
        optimizer.load_state_dict(saved)
        self.steps(optimizer, loss, 1)
        self.assertEqual(optimizer.state[params[0]]["step"].item(), 3)

    @optims(DB, dtypes=[torch.float32])
    def test_deepcopy_copies_all_public_attrs(self, device, dtype, optim_info):
        params, loss = problem(device, dtype)
        optimizer = optim_info.optim_cls(params)
        self.steps(optimizer, loss, 2)
        public = lambda o: {k for k in vars(o) if not k.startswith("_")}  # noqa: E731
        self.assertEqual(public(optimizer), public(deepcopy(optimizer)))

    @optims(DB, dtypes=[torch.float32])
    def test_optimizer_can_be_printed(self, device, dtype, optim_info):
        params, _ = problem(device, dtype)
        text = repr(optim_info.optim_cls([{"params": params[:1], "lr": 0.125}, {"params": params[1:]}]))
        self.assertIn(optim_info.optim_cls.__name__, text)
        self.assertIn("lr: 0.125", text)

    @optims(DB, dtypes=[torch.float32])
    def test_mixed_device_dtype(self, device, dtype, optim_info):
        shared = [nn.Parameter(torch.ones(3, 2, dtype=d)) for d in (torch.float32, torch.float64, torch.bfloat16)]
        results = []
        for foreach in (False, True):
            params = deepcopy(shared)
            optimizer = optim_info.optim_cls(params, foreach=foreach)
            for _ in range(3):
                for p in params:
                    p.grad = torch.full_like(p, 0.5)
                optimizer.step()
            results.append(params)
        self.assertEqual(results[0], results[1])

    @optims(DB, dtypes=[torch.float32])
    def test_can_load_from_to_named_state_dict(self, device, dtype, optim_info):
        params, loss = problem(device, dtype)
        named = optim_info.optim_cls([("weight", params[0]), ("bias", params[1])])
        plain = optim_info.optim_cls(params)
        self.steps(named, loss, 2)
        plain.load_state_dict(named.state_dict())
        self.assertEqual(plain.param_groups[0]["param_names"], ["weight", "bias"])
        named.load_state_dict(plain.state_dict())
        self.assertEqual(named.state_dict()["state"], plain.state_dict()["state"])

    @optims(DB, dtypes=[torch.float32])
    def test_errors(self, device, dtype, optim_info):
        for given in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            params = given.optimizer_error_input.params or [nn.Parameter(torch.zeros(2, 2))]
            assert given.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
            if issubclass(given.error_type, Warning):
                with self.assertWarnsRegex(given.error_type, given.error_regex):
                    optim_info.optim_cls(params, **given.optimizer_error_input.kwargs)
            else:
                with self.assertRaisesRegex(given.error_type, given.error_regex):
                    optim_info.optim_cls(params, **given.optimizer_error_input.kwargs)


instantiate_device_type_tests(TestOurOptimizers, globals(), only_for=("cpu",))
