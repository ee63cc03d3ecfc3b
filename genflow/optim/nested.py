"""Optimizers that prepare weights and gradients for another one, which then makes the step."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from genflow.errors import InputError, check_choice, check_number
from genflow.optim.base import OptimizerBase, _name
from genflow.optim.batches import Collected
from genflow.optim.execution import round_stochastically, state_dtype
from genflow.optim.options import FLAG_DEFAULTS, check_lr
from genflow.optim.registry import optimizer_class

__all__ = ["BASE", "NestedOptimizer"]

BASE = "base_"
"""Begins the names of the base optimizer's state within a parameter's."""

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_PASSED_ON = ("foreach", "compile")


class NestedOptimizer(OptimizerBase):
    """Common base of FRUGAL and MKOR.

    The base optimizer works on stand-ins, which hold weights and gradients during a step only: float32 at least, and
    of a shape that the subclass chooses. Its options stand in the parameter groups beside the subclass's own, its
    state in the parameters', so that both are saved, moved and scheduled as any optimizer's.

    A subclass gives :meth:`_feed` and :meth:`_finish`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        weight_decay: float | None,
        base: str | type[Optimizer],
        base_options: dict[str, Any] | None,
        values: dict[str, Any],
        flags: dict[str, Any],
    ) -> None:
        name = type(self).__name__
        check_lr(lr)
        if weight_decay is not None:
            check_number("weight_decay", weight_decay, at_least=0)
        self._base = _resolve(base)
        self._inner: Optimizer | None = None
        self._stand_ins: dict[Tensor, Tensor] = {}
        given = {} if weight_decay is None else {"weight_decay": weight_decay}
        given |= base_options or {}
        if self._base in _FUSED and not (flags.get("foreach") or given.get("fused") is not None):
            given["fused"] = True  # one kernel on CPUs and accelerators alike
        for key in given:
            if key in FLAG_DEFAULTS or key == "lr":
                raise InputError(f"base_options: {key!r} is {name}'s own; give it as an argument of {name}")
        defaults = _dummy(self._base, {"lr": lr} | given).defaults
        self._base_keys = tuple(key for key in defaults if key not in FLAG_DEFAULTS)
        options = {key: defaults[key] for key in self._base_keys}
        super().__init__(params, options | {"lr": lr, "base": self._base.__name__} | values, flags)

    # what a subclass gives

    def _feed(self, collected: list[Collected]) -> None:
        """Call :meth:`_give` for each parameter that the base optimizer is to update."""
        raise NotImplementedError

    def _finish(self, collected: list[Collected]) -> None:
        """Bring the stand-ins' new values to the parameters: :meth:`_write_back` where they are whole."""
        raise NotImplementedError

    def _lr_scale(self, group: dict[str, Any], matrices: bool) -> float:
        """Multiplies ``lr`` (not ``lr`` times ``weight_decay``) in the base optimizer; vectors and matrices apart."""
        return 1.0

    # construction

    def _check(self, group: dict[str, Any]) -> None:
        name = type(self).__name__
        check_choice("base", group["base"], [self._base.__name__])  # one optimizer for all groups
        for flag in ("capturable", "differentiable"):
            if group[flag]:
                raise InputError(f"{flag}: True does not go with {name}, which decides on the host; allowed: False")
        if group["compile"] and not issubclass(self._base, OptimizerBase):
            raise InputError(f"compile: {self._base.__name__} of torch.optim has no compiled step; allowed: False")
        taken = inspect.signature(self._base).parameters
        _dummy(self._base, {key: group[key] for key in self._base_keys if key in taken})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As any optimizer's; complex and sharded parameters are refused by name."""
        super().add_param_group(param_group)
        self._inner = None
        group = self.param_groups[-1]
        for position, param in enumerate(group["params"]):
            problem = "complex" if param.is_complex() else "a DTensor" if hasattr(param, "device_mesh") else ""
            if problem:
                name = _name(len(self.param_groups) - 1, group, position)
                self.param_groups.pop()
                raise InputError(f"{name} is {problem}; {type(self).__name__} takes whole, real tensors")

    # state

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_base": self._base, "_base_keys": self._base_keys}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._inner, self._stand_ins = None, {}
        super().__setstate__(state)
        for group in self.param_groups:
            if group["base"] != self._base.__name__:
                own = f"this {type(self).__name__}'s is {self._base.__name__}"
                raise InputError(f"base: the state is one of {group['base']}, {own}")

    def _new_state(self, group: dict[str, Any], param: Tensor) -> dict[str, Tensor]:
        return {}

    def _settle(self, group: dict[str, Any], param: Tensor, original: dict[str, Any] | None) -> None:
        super()._settle(group, param, original)
        state, counter = self.state[param], BASE + "step"
        if counter in state:
            count = original[counter] if original else state[counter]
            if isinstance(count, Tensor):
                home = param.device if group.get("fused") else torch.device("cpu")
                count = count.detach().to(home, copy=True)
            state[counter] = count

    def _state_dtype(self, param: Tensor, key: str) -> torch.dtype:
        inner = self._base
        if key.startswith(BASE) and issubclass(inner, OptimizerBase):
            return inner.__new__(inner)._state_dtype(param, key.removeprefix(BASE))
        return state_dtype(param)

    # the step

    def _begin_step(self, collected: list[Collected]) -> None:
        inner = self._prepare()
        self._feed(collected)
        for param, stand_in in self._stand_ins.items():
            # of all tensors, also those without gradient: some rules sum over them
            state = self.state.get(param, {})
            inner.state[stand_in] = {key.removeprefix(BASE): state[key] for key in state if key.startswith(BASE)}
        inner.step()
        for part in collected:
            for param in part.params:
                stand_in = self._stand_ins[param]
                if stand_in.grad is not None:
                    self.state[param].update({BASE + key: value for key, value in inner.state[stand_in].items()})
        self._finish(collected)
        for stand_in in self._stand_ins.values():
            stand_in.grad, stand_in.data = None, stand_in.data.new_empty(0)
        inner.state.clear()

    def _update_group(self, part: Collected) -> None:
        if part.params:
            torch._foreach_add_([self.state[param]["step"] for param in part.params], 1)

    def _give(self, param: Tensor, value: Tensor, grad: Tensor) -> None:
        stand_in = self._stand_ins[param]
        if grad.stride() != value.stride():
            grad = torch.empty_like(value).copy_(grad)  # fused kernels go through both in memory order
        stand_in.data, stand_in.grad = value, grad

    def _write_back(self, group: dict[str, Any], param: Tensor) -> None:
        """For a stand-in that was given ``param.detach().to(state_dtype(param))``: of 32-bit weights their memory."""
        stand_in = self._stand_ins[param]
        if stand_in.dtype != param.dtype:
            self._write(group, param, stand_in.data)
        else:
            torch.autograd.graph.increment_version(param)

    @staticmethod
    def _write(group: dict[str, Any], param: Tensor, result: Tensor) -> None:
        if group["stochastic_rounding"] and param.dtype == torch.bfloat16:
            result = round_stochastically(result)
        param.copy_(result)

    def _prepare(self) -> Optimizer:
        """The base optimizer, with the groups' options of this moment."""
        if self._inner is None:
            groups: list[dict[str, Any]] = []
            self._links, self._stand_ins = [], {}
            for group in self.param_groups:
                matrices = [param for param in group["params"] if param.ndim > 1]
                for params in (matrices, [param for param in group["params"] if param.ndim < 2]):
                    if params:
                        # dimensions at first as later: some optimizers warn about flattened weights
                        stand_ins = [param.detach().new_empty([0] * min(param.ndim, 2)) for param in params]
                        stand_ins = [torch.nn.Parameter(s.to(state_dtype(s))) for s in stand_ins]
                        self._stand_ins.update(zip(params, stand_ins, strict=True))
                        self._links.append((group, params is matrices))
                        groups.append({"params": stand_ins, **{key: group[key] for key in self._base_keys}})
            self._inner = self._base(groups)
        for (group, are_matrices), options in zip(self._links, self._inner.param_groups, strict=True):
            options.update({key: group[key] for key in self._base_keys})
            options.update({key: group[key] for key in _PASSED_ON if key in options})
            scale = self._lr_scale(group, are_matrices)
            if scale != 1:
                options["lr"] = group["lr"] * scale
                if "weight_decay" in options:
                    options["weight_decay"] = group["weight_decay"] / scale  # decay goes with the plain lr
        return self._inner

    @staticmethod
    def single(*args: Any, **options: Any) -> None:
        """Not used: the rule is the base optimizer's."""
        raise NotImplementedError

    many = single


def _resolve(base: str | type[Optimizer]) -> type[Optimizer]:
    cls = optimizer_class(base) if isinstance(base, str) else base
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)) or issubclass(cls, NestedOptimizer):
        raise InputError(f"base: got {base!r}; allowed: a name of genflow.optim.OPTIMIZERS, or an optimizer class")
    return cls


def _dummy(base: type[Optimizer], options: dict[str, Any]) -> Optimizer:
    """Lets the base optimizer check its options and say which it has."""
    try:
        return base([torch.zeros(2, 2, requires_grad=True)], **options)
    except TypeError as error:
        raise InputError(f"base_options: {base.__name__}: {error}") from error
