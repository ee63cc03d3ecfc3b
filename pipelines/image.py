"""Images from any network that genflow can wrap, with any diffusers scheduler.

The file stands alone as a diffusers custom pipeline:
``DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipelines/image.py", trust_remote_code=True)``.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    DiTTransformer2DModel,
    ImagePipelineOutput,
    ModelMixin,
    UNet2DModel,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from genflow.errors import InputError, check_choice, check_keys, check_number
from genflow.guidance import GUIDANCES, AutoGuidance, Guidance, GuidedModel, create_guidance
from genflow.guidance.clock import family_of, steps_of
from genflow.models import LeanUNet2DModel, PathModel, from_diffusers
from genflow.pipelines.arguments import OUTPUT_TYPES, convert_output, generators_for, is_single, label_number
from genflow.pipelines.loading import (
    HUB_OPTIONS,
    class_name,
    import_components,
    loading_from,
    locate,
    read_index,
    summary,
)
from genflow.sampling import FiniteCheck, randn
from genflow.schedulers import PathScheduler

__all__ = ["ImagePipeline"]

import_components()

# any ModelMixin will do; from_pipe() looks for the very class
Network = ModelMixin | LeanUNet2DModel | UNet2DModel | DiTTransformer2DModel
Decoder = ModelMixin | AutoencoderKL | AutoencoderTiny | AutoencoderDC


class ImagePipeline(DiffusionPipeline):
    """Unconditional or class-conditional images, in pixels or in the latents of a VAE.

    Args:
        unet: the network, called as ``unet(x, timestep, class_labels=...)``: LeanUNet2DModel, UNet2DModel,
            DiTTransformer2DModel. Its path and prediction type are read from the scheduler's config.
        scheduler: any scheduler of genflow, or of diffusers with a Gaussian path.
        vae: decodes latents, with its config's scaling_factor and shift_factor; None for pixels in [-1, 1].
        class_names: the names of the classes 0, 1, ...
        null_label: the label of the unconditional class; None lets the network's config say it.
        default_steps, default_guidance_scale, default_guidance_interval: what a call uses unless told otherwise; the
            interval is two noise levels, the upper one None for infinity.

    All but the three components are saved in model_index.json.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]  # noqa: RUF012 (diffusers' own convention)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        unet: Network,
        scheduler: SchedulerMixin,
        vae: Decoder | None = None,
        class_names: list[str] | None = None,
        null_label: int | None = None,
        default_steps: int = 25,
        default_guidance_scale: float = 1.0,
        default_guidance_interval: list | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(
            class_names=list(class_names) if class_names else None,
            null_label=null_label,
            default_steps=int(check_number("default_steps", default_steps, at_least=1, integer=True)),
            default_guidance_scale=default_guidance_scale,
            default_guidance_interval=list(default_guidance_interval) if default_guidance_interval else None,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "ImagePipeline":
        """Load a shipped model by name, a saved folder, or a hub id; keyword arguments as in diffusers.

        Only JSON and safetensors files are read. Raises InputError, in one line, where there is nothing to load or
        where it is damaged.
        """
        options = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        folder = locate(pretrained_model_name_or_path, **options)
        index = read_index(folder)
        kwargs.setdefault("use_safetensors", True)
        if class_name(index) == "TranslationPipeline":
            raise InputError(f"model: {folder} translates images; allowed: a model that makes them from noise")
        with loading_from(folder):
            if "transformer" in index and "unet" not in index:  # DiTPipeline's name for its network
                return cls._from_dit(DiffusionPipeline.from_pretrained(str(folder), **kwargs))
            return super().from_pretrained(str(folder), **kwargs)

    @classmethod
    def _from_dit(cls, pipe: DiffusionPipeline) -> "ImagePipeline":
        labels = getattr(pipe, "labels", None) or {}
        names = {index: name for name, index in reversed(list(labels.items()))}
        complete = names and sorted(names) == list(range(len(names)))
        class_names = [names[index] for index in sorted(names)] if complete else None
        return cls(unet=pipe.transformer, scheduler=pipe.scheduler, vae=pipe.vae, class_names=class_names)

    @property
    def num_classes(self) -> int | None:
        """How many classes there are, or None for an unconditional network."""
        if self.config.class_names:
            return len(self.config.class_names)
        if self.null_label is not None:
            return self.null_label
        return getattr(self.unet.config, "num_class_embeds", None)

    @property
    def null_label(self) -> int | None:
        """The label of the unconditional class, or None where the network has none."""
        if self.config.null_label is not None:
            return int(self.config.null_label)
        config = self.unet.config
        for key in ("num_classes", "num_embeds_ada_norm"):  # LeanUNet2DModel; DiT
            if getattr(config, key, None) is not None:
                return int(config[key])
        names, embeddings = self.config.class_names, getattr(config, "num_class_embeds", None)
        # UNet2DModel does not say whether its last embedding is the null class; one more than there are names is
        return len(names) if names and embeddings == len(names) + 1 else None

    def path_model(self, network: torch.nn.Module | None = None) -> PathModel:
        """The pipeline's network, or another that is called as it is, as a model on the scheduler's path."""
        family = family_of(self.scheduler)
        options = {"sigma_data": family.config["sigma_data"]} if family.name == "edm" else {}
        options["num_train_timesteps"] = family.num_train_timesteps
        network = self.unet if network is None else network
        return from_diffusers(network, family.path, family.prediction_type, num_classes=self.null_label, **options)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | Sequence[float] | Tensor | None = None,
        guidance: str | Guidance | None = None,
        guidance_options: dict[str, Any] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        mu: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["ImagePipeline", int, Tensor, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Make images.

        Args:
            class_labels: a label or class name for each image, or one for all; None draws from the null class.
            batch_size: how many images; by default as many as there are labels, latents or generators.
            num_inference_steps: by default ``default_steps``.
            guidance_scale: 1 is none; one number, or one for each image. By default ``default_guidance_scale``.
            guidance: a guidance object (which brings its own scale), or its name; by default ``cfg``. The weak model of
                an :class:`AutoGuidance` may be a plain network; it is called as the pipeline's own is.
            guidance_options: further options of the guidance that is named, as ``{"eta": 0.0}`` for ``apg``.
            generator: one for all images in turn, or one an image: then an image depends on its own alone.
            latents: standard normal noise ``(B, C, H, W)`` to start from. With PFGM++ it is scaled, as the drawn one
                is, by a factor that each image takes from its generator.
            height, width: in pixels; by default the network's sample_size.
            sigmas, timesteps, mu: for the scheduler's ``set_timesteps``.
            output_type: ``pil``; ``pt`` or ``np``, in [0, 1], NCHW or NHWC; ``latent``, before decoding.
            return_dict: False for a tuple.
            callback_on_step_end: called as diffusers does after every evaluation, with ``latents``; what it returns
                replaces them.
            callback_on_step_end_tensor_inputs: ``("latents",)``.

        Raises:
            InputError: an argument that does not fit, before any work.
            NonFiniteError: the network gave NaN or infinity; the message names the step.
        """
        check_choice("output_type", output_type, OUTPUT_TYPES)
        for name in callback_on_step_end_tensor_inputs:
            check_choice("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        device = self._execution_device
        batch = self._batch_size(class_labels, batch_size, latents, generator)
        labels = self._labels(class_labels, batch, device)
        rule = self._guidance(guidance, guidance_scale, guidance_options, class_labels is not None, batch)
        generators = generators_for(generator, batch)
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        check_number("num_inference_steps", steps, at_least=1, integer=True)
        family = family_of(self.scheduler)
        model = self.path_model()
        self._set_timesteps(num_inference_steps, steps, device, sigmas, timesteps, mu)
        # a flow scheduler of diffusers has no init_noise_sigma
        prior_std = getattr(self.scheduler, "init_noise_sigma", 1.0)
        normal = self._noise(latents, batch, height, width, generators, device)
        latents = family.path.noise(normal, generators) * prior_std
        if rule is not None:
            if isinstance(rule, AutoGuidance) and not isinstance(rule.weak, PathModel):
                found = {parameter.device for parameter in rule.weak.parameters()}
                if found - {device}:
                    raise InputError(f"weak: its parameters are on {found}; allowed: {device}, where the pipeline runs")
                rule = AutoGuidance(self.path_model(rule.weak), rule.rule)
            model = GuidedModel(model, rule, self.null_label)
        conditioning = {} if labels is None else {"class_labels": labels}

        schedule = self.scheduler.timesteps
        own = isinstance(self.scheduler, PathScheduler)
        times = (self.scheduler.times if own else family.time(schedule.cpu().numpy())).tolist()
        step_of = steps_of(self.scheduler).tolist()
        count = step_of[-1] + 1
        if isinstance(model, GuidedModel):
            model.reset(count)
        check = FiniteCheck(
            lambda i: f"the network gave NaN or infinity at step {step_of[i] + 1} of {count} (t={times[i]:.6g})"
        )
        extra = _step_arguments(self.scheduler, generators)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)
        with self.progress_bar(total=count) as bar:
            for i, (timestep, time) in enumerate(zip(schedule, times, strict=True)):
                scaled = _scale_input(self.scheduler, latents, timestep)
                if isinstance(model, GuidedModel):
                    model.step = step_of[i]
                prediction = model.predict(latents if family.name == "edm" else scaled, time, **conditioning)
                check.look(prediction.to(prediction.kind))
                output = prediction if own else family.model_output(prediction)
                latents = self.scheduler.step(output, timestep, latents, return_dict=False, **extra)[0]
                if callback_on_step_end is not None:
                    tensors = {name: latents for name in callback_on_step_end_tensor_inputs}
                    latents = (callback_on_step_end(self, i, timestep, tensors) or {}).get("latents", latents)
                if i + 1 == len(times) or step_of[i + 1] != step_of[i]:
                    bar.update()
        check.verdict()
        images = self._output(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _batch_size(self, labels: Any, batch_size: int | None, latents: Tensor | None, generator: Any) -> int:
        sizes = {}
        if batch_size is not None:
            sizes["batch_size"] = int(check_number("batch_size", batch_size, at_least=1, integer=True))
        if labels is not None and not is_single(labels):
            sizes["class_labels"] = len(labels)
        if latents is not None:
            sizes["latents"] = latents.shape[0]
        if generator is not None and not isinstance(generator, torch.Generator):
            sizes["generator"] = len(generator)
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            counts = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise InputError(f"batch: the arguments tell of different numbers of images: {counts}")
        return next(iter(sizes.values()), 1)

    def _labels(self, labels: Any, batch: int, device: torch.device) -> Tensor | None:
        count = self.num_classes
        if labels is None:
            if count is not None and self.null_label is None:
                raise InputError(f"class_labels: None, and the network has no null class; allowed: 0 to {count - 1}")
            return None if count is None else torch.full((batch,), self.null_label, device=device)
        if count is None:
            raise InputError("class_labels: the network is unconditional; allowed: None")
        if is_single(labels):
            labels = [labels] * batch
        highest = count - 1 if self.null_label is None else max(count - 1, self.null_label)
        names = self.config.class_names or []
        labels = labels.tolist() if isinstance(labels, Tensor) else labels
        found = [label_number(label, names, highest) for label in labels]
        return torch.tensor(found, dtype=torch.int64, device=device)

    def _guidance(
        self, guidance: Any, scale: Any, options: dict[str, Any] | None, labelled: bool, batch: int
    ) -> Guidance | None:
        asked = guidance is not None or scale is not None or bool(options)
        if isinstance(guidance, Guidance):
            for name, value in (("guidance_scale", scale), ("guidance_options", options)):
                if value is not None:
                    raise InputError(f"{name}: given together with a guidance object, which has its own")
            if isinstance(guidance.scale, Tensor) and guidance.scale.shape not in ((), (1,), (batch,)):
                count = guidance.scale.numel()
                raise InputError(f"guidance: {count} scales; allowed: a number, or one for each of {batch}")
        else:
            if isinstance(scale, (Sequence, Tensor)) and not isinstance(scale, str):
                scale = torch.as_tensor(scale, dtype=torch.float32)
                if scale.shape not in ((), (batch,)):
                    raise InputError(f"guidance_scale: {scale.tolist()}; allowed: a number, or one for each of {batch}")
            scale = self.config.default_guidance_scale if scale is None else scale
            interval = self.config.default_guidance_interval
            defaults = {} if interval is None else {"interval": tuple(interval)}
            kind = check_choice("guidance", guidance or "cfg", GUIDANCES)
            check_keys("guidance_options", options or {}, [k for k in GUIDANCES[kind].option_names if k != "scale"])
            guidance = create_guidance(kind, scale=scale, **{**defaults, **(options or {})})
        if guidance.neutral:
            return None
        if isinstance(guidance, AutoGuidance):
            return guidance
        if not labelled or self.null_label is None:
            if asked:
                need = "class_labels" if self.null_label is not None else "a network with a null class"
                raise InputError(f"guidance: needs {need}; allowed without: a guidance_scale of 1")
            return None
        return guidance

    def _set_timesteps(
        self, given: int | None, steps: int, device: torch.device, sigmas: Any, timesteps: Any, mu: float | None
    ) -> None:
        known = inspect.signature(self.scheduler.set_timesteps).parameters
        custom = {"sigmas": sigmas, "timesteps": timesteps, "mu": mu}
        custom = {key: value for key, value in custom.items() if value is not None}
        for key in custom:
            if key not in known:
                raise InputError(f"{key}: {type(self.scheduler).__name__} does not take it")
        if (sigmas is None and timesteps is None) or (given is not None and isinstance(self.scheduler, PathScheduler)):
            custom["num_inference_steps"] = steps
        try:
            self.scheduler.set_timesteps(device=device, **custom)
        except InputError:
            raise
        except (ValueError, AssertionError) as error:  # a diffusers scheduler's own check
            raise InputError(f"{type(self.scheduler).__name__}: {summary(error)}") from error

    def _noise(
        self, latents: Tensor | None, batch: int, height: Any, width: Any, generators: list[Any], device: torch.device
    ) -> Tensor:
        config = self.unet.config
        size = config.sample_size if config.sample_size is not None else (None, None)
        size = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        factor = 1
        if self.vae is not None:
            factor = 2 ** (len(getattr(self.vae.config, "block_out_channels", (1,))) - 1)
        for axis, (name, value) in enumerate((("height", height), ("width", width))):
            if value is not None:
                check_number(name, value, at_least=factor, integer=True)
                if value % factor:
                    raise InputError(f"{name}: {value}; allowed: a multiple of {factor}")
                size = (*size[:axis], value // factor, *size[axis + 1 :])
        if latents is None and None in size:
            raise InputError("height and width: None; allowed: the size in pixels, which the network does not tell")
        shape = (config.in_channels, *size)
        if latents is None:
            return randn(shape, generators, torch.float32, device)
        if (
            latents.ndim != 4
            or latents.shape[1] != shape[0]
            or ((height or width) and tuple(latents.shape[2:]) != size)
        ):
            raise InputError(f"latents: shape {tuple(latents.shape)}; allowed: ({batch}, {', '.join(map(str, shape))})")
        return latents.to(device=device, dtype=torch.float32)

    def _output(self, latents: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return latents
        images = latents
        if self.vae is not None:
            config = self.vae.config
            images = images / (getattr(config, "scaling_factor", None) or 1.0)
            images = images + (getattr(config, "shift_factor", None) or 0.0)
            images = self.vae.decode(images.to(self.vae.dtype)).sample
        return convert_output(images, output_type)


def _scale_input(scheduler: SchedulerMixin, latents: Tensor, timestep: Tensor) -> Tensor:
    """The network's input; on a beta schedule that is the variance-preserving state, whatever the scheduler's own."""
    return scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents


def _step_arguments(scheduler: SchedulerMixin, generators: list[Any]) -> dict[str, Any]:
    takes = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": generators} if takes and generators[0] is not None else {}
