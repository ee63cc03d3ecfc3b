"""What all optimizers do in common: checks, groups, state, formats, gradients of every kind."""

import copy
import io
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import genflow.optim
from genflow.errors import InputError, NonFiniteError
from genflow.optim import SGDP, AdaBelief, AdaGradNorm, AdamP, Adan, DiffGrad, Lion, LionK, StableSPAM
from genflow.optim.batches import FOREACH_NUMEL, Collected, chunks, split_by_form
from genflow.optim.execution import round_stochastically

ALL = [AdaBelief, Adan, AdamP, SGDP, DiffGrad, Lion, LionK, StableSPAM, AdaGradNorm]
every = pytest.mark.parametrize("cls", ALL)
both_forms = pytest.mark.parametrize("foreach", [False, True])


def make_params(dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(5, 3), (4,), (2, 3, 2, 2), ()]
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)) for shape in shapes
    ]


def fill_grads(params: list[nn.Parameter], t: int) -> None:
    for index, param in enumerate(params):
        values = torch.sin(torch.arange(param.numel(), dtype=torch.float64) * (index + 1) + t).view(param.shape)
        param.grad = values.to(param.device, param.dtype)


def steps(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], times: range) -> None:
    for t in times:
        fill_grads(params, t)
        optimizer.step()


def assert_same(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


# construction


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        *[(cls, {"lr": -0.1}, "lr: got -0.1; allowed: a finite number >= 0") for cls in ALL],
        *[(cls, {"lr": math.nan}, "lr: got nan") for cls in ALL],
        *[(cls, {"weight_decay": -1}, "weight_decay: got -1") for cls in ALL],
        *[
            (cls, {"betas": (1.0, 0.9)}, r"betas\[0\]: got 1.0; allowed: .* >= 0 and < 1")
            for cls in (AdamP, Lion, LionK)
        ],
        (AdaBelief, {"betas": (0.9,)}, "betas: got .*; allowed: 2 numbers"),
        (Adan, {"betas": (0.9, 0.99)}, "betas: got .*; allowed: 3 numbers"),
        (StableSPAM, {"betas": 0.9}, "betas: got 0.9"),
        (DiffGrad, {"eps": -1e-8}, "eps: got -1e-08"),
        (Adan, {"max_grad_norm": -1}, "max_grad_norm: got -1"),
        (AdamP, {"delta": -1}, "delta"),
        (AdamP, {"wd_ratio": 2}, "wd_ratio"),
        (SGDP, {"momentum": 1.0}, "momentum: got 1.0; allowed: .* < 1"),
        (SGDP, {"dampening": 2}, "dampening"),
        (StableSPAM, {"gap": 2.5}, "gap: got 2.5; allowed: an integer"),
        (StableSPAM, {"gamma3": 1}, "gamma3"),
        (StableSPAM, {"total_steps": 0}, "total_steps"),
        (AdaGradNorm, {"b0": 0}, "b0: got 0; allowed: a finite number > 0"),
        (AdaGradNorm, {"scope": "row"}, "scope: 'row'"),
        (LionK, {"kappa": "l3"}, "kappa: 'l3' is not known.*l1"),
        (LionK, {"kappa": {"name": "lp", "q": 2}}, "unknown key 'q'"),
        (Lion, {"lr": torch.tensor([1.0, 2.0])}, "Tensor lr must be 1-element"),
        (Lion, {"lr": torch.tensor(-1.0)}, "lr: got -1.0"),
        (Lion, {"maximize": 1}, "maximize: got 1; allowed: True, False"),
        (Lion, {"foreach": "yes"}, "foreach: got 'yes'"),
        (Lion, {"nonfinite": "ignore"}, "nonfinite: 'ignore'"),
        (Lion, {"missing": "zero"}, "missing: 'zero'"),
        (Lion, {"foreach": True, "differentiable": True}, "foreach: True does not go with differentiable=True"),
        (Lion, {"capturable": True, "nonfinite": "skip"}, "nonfinite: 'skip' needs a host-device sync"),
    ],
)
def test_bad_values_are_named_in_the_constructor_and_in_added_groups(
    cls: type, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        cls(make_params(), **options)
    optimizer = cls([torch.zeros(2, 2, requires_grad=True)])
    with pytest.raises(InputError, match=message):
        optimizer.add_param_group({"params": make_params(), **options})
    assert len(optimizer.param_groups) == 1


@every
def test_a_mistyped_flag_gets_a_suggestion(cls: type) -> None:
    with pytest.raises(InputError, match=r"unknown key 'forech' \(did you mean 'foreach'"):
        cls(make_params(), forech=True)


def test_parameters_that_cannot_be_optimized_are_named() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    with pytest.raises(
        InputError, match="in more than one parameter group: parameter 1 of group 0 with shape \\(3,\\)"
    ):
        Lion([{"params": [a, b]}, {"params": [b]}])
    with pytest.raises(InputError, match="in more than one parameter group: parameter 'second'"):
        Lion([{"params": [("first", a), ("second", b)]}, {"params": [("again", b)]}])
    with pytest.raises(InputError, match="parameter 0 of group 0.*torch.int64 cannot be optimized"):
        Lion([torch.zeros(2, dtype=torch.int64)])
    with pytest.raises(InputError, match="stochastic_rounding: parameter 'half' is float16"):
        Lion([("half", nn.Parameter(torch.zeros(2, dtype=torch.float16)))], stochastic_rounding=True)
    optimizer = Lion([a])
    with pytest.raises(InputError, match="cannot be optimized"):
        optimizer.add_param_group({"params": [torch.zeros(2, dtype=torch.int64)]})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="empty parameter list"):
        Lion([])


def test_projecting_optimizers_warn_about_flattened_weights() -> None:
    with pytest.warns(UserWarning, match="AdamP: all 1 parameters have one dimension"):
        AdamP([nn.Parameter(torch.zeros(6))])


def test_every_name_of_the_package_loads() -> None:
    for name in genflow.optim.__all__:
        assert getattr(genflow.optim, name) is not None


# gradients


@every
@both_forms
def test_gradients_are_never_written_to(cls: type, foreach: bool) -> None:
    params = make_params()
    optimizer = cls(params, weight_decay=0.1, maximize=True, foreach=foreach)
    for t in range(3):
        fill_grads(params, t)
        before = [p.grad.clone() for p in params]
        optimizer.step()
        assert_same([p.grad for p in params], before)


@every
@both_forms
def test_maximize_is_minimize_of_the_negated(cls: type, foreach: bool) -> None:
    up, down = make_params(), make_params()
    ascending = cls(up, weight_decay=0.1, maximize=True, foreach=foreach)
    descending = cls(down, weight_decay=0.1, foreach=foreach)
    for t in range(4):
        fill_grads(up, t)
        fill_grads(down, t)
        for p in down:
            p.grad = -p.grad
        ascending.step()
        descending.step()
    assert_same(up, down)


@every
def test_sparse_gradients_are_refused_by_name(cls: type) -> None:
    embedding = nn.Embedding(4, 3, sparse=True)
    optimizer = cls(embedding.named_parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients: parameter 'weight'"):
        optimizer.step()
    assert not optimizer.state


def test_missing_gradients_are_skipped_or_named() -> None:
    params = make_params()
    optimizer = Lion(params)
    params[0].grad = torch.ones(5, 3)
    optimizer.step()
    assert set(optimizer.state) == {params[0]}
    with pytest.raises(RuntimeError, match="Lion: parameter 1 of group 0 with shape \\(4,\\) has no gradient"):
        Lion(params, missing="raise").step()


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_gradients_leave_everything_alone(cls: type, bad: float) -> None:
    params = make_params()
    optimizer = cls(params, nonfinite="skip")
    steps(optimizer, params, range(2))
    kept = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())
    fill_grads(params, 3)
    params[2].grad[1, 0, 1, 1] = bad
    optimizer.step()
    assert_same(params, kept[0])
    for key, state in optimizer.state_dict()["state"].items():
        assert_same(list(state.values()), list(kept[1]["state"][key].values()))
    assert optimizer.skipped_steps == 1
    optimizer.param_groups[0]["nonfinite"] = "raise"
    with pytest.raises(
        NonFiniteError, match="the gradient of parameter 2 of group 0 with shape .* holds NaN or infinity"
    ):
        optimizer.step()
    assert_same(params, kept[0])
    fresh = make_params()
    fill_grads(fresh, 0)
    fresh[0].grad[0, 0] = bad
    first = cls(fresh, nonfinite="skip")
    first.step()
    assert not first.state


@every
@both_forms
def test_complex_is_two_reals(cls: type, foreach: bool) -> None:
    values = torch.randn(3, 4, dtype=torch.complex64)
    whole = nn.Parameter(values.clone())
    flat = nn.Parameter(torch.view_as_real(values).flatten(1).clone())  # the rows that AdamP looks at
    optimizers = cls([whole], weight_decay=0.1, foreach=foreach), cls([flat], weight_decay=0.1, foreach=foreach)
    for _ in range(4):
        whole.grad = torch.randn(3, 4, dtype=torch.complex64)
        flat.grad = torch.view_as_real(whole.grad).flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(torch.view_as_real(whole.detach()).flatten(1), flat.detach())


@every
def test_a_complex_vector_is_not_projected(cls: type) -> None:
    pair = nn.Parameter(torch.tensor([1.0 + 1j, 2.0])), nn.Parameter(torch.tensor([1.0, 1.0, 2.0, 0.0]))
    for p in pair:
        p.grad = torch.tensor([1.0 - 1j, 0.1]) if p.is_complex() else torch.tensor([1.0, -1.0, 0.1, 0.0])
        optimizer = cls([p, nn.Parameter(torch.zeros(1, 1))])
        optimizer.step()
    torch.testing.assert_close(torch.view_as_real(pair[0].detach()).flatten(), pair[1].detach())


@every
@both_forms
def test_strides_do_not_matter(cls: type, foreach: bool) -> None:
    plain, turned = nn.Parameter(torch.randn(4, 3, 2)), None
    turned = nn.Parameter(plain.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0))
    assert not turned.is_contiguous()
    optimizers = cls([plain], weight_decay=0.1, foreach=foreach), cls([turned], weight_decay=0.1, foreach=foreach)
    for _ in range(3):
        plain.grad = torch.randn(4, 3, 2)
        turned.grad = plain.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(plain, turned)


@every
def test_empty_parameters_are_left_alone(cls: type) -> None:
    params = [nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.ones(2, 2))]
    optimizer = cls(params)
    params[0].grad, params[1].grad = torch.zeros(0, 3), torch.ones(2, 2)
    optimizer.step()
    assert not torch.equal(params[1], torch.ones(2, 2))


@every
@both_forms
def test_a_zero_gradient_leaves_finite_weights(cls: type, foreach: bool) -> None:
    params = make_params()
    optimizer = cls(params, foreach=foreach)
    for p in params:
        p.grad = torch.zeros_like(p)
    for _ in range(3):
        optimizer.step()
    assert_same(params, make_params())
    steps(optimizer, params, range(2))
    assert all(torch.isfinite(p).all() for p in params)


# forms


@every
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "maximize": True}, {"capturable": True}])
def test_forms_agree(cls: type, options: dict[str, Any]) -> None:
    results = []
    for foreach in (False, True, None):
        params = make_params(torch.float64)
        steps(cls(params, foreach=foreach, **options), params, range(12))
        results.append(params)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_default_form_goes_by_device_and_size() -> None:
    class Own(Tensor):
        pass

    small, large = torch.zeros(FOREACH_NUMEL), torch.zeros(FOREACH_NUMEL + 1)

    def form(param: Tensor, entrywise: bool = False, **flags: Any) -> str:
        group = Lion([nn.Parameter(torch.zeros(1))]).param_groups[0] | flags
        (batch,) = split_by_form(Collected(0, group, [param], [param], [{}]), entrywise)
        return batch.form

    assert form(small) == "many"
    assert form(large) == "single"
    assert form(small.as_subclass(Own)) == "single"
    assert form(large, foreach=True) == "many"
    assert form(small, foreach=False) == "single"
    assert form(small, differentiable=True) == "single"
    assert form(large, compile=True) == "many"
    for param in (small, large):
        assert form(param, entrywise=True) == "flat"
        assert form(param, entrywise=True, compile=True) == "flat"
        assert form(param, entrywise=True, foreach=True) == "many"
        assert form(param, entrywise=True, capturable=True) != "flat"
        assert form(param.to(torch.complex64), entrywise=True) != "flat"


def test_chunks_cover_all_in_order() -> None:
    params = [torch.zeros(n) for n in (10, 280000, 3, 160000, 80000, 30000, 1)]
    runs = list(chunks(params))
    assert [i for run in runs for i in range(*run.indices(7))] == list(range(7))
    assert [run.stop - run.start for run in runs] == [1, 1, 3, 2]
    assert list(chunks([p.to("meta") for p in params])) == [slice(None)]


@every
@both_forms
@pytest.mark.parametrize("capturable", [False, True])
def test_no_value_is_read_back_from_the_device(cls: type, foreach: bool, capturable: bool) -> None:
    """On the meta device tensors hold no values, so reading one raises; there the step counts may stay on the CPU."""
    params = make_params(device="meta")
    optimizer = cls(params, weight_decay=0.1, foreach=foreach, capturable=capturable)
    steps(optimizer, params, range(3))
    home = optimizer.state[params[0]]["step"].device.type
    assert home == ("meta" if capturable else "cpu")


@every
@both_forms
def test_a_tensor_learning_rate_is_the_number(cls: type, foreach: bool) -> None:
    results = []
    for lr in (0.125, torch.tensor(0.125), torch.tensor([0.125])):
        params = make_params(torch.float64)
        steps(cls(params, lr=lr, weight_decay=0.5, foreach=foreach), params, range(5))
        results.append(params)
    for a, b, c in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert torch.equal(b, c)


@every
def test_groups_have_their_own_options(cls: type) -> None:
    together, apart = make_params(), make_params()
    grouped = cls(
        [{"params": together[:2], "lr": 0.5, "maximize": True}, {"params": together[2:], "weight_decay": 0.1}], lr=0.01
    )
    # two optimizers, except for the one whose step depends on all gradients
    options = {"scope": "tensor"} if cls is AdaGradNorm else {}
    for group in grouped.param_groups:
        group.update(options)
    first = cls(apart[:2], lr=0.5, maximize=True, **options)
    second = cls(apart[2:], lr=0.01, weight_decay=0.1, **options)
    for t in range(4):
        fill_grads(together, t)
        fill_grads(apart, t)
        grouped.step()
        first.step()
        second.step()
    assert_same(together, apart)


@every
@both_forms
def test_parameters_that_join_late_start_their_own_count(cls: type, foreach: bool) -> None:
    params = make_params(torch.float64)
    options = {"scope": "tensor"} if cls is AdaGradNorm else {}
    optimizer = cls(params[:1], foreach=foreach, **options)
    steps(optimizer, params[:1], range(3))
    optimizer.add_param_group({"params": params[1:]})
    optimizer.param_groups[0]["params"] += optimizer.param_groups.pop()["params"]  # one group, two counts
    steps(optimizer, params, range(3, 6))
    alone = make_params(torch.float64)
    second = cls(alone[1:], foreach=foreach, **options)
    for t in range(3, 6):
        fill_grads(alone, t)
        second.step()
    assert_same(params[1:], alone[1:])
    assert [int(optimizer.state[p]["step"]) for p in params] == [6, 3, 3, 3]


@every
def test_differentiable_step_passes_gradcheck(cls: type) -> None:
    def two_steps(p: Tensor, g: Tensor, h: Tensor, lr: Tensor) -> Tensor:
        p = p.clone()
        optimizer = cls([p], lr=lr, weight_decay=0.1, differentiable=True)
        for grad in (g, h):
            p.grad = grad
            optimizer.step()
        return p

    generator = torch.Generator().manual_seed(3)
    p, g, h = (torch.randn(3, 2, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3))
    if cls is AdaBelief:
        g, h = (x.detach().clone().requires_grad_() for x in (g, h))
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(two_steps, (p, g, h, lr), eps=1e-6, atol=1e-4)


# state


@every
@both_forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64], ids=str)
def test_a_saved_run_goes_on_bit_by_bit(cls: type, foreach: bool, dtype: torch.dtype) -> None:
    params = make_params(dtype)
    optimizer = cls(params, weight_decay=0.1, foreach=foreach)
    steps(optimizer, params, range(3))
    file = io.BytesIO()
    torch.save([params, optimizer.state_dict()], file)
    file.seek(0)
    copies, saved = torch.load(file, weights_only=True)
    json.dumps(saved["param_groups"])
    saved["param_groups"] = json.loads(json.dumps(saved["param_groups"]))  # as genflow's checkpoints keep it
    other = cls(copies, lr=7.0)
    other.load_state_dict(saved)
    for p in params:
        for key, value in optimizer.state[p].items():
            loaded = other.state[copies[[q is p for q in params].index(True)]][key]
            assert loaded.dtype == value.dtype
            assert torch.equal(loaded, value)
            assert loaded.data_ptr() != value.data_ptr()
    steps(optimizer, params, range(3, 6))
    steps(other, copies, range(3, 6))
    assert_same(params, copies)


@every
def test_state_keeps_float32_under_16_bit_weights_whatever_it_comes_from(cls: type) -> None:
    source = make_params(torch.float32)
    optimizer = cls(source)
    steps(optimizer, source, range(3))
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ):
        params = make_params(dtype)
        other = cls(params)
        other.load_state_dict(optimizer.state_dict())
        for p, q in zip(source, params, strict=True):
            for key, value in other.state[q].items():
                own = optimizer.state[p][key]
                assert value.dtype == (own.dtype if key in ("step", "sum_sq") else expected)
                assert torch.equal(value.double(), own.double())


def test_loading_moves_the_count_to_where_the_group_wants_it() -> None:
    params = make_params(device="meta")
    optimizer = Lion(params)
    steps(optimizer, params, range(1))
    saved = optimizer.state_dict()
    saved["param_groups"][0]["capturable"] = True
    optimizer.load_state_dict(saved)
    assert optimizer.state[params[0]]["step"].device.type == "meta"


def test_old_checkpoints_without_later_options_and_with_plain_counts_load() -> None:
    params = make_params()
    optimizer = AdaBelief(params)
    steps(optimizer, params, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for key in ("foreach", "nonfinite", "accumulate_eps", "maximize"):
            del group[key]
    for state in saved["state"].values():
        state["step"] = 2
    copies = make_params()
    for a, b in zip(copies, params, strict=True):
        a.data.copy_(b)
    other = AdaBelief(copies)
    other.load_state_dict(saved)
    steps(optimizer, params, range(2, 4))
    steps(other, copies, range(2, 4))
    assert_same(params, copies)


def test_a_state_of_another_shape_is_refused_by_torch() -> None:
    optimizer = Lion(make_params())
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(Lion(make_params()[:2]).state_dict())
    assert "_loading" not in vars(optimizer)


@every
def test_deepcopy_goes_on_alone(cls: type) -> None:
    params = make_params()
    optimizer = cls(params)
    steps(optimizer, params, range(2))
    copies, twin = copy.deepcopy((params, optimizer))
    steps(optimizer, params, range(2, 4))
    steps(twin, copies, range(2, 4))
    assert_same(params, copies)
    assert twin.skipped_steps == 0


def test_hooks_run() -> None:
    params = make_params()
    optimizer, seen = Lion(params), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("load"))

    def scale(_: torch.optim.Optimizer, state: dict) -> dict:
        return state | {"state": {k: {**v, "exp_avg": v["exp_avg"] * 2} for k, v in state["state"].items()}}

    steps(optimizer, params, range(1))
    optimizer.register_load_state_dict_pre_hook(scale)
    doubled = optimizer.state[params[0]]["exp_avg"] * 2
    optimizer.register_load_state_dict_post_hook(
        lambda o: seen.append(torch.equal(o.state[params[0]]["exp_avg"], doubled))
    )
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before", "after", "load", True]
    assert not any("remember" in repr(hook) for hook in optimizer._optimizer_load_state_dict_pre_hooks.values())


def test_closures_schedulers_and_gradient_scalers() -> None:
    torch.manual_seed(0)
    network, data = nn.Linear(3, 1), torch.randn(16, 3)
    optimizer = AdaBelief(network.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=31)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (network(data) - data.sum(1, keepdim=True)).square().mean()
        loss.backward()
        return loss

    losses = []
    for _ in range(30):
        losses.append(optimizer.step(closure).item())
        scheduler.step()
    assert losses[-1] < 0.5 * losses[0]

    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for value, moves in ((1.0, True), (math.inf, False)):
        optimizer.zero_grad()
        scaler.scale((network(data) * value).sum()).backward()
        before = network.weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert moves != torch.equal(before, network.weight)


@every
def test_splitting_a_tensor_or_reordering_parameters_changes_nothing_for_entrywise_rules(cls: type) -> None:
    if cls in (AdamP, SGDP, StableSPAM, AdaGradNorm):
        pytest.skip("looks at whole tensors")
    whole = nn.Parameter(torch.linspace(-1, 1, 12).view(4, 3))
    halves = [nn.Parameter(whole.detach()[2:].clone()), nn.Parameter(whole.detach()[:2].clone())]
    one, two = cls([whole], weight_decay=0.1), cls(halves, weight_decay=0.1)
    for t in range(4):
        whole.grad = torch.sin(torch.arange(12.0).view(4, 3) + t)
        halves[0].grad, halves[1].grad = whole.grad[2:].clone(), whole.grad[:2].clone()
        one.step()
        two.step()
    assert torch.equal(whole, torch.cat([halves[1], halves[0]]))


# 16-bit weights


@every
@both_forms
def test_16_bit_weights_take_the_float32_step_rounded_once(cls: type, foreach: bool) -> None:
    low, high = make_params(torch.bfloat16), make_params(torch.bfloat16)
    high = [nn.Parameter(p.detach().float()) for p in high]
    optimizers = cls(low, weight_decay=0.1, foreach=foreach), cls(high, weight_decay=0.1, foreach=foreach)
    for t in range(3):
        fill_grads(low, t)
        for p, q in zip(low, high, strict=True):
            q.grad = p.grad.float()
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(low, high, strict=True):
            assert torch.equal(p, q.to(torch.bfloat16))
            q.data.copy_(p)


def test_stochastic_rounding_keeps_small_updates_on_average() -> None:
    results = {}
    for stochastic in (False, True):
        p = nn.Parameter(torch.ones(100, 100, dtype=torch.bfloat16))
        optimizer = Lion([p], lr=1e-4, stochastic_rounding=stochastic)
        for _ in range(20):
            p.grad = torch.ones_like(p)
            optimizer.step()
        results[stochastic] = p.detach().float().mean().item()
    assert results[False] == 1.0
    # one entry's variance a step is at most (spacing * 1e-4): below 5e-4 for 10,000 entries over 20 steps
    assert results[True] == pytest.approx(1 - 20e-4, abs=2e-4)


@given(st.floats(width=32, allow_nan=True, allow_infinity=True))
@settings(deadline=None, max_examples=200)
def test_stochastic_rounding_gives_a_neighbour(value: float) -> None:
    x = torch.full((64,), value, dtype=torch.float32)
    rounded = round_stochastically(x)
    if not math.isfinite(value):
        assert torch.equal(rounded.float(), x) or (math.isnan(value) and rounded.isnan().all())
        return
    nearest = x.to(torch.bfloat16)
    gap = torch.nextafter(nearest.abs(), torch.tensor(math.inf, dtype=torch.bfloat16)).float() - nearest.abs().float()
    near = (rounded.float() - x).abs() <= gap
    assert (near | ~nearest.isfinite()).all()
    if nearest.float().equal(x):
        assert torch.equal(rounded, nearest)
