"""One guided call of a pipeline: the hooks on its network and scheduler, and what they do between two steps."""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genflow.errors import InputError, NonFiniteError
from genflow.guidance.attach_layout import Layout
from genflow.guidance.base import Guidance
from genflow.guidance.clock import RunClock, family_of, guided_output

__all__ = ["GuidedRun"]

STATES = ("sample", "hidden_states", "x", "latents")
"""Names of the argument in which networks take the state, where it does not come first."""


class _State:
    """Which part of a network's input is the noisy sample, and which part of its output predicts for it."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)  # of one sample, all dimensions but the batch

    @classmethod
    def between(cls, x: Tensor, out: Tensor, latents: tuple[int, ...] | None, channels: int | None) -> "_State":
        """From the shape of the pipeline's latents where it told them, else what input and output have in common."""
        shape = x.shape[1:]
        if out.ndim != x.ndim:
            raise InputError(f"guide: the network turned {tuple(x.shape)} into {tuple(out.shape)}, which is not served")
        if latents is not None and len(latents) == len(shape):
            shape = [min(sizes) for sizes in zip(latents, shape, strict=True)]
        shape = [min(size, limit) for size, limit in zip(shape, out.shape[1:], strict=True)]
        if channels is not None:
            shape[0] = min(shape[0], channels)
        return cls(shape)

    def of(self, tensor: Tensor) -> Tensor:
        """The view of that part: the first of each dimension."""
        for dim, size in enumerate(self.shape, start=1):
            if tensor.shape[dim] != size:
                tensor = tensor.narrow(dim, 0, size)
        return tensor


class GuidedRun:
    """What happens between the network and the scheduler while a guided pipeline runs.

    Two predictions are gathered for each step: the halves of one call, or two calls. With both known, the guided one is
    written over *both*, in place of the halves, or into the tensor that the first call gave out and into the second
    call's. Any affine combination that the pipeline then makes of the two, whatever its scale, is the guided prediction
    again, exactly; so are a rescale to the conditional prediction's deviation or norm. The first step of every run
    checks that this is what reached the scheduler.
    """

    def __init__(self, pipe: Any, networks: Sequence[nn.Module], layout: Layout, guidance: Guidance, kind: str) -> None:
        self.networks, self.layout, self.guidance, self.kind = networks, layout, guidance, kind
        self.scheduler = pipe.scheduler
        self.family = family_of(self.scheduler)
        self.thread = threading.get_ident()
        self.latents: tuple[int, ...] | None = None  # the shape of one sample, where the pipeline told it
        self.begin()

    def begin(self) -> None:
        """A new schedule: a new run of the guidance."""
        self.clock: RunClock | None = None
        self.mode: str | None = None
        self.checked = False
        self._forget()

    def _forget(self) -> None:
        self._given: Tensor | None = None  # the conditional output of two, as the pipeline holds it
        self._answer: Tensor | None = None  # the guided prediction of this step

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place; taken away again however the block ends."""
        with ExitStack() as stack:
            for network in self.networks:
                stack.callback(self._hook(network))
            for name, wrapper in (("set_timesteps", self._watched_schedule), ("step", self._watched_step)):
                stack.callback(_replaced(self.scheduler, name, wrapper(getattr(self.scheduler, name))))
            yield

    def _hook(self, network: nn.Module) -> Callable[[], None]:
        if getattr(network, "_compiled_call_impl", None) is not None:  # network.compile(): keep out of its graph
            call = network._compiled_call_impl

            def outside(*args: Any, **kwargs: Any) -> Any:
                output = call(*args, **kwargs)
                changed = self._called(network, args, kwargs, output)
                return output if changed is None else changed

            return _replaced(network, "_compiled_call_impl", outside)
        return network.register_forward_hook(self._called, with_kwargs=True).remove

    def _watched_schedule(self, set_timesteps: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(set_timesteps)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            self.begin()
            return result

        return watched

    def _watched_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def watched(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._before_step(model_output, sample)
            result = step(model_output, timestep, sample, *args, **kwargs)
            self.clock.index += 1
            self._forget()
            return result

        return watched

    def note_latents(self, prepared: Any) -> None:
        """Take the shape of a sample from what the pipeline's ``prepare_latents`` gave."""
        first = prepared[0] if isinstance(prepared, (tuple, list)) and prepared else prepared
        if isinstance(first, Tensor) and first.ndim > 1:
            self.latents = tuple(first.shape[1:])

    def _refuse(self, why: str) -> InputError:
        return InputError(f"guide: {self.kind} cannot be served: {why}")

    def _called(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The forward hook; gives the output to hand on in place of ``output``."""
        if threading.get_ident() != self.thread:  # another pipeline that shares the network
            return None
        out = _tensor_of(output)
        x = _stacked(args[0] if args else next((kwargs[name] for name in STATES if name in kwargs), None))
        if out is None or x is None:
            raise self._refuse("its network does not turn one tensor into one")
        if self._answer is not None:
            raise self._refuse("it asks its network for more than the two predictions of CFG in a step")
        if self.clock is None:
            timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
            self.clock = RunClock(self.scheduler, self.family, timestep)
            self.guidance.reset(self.clock.count)
            self.state = _State.between(x, out, self.latents, self.layout.channels)
        if self.clock.over:
            raise self._refuse("it calls its network more often than its scheduler has timesteps")
        if self._mode(self.state.of(x)) == "two":
            given = out.clone()
            self._one_of_two(x, given)
        else:
            given = self._both(x, out)
        return _with_tensor(output, given)

    def _mode(self, state: Tensor) -> str:
        if self.mode is None:
            half = len(state) // 2
            doubled = self.layout.calls != "two" and len(state) % 2 == 0 and torch.equal(state[:half], state[half:])
            if self.layout.calls == "halves" and not doubled:
                raise self._refuse("its network is called without an unconditional half")
            self.mode = "halves" if doubled else "two"
        return self.mode

    def _both(self, x: Tensor, out: Tensor) -> Tensor:
        values, state = self.state.of(out), self.state.of(x)
        if len(values) % 2 or len(values) != len(state):
            raise self._refuse("its network is called without an unconditional half")
        half = len(values) // 2
        uncond, cond = values[:half], values[half:]
        if self.layout.conditional_first:
            uncond, cond = cond, uncond
        self._answer = self._guided(cond, uncond, state[:half])
        both = torch.cat([self._answer, self._answer])
        if values is out:
            return both
        given = out.clone()
        self.state.of(given).copy_(both)
        return given

    def _one_of_two(self, x: Tensor, given: Tensor) -> None:
        state, values = self.state.of(x), self.state.of(given)
        if len(values) != len(state):
            raise self._refuse("its network changes the batch size")
        if self._given is None:
            self._given = given
            return
        if given.shape != self._given.shape:
            raise self._refuse("the two predictions of a step differ in shape")
        first = self.state.of(self._given)
        self._answer = self._guided(first, values, state)
        first.copy_(self._answer)
        values.copy_(self._answer)

    def _guided(self, cond: Tensor, uncond: Tensor, network_input: Tensor) -> Tensor:
        """The network's output that reads as the guided x0, in the network's dtype."""
        t = float(self.clock.times[self.clock.index])
        step, sign = int(self.clock.steps[self.clock.index]), self.layout.sign
        return guided_output(self.guidance, self.family, cond, uncond, network_input, t, step, sign)

    def _before_step(self, model_output: Tensor, sample: Tensor) -> None:
        """Both predictions have come; at the first step, what the pipeline made of them is the guided one."""
        if self._answer is None:
            if self._given is None:
                raise self._refuse("its scheduler steps without a call of its network")
            raise self._refuse("its network is called without an unconditional half, so that it runs no CFG")
        if not self.checked:
            if not self._arrived(model_output, sample):
                raise self._refuse("it makes something else of its network's two outputs than CFG does")
            self.checked = True

    def _arrived(self, model_output: Tensor, sample: Tensor) -> bool:
        """Whether the guided prediction is what the scheduler is handed, for the state that it was made for."""
        expected = self.layout.sign * self._answer
        if not bool(torch.isfinite(expected).all()):
            index, count = self.clock.index, len(self.clock.times)
            raise NonFiniteError(f"the network gave NaN or infinity at evaluation {index + 1} of {count}")
        if model_output.ndim < expected.ndim and model_output.numel() == expected.numel():
            expected = expected.reshape(model_output.shape)  # a dimension of one frame was dropped
        if not sample.ndim == model_output.ndim == expected.ndim:
            return False
        whole = 1 if self.layout.channels is None else 2  # from here on the whole state is guided
        if sample.shape[whole:] != expected.shape[whole:]:
            return False
        # DiT hands over both halves, some pipelines a variance after the prediction
        got = model_output[tuple(slice(size) for size in expected.shape)]
        tolerance = 4 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
        return got.shape == expected.shape and bool((got.float() - expected.float()).abs().max() <= tolerance)


def _replaced(owner: Any, name: str, value: Any) -> Callable[[], None]:
    """Set an attribute on the instance; the function returned puts back what the instance had, or nothing."""
    had = name in vars(owner)
    before = vars(owner).get(name)
    object.__setattr__(owner, name, value)

    def undo() -> None:
        if had:
            object.__setattr__(owner, name, before)
        else:
            object.__delattr__(owner, name)

    return undo


def _stacked(value: Any) -> Tensor | None:
    """A tensor, or a list of equal ones (an image each, as Z-Image has them) as one."""
    if isinstance(value, list) and value and all(isinstance(v, Tensor) and v.shape == value[0].shape for v in value):
        return torch.stack(value)
    return value if isinstance(value, Tensor) else None


def _tensor_of(output: Any) -> Tensor | None:
    """The one tensor in a network's output: itself, in a tuple, or in one of diffusers' output classes."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else []
    values = [value for value in values if value is not None]
    return _stacked(values[0]) if len(values) == 1 else None


def _with_tensor(output: Any, tensor: Tensor) -> Any:
    """``output`` with ``tensor`` in the place of its own."""

    def put(value: Any) -> Any:
        return list(tensor.unbind()) if isinstance(value, list) else None if value is None else tensor

    if isinstance(output, dict):
        return type(output)(**{key: put(value) for key, value in output.items()})
    return tuple(put(value) for value in output) if isinstance(output, tuple) else put(output)
