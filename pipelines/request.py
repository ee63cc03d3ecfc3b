"""What pipelines are asked for, in plain values: how to sample, and each image's seed, class and text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from genflow import __version__

__all__ = ["Draw", "Request", "Settings", "draws"]


@dataclass(frozen=True)
class Request:
    """What a person asked for; None means the model's own default."""

    model: str
    scheduler: str | None = None
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    guidance: str | None = None
    guidance_scale: float | None = None
    guidance_options: dict[str, Any] = field(default_factory=dict)
    pipeline_options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    exact: bool = False


@dataclass(frozen=True)
class Settings:
    """A request with every default filled in: all that decides an image beside its seed, class and prompt."""

    model: str
    model_hash: str
    scheduler: str
    scheduler_options: dict[str, Any]
    steps: int
    guidance: str | None
    guidance_scale: float | None
    guidance_options: dict[str, Any]
    pipeline_options: dict[str, Any]
    dtype: str
    exact: bool

    def record(self, seed: int, label: int | None, class_name: str | None, prompt: str | None) -> dict[str, Any]:
        """The JSON record that an image carries, from which it can be made again."""
        record = {item.name: getattr(self, item.name) for item in fields(self)}
        record |= {"seed": seed, "class": label, "class_name": class_name, "version": __version__}
        if prompt is not None:
            record["prompt"] = prompt
        return json.loads(json.dumps(record, allow_nan=False))  # as a reader will see it: lists, not tuples


@dataclass(frozen=True)
class Draw:
    """One image to be made."""

    seed: int
    label: int | None
    prompt: str | None


def draws(
    seeds: Sequence[int], labels: Sequence[int] | None = None, prompts: Sequence[str] | None = None
) -> list[Draw]:
    """One a seed; classes and prompts go by the seed, in turn, so that an image depends on its seed alone."""
    return [
        Draw(
            seed,
            labels[seed % len(labels)] if labels else None,
            prompts[seed % len(prompts)] if prompts else None,
        )
        for seed in seeds
    ]
