"""From a source of images to their features: each image read, prepared and seen by the network once, and kept.

An interrupted run goes on where it stopped, and several processes share the work; either gives the very features that
one process gives in one go, since the extractor fills every batch up to one size. (A pipeline's images depend on their
company to rounding, and so do their features.)
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from genflow.errors import InputError, NonFiniteError, check_number
from genflow.evaluate.console import progress_bar
from genflow.evaluate.feature_cache import NOTES, POSITION, FeatureEntry, cache_folder, join_rows
from genflow.evaluate.feature_set import FeatureSet
from genflow.evaluate.sources import decode
from genflow.metrics.features import Extractor
from genflow.metrics.statistics import FeatureStatistics
from genflow.processes import Processes, processes

if TYPE_CHECKING:
    from genflow.evaluate.sources import DecodedBatch, ImageSource

__all__ = ["draw_indices", "extract"]

_SHARD_ROWS, _SHARD_SECONDS = 4096, 60.0
_BATCH = 64  # of an extractor that does not say what it likes
_MOMENTS = ("mean", "covariance")
_IMAGES = "images."

Tensors = dict[str, Tensor]
_T = TypeVar("_T")


def draw_indices(available: int, count: int | None, seed: int) -> list[int]:
    """``count`` of ``range(available)`` without replacement, in rising order; all where count is None.

    Raises InputError where there are fewer.
    """
    if count is None:
        return list(range(available))
    check_number("count", count, at_least=1, integer=True)
    check_number("seed", seed, at_least=0, integer=True)
    if count > available:
        raise InputError(f"count: got {count}; there are {available} samples")
    return np.sort(np.random.default_rng(seed).permutation(available)[:count]).tolist()


def extract(
    source: "ImageSource",
    extractor: Extractor,
    *,
    count: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    cache: bool | str | Path = True,
    progress: bool = True,
    begins: Callable[[int], None] | None = None,
) -> FeatureSet:
    """Features of a source's images, and what else is known of them.

    Under ``accelerate launch`` or torchrun each process takes a part of the images, and all get the whole result; the
    first one keeps it.

    Args:
        source: images, see :func:`genflow.evaluate.sources.open_source`.
        extractor: the network, see :func:`genflow.metrics.create_extractor`.
        count, seed: this many, drawn without replacement by ``seed``; all by default.
        batch_size: images decoded together; the extractor's own by default, with which nothing is filled up but the
            last batch.
        workers: that decode; None leaves it to :func:`~genflow.evaluate.sources.decode`.
        skip_bad: leave images that cannot be read out, and list them, instead of refusing.
        cache: keep features in the folder of caches (see :mod:`genflow.evaluate.feature_cache`) and take them from
            there; a path is another folder; False does neither.
        progress: show a bar on stderr if it takes over two seconds.
        begins: told, before the network is asked, how many images it has to see; the others' features are kept ones.

    Returns:
        Features in the order of the source; the protocol has what extractor and source describe, ``source``, ``count``,
        ``available``, ``seed`` (None without ``count``), ``skipped`` (where they lie), ``notes`` (what of the files is
        not in the images, and of how many) and ``content_sha256``.

    Raises:
        InputError: fewer images than ``count`` or than two, an unreadable image, one of a size that the network does
            not take, features that are NaN or infinite; the image is named. What was done until then is kept.
        NonFiniteError: the source is a pipeline whose network gave NaN.
    """
    indices = draw_indices(len(source), count, seed)
    _need_two(len(indices), source)
    if batch_size is not None:
        check_number("batch_size", batch_size, at_least=1, integer=True)
    folder = cache_folder(cache)
    team = processes(cpu=torch.device(getattr(extractor, "device", "cpu")).type == "cpu")
    network = extractor.describe()
    content = team.gather_json(_together(team, lambda: source.content_hash(indices) if team.first else None))[0]
    entry = None if folder is None else FeatureEntry(folder, network, content)

    kept, moments = _kept(entry) if team.first and entry is not None else (None, None)
    done = set() if kept is None else set(kept[POSITION].tolist())
    missing = team.gather_json([place for place in range(len(indices)) if place not in done])[0]
    mine = [missing[i] for i in team.share(len(missing))]
    if begins is not None:
        begins(len(missing))
    work = _Work(source, extractor, indices, entry)
    size = batch_size or getattr(extractor, "batch_size", _BATCH)
    with progress_bar("features", len(mine), progress and team.first and bool(mine), unit="images") as advance:
        _together(team, lambda: work.run(mine, advance, batch_size=size, workers=workers, skip_bad=skip_bad))

    rows = _gathered(team, [part for part in (kept, work.rows()) if part is not None])
    bad = [found for others in team.gather_json(work.bad) for found in others]
    if rows is None and bad:
        raise InputError(f"samples: none of {len(bad)} images can be read; the first: {bad[0][0]}: {bad[0][1]}")
    _need_two(0 if rows is None else len(rows[POSITION]), source)
    finished = moments is not None and len(rows[POSITION]) == len(done)  # before this run; the first process knows
    moments = _moments(team, rows["features"], moments if finished else None)
    if team.first and entry is not None and not finished:
        entry.write({**rows, **moments})
    return _feature_set(source, indices, rows, moments, network, seed if count is not None else None, content)


def _need_two(number: int, source: "ImageSource") -> None:
    if number < 2:
        raise InputError(f"samples: {number} of {source.name} can be judged; at least 2 are needed")


def _together(team: Processes, work: Callable[[], _T]) -> _T:
    """What ``work`` gives; where it fails in one process all of them stop, and for the same reason."""
    given, error = None, None
    try:
        given = work()
    except (InputError, NonFiniteError) as caught:
        error = caught
    failures = team.gather_json(None if error is None else [isinstance(error, InputError), str(error)])
    first = next((place for place, failure in enumerate(failures) if failure is not None), None)
    if first == team.index:
        raise error
    if first is not None:
        of_input, text = failures[first]
        raise InputError(text) if of_input else NonFiniteError(text)
    return given


def _kept(entry: FeatureEntry) -> tuple[Tensors | None, Tensors | None]:
    """Rows that earlier runs left, and mean and covariance where these rows are those of a finished run."""
    tensors = entry.read()
    if tensors is None:
        return entry.read_shards(), None
    return tensors, {name: tensors.pop(name) for name in _MOMENTS}


class _Work:
    """This process's part: rows of features and figures, kept in shards on the way.

    Attributes:
        bad: where images lie that could not be read, and why.
    """

    def __init__(
        self, source: "ImageSource", extractor: Extractor, indices: Sequence[int], entry: FeatureEntry | None
    ) -> None:
        self._source, self._extractor, self._indices, self._entry = source, extractor, indices, entry
        self.bad: list[tuple[str, str]] = []
        self._parts: list[Tensors] = []
        self._saved = 0  # so many of the parts are in shards
        self._saved_at = time.monotonic()

    def rows(self) -> Tensors | None:
        """All of them; None where there are none."""
        return join_rows(self._parts) if self._parts else None

    def run(self, places: Sequence[int], advance: Callable[[int], None], **options: Any) -> None:
        """See the images at ``places`` of the indices. What is done when anything stops it is kept."""
        indices = [self._indices[place] for place in places]
        left = len(places)
        if not places:
            return
        try:
            with contextlib.closing(decode(self._source, indices, self._extractor.prepare, **options)) as batches:
                for batch in batches:
                    if batch.positions:
                        self._see(batch, places)
                    self.bad += batch.bad
                    done = len(batch.positions) + len(batch.bad)
                    advance(done)
                    unsaved = sum(len(part[POSITION]) for part in self._parts[self._saved :])
                    if unsaved >= _SHARD_ROWS or time.monotonic() - self._saved_at > _SHARD_SECONDS:
                        self._save()
                    left -= done
                    if left == 0:
                        break  # before decode() says that none could be read: earlier runs or others may have read some
        finally:
            self._save()

    def _see(self, batch: "DecodedBatch", places: Sequence[int]) -> None:
        features = self._extractor(batch.images)
        values = features.values.to("cpu", torch.float32)
        mine = [places[position] for position in batch.positions]
        broken = torch.nonzero(~torch.isfinite(values).all(1)).flatten().tolist()
        if broken:
            name = self._source.place(self._indices[mine[broken[0]]])
            raise InputError(f"features: those of {name} by {self._extractor.name} are NaN or infinite")
        rows = {POSITION: torch.tensor(mine), "features": values}
        if features.predicted is not None:
            rows["predicted"] = features.predicted.cpu()
        if features.logits is not None:
            rows["logits"] = features.logits.to("cpu", torch.float32)
        rows |= {_IMAGES + name: figure.to(torch.float32) for name, figure in batch.statistics.items()}
        for note, count in batch.notes.items():  # known of the batch, not of its images: they stand in its first row
            rows[NOTES + note] = torch.tensor([count] + [0] * (len(mine) - 1))
        self._parts.append(rows)

    def _save(self) -> None:
        fresh, self._saved, self._saved_at = self._parts[self._saved :], len(self._parts), time.monotonic()
        if fresh and self._entry is not None:
            self._entry.write_shard(join_rows(fresh))


def _gathered(team: Processes, parts: Sequence[Tensors]) -> Tensors | None:
    """All processes' rows in the order of the samples, on each of them; None where nobody has any."""
    own = join_rows(list(parts)) if parts else {}
    if team.count == 1:
        return own or None
    layouts = team.gather_json({name: [str(rows.dtype), list(rows.shape[1:])] for name, rows in own.items()})
    layout = {name: kind for other in layouts for name, kind in other.items()}
    number = len(own[POSITION]) if own else 0
    for name, (dtype, shape) in layout.items():  # zeros: notes that no image here has, or no rows at all
        own.setdefault(name, torch.zeros(number, *shape, dtype=getattr(torch, dtype.removeprefix("torch."))))
    whole = {name: team.gather_rows(own[name]) for name in sorted(layout)}
    return join_rows([whole]) if whole else None


def _moments(team: Processes, features: Tensor, known: Tensors | None) -> Tensors:
    """Mean and covariance as the first process knows them or else computes them, so that all have the same bits."""
    dimensions = features.shape[1]
    mean, covariance = (torch.empty(0, *shape, dtype=torch.float64) for shape in ((dimensions,), (dimensions,) * 2))
    if team.first and known is not None:
        mean, covariance = known["mean"][None], known["covariance"][None]
    elif team.first:
        statistics = FeatureStatistics.from_features(features)
        mean, covariance = statistics.mean[None], statistics.covariance[None]
    return {"mean": team.gather_rows(mean)[0], "covariance": team.gather_rows(covariance)[0]}


def _feature_set(
    source: "ImageSource",
    indices: Sequence[int],
    rows: Tensors,
    moments: Tensors,
    network: dict[str, Any],
    seed: int | None,
    content: str,
) -> FeatureSet:
    places = rows[POSITION].tolist()
    taken = [indices[place] for place in places]
    labels = None if source.labels is None else source.labels[torch.tensor(taken)]
    left_out = sorted(set(range(len(indices))) - set(places))
    return FeatureSet(
        FeatureStatistics.from_moments(moments["mean"], moments["covariance"], len(taken)),
        {
            **network,
            **source.describe(),
            "source": source.name,
            "count": len(taken),
            "available": len(source),
            "seed": seed,
            "notes": {
                name.removeprefix(NOTES): int(rows[name].sum()) for name in sorted(rows) if name.startswith(NOTES)
            },
            "skipped": [source.place(indices[place]) for place in left_out],
            "content_sha256": content,
        },
        features=rows["features"],
        labels=labels if labels is not None and bool((labels >= 0).any()) else None,
        class_names=source.class_names,
        predicted=rows.get("predicted"),
        logits=rows.get("logits"),
        names=tuple(source.names[index] for index in taken),
        images={name.removeprefix(_IMAGES): rows[name] for name in rows if name.startswith(_IMAGES)},
    )
