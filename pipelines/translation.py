"""Images of one kind into images of another, along a stochastic interpolant between the two.

The file stands alone as a diffusers custom pipeline:
``DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipelines/translation.py", trust_remote_code=True)``.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from genflow.bridges import METHODS, sample_interpolant
from genflow.errors import InputError, check_choice, check_number
from genflow.interpolants import JointModel, LinearInterpolant, StochasticInterpolant
from genflow.models import NetworkHeads
from genflow.pipelines import image  # not the class itself: diffusers wants one pipeline in a custom file
from genflow.pipelines.arguments import (
    OUTPUT_TYPES,
    convert_output,
    generators_for,
    image_tensor,
    is_single,
    label_number,
)
from genflow.pipelines.loading import HUB_OPTIONS, class_name, loading_from, locate, read_index

__all__ = ["DIRECTIONS", "TranslationPipeline"]

DIRECTIONS = ("forward", "backward")
"""From t = 1 to t = 0, as all sampling in genflow goes, and from t = 0 to t = 1."""


class TranslationPipeline(DiffusionPipeline):
    """A flow between two densities of images, both ways: ``genflow train`` makes it from a recipe's ``interpolant``.

    ``forward`` carries an image of the recipe's ``interpolant.source`` (t = 1) to one of its ``data`` (t = 0);
    ``backward`` is the way back. By the ODE the two undo each other, up to the error of the steps; the SDEs carry the
    same densities, and one image to many.

    Args:
        unet: a network as for :class:`~genflow.pipelines.ImagePipeline`, which gives for each of ``learns`` as many
            channels as an image has.
        interpolant: what it was trained on, or its config; the linear one by default.
        learns: which conditional means the output's channels hold, in this order, by default velocity and denoiser;
            see :mod:`genflow.interpolants`.
        sides: names of the images at t = 0 and at t = 1, for people; by default data and source.
        class_names, source_class_names: names of the classes 0, 1, ... at t = 0 and at t = 1.
        margin: how far training stayed from t = 0 and 1. Sampling does too where the network gives no velocity, but
            flow and denoiser, from which it comes with an infinite factor at the ends; else it goes to the very ends.
        default_steps, default_solver, default_epsilon: what a call uses unless told otherwise.

    All but the network is saved in model_index.json.

    Raises:
        InputError: means that do not determine a velocity, or channels of the network that do not fit them.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: image.Network,
        interpolant: StochasticInterpolant | dict | None = None,
        learns: list[str] | None = None,
        sides: list[str] | None = None,
        class_names: list[str] | None = None,
        source_class_names: list[str] | None = None,
        margin: float = 1e-3,
        default_steps: int = 18,
        default_solver: str = "heun",
        default_epsilon: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet)
        interpolant = LinearInterpolant() if interpolant is None else interpolant
        if not isinstance(interpolant, StochasticInterpolant):
            interpolant = StochasticInterpolant.from_config(interpolant)
        self.interpolant = interpolant
        learns = list(learns or ("velocity", "denoiser"))
        model = NetworkHeads(unet, learns).model(interpolant)
        channels, outputs = unet.config.in_channels, unet.config.get("out_channels") or unet.config.in_channels
        if outputs != channels * len(learns):
            raise InputError(
                f"unet: {channels} channels in and {outputs} out; allowed: {channels * len(learns)} out, "
                f"{channels} for each of {', '.join(learns)}"
            )
        check_number("margin", margin, at_least=0, below=0.5)
        inside = model.velocity is None and model.denoiser is not None
        self._times = (margin, 1 - margin) if inside else (0.0, 1.0)
        if inside and not all(math.isfinite(interpolant.gamma.dot(t)) for t in self._times):
            raise InputError(f"margin: {margin}; allowed: > 0, for gamma' is infinite at the ends")
        self.register_to_config(
            interpolant=interpolant.to_config(),
            learns=learns,
            sides=[str(side) for side in sides or ("data", "source")],
            class_names=list(class_names) if class_names else None,
            source_class_names=list(source_class_names) if source_class_names else None,
            margin=margin,
            default_steps=int(check_number("default_steps", default_steps, at_least=1, integer=True)),
            default_solver=check_choice("default_solver", default_solver, METHODS),
            default_epsilon=check_number("default_epsilon", default_epsilon, at_least=0),
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "TranslationPipeline":
        """Load a shipped model by name, a saved folder, or a hub id; keyword arguments as in diffusers.

        Only JSON and safetensors files are read. Raises InputError, in one line, where there is nothing to load, where
        it is damaged, or where it does not translate.
        """
        options = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        folder = locate(pretrained_model_name_or_path, **options)
        kind = class_name(read_index(folder))
        if kind != cls.__name__:
            raise InputError(f"model: {folder} is of kind {kind}; allowed: {cls.__name__}, which translates images")
        kwargs.setdefault("use_safetensors", True)
        with loading_from(folder):
            return super().from_pretrained(str(folder), **kwargs)

    @property
    def num_classes(self) -> int | None:
        """How many classes there are, or None for an unconditional network."""
        for names in (self.config.class_names, self.config.source_class_names):
            if names:
                return len(names)
        config = self.unet.config
        found = (config.get(key) for key in ("num_classes", "num_embeds_ada_norm", "num_class_embeds"))
        return next((count for count in found if count is not None), None)

    @property
    def model(self) -> JointModel:
        """The network as :func:`genflow.bridges.sample_interpolant` takes it."""
        return NetworkHeads(self.unet, self.config.learns).model(self.interpolant)

    def times(self, direction: str, steps: int) -> np.ndarray:
        """``steps + 1`` times, evenly spaced, float64: falling for ``forward``, rising for ``backward``."""
        low, high = self._times
        return np.linspace(high, low, steps + 1) if direction == "forward" else np.linspace(low, high, steps + 1)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images, or None where the network takes any."""
        size = self.unet.config.get("sample_size")
        return (size, size) if isinstance(size, int) else tuple(size) if size is not None else None

    def check(self, direction: str, steps: int, solver: str, epsilon: float) -> None:
        """Raise InputError for settings with which this model cannot be called."""
        check_choice("direction", direction, DIRECTIONS)
        check_number("num_inference_steps", steps, at_least=1, integer=True)
        check_choice("solver", solver, METHODS)
        check_number("epsilon", epsilon, at_least=0)
        if epsilon > 0 and not self.model.has_score:
            learns = ", ".join(self.config.learns)
            raise InputError(f"epsilon: {epsilon}; allowed: 0, for the network gives {learns} alone, and no score")

    @torch.no_grad()
    def __call__(
        self,
        images: Any = None,
        direction: str = "forward",
        num_inference_steps: int | None = None,
        epsilon: float | None = None,
        solver: str | None = None,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        resize: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callable[[int, float, Tensor], None] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Carry images from one side to the other.

        Args:
            images: PIL images, a tensor ``(B, C, H, W)`` or an array ``(B, H, W, C)`` in [0, 1].
            direction: ``forward`` from t = 1 to t = 0, or ``backward``.
            num_inference_steps: by default ``default_steps``.
            epsilon: 0 follows the ODE. Above, ``dx = (b +- epsilon gamma s) dt + sqrt(2 epsilon gamma) dW``, a new
                image for every generator: noise in units of the interpolant's own, which ends where that does. By
                default ``default_epsilon``.
            solver: ``euler`` or ``heun``, one and two evaluations a step; by default ``default_solver``.
            class_labels: for a network with classes, a number or name for each image, or one for all. Names are those
                of the side that the images come from, then those of the other.
            generator: one for all images in turn, or one an image: then an image depends on its own alone.
            latents: in the place of ``images``, a tensor in [-1, 1], as the output type ``latent`` gives it.
            resize: bring images of other sizes and channels to the network's, instead of refusing them.
            output_type: ``pil``; ``pt`` or ``np``, in [0, 1], NCHW or NHWC; ``latent``, as it comes from the solver.
            return_dict: False for a tuple.
            callback: called after every step as ``callback(step, t, latents)``.

        Raises:
            InputError: an argument that does not fit, before any work.
            NonFiniteError: the network gave NaN or infinity; the message names the step.
        """
        check_choice("output_type", output_type, OUTPUT_TYPES)
        config, device = self.config, self._execution_device
        steps = config.default_steps if num_inference_steps is None else num_inference_steps
        solver = solver or config.default_solver
        epsilon = config.default_epsilon if epsilon is None else epsilon
        self.check(direction, steps, solver, epsilon)
        times = self.times(direction, steps)
        x = self._states(images, latents, resize).to(device)
        labels = self._labels(class_labels, direction, len(x), device)
        generators = generators_for(generator, len(x))
        if len(generators) != len(x):
            raise InputError(f"generator: {len(generators)}; allowed: one, or one for each of {len(x)} images")
        with self.progress_bar(total=len(times) - 1) as bar:

            def after(step: int, t: float, latents: Tensor) -> None:
                bar.update()
                if callback is not None:
                    callback(step, t, latents)

            x = sample_interpolant(
                self.model,
                x,
                times,
                epsilon=epsilon,
                relative=True,
                method=solver,
                generators=generators,
                callback=after,
                **({} if labels is None else {"class_labels": labels}),
            )
        output = x if output_type == "latent" else convert_output(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    def _states(self, images: Any, latents: Tensor | None, resize: bool) -> Tensor:
        if (images is None) == (latents is None):
            raise InputError("images and latents: allowed: one of the two")
        channels = self.unet.config.in_channels
        if latents is None:
            return image_tensor(images, channels, self.size, resize)
        if latents.ndim != 4 or latents.shape[1] != channels or len(latents) == 0:
            raise InputError(f"latents: shape {tuple(latents.shape)}; allowed: (B, {channels}, H, W)")
        return latents

    def _labels(self, labels: Any, direction: str, batch: int, device: torch.device) -> Tensor | None:
        count = self.num_classes
        if count is None:
            if labels is not None:
                raise InputError("class_labels: the network is unconditional; allowed: None")
            return None
        if labels is None:
            raise InputError(f"class_labels: None; allowed: one of {count} classes for each image")
        labels = [labels] * batch if is_single(labels) else labels
        labels = labels.tolist() if isinstance(labels, Tensor) else list(labels)
        if len(labels) != batch:
            raise InputError(f"class_labels: {len(labels)}; allowed: one, or one for each of {batch} images")
        here, there = self.config.class_names or [], self.config.source_class_names or []
        if direction == "forward":
            here, there = there, here
        numbers = [
            label_number(label, there if isinstance(label, str) and label not in here and label in there else here,
                         count - 1)
            for label in labels
        ]  # fmt: skip
        return torch.tensor(numbers, dtype=torch.int64, device=device)
