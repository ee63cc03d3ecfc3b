"""diffusers' face of path x solver: the one base class of genflow's schedulers.

It reads the config, keeps the clock (timesteps, step index, begin index) and hands every number to the parts that
own it: the family gives the path and the network's timesteps, :class:`~genflow.prediction.Prediction` reads the
network's output, the solver makes the step. A scheduler class adds only the choice of the solver.
"""

import functools
import importlib
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from genflow.errors import InputError, check_number, nearest
from genflow.paths import Path, working_dtype
from genflow.prediction import Prediction
from genflow.schedulers.beta import BetaFamily
from genflow.schedulers.family import Family
from genflow.schedulers.inputs import descending, step_count, without_variance
from genflow.schedulers.reading import FAMILY_KEYS, family_from_keys, normalise
from genflow.solvers import Solver

__all__ = ["PathScheduler", "PathSchedulerOutput", "register_scheduler"]

TIED_KEYS = {"shift": "flow_shift", "flow_shift": "shift"}  # two names for one number


@dataclass
class PathSchedulerOutput(BaseOutput):
    """What :meth:`PathScheduler.step` gives.

    Attributes:
        prev_sample: the sample at the next (less noisy) time, in the dtype of the sample that came in.
        pred_original_sample: the network's prediction of the clean data at the time of the step.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


def register_scheduler(init: Callable[..., None]) -> Callable[..., None]:
    """Let a scheduler's constructor take its own arguments and every key of the families, and register both.

    The family's keys are stored with all defaults filled in; keys of other families are not stored. An unknown key
    raises InputError with the nearest known one.
    """
    signature = inspect.signature(init)
    own = {name: p.default for name, p in list(signature.parameters.items())[1:]}
    extra = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None) for key in FAMILY_KEYS if key not in own
    ]

    @functools.wraps(init)
    def wrapper(self: "PathScheduler", *args: Any, **kwargs: Any) -> None:
        kwargs = {key: value for key, value in kwargs.items() if not key.startswith("_")}
        for key in kwargs:
            if key not in own and key not in FAMILY_KEYS:
                known = [*own, *FAMILY_KEYS]
                raise InputError(f"{type(self).__name__}: {key!r} is not known{nearest(key, known)}")
        if len(args) > len(own):
            raise InputError(f"{type(self).__name__}: {len(args)} positional arguments; allowed: {', '.join(own)}")
        bound = {**dict(zip(own, args, strict=False)), **kwargs}
        options = {key: bound.get(key, default) for key, default in own.items()}
        keys = {key: value for key, value in kwargs.items() if key not in own}
        keys = {key: value for key, value in keys.items() if value is not None or key == "prediction_type"}
        family = family_from_keys({**self.family_defaults, **keys})
        self.register_to_config(_class_name=type(self).__name__, **family.config, **options)
        # keys said to stand at a default are skipped, without a warning, by diffusers' classes that do not know them
        unset = [*options, *(key for key, value in family.config.items() if value is None)]
        unset = [key for key in unset if key not in bound]
        if unset:
            self.register_to_config(_use_default_values=unset)
        self._prepare(family)
        init(self, **options)

    wrapper.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *extra])
    return wrapper


class PathScheduler(SchedulerMixin, ConfigMixin):
    """A solver on a Gaussian path, usable wherever diffusers takes a scheduler.

    Besides its own options a scheduler takes the config keys of diffusers' schedulers (see ``FAMILY_KEYS``);
    ``from_config(pipe.scheduler.config)`` reads any of them and :mod:`genflow.schedulers.reading` says how.
    Samples live on the path: variance preserving for beta schedules (unit initial noise, inputs not scaled), in
    noise level for EDM (initial noise of sigma_max, inputs scaled by c_in). Clipping and thresholding of a replaced
    scheduler are not carried over.

    Attributes:
        path: the Gaussian path of the samples, times from 1 (noise) to 0.
        prediction_type: what the network predicts.
        timesteps: the network's timestep at every evaluation, ``(evaluations,)`` float32 on the chosen device.
        sigmas: the same in diffusers' sigmas plus the end point, ``(evaluations + 1,)`` float32 on the host.
        num_inference_steps: steps of the solver, or None before ``set_timesteps``.
        order: evaluations a step, as pipelines count them.
    """

    _compatibles: ClassVar[list[str]] = []
    family_defaults: ClassVar[dict[str, Any]] = {}  # keys that the class gives where the config does not
    order: int = 1

    def _prepare(self, family: Family) -> None:
        """Take the family and stand on its training schedule, as diffusers' schedulers do before set_timesteps."""
        self.family = family
        self.num_inference_steps: int | None = None
        self._solver: Solver | None = None
        times = family.training_times()
        self._set_clock(times, 0.0, None)
        if isinstance(family, BetaFamily):  # pipelines and training scripts look these up
            self.betas = torch.from_numpy(family.betas).float()
            self.alphas = 1.0 - self.betas
            self.alphas_cumprod = torch.from_numpy(family.alphas_cumprod).float()

    @abstractmethod
    def make_solver(self) -> Solver:
        """A fresh solver for one run."""

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Make this scheduler from another scheduler's config; keyword arguments override its keys.

        The whole config counts, including what the other scheduler had left at its defaults, except what another
        class of ours was told of its rule: a word such as ``solver`` means another thing there. Raises InputError
        for a config without a Gaussian path and for a keyword that is not known.
        """
        if not isinstance(config, Mapping):
            return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        known = list(inspect.signature(cls.__init__).parameters)[1:]
        unused = {key: kwargs.pop(key) for key in list(kwargs) if key not in known}
        for key in unused:
            if not return_unused_kwargs:
                raise InputError(f"{cls.__name__}: {key!r} is not known{nearest(key, known)}")
        unset = [*config.get("_use_default_values", ()), *_options_of_another(config.get("_class_name"), cls)]
        config = normalise(config, [key for key in known if key not in FAMILY_KEYS])
        # what the other scheduler of ours left unset, or what is not meant for this class, stays unset
        for key in unset:
            if key in known and (key not in FAMILY_KEYS or config.get(key) is None):
                config.pop(key, None)
        for key, other in TIED_KEYS.items():
            if key in kwargs:
                config.pop(other, None)
        scheduler = cls(**{**{key: value for key, value in config.items() if key in known}, **kwargs})
        # what only other classes understand is kept, so that they can be made again from this config
        hidden = {key: value for key, value in config.items() if key not in known}
        if "_class_name" in hidden:
            hidden["_class_name"] = cls.__name__
        scheduler.register_to_config(**hidden)
        return (scheduler, {**unused, **hidden}) if return_unused_kwargs else scheduler

    @property
    def path(self) -> Path:
        """The Gaussian path of the samples."""
        return self.family.path

    @property
    def prediction_type(self) -> str:
        """What the network predicts."""
        return self.family.prediction_type

    @property
    def times(self) -> np.ndarray:
        """The path's time at every entry of ``timesteps``, float64 on the host."""
        return self._times

    @property
    def step_of(self) -> np.ndarray:
        """The outer step that every entry of ``timesteps`` belongs to, from 0; guidance with momentum counts these."""
        return np.arange(len(self._times)) if self._solver is None else self._solver.step_of

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise to start from."""
        return self.family.prior_std(float(self._times[0]))

    @property
    def step_index(self) -> int | None:
        """Index of the coming step, or None before the first; a host number, reading it never waits for a device."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, where a pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this index instead of looking the first timestep up. Raises InputError for a negative one."""
        self._begin_index = int(check_number("begin_index", begin_index, at_least=0, integer=True))

    def __len__(self) -> int:
        return self.family.num_train_timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | np.ndarray | Tensor | None = None,
        timesteps: Sequence[float] | np.ndarray | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Lay out a run; forgets the solver's history, the step index and the begin index.

        Args:
            num_inference_steps: steps of the solver; may be left out where sigmas or timesteps say it.
            device: where ``timesteps`` goes.
            sigmas: descending sigmas, one a step; a last 0 is the end point and may be left out. On a flow the shift
                applies to them, once, as pipelines expect; elsewhere they are noise levels.
            timesteps: descending timesteps, one a step, as the network is to see them: no shift applies.
            mu: for ``use_dynamic_shifting``.

        Raises:
            InputError: no step, both lists, lengths that disagree, values that are NaN or do not descend.
        """
        if sigmas is not None and timesteps is not None:
            raise InputError("sigmas and timesteps: both were given; allowed: one of them")
        if sigmas is not None:
            times = self.family.times_from_sigmas(descending("sigmas", sigmas), mu)
        elif timesteps is not None:
            times = self.family.times_from_timesteps(descending("timesteps", timesteps))
        elif num_inference_steps is None:
            raise InputError("num_inference_steps: None; allowed: an integer >= 1, or give sigmas or timesteps")
        else:
            times = self.family.times(step_count(num_inference_steps), mu)
        steps = len(times) - 1
        if num_inference_steps is not None and step_count(num_inference_steps) != steps:
            raise InputError(
                f"num_inference_steps: {num_inference_steps} with {steps} sigmas or timesteps; leave it out"
            )
        if timesteps is None:
            times = self.arrange(times)
        if self.prediction_type == "epsilon" and self.path.alpha(float(times[0])) == 0:
            raise InputError(
                "prediction_type: 'epsilon' says nothing at zero terminal SNR; allowed: v_prediction, sample"
            )
        solver = self.make_solver()
        solver.start(self.path, times)
        self.path.remember(solver.evaluations)
        self._solver = solver
        self.num_inference_steps = steps
        self._set_clock(np.asarray(solver.evaluations, dtype=np.float64), float(times[-1]), device)

    def arrange(self, times: np.ndarray) -> np.ndarray:
        """A place for a scheduler class to move the times of its config's schedule; as many must come back."""
        return times

    def _set_clock(self, times: np.ndarray, end: float, device: str | torch.device | None) -> None:
        self._times = times
        timesteps = np.asarray(self.family.timestep(times), dtype=np.float32)
        self._host_timesteps = timesteps
        self.timesteps = self._clock = torch.from_numpy(timesteps.copy()).to(device)  # starts its own storage
        self.sigmas = torch.from_numpy(self.family.sigma(np.append(times, end)).astype(np.float32))
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._carried: tuple[Tensor, int, Tensor] | None = None

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """The index of ``timestep`` in the schedule; the second of two equal ones (in Heun's pairs the second opens a
        step, where image-to-image has to start). Raises InputError for a timestep that is not in it."""
        schedule = self._host_timesteps if schedule_timesteps is None else schedule_timesteps.float().cpu().numpy()
        value = np.float32(float(timestep))
        found = np.flatnonzero(schedule == value)
        if not len(found):  # a copy that went through a lower precision
            found = np.flatnonzero(np.isclose(schedule, value, rtol=1e-5, atol=1e-6))
        if not len(found):
            raise InputError(
                f"timestep: {float(timestep):g} is not one of this run's; allowed: {schedule.tolist()[:8]}..."
            )
        return int(found[1] if len(found) > 1 else found[0])

    def _position(self, timestep: float | Tensor | None) -> int | None:
        """The index of a timestep taken out of ``timesteps`` itself, told by its place in memory: reading its value
        would wait for the device."""
        if not isinstance(timestep, Tensor) or timestep.numel() != 1 or timestep.dtype != self._clock.dtype:
            return None
        mine, theirs = (tensor.untyped_storage().data_ptr() for tensor in (self._clock, timestep))
        return timestep.storage_offset() if mine == theirs and timestep.device == self._clock.device else None

    def _index(self, timestep: float | Tensor) -> int:
        if self._step_index is None:
            index = self._position(timestep) if self._begin_index is None else self._begin_index
            self._step_index = self.index_for_timestep(timestep) if index is None else index
        if self._step_index >= len(self._times):
            raise InputError(f"step: the run of {len(self._times)} evaluations is over; call set_timesteps first")
        return self._step_index

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """What the network is to be fed: EDM's ``c_in * sample``, elsewhere the sample itself."""
        if self.family.name != "edm":
            return sample
        index = self._begin_index if self._step_index is None else self._step_index
        time = self._time(timestep) if index is None else float(self._times[index])
        return sample * self.family.input_scale(float(time))

    def predict(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor) -> Prediction:
        """Read a raw network output (for ``sample`` as it was before ``scale_model_input``) as a Prediction.

        ``timestep`` is a network timestep, one number or one a sample; it need not belong to the run.
        """
        return self.family.predict(without_variance(model_output, sample), sample, self._time(timestep))

    def step(
        self,
        model_output: Tensor | Prediction,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> PathSchedulerOutput | tuple[Tensor, Tensor]:
        """One evaluation's worth of the solver.

        Args:
            model_output: the network's raw output, in ``sample``'s shape (channels of a learned variance after it
                are dropped), or a Prediction, such as guidance makes, on this scheduler's path.
            timestep: the current entry of ``timesteps``. Its value is read, which waits for the device, in the first
                step alone, and there only if it is a copy and no begin index is set.
            sample: the current sample ``(B, ...)``.
            generator: for solvers that draw noise; one, or one an image.
            return_dict: False for the tuple ``(prev_sample, pred_original_sample)``.

        Raises:
            InputError: before ``set_timesteps``, after the last step, or for a timestep that is not in the run.
        """
        if self._solver is None:
            raise InputError("step: there is no schedule yet; call set_timesteps first")
        index = self._index(timestep)
        x = self._full_precision(sample)
        if isinstance(model_output, Prediction):
            prediction = model_output
        else:
            prediction = self.family.predict(without_variance(model_output, sample), x, float(self._times[index]))
        x0 = prediction.x0.to(sample.dtype)  # before the step, whose own conversions become cheaper by it
        advanced = self._advance(x, prediction, index, generator)
        self._step_index = index + 1
        previous = advanced.to(sample.dtype)
        rounded = previous is not advanced and not previous.is_inference()  # inference tensors have no version
        self._carried = (previous, previous._version, advanced) if rounded else None
        return PathSchedulerOutput(previous, x0) if return_dict else (previous, x0)

    def _advance(self, x: Tensor, prediction: Prediction, index: int, generator: Any) -> Tensor:
        """The solver's step, with noise in float32 at least where it takes some."""
        noise = None
        if self._solver.draws(index):
            if isinstance(generator, (list, tuple)) and len(generator) not in (1, len(x)):
                raise InputError(f"generator: {len(generator)} for a batch of {len(x)}; allowed: one, or one an image")
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=working_dtype(x))
        return self._solver.step(x, prediction, index, noise)

    def _full_precision(self, sample: Tensor) -> Tensor:
        """The state behind ``sample``: pipelines in half precision hand back, untouched, the tensor step() rounded."""
        if self._carried is not None:
            rounded, version, exact = self._carried
            if sample is rounded and not sample.is_inference() and sample._version == version:
                return exact
        return sample

    def _time(self, timestep: float | Tensor) -> float | Tensor:
        """The path's time; a host number for a number or an entry of ``timesteps``, else a tensor."""
        index = self._position(timestep)
        if index is not None:
            return float(self._times[index])
        time = self.family.time(timestep)
        return time.reshape(()) if isinstance(time, Tensor) and time.numel() == 1 else time

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: float | Tensor) -> Tensor:
        """Samples of the path at network timesteps, one number or one a sample, of this run or any other."""
        return self.path.perturb(original_samples, noise, self._time(timesteps))

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None) -> Tensor:
        """:meth:`add_noise` under the name and argument order of diffusers' flow schedulers."""
        return self.add_noise(sample, torch.randn_like(sample) if noise is None else noise, timestep)


def _options_of_another(name: Any, cls: type) -> list[str]:
    """The options, family keys aside, of the scheduler class of ours that is called ``name``, unless it is ``cls``."""
    if not isinstance(name, str) or name == cls.__name__ or not name.endswith("Scheduler"):
        return []
    other = getattr(importlib.import_module("genflow.schedulers"), name, None)
    if not (isinstance(other, type) and issubclass(other, PathScheduler)) or issubclass(cls, other):
        return []
    return [key for key in list(inspect.signature(other.__init__).parameters)[1:] if key not in FAMILY_KEYS]
