"""Finding a saved pipeline: a shipped name, a folder, or a repository of the Hugging Face hub."""

import difflib
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genflow import assets
from genflow.errors import InputError, nearest

__all__ = ["class_name", "import_components", "loading_from", "locate", "read_index", "summary"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def import_components() -> None:
    """Import every module that a saved pipeline may name for its network or scheduler.

    diffusers (from 0.42 on) loads a component only from a module that has been imported already, since to import one
    at a folder's word would be to run the folder's choice of code.
    """
    for name in ("genflow.models", "genflow.schedulers"):
        for module in pkgutil.iter_modules(importlib.import_module(name).__path__, f"{name}."):
            importlib.import_module(module.name)


def locate(name: str | Path, **hub_options: Any) -> Path:
    """The folder of a saved pipeline.

    Args:
        name: a shipped name (``genflow.assets.models()``), else a folder, else a hub id ``owner/name``, of which only
            JSON and safetensors files are downloaded.
        **hub_options: handed to ``huggingface_hub.snapshot_download``.

    Raises:
        InputError: none of these, or the hub did not give it.
    """
    shipped = assets.models()
    if str(name) in shipped:
        return assets.path(str(name))
    folder = Path(name).expanduser()
    if str(name) and folder.is_dir():
        return folder
    known = f"shipped models: {', '.join(shipped) or 'none'}"
    if folder.is_file():
        raise InputError(
            f"model: {name} is a file; allowed: a folder with model_index.json, a hub id, or a name ({known})"
        )
    if not HUB_ID.fullmatch(str(name)):
        raise InputError(
            f"model: {name} is not there{nearest(str(name), shipped)}; allowed: a folder, a hub id, {known}"
        )
    return _download(str(name), known, hub_options)


def _download(name: str, known: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **options))
    except Exception as error:  # anything between a wrong name and no network
        raise InputError(
            f"model: {name} is neither a folder nor to be had from the hub ({summary(error)}); {known}"
        ) from error


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's model_index.json.

    Raises InputError where it is missing or broken, or where the config of one of genflow's own classes holds a key
    that the class does not know and that looks like one it does: diffusers would pass over it.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise InputError(f"model: {folder} has no model_index.json; allowed: the folder of a saved diffusers pipeline")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model: {path} cannot be read ({summary(error)})") from error
    if not isinstance(index, dict):
        raise InputError(f"model: {path} holds no JSON object")
    for component, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and str(entry[0]).startswith("genflow."):
            for config in sorted((folder / component).glob("*config.json")):
                _check_spelling(config, *entry)
    return index


def _check_spelling(path: Path, module: str, class_name: str) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = getattr(importlib.import_module(module), class_name)
    except (OSError, ValueError) as error:
        raise InputError(f"model: {path} cannot be read ({summary(error)})") from error
    except (ImportError, AttributeError) as error:
        raise InputError(f"model: this genflow has no {module}.{class_name}") from error
    known = list(inspect.signature(kind.__init__).parameters)
    for key in config:
        # An unlike key may be one that another class left behind, which diffusers keeps.
        if key not in known and difflib.get_close_matches(key, known, n=1, cutoff=0.8):
            raise InputError(f"model: {path}: {class_name} has no {key!r}{nearest(key, known)}")


def class_name(index: dict[str, Any]) -> str | None:
    """The pipeline that a model_index.json names, without the module that a custom one has before its name."""
    name = index.get("_class_name")
    return name[-1] if isinstance(name, list) and name else name


@contextmanager
def loading_from(folder: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into one line that names the folder: an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"model: {folder}: {error}") from error
    except Exception as error:  # diffusers, safetensors and torch each have errors of their own for a broken file
        raise InputError(f"model: {folder} cannot be loaded ({summary(error)})") from error


def summary(error: BaseException) -> str:
    """The first line of an error, without its trailing punctuation."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(" .:")
