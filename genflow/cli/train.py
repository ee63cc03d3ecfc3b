"""``genflow train``: train a model from a recipe."""

from typing import Annotated

import typer

__all__ = ["train"]


def train(recipe: Annotated[str, typer.Argument(help="A shipped recipe's name or a YAML file.")]) -> None:
    """Train a model."""
