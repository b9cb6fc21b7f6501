import asyncio
import os
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import uvloop

from nixery_snap.processes import PIPE, Process

ENVIRONMENT = {"PATH": os.environ["PATH"]}


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Any:
    chosen: Any = asyncio.run if request.param == "asyncio" else uvloop.run
    chosen(asyncio.sleep(0))  # what a loop opens once for all
    return chosen


@pytest.fixture(params=["told by the kernel", "waited for"], autouse=True)
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "waited for":
        monkeypatch.delattr(os, "pidfd_open")


def shell(script: str, stdin: int = PIPE) -> Coroutine[Any, Any, Process]:
    return Process.start("sh", "-c", script, stdin=stdin, env=ENVIRONMENT)


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_is_said(run: Any) -> None:
    async def work() -> tuple[bytes, bytes, int, int | None]:
        process = await shell("cat; echo more >&2; exit 3")
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert process.returncode is None
        process.stdin.write(b"some")
        await process.stdin.drain()
        process.stdin.close()
        said = await process.stdout.read(), await process.stderr.read(), await process.wait()
        process.close()
        return *said, process.returncode

    before = handles()
    assert run(work()) == (b"some", b"more\n", 3, 3)
    assert handles() == before


def test_ended_by_a_signal_with_all_that_it_started(run: Any) -> None:
    async def work() -> int:
        process = await shell("sleep 60 & sleep 60")
        os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout
        assert await process.stdout.read() == b""
        returncode = await process.wait()
        process.close()
        return returncode

    assert run(work()) == -signal.SIGKILL


def test_given_up_while_it_starts(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays, nor does what it has started by then."""
    os.mkfifo(tmp_path / "open")
    alive: list[BinaryIO] = []  # read to its end when nobody has the other one any more
    given_up: list[Process] = []
    close = Process.close

    def close_and_tell(process: Process) -> None:
        given_up.append(process)
        close(process)

    async def cancelled(sock: socket.socket, **_: object) -> None:
        sock.close()
        alive.append((tmp_path / "open").open("rb"))
        raise asyncio.CancelledError

    async def work() -> bytes:
        monkeypatch.setattr(asyncio, "open_unix_connection", cancelled)
        monkeypatch.setattr(Process, "close", close_and_tell)
        with pytest.raises(asyncio.CancelledError):
            await shell(f"exec 3> {tmp_path}/open; sleep 600 & wait")
        assert await given_up[0].wait() == -signal.SIGKILL
        with alive[0] as file:
            return file.read()

    assert run(work()) == b""


def test_the_end_does_not_wait_for_what_is_left_behind(run: Any) -> None:
    async def work() -> int:
        process = await shell("sleep 60 & exit 4")
        returncode = await process.wait()
        os.killpg(process.pid, signal.SIGKILL)
        process.close()
        return returncode

    assert run(work()) == 4


def test_a_program_that_is_not_there(run: Any, tmp_path: Path) -> None:
    async def work() -> None:
        await Process.start(str(tmp_path / "nothing"), env=ENVIRONMENT)

    before = handles()
    with pytest.raises(FileNotFoundError):
        run(work())
    assert handles() == before


def test_many_at_a_time(run: Any) -> None:
    """While threads open and close files."""

    async def one(number: int) -> bytes:
        process = await shell(f"echo {number}")
        assert process.stdout
        said = await process.stdout.read()
        await process.wait()
        process.close()
        return said

    def files() -> None:
        for _ in range(2000):
            os.close(os.open("/dev/null", os.O_RDONLY))

    async def work() -> list[bytes]:
        busy = [asyncio.to_thread(files) for _ in range(4)]
        said, *_ = await asyncio.gather(asyncio.gather(*map(one, range(100))), *busy)
        return said

    assert run(work()) == [f"{number}\n".encode() for number in range(100)]
