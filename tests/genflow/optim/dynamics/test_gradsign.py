"""Gradients of single samples, the golden score and its bounds; how well it ranks networks is in tests/evaluate."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genflow.errors import InputError, NonFiniteError
from genflow.optim.dynamics import gradient_chunks, gradsign, rank_networks


def golden():
    """The problem of the specification, section 4: a linear classifier, 32 samples of 6 numbers in 4 classes."""
    x = torch.sin(0.7 * torch.arange(192, dtype=torch.float64)).view(32, 6)
    y = (x @ torch.cos(torch.arange(24, dtype=torch.float64)).view(4, 6).T).argmax(1)
    network = nn.Linear(6, 4).double()
    with torch.no_grad():
        network.weight.copy_(0.3 * torch.sin(1.3 * torch.arange(24, dtype=torch.float64)).view(4, 6))
        network.bias.zero_()
    return network, x, y


def cross_entropy(network, x, y):
    return F.cross_entropy(network(x), y)


@pytest.mark.parametrize("method", ["vmap", "loop"])
@pytest.mark.parametrize("chunk", [3, 8, 100])
def test_golden_score(method, chunk):
    network, x, y = golden()
    options = {"chunk": chunk, "method": method}
    score = gradsign(network, cross_entropy, (x[:8], y[:8]), **options)
    assert score == 80.0  # the bound is 8 * 24 = 192
    assert gradsign(network, cross_entropy, (x[:8], y[:8]), normalize=True, **options) == pytest.approx(80 / 192)
    both = gradsign(network, cross_entropy, (x[:8], y[:8]), parameters="all", **options)
    bias = gradsign(network, cross_entropy, (x[:8], y[:8]), parameters=lambda name, _: name == "bias", **options)
    assert both == score + bias
    assert network.weight.grad is None


def test_samples_that_agree_and_that_do_not():
    network, x, y = golden()
    same = (x[1:2].repeat(5, 1), y[1:2].repeat(5))
    assert gradsign(network, cross_entropy, same) == 5 * 24
    # under a linear loss a sample and its mirror image have opposite gradients
    pair = (torch.cat([x[:4], -x[:4]]),)
    assert gradsign(network, lambda net, rows: net(rows).sum(), pair) == 0


def conv_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 3, padding=1)
    )


def test_gradients_by_both_methods():
    network = conv_network().eval()
    x, noise, t = torch.randn(5, 1, 6, 6), torch.randn(5, 1, 6, 6), torch.rand(5)

    def loss(net, x, noise, t, nothing):
        assert nothing is None
        return (net(torch.lerp(x, noise, t[:, None, None, None])) - (noise - x)).square().mean()

    samples = (x, noise, t, None)
    vmapped = list(gradient_chunks(network, loss, samples, chunk=2))
    looped = list(gradient_chunks(network, loss, samples, chunk=2, method="loop"))
    assert [len(part["0.weight"]) for part in vmapped] == [2, 2, 1]
    for first, second in zip(vmapped, looped, strict=True):
        assert list(first) == list(second) == [name for name, _ in network.named_parameters()]
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)
    whole = loss(network, x, noise, t, None)
    mean = {name: torch.cat([part[name] for part in vmapped]).mean(0) for name in vmapped[0]}
    for (name, _), gradient in zip(
        network.named_parameters(), torch.autograd.grad(whole, list(network.parameters())), strict=True
    ):
        torch.testing.assert_close(mean[name], gradient, rtol=1e-4, atol=1e-6)


def test_attention_and_genflows_own_network():
    from genflow.models import LeanUNet2DModel

    torch.manual_seed(0)
    options = {"block_out_channels": (16, 32), "layers_per_block": 1, "attention_head_dim": 16, "num_classes": 3}
    network = LeanUNet2DModel(sample_size=8, **options)
    with torch.no_grad():  # the branches start at zero, where most gradients are zero too
        for param in network.parameters():
            param.add_(0.05 * torch.randn_like(param))
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    loss = lambda net, x, y: (net(x, 500 * torch.ones(1), y).sample - x).square().mean()  # noqa: E731
    vmapped, looped = (gradsign(network, loss, (x, labels), normalize=True, method=m) for m in ("vmap", "loop"))
    assert vmapped == pytest.approx(looped, abs=2e-3)
    assert 0.2 < vmapped < 1


def test_ranking_repeats_and_averages():
    builders = {"wide": lambda: nn.Linear(6, 4), "deep": lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))}
    _, x, y = golden()
    x = x.float()
    before = torch.get_rng_state()
    ranked = rank_networks(builders, cross_entropy, (x, y), seeds=(0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert ranked == rank_networks(builders, cross_entropy, (x, y), seeds=(0, 1))
    assert ranked[0][1] > ranked[1][1]
    singles = [dict(rank_networks(builders, cross_entropy, (x, y), seeds=(seed,))) for seed in (0, 1)]
    assert dict(ranked)["deep"] == pytest.approx((singles[0]["deep"] + singles[1]["deep"]) / 2)


def test_bad_input():
    network, x, y = golden()
    for call, message in (
        (lambda: gradsign(network, cross_entropy, (x, y[:3])), r"samples: tensors of \[3, 32\]"),
        (lambda: gradsign(network, cross_entropy, (None,)), "samples: tensors of no samples"),
        (lambda: gradsign(network, cross_entropy, (x[:0], y[:0])), "samples"),
        (lambda: gradsign(network, cross_entropy, (x, y), parameters="weight"), "parameters: 'weight'"),
        (lambda: gradsign(network, cross_entropy, (x, y), parameters=lambda *_: False), "select: no parameter"),
        (lambda: gradsign(network, cross_entropy, (x, y), chunk=0), "chunk"),
        (lambda: gradsign(network, lambda net, x, y: net(x), (x, y)), r"loss: gave shape \(1, 4\)"),
        (lambda: gradsign(conv_network(), lambda net, x: net(x).sum(), (torch.ones(2, 1, 4, 4),)), "3 normalizes"),
        (lambda: rank_networks({}, cross_entropy, (x, y)), "networks, seeds"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(NonFiniteError, match="gradient of weight"):
        gradsign(network, cross_entropy, (x * float("nan"), y))
