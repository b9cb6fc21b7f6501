"""Child processes, started without any code of ours between fork and exec.

asyncio's way starts them as the event loop does, and uvloop runs Python between the two: in a copy of a process whose
threads may have held locks at that moment, while the event loop waits for that copy. `subprocess` uses vfork.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Final

DEVNULL: Final = subprocess.DEVNULL
PIPE: Final = subprocess.PIPE
_LINE_BYTES: Final = 64 * 1024


class Process:
    """Leads a session of its own, so that what it starts can be ended with it. Close it when it has ended."""

    stdin: asyncio.StreamWriter | None = None
    stdout: asyncio.StreamReader | None = None
    stderr: asyncio.StreamReader | None = None

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._writers: list[asyncio.StreamWriter] = []
        self.pid: Final = popen.pid

    @classmethod
    async def start(
        cls,
        *command: str,
        env: Mapping[str, str],
        stdin: int = DEVNULL,
        stdout: int = PIPE,
        limit: int = _LINE_BYTES,
    ) -> Process:
        """`limit`: of a line that is read. Raises FileNotFoundError, and other OSError."""
        with ExitStack() as stack:
            # Sockets and not pipes: uvloop closes a pipe twice, the second time perhaps what a thread has just opened.
            ours: dict[str, socket.socket] = {}
            theirs = {"stdin": stdin, "stdout": stdout, "stderr": PIPE}
            for name in [name for name, given in theirs.items() if given == PIPE]:
                ours[name], end = map(stack.enter_context, socket.socketpair())
                theirs[name] = end.fileno()
            process = cls(_popen(command, env, *theirs.values()))
            process._watch()
            try:
                for name, end in ours.items():
                    reader, writer = await asyncio.open_unix_connection(sock=end.dup(), limit=limit)
                    process._writers.append(writer)
                    setattr(process, name, writer if name == "stdin" else reader)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.close()
                raise
        return process

    @property
    def returncode(self) -> int | None:
        return self._popen.returncode

    async def wait(self) -> int:
        """Until it has ended, whoever can still write to us then."""
        return await asyncio.shield(self._ended)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def _watch(self) -> None:
        try:
            handle = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, or an old one
            threading.Thread(target=self._wait, daemon=True).start()
        else:
            self._loop.add_reader(handle, self._look, handle)

    def _look(self, handle: int) -> None:
        if self._popen.poll() is not None:
            self._loop.remove_reader(handle)
            os.close(handle)
            self._ended.set_result(self._popen.returncode)

    def _wait(self) -> None:
        returncode = self._popen.wait()
        self._loop.call_soon_threadsafe(self._ended.set_result, returncode)


def _popen(
    command: Sequence[str], env: Mapping[str, str], stdin: int, stdout: int, stderr: int
) -> subprocess.Popen[bytes]:
    """Blocks for about a millisecond."""
    return subprocess.Popen(
        command, stdin=stdin, stdout=stdout, stderr=stderr, env=env, start_new_session=True
    )
