"""Schedulers and guidances side by side: the same seeds in every cell of a table, judged against one long run.

No parsing, no printing and no arithmetic: cells are planned and refused before any work, sampled by the runner that
``genflow generate`` uses, and handed to :mod:`genflow.metrics`.
"""

import functools
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genflow import __version__
from genflow.cli.engine import class_labels
from genflow.cli.parsing import format_seeds
from genflow.cli.plan import Job, jobs
from genflow.errors import InputError, NonFiniteError, check_number
from genflow.evaluate.cache import cached_tensors
from genflow.evaluate.reference import Reference, load_reference
from genflow.images import to_pil
from genflow.metrics import (
    SD_LATENT_MEAN,
    SD_LATENT_STD,
    FeatureStatistics,
    channel_statistics,
    colourfulness,
    contrast,
    frechet_distance_from_statistics,
    magnitude_score,
    rms_distance,
    saturation,
)
from genflow.options import Entry
from genflow.pipelines import locate
from genflow.pipelines.opening import choose_dtype, load_pipeline
from genflow.pipelines.request import Request, Settings
from genflow.pipelines.runners import Runner, check_prompts, make_runner
from genflow.processes import choose_device
from genflow.schedulers import count_evaluations, steps_within

__all__ = ["Cell", "Comparison", "Listener", "Outcome", "compare"]

_SD_SCALE = 0.18215  # the scaling_factor of the VAE whose latents the published constants are of


@dataclass(frozen=True)
class Comparison:
    """What is to be compared. ``steps`` or ``evaluations`` are the columns, the other is empty."""

    model: str
    schedulers: Sequence[Entry]
    seeds: Sequence[int]
    steps: Sequence[int] = ()
    evaluations: Sequence[int] = ()
    guidances: Sequence[Entry | None] = (None,)
    """None is the model's own guidance."""
    guidance_scale: float | None = None
    """Of the guidances that have no ``scale`` among their options."""
    classes: str | None = None
    prompts: Sequence[str] = ()
    pipeline_options: dict[str, Any] = field(default_factory=dict)
    reference: Entry | None = None
    """Scheduler of the long run; None for no distances."""
    reference_steps: int = 1000
    fd_samples: int = 0
    fd_reference: str = "fashion-mnist"
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None


@dataclass
class Cell:
    """One scheduler with one guidance at one number of steps: how it is run, then what came of it."""

    scheduler: str
    guidance: str
    column: int
    settings: Settings
    instance: Any
    evaluations: int
    images: list[Image.Image] = field(default_factory=list)
    figures: dict[str, float | str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """``cells`` in rows by guidance, then scheduler; the long run's images by guidance; the protocol, safe for JSON."""

    cells: list[Cell]
    references: dict[str, list[Image.Image]]
    protocol: dict[str, Any]


class Listener(Protocol):
    """Told what happens."""

    def begins(self, work: int) -> None:
        """Before the first image: how much there is to do, in images times evaluations."""

    def advance(self, work: float) -> None:
        """So much more of it is done."""


@dataclass(frozen=True)
class _Run:
    """What one cell gave for some jobs."""

    images: list[Image.Image]
    latents: Tensor | None
    seconds: float


@contextmanager
def _last_sample(scheduler: Any) -> Iterator[list[Tensor]]:
    """Yield a list that holds, after the run, the sample of the scheduler's last step."""
    step = scheduler.step
    held: list[Tensor] = []

    @functools.wraps(step)
    def watched(*arguments: Any, **options: Any) -> Any:
        output = step(*arguments, **options)
        held[:] = [output[0]]
        return output

    scheduler.step = watched  # on this instance only
    try:
        yield held
    finally:
        vars(scheduler).pop("step", None)


class _Sampler:
    """Runs cells through the runner, batch by batch."""

    def __init__(self, runner: Runner, rows: int, listener: Listener) -> None:
        self._runner, self._rows, self._listener = runner, rows, listener

    def __call__(self, cell: Cell, todo: Sequence[Job]) -> _Run:
        images, latents, seconds = [], [], 0.0
        for start in range(0, len(todo), self._rows):
            batch = todo[start : start + self._rows]
            self._runner.pipeline.scheduler = cell.instance
            done = 0.0

            def progress(share: float, size: int = len(batch)) -> None:
                nonlocal done
                self._listener.advance((share - done) * size * cell.evaluations)
                done = share

            with _last_sample(cell.instance) as held:
                begun = time.perf_counter()
                images += self._runner.images(batch, cell.settings, progress)
                seconds += time.perf_counter() - begun
            latents += [tensor.detach().float().cpu() for tensor in held]
        whole = torch.cat(latents) if latents and sum(map(len, latents)) == len(todo) else None
        return _Run(images, whole, seconds)


def compare(wanted: Comparison, out: Path, listener: Listener) -> Outcome:
    """Sample every cell and judge it; ``out`` (which exists) keeps the long runs, for the next time.

    Raises:
        InputError: anything asked for that cannot be, before any image is made.
        NonFiniteError: the network gave NaN in the long run; in a cell it stands among the figures as ``error``.
    """
    _check(wanted)
    place, dtype = choose_device(wanted.device), choose_dtype(wanted.dtype)
    judge = load_reference(wanted.fd_reference, device=place) if wanted.fd_samples else None
    folder = locate(wanted.model)
    runner = make_runner(load_pipeline(folder, dtype, place), folder)
    labels = class_labels(runner, wanted.classes)
    check_prompts(runner, wanted.prompts)
    cells, long_runs = _plan(runner, wanted)

    def todo(cell: Cell, seeds: Sequence[int]) -> list[Job]:
        return jobs(cell.settings, seeds, out, labels, None, wanted.prompts)

    rows = wanted.batch_size or runner.batch_size
    sampler = _Sampler(runner, rows, listener)
    work = sum(cell.evaluations * (len(wanted.seeds) + wanted.fd_samples) for cell in cells)
    work += sum(cell.evaluations * len(wanted.seeds) for cell in long_runs.values())
    first = min(cells, key=lambda cell: cell.evaluations)
    listener.begins(work + first.evaluations)
    with suppress(NonFiniteError):  # it will be met again where it counts
        _check_features(judge, sampler(first, todo(first, wanted.seeds[:1])))  # which also warms up

    solutions = {
        guidance: _solution(cell, todo(cell, wanted.seeds), sampler, out) for guidance, cell in long_runs.items()
    }
    for cell in cells:
        try:
            made = sampler(cell, todo(cell, wanted.seeds))
            cell.images = made.images
            batches = math.ceil(len(wanted.seeds) / rows)
            cell.figures["ms_per_step"] = 1000 * made.seconds / (batches * cell.settings.steps)
            cell.figures |= _figures(made, solutions.get(cell.guidance), runner.pipeline)
            if judge is not None:
                cell.figures["fd"] = _fd(sampler(cell, todo(cell, range(wanted.fd_samples))).images, judge)
        except NonFiniteError as error:
            cell.figures["error"] = str(error)
    references = {guidance: to_pil(tensors["images"]) for guidance, tensors in solutions.items()}
    return Outcome(cells, references, _protocol(wanted, runner, labels, rows, judge))


def _check(wanted: Comparison) -> None:
    if bool(wanted.steps) == bool(wanted.evaluations):
        raise InputError("--steps and --evaluations: give one of them")
    for argument, numbers in (("--steps", wanted.steps), ("--evaluations", wanted.evaluations)):
        for number in numbers:
            check_number(argument, number, at_least=1, at_most=100_000, integer=True)
    check_number("--reference-steps", wanted.reference_steps, at_least=1, at_most=100_000, integer=True)
    if wanted.fd_samples:
        check_number("--fd", wanted.fd_samples, at_least=2, integer=True)
    if wanted.batch_size is not None:
        check_number("--batch-size", wanted.batch_size, at_least=1, integer=True)


def _plan(runner: Runner, wanted: Comparison) -> tuple[list[Cell], dict[str, Cell]]:
    """Every cell, and the long run of each guidance; each with a scheduler of its own, made from the model's."""
    own = runner.pipeline.scheduler

    def cell(scheduler: Entry, guidance: Entry | None, steps: int | None, evaluations: int | None = None) -> Cell:
        options = dict(guidance.options) if guidance else {}
        request = Request(
            wanted.model,
            scheduler=scheduler.name,
            scheduler_options=scheduler.options,
            steps=steps,
            guidance=guidance.name if guidance else None,
            guidance_scale=options.pop("scale", wanted.guidance_scale),
            guidance_options=options,
            pipeline_options=wanted.pipeline_options,
            dtype=wanted.dtype,
        )
        runner.pipeline.scheduler = own
        try:
            settings = runner.resolve(request)
            made = runner.pipeline.scheduler
            if evaluations is not None:
                settings = replace(settings, steps=steps_within(made, evaluations))
            count = count_evaluations(made, settings.steps)
        except InputError as error:
            raise InputError(f"{scheduler.text}: {error}") from error
        finally:
            runner.pipeline.scheduler = own
        name = guidance.text if guidance else settings.guidance or ""
        if settings.guidance_scale is not None and not (guidance and "scale" in guidance.options):
            name += f" {settings.guidance_scale:g}"
        column = settings.steps if evaluations is None else evaluations
        return Cell(scheduler.text, name, column, settings, made, count)

    cells, long_runs = [], {}
    for guidance in wanted.guidances:
        for scheduler in wanted.schedulers:
            cells += [cell(scheduler, guidance, steps) for steps in wanted.steps]
            cells += [cell(scheduler, guidance, None, count) for count in wanted.evaluations]
        if wanted.reference is not None:
            long_run = cell(wanted.reference, guidance, wanted.reference_steps)
            long_runs[long_run.guidance] = long_run
    return cells, long_runs


def _solution(cell: Cell, todo: Sequence[Job], sampler: _Sampler, out: Path) -> dict[str, Tensor]:
    """Latents and images of the long run, from ``out`` where it keeps them."""
    record = {"jobs": [job.record for job in todo], "evaluations": cell.evaluations}

    def make() -> dict[str, Tensor]:
        made = sampler(cell, todo)
        tensors = {"images": _tensor(made.images)}
        return tensors if made.latents is None else {**tensors, "latents": made.latents}

    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]
    return cached_tensors(out / f"reference-{digest}.safetensors", record, make)


def _bytes(images: Sequence[Image.Image]) -> Tensor:
    """uint8 ``(N, C, H, W)``."""
    arrays = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return arrays.unsqueeze(1) if arrays.ndim == 3 else arrays.permute(0, 3, 1, 2).contiguous()


def _tensor(images: Sequence[Image.Image]) -> Tensor:
    """float ``(N, C, H, W)`` in [-1, 1]."""
    return _bytes(images).float() / 127.5 - 1


def _figures(made: _Run, solution: dict[str, Tensor] | None, pipeline: Any) -> dict[str, float | None]:
    """Means over the images; None where a figure does not apply."""
    images = _tensor(made.images)
    if images.shape[1] == 4:
        images = images[:, :3]
    figures: dict[str, float | None] = {"distance": None, "magnitude": None}
    if solution is not None:
        both = made.latents is not None and "latents" in solution
        pair = (made.latents, solution["latents"]) if both else (_tensor(made.images), solution["images"])
        figures["distance"] = float(rms_distance(*pair).mean())
    normal = _normal(made.latents, solution, pipeline)
    if normal is not None:
        figures["magnitude"] = float(magnitude_score(made.latents, *normal).mean())
    for name, figure in (("saturation", saturation), ("contrast", contrast), ("colourfulness", colourfulness)):
        figures[name] = float(figure(images).mean())
    return {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}


def _normal(latents: Tensor | None, solution: dict[str, Tensor] | None, pipeline: Any) -> Any:
    """Mean and deviation by which the magnitude score judges: Stable Diffusion's, else those of the long run."""
    if latents is None or latents.ndim != 4:
        return None
    if _has_sd_latents(pipeline):
        return SD_LATENT_MEAN, SD_LATENT_STD
    return None if solution is None or "latents" not in solution else channel_statistics(solution["latents"])


def _has_sd_latents(pipeline: Any) -> bool:
    config = getattr(getattr(pipeline, "vae", None), "config", {})
    return (config.get("latent_channels"), config.get("scaling_factor")) == (len(SD_LATENT_MEAN), _SD_SCALE)


def _check_features(judge: Reference | None, made: _Run) -> None:
    if judge is not None and tuple(_bytes(made.images).shape[1:]) != judge.extractor.image_shape:
        shape = "x".join(map(str, _bytes(made.images).shape[1:]))
        allowed = "x".join(map(str, judge.extractor.image_shape))
        raise InputError(f"--fd: the model makes {shape} images; the reference {judge.name} judges {allowed}")


def _fd(images: Sequence[Image.Image], judge: Reference) -> float:
    statistics = FeatureStatistics.from_features(judge.extractor(_bytes(images)).values)
    return frechet_distance_from_statistics(statistics, judge.statistics)


def _protocol(
    wanted: Comparison, runner: Runner, labels: Sequence[int] | None, rows: int, judge: Reference | None
) -> dict[str, Any]:
    """Everything that the figures depend on."""
    normal = "Stable Diffusion's constants" if _has_sd_latents(runner.pipeline) else "the reference run's channels"
    return {
        "model": wanted.model,
        "model_hash": runner.model_hash,
        "seeds": format_seeds(wanted.seeds),
        "classes": labels,
        "prompts": list(wanted.prompts),
        "pipeline_options": wanted.pipeline_options,
        "columns": "steps" if wanted.steps else "evaluations",
        "reference": wanted.reference.text if wanted.reference else None,
        "reference_steps": wanted.reference_steps if wanted.reference else None,
        "distance": "root mean square over latents (pixels where there are none), mean over images",
        "magnitude": f"tau 3, cells of 4x4, normalised by {normal}",
        "evaluation": "one call of the scheduler's step; both halves of guidance count once",
        "fd_samples": wanted.fd_samples,
        "fd_reference": judge.name if judge else None,
        "fd_features_sha256": judge.extractor.sha256 if judge else None,
        "batch_size": rows,
        "dtype": str(runner.pipeline.dtype).removeprefix("torch."),
        "device": str(runner.pipeline.device),
        "threads": torch.get_num_threads(),
        "genflow": __version__,
        "torch": str(torch.__version__),
    }
