"""What README and manual tell people to type is typed, and says what they tell."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.need import need
from tests.integration.nixtools import EXAMPLES, ChrootStore
from tests.integration.processes import free_port
from tests.integration.runtimes.docker import Docker
from tests.integration.server import PROGRAM, Registry, program_env
from tests.support.manual import PAGES, ROOT, Block, Command, blocks

ADDRESS = "127.0.0.1:8080"
BACKGROUND = "in the background"


def _is_run(block: Block) -> bool:
    return block.language == "console" and not block.remark.startswith("not run: ")


RUN = {page: run for page in PAGES if (run := [b for b in blocks(page) if _is_run(b)])}


@pytest.fixture
def place(directory: Path) -> Path:
    """Where a page is run: as in a checkout, but what is written there goes away."""
    for name in ("Makefile", "deploy", "docs", "examples", ".venv"):
        (directory / name).symlink_to(ROOT / name)
    return directory


def programs(place: Path, more: dict[str, str]) -> str:
    """PATH, with the program of this checkout, and others as they can be used here."""
    (place / "bin").mkdir()
    for name, script in {"nixery-snap": f'exec {" ".join(PROGRAM)} "$@"', **more}.items():
        (place / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (place / "bin" / name).chmod(0o755)
    return f"{place / 'bin'}:{os.environ['PATH']}"


def script_of(run: list[Block], host: str) -> tuple[str, list[tuple[Block, Command]]]:
    """One shell for the whole page. What each command says goes to a file of its number, its status to another."""
    script, all_commands = ["shopt -s expand_aliases; set -m"], []
    for block in run:
        for command in block.commands:
            number, text = len(all_commands), command.text.replace(ADDRESS, host)
            if block.remark == BACKGROUND:
                script += [
                    f"{{ {text}\n}} > {number}.out 2>&1 &",
                    f"until curl -sf http://{host}/readyz > {number}.ready; do kill -0 $! && sleep 0.05 || exit; done",
                    f"echo 0 > {number}.status",
                ]
            else:
                script.append(f"{{ {text}\n}} > {number}.out 2>&1 < /dev/null; echo $? > {number}.status")
            all_commands.append((block, command))
    # Each job is a group of processes.
    end = "for job in $(jobs -p); do kill -- -$job; while kill -0 -- -$job; do sleep 0.05; done; done 2> kill.out"
    return "\n".join([*script, end]), all_commands


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_commands_do_what_the_page_says(
    page: Path, place: Path, registry: Registry, prepared_store: ChrootStore, docker_engine: Docker
) -> None:
    need("bash", "curl", "jq", "make", "skopeo")
    run = RUN[page]
    has_server = any(block.remark == BACKGROUND for block in run)
    host = f"127.0.0.1:{free_port()}" if has_server else registry.host
    docker = shutil.which("docker")
    make = f"{shutil.which('make')} --dry-run LISTEN={host} STATE={place}"
    path = programs(
        place,
        {
            # Without a network in containers: this Docker has none to give.
            "docker": f'[ "$1" != run ] || set -- run --network none "${{@:2}}"\nexec {docker} "$@"',
            # What `make run` runs behind its set-up, which has made this checkout what it is.
            "make": f"{make} \"$@\" | sed -n '/^exec /,$p' | bash",
        },
    )
    if has_server:  # building everything again would only take time
        prepared_store.copy(place / "nix")
    own = Registry(place / "own", prepared_store.root, source=EXAMPLES)
    settings = {
        "NIXERY_SNAP_SOURCE": f"path:{EXAMPLES}",
        "NIXERY_SNAP_STORAGE": f"file://{own.storage_directory}",
        "NIXERY_SNAP_NIX__STORE": str(own.store),
    }
    env = {
        **(program_env(place / "home") if has_server else own.program_env | settings),
        "PATH": path,
        "DOCKER_HOST": docker_engine.socket,
        "NIXERY_SNAP_CACHE_DIRECTORY": str(place / "cache"),
    }
    script, commands = script_of(run, host)
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for number, (block, command) in enumerate(commands):
        where = f"{page.relative_to(ROOT)}:{block.line}: $ {command.text}"
        said = (place / f"{number}.out").read_text(errors="replace").replace(host, ADDRESS)
        status = int((place / f"{number}.status").read_text())
        assert (status != 0) is (block.remark == "fails"), f"{where}\nstatus {status}:\n{said}"
        assert command.matches(said), f"{where}\nsays\n{said}\nand not\n{command.output}"
