"""The training loop, on accelerate: resumable to the bit, stopped cleanly, never half-written."""

import contextlib
import math
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from genflow.data import ImageData, load_images
from genflow.errors import InputError, NonFiniteError
from genflow.files import write_text
from genflow.models import from_diffusers
from genflow.precision import resolve
from genflow.processes import process_state
from genflow.training import finish
from genflow.training.batches import BatchStream, mixed_seed
from genflow.training.checkpoints import (
    flatten_optimizer,
    latest_checkpoint,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from genflow.training.dynamics import TrainingDynamics
from genflow.training.networks import create_network
from genflow.training.objectives import create_objective
from genflow.training.optimizers import create_optimizer
from genflow.training.recipe import Recipe, load_recipe
from genflow.training.records import MetricsLog, check_trackers, plot_loss

__all__ = ["Trainer", "train"]

_TENSOR_GROUPS = ("network", "ema", "optimizer")
_RECIPE_FILE = "recipe.yaml"
# what may differ between an interrupted run and the one that goes on with it
_FREE_SECTIONS = ("log", "sampling", "dynamics")


def train(
    recipe: str | Path | Recipe,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    restart: bool = False,
    skip_bad: bool = False,
    trackers: Sequence[str] = (),
    progress: bool = True,
) -> Path:
    """Train by a recipe, from the start or from the newest checkpoint in ``out``.

    Args:
        recipe: a shipped recipe's name, a YAML file, or a :class:`Recipe`.
        overrides: ``"optimizer.lr=3e-4"`` and the like.
        out: folder of the run; ``runs/NAME`` by default.
        restart: throw away what ``out`` holds of an earlier run.
        skip_bad: leave unreadable images out instead of refusing them.
        trackers: accelerate's trackers, such as ``"tensorboard"``.
        progress: show a progress bar.

    Returns:
        The folder of the finished pipeline, in diffusers' layout.

    Raises:
        InputError: a recipe or data that cannot be used, or another recipe's run in ``out``.
        NonFiniteError: the loss became NaN or infinite; the last good checkpoint stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    if not isinstance(recipe, Recipe):
        name = Path(recipe).stem
        recipe = load_recipe(recipe, overrides)
    else:
        name = "recipe"
    check_trackers(trackers)
    folder = Path(out) if out is not None else Path("runs") / name
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; allowed: a folder, or a name that is free")
    data = load_images(recipe.data.source, recipe.data.split, skip_bad=skip_bad)
    return Trainer(recipe, data, folder, restart=restart, trackers=trackers, progress=progress).run()


class Trainer:
    """One run. Every random draw is a function of (seed, step), so the step counter is all the state there is."""

    def __init__(
        self,
        recipe: Recipe,
        data: ImageData,
        out: Path,
        *,
        restart: bool = False,
        trackers: Sequence[str] = (),
        progress: bool = True,
    ) -> None:
        self.recipe, self.data, self.out, self.progress = recipe, data, out, progress
        self.checkpoints = out / "checkpoints"
        set_seed(recipe.seed)
        objective = recipe.objective
        family = finish.training_family(recipe)
        self.path = family.path
        edm = {"sigma_data": family.config["sigma_data"]} if family.name == "edm" else {}
        self.objective = create_objective(
            objective.type, self.path, objective.times, objective.times_mean, objective.times_std, **edm
        )
        *_, height, width = data.images.shape
        network = create_network(
            recipe.network.type,
            size=(height, width),
            channels=data.images.shape[1],
            num_classes=data.num_classes,
            options=recipe.network.options,
        )
        optimizer = create_optimizer(
            recipe.optimizer.name,
            network,
            recipe.optimizer.lr,
            recipe.optimizer.weight_decay,
            recipe.optimizer.options,
            recipe.optimizer.overrides,
        )
        checkpoint = self._previous(restart)
        loaded = load_checkpoint(checkpoint, _TENSOR_GROUPS) if checkpoint else None
        device = process_state().device.type
        # a resumed run keeps its format: bit-identical weights need one
        precision = resolve(loaded[1]["precision"] if loaded else recipe.precision, device)
        self.precision = precision
        # accelerate keeps the format of the first run in a process; another run may want another
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=precision.accelerate_name,
            gradient_accumulation_steps=recipe.accumulate,
            log_with=list(trackers) or None,
            project_dir=out,
        )
        processes = self.accelerator.num_processes
        if recipe.batch_size % (recipe.accumulate * processes):
            raise InputError(
                f"batch_size: {recipe.batch_size} is not a multiple of accumulate x processes = "
                f"{recipe.accumulate} x {processes}"
            )
        if recipe.budget.cpu_minutes and processes > 1:
            raise InputError("budget.cpu_minutes: several processes would end at different steps; allowed: images")
        slots = recipe.accumulate * processes
        self.batches = BatchStream(
            data,
            recipe.seed,
            recipe.batch_size // slots,
            slots,
            self.accelerator.device,
            recipe.data.flip,
            objective.label_dropout,
        )
        self.network, self.optimizer = self.accelerator.prepare(network, optimizer)
        self._observe = getattr(optimizer, "observe", None)  # MKOR-H decides by the loss
        if self.accelerator.scaler is not None and hasattr(optimizer, "loss_scale"):
            optimizer.loss_scale = self.accelerator.scaler.get_scale  # MKOR's hooks see scaled gradients
        self.bare_network = self.accelerator.unwrap_model(self.network)
        self.ema = EMAModel(
            self.bare_network.parameters(),
            decay=recipe.ema.decay,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=recipe.ema.power,
            foreach=True,
        )
        self.model = from_diffusers(
            self.bare_network, self.path, family.prediction_type, num_classes=data.num_classes, **edm
        )
        self.model.network = self.network  # gradients must pass through accelerate's wrapper
        self.step, self.cpu_seconds, self.seconds = 0, 0.0, 0.0
        if loaded:
            self._restore(*loaded)
        self.log: MetricsLog | None = None
        if self.accelerator.is_main_process:
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / _RECIPE_FILE, recipe.to_yaml())
            self.log = MetricsLog(out / "metrics.jsonl", self.step)
        self.dynamics: TrainingDynamics | None = None
        if recipe.dynamics.enabled and self.log is not None:
            self.dynamics = TrainingDynamics(
                recipe, data, self.objective, self.model, self.bare_network, self.optimizer, out,
                self.accelerator.device, self.step or -1,
            )  # fmt: skip
        if trackers:
            self.accelerator.init_trackers("genflow")
        self._stop = False

    # state on disk

    def _previous(self, restart: bool) -> Path | None:
        """The checkpoint to go on from, after seeing that it belongs to this recipe."""
        if restart:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            return None
        checkpoint = latest_checkpoint(self.checkpoints)
        if checkpoint is None:
            return None
        before, now = load_recipe(self.out / _RECIPE_FILE).model_dump(), self.recipe.model_dump()
        for key in now:
            if key not in _FREE_SECTIONS and before[key] != now[key]:
                raise InputError(
                    f"out: {self.out} holds an interrupted run with another {key!r} ({before[key]}); "
                    "allowed: the same recipe, another folder, or --restart"
                )
        return checkpoint

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        optimizer_tensors, optimizer_rest = flatten_optimizer(self.optimizer.state_dict())
        names = [name for name, _ in self.bare_network.named_parameters()]
        scaler = self.accelerator.scaler
        save_checkpoint(
            self.checkpoints,
            self.step,
            {
                "network": self.bare_network.state_dict(),
                "ema": dict(zip(names, self.ema.shadow_params, strict=True)),
                "optimizer": optimizer_tensors,
            },
            {
                "optimizer": optimizer_rest,
                "ema_steps": self.ema.optimization_step,
                "scaler": scaler.state_dict() if scaler else None,
                "precision": self.precision.name,
                "cpu_seconds": self.cpu_seconds,
                "seconds": self.seconds,
            },
            self.recipe.log.keep_checkpoints,
        )
        plot_loss(self.log.rows, self.out / "loss.png")

    def _restore(self, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> None:
        self.bare_network.load_state_dict(tensors["network"])
        self.optimizer.load_state_dict(restore_optimizer(tensors["optimizer"], state["optimizer"]))
        for parameter, entries in self.optimizer.state.items():
            for key, value in entries.items():
                if value.shape == parameter.shape:  # torch's fused kernels want the parameter's memory format
                    entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        for (name, _), shadow in zip(self.bare_network.named_parameters(), self.ema.shadow_params, strict=True):
            shadow.copy_(tensors["ema"][name])
        self.ema.optimization_step = state["ema_steps"]
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.cpu_seconds, self.seconds = state["cpu_seconds"], state["seconds"]

    # one step

    def _train_step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One update; the mean loss and the gradient's norm, left on the device."""
        recipe, accelerator = self.recipe, self.accelerator
        total = torch.zeros((), device=accelerator.device)
        norm = torch.zeros((), device=accelerator.device)
        self._set_lr()
        # for dropout inside the network, which takes no generator
        torch.manual_seed(mixed_seed(recipe.seed, self.step, accelerator.process_index, 1))
        for micro in range(recipe.accumulate):
            slot = micro * accelerator.num_processes + accelerator.process_index
            images, labels, generator = self.batches.draw(self.step, slot)
            with accelerator.accumulate(self.network):
                t = self.objective.draw_times(len(images), generator)
                noise = self.objective.draw_noise(images, generator)
                conditioning = {} if labels is None else {"class_labels": labels}
                loss = self.objective.loss(self.model, images, noise, t, **conditioning).mean()
                accelerator.backward(loss)
                total += loss.detach() / recipe.accumulate
                if accelerator.sync_gradients and recipe.clip_norm is not None:
                    norm = accelerator.clip_grad_norm_(self.network.parameters(), recipe.clip_norm)
                if accelerator.sync_gradients and self._observe is not None:
                    self._observe(total)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.ema.step(self.bare_network.parameters())
        self.step += 1
        return total, norm

    # the run

    def _progress(self) -> float:
        """Share of the budget that is used up; the first limit to be reached counts."""
        budget = self.recipe.budget
        by_images = self.step * self.recipe.batch_size / budget.images if budget.images else 0.0
        by_time = self.cpu_seconds / (60 * budget.cpu_minutes) if budget.cpu_minutes else 0.0
        return min(1.0, max(by_images, by_time))

    def _lr_factor(self) -> float:
        schedule = self.recipe.schedule
        warmup = min(1.0, (self.step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
        if schedule.decay == "constant":
            return warmup
        cosine = 0.5 * (1 + math.cos(math.pi * self._progress()))
        return warmup * (schedule.final + (1 - schedule.final) * cosine)

    def _set_lr(self) -> None:
        factor = self._lr_factor()
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("initial_lr", self.recipe.optimizer.lr) * factor

    def _measure(self, ends: bool) -> tuple[float, float]:
        """Measure the dynamics where it is time to; the CPU and wall-clock seconds that it took."""
        if self.dynamics is None or not self.dynamics.due(self.step, ends):
            return 0.0, 0.0
        cpu, wall = time.process_time(), time.perf_counter()
        if self.dynamics.affordable(self.seconds):
            rates = [group["lr"] for group in self.optimizer.param_groups]
            if not ends:
                self._set_lr()  # stability is a matter of the step to come
            self.accelerator.log(self.dynamics.measure(self.step, self.seconds), step=self.step)
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        return time.process_time() - cpu, time.perf_counter() - wall

    def _report(self, bar: tqdm, losses: list[torch.Tensor], norms: list[torch.Tensor], started: float) -> None:
        """Bring the losses since the last report to the host, once, and write them down."""
        loss = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"training: the loss is {loss} between steps {self.step - len(losses) + 1} and {self.step}; "
                f"the last good checkpoint is {latest_checkpoint(self.checkpoints) or 'none'}"
            )
        if self.log is None:
            return
        speed = len(losses) * self.recipe.batch_size / max(self.seconds - started, 1e-9)
        row = {
            "step": self.step,
            "images": self.step * self.recipe.batch_size,
            "loss": round(loss, 6),
            "grad_norm": round(torch.stack(norms).mean().item(), 6),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": round(speed, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "seconds": round(self.seconds, 2),
        }
        self.log.append(row)
        self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=self.step)
        bar.set_postfix_str(f"loss {loss:.4f}, {speed:.0f} images/s")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM end the step under way, so that a checkpoint can be written."""

        def request_stop(number: int, frame: Any) -> None:
            self._stop = True

        try:
            previous = {s: signal.signal(s, request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: whoever owns that deals with signals
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def run(self) -> Path:
        """Train to the end of the budget and save the pipeline; see :func:`train`."""
        log, main = self.recipe.log, self.accelerator.is_main_process
        if main and self.progress:
            tqdm.write(f"precision: {self.precision.name} ({self.precision.reason}); run: {self.out}")
            if self.dynamics:
                tqdm.write(self.dynamics.describe())
        losses: list[torch.Tensor] = []
        norms: list[torch.Tensor] = []
        total = self.recipe.budget.images
        self.network.train()
        with (
            self._signals(),
            tqdm(
                total=total, initial=self.step * self.recipe.batch_size, unit="img", unit_scale=True,
                desc="training", disable=not (main and self.progress), smoothing=0.02,
            ) as bar,
        ):  # fmt: skip
            self._measure(ends=False)
            cpu_start, wall_start = time.process_time() - self.cpu_seconds, time.perf_counter() - self.seconds
            reported = self.seconds
            while self._progress() < 1.0:
                loss, norm = self._train_step()
                self.cpu_seconds, self.seconds = time.process_time() - cpu_start, time.perf_counter() - wall_start
                losses.append(loss)
                norms.append(norm)
                bar.update(self.recipe.batch_size)
                ends = self._stop or self._progress() >= 1.0
                saves = ends or self.step % log.checkpoint_every_steps == 0
                if saves or self.step % log.every_steps == 0:
                    # before a checkpoint, so that none is ever written of a diverged network
                    self._report(bar, losses, norms, reported)
                    losses, norms, reported = [], [], self.seconds
                # neither the budget nor the speed counts it
                cpu, wall = self._measure(ends and not self._stop)
                cpu_start, wall_start = cpu_start + cpu, wall_start + wall
                if saves:
                    self._save()
                if log.sample_every_steps and (self.step % log.sample_every_steps == 0 or ends) and not self._stop:
                    self._sample()
                if self._stop:
                    raise KeyboardInterrupt
        folder = self._finish()
        self.accelerator.end_training()
        return folder

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[torch.nn.Module]:
        """The bare network with the averaged weights in it, in eval mode; undone on exit."""
        parameters = list(self.bare_network.parameters())
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        self.network.eval()
        try:
            yield self.bare_network
        finally:
            self.ema.restore(parameters)
            self.network.train()

    def _sample(self) -> None:
        if self.accelerator.is_main_process:
            with self._averaged() as network, torch.no_grad():
                finish.sample_grid(network, self.recipe, self.data, self.out / "samples" / f"step-{self.step:08d}.png")

    def _finish(self) -> Path:
        target = self.out / "pipeline"
        if self.accelerator.is_main_process:
            with self._averaged() as network:
                finish.save_pipeline(network, self.recipe, self.data, target)
        self.accelerator.wait_for_everyone()
        return target
