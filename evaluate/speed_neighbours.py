"""Seconds and memory of the nearest-neighbour figures, ours and those of the ``prdc`` package, each in a process of its
own: the most memory that a process ever held can be told only once.

``python -m genflow.evaluate.speed_neighbours --count 50000`` runs one side at any size and prints both.
"""

import contextlib
import importlib.util
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from genflow.errors import InputError, check_choice, check_number
from genflow.evaluate.console import progress_bar, run

__all__ = ["compare_with_prdc", "measure"]

SIDES = ("ours", "prdc")
NAMES = {"ours": "neighbour_metrics, strict", "prdc": "prdc.compute_prdc"}
K = 5


def measure(side: str, count: int, dimensions: int, seed: int = 0, progress: bool = True) -> dict[str, Any]:
    """The four figures (``k = 5``, balls without their surface) of ``count`` against ``count`` float32 features.

    Both sides get the same features. Returns ``figures``, ``seconds``, and in MiB the most memory held by this process:
    ``memory`` in all, libraries and features included, and ``working`` what the computation added to it.

    Raises:
        InputError: an unknown side, ``prdc`` not installed, sizes out of range.
    """
    check_choice("side", side, SIDES)
    check_number("count", count, at_least=K + 1, integer=True)
    check_number("dimensions", dimensions, at_least=1, integer=True)
    import torch  # on both sides: it is where features come from, and its size is no merit of either

    generator = torch.Generator().manual_seed(seed)
    real, generated = (torch.randn(count, dimensions, generator=generator) for _ in range(2))
    generated *= 0.98
    if side == "ours":
        from genflow.metrics.neighbours import neighbour_metrics

        def work() -> dict[str, float]:
            with progress_bar("neighbours", 3 * count, progress) as advance:
                found = neighbour_metrics(real, generated, k=K, density_k=K, strict=True, progress=advance)
            return {name: getattr(found, name) for name in ("precision", "recall", "density", "coverage")}
    else:
        if importlib.util.find_spec("prdc") is None:
            raise InputError("side: prdc is not installed (pip install prdc)")
        from prdc import compute_prdc

        def work() -> dict[str, float]:
            with contextlib.redirect_stdout(sys.stderr):  # it prints the counts
                found = compute_prdc(real.numpy(), generated.numpy(), nearest_k=K)
            return {name: float(value) for name, value in found.items()}

    before = _most_memory()
    begun = time.perf_counter()
    figures = work()
    seconds = time.perf_counter() - begun
    memory = _most_memory()
    return {"figures": figures, "seconds": seconds, "memory": memory, "working": memory - before}


def _most_memory() -> float:
    """MiB that this process held at most so far.

    Linux keeps that of the program itself as VmHWM; what getrusage gives there begins with what the parent had held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def compare_with_prdc(quick: bool) -> list[dict[str, Any]]:
    """Rows for speed's table; without ``prdc`` a line on stderr and none."""
    if importlib.util.find_spec("prdc") is None:
        print("prdc is not installed: its rows are left out", file=sys.stderr)
        return []
    count, dimensions = (300, 64) if quick else (10_000, 2048)
    ours, peer = (_in_a_process(side, count, dimensions) for side in SIDES)
    what = f"precision, recall, density, coverage, 2 x {count} x {dimensions} features, float32"
    names = {"ours_name": NAMES["ours"], "peer_name": NAMES["prdc"]}
    return [
        {"what": title, **names, "ours": ours[key], "peer": peer[key], "unit": unit}
        for title, key, unit in (
            (what, "seconds", "s"),
            (f"the same: memory of the process, {_shared(count, dimensions)}", "memory", "MiB"),
            ("the same: memory beyond those", "working", "MiB"),
        )
        if key != "working" or min(ours[key], peer[key]) > 0  # too small to show beside what imports took
    ]


def _shared(count: int, dimensions: int) -> str:
    return f"libraries and {2 * 4 * count * dimensions / 2**20:.0f} MiB of features included"


def _in_a_process(side: str, count: int, dimensions: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "genflow.evaluate.speed_neighbours", "--side", side, "--json"]
    command += ["--count", str(count), "--dimensions", str(dimensions)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main(
    count: Annotated[int, typer.Option("--count", help="Samples on each side.")] = 50_000,
    dimensions: Annotated[int, typer.Option("--dimensions", help="Features a sample.")] = 2048,
    side: Annotated[str, typer.Option("--side", help=f"One of: {', '.join(SIDES)}.")] = "ours",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Time and memory of precision, recall, density and coverage at one size, on random features."""
    found = measure(side, count, dimensions, progress=not as_json)
    if as_json:
        print(json.dumps(found))
        return
    figures = ", ".join(f"{name} {value:.4f}" for name, value in found["figures"].items())
    print(f"{NAMES[side]}, 2 x {count} x {dimensions} float32 features: {figures}")
    print(
        f"{found['seconds']:.1f} s; {found['memory']:.0f} MiB at most, {_shared(count, dimensions)}; "
        f"{found['working']:.0f} MiB beyond those"
    )


if __name__ == "__main__":
    run(main)
