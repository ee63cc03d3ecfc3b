"""From networks and functions to path models, and from one path to another."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genflow.errors import InputError, check_choice, check_number
from genflow.models.base import PathModel
from genflow.models.preconditioning import EDMPreconditioning
from genflow.paths import EDMPath, LinearPath, Path, VPTablePath, expand_like, working_dtype
from genflow.prediction import KINDS, PREDICTION_TYPES, Prediction

__all__ = [
    "EDMNetworkModel",
    "FunctionModel",
    "NetworkModel",
    "call_network",
    "from_diffusers",
    "from_function",
    "on_path",
]


class FunctionModel(PathModel):
    """A path model from a plain function; see :func:`from_function`."""

    def __init__(self, function: Callable[..., Tensor], path: Path, kind: str, num_classes: int | None = None) -> None:
        self.function = function
        self.path = path
        self.kind = check_choice("kind", kind, KINDS)
        self.num_classes = num_classes

    def predict(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> Prediction:
        """See :meth:`PathModel.predict`."""
        return Prediction(self.function(x, t, **conditioning), self.kind, x, self.path, t)


def from_function(
    function: Callable[..., Tensor], path: Path, kind: str, num_classes: int | None = None
) -> FunctionModel:
    """Wrap ``function(x, t, **conditioning)`` that predicts ``kind`` (one of ``prediction.KINDS``) on ``path``."""
    return FunctionModel(function, path, kind, num_classes)


def _network_dtype(network: nn.Module) -> torch.dtype | None:
    """The dtype of the first floating-point parameter or buffer; None for a network without any."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return None


def _class_count(network: nn.Module) -> int | None:
    """The number of classes that a network's configuration tells beyond doubt.

    UNet2DModel's ``num_class_embeds`` is not read: it does not say whether the last embedding is the null class.
    """
    config = getattr(network, "config", None)
    if config is None:
        return None
    for key in ("num_classes", "num_embeds_ada_norm"):  # LeanUNet2DModel; DiT
        count = getattr(config, key, None)
        if count is not None:
            return int(count)
    return None


def call_network(network: nn.Module, x: Tensor, timestep: float | Tensor, **conditioning: Any) -> Tensor:
    """What a diffusers network says of ``x`` ``(B, ...)`` at ``timestep``, a number or ``(B,)``, in its own dtype."""
    if isinstance(timestep, Tensor):
        timestep = timestep.to(device=x.device, dtype=torch.float32).expand(x.shape[0])
    else:
        timestep = torch.full((x.shape[0],), timestep, dtype=torch.float32, device=x.device)
    output = network(x.to(_network_dtype(network) or x.dtype), timestep, **conditioning)
    return output.sample if hasattr(output, "sample") else output[0] if isinstance(output, tuple) else output


class NetworkModel(PathModel):
    """A network of diffusers on a path: its timesteps, dtype, labels and extra channels; see :func:`from_diffusers`."""

    def __init__(
        self,
        network: nn.Module,
        path: Path,
        prediction_type: str,
        *,
        num_train_timesteps: int = 1000,
        num_classes: int | None = None,
    ) -> None:
        self.network = network
        self.path = path
        self.prediction_type = check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        self.num_train_timesteps = int(
            check_number("num_train_timesteps", num_train_timesteps, at_least=1, integer=True)
        )
        self.num_classes = _class_count(network) if num_classes is None else num_classes

    def timestep(self, t: float | Tensor) -> float | Tensor:
        """What the network is told of time ``t``."""
        if isinstance(self.path, VPTablePath):  # knot i stands at (i + 1) / N
            timestep = t * self.path.num_train_timesteps - 1
            return timestep.clamp(min=0) if isinstance(timestep, Tensor) else max(timestep, 0.0)
        return (self.path.sigma(t) if isinstance(self.path, LinearPath) else t) * self.num_train_timesteps

    def predict(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> Prediction:
        """See :meth:`PathModel.predict`. ``class_labels`` may be left out where the model knows its null label."""
        return Prediction(self._call(x, self.timestep(t), **conditioning), self.prediction_type, x, self.path, t)

    def _labels(self, labels: Any, batch: int, device: torch.device) -> Tensor | None:
        if labels is None:
            if self.null_label is None:
                return None
            return torch.full((batch,), self.null_label, dtype=torch.int64, device=device)
        labels = torch.as_tensor(labels)
        if labels.shape != (batch,):
            raise InputError(f"class_labels: shape {tuple(labels.shape)}; allowed: ({batch},)")
        # labels already on an accelerator are not looked at: that would wait for the device
        on_host = labels.device.type == "cpu" and self.num_classes is not None and batch > 0
        if on_host and not 0 <= int(labels.min()) <= int(labels.max()) <= self.num_classes:
            raise InputError(f"class_labels: got {labels.tolist()}; allowed: 0 to {self.num_classes} (the null label)")
        return labels.to(device=device, dtype=torch.int64)

    def _call(self, x: Tensor, timestep: float | Tensor, class_labels: Any = None, **conditioning: Any) -> Tensor:
        labels = self._labels(class_labels, x.shape[0], x.device)
        if labels is not None:
            conditioning["class_labels"] = labels
        output = call_network(self.network, x, timestep, **conditioning)
        if output.ndim == x.ndim and output.shape[1] == 2 * x.shape[1]:
            output = output[:, : x.shape[1]]  # the other half is a learned variance (DiT, improved DDPM)
        return output.to(working_dtype(output, x))


class EDMNetworkModel(NetworkModel):
    """A network inside EDM's preconditioning, on an :class:`EDMPath`.

    ``prediction_type`` follows diffusers' EDM schedulers: ``epsilon`` is the paper's ``c_skip x + c_out F``;
    ``v_prediction`` turns the sign of F; ``sample`` takes F itself as the denoised image.
    """

    def __init__(
        self,
        network: nn.Module,
        path: Path,
        prediction_type: str = "epsilon",
        *,
        num_classes: int | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__(network, path, prediction_type, num_classes=num_classes)
        if not isinstance(path, EDMPath):
            raise InputError(f"path: got {path!r}; allowed with EDM preconditioning: EDMPath")
        check_choice("prediction_type", prediction_type, ("epsilon", "v_prediction", "sample"))
        self.preconditioning = EDMPreconditioning(sigma_data)

    def timestep(self, t: float | Tensor) -> float | Tensor:
        """``log(sigma) / 4``."""
        return self.preconditioning.c_noise(self.path.sigma(t))

    def predict(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> Prediction:
        """See :meth:`PathModel.predict`."""
        x = x.to(working_dtype(x))
        sigma = self.path.sigma(t)
        output = self._call(expand_like(self.preconditioning.c_in(sigma), x) * x, self.timestep(t), **conditioning)
        if self.prediction_type != "sample":
            sign = -1 if self.prediction_type == "v_prediction" else 1
            output = self.preconditioning.denoised(x, sign * output, sigma)
        return Prediction(output, "sample", x, self.path, t)


def from_diffusers(
    network: nn.Module,
    path: Path,
    prediction_type: str,
    *,
    num_train_timesteps: int = 1000,
    num_classes: int | None = None,
    sigma_data: float = 0.5,
) -> PathModel:
    """Wrap a diffusers network (UNet2DModel, DiTTransformer2DModel, LeanUNet2DModel, or any that is called as
    ``network(x, timestep, class_labels=...)``) as a path model.

    The network is called in its own dtype and its output raised to float32 at least; channels of a learned variance
    are dropped. Other conditioning (``encoder_hidden_states`` ...) is passed on by name.

    Args:
        network: the network; put it in eval mode for sampling.
        path: the path it was trained on.
        prediction_type: ``epsilon``, ``sample``, ``v_prediction`` or ``flow_prediction``. On an EDMPath the network
            stands inside EDM's preconditioning, see :class:`EDMNetworkModel`.
        num_train_timesteps: the timestep at pure noise (1000 in diffusers). The network sees this times sigma(t) on
            a linear path, ``N t - 1`` on a table of N, ``log(sigma) / 4`` on an EDM path, and this times t otherwise.
        num_classes: the number of classes, which is also the null label; by default read from the network's
            configuration (``num_classes``, or DiT's ``num_embeds_ada_norm``).
        sigma_data: for an EDMPath only; 0.5 is Karras et al.'s.

    Raises:
        InputError: an unknown prediction type; in ``predict``, labels of the wrong shape or range.
    """
    if isinstance(path, EDMPath):
        return EDMNetworkModel(network, path, prediction_type, num_classes=num_classes, sigma_data=sigma_data)
    return NetworkModel(
        network, path, prediction_type, num_train_timesteps=num_train_timesteps, num_classes=num_classes
    )


class _OnPath(PathModel):
    """See :func:`on_path`."""

    def __init__(self, model: PathModel, path: Path) -> None:
        self.model, self.path, self.num_classes = model, path, model.num_classes

    def predict(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> Prediction:
        inner_t = self.model.path.time(self.path.noise_level(t))
        inner_t = inner_t.clamp(max=1) if isinstance(inner_t, Tensor) else min(inner_t, 1.0)
        inner, outer = self.model.path, self.path
        # at one noise level the states differ by a factor; alpha + sigma is never 0
        factor = (inner.alpha(inner_t) + inner.sigma(inner_t)) / (outer.alpha(t) + outer.sigma(t))
        x = x.to(working_dtype(x))
        prediction = self.model.predict(expand_like(factor, x) * x, inner_t, **conditioning)
        return Prediction(prediction.flow_prediction, "flow_prediction", x, self.path, t)


def on_path(model: PathModel, path: Path) -> PathModel:
    """``model`` as a model on another Gaussian path, so that it can be sampled there.

    Two paths agree up to scale wherever their noise levels agree, and there the model predicts the same x0 and
    noise. Above the highest noise level of the model's own path it is asked at that level, which is an
    approximation; a grid that starts at ``path.time(model.path.noise_level(1))`` avoids it. Raises InputError where
    the noise of the two has different laws (PFGM++'s with different D).
    """
    if model.path.noise_law != path.noise_law:
        raise InputError(
            f"path: {path!r} has {path.noise_law} noise; allowed for a model on {model.path!r}: {model.path.noise_law}"
        )
    return model if model.path == path else _OnPath(model, path)
