"""The training loop, on accelerate: resumable to the bit, stopped cleanly, never half-written."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from tqdm.auto import tqdm

from genflow.errors import InputError, NonFiniteError
from genflow.precision import resolve
from genflow.processes import process_state
from genflow.training.averaging import averaged, create_ema, ema_tensors, load_ema
from genflow.training.batches import mixed_seed
from genflow.training.checkpoints import (
    flatten_optimizer,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer,
    save_checkpoint,
)
from genflow.training.dynamics import TrainingDynamics
from genflow.training.growth import BatchGrowth
from genflow.training.optimizers import create_optimizer
from genflow.training.records import MetricsLog, finish_trackers, plot_loss
from genflow.training.resuming import CHECKPOINTS, keep_recipe, previous_checkpoint
from genflow.training.schedule import lr_factor, scale_lr
from genflow.training.stopping import StopRequest
from genflow.training.task import Task

__all__ = ["Trainer"]

_TENSOR_GROUPS = ("network", "ema", "optimizer")
# what may differ between an interrupted run and the one that goes on with it
_FREE_SECTIONS = ("log", "sampling", "dynamics")


class Trainer:
    """One run. Every random draw is a function of (seed, step), so the step counter is all the state there is."""

    def __init__(
        self,
        task: Task,
        out: Path,
        *,
        restart: bool = False,
        trackers: Sequence[str] = (),
        progress: bool = True,
    ) -> None:
        recipe = task.recipe
        self.task, self.recipe, self.out, self.progress = task, recipe, out, progress
        self.checkpoints = out / CHECKPOINTS
        set_seed(recipe.seed)
        network = task.create_network()
        optimizer = create_optimizer(
            recipe.optimizer.name,
            network,
            recipe.optimizer.lr,
            recipe.optimizer.weight_decay,
            recipe.optimizer.options,
            recipe.optimizer.overrides,
        )
        checkpoint = previous_checkpoint(out, recipe, _FREE_SECTIONS, restart)
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
        self.network, self.optimizer = self.accelerator.prepare(network, optimizer)
        self._observe = getattr(optimizer, "observe", None)  # MKOR-H decides by the loss
        if self.accelerator.scaler is not None and hasattr(optimizer, "loss_scale"):
            optimizer.loss_scale = self.accelerator.scaler.get_scale  # MKOR's hooks see scaled gradients
        self.bare_network = self.accelerator.unwrap_model(self.network)
        self.ema = create_ema(self.bare_network, recipe.ema)
        slots = recipe.accumulate * processes
        self.growth: BatchGrowth | None = None
        if recipe.batch_growth is not None:
            self.growth = BatchGrowth(recipe, self.bare_network.parameters(), self.accelerator)
        # growing steps have no fixed number of slots: their micro-batches are counted through, see _place
        size, device = recipe.batch_size // slots, self.accelerator.device
        task.bind(self.bare_network, self.network, device, size, 1 if self.growth else slots)
        self.step, self.images, self.cpu_seconds, self.seconds = 0, 0, 0.0, 0.0
        if loaded:
            self._restore(*loaded)
        self.log: MetricsLog | None = None
        if self.accelerator.is_main_process:
            keep_recipe(out, recipe)
            self.log = MetricsLog(out / "metrics.jsonl", self.step)
        self.dynamics: TrainingDynamics | None = None
        if recipe.dynamics.enabled and self.log is not None:
            self.dynamics = task.dynamics(self.bare_network, self.optimizer, out, self.step or -1)
        if trackers:
            self.accelerator.init_trackers("genflow")
        self._stop = StopRequest()

    # state on disk

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        optimizer_tensors, optimizer_rest = flatten_optimizer(self.optimizer.state_dict())
        scaler = self.accelerator.scaler
        save_checkpoint(
            self.checkpoints,
            self.step,
            {
                "network": self.bare_network.state_dict(),
                "ema": ema_tensors(self.bare_network, self.ema),
                "optimizer": optimizer_tensors,
            },
            {
                "optimizer": optimizer_rest,
                "ema_steps": self.ema.optimization_step,
                "scaler": scaler.state_dict() if scaler else None,
                "precision": self.precision.name,
                "images": self.images,
                "growth": self.growth.state_dict() if self.growth else None,
                "cpu_seconds": self.cpu_seconds,
                "seconds": self.seconds,
            },
            self.recipe.log.keep_checkpoints,
        )
        plot_loss(self.log.rows, self.out / "loss.png")

    def _restore(self, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> None:
        self.bare_network.load_state_dict(tensors["network"])
        load_optimizer(self.optimizer, tensors["optimizer"], state["optimizer"])
        load_ema(self.bare_network, self.ema, tensors["ema"], state["ema_steps"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.images = state.get("images", self.step * self.recipe.batch_size)  # which older checkpoints do not have
        if self.growth:
            self.growth.load_state_dict(state["growth"])
        self.cpu_seconds, self.seconds = state["cpu_seconds"], state["seconds"]

    # one step

    @property
    def _batch_size(self) -> int:
        return self.growth.batch_size if self.growth else self.recipe.batch_size

    def _place(self, micro: int) -> tuple[int, int]:
        """Step and slot by which the task knows this process's micro-batch ``micro`` of the step at hand."""
        if self.growth:
            return self.images // self.growth.micro_batch_size + micro, 0
        return self.step, micro * self.accelerator.num_processes + self.accelerator.process_index

    def _train_step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One update; the mean loss and the gradient's norm, left on the device."""
        recipe, accelerator = self.recipe, self.accelerator
        total = torch.zeros((), device=accelerator.device)
        norm = torch.zeros((), device=accelerator.device)
        self._set_lr()
        # for dropout inside the network, which takes no generator
        torch.manual_seed(mixed_seed(recipe.seed, self.step, accelerator.process_index, 1))
        accumulate = self.growth.accumulate if self.growth else recipe.accumulate
        for micro in range(accumulate):
            with accelerator.accumulate(self.network):
                loss = self.task.loss(*self._place(micro))
                accelerator.backward(loss)
                if self.growth:
                    self.growth.record(micro)
                total += loss.detach() / accumulate
                if accelerator.sync_gradients and recipe.clip_norm is not None:
                    norm = accelerator.clip_grad_norm_(self.network.parameters(), recipe.clip_norm)
                if accelerator.sync_gradients and self._observe is not None:
                    self._observe(total)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.ema.step(self.bare_network.parameters())
        self.step += 1
        self.images += self._batch_size
        if self.growth:
            self.growth.update()
        return total, norm

    # the run

    def _progress(self) -> float:
        """Share of the budget that is used up; the first limit to be reached counts."""
        budget = self.recipe.budget
        by_images = self.images / budget.images if budget.images else 0.0
        by_time = self.cpu_seconds / (60 * budget.cpu_minutes) if budget.cpu_minutes else 0.0
        return min(1.0, max(by_images, by_time))

    def _set_lr(self) -> None:
        factor = lr_factor(self.recipe.schedule, self.step, self._progress())
        scale_lr(self.optimizer, self.recipe.optimizer.lr, factor)

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

    def _report(
        self, bar: tqdm, losses: list[torch.Tensor], norms: list[torch.Tensor], started: tuple[float, int]
    ) -> None:
        """Bring the losses since the last report, at ``started`` (seconds, images), to the host and write them down."""
        loss = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"training: the loss is {loss} between steps {self.step - len(losses) + 1} and {self.step}; "
                f"the last good checkpoint is {latest_checkpoint(self.checkpoints) or 'none'}"
            )
        if self.log is None:
            return
        speed = (self.images - started[1]) / max(self.seconds - started[0], 1e-9)
        row = {
            "step": self.step,
            "images": self.images,
            **({"batch_size": self._batch_size} if self.growth else {}),
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
            self._stop.on_signals(),
            tqdm(
                total=total, initial=self.images, unit="img", unit_scale=True,
                desc="training", disable=not (main and self.progress), smoothing=0.02,
            ) as bar,
        ):  # fmt: skip
            self._measure(ends=False)
            cpu_start, wall_start = time.process_time() - self.cpu_seconds, time.perf_counter() - self.seconds
            reported = self.seconds, self.images
            while self._progress() < 1.0:
                before = self.images
                loss, norm = self._train_step()
                self.cpu_seconds, self.seconds = time.process_time() - cpu_start, time.perf_counter() - wall_start
                losses.append(loss)
                norms.append(norm)
                bar.update(self.images - before)
                ends = self._stop.asked or self._progress() >= 1.0
                saves = ends or self.step % log.checkpoint_every_steps == 0
                if saves or self.step % log.every_steps == 0:
                    # before a checkpoint, so that none is ever written of a diverged network
                    self._report(bar, losses, norms, reported)
                    losses, norms, reported = [], [], (self.seconds, self.images)
                # neither the budget nor the speed counts it
                cpu, wall = self._measure(ends and not self._stop.asked)
                cpu_start, wall_start = cpu_start + cpu, wall_start + wall
                if saves:
                    self._save()
                if self._stop.asked:
                    raise KeyboardInterrupt
                if log.sample_every_steps and (self.step % log.sample_every_steps == 0 or ends):
                    self._sample()
        folder = self._finish()
        finish_trackers(self.accelerator)
        return folder

    def _sample(self) -> None:
        if self.accelerator.is_main_process:
            with averaged(self.bare_network, self.ema) as network, torch.no_grad():
                self.task.sample_grid(network, self.out / "samples" / f"step-{self.step:08d}.png")

    def _finish(self) -> Path:
        target = self.out / "pipeline"
        if self.accelerator.is_main_process:
            with averaged(self.bare_network, self.ema) as network:
                self.task.save_pipeline(network, target)
        self.accelerator.wait_for_everyone()
        return target
