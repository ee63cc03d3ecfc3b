"""Writing files so that nothing is ever half-written, and checking what is read before it is trusted.

A file is written under a temporary name in the same folder and then renamed.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genflow.errors import InputError

__all__ = [
    "atomic_folder",
    "atomic_path",
    "cache_root",
    "check_output_file",
    "check_output_files",
    "check_output_folder",
    "check_safetensors",
    "fingerprint",
    "output_folder",
    "write_json",
    "write_text",
]

_WHOLE = 256 * 2**20  # up to this many bytes a file is fingerprinted whole
_BLOCK = 2**20


def cache_root() -> Path:
    """Where genflow keeps what can be made or fetched again: $GENFLOW_CACHE, else ``~/.cache/genflow``."""
    return Path(os.environ.get("GENFLOW_CACHE") or "~/.cache/genflow").expanduser()


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it there on success, delete it on any failure.

    The temporary name keeps the suffix, since writers such as pillow choose the format by it.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``; on success it takes the target's place, whole."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)  # mkdtemp makes it private
        if target.exists():
            old = temporary.with_suffix(".old")
            os.replace(target, old)
            os.replace(temporary, target)
            shutil.rmtree(old)
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def check_output_folder(argument: str, folder: str | Path) -> None:
    """Raise InputError where the folder, or a part of its path, is a file; nothing is made."""
    for part in (Path(folder), *Path(folder).parents):
        if part.exists() and not part.is_dir():
            raise InputError(f"{argument}: {str(part)!r} is a file; a folder is needed")


def check_output_file(argument: str, path: str | Path) -> None:
    """Raise InputError where no file can be written there: it is a folder, or in no folder. Nothing is made."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{argument}: {str(path)!r} is a folder; a file is needed")
    check_output_folder(argument, path.parent)
    home = next(part for part in path.absolute().parents if part.exists())
    if not os.access(home, os.W_OK | os.X_OK):
        raise InputError(f"{argument}: the folder {str(home)!r} cannot be written to")


def check_output_files(**paths: Path | None) -> None:
    """:func:`check_output_file` of every option ``--name`` that was given a path; for what works long before it
    writes."""
    for name, path in paths.items():
        if path is not None:
            check_output_file(f"--{name}", path)


def output_folder(argument: str, folder: str | Path) -> Path:
    """Make the folder if need be and return it.

    Raises:
        InputError: it, or a part of its path, is a file, or it cannot be made or written to.
    """
    folder = Path(folder)
    check_output_folder(argument, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{argument}: the folder {str(folder)!r} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{argument}: the folder {str(folder)!r} cannot be written to")
    return folder


def check_safetensors(path: str | Path) -> None:
    """Check that a safetensors file is whole, from its header and its size alone.

    The file is an 8-byte little-endian header length, a JSON header that gives each tensor's byte range, and
    the tensors: https://github.com/huggingface/safetensors, "Format".

    Raises:
        InputError: the file is missing, cut short or not a safetensors file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length <= size - 8 else None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise InputError(f"{path} is not a whole safetensors file: its header is cut short or no JSON ({size} bytes)")
    try:
        data = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
    except (TypeError, KeyError, IndexError):
        raise InputError(f"{path} is not a safetensors file: its header names no byte ranges") from None
    if size != 8 + length + data:
        raise InputError(f"{path} is not whole: {size} bytes, its header promises {8 + length + data}")


def fingerprint(folder: str | Path) -> str:
    """16 hexadecimal digits that change when the model in ``folder`` changes, wherever the folder stands.

    Configurations, weights and vocabularies count; cards and pictures do not. Of a file above 256 MiB only a
    mebibyte in every 64 is read: training changes weights everywhere.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in {".json", ".safetensors", ".txt"}):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size}\n".encode())
        with path.open("rb") as file:
            for start in range(0, size, _BLOCK if size <= _WHOLE else 64 * _BLOCK):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]
