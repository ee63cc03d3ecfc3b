"""A weaker model in the place of the unconditional one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from genflow.errors import InputError
from genflow.guidance import APG, CFG, AutoGuidance, GuidedModel
from genflow.models import from_function
from genflow.paths import LinearPath, VPPath, expand_like
from genflow.sampling import sample

PATH = LinearPath()


def gaussian(std: float, path: Any = PATH, calls: list[int] | None = None) -> Any:
    """The exact denoiser of centred normal data."""

    def x0(x: Tensor, t: float | Tensor, **_: Any) -> Tensor:
        if calls is not None:
            calls.append(len(x))
        alpha, sigma = expand_like(path.alpha(t), x), expand_like(path.sigma(t), x)
        return x * (alpha * std**2 / (alpha**2 * std**2 + sigma**2))

    return from_function(x0, path, "sample")


def test_an_unconditional_model_is_guided_in_closed_form() -> None:
    calls: list[int] = []
    strong, weak = gaussian(1.0, calls=calls), gaussian(2.0, calls=calls)
    x = torch.randn(3, 4, dtype=torch.float64)
    guided = GuidedModel(strong, AutoGuidance(weak, CFG(2.5, interval=(0.5, 2.0))))
    out = guided.predict(x, 0.6).x0
    assert calls == [3, 3]  # each model once, on the plain batch
    a, b = strong.predict(x, 0.6).x0, weak.predict(x, 0.6).x0
    torch.testing.assert_close(out, b + 2.5 * (a - b))
    t = torch.tensor([0.9, 0.4, 0.6], dtype=torch.float64)
    rows = [guided.predict(x[i : i + 1], float(t[i])).x0 for i in range(3)]
    torch.testing.assert_close(guided.predict(x, t).x0, torch.cat(rows))
    calls.clear()
    assert torch.equal(guided.predict(x, 0.9).x0, strong.predict(x, 0.9).x0)
    assert calls == [3, 3]  # outside the interval the weak model is not asked (the second call is the test's)


def test_sampling_narrows_the_data() -> None:
    """Away from a wider normal is a narrower one (figure 2 of the paper, in one dimension)."""
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.linspace(1, 0, 33).tolist()
    plain = sample(gaussian(1.0), x, times, "heun")
    guided = sample(gaussian(1.0), x, times, "heun", AutoGuidance(gaussian(1.5), CFG(2.0)))
    assert plain.std() == pytest.approx(1.0, abs=0.03)
    assert guided.std() < 0.8 * plain.std()


def test_any_rule_and_its_memory() -> None:
    rule = APG(3.0, momentum=-0.5, start=0.25)
    guidance = AutoGuidance(gaussian(2.0), rule)
    assert (guidance.scale, guidance.start, guidance.counts_steps, guidance.neutral) == (3.0, 0.25, True, False)
    x = torch.randn(3, 4)
    runs = [sample(gaussian(1.0), x, [1.0, 0.75, 0.5, 0.25, 0.0], "heun", guidance) for _ in range(2)]
    assert torch.equal(*runs)
    assert rule.steps == 4
    assert not AutoGuidance(gaussian(2.0), CFG(1.0)).is_active(1.0)
    scales = AutoGuidance(gaussian(2.0), CFG([1.0, 2.0, 3.0], rescale=0.7))
    out = GuidedModel(gaussian(1.0), scales).predict(x, 0.5).x0
    torch.testing.assert_close(out[0], gaussian(1.0).predict(x, 0.5).x0[0])
    assert guidance.to_config()["rule"]["name"] == "apg"
    assert "APG" in repr(guidance)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="weak: got str"):
        AutoGuidance("network", CFG(2.0))
    with pytest.raises(InputError, match="rule: got float"):
        AutoGuidance(gaussian(1.0), 2.0)
    with pytest.raises(InputError, match="rule: got AutoGuidance"):
        AutoGuidance(gaussian(1.0), AutoGuidance(gaussian(1.0), CFG(2.0)))
    for weak in (gaussian(1.0, VPPath.linear()), torch.nn.Linear(4, 4)):
        with pytest.raises(InputError, match="allowed: a path model on LinearPath"):
            GuidedModel(gaussian(1.0), AutoGuidance(weak, CFG(2.0)))
