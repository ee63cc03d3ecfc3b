"""One face for the pipelines that make images: genflow's own ``ImagePipeline`` and any other of diffusers'.

A runner fills in a request's defaults from its pipeline and makes one batch of images from one batch of jobs.
"""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from genflow.errors import InputError, NonFiniteError, check_choice, check_keys, check_number, nearest
from genflow.files import fingerprint
from genflow.guidance import GUIDANCES, check_guidable, create_guidance, guide
from genflow.guidance.attach_layout import scale_argument
from genflow.pipelines.image import ImagePipeline
from genflow.pipelines.request import Draw, Request, Settings
from genflow.pipelines.translation import TranslationPipeline
from genflow.schedulers import SCHEDULERS, create_scheduler

__all__ = [
    "DiffusersRunner",
    "ImageRunner",
    "Progress",
    "Runner",
    "batch_for",
    "check_prompts",
    "make_runner",
    "scheduler_name",
]

Progress = Callable[[float], None]
"""Told, after each step of a batch, what share of the batch's steps is done."""


def scheduler_name(scheduler: Any) -> str:
    """The short name under which ``create_scheduler`` makes this scheduler, or the name of its class."""
    fitting = [
        (len(options), name)
        for name, (kind, options) in SCHEDULERS.items()
        if type(scheduler).__name__ == kind
        and all(scheduler.config.get(key) == value for key, value in options.items())
    ]
    # the name that says most; of equals the first
    return max(fitting, key=lambda found: found[0])[1] if fitting else type(scheduler).__name__


class Runner(ABC):
    """A loaded pipeline and what the command line needs to know of it."""

    num_classes: int | None = None
    takes_prompt = False

    def __init__(self, pipeline: Any, folder: Path) -> None:
        self.pipeline = pipeline
        self.model_hash = fingerprint(folder)
        self.class_numbers: dict[str, int] = {}

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """How many images to make at once where nobody says: as many as a few hundred MB take."""

    @abstractmethod
    def _guidance(self, request: Request) -> tuple[str | None, float | None, dict[str, Any]]:
        """Guidance's name, scale and options, defaults filled in; all empty where the model has none."""

    @abstractmethod
    def images(self, jobs: Sequence[Draw], settings: Settings, progress: Progress) -> list[Image.Image]:
        """Make one image per job in one batch, each with a generator of its own seed."""

    @abstractmethod
    def _default_steps(self) -> int: ...

    def class_name(self, label: int) -> str | None:
        """The (first) name of a class number."""
        return next((name for name, number in self.class_numbers.items() if number == label), None)

    def resolve(self, request: Request) -> Settings:
        """Put the asked-for scheduler into the pipeline and fill in every default.

        Raises:
            InputError: a name, a number or an option that cannot be.
        """
        steps = self._default_steps() if request.steps is None else request.steps
        steps = int(check_number("--steps", steps, at_least=1, at_most=100_000, integer=True))
        name, scale, options = self._guidance(request)
        scheduler = self.pipeline.scheduler
        chosen = request.scheduler or scheduler_name(scheduler)
        if request.scheduler or request.scheduler_options:
            self.pipeline.scheduler = create_scheduler(chosen, scheduler.config, **request.scheduler_options)
        return Settings(
            model=request.model,
            model_hash=self.model_hash,
            scheduler=chosen,
            scheduler_options=request.scheduler_options,
            steps=steps,
            guidance=name,
            guidance_scale=scale,
            guidance_options=options,
            pipeline_options=self._pipeline_options(request),
            dtype=str(self.pipeline.dtype).removeprefix("torch."),
            exact=request.exact,
        )

    def _pipeline_options(self, request: Request) -> dict[str, Any]:
        known = inspect.signature(self.pipeline.__call__).parameters
        own = {"batch_size", "class_labels", "generator", "guidance", "guidance_scale", "num_inference_steps"}
        own |= {"guidance_options"}
        own |= {"callback_on_step_end", "latents", "num_images_per_prompt", "output_type", "prompt", "return_dict"}
        for key in request.pipeline_options:
            if key in own:
                raise InputError(f"--pipeline-option: {key!r} is set by an option of its own or by genflow")
            if key not in known:
                allowed = [name for name in known if name not in own]
                raise InputError(
                    f"--pipeline-option: {type(self.pipeline).__name__} takes no {key!r}{nearest(key, allowed)}; "
                    f"allowed: {', '.join(allowed)}"
                )
        return request.pipeline_options


def _generators(jobs: Sequence[Draw]) -> list[torch.Generator]:
    """A generator per image, on the host, so that a seed gives the same noise on every device."""
    return [torch.Generator("cpu").manual_seed(job.seed) for job in jobs]


def batch_for(pipeline: Any, network: Any) -> int:
    """64 small images at once, fewer large ones: 2^18 pixels, taking a VAE to make 8 of each latent's side."""
    size = network.config.get("sample_size") if network is not None else None
    if size is None:
        return 1
    height, width = (size, size) if isinstance(size, int) else size
    pixels = height * width * (64 if getattr(pipeline, "vae", None) is not None else 1)
    return max(1, min(64, 2**18 // pixels))


class ImageRunner(Runner):
    """genflow's own pipeline: unconditional or class-conditional."""

    def __init__(self, pipeline: ImagePipeline, folder: Path) -> None:
        super().__init__(pipeline, folder)
        self.num_classes = pipeline.num_classes
        names = pipeline.config.class_names or []
        self.class_numbers = {name: number for number, name in enumerate(names)}

    @property
    def batch_size(self) -> int:
        return batch_for(self.pipeline, self.pipeline.unet)

    def _default_steps(self) -> int:
        return self.pipeline.config.default_steps

    def _guidance(self, request: Request) -> tuple[str | None, float | None, dict[str, Any]]:
        config = self.pipeline.config
        if not self.num_classes or self.pipeline.null_label is None:
            if request.guidance is not None or request.guidance_options or request.guidance_scale not in (None, 1):
                raise InputError("--guidance: this model has no unconditional half to guide away from; leave it out")
            return None, None, {}
        name = check_choice("--guidance", request.guidance or "cfg", GUIDANCES)
        known = [option for option in GUIDANCES[name].option_names if option != "scale"]  # --guidance-scale has that
        check_keys("--guidance-option", request.guidance_options, known)
        scale = config.default_guidance_scale if request.guidance_scale is None else request.guidance_scale
        options = dict(request.guidance_options)
        if config.default_guidance_interval is not None:
            options.setdefault("interval", list(config.default_guidance_interval))
        made = create_guidance(name, scale=check_number("--guidance-scale", scale), **options).to_config()
        return made.pop("name"), made.pop("scale"), made  # every option, in one spelling

    def images(self, jobs: Sequence[Draw], settings: Settings, progress: Progress) -> list[Image.Image]:
        arguments: dict[str, Any] = dict(settings.pipeline_options)
        if self.num_classes:
            arguments["class_labels"] = [job.label for job in jobs]
        if settings.guidance is not None:
            options = settings.guidance_options
            arguments["guidance"] = create_guidance(settings.guidance, scale=settings.guidance_scale, **options)

        def after_step(pipeline: Any, evaluation: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
            progress((evaluation + 1) / len(pipeline.scheduler.timesteps))
            return state

        return self.pipeline(
            generator=_generators(jobs),
            num_inference_steps=settings.steps,
            callback_on_step_end=after_step,
            **arguments,
        ).images


class DiffusersRunner(Runner):
    """Any other saved diffusers pipeline that makes images, from a prompt or from nothing."""

    def __init__(self, pipeline: Any, folder: Path) -> None:
        super().__init__(pipeline, folder)
        self._parameters = inspect.signature(pipeline.__call__).parameters
        known = set(self._parameters)
        for needed in ("generator", "num_inference_steps"):
            if needed not in known:
                raise InputError(f"--model: {type(pipeline).__name__} takes no {needed}, so genflow cannot run it")
        needs = {
            name
            for name, parameter in self._parameters.items()
            if parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        } - {"prompt"}
        if needs or not known & {"batch_size", "prompt"}:
            raise InputError(
                f"--model: {type(pipeline).__name__} needs {', '.join(sorted(needs)) or 'inputs'} that genflow "
                "cannot give it; allowed: pipelines that make images from nothing, a class or a prompt"
            )
        self.takes_prompt = "prompt" in known

    @property
    def batch_size(self) -> int:
        network = getattr(self.pipeline, "transformer", None) or getattr(self.pipeline, "unet", None)
        return batch_for(self.pipeline, network)

    def _default(self, name: str) -> Any:
        parameter = self._parameters.get(name)
        return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default

    def _default_steps(self) -> int:
        return self._default("num_inference_steps") or 50

    def _guidance(self, request: Request) -> tuple[str | None, float | None, dict[str, Any]]:
        if request.guidance not in (None, "cfg") or request.guidance_options:
            return self._attached_guidance(request)
        if "guidance_scale" not in self._parameters:
            if request.guidance is not None or request.guidance_scale is not None:
                raise InputError(f"--guidance-scale: {type(self.pipeline).__name__} takes none")
            return None, None, {}
        scale = request.guidance_scale
        scale = self._default("guidance_scale") if scale is None else check_number("--guidance-scale", scale)
        return "cfg", scale, {}

    def _attached_guidance(self, request: Request) -> tuple[str, float, dict[str, Any]]:
        """A rule of genflow's in the place of the pipeline's own CFG."""
        name = check_choice("--guidance", request.guidance or "cfg", GUIDANCES)
        known = [option for option in GUIDANCES[name].option_names if option != "scale"]
        check_keys("--guidance-option", request.guidance_options, known)
        check_guidable(self.pipeline)
        scale = request.guidance_scale
        scale = self._default(scale_argument(type(self.pipeline))) if scale is None else scale
        made = create_guidance(name, scale=check_number("--guidance-scale", scale), **request.guidance_options)
        config = made.to_config()
        return config.pop("name"), config.pop("scale"), config

    @contextmanager
    def _guided(self, settings: Settings) -> Iterator[dict[str, Any]]:
        """The pipeline's arguments for its guidance; options and other rules than CFG are attached to it."""
        name, scale, options = settings.guidance, settings.guidance_scale, settings.guidance_options
        if name is None or (name == "cfg" and not options):
            yield {} if scale is None else {"guidance_scale": scale}
        else:
            with guide(self.pipeline, create_guidance(name, scale=scale, **options)):
                yield {}

    def images(self, jobs: Sequence[Draw], settings: Settings, progress: Progress) -> list[Image.Image]:
        arguments: dict[str, Any] = dict(settings.pipeline_options)
        if self.takes_prompt:
            arguments["prompt"] = [job.prompt for job in jobs]
        else:
            arguments["batch_size"] = len(jobs)
        generators = _generators(jobs)
        scheduler = self.pipeline.scheduler
        scheduler.step = _watched_step(scheduler, generators, progress)  # on this instance only
        try:
            with self._guided(settings) as guidance:
                output = self.pipeline(
                    generator=generators,
                    num_inference_steps=settings.steps,
                    output_type="pil",
                    **guidance,
                    **arguments,
                )
        finally:
            del scheduler.step
        images = getattr(output, "images", None)
        if not images or not isinstance(images[0], Image.Image):
            raise InputError(f"--model: {type(self.pipeline).__name__} makes no still images")
        return list(images)


def _watched_step(scheduler: Any, generators: list[torch.Generator], progress: Progress) -> Callable[..., Any]:
    """The scheduler's ``step`` with three things added that not every pipeline does by itself.

    It stops at the step where the network gives NaN, reports progress, and hands the images' generators to a
    scheduler that draws noise where the pipeline forgets to, one of each for every repeat of the batch.
    """
    step = scheduler.step
    draws = "generator" in inspect.signature(step).parameters
    count = 0

    @functools.wraps(step)
    def watched(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *rest: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        total = len(scheduler.timesteps)
        if not torch.isfinite(model_output).all():
            raise NonFiniteError(f"the network gave NaN or infinity at step {count} of {total} (timestep {timestep})")
        if draws and not rest and options.get("generator") is None:
            options["generator"] = generators * (len(sample) // len(generators))
        output = step(model_output, timestep, sample, *rest, **options)
        progress(min(1.0, count / total))
        return output

    return watched


def make_runner(pipeline: Any, folder: Path) -> Runner:
    """The runner for a loaded pipeline.

    Raises:
        InputError: the pipeline needs inputs that the command line cannot give (an image, an audio clip).
    """
    if isinstance(pipeline, TranslationPipeline):
        raise InputError(f"--model: {folder} translates images; allowed here: a model that makes them from noise")
    return (ImageRunner if isinstance(pipeline, ImagePipeline) else DiffusersRunner)(pipeline, folder)


def check_prompts(runner: Runner, prompts: Sequence[str]) -> None:
    """Raise InputError where a model of texts gets none, or another model gets one."""
    if runner.takes_prompt and not prompts:
        raise InputError("--prompt: this model makes images from text; say what, as in --prompt 'a red boat'")
    if prompts and not runner.takes_prompt:
        raise InputError("--prompt: this model takes no text")
