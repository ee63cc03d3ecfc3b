"""MKOR. Mozaffari et al., "MKOR: Momentum-Enabled Kronecker-Factor-Based Optimizer Using Rank-1
Updates", arXiv 2306.01685, Algorithm 1."""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from genflow.errors import InputError, check_choice, check_flag, check_number
from genflow.optim.batches import Collected
from genflow.optim.execution import state_dtype
from genflow.optim.kronecker import Form, precondition, stabilize_, update_inverse_
from genflow.optim.layer_statistics import SUPPORTED, LayerStatistics
from genflow.optim.nested import NestedOptimizer
from genflow.optim.options import Flags

__all__ = ["MKOR"]

FACTORS = ("input_inverse", "output_inverse")
SHARED = ("updates", "first_order", "loss_sum", "loss_seen", "loss_mean", "loss_rate", "loss_best", "loss_count")
_HINT = "unsupported='base' (in a recipe, optimizer.options.unsupported=base) leaves such layers to the base optimizer"


class _Layer:
    """The modules of one weight, and what their hooks gather."""

    def __init__(self, name: str, weight: Tensor, bias: Tensor | None, wanted: Callable[[], bool]) -> None:
        self.name, self.weight, self.bias = name, weight, bias
        self.statistics = LayerStatistics(wanted)


class MKOR(NestedOptimizer):
    r"""A Kronecker-factored preconditioner in front of any optimizer, kept up to date by rank-one steps.

    For a Linear or convolution with weight (and bias) gradient :math:`\nabla` as a matrix (outputs, inputs), mean input
    :math:`a` (with a 1 for the bias) and mean output gradient :math:`b`, every ``inverse_gap`` steps

    .. math::
        G \leftarrow \gamma G + (1 - \gamma) b b^T, \quad A \leftarrow \gamma A + (1 - \gamma) a a^T,

    of which only the inverses are kept (see :func:`genflow.optim.kronecker.update_inverse_`), after an inverse with an
    entry above ``threshold`` has been drawn towards the identity. Every step, the base optimizer is given

    .. math::
        D = G^{-1} \nabla A^{-1} \cdot \|\nabla\| / \|G^{-1} \nabla A^{-1}\|.

    An update of the inverses costs :math:`O(d^2)` in the width :math:`d`, where inverting costs :math:`O(d^3)`; the
    product :math:`D` is two matrix multiplications. Vectors (norms) and layers that were not used are the base
    optimizer's. With ``torch.distributed``, the vectors :math:`a, b` are averaged over processes, :math:`O(d)` numbers.

    Args:
        params: parameters, named parameters or groups; or a module, for all its parameters that require gradients.
        model: the module whose layers are watched; default: ``params``, if that is a module.
        lr: default 1e-3.
        weight_decay: None (default) is the base optimizer's own default.
        base: name, import path or class of the optimizer that makes the step; default "sgd".
        base_options: its options; None (default) is momentum 0.9 for "sgd", else its defaults.
        decay: :math:`\gamma`; default 0.95 (the authors' code).
        inverse_gap: steps between updates of the inverses; default 10.
        warmup: steps at the start with an update each; default 0.
        threshold: largest entry that an inverse may have; default 2 (the authors' code).
        stabilization: the identity's part in the mixture beyond that; more than ``1 - decay`` where ``form`` is
            "exact", or the inverses would grow without bound. Default 0.1.
        form: "exact" (default) or "paper"; see :func:`genflow.optim.kronecker.update_inverse_`. The paper's formula is
            not the inverse of the factor.
        clip: entries of :math:`a` and :math:`b` are clipped to this size; default 100.
        half_precision: keep the inverses as float16; computed with in float32. Default False.
        exclude: names of modules or parameters (``*`` for any text) that are the base optimizer's, such as wide
            output layers. Default none.
        unsupported: what to do with matrices of other layers (embeddings, transposed and grouped convolutions,
            recurrent layers): "raise" (default), or "base".
        loss_scale: what the loss was multiplied with before ``backward``: a number, or a function such as a
            GradScaler's ``get_scale``. Default 1.
        **flags: see :class:`genflow.optim.Flags`. ``capturable`` and ``differentiable`` are refused.

    Raises:
        InputError: a hyperparameter out of range; a frozen weight, one that is not among ``params``, or an
            unsupported layer's; a complex or sharded (DTensor) parameter; each named.
    """

    hybrid = False

    def __init__(
        self,
        params: nn.Module | ParamsT,
        model: nn.Module | None = None,
        lr: float | Tensor = 1e-3,
        weight_decay: float | None = None,
        *,
        base: str | type[Optimizer] = "sgd",
        base_options: dict[str, Any] | None = None,
        decay: float = 0.95,
        inverse_gap: int = 10,
        warmup: int = 0,
        threshold: float = 2.0,
        stabilization: float = 0.1,
        form: Form = "exact",
        clip: float = 100.0,
        half_precision: bool = False,
        exclude: Sequence[str] = (),
        unsupported: Literal["raise", "base"] = "raise",
        loss_scale: float | Callable[[], float] = 1.0,
        **flags: Unpack[Flags],
    ) -> None:
        values = {
            "decay": decay,
            "inverse_gap": inverse_gap,
            "warmup": warmup,
            "threshold": threshold,
            "stabilization": stabilization,
            "form": form,
            "clip": clip,
            "half_precision": half_precision,
        }
        self._set_up(
            params, model, lr, weight_decay, base, base_options, exclude, unsupported, loss_scale, values, flags
        )

    def _set_up(
        self,
        params: nn.Module | ParamsT,
        model: nn.Module | None,
        lr: float | Tensor,
        weight_decay: float | None,
        base: str | type[Optimizer],
        base_options: dict[str, Any] | None,
        exclude: Sequence[str],
        unsupported: str,
        loss_scale: float | Callable[[], float],
        values: dict[str, Any],
        flags: Any,
    ) -> None:
        if isinstance(params, nn.Module):
            model = params if model is None else model
            params = [(name, p) for name, p in params.named_parameters() if p.requires_grad]
        if not isinstance(model, nn.Module):
            raise InputError(f"model: got {model!r}; allowed: the module whose layers MKOR is to watch")
        check_choice("unsupported", unsupported, ("raise", "base"))
        if not callable(loss_scale):
            check_number("loss_scale", loss_scale, above=0)
        if base_options is None and base == "sgd":
            base_options = {"momentum": 0.9}
        self.loss_scale = loss_scale
        self._layers: list[_Layer] = []
        counters: dict[str, Any] = dict.fromkeys(SHARED, 0)  # in the groups, where they are saved; equal in all
        counters |= {"first_order": False, "loss_mean": None, "loss_rate": 0.0, "loss_best": 0.0}
        super().__init__(params, lr, weight_decay, base, base_options, values | counters, flags)
        self.attach(model, exclude=exclude, unsupported=unsupported)

    def _check(self, group: dict[str, Any]) -> None:
        check_number("decay", group["decay"], above=0, below=1)
        check_number("inverse_gap", group["inverse_gap"], at_least=1, integer=True)
        check_number("warmup", group["warmup"], at_least=0, integer=True)
        check_number("threshold", group["threshold"], at_least=1)
        check_number("stabilization", group["stabilization"], at_least=0, at_most=1)
        check_choice("form", group["form"], ("exact", "paper"))
        if group["form"] == "exact":
            check_number("stabilization", group["stabilization"], above=1 - group["decay"])
        check_number("clip", group["clip"], above=0)
        check_flag("half_precision", group["half_precision"])
        super()._check(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As any optimizer's. Layers of new parameters are watched after :meth:`attach`."""
        super().add_param_group(param_group)
        if len(self.param_groups) > 1:
            self.param_groups[-1].update({key: self.param_groups[0][key] for key in SHARED})

    # the layers

    def attach(self, model: nn.Module, *, exclude: Sequence[str] = (), unsupported: str = "raise") -> None:
        """Watch the layers of ``model``; those watched before are let go. Also for a copied or unpickled optimizer.

        Raises:
            InputError: a frozen weight, one that is not among the parameters, an unsupported layer's.
        """
        self.detach()
        if isinstance(exclude, str):
            raise InputError(f"exclude: got {exclude!r}; allowed: a sequence of names")
        known = {id(param) for group in self.param_groups for param in group["params"]}
        layers: dict[int, _Layer] = {}
        watched: list[tuple[_Layer, nn.Module]] = []
        used = set()
        for module_name, module in model.named_modules():
            for own, param in module.named_parameters(recurse=False):
                name = f"{module_name}.{own}" if module_name else own
                matched = [p for p in exclude if any(fnmatch.fnmatchcase(name, q) for q in (p, f"{p}.*"))]
                used.update(matched)
                if matched or param.ndim < 2 or not (param.requires_grad or isinstance(module, SUPPORTED)):
                    continue
                problem = _problem(module, own, param, known)
                if problem and (unsupported == "raise" or not problem[1]):
                    raise InputError(f"parameter {name!r}: {problem[0]}; exclude={[name]!r} leaves it out")
                if problem:
                    continue
                bias = module.bias if module.bias is not None and id(module.bias) in known else None
                layer = layers.setdefault(id(param), _Layer(name, param, bias, self._gathers))
                if layer.bias is not bias:
                    layer.bias = None  # one weight with two biases: they are the base optimizer's
                watched.append((layer, module))
        unused = sorted(set(exclude) - used)
        if unused:
            raise InputError(f"exclude: {unused[0]!r} matches no parameter of the model")
        self._layers = list(layers.values())
        for layer, module in watched:
            layer.statistics.watch(module)

    def detach(self) -> None:
        """Let go of the network: remove all hooks."""
        for layer in self._layers:
            layer.statistics.stop()
        self._layers = []

    @property
    def first_order(self) -> bool:
        """Whether the base optimizer is alone, since MKOR-H fell back to it."""
        return self.param_groups[0]["first_order"]

    def _due(self) -> bool:
        group = self.param_groups[0]
        return group["updates"] < group["warmup"] or group["updates"] % group["inverse_gap"] == 0

    def _gathers(self) -> bool:
        return not self.first_order and self._due()

    # state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.setdefault("loss_scale", 1.0)
        self.__dict__.setdefault("_layers", [])
        super().__setstate__(state)

    def _state_dtype(self, param: Tensor, key: str) -> torch.dtype:
        if key in FACTORS:
            groups = (g for g in self.param_groups if any(p is param for p in g["params"]))
            return torch.float16 if next(groups)["half_precision"] else state_dtype(param)
        return super()._state_dtype(param, key)

    # the step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns the closure's value, if there is a closure.

        Raises:
            RuntimeError: the optimizer is a copy without layers; MKOR-H has been given no loss; as any optimizer's.
        """
        if not self._layers and not self.first_order:
            raise RuntimeError(f"{type(self).__name__} watches no layer: call attach(model) first")
        if closure is None or not self.hybrid:
            return super().step(closure)

        def observed() -> Any:
            loss = closure()
            self.observe(loss)
            return loss

        return super().step(observed)

    def observe(self, loss: float | Tensor) -> None:
        """MKOR-H: tell the loss of the coming step (before ``loss_scale``). Nothing is read back from the device."""
        if self.hybrid and not self.first_order:
            for group in self.param_groups:
                group["loss_sum"] = group["loss_sum"] + torch.as_tensor(loss).detach().float()
                group["loss_seen"] += 1

    def _feed(self, collected: list[Collected]) -> None:
        grads: dict[int, Tensor] = {}
        groups: dict[int, dict[str, Any]] = {}
        for part in collected:
            for param, grad in zip(part.params, part.grads, strict=True):
                grads[id(param)] = (-grad if part.group["maximize"] else grad).to(state_dtype(param))
                groups[id(param)] = part.group
        self._decide()
        if not self.first_order:
            if self._due():
                self._update_inverses(groups)
            for layer in self._layers:
                self._precondition(layer, grads)
        for part in collected:
            for param in part.params:
                self._give(param, param.detach().to(state_dtype(param)), grads[id(param)])
        for group in self.param_groups:
            group["updates"] += 1

    def _finish(self, collected: list[Collected]) -> None:
        for part in collected:
            for param in part.params:
                self._write_back(part.group, param)

    def _update_inverses(self, groups: dict[int, dict[str, Any]]) -> None:
        scale = self.loss_scale() if callable(self.loss_scale) else self.loss_scale
        found = []
        for layer in self._layers:
            taken = layer.statistics.take()
            if taken is not None and id(layer.weight) in groups:
                found.append((layer, taken[0], taken[1] / scale))
        vectors = averaged([vector for _, a, b in found for vector in (a, b)])
        for (layer, _, _), a, b in zip(found, vectors[::2], vectors[1::2], strict=True):
            group, state = groups[id(layer.weight)], self.state[layer.weight]
            dtype = self._state_dtype(layer.weight, "input_inverse")
            wide = state_dtype(layer.weight)
            if layer.bias is not None:
                a = torch.cat([a, a.new_ones(1)])
            for key, vector in (("input_inverse", a), ("output_inverse", b)):
                vector = vector.to(wide).clamp(-group["clip"], group["clip"])
                inverse = state[key].to(wide) if key in state else torch.eye(len(vector), dtype=wide, device=a.device)
                stabilize_(inverse, group["threshold"], group["stabilization"])
                update_inverse_(inverse, vector, group["decay"], group["form"])
                state[key] = inverse.to(dtype)

    def _precondition(self, layer: _Layer, grads: dict[int, Tensor]) -> None:
        state = self.state.get(layer.weight, {})
        if id(layer.weight) not in grads or "input_inverse" not in state:
            return
        weight_grad = grads[id(layer.weight)]
        matrix = weight_grad.flatten(1)
        with_bias = state["input_inverse"].shape[0] > matrix.shape[1]
        if with_bias:
            bias = grads.get(id(layer.bias)) if layer.bias is not None else None
            column = matrix.new_zeros(len(matrix)) if bias is None else bias
            matrix = torch.cat([matrix, column[:, None]], 1)
        factors = (state[key].to(matrix.dtype) for key in ("output_inverse", "input_inverse"))
        result = precondition(matrix, *factors)
        if with_bias:
            if layer.bias is not None and id(layer.bias) in grads:
                grads[id(layer.bias)] = result[:, -1].contiguous()
            result = result[:, :-1]
        grads[id(layer.weight)] = result.reshape(weight_grad.shape)

    def _decide(self) -> None:
        """What MKOR-H does before each step."""


def _problem(module: nn.Module, own: str, param: Tensor, known: set[int]) -> tuple[str, bool] | None:
    """Why a matrix cannot be preconditioned, and whether that is for its layer's kind; None if it can."""
    kind = type(module).__name__
    if not isinstance(module, SUPPORTED) or own != "weight":
        return f"MKOR has no factors for {kind}; allowed: Linear, Conv1d, Conv2d, Conv3d; {_HINT}", True
    if getattr(module, "groups", 1) != 1:
        return f"MKOR has no factors for {kind} with groups={module.groups}; allowed: 1; {_HINT}", True
    if not param.requires_grad:
        return "it is frozen (requires_grad=False), which MKOR cannot update", False
    if id(param) not in known:
        return "it is not among the optimizer's parameters", False
    return None


def averaged(vectors: list[Tensor]) -> Sequence[Tensor]:
    """The mean over processes, in one message."""
    distributed = torch.distributed
    if not vectors or not (distributed.is_available() and distributed.is_initialized()):
        return vectors
    flat = torch.cat(vectors)
    distributed.all_reduce(flat)
    return (flat / distributed.get_world_size()).split([len(vector) for vector in vectors])
