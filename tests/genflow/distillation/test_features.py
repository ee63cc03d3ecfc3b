"""One evaluation of a frozen teacher for its estimate and its features: hooks, gradients, guidance, wrappers."""

import copy
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from genflow.distillation import FeatureTap, FeatureTeacher
from genflow.distillation.features import default_features
from genflow.errors import InputError
from genflow.guidance import APG, CFG, AutoGuidance, GuidedModel
from genflow.models import LeanUNet2DModel, NetworkModel, from_diffusers, from_function
from genflow.paths import EDMPath, LinearPath, VPPath


def shaken(network: nn.Module) -> nn.Module:
    """Without the zeros that networks begin with, which would hide what is not connected."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


def lean(**options: Any) -> LeanUNet2DModel:
    options = {"block_out_channels": (16, 32), "attention_head_dim": 16, "num_classes": 3, "dropout": 0.3, **options}
    return shaken(LeanUNet2DModel(sample_size=8, **options))


def unet() -> UNet2DModel:
    return shaken(
        UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )
    )


def dit() -> DiTTransformer2DModel:
    return shaken(
        DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=1,
            out_channels=2,
            num_layers=3,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=3,
            norm_num_groups=4,
        )
    )


CASES = {
    "lean": (lean, LinearPath(), "flow_prediction", "down_levels.1", (32, 2, 2)),
    "unet": (unet, VPPath.cosine(), "epsilon", "mid_block", (16, 4, 4)),
    "dit": (dit, EDMPath(20.0), "epsilon", "transformer_blocks.1", (16, 16)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[NetworkModel, dict[str, Tensor], str, tuple[int, ...]]:
    make, path, kind, name, shape = CASES[request.param]
    model = from_diffusers(make(), path, kind)
    labels = {} if model.num_classes is None else {"class_labels": torch.tensor([0, 2, 1])}
    return model, labels, name, shape


def states() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([0.1, 0.5, 0.9])


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


def test_the_estimate_is_the_models_and_the_features_are_the_modules(case) -> None:
    model, labels, name, shape = case
    x, t = states()
    teacher = FeatureTeacher(model)
    assert tuple(teacher.names) == (name,) == default_features(model.network)
    seen: list[Tensor] = []
    handle = model.network.get_submodule(name).register_forward_hook(lambda m, i, output: seen.append(output))
    prediction, features = teacher(x, t, **labels)
    handle.remove()
    assert len(features) == 1
    assert torch.equal(features[0], seen[0])
    assert tuple(features[0].shape[1:]) == shape == teacher.feature_shapes(x, **labels)[0]
    with torch.no_grad():
        torch.testing.assert_close(prediction.x0, model.predict(x, t, **labels).x0)
    assert prediction.path == model.path
    assert hooks(model.network) == 0
    assert not model.network.training


def test_the_gradient_goes_through_the_features_alone(case) -> None:
    """To the states by finite differences; not to the teacher, and not through the estimate."""
    model, labels, _, _ = case
    model.network.double()
    x, t = states()
    x = x.double().requires_grad_()
    teacher = FeatureTeacher(model)
    prediction, (feature,) = teacher(x, t, **labels)
    assert not prediction.x0.requires_grad
    assert torch.is_grad_enabled()
    direction, weights = torch.randn(2, *x.shape).double()[0], torch.randn_like(feature)
    (gradient,) = torch.autograd.grad((feature * weights).sum(), x)
    step = 1e-4
    with torch.no_grad():
        ahead, behind = ((teacher(x + s * step * direction, t, **labels)[1][0] * weights).sum() for s in (1, -1))
    # the timestep goes through float32, the rest does not
    assert (gradient * direction).sum().item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-4)
    assert all(not p.requires_grad and p.grad is None for p in model.network.parameters())


def test_features_alone_need_only_half_of_the_network(case) -> None:
    model, labels, _, _ = case
    x, t = states()
    teacher = FeatureTeacher(model)
    x.requires_grad_()
    expected = teacher(x, t, **labels)[1][0]
    last = [module for module in model.network.modules() if not list(module.children())][-1]
    calls: list[int] = []
    last.register_forward_hook(lambda *_: calls.append(1))
    feature = teacher.features(x, t, **labels)[0]
    assert not calls
    assert torch.equal(feature, expected)
    assert feature.requires_grad
    teacher(x, t, **labels)
    assert calls
    with torch.no_grad():
        assert not teacher.features(x, t, **labels)[0].requires_grad


def test_modules_by_name_in_the_order_asked_for() -> None:
    model = from_diffusers(unet(), LinearPath(), "flow_prediction")
    x, t = states()
    teacher = FeatureTeacher(model, ["up_blocks.0", "down_blocks.0", "mid_block"])  # a down block gives a tuple
    shapes = [(16, 8, 8), (8, 4, 4), (16, 4, 4)]
    assert teacher.feature_shapes(x) == shapes
    assert [tuple(f.shape[1:]) for f in teacher(x, t)[1]] == shapes


def test_a_unet_without_a_middle_has_a_last_block() -> None:
    network = UNet2DModel(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        mid_block_type=None,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    assert default_features(network) == ("down_blocks.1",)


@pytest.mark.parametrize("give", [lambda x: x, lambda x: (2 * x, x), lambda x: (x, (2 * x,)), lambda x: ([x, (x,)],)])
def test_the_main_one_of_several_tensors(give) -> None:
    """Of (text, x) the second, of (x, skips) the first."""

    class Block(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return give(x)

    network = nn.Sequential(Block())
    x = torch.randn(2, 3)
    with FeatureTap(network, ["0"]) as tap:
        network(x)
    assert torch.equal(tap.features[0], x)
    passing = nn.Sequential(nn.Identity())
    with FeatureTap(passing, ["0"]) as tap:
        passing(UNet2DOutput(sample=x))
    assert torch.equal(tap.features[0], x)


@pytest.mark.parametrize("rule", [CFG(2.5), CFG(2.5, interval=(0.5, 5.0)), APG(4.0)], ids=["cfg", "interval", "apg"])
def test_guidance_is_that_of_a_guided_model(rule) -> None:
    """Features are those under the labels."""
    model = from_diffusers(lean(), LinearPath(), "flow_prediction")
    x, t = states()
    labels = torch.tensor([0, 2, 1])
    prediction, features = FeatureTeacher(model, guidance=rule)(x, t, class_labels=labels)
    plain, unguided = FeatureTeacher(model)(x, t, class_labels=labels)
    rule.reset(1)
    with torch.no_grad():
        expected = GuidedModel(model, rule).predict(x, t, class_labels=labels).x0
    torch.testing.assert_close(prediction.x0, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(prediction.x0, plain.x0)
    assert torch.equal(features[0], unguided[0])
    again, _ = FeatureTeacher(model, guidance=rule)(x, t, class_labels=labels)
    assert torch.equal(again.x0, prediction.x0)  # momentum is not carried from one batch to the next


def test_cfg_is_written_as_in_the_paper() -> None:
    """``t + (w - 1) (t - t_uncond)``."""
    model = from_diffusers(lean(), LinearPath(), "flow_prediction")
    x, t = states()
    guided, _ = FeatureTeacher(model, guidance=CFG(1.75))(x, t, class_labels=torch.tensor([0, 2, 1]))
    with torch.no_grad():
        cond, uncond = (model.predict(x, t, class_labels=torch.tensor(c)).x0 for c in ([0, 2, 1], [3, 3, 3]))
    torch.testing.assert_close(guided.x0, cond + 0.75 * (cond - uncond), rtol=1e-4, atol=1e-5)


def test_other_ways_to_guide() -> None:
    x, t = states()
    plain = from_diffusers(lean(num_classes=None), LinearPath(), "flow_prediction")
    weak = from_function(lambda x, t: torch.zeros_like(x), LinearPath(), "sample")
    prediction, _ = FeatureTeacher(plain, guidance=AutoGuidance(weak, CFG(3.0)))(x, t)
    with torch.no_grad():
        torch.testing.assert_close(prediction.x0, 3 * plain.predict(x, t).x0)
    model = from_diffusers(lean(), LinearPath(), "flow_prediction")
    other = torch.tensor([1, 1, 1])
    named = FeatureTeacher(model, guidance=CFG(2.0), unconditional={"class_labels": other})
    with torch.no_grad():
        cond, uncond = (model.predict(x, t, class_labels=c).x0 for c in (torch.tensor([0, 2, 1]), other))
    found = named(x, t, class_labels=torch.tensor([0, 2, 1]))[0].x0
    torch.testing.assert_close(found, 2 * cond - uncond, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="guidance: the teacher has no null label"):
        FeatureTeacher(plain, guidance=CFG(2.0))
    FeatureTeacher(plain, guidance=CFG(1.0))  # which guides nothing


def test_hooks_go_whatever_happens() -> None:
    network = lean()
    x, t = states()
    with pytest.raises(InputError, match="class_labels: missing"), FeatureTap(network, ["down_levels.0"]):
        network(x, t)
    assert hooks(network) == 0
    handle = network.output.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), FeatureTap(network, ["input"], then="no-grad"):
        network(x, t, torch.tensor([0, 1, 2]))  # fails where gradients are off
    handle.remove()
    assert hooks(network) == 0
    assert torch.is_grad_enabled()
    copy.deepcopy(network)


def test_a_tap_serves_again() -> None:
    network = lean().eval()
    x, t = states()
    labels = torch.tensor([0, 1, 2])
    tap = FeatureTap(network, ["down_levels.0"])
    with tap:
        network(x, t, labels)
    first = tap.features[0]
    with tap:
        network(2 * x, t, labels)
    assert not torch.equal(first, tap.features[0])


def test_what_cannot_be_tapped() -> None:
    network = lean()
    for names, message in (
        ([], r"features: got \[\]"),
        (["input", "input"], "each once"),
        (["down_level.1"], "'down_level.1' is no module of LeanUNet2DModel .did you mean"),
        ([""], "'' is no module"),
    ):
        with pytest.raises(InputError, match=message):
            FeatureTap(network, names)
    with (
        pytest.raises(InputError, match="'output' was not called"),
        FeatureTap(network, ["input", "output"]),
    ):
        network.input(torch.zeros(1, 4, 4, 4))
    assert hooks(network) == 0
    with pytest.raises(InputError, match=r"no middle is known of Linear"):
        default_features(nn.Linear(2, 2))
    with pytest.raises(InputError, match="model: got FunctionModel"):
        FeatureTeacher(from_function(lambda x, t: x, LinearPath(), "sample"))


WRAPPERS = {"parallel": nn.DataParallel, "compiled": lambda network: torch.compile(network, backend="eager")}


@pytest.mark.parametrize("wrapper", ["parallel", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_wrapped_network_gives_the_same(wrapper: str) -> None:
    x, t = states()
    labels = torch.tensor([0, 2, 1])
    bare, results = lean(layers_per_block=1, attention_levels=()), []
    for network in (bare, WRAPPERS[wrapper](bare)):
        model = from_diffusers(network, LinearPath(), "flow_prediction", num_classes=3)
        teacher = FeatureTeacher(model)
        moved = x.clone().requires_grad_()
        prediction, features = teacher(moved, t, class_labels=labels)
        alone = teacher.features(moved, t, class_labels=labels)
        torch.testing.assert_close(alone, features)
        results.append((prediction.x0, features[0], *torch.autograd.grad(features[0].square().sum(), moved)))
    torch.testing.assert_close(results[0], results[1])


def test_autocast_and_channels_last() -> None:
    x, t = states()
    network = lean().to(memory_format=torch.channels_last)
    teacher = FeatureTeacher(from_diffusers(network, LinearPath(), "flow_prediction"))
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    labels = torch.tensor([0, 2, 1])
    _, (expected,) = teacher(x, t, class_labels=labels)
    with torch.autocast("cpu", torch.bfloat16):
        prediction, (feature,) = teacher(x, t, class_labels=labels)
    assert prediction.x0.dtype == torch.float32
    torch.testing.assert_close(feature.float(), expected, rtol=0.05, atol=0.05)
    feature.float().sum().backward()
    assert torch.isfinite(x.grad).all()
