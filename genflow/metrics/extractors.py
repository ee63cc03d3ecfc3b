"""Feature networks by name: the one place that turns what a user asks for into an :class:`Extractor`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from genflow import assets
from genflow.errors import InputError, check_choice, check_number, nearest
from genflow.files import cache_root
from genflow.metrics.checkpoints import read_checkpoint
from genflow.metrics.features import DTYPES, Extractor, FeatureExtractor, NetworkExtractor, Scaling
from genflow.metrics.inception import LAYERS, InceptionV3
from genflow.metrics.resize import RESIZE_MODES, Preparation
from genflow.metrics.weights import WEIGHTS_VARIABLE, file_hash, find_weights

__all__ = ["EXTRACTORS", "INCEPTION_FILES", "create_extractor"]

INCEPTION_FILES = (
    "weights-inception-2015-12-05-6726825d.pth",
    "pt_inception-2015-12-05-6726825d.pth",
    "inception-2015-12-05.safetensors",
)
"""Torch-fidelity's and pytorch-fid's names of the same weights, and that of a safetensors file with the same keys."""

PUBLISHED_HASH = "6726825d"
"""How the SHA-256 of the published file begins: by torch.hub's convention its name says so."""

_CLASSIFIER = "fashion-mnist-classifier"
_SIZE = 299
_TENSORFLOW = Scaling((128.0,), (128.0,))
_PYTORCH_FID = Scaling((127.5,), (127.5,))


def _inception(
    layer: str,
    *,
    weights: str | Path | None,
    resize: str | None,
    batch_size: int | None,
    device: torch.device,
    dtype: str,
) -> NetworkExtractor:
    """The FID's Inception. Without ``resize`` it is ``legacy``: published FIDs are of that mode."""
    layer = check_choice("features: the layer of inception", layer or "2048", LAYERS)
    file = find_weights(INCEPTION_FILES, weights)
    if file is None:
        raise InputError(
            "features: Inception's weights are not on this machine: put "
            f"{INCEPTION_FILES[0]} (github.com/toshas/torch-fidelity, release v0.2.0) or "
            f"{INCEPTION_FILES[1]} (github.com/mseitzer/pytorch-fid, release fid_weights) into {cache_root()}, "
            f"or name the file by --weights (weights=) or ${WEIGHTS_VARIABLE}"
        )
    network = InceptionV3.from_tensors(read_checkpoint(file), str(file))
    name = "inception" if layer == "2048" else f"inception:{layer}"
    mode = resize or "legacy"
    # the graph itself takes (x - 128) / 128; pytorch-fid maps [0, 1] to [-1, 1], and its numbers need its scaling
    return NetworkExtractor(
        network,
        name,
        forward=lambda images: network(images, layer),
        prepare=Preparation(name, mode, _SIZE, 3),
        scaling=_PYTORCH_FID if mode == "legacy-pytorch" else _TENSORFLOW,
        dimensions=LAYERS[layer],
        published=file_hash(file).startswith(PUBLISHED_HASH),
        batch_size=batch_size or _batch_size(device, 16),
        device=device,
        dtype=dtype,
    )


def _classifier(
    variant: str,
    *,
    weights: str | Path | None,
    resize: str | None,
    batch_size: int | None,
    device: torch.device,
    dtype: str,
) -> FeatureExtractor:
    """The shipped classifier of Fashion-MNIST, or another of its kind by ``weights``."""
    if variant:
        raise InputError(f"features: fashion-mnist has no variants; got {variant!r}")
    folder = weights or assets.ROOT / _CLASSIFIER
    return FeatureExtractor.from_folder(
        folder, batch_size=batch_size or 500, device=device, dtype=dtype, resize=resize or "none"
    )


def _encoder(kind: str) -> Callable[..., Extractor]:
    def create(variant: str, **options: Any) -> Extractor:
        from genflow.metrics.encoders import create_encoder  # transformers is heavy, and an extra

        options["batch_size"] = options["batch_size"] or _batch_size(options["device"], 8)
        return create_encoder(kind, variant, **options)

    return create


def _batch_size(device: torch.device, on_cpu: int) -> int:
    return on_cpu if device.type == "cpu" else 128


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "inception": _inception,
    "dinov2": _encoder("dinov2"),
    "clip": _encoder("clip"),
    "fashion-mnist": _classifier,
}
"""What makes each extractor that has a name."""


def create_extractor(
    name_or_path: str | Path,
    *,
    weights: str | Path | None = None,
    resize: str | None = None,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
) -> Extractor:
    """The feature network that a user names.

    Args:
        name_or_path: ``inception`` (2048 features; ``inception:64``, ``:192``, ``:768`` of earlier layers,
            ``inception:spatial`` of sFID), ``dinov2`` (``dinov2:small``, ``:base``, ``:large``, ``:giant``; large by
            default), ``clip`` (``clip:large``, ``:large-336``, ``:base``), ``fashion-mnist`` (the shipped classifier);
            or a path: a folder with ``config.json`` and ``model.safetensors`` (of genflow's classifier, or of a vision
            model of transformers), or a TorchScript file.
        weights: a file or folder to take weights from, instead of looking in $GENFLOW_WEIGHTS, $GENFLOW_CACHE or
            ``~/.cache/genflow``, and torch's and Hugging Face's caches.
        resize: ``clean``, ``legacy``, ``legacy-pytorch`` or ``none`` (see :mod:`genflow.metrics.resize`). By default
            ``legacy`` for inception (as published FIDs), ``clean`` for DINOv2, CLIP and models of one's own, ``none``
            for classifiers of genflow and for TorchScript files that resize themselves.
        batch_size: images a batch; by default 500 for classifiers of genflow, else 128 on a GPU and 8 or 16 on a CPU.
        device: where the network runs.
        dtype: ``float32``, ``bfloat16`` (autocast; features are float32 still), or ``auto``, which is the faster one.
        options: of a TorchScript file: what it takes (see :class:`genflow.metrics.modules.ModuleInput`).

    Raises:
        InputError: no such name, path, variant, mode, device or number format; weights missing, damaged or of another
            network.
    """
    if resize is not None:
        check_choice("resize", resize, RESIZE_MODES)
    if batch_size is not None:
        check_number("batch_size", batch_size, at_least=1, integer=True)
    check_choice("dtype", dtype, DTYPES)
    try:
        device = torch.device(device)
    except RuntimeError:
        raise InputError(f"device: {device!r} is not known; allowed: cpu, cuda, cuda:0, mps") from None
    name, _, variant = str(name_or_path).partition(":")
    common = {"resize": resize, "batch_size": batch_size, "device": device, "dtype": dtype}
    if name in EXTRACTORS:
        if options:
            raise InputError(f"options: {name} takes none; they are for TorchScript files")
        return EXTRACTORS[name](variant, weights=weights, **common)
    path = Path(name_or_path).expanduser()
    if not path.exists():
        names = ", ".join(EXTRACTORS)
        raise InputError(
            f"features: {str(name_or_path)!r} is neither a path here nor one of {names}{nearest(name, EXTRACTORS)}"
        )
    if weights is not None:
        raise InputError(f"weights: {path} brings its own; weights= is for {', '.join(EXTRACTORS)}")
    from genflow.metrics.modules import open_module

    common["batch_size"] = batch_size or _batch_size(device, 16)
    return open_module(path, options=options, **common)
