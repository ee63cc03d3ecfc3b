"""What a coupling adds to a training step of the default network, for ``genflow.evaluate.speed couplings``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genflow.data import ImageData
from genflow.evaluate.console import progress_bar
from genflow.evaluate.timing import best_times
from genflow.precision import resolve
from genflow.training.image_task import ImageTask
from genflow.training.recipe import load_recipe
from genflow.transport import create_coupling

__all__ = ["PotCoupling", "compare_couplings"]

CLASSES = 10
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact, by class": ("exact", {}),
    "sinkhorn, by class": ("sinkhorn", {}),
    "sinkhorn-newton, by class": ("sinkhorn-newton", {}),
    "exact, whole batch": ("exact", {"class_wise": False}),
    "sinkhorn, whole batch": ("sinkhorn", {"class_wise": False}),
    "sinkhorn-newton, whole batch": ("sinkhorn-newton", {"class_wise": False}),
    "sinkhorn-newton:reg=0.02, whole batch": ("sinkhorn-newton", {"class_wise": False, "reg": 0.02}),
}


class PotCoupling:
    """The usual route, as torchcfm takes it: distances on the device, POT on the host, the whole batch at once."""

    name = "pot"

    def pair(
        self, x0: Tensor, noise: Tensor, generator: torch.Generator, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The noise that POT's exact plan sends each of x0 to; where torchcfm draws pairs, here x0 keeps its order."""
        import ot

        cost = torch.cdist(x0.flatten(1), noise.flatten(1)) ** 2
        plan = ot.emd(ot.unif(len(x0)), ot.unif(len(noise)), cost.cpu().numpy())
        return x0, noise[torch.from_numpy(plan.argmax(1)).to(noise.device)], labels


def _images(count: int, generator: torch.Generator) -> ImageData:
    """Smooth images of ten classes: a pattern each, and as much that differs from image to image."""
    low = torch.randn(CLASSES, 1, 7, 7, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    pattern = low[labels] + torch.randn(count, 1, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(pattern, size=(28, 28), mode="bilinear")
    return ImageData((smooth * 60 + 128).clamp(0, 255).byte(), labels, tuple(map(str, range(CLASSES))))


def _step(task: ImageTask, network: torch.nn.Module, coupling: Any, bf16: bool) -> Callable[[], None]:
    """One update after another, each on a batch of its own, as the trainer does it."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    state = {"step": 0}

    def step() -> None:
        task.coupling = coupling
        with torch.autocast(task.device.type, torch.bfloat16, enabled=bf16):
            loss = task.loss(state["step"], 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state["step"] += 1

    return step


def _pairing(coupling: Any, batches: list[tuple[Tensor, Tensor, Tensor]], device: torch.device) -> Callable[[], None]:
    generator = torch.Generator(device).manual_seed(0)

    def pair() -> None:
        for images, noise, labels in batches:
            coupling.pair(images, noise, generator, labels)

    return pair


def compare_couplings(quick: bool, device: torch.device | str = "cpu") -> list[dict[str, Any]]:
    """Rows for speed's table: milliseconds of a training step with each coupling and without one, then of the coupling
    alone and of POT's exact one. All take turns in one run."""
    device = torch.device(device)
    size, rounds, batches = (16, 1, 1) if quick else (256, 5, 4)
    settings = dict(list(SETTINGS.items())[:3]) if quick else SETTINGS
    names = ["independent", *settings, "POT, ot.emd"]
    couplings = [
        create_coupling("independent"),
        *(create_coupling(n, **o) for n, o in settings.values()),
        PotCoupling(),
    ]
    data = _images(size * 8, torch.Generator().manual_seed(0))
    task = ImageTask(load_recipe("fashion-mnist"), data)
    torch.manual_seed(0)
    network = task.create_network().to(device)
    task.bind(network, network, device, size, 1)
    bf16 = resolve("auto", device.type).name == "bf16"
    steps = [_step(task, network, coupling, bf16) for coupling in couplings]
    with progress_bar("couplings", len(steps) * (rounds + 1)) as advance:
        ticking = [_then(step, advance) for step in steps]
        for step in ticking:  # the optimizer's state, and what first calls set up
            step()
        whole = best_times(ticking, rounds, device)
    drawn = [(task.draw(task.batches, step, 0), task.batches.classes(step, 0)) for step in range(batches)]
    inputs = [(batch.images, batch.noise, labels) for batch, labels in drawn]
    alone = best_times([_pairing(coupling, inputs, device) for coupling in couplings[1:]], rounds, device)

    what = f"batch {size}, {'bf16' if bf16 else 'fp32'}, {device.type}"
    rows = [
        _row(f"training step, {what}", name, "independent", 1000 * seconds, 1000 * whole[0])
        for name, seconds in zip(names[1:], whole[1:], strict=True)
    ]
    each = [1000 * seconds / batches for seconds in alone]
    rows += [
        _row(f"coupling alone, {what}", name, names[-1], milliseconds, each[-1])
        for name, milliseconds in zip(names[1:-1], each, strict=False)
    ]
    return rows


def _then(work: Callable[[], None], advance: Callable[[int], None]) -> Callable[[], None]:
    def both() -> None:
        work()
        advance(1)

    return both


def _row(what: str, ours_name: str, peer_name: str, ours: float, peer: float) -> dict[str, Any]:
    return {"what": what, "ours_name": ours_name, "peer_name": peer_name, "ours": ours, "peer": peer, "unit": "ms"}
