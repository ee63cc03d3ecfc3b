"""The way from a plan to files: load, plan, batch, make, write. No parsing and no printing.

An image depends on its own seed alone, to rounding: sums inside a network come out differently in the last bits
when the batch has another shape. With ``exact`` every batch has one fixed shape and each seed one fixed row in it
(``seed mod rows``), rows without a job being filled with a copy of another; then the bytes do not depend on which
seeds are made together, nor on ``batch_size``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from genflow.cli.parsing import format_seeds, parse_classes
from genflow.cli.plan import Job, Pending, batches, jobs, pending, share_of
from genflow.errors import InputError, check_number
from genflow.files import output_folder
from genflow.images import GRID_NAME, grid, save_png
from genflow.pipelines import locate
from genflow.pipelines.opening import choose_dtype, load_pipeline
from genflow.pipelines.request import Request
from genflow.pipelines.runners import Runner, check_prompts, make_runner
from genflow.processes import choose_device

__all__ = ["Listener", "Result", "class_labels", "generate"]

_GRID_IMAGES = 256  # more would be a poster
_GRID_COLUMNS = 16  # up to so many classes in turn stand one in a column
_EXACT_ROWS = 16


class Listener(Protocol):
    """Told what happens, in the process where it happens."""

    def planned(self, state: Pending, rows: int) -> None:
        """Before the first image: what is there, what is to be made here, how many a batch."""

    def progress(self, images: float) -> None:
        """How many images' worth of steps are done, of those to be made here."""

    def image(self, job: Job, made: bool) -> None:
        """An image stands at its place, made now or kept."""


@dataclass(frozen=True)
class Result:
    """What one process did."""

    made: int
    kept: int
    others: int
    """PNG files in the folder that this request did not ask for."""
    grid: Path | None


def class_labels(runner: Runner, text: str | None) -> list[int] | None:
    """The class numbers that ``--classes`` names, all by default; None where the model knows no classes."""
    if not runner.num_classes:
        if text is not None:
            raise InputError("--classes: this model knows no classes")
        return None
    return parse_classes(text or "all", runner.num_classes, runner.class_numbers)


def generate(
    request: Request,
    seeds: Sequence[int],
    out: Path,
    listener: Listener,
    *,
    classes: str | None = None,
    prompts: Sequence[str] = (),
    device: str = "auto",
    batch_size: int | None = None,
    with_grid: bool = True,
    process: tuple[int, int] = (0, 1),
    barrier: Callable[[], Any] = lambda: None,
    expected_hash: str | None = None,
) -> Result:
    """Make the images that are not in ``out`` yet, and a grid of all.

    Args:
        request: the model and how to sample it.
        seeds: one image each.
        out: the folder; image ``seed`` is ``{seed:06d}.png``.
        listener: told of the plan, the progress and each image.
        classes: names and numbers in turn, as ``parse_classes`` reads them; None is all classes in turn.
        prompts: texts in turn, for pipelines that take them.
        device: ``auto`` or one of torch's.
        batch_size: images at once; None chooses by their size. ``exact`` takes its own fixed number.
        with_grid: whether to write ``grid.png``.
        process: this process's index and their number; the seeds are split among them.
        barrier: waits for the other processes before the grid is drawn.
        expected_hash: the hash of the model that an image to be made again came from.

    Raises:
        InputError: anything asked for that cannot be, before any image is made.
        NonFiniteError: the network gave NaN; the message names the step.
    """
    if request.steps is not None:
        check_number("--steps", request.steps, at_least=1, integer=True)
    if batch_size is not None:
        check_number("--batch-size", batch_size, at_least=1, integer=True)
    index, count = process
    place, dtype = choose_device(device), choose_dtype(request.dtype)
    out = output_folder("--out", out)
    folder = locate(request.model)
    runner = make_runner(load_pipeline(folder, dtype, place), folder)
    if expected_hash is not None and expected_hash != runner.model_hash:
        raise InputError(
            f"--like: the model {request.model!r} is not the one that made the image (now {runner.model_hash}, "
            f"then {expected_hash}); name the right one, or this one on purpose, with --model"
        )
    settings = runner.resolve(request)
    labels = class_labels(runner, classes)
    check_prompts(runner, prompts)
    names = {label: runner.class_name(label) for label in labels or ()}
    planned = jobs(settings, seeds, out, labels, names, prompts)
    mine = share_of(planned, index, count)
    state = pending(mine)
    rows = min(_EXACT_ROWS, runner.batch_size) if request.exact else batch_size or runner.batch_size
    listener.planned(state, rows)

    sheet: dict[int, Image.Image] = {}
    shown = {job.seed for job in planned[:_GRID_IMAGES]} if with_grid and count == 1 else set()
    for job in state.kept:
        listener.image(job, made=False)
    done = 0
    for batch in batches(state.todo, rows, request.exact):
        wanted = sum(flag for _, flag in batch)
        images = runner.images(
            [job for job, _ in batch],
            settings,
            lambda share, start=done, size=wanted: listener.progress(start + share * size),
        )
        for (job, flag), image in zip(batch, images, strict=True):
            if flag:
                _save(image, job)
                listener.image(job, made=True)
                if job.seed in shown:
                    sheet[job.seed] = image
        done += wanted
        listener.progress(done)
    barrier()
    with_grid = with_grid and len(planned) > 1 and index == 0
    columns = len(labels) if labels and len(labels) <= _GRID_COLUMNS and len(planned) > len(labels) else None
    drawn = _draw_grid(planned[:_GRID_IMAGES], sheet, out, columns) if with_grid else None
    asked = {job.path.name for job in planned} | {GRID_NAME}
    others = sum(path.name not in asked for path in out.glob("*.png") if not path.name.startswith("."))
    return Result(made=len(state.todo), kept=len(state.kept), others=others, grid=drawn)


def _save(image: Image.Image, job: Job) -> None:
    try:
        save_png(image, job.path, job.record)
    except OSError as error:  # pillow's errors do not say which file
        raise OSError(error.errno, error.strerror or str(error), str(job.path)) from error


def _draw_grid(planned: Sequence[Job], sheet: dict[int, Image.Image], out: Path, columns: int | None) -> Path:
    """Lay the images out in the order of the seeds asked for; those kept are read back."""
    tiles = []
    for job in planned:
        tile = sheet.get(job.seed)
        if tile is None:
            with Image.open(job.path) as image:
                tile = image.copy()
        tiles.append(tile)
    zoom = max(1, 64 // max(tiles[0].size))  # small pictures are shown at up to 64 pixels
    path = out / GRID_NAME
    save_png(
        grid(tiles, columns, zoom=zoom), path, {"kind": "grid", "seeds": format_seeds(job.seed for job in planned)}
    )
    return path
