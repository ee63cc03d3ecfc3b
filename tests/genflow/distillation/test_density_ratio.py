"""Both normalizations of the density ratio: what cancels, where the bins are, several batches, several processes."""

import math
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from genflow.distillation import DIVERGENCES, DensityRatio
from genflow.errors import InputError
from genflow.paths import EDMPath, LinearPath

WIDE = (math.exp(-10), math.exp(10))


def batch(count: int, seed: int = 0, low: float = 0.01, high: float = 100.0) -> tuple[Tensor, Tensor]:
    """Logits and log-uniform noise levels (B,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, generator=generator, dtype=torch.float64)
    span = math.log(high / low) * torch.rand(count, generator=generator, dtype=torch.float64)
    return logits, low * span.exp()


def test_bins_are_even_in_the_log_of_the_level() -> None:
    _, levels = batch(20_000, low=0.002, high=80.0)
    ratios = DensityRatio(0.002, 80.0)
    share = torch.bincount(ratios.bin_index(levels), minlength=10) / 20_000
    assert share.min() > 0.09
    assert share.max() < 0.11
    edges = 0.002 * (80 / 0.002) ** (torch.arange(11, dtype=torch.float64) / 10)
    inside = (edges[1:] * edges[:-1]).sqrt()
    assert ratios.bin_index(inside).tolist() == list(range(10))
    # bins even in the level would have most of them in the first
    assert ((levels - 0.002) / (80 - 0.002) * 10).floor().eq(0).double().mean() > 0.75


def test_levels_beyond_the_range_are_in_the_end_bins() -> None:
    levels = torch.tensor([0.0, 1e-30, 0.01, 99.0, 100.0, 1e30, math.inf])
    assert DensityRatio(0.01, 100.0).bin_index(levels).tolist() == [0, 0, 0, 9, 9, 9, 9]


def test_on_path_takes_times() -> None:
    ratios = DensityRatio.on_path(LinearPath(), 0.001, 0.999, bins=4)
    assert (ratios.lowest, ratios.highest) == pytest.approx((0.001 / 0.999, 999.0))
    assert ratios.bins == 4
    assert DensityRatio.on_path(EDMPath(80.0), 0.01, 1.0).highest == pytest.approx(80)
    with pytest.raises(InputError, match="highest: got inf"):
        DensityRatio.on_path(LinearPath(), 0.01, 1.0)


@settings(deadline=None)
@given(seed=st.integers(0, 100), shift=st.floats(-4, 4), count=st.integers(1, 300))
def test_a_factor_of_the_ratio_in_each_bin_cancels(seed: int, shift: float, count: int) -> None:
    """With one batch alone, to rounding: the state is float32."""
    logits, levels = batch(count, seed)
    plain = DensityRatio(0.01, 100.0, decay=0, ratio_range=WIDE)
    shifts = shift * torch.linspace(-1, 1, 10, dtype=torch.float64)[plain.bin_index(levels)]
    shifted = DensityRatio(0.01, 100.0, decay=0, ratio_range=WIDE)(logits + shifts, levels)
    expected = plain(logits, levels)
    torch.testing.assert_close(shifted, expected, rtol=1e-5, atol=0)
    index = plain.bin_index(levels)
    for number in index.unique():
        assert expected[index == number].mean().item() == pytest.approx(1, rel=1e-5)


@settings(deadline=None)
@given(
    seed=st.integers(0, 100),
    count=st.integers(1, 200),
    decay=st.floats(0, 0.99),
    name=st.sampled_from(sorted(DIVERGENCES)),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_weights_have_mean_one(seed: int, count: int, decay: float, name: str, dtype: torch.dtype) -> None:
    logits, levels = batch(count, seed)
    ratios = DensityRatio(0.01, 100.0, decay=decay)
    for scale in (1, 30):  # far beyond the range, too
        weights = ratios.weights(DIVERGENCES[name], (scale * logits).to(dtype).requires_grad_(), levels)
        assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert weights.shape == (count,)
        assert not weights.requires_grad
        assert weights.min() > 0
        assert weights.mean().item() == pytest.approx(1, rel=1e-5)
        if name == "reverse-kl":
            assert torch.equal(weights, torch.ones_like(weights))


def test_logits_are_clamped() -> None:
    """With every sample in a bin of its own the mean is the sample: so many in one bin, where the ends show."""
    logits = torch.tensor([-50.0, -10.0, 0.0, 2.0, 10.0, 500.0])
    ratios = DensityRatio(0.1, 1.0, bins=1, decay=0)
    found = ratios(logits, torch.full((6,), 0.5))
    raw = torch.tensor([0.1, 0.1, 1.0, math.exp(2), 20.0, 20.0])
    torch.testing.assert_close(found, raw / raw.mean())


def test_the_state_is_a_fading_sum_with_no_start_in_it() -> None:
    ratios = DensityRatio(0.01, 100.0, bins=2, decay=0.5, ratio_range=WIDE)
    low, high = torch.full((2,), 0.02), torch.full((2,), 50.0)
    ratios(torch.tensor([2.0, 4.0]).log(), low)
    assert ratios.ratio_sum.tolist() == pytest.approx([6, 0])
    assert ratios.ratio_count.tolist() == [2, 0]
    found = ratios(torch.tensor([1.0, 3.0]).log(), high)
    torch.testing.assert_close(found, torch.tensor([0.5, 1.5]))  # no trace of a 1 to begin with
    found = ratios(torch.tensor([8.0]).log(), low[:1])
    torch.testing.assert_close(found, torch.tensor([8 / ((6 / 4 + 8) / (2 / 4 + 1))]))
    # evaluation changes nothing, and where no sample ever was a ratio is as it came
    state = ratios.ratio_sum.clone()
    ratios.eval()(torch.tensor([3.0]), low[:1])
    assert torch.equal(ratios.ratio_sum, state)
    fresh = DensityRatio(0.01, 100.0, ratio_range=WIDE).eval()
    torch.testing.assert_close(fresh(torch.tensor([8.0]).log(), low[:1]), torch.tensor([8.0]))


def test_means_over_batches_know_more_than_one_batch() -> None:
    """Of 40 samples, 4 a bin, one batch's means are far off; those of ten batches less; the true mean is E[e^l]."""
    errors = {}
    for decay in (0.0, 0.9):
        ratios, squares = DensityRatio(0.01, 100.0, decay=decay, ratio_range=WIDE), []
        for seed in range(200):
            logits, levels = batch(40, seed)
            found = ratios((logits - 0.5), levels)  # E[exp(l - 1/2)] = 1 for normal l
            if seed >= 50:
                squares.append((found.log() - (logits - 0.5)).square().mean())
        errors[decay] = torch.stack(squares).mean().sqrt().item()
    assert errors[0.9] < 0.45 * errors[0.0]


def test_state_goes_through_safetensors(tmp_path: FilePath) -> None:
    ratios = DensityRatio(0.01, 100.0)
    ratios(*batch(64))
    save_file(ratios.state_dict(), tmp_path / "ratio.safetensors")
    again = DensityRatio(0.01, 100.0)
    again.load_state_dict(load_file(tmp_path / "ratio.safetensors"))
    assert sorted(again.state_dict()) == ["ratio_count", "ratio_sum"]
    assert torch.equal(ratios(*batch(64, 1)), again(*batch(64, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 0}, "lowest: got 0"),
        ({"highest": 0.001}, "highest: got 0.001; allowed: a finite number > 0.01"),
        ({"highest": math.inf}, "highest"),
        ({"bins": 0}, "bins: got 0"),
        ({"bins": 2.5}, "bins: got 2.5; allowed: an integer"),
        ({"decay": 1.0}, "decay: got 1.0"),
        ({"ratio_range": (0, 20)}, "ratio_range: got 0"),
        ({"ratio_range": (3, 2)}, "ratio_range: got 2; allowed: a finite number > 3"),
        ({"ratio_range": (1, 2, 3)}, "ratio_range"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DensityRatio(**{"lowest": 0.01, "highest": 100.0, **options})


@pytest.mark.parametrize(("logits", "levels"), [((4, 1), (4,)), ((4,), (5,)), ((4,), ())])
def test_shapes_that_do_not_fit(logits: tuple[int, ...], levels: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="allowed: both"):
        DensityRatio(0.01, 100.0)(torch.zeros(logits), torch.ones(levels))


SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from genflow.distillation import DIVERGENCES, DensityRatio

rank, folder = int(sys.argv[1]), sys.argv[2]
generator = torch.Generator().manual_seed(0)
logits = torch.randn(3, 24, generator=generator, dtype=torch.float64)
levels = torch.exp(3 * torch.randn(3, 24, generator=generator, dtype=torch.float64))
mine = slice(0, 16) if rank else slice(16, 24)  # of unequal size
alone, shared, errors = DensityRatio(0.01, 100.0), DensityRatio(0.01, 100.0), []
expected = [alone.weights(DIVERGENCES["js"], *pair) for pair in zip(logits, levels)]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
for row in range(3):
    found = shared.weights(DIVERGENCES["js"], logits[row, mine], levels[row, mine])
    errors.append((found - expected[row][mine]).abs().max().item())
errors.append((shared.ratio_sum - alone.ratio_sum).abs().max().item())
print(json.dumps(errors))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_one(two_processes: Callable[..., list[Any]]) -> None:
    for errors in two_processes(SCRIPT):
        assert max(errors) < 1e-5
