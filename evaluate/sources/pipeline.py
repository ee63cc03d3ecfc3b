"""Images that a pipeline makes when they are asked for; none is written."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

import genflow
from genflow.errors import check_number
from genflow.evaluate.sources.labels import renumbered
from genflow.evaluate.sources.pixels import Picture, picture_of
from genflow.evaluate.sources.source import Source
from genflow.pipelines.loading import locate
from genflow.pipelines.opening import choose_dtype, load_pipeline
from genflow.pipelines.request import Draw, Request, draws
from genflow.pipelines.runners import check_prompts, make_runner
from genflow.processes import choose_device

__all__ = ["PipelineSource"]

_LAST_SEED = 2**63 - 1  # of torch's generators


class PipelineSource(Source):
    """The images of seeds ``seed`` to ``seed + num - 1``, as ``genflow generate`` makes them: a generator an image, and
    classes (or prompts) in turn by the seed. An image depends on its own seed alone, to rounding.

    Args:
        model: a shipped name, a saved pipeline's folder, or a hub id.
        num: how many images.
        seed: the first.
        scheduler, scheduler_options, steps, guidance, guidance_scale, guidance_options, pipeline_options: how to
            sample, by default as the model says; see :class:`genflow.pipelines.request.Request`.
        prompts: texts in turn, for pipelines that take them.
        device: where the network runs; noise is drawn on the host in any case.
        dtype: of the network: ``auto`` (float32), ``float32``, ``bfloat16``, ``float16``.
        batch_size: images made at once; by default by their size.
        class_names: as of :func:`~genflow.evaluate.sources.open_source`; by default the model's own.

    Raises:
        InputError: no such model, one that needs other inputs, a setting that cannot be.
    """

    def __init__(
        self,
        model: str,
        num: int,
        *,
        seed: int = 0,
        scheduler: str | None = None,
        scheduler_options: Mapping[str, Any] | None = None,
        steps: int | None = None,
        guidance: str | None = None,
        guidance_scale: float | None = None,
        guidance_options: Mapping[str, Any] | None = None,
        pipeline_options: Mapping[str, Any] | None = None,
        prompts: Sequence[str] = (),
        device: str | torch.device = "cpu",
        dtype: str = "auto",
        batch_size: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        check_number("num", num, at_least=1, integer=True)
        check_number("seed", seed, at_least=0, at_most=_LAST_SEED - num, integer=True)
        if steps is not None:
            check_number("steps", steps, at_least=1, integer=True)
        if batch_size is not None:
            check_number("batch_size", batch_size, at_least=1, integer=True)
        place, precision = choose_device(str(device)), choose_dtype(dtype)
        folder = locate(model)
        self._runner = make_runner(load_pipeline(folder, precision, place), folder)
        self._settings = self._runner.resolve(
            Request(
                str(model),
                scheduler,
                dict(scheduler_options or {}),
                steps,
                guidance,
                guidance_scale,
                dict(guidance_options or {}),
                dict(pipeline_options or {}),
                dtype,
            )
        )
        check_prompts(self._runner, prompts)
        classes = self._runner.num_classes
        self._seeds = range(int(seed), int(seed) + int(num))
        self._draws = draws(self._seeds, range(classes) if classes else None, prompts)
        self._rows = batch_size or self._runner.batch_size
        self.name = str(model)
        self.names = tuple(f"seed {number}" for number in self._seeds)
        if classes:
            own = [self._runner.class_name(label) for label in range(classes)]
            labels = torch.tensor([draw.label for draw in self._draws])
            self.labels, self.class_names = renumbered(labels, own if None not in own else None, class_names)

    def place(self, index: int) -> str:
        return f"{self.name}, {self.names[index]}"

    def picture(self, index: int) -> Picture:
        return next(self._made([index]))

    def batches(self, indices: Sequence[int], batch_size: int) -> Iterator[list[Picture]]:
        """The images of ``indices`` in order, ``batch_size`` at a time. Raises NonFiniteError: the network gave NaN."""
        made = self._made(indices)
        while batch := list(itertools.islice(made, batch_size)):
            yield batch

    def _made(self, indices: Sequence[int]) -> Iterator[Picture]:
        for start in range(0, len(indices), self._rows):
            batch = indices[start : start + self._rows]
            images = self._runner.images([self._draws[index] for index in batch], self._settings, lambda share: None)
            for index, image in zip(batch, images, strict=True):
                yield picture_of(image, (), self.place(index))

    def describe(self) -> dict[str, Any]:
        """``{"sampling": ...}``: the model and its hash, and all settings with every default filled in."""
        settings = {key: value for key, value in asdict(self._settings).items() if key != "exact"}
        seeds = f"{self._seeds[0]}-{self._seeds[-1]}"
        prompts = sorted({draw.prompt for draw in self._draws if draw.prompt is not None})
        settings |= {"seeds": seeds, "prompts": prompts, "device": str(self._runner.pipeline.device)}
        return {"sampling": json.loads(json.dumps(settings, allow_nan=False))}

    def content_hash(self, indices: Sequence[int] | None = None) -> str:
        """SHA-256 of what decides the images: model's hash, settings, seeds, classes, prompts, genflow's version."""
        chosen: Sequence[Draw] = self._draws if indices is None else [self._draws[index] for index in indices]
        settings = {key: value for key, value in asdict(self._settings).items() if key not in ("model", "exact")}
        record = [genflow.__version__, settings, [[draw.seed, draw.label, draw.prompt] for draw in chosen]]
        return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()
