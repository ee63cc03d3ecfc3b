"""``genflow evaluate``: score a set of images against a reference."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["evaluate"]


def evaluate(
    samples: Annotated[Path, typer.Argument(help="A folder of images, or an .npz or .npy of them.")],
    reference: Annotated[str, typer.Option("--reference", help="What to compare with.")] = "fashion-mnist",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here too, as JSON.")] = None,
) -> None:
    """Score images."""
