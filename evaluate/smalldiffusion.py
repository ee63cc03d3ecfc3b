"""genflow's shipped recipe against smalldiffusion's Fashion-MNIST example, at the same CPU-minutes.

``python -m genflow.evaluate.smalldiffusion --minutes 10``. Each side trains in a process of its own with one thread,
until its training has used so many minutes of that process's CPU time; batch size and images (the 60,000 training
images, not flipped) are the same. Each then draws the same number of samples with its own sampler and its averaged
weights; both are scored by the same features. Loading, sampling and scoring are outside the budget.

smalldiffusion's side follows its conditional DiT example: DiT of patch 2, depth 6, six heads of 32; DDPM noise levels;
the loss of its ``training_loop`` (AdamW at 1e-3); weights averaged with decay 0.99; twenty steps at ``gam = 1.6``.
Install it with ``pip install smalldiffusion``; it is no dependency of genflow.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from genflow.errors import InputError, check_choice, check_number
from genflow.evaluate.console import run
from genflow.files import atomic_path, check_output_files, write_json

__all__ = ["compare_with_smalldiffusion", "import_smalldiffusion"]

SIDES = ("genflow", "smalldiffusion")
NUM_CLASSES = 10


def import_smalldiffusion() -> types.ModuleType:
    """The package, also where torchvision is missing or does not fit torch: it needs that for a constant alone.

    Raises InputError where it is not installed.
    """
    if find_spec("smalldiffusion") is None or find_spec("einops") is None:
        raise InputError(
            "smalldiffusion is not installed; pip install --no-deps smalldiffusion einops "
            "(without --no-deps it brings a torchvision, which must then match torch)"
        )
    import accelerate  # noqa: F401  (looks for torchvision itself, so before the stand-in)

    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        names = ("Compose", "RandomHorizontalFlip", "ToTensor", "Lambda")
        transforms = types.ModuleType("torchvision.transforms")
        for name in names:
            setattr(transforms, name, lambda *arguments: None)
        stand_in = types.ModuleType("torchvision")
        stand_in.transforms = transforms
        stand_in.__spec__ = ModuleSpec("torchvision", None)
        sys.modules |= {"torchvision": stand_in, "torchvision.transforms": transforms}
        try:
            import smalldiffusion
        finally:
            del sys.modules["torchvision"], sys.modules["torchvision.transforms"]
    import smalldiffusion

    return smalldiffusion


class _Batches:
    """Shuffled ``(images in [-1, 1], labels)`` batches of one epoch, new at each pass; images are scaled on the way."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, seed: int) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self.generator)
        for chosen in order.split(self.batch_size):
            if len(chosen) == self.batch_size:
                yield self.images[chosen].float() / 127.5 - 1, self.labels[chosen]


def _labels(count: int) -> Tensor:
    """The classes in turn, equally often up to one."""
    return torch.arange(count) % NUM_CLASSES


def _train_smalldiffusion(minutes: float, batch_size: int, samples: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """uint8 samples ``(N, 1, 28, 28)`` of smalldiffusion's example, and what was spent on it."""
    package = import_smalldiffusion()
    from accelerate import Accelerator

    from genflow.data import load_images
    from genflow.precision import probe

    data = load_images("fashion-mnist", split="train")
    precision = probe("cpu")
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True, mixed_precision=precision.accelerate_name)
    width = 32 * 6
    model = package.DiT(
        in_dim=28,
        channels=1,
        patch_size=2,
        depth=6,
        head_dim=32,
        num_heads=6,
        mlp_ratio=4.0,
        cond_embed=package.CondEmbedderLabel(width, NUM_CLASSES, 0.1),
    )
    schedule = package.ScheduleDDPM(beta_start=0.0001, beta_end=0.02, N=1000)
    batches = _Batches(data.images, data.labels, batch_size, seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    averaged = [p.detach().clone() for p in weights]
    begun, steps = time.process_time(), 0
    for _ in package.training_loop(
        batches, model, schedule, accelerator=accelerator, epochs=10**6, lr=1e-3, conditional=True
    ):
        # The loop yields before each update: the average trails by one step, as in the example.
        with torch.no_grad():
            torch._foreach_lerp_(averaged, weights, 0.01)
        if time.process_time() - begun >= 60 * minutes:
            break
        steps += 1
    spent = time.process_time() - begun
    with torch.no_grad():
        for weight, average in zip(weights, averaged, strict=True):
            weight.copy_(average)
    drawn = []
    for labels in _labels(samples).split(256):
        *_, x0 = package.samples(
            model,
            schedule.sample_sigmas(20),
            gam=1.6,
            batchsize=len(labels),
            cond=labels,
            accelerator=accelerator,
        )
        drawn.append(((x0.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
    parameters = sum(p.numel() for p in weights)
    facts = {"cpu_minutes": spent / 60, "steps": steps, "parameters": parameters, "precision": precision.name}
    return torch.cat(drawn), facts


def _train_genflow(
    minutes: float, batch_size: int, samples: int, seed: int, folder: Path
) -> tuple[Tensor, dict[str, Any]]:
    """uint8 samples ``(N, 1, 28, 28)`` of the shipped recipe cut to the budget, and what was spent on it."""
    from genflow.evaluate.shipped_model import sample_to_file
    from genflow.pipelines import ImagePipeline
    from genflow.training import train

    overrides = [
        "budget.images=null",
        f"budget.cpu_minutes={minutes}",
        f"batch_size={batch_size}",
        f"seed={seed}",
        "log.sample_every_steps=0",
        "log.checkpoint_every_steps=1000000",
    ]
    pipeline_folder = train("fashion-mnist", overrides, out=folder, progress=False)
    last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    pipeline = ImagePipeline.from_pretrained(pipeline_folder)
    path = folder / "samples.npz"
    sample_to_file(pipeline, samples, path)
    with np.load(path, allow_pickle=False) as arrays:
        drawn = torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2)
    parameters = sum(p.numel() for p in pipeline.unet.parameters())
    facts = {"cpu_minutes": last["cpu_seconds"] / 60, "steps": last["step"], "parameters": parameters}
    return drawn, facts


def compare_with_smalldiffusion(
    minutes: float = 10, *, batch_size: int = 128, samples: int = 2048, seed: int = 0
) -> dict[str, Any]:
    """Train, sample and score both sides; JSON-safe: figures of each, and ``ratio``, ours over the peer's."""
    check_number("minutes", minutes, above=0)
    check_number("samples", samples, at_least=10, integer=True)
    import_smalldiffusion()
    from genflow.evaluate.run import evaluate

    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        for side in SIDES:
            output = Path(home) / f"{side}.npz"
            command = [sys.executable, "-m", "genflow.evaluate.smalldiffusion", "--side", side, "--out", str(output)]
            command += ["--minutes", str(minutes), "--batch-size", str(batch_size)]
            command += ["--samples", str(samples), "--seed", str(seed)]
            begun = time.monotonic()
            done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
            if done.returncode:
                raise InputError(f"{side}: its process ended with status {done.returncode}")
            facts = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
            facts["images_seen"] = facts["steps"] * batch_size
            facts["wall_minutes"] = (time.monotonic() - begun) / 60
            result[side] = {**facts, **evaluate(output, "fashion-mnist")["metrics"]}
    ours, peer = (result[side] for side in SIDES)
    result["ratio"] = {key: ours[key] / peer[key] for key in ("fd", "accuracy", "images_seen") if peer.get(key)}
    result["protocol"] = {"minutes": minutes, "batch_size": batch_size, "samples": samples, "seed": seed, "threads": 1}
    return result


def main(
    minutes: Annotated[float, typer.Option(help="CPU-minutes of training for each side.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images a step, for both.")] = 128,
    samples: Annotated[int, typer.Option(help="Samples drawn and scored, for both.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of weights, batches and samples.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    side: Annotated[str | None, typer.Option(hidden=True)] = None,
    out: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compare with smalldiffusion's Fashion-MNIST example at equal CPU-minutes."""
    if side is not None and out is not None:
        check_choice("side", side, SIDES)
        torch.set_num_threads(1)
        arguments = (minutes, batch_size, samples, seed)
        if side == "genflow":
            images, facts = _train_genflow(*arguments, out.parent / "run")
        else:
            images, facts = _train_smalldiffusion(*arguments)
        with atomic_path(out) as temporary:
            np.savez(temporary, arr_0=images.permute(0, 2, 3, 1).numpy(), labels=_labels(samples).numpy())
        write_json(out.with_suffix(".json"), facts)
        return
    check_output_files(json=json_file)
    result = compare_with_smalldiffusion(minutes, batch_size=batch_size, samples=samples, seed=seed)
    table = Table(title=f"Fashion-MNIST, {minutes:g} CPU-minutes each, {samples} samples against the test images")
    for column in ("", *SIDES, "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for key in ("fd", "precision", "recall", "coverage", "accuracy", "images_seen", "parameters", "cpu_minutes"):
        figures = [f"{result[name][key]:,.4f}" if key != "parameters" else f"{result[name][key]:,}" for name in SIDES]
        label = "FD (fashion-mnist)" if key == "fd" else key.replace("_", " ")
        table.add_row(label, *figures, f"{result['ratio'][key]:.3g}" if key in result["ratio"] else "")
    Console().print(table)
    if json_file is not None:
        write_json(json_file, result)


if __name__ == "__main__":
    run(main)
