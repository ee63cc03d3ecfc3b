"""Images decoded and prepared ahead of whoever takes them, in their order, by threads.

Threads and not processes: pillow and zlib let go of the interpreter's lock while they work, nothing has to be pickled
or started, and the pictures need not cross from one process to another. At most two batches are held: the one that is
handed out and the one that is being made.
"""

import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.evaluate.sources.figures import FIGURES, figures_of
from genflow.evaluate.sources.pixels import Picture
from genflow.evaluate.sources.source import ImageSource
from genflow.images import UnreadableImageError

__all__ = ["DecodedBatch", "Prepare", "decode", "default_workers"]

Prepare = Callable[[np.ndarray], Tensor]
"""An extractor's ``prepare``: uint8 ``(H, W, C)``, C 1 or 3, to ``(C', H', W')``."""

_MOST_WORKERS = 16
_FIGURED = 2**24  # bytes of pictures that wait for their figures


@dataclass(frozen=True)
class DecodedBatch:
    """What became of up to ``batch_size`` neighbouring images.

    Attributes:
        positions: the places in ``indices`` of the images that could be read, ascending.
        images: these prepared, ``(len(positions), ...)``; empty where none could be read.
        statistics: figures of the unresized pictures, float32 ``(len(positions),)`` each, see
            :data:`genflow.evaluate.sources.figures.FIGURES`.
        bad: where the others lie, and why they could not be read.
        notes: what of the files is not in the images, and of how many.
    """

    positions: list[int]
    images: Tensor
    statistics: dict[str, Tensor]
    bad: list[tuple[str, str]]
    notes: dict[str, int]


def default_workers() -> int:
    """A thread for each core that this process may use, at most 16."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(len(usable), _MOST_WORKERS)


def decode(
    source: ImageSource,
    indices: Sequence[int],
    prepare: Prepare,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    skip_bad: bool = False,
) -> Iterator[DecodedBatch]:
    """Read, prepare and measure images in batches.

    Neither ``batch_size`` nor ``workers`` changes what comes out, but for how it is cut.

    Args:
        source: where the images lie. One that makes them itself (with ``batches``, as a pipeline) is asked for whole
            batches, in the caller's thread.
        indices: which of its images, in the order wanted.
        prepare: applied to each, in the workers.
        batch_size: images a batch, the last may be smaller.
        workers: threads; by default :func:`default_workers`; 0 works in the caller's thread.
        skip_bad: report unreadable images in their batch instead of raising.

    Raises:
        InputError: at once: a number out of range, an index that is none. On the way: the first unreadable image
            without ``skip_bad``, or none that could be read with it; an image of a size that ``prepare`` does not
            take, or that differs from the first one's after it. The image is named, and all threads have ended.
    """
    check_number("batch_size", batch_size, at_least=1, integer=True)
    workers = default_workers() if workers is None else int(check_number("workers", workers, at_least=0, integer=True))
    indices = [int(index) for index in indices]
    if indices and (min(indices) < 0 or max(indices) >= len(source)):
        raise InputError(f"indices: {min(indices)} to {max(indices)}; allowed: 0 to {len(source) - 1}")
    workers = min(workers, max(1, len(indices)))
    work = _Work(source, indices, prepare, skip_bad)
    cuts = [range(start, min(start + batch_size, len(indices))) for start in range(0, len(indices), batch_size)]
    if hasattr(source, "batches"):
        return _assembled(work, _on_the_fly(work, cuts, batch_size))
    return _assembled(work, _in_threads(work, cuts, workers) if workers else ([work.do(cut)] for cut in cuts))


@dataclass
class _Piece:
    """Part of a batch, done."""

    positions: list[int] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    figures: list[dict[str, Tensor]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


class _Work:
    """What is done to each image, whoever does it."""

    def __init__(self, source: ImageSource, indices: list[int], prepare: Prepare, skip_bad: bool) -> None:
        self.source, self.indices, self.prepare, self.skip_bad = source, indices, prepare, skip_bad
        self.stop = threading.Event()

    def do(self, positions: range, pictures: Iterable[Picture] | None = None) -> _Piece:
        """Read (unless ``pictures`` are given), prepare and measure the images at ``positions``."""
        piece, waiting, held = _Piece(), [], 0
        given = None if pictures is None else iter(pictures)
        for position in positions:
            if self.stop.is_set():
                break
            try:
                picture = self.source.picture(self.indices[position]) if given is None else next(given)
            except UnreadableImageError as error:
                if not self.skip_bad:
                    raise
                piece.bad.append((error.place, error.reason))
                continue
            try:
                piece.images.append(self.prepare(picture.array))
            except InputError as error:
                raise InputError(f"{self.source.place(self.indices[position])}: {error}") from error
            piece.positions.append(position)
            piece.sizes.append((picture.array.shape[1], picture.array.shape[0]))
            piece.notes.update(picture.notes)
            waiting.append(picture.array)
            held += picture.array.size
            if held > _FIGURED:
                piece.figures.append(figures_of(waiting))
                waiting, held = [], 0
        piece.figures.append(figures_of(waiting))
        return piece


def _in_threads(work: _Work, cuts: list[range], workers: int) -> Iterator[list[_Piece]]:
    """The pieces of each batch, one ahead of the batch that is handed out."""
    ahead: deque[list[Future[_Piece]]] = deque()
    remaining = iter(cuts)
    pool = _pool(workers)
    waits = True
    try:
        while True:
            while len(ahead) < 2 and (cut := next(remaining, None)) is not None:
                step = -(-len(cut) // workers)
                ahead.append([pool.submit(work.do, cut[at : at + step]) for at in range(0, len(cut), step)])
            if not ahead:
                return
            pieces = [future.result() for future in ahead[0]]
            ahead.popleft()
            yield pieces
    except GeneratorExit:
        # Perhaps the garbage collector's, which may have struck where a thread begins, under threading's own locks: to
        # join the workers would wait for ever. They end by themselves.
        waits = False
        raise
    finally:
        work.stop.set()
        pool.shutdown(wait=waits, cancel_futures=True)


def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads in which torch uses one thread each, so that they do not fight over the cores.

    torch has no face for that: its ``set_num_threads`` sets the calling thread's number, and also one for threads that
    have not asked yet and for MKL. So each worker asks first and then sets its own; the caller puts the rest back.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="genflow-decode")
    started = threading.Barrier(workers + 1)

    def settle() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    try:
        for _ in range(workers):
            pool.submit(settle)
        started.wait()
    except BaseException:  # no more threads to be had, Ctrl-C: those that wait go on and end
        started.abort()
        pool.shutdown(wait=True)
        raise
    finally:
        torch.set_num_threads(before)
    return pool


def _on_the_fly(work: _Work, cuts: list[range], batch_size: int) -> Iterator[list[_Piece]]:
    made = work.source.batches(work.indices, batch_size)
    for cut, pictures in zip(cuts, made, strict=True):
        yield [work.do(cut, pictures)]


def _assembled(work: _Work, batches: Iterable[list[_Piece]]) -> Iterator[DecodedBatch]:
    first: _Shape | None = None
    unread: list[tuple[str, str]] = []
    try:
        for pieces in batches:
            for piece in pieces:
                for position, size, image in zip(piece.positions, piece.sizes, piece.images, strict=True):
                    found = _Shape(position, size, tuple(image.shape))
                    first = first or found
                    if found.prepared != first.prepared:
                        raise InputError(_odd(work, found, first))
            batch = _stacked(pieces)
            del pieces[:]  # what was stacked is not held twice
            if first is None:
                unread += batch.bad
            yield batch
            del batch
    finally:
        if hasattr(batches, "close"):
            batches.close()
    if first is None and unread:
        place, reason = unread[0]
        raise InputError(f"samples: none of {len(unread)} images could be read; the first: {place}: {reason}")


class _Shape(NamedTuple):
    """An image's place in the order, its width and height, and its shape as prepared."""

    position: int
    size: tuple[int, int]
    prepared: tuple[int, ...]


def _stacked(pieces: list[_Piece]) -> DecodedBatch:
    images = [image for piece in pieces for image in piece.images]
    figures = [part for piece in pieces for part in piece.figures]
    return DecodedBatch(
        [position for piece in pieces for position in piece.positions],
        torch.stack(images) if images else torch.empty(0),
        {name: torch.cat([part[name] for part in figures]) for name in FIGURES},
        [entry for piece in pieces for entry in piece.bad],
        dict(sum((piece.notes for piece in pieces), Counter())),
    )


def _odd(work: _Work, found: _Shape, first: _Shape) -> str:
    here, there = (work.source.place(work.indices[shape.position]) for shape in (found, first))
    if found.size != first.size:
        what, other = ("{}x{} pixels".format(*shape.size) for shape in (found, first))
    else:
        what, other = (f"{shape.prepared} as prepared" for shape in (found, first))
    return f"{here}: {what}, where {there} has {other}; allowed: one size, or features that resize"
