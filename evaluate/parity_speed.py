"""Whole folders, ours against clean-fid and pytorch-fid: from files to the distance, the same network, turn about."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from genflow.evaluate import parity_tools as tools
from genflow.evaluate.parity_inputs import SETS, WEIGHTS, make_folder, make_weights
from genflow.evaluate.timing import best_times

__all__ = ["measure", "our_run", "print_speed"]

_IMAGES = "256x256 jpeg"  # decoding and resizing are at work too


def our_run(real: Path, generated: Path, weights: Path, resize: str, batch_size: int | None = None) -> dict[str, Any]:
    """``genflow evaluate GENERATED --reference REAL --features inception --metrics fid``, nothing kept or taken from
    caches."""
    from genflow.evaluate import evaluate

    return evaluate(
        generated,
        real,
        features="inception",
        weights=weights / WEIGHTS,
        resize=resize,
        metrics=["fid"],
        batch_size=batch_size,
        cache=False,
    )


def measure(home: Path, count: int = 96, repeats: int = 2) -> list[dict[str, Any]]:
    """Images a second of ``2 * count`` images from two folders to one FID, best of ``repeats``; and what of it is left
    without the distance, which costs the tools more than ours.

    The tools get as many workers as there are threads, pytorch-fid its own default batch of 50 and clean-fid its 32.
    """
    weights = make_weights(home / "weights")
    kind = replace(next(images for images in SETS if images.name == _IMAGES), count=count)
    folder = home / "images" / f"{kind.key}-{count}"
    paths = [make_folder(folder / ("b" if shifted else "a"), kind, shifted=shifted) for shifted in (False, True)]
    workers = torch.get_num_threads()
    works: dict[str, Callable[[], Any]] = {
        "ours, clean": lambda: our_run(*paths, weights, "clean"),
        "clean-fid, clean": lambda: tools.clean_fid(*paths, weights, mode="clean", workers=workers),
        "ours, legacy-pytorch": lambda: our_run(*paths, weights, "legacy-pytorch"),
        "pytorch-fid": lambda: tools.pytorch_fid(*paths, weights, batch_size=50, workers=workers),
    }
    best = dict(zip(works, best_times(list(works.values()), repeats), strict=True))
    rate = {name: 2 * count / seconds for name, seconds in best.items()}
    pairs = (("ours, clean", "clean-fid, clean"), ("ours, legacy-pytorch", "pytorch-fid"))
    return [
        {
            "what": f"two folders of {count} images {_IMAGES} to one FID",
            "ours_name": ours,
            "peer_name": peer,
            "ours": rate[ours],
            "peer": rate[peer],
            "ratio": rate[ours] / rate[peer],
            "unit": "images/s",
            "better": "higher",
            "threads": workers,
        }
        for ours, peer in pairs
    ]


def print_speed(rows: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """A table of :func:`measure`'s rows."""
    table = Table(title="whole folders, images/s (higher is better)")
    for column in ("what", "ours", "peer", "ratio"):
        table.add_column(column, justify="right" if column == "ratio" else "left")
    for row in rows:
        figures = (f"{row[side]:.3g} {row['unit']}\n{row[side + '_name']}" for side in ("ours", "peer"))
        table.add_row(f"{row['what']}\n{row['threads']} threads", *figures, f"{row['ratio']:.3g}")
    (console or Console(width=130)).print(table)
