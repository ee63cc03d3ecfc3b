"""The tensors of a batch as a few flat ones, for rules that look at entries alone.

Such a rule need not know where one tensor ends. The state of small tensors lives joined, in blocks; their parameters
and gradients are copied into a workspace before the rule and the parameters back after it: three passes over many
tensors, where the multi-tensor form makes one for each operation. Large tensors are taken as they lie, or in pieces.
Blocks and pieces fit a CPU's cache, which the rule's operations pass over again and again.
"""

import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genflow.optim.execution import state_dtype

__all__ = ["Flat", "FlatSteps", "Sizes", "compiled_sizes", "eager_sizes", "join_state"]

State = dict[str, Tensor]


class Sizes(NamedTuple):
    """In entries: tensors up to ``joined`` are joined, in blocks of about ``block``; others are cut to pieces of
    ``piece``, but those up to half as much again are left as they are. Without ``piece`` others become flat ones, of
    which ``pack`` go at once."""

    joined: int
    block: int
    piece: int | None
    pack: int


def eager_sizes(buffers: int) -> Sizes:
    """For operations one by one on a CPU: what a thread works on, with ``buffers`` states, stays in its cache."""
    threads = torch.get_num_threads()
    return Sizes(joined=16384, block=65536 * threads, piece=(131072 if buffers <= 2 else 65536) * threads, pack=1)


def compiled_sizes(device: torch.device) -> Sizes:
    """For one fused pass, where calls cost more than memory: on an accelerator nearly everything is joined."""
    if device.type == "cpu":
        return Sizes(joined=16384, block=1 << 19, piece=None, pack=16)
    return Sizes(joined=1 << 20, block=1 << 24, piece=None, pack=8)


class Flat(NamedTuple):
    """What the rule gets: parameters, gradients and states, of a block, of tensors as they are or of pieces of them."""

    params: list[Tensor]
    grads: list[Tensor]
    states: list[State]


class _Block(NamedTuple):
    """Small tensors and their joined state; the workspace's parts for their parameters and gradients."""

    indices: list[int]
    params: list[Tensor]
    param_parts: list[Tensor]
    grad_parts: list[Tensor]
    flat: Flat


class _Large(NamedTuple):
    """The pieces of a large tensor, of ``size`` entries each, and of its state."""

    index: int
    strides: tuple[int, ...]
    address: int
    size: int
    params: list[Tensor]
    states: list[State]


def join_state(name: str, states: list[State], likes: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
    """State ``name`` of all as one flat tensor; each one's becomes a part of it, laid out as ``likes`` (as it was)."""
    olds = [state[name] for state in states]
    flat = torch.empty(sum(old.numel() for old in olds), dtype=olds[0].dtype, device=olds[0].device)
    parts = _parts(flat, likes or olds)
    torch._foreach_copy_(parts, olds)
    for state, part in zip(states, parts, strict=True):
        state[name] = part
    return flat, parts


class FlatSteps:
    """How one set of parameters is joined and cut; made once, used while parameters and states stay what they are."""

    def __init__(self, params: list[Tensor], states: list[State], sizes: Sizes) -> None:
        self._names = [name for name in states[0] if name != "step"]
        self._params = params
        most = 0 if sizes.piece is None else sizes.piece + sizes.piece // 2
        self._whole = [i for i, param in enumerate(params) if sizes.joined < param.numel() <= most]
        self._whole_params = [params[i] for i in self._whole]
        self._whole_states = [{name: states[i][name] for name in self._names} for i in self._whole]
        floor = max(sizes.joined, most)
        large = [i for i, param in enumerate(params) if param.numel() > floor and self._lies_flat(i, states)]
        small = sorted(set(range(len(params))).difference(large, self._whole))
        self._blocks = self._join(small, states, sizes.block)
        self._large = [self._cut(index, states[index], sizes.piece) for index in large]
        packed = len(large) - len(large) % sizes.pack  # the rest one by one: a graph for each number would take long
        packs = [self._large[i : i + sizes.pack] for i in range(0, packed, sizes.pack)]
        packs += [[large] for large in self._large[packed:]]
        self._packs = [
            (pack, [x for one in pack for x in one.params], [x for one in pack for x in one.states]) for pack in packs
        ]
        self._states = [[state[name] for state in states] for name in self._names]

    def matches(self, params: list[Tensor], states: list[State]) -> bool:
        """Whether these are the tensors that it was made for: after loading, or without some gradients, they aren't."""
        return (
            len(params) == len(self._params)
            and all(map(operator.is_, params, self._params))
            and all(
                all(map(operator.is_, [state.get(name) for state in states], known))
                for name, known in zip(self._names, self._states, strict=True)
            )
            and all(
                params[large.index].data_ptr() == large.address and params[large.index].stride() == large.strides
                for large in self._large
            )
        )

    def __call__(self, grads: list[Tensor]) -> Iterator[Flat]:
        """The batch as flat tensors, for the rule to change before it asks for the next."""
        for block in self._blocks:
            torch._foreach_copy_(block.param_parts, block.params)
            torch._foreach_copy_(block.grad_parts, [grads[index] for index in block.indices])
            yield block.flat
            torch._foreach_copy_(block.params, block.param_parts)
        if self._whole:
            own = [_laid_as(self._params[i], grads[i]) for i in self._whole]
            yield Flat(self._whole_params, own, self._whole_states)
        for pack, params, pieces in self._packs:
            yield Flat(params, [x for large in pack for x in self._pieces(large, grads[large.index])], pieces)

    def _pieces(self, large: _Large, grad: Tensor) -> Sequence[Tensor]:
        grad = _laid_as(self._params[large.index], grad)
        flat = grad.view(-1) if grad.is_contiguous() else grad.as_strided((grad.numel(),), (1,))
        return flat.split(large.size) if len(large.params) > 1 else (flat,)

    def _lies_flat(self, index: int, states: list[State]) -> bool:
        """Whether parameter and state fill their memory in one order."""
        param = self._params[index]
        return _fills(param) and all(_lie_alike(states[index][name], param) for name in self._names)

    def _join(self, indices: list[int], states: list[State], size: int) -> list[_Block]:
        runs: list[list[int]] = []
        total = size
        for index in indices:
            numel = self._params[index].numel()
            if total + numel > size:
                runs.append([])
                total = 0
            runs[-1].append(index)
            total += numel
        if not runs:
            return []
        lengths = [sum(self._params[index].numel() for index in run) for run in runs]
        first = self._params[indices[0]]
        workspace = torch.empty(max(lengths), dtype=first.dtype, device=first.device)
        gradients = torch.empty_like(workspace, dtype=state_dtype(first))
        blocks = []
        for run, length in zip(runs, lengths, strict=True):
            params, own = [self._params[index] for index in run], [states[index] for index in run]
            # one order of entries in all: loaded state may lie otherwise than its parameter
            flats = {name: join_state(name, own, params)[0] for name in self._names}
            param, grad = workspace[:length], gradients[:length]
            blocks.append(
                _Block(run, params, _parts(param, params), _parts(grad, params), Flat([param], [grad], [flats]))
            )
        return blocks

    def _cut(self, index: int, state: State, size: int | None) -> _Large:
        param = self._params[index]
        numel = param.numel()
        size = numel if size is None else size
        columns = [param.detach(), *(state[name] for name in self._names)]
        pieces, *states = (column.as_strided((numel,), (1,)).split(size) for column in columns)
        each = [dict(zip(self._names, column, strict=True)) for column in zip(*states, strict=True)]
        return _Large(index, param.stride(), param.data_ptr(), size, list(pieces), each)


def _laid_as(param: Tensor, grad: Tensor) -> Tensor:
    """The gradient, copied if its entries do not follow as the parameter's do."""
    if grad.stride() == param.stride() or _lie_alike(grad, param):
        return grad
    return torch.empty_like(param, dtype=grad.dtype).copy_(grad)


def _lie_alike(x: Tensor, y: Tensor) -> bool:
    """Whether entries follow in one order; of dimensions of size 1 strides say nothing."""
    strides = zip(x.stride(), y.stride(), x.shape, strict=True)
    return all(one == other for one, other, size in strides if size != 1)


def _fills(x: Tensor) -> bool:
    """Whether a tensor's entries fill a stretch of memory, in any order of dimensions."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _parts(flat: Tensor, likes: list[Tensor]) -> list[Tensor]:
    """Consecutive parts of ``flat``, shaped and laid out as ``likes``."""
    parts, offset = [], 0
    for like in likes:
        strides = like.stride() if _fills(like) else torch.empty_like(like, device="meta").stride()
        parts.append(flat.as_strided(like.shape, strides, offset))
        offset += like.numel()
    return parts
