"""Where the weights of feature networks are looked for. Nothing is downloaded here."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from genflow.errors import InputError
from genflow.files import cache_root

__all__ = ["WEIGHTS_VARIABLE", "file_hash", "find_weights"]

WEIGHTS_VARIABLE = "GENFLOW_WEIGHTS"
"""The environment variable that names a file of weights, or a folder of them."""


def find_weights(names: Sequence[str], given: str | Path | None = None, *, folder: bool = False) -> Path | None:
    """The first file (or with ``folder`` the first folder) called one of ``names``.

    Looked for in ``given`` alone where it is given: the file itself under any name, or a folder that holds one. Else in
    $GENFLOW_WEIGHTS, which is taken in the same way (a file only where it has one of the names), then in
    ``$GENFLOW_CACHE`` or ``~/.cache/genflow``, then in torch's own ``~/.cache/torch/hub/checkpoints``, where
    torch-fidelity and pytorch-fid keep theirs.

    Raises:
        InputError: ``given`` or the variable's path does not exist, or ``given`` holds nothing of these names.
    """
    is_wanted = Path.is_dir if folder else Path.is_file
    variable = os.environ.get(WEIGHTS_VARIABLE)
    for argument, path in (("weights", given), (WEIGHTS_VARIABLE, variable)):
        if path and not Path(path).expanduser().exists():
            raise InputError(f"{argument}: {str(path)!r} does not exist")
    if given:
        given = Path(given).expanduser()
        inside = [given / name for name in names if is_wanted(given / name)]
        if is_wanted(given) and not (folder and inside):
            return given
        if not inside:
            kind = "folder" if folder else "file"
            raise InputError(f"weights: {str(given)!r} holds no {kind} named {' or '.join(names)}")
        return inside[0]
    roots = [cache_root(), Path(torch.hub.get_dir()) / "checkpoints"]
    if variable:
        variable = Path(variable).expanduser()
        if variable.name in names and is_wanted(variable):
            return variable
        roots.insert(0, variable)
    return next((root / name for root in roots for name in names if is_wanted(root / name)), None)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
