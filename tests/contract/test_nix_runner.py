import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from nixery_snap.errors import NixError, NixMissing
from nixery_snap.nix_stores import command
from nixery_snap.nix_stores.command import NixCommand, NixStore
from nixery_snap.ports import NixProcess, NixRunner
from tests.contract.conftest import MakeNix
from tests.integration.nixtools import EXAMPLES, ChrootStore


@pytest.fixture
def nix(prepared: ChrootStore, make_nix: MakeNix) -> NixRunner:
    return make_nix(prepared)


def evaluate(expression: str) -> tuple[str, ...]:
    return "nix-instantiate", "--eval", "--strict", "--json", "-E", expression


async def test_what_it_says(nix: NixRunner) -> None:
    finished = await nix.run(*evaluate("builtins.trace ''seen'' (1 + 1)"))
    assert (finished.returncode, finished.stdout.strip()) == (0, b"2")
    assert b"seen" in finished.stderr


async def test_that_it_failed(nix: NixRunner) -> None:
    finished = await nix.run(*evaluate("throw ''gone''"))
    assert finished.returncode != 0
    assert b"gone" in finished.stderr


async def test_lines_as_they_come(nix: NixRunner) -> None:
    lines: list[bytes] = []
    finished = await nix.run(
        *evaluate("builtins.trace ''one\ntwo'' (throw ''three'')"), on_stderr=lines.append
    )
    assert finished.stderr == b""
    assert lines
    assert all(line.startswith(b"@nix {") and b"\n" not in line for line in lines)


async def test_a_message_longer_than_any_buffer(nix: NixRunner) -> None:
    lines: list[bytes] = []
    long = "builtins.concatStringsSep '''' (builtins.genList toString 500000)"
    finished = await nix.run(*evaluate(f"builtins.trace ({long}) 1"), on_stderr=lines.append)
    assert finished.returncode == 0
    assert max(map(len, lines)) > 100_000


async def test_the_store_is_the_configured_one(prepared: ChrootStore, nix: NixRunner) -> None:
    finished = await nix.run("nix-store", "--query", "--hash", *sorted(prepared.all_paths())[:1])
    assert finished.returncode == 0


async def test_a_program_that_is_not_there(nix: NixRunner) -> None:
    with pytest.raises(NixMissing) as raised:
        await nix.run("nix-no-such-program")
    assert raised.value.program == "nix-no-such-program"


async def test_secrets_of_the_server_stay_with_it(nix: NixRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    finished = await nix.run(*evaluate('builtins.getEnv "AWS_SECRET_ACCESS_KEY"'))
    assert finished.stdout.strip() == b'""'


async def test_a_program_that_leaves_another_behind(
    prepared: ChrootStore, make_nix: MakeNix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps what both write to open, as connections of ssh that are shared do."""
    program = tmp_path / "leaves"
    program.write_text("#!/bin/sh\nsleep 60 &\necho $! said\necho more >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    async with asyncio.timeout(50):
        finished = await make_nix(prepared).run("leaves")
    pid, said = finished.stdout.split()
    os.kill(int(pid), signal.SIGKILL)
    assert (finished.returncode, said, finished.stderr) == (3, b"said", b"more\n")


async def repl(nix: NixRunner, lines: list[bytes], memory_bytes: int | None = None) -> NixProcess:
    return await nix.start("nix", "repl", on_stderr=lines.append, memory_bytes=memory_bytes)


async def answer_of(process: NixProcess) -> bytes:
    """The next line that is a value."""
    while line := await process.read_line():
        if line.startswith(b"\x1b["):
            return line
    return b""


async def test_talking(nix: NixRunner) -> None:
    lines: list[bytes] = []
    process = await repl(nix, lines)
    await process.write(b"1 + 1\n")
    assert b"2" in await answer_of(process)
    await process.write(b"throw ''gone''\n3 + 4\n")
    assert b"7" in await answer_of(process)
    assert process.resident_bytes > 1024 * 1024
    await process.end()
    assert process.returncode is not None
    assert any(b"gone" in line for line in lines)
    assert process.resident_bytes == 0
    assert await process.read_line() == b""
    await process.write(b"1\n")
    await process.end()


async def test_ended_while_it_is_listened_to(nix: NixRunner) -> None:
    process = await repl(nix, [])
    await process.write(b"let f = x: f (x + 1 - 1); in f 0\n")
    listening = asyncio.create_task(answer_of(process))
    await asyncio.sleep(0.1)
    await process.end()
    assert await listening == b""


async def test_a_line_that_is_too_long(nix: NixRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_ANSWER_BYTES", 1024)
    process = await repl(nix, [])
    await process.write(b'builtins.concatStringsSep "" (builtins.genList toString 5000)\n')
    with pytest.raises(ValueError, match="limit"):
        await answer_of(process)
    await process.end()


async def test_memory_is_bounded(nix: NixRunner) -> None:
    eater = "builtins.length (builtins.genList (x: x) 300000000)"
    finished = await nix.run(*evaluate(eater), memory_bytes=2**30)
    assert finished.returncode != 0
    assert b"emory" in finished.stderr
    lines: list[bytes] = []
    process = await repl(nix, lines, 2**30)
    await process.write(f"{eater}\n".encode())
    assert await answer_of(process) == b""
    assert await process.wait() != 0
    assert any(b"out of memory" in line for line in lines)
    await process.end()


async def test_talking_to_what_is_not_there(nix: NixRunner) -> None:
    with pytest.raises(NixMissing):
        await nix.start("nix-no-such-program", on_stderr=print)


def builders(name: str) -> list[int]:
    """Processes that build the derivation of that name, by their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"name={name}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


async def until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.03)
    return True


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_nothing_is_left_running(own_store: ChrootStore, make_nix: MakeNix, how: str) -> None:
    name = f"sleeping-{uuid.uuid4().hex}"
    expression = (
        f"(import {EXAMPLES} {{ }}).slow.overrideAttrs"
        f' (_: {{ pname = "{name}"; version = "1"; script = "sleep 300"; }})'
    )
    command = ("nix-build", "--no-out-link", "-E", expression)
    # On a slow machine the time can be over before the builder has begun, which tells nothing.
    for timeout_seconds in (2, 10, 50) if how == "timeout" else (None,):
        task = asyncio.create_task(make_nix(own_store).run(*command, timeout_seconds=timeout_seconds))
        assert await until(lambda task=task: builders(f"{name}-1") != [] or task.done())
        if not task.done():
            break
        assert isinstance(task.exception(), TimeoutError)
    assert not task.done(), "the builder has not begun"
    if how == "cancelled":
        task.cancel()
    with pytest.raises((TimeoutError, asyncio.CancelledError)):
        await task
    assert await until(lambda: builders(f"{name}-1") == [])


async def test_options(nix: NixRunner) -> None:
    shown = await nix.run("nix", "show-config", "--json", options={"extra-substituters": "http://a:hidden@x"})
    assert "http://a:hidden@x" in json.loads(shown.stdout)["substituters"]["value"]
    assert "hidden" not in (await nix.run("nix", "show-config", "--json")).stdout.decode()


async def test_workers_create_a_store_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nix itself fails now and then when two do it at once."""
    programs, real = tmp_path / "bin", shutil.which("nix-store")
    programs.mkdir()
    script = programs / "nix-store"
    script.write_text(
        f'#!/bin/sh\nmkdir {tmp_path}/alone || exit 9\nsleep 0.2\n{real} "$@"\nrmdir {tmp_path}/alone\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    store = NixStore.parse(str(tmp_path / "new/store"))
    workers = [NixCommand(store, tmp_path / "home", {}) for _ in range(4)]
    await asyncio.gather(*(worker.initialise() for worker in workers))
    assert store.database.exists()


async def test_a_store_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "store/nix/var").mkdir(parents=True)
    (tmp_path / "store/nix/var/nix").touch()
    for place, reason in (
        ("file", "File exists"),
        ("store", "'.*/nix/var/nix' is not a directory"),
    ):
        with pytest.raises(NixError, match=f"{place} cannot be used: {reason}"):
            await NixCommand(NixStore.parse(str(tmp_path / place)), tmp_path / "home", {}).initialise()
