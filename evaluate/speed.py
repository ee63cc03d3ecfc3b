"""Speed of genflow's own parts against what they replace, both measured in one run, turn about.

``python -m genflow.evaluate.speed NAME [--json FILE] [--device cuda]``; without a name it lists the benchmarks. Every
row gives our figure, the peer's and their ``ratio``, ours over the peer's; ``better`` says which way is good.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from genflow.errors import InputError, check_choice
from genflow.evaluate.console import run
from genflow.evaluate.timing import best_times
from genflow.files import check_output_files, write_json

__all__ = ["BENCHMARKS", "Row", "compare", "run_benchmark"]


@dataclass(frozen=True)
class Row:
    """One comparison: a figure of ours and of the peer, in one unit."""

    what: str
    ours_name: str
    peer_name: str
    ours: float
    peer: float
    unit: str = "s"
    better: str = "lower"

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        return self.ours / self.peer


def compare(ours: Callable[[], Any], peer: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Least wall seconds of ``ours`` and of ``peer`` over ``repeats`` runs in turn, so that both see one load."""
    first, second = best_times((ours, peer), repeats)
    return first, second


def metrics(quick: bool) -> list[Row]:
    """Measures of 2048-dimensional features against the usual routes: Frechet, kernel and neighbour distances."""
    from genflow.evaluate.speed_metrics import compare_metrics

    return [Row(**row) for row in compare_metrics(quick)]


def _train_step(network: nn.Module, batch_size: int, bf16: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 1, 28, 28, generator=generator).to(memory_format=torch.channels_last)
    timesteps = torch.rand(batch_size, generator=generator) * 1000
    labels = torch.randint(0, 10, (batch_size,), generator=generator)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            predicted = network(images, timesteps, class_labels=labels).sample
        nn.functional.mse_loss(predicted.float(), images).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # allocates the optimizer's state
    return step


def network(quick: bool) -> list[Row]:
    """The shipped recipe's network against diffusers' UNet2DModel: training steps, class-conditional, 28x28."""
    from genflow.precision import probe
    from genflow.training.networks import create_network
    from genflow.training.recipe import load_recipe

    recipe = load_recipe("fashion-mnist")
    batch_size, repeats = (8, 1) if quick else (64, 4)
    common = {"size": (28, 28), "channels": 1, "num_classes": 10}
    # diffusers' network at 28/14/7 with attention at the lowest, the smallest usual setting for this size.
    usual = {
        "block_out_channels": [32, 64, 96],
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    }
    torch.manual_seed(0)
    ours_network = create_network(recipe.network.type, options=recipe.network.options, **common)
    peer_network = create_network("unet2d", options=usual, **common)
    bf16 = probe().name == "bf16"
    ours, peer = compare(
        _train_step(ours_network, batch_size, bf16), _train_step(peer_network, batch_size, bf16), repeats
    )
    sizes = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (ours_network, peer_network)]
    row = Row(
        f"training, batch {batch_size}, {'bf16' if bf16 else 'fp32'}",
        f"{type(ours_network).__name__}, {sizes[0]:.2f} M",
        f"{type(peer_network).__name__} 32/64/96, {sizes[1]:.2f} M",
        batch_size / ours,
        batch_size / peer,
        unit="images/s",
        better="higher",
    )
    return [row]


Guide = Callable[[Any, int, Tensor, Tensor, Tensor, Tensor], Any]
"""``(scheduler, i, t, x, cond, uncond)``: what the scheduler steps with at entry i of its schedule."""


def _loop(scheduler: Any, outputs: list[Tensor], guide: Guide | None, steps: bool = True) -> Callable[[], Any]:
    """A pipeline's loop over ready-made network outputs, set_timesteps included: only arithmetic is left.

    Without ``steps``, guidance alone.
    """

    def run() -> None:
        scheduler.set_timesteps(len(outputs) - 1)
        x = outputs[0]
        for i, t in enumerate(scheduler.timesteps):
            output = guide(scheduler, i, t, x, outputs[i], outputs[i + 1]) if guide else outputs[i]
            if steps:
                x = scheduler.step(output, t, x, return_dict=False)[0]

    return run


def _both_apg() -> tuple[Guide, Guide]:
    """APG with the paper's SDXL values: ours as ``guide`` applies it, in x0 space and back; diffusers' guider."""
    from diffusers.guiders import AdaptiveProjectedGuidance
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

    from genflow.guidance import APG
    from genflow.guidance.clock import guided_output

    ours = APG(scale=7.5, eta=0.0, norm_threshold=15.0, momentum=-0.5)
    theirs = AdaptiveProjectedGuidance(
        guidance_scale=6.5, adaptive_projected_guidance_momentum=-0.5, adaptive_projected_guidance_rescale=15.0,
        eta=0.0, use_original_formulation=True,
    )  # fmt: skip

    def guide_ours(scheduler: Any, i: int, t: Tensor, x: Tensor, cond: Tensor, uncond: Tensor) -> Any:
        if i == 0:
            ours.reset(len(scheduler.timesteps))
        return guided_output(ours, scheduler.family, cond, uncond, x, float(scheduler.times[i]), i)

    def guide_theirs(scheduler: Any, i: int, t: Tensor, x: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
        if i == 0:
            theirs.momentum_buffer = MomentumBuffer(-0.5)
        return theirs.forward(cond, uncond).pred

    return guide_ours, guide_theirs


def schedulers(quick: bool) -> list[Row]:
    """Our schedulers and APG against diffusers' own: ms a step in runs of 20 on latents of SDXL's size."""
    import diffusers

    from genflow.schedulers import create_scheduler

    diffusers.utils.logging.set_verbosity_error()
    shape, steps, repeats = ((1, 4, 8, 8), 4, 2) if quick else ((2, 4, 128, 128), 20, 30)
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(shape, generator=generator) for _ in range(steps + 1)]
    beta = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    flow = {"shift": 3.0}
    plain, apg = (None, None), _both_apg()
    dpm, euler = "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"
    cases = [
        ("step", "ghvb", dpm, beta, plain),
        ("APG", "ghvb", dpm, beta, apg),
        ("step with APG", "ghvb", dpm, beta, apg),
        ("step", "dpm++", dpm, beta, plain),
        ("step", "euler", "DDIMScheduler", {**beta, "clip_sample": False}, plain),
        ("step of a flow", "euler", euler, flow, plain),
        ("step of a flow with APG", "ghvb", euler, flow, apg),
    ]
    rows = []
    for what, name, peer_name, config, guides in cases:
        theirs = getattr(diffusers, peer_name)(**config)
        both = (create_scheduler(name, theirs.config), theirs)
        stepping = what != "APG"
        runs = (_loop(scheduler, outputs, guide, stepping) for scheduler, guide in zip(both, guides, strict=True))
        ours, peer = (1000 * seconds / steps for seconds in compare(*runs, repeats))
        peer_name += " and AdaptiveProjectedGuidance" if guides == apg else ""
        rows.append(Row(f"{what}, {'x'.join(map(str, shape))}", name, peer_name, ours, peer, "ms"))
    return rows


def transport(quick: bool) -> list[Row]:
    """Entropic optimal transport to a marginal error of 1e-9 at small regularization, against POT."""
    from genflow.evaluate.speed_transport import compare_with_pot

    return [Row(**row) for row in compare_with_pot(quick)]


def optimizers(quick: bool, device: str = "cpu") -> list[Row]:
    """Optimizer steps, default and compiled, against pytorch-optimizer and torch's AdamW; also with --device cuda."""
    from genflow.evaluate.speed_optimizers import compare_optimizers

    return [Row(**row) for row in compare_optimizers(quick, device)]


def couplings(quick: bool, device: str = "cpu") -> list[Row]:
    """Training steps of the default network at batch 256 with each coupling and without; also with --device cuda."""
    from genflow.evaluate.speed_couplings import compare_couplings

    return [Row(**row) for row in compare_couplings(quick, device)]


BENCHMARKS: dict[str, Callable[..., list[Row]]] = {
    "couplings": couplings,
    "metrics": metrics,
    "network": network,
    "optimizers": optimizers,
    "schedulers": schedulers,
    "transport": transport,
}
"""Benchmarks by name; each takes ``quick`` (small sizes, for tests) and returns its rows."""

ON_DEVICES = ("couplings", "optimizers")
"""Those that take a device; the others measure the CPU."""


def run_benchmark(name: str, quick: bool = False, device: str = "cpu") -> dict[str, Any]:
    """Run one of :data:`BENCHMARKS`; JSON-safe: its rows, with ``ratio`` in each, and what it ran on.

    Raises:
        InputError: an unknown benchmark; a device that is not there, or that this benchmark does not measure.
    """
    benchmark = BENCHMARKS[check_choice("benchmark", name, BENCHMARKS)]
    on = _check_device(device)
    if on.type != "cpu" and name not in ON_DEVICES:
        raise InputError(f"device: {name} measures the CPU; allowed elsewhere: {', '.join(ON_DEVICES)}")
    rows = benchmark(quick, device) if name in ON_DEVICES else benchmark(quick)
    return {
        "benchmark": name,
        "quick": quick,
        "device": torch.cuda.get_device_name(on) if on.type == "cuda" else str(on),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }


def _check_device(device: str) -> torch.device:
    try:
        on = torch.device(device)
        torch.empty((), device=on)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: {device!r} is not there: {str(error).splitlines()[0]}") from None
    return on


def main(
    name: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: does it run, not how fast.")] = False,
    device: Annotated[
        str, typer.Option("--device", help=f"cpu, cuda, ...; only for: {', '.join(ON_DEVICES)}.")
    ] = "cpu",
) -> None:
    """Measure genflow's parts against what they replace; without a name, list the benchmarks."""
    console = Console()
    if name is None:
        for known, benchmark in BENCHMARKS.items():
            console.print(f"{known}: {benchmark.__doc__}", highlight=False)
        return
    check_output_files(json=json_file)
    result = run_benchmark(name, quick, device)
    table = Table(title=f"{name}, {result['device']}, {result['threads']} thread(s)")
    for column in ("what", "ours", "peer", "ratio"):
        table.add_column(column, justify="right" if column == "ratio" else "left")
    for row in result["rows"]:
        figures = [f"{row[side]:.3g} {row['unit']}\n{row[side + '_name']}" for side in ("ours", "peer")]
        table.add_row(f"{row['what']}\n({row['better']} is better)", *figures, f"{row['ratio']:.3g}")
    console.print(table)
    if json_file is not None:
        write_json(json_file, result)


if __name__ == "__main__":
    run(main)
