"""What a person sees of success and failure: help, one clear line, exit status."""

import errno
import os
import subprocess
import sys

import pytest
import torch

import genflow
from genflow.cli import main
from genflow.errors import InputError, NonFiniteError

COMMANDS = ("generate", "compare", "evaluate", "train", "distill", "info")


def command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make ``genflow info`` fail with ``error``."""

    def fail() -> None:
        raise error

    monkeypatch.setattr("genflow.cli.info.gather", fail)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from genflow.cli.main import run; status = [run([*command, '--help']) for command in "
        f"([], *([name] for name in {COMMANDS}))]; "
        "heavy = [name for name in ('torch', 'diffusers', 'numpy', 'PIL') if name in sys.modules]; "
        "sys.exit(f'{status} {heavy}' if any(status) or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"genflow {name}" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_worked_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert text.count(f" genflow {name}") >= 2


def test_python_m_genflow_and_version() -> None:
    command = [sys.executable, "-m", "genflow", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"genflow {genflow.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "--seeds", "5-1"], "--seeds: the range 5-1 runs backwards"),
        (["generate", "--seeds", ""], "--seeds"),
        (["generate", "--step", "3"], "--step"),
        (["generate", "--steps", "many"], "--steps"),
        (["generate", "--scheduler-option", "shift"], "--scheduler-option: 'shift' is not of the form key=value"),
        (["generate", "extra"], "extra"),
        (["generat"], "generate"),
        (["train"], "recipe"),
    ],
)
def test_bad_words_are_one_line_and_status_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("genflow: error: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (InputError("model: gone"), 2, "genflow: error: model: gone\n"),
        (InputError("two\n  lines"), 2, "genflow: error: two lines\n"),
        (NonFiniteError("NaN at step 3"), 1, "genflow: error: NaN at step 3\n"),
        (KeyboardInterrupt(), 130, "genflow: stopped\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/1.png"), 1, "genflow: error: out/1.png: No space left"),
        (ImportError("no module named x"), 1, "genflow: error: no module named x; `genflow info`"),
        (RuntimeError("operator torchvision::nms does not exist"), 1, "torchvision does not match torch"),
    ],
)
def test_failures_are_one_line(
    error: BaseException, status: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, error)
    assert main.run(["info"]) == status
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_mistake_of_our_own_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, ZeroDivisionError("oops"))
    with pytest.raises(ZeroDivisionError):
        main.run(["info"])


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    script = f"{sys.executable} -m genflow generate --help | true"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(("status", "left"), [(0, True), (2, False)])
def test_a_launched_process_parts_from_the_others_unless_it_failed(status, left, tmp_path, monkeypatch):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    monkeypatch.setattr(main, "run", lambda: status)
    try:
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert ended.value.code == status
        assert torch.distributed.is_initialized() != left
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
