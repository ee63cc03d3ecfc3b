"""``with guide(pipe, APG(7.5)):`` any diffusers pipeline that runs CFG inside itself uses our guidance instead."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from genflow.errors import InputError
from genflow.guidance.attach_layout import IDLE_ARGUMENTS, Layout, layout_of, networks_of, scale_argument
from genflow.guidance.attach_run import GuidedRun
from genflow.guidance.autoguidance import AutoGuidance
from genflow.guidance.base import Guidance
from genflow.guidance.clock import family_of

__all__ = ["check_guidable", "guide"]

_OWN_SCALE = 2.0  # any above 1: it turns the pipeline's CFG on and changes nothing else


def check_guidable(pipe: Any) -> Layout:
    """How ``pipe`` is to be guided. Raises InputError where :func:`guide` cannot serve it (see there)."""
    cls = type(pipe)
    if not hasattr(pipe, "scheduler") or not callable(pipe):
        raise InputError(f"guide: got {cls.__name__}; allowed: a diffusers pipeline with a scheduler")
    layout = layout_of(cls)
    if hasattr(pipe, "guider"):
        raise InputError(f"guide: {cls.__name__} cannot be served: it takes a guider component (PathGuider is one)")
    scale_argument(cls)
    networks_of(pipe)
    try:
        family_of(pipe.scheduler)
    except InputError as error:
        raise InputError(f"guide: {type(pipe.scheduler).__name__} of this {cls.__name__}: {error}") from None
    return layout


@contextmanager
def guide(pipe: Any, guidance: Guidance) -> Iterator[Any]:
    """Inside the block, every call of ``pipe`` is guided by ``guidance`` in the place of the pipeline's own CFG.

    The pipeline keeps its loop, its prompts and its scheduler (which may be exchanged inside the block). It is made to
    run its CFG, and of the network's two predictions, read as denoised images on the scheduler's path, the guided one
    is made and written over both (:class:`~genflow.guidance.attach_run.GuidedRun`): the pipeline's own combination of
    the two is then that prediction, whatever its ``guidance_scale`` (which need not be given) and ``guidance_rescale``.
    ``guide(pipe, CFG(s))`` gives the pipeline's own images at scale s, with two exceptions: a pipeline that counts from
    0 (``cond + s (cond - uncond)``: Z-Image, Krea2, Cosmos) has scale s - 1 for it, and one that brings every token
    back to the conditional prediction's norm afterwards (QwenImage, Lumina2) does so no more, both being equal.

    Which half is the conditional one: Stable Diffusion's order (unconditional first) unless the class is in
    :data:`~genflow.guidance.attach_layout.LAYOUTS` (DiT and Lumina have the conditional first, Flux, Wan, QwenImage and
    others call the network twice). Channels that predict a variance, and those of a mask or a reference image, are left
    alone. Noise levels come from the scheduler's timesteps, and the guidance's steps are the scheduler's: a Heun
    scheduler counts one for two evaluations.

    A call begins a run of the guidance and holds hooks on the network and the scheduler until it returns or raises;
    between calls nothing but the pipeline's class is changed, and the end of the block undoes that. Hooks of accelerate
    (``enable_model_cpu_offload``) and compiled networks stay as they are. A pipeline is guided by one block at a time
    and called by one thread at a time.

    Args:
        pipe: a diffusers pipeline.
        guidance: any rule of this package; a scale tensor has one number an image.

    Yields:
        ``pipe`` itself.

    Raises:
        InputError: a pipeline without CFG, with a network distilled for guidance, with a guidance of more than two
            predictions (InstructPix2Pix, perturbed attention), without a Gaussian path, or guided already; in a call,
            a ``guidance_scale`` of 1 or less, no negative prompt where it is what turns CFG on, or anything done to
            the two predictions that would not leave the guided one.
    """
    if not isinstance(guidance, Guidance) or isinstance(guidance, AutoGuidance):
        raise InputError(f"guidance: got {type(guidance).__name__}; allowed: a rule such as CFG(7.5) or APG(7.5)")
    cls = type(pipe)
    if getattr(cls, "_genflow_guided", False):
        raise InputError(f"guide: this {cls.__name__} is guided already; leave that block first")
    layout = check_guidable(pipe)
    pipe.__class__ = _guided_class(cls, layout, guidance)
    try:
        yield pipe
    finally:
        pipe.__class__ = cls


def _guided_class(cls: type, layout: Layout, guidance: Guidance) -> type:
    """A subclass whose calls are guided runs; ``pipe(...)`` looks the call up on the class, not on the instance."""
    running: list[GuidedRun] = []

    @functools.wraps(cls.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if running:
            raise InputError(f"guide: this {cls.__name__} is running already; call it from one thread at a time")
        arguments = _with_cfg_on(cls, layout, self, args, kwargs)
        run = GuidedRun(self, networks_of(self), layout, guidance, cls.__name__)
        running.append(run)
        try:
            with run.attached():
                return cls.__call__(*arguments.args, **arguments.kwargs)
        finally:
            running.clear()

    members: dict[str, Any] = {"__call__": call, "_genflow_guided": True, "__doc__": cls.__doc__}
    for name in ("prepare_latents", "prepare_intermediate_images"):
        if hasattr(cls, name):
            members[name] = _telling(getattr(cls, name), running)
    names = {key: getattr(cls, key) for key in ("__module__", "__qualname__")}
    return type(cls.__name__, (cls,), {**members, **names})


def _telling(prepare: Callable[..., Any], running: list[GuidedRun]) -> Callable[..., Any]:
    @functools.wraps(prepare)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare(self, *args, **kwargs)
        for run in running:
            run.note_latents(prepared)
        return prepared

    return told


def _with_cfg_on(
    cls: type, layout: Layout, pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> inspect.BoundArguments:
    """The call's arguments, such that the pipeline runs its CFG."""
    signature = inspect.signature(cls.__call__)
    bound = signature.bind(pipe, *args, **kwargs)
    given = bound.arguments
    scale_name = scale_argument(cls)
    for name in (scale_name, "guidance_scale_2"):
        value = given.get(name)
        if isinstance(value, (int, float)) and not value > 1:
            raise InputError(
                f"{name}: got {value!r}; allowed inside guide(): none, or any number > 1, which only turns the "
                "pipeline's CFG on (the guidance has the scale)"
            )
    if given.get(scale_name) is None:
        default = signature.parameters[scale_name].default
        given[scale_name] = default if isinstance(default, (int, float)) and default > 1 else _OWN_SCALE
    for name, idle in IDLE_ARGUMENTS.items():
        if name in given and given[name] not in idle:
            raise InputError(f"{name}: got {given[name]!r}; allowed inside guide(): leave it out")
    if layout.needs_negative and given.get("negative_prompt") is None and given.get("negative_prompt_embeds") is None:
        raise InputError(
            f"negative_prompt: None; allowed inside guide(): one (an empty one, say), without which {cls.__name__} has "
            "no unconditional prediction"
        )
    return bound
