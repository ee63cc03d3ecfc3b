"""Nothing in a step of f-distill waits for an accelerator: found on the CPU, by the operations that would."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from genflow.distillation import (
    DIVERGENCES,
    DensityRatio,
    Discriminator,
    approximate_r1,
    discriminator_loss,
    exact_weight,
    generator_loss,
    perturb_for_r1,
    student_loss,
)
from genflow.paths import LinearPath

# read a value, need a size that depends on one, or copy a Python number from the host
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "equal", "lift_fresh"}


class Waiting(Exception):  # noqa: N818
    pass


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        masks = name.startswith("index") and any(i is not None and i.dtype == torch.bool for i in _indices(args))
        if name in WAITING or masks:
            raise Waiting(name)
        return function(*args, **(kwargs or {}))


def _indices(args: tuple[Any, ...]) -> list[Any]:
    return list(args[1]) if len(args) > 1 and isinstance(args[1], (list, tuple)) else []


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_a_step_never_waits(name: str) -> None:
    path, t = LinearPath(), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    generated = torch.randn(6, 1, 8, 8, requires_grad=True)
    teacher, fake, noise, feature = *torch.randn(3, 6, 1, 8, 8), torch.randn(6, 8, 4, 4)
    ratios, discriminator = DensityRatio.on_path(path, 0.01, 0.99), Discriminator([(8, 4, 4)])
    with Watch():
        logits = discriminator([feature])
        h = ratios.weights(DIVERGENCES[name], logits, path.noise_level(t))
        loss = student_loss(generated, teacher, fake, h).mean() + generator_loss(logits).mean()
        loss = loss + student_loss(generated, teacher, fake, h, exact_weight(path, t, 64)).mean()
        moved = perturb_for_r1(generated, noise, path, t)
        loss = loss + approximate_r1(logits, moved.mean((1, 2, 3))).mean()
        (loss + discriminator_loss(logits, -logits).mean()).backward()
    assert torch.isfinite(generated.grad).all()


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: torch.bincount(x.long().abs()),
        lambda x: x.new_tensor(3),
        lambda x: bool((x > 0).any()),
    ],
)
def test_what_waits_is_found(waits: Any) -> None:
    x = torch.randn(5)
    with pytest.raises(Waiting), Watch():
        waits(x)
