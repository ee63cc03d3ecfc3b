"""The plain sampling loop: any path model, any solver, any guidance, without diffusers."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.errors import InputError, NonFiniteError, check_choice, check_number
from genflow.guidance import Guidance, GuidedModel
from genflow.models.base import PathModel
from genflow.paths import Path, VPTablePath, working_dtype
from genflow.solvers import FRAMES, Solver, combine, create_solver

__all__ = ["FiniteCheck", "ODEResult", "ProbabilityFlow", "randn", "sample", "sample_adaptive", "time_grid"]


def randn(
    shape: Sequence[int],
    generators: Iterable[torch.Generator | int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise ``(B, *shape)``, each sample from its own generator.

    ``generators`` has one generator or integer seed for each sample. Drawn in float32 on the generator's own device,
    then cast and moved: a seed means one image, whatever the batch, the dtype and the device of the network.
    """
    rows = []
    for generator in generators:
        if not isinstance(generator, torch.Generator):
            generator = torch.Generator().manual_seed(int(generator))
        row = torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device=generator.device)
        rows.append(row.to(device=device, dtype=dtype))
    if not rows:
        raise InputError("generators: got none; allowed: one generator or seed for each sample")
    return torch.stack(rows)


def time_grid(
    path: Path,
    steps: int,
    spacing: str = "uniform",
    *,
    rho: float = 7.0,
    start: float = 1.0,
    end: float = 0.0,
    noise_min: float | None = None,
    noise_max: float | None = None,
) -> np.ndarray:
    """``steps + 1`` falling times, float64.

    Args:
        path: the path to sample on.
        steps: number of steps, 1 at least.
        spacing: ``uniform`` in t from ``start`` to ``end``; or ``karras``, ``steps`` noise levels evenly spaced in
            their 1/rho power and a last step to ``t = 0`` (Karras et al. 2022, eq. 5).
        rho: for karras; 7 in the paper.
        start: the first time; below 1 to begin from a partly noised image.
        end: the last time, uniform spacing only.
        noise_min: karras' lowest level; 0.002 (the paper's), or the level of the first knot of a VP table.
        noise_max: karras' highest level; by default that of ``start``, or 80 (the paper's) where that is infinite:
            the grid then begins at ``start`` in the place of the level 80.

    Raises:
        InputError: an option out of range.
    """
    check_choice("spacing", spacing, ("uniform", "karras"))
    steps = int(check_number("steps", steps, at_least=1, integer=True))
    check_number("start", start, above=0, at_most=1)
    if spacing == "uniform":
        check_number("end", end, at_least=0, below=start)
        return np.linspace(start, end, steps + 1)
    check_number("rho", rho, above=0)
    top = path.noise_level(float(start))
    if noise_min is None:
        knot = path.noise_level(1 / path.num_train_timesteps) if isinstance(path, VPTablePath) else 0.0
        noise_min = min(max(0.002, knot), top / 2)
    high = noise_max if noise_max is not None else 80.0 if math.isinf(top) else top
    check_number("noise_max", high, above=0)
    check_number("noise_min", noise_min, above=0, below=high)
    ramp = np.linspace(high ** (1 / rho), noise_min ** (1 / rho), steps) if steps > 1 else np.array([high ** (1 / rho)])
    times = np.append(path.time(ramp**rho), 0.0)
    if noise_max is None:
        times[0] = start
    return times


class FiniteCheck:
    """Notices NaN and infinity: at once on the host, after the run on an accelerator, so that no step waits.

    Call :meth:`look` after every evaluation and :meth:`verdict` once at the end. ``what(i)`` words the error for
    evaluation ``i``.
    """

    def __init__(self, what: Callable[[int], str]) -> None:
        self.what = what
        self.flags: list[Tensor] = []

    def look(self, x: Tensor) -> None:
        """Note whether the state ``x`` is finite; on the host, raise NonFiniteError if it is not."""
        self.flags.append(torch.isfinite(x).all())
        if x.device.type == "cpu":
            self.verdict(len(self.flags) - 1)

    def verdict(self, first: int = 0) -> None:
        """Raise NonFiniteError for the first bad evaluation from ``first`` on."""
        good = torch.stack(self.flags[first:]).tolist() if self.flags[first:] else []
        if not all(good):
            raise NonFiniteError(self.what(first + good.index(False)))


def _prepare(
    model: PathModel, x: Tensor, guidance: Guidance | None, null_label: int | None, steps: int | None
) -> tuple[PathModel, Tensor]:
    """The model with guidance around it, told the number of steps, and the state in float32 at least."""
    if not bool(torch.isfinite(x).all()):
        raise InputError("x: the initial state has NaN or infinite values")
    if guidance is not None:
        model = GuidedModel(model, guidance, null_label)
    if isinstance(model, GuidedModel):
        model.reset(steps)
    return model, x.to(working_dtype(x))


@torch.no_grad()
def sample(
    model: PathModel,
    x: Tensor,
    times: np.ndarray | Sequence[float],
    solver: str | Solver = "euler",
    guidance: Guidance | None = None,
    null_label: int | None = None,
    callback: Callable[[int, float, Tensor, Tensor], None] | None = None,
    progress: bool = False,
    generators: Sequence[torch.Generator] | None = None,
    **conditioning: Any,
) -> Tensor:
    """Carry the states ``x`` ``(B, ...)`` from ``times[0]`` down to ``times[-1]``.

    Args:
        model: any path model; see :func:`genflow.models.on_path` to sample on a path that is not its own.
        x: the initial state; from pure noise ``path.prior_std * path.noise(randn(...), generators)``.
        times: falling times, see :func:`time_grid`.
        solver: a solver or its name.
        guidance: a guidance rule; None calls the model as it is.
        null_label: the label of the unconditional half; by default the model's own.
        callback: called after every step as ``callback(step, t, x, x0)``: steps count from 0, ``x`` is the state now
            reached at time ``t``, ``x0`` the last prediction of the data.
        progress: show a progress bar on stderr.
        generators: one for each sample, for a stochastic solver's noise; None draws from torch's own generator.
        **conditioning: handed to the model (``class_labels``, ...).

    Returns:
        The final state, float32 at least. Samples do not depend on one another.

    Raises:
        InputError: bad times, names or shapes, before the first evaluation.
        NonFiniteError: the network gave NaN or infinity; the message names the step.
    """
    solver = create_solver(solver) if isinstance(solver, str) else solver
    solver.start(model.path, np.asarray(times, dtype=np.float64))
    count, steps = len(solver.evaluations), len(solver.times) - 1
    model, x = _prepare(model, x, guidance, null_label, steps)

    def bad(i: int) -> str:
        n = solver.step_of[i]
        return f"the network gave NaN or infinity at step {n + 1} of {steps} (t={solver.evaluations[i]:.6g})"

    check = FiniteCheck(bad)
    for i in _bar(count, progress):
        step = int(solver.step_of[i])
        if isinstance(model, GuidedModel):
            model.step = step
        prediction = model.predict(x, float(solver.evaluations[i]), **conditioning)
        noise = _noise_like(x, generators) if solver.draws(i) else None
        x = solver.step(x, prediction, i, noise)
        check.look(x)
        if callback is not None and (i + 1 == count or solver.step_of[i + 1] != step):
            callback(step, float(solver.times[step + 1]), x, prediction.x0)
    check.verdict()
    return x


def _noise_like(x: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
    if generators is None:
        return torch.randn_like(x)
    if len(generators) != x.shape[0]:
        raise InputError(f"generators: got {len(generators)}; allowed: one for each of {x.shape[0]} samples")
    return randn(x.shape[1:], generators, x.dtype, x.device)


def _bar(count: int, progress: bool) -> Iterable[int]:
    if not progress:
        return range(count)
    from tqdm.auto import tqdm

    return tqdm(range(count), desc="sampling", unit="eval")


class ProbabilityFlow:
    """A model's probability-flow ODE in the velocity frame, for solvers that choose their times: ``dz/du = f(u, z)``.

    ``z = x / (alpha + sigma)`` and ``u = sigma / (alpha + sigma)`` (:mod:`genflow.solvers.frames`); f is
    ``epsilon - x0``, bounded on every path.

    Attributes:
        evaluations: how often the network was asked.
    """

    frame = FRAMES["velocity"]

    def __init__(self, model: PathModel, low: float, high: float, conditioning: dict[str, Any]) -> None:
        """Times are kept to ``low`` .. ``high``, against the rounding of a solver's clock."""
        self.model, self.low, self.high, self.conditioning = model, low, high, conditioning
        self.evaluations = 0

    def scale(self, t: float) -> float:
        """The factor between x and z."""
        return float(self.frame.scale(self.model.path, t))

    def clock(self, times: np.ndarray) -> np.ndarray:
        """u at ``times``."""
        return self.frame.clock(self.model.path, times)

    def predict(self, x: Tensor, t: float) -> Tensor:
        """f at the state ``x`` and time ``t``. Raises NonFiniteError, naming the time, for NaN or infinity."""
        self.evaluations += 1
        slope = self.model.predict(x, t, **self.conditioning).to(self.frame.kind)
        if not bool(torch.isfinite(slope).all()):
            raise NonFiniteError(f"the network gave NaN or infinity at evaluation {self.evaluations} (t={t:.6g})")
        return slope

    def __call__(self, u: Tensor, z: Tensor) -> Tensor:
        clock = u.item() if u > 1e-15 else 0.0  # torchdiffeq steps a hair short of the end
        t = min(max(self.model.path.time(self.frame.level(clock)), self.low), self.high)
        return self.predict(z * self.scale(t), t)


@dataclass(frozen=True)
class ODEResult:
    """What :func:`sample_adaptive` found.

    Attributes:
        x: the final state, float32 at least.
        evaluations: how often the network was asked, the step to ``t = 0`` included.
    """

    x: Tensor
    evaluations: int


@torch.no_grad()
def sample_adaptive(
    model: PathModel,
    x: Tensor,
    *,
    start: float = 1.0,
    noise_min: float = 0.002,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
    denoise: bool = True,
    guidance: Guidance | None = None,
    null_label: int | None = None,
    **conditioning: Any,
) -> ODEResult:
    """Integrate the probability-flow ODE from ``start`` down to ``noise_min`` with torchdiffeq's adaptive steps.

    The ODE is solved in the velocity frame (:mod:`genflow.solvers.frames`), where its right-hand side,
    ``epsilon - x0``, is bounded on every path. The step size follows the error norm of the whole batch, so that here
    samples do depend a little on their batch, within the tolerances.

    Args:
        model, x, guidance, null_label, conditioning: as in :func:`sample`.
        start: the time of ``x``.
        noise_min: the noise level where integration stops; 0.002 (Karras et al. 2022). May be 0 for networks that
            predict a velocity or v_prediction; others divide by the noise level.
        rtol, atol: tolerances; 1e-5 (Song et al. 2021).
        method: an adaptive method of torchdiffeq (``dopri5``, ``bosh3``, ``dopri8``, ...).
        denoise: finish with one Euler step from there to ``t = 0``.

    Raises:
        InputError: an option out of range.
        NonFiniteError: the network gave NaN or infinity; the message names the time.
    """
    from torchdiffeq import odeint

    check_choice("method", method, ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"))
    check_number("start", start, above=0, at_most=1)
    check_number("noise_min", noise_min, at_least=0, below=model.path.noise_level(float(start)))
    check_number("rtol", rtol, above=0)
    check_number("atol", atol, above=0)
    model, x = _prepare(model, x, guidance, null_label, None)
    if isinstance(model, GuidedModel) and model.guidance.counts_steps:
        raise InputError(
            f"guidance: {model.guidance!r} counts steps, which an adaptive solver has not; "
            "allowed: no momentum, start 0 and stop 1"
        )
    end = model.path.time(float(noise_min))
    flow = ProbabilityFlow(model, end, start, conditioning)
    span = torch.as_tensor(flow.clock(np.array([start, end])), dtype=torch.float64, device=x.device)
    # the clock's dtype (the state keeps its own), and a step that ends at the last time: by default one goes past it
    options = {"dtype": torch.float64, "step_t": span[-1:]}
    z = odeint(flow, x / flow.scale(start), span, rtol=rtol, atol=atol, method=method, options=options)[-1]
    x = z * flow.scale(end)
    if denoise and end > 0:
        a, b = (float(w) for w in flow.frame.weights(model.path, end, 0.0))
        x = combine(a, x, b, flow.predict(x, float(end)))
    return ODEResult(x.to(working_dtype(x)), flow.evaluations)
