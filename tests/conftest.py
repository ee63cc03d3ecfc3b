"""What tests of every part share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
