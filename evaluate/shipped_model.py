"""Make the shipped Fashion-MNIST model: train or go on training; pack in half precision; sample, score, write a card.

Runs as ``python -m genflow.evaluate.shipped_model``.
"""

import copy
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import genflow
from genflow.assets import ROOT
from genflow.evaluate.console import progress_bar, run
from genflow.evaluate.run import evaluate
from genflow.files import atomic_folder, write_text
from genflow.images import grid, save_png, to_pil, to_uint8

__all__ = ["sample_to_file"]

NAME = "fashion-mnist"
_BATCH = 250
_FIGURES = ("fd", "precision", "recall", "density", "coverage", "accuracy")


def sample_to_file(pipeline: Any, count: int, path: Path, **options: Any) -> float:
    """Sample seeds 0 .. count - 1, classes in turn, into an ``.npz`` with uint8 NHWC ``arr_0`` and ``labels``.

    ``options`` go to the pipeline's call. Returns the CPU seconds that it took.
    """
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    labels = [seed % pipeline.num_classes for seed in range(count)]
    arrays = []
    begun = time.process_time()
    with progress_bar(f"sampling {count} images", count) as advance:
        for start in range(0, count, _BATCH):
            seeds = range(start, min(start + _BATCH, count))
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            images = pipeline(
                class_labels=labels[start : start + _BATCH], generator=generators, output_type="pt", **options
            ).images
            arrays.append(to_uint8(images * 2 - 1))
            advance(len(seeds))
    seconds = time.process_time() - begun
    np.savez(path, arr_0=np.concatenate(arrays), labels=np.array(labels))
    return seconds


def _score(pipeline: Any, count: int, folder: Path, **options: Any) -> dict[str, Any]:
    path = folder / "samples.npz"
    seconds = sample_to_file(pipeline, count, path, **options)
    return {**evaluate(path, NAME, progress=True)["metrics"], "cpu_seconds": seconds}


def _untrained(pipeline: Any) -> Any:
    """The same pipeline around a network with its initial weights."""
    torch.manual_seed(0)
    other = copy.copy(pipeline)
    other.register_modules(unet=type(pipeline.unet).from_config(pipeline.unet.config).eval())
    return other


def _row(name: str, figures: dict[str, Any]) -> str:
    cells = [f"{figures[key]:.4f}" if key in figures else "" for key in _FIGURES]
    return f"| {name} | " + " | ".join(cells) + " |"


def _card(recipe: Any, last: dict[str, Any], rows: list[str], settings: str, seconds: float, count: int) -> str:
    return f"""# fashion-mnist: the default model

A class-conditional rectified flow for 28x28 grey images of clothes, {settings}.

![samples](samples.png)

Seeds 0 to 99 at the default settings; a column a class.

## Data and licence
The 60,000 training images of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747; copyright 2017 Zalando
SE, MIT licence). The weights are genflow's own work, under its licence (Apache-2.0).

## Recipe
`assets/recipes/fashion-mnist.yaml`: linear path, velocity objective, logit-normal times, averaged weights, 10 % of the
labels dropped, no flips; seed {recipe.seed}. {last["images"]:,} images seen ({last["images"] / 60000:.1f} epochs) in
{last["seconds"] / 60:.0f} minutes, {last["cpu_seconds"] / 60:.0f} CPU-minutes of one core ({platform.machine()},
torch {torch.__version__}); last loss {last["loss"]:.4f}. Weights in half precision.

Made again, figures and all, by

    python -m genflow.evaluate.shipped_model

## Figures
{count:,} images, seeds 0 to {count - 1:,}, classes in turn, against the 10,000 test images, in the features of
`fashion-mnist-classifier`. FD is the Frechet distance in those features: not FID, and not to be compared with one.
Sampling took {seconds / count * 1000:.1f} CPU-milliseconds an image.

| | FD (fashion-mnist) | precision | recall | density | coverage | class accuracy |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

## Limits
Ten classes of small grey product photographs; a demonstration and a yardstick, not a source of pictures.
"""


def main(
    run_folder: Annotated[Path, typer.Option("--run", help="Folder of the training run.")] = Path("runs/fashion-mnist"),
    count: Annotated[int, typer.Option(help="Images to score.")] = 10_000,
    out: Annotated[Path | None, typer.Option(help="Folder to write; the shipped asset by default.")] = None,
) -> None:
    """Train, pack, sample, score and describe the shipped Fashion-MNIST model."""
    from genflow.pipelines import ImagePipeline
    from genflow.training import load_recipe, train

    recipe = load_recipe(NAME)
    trained = train(NAME, out=run_folder)
    last = json.loads((run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    target = out or ROOT / NAME
    with atomic_folder(target) as folder, tempfile.TemporaryDirectory() as scratch:
        pipeline = ImagePipeline.from_pretrained(trained)
        pipeline.to(torch.float16)
        pipeline.save_pretrained(folder, safe_serialization=True)
        # what is scored is what is shipped: the weights as rounded
        pipeline = ImagePipeline.from_pretrained(folder)
        mine = _score(pipeline, count, Path(scratch))
        rows = [
            _row("default settings", mine),
            _row(
                f"untrained network ({min(count, 2500):,} images)",
                _score(_untrained(pipeline), min(count, 2500), Path(scratch)),
            ),
            _row(
                "10,000 training images (the floor)",
                evaluate("fashion-mnist:train", NAME, count=10_000, progress=True)["metrics"],
            ),
        ]
        config = pipeline.config
        settings = f"sampled by {recipe.sampling.scheduler} in {config.default_steps} steps"
        if config.default_guidance_scale != 1:
            low, high = config.default_guidance_interval or (0, None)
            where = "" if config.default_guidance_interval is None else f" between noise levels {low:g} and {high:g}"
            settings += f" with CFG {config.default_guidance_scale:g}{where}"
        generators = [torch.Generator().manual_seed(seed) for seed in range(100)]
        sheet = pipeline(class_labels=[seed % 10 for seed in range(100)], generator=generators, output_type="pt").images
        save_png(grid(to_pil(sheet * 2 - 1), columns=10, zoom=2), folder / "samples.png")
        write_text(folder / "card.md", _card(recipe, last, rows, settings, mine["cpu_seconds"], count))
    print(f"genflow {genflow.__version__}: wrote {target}\n" + "\n".join(rows))


if __name__ == "__main__":
    run(main)
