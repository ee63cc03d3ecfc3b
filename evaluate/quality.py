"""Quality per network evaluation: each scheduler of genflow's and of diffusers' on the shipped Fashion-MNIST model.

``python -m genflow.evaluate.quality`` samples the same seeds with every scheduler at every number of evaluations and
gives, for each, the Frechet distance to the test images and the distance from the solution of the same equation in
1,000 steps. One line a scheduler and count goes to a JSONL file as soon as it is measured; a run that was stopped
goes on from there.

What is held equal: the network (float32, so that differences are the solver's and not rounding), the seeds, the
classes in turn, the guidance, and the grid: n equal steps of the flow's sigma from 1 to 0. FlowMatchEuler and UniPC
are given that grid's sigmas, FlowMatchHeun its last sigma; DPM-Solver++ and DEIS take no sigmas and have the same grid
scaled by 0.999 (DEIS, in diffusers 0.42, stops at its last sigma, 1/n, and leaves that much noise). A scheduler that
asks the network several times a step takes as many steps as fit into the count.
"""

import inspect
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers.utils import logging
from torch import Tensor

import genflow
from genflow.errors import InputError, NonFiniteError, check_number
from genflow.evaluate.cache import cached_tensors
from genflow.evaluate.console import progress_bar, run
from genflow.evaluate.quality_report import draw, markdown, summary
from genflow.evaluate.reference import Reference, load_reference
from genflow.files import check_output_files, fingerprint, write_json
from genflow.images import to_uint8
from genflow.metrics.distance import rms_distance
from genflow.metrics.frechet import frechet_distance_from_statistics
from genflow.metrics.statistics import FeatureStatistics
from genflow.options import Entry, parse_entries, parse_entry
from genflow.pipelines import ImagePipeline, locate
from genflow.schedulers import PathScheduler, count_evaluations, create_scheduler, steps_within

__all__ = ["COUNTS", "OURS", "PEERS", "Protocol", "measure"]

COUNTS = (4, 6, 8, 10, 15, 20)
OURS = (
    "euler",
    "heun",
    "rk4",
    "ab:order=2",
    "ab:order=3",
    "ab:order=4",
    "abm",
    "dpm++",
    "hb",
    "ghvb",
    "ghvb:order=2.7",
    "ghvb:order=3.7",
    "ghvb:order=2.7:frame=denoised",
)
PEERS = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "UniPCMultistepScheduler:solver_order=3",
    "DEISMultistepScheduler",
    "DEISMultistepScheduler:solver_order=3",
)
"""diffusers' own, with the options they have by default or, for the last of two, the higher order they offer."""

_BATCH = 256


@dataclass(frozen=True)
class Protocol:
    """What the figures depend on beside scheduler and count; rows of another protocol in the file are left alone."""

    model: str
    model_hash: str
    samples: int
    compared: int
    """Seeds 0 to compared - 1 are those whose distance to the solution is taken."""
    guidance_scale: float
    solution: str
    solution_steps: int
    features: str
    features_sha256: str
    dtype: str = "float32"
    grid: str = "n equal steps of sigma from 1 to 0"


def _sample(
    pipeline: ImagePipeline,
    scheduler: Any,
    steps: int,
    seeds: Sequence[int],
    scale: float,
    progress: Callable[[int], None],
) -> Tensor:
    """Images ``(N, C, H, W)`` of these seeds, not clamped; ``progress`` is told of images times evaluations."""
    pipeline.scheduler = scheduler
    options: dict[str, Any] = {"num_inference_steps": steps}
    if not isinstance(scheduler, PathScheduler):
        if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
            options["sigmas"] = np.linspace(1, 1 / steps, steps)
        elif hasattr(scheduler, "sigma_min"):  # FlowMatchHeun: from here it lays its grid
            scheduler.sigma_min = 1 / steps
    batches = []
    for start in range(0, len(seeds), _BATCH):
        batch = seeds[start : start + _BATCH]

        def after(pipe: Any, i: int, timestep: Any, state: dict[str, Any], size: int = len(batch)) -> dict[str, Any]:
            progress(size)
            return state

        generators = [torch.Generator().manual_seed(seed) for seed in batch]
        labels = [seed % pipeline.num_classes for seed in batch] if pipeline.num_classes else None
        made = pipeline(
            class_labels=labels,
            guidance_scale=scale,
            generator=generators,
            output_type="latent",
            callback_on_step_end=after,
            **options,
        )
        batches.append(made.images)
    return torch.cat(batches)


def _pipeline(model: str, reference: Reference) -> ImagePipeline:
    pipeline = ImagePipeline.from_pretrained(model)
    shape = (pipeline.unet.config.in_channels, *[pipeline.unet.config.sample_size] * 2)
    if pipeline.vae is not None or shape != reference.extractor.image_shape:
        raise InputError(f"--model: {model!r} makes no images of {reference.extractor.image_shape}, which are judged")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    return pipeline


def _kept(file: Path, protocol: Protocol) -> list[dict[str, Any]]:
    """The file's rows of this protocol. A last line that was cut short counts for nothing."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("protocol") == asdict(protocol):
            rows.append(row)
    return rows


def _append(file: Path, row: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cut = file.is_file() and file.stat().st_size and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as out:
        out.write(("\n" if cut else "") + json.dumps(row, allow_nan=False) + "\n")


def measure(
    file: Path,
    schedulers: Sequence[Entry],
    counts: Sequence[int],
    *,
    model: str = "fashion-mnist",
    samples: int = 1024,
    compared: int = 256,
    guidance_scale: float = 1.0,
    solution: str = "ab:order=4",
    solution_steps: int = 1000,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Measure what ``file`` does not hold yet, and return the rows asked for.

    Args:
        file: JSONL; a row is added for each scheduler and count. Its neighbour ``*-solution.safetensors`` keeps the
            solution.
        schedulers: names and options for ``create_scheduler``.
        counts: network evaluations; each scheduler takes the most steps that fit.
        model: a pipeline in pixels whose images the ``fashion-mnist`` reference can judge.
        samples: images a row for the Frechet distance, seeds 0 to samples - 1.
        compared: of those the first so many are compared with the solution.
        guidance_scale: 1 is none.
        solution, solution_steps: scheduler and steps of the solution.
        progress: show a bar on stderr.

    Returns:
        Rows with ``scheduler``, ``count``, ``evaluations``, ``steps``, ``fd``, ``distance``, ``seconds``, ``ours`` and
        ``protocol``; in the order of ``schedulers``, then ``counts``. A network that gave NaN leaves ``error`` there
        in place of the figures.

    Raises:
        InputError: an unknown scheduler, a count that one cannot take, before anything is sampled.
    """
    check_number("--samples", samples, at_least=2, integer=True)
    check_number("--compared", compared, at_least=1, at_most=samples, integer=True)
    check_number("--guidance-scale", guidance_scale)
    reference = load_reference("fashion-mnist")
    pipeline = _pipeline(model, reference)
    config = pipeline.scheduler.config

    def make(entry: Entry) -> Any:
        return create_scheduler(entry.name, config, **entry.options)

    protocol = Protocol(
        model=model,
        model_hash=fingerprint(locate(model)),
        samples=samples,
        compared=compared,
        guidance_scale=guidance_scale,
        solution=solution,
        solution_steps=solution_steps,
        features=reference.extractor.name,
        features_sha256=reference.extractor.sha256,
    )
    kept = {(row["scheduler"], row["count"]): row for row in _kept(file, protocol)}
    solver = parse_entry("--solution", solution)
    todo = []
    for entry in schedulers:
        for count in counts:
            steps = steps_within(make(entry), count)  # refuses before any work
            if (entry.text, count) not in kept:
                todo.append((entry, count, steps))
    work = sum(samples * count_evaluations(make(entry), steps) for entry, _, steps in todo)
    work += compared * count_evaluations(make(solver), solution_steps)
    with progress_bar(f"{len(todo)} of {len(schedulers) * len(counts)} rows", work, progress) as advance:
        record = {**asdict(protocol), "samples": None}

        def solve() -> dict[str, Tensor]:
            images = _sample(pipeline, make(solver), solution_steps, range(compared), guidance_scale, advance)
            return {"images": images}

        exact = cached_tensors(file.with_name(f"{file.stem}-solution.safetensors"), record, solve)["images"]
        for entry, count, steps in todo:
            scheduler = make(entry)
            row = {
                "scheduler": entry.text,
                "count": count,
                "steps": steps,
                "evaluations": count_evaluations(scheduler, steps),
                "ours": isinstance(scheduler, PathScheduler),
            }
            begun = time.perf_counter()
            try:
                images = _sample(pipeline, scheduler, steps, range(samples), guidance_scale, advance)
                row["seconds"] = round(time.perf_counter() - begun, 3)
                row |= _figures(images, exact, reference)
            except NonFiniteError as error:
                row["error"] = str(error)
            kept[entry.text, count] = row = {**row, "protocol": asdict(protocol), "genflow": genflow.__version__}
            _append(file, row)
    return [kept[entry.text, count] for entry in schedulers for count in counts]


def _figures(images: Tensor, exact: Tensor, reference: Reference) -> dict[str, float]:
    distance = rms_distance(images[: len(exact)], exact)
    pixels = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2)
    statistics = FeatureStatistics.from_features(reference.extractor(pixels).values)
    return {
        "fd": frechet_distance_from_statistics(statistics, reference.statistics),
        "distance": float(distance.mean()),
        "distance_largest": float(distance.max()),
    }


def main(
    schedulers: Annotated[
        str | None,
        typer.Option(help="name[:key=value...], separated by commas, in the place of the whole list.", metavar="LIST"),
    ] = None,
    counts: Annotated[str, typer.Option(help="Network evaluations.", metavar="LIST")] = ",".join(map(str, COUNTS)),
    samples: Annotated[int, typer.Option(help="Images a row for the Frechet distance.")] = 1024,
    compared: Annotated[int, typer.Option(help="Of those, how many are compared with the solution.")] = 256,
    guidance_scale: Annotated[float, typer.Option(help="CFG's; 1 is none.")] = 1.0,
    solution: Annotated[str, typer.Option(help="Scheduler of the solution, with options.")] = "ab:order=4",
    solution_steps: Annotated[int, typer.Option(help="Its steps.")] = 1000,
    model: Annotated[str, typer.Option(help="A pipeline of 28x28 grey images.")] = "fashion-mnist",
    file: Annotated[
        Path, typer.Option("--rows", help="JSONL file to add rows to; delete it after a change of the schedulers.")
    ] = Path("runs/quality.jsonl"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write rows and comparison here.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the figure here.")] = None,
) -> None:
    """Measure quality per network evaluation of genflow's and diffusers' schedulers; print tables in markdown."""
    check_output_files(json=json_file, plot=plot)
    logging.set_verbosity_error()  # diffusers' remarks on config keys that only other schedulers know
    logging.disable_progress_bar()
    entries = parse_entries("--schedulers", ",".join([*OURS, *PEERS]) if schedulers is None else schedulers)
    try:
        numbers = [int(part) for part in counts.split(",")]
    except ValueError:
        raise InputError(f"--counts: {counts!r}; allowed: integers separated by commas") from None
    rows = measure(
        file,
        entries,
        numbers,
        model=model,
        samples=samples,
        compared=min(compared, samples),
        guidance_scale=guidance_scale,
        solution=solution,
        solution_steps=solution_steps,
    )
    result = summary(rows)
    print(markdown(result))
    if json_file is not None:
        write_json(json_file, result)
    if plot is not None:
        draw(result, plot)


if __name__ == "__main__":
    run(main)
