"""Heads on features of every kind, and a discriminator that finds the density ratio."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genflow.distillation import (
    DIVERGENCES,
    DensityRatio,
    Discriminator,
    FeatureTeacher,
    approximate_r1,
    discriminator_loss,
    generator_loss,
    perturb_for_r1,
)
from genflow.errors import InputError
from genflow.evaluate.divergences import Mixture
from genflow.models import LeanUNet2DModel, from_diffusers
from genflow.paths import LinearPath


def moved(discriminator: Discriminator) -> Discriminator:
    """With weights at the ends, which begin at 0."""
    with torch.no_grad():
        for head in discriminator.heads:
            head.out.weight.normal_()
    return discriminator


side = st.integers(1, 17)
SHAPES = st.one_of(
    st.tuples(st.integers(1, 9)),
    st.tuples(st.integers(1, 30), st.integers(1, 9)),
    st.tuples(st.integers(1, 9), side, side),
    st.tuples(st.integers(1, 5), st.integers(1, 5), side, side),
)


@settings(deadline=None, max_examples=60)
@given(shapes=st.lists(SHAPES, min_size=1, max_size=3), width=st.one_of(st.none(), st.integers(4, 12)))
def test_any_features_give_a_logit_a_sample(shapes: list[tuple[int, ...]], width: int | None) -> None:
    discriminator = Discriminator(shapes, width)
    features = [torch.randn(3, *shape, requires_grad=True) for shape in shapes]
    assert torch.equal(discriminator(features), torch.zeros(3))  # every ratio begins at 1
    together = moved(discriminator)(features)
    assert together.shape == (3,)
    alone = torch.cat([discriminator([feature[i : i + 1] for feature in features]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)  # samples do not see each other
    together.sum().backward()
    assert all(torch.isfinite(feature.grad).all() for feature in features)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in discriminator.parameters())


def test_square_tokens_are_a_map() -> None:
    """Tokens of a square grid go through the same head as the map they are."""
    tokens, grid = Discriminator([(16, 5)]), Discriminator([(5, 4, 4)])
    grid.load_state_dict(moved(tokens).state_dict())
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(tokens([x.flatten(2).transpose(1, 2)]), grid([x]))
    # others are a set: their order makes no difference
    row = moved(Discriminator([(7, 5)]))
    x = torch.randn(2, 7, 5)
    torch.testing.assert_close(row([x]), row([x.flip(1)]))


def test_every_position_counts_alike() -> None:
    """No checkerboard in what the student gets: inside, the gradient of a sum of positions has no period of two."""
    discriminator = Discriminator([(1, 8, 8)], width=4)
    conv = discriminator.heads[0].layers[0]
    nn.init.ones_(conv.weight)
    x = torch.zeros(1, 1, 8, 8, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad[0, 0, 1:-1, 1:-1].unique().tolist() == [16.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_features_of_any_dtype_and_layout(dtype: torch.dtype) -> None:
    discriminator = moved(Discriminator([(4, 8, 8)])).to(memory_format=torch.channels_last)
    feature = torch.randn(3, 4, 8, 8).to(dtype)
    expected = discriminator([feature.float()])
    found = discriminator([feature.to(memory_format=torch.channels_last)])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(discriminator([feature]).float(), expected, rtol=0.1, atol=0.1)


def test_heads_on_a_teacher() -> None:
    """The logits move the student's samples; the state holds the heads alone."""
    network = LeanUNet2DModel(sample_size=8, block_out_channels=(16, 32), attention_head_dim=16, num_classes=3)
    teacher = FeatureTeacher(
        from_diffusers(network, LinearPath(), "flow_prediction"), ["down_levels.0", "down_levels.1"]
    )
    x, labels = torch.randn(3, 1, 8, 8, requires_grad=True), torch.tensor([0, 1, 2])
    discriminator = moved(Discriminator.on_teacher(teacher, x, class_labels=labels))
    assert len(discriminator.heads) == 2
    assert {name.split(".")[0] for name in discriminator.state_dict()} == {"heads"}
    _, features = teacher(x, torch.tensor([0.1, 0.5, 0.9]), class_labels=labels)
    generator_loss(discriminator(features)).sum().backward()
    assert x.grad.abs().flatten(1).sum(1).min() > 0
    with pytest.raises(InputError, match="features: got 1; allowed: 2"):
        discriminator(features[:1])


@pytest.mark.parametrize("shapes", [[], [()], [(0,)], [(1, 2, 3, 4, 5)]])
def test_shapes_that_no_head_takes(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(InputError, match="shapes"):
        Discriminator(shapes)


def test_a_width_too_small_to_normalize() -> None:
    with pytest.raises(InputError, match="width: got 3"):
        Discriminator([(4,)], width=3)


class Net(nn.Module):
    """A small network in the place of a teacher: random features of state and time."""

    def __init__(self) -> None:
        super().__init__()
        self.mid_block = nn.Sequential(nn.Linear(4, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh())
        self.out = nn.Linear(128, 2)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        t = timestep[:, None] / 1000
        return self.out(self.mid_block(torch.cat([x, t, (3 * t).cos()], dim=1)))


@pytest.mark.slow
def test_a_trained_discriminator_knows_the_density_ratio() -> None:
    """On noised samples of two known mixtures, at all noise levels, with approximate R1 as in training."""
    generator = torch.Generator().manual_seed(0)
    path = LinearPath()
    teacher = FeatureTeacher(from_diffusers(Net(), path, "flow_prediction"))
    means = torch.tensor([[[-1.0, 0.4], [1.2, -0.3]], [[-0.3, -0.6], [0.8, 0.7]]], dtype=torch.float64)
    data, student = (Mixture(m, torch.full_like(m, 0.6), torch.tensor([0.5, 0.5], dtype=torch.float64)) for m in means)

    def noised(mixture: Mixture, t: Tensor) -> Tensor:
        count = len(t)
        part = torch.randint(2, (count,), generator=generator)
        x0 = mixture.means.float()[part] + 0.6 * torch.randn(count, 2, generator=generator)
        return path.perturb(x0, torch.randn(count, 2, generator=generator), t)

    def levels(count: int) -> Tensor:
        return path.time(torch.exp(math.log(20) * (2 * torch.rand(count, generator=generator) - 1) - 0.5))

    discriminator = Discriminator.on_teacher(teacher, torch.zeros(2, 2))
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        t = levels(512)
        real, fake = noised(data, t), noised(student, t)
        shaken = perturb_for_r1(real, torch.randn(real.shape, generator=generator), path, t)
        logits = discriminator(teacher.features(torch.cat([real, fake, shaken]), t.repeat(3)))
        real, fake, shaken = logits.chunk(3)
        loss = discriminator_loss(real, fake) + 0.1 * approximate_r1(real, shaken)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        schedule.step()
    t = levels(4000)
    x = noised(student, t)
    with torch.no_grad():
        found = discriminator(teacher.features(x, t)).double()
        exact = data.log_prob(x.double(), path, t.double()) - student.log_prob(x.double(), path, t.double())
    near = path.noise_level(t) < 1
    for some in (near, ~near):
        assert torch.corrcoef(torch.stack([found[some], exact[some]]))[0, 1] > 0.9
    assert (found - exact).square().mean() < 0.1 * exact.square().mean()
    ratios = [DensityRatio.on_path(path, 0.03, 0.93) for _ in range(2)]
    noise_level = path.noise_level(t)
    for name in ("js", "forward-kl"):
        weights = [
            r.weights(DIVERGENCES[name], some, noise_level) for r, some in zip(ratios, (found, exact), strict=True)
        ]
        assert (weights[0] - weights[1]).abs().mean() < 0.15
