"""Random access into gzipped files, in memory and without unpacking them.

A gzip stream can only be read from its beginning; but the decoder's state (a window of 32 KiB) can be copied. While
the stream is first read, the state is kept at every few MiB of output; from there a block can be decoded again. The
last few blocks are kept, so that neighbours, read in nearly any order, are decoded once.
"""

import threading
import zlib
from collections import OrderedDict
from typing import Any, BinaryIO

__all__ = ["BLOCK", "GzipBlocks"]

BLOCK = 4 * 2**20  # bytes of output between two states of some 40 KiB: a hundredth
_KEPT = 4  # blocks
_INPUT = 2**18
_GZIP = 31  # zlib's code for 32 KiB of window and a gzip header


class GzipBlocks:
    """The contents of a gzipped file (of several members, too) by offset; safe to use from several threads.

    Args:
        file: the gzipped file, seekable, which nobody else uses.
        block: bytes decoded at once.
    """

    def __init__(self, file: BinaryIO, block: int = BLOCK) -> None:
        self._file, self._block = file, block
        self._states: list[tuple[Any, int, bytes]] = [(zlib.decompressobj(_GZIP), 0, b"")]
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read_at(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on, fewer at the end. Raises EOFError or zlib.error: the file is damaged."""
        parts = []
        with self._lock:
            while size > 0:
                number, start = divmod(offset, self._block)
                part = self._decoded(number)[start : start + size]
                if not part:
                    break
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def _decoded(self, number: int) -> bytes:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        for known in range(min(number, len(self._states) - 1), number + 1):
            if known >= len(self._states):  # the stream ended before
                return b""
            data = self._decode(known)
            self._cache[known] = data
            if len(self._cache) > _KEPT:
                self._cache.popitem(last=False)
        return data

    def _decode(self, number: int) -> bytes:
        """Decode block ``number`` from the state at its beginning; keep the state at its end, if that is new."""
        state, at, left = self._states[number]
        decoder = state.copy()
        self._file.seek(at)
        parts, missing = [], self._block
        while missing:
            if decoder.eof:
                left = decoder.unused_data
                left = left or self._file.read(_INPUT)
                left = left.lstrip(b"\0")  # padding may follow a member
                if not left:
                    break
                decoder = zlib.decompressobj(_GZIP)
            elif not left:
                left = self._file.read(_INPUT)
                if not left:
                    raise EOFError("its compressed data end too early")
            part = decoder.decompress(left, missing)
            left = decoder.unconsumed_tail
            parts.append(part)
            missing -= len(part)
        if not missing and number + 1 == len(self._states):
            self._states.append((decoder.copy(), self._file.tell(), left))
        return b"".join(parts)
