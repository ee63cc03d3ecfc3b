"""Looks for installations known to break: torchvision beside a torch that it was not built for.

diffusers and torchmetrics import torchvision wherever it is *installed*, so one that cannot be imported takes them
down with it ("operator torchvision::nms does not exist"), while none at all does no harm.
"""

import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata

__all__ = ["Finding", "check_torchvision", "installed", "matching_torchvision"]


@dataclass(frozen=True)
class Finding:
    """What was found; ``mend`` is a command to run, or None where nothing is wrong."""

    status: str
    detail: str
    mend: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        return asdict(self)


def installed(package: str) -> str | None:
    """The version of an installed distribution, or None. Imports nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def matching_torchvision(torch_version: str) -> str | None:
    """The torchvision series made for a torch 2.x: their minor numbers differ by 15 (2.0 and 0.15, 2.13 and 0.28)."""
    match = re.match(r"2\.([0-9]+)", torch_version)
    return f"0.{int(match[1]) + 15}" if match else None


def check_torchvision() -> Finding:
    """Import torchvision, if it is installed, in a process of its own, and say how to mend what fails."""
    version, torch_version = installed("torchvision"), installed("torch") or "unknown"
    if version is None:
        if installed("torch-fidelity"):
            return Finding(
                "broken",
                "torch-fidelity is installed without the torchvision it needs, which breaks torchmetrics.image.fid",
                "pip uninstall torch-fidelity",
            )
        return Finding("absent", "not installed; genflow does not need it")
    command = [sys.executable, "-c", "import torch, torchvision; torchvision.ops.nms"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return Finding("unknown", f"{version}: importing it took more than two minutes")
    if result.returncode == 0:
        return Finding("works", version)
    lines = result.stderr.strip().splitlines() or ["no message"]
    series = matching_torchvision(torch_version)
    other = f", or pip install 'torchvision=={series}.*' of the same build (CPU or CUDA) as torch" if series else ""
    return Finding(
        "broken",
        f"{version} does not work with torch {torch_version} ({lines[-1]}), and breaks diffusers and torchmetrics",
        f"pip uninstall torchvision{other}",
    )
