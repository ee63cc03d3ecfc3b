"""What tests of every part share: Python programs in processes of their own, one or two at once.

Most are forked from a server that has imported torch and diffusers, which take four seconds, but nothing of genflow.
"""

import json
import multiprocessing
import multiprocessing.connection
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

_SECONDS = 240  # a program that takes longer hangs
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("accelerate", "diffusers.training_utils", "diffusers.schedulers.scheduling_utils", "diffusers.models.unets"),
        *("diffusers.pipelines.pipeline_utils", "PIL.Image", "scipy.stats", "scipy.optimize", "yaml"),
    ]
)
_PROLOGUE = """\
import os, sys
for number, path in enumerate({outputs!r}, 1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
os.environ.clear()
os.environ.update({environment!r})
os.chdir({cwd!r})
sys.argv = {argv!r}
"""
_MODULE = "import runpy\nrunpy.run_module({name!r}, run_name='__main__', alter_sys=True)\n"


class Ended(NamedTuple):
    """What became of a program; a negative status is that of a signal."""

    status: int
    out: str
    errors: str


class Program:
    """A running Python program with one thread of torch."""

    def __init__(self, folder: Path, cwd: Path, code: str, argv: list[str], environment: dict[str, str]) -> None:
        folder.mkdir(parents=True)
        self._outputs = [str(folder / "out"), str(folder / "errors")]
        environment = os.environ | _ENVIRONMENT | environment
        prologue = _PROLOGUE.format(outputs=self._outputs, environment=environment, cwd=str(cwd), argv=argv)
        script = folder / "program.py"
        script.write_text(f"{prologue}import torch\ntorch.set_num_threads(1)\n{code}", encoding="utf-8")
        self.process: ForkServerProcess = _SERVER.Process(
            target=runpy.run_path, args=(str(script),), kwargs={"run_name": "__main__"}
        )
        self.process.start()

    @property
    def runs(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self) -> Ended:
        """Wait for its end; a program that hangs is killed, and the test fails."""
        self.process.join(_SECONDS)
        hangs = self.runs
        if hangs:
            self.process.kill()
            self.process.join()
        out, errors = (Path(path).read_text(encoding="utf-8") for path in self._outputs)
        assert not hangs, f"no end after {_SECONDS} s; its last words:\n{errors}"
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, out, errors)


@pytest.fixture
def start_python(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """``start_python(code, *arguments, environment={})`` starts a program in ``tmp_path``, and
    ``start_python("-m", "genflow", ...)`` a module; what still runs when the test ends is killed."""
    programs: list[Program] = []

    def start(code: str, *arguments: Any, environment: dict[str, str] | None = None) -> Program:
        words = [str(word) for word in arguments]
        if code == "-m":
            code = _MODULE.format(name=words[0])
        else:
            words = ["-c", *words]
        folder = tmp_path / f"program-{len(programs)}"
        programs.append(Program(folder, tmp_path, code, words, environment or {}))
        return programs[-1]

    yield start
    for program in programs:
        program.process.kill()


def _both(programs: list[Program]) -> list[Ended]:
    """Both to their ends; where one fails the other, which may wait for it, is killed."""
    multiprocessing.connection.wait([program.process.sentinel for program in programs], _SECONDS)
    if any(not program.runs and program.process.exitcode for program in programs):
        for program in programs:
            program.process.kill()
    ended = [program.wait() for program in programs]
    assert all(each.status == 0 for each in ended), "\n".join(each.errors for each in ended)
    return ended


@pytest.fixture
def two_processes(start_python: Callable[..., Program], tmp_path: Path) -> Callable[..., list[Any]]:
    """``(script, *arguments) -> [found, found]``: Python code run by two processes at once, and the JSON of the last
    line that each prints.

    It finds its rank in ``sys.argv[1]``, a folder for both in ``sys.argv[2]``, the arguments behind, and makes the
    process group itself: ``init_method=f"file://{folder}/rendezvous"``. Where one fails both are stopped.
    """

    def run(script: str, *arguments: str) -> list[Any]:
        ended = _both([start_python(script, rank, tmp_path, *arguments) for rank in range(2)])
        return [json.loads(each.out.strip().splitlines()[-1]) for each in ended]

    return run


@pytest.fixture
def launch(start_python: Callable[..., Program]) -> Callable[..., tuple[str, str]]:
    """``launch(*words)`` starts a program twice in ``tmp_path``, told what a launcher tells its processes, insists on
    success and returns what both said: (stdout, stderr)."""

    def run(*words: Any) -> tuple[str, str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ended = _both(
            [start_python(*words, environment=shared | {"RANK": str(n), "LOCAL_RANK": str(n)}) for n in range(2)]
        )
        return "".join(each.out for each in ended), "".join(each.errors for each in ended)

    return run


@pytest.fixture
def accelerate_launch(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """:func:`launch` by ``accelerate launch`` itself, which takes longer."""

    def run(*words: Any) -> tuple[str, str]:
        # with --cpu accelerate starts one process, whatever --num_processes says
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0", *map(str, words)]
        environment = os.environ | _ENVIRONMENT
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        launcher = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
        try:
            out, errors = launcher.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            for process in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
                process.kill()  # each by itself: the launcher puts them in sessions of their own
            pytest.fail(f"no end after {_SECONDS} s; its last words:\n{launcher.communicate()[1]}")
        assert launcher.returncode == 0, errors
        return out, errors

    return run
