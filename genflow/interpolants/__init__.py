"""Stochastic interpolants between two arbitrary densities: the states, what networks learn on them, and how to read
those networks. torch alone; sampling is in :mod:`genflow.bridges`."""

from genflow.interpolants.base import INTERPOLANTS, StochasticInterpolant
from genflow.interpolants.gammas import (
    GAMMAS,
    Brownian,
    Gamma,
    Parabola,
    PathGamma,
    Sigmoid,
    Sine,
    Zero,
    create_gamma,
)
from genflow.interpolants.kinds import (
    EncoderDecoderInterpolant,
    LinearInterpolant,
    MirrorInterpolant,
    OneSidedInterpolant,
    TrigonometricInterpolant,
)
from genflow.interpolants.model import InterpolantModel, JointModel
from genflow.interpolants.objectives import INTERPOLANT_OBJECTIVES, InterpolantObjective, JointObjective

__all__ = [
    "GAMMAS",
    "INTERPOLANTS",
    "INTERPOLANT_OBJECTIVES",
    "Brownian",
    "EncoderDecoderInterpolant",
    "Gamma",
    "InterpolantModel",
    "InterpolantObjective",
    "JointModel",
    "JointObjective",
    "LinearInterpolant",
    "MirrorInterpolant",
    "OneSidedInterpolant",
    "Parabola",
    "PathGamma",
    "Sigmoid",
    "Sine",
    "StochasticInterpolant",
    "TrigonometricInterpolant",
    "Zero",
    "create_gamma",
]
