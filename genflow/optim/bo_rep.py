"""BO-REP. Hao, Gong and Liu, "Bilevel Optimization under Unbounded Smoothness: A New Algorithm and Convergence
Analysis", arXiv 2401.09587, Algorithm 1."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from genflow.errors import InputError, NonFiniteError, check_choice, check_flag, check_number
from genflow.optim.options import check_lr

__all__ = ["BORep"]

_COUNTS = ("inner_steps", "interval")


class BORep(Optimizer):
    r"""Bilevel optimization: :math:`\min_x f(x, y^*(x))` with :math:`y^*(x) = \arg\min_y g(x, y)`.

    The first step refines :math:`y` for the first :math:`x`: rounds of projected gradient steps with averaged iterates,
    each with half the step size, twice the steps and a ball :math:`\sqrt 2` times smaller. Then, in each step,

    1. every ``interval`` steps, :math:`y` makes ``inner_steps`` gradient steps on :math:`g`, within a ball of
       ``radius`` around where it was; else it stays;
    2. :math:`z \leftarrow z - \nu (\nabla^2_{yy} g\, z - \nabla_y f)`, towards
       :math:`(\nabla^2_{yy} g)^{-1} \nabla_y f`;
    3. :math:`h = \nabla_x f - \nabla^2_{xy} g\, z`, the hypergradient;
       :math:`m \leftarrow \beta m + (1 - \beta) h`;
    4. :math:`x \leftarrow x - \eta\, m / \|m\|`, one norm for all of :math:`x`.

    A torch optimizer with two groups, outer and inner, so that schedulers, hooks and ``state_dict`` work; ``step``
    takes no closure. ``grad`` is neither read nor written. In the authors' code gradients of inner steps accumulate and
    :math:`z` starts from noise; here, as in the paper, they do not, and it starts from zero.

    Args:
        outer_params: :math:`x`; may be named. Floating-point, not complex.
        inner_params: :math:`y`; may be named.
        outer_loss: returns :math:`f` at the parameters as they stand, a scalar; may draw a batch each time.
        inner_loss: returns :math:`g` likewise; strongly convex in :math:`y`, twice differentiable.
        lr: :math:`\eta`, which is the length of every step of :math:`x`; default 1e-2.
        inner_lr: step size of :math:`y`; default 5e-2.
        system_lr: :math:`\nu`, below 2 over the largest curvature of :math:`g` in :math:`y`. Default 1e-2.
        beta: default 0.9 (the authors').
        inner_steps: default 3 (the authors').
        interval: steps from one update of :math:`y` to the next; default 2 (the authors').
        radius: of the ball for each update of :math:`y`; None (default): no ball.
        refine_steps: steps of the first round of refinement; 0: no refinement. Default 20.
        refine_rounds: default 3.
        normalize: False leaves the norm out of 4: momentum descent, for comparison. Default True.
        eps: added to the norm; default 1e-10 (the authors').
        nonfinite: when a loss or gradient is NaN or infinite: "raise" (default), "skip" (parameters and state stay as
            they were), or "none" (no check, which saves a host-device sync a step).

    Raises:
        InputError: a value out of range, a parameter at both levels, one that requires no gradient, each named.
    """

    def __init__(
        self,
        outer_params: Iterable[Any],
        inner_params: Iterable[Any],
        outer_loss: Callable[[], Tensor],
        inner_loss: Callable[[], Tensor],
        *,
        lr: float | Tensor = 1e-2,
        inner_lr: float | Tensor = 5e-2,
        system_lr: float = 1e-2,
        beta: float = 0.9,
        inner_steps: int = 3,
        interval: int = 2,
        radius: float | None = None,
        refine_steps: int = 20,
        refine_rounds: int = 3,
        normalize: bool = True,
        eps: float = 1e-10,
        nonfinite: Literal["raise", "skip", "none"] = "raise",
    ) -> None:
        check_lr(lr)
        check_lr(inner_lr)
        check_number("system_lr", system_lr, above=0)
        check_number("beta", beta, at_least=0, below=1)
        for name, value in (("inner_steps", inner_steps), ("interval", interval), ("refine_rounds", refine_rounds)):
            check_number(name, value, at_least=1, integer=True)
        check_number("refine_steps", refine_steps, at_least=0, integer=True)
        if radius is not None:
            check_number("radius", radius, above=0)
        check_flag("normalize", normalize)
        check_number("eps", eps, at_least=0)
        check_choice("nonfinite", nonfinite, ("raise", "skip", "none"))
        for name, loss in (("outer_loss", outer_loss), ("inner_loss", inner_loss)):
            if not callable(loss):
                raise InputError(f"{name}: got {loss!r}; allowed: a function that returns the loss")
        self.outer_loss, self.inner_loss = outer_loss, inner_loss
        outer = {"lr": lr, "beta": beta, "normalize": normalize, "eps": eps, "nonfinite": nonfinite, "updates": 0}
        inner = {"lr": inner_lr, "system_lr": system_lr, "inner_steps": inner_steps, "interval": interval}
        inner |= {"radius": radius, "refine_steps": refine_steps, "refine_rounds": refine_rounds}
        groups = [{"params": list(outer_params), **outer}, {"params": list(inner_params), **inner}]
        _check_params(groups)
        super().__init__(groups, {})

    @property
    def _levels(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.param_groups[0], self.param_groups[1]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The two levels are given to the constructor; more groups are refused."""
        if len(self.param_groups) == 2:
            raise InputError("param_group: BORep has two groups, outer and inner; allowed: no more")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: None = None) -> dict[str, float | Tensor]:
        """One step of :math:`x`.

        Returns:
            "outer_loss" and "inner_loss" before it, and "hypergradient_norm", as tensors on the device.

        Raises:
            InputError: a closure.
            NonFiniteError: a loss or gradient is NaN or infinite, with ``nonfinite="raise"``; nothing has changed.
        """
        if closure is not None:
            raise InputError("closure: BORep calls outer_loss and inner_loss; allowed: None")
        outer, inner = self._levels
        xs, ys = outer["params"], inner["params"]
        before = [y.clone() for y in ys]
        if outer["updates"] == 0:
            self._refine()
        elif outer["updates"] % inner["interval"] == 0:
            self._descend(inner["inner_steps"], inner["lr"], inner["radius"])
        zs = [self.state[y].get("solution", torch.zeros_like(y)) for y in ys]
        with torch.enable_grad():
            f = self.outer_loss()
            fx, fy = _split(torch.autograd.grad(f, [*xs, *ys], allow_unused=True), xs, ys)
            g = self.inner_loss()
            gy = torch.autograd.grad(g, ys, create_graph=True, allow_unused=True)
            if all(each is None or not each.requires_grad for each in gy):
                raise RuntimeError("inner_loss: its gradient depends on no parameter of either level")
            gy = [torch.zeros_like(y) if each is None else each for each, y in zip(gy, ys, strict=True)]
            along = _dot(gy, zs)
            curved, _ = _split(torch.autograd.grad(along, ys, retain_graph=True, allow_unused=True), ys, [])
            nu = inner["system_lr"]
            zs = [z - nu * (hz - b) for z, hz, b in zip(zs, curved, fy, strict=True)]
            mixed, _ = _split(torch.autograd.grad(_dot(gy, zs), xs, allow_unused=True), xs, [])
        hyper = [a - b for a, b in zip(fx, mixed, strict=True)]
        beta = outer["beta"]
        old = [self.state[x].get("momentum", torch.zeros_like(x)) for x in xs]
        ms = [beta * m + (1 - beta) * h for m, h in zip(old, hyper, strict=True)]
        norm = _norm(ms)
        found = {"outer_loss": f.detach(), "inner_loss": g.detach(), "hypergradient_norm": _norm(hyper)}
        if outer["nonfinite"] != "none" and not _finite([*found.values(), norm, _norm(zs), _norm(ys)]):
            torch._foreach_copy_(ys, before)
            if outer["nonfinite"] == "skip":
                return found
            values = ", ".join(f"{key} {value.item():g}" for key, value in found.items())
            raise NonFiniteError(f"BORep: step {outer['updates']} is not finite ({values}); nothing was changed")
        scale = outer["lr"] / (norm + outer["eps"]) if outer["normalize"] else outer["lr"]
        for x, m in zip(xs, ms, strict=True):
            self.state[x]["momentum"] = m
            x.sub_(m * scale)
        for y, z in zip(ys, zs, strict=True):
            self.state[y]["solution"] = z
        outer["updates"] += 1
        return found

    def _refine(self) -> None:
        _, inner = self._levels
        ys, steps, lr, radius = inner["params"], inner["refine_steps"], inner["lr"], inner["radius"]
        if not steps:
            return
        for _ in range(inner["refine_rounds"]):
            mean = [torch.zeros_like(y) for y in ys]
            for _ in self._path(steps, lr, radius):
                torch._foreach_add_(mean, torch._foreach_div(ys, steps))
            torch._foreach_copy_(ys, mean)
            steps, lr = 2 * steps, lr / 2
            radius = None if radius is None else radius / math.sqrt(2)

    def _descend(self, steps: int, lr: float | Tensor, radius: float | None) -> None:
        for _ in self._path(steps, lr, radius):
            pass

    def _path(self, steps: int, lr: float | Tensor, radius: float | None) -> Iterator[None]:
        """Projected gradient steps of ``y``; yields after each."""
        ys = self._levels[1]["params"]
        centre = [y.clone() for y in ys]
        for _ in range(steps):
            with torch.enable_grad():
                grads = torch.autograd.grad(self.inner_loss(), ys, allow_unused=True)
            for y, grad in zip(ys, grads, strict=True):
                if grad is not None:
                    y.sub_(grad * lr)
            if radius is not None:
                away = [y - c for y, c in zip(ys, centre, strict=True)]
                shrink = (radius / _norm(away).clamp_min(radius)).clamp_max(1)
                for y, c, d in zip(ys, centre, away, strict=True):
                    y.copy_(torch.where(shrink < 1, c + shrink * d, y))
            yield


def _check_params(groups: list[dict[str, Any]]) -> None:
    seen: set[int] = set()
    for level, group in zip(("outer", "inner"), groups, strict=True):
        if not group["params"]:
            raise InputError(f"{level}_params: got none; allowed: at least one")
        for position, param in enumerate(group["params"]):
            name, tensor = param if isinstance(param, tuple) else (f"{level} parameter {position}", param)
            if not isinstance(tensor, Tensor):
                raise InputError(f"{level}_params: got {tensor!r}; allowed: tensors, or names and tensors")
            if not tensor.is_floating_point():
                raise InputError(f"{name}: got {tensor.dtype}; allowed: floating-point, real")
            if not tensor.requires_grad:
                raise InputError(f"{name}: it requires no gradient; allowed: requires_grad=True")
            if id(tensor) in seen:
                raise InputError(f"{name}: it is there twice, or at both levels; allowed: once")
            seen.add(id(tensor))


def _split(
    grads: Sequence[Tensor | None], first: Sequence[Tensor], second: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients by ``first`` and ``second``, zeros where the loss does not depend on a parameter."""
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, [*first, *second], strict=True)]
    return filled[: len(first)], filled[len(first) :]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(u * v).sum() for u, v in zip(a, b, strict=True)]).sum()


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))


def _finite(values: Sequence[Tensor]) -> bool:
    return bool(torch.stack([torch.isfinite(value) for value in values]).all())
