"""Pairs of noise and image for reflow: made by a teacher's ODE, kept on disk in shards."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from genflow.distillation.shards import ShardStore
from genflow.distillation.teacher import ODETeacher
from genflow.errors import InputError, check_choice, check_number
from genflow.files import output_folder
from genflow.precision import resolve
from genflow.processes import process_state
from genflow.training.batches import mixed_seed
from genflow.training.stopping import StopRequest

__all__ = ["DTYPES", "Pairs", "load_pairs", "make_pairs"]

DTYPES = {"float32": torch.float32, "float16": torch.float16}

_FORMAT = 1
_STREAM = 11  # keeps the pairs' noise apart from that of training
_VALUES = 2**21  # in a batch on an accelerator, by default
_CPU_BATCH = 128
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Pairs:
    """Noise and images that belong together, in memory.

    Attributes:
        noise: standard normal, ``(N, ...)``, in the dtype that it was stored in.
        images: where the teacher's ODE carried it, in the same shape; latents where the teacher has a VAE.
        labels: int64 ``(N,)``, or None.
    """

    noise: Tensor
    images: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.noise.shape != self.images.shape or self.noise.ndim < 2 or len(self.noise) == 0:
            raise InputError(
                f"pairs: noise {tuple(self.noise.shape)} and images {tuple(self.images.shape)}; allowed: one (N, ...)"
            )
        if self.labels is not None and self.labels.shape != self.noise.shape[:1]:
            raise InputError(f"labels: shape {tuple(self.labels.shape)}; allowed: ({len(self.noise)},)")

    def __len__(self) -> int:
        return len(self.noise)

    def to(self, device: torch.device | str) -> "Pairs":
        """The same on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in ("noise", "images")}
        return replace(self, **moved, labels=None if self.labels is None else self.labels.to(device))


def make_pairs(
    model: str | Path,
    folder: str | Path,
    *,
    count: int = 50_000,
    seed: int = 0,
    solver: str | None = None,
    solver_options: dict[str, Any] | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    shard_size: int = 2048,
    dtype: str = "float32",
    precision: str = "fp32",
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Path:
    """Solve the teacher's ODE from ``count`` noises and write noise, image and label to ``folder``.

    Only the shards that are not there are made. The noise of shard i comes from one generator, seeded by (seed, i), on
    the host: the shard is what is lost and made again, one draw for all of it is a hundred times faster than a
    generator for each image, and the noise is the same on every device, in every batch and under any number of
    processes, which share the shards. Classes come in turn, so that each is there as often.

    Args:
        model: the teacher, as :class:`~genflow.distillation.teacher.ODETeacher` loads it.
        folder: where the shards and their manifest go.
        count: how many pairs; Lee et al. 2024 use 1,000,000 for CIFAR-10.
        seed: of the noise.
        solver, solver_options, steps, guidance_scale: as there; guidance becomes a part of the pairs.
        shard_size: pairs in a shard.
        dtype: ``float32``, or ``float16`` for half the space. Noise is rounded before the ODE is solved, so that the
            image belongs to the noise that is stored.
        precision: of the network; ``bf16`` and ``fp16`` are automatic mixed precision, the state stays in float32.
        batch_size: images at once; by default 128 on a CPU, and 2^21 values in a batch elsewhere.
        device: by default this process's.
        progress: show a bar.

    Returns:
        ``folder``.

    Raises:
        InputError: an argument out of range, other pairs in ``folder``, or a damaged shard, which is named.
        NonFiniteError: the network gave NaN or infinity.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the batch; finished shards stay.
    """
    count = int(check_number("pairs.count", count, at_least=1, integer=True))
    size = int(check_number("pairs.shard_size", shard_size, at_least=1, integer=True))
    check_number("pairs.seed", seed, at_least=0, integer=True)
    check_choice("pairs.dtype", dtype, DTYPES)
    state = process_state()
    device = torch.device(state.device if device is None else device)
    kind = resolve(precision, device.type).name
    folder = output_folder("pairs", folder)
    options = {"solver": solver, "solver_options": solver_options, "steps": steps, "guidance_scale": guidance_scale}
    teacher = ODETeacher(model, device, **options)
    if batch_size is None:
        values = torch.Size(teacher.shape).numel()
        batch_size = _CPU_BATCH if device.type == "cpu" else max(1, _VALUES // values)
    check_number("pairs.batch_size", batch_size, at_least=1, integer=True)
    manifest = {
        "format": _FORMAT,
        "count": count,
        "shard_size": size,
        "seed": seed,
        "shape": list(teacher.shape),
        "num_classes": teacher.num_classes,
        "dtype": dtype,
        "precision": kind,
        **teacher.describe(),
    }
    store = ShardStore(folder, manifest, count, size)
    if state.is_main_process:
        store.begin()
    state.wait_for_everyone()
    todo = store.missing()
    state.wait_for_everyone()  # before anyone writes: all must see the same shards missing
    mine = todo[state.process_index :: state.num_processes]
    work = sum(len(store.rows(index)) for index in mine)
    stop = StopRequest()
    autocast = torch.autocast(device.type, dtype=_AUTOCAST.get(kind), enabled=kind in _AUTOCAST)
    with (
        stop.on_signals(),
        tqdm(
            total=work, unit="img", unit_scale=True, desc="pairs", delay=2,
            disable=not (progress and state.is_main_process),
        ) as bar,
    ):  # fmt: skip
        for index in mine:
            rows = store.rows(index)
            generator = torch.Generator().manual_seed(mixed_seed(seed, _STREAM, index))
            noise = torch.randn((len(rows), *teacher.shape), generator=generator).to(DTYPES[dtype])
            labels = teacher.labels(len(rows), rows.start)
            images = torch.empty_like(noise)
            for start in range(0, len(rows), batch_size):
                part = slice(start, start + batch_size)
                share = len(noise[part]) / teacher.steps
                with autocast:
                    made = teacher.solve(
                        noise[part].to(device).float(),
                        None if labels is None else labels[part],
                        lambda _, share=share: bar.update(share),
                    )
                images[part] = made.to("cpu", images.dtype)
                if stop.asked:
                    raise KeyboardInterrupt
            store.write(index, {"noise": noise, "images": images} | ({} if labels is None else {"labels": labels}))
    state.wait_for_everyone()
    return folder


def load_pairs(folder: str | Path, device: torch.device | str = "cpu") -> Pairs:
    """All pairs in ``folder``, on ``device``.

    Raises:
        InputError: no pairs there, or a shard that is missing, damaged or of another manifest; it is named.
    """
    store = ShardStore.open(Path(folder))
    if store.manifest.get("format") != _FORMAT:
        raise InputError(f"{folder}: pairs of format {store.manifest.get('format')}; allowed: {_FORMAT}")
    return Pairs(**store.read(device))
