"""What tests of every part share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest


@pytest.fixture
def two_processes(tmp_path: Path) -> Callable[..., list[Any]]:
    """``(script, *arguments) -> [found, found]``: Python code run by two processes at once, and the JSON of the last
    line that each prints.

    It finds its rank in ``sys.argv[1]``, a folder for both in ``sys.argv[2]``, the arguments behind, and makes the
    process group itself: ``init_method=f"file://{folder}/rendezvous"``. Where one fails both are stopped.
    """

    def run(script: str, *arguments: str) -> list[Any]:
        command = [sys.executable, "-c", script]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
        started = [subprocess.Popen([*command, str(rank), str(tmp_path), *arguments], **pipes) for rank in range(2)]
        try:
            found = []
            for process in started:
                out, errors = process.communicate(timeout=240)
                assert process.returncode == 0, errors
                found.append(json.loads(out.strip().splitlines()[-1]))
            return found
        finally:
            for process in started:
                process.kill()

    return run


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """``launch(*words)`` runs ``accelerate launch`` with two processes on the CPU in ``tmp_path``, insists on success
    and returns what it said: (stdout, stderr)."""

    def run(*words: Any) -> tuple[str, str]:
        # with --cpu accelerate starts one process, whatever --num_processes says
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0", *map(str, words)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        launcher = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
        try:
            out, errors = launcher.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            for process in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
                process.kill()  # each by itself: the launcher puts them in sessions of their own
            pytest.fail(f"no end after 240 s; its last words:\n{launcher.communicate()[1]}")
        assert launcher.returncode == 0, errors
        return out, errors

    return run
