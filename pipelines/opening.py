"""From a folder to a pipeline on its device, in the number format asked for."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

from genflow.errors import InputError, check_choice
from genflow.files import check_safetensors
from genflow.pipelines.image import ImagePipeline
from genflow.pipelines.loading import class_name, read_index, summary
from genflow.pipelines.one_step import OneStepPipeline
from genflow.pipelines.translation import TranslationPipeline

__all__ = ["DTYPES", "choose_dtype", "load_pipeline", "quiet"]

_PIPELINES: dict[str, type[DiffusionPipeline]] = {
    **dict.fromkeys(("ImagePipeline", "DDPMPipeline", "DDIMPipeline", "DiTPipeline"), ImagePipeline),
    "OneStepPipeline": OneStepPipeline,
    "TranslationPipeline": TranslationPipeline,
}
"""Saved pipelines that one of genflow's own runs; those of images, all without or by classes, with any scheduler."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_dtype(name: str) -> torch.dtype:
    """``auto`` is float32, in which seeds give the same images on every machine, to rounding."""
    if name == "auto":
        return torch.float32
    return DTYPES[check_choice("--dtype", name, ["auto", *DTYPES])]


def quiet() -> None:
    """Silence the libraries' bars and notes: the command line has its own bar, and reports what they raise."""
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        from transformers.utils import logging as transformers_logging
    except ImportError:
        return
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_pipeline(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The pipeline saved in ``folder``: an ``ImagePipeline`` where that can run it, else the class it names.

    Code that lies in the folder is never run, and pickled weights are never opened.

    Raises:
        InputError: a file is cut short or unreadable, or the pipeline cannot be put together from the folder.
    """
    for weights in sorted(folder.glob("**/*.safetensors")):
        check_safetensors(weights)
    kind = _PIPELINES.get(class_name(read_index(folder)), DiffusionPipeline)
    try:
        pipeline = kind.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True)
    except InputError:
        raise
    except Exception as error:  # diffusers and its libraries each have errors of their own for a broken folder
        raise InputError(f"model: {folder} cannot be loaded ({summary(error)})") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
