"""Arrays of images and their labels in files: IDX and numpy."""

import gzip
import math
import os
import struct
import zipfile
from pathlib import Path

import numpy as np

from genflow.errors import InputError

__all__ = ["read_idx", "read_idx_pair", "read_numpy"]


def read_idx(path: str | Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes (LeCun's MNIST format), gzipped or not.

    Raises:
        InputError: not an IDX file of unsigned bytes, or cut short.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as IDX: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise InputError(f"{path}: not an IDX file of unsigned bytes (it must begin with 00 00 08)")
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", count=dimensions, offset=4).astype(np.int64)
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions)
    if body.size != shape.prod():
        raise InputError(f"{path}: {body.size} bytes of data where its header promises {shape.prod()}")
    return body.reshape(shape)


def read_idx_pair(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Images ``(N, H, W[, C])`` of an IDX file, and the int64 labels ``(N,)`` that lie beside it under the usual name.

    Raises InputError: another shape, or see :func:`read_idx`.
    """
    array = read_idx(path)
    if array.ndim not in (3, 4):
        raise InputError(f"{path}: {array.ndim} dimensions; allowed: (N, H, W) or (N, H, W, C)")
    labels_path = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels_path == path or not labels_path.is_file():
        return array, None
    return array, _checked_labels(labels_path, read_idx(labels_path), len(array))


def read_numpy(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Images ``(N, H, W[, C])`` uint8 and int64 labels ``(N,)``, or None, of an ``.npy`` or ``.npz``.

    Of an ``.npz``: ``arr_0`` or ``images``, and ``labels`` or ``arr_1``. The images stay on the disk, mapped into
    memory, unless they are compressed.

    Raises:
        InputError: damaged, pickled objects, no such array, another dtype or shape, labels that do not fit.
    """
    labels = None
    try:
        if zipfile.is_zipfile(path):
            with np.load(path, allow_pickle=False) as held:
                key = next((k for k in ("arr_0", "images") if k in held.files), None)
                if key is None:
                    raise InputError(
                        f"{path}: no array 'arr_0' or 'images'; it holds: {', '.join(map(repr, held.files))}"
                    )
                array = _mapped(path, held.zip.getinfo(f"{key}.npy"))
                array = held[key] if array is None else array
                label_key = next((k for k in ("labels", "arr_1") if k in held.files), None)
                labels = held[label_key] if label_key else None
        else:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of damaged bytes numpy, zipfile and tokenize each have errors of their own
        raise InputError(f"{path}: cannot be read as a numpy file: {' '.join(str(error).split())}") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise InputError(f"{path}: {array.dtype} of shape {array.shape}; allowed: uint8 (N, H, W) or (N, H, W, C)")
    return array, None if labels is None else _checked_labels(path, labels, len(array))


def _mapped(path: Path, member: zipfile.ZipInfo) -> np.ndarray | None:
    """An array that lies in an archive as it is, mapped into memory; None where that cannot be done."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        return None
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)  # of the local header: the lengths of its name and its extra field
        name, extra = struct.unpack("<HH", file.read(4))
        file.seek(name + extra, os.SEEK_CUR)
        begin = file.tell()
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            return None
        shape, fortran, dtype = read(file)
        count = math.prod(shape)
        if dtype.hasobject or count == 0 or file.tell() - begin + count * dtype.itemsize != member.file_size:
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _checked_labels(path: Path, labels: np.ndarray, count: int) -> np.ndarray:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}; allowed: integers ({count},), one an image"
        )
    return labels.astype(np.int64)
