"""``genflow info``: what is installed, what this machine can do, what ships with genflow."""

import importlib
import inspect
import json
import os
import platform
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from genflow import __file__ as _package_file
from genflow import __version__
from genflow.cli.doctor import check_torchvision, installed

__all__ = ["gather", "info"]

_PACKAGES = (
    "torch", "diffusers", "accelerate", "safetensors", "torchmetrics", "torchdiffeq", "numpy", "scipy", "transformers",
    "torch-fidelity",
)  # fmt: skip
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "bf16", "sve")


def _processor() -> dict[str, Any]:
    """The processor's name and those of its features that decide how fast a network runs (Linux says; others not)."""
    name, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    except OSError:
        pass
    return {"name": name, "cores": os.cpu_count(), "features": [feature for feature in _FEATURES if feature in flags]}


def _device() -> dict[str, Any]:
    import torch

    from genflow.processes import choose_device

    device = choose_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU used"
    return {"chosen": str(device), "name": name, "threads": torch.get_num_threads()}


def _dtype() -> dict[str, Any]:
    from genflow.pipelines.opening import choose_dtype
    from genflow.precision import probe
    from genflow.processes import choose_device

    training = probe(choose_device("auto").type)
    return {
        "generate": str(choose_dtype("auto")).removeprefix("torch."),
        "generate_reason": "the same images on every machine, to rounding; --dtype takes another",
        "train": training.name,
        "train_reason": training.reason,
    }


def _models() -> dict[str, str]:
    from genflow import assets

    return {name: str(assets.path(name)) for name in assets.models()}


def _recipes(kind: str) -> Callable[[], list[str]]:
    def recipes() -> list[str]:
        from genflow import assets

        return assets.recipes(kind)

    return recipes


def _registry(module: str, name: str) -> Callable[[], list[str]]:
    def names() -> list[str]:
        return sorted(getattr(importlib.import_module(module), name))

    return names


def _schedulers() -> dict[str, Any]:
    """Each short name's class, the options that the name sets, and all that ``--scheduler-option`` takes beside the
    keys of every diffusers config."""
    from genflow import schedulers
    from genflow.schedulers.reading import FAMILY_KEYS

    found = {}
    for name, (kind, options) in sorted(schedulers.SCHEDULERS.items()):
        known = inspect.signature(getattr(schedulers, kind).__init__).parameters
        own = [key for key in known if key != "self" and key not in FAMILY_KEYS]
        found[name] = {"class": kind, "sets": options, "options": own}
    return found


def _options(module: str, name: str) -> Callable[[], dict[str, list[str]]]:
    def options() -> dict[str, list[str]]:
        return {
            key: list(kind.option_names) for key, kind in sorted(getattr(importlib.import_module(module), name).items())
        }

    return options


def gather() -> dict[str, Any]:
    """Everything ``genflow info --json`` prints. A part that cannot be found out holds ``{"error": ...}``."""
    parts: dict[str, Callable[[], Any]] = {
        "processor": _processor,
        "device": _device,
        "dtype": _dtype,
        "models": _models,
        "recipes": _recipes("train"),
        "distill": _recipes("distill"),
        "schedulers": _schedulers,
        "solvers": _options("genflow.solvers", "SOLVERS"),
        "guidances": _options("genflow.guidance", "GUIDANCES"),
        "optimizers": _registry("genflow.training", "OPTIMIZERS"),
    }
    report: dict[str, Any] = {
        "genflow": __version__,
        "folder": str(Path(_package_file).parent),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {package: installed(package) for package in _PACKAGES},
        "torchvision": check_torchvision().to_dict(),
    }
    for name, part in parts.items():
        try:
            report[name] = part()
        except Exception as error:  # a broken installation is what this command is for: report it and go on
            report[name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    return report


def _lines(report: Mapping[str, Any]) -> list[str]:
    """The report for a person: a name and a value a line."""
    lines = []
    for key, value in report.items():
        if isinstance(value, Mapping) and "error" in value:
            text = f"cannot be found out: {value['error']}"
        elif key == "packages":
            text = ", ".join(f"{name} {version or 'absent'}" for name, version in value.items())
        elif key == "torchvision":
            text = f"{value['status']}: {value['detail']}"
        elif key == "processor":
            text = f"{value['name']}, {value['cores']} cores, {' '.join(value['features']) or 'no known features'}"
        elif key == "device":
            text = f"{value['chosen']}, {value['name']}, {value['threads']} threads"
        elif key == "dtype":
            text = f"generate {value['generate']} ({value['generate_reason']})"
            text += f"; train {value['train']} ({value['train_reason']})"
        elif isinstance(value, (list, Mapping)):
            text = ", ".join(value) or "none"
        else:
            text = str(value)
        lines.append(f"{key:<12} {text}")
    return lines


def info(
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show versions, device, number formats, what ships with genflow; find a broken torchvision.

    With --json schedulers, solvers and guidances come with their options.

    Examples:

    \b
      genflow info
      genflow info --json | jq .dtype
      genflow info --json | jq .schedulers.ghvb.options
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    report = gather()
    if json_output:
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo("\n".join(_lines(report)))
    if report["torchvision"]["mend"]:
        typer.echo(f"\nThis installation is broken. The mend: {report['torchvision']['mend']}")
