"""What is to be made: one job per seed, and what is there already."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from genflow.errors import InputError
from genflow.images import read_metadata
from genflow.pipelines.request import Draw, Request, Settings, draws

__all__ = [
    "Job",
    "Pending",
    "batches",
    "differences",
    "jobs",
    "override",
    "pending",
    "request_like",
    "share_of",
]

# Keys of an image's record that do not decide how it looks, once the model's hash is equal.
_INCIDENTAL = {"class_name", "model", "version"}


@dataclass(frozen=True)
class Job(Draw):
    """One image to be made, with its place and the record that it carries."""

    path: Path
    record: dict[str, Any]


@dataclass(frozen=True)
class Pending:
    """Jobs by what their file's state asks for; ``changed`` counts why images are made again."""

    todo: list[Job]
    kept: list[Job]
    changed: Counter[str]


def jobs(
    settings: Settings,
    seeds: Sequence[int],
    out: Path,
    labels: Sequence[int] | None = None,
    class_names: Mapping[int, str | None] | None = None,
    prompts: Sequence[str] | None = None,
) -> list[Job]:
    """One job per seed, see :func:`genflow.pipelines.request.draws`."""
    made = []
    for draw in draws(seeds, labels, prompts):
        name = class_names.get(draw.label) if class_names and draw.label is not None else None
        record = settings.record(draw.seed, draw.label, name, draw.prompt)
        made.append(Job(draw.seed, draw.label, draw.prompt, out / f"{draw.seed:06d}.png", record))
    return made


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The settings in which two records differ, as ``"steps 18 -> 30"``; incidental keys do not count."""
    keys = [key for key in {**new, **old} if key not in _INCIDENTAL and old.get(key) != new.get(key)]
    # Bytes that do not depend on the batch are as good for a request that does not ask for it.
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in keys if key != "exact" or new.get(key)]


def pending(planned: Sequence[Job]) -> Pending:
    """Sort jobs into those whose image exists with the same settings and those still to be made.

    Raises:
        InputError: an image stands at a job's place that genflow did not make; it is never written over.
    """
    state = Pending([], [], Counter())
    for job in planned:
        if not job.path.exists():
            state.todo.append(job)
            continue
        try:
            old = read_metadata(job.path)
        except InputError:
            state.changed["unreadable file"] += 1
            state.todo.append(job)
            continue
        if old is None:
            raise InputError(
                f"--out: {job.path} exists and was not made by genflow; move it away or choose another folder"
            )
        reasons = differences(old, job.record)
        if reasons:
            state.changed.update(reasons)
            state.todo.append(job)
        else:
            state.kept.append(job)
    return state


def share_of(planned: Sequence[Job], index: int, count: int) -> Sequence[Job]:
    """The jobs of process ``index`` of ``count``: every ``count``-th."""
    return planned[index::count]


def batches(todo: Sequence[Job], rows: int, exact: bool) -> Iterator[list[tuple[Job, bool]]]:
    """Cut jobs into batches of at most ``rows``; the flag says whether the row's image is wanted.

    With ``exact`` every batch has ``rows`` rows and a job stands in row ``seed % rows``.
    """
    if not exact:
        for start in range(0, len(todo), rows):
            yield [(job, True) for job in todo[start : start + rows]]
        return
    queues: list[list[Job]] = [[] for _ in range(rows)]
    for job in todo:
        queues[job.seed % rows].append(job)
    for level in range(max(map(len, queues), default=0)):
        present = [queue[level] if level < len(queue) else None for queue in queues]
        filler = next(job for job in present if job is not None)
        yield [(job or filler, job is not None) for job in present]


def request_like(path: Path) -> tuple[Request, dict[str, Any]]:
    """The request that makes the image at ``path`` again, and its whole record (seed, class, prompt, model_hash).

    Raises:
        InputError: the file is no image, or carries no record of genflow's, or one that lacks something.
    """
    record = read_metadata(path)
    if record is None:
        raise InputError(f"--like: {path} carries no genflow record; only images made by genflow generate do")
    missing = [key for key in ("model", "seed", "scheduler", "steps") if key not in record]
    if missing:
        raise InputError(f"--like: the record in {path} lacks {', '.join(missing)}")
    broken = [key for key, value in record.items() if key.endswith("_options") and not isinstance(value, dict)]
    broken += [key for key in ("seed", "steps") if not isinstance(record[key], int)]
    if broken:
        raise InputError(f"--like: the record in {path} cannot be used: {broken[0]} is {record[broken[0]]!r}")
    known = {item.name for item in fields(Request)}
    request = replace(Request(str(record["model"])), **{key: value for key, value in record.items() if key in known})
    return request, record


def override(request: Request, **given: Any) -> Request:
    """The request with what was said on the command line put over it; None, False, ``{}`` and ``auto`` are unsaid.

    Another scheduler or guidance does not inherit the options of the one it replaces.
    """
    said = {key: value for key, value in given.items() if value is not None and value is not False}
    said = {key: value for key, value in said.items() if value != {} and value != "auto"}
    for name in ("scheduler", "guidance"):
        if said.get(name, getattr(request, name)) != getattr(request, name):
            said.setdefault(f"{name}_options", {})
    return replace(request, **said)
