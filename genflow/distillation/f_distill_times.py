"""Where f-distill looks: the levels of a student, and the times at which student and teacher are compared."""

import torch
from torch import Tensor

from genflow.distillation.f_distill_recipe import TimesSection
from genflow.errors import InputError
from genflow.paths import EDMPath
from genflow.schedulers import Family
from genflow.schedulers.grids import shift_sigmas

__all__ = ["TimeSampler", "student_levels"]

_RHO = 7.0  # Karras et al. 2022
_MARGIN = 1e-3  # f-distill's code keeps uniform times this far from both ends


def student_levels(family: Family, steps: int) -> list[float]:
    """``steps`` falling times from 1, for a student of that many evaluations.

    Even in t, moved by a flow's shift, as the teacher's own schedule is; on an EDM path even in the 1/rho power of the
    noise level, between sigma_max and sigma_min.
    """
    places = [1 - step / steps for step in range(steps)]
    if isinstance(family.path, EDMPath):
        low, high, rho = (family.config[key] for key in ("sigma_min", "sigma_max", "rho"))
        inverse = 1 / rho
        levels = [(low**inverse + place * (high**inverse - low**inverse)) ** rho / high for place in places]
        return [1.0, *levels[1:]]
    shift = 1.0 if family.config.get("use_dynamic_shifting") else family.config.get("shift", 1.0)
    return [float(shift_sigmas(place, shift)) for place in places]


class TimeSampler:
    """Draws the times of :class:`~genflow.distillation.f_distill_recipe.TimesSection` on a teacher's path.

    Attributes:
        lowest, highest: the noise levels that times are drawn between.

    Raises:
        InputError: bounds that are no times of this path.
    """

    def __init__(self, section: TimesSection, family: Family) -> None:
        self.section, self.path = section, family.path
        edm = isinstance(self.path, EDMPath)
        self.distribution = section.distribution
        if self.distribution == "auto":
            self.distribution = "karras" if edm else "uniform"
        self.rho = family.config.get("rho", _RHO)
        ends = (family.config["sigma_min"] / family.config["sigma_max"], 1.0) if edm else (_MARGIN, 1 - _MARGIN)
        given = (section.earliest, section.latest)
        self.earliest, self.latest = (end if own is None else own for end, own in zip(ends, given, strict=True))
        self.lowest, self.highest = self.path.noise_level(self.earliest), self.path.noise_level(self.latest)
        if not 0 < self.lowest < self.highest < float("inf"):
            raise InputError(
                f"times: {self.earliest} to {self.latest}, of noise level {self.lowest:g} to {self.highest:g}; allowed "
                "on this path: finite levels that rise"
            )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` times, float64 (float32 on a device without it), on the generator's device."""
        dtype = torch.float32 if generator.device.type == "mps" else torch.float64
        options = {"generator": generator, "device": generator.device, "dtype": dtype}
        if self.distribution == "uniform":
            return torch.rand(count, **options) * (self.latest - self.earliest) + self.earliest
        if self.distribution == "karras":
            low, high = self.lowest ** (1 / self.rho), self.highest ** (1 / self.rho)
            level = (low + torch.rand(count, **options) * (high - low)) ** self.rho
        else:
            level = torch.exp(torch.randn(count, **options) * self.section.std + self.section.mean)
        return self.path.time(level.clamp(self.lowest, self.highest)).clamp(self.earliest, self.latest)
