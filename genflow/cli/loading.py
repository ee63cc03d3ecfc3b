"""From what a person calls a model to a pipeline on its device: shipped names, folders, hub ids."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from genflow import assets, pipelines
from genflow.errors import InputError, check_choice, nearest
from genflow.files import check_safetensors

__all__ = ["DTYPES", "choose_device", "choose_dtype", "load_pipeline", "model_folder"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` is the first of CUDA, Apple's MPS and the CPU that this machine has.

    Raises:
        InputError: no such device, or not on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        reason = str(error).splitlines()[0].split(". ")[0]
        raise InputError(f"--device: {name!r} cannot be used here: {reason}") from error
    return device


def choose_dtype(name: str) -> torch.dtype:
    """``auto`` is float32, in which seeds give the same images on every machine, to rounding."""
    if name == "auto":
        return torch.float32
    return DTYPES[check_choice("--dtype", name, ["auto", *DTYPES])]


def model_folder(name: str) -> Path:
    """The folder of a model: a shipped name, a folder, or ``owner/name`` on the Hugging Face hub.

    Raises:
        InputError: there is no such model, or its folder holds no ``model_index.json``.
    """
    if name in assets.models():
        return assets.path(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InputError(f"--model: the folder {name!r} holds no model_index.json, so it is no saved pipeline")
        return folder
    if folder.exists():
        raise InputError(f"--model: {name!r} is a file; a folder with model_index.json is needed")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return _download(name)
    shipped = assets.models()
    hint = nearest(name, shipped)
    raise InputError(
        f"--model: there is no folder {name!r}{hint}; allowed: a shipped model ({', '.join(shipped) or 'none'}), "
        "a folder that holds model_index.json, or owner/name on the hub"
    )


def _download(name: str) -> Path:
    """Fetch a pipeline from the hub into its cache; only safetensors, never code."""
    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:  # the hub's client raises a dozen kinds, from no network to no such model
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"--model: there is no folder {name!r}, and the hub did not give it: {reason}") from error


def load_pipeline(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The pipeline saved in ``folder``: an ``ImagePipeline`` where it was one, else the diffusers class it names.

    Code that lies in the folder is never run, and pickled weights are never opened.

    Raises:
        InputError: a file is cut short or unreadable, or the pipeline cannot be put together from the folder.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--model: {folder / 'model_index.json'} cannot be read: {error}") from error
    for weights in sorted(folder.glob("**/*.safetensors")):
        check_safetensors(weights)
    name = index.get("_class_name") if isinstance(index, dict) else None
    name = name[-1] if isinstance(name, list) and name else name
    kind = getattr(pipelines, name) if name in pipelines.__all__ else DiffusionPipeline
    try:
        pipeline = kind.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--model: the pipeline in {str(folder)!r} cannot be loaded: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
