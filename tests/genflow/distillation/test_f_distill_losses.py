"""The losses of f-distill in closed form."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genflow.distillation import (
    approximate_r1,
    discriminator_loss,
    exact_weight,
    fake_score_loss,
    fake_score_objective,
    generator_loss,
    perturb_for_r1,
    student_loss,
)
from genflow.errors import InputError
from genflow.models import EDMPreconditioning, LeanUNet2DModel, from_diffusers, from_function
from genflow.paths import EDMPath, LinearPath, TrigonometricPath, VPPath
from genflow.training.objectives import create_objective


def draws(*shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(*shape, dtype=torch.float64).to(dtype) for _ in range(3)]


@settings(deadline=None)
@given(
    batch=st.integers(1, 4),
    shape=st.sampled_from([(2,), (3, 4), (1, 6, 5), (2, 2, 3, 4)]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_gradient_and_value_of_the_students_loss(batch: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generated, teacher, fake = draws(batch, *shape, dtype=dtype)
    generated.requires_grad_()
    h = torch.rand(batch, dtype=torch.float64)
    per_sample = student_loss(generated, teacher.requires_grad_(), fake.requires_grad_(), h)
    assert per_sample.shape == (batch,)
    assert per_sample.dtype == torch.promote_types(dtype, torch.float32)
    per_sample.sum().backward()
    assert generated.grad is not None
    assert teacher.grad is None
    assert fake.grad is None
    g, t, f = (v.detach().double() for v in (generated, teacher, fake))
    distance = (g - t).abs().flatten(1).mean(1) + 1e-6
    step = (h / distance).reshape(-1, *[1] * len(shape)) * (f - t)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-2}[dtype]
    size = math.prod(shape)
    torch.testing.assert_close(generated.grad.double(), step / size, rtol=tolerance, atol=tolerance)
    expected = step.square().flatten(1).mean(1) / 2
    torch.testing.assert_close(per_sample.detach().double(), expected, rtol=max(tolerance, 1e-6), atol=tolerance)


def test_a_sample_on_its_target_is_finite() -> None:
    """Where the student makes what the teacher says, the distance is 0."""
    x = torch.randn(2, 3, requires_grad=True)
    loss = student_loss(x, x.detach().clone(), x.detach().clone())
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros(2))
    assert torch.equal(x.grad, torch.zeros(2, 3))


def test_the_exact_weight_is_the_squared_inverse_noise_level() -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for path in (LinearPath(), VPPath.linear(), EDMPath(10.0)):
        expected = 7 * (path.alpha(t) / path.sigma(t)) ** 2
        torch.testing.assert_close(exact_weight(path, t, 7), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_x0": torch.zeros(4, 3)}, "teacher_x0: shape .4, 3. does not fit generated .4, 2."),
        ({"fake_x0": torch.zeros(3, 2)}, "fake_x0"),
        ({"h": torch.ones(4, 1)}, r"h: shape \(4, 1\); allowed: \(4,\)"),
        ({"weight": torch.ones(())}, "weight"),
    ],
)
def test_shapes_that_do_not_fit(change: dict[str, Tensor], message: str) -> None:
    arguments = {"generated": torch.zeros(4, 2), "teacher_x0": torch.zeros(4, 2), "fake_x0": torch.zeros(4, 2)}
    with pytest.raises(InputError, match=message):
        student_loss(**{**arguments, **change})


def test_adversarial_losses_are_binary_cross_entropy() -> None:
    real, fake = 5 * torch.randn(2, 50, dtype=torch.float64)
    one, zero = torch.ones(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    cross = F.binary_cross_entropy_with_logits
    expected = cross(real, one, reduction="none") + cross(fake, zero, reduction="none")
    torch.testing.assert_close(discriminator_loss(real, fake), expected)
    torch.testing.assert_close(generator_loss(fake), cross(fake, one, reduction="none"))
    assert torch.isfinite(discriminator_loss(torch.tensor(-1e4), torch.tensor(1e4)))


STD = 0.1


def test_r1_of_a_linear_discriminator_is_exact_in_the_mean() -> None:
    """``E (a . std n)^2 = std^2 |a|^2``: over antipodal pairs of the axes, whose second moments are a normal's."""
    a = torch.tensor([0.7, -1.2, 2.0], dtype=torch.float64)
    x = torch.randn(6, 3, dtype=torch.float64)
    noise = math.sqrt(3) * torch.cat([torch.eye(3), -torch.eye(3)]).double()
    found = approximate_r1(x @ a, (x + STD * noise) @ a)
    assert found.mean().item() == pytest.approx(STD**2 * a.square().sum().item(), rel=1e-12)


def test_r1_of_a_quadratic_discriminator() -> None:
    """``l = x A x / 2``: ``E = std^2 |Ax|^2 + std^4 (2 tr A^2 + tr^2 A) / 4``; the first is the exact penalty."""
    torch.manual_seed(3)
    matrix = torch.randn(2, 2, dtype=torch.float64)
    matrix = matrix + matrix.T
    x = torch.tensor([1.5, -0.8], dtype=torch.float64, requires_grad=True)

    def logit(x: Tensor) -> Tensor:
        return (x @ matrix * x).sum(-1) / 2

    points, weights = torch.tensor([[-math.sqrt(3), 0, math.sqrt(3)], [1 / 6, 2 / 3, 1 / 6]], dtype=torch.float64)
    noise = torch.cartesian_prod(points, points)  # Gauss-Hermite of order 3: exact to degree 5 in each
    weight = torch.cartesian_prod(weights, weights).prod(1)
    moved = logit(x + STD * noise)
    found = (weight * approximate_r1(logit(x), moved)).sum()
    penalty = torch.autograd.grad(logit(x), x)[0].square().sum()
    rest = (2 * (matrix @ matrix).trace() + matrix.trace() ** 2) / 4
    assert found.item() == pytest.approx((STD**2 * penalty + STD**4 * rest).item(), rel=1e-10)
    assert found.item() == pytest.approx(STD**2 * penalty.item(), rel=0.05)


@pytest.mark.parametrize("path", [LinearPath(), TrigonometricPath(), EDMPath(80.0)], ids=lambda p: p.name)
def test_states_are_moved_by_a_share_of_their_scale(path) -> None:
    t = torch.tensor([0.1, 0.9])
    x, noise = torch.randn(2, 2, 1, 4, 4)
    moved = (perturb_for_r1(x, noise, path, t, 0.2) - x) / noise
    scale = torch.hypot(path.alpha(t), path.sigma(t)).float().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(moved, (0.2 * scale).expand_as(x), rtol=2e-3, atol=1e-5)
    assert perturb_for_r1(x.bfloat16(), noise, path, t).dtype == torch.bfloat16


def network() -> LeanUNet2DModel:
    return LeanUNet2DModel(sample_size=8, block_out_channels=(16, 32), attention_head_dim=16, num_classes=3)


def test_the_fake_score_learns_as_the_teacher_did() -> None:
    linear = fake_score_objective(from_diffusers(network(), LinearPath(), "flow_prediction"), "logit-normal")
    assert linear == create_objective("velocity", LinearPath(), "logit-normal")
    vp = fake_score_objective(from_diffusers(network(), VPPath.cosine(), "v_prediction"), "uniform")
    assert vp == create_objective("v_prediction", VPPath.cosine(), "uniform")
    path = EDMPath(80.0)
    teacher = from_diffusers(network(), path, "epsilon", sigma_data=0.6)
    edm = fake_score_objective(teacher, "log-normal", -1.2, 1.2)
    created = create_objective("edm", path, "log-normal", -1.2, 1.2, sigma_data=0.6)
    assert dataclasses.replace(edm, weight=None) == dataclasses.replace(created, weight=None)
    level = torch.tensor([0.5])
    torch.testing.assert_close(edm.weight(level), EDMPreconditioning(0.6).loss_weight(level))
    with pytest.raises(InputError, match="teacher: got FunctionModel"):
        fake_score_objective(from_function(lambda x, t: x, path, "sample"))


def test_the_fake_score_loss_gives_the_samples_no_gradient() -> None:
    model = from_diffusers(network(), LinearPath(), "flow_prediction")
    objective = fake_score_objective(model)
    generated = torch.randn(3, 1, 8, 8, requires_grad=True)
    noise, t, labels = torch.randn(3, 1, 8, 8), torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0, 1, 3])
    loss = fake_score_loss(objective, model, generated, noise, t, class_labels=labels)
    assert loss.shape == (3,)
    loss.sum().backward()
    assert generated.grad is None
    assert model.network.output.weight.grad is not None
    x = LinearPath().perturb(generated.detach(), noise, t)
    wanted = noise - generated.detach()
    expected = (model.predict(x, t, class_labels=labels).flow_prediction - wanted).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, expected)
