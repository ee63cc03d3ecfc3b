"""FRUGAL. Zmushko et al., "FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable Training",
arXiv 2411.07837, Algorithm 1."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from genflow.errors import check_choice, check_number
from genflow.optim.batches import FOREACH_CHUNK, Collected
from genflow.optim.execution import state_dtype
from genflow.optim.nested import BASE, NestedOptimizer
from genflow.optim.options import Flags
from genflow.optim.scalars import many_add_scaled_
from genflow.optim.subspaces import SUBSPACES, Basis, count

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
        InputError: a hyperparameter out of range, a complex or sharded (DTensor) parameter, named.
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
        """As any optimizer's; a new group chooses its subspaces at once."""
        super().add_param_group(param_group)
        self.param_groups[-1]["updates"] = 0

    # the step

    def _feed(self, collected: list[Collected]) -> None:
        self._split: list[_Split] = []
        for part in collected:
            group = part.group
            active = self._active_blocks(group)
            refresh = group["updates"] % group["update_gap"] == 0
            for param, grad in zip(part.params, part.grads, strict=True):
                grad = (-grad if group["maximize"] else grad).to(state_dtype(param))
                self._choose(part, param, grad, refresh, active)
                value = param.detach().to(grad.dtype)
                if _is_split(group, param) and (active is None or id(param) not in active):
                    chosen, old, whole = self.state[param].get("chosen"), None, grad
                    if chosen is not None:
                        subspace = SUBSPACES[group["select"]]
                        value, grad = subspace.take(_matrix(value), chosen), subspace.take(_matrix(grad), chosen)
                        old = value.clone() if isinstance(subspace, Basis) else None
                        self._give(param, value, grad)
                    self._split.append(_Split(group, param, whole, chosen, old))
                else:
                    self._give(param, value, grad)
            group["updates"] += 1

    def _finish(self, collected: list[Collected]) -> None:
        split = {id(each.param) for each in self._split}
        for part in collected:
            for param in part.params:
                if id(param) not in split:
                    self._write_back(part.group, param)
            mine = [each for each in self._split if each.group is part.group]
            in_place = [each for each in mine if each.old is None and _is_plain(each.param)]
            for some in _chunks(in_place):
                self._move_rest(part.group, [each.param for each in some], [each.grad for each in some])
            for each in in_place:
                self._put_part(each, each.param.view(len(each.param), -1))
            for each in mine:
                if each.old is not None or not _is_plain(each.param):
                    self._update_copy(each)
        self._split = []

    def _move_rest(self, group: dict[str, Any], weights: list[Tensor], grads: list[Tensor]) -> None:
        """Decay and the state-free rule, in place."""
        lr = group["lr"]
        if decay := group.get("weight_decay", 0):
            torch._foreach_mul_(weights, 1 - lr * decay)
        if group["state_free"] != "none":
            updates = torch._foreach_sign(grads) if group["state_free"] == "sign" else grads
            many_add_scaled_(weights, updates, -lr * group["free_lr_scale"])

    def _put_part(self, each: "_Split", matrix: Tensor) -> None:
        """Write the base optimizer's result over what the state-free rule did to entries with state."""
        if each.chosen is not None:
            SUBSPACES[each.group["select"]].put_(matrix, each.chosen, self._stand_ins[each.param].data)

    def _update_copy(self, each: "_Split") -> None:
        """For what cannot be changed in place: other formats and strides, and parts that are no entries."""
        group, param, chosen = each.group, each.param, each.chosen
        weights = _matrix(param.detach().to(each.grad.dtype, copy=True).contiguous())
        grad = _matrix(each.grad)
        if each.old is None:
            self._move_rest(group, [weights], [grad])
            self._put_part(each, weights)
        else:
            subspace, stand_in = SUBSPACES[group["select"]], self._stand_ins[param]
            self._move_rest(group, [weights], [subspace.residual(grad, chosen, stand_in.grad)])
            kept = 1 - group["lr"] * group.get("weight_decay", 0)
            weights += subspace.lift(weights, chosen, stand_in.data - kept * each.old)
        self._write(group, param, weights.view(param.shape))

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


class _Split(NamedTuple):
    """A parameter of which only a part (``chosen``), or nothing, is the base optimizer's."""

    group: dict[str, Any]
    param: Tensor
    grad: Tensor
    chosen: Tensor | None
    old: Tensor | None
    """The part's coordinates before the step, in a basis; None for entries."""


def _is_plain(param: Tensor) -> bool:
    """Whether it can be changed in place, as a matrix."""
    return param.is_contiguous() and state_dtype(param) == param.dtype


def _chunks(parts: list[_Split]) -> Iterator[list[_Split]]:
    """Lists of one device and dtype for multi-tensor operations, small enough for a CPU's cache."""
    chunk: list[_Split] = []
    size = 0
    for part in sorted(parts, key=lambda each: (str(each.param.device), str(each.param.dtype))):
        other = chunk and (chunk[0].param.device, chunk[0].param.dtype) != (part.param.device, part.param.dtype)
        if chunk and (other or size + part.param.numel() > FOREACH_CHUNK):
            yield chunk
            chunk, size = [], 0
        chunk.append(part)
        size += part.param.numel()
    if chunk:
        yield chunk


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
