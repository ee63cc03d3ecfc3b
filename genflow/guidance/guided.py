"""A guided model is a model: any guidance around any path model, ready for any solver."""

from typing import Any

import torch
from torch import Tensor

from genflow.errors import InputError
from genflow.guidance.autoguidance import AutoGuidance
from genflow.guidance.base import Guidance
from genflow.models.base import PathModel
from genflow.prediction import Prediction

__all__ = ["GuidedModel"]


class GuidedModel(PathModel):
    """``model`` with ``guidance``: one call of twice the batch where guidance acts, a plain call where it does not.

    With a weaker model (:class:`AutoGuidance`) guidance is a call of each model, and no label is needed.

    Args:
        model: the model to guide; its conditioning must include ``class_labels``, or be named in ``unconditional``.
        guidance: the rule.
        null_label: the label of the unconditional half; by default the model's own null label.
        unconditional: replacements for other conditioning in the unconditional half, by name (an empty prompt's
            ``encoder_hidden_states``, say). What is not named is the same in both halves.

    Raises:
        InputError: an AutoGuidance whose weak model is not a path model on the model's own path.

    Attributes:
        step: the outer step that the caller is at, handed to the guidance.
    """

    def __init__(
        self,
        model: PathModel,
        guidance: Guidance,
        null_label: int | None = None,
        unconditional: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.guidance = model, guidance
        self.path, self.num_classes = model.path, model.num_classes
        self._null_label = model.null_label if null_label is None else null_label
        self.unconditional = dict(unconditional or {})
        self.weak = guidance.weak if isinstance(guidance, AutoGuidance) else None
        if self.weak is not None and getattr(self.weak, "path", None) != model.path:
            found = f"{type(self.weak).__name__} on {getattr(self.weak, 'path', None)!r}"
            raise InputError(f"weak: got {found}; allowed: a path model on {model.path!r}")
        self.step = 0

    @property
    def null_label(self) -> int | None:
        """The label of the unconditional half."""
        return self._null_label

    def reset(self, steps: int | None = None) -> None:
        """Begin a new run of ``steps`` outer steps (None: not known): step 0, and the guidance forgets."""
        self.step = 0
        self.guidance.reset(steps)

    def predict(self, x: Tensor, t: float | Tensor, **conditioning: Any) -> Prediction:
        """The guided prediction; see :meth:`PathModel.predict`.

        Raises InputError where guidance acts and there is nothing to tell the two halves apart.
        """
        level = self.path.noise_level(t)
        if not self.guidance.is_active(level, self.step):
            return self.model.predict(x, t, **conditioning)
        if self.weak is not None:
            prediction = self.model.predict(x, t, **conditioning)
            cond, uncond = prediction.x0, self.weak.predict(x, t, **conditioning).x0
        else:
            both = self._both(x.shape[0], conditioning)
            prediction = self.model.predict(torch.cat([x, x]), _twice(t, x.shape[0]), **both)
            cond, uncond = prediction.x0.chunk(2)
        state = prediction.x[: x.shape[0]]
        guided = self.guidance(cond, uncond, state, level, self.step)
        return Prediction(guided, "sample", state, self.path, t)

    def _both(self, batch: int, conditioning: dict[str, Any]) -> dict[str, Any]:
        """Conditioning for the doubled batch, conditional half first."""
        null = dict(self.unconditional)
        labels = conditioning.get("class_labels")
        if labels is not None and "class_labels" not in null:
            if self.null_label is None:
                raise InputError("null_label: the model does not tell its null label; give it to GuidedModel")
            null["class_labels"] = torch.full_like(torch.as_tensor(labels), self.null_label)
        if not null.keys() & conditioning.keys():
            raise InputError("guidance: needs class_labels (or conditioning named in `unconditional`) to guide towards")
        both = {}
        for key, value in conditioning.items():
            other = null.get(key, value)
            if isinstance(value, Tensor) or key in null:
                value, other = torch.as_tensor(value), torch.as_tensor(other)
                if value.ndim and value.shape[0] == batch:
                    value = torch.cat([value, other.to(value.device).expand_as(value)])
            both[key] = value
        return both


def _twice(t: float | Tensor, batch: int) -> float | Tensor:
    return torch.cat([t.expand(batch)] * 2) if isinstance(t, Tensor) and t.ndim else t
