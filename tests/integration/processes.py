"""Programs that the tests run: to their end, or until told to stop."""

import contextlib
import fcntl
import functools
import itertools
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

Argument = str | Path
# Below those that Linux gives to connections, so that none of these has a server's port when it binds it.
PORTS = range(10_000, 32_000)
PORTS_OF_A_PROCESS = 500


class CommandError(AssertionError):
    """A program ended with a status that the test did not expect; shows all it said."""


def run(
    *argv: Argument,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_seconds: float = 280,
    check: bool = True,
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run to the end; names and output that are not UTF-8 survive as surrogates.

    Raises CommandError unless the status is 0 or `check` is false.
    """
    done = subprocess.run(
        [str(argument) for argument in argv],
        env=dict(env) if env is not None else None,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=timeout_seconds,
        check=False,
    )
    if check and done.returncode != 0:
        command = " ".join(str(argument) for argument in argv)
        raise CommandError(f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """All of them different, and nobody else is given them meanwhile, in this run of the tests or another."""
    found = itertools.islice(filter(_is_free, itertools.islice(_own_ports(), PORTS_OF_A_PROCESS)), count)
    ports = list(found)
    assert len(ports) == count, f"of {PORTS_OF_A_PROCESS} ports only {len(ports)} are free"
    return ports


@functools.cache
def _own_ports() -> Iterator[int]:
    """Round and round; no other process has them as long as this one lives."""
    directory = Path(tempfile.gettempdir(), f"nixsnap-ports-{os.getuid()}")
    directory.mkdir(exist_ok=True)
    for first in PORTS[::PORTS_OF_A_PROCESS]:
        # The end of this process closes it.
        lock = os.open(directory / str(first), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return itertools.cycle(range(first, first + PORTS_OF_A_PROCESS))
    raise AssertionError(f"other processes hold all ports: see {directory}")


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        return True
    return False


def accepts(path: Path) -> bool:
    """Whether somebody listens on that socket; its file is there a moment earlier."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        return True
    return False


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


class Daemon:
    """A program in a process group of its own, its output in a file, ended by process id."""

    def __init__(self, argv: Sequence[Argument], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                [str(argument) for argument in argv],
                env=dict(env) if env is not None else None,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self, ready: Callable[[], bool], *, seconds: float = 120) -> None:
        def ready_or_dead() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with status {self.process.returncode}:\n{self.tail()}")
            return ready()

        try:
            wait_until(ready_or_dead, seconds=seconds, what=f"{self.process.args!r} is ready")
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}\n{self.tail()}") from error

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def stop(self, *, seconds: float = 100) -> int:
        """SIGTERM, and SIGKILL to the whole group if that does not do; the exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL to the process and to what it started and left in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self.process.wait(60)
