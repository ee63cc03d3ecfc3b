"""FRUGAL. Zmushko et al., "FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable Training",
arXiv 2411.07837, Algorithm 1."""

from typing import Any, Literal, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from genflow.errors import InputError, check_choice, check_number
from genflow.optim.base import Collected, _name
from genflow.optim.execution import state_dtype
from genflow.optim.nested import BASE, NestedOptimizer
from genflow.optim.options import Flags
from genflow.optim.subspaces import SUBSPACES, count

__all__ = ["FRUGAL"]


class FRUGAL(NestedOptimizer):
    r"""State for a part of each matrix, a rule without state for the rest.

    Every ``update_gap`` steps a subspace :math:`P` is chosen. With :math:`w_P` the weights in it and :math:`w_r` the
    rest, and the gradient split likewise,

    .. math::
        w_P \leftarrow \text{base}(w_P, g_P), \quad
        w_r \leftarrow (1 - \eta\lambda) w_r, \quad w \leftarrow w_P + w_r - \eta s\, \rho(g_r),

    where :math:`\rho` is the sign or the identity. Matrices, and convolutions as (out, rest), are split; vectors
    (biases, norms) are the base optimizer's alone, and so is a group with ``density=1``: put embeddings and the
    output layer there, as the paper does. For the copies of :math:`w_P` and :math:`g_P` memory is needed during a
    step, not between steps.

    Of the authors' code this differs where that departs from the paper (its momentum starts from the weights) and
    in that a base optimizer's state is kept where the subspace did not change (``reset="always"`` is theirs), and in
    that a residual that is only rounding, as of a gradient of low rank in its singular basis, counts as zero.

    Args:
        params: parameters, named parameters or groups; real, not complex.
        lr: default 1e-3.
        weight_decay: None (default) is the base optimizer's own default (0.01 for AdamW). Where no state is kept,
            the decay is decoupled, times ``lr``.
        base: the state-full optimizer: a name of :data:`genflow.optim.OPTIMIZERS`, an import path or a class; it
            must work without a closure. Default "adamw".
        base_options: its further options, which may also stand in parameter groups. Default none.
        density: the part with state, in [0, 1]; default 0.25. 0 is the state-free rule, 1 the base optimizer.
        update_gap: steps between choices; default 200.
        select: "columns" (default), "rows" or "entries" at random; "random", a random basis; "svd", the gradient's
            leading singular vectors; "blocks", whole tensors (the rounded ``density`` of their number).
        block_order: "random" (default), "ascending", "descending" or "mirror" (to and fro), for ``select="blocks"``.
        state_free: "sign" (default), "sgd" or "none".
        full_lr_scale: multiplies ``lr`` in the base optimizer's part of split matrices; default 1.
        free_lr_scale: multiplies ``lr`` in the state-free part; default 1 (the paper fine-tunes with 0.1).
        reset: forget the state when the subspace has "changed" (default), at every choice ("always") or "never"
            (moments then belong to other coordinates than before). Tensors that leave the active blocks lose theirs.
        seed: of random choices; equal on all processes. Default 0.
        **flags: see :class:`genflow.optim.Flags`. ``capturable`` and ``differentiable`` are refused; ``compile``
            needs a base optimizer of this package.

    Raises:
        InputError: a hyperparameter out of range, named; a complex parameter.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float | None = None,
        *,
        base: str | type[Optimizer] = "adamw",
        base_options: dict[str, Any] | None = None,
        density: float = 0.25,
        update_gap: int = 200,
        select: Literal["columns", "rows", "entries", "random", "svd", "blocks"] = "columns",
        block_order: Literal["random", "ascending", "descending", "mirror"] = "random",
        state_free: Literal["sign", "sgd", "none"] = "sign",
        full_lr_scale: float = 1.0,
        free_lr_scale: float = 1.0,
        reset: Literal["changed", "always", "never"] = "changed",
        seed: int = 0,
        **flags: Unpack[Flags],
    ) -> None:
        values = {
            "density": density,
            "update_gap": update_gap,
            "select": select,
            "block_order": block_order,
            "state_free": state_free,
            "full_lr_scale": full_lr_scale,
            "free_lr_scale": free_lr_scale,
            "reset": reset,
            "seed": seed,
            "updates": 0,
        }
        super().__init__(params, lr, weight_decay, base, base_options, values, flags)

    def _check(self, group: dict[str, Any]) -> None:
        check_number("density", group["density"], at_least=0, at_most=1)
        check_number("update_gap", group["update_gap"], at_least=1, integer=True)
        check_choice("select", group["select"], (*SUBSPACES, "blocks"))
        check_choice("block_order", group["block_order"], ("random", "ascending", "descending", "mirror"))
        check_choice("state_free", group["state_free"], ("sign", "sgd", "none"))
        check_number("full_lr_scale", group["full_lr_scale"], above=0)
        check_number("free_lr_scale", group["free_lr_scale"], at_least=0)
        check_choice("reset", group["reset"], ("changed", "always", "never"))
        check_number("seed", group["seed"], at_least=0, at_most=2**31 - 1, integer=True)
        super()._check(group)

    def _lr_scale(self, group: dict[str, Any], matrices: bool) -> float:
        return group["full_lr_scale"] if matrices and group["density"] < 1 else 1.0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As any optimizer's; complex parameters are refused by name."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["updates"] = 0
        for position, param in enumerate(group["params"]):
            problem = "complex" if param.is_complex() else ""
            if hasattr(param, "device_mesh") and _is_split(group, param):
                problem = "a DTensor, of which a subspace would need all shards"
            if problem:
                name = _name(len(self.param_groups) - 1, group, position)
                self.param_groups.pop()
                raise InputError(f"{name} is {problem}; allowed: plain floating-point tensors (DTensors at density=1)")

    # the step

    def _feed(self, collected: list[Collected]) -> None:
        self._split: list[tuple[dict[str, Any], Tensor, Tensor]] = []
        for part in collected:
            group = part.group
            active = self._active_blocks(group)
            refresh = group["updates"] % group["update_gap"] == 0
            for param, grad in zip(part.params, part.grads, strict=True):
                grad = (-grad if group["maximize"] else grad).to(state_dtype(param))
                self._choose(part, param, grad, refresh, active)
                value = param.detach().to(grad.dtype)
                if _is_split(group, param) and (active is None or id(param) not in active):
                    self._split.append((group, param, grad))
                    chosen = self.state[param].get("chosen")
                    if chosen is None:
                        continue  # all of it is state-free
                    subspace = SUBSPACES[group["select"]]
                    value, grad = subspace.take(_matrix(value), chosen), subspace.take(_matrix(grad), chosen)
                self._give(param, value, grad)
            group["updates"] += 1

    def _finish(self, collected: list[Collected]) -> None:
        for group, param, grad in self._split:
            self._update_split(group, param, grad)
        split = {id(param) for _, param, _ in self._split}
        for part in collected:
            for param in part.params:
                if id(param) not in split:
                    self._write_back(part.group, param)
        self._split = []

    def _update_split(self, group: dict[str, Any], param: Tensor, grad: Tensor) -> None:
        """Everything outside the subspace, and the base optimizer's result put in its place."""
        chosen = self.state[param].get("chosen")
        subspace = SUBSPACES.get(group["select"])
        weights, grad = _matrix(param.detach().to(grad.dtype)), _matrix(grad)
        if chosen is None or subspace is None:
            rest = weights.clone()
        else:
            rest, grad = subspace.without(weights, chosen), subspace.residual(grad, chosen)
        lr = group["lr"]
        if decay := group.get("weight_decay", 0):
            rest.mul_(1 - lr * decay)
        if group["state_free"] != "none":
            update = grad.sign() if group["state_free"] == "sign" else grad
            rest.sub_(update * (lr * group["free_lr_scale"]))
        if chosen is not None and subspace is not None:
            subspace.put_(rest, chosen, self._stand_ins[param].data)
        self._write(group, param, rest.view(param.shape))

    def _choose(self, part: Collected, param: Tensor, grad: Tensor, refresh: bool, active: set[int] | None) -> None:
        """Bring the parameter's subspace up to date, and forget what no longer holds."""
        group, state = part.group, self.state[param]
        if not _is_split(group, param):
            changed = state.pop("chosen", None) is not None  # its group's options were changed
        elif active is not None:
            changed = state.pop("chosen", None) is not None
            if id(param) not in active:
                _forget(state)
        elif group["density"] == 0:
            changed = state.pop("chosen", None) is not None or any(key.startswith(BASE) for key in state)
        else:
            if not refresh and "chosen" in state:
                return
            old = state.get("chosen")
            position = next(i for i, other in enumerate(group["params"]) if other is param)
            generator = _generator(group["seed"], part.index, position, group["updates"] // group["update_gap"])
            new = SUBSPACES[group["select"]].choose(_matrix(grad), group["density"], generator)
            changed = old is None or old.shape != new.shape or not torch.equal(old, new)
            if old is not None and old.shape != new.shape:
                _forget(state)  # moments of another shape
            state["chosen"] = new
        always = refresh and group["reset"] == "always" and param.ndim > 1
        if always or (changed and group["reset"] == "changed"):
            _forget(state)

    def _active_blocks(self, group: dict[str, Any]) -> set[int] | None:
        """Which of the matrices have state, by id; None if the choice is inside each matrix."""
        if group["select"] != "blocks" or group["density"] == 1:
            return None
        blocks = [id(param) for param in group["params"] if param.ndim > 1]
        taken = count(len(blocks), group["density"])
        if taken == 0:
            return set()
        turn = group["updates"] // group["update_gap"]
        per_pass = -(-len(blocks) // taken)
        passes, within = divmod(turn, per_pass)
        order = group["block_order"]
        if order == "random":
            drawn = torch.randperm(len(blocks), generator=_generator(group["seed"], passes)).tolist()
            blocks = [blocks[i] for i in drawn]
        elif order == "descending" or (order == "mirror" and passes % 2):
            blocks.reverse()
        return {blocks[(within * taken + i) % len(blocks)] for i in range(taken)}


def _is_split(group: dict[str, Any], param: Tensor) -> bool:
    return param.ndim > 1 and group["density"] < 1


def _matrix(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)


def _forget(state: dict[str, Any]) -> None:
    for key in [key for key in state if key.startswith(BASE)]:
        del state[key]


def _generator(*numbers: int) -> torch.Generator:
    """A generator of its own for each choice, so that nothing but the step count needs saving."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63 - 25)
    return torch.Generator().manual_seed(seed)
