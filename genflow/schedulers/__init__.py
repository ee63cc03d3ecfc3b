"""diffusers schedulers made of a path and a solver, and a table of names for the command line."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from genflow.errors import InputError, nearest
from genflow.lazy import lazy_exports

if TYPE_CHECKING:
    from genflow.schedulers.base import PathScheduler, PathSchedulerOutput
    from genflow.schedulers.beta import BetaFamily
    from genflow.schedulers.edm import EDMFamily
    from genflow.schedulers.evaluations import count_evaluations, steps_within
    from genflow.schedulers.family import Family
    from genflow.schedulers.flow import FlowFamily
    from genflow.schedulers.ghvb import GHVBScheduler
    from genflow.schedulers.hb import HBScheduler
    from genflow.schedulers.interpolant import InterpolantFamily
    from genflow.schedulers.one_step import OneStepScheduler
    from genflow.schedulers.pfgmpp import PFGMPlusPlusScheduler
    from genflow.schedulers.reading import family_from_config
    from genflow.schedulers.rectified_flow import RectifiedFlowScheduler
    from genflow.schedulers.stochastic_interpolant import StochasticInterpolantScheduler

__all__ = [
    "SCHEDULERS",
    "BetaFamily",
    "EDMFamily",
    "Family",
    "FlowFamily",
    "GHVBScheduler",
    "HBScheduler",
    "InterpolantFamily",
    "OneStepScheduler",
    "PFGMPlusPlusScheduler",
    "PathScheduler",
    "PathSchedulerOutput",
    "RectifiedFlowScheduler",
    "StochasticInterpolantScheduler",
    "count_evaluations",
    "create_scheduler",
    "family_from_config",
    "steps_within",
]

_HOMES = {
    "BetaFamily": "beta",
    "EDMFamily": "edm",
    "Family": "family",
    "FlowFamily": "flow",
    "GHVBScheduler": "ghvb",
    "HBScheduler": "hb",
    "InterpolantFamily": "interpolant",
    "OneStepScheduler": "one_step",
    "PFGMPlusPlusScheduler": "pfgmpp",
    "PathScheduler": "base",
    "PathSchedulerOutput": "base",
    "RectifiedFlowScheduler": "rectified_flow",
    "StochasticInterpolantScheduler": "stochastic_interpolant",
    "count_evaluations": "evaluations",
    "family_from_config": "reading",
    "steps_within": "evaluations",
}

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("RectifiedFlowScheduler", {"solver": "euler"}),
    "heun": ("RectifiedFlowScheduler", {"solver": "heun"}),
    "rk4": ("RectifiedFlowScheduler", {"solver": "rk4"}),
    "ab": ("HBScheduler", {"around": "ab", "beta": 1.0}),
    "abm": ("HBScheduler", {"around": "ab", "beta": 1.0, "corrector": True}),
    "dpm++": ("HBScheduler", {"around": "dpm++", "beta": 1.0}),
    "hb": ("HBScheduler", {}),
    "ghvb": ("GHVBScheduler", {}),
    "pfgm++": ("PFGMPlusPlusScheduler", {}),
    "sde": ("StochasticInterpolantScheduler", {}),
    "sde-heun": ("StochasticInterpolantScheduler", {"solver": "sde-heun"}),
    "sde-euler": ("StochasticInterpolantScheduler", {"solver": "sde-euler"}),
    "overshooting": ("RectifiedFlowScheduler", {"solver": "overshooting"}),
    "refresh": ("RectifiedFlowScheduler", {"solver": "refresh"}),
    "one-step": ("OneStepScheduler", {}),
}
"""Short names: the class (in this package) and the options that the name stands for."""

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)


def create_scheduler(name: str, config: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """A scheduler by name, for the network that ``config`` (of any scheduler) belongs to.

    Args:
        name: a key of ``SCHEDULERS``, a scheduler class of this package, or one of diffusers
            ("DPMSolverMultistepScheduler").
        config: the config of the scheduler it replaces; None for the class's own defaults.
        **options: keys that override it.

    Raises:
        InputError: an unknown name or option (with the nearest known one), or values the scheduler refuses.
    """
    cls, defaults = _find(name)
    options = {**defaults, **options}
    known = _init_keys(cls)
    for key in options:
        if key not in known:
            raise InputError(f"scheduler {name!r}: option {key!r} is not known{nearest(key, known)}")
    try:
        return cls.from_config({} if config is None else config, **options)
    except InputError:
        raise
    except (ValueError, TypeError, NotImplementedError) as error:  # a diffusers class's own check
        raise InputError(f"scheduler {name!r}: {error}") from error


def _find(name: str) -> tuple[type, dict[str, Any]]:
    if name in SCHEDULERS:
        own, defaults = SCHEDULERS[name]
        return __getattr__(own), defaults
    if name in _HOMES and name.endswith("Scheduler") and name != "PathScheduler":
        return __getattr__(name), {}
    import diffusers  # here, so that the table of names costs nothing
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    cls = getattr(diffusers, name, None) if name.isidentifier() and name.endswith("Scheduler") else None
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)):
        known = [*SCHEDULERS, *(key for key in dir(diffusers) if key.endswith("Scheduler"))]
        raise InputError(
            f"scheduler: {name!r} is not known{nearest(name, known)}; "
            f"allowed: {', '.join(SCHEDULERS)} or the name of a diffusers scheduler class"
        )
    return cls, {}


def _init_keys(cls: type) -> list[str]:
    import inspect

    return [key for key in inspect.signature(cls.__init__).parameters if key not in ("self", "args", "kwargs")]
