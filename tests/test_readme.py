"""The README does not promise commands that are not there."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from genflow.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = typer.main.get_command(app).commands


def commands() -> list[list[str]]:
    """Every indented or quoted ``genflow ...`` command, in words, continued lines joined and comments dropped."""
    joined = README.replace("\\\n", " ")
    lines = [line.strip() for line in joined.splitlines() if line.startswith("    ")]
    lines += re.findall(r"`([^`\n]+)`", joined)
    parts = [part for line in lines for part in line.split("&&")]
    words = [shlex.split(part, comments=True) for part in parts if re.match(r"\s*(time )?genflow [a-z]", part)]
    return [word[word.index("genflow") :] for word in words]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_and_options_exist(words: list[str]) -> None:
    command = COMMANDS[words[1]]
    if hasattr(command, "commands"):  # as genflow distill; genflow evaluate is a command of its own too
        command = command.commands.get(words[2], getattr(command, "own", None))
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    said = {word.split("=")[0] for word in words if word.startswith("--")}
    assert said <= known


def test_the_issue_s_commands_are_all_shown() -> None:
    shown = {words[1] for words in commands()}
    assert shown == set(COMMANDS)
    for target in ("make demo", "make test", "pip install ."):
        assert target in README


def test_links_and_folders_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for folder in re.findall(r"^\| `([a-z_./]+)` \|", README, flags=re.M):
        assert (ROOT / folder).exists(), folder
    assert "FIGURE" not in README  # a measured figure belongs there
