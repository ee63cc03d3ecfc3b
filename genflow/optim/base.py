"""What all optimizers of this package do in common; a new one adds its rule, its state and its scalars.

A subclass gives

* ``single`` and ``many``: the rule for one tensor and for a list of tensors, called as
  ``rule(param, grad, **buffers, **scalars, **constants)``. They see real tensors in float32 or wider, ``maximize``
  already applied; they change ``param`` and the buffers in place and never the gradient;
* :meth:`~OptimizerBase._new_state`: the buffers, tensors only, shaped like the parameter or without dimensions;
* :meth:`~OptimizerBase._constants` and :meth:`~OptimizerBase._scalars`: the hyperparameters of a group, and what
  depends on the learning rate or the step count (a float, or a tensor where nothing may be read back);
* :meth:`~OptimizerBase._check`: its hyperparameters' ranges;
* where all gradients are needed before any update (global norms), :meth:`~OptimizerBase._begin_step`.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _use_grad_for_differentiable

from genflow.errors import InputError, NonFiniteError, check_number
from genflow.optim.batches import Batch, Collected, StepCounts, chunks, split_by_form
from genflow.optim.compiled import CompiledSteps, as_tensors
from genflow.optim.execution import Rule, run_each, run_many, run_single, scalar_dtype, state_dtype
from genflow.optim.flat import FlatSteps, compiled_sizes, eager_sizes
from genflow.optim.options import FLAG_DEFAULTS, check_flags, check_lr
from genflow.optim.scalars import Scalar

__all__ = ["OptimizerBase"]


class OptimizerBase(Optimizer):
    """Common base: see the module's text for what a subclass gives, :class:`genflow.optim.Flags` for the options."""

    single: ClassVar[Rule]
    many: ClassVar[Rule]
    buffers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: ParamsT, hyperparameters: dict[str, Any], flags: dict[str, Any]) -> None:
        check_flags(flags)
        defaults = hyperparameters | FLAG_DEFAULTS | flags
        defaults = {key: tuple(value) if isinstance(value, list) else value for key, value in defaults.items()}
        self._check_group(defaults)
        self._skipped_steps = 0
        self._forget_caches()
        super().__init__(params, defaults)

    # what a subclass may replace

    def _check(self, group: dict[str, Any]) -> None:
        """Raise InputError for a hyperparameter out of range; ``lr``, ``eps``, ``weight_decay`` are checked already."""

    def _new_state(self, group: dict[str, Any], param: Tensor) -> dict[str, Tensor]:
        """The buffers of a parameter at its first step: zeros, one for each of :attr:`buffers`."""
        dtype = state_dtype(param)
        zeros = torch.zeros_like
        return {name: zeros(param, dtype=dtype, memory_format=torch.preserve_format) for name in self.buffers}

    def _state_dtype(self, param: Tensor, key: str) -> torch.dtype:
        """The format in which floating-point state ``key`` is kept."""
        return state_dtype(param)

    def _constants(self, group: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of the rule that stay the same while the group's options do; ``dtype`` is the parameters'."""
        return {}

    def _scalars(self, group: dict[str, Any], lr: Scalar, t: Scalar) -> dict[str, Scalar]:
        """Arguments of the rule that depend on ``lr`` and on ``t``, the count of this step (1 at the first)."""
        return {}

    def _entrywise(self, group: dict[str, Any]) -> bool:
        """Whether an entry's step depends on that entry alone, so that compiled steps may join tensors."""
        return False

    def _begin_step(self, collected: list[Collected]) -> None:
        """Called once a step, before any update, with state in place."""

    # construction and groups

    def _forget_caches(self) -> None:
        self._compiled = CompiledSteps()
        self._counts = StepCounts()
        self._flat: dict[Any, FlatSteps] = {}

    def _check_group(self, group: dict[str, Any]) -> None:
        check_lr(group["lr"])
        for name in ("eps", "weight_decay"):
            if name in group:
                check_number(name, group[name], at_least=0)
        check_flags({name: group[name] for name in FLAG_DEFAULTS})
        self._check(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, now or later; its options are checked as the constructor's are.

        Raises:
            InputError: an option out of range; a parameter that is in another group, or is not floating-point.
        """
        if isinstance(param_group, dict):
            for key, value in param_group.items():
                if isinstance(value, list) and key not in ("params", "param_names"):
                    param_group[key] = tuple(value)
            self._check_group(self.defaults | param_group)
        # torch would say only that there is one
        before = {
            id(param): _name(i, g, j) for i, g in enumerate(self.param_groups) for j, param in enumerate(g["params"])
        }
        if isinstance(param_group, dict) and not isinstance(param_group["params"], (Tensor, set)):
            param_group["params"] = list(param_group["params"])
            for param in param_group["params"]:
                tensor = param[1] if isinstance(param, tuple) else param
                if id(tensor) in before:
                    raise InputError(f"some parameters appear in more than one parameter group: {before[id(tensor)]}")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for position, param in enumerate(group["params"]):
            name = _name(len(self.param_groups) - 1, group, position)
            problem = ""
            if not (param.is_floating_point() or param.is_complex()):
                problem = f"{name}: {param.dtype} cannot be optimized; allowed: floating-point and complex"
            elif group["stochastic_rounding"] and param.dtype == torch.float16:
                problem = (
                    f"stochastic_rounding: {name} is float16; allowed: bfloat16 (and float32, where it does nothing)"
                )
            elif id(param) in before:
                problem = f"some parameters appear in more than one parameter group: {before[id(param)]}"
            if problem:
                self.param_groups.pop()
                raise InputError(problem)

    @property
    def skipped_steps(self) -> int:
        """Steps left out by ``nonfinite="skip"`` since this object was made."""
        return self._skipped_steps

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_skipped_steps", 0)
        if "_compiled" not in self.__dict__:  # copies and pickles have none
            self._forget_caches()
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)  # a checkpoint from before the option was there
            for key, value in group.items():
                if isinstance(value, list) and key not in ("params", "param_names"):
                    group[key] = tuple(value)  # JSON knows no tuples
        loading = self.__dict__.get("_loading")
        for group in self.param_groups:
            for param in group["params"]:
                if param in self.state:
                    self._settle(group, param, loading.get(param) if loading else None)

    def _settle(self, group: dict[str, Any], param: Tensor, original: dict[str, Any] | None) -> None:
        """Give loaded state its own format and device; torch has cast it to the parameter's."""
        state = self.state[param]
        for key, value in list(state.items()):
            source = original.get(key, value) if original else value
            if key == "step":
                count = source if isinstance(source, Tensor) else torch.tensor(float(source))
                home = param.device if group["capturable"] else torch.device("cpu")
                state[key] = count.detach().to(home, torch.float32, copy=True)
            elif isinstance(source, Tensor):
                floating = source.is_floating_point() or source.is_complex()
                dtype = self._state_dtype(param, key) if floating else source.dtype
                if floating and not source.is_complex():
                    dtype = dtype.to_real()
                state[key] = source if original is None and source.dtype == dtype else source.to(param.device, dtype)
                if original is not None and state[key] is source:
                    state[key] = source.clone(memory_format=torch.preserve_format)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but state keeps its own format: float32 for 16-bit parameters, whatever was saved where."""

        def remember(_: Optimizer, final: dict[str, Any]) -> None:
            saved = [index for group in final["param_groups"] for index in group["params"]]
            own = [param for group in self.param_groups for param in group["params"]]
            self._loading = {
                param: final["state"][index]
                for index, param in zip(saved, own, strict=False)
                if index in final["state"]
            }

        handle = self.register_load_state_dict_pre_hook(remember)  # the last one: it sees what the others made of it
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self.__dict__.pop("_loading", None)

    # the step

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns the closure's value, if there is a closure.

        Raises:
            RuntimeError: a sparse gradient; a missing one with ``missing="raise"``.
            NonFiniteError: a gradient with NaN or infinity with ``nonfinite="raise"``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        collected = [self._collect(index, group) for index, group in enumerate(self.param_groups)]
        if not self._finite(collected):
            self._skipped_steps += 1
            return loss
        for part in collected:
            part.states.extend([self.state[param] for param in part.params])
            if not all(part.states):
                self._start(part)
        self._begin_step(collected)
        for part in collected:
            self._update_group(part)
        return loss

    def _start(self, part: Collected) -> None:
        for param, state in zip(part.params, part.states, strict=True):
            if not state:
                home = param.device if self._on_device(part.group) else torch.device("cpu")
                state["step"] = torch.zeros((), dtype=torch.float32, device=home)
                state.update(self._new_state(part.group, param))

    def _on_device(self, group: dict[str, Any]) -> bool:
        # inside a user's torch.compile of the step, counts must not become guards
        return group["capturable"] or torch.compiler.is_compiling()

    def _collect(self, index: int, group: dict[str, Any]) -> Collected:
        params = group["params"]
        grads = [param.grad for param in params]
        if group["missing"] == "raise":
            for position, grad in enumerate(grads):
                if grad is None:
                    raise RuntimeError(f"{type(self).__name__}: {_name(index, group, position)} has no gradient")
        for position, grad in enumerate(grads):
            if grad is not None and grad.layout != torch.strided:
                name = _name(index, group, position)
                raise RuntimeError(
                    f"{type(self).__name__} does not support sparse gradients: {name} has one; "
                    "use torch.optim.SparseAdam or SGD for it, or sparse=False in the embedding"
                )
        kept = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None and p.numel()]
        return Collected(index, group, [param for param, _ in kept], [grad for _, grad in kept], [])

    def _finite(self, collected: list[Collected]) -> bool:
        """False if the step is to be left out."""
        checked = [part for part in collected if part.group["nonfinite"] != "none" and part.grads]
        if not checked:
            return True
        flags = [torch.isfinite(grad).all() for part in checked for grad in part.grads]
        device = flags[0].device
        finite = torch.stack([flag.to(device) for flag in flags]).tolist()  # the one sync
        if all(finite):
            return True
        bad = iter(finite)
        for part in checked:
            for param in part.params:
                if not next(bad) and part.group["nonfinite"] == "raise":
                    position = next(i for i, other in enumerate(part.group["params"]) if other is param)
                    name = _name(part.index, part.group, position)
                    raise NonFiniteError(f"{type(self).__name__}: the gradient of {name} holds NaN or infinity")
        return False

    def _update_group(self, part: Collected) -> None:
        group = part.group
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.ndim:
            lr = lr.squeeze()
        for alike in split_by_form(part, self._entrywise(group)):
            first = alike.params[0]
            kind = part.index, first.device, first.dtype, alike.form
            device, wide = first.device, scalar_dtype(first)
            constants = self._constants(group, first.dtype)
            for turn, (batch, t) in enumerate(self._counts.count(kind, alike, self._on_device(group))):
                scalars = {key: _like(value, wide, device) for key, value in self._scalars(group, lr, t).items()}
                if batch.form == "flat":
                    self._update_flat(group, kind, turn, batch, scalars, constants)
                elif batch.form == "many":
                    self._update_many(group, kind, batch, scalars, constants)
                else:
                    self._update_each(group, batch, scalars, constants)

    def _update_flat(
        self,
        group: dict[str, Any],
        key: Any,
        turn: int,
        batch: Batch,
        scalars: dict[str, Scalar],
        constants: dict[str, Any],
    ) -> None:
        rule, maximize, stochastic = type(self).single, group["maximize"], group["stochastic_rounding"]
        steps = self._flat.get((key, turn))
        if steps is None or not steps.matches(batch.params, batch.states):
            sizes = compiled_sizes(batch.params[0].device) if group["compile"] else eager_sizes(len(self.buffers))
            steps = self._flat[key, turn] = FlatSteps(batch.params, batch.states, sizes)
        if group["compile"]:
            values = as_tensors(scalars, batch.params[0]) | constants
            for flat in steps(batch.grads):
                self._compiled.flat(key, rule, flat, values, maximize, stochastic)
        else:
            values = scalars | constants
            for flat in steps(batch.grads):
                run_each(rule, *flat, values, maximize, stochastic)

    def _update_many(
        self, group: dict[str, Any], key: Any, batch: Batch, scalars: dict[str, Scalar], constants: dict[str, Any]
    ) -> None:
        _, params, grads, states = batch
        rule, maximize, stochastic = type(self).many, group["maximize"], group["stochastic_rounding"]
        columns = {key: list(v.unbind()) if isinstance(v, Tensor) and v.ndim else v for key, v in scalars.items()}
        names = [key for key in states[0] if key != "step"]
        own = torch.compiler.is_compiling()  # the caller's graph takes everything
        if group["compile"] and not own:
            buffers = {name: [state[name] for state in states] for name in names}
            values = as_tensors(columns, params[0]) | constants
            self._compiled.many(key, rule, params, grads, buffers, values, maximize, stochastic)
            return
        for run in [slice(None)] if own else chunks(params):
            buffers = {name: [state[name] for state in states[run]] for name in names}
            values = {key: value[run] if isinstance(value, list) else value for key, value in columns.items()}
            run_many(rule, params[run], grads[run], buffers, values | constants, maximize, stochastic)

    def _update_each(
        self, group: dict[str, Any], batch: Batch, scalars: dict[str, Scalar], constants: dict[str, Any]
    ) -> None:
        rule, maximize, stochastic = type(self).single, group["maximize"], group["stochastic_rounding"]
        values = scalars | constants
        vectors = [key for key, value in scalars.items() if isinstance(value, Tensor) and value.ndim]
        for index, (param, grad, state) in enumerate(zip(batch.params, batch.grads, batch.states, strict=True)):
            values.update({key: scalars[key][index] for key in vectors})
            buffers = state.copy()
            del buffers["step"]
            if group["differentiable"]:  # autograd holds on to the old ones
                buffers = {key: value.clone() for key, value in buffers.items()}
                state.update(buffers)
            run_single(rule, param, grad, buffers, values, maximize, stochastic)


def _name(index: int, group: dict[str, Any], position: int) -> str:
    """What an error message calls a parameter."""
    if "param_names" in group:
        return f"parameter {group['param_names'][position]!r}"
    return f"parameter {position} of group {index} with shape {tuple(group['params'][position].shape)}"


def _like(value: Scalar, dtype: torch.dtype, device: torch.device) -> Scalar:
    """A scalar tensor that widens no result and that operations on ``device`` accept: those on the CPU they do."""
    if not isinstance(value, Tensor):
        return value
    return value.to(dtype) if value.device.type == "cpu" else value.to(device, dtype)
