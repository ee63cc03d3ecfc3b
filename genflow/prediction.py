"""The one table that turns any prediction into any other, on any Gaussian path.

A network sees ``x = alpha x0 + sigma eps`` and predicts one linear combination of ``x0`` and ``eps``. Each kind is
written ``scale * value = p x0 + q eps``; with the equation for x this is a 2x2 system, and one closed form covers
every pair of kinds.
"""

import math

import torch
from torch import Tensor

from genflow.errors import InputError, check_choice
from genflow.paths import Path, expand_like, working_dtype

__all__ = ["KINDS", "PREDICTION_TYPES", "Prediction", "convert", "target"]

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")
"""What a network may predict, in diffusers' own names."""

KINDS = (*PREDICTION_TYPES, "velocity", "score")
"""Everything :func:`convert` knows: the network's types, and two that depend on the path or its noise level."""

Number = float | Tensor


class _Coefficients:
    """alpha, sigma and the rows (scale, p, q) of every kind at one time, in float64 (on the host for a number)."""

    def __init__(self, path: Path, t: Number) -> None:
        self.path, self.t = path, t
        self.alpha, self.sigma = path.alpha(t), path.sigma(t)

    def row(self, kind: str) -> tuple[Number, Number, Number]:
        alpha, sigma = self.alpha, self.sigma
        if kind == "epsilon":
            return 1.0, 0.0, 1.0
        if kind == "sample":
            return 1.0, 1.0, 0.0
        if kind == "flow_prediction":
            return 1.0, -1.0, 1.0
        if kind == "v_prediction":
            # Salimans and Ho's angle; on a VP path the norm is 1
            norm = torch.hypot(alpha, sigma) if isinstance(alpha, Tensor) else math.hypot(alpha, sigma)
            return 1.0, -sigma / norm, alpha / norm
        if kind == "velocity":
            return 1.0, self.path.alpha_dot(self.t), self.path.sigma_dot(self.t)
        return sigma, 0.0, -1.0  # score: sigma * score = -eps, which stays finite at sigma = 0


def _infinite(value: Number) -> bool:
    """True where any coefficient is infinite or NaN. Tensors on an accelerator are not looked at: that would sync."""
    if not isinstance(value, Tensor):
        return not math.isfinite(value)
    return value.device.type == "cpu" and not bool(torch.isfinite(value).all())


def _singular(value: Number) -> bool:
    """True where any divisor is zero or not finite; as :func:`_infinite` for tensors on an accelerator."""
    if not isinstance(value, Tensor):
        return value == 0 or _infinite(value)
    return value.device.type == "cpu" and (_infinite(value) or bool((value == 0).any()))


def _weights(rows: _Coefficients, source: str, target: str) -> tuple[Number, Number]:
    """``(a, b)`` with ``target = a x + b source``."""
    alpha, sigma = rows.alpha, rows.sigma
    scale, p, q = rows.row(source)
    target_scale, target_p, target_q = rows.row(target)
    if {source, target} == {"epsilon", "score"}:  # the same quantity up to a factor: no need for x
        a, b, divisor = 0.0, -scale, target_scale
    else:
        a = target_p * q - target_q * p
        b = (target_q * alpha - target_p * sigma) * scale
        divisor = (alpha * q - sigma * p) * target_scale
    if _singular(divisor):
        raise InputError(
            f"prediction: {source!r} does not determine {target!r} at t={rows.t} on {rows.path!r} "
            f"(alpha={alpha}, sigma={sigma})"
        )
    return a / divisor, b / divisor


def _combine(x: Tensor, value: Tensor, a: Number, b: Number) -> Tensor:
    """``a x + b value``, with the coefficients broadcast over the sample dimensions."""
    a, b = expand_like(a, x), expand_like(b, value)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a * x + b * value
    return b * value if a == 0 else (b * value).add_(x, alpha=a)  # two passes over memory instead of three


def convert(value: Tensor, source: str, target: str, x: Tensor, path: Path, t: float | Tensor) -> Tensor:
    """Turn a prediction of kind ``source`` at state ``x`` and time ``t`` into kind ``target``.

    ``value`` and ``x`` have one shape ``(B, ...)``; ``t`` is a number or ``(B,)``. Kinds: ``epsilon``; ``sample``
    (x0); ``v_prediction`` = (alpha eps - sigma x0) / sqrt(alpha^2 + sigma^2) (Salimans and Ho 2022);
    ``flow_prediction`` = eps - x0 on every path; ``velocity`` = dx/dt of this path; ``score`` = -eps / sigma.
    The result is float32 at least (float64 stays float64). Raises InputError for an unknown kind, a shape that does
    not fit, or a time where the source does not determine the target (epsilon gives no x0 where alpha is 0).
    """
    return Prediction(value, source, x, path, t).to(target)


def target(kind: str, x0: Tensor, noise: Tensor, path: Path, t: float | Tensor) -> Tensor:
    """What a network that predicts ``kind`` should answer at ``alpha x0 + sigma noise``: its training target.

    ``x0`` and ``noise`` have one shape ``(B, ...)``; ``t`` is a number or ``(B,)``. Formed from the pair itself, so
    nothing cancels near the data as it would by way of the state. Raises InputError for an unknown kind, or a time
    where its value is infinite (the score at t = 0).
    """
    check_choice("prediction kind", kind, KINDS)
    scale, p, q = _Coefficients(path, t).row(kind)
    if _singular(scale) or (kind == "velocity" and _infinite(q)):
        raise InputError(f"target: {kind!r} is infinite at t={t} on {path!r}")
    dtype = working_dtype(x0, noise)
    return _combine(x0.to(dtype), noise.to(dtype), p / scale, q / scale)


class Prediction:
    """A network's output together with what is needed to read it as any other kind; computed on demand, once."""

    def __init__(self, value: Tensor, kind: str, x: Tensor, path: Path, t: float | Tensor) -> None:
        """``value`` of ``kind`` (one of :data:`KINDS`) was predicted at state ``x`` (same shape) and time ``t``."""
        check_choice("prediction kind", kind, KINDS)
        if value.shape != x.shape:
            raise InputError(f"prediction: shape {tuple(value.shape)} does not fit x of shape {tuple(x.shape)}")
        dtype = working_dtype(value, x)
        self.x = x.to(dtype)
        self.kind, self.path, self.t = kind, path, t
        self._rows: _Coefficients | None = None
        self._known: dict[str, Tensor] = {kind: value.to(dtype)}

    def to(self, kind: str) -> Tensor:
        """This prediction as ``kind``; see :func:`convert`."""
        check_choice("prediction kind", kind, KINDS)
        if kind == "flow_prediction" and kind not in self._known and {"epsilon", "sample"} <= self._known.keys():
            self._known[kind] = self._known["epsilon"] - self._known["sample"]  # one pass over memory instead of two
        if kind not in self._known:
            if self._rows is None:
                self._rows = _Coefficients(self.path, self.t)
            a, b = _weights(self._rows, self.kind, kind)
            self._known[kind] = _combine(self.x, self._known[self.kind], a, b)
        return self._known[kind]

    @property
    def x0(self) -> Tensor:
        """The predicted clean data."""
        return self.to("sample")

    @property
    def epsilon(self) -> Tensor:
        """The predicted standard normal noise."""
        return self.to("epsilon")

    @property
    def velocity(self) -> Tensor:
        """``dx/dt`` on this prediction's path."""
        return self.to("velocity")

    @property
    def v_prediction(self) -> Tensor:
        """Salimans and Ho's v."""
        return self.to("v_prediction")

    @property
    def flow_prediction(self) -> Tensor:
        """``epsilon - x0``, whatever the path."""
        return self.to("flow_prediction")

    @property
    def score(self) -> Tensor:
        """``grad log p_t(x) = -epsilon / sigma``."""
        return self.to("score")

    def replace(self, value: Tensor, kind: str = "sample") -> "Prediction":
        """The same state and time with another predicted value, as guidance makes."""
        return Prediction(value, kind, self.x, self.path, self.t)

    def __repr__(self) -> str:
        return f"Prediction(kind={self.kind!r}, shape={tuple(self.x.shape)}, path={self.path!r}, t={self.t})"
