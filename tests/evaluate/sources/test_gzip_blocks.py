"""Any bytes of a gzipped file, in any order, are those that gzip gives."""

import gzip
import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.evaluate.sources.gzip_blocks import GzipBlocks


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    members=st.lists(st.integers(0, 70_000), min_size=1, max_size=4),
    block=st.sampled_from([1_000, 4_096, 50_000]),
    level=st.sampled_from([0, 1, 6]),
)
def test_reads_are_those_of_gzip(seed, members, block, level) -> None:
    generator = np.random.default_rng(seed)
    parts = [generator.integers(0, 5, size, dtype=np.uint8).tobytes() for size in members]
    whole = b"".join(parts)
    packed = b"".join(gzip.compress(part, level) for part in parts) + bytes(int(generator.integers(0, 20)))
    reader = GzipBlocks(io.BytesIO(packed), block)
    for _ in range(12):
        offset = int(generator.integers(0, len(whole) + 10))
        size = int(generator.integers(0, 3 * block))
        assert reader.read_at(offset, size) == whole[offset : offset + size]


def test_a_damaged_stream_is_an_error_and_no_short_read() -> None:
    data = np.random.default_rng(0).integers(0, 5, 100_000, dtype=np.uint8).tobytes()
    packed = gzip.compress(data)
    for cut in (0, 5, 11, 1000, len(packed) - 1):
        reader = GzipBlocks(io.BytesIO(packed[:cut]), 4096)
        with pytest.raises((EOFError, zlib.error)):
            reader.read_at(0, len(data))
    broken = bytearray(packed)
    broken[-6] ^= 1  # of the checksum
    with pytest.raises(zlib.error):
        GzipBlocks(io.BytesIO(bytes(broken)), 4096).read_at(0, len(data))
