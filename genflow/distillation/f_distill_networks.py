"""Who takes part in f-distill: teacher, student, fake score and discriminator, and what each one's loss is."""

import copy
import math

import torch
from torch import Tensor, nn

from genflow.distillation.density_ratio import DensityRatio
from genflow.distillation.discriminator import Discriminator
from genflow.distillation.divergences import Divergence
from genflow.distillation.f_distill_batches import Draw, image_shape
from genflow.distillation.f_distill_losses import (
    approximate_r1,
    discriminator_loss,
    fake_score_loss,
    fake_score_objective,
    generator_loss,
    perturb_for_r1,
    student_loss,
)
from genflow.distillation.f_distill_recipe import FDistillRecipe
from genflow.distillation.f_distill_times import TimeSampler, student_levels
from genflow.distillation.features import FeatureTeacher
from genflow.errors import InputError
from genflow.guidance import Guidance, GuidedModel, create_guidance
from genflow.models import PathModel
from genflow.pipelines import ImagePipeline, OneStepPipeline
from genflow.prediction import Prediction
from genflow.schedulers import OneStepScheduler

__all__ = ["Losses", "Networks", "teacher_guidance"]

Losses = dict[str, Tensor]
"""Scalars on the device by name, in the order in which one depends on another; ``total`` has the graph."""


def teacher_guidance(recipe: FDistillRecipe, pipeline: ImagePipeline) -> Guidance | None:
    """Classifier-free guidance by the recipe, else by the teacher's own defaults; None where it changes nothing.

    Raises:
        InputError: a scale is asked for, and the teacher has no unconditional class.
    """
    section, config = recipe.teacher, pipeline.config
    scale = config.default_guidance_scale if section.guidance_scale is None else section.guidance_scale
    interval = section.guidance_interval or config.default_guidance_interval
    rule = create_guidance("cfg", scale=scale, **({} if interval is None else {"interval": tuple(interval)}))
    if rule.neutral:
        return None
    if pipeline.num_classes is None or pipeline.null_label is None:
        if section.guidance_scale is not None:
            raise InputError(f"teacher.guidance_scale: {scale}; allowed for a teacher without a null class: 1")
        return None
    return rule


class Networks:
    """The four networks of a run and their losses.

    Networks are in eval mode, without dropout: a student is one function of its noise.

    Attributes:
        student, fake: copies of the teacher's network; after :meth:`prepared` on the device.
        discriminator: heads on the teacher's features, or None.
        ratio: the density ratio's running means, or None.
        scheduler: of the student.
        times: at which student and teacher are compared.
    """

    def __init__(self, recipe: FDistillRecipe, pipeline: ImagePipeline, divergence: Divergence) -> None:
        """Take ``pipeline``, on the device, as the teacher; its network is frozen.

        Raises:
            InputError: a teacher whose noise is not Gaussian, or that the recipe does not fit.
        """
        self.recipe, self.pipeline, self.divergence = recipe, pipeline, divergence
        teacher = pipeline.unet.to(memory_format=torch.channels_last).requires_grad_(False).eval()
        self.teacher = pipeline.path_model()
        self.path = self.teacher.path
        self.guidance = teacher_guidance(recipe, pipeline)
        self.scheduler = OneStepScheduler.from_config(pipeline.scheduler.config)
        levels = recipe.student_times or student_levels(self.scheduler.family, recipe.steps)
        self.scheduler = OneStepScheduler.from_config(pipeline.scheduler.config, student_times=levels)
        self.scheduler.set_timesteps(recipe.steps)  # refuses what a student cannot be made on
        self._solver = self.scheduler.make_solver()
        self._solver.start(self.path, self.scheduler.arrange(self.scheduler.family.times(recipe.steps)))
        self.times = TimeSampler(recipe.times, self.scheduler.family)
        self.student: nn.Module = copy.deepcopy(teacher).requires_grad_(True)
        self.fake: nn.Module = copy.deepcopy(teacher).requires_grad_(True)
        self.objective = fake_score_objective(self.teacher)
        self.discriminator: Discriminator | None = None
        self.ratio: DensityRatio | None = None
        self._features: FeatureTeacher | None = None
        if recipe.needs_discriminator:
            self._make_discriminator()
        self._student_model: PathModel = pipeline.path_model(self.student)
        self._fake_model: PathModel = pipeline.path_model(self.fake)
        self._prepared_discriminator: nn.Module | None = self.discriminator

    def _make_discriminator(self) -> None:
        gan, ratio = self.recipe.gan, self.recipe.ratio
        device = next(self.pipeline.unet.parameters()).device
        self._features = FeatureTeacher(self.teacher, gan.features, self.guidance)
        example = torch.zeros(2, *image_shape(self.pipeline), device=device)
        labels = {} if self.pipeline.num_classes is None else {"class_labels": torch.zeros(2, dtype=torch.int64)}
        labels = {key: value.to(device) for key, value in labels.items()}
        self.discriminator = Discriminator.on_teacher(self._features, example, gan.width, **labels)
        self.ratio = DensityRatio(
            self.times.lowest,
            self.times.highest,
            bins=ratio.bins,
            decay=ratio.decay,
            ratio_range=(ratio.lowest, ratio.highest),
        ).to(device)

    def prepared(self, student: nn.Module, fake: nn.Module, discriminator: nn.Module | None) -> None:
        """From now on pass gradients through these, which are the networks inside accelerate's wrappers."""
        self._student_model.network = student
        self._fake_model.network = fake
        self._prepared_discriminator = discriminator

    def generate(self, draw: Draw) -> Tensor:
        """The student's images ``(B, C, H, W)`` at the level of this draw, the levels before it without a graph.

        Those are the student's own steps, not noised data, so that it is trained on what it will see (DMD2's backward
        simulation, Yin et al. 2024, section 4.5).
        """
        times = self._solver.evaluations.tolist()
        x = self.path.noise(draw.normal) * self.scheduler.init_noise_sigma
        for i, noise in enumerate(draw.renewed):
            with torch.no_grad():
                prediction = self._student_model.predict(x, times[i], **draw.conditioning)
                x = self._solver.step(x, prediction, i, noise)
        return self._student_model.predict(x, times[len(draw.renewed)], **draw.conditioning).x0

    def student_losses(self, draw: Draw) -> Losses:
        """The f-divergence's loss and the student's GAN loss."""
        generated = self.generate(draw)
        x = self.path.perturb(generated, draw.noise, draw.t)
        with torch.no_grad():
            fake_x0 = self._fake_model.predict(x, draw.t, **draw.conditioning).x0
        prediction, logits = self._teacher_and_logits(x, draw)
        losses = {
            "generated": generated.detach().abs().mean(),
            "teacher_x0": prediction.x0.abs().mean(),
            "fake_x0": fake_x0.abs().mean(),
        }
        weights = None
        if logits is not None and self.ratio is not None:
            losses["student_fake_logit"] = logits.detach().mean()
            weights = self.ratio.weights(self.divergence, logits, self.path.noise_level(draw.t))
            losses["largest_weight"] = weights.max()
        total = student_loss(generated, prediction.x0, fake_x0, weights).mean()
        losses["student_loss"] = total.detach()
        if logits is not None and self.recipe.gan.weight > 0:
            gan = generator_loss(logits).mean()
            losses["gan_loss"] = gan.detach()
            total = total + self.recipe.gan.weight * gan
        return {**losses, "total": total}

    def _teacher_and_logits(self, x: Tensor, draw: Draw) -> tuple[Prediction, Tensor | None]:
        if self._features is None or self.discriminator is None:
            model = self.teacher if self.guidance is None else GuidedModel(self.teacher, self.guidance)
            with torch.no_grad():
                return model.predict(x, draw.t, **draw.conditioning), None
        prediction, features = self._features(x, draw.t, **draw.conditioning)
        # the bare heads, as constants: they are not what is moved
        self.discriminator.requires_grad_(False)
        logits = self.discriminator(features)
        self.discriminator.requires_grad_(True)
        return prediction, logits

    def other_losses(self, draw: Draw) -> Losses:
        """The fake score's denoising loss on the student's images, and the discriminator's."""
        with torch.no_grad():
            generated = self.generate(draw)
        losses = {"generated": generated.abs().mean()}
        total = fake_score_loss(
            self.objective, self._fake_model, generated, draw.noise, draw.t, **draw.conditioning
        ).mean()
        losses["fake_loss"] = total.detach()
        if self._features is not None and draw.real is not None:
            total = total + self._discriminator_loss(generated, draw, losses)
        return {**losses, "total": total}

    def _discriminator_loss(self, generated: Tensor, draw: Draw, losses: Losses) -> Tensor:
        """At the same times and noise for data and the student's images, in one pass of the teacher."""
        assert self._features is not None
        assert self._prepared_discriminator is not None
        assert draw.real is not None
        gan, batch = self.recipe.gan, len(generated)
        states = [self.path.perturb(images, draw.noise, draw.t) for images in (generated, draw.real)]
        if gan.r1_weight > 0:
            # the student's first noise serves again: the discriminator has not seen it
            states.append(perturb_for_r1(states[1], draw.normal, self.path, draw.t, gan.r1_std))
        copies = len(states)
        conditioning = {key: value.repeat(copies) for key, value in draw.conditioning.items()}
        with torch.no_grad():
            features = self._features.features(torch.cat(states), draw.t.repeat(copies), **conditioning)
        fake, real, *moved = self._prepared_discriminator([feature.detach() for feature in features]).split(batch)
        loss = discriminator_loss(real, fake).mean()
        low, high = math.log(self.recipe.ratio.lowest), math.log(self.recipe.ratio.highest)
        with torch.no_grad():
            both = torch.cat([fake, real])
            losses["fake_logit"], losses["real_logit"] = fake.mean(), real.mean()
            losses["saturated"] = ((both <= low) | (both >= high)).to(both.dtype).mean()
        losses["discriminator_loss"] = loss.detach()
        if moved:
            r1 = approximate_r1(real, moved[0]).mean()
            losses["r1_loss"] = r1.detach()
            loss = loss + gan.r1_weight * r1
        return loss

    def build_pipeline(self, network: nn.Module) -> OneStepPipeline:
        """The student's pipeline around ``network``."""
        config = self.pipeline.config
        return OneStepPipeline(
            network,
            OneStepScheduler.from_config(self.scheduler.config),
            vae=self.pipeline.vae,
            class_names=config.class_names,
            null_label=config.null_label,
        )
