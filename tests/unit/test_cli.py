"""The command line as such: every help text, exit statuses, completion in real shells."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from nixery_snap.cli import cli
from tests.integration.need import absent, need

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(cli.commands)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """With the program of this checkout on PATH, and none of the caller's settings."""
    program = tmp_path / "bin/nixery-snap"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m nixery_snap "$@"\n')
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NIXERY_SNAP_")}
    path = f"{program.parent}:{kept['PATH']}"
    return {
        **kept,
        "PATH": path,
        "PYTHONPATH": f"{ROOT}:{kept.get('PYTHONPATH', '')}",
        "HOME": str(tmp_path),
        "TERM": "dumb",
    }


def call(env: dict[str, str], *argv: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        argv, env=env, input=stdin, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_says_what_it_is_for(name: str) -> None:
    command = cli.commands[name]
    assert command.help
    assert re.match(r"[A-Z].*\.", command.help), "a sentence"
    # As the program asks: click remembers the names of the first --help that is asked for.
    shown = command.get_help(click.Context(command, click.Context(cli, **cli.context_settings), name))
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.opts
            assert parameter.help.endswith((".", "…")), parameter.help
            # Types of ours have no name that says something: what it is says the option itself.
            assert (
                not re.search(rf"{parameter.opts[0]} (TEXT|PARSE|PATH)\b", shown) or parameter.name == "tag"
            )
        else:
            # What an argument is stands in the command's sentence.
            [word] = re.findall(r"\w\w+", str(parameter.metavar or parameter.name))
            assert word.lower().replace("_", " ") in command.help.lower().replace("_", " ")


def test_help_is_the_same_everywhere(env: dict[str, str]) -> None:
    """Asked for with -h or --help, and by either way of starting the program."""
    done = call(env, "nixery-snap", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == call(env, "nixery-snap", "-h").stdout
    assert done.stdout.startswith("Usage: nixery-snap [OPTIONS] COMMAND")
    assert [line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines()] == COMMANDS


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["check-config"], 0, ""),
        (["check-config", "--config", "/absent.toml"], 1, "the settings file /absent.toml cannot be read"),
        (["check-config", "--listen", "nowhere"], 1, "listen"),
        ([], 2, "Commands:"),
        (["serve", "--format", "oci"], 2, "'oci' is not one of 'classic', 'nix-snapshotter'"),
    ],
    ids=str,
)  # fmt: skip
def test_exit_statuses(env: dict[str, str], argv: list[str], status: int, said: str) -> None:
    done = call(env, "nixery-snap", *argv)
    assert done.returncode == status, done
    assert said in done.stderr
    assert (done.stderr == "") is (status == 0), "faults go to standard error, results do not"
    assert "Traceback" not in done.stderr


def test_bash_completes(env: dict[str, str]) -> None:
    if call(env, "bash", "-c", "type -t complete").stdout != "builtin\n":
        absent("bash was built without completion, as that of nixpkgs' builds is")
    script = """
        source <(nixery-snap completion bash)
        for line in "nixery-snap ser" "nixery-snap serve --format nix"; do
          COMPREPLY=() COMP_WORDS=($line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
          _nixery_snap_completion nixery-snap "${COMP_WORDS[-1]}"
          echo "${COMPREPLY[*]}"
        done
        complete -p nixery-snap
    """
    done = call(env, "bash", "-c", script)
    assert done.stdout.splitlines()[:2] == ["serve", "nix-snapshotter"], done
    assert "-F _nixery_snap_completion nixery-snap" in done.stdout


def test_fish_completes(env: dict[str, str]) -> None:
    need("fish")
    script = """
        nixery-snap completion fish | source
        complete --do-complete "nixery-snap inspect --ver"
        complete --do-complete "nixery-snap serve --format nix"
    """
    done = call(env, "fish", "--no-config", "-c", script)
    assert done.stdout.splitlines() == [
        "--verify\tCheck every invariant of the image on its bytes.",
        "nix-snapshotter",
    ], done


def test_zsh_completes(env: dict[str, str], tmp_path: Path) -> None:
    """Only its line editor completes, so a terminal is needed."""
    need("zsh", "setsid")
    (tmp_path / ".zshrc").write_text(
        "autoload -U compinit && compinit -u -D\nsource <(nixery-snap completion zsh)\nPS1='ready> '\n"
    )
    terminal, inside = pty.openpty()
    shell = subprocess.Popen(
        ["setsid", "--ctty", "--wait", "zsh", "-i"], env=env, stdin=inside, stdout=inside, stderr=inside
    )
    os.close(inside)
    said = b""

    def wait_for(what: bytes) -> None:
        nonlocal said
        deadline = time.monotonic() + 80
        while what not in said:
            assert time.monotonic() < deadline, said
            if select.select([terminal], [], [], 1)[0]:
                said += os.read(terminal, 4096)
        said = said.partition(what)[2]

    try:
        wait_for(b"ready> ")
        os.write(terminal, b"nixery-snap image-s\t")
        wait_for(b"image-service")
        os.write(terminal, b"--contai\t")
        wait_for(b"--containerd")
    finally:
        os.close(terminal)  # hangs up
        shell.wait(50)
