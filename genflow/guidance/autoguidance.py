"""Autoguidance (Karras et al. 2024, arXiv 2406.02507): a weaker network in the place of the unconditional one."""

from typing import Any

from torch import Tensor, nn

from genflow.errors import InputError
from genflow.guidance.base import Guidance
from genflow.models.base import PathModel

__all__ = ["AutoGuidance"]


class AutoGuidance(Guidance):
    """Any rule, away from a weaker model's estimate under the same conditioning: ``AutoGuidance(weak, CFG(2.0))``.

    The paper's weak model is smaller or trained for less long, on the same data and path. It needs no labels, so that
    unconditional models can be guided too. Each evaluation calls both models once, on the plain batch.

    Args:
        weak: the weaker model; as a plain network it is read as the main network is (``ImagePipeline`` does that).
        rule: what to do with the two estimates; its scale, interval and other options hold here.

    Raises:
        InputError: no model, no rule, or a rule that is an AutoGuidance itself.
    """

    name = "autoguidance"

    def __init__(self, weak: PathModel | nn.Module, rule: Guidance) -> None:
        if not isinstance(weak, (PathModel, nn.Module)):
            raise InputError(f"weak: got {type(weak).__name__}; allowed: a path model or a network")
        if not isinstance(rule, Guidance) or isinstance(rule, AutoGuidance):
            raise InputError(f"rule: got {type(rule).__name__}; allowed: a guidance such as CFG(2.0) or APG(4.0)")
        super().__init__(rule.scale, rule.interval, rule.start, rule.stop, rule.rescale)
        self.weak, self.rule = weak, rule

    @property
    def counts_steps(self) -> bool:
        """See :attr:`Guidance.counts_steps`."""
        return self.rule.counts_steps

    def reset(self, steps: int | None = None) -> None:
        """See :meth:`Guidance.reset`."""
        super().reset(steps)
        self.rule.reset(steps)

    def _guide(self, cond: Tensor, uncond: Tensor, x: Tensor, noise_level: float | Tensor, step: int) -> Tensor:
        return self.rule._guide(cond, uncond, x, noise_level, step)

    def to_config(self) -> dict[str, Any]:
        """The rule's name and options under ``rule``; the weak model is not in it."""
        return {"name": self.name, "rule": self.rule.to_config()}

    def __repr__(self) -> str:
        return f"AutoGuidance({type(self.weak).__name__}, {self.rule!r})"
