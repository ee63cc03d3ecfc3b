"""The work of ``genflow translate``: plan, translate, write. No parsing and no printing.

What an image becomes depends on itself, the settings and, with the SDE, a seed; not on the images beside it.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genflow import __version__
from genflow.cli.engine import Listener, Result
from genflow.cli.plan import pending, share_of
from genflow.data import ImageData, load_images
from genflow.errors import InputError, check_number
from genflow.files import fingerprint, output_folder
from genflow.images import GRID_NAME, grid, save_png, to_pil
from genflow.pipelines import TranslationPipeline, locate
from genflow.pipelines.arguments import image_tensor
from genflow.pipelines.opening import choose_dtype, load_pipeline
from genflow.pipelines.runners import batch_for
from genflow.pipelines.translation import DIRECTIONS
from genflow.processes import choose_device
from genflow.training.batches import mixed_seed

__all__ = ["Translation", "TranslationRequest", "translate"]

_GRID_IMAGES = 64
_GRID_COLUMNS = 16


@dataclass(frozen=True)
class TranslationRequest:
    """What a person asked for; None means the model's own default."""

    model: str
    source: str
    split: str = "train"
    classes: tuple[str, ...] | None = None
    count: int | None = None
    direction: str = "forward"
    steps: int | None = None
    epsilon: float | None = None
    solver: str | None = None
    resize: bool = False
    skip_bad: bool = False
    dtype: str = "auto"


@dataclass(frozen=True)
class Translation:
    """One image to be made of another: which one, by which seed, and where to."""

    index: int
    label: int | str | None
    generator_seed: int
    path: Path
    record: dict[str, Any]


def translate(
    request: TranslationRequest,
    out: Path,
    listener: Listener,
    *,
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    batch_size: int | None = None,
    with_grid: bool = True,
    process: tuple[int, int] = (0, 1),
    barrier: Callable[[], Any] = lambda: None,
) -> Result:
    """Translate the images that are not in ``out`` yet, and draw a grid of all, before above after.

    Args:
        request: the model, the images and how to translate them.
        out: the folder; images of a folder keep their names, others have their number.
        listener: told of the plan, the progress and each image.
        seeds: translations of each image; several need an epsilon above 0.
        device: ``auto`` or one of torch's.
        batch_size: images at once; None chooses by their size.
        with_grid: whether to write ``grid.png``.
        process: this process's index and their number; the images are split among them.
        barrier: waits for the other processes before the grid is drawn.

    Raises:
        InputError: anything asked for that cannot be, before any image is made.
        NonFiniteError: the network gave NaN; the message names the step.
    """
    for name, number in (("--count", request.count), ("--batch-size", batch_size), ("--steps", request.steps)):
        if number is not None:
            check_number(name, number, at_least=1, integer=True)
    place, dtype = choose_device(device), choose_dtype(request.dtype)
    folder = locate(request.model)
    pipeline = load_pipeline(folder, dtype, place)
    if not isinstance(pipeline, TranslationPipeline):
        raise InputError(
            f"--model: {request.model} makes images from noise; allowed: a model that translates, as genflow train "
            "makes of a recipe with an interpolant"
        )
    data = load_images(request.source, request.split, skip_bad=request.skip_bad, classes=request.classes)
    labels = _labels(pipeline, data, request)
    out = output_folder("--out", out)
    planned = _plan(pipeline, data, labels, request, seeds, out, fingerprint(folder))
    mine = share_of(planned, *process)
    state = pending(mine)
    rows = batch_size or batch_for(pipeline, pipeline.unet)
    _inputs(pipeline, data, [0], request)  # a size or channels that do not fit are refused before any work
    listener.planned(state, rows)
    for job in state.kept:
        listener.image(job, made=False)
    done = 0
    for batch in _batches(state.todo, rows):
        size = len(batch)
        images = _run(pipeline, data, batch, request, lambda share, n=done, k=size: listener.progress(n + share * k))
        for image, job in zip(images, batch, strict=True):
            job.path.parent.mkdir(parents=True, exist_ok=True)
            save_png(image, job.path, job.record)
            listener.image(job, made=True)
        done += size
        listener.progress(done)
    barrier()
    drawn = None
    if with_grid and process[0] == 0:
        drawn = _draw_grid(pipeline, data, planned, len(seeds), request, out)
    asked = {job.path for job in planned} | {out / GRID_NAME}
    others = sum(path not in asked for path in out.rglob("*.png") if not path.name.startswith("."))
    return Result(made=len(state.todo), kept=len(state.kept), others=others, grid=drawn)


def _labels(pipeline: TranslationPipeline, data: ImageData, request: TranslationRequest) -> list[int | str] | None:
    """A class name or number for every image, where the model has classes."""
    if pipeline.num_classes is None:
        return None
    if data.labels is not None:
        names = data.class_names
        labels = [names[label] if names else label for label in data.labels.tolist()]
    elif request.classes is not None and len(request.classes) == 1:
        labels = [int(request.classes[0]) if request.classes[0].isdecimal() else request.classes[0]] * len(data)
    else:
        raise InputError(f"SOURCE: {request.source} has no classes, and this model wants one for each image")
    for label in dict.fromkeys(labels):  # an unknown one is refused before any work
        pipeline._labels(label, request.direction, 1, torch.device("cpu"))
    return labels


def _plan(
    pipeline: TranslationPipeline,
    data: ImageData,
    labels: list[int | str] | None,
    request: TranslationRequest,
    seeds: Sequence[int],
    out: Path,
    model_hash: str,
) -> list[Translation]:
    config = pipeline.config
    epsilon = config.default_epsilon if request.epsilon is None else request.epsilon
    settings = {
        "kind": "translation",
        "model": request.model,
        "model_hash": model_hash,
        "direction": request.direction,
        "steps": request.steps or config.default_steps,
        "epsilon": epsilon,
        "solver": request.solver or config.default_solver,
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "version": __version__,
    }
    pipeline.check(request.direction, settings["steps"], settings["solver"], epsilon)
    if epsilon == 0 and len(seeds) > 1:
        raise InputError(f"--seeds: {len(seeds)}, and the ODE makes one image of each; allowed: --sde above 0")
    planned: list[Translation] = []
    places: dict[Path, str] = {}
    for index in range(min(len(data), request.count or len(data))):
        name = data.names[index] if data.names else f"{index:06d}"
        pixels = int(hashlib.sha256(data.images[index].numpy().tobytes()).hexdigest()[:16], 16)
        for seed in seeds:
            suffix = f"-{seed}" if len(seeds) > 1 else ""
            path = out / f"{PurePosixPath(name).with_suffix('')}{suffix}.png"
            if path in places or path == out / GRID_NAME:
                raise InputError(f"SOURCE: {name} and {places.get(path, 'the grid')} would both become {path}")
            places[path] = name
            label = labels[index] if labels else None
            record = {**settings, "image": name, "image_hash": f"{pixels:016x}", "class": label}
            record["seed"] = seed if epsilon > 0 else None
            planned.append(Translation(index, label, mixed_seed(seed, pixels), path, record))
    return planned


def _batches(todo: Sequence[Translation], rows: int) -> Iterator[Sequence[Translation]]:
    for start in range(0, len(todo), rows):
        yield todo[start : start + rows]


def _inputs(pipeline: TranslationPipeline, data: ImageData, places: list[int], request: TranslationRequest) -> Tensor:
    """The images at ``places`` as the network takes them, in [-1, 1]."""
    return image_tensor(data.images[places], pipeline.unet.config.in_channels, pipeline.size, request.resize)


def _run(
    pipeline: TranslationPipeline,
    data: ImageData,
    batch: Sequence[Translation],
    request: TranslationRequest,
    progress: Callable[[float], None],
) -> list[Image.Image]:
    record = batch[0].record
    return pipeline(
        latents=_inputs(pipeline, data, [job.index for job in batch], request),
        direction=record["direction"],
        num_inference_steps=record["steps"],
        epsilon=record["epsilon"],
        solver=record["solver"],
        class_labels=None if batch[0].label is None else [job.label for job in batch],
        generator=[torch.Generator().manual_seed(job.generator_seed) for job in batch],
        callback=lambda step, t, latents: progress((step + 1) / record["steps"]),
    ).images


def _draw_grid(
    pipeline: TranslationPipeline,
    data: ImageData,
    planned: Sequence[Translation],
    copies: int,
    request: TranslationRequest,
    out: Path,
) -> Path:
    """Rows of images, each above a row of its translations for every seed."""
    shown = planned[: _GRID_IMAGES * copies]
    groups = [shown[start : start + copies] for start in range(0, len(shown), copies)]
    columns = min(_GRID_COLUMNS, len(groups))
    tiles: list[Image.Image] = []
    for start in range(0, len(groups), columns):
        row = groups[start : start + columns]
        before = to_pil(_inputs(pipeline, data, [group[0].index for group in row], request))
        after = [[_open(group[copy].path) for group in row] for copy in range(copies)]
        blank = Image.new(before[0].mode, before[0].size)
        for line in (before, *after):
            tiles += [*line, *[blank] * (columns - len(line))]
    path = out / GRID_NAME
    sides = pipeline.config.sides if request.direction == DIRECTIONS[1] else pipeline.config.sides[::-1]
    record = {"kind": "grid", "from": sides[0], "to": sides[1]}
    save_png(grid(tiles, columns, zoom=max(1, 64 // max(tiles[0].size))), path, record)
    return path


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()
