"""Training on pairs of noise and image, from the teacher's weights."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from genflow.distillation.pairs import Pairs
from genflow.distillation.reflow_recipe import ReflowRecipe
from genflow.distillation.teacher import ODETeacher, keeps_path
from genflow.errors import InputError
from genflow.paths import LinearPath
from genflow.pipelines import ImagePipeline
from genflow.schedulers import FlowFamily, RectifiedFlowScheduler
from genflow.training import finish
from genflow.training.batches import batch_indices, mixed_seed
from genflow.training.image_task import ImageBatch, ImageTask, objective_options
from genflow.training.networks import for_training
from genflow.training.objectives import Objective

__all__ = ["PairStream", "ReflowTask"]

_SHARE = 0.5  # of an accelerator's free memory that pairs may take


@dataclass(frozen=True)
class PairStream:
    """Micro-batches of pairs, a function of the seed, the step and the slot alone; pairs lie where they are used."""

    pairs: Pairs
    seed: int
    size: int
    slots: int
    device: torch.device
    null_label: int | None = None
    label_dropout: float = 0.0

    def draw(self, step: int, slot: int) -> tuple[Tensor, Tensor, Tensor | None, torch.Generator]:
        """Images, noise, labels and the generator for the rest of this micro-batch's draws."""
        start = (step * self.slots + slot) * self.size
        indices = batch_indices(self.seed, start, self.size, self.pairs.noise)
        generator = torch.Generator(self.device).manual_seed(mixed_seed(self.seed, step, slot))
        images, noise = (part[indices].to(self.device).float() for part in (self.pairs.images, self.pairs.noise))
        if self.pairs.labels is None:
            return images, noise, None, generator
        labels = self.pairs.labels[indices].to(self.device)
        if self.label_dropout:
            dropped = torch.rand(len(labels), generator=generator, device=self.device) < self.label_dropout
            labels = torch.where(dropped, self.null_label, labels)
        return images, noise, labels, generator


class ReflowTask(ImageTask):
    """Rectified flow on fixed pairs (Liu et al. 2023, arXiv 2209.03003), warm-started from the teacher.

    The student learns ``eps - x0`` on the straight line between noise and image of each pair, without a random match:
    at t the best answer is ``E[eps - x0 | z_t]``, and its flow has the same marginals as the pairs' lines, a transport
    cost that is not greater for any convex cost (theorem 3.5), and straighter trajectories (theorem 3.7).

    With a grid of K times it is trained at the K times where an Euler sampler of K steps asks it. At t = 1 a pair's
    noise determines its image, and K = 1 is plain regression of images on noise. For K > 1 the network at t_k predicts
    the pair's end from the point of the pair's line at t_k: rectified flow in discrete time. A first step from t = 1
    lands on that line if its answer is exact, and so the next ones, as far as lines of different pairs do not cross.

    A student shares the teacher's path where its network can tell ``eps - x0`` at pure noise: flows, and networks of
    v_prediction, of x0 or in EDM's preconditioning. Every Gaussian path is the linear one up to scale and clock, so
    that lines are straight there as well. Others (noise predicted on a beta schedule) become flows on the linear path,
    where the teacher's weights are a start and no more.
    """

    def __init__(self, recipe: ReflowRecipe, teacher: ODETeacher, pairs: Pairs) -> None:
        """Raises InputError for pairs of another shape, or an error measure that the student's path does not have."""
        if pairs.noise.shape[1:] != torch.Size(teacher.shape):
            raise InputError(f"pairs: of {tuple(pairs.noise.shape[1:])}; the teacher makes {teacher.shape}")
        self.recipe, self.teacher, self.pairs = recipe, teacher, pairs
        grid_steps = recipe.grid_steps
        family = teacher.scheduler.family
        family = family if keeps_path(family) else FlowFamily({})
        # every grid then begins at pure noise
        spacing = {"timestep_spacing": "trailing"} if "timestep_spacing" in family.config else {}
        self.scheduler = RectifiedFlowScheduler.from_config(
            {**family.config, **spacing}, solver="euler" if grid_steps else recipe.sampling.scheduler
        )
        self.family = self.scheduler.family
        self.path = self.family.path
        section = recipe.objective
        pixels = teacher.pipeline.vae is None and isinstance(self.path, LinearPath)
        if section.error == "lpips-huber" and not pixels:
            raise InputError("objective.error: 'lpips-huber' is for pixels on a linear path; allowed: pseudo-huber, l2")
        if section.label_dropout and teacher.pipeline.null_label is None:
            raise InputError("objective.label_dropout: the teacher has no unconditional class; allowed: 0")
        grid = tuple(self.family.times(grid_steps)[:-1].tolist()) if grid_steps else None
        options = objective_options(section, teacher.shape[0])
        self.objective = Objective(self.path, "flow_prediction", **options, grid=grid)

    def create_network(self) -> nn.Module:
        network = copy.deepcopy(self.teacher.pipeline.unet).to("cpu")
        return for_training(network.requires_grad_(True))

    def bind(self, network: nn.Module, prepared: nn.Module, device: torch.device, size: int, slots: int) -> None:
        self.device = device
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            fits = 2 * self.pairs.noise.nbytes < _SHARE * free
            self.pairs = self.pairs.to(device) if fits else self.pairs
        self.batches = self.stream(self.recipe.seed, size, slots)
        self.model = self.build_pipeline(network).path_model(prepared)

    def stream(self, seed: int, size: int, slots: int) -> PairStream:
        """The pairs in the order of ``seed``."""
        null_label = self.teacher.pipeline.null_label
        return PairStream(
            self.pairs, seed, size, slots, self.device, null_label, self.recipe.objective.label_dropout
        )  # fmt: skip

    def draw(self, batches: PairStream, step: int, slot: int) -> ImageBatch:
        images, noise, labels, generator = batches.draw(step, slot)
        t = self.objective.draw_times(len(images), generator)
        if self.objective.grid is None and not isinstance(self.path, LinearPath):
            # times are drawn on the clock on which the lines are straight
            t = self.path.time(t / (1 - t)).clamp(max=1.0)
        return ImageBatch(images, noise, t, labels)

    def build_pipeline(self, network: nn.Module) -> ImagePipeline:
        """The student around ``network``."""
        pipeline, sampling = self.teacher.pipeline, self.recipe.sampling
        return ImagePipeline(
            unet=network,
            scheduler=self.scheduler,
            vae=pipeline.vae,
            class_names=pipeline.config.class_names,
            null_label=pipeline.config.null_label,
            default_steps=self.recipe.grid_steps or sampling.steps,
            default_guidance_scale=sampling.guidance_scale,
            default_guidance_interval=list(sampling.guidance_interval) if sampling.guidance_interval else None,
        )

    def sample_grid(self, network: nn.Module, path: Path) -> None:
        finish.sample_grid(self.build_pipeline(network), path)

    def save_pipeline(self, network: nn.Module, folder: Path) -> None:
        finish.save_pipeline(self.build_pipeline(network), folder)
