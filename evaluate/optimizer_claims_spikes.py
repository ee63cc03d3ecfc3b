"""Claims about Stable-SPAM: gradient spikes, and training in 4 bits, on a small language model."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from genflow.evaluate.optimizer_claims import Claim, Finding, Panel
from genflow.optim import StableSPAM

__all__ = ["CLAIMS", "FakeQuantizedLinear"]

_VOCABULARY, _LENGTH = 16, 16


class _Rounded(torch.autograd.Function):
    """Round to 15 levels between plus and minus the largest entry; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = x.abs().amax().clamp_min(1e-12) / 7
        return (x / scale).round() * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class FakeQuantizedLinear(nn.Linear):
    """Weights and inputs rounded to 4 bits a tensor in the forward pass (W4A4); gradients straight through."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_Rounded.apply(x), _Rounded.apply(self.weight), self.bias)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, linear: type[nn.Linear]) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class _LanguageModel(nn.Module):
    def __init__(self, linear: type[nn.Linear], width: int = 32, depth: int = 1) -> None:
        super().__init__()
        self.tokens = nn.Embedding(_VOCABULARY, width)
        self.positions = nn.Parameter(0.02 * torch.randn(_LENGTH, width))
        self.blocks = nn.Sequential(*[_Block(width, 2, linear) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, _VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions)))


def _texts(count: int, generator: torch.Generator) -> Tensor:
    """Sequences whose next token depends on the sum of the two before it."""
    table = (3 * torch.randn(_VOCABULARY, _VOCABULARY, generator=torch.Generator().manual_seed(0))).softmax(-1)
    text = torch.zeros(count, _LENGTH + 1, dtype=torch.long)
    text[:, :2] = torch.randint(0, _VOCABULARY, (count, 2), generator=generator)
    for t in range(2, _LENGTH + 1):
        known = (text[:, t - 2] + text[:, t - 1]) % _VOCABULARY
        text[:, t] = torch.multinomial(table[known], 1, generator=generator)[:, 0]
    return text


@functools.cache  # claims share trainings, and so do their tests
def _train(
    make: Callable[[list[nn.Parameter]], Optimizer], lr: float, steps: int, spike: float, four_bit: bool
) -> tuple[float, tuple[float, ...]]:
    """Held-out loss at the end, and the losses of training; a share ``spike`` of gradients comes 1000 times larger."""
    generator = torch.Generator().manual_seed(0)
    texts, held = _texts(2048, generator), _texts(256, generator)
    torch.manual_seed(0)
    network = _LanguageModel(FakeQuantizedLinear if four_bit else nn.Linear)
    params = list(network.parameters())
    optimizer = make(params)
    order, spikes = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    losses = []

    def loss_of(batch: Tensor) -> Tensor:
        return F.cross_entropy(network(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 20)
        loss = loss_of(texts[torch.randint(0, len(texts), (32,), generator=order)])
        optimizer.zero_grad()
        loss.backward()
        if step > 50 and torch.rand((), generator=spikes) < spike:
            torch._foreach_mul_([param.grad for param in params], 1000.0)
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
    with torch.no_grad():
        end = loss_of(held).item()
    return end if math.isfinite(end) else math.inf, tuple(losses)


_STEPS, _QUICK = 400, 60
_BOTH: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "Adam": Adam,
    "Stable-SPAM": lambda params: StableSPAM(params, gap=200),
}


@functools.cache
def _frequencies_alone() -> float:
    """The held-out loss of a model that knows how often each token comes and nothing else."""
    generator = torch.Generator().manual_seed(0)
    counts = _texts(2048, generator)[:, 1:].flatten().bincount(minlength=_VOCABULARY)
    held = _texts(256, generator)[:, 1:].flatten()
    return F.nll_loss((counts / counts.sum()).log().expand(len(held), -1), held).item()


def _is_lost(loss: float) -> bool:
    """Whether training has come to nothing: no better, but for a hundredth, than frequencies alone."""
    return loss > 0.99 * _frequencies_alone()


def _means(losses: tuple[float, ...], every: int = 5) -> tuple[range, list[float]]:
    """Training losses for a drawing."""
    starts = range(0, len(losses), every)
    return starts, [sum(losses[i : i + every]) / len(losses[i : i + every]) for i in starts]


def _spiked(four_bit: bool, quick: bool) -> Finding:
    steps = _QUICK if quick else _STEPS
    ends: dict[str, float] = {}
    lines = {}
    for name, make in _BOTH.items():
        for share, kind in ((0.0, "without spikes"), (0.01, "with spikes")):
            ends[f"{name} {kind}"], losses = _train(make, 1e-2, steps, share, four_bit)
            lines[f"{name} {kind}"] = _means(losses)
    adam, ours = ends["Adam with spikes"], ends["Stable-SPAM with spikes"]
    lost = ours - ends["Stable-SPAM without spikes"]
    nothing = _frequencies_alone()
    return Finding(
        figure=f"held-out loss, {nothing:.2f} by frequencies alone: Stable-SPAM {ours:.3f} ({lost:+.3f} by the "
        f"spikes), Adam {adam:.3f} ({adam - ends['Adam without spikes']:+.3f})",
        holds=lost < 0.2 and not _is_lost(ours) and _is_lost(adam),
        numbers={**ends, "frequencies alone": nothing},
        panel=Panel("step", "training loss", lines, level=nothing),
    )


def spikes(quick: bool = False) -> Finding:
    """One gradient in a hundred comes 1000 times as large."""
    return _spiked(False, quick)


def four_bit_spikes(quick: bool = False) -> Finding:
    """The same with weights and activations in 4 bits."""
    return _spiked(True, quick)


def four_bit(quick: bool = False) -> Finding:
    """Weights and activations in 4 bits at three step sizes, the largest of which leaves both little."""
    steps, rates = (_QUICK, (1e-2,)) if quick else (_STEPS, (1e-2, 2e-2, 4e-2))
    ends: dict[str, dict[str, float]] = {name: {} for name in _BOTH}
    lines = {}
    for name, make in _BOTH.items():
        for lr in rates:
            ends[name][f"{lr:g}"], losses = _train(make, lr, steps, 0.0, True)
            lines[f"{name}, lr {lr:g}"] = _means(losses)
    ours, adam = ends["Stable-SPAM"], ends["Adam"]
    pairs = ", ".join(f"lr {lr}: {ours[lr]:.3f} and {adam[lr]:.3f}" for lr in adam)
    alone = [lr for lr in adam if _is_lost(adam[lr]) and not _is_lost(ours[lr])]
    told = f"at lr {alone[0]} Adam alone is lost" if alone else "at none of them is Adam alone lost"
    nothing = _frequencies_alone()
    return Finding(
        figure=f"held-out loss, {nothing:.2f} by frequencies alone, of Stable-SPAM and Adam: {pairs}; {told}",
        holds=bool(alone),
        numbers={**ends, "frequencies alone": nothing},
        panel=Panel("step", "training loss", lines, level=nothing),
    )


CLAIMS = {
    "spikes": Claim("survives gradient spikes at which Adam diverges", "Stable-SPAM, arXiv 2502.17055", spikes),
    "four-bit": Claim("trains in 4 bits at step sizes where Adam diverges", "Stable-SPAM, arXiv 2502.17055", four_bit),
    "four-bit-spikes": Claim(
        "survives spikes in 4-bit training, at which Adam diverges", "Stable-SPAM, arXiv 2502.17055", four_bit_spikes
    ),
}
