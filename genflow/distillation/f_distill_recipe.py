"""Everything that decides an f-distill run, read from YAML and checked by name before any work starts."""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field

from genflow import assets
from genflow.distillation.divergences import DIVERGENCES
from genflow.errors import InputError, check_choice
from genflow.training.recipe import (
    Count,
    DataSection,
    EMASection,
    Fraction,
    LogSection,
    OptimizerSection,
    Positive,
    ScheduleSection,
    Section,
    build_recipe,
    load_recipe,
)

__all__ = ["FDistillRecipe", "load_f_distill_recipe"]

NonNegative = Annotated[float, Field(ge=0)]
Time = Annotated[float, Field(gt=0, le=1)]
_USER = "user"  # a divergence that is handed over as a function


def _check_divergence(name: str) -> str:
    return check_choice("divergence", name, [*DIVERGENCES, _USER])


class TeacherSection(Section):
    """The model to distil, and the guidance that goes into the student; by default the teacher's own."""

    model: str = Field(description="a shipped model's name, a saved pipeline's folder, or owner/name on the hub")
    guidance_scale: NonNegative | None = None
    guidance_interval: tuple[NonNegative, Positive] | None = Field(None, description="noise levels where it acts")


class TimesSection(Section):
    """At which times student and teacher are compared, on the teacher's path.

    ``karras``: even in the 1/7th power of the noise level (Karras et al. 2022, eq. 5), as f-distill's code draws them
    for EDM teachers; ``uniform``: even in t, as it does for others; ``log-normal``: the noise level is the exponential
    of a normal. ``auto`` is the one of the first two that fits the teacher. Times are kept between ``earliest`` and
    ``latest``: by default 0.001 and 0.999, and sigma_min and sigma_max on an EDM path.
    """

    distribution: Literal["auto", "karras", "uniform", "log-normal"] = "auto"
    earliest: Time | None = None
    latest: Time | None = None
    mean: float = -0.8
    std: Positive = 1.6


class GanSection(Section):
    """The discriminator: how much the student's own GAN loss counts, and what keeps it in bounds.

    ``weight`` is 0.001 in f-distill's CIFAR-10 and Stable Diffusion 1.5 runs, 0.003 for ImageNet-64, 0.005 for SDXL.
    ``r1_weight`` is 0 there; with it 100 to 1000 are usual, and noise of ``r1_std``.
    """

    weight: NonNegative = 1e-3
    r1_weight: NonNegative = 0.0
    r1_std: Positive = 0.1
    features: list[str] | None = Field(None, description="the teacher's modules to look at; its middle by default")
    width: Count | None = Field(None, description="channels of a head; by default as many as its feature, at most 256")


class RatioSection(Section):
    """The density ratio's first normalization; see :class:`genflow.distillation.DensityRatio`."""

    bins: Count = 10
    decay: Fraction = 0.9
    lowest: Positive = 0.1
    highest: Positive = 20.0


class FDistillRecipe(Section):
    """One run of f-distill."""

    teacher: TeacherSection
    data: DataSection | None = Field(None, description="real images; may be left out with reverse-kl alone")
    divergence: Annotated[str, AfterValidator(_check_divergence)] = "js"
    steps: Count = Field(1, description="evaluations of the student's network for an image")
    student_times: list[Time] | None = Field(
        None,
        description="its levels, falling; by default spread by the path, from 1. There an epsilon teacher's x0 is its "
        "error divided by a small alpha: DMD2 begins SDXL's student at 0.4",
    )
    times: TimesSection = TimesSection()
    gan: GanSection = GanSection()
    ratio: RatioSection = RatioSection()
    student_every: Annotated[int, Field(ge=2)] = Field(
        5, description="one iteration in so many moves the student; the others the fake score and the discriminator"
    )
    optimizer: OptimizerSection = OptimizerSection(lr=1e-5)
    fake_optimizer: OptimizerSection = OptimizerSection(lr=1e-5)
    discriminator_optimizer: OptimizerSection = OptimizerSection(lr=1e-5)
    schedule: ScheduleSection = ScheduleSection(warmup_steps=100, decay="constant")
    ema: EMASection = Field(EMASection(decay=0.999), description="of the student, counted in its own updates")
    iterations: Count = 20_000
    batch_size: Count = Field(256, description="images an iteration, over all processes")
    clip_norm: Positive | None = Field(10.0, description="of each network's gradient")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = Field(False, description="torch.compile student and fake score: slower to start, faster to run")
    collapse_reports: Annotated[int, Field(ge=0)] = Field(
        10, description="stop after so many reports in a row of a discriminator that tells nothing any more; 0: never"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    log: LogSection = LogSection()

    def model_post_init(self, _: Any) -> None:
        levels = self.student_times
        if levels is not None and (len(levels) != self.steps or any(a <= b for a, b in itertools.pairwise(levels))):
            raise InputError(f"student_times: got {levels}; allowed: {self.steps} (steps) falling times in (0, 1]")
        if self.ratio.lowest >= self.ratio.highest:
            raise InputError(f"ratio.lowest: got {self.ratio.lowest}; allowed: less than highest {self.ratio.highest}")
        earliest, latest = self.times.earliest, self.times.latest
        if earliest is not None and latest is not None and earliest >= latest:
            raise InputError(f"times.earliest: got {earliest}; allowed: less than latest {latest}")
        if self.data is None and self.divergence != "reverse-kl":
            raise InputError(
                f"data.source: None; divergence {self.divergence!r} weighs samples by a discriminator that needs real "
                "images, as --set data.source=FOLDER; allowed without: reverse-kl"
            )

    @property
    def needs_discriminator(self) -> bool:
        """Whether any part of the loss asks for one; without data there is none."""
        return self.data is not None and (self.divergence != "reverse-kl" or self.gan.weight > 0)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_f_distill_recipe(model_or_recipe: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> FDistillRecipe:
    """The recipe of a run, from a YAML file, a shipped recipe's name, or the model that is the teacher.

    A shipped model with a shipped recipe of its own (``MODEL-f-distill``) brings that.

    Raises:
        InputError: no such recipe, an unknown key (with the nearest known one), a value out of range.
    """
    name = str(model_or_recipe)
    own = f"{name}-f-distill"
    if own in assets.recipes("distill"):
        name = own
    if name in assets.recipes("distill") or Path(name).suffix in {".yaml", ".yml"}:
        return load_recipe(name, overrides, kind=FDistillRecipe)
    return build_recipe({"teacher": {"model": name}}, overrides, kind=FDistillRecipe, name="f-distill")
