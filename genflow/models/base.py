"""The interfaces a sampler needs from a model: given a state and a time, a prediction on a known path."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from genflow.paths import Path
from genflow.prediction import Prediction

__all__ = ["PathModel", "ScoreModel", "VelocityModel", "as_score_model", "as_velocity_model"]


class PathModel(ABC):
    """A model of data on a Gaussian path.

    Attributes:
        path: the path whose states :meth:`predict` reads.
        num_classes: the number of classes, or None where the model is unconditional or does not say. Labels are
            0 .. num_classes - 1; num_classes itself is the null label.
    """

    path: Path
    num_classes: int | None = None

    @property
    def null_label(self) -> int | None:
        """The label that stands for "no class", or None."""
        return self.num_classes

    @abstractmethod
    def predict(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> Prediction:
        """The prediction at states ``x`` ``(B, ...)`` and time ``t`` (a number or ``(B,)``), float32 at least."""


class ScoreModel(PathModel):
    """A model that gives the score, ``grad log p_t(x)``."""

    @abstractmethod
    def score(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> Tensor:
        """The score at ``x``, in its shape."""

    def predict(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> Prediction:
        """See :meth:`PathModel.predict`."""
        return Prediction(self.score(x, t, **conditioning), "score", x, self.path, t)


class VelocityModel(PathModel):
    """A model that gives the velocity ``dx/dt`` of the probability-flow ODE of its path."""

    @abstractmethod
    def velocity(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> Tensor:
        """The velocity at ``x``, in its shape."""

    def predict(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> Prediction:
        """See :meth:`PathModel.predict`."""
        return Prediction(self.velocity(x, t, **conditioning), "velocity", x, self.path, t)


class _Adapter(PathModel):
    """A model seen through another; predictions pass through unchanged, so nothing is lost by a conversion."""

    def __init__(self, model: PathModel) -> None:
        self.model = model
        self.path = model.path
        self.num_classes = model.num_classes

    def predict(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> Prediction:
        return self.model.predict(x, t, **conditioning)


class _AsScoreModel(_Adapter, ScoreModel):
    def score(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> Tensor:
        return self.model.predict(x, t, **conditioning).score


class _AsVelocityModel(_Adapter, VelocityModel):
    def velocity(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> Tensor:
        return self.model.predict(x, t, **conditioning).velocity


def as_score_model(model: PathModel) -> ScoreModel:
    """``model`` with a ``score`` method; the model itself if it is a ScoreModel already."""
    return model if isinstance(model, ScoreModel) else _AsScoreModel(model)


def as_velocity_model(model: PathModel) -> VelocityModel:
    """``model`` with a ``velocity`` method; the model itself if it is a VelocityModel already."""
    return model if isinstance(model, VelocityModel) else _AsVelocityModel(model)
