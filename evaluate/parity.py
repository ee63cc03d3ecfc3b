"""Proof against the reference tools: pytorch-fid, clean-fid, torch-fidelity and prdc on the same images and weights.

``python -m genflow.evaluate.parity`` makes an environment of its own (5.5 GB; torch and torchvision as a pair, which
genflow itself does without), installs the tools and this checkout in it, runs the comparison there and prints the
table. Nothing is downloaded but packages: images are made, and Inception gets random weights, written in the tools'
file formats. The environment and what the tools answered are kept, so that the next run only does our part.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from genflow.errors import InputError, check_number
from genflow.evaluate.console import run
from genflow.files import check_output_files, write_text

__all__ = ["build_environment", "checkout", "main"]

REQUIREMENTS = Path(__file__).with_name("parity_requirements.txt")
STAMP = ".genflow-parity"


def checkout() -> Path:
    """The checkout that this file is in. Raises InputError where it is an installed copy, which pip cannot install."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file() or not REQUIREMENTS.is_file():
        raise InputError(f"parity: it is run from a checkout of genflow; {root} is none")
    return root


def build_environment(folder: Path, *, install: Sequence[str] | None = None) -> Path:
    """Make the virtual environment, or leave it where it is as asked for already; return its Python.

    Args:
        folder: where it goes; new, empty, or an environment.
        install: arguments of ``pip install``; by default the requirements and this checkout.

    Raises:
        InputError: ``folder`` holds something else, or an installation failed (the log is named).
    """
    if install is None:
        install = ["--requirement", str(REQUIREMENTS), "--editable", str(checkout())]
    folder, python = folder.absolute(), folder.absolute() / "bin" / "python"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"environment: {folder} is a file; a folder is needed")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise InputError(f"environment: {folder} is not empty and is no virtual environment")
    texts = [Path(value).read_text() if Path(value).is_file() else value for value in install]
    wanted = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    stamp = folder / STAMP
    if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python
    console = Console(stderr=True)
    with console.status(f"making the environment {folder}") as status:
        log = folder.with_name(f"{folder.name}.log")
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not python.exists():
            _follow([sys.executable, "-m", "venv", str(folder)], log, status.update)
        _follow([str(python), "-m", "pip", "--no-input", "install", *install], log, status.update)
    write_text(stamp, wanted)
    return python


def _follow(command: list[str], log: Path, show) -> None:
    """Run a command, each line of its output shown and kept in ``log``."""
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        for line in process.stdout:
            file.write(line)
            show(line.strip()[:100])
    if process.returncode:
        last = log.read_text().strip().splitlines()[-1:] or ["no word"]
        raise InputError(f"environment: {' '.join(command[1:4])} failed: {last[0][:200]} (all of it in {log})")


def main(
    environment: Annotated[
        Path, typer.Option(help="Made if need be; images, weights and the tools' answers go into parity/ below it.")
    ] = Path("/tmp/genflow-parity"),
    images: Annotated[int, typer.Option(help="In each folder of the main set; the other sets are smaller.")] = 300,
    threads: Annotated[int | None, typer.Option(help="For every tool; all cores by default.")] = None,
    speed_only: Annotated[bool, typer.Option("--speed-only", help="Measure whole folders and nothing else.")] = False,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Compare figures and nothing else.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Compare genflow's figures and speed with pytorch-fid, clean-fid, torch-fidelity and prdc.

    Exit status 1 where a figure is over its limit.
    """
    check_number("images", images, at_least=16, at_most=1000, integer=True)  # MOST_IMAGES of parity_inputs
    threads = (os.cpu_count() or 1) if threads is None else threads
    check_number("threads", threads, at_least=1, integer=True)
    if speed_only and no_speed:
        raise InputError("speed_only: --speed-only and --no-speed leave nothing to do")
    check_output_files(json=json_file)
    python = build_environment(environment)
    command = [str(python), "-m", "genflow.evaluate.parity_run", str(environment / "parity"), "--images", str(images)]
    command += ["--no-parity"] if speed_only else []
    command += ["--no-speed"] if no_speed else []
    command += ["--json", str(json_file.absolute())] if json_file is not None else []
    result = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=False)
    raise typer.Exit(result.returncode)


if __name__ == "__main__":
    run(main)
