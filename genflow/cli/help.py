"""Docstrings as the text of ``--help``."""

import inspect

__all__ = ["help_text"]


def help_text(docstring: str | None) -> str:
    """A docstring with each paragraph on one line, for rich to wrap; what follows \\b keeps its lines."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(part if "\b" in part else " ".join(part.split()) for part in paragraphs)
