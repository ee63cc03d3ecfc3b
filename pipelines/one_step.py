"""Images from a distilled student: one network evaluation each, or a few.

The file stands alone as a diffusers custom pipeline:
``DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipelines/one_step.py", trust_remote_code=True)``.
"""

from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from genflow.errors import InputError
from genflow.guidance import Guidance
from genflow.pipelines import image  # not the class itself: diffusers wants one pipeline in a custom file
from genflow.schedulers import OneStepScheduler

__all__ = ["OneStepPipeline"]


class OneStepPipeline(image.ImagePipeline):
    """:class:`~genflow.pipelines.ImagePipeline` for a student of one or a few evaluations, as f-distill makes it.

    A call makes as many steps as the student has levels. Guidance is what the student learned of its teacher's: it
    has none of its own, and no null class. ``ImagePipeline`` loads the same folder and makes the same images, with any
    scheduler.

    Args:
        unet, vae, class_names, null_label: as in ImagePipeline.
        scheduler: an :class:`~genflow.schedulers.OneStepScheduler`, whose ``student_times`` are the student's levels;
            any other is left to do what it does.
        default_steps: by default the number of the student's levels.
        default_guidance_scale, default_guidance_interval: 1 and None, the only values there are.

    Raises:
        InputError: a guidance scale other than 1, here or in a call; in a call, no labels for a network with classes.
    """

    def __init__(
        self,
        unet: image.Network,
        scheduler: SchedulerMixin,
        vae: image.Decoder | None = None,
        class_names: list[str] | None = None,
        null_label: int | None = None,
        default_steps: int | None = None,
        default_guidance_scale: float = 1.0,
        default_guidance_interval: list | None = None,
    ) -> None:
        if default_guidance_scale != 1 or default_guidance_interval is not None:
            raise InputError(
                f"default_guidance_scale: {default_guidance_scale}, interval {default_guidance_interval}; "
                "allowed for a student: 1 and None"
            )
        levels = scheduler.config.student_times if isinstance(scheduler, OneStepScheduler) else None
        steps = len(levels or [1]) if default_steps is None else default_steps
        super().__init__(unet, scheduler, vae, class_names, null_label, steps)

    def _labels(self, labels: Any, batch: int, device: Any) -> Tensor | None:
        if labels is None and self.num_classes is not None:
            raise InputError(f"class_labels: None; a student knows no null class; allowed: 0 to {self.num_classes - 1}")
        return super()._labels(labels, batch, device)

    def _guidance(
        self, guidance: Any, scale: Any, options: dict[str, Any] | None, labelled: bool, batch: int
    ) -> Guidance | None:
        rule = super()._guidance(guidance, scale, options, labelled, batch)
        if rule is not None:
            raise InputError(f"guidance: {rule!r}; a student has its teacher's built in; allowed: a scale of 1")
        return None
