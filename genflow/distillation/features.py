"""A frozen teacher that gives its denoised estimate and its intermediate features from one evaluation."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from genflow.errors import InputError, nearest
from genflow.guidance import AutoGuidance, Guidance
from genflow.models import NetworkModel
from genflow.prediction import Prediction

__all__ = ["FeatureTap", "FeatureTeacher", "default_features"]


def _unwrapped(network: nn.Module) -> nn.Module:
    return extract_model_from_parallel(network, keep_torch_compile=False)


def default_features(network: nn.Module) -> tuple[str, ...]:
    """The module in the middle of ``network``, by name: the coarsest level of a U-Net, the middle block of a
    transformer.

    Known by their parts: LeanUNet2DModel; diffusers' U-Nets (``mid_block``, or the last of ``down_blocks``); networks
    with a list of ``transformer_blocks``, ``blocks`` or ``layers``.

    Raises:
        InputError: none of these; name the modules yourself.
    """
    for name in ("mid_block", "middle_block"):
        if isinstance(getattr(network, name, None), nn.Module):
            return (name,)
    for name in ("down_levels", "down_blocks"):
        if isinstance(getattr(network, name, None), nn.ModuleList):
            return (f"{name}.{len(getattr(network, name)) - 1}",)
    for name in ("transformer_blocks", "blocks", "layers"):
        if isinstance(getattr(network, name, None), nn.ModuleList):
            return (f"{name}.{len(getattr(network, name)) // 2}",)
    parts = ", ".join(name for name, _ in network.named_children())
    raise InputError(f"features: no middle is known of {type(network).__name__}; name its modules ({parts} ...)")


def _main_tensor(output: Any) -> Tensor:
    """The last tensor at the top of a module's output: a U-Net block gives (x, skips), a joint block (text, x)."""
    while not isinstance(output, Tensor):
        parts = list(output.values()) if isinstance(output, Mapping) else list(output)
        output = next((part for part in reversed(parts) if isinstance(part, Tensor)), parts[0])
    return output


class _Enough(Exception):  # noqa: N818 - nothing is wrong: the last feature is there
    """Ends a forward pass of which nothing more is wanted."""


class FeatureTap(AbstractContextManager["FeatureTap"]):
    """Records what modules of a network give while it is used as a context; hooks stand only so long.

    Args:
        network: any network, wrapped by accelerate or not.
        names: of its modules, as in ``named_modules()``. Of a module that gives several things, the
            last tensor at the top is taken.
        then: what happens to the rest of the forward pass once all are recorded: ``go-on``; ``no-grad``, it goes on
            without a graph; ``stop``, it ends, and with it the ``with`` block.

    Attributes:
        features: the tensors in the order of ``names``, with their graph; there after the ``with`` block.

    Raises:
        InputError: a name that the network does not have, or twice the same; after the block, a module that was not
            called.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], then: str = "go-on") -> None:
        bare = _unwrapped(network)
        known = dict(bare.named_modules())
        if not names or len(set(names)) < len(names):
            raise InputError(f"features: got {list(names)}; allowed: one or more names of modules, each once")
        for name in names:
            if name not in known or not name:
                raise InputError(f"features: {name!r} is no module of {type(bare).__name__}{nearest(name, known)}")
        self.modules = {name: known[name] for name in names}
        self.then = then
        self.features: list[Tensor] = []

    def __enter__(self) -> "FeatureTap":
        self.features = []
        self._found: dict[str, Tensor] = {}
        self._grad = torch.is_grad_enabled()
        self._handles: list[RemovableHandle] = [
            module.register_forward_hook(self._hook(name)) for name, module in self.modules.items()
        ]
        return self

    def _hook(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            self._found[name] = _main_tensor(output)
            if len(self._found) == len(self.modules):
                if self.then == "stop":
                    raise _Enough
                if self.then == "no-grad":
                    torch.set_grad_enabled(False)

        return record

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        for handle in self._handles:
            handle.remove()
        torch.set_grad_enabled(self._grad)
        found, self._found = self._found, {}
        if kind is not None and kind is not _Enough:
            return False
        for name in self.modules:
            if name not in found:
                raise InputError(f"features: {name!r} was not called; allowed: modules of every forward pass")
        self.features = [found[name] for name in self.modules]
        return kind is _Enough


class FeatureTeacher:
    """A frozen network on a path, asked for denoised estimates and features at once.

    Parameters get no gradient; through the features it flows to the states, as the student needs it. The estimate is
    a constant: past the last feature no graph is kept. With guidance the features are those under the given labels.

    Args:
        model: the teacher. Its network is frozen and put in eval mode.
        features: names of modules; :func:`default_features` by default.
        guidance: a rule for the estimate, or None.
        unconditional: conditioning that stands for "no condition" in guidance, by name; the null label by default.

    Raises:
        InputError: a model that is not a network on a path, modules that it does not have, guidance without an
            unconditional.
    """

    def __init__(
        self,
        model: NetworkModel,
        features: Sequence[str] | None = None,
        guidance: Guidance | None = None,
        unconditional: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(model, NetworkModel):
            raise InputError(f"model: got {type(model).__name__}; allowed: a network wrapped by from_diffusers")
        self.model = model
        self.path = model.path
        model.network.requires_grad_(False).eval()
        self.names = default_features(_unwrapped(model.network)) if features is None else features
        FeatureTap(model.network, self.names)  # a name that is wrong fails here
        self.guidance = None if guidance is None or guidance.neutral else guidance
        self.unconditional = dict(unconditional or {})
        towards = isinstance(guidance, AutoGuidance) or self.unconditional or model.null_label is not None
        if self.guidance is not None and not towards:
            raise InputError("guidance: the teacher has no null label; allowed: with `unconditional`, or None")

    def __call__(self, x: Tensor, t: Tensor, **conditioning: Any) -> tuple[Prediction, list[Tensor]]:
        """The (guided) prediction at states ``x`` (B, ...) and times ``t`` (B,), and the features with their graph."""
        with FeatureTap(self.model.network, self.names, then="no-grad") as tap:
            prediction = self.model.predict(x, t, **conditioning)
        with torch.no_grad():
            prediction = Prediction(prediction.x0.detach(), "sample", x.detach(), self.path, t)
            if self.guidance is not None:
                prediction = self._guided(prediction, **conditioning)
        return prediction, tap.features

    def features(self, x: Tensor, t: Tensor, **conditioning: Any) -> list[Tensor]:
        """The features alone; the network is not evaluated past the last one."""
        tap = FeatureTap(self.model.network, self.names, then="stop")
        with tap:
            self.model.predict(x, t, **conditioning)
        return tap.features

    def _guided(self, prediction: Prediction, **conditioning: Any) -> Prediction:
        guidance, x, t = self.guidance, prediction.x, prediction.t
        assert guidance is not None
        guidance.reset(1)  # states are of many runs: nothing is carried over
        if isinstance(guidance, AutoGuidance):
            other = guidance.weak.predict(x, t, **conditioning)
        else:
            null = {"class_labels": None} if not self.unconditional else self.unconditional
            other = self.model.predict(x, t, **{**conditioning, **null})
        guided = guidance(prediction.x0, other.x0, x, self.path.noise_level(t))
        return prediction.replace(guided)

    @torch.no_grad()
    def feature_shapes(self, x: Tensor, **conditioning: Any) -> list[tuple[int, ...]]:
        """Shapes of the features without the batch, found by asking for them at states ``x`` (B, ...)."""
        half = torch.full((x.shape[0],), 0.5, device=x.device)
        return [tuple(feature.shape[1:]) for feature in self.features(x, half, **conditioning)]
