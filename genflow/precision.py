"""Which number format to train in on this machine: probed once, chosen, and said why."""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from genflow.errors import check_choice

__all__ = ["PRECISIONS", "Precision", "probe", "resolve", "whole_float32"]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Precision:
    """A format (``fp32``, ``bf16`` or ``fp16``) and the reason that it was chosen."""

    name: str
    reason: str

    @property
    def accelerate_name(self) -> str:
        """What ``accelerate.Accelerator(mixed_precision=...)`` calls it."""
        return "no" if self.name == "fp32" else self.name


def _milliseconds_of_a_step(bf16: bool) -> float:
    """CPU time of one typical convolution, forward and backward; the best of a few, since the first ones warm up.

    Meant to be called with one torch thread: CPU time then does not count what other processes take.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 64, 14, 14, generator=generator)
    weight = torch.randn(64, 64, 3, 3, generator=generator, requires_grad=True)
    best = float("inf")
    for _ in range(4):
        start = time.thread_time()
        with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = F.silu(F.conv2d(x, weight, padding=1)).sum()
        torch.autograd.grad(loss, weight)
        best = min(best, time.thread_time() - start)
    return best * 1e3


@functools.cache
def probe(device: str = "cpu") -> Precision:
    """Choose the training format for ``device`` ("cpu", "cuda", "mps"), once a process.

    On a CPU the two formats are timed, since bfloat16 is about twice as fast as float32 where the processor
    has instructions for it and several times slower where it has not.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "the GPU computes in bfloat16")
        return Precision("fp16", "the GPU has no bfloat16")
    if kind != "cpu":
        return Precision("fp32", f"no other format is tried on {kind}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fp32, bf16 = _milliseconds_of_a_step(False), _milliseconds_of_a_step(True)
    finally:
        torch.set_num_threads(threads)
    name = "bf16" if bf16 < 0.9 * fp32 else "fp32"
    return Precision(name, f"a convolution's step takes {fp32:.1f} ms in fp32 and {bf16:.1f} ms in bf16")


def resolve(requested: str, device: str = "cpu") -> Precision:
    """``requested`` itself, or what ``probe`` finds for ``"auto"``. Raises InputError for an unknown name."""
    check_choice("precision", requested, PRECISIONS)
    return probe(device) if requested == "auto" else Precision(requested, "asked for")


@contextmanager
def whole_float32() -> Iterator[None]:
    """Float32 products and convolutions of NVIDIA GPUs in all of their 24 bits, inside; the caller's choice afterwards.

    Torch lets cuDNN round the factors of a float32 convolution to 11 bits (TF32) unless it is told otherwise.
    """
    parts = [torch.backends.cudnn.conv, torch.backends.cuda.matmul] if hasattr(torch.backends.cudnn, "conv") else []
    if all(hasattr(part, "fp32_precision") for part in parts) and parts:
        name, value = "fp32_precision", "ieee"
    else:  # torch before 2.9
        parts, name, value = [torch.backends.cudnn, torch.backends.cuda.matmul], "allow_tf32", False
    before = [getattr(part, name) for part in parts]
    try:
        for part in parts:
            setattr(part, name, value)
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            setattr(part, name, old)
