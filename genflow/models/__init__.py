"""Models on Gaussian paths: the interfaces, the adapters to them, and the networks genflow itself adds."""

from typing import TYPE_CHECKING, Any

from genflow.models.adapters import EDMNetworkModel, FunctionModel, NetworkModel, from_diffusers, from_function, on_path
from genflow.models.base import PathModel, ScoreModel, VelocityModel, as_score_model, as_velocity_model
from genflow.models.heads import NetworkHeads
from genflow.models.preconditioning import EDMPreconditioning

if TYPE_CHECKING:
    from genflow.models.unet import LeanUNet2DModel

__all__ = [
    "EDMNetworkModel",
    "EDMPreconditioning",
    "FunctionModel",
    "LeanUNet2DModel",
    "NetworkHeads",
    "NetworkModel",
    "PathModel",
    "ScoreModel",
    "VelocityModel",
    "as_score_model",
    "as_velocity_model",
    "from_diffusers",
    "from_function",
    "on_path",
]


def __getattr__(name: str) -> Any:
    if name == "LeanUNet2DModel":  # the one part that imports diffusers
        from genflow.models.unet import LeanUNet2DModel

        return LeanUNet2DModel
    raise AttributeError(f"module 'genflow.models' has no attribute {name!r}")
