"""Reflow and distillation to a few steps: pairs from the teacher, training on them, the same again from the student."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from genflow.data import load_images
from genflow.distillation.pairs import Pairs, load_pairs, make_pairs
from genflow.distillation.reflow_recipe import MeasureSection, ReflowRecipe, load_reflow_recipe
from genflow.distillation.reflow_task import ReflowTask
from genflow.distillation.teacher import ODETeacher
from genflow.errors import InputError, check_number
from genflow.files import atomic_folder, fingerprint, output_folder, write_json
from genflow.metrics.distance import rms_distance
from genflow.pipelines import locate
from genflow.processes import process_state
from genflow.training.batches import mixed_seed
from genflow.training.records import check_trackers
from genflow.training.trainer import Trainer

__all__ = ["reflow"]

_REPORT = "reflow.json"
_STAGE = "stage.json"
_WHEN = ("before", "after")
_FREE = ("log", "dynamics", "measure")  # sections that do not decide the student


@dataclass(frozen=True)
class _Stage:
    """One training of the run; ``grid_steps`` where it is a distillation."""

    name: str
    number: int
    grid_steps: int | None = None


def reflow(
    model: str | Path,
    out: str | Path,
    *,
    rounds: int = 1,
    pairs: int | None = None,
    distill_steps: int | None = None,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
    restart: bool = False,
    trackers: Sequence[str] = (),
    progress: bool = True,
) -> Path:
    """Straighten the flow of ``model``, and distil it to a few steps.

    Each round solves the teacher's ODE for many noises and trains the network on, from its weights, along straight
    lines between those noises and their images (Liu et al. 2023, arXiv 2209.03003); the student is the next round's
    teacher. One round is enough where training is done well (Lee et al. 2024, arXiv 2405.20320). Distillation is one
    more such training, at the times of a K-step sampler alone. Guidance is a part of the first round's pairs; the
    students need none.

    The folder holds for each stage its pairs (which may be removed when it is done), the training run and
    ``stage.json``; ``pipeline``, the last student; and ``reflow.json``, what was measured before and after each stage.
    The same call goes on where an interrupted one stopped, to the same weights.

    Args:
        model: a shipped model's name or a saved pipeline's folder.
        out: folder of the run.
        rounds: of reflow; 0 with ``distill_steps`` distils the teacher itself.
        pairs: a round's number of pairs; by default the recipe's (50,000).
        distill_steps: steps K of the distilled student, or None for no distillation.
        recipe: a YAML file of settings that differ from :class:`ReflowRecipe`'s.
        overrides: ``"optimizer.lr=3e-4"`` and the like.
        restart: throw away what ``out`` holds of an earlier run.
        trackers: accelerate's trackers.
        progress: show bars, and the measurements as they come.

    Returns:
        The folder of the student, in diffusers' layout.

    Raises:
        InputError: settings, a model or pairs that cannot be used, or another run in ``out``.
        NonFiniteError: a network gave NaN or infinity, or the loss did; the last good checkpoint stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    rounds = int(check_number("rounds", rounds, at_least=0, integer=True))
    if distill_steps is not None:
        distill_steps = int(check_number("distill_steps", distill_steps, at_least=1, at_most=1000, integer=True))
    stages = [_Stage(f"round-{n}", n) for n in range(1, rounds + 1)]
    if distill_steps:
        stages.append(_Stage(f"distill-{distill_steps}", rounds + 1, distill_steps))
    if not stages:
        raise InputError("rounds: 0 and no distill_steps; allowed: at least one of them")
    if pairs is not None:
        overrides = [*overrides, f"pairs.count={int(check_number('pairs', pairs, at_least=1, integer=True))}"]
    settings = load_reflow_recipe(recipe, overrides)
    check_trackers(trackers)
    teacher = locate(model)
    out = output_folder("out", out)
    state = process_state()
    if restart and state.is_main_process:
        _clear(out)
    state.wait_for_everyone()
    reports = []
    for stage in stages:
        run = _StageRun(stage, settings, teacher, out / stage.name, trackers, progress)
        reports.append(run.result(reports[-1] if reports else None))
        teacher = run.pipeline
    target = out / "pipeline"
    if state.is_main_process:
        with atomic_folder(target) as temporary:
            shutil.copytree(teacher, temporary, dirs_exist_ok=True)
        write_json(out / _REPORT, {"model": str(model), "stages": reports})
    state.wait_for_everyone()
    return target


def _clear(out: Path) -> None:
    """Remove what a run makes, and nothing else."""
    for stage in (*out.glob("round-*"), *out.glob("distill-*"), out / "pipeline"):
        shutil.rmtree(stage, ignore_errors=True)
    (out / _REPORT).unlink(missing_ok=True)


class _StageRun:
    """One stage in its folder: pairs, training, measurements."""

    def __init__(
        self,
        stage: _Stage,
        recipe: ReflowRecipe,
        teacher: Path,
        folder: Path,
        trackers: Sequence[str],
        progress: bool,
    ) -> None:
        self.stage, self.folder, self.teacher = stage, folder, teacher
        self.trackers, self.progress = trackers, progress
        self.recipe = recipe
        if stage.grid_steps:
            sampling = recipe.sampling.model_copy(update={"scheduler": "euler", "steps": stage.grid_steps})
            self.recipe = recipe.model_copy(update={"sampling": sampling, "grid_steps": stage.grid_steps})
        self.state = process_state()
        self.pipeline = folder / "train" / "pipeline"

    def result(self, previous: dict[str, Any] | None) -> dict[str, Any]:
        """Do what is not done yet; the stage's report."""
        done = self._done()
        if done is not None:
            return done
        section = self.recipe.pairs
        options = {
            "solver": section.solver,
            "solver_options": section.solver_options,
            "steps": section.steps,
            # guidance is in the first student already
            "guidance_scale": section.guidance_scale if previous is None else None,
        }
        device = self.state.device
        teacher = ODETeacher(self.teacher, device, **options)
        zero = torch.zeros(1, *teacher.shape)
        self._task(teacher, Pairs(zero, zero, teacher.labels(1)))  # refuses before any work
        pairs = self._pairs(options)
        Trainer(self._task(teacher, pairs), self.folder / "train", trackers=self.trackers, progress=self.progress).run()
        report = {"stage": self.stage.name, "teacher": teacher.hash, "student": fingerprint(self.pipeline)}
        report["pairs"] = {
            "count": len(pairs),
            "transport_cost": float((pairs.noise.float() - pairs.images.float()).square().mean()),
            **{key: value for key, value in teacher.describe().items() if key in ("steps", "evaluations", "guidance")},
        }
        if self.recipe.measure.samples and self.state.is_main_process:
            report |= self._measure(teacher, previous)
        if self.state.is_main_process:
            write_json(self.folder / _STAGE, {"recipe": self._settings(), "report": report})
            self._print(report)
        self.state.wait_for_everyone()
        return report

    def _pairs(self, options: dict[str, Any]) -> Pairs:
        """The stage's pairs, made as far as they are missing; ``options`` are of the teacher."""
        section = self.recipe.pairs
        common = {
            "seed": mixed_seed(self.recipe.seed, self.stage.number),
            "shard_size": section.shard_size,
            "dtype": section.dtype,
            "precision": section.precision,
            "batch_size": section.batch_size,
            "progress": self.progress,
            **options,
        }
        real = None
        if section.real:  # first, since images may not fit
            data = self.recipe.data
            images = load_images(data.source, data.split)
            real = make_pairs(self.teacher, self.folder / "real", count=section.real, images=images, **common)
        pairs = load_pairs(make_pairs(self.teacher, self.folder / "pairs", count=section.count, **common))
        return pairs if real is None else pairs.join(load_pairs(real))

    def _task(self, teacher: ODETeacher, pairs: Pairs) -> ReflowTask:
        # how the flow is measured does not matter to an interrupted training
        recipe = self.recipe.model_copy(update={"measure": MeasureSection()})
        return ReflowTask(recipe, teacher, pairs)

    def _settings(self) -> dict[str, Any]:
        """What decides the student, JSON-safe."""
        return {k: v for k, v in self.recipe.model_dump(mode="json").items() if k not in _FREE}

    def _done(self) -> dict[str, Any] | None:
        """The report of a finished stage. Raises InputError where it had another teacher or other settings."""
        path = self.folder / _STAGE
        if not path.is_file():
            return None
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            settings, report = before["recipe"], before["report"]
            teacher = report["teacher"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: cannot be read ({error!r}); remove it, and the stage is looked at again"
            ) from error
        now = self._settings()
        changed = [key for key in now if settings.get(key) != now[key]]
        if teacher != fingerprint(self.teacher):
            changed.append("model")
        if changed:
            raise InputError(
                f"out: {self.folder} holds a finished stage with another {changed[0]!r}; allowed: the same, another "
                "folder, or --restart"
            )
        if not (self.pipeline / "model_index.json").is_file():
            raise InputError(f"{self.pipeline}: the student of a finished stage is not there; allowed: --restart")
        return report

    @torch.no_grad()
    def _measure(self, teacher: ODETeacher, previous: dict[str, Any] | None) -> dict[str, Any]:
        section = self.recipe.measure
        options = {"count": section.samples, "steps": section.steps, "progress": self.progress}
        before = previous.get("after") if previous else None
        before = teacher.measure(**options) if before is None else before
        student = ODETeacher(self.pipeline, teacher.device, solver="euler", steps=self.recipe.sampling.steps)
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn((section.samples, *teacher.shape), generator=generator).to(teacher.device)
        labels = teacher.labels(len(noise))
        distance = rms_distance(student.solve(noise, labels), teacher.solve(noise, labels))
        return {
            "before": before,
            "after": student.measure(**options),
            "distance_to_teacher": {"steps": student.steps, "rms": float(distance.mean())},
        }

    def _print(self, report: dict[str, Any]) -> None:
        if not self.progress or "before" not in report:
            return
        lines = [f"{report['stage']}: {report['pairs']['count']} pairs"]
        for key in ("straightness", "transport_cost", "detour", "curvature"):
            before, after = (math.nan if report[when][key] is None else report[when][key] for when in _WHEN)
            lines.append(f"  {key:15} {before:9.4f} -> {after:9.4f}")
        for steps, error in report["before"]["few_step_error"].items():
            lines.append(f"  error, {steps} Euler {error:9.4f} -> {report['after']['few_step_error'][steps]:9.4f}")
        found = report["distance_to_teacher"]
        lines.append(f"  student in {found['steps']} step(s) to teacher's image: rms {found['rms']:.4f}")
        tqdm.write("\n".join(lines))
