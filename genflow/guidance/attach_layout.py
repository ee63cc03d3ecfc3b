"""What the pipelines of diffusers do differently around their own CFG: one table, and the rules for the rest."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from genflow.errors import InputError

__all__ = ["Layout", "layout_of", "networks_of", "scale_argument"]

NETWORKS = ("unet", "transformer", "transformer_2", "prior")
"""Attributes under which pipelines keep the denoiser (Wan 2.2 has two, one for each half of the run); a prior is one
only where there is no other."""

SCALES = ("true_cfg_scale", "guidance_scale", "max_guidance_scale")
"""The argument that is the scale of a pipeline's CFG, first match: beside ``true_cfg_scale``, ``guidance_scale`` is a
distilled network's input."""


@dataclass(frozen=True)
class Layout:
    """How a pipeline asks its network for the two predictions, and what it does with them.

    Attributes:
        calls: "halves" of one call of twice the batch, "two" calls, or "seen": told at the first call by whether the
            two halves of the state are equal.
        conditional_first: which half is conditional. Of two calls the first is the conditional one in every pipeline.
        sign: -1 where the pipeline turns the network's output round before the scheduler sees it.
        channels: how many of the state's channels are guided; the others keep the conditional prediction.
        needs_negative: a negative prompt is what turns its CFG on.
    """

    calls: str = "seen"
    conditional_first: bool = False
    sign: float = 1.0
    channels: int | None = None
    needs_negative: bool = False


_TWO = Layout(calls="two")
_TWO_IF_NEGATIVE = Layout(calls="two", needs_negative=True)

# By the start of the class's name; the longest that fits. What is not here is Layout(): unconditional first where one
# call has both (Stable Diffusion's order, and that of all others but those named here).
LAYOUTS: Mapping[str, Layout] = {
    "DiT": Layout(calls="halves", conditional_first=True),
    "Lumina": Layout(calls="halves", conditional_first=True, sign=-1.0, channels=3),
    "Lumina2": Layout(calls="two", sign=-1.0),
    "AceStep": Layout(conditional_first=True),
    "StableCascade": Layout(conditional_first=True),
    "ZImage": Layout(calls="halves", conditional_first=True, sign=-1.0),
    "HiDreamImage": Layout(calls="halves", sign=-1.0),
    "NucleusMoE": Layout(calls="two", sign=-1.0),
    "BriaFibo2": _TWO,
    "Chroma": _TWO,
    "ChronoEdit": _TWO,
    "CogView4": _TWO,
    "Cosmos2": _TWO,
    "Flux": _TWO_IF_NEGATIVE,
    "Flux2Klein": _TWO,
    "GlmImage": _TWO,
    "Helios": _TWO,
    "HunyuanVideo": _TWO_IF_NEGATIVE,
    "HunyuanSkyreels": _TWO_IF_NEGATIVE,
    "JoyImageEdit": _TWO,
    "JoyImageEditPlus": Layout(),
    "Kandinsky5": _TWO,
    "Krea2": _TWO,
    "LongCat": _TWO,
    "Lucy": _TWO,
    "OvisImage": _TWO,
    "QwenImage": _TWO_IF_NEGATIVE,
    "SkyReelsV2": _TWO,
    "Wan": _TWO,
}

# Parts of class names, and why guide() does not serve them.
REFUSED: Mapping[str, str] = {
    "ImagePipeline": "it takes the guidance itself: pipe(guidance=...)",
    "Combined": "it is several pipelines; guide the one that makes the image (its decoder_pipe)",
    "InstructPix2Pix": "its CFG has three parts",
    "Pix2PixZero": "it asks the network for more than CFG's two predictions",
    "OmniGen": "its CFG has three parts",
    "DreamLite": "its CFG has three parts",
    "PAG": "perturbed attention is a third prediction",
    "SAG": "self-attention guidance is a third prediction",
    "AttendAndExcite": "it asks the network for more than CFG's two predictions",
    "LEdits": "it has an edit guidance of its own",
    "LatentConsistency": "its network is distilled for guidance: no CFG runs",
    "SanaSprint": "its network is distilled for guidance: no CFG runs",
    "VisualCloze": "its network is distilled for guidance: no CFG runs",
    "Ideogram4": "another network makes its unconditional prediction",
    "LTX2": "it guides sound and picture at once",
    "Cosmos3": "it guides several outputs at once",
    "Kandinsky6": "it guides sound and picture at once",
}

# Call arguments that ask for predictions beside CFG's two, or end CFG before the run does, and their idle values.
IDLE_ARGUMENTS: Mapping[str, tuple[Any, ...]] = {
    "skip_guidance_layers": (None, []),
    "cfg_trunc_ratio": (None, 1.0),
    "cfg_truncation": (None, 1.0),
    "guidance_cutoff": (None, 0),
}


def layout_of(cls: type) -> Layout:
    """The layout of a pipeline class, by the name of the nearest class above it that the table knows.

    Raises InputError for a class whose guidance is not CFG between two predictions.
    """
    for base in cls.__mro__:
        for part, why in REFUSED.items():
            if part in base.__name__ and (part != "ImagePipeline" or base.__module__.startswith("genflow.")):
                raise InputError(f"guide: {cls.__name__} cannot be served: {why}")
        names = [name for name in LAYOUTS if base.__name__.startswith(name)]
        if names:
            layout = LAYOUTS[max(names, key=len)]
            if layout.needs_negative and scale_argument(cls) != "true_cfg_scale":
                raise InputError(
                    f"guide: {cls.__name__} cannot be served: its network is distilled for guidance and it has no "
                    "true_cfg_scale, so that no CFG runs"
                )
            return layout
    return Layout()


def networks_of(pipe: Any) -> list[nn.Module]:
    """The pipeline's denoisers. Raises InputError where there is none, or one that is distilled for guidance."""
    found = {name: getattr(pipe, name, None) for name in NETWORKS}
    present = {name: network for name, network in found.items() if isinstance(network, nn.Module)}
    networks = [network for name, network in present.items() if name != "prior" or len(present) == 1]
    kind = type(pipe).__name__
    if not networks:
        raise InputError(f"guide: {kind} has no denoiser that genflow knows; allowed: {', '.join(NETWORKS)}")
    for network in networks:
        config = getattr(network, "config", {})
        if config.get("time_cond_proj_dim") is not None:
            raise InputError(
                f"guide: the network of {kind} is distilled for guidance (time_cond_proj_dim): no CFG runs"
            )
    return networks


def scale_argument(cls: type) -> str:
    """The name of the scale of the pipeline's own CFG. Raises InputError where it takes none."""
    known = inspect.signature(cls.__call__).parameters
    for name in SCALES:
        if name in known:
            return name
    raise InputError(f"guide: {cls.__name__} has no CFG to replace (it takes none of {', '.join(SCALES)})")
