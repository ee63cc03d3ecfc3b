"""What the torchmetrics classes of :mod:`genflow.metrics.modular` share: features, states, sums over processes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from genflow.errors import InputError, check_flag
from genflow.metrics.features import Extractor, Features
from genflow.metrics.statistics import FeatureStatistics

__all__ = ["FeatureMetric", "Network", "in_own_order"]

Network = Extractor | nn.Module | Callable[[Tensor], Tensor | Features]


class FeatureMetric(Metric):
    """A metric of features whose states are lists of tensors that end in the features' width.

    States keep their dtype whatever the metric, or a module that holds it, is cast to: torchmetrics' own classes lose
    their float64 sums to ``model.to(torch.bfloat16)``. Processes may have seen different numbers of samples, or none.

    Args:
        network: turns what :meth:`update` gets into :class:`~genflow.metrics.features.Features` or a tensor
            ``(N, D)``: an extractor, which takes uint8 images, or any module or function, which takes what it takes.
            None where :meth:`update` gets features. A module is put, and kept, in evaluation mode.
        reset_real_features: whether :meth:`reset` forgets the real samples too.
        kwargs: of torchmetrics.Metric: ``sync_on_compute``, ``process_group``, ``compute_on_cpu``, ...
    """

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0

    _takes = "values"  # of Features: what the metric is of

    def __init__(self, network: Network | None = None, *, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if network is not None and not callable(network):
            raise InputError(f"network: got {network!r}; allowed: an extractor, a module, a function, None")
        self.network = network.eval() if isinstance(network, nn.Module) else network
        self.reset_real_features = check_flag("reset_real_features", reset_real_features)
        self._moments: list[str] = []
        self._in_forward = False

    def add_rows(self, name: str) -> None:
        """A state that keeps every feature, ``(N, D)`` in parts."""
        self.add_state(name, [], dist_reduce_fx="cat")

    def add_moments(self, name: str) -> None:
        """A state that keeps packed :class:`~genflow.metrics.statistics.FeatureStatistics`, ``(1, D + 2, D)``."""
        self.add_state(name, [], dist_reduce_fx="cat")
        self._moments.append(name)

    def extract(self, images: Tensor) -> Tensor:
        """Features of a batch, float32 or float64 ``(N, D)`` on the metric's device, as wide as those before."""
        found: Any = images
        if self.network is not None:
            with torch.no_grad():
                found = self.network(images)
        if isinstance(found, Features):
            found = getattr(found, self._takes)
        if not isinstance(found, Tensor) or found.ndim != 2 or not found.shape[1]:
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"features: got {came}; allowed: a tensor (N, D)")
        width = self._width()
        if width not in (None, found.shape[1]):
            raise InputError(f"features: got shape {tuple(found.shape)}; before, D was {width}")
        if not bool(torch.isfinite(found).all()):
            raise InputError("features: some are NaN or infinite")
        wide = found.dtype == torch.float64
        return found.detach().to(self.device, torch.float64 if wide else torch.float32)

    def keep(self, name: str, features: Tensor) -> None:
        """Add a batch to a state."""
        state = getattr(self, name)
        if name not in self._moments:
            state.append(features)
        elif len(features):
            if not state:
                state.append(FeatureStatistics(features.shape[1], self.device).packed()[None])
            FeatureStatistics.from_packed(state[-1][0]).update(features)

    def rows(self, name: str, label: str) -> Tensor:
        """All features of a state. Raises InputError, with the label, where there are none."""
        state = getattr(self, name)
        parts = [state] if isinstance(state, Tensor) else state
        if not sum(part.numel() for part in parts):
            raise InputError(f"{label}: no samples yet; call update before compute")
        wide = any(part.dtype == torch.float64 for part in parts)
        return torch.cat([part.double() if wide else part for part in parts])

    def statistics(self, name: str, label: str) -> FeatureStatistics:
        """All of a state of moments. Raises InputError, with the label, where there are fewer than two samples."""
        state = getattr(self, name)
        parts = [part for stack in ([state] if isinstance(state, Tensor) else state) for part in stack if part.numel()]
        merged = _merge(parts) if parts else None
        if merged is None or merged.count < 2:
            count = 0 if merged is None else merged.count
            raise InputError(f"{label}: {count} samples; at least 2 are needed")
        return merged

    def _width(self) -> int | None:
        for name in self._defaults:
            state = getattr(self, name)
            if len(state):
                return state[0].shape[-1]
        return None

    def _sync_dist(self, dist_sync_fn: Callable = gather_all_tensors, process_group: Any | None = None) -> None:
        """Gather over processes; one that has nothing of a state takes part with no rows of the others' width."""
        own = torch.tensor(self._width() or 0, device=self.device)
        gathered = dist_sync_fn(own, group=process_group or self.process_group)
        widths = {int(width) for width in gathered} - {0}
        if len(widths) > 1:
            raise InputError(f"features: the processes have features of different widths: {sorted(widths)}")
        for width in widths:
            for name in self._defaults:
                if not len(getattr(self, name)):
                    shape = (0, width + 2, width) if name in self._moments else (0, width)
                    dtype = torch.float64 if name in self._moments else torch.float32
                    setattr(self, name, [torch.zeros(shape, dtype=dtype, device=self.device)])
        super()._sync_dist(dist_sync_fn, process_group)

    def _forward_reduce_state_update(self, *args: Any, **kwargs: Any) -> Any:
        """Of a batch alone, as torchmetrics has it; a batch that has no value loses nothing of what was there."""
        names = ("_update_count", "_to_sync", "_should_unsync", "_enable_grad", "compute_on_cpu")
        states, flags = self._copy_state_dict(), {name: getattr(self, name) for name in names}
        self._in_forward = True
        try:
            return super()._forward_reduce_state_update(*args, **kwargs)
        except Exception:
            for name, value in (states | flags).items():
                setattr(self, name, value)
            raise
        finally:
            self._in_forward = False

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        if self._in_forward:  # reset has left the real samples in place: they are not to be added to themselves
            incoming_state = incoming_state | {name: [] for name in self._kept()}
        super()._reduce_states(incoming_state)
        for name in self._moments:
            parts = [part for stack in getattr(self, name) for part in stack]
            setattr(self, name, [_merge(parts).packed()[None]] if parts else [])

    def reset(self) -> None:
        """Forget the samples; the real ones only where ``reset_real_features`` says so."""
        defaults, kept = self._defaults, self._kept()
        self._defaults = {name: default for name, default in defaults.items() if name not in kept}
        try:
            super().reset()
        finally:
            self._defaults = defaults

    def _kept(self) -> list[str]:
        """The states that :meth:`reset` leaves."""
        return [] if self.reset_real_features else [name for name in self._defaults if name.startswith("real_")]

    def train(self, mode: bool = True) -> "FeatureMetric":
        """As of any module; the feature network stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.network, nn.Module):
            self.network.eval()
        return self

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> nn.Module:
        self._computed = None
        super()._apply(fn, exclude_state=[*exclude_state, *self._defaults])
        for name in self._defaults:
            if name not in exclude_state:  # to another device, but never to another dtype
                state = getattr(self, name)
                moved = [part.to(fn(part.new_empty(0)).device) for part in state]
                setattr(self, name, torch.stack(moved) if isinstance(state, Tensor) and moved else moved)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if any(len(getattr(self, name)) for name in self._defaults):
            self._update_count = max(1, self._update_count)  # or compute warns that there is nothing


def _merge(parts: Sequence[Tensor]) -> FeatureStatistics:
    """Packed statistics ``(D + 2, D)``, one or more, as one; a single part shares its storage."""
    if len(parts) == 1:
        return FeatureStatistics.from_packed(parts[0])
    merged = FeatureStatistics(parts[0].shape[1], parts[0].device)
    for part in parts:
        merged.merge(FeatureStatistics.from_packed(part))
    return merged


def in_own_order(rows: Tensor) -> Tensor:
    """Rows sorted by a hash of their bits: the same whatever the order, batches and processes that they came by."""
    bits = rows.contiguous().view(torch.int32).reshape(len(rows), -1)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(2**62, (bits.shape[1],), generator=generator).to(rows.device) | 1
    key = torch.cat([(part.long() * factors).sum(1) for part in bits.split(4096)])  # exact: integers wrap around
    return rows[key.argsort()]
