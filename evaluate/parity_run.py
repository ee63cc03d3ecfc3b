"""The comparison itself, inside the parity environment: every tool on every set of images, ours beside it, one table.

:mod:`genflow.evaluate.parity` builds the environment and runs this module in it.
"""

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from genflow.errors import check_number
from genflow.evaluate import parity_tools as tools
from genflow.evaluate.console import run
from genflow.evaluate.parity_files import clean_fid_rows, pytorch_fid_rows
from genflow.evaluate.parity_inputs import MOST_IMAGES, SETS, WEIGHTS, ImageSet, make_folder, make_weights
from genflow.evaluate.parity_table import LIMIT, Row, feature_difference, print_rows
from genflow.evaluate.parity_tools import ToolRun
from genflow.files import write_json
from genflow.metrics import inception_score, neighbour_metrics

__all__ = ["CASES", "Case", "compare", "figure_rows", "ours", "report"]

OUR_METRICS = ("fd", "kid", "precision", "recall")
FLOAT32_KERNEL = 1e-6
"""What rounding leaves of a KID that was summed in float32: a few times 6e-8 of kernel values of order one."""

PACKAGES = ("torch", "torchvision", "pytorch-fid", "clean-fid", "torch-fidelity", "prdc", "scipy", "numpy", "pillow")


def figure_rows(images: str, tool: str, theirs: ToolRun, ours: ToolRun) -> Iterator[Row]:
    """Features of both folders, image by image, and every figure that both have."""
    for side in ("real", "generated"):
        first, second = getattr(theirs, side), getattr(ours, side)
        spread = feature_difference(first, second)
        yield Row(images, tool, f"features, {side}", float(first.std()), float(second.std()), spread)
    for name, value in theirs.figures.items():
        figure = name.partition(",")[0]
        if figure in ours.figures:
            limit = LIMIT + FLOAT32_KERNEL / abs(value) if name == "kid" else LIMIT
            yield Row.of(images, tool, name, value, ours.figures[figure], limit)


@dataclass(frozen=True)
class Case:
    """A tool in one of its modes, and the mode and layer in which ours does the same."""

    name: str
    tool: Callable[..., ToolRun]
    resize: str
    layer: str = "2048"
    options: dict[str, Any] = field(default_factory=dict)
    main_only: bool = False

    @property
    def key(self) -> str:
        """The name as a part of a file's name."""
        return self.name.replace(" ", "-")


CASES = (
    Case("torch-fidelity", tools.torch_fidelity, "legacy"),
    Case("pytorch-fid", tools.pytorch_fid, "legacy-pytorch"),
    Case("clean-fid clean", tools.clean_fid, "clean", options={"mode": "clean"}),
    Case("clean-fid legacy_pytorch", tools.clean_fid, "legacy-pytorch", "2048", {"mode": "legacy_pytorch"}, True),
    Case("clean-fid legacy_tensorflow", tools.clean_fid, "legacy", "2048", {"mode": "legacy_tensorflow"}, True),
    Case("pytorch-fid 64", tools.pytorch_fid, "legacy-pytorch", "64", {"dims": 64}, True),
    Case("pytorch-fid 192", tools.pytorch_fid, "legacy-pytorch", "192", {"dims": 192}, True),
)


def ours(real: Path, generated: Path, weights: Path, *, resize: str, layer: str = "2048") -> ToolRun:
    """``genflow evaluate GENERATED --reference REAL`` with Inception, nothing kept or taken from caches.

    Subsets of KID are all images here, as in the tools' runs. Each program shuffles the Inception Score's splits in its
    own way, so it is taken in the order of the files.
    """
    from genflow.evaluate import evaluate_in_detail

    begun = time.perf_counter()
    evaluation = evaluate_in_detail(
        generated,
        real,
        features="inception" if layer == "2048" else f"inception:{layer}",
        weights=weights / WEIGHTS,
        resize=resize,
        metrics=OUR_METRICS,
        cache=False,
    )
    seconds = time.perf_counter() - begun
    metrics = evaluation.result["metrics"]
    figures = {"fid": metrics["fd"], **{name: metrics[name] for name in OUR_METRICS if name != "fd"}}
    first, second = evaluation.reference.features, evaluation.generated.features
    if second.logits is not None:
        score = inception_score(second.logits, shuffle=False)
        figures |= {"is": score.mean, "is_std": score.std}
    return ToolRun(figures, first.features.numpy(), second.features.numpy(), seconds)


def prdc_rows(images: str, theirs: ToolRun, ours: ToolRun, k: int = 5) -> Iterator[Row]:
    """The prdc package on ``theirs`` features, ours with balls as open as its are on our own."""
    real, generated = (torch.from_numpy(side) for side in (ours.real, ours.generated))
    found = asdict(neighbour_metrics(real, generated, k=k, density_k=k, strict=True))
    for name, value in tools.prdc(theirs.real, theirs.generated, k).items():
        yield Row.of(images, "prdc", f"{name}, k = {k}, open", value, found[name])


def compare(home: Path, sets: Sequence[ImageSet], cases: Sequence[Case] = CASES) -> list[Row]:
    """All rows. Images, weights and what the tools answered are kept below ``home``; ours is run anew every time."""
    rows: list[Row] = []
    weights = make_weights(home / "weights")
    version = hashlib.sha256((weights / WEIGHTS).read_bytes()).hexdigest()[:8]
    for images in sets:
        main = images.name == SETS[0].name
        folder = home / "images" / f"{images.key}-{images.count}"
        real, generated = (make_folder(folder / ("b" if it else "a"), images, shifted=it) for it in (False, True))
        mine: dict[tuple[str, str], ToolRun] = {}
        for case in cases:
            if case.main_only and not main:
                continue
            path = home / "runs" / f"{case.key}-{images.key}-{images.count}-{version}.npz"
            theirs = tools.kept(path, case.tool, real, generated, weights, **case.options)
            if (case.resize, case.layer) not in mine:
                mine[case.resize, case.layer] = ours(real, generated, weights, resize=case.resize, layer=case.layer)
            our_run = mine[case.resize, case.layer]
            found = list(figure_rows(images.name, case.name, theirs, our_run))
            if main and case.tool is tools.torch_fidelity:
                found += prdc_rows(images.name, theirs, our_run)
            rows += found
            worst = max(row.difference for row in found)
            seconds = f"theirs {theirs.seconds:.0f} s, ours {our_run.seconds:.0f} s"
            print(f"{images.name}, {case.name}: {len(found)} figures, worst {worst:.1e} ({seconds})", flush=True)
        if main:
            rows += pytorch_fid_rows(images.name, (real, generated), mine["legacy-pytorch", "64"], 64, home / "files")
    rows += clean_fid_rows(images.name, (real, generated), mine["legacy-pytorch", "2048"], home / "files")
    return rows


def report(rows: Sequence[Row], sets: Sequence[ImageSet]) -> dict[str, Any]:
    """Everything for JSON: rows, counts of images, versions, threads, and whether all passed."""
    return {
        "passed": all(row.passed for row in rows),
        "rows": [{**asdict(row), "passed": row.passed} for row in rows],
        "images": {images.name: [images.count, images.count] for images in sets},
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
    }


def main(
    home: Annotated[Path, typer.Argument(help="Where images, weights and the tools' answers are kept.")],
    images: Annotated[int, typer.Option(help="In each folder of the main set; the other sets are smaller.")] = 300,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    speed: Annotated[bool, typer.Option(help="Measure whole folders too.")] = True,
    parity: Annotated[bool, typer.Option(help="Compare figures.")] = True,
) -> None:
    """Compare genflow with pytorch-fid, clean-fid, torch-fidelity and prdc, all on the same images and weights."""
    warnings.filterwarnings("ignore")  # the tools' own, by the hundred
    os.environ["TORCH_HOME"] = str(home / "weights")
    check_number("images", images, at_least=16, at_most=MOST_IMAGES, integer=True)
    sets = [replace(kind, count=min(kind.count, images)) for kind in SETS]
    sets[0] = replace(SETS[0], count=images)
    rows = compare(home, sets) if parity else []
    result = report(rows, sets)
    if parity:
        print_rows(rows)
    if speed:
        from genflow.evaluate.parity_speed import measure, print_speed

        result["speed"] = measure(home)
        print_speed(result["speed"])
    if json_file is not None:
        write_json(json_file, result)
    over = [row for row in rows if not row.passed]
    if over:
        print(f"{len(over)} of {len(rows)} figures are over their limit")
        raise typer.Exit(1)
    if parity:
        print(f"all {len(rows)} figures are within their limits")


if __name__ == "__main__":
    run(main)
