"""DINOv2, CLIP and other vision models of transformers as feature networks.

Models come from a folder, from ``~/.cache/genflow``, or from Hugging Face's cache (which may fetch); safetensors only,
and never a model's own code.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genflow.errors import InputError, check_choice
from genflow.files import cache_root
from genflow.metrics.features import NetworkExtractor, Scaling
from genflow.metrics.resize import Preparation
from genflow.metrics.weights import find_weights

__all__ = ["create_encoder", "open_encoder"]

_IMAGENET = Scaling.by_mean_and_std((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = Scaling.by_mean_and_std((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class _Kind:
    """How features are taken with a family of models.

    Attributes:
        loader: the class of transformers.
        output: the field of what it returns.
        scaling: of the levels.
        size: the side of the image; None takes the model's own ``image_size``.
        variants: names of known models, the default first.
    """

    loader: str
    output: str
    scaling: Scaling
    size: int | None
    variants: dict[str, str]


_KINDS = {
    # 224 pixels and the class token after the last normalization: dgm-eval (Stein et al. 2023) and EDM2
    "dinov2": _Kind(
        "Dinov2Model",
        "pooler_output",
        _IMAGENET,
        224,
        {size: f"facebook/dinov2-{size}" for size in ("large", "small", "base", "giant")},
    ),
    # the projected embedding, neither of unit length nor scaled; CMMD (Jayasumana et al. 2024) takes large-336
    "clip": _Kind(
        "CLIPVisionModelWithProjection",
        "image_embeds",
        _OPENAI,
        None,
        {
            "large": "openai/clip-vit-large-patch14",
            "large-336": "openai/clip-vit-large-patch14-336",
            "base": "openai/clip-vit-base-patch32",
        },
    ),
}
_MODEL_TYPES = {"dinov2": "dinov2", "clip": "clip", "clip_vision_model": "clip"}


@contextmanager
def _quiet(bars: bool) -> Iterator[None]:
    """Transformers reports unused text weights, and the hub each attempt: what matters of that is checked here."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    levels, had_bars = (logging.get_verbosity(), hub.get_verbosity()), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub.set_verbosity(hub.CRITICAL)
    if had_bars and not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(levels[0])
        hub.set_verbosity(levels[1])
        if had_bars:
            logging.enable_progress_bar()


def _reachable() -> bool:
    """Whether the hub answers: asked once, since a fetch tries again for half a minute before it gives up."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # of whichever library carries the session
        return False
    return True


def _load(loader: str, model: str | Path, advice: str) -> nn.Module:
    """The model in float32, all its weights from the file; one that is on this machine is loaded without asking."""
    try:
        import transformers
    except ImportError as error:
        raise InputError("features: this network needs transformers: pip install 'genflow[text]'") from error

    def load(here: bool) -> tuple[nn.Module, dict[str, Any]]:
        with _quiet(bars=not here):
            return getattr(transformers, loader).from_pretrained(
                str(model),
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
                local_files_only=here,
            )

    try:
        try:
            network, report = load(here=True)
        except OSError:
            if Path(model).is_dir() or not _reachable():
                raise
            network, report = load(here=False)
    except Exception as error:  # the hub, transformers, safetensors and torch each have errors of their own
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise InputError(f"features: {str(model)!r} cannot be loaded ({reason}){advice}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(f"weights: {model} has no {missing[0]!r} ({len(missing)} are missing): not a {loader}")
    return network.requires_grad_(False)


def _extractor(
    network: nn.Module, name: str, kind: _Kind, size: int, dimensions: int, resize: str | None, **options: Any
) -> NetworkExtractor:
    def forward(images: Tensor) -> tuple[Tensor, None]:
        return getattr(network(pixel_values=images), kind.output), None

    return NetworkExtractor(
        network,
        name,
        forward=forward,
        prepare=Preparation(name, resize or "clean", size, 3),
        scaling=kind.scaling,
        dimensions=dimensions,
        **options,
    )


def create_encoder(
    family: str, variant: str = "", *, weights: str | Path | None = None, resize: str | None = None, **options: Any
) -> NetworkExtractor:
    """DINOv2 (``family`` ``dinov2``) or CLIP (``clip``) by the name of a ``variant``.

    Args:
        weights: a folder with ``config.json`` and ``model.safetensors``; without it one called as the model (say
            ``dinov2-large``) is looked for (see :func:`genflow.metrics.weights.find_weights`), then Hugging Face's
            cache.
        resize: ``clean`` by default.
        options: batch_size, device and dtype, of :class:`~genflow.metrics.features.NetworkExtractor`.

    Raises:
        InputError: transformers is not installed; the variant is not known; the model is nowhere, or damaged.
    """
    kind = _KINDS[family]
    default = next(iter(kind.variants))
    variant = check_choice(f"features: the variant of {family}", variant or default, kind.variants)
    model = kind.variants[variant]
    short = model.split("/")[1]
    folder = find_weights((short,), weights, folder=True)
    advice = ""
    if folder is None:
        advice = (
            f": put its config.json and model.safetensors into {cache_root() / short}, "
            "or name their folder by --weights (weights=)"
        )
    network = _load(kind.loader, folder or model, advice)
    name = family if variant == default else f"{family}:{variant}"
    return _open(network, name, kind, resize, options)


def _open(network: nn.Module, name: str, kind: _Kind, resize: str | None, options: dict[str, Any]) -> NetworkExtractor:
    config = network.config
    dimensions = config.projection_dim if kind.output == "image_embeds" else config.hidden_size
    return _extractor(network, name, kind, kind.size or config.image_size, dimensions, resize, **options)


def open_encoder(folder: str | Path, *, resize: str | None = None, **options: Any) -> NetworkExtractor:
    """The vision model of transformers that is kept in ``folder``, named after it.

    DINOv2 and CLIP are taken as :func:`create_encoder` takes them. Of another model the ``pooler_output`` is taken, and
    its ``preprocessor_config.json`` must say ``image_mean`` and ``image_std``; the size is the configuration's.

    Raises:
        InputError: files missing or damaged, a model without these, or transformers not installed.
    """
    folder = Path(folder)
    settings = _read_json(folder / "config.json")
    known = _MODEL_TYPES.get(str(settings.get("model_type")))
    if known:
        kind = _KINDS[known]
        return _open(_load(kind.loader, folder, ""), folder.name, kind, resize, options)
    processor = _read_json(folder / "preprocessor_config.json")
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not all(isinstance(v, list) and len(v) == 3 for v in (mean, std)):
        raise InputError(f"features: {folder / 'preprocessor_config.json'} lacks image_mean or image_std of 3 channels")
    network = _load("AutoModel", folder, "")
    size = getattr(network.config, "image_size", None)
    if not isinstance(size, int):
        raise InputError(f"features: {folder / 'config.json'} has no image_size: not a vision model that is known here")
    kind = _Kind("AutoModel", "pooler_output", Scaling.by_mean_and_std(tuple(mean), tuple(std)), size, {})
    with torch.no_grad():
        pooled = getattr(network(pixel_values=torch.zeros(1, 3, size, size)), "pooler_output", None)
    if pooled is None or pooled.flatten(1).shape[0] != 1:
        raise InputError(f"features: the model in {folder} gives no pooler_output to take features from")
    return _extractor(network, folder.name, kind, size, pooled.flatten(1).shape[1], resize, **options)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"features: {file} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"features: {file} is not readable JSON ({error})") from error
    if not isinstance(settings, dict):
        raise InputError(f"features: {file} does not hold a JSON object")
    return settings
