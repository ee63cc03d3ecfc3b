"""Gaussian paths between data and noise: what stands between the two, and nothing about models or diffusers."""

from genflow.paths.analytic import EDMPath, LinearPath, TrigonometricPath
from genflow.paths.base import PATHS, Path, expand_like, working_dtype
from genflow.paths.pfgmpp import PFGMPlusPlusPath, StudentTNoise, with_student_t
from genflow.paths.vp import VPCosinePath, VPLinearPath, VPPath, VPScaledLinearPath, VPTablePath

__all__ = [
    "PATHS",
    "EDMPath",
    "LinearPath",
    "PFGMPlusPlusPath",
    "Path",
    "StudentTNoise",
    "TrigonometricPath",
    "VPCosinePath",
    "VPLinearPath",
    "VPPath",
    "VPScaledLinearPath",
    "VPTablePath",
    "expand_like",
    "with_student_t",
    "working_dtype",
]
