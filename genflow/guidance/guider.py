"""diffusers' face of a guidance: a guider for modular pipelines, working in x0 space."""

from typing import Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from diffusers.modular_pipelines.modular_pipeline import BlockState
from torch import Tensor, nn

from genflow.errors import InputError
from genflow.guidance.autoguidance import AutoGuidance
from genflow.guidance.base import Guidance
from genflow.guidance.clock import RunClock, family_of, guided_output
from genflow.guidance.registry import create_guidance

__all__ = ["PathGuider"]

STATES = ("hidden_states", "sample", "x")
"""Names of the argument in which networks take the state, where it does not come first."""


class PathGuider(BaseGuidance):
    """Any guidance as the ``guider`` component of a modular pipeline.

        pipe.update_components(guider=PathGuider(APG(7.5), pipe))

    The network's two outputs are read as denoised images on the path of the pipeline's scheduler, at the state that
    went into the network (a hook sees it there, for one call), and the guided image is handed on as such an output.
    Noise levels and outer steps are those of the scheduler, whatever it is at the start of a run; a Heun scheduler
    counts one step for two evaluations. A run begins when the pipeline's loop is at its evaluation 0.

    ``save_pretrained`` writes the guidance to ``guider_config.json``. The scheduler is not in it: after
    ``from_pretrained`` say :meth:`bind`.

    Args:
        guidance: a rule, or its ``to_config()``.
        scheduler: a scheduler, or a pipeline that has one; may come later by :meth:`bind`.
        enabled: False for the conditional prediction alone.

    Raises:
        InputError: what is no guidance, an AutoGuidance (a guider has one network), or a scheduler without a Gaussian
            path; in a run, no scheduler, no unconditional inputs, or an output that does not belong to the state.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]  # noqa: RUF012 (diffusers' own convention)

    def __init__(self, guidance: Guidance | dict[str, Any], scheduler: Any = None, enabled: bool = True) -> None:
        super().__init__(enabled=enabled)
        if isinstance(guidance, dict):
            guidance = create_guidance(**{"name": None, **guidance})
        if not isinstance(guidance, Guidance) or isinstance(guidance, AutoGuidance):
            raise InputError(f"guidance: got {type(guidance).__name__}; allowed: a rule such as CFG(7.5) or APG(7.5)")
        self.guidance = guidance
        self.register_to_config(guidance=guidance.to_config(), enabled=enabled)
        self._owner: Any = None
        self._clock: RunClock | None = None
        self._first = 0  # the scheduler's evaluation that the loop calls 0
        self._acts: bool | None = None  # whether guidance acts at this evaluation; None between evaluations
        self._input: Any = None
        if scheduler is not None:
            self.bind(scheduler)

    def bind(self, scheduler: Any) -> "PathGuider":
        """Take the path, times and steps from this scheduler, or from that of a pipeline at each run; gives itself.

        Raises InputError for a scheduler without a Gaussian path.
        """
        self._owner = scheduler
        family_of(self._scheduler())
        self._clock = None
        return self

    def new(self, **kwargs: Any) -> "PathGuider":
        """A copy, with other arguments of the constructor where given; it keeps the scheduler."""
        kept = {"guidance": dict(self.config.guidance), "scheduler": self._owner, "enabled": self._enabled}
        return type(self)(**{**kept, **kwargs})

    def _scheduler(self) -> Any:
        if self._owner is None:
            raise InputError("scheduler: None; give PathGuider the pipeline or its scheduler, or call bind(pipe)")
        scheduler = self._owner if hasattr(self._owner, "timesteps") else getattr(self._owner, "scheduler", None)
        if scheduler is None:
            raise InputError(f"scheduler: {type(self._owner).__name__} has none; allowed: a scheduler or a pipeline")
        return scheduler

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        """The loop is at its evaluation ``step``; the first of a run looks at the scheduler, later ones do not."""
        begins = self._clock is None or step == 0 or step < self._step
        super().set_state(step, num_inference_steps, timestep)
        self._input = None
        if not self._enabled or self.guidance.neutral:
            self._acts = False
            return
        if begins:
            scheduler = self._scheduler()
            self._family = family_of(scheduler)
            self._clock = RunClock(scheduler, self._family, timestep)
            self._first = self._clock.index - step
            self.guidance.reset(self._clock.count)
        index = self._first + step
        if index >= len(self._clock.times):
            raise InputError(f"step: {step} is past the {len(self._clock.times)} evaluations of the scheduler's run")
        self._time, self._outer = float(self._clock.times[index]), int(self._clock.steps[index])
        self._acts = self.guidance.is_active(self._family.path.noise_level(self._time), self._outer)

    @property
    def is_conditional(self) -> bool:
        """Whether the network is being asked for the conditional prediction."""
        return self._count_prepared == 1

    @property
    def num_conditions(self) -> int:
        """2 where guidance acts; between evaluations, where it acts anywhere in a run, so that prompts are encoded."""
        acts = self._enabled and not self.guidance.neutral if self._acts is None else self._acts
        return 2 if acts else 1

    def prepare_inputs(self, data: dict[str, Any]) -> list[BlockState]:
        """One set of inputs for each prediction, from ``(conditional, unconditional)`` pairs."""
        pairs = {key: value for key, value in data.items() if isinstance(value, tuple)}
        self._check({key: value[0] for key, value in pairs.items()}, {key: value[1] for key, value in pairs.items()})
        return [
            self._prepare_batch(data, index, self._input_predictions[index]) for index in range(self.num_conditions)
        ]

    def prepare_inputs_from_block_state(self, data: BlockState, input_fields: dict[str, Any]) -> list[BlockState]:
        """As :meth:`prepare_inputs`, from the names of the inputs in ``data``."""
        pairs = {key: names for key, names in input_fields.items() if isinstance(names, tuple)}
        sides = ({key: getattr(data, names[i], None) for key, names in pairs.items()} for i in (0, 1))
        self._check(*sides)
        return [
            self._prepare_batch_from_block_state(input_fields, data, index, self._input_predictions[index])
            for index in range(self.num_conditions)
        ]

    def _check(self, cond: dict[str, Any], uncond: dict[str, Any]) -> None:
        if self.num_conditions == 1:
            return
        missing = [key for key, value in cond.items() if value is not None and uncond[key] is None]
        if missing or not any(value is not None for value in cond.values()):
            raise InputError(f"guider: no unconditional {', '.join(missing) or 'inputs'}; give a negative prompt")

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Watch for the state that goes into the network, at its next call alone."""
        super().prepare_models(denoiser)
        if self._acts and self._input is None:

            def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                hook.remove()
                self._input = args[0] if args else next((kwargs[name] for name in STATES if name in kwargs), None)

            hook = denoiser.register_forward_pre_hook(see, with_kwargs=True)

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided output of the network, and the two it was made of."""
        pred = pred_cond
        if self._acts:
            x = _state(self._input, pred_cond)
            pred = guided_output(self.guidance, self._family, pred_cond, pred_uncond, x, self._time, self._outer)
        self._acts, self._input = None, None
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)


def _state(network_input: Any, output: Tensor) -> Tensor:
    """The part of a network's input that its output predicts for: the first channels, frames or tokens."""
    x = torch.stack(network_input) if isinstance(network_input, (list, tuple)) else network_input
    if isinstance(x, Tensor) and x.shape[0] == output.shape[0]:
        if x.numel() == output.numel():
            return x.reshape(output.shape)
        if x.ndim == output.ndim and all(a >= b for a, b in zip(x.shape, output.shape, strict=True)):
            for dim in range(1, x.ndim):
                x = x.narrow(dim, 0, output.shape[dim])
            return x
    shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
    raise InputError(f"guider: the network's output {tuple(output.shape)} does not belong to its input, {shape}")
