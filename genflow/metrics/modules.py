"""Feature networks of the user's own, by path: a TorchScript file, or a folder with a configuration and safetensors."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genflow.errors import InputError, check_choice, check_keys, check_number
from genflow.metrics.features import FeatureExtractor, NetworkExtractor, Scaling
from genflow.metrics.resize import Preparation
from genflow.metrics.weights import file_hash

__all__ = ["INPUTS", "ModuleInput", "open_module"]

INPUTS: dict[str, Scaling | None] = {
    "levels": None,
    "unit": Scaling((0.0,), (255.0,)),
    "symmetric": Scaling((127.5,), (127.5,)),
    "imagenet": Scaling.by_mean_and_std((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""What a TorchScript module may take: ``levels`` 0..255 (uint8, or float32 where images were resized), ``unit`` [0, 1],
``symmetric`` [-1, 1], ``imagenet`` [0, 1] by ImageNet's mean and deviation."""

_OPTION_KEYS = ("size", "input", "channels")


@dataclass(frozen=True)
class ModuleInput:
    """What a TorchScript module takes: ``(B, channels, size, size)``.

    Declared by ``create_extractor(path, options={...})``, or by a file of JSON beside the module, ``NAME.json`` for
    ``NAME.pt``. The defaults are those of NVIDIA's detectors and of clean-fid's ``inception-2015-12-05.pt``.

    Attributes:
        size: the side of the image.
        input: a name of :data:`INPUTS`.
        channels: 1 (grey) or 3 (RGB).
    """

    size: int = 299
    input: str = "levels"
    channels: int = 3

    def __post_init__(self) -> None:
        check_number("options: size", self.size, at_least=1, integer=True)
        check_choice("options: input", self.input, INPUTS)
        if self.channels not in (1, 3):
            raise InputError(f"options: channels: got {self.channels!r}; allowed: 1, 3")

    @classmethod
    def of(cls, path: Path, options: Mapping[str, Any] | None) -> "ModuleInput":
        """``options``, or those in the file beside ``path``, or the defaults."""
        beside = path.with_suffix(".json")
        where = "options"
        if options is None and beside.is_file():
            where = str(beside)
            try:
                options = json.loads(beside.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InputError(f"options: {beside} is not readable JSON ({error})") from error
        if options is not None and not isinstance(options, Mapping):
            raise InputError(f"options: {where} does not hold an object with {', '.join(_OPTION_KEYS)}")
        check_keys(where, options or {}, _OPTION_KEYS)
        return cls(**(options or {}))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__  # TorchScript's own message comes last


def _outputs(found: Any) -> tuple[Tensor, Tensor | None] | None:
    """Features ``(B, D)`` and logits of what a module returned; None where it is nothing of the kind."""
    parts = found if isinstance(found, (tuple, list)) else (found,)
    if not 1 <= len(parts) <= 2 or not all(isinstance(part, Tensor) and part.ndim >= 2 for part in parts):
        return None
    flat = [part.flatten(1) for part in parts]
    return flat[0], flat[1] if len(flat) == 2 else None


def _torchscript(
    path: Path,
    options: Mapping[str, Any] | None,
    *,
    resize: str | None,
    batch_size: int,
    device: str | torch.device,
    dtype: str,
) -> NetworkExtractor:
    takes = ModuleInput.of(path, options)
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
        arguments = {argument.name for argument in network.forward.schema.arguments}
    except (RuntimeError, ValueError, OSError, AttributeError) as error:
        raise InputError(f"features: {path} cannot be read as TorchScript ({_first_line(error)})") from error
    # a module with this argument resizes for itself; what is asked for beyond that is done before it
    itself = "return_features" in arguments
    mode = resize or ("none" if itself else "clean")
    size = None if itself and mode == "none" else takes.size
    settings = {"return_features": True} if itself else {}
    scaling = INPUTS[takes.input]

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        outputs = _outputs(network(images, **settings))
        if outputs is None:
            raise InputError(f"features: {path} returns neither features (B, D) nor a pair of features and logits")
        return outputs

    probe = torch.zeros(1, takes.channels, takes.size, takes.size, device=device)
    probe = scaling(probe) if scaling else probe.to(torch.uint8) if mode == "none" else probe
    try:
        with torch.no_grad():
            values, _ = forward(probe)
    except RuntimeError as error:
        shape = "x".join(map(str, probe.shape))
        raise InputError(
            f"features: {path} fails on {probe.dtype} {shape} ({_first_line(error)}); say what it takes in "
            f"{path.with_suffix('.json').name} beside it: {', '.join(_OPTION_KEYS)}"
        ) from error
    return NetworkExtractor(
        network,
        path.stem,
        forward=forward,
        prepare=Preparation(path.stem, mode, size, takes.channels),
        scaling=scaling,
        dimensions=values.shape[1],
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        sha256=file_hash(path),  # of the code too: weights alone do not say what is computed
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def open_module(
    path: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    resize: str | None = None,
    batch_size: int,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
) -> NetworkExtractor:
    """The feature network at ``path``: what it is, is seen from its files.

    A folder holds ``config.json`` and ``model.safetensors``, of :class:`~genflow.metrics.classifier.ImageClassifier` or
    of a vision model of transformers. A file is TorchScript: ``(B, C, H, W)`` to features ``(B, D)`` or
    ``(B, D, 1, 1)``, or to a pair of features and logits. Where its ``forward`` has an argument ``return_features``
    (NVIDIA's and clean-fid's Inception) it is called with True and is trusted to resize by itself.

    Raises:
        InputError: neither of these, damaged, or failing on what it is declared to take.
    """
    path = Path(path)
    common = {"resize": resize, "batch_size": batch_size, "device": device, "dtype": dtype}
    if path.is_file():
        if _is_torchscript(path):
            return _torchscript(path, options, **common)
        raise InputError(
            f"features: {path} is no TorchScript file; weights alone are given by weights=, with the network's name"
        )
    if options:
        raise InputError(f"options: {path} is a folder; they are for TorchScript files")
    for name in ("config.json", "model.safetensors"):
        # a large model of transformers is in several files, named in an index
        if not (path / name).is_file() and not (path / f"{name}.index.json").is_file():
            raise InputError(f"features: {path / name} does not exist")
    try:
        settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"features: {path / 'config.json'} is not readable JSON ({error})") from error
    if isinstance(settings, dict) and "model_type" in settings:
        from genflow.metrics.encoders import open_encoder  # transformers is heavy, and an extra

        return open_encoder(path, **common)
    return FeatureExtractor.from_folder(path, **{**common, "resize": resize or "none"})
