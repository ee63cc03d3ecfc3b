"""Pairs of noise and image for reflow: made by a teacher's ODE, kept on disk in shards."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from genflow.data import ImageData
from genflow.distillation.shards import ShardStore
from genflow.distillation.teacher import ODETeacher
from genflow.errors import InputError, check_choice, check_number
from genflow.files import output_folder
from genflow.precision import resolve
from genflow.processes import process_state
from genflow.training.batches import mixed_seed, stream_indices
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

    def join(self, other: "Pairs") -> "Pairs":
        """These and the others. Raises InputError where only one of them has labels."""
        if (self.labels is None) != (other.labels is None):
            raise InputError("labels: only one of the two sets of pairs has them")
        labels = None if self.labels is None else torch.cat([self.labels, other.labels])
        return Pairs(torch.cat([self.noise, other.noise]), torch.cat([self.images, other.images]), labels)

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
    precision: str = "auto",
    batch_size: int | None = None,
    images: ImageData | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Path:
    """Solve the teacher's ODE from ``count`` noises and write noise, image and label to ``folder``.

    Only the shards that are not there are made. The noise of shard i comes from one generator on the host, seeded by
    (seed, i): the shard is what is lost and made again, so that nothing is gained by a generator for each image. The
    noise is the same on every device, in every batch and under any number of processes, which share the shards.
    Classes come in turn, so that each is there as often.

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
            ``auto`` is fp32 on a CPU, for the same pairs in every run, and bf16 on a GPU that has it: on the shipped
            model that moves an image by a tenth of what 12 steps of Heun are off the solution.
        batch_size: images at once; by default 128 on a CPU, and 2^21 values in a batch elsewhere.
        images: carry ``count`` of these to the noise that they come from, in the place of noise to images (Lee et al.
            2024 add such pairs, so that the student sees real images too). Under guidance it is the guided flow's
            noise, which is not quite normal, but belongs to the same map.
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
    kind = "fp32" if precision == "auto" and device.type != "cuda" else resolve(precision, device.type).name
    folder = output_folder("pairs", folder)
    options = {"solver": solver, "solver_options": solver_options, "steps": steps, "guidance_scale": guidance_scale}
    teacher = ODETeacher(model, device, **options)
    if batch_size is None:
        values = torch.Size(teacher.shape).numel()
        batch_size = _CPU_BATCH if device.type == "cpu" else max(1, _VALUES // values)
    check_number("pairs.batch_size", batch_size, at_least=1, integer=True)
    chosen = None if images is None else _choose(images, teacher, count, seed)
    manifest = {
        "format": _FORMAT,
        "count": count,
        "shard_size": size,
        "seed": seed,
        "shape": list(teacher.shape),
        "num_classes": teacher.num_classes,
        "dtype": dtype,
        "precision": kind,
        "images": None if chosen is None else chosen.hash,
        **teacher.describe(),
    }
    store = ShardStore(folder, manifest, count, size)
    if state.is_main_process:
        store.begin()
    state.wait_for_everyone()
    todo = store.missing()
    state.wait_for_everyone()  # before anyone writes: all must see the same shards missing
    mine = todo[state.process_index :: state.num_processes]
    stop = StopRequest()
    autocast = torch.autocast(device.type, dtype=_AUTOCAST.get(kind), enabled=kind in _AUTOCAST)
    with (
        stop.on_signals(),
        tqdm(
            total=sum(len(store.rows(index)) for index in mine) * teacher.steps, unit="img",
            unit_scale=1 / teacher.steps, desc="pairs" if chosen is None else "inverting", delay=2,
            disable=not (progress and state.is_main_process),
        ) as bar,
    ):  # fmt: skip
        for index in mine:
            rows = store.rows(index)
            if chosen is None:
                generator = torch.Generator().manual_seed(mixed_seed(seed, _STREAM, index))
                given = torch.randn((len(rows), *teacher.shape), generator=generator)
                labels, solve = teacher.labels(len(rows), rows.start), teacher.solve
            else:
                (given, labels), solve = chosen.rows(rows), teacher.invert
            given = given.to(DTYPES[dtype])
            found = torch.empty_like(given)
            for start in range(0, len(rows), batch_size):
                part = slice(start, start + batch_size)
                rows_now = len(given[part])
                with autocast:
                    made = solve(
                        given[part].to(device).float(),
                        None if labels is None else labels[part],
                        lambda _, n=rows_now: bar.update(n),
                    )
                found[part] = made.to("cpu", found.dtype)
                if stop.asked:
                    raise KeyboardInterrupt
            noise, made = (given, found) if chosen is None else (found, given)
            store.write(index, {"noise": noise, "images": made} | ({} if labels is None else {"labels": labels}))
    state.wait_for_everyone()
    return folder


@dataclass(frozen=True)
class _Chosen:
    """Some of a set's images, uint8, and their labels, in the order of a seed."""

    images: Tensor
    labels: Tensor | None

    @property
    def hash(self) -> str:
        digest = hashlib.sha256(self.images.numpy())
        if self.labels is not None:
            digest.update(self.labels.numpy())
        return digest.hexdigest()[:16]

    def rows(self, rows: range) -> tuple[Tensor, Tensor | None]:
        """Images in [-1, 1], and labels."""
        part = slice(rows.start, rows.stop)
        return self.images[part].float() / 127.5 - 1, None if self.labels is None else self.labels[part]


def _choose(images: ImageData, teacher: ODETeacher, count: int, seed: int) -> _Chosen:
    if teacher.pipeline.vae is not None or tuple(images.images.shape[1:]) != teacher.shape:
        raise InputError(
            f"images: {tuple(images.images.shape[1:])} in pixels; allowed: {teacher.shape}, and no VAE in the teacher"
        )
    if count > len(images):
        raise InputError(f"images: {count} asked for, {len(images)} there")
    if teacher.num_classes is not None and images.num_classes != teacher.num_classes:
        raise InputError(f"images: {images.num_classes} classes; the teacher knows {teacher.num_classes}")
    order = torch.from_numpy(stream_indices(seed, 0, count, len(images)))
    labels = None if teacher.num_classes is None or images.labels is None else images.labels[order].contiguous()
    return _Chosen(images.images[order].contiguous(), labels)


def load_pairs(folder: str | Path, device: torch.device | str = "cpu") -> Pairs:
    """All pairs in ``folder``, on ``device``.

    Raises:
        InputError: no pairs there, or a shard that is missing, damaged or of another manifest; it is named.
    """
    store = ShardStore.open(Path(folder))
    if store.manifest.get("format") != _FORMAT:
        raise InputError(f"{folder}: pairs of format {store.manifest.get('format')}; allowed: {_FORMAT}")
    return Pairs(**store.read(device))
