"""f-distill: from a diffusion or flow model to a student of one or a few evaluations (Xu, Nie, Vahdat 2025).

Two time scales, as in the paper's code: of every ``student_every`` iterations the last moves the student, along the
difference of the fake score and the teacher, weighed by the divergence; the others move the fake score (a denoiser of
the student's images) and the discriminator, which gives the density ratio. So both are first to know a new student.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from genflow.data import ImageData, load_images
from genflow.distillation.divergences import Divergence, create_divergence
from genflow.distillation.f_distill_batches import DrawStream
from genflow.distillation.f_distill_networks import Networks
from genflow.distillation.f_distill_recipe import FDistillRecipe, load_f_distill_recipe
from genflow.distillation.f_distill_report import CollapseWatch, StepValues, plot_losses
from genflow.errors import InputError
from genflow.files import check_output_folder
from genflow.pipelines import ImagePipeline
from genflow.precision import Precision, resolve
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
from genflow.training.finish import sample_grid, save_pipeline
from genflow.training.optimizers import create_optimizer
from genflow.training.recipe import OptimizerSection
from genflow.training.records import MetricsLog, check_trackers, finish_trackers
from genflow.training.resuming import CHECKPOINTS, keep_recipe, previous_checkpoint
from genflow.training.schedule import lr_factor, scale_lr
from genflow.training.stopping import StopRequest

__all__ = ["FDistiller", "f_distill"]

_FREE_SECTIONS = ("log", "collapse_reports", "compile")


def f_distill(
    model_or_recipe: str | Path | FDistillRecipe,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    divergence: Divergence | Callable[[Tensor], Tensor] | None = None,
    data: ImageData | None = None,
    restart: bool = False,
    skip_bad: bool = False,
    trackers: Sequence[str] = (),
    progress: bool = True,
) -> Path:
    """Distil a model, from the start or from the newest checkpoint in ``out``.

    Args:
        model_or_recipe: a shipped model's name, a saved pipeline's folder or a hub id; or a recipe: a shipped one's
            name, a YAML file or an :class:`FDistillRecipe`.
        overrides: ``"divergence=forward-kl"`` and the like.
        out: folder of the run; ``runs/NAME`` by default.
        divergence: one of one's own, as an object or by its second derivative
            (:class:`~genflow.distillation.UserDivergence`), in the place of the recipe's.
        data: real images in the place of the recipe's source, whose name the recipe keeps.
        restart: throw away what ``out`` holds of an earlier run.
        skip_bad: leave unreadable images out instead of refusing them.
        trackers: accelerate's trackers, such as ``"tensorboard"``.
        progress: show a progress bar.

    Returns:
        The folder of the student's pipeline, in diffusers' layout.

    Raises:
        InputError: a recipe, a teacher or data that cannot be used, or another recipe's run in ``out``.
        NonFiniteError: a network gave NaN or infinity; the message names it and the step, the last good checkpoint
            stays.
        DivergedError: the discriminator collapsed; likewise.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    if isinstance(model_or_recipe, FDistillRecipe):
        name, recipe = "f-distill", model_or_recipe
    else:
        name = f"{Path(model_or_recipe).stem.removesuffix('-f-distill')}-f-distill"
        changed = [*overrides, "divergence=user"] if divergence is not None else list(overrides)
        recipe = load_f_distill_recipe(model_or_recipe, changed)
    if recipe.divergence == "user" and divergence is None:
        raise InputError("divergence: 'user', and none was handed over; allowed: a name, or a function from Python")
    if divergence is not None and recipe.divergence != "user":
        raise InputError(f"divergence: {recipe.divergence!r} in the recipe and one handed over; say 'user' there")
    check_trackers(trackers)
    folder = Path(out) if out is not None else Path("runs") / name
    check_output_folder("out", folder)
    pipeline = ImagePipeline.from_pretrained(recipe.teacher.model)
    if data is None and recipe.data is not None:
        section = recipe.data
        data = load_images(section.source, section.split, skip_bad=skip_bad, classes=section.classes)
    rule = create_divergence(recipe.divergence if divergence is None else divergence)
    run = FDistiller(recipe, pipeline, data, rule, folder, restart=restart, trackers=trackers, progress=progress)
    return run.run()


class FDistiller:
    """One run. Every random draw is a function of (seed, step), so the step counter is all the state beside the
    networks, their optimizers and averages, and the ratio's means."""

    def __init__(
        self,
        recipe: FDistillRecipe,
        pipeline: ImagePipeline,
        data: ImageData | None,
        divergence: Divergence,
        out: Path,
        *,
        restart: bool = False,
        trackers: Sequence[str] = (),
        progress: bool = True,
    ) -> None:
        self.recipe, self.out, self.progress = recipe, out, progress
        self.checkpoints = out / CHECKPOINTS
        set_seed(recipe.seed)
        checkpoint = previous_checkpoint(out, recipe, _FREE_SECTIONS, restart)
        device = process_state().device
        self.precision = _precision(recipe.precision, device)
        # accelerate keeps the format of the first run in a process; another run may want another
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=self.precision.accelerate_name, log_with=list(trackers) or None, project_dir=out
        )
        processes = self.accelerator.num_processes
        if recipe.batch_size % processes:
            raise InputError(f"batch_size: {recipe.batch_size} is not a multiple of the {processes} processes")
        self.device = self.accelerator.device
        self.networks = Networks(recipe, pipeline.to(self.device), divergence)
        self.draws = DrawStream(
            recipe, pipeline, self.networks.times, data, self.device, recipe.batch_size // processes, processes
        )
        self._prepare()
        self.step, self.seconds = 0, 0.0
        self.watch = CollapseWatch(recipe.collapse_reports)
        if checkpoint:
            self._restore(checkpoint)
        self.log: MetricsLog | None = None
        if self.accelerator.is_main_process:
            keep_recipe(out, recipe)
            self.log = MetricsLog(out / "metrics.jsonl", self.step)
        if trackers:
            self.accelerator.init_trackers("genflow")
        self._stop = StopRequest()

    def _prepare(self) -> None:
        """Optimizers, and everything inside accelerate's wrappers."""
        recipe, networks = self.recipe, self.networks
        self._bare: dict[str, nn.Module] = {"student": networks.student, "fake": networks.fake}
        sections = {"student": recipe.optimizer, "fake": recipe.fake_optimizer}
        if networks.discriminator is not None:
            self._bare["discriminator"] = networks.discriminator
            sections["discriminator"] = recipe.discriminator_optimizer
        self._sections: dict[str, OptimizerSection] = sections
        self.optimizers: dict[str, Optimizer] = {}
        self._wrapped: dict[str, nn.Module] = {}
        for name, network in self._bare.items():
            section = sections[name]
            optimizer = create_optimizer(
                section.name, network, section.lr, section.weight_decay, section.options, section.overrides
            )
            if recipe.compile and name != "discriminator":
                network.compile()
            self._wrapped[name], self.optimizers[name] = self.accelerator.prepare(network, optimizer)
        networks.prepared(self._wrapped["student"], self._wrapped["fake"], self._wrapped.get("discriminator"))
        self.ema = create_ema(networks.student, recipe.ema)

    # state on disk

    def _groups(self) -> tuple[str, ...]:
        names = tuple(self._bare)
        ratio = ("ratio",) if self.networks.ratio is not None else ()
        return (*names, *(f"{name}_optimizer" for name in names), "ema", *ratio)

    def _save(self) -> None:
        if self.log is None:
            return
        states = {name: flatten_optimizer(optimizer.state_dict()) for name, optimizer in self.optimizers.items()}
        tensors = {name: network.state_dict() for name, network in self._bare.items()}
        tensors |= {f"{name}_optimizer": found for name, (found, _) in states.items()}
        tensors["ema"] = ema_tensors(self.networks.student, self.ema)
        if self.networks.ratio is not None:
            tensors["ratio"] = self.networks.ratio.state_dict()
        state = {
            "optimizers": {name: rest for name, (_, rest) in states.items()},
            "ema_steps": self.ema.optimization_step,
            "suspected": self.watch.count,
            "precision": self.precision.name,
            "seconds": self.seconds,
        }
        save_checkpoint(self.checkpoints, self.step, tensors, state, self.recipe.log.keep_checkpoints)
        plot_losses(self.log.rows, self.out / "loss.png")

    def _restore(self, checkpoint: Path) -> None:
        tensors, state = load_checkpoint(checkpoint, self._groups())
        if state["precision"] != self.precision.name:
            raise InputError(
                f"precision: this machine's is {self.precision.name}, the run's was {state['precision']}; allowed: "
                f"--set precision={state['precision']} from the start, or --restart"
            )
        for name, network in self._bare.items():
            network.load_state_dict(tensors[name])
            load_optimizer(self.optimizers[name], tensors[f"{name}_optimizer"], state["optimizers"][name])
        load_ema(self.networks.student, self.ema, tensors["ema"], state["ema_steps"])
        if self.networks.ratio is not None:
            self.networks.ratio.load_state_dict(tensors["ratio"])
        self.step, self.seconds, self.watch.count = state["step"], state["seconds"], state["suspected"]

    # one step

    def _train_step(self) -> dict[str, Tensor]:
        """One iteration; its losses and gradient norms, left on the device."""
        recipe, accelerator = self.recipe, self.accelerator
        student = (self.step + 1) % recipe.student_every == 0
        moved = ["student"] if student else [name for name in self._bare if name != "student"]
        factor = lr_factor(recipe.schedule, self.step, self.step / recipe.iterations)
        for name in moved:
            scale_lr(self.optimizers[name], self._sections[name].lr, factor)
        # for optimizers that draw
        torch.manual_seed(mixed_seed(recipe.seed, self.step, accelerator.process_index, 1))
        draw = self.draws.draw(self.step, accelerator.process_index, with_real=not student)
        with accelerator.autocast():
            losses = self.networks.student_losses(draw) if student else self.networks.other_losses(draw)
        accelerator.backward(losses.pop("total"))
        for name in moved:
            if recipe.clip_norm is not None:
                losses[f"{name}_norm"] = accelerator.clip_grad_norm_(self._wrapped[name].parameters(), recipe.clip_norm)
            self.optimizers[name].step()
            self.optimizers[name].zero_grad()
        if student:
            self.ema.step(self.networks.student.parameters())
        self.step += 1
        return losses

    # the run

    def _report(self, bar: tqdm, values: StepValues, steps: int, started: float) -> None:
        """Bring the values since the last report to the host, once, and write them down."""
        kept = latest_checkpoint(self.checkpoints)
        means = values.take(lambda stacked: self.accelerator.reduce(stacked, reduction="mean"), kept)
        self.seconds = time.perf_counter() - started
        speed = steps * self.recipe.batch_size / max(self.seconds - self._reported, 1e-9)
        self._reported = self.seconds
        if self.log is not None:
            row = {
                "step": self.step,
                "images": self.step * self.recipe.batch_size,
                **{name: round(value, 6) for name, value in means.items()},
                "lr": self.optimizers["student"].param_groups[0]["lr"],
                "images_per_second": round(speed, 2),
                "seconds": round(self.seconds, 2),
            }
            self.log.append(row)
            self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=self.step)
            shown = {"student": "student_loss", "fake": "fake_loss", "disc": "discriminator_loss"}
            text = ", ".join(f"{short} {means[name]:.4f}" for short, name in shown.items() if name in means)
            bar.set_postfix_str(f"{text}, {speed:.0f} images/s")
        self.watch.look(means, self.step, kept)

    def run(self) -> Path:
        """Distil to the end and save the student's pipeline; see :func:`f_distill`."""
        log, total, main = self.recipe.log, self.recipe.iterations, self.accelerator.is_main_process
        if main and self.progress:
            tqdm.write(self._description())
        values, steps = StepValues(), 0
        started = time.perf_counter() - self.seconds
        self._reported = self.seconds
        with (
            self._stop.on_signals(),
            tqdm(total=total, initial=self.step, desc="f-distill", disable=not (main and self.progress)) as bar,
        ):
            while self.step < total:
                values.add(self.step + 1, self._train_step())
                steps += 1
                bar.update()
                ends = self._stop.asked or self.step >= total
                saves = ends or self.step % log.checkpoint_every_steps == 0
                if saves or self.step % log.every_steps == 0:
                    # before a checkpoint, so that none is ever written of a diverged network
                    self._report(bar, values, steps, started)
                    steps = 0
                if saves and (ends or not self.watch.suspects):
                    self._save()
                if self._stop.asked:
                    raise KeyboardInterrupt
                if log.sample_every_steps and (self.step % log.sample_every_steps == 0 or ends):
                    self._sample()
        folder = self._finish()
        finish_trackers(self.accelerator)
        return folder

    def _description(self) -> str:
        recipe, networks = self.recipe, self.networks
        levels = ", ".join(f"{t:g}" for t in networks.scheduler.config.student_times)
        guidance = "none" if networks.guidance is None else repr(networks.guidance)
        heads = "none" if networks.discriminator is None else f"{len(networks.discriminator.heads)} heads"
        return (
            f"divergence: {networks.divergence.name}; student's levels: {levels}; teacher's guidance: {guidance}; "
            f"discriminator: {heads}; times: {networks.times.distribution}\n"
            f"precision: {self.precision.name} ({self.precision.reason}); batch: {recipe.batch_size}; run: {self.out}"
        )

    def _sample(self) -> None:
        if self.accelerator.is_main_process:
            with averaged(self.networks.student, self.ema) as network, torch.no_grad():
                pipeline = self.networks.build_pipeline(network)
                sample_grid(pipeline, self.out / "samples" / f"step-{self.step:08d}.png")

    def _finish(self) -> Path:
        target = self.out / "pipeline"
        if self.accelerator.is_main_process:
            with averaged(self.networks.student, self.ema) as network:
                save_pipeline(self.networks.build_pipeline(network), target)
        self.accelerator.wait_for_everyone()
        return target


def _precision(requested: str, device: torch.device) -> Precision:
    """As for training, but never fp16: one loss scale would have to serve three networks."""
    found = resolve(requested, device.type)
    return Precision("fp32", "this device has no bfloat16") if found.name == "fp16" else found
