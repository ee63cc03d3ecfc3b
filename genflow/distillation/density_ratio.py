"""From a discriminator's logits to the weights of f-distill: the density ratio and its two normalizations."""

import math

import torch
from torch import Tensor, nn

from genflow.distillation.divergences import Divergence
from genflow.errors import InputError, check_number
from genflow.paths import Path

__all__ = ["DensityRatio", "mean_over_processes", "sum_over_processes"]


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of ``value`` over all processes, without a gradient; ``value`` itself where there is one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    return total


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of all elements of ``value`` over all processes, which may have different numbers: a scalar."""
    total, count = sum_over_processes(torch.stack([value.sum(), value.new_full((), value.numel())]))
    return total / count


class DensityRatio(nn.Module):
    """``r = p / q`` from logits ``log(p / q)``, scaled to a mean of 1 at every noise level, as it is under q.

    An imperfect discriminator's ratio is off by a factor that depends on the noise level most of all. So levels are
    put into bins, even in ``log(noise level)``, and r is divided by its mean in the bin. The mean is that of sums and
    counts which both fade by ``decay`` at each call: bins with few samples move little, and no starting value is
    mixed in. (Bins even in the level itself, as in the paper's code, have nearly all samples of an EDM path in one.)

    Its state is two vectors, ``ratio_sum`` and ``ratio_count``, the same on every process.

    Args:
        lowest, highest: noise levels of the training times; levels beyond fall into the end bins.
        bins: their number; 10 is the paper's code's.
        decay: what is kept of the sums at each call. 0, one batch alone, is the paper's code's with batches of 2048;
            0.9, about ten batches, knows as much from batches of 200.
        ratio_range: r before normalization is kept in here, and so the logits in their logarithms (paper's code).

    Raises:
        InputError: levels, bins, a decay or a range outside what makes sense.
    """

    ratio_sum: Tensor
    ratio_count: Tensor

    def __init__(
        self,
        lowest: float,
        highest: float,
        *,
        bins: int = 10,
        decay: float = 0.9,
        ratio_range: tuple[float, float] = (0.1, 20.0),
    ) -> None:
        super().__init__()
        self.lowest = float(check_number("lowest", lowest, above=0))
        self.highest = float(check_number("highest", highest, above=self.lowest))
        self.bins = int(check_number("bins", bins, at_least=1, integer=True))
        self.decay = float(check_number("decay", decay, at_least=0, below=1))
        if len(ratio_range) != 2:
            raise InputError(f"ratio_range: got {ratio_range!r}; allowed: two ratios (low, high) with 0 < low < high")
        low = check_number("ratio_range", ratio_range[0], above=0)
        self.ratio_range = (float(low), float(check_number("ratio_range", ratio_range[1], above=low)))
        self.register_buffer("ratio_sum", torch.zeros(self.bins))
        self.register_buffer("ratio_count", torch.zeros(self.bins))

    @classmethod
    def on_path(cls, path: Path, earliest: float, latest: float, **options: float) -> "DensityRatio":
        """For training times from ``earliest`` above 0 to ``latest`` on ``path``, where its level is finite."""
        check_number("earliest", earliest, above=0, below=1)
        check_number("latest", latest, above=earliest, at_most=1)
        return cls(path.noise_level(float(earliest)), path.noise_level(float(latest)), **options)

    def bin_index(self, noise_level: Tensor) -> Tensor:
        """The bin of each noise level (B,), int64."""
        low, high = math.log(self.lowest), math.log(self.highest)
        place = (noise_level.log() - low) / (high - low) * self.bins
        return place.clamp(0, self.bins - 1).long()  # clamped first: an infinite level has no integer

    def forward(self, logits: Tensor, noise_level: Tensor) -> Tensor:
        """Normalized ratios (B,) without a gradient, float32 at least; in training mode the state moves first.

        ``logits`` and ``noise_level`` are (B,); every process must call this at the same time.
        """
        if logits.ndim != 1 or noise_level.shape != logits.shape:
            found = f"{tuple(logits.shape)} with noise levels of {tuple(noise_level.shape)}"
            raise InputError(f"logits: shape {found}; allowed: both (B,)")
        logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        low, high = (math.log(bound) for bound in self.ratio_range)
        ratio = logits.clamp(low, high).exp()
        index = self.bin_index(noise_level.to(logits.device))
        if self.training:
            numbers = torch.arange(self.bins, device=index.device)
            inside = index[:, None] == numbers  # bincount would wait for the device
            sums = torch.stack([(inside * ratio[:, None]).sum(0), inside.sum(0).to(ratio.dtype)])
            sums = sum_over_processes(sums).to(self.ratio_sum.dtype)
            self.ratio_sum.mul_(self.decay).add_(sums[0])
            self.ratio_count.mul_(self.decay).add_(sums[1])
        seen = self.ratio_count > 0
        mean = torch.where(seen, self.ratio_sum, 1) / torch.where(seen, self.ratio_count, 1)
        return ratio / mean.to(ratio.dtype)[index]

    def weights(self, divergence: Divergence, logits: Tensor, noise_level: Tensor) -> Tensor:
        """``h`` of the normalized ratios (B,), divided by its mean over the batch of all processes: what a sample's
        score difference is multiplied with. Exactly 1 for reverse-KL."""
        h = divergence.h(self(logits, noise_level))
        return h / mean_over_processes(h)
