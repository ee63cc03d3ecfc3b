"""The default recipe trained by one optimizer after another: ``python -m genflow.evaluate.optimizers fashion-mnist``.

All start from the same weights and see the same images, noise and times in the same order for the same number of
updates. Each has a step size of its own, the best of a few tried on short runs of the same recipe, by their training
loss at the end; where the best is the smallest or largest tried, one beyond it is tried too. Every run's figures are
kept in a JSON file in ``out`` as soon as they are measured; a table that was stopped goes on from there, inside a run
from its last checkpoint.
"""

import contextlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import genflow
from genflow.errors import InputError, NonFiniteError, check_number
from genflow.evaluate.run import evaluate
from genflow.evaluate.shipped_model import sample_to_file
from genflow.files import write_json
from genflow.options import Entry
from genflow.pipelines import ImagePipeline
from genflow.processes import process_state
from genflow.schedulers import create_scheduler
from genflow.training import create_task, load_recipe, train
from genflow.training.checkpoints import latest_checkpoint

__all__ = ["SETTINGS", "Protocol", "Setting", "held_out_loss", "measure", "state_bytes"]


@dataclass(frozen=True)
class Setting:
    """How an optimizer is used here: step sizes to try (the middle one where none are tried), options, decay."""

    rates: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.01


_BETAS = {"betas": [0.9, 0.99]}  # the recipe's own, for those of Adam's kind
_MKOR = {"unsupported": "base"}  # the network embeds its classes

SETTINGS: dict[str, Setting] = {
    "adamw": Setting((1e-3, 2e-3, 4e-3), _BETAS),
    "adan": Setting((1e-3, 2e-3, 4e-3)),
    "lion": Setting((1e-4, 2e-4, 4e-4), weight_decay=0.1),  # its steps are as much larger as its rate is smaller
    "adabelief": Setting((5e-4, 1e-3, 2e-3)),
    "adamp": Setting((1e-3, 2e-3, 4e-3), _BETAS),
    "stable-spam": Setting((1e-3, 2e-3, 4e-3)),
    "frugal": Setting((2e-4, 5e-4, 1e-3)),  # three quarters of the entries move by the sign
    "mkor": Setting((0.03, 0.1, 0.3), _MKOR),
    "mkor:base=adamw": Setting((1e-3, 2e-3, 4e-3), {**_MKOR, "base_options": _BETAS}),
    "mkor-h": Setting((0.03, 0.1, 0.3), _MKOR),
}
"""What is compared: the recipe's AdamW first."""

_MOST_RATES = 5


@dataclass(frozen=True)
class Protocol:
    """What the figures depend on beside optimizer and seed; kept rows of another protocol are measured again."""

    recipe: str
    overrides: tuple[str, ...]
    updates: int
    search_updates: int
    """Length of the runs that choose the step size; 0: none, the middle one of the setting is taken."""
    test: str | None
    samples: int
    steps: int
    device: str


def _setting(entry: Entry) -> Setting:
    return SETTINGS.get(entry.text) or SETTINGS[entry.name]


def _overrides(protocol: Protocol, entry: Entry, lr: float, updates: int, seed: int) -> list[str]:
    setting = _setting(entry)
    batch = load_recipe(protocol.recipe, protocol.overrides).batch_size
    values = {
        "optimizer.name": entry.name,
        "optimizer.lr": lr,
        "optimizer.weight_decay": setting.weight_decay,
        "optimizer.options": {**setting.options, **entry.options},
        "budget.images": updates * batch,
        "budget.cpu_minutes": None,
        "schedule.warmup_steps": max(1, min(500, updates // 10)),
        "log.every_steps": max(1, updates // 100),
        "log.checkpoint_every_steps": max(1000, updates // 4),
        "log.sample_every_steps": 0,
        "seed": seed,
    }
    return [*protocol.overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items())]


def _losses(run: Path) -> list[list[float]]:
    """(update, mean loss since the entry before, seconds since the start) of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [[row["step"], row["loss"], row["seconds"]] for row in rows]


def _final(losses: Sequence[Sequence[float]], share: float = 0.1) -> float:
    """The mean loss over the last tenth of the updates, each counted once."""
    end = losses[-1][0]
    total = weight = before = 0.0
    for step, loss, *_ in losses:
        counted = step - max(before, (1 - share) * end)
        if counted > 0:
            total, weight = total + counted * loss, weight + counted
        before = step
    return total / weight


def _seconds_per_step(losses: Sequence[Sequence[float]]) -> float:
    """Over the last nine tenths: the first steps allocate and choose kernels."""
    first = next((row for row in losses if row[0] >= losses[-1][0] / 10), losses[0])
    steps = losses[-1][0] - first[0]
    return (losses[-1][2] - first[2]) / steps if steps else losses[-1][2] / losses[-1][0]


def state_bytes(run: Path) -> int:
    """Bytes of the optimizer's state, as the last checkpoint of a run holds it."""
    checkpoint = latest_checkpoint(run / "checkpoints")
    if checkpoint is None:
        raise InputError(f"out: {run} holds no checkpoint")
    return sum(tensor.nbytes for tensor in load_file(checkpoint / "optimizer.safetensors").values())


@torch.no_grad()
def held_out_loss(network: nn.Module, protocol: Protocol, batches: int = 10, size: int = 500) -> float:
    """The recipe's loss on test images, with noise and times that are the same for every network."""
    changed = ["data.split=test", "objective.label_dropout=0", "data.flip=false", "seed=1234"]
    if protocol.test is not None:
        changed.append(f"data.source={protocol.test}")
    task = create_task(load_recipe(protocol.recipe, [*protocol.overrides, *changed]))
    network = network.to(protocol.device).eval()
    task.bind(network, network, torch.device(protocol.device), size, batches)
    return torch.stack([task.loss(0, slot) for slot in range(batches)]).mean().item()


def _train(protocol: Protocol, entry: Entry, lr: float, updates: int, seed: int, run: Path, progress: bool) -> Path:
    if progress:
        print(f"{entry.text}, lr {lr:g}, seed {seed}: {updates} updates", flush=True)
    bar = progress and sys.stderr.isatty()
    return train(protocol.recipe, _overrides(protocol, entry, lr, updates, seed), run, progress=bar)


def _kept(file: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and row.get("record") == record else None


def _search(protocol: Protocol, entry: Entry, out: Path, progress: bool) -> tuple[float, dict[str, float | None]]:
    """The step size with the least loss at the end of a short run, and every loss; None where it diverged."""
    rates = sorted(_setting(entry).rates)
    if not protocol.search_updates:
        return rates[len(rates) // 2], {}
    ratio = rates[-1] / rates[-2]
    losses = {lr: _short_loss(protocol, entry, lr, out, progress) for lr in rates}
    while len(losses) < _MOST_RATES:
        best = min(losses, key=losses.__getitem__)
        if min(losses) < best < max(losses):
            break
        beyond = float(f"{best * ratio if best == max(losses) else best / ratio:.3g}")
        losses[beyond] = _short_loss(protocol, entry, beyond, out, progress)
    found = {f"{lr:g}": loss if math.isfinite(loss) else None for lr, loss in sorted(losses.items())}
    return min(losses, key=losses.__getitem__), found


def _short_loss(protocol: Protocol, entry: Entry, lr: float, out: Path, progress: bool) -> float:
    """The loss at the end of a short run; infinite where it diverged."""
    file = out / "search" / f"{_file_name(entry)}-{lr:g}.json"
    record = {**_record(protocol, entry), "updates": protocol.search_updates, "lr": lr}
    row = _kept(file, record)
    if row is None:
        run, loss = file.parent / file.stem, None
        with contextlib.suppress(NonFiniteError):
            _train(protocol, entry, lr, protocol.search_updates, 0, run, progress)
            loss = _final(_losses(run))
        row = {"record": record, "loss": loss}
        write_json(file, row)
        shutil.rmtree(run, ignore_errors=True)
    return math.inf if row["loss"] is None else row["loss"]


def _file_name(entry: Entry) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in entry.text)


def _record(protocol: Protocol, entry: Entry) -> dict[str, Any]:
    setting = _setting(entry)
    values = {**asdict(protocol), **asdict(setting), "optimizer": entry.text, "entry_options": entry.options}
    return json.loads(json.dumps(values))


def _row(protocol: Protocol, entry: Entry, seed: int, out: Path, progress: bool) -> dict[str, Any]:
    lr, searched = _search(protocol, entry, out, progress)
    file = out / f"{_file_name(entry)}-seed{seed}.json"
    record = {**_record(protocol, entry), "seed": seed, "lr": lr}
    row = _kept(file, record)
    if row is not None:
        return {**row, "search": searched}
    setting = _setting(entry)
    row = {
        "record": record,
        "optimizer": entry.text,
        "seed": seed,
        "lr": lr,
        "weight_decay": setting.weight_decay,
        "options": {**setting.options, **entry.options},
        "search": searched,
        "genflow": genflow.__version__,
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name() if protocol.device.startswith("cuda") else protocol.device,
    }
    run = out / file.stem
    try:
        folder = _train(protocol, entry, lr, protocol.updates, seed, run, progress)
    except NonFiniteError as error:
        row["error"] = str(error)
    else:
        losses = _losses(run)
        pipeline = ImagePipeline.from_pretrained(folder)
        row |= {
            "losses": [[step, loss] for step, loss, _ in losses],
            "train_loss": _final(losses),
            "seconds_per_step": _seconds_per_step(losses),
            "state_bytes": state_bytes(run),
            "parameter_bytes": sum(param.nbytes for param in pipeline.unet.parameters()),
            "held_out_loss": held_out_loss(pipeline.unet, protocol),
            **_sample_figures(pipeline, protocol),
        }
    write_json(file, row)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return row


def _sample_figures(pipeline: ImagePipeline, protocol: Protocol) -> dict[str, float]:
    if not protocol.samples:
        return {}
    pipeline.to(protocol.device)
    pipeline.scheduler = create_scheduler("heun", pipeline.scheduler.config)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "samples.npz"
        sample_to_file(pipeline, protocol.samples, path, num_inference_steps=protocol.steps, guidance_scale=1.0)
        metrics = evaluate(path, "fashion-mnist", device=protocol.device)["metrics"]
    return {"fd": metrics["fd"], "accuracy": metrics["accuracy"]}


def check_entries(entries: Sequence[Entry]) -> None:
    """Raise InputError for an optimizer that :data:`SETTINGS` does not know."""
    for entry in entries:
        if entry.text not in SETTINGS and entry.name not in SETTINGS:
            raise InputError(f"--names: {entry.name!r} has no setting here; allowed: {', '.join(SETTINGS)}")


def measure(
    entries: Sequence[Entry], out: Path, protocol: Protocol, *, seeds: int = 1, progress: bool = True
) -> list[dict[str, Any]]:
    """Train and judge each optimizer, or take the figures that ``out`` holds.

    Args:
        entries: of :data:`SETTINGS`, with further options perhaps (``frugal:density=0.5``).
        out: folder of the runs and of their figures.
        protocol: what all have in common.
        seeds: 0 to ``seeds - 1``; the step size is chosen at seed 0.
        progress: show bars.

    Returns:
        A row for each optimizer and seed: ``train_loss`` (mean over the last tenth), ``held_out_loss`` and ``fd`` (of
        the averaged weights), ``seconds_per_step``, ``state_bytes``, ``lr``, ``search`` (each step size's loss) and
        ``losses``; or ``error`` where training diverged.

    Raises:
        InputError: an optimizer without setting, a number out of range, a recipe or data that cannot be used.
    """
    check_entries(entries)
    check_number("--updates", protocol.updates, at_least=1, integer=True)
    check_number("--search-updates", protocol.search_updates, at_least=0, integer=True)
    check_number("--samples", protocol.samples, at_least=0, integer=True)
    check_number("--steps", protocol.steps, at_least=1, integer=True)
    check_number("--seeds", seeds, at_least=1, integer=True)
    process_state(cpu=torch.device(protocol.device).type == "cpu")  # where accelerate will train
    for entry in entries:  # bad overrides before any work
        load_recipe(protocol.recipe, _overrides(protocol, entry, 1e-3, protocol.updates, 0))
    return [_row(protocol, entry, seed, out, progress) for seed in range(seeds) for entry in entries]
