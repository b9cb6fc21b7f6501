"""Runs Nix's programs against one store."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

import structlog

from nixery_snap.errors import NixError, NixMissing, SettingsError
from nixery_snap.file_lock import locked
from nixery_snap.nix.log_events import LogReader
from nixery_snap.ports import Program
from nixery_snap.processes import DEVNULL, PIPE, Process

log = structlog.get_logger()

_KILL_AFTER_SECONDS: Final = 3
_NEEDED: Final = re.compile(
    r"PATH|USER|LANG|TZ|TMPDIR|XDG_RUNTIME_DIR|SSH_AUTH_SOCK|(NIX_)?SSL_CERT_FILE|(?i:https?|all|no)_proxy"
    r"|NIX_(CONF_DIR|DAEMON_SOCKET_PATH|STATE_DIR|USER_CONF_FILES)"
)
# Of ssh, to builders: nobody answers prompts, and one that is gone must not hold up a build until its time is over.
_SSH_OPTIONS: Final = "-oBatchMode=yes -oConnectTimeout=10 -oServerAliveInterval=15"
_READ_BYTES: Final = 64 * 1024
_LINE_BYTES: Final = 1024 * 1024  # one message of Nix's log can be a whole trace
_ANSWER_BYTES: Final = 64 * 1024 * 1024  # one line of what a program that is talked to says
_PAGE_BYTES: Final = resource.getpagesize()


@dataclass(frozen=True, slots=True)
class NixStore:
    """Which store Nix works on. `root` is the directory that physically holds `nix/store`."""

    uri: str
    root: Path

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `auto`, `daemon` or a directory (a chroot store); raises SettingsError."""
        if text in {"auto", "daemon"}:
            return cls(text, Path("/"))
        if re.match(r"[a-z0-9+-]+://|.*\?", text):
            raise SettingsError(
                "nix.store", f"{text!r} is none of auto, daemon or a directory for a private store"
            )
        root = Path(text).absolute()
        return cls(str(root), root)

    @property
    def is_private(self) -> bool:
        """Whether it is a chroot store of ours, without daemon and build users."""
        return self.root != Path("/")

    @property
    def database(self) -> Path:
        return self.root / "nix/var/nix/db/db.sqlite"


class NixCommand:
    """Implements the port NixRunner. `home` is given to Nix as HOME; `options` are extra nix.conf settings."""

    def __init__(self, store: NixStore, home: Path, options: Mapping[str, str]) -> None:
        self.store = store
        self._environment = _environment(store, home, options)

    async def initialise(self) -> None:
        """Create a private store: concurrent first uses, of several workers too, would trip over each other.

        Raises NixError.
        """
        if not self.store.is_private:
            return
        root, said = self.store.root, LogReader()
        try:
            root.mkdir(parents=True, exist_ok=True)
            async with locked(root):
                finished = await self.run("nix-store", "--init", on_stderr=said.feed)
        except OSError as error:
            raise NixError(f"the Nix store {root} cannot be used: {error.strerror}") from error
        if finished.returncode != 0:
            reason = "; ".join([*said.plain, *said.errors]) or "Nix gave no reason"
            raise NixError(f"the Nix store {root} cannot be used: {reason}")

    async def run(
        self,
        program: str,
        *arguments: str,
        timeout_seconds: float | None = None,
        on_stderr: Callable[[bytes], object] | None = None,
        memory_bytes: int | None = None,
        options: Mapping[str, str] = MappingProxyType({}),
    ) -> Program:
        process = await self._spawn(program, arguments, memory_bytes, options)
        stdout, stderr = bytearray(), bytearray()
        reading = asyncio.gather(
            _collect(process.stdout, stdout),
            _drain(process.stderr, on_stderr) if on_stderr else _collect(process.stderr, stderr),
        )
        try:
            async with asyncio.timeout(timeout_seconds):
                await _read(reading, stdout, process)
        finally:
            if process.returncode is None:
                await _end(process)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            process.close()
        return Program(process.returncode or 0, bytes(stdout), bytes(stderr))

    async def start(
        self,
        program: str,
        *arguments: str,
        on_stderr: Callable[[bytes], object],
        memory_bytes: int | None = None,
    ) -> TalkingProcess:
        process = await self._spawn(program, arguments, memory_bytes, stdin=PIPE)
        return TalkingProcess(process, on_stderr)

    async def _spawn(
        self,
        program: str,
        arguments: Sequence[str],
        memory_bytes: int | None,
        options: Mapping[str, str] = MappingProxyType({}),
        stdin: int = DEVNULL,
    ) -> Process:
        command = (program, "--store", self.store.uri, "--log-format", "internal-json", *arguments)
        if shutil.which(program, path=self._environment.get("PATH")) is None:
            raise NixMissing(program)
        # Evaluators pay no heed to SIGTERM; others may have builders to end.
        tied = _tied_to_us("TERM" if memory_bytes is None else "KILL")
        try:
            process = await Process.start(
                *tied, *command, stdin=stdin, env=self._with(options), limit=_ANSWER_BYTES
            )
        except FileNotFoundError:
            raise NixMissing(program) from None
        if memory_bytes is not None:
            # Set from here: code between fork and exec is not safe in a process with threads.
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        return process

    def _with(self, options: Mapping[str, str]) -> dict[str, str]:
        """The environment with more settings of Nix: command lines can be seen by all, and URLs hold passwords."""
        lines = (self._environment["NIX_CONFIG"], *(f"{name} = {value}" for name, value in options.items()))
        return self._environment | {"NIX_CONFIG": "\n".join(lines)}


class TalkingProcess:
    """Implements the port NixProcess."""

    def __init__(self, process: Process, on_stderr: Callable[[bytes], object]) -> None:
        self._process = process
        self._reading = asyncio.Lock()
        self._stderr = asyncio.ensure_future(_drain(process.stderr, on_stderr))

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    @property
    def resident_bytes(self) -> int:
        try:
            return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            return 0

    async def write(self, content: bytes) -> None:
        if stdin := self._process.stdin:
            with suppress(ConnectionError):
                stdin.write(content)
                await stdin.drain()

    async def read_line(self) -> bytes:
        async with self._reading:
            return await self._process.stdout.readline() if self._process.stdout else b""

    async def wait(self) -> int:
        await self._stderr
        return await self._process.wait()

    async def end(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()  # Nix's repl pays no heed to signals while it waits for a line
        if self._process.returncode is None:
            await _end(self._process)
        # Pipes are closed once they have been read to their ends; only a stray child can keep them open.
        with suppress(TimeoutError):
            async with asyncio.timeout(_KILL_AFTER_SECONDS), self._reading:
                await asyncio.gather(_drain(self._process.stdout, lambda line: None), self._stderr)
        self._process.close()


async def _collect(stream: asyncio.StreamReader | None, said: bytearray) -> None:
    while stream is not None and (chunk := await stream.read(_READ_BYTES)):
        said += chunk


async def _drain(stream: asyncio.StreamReader | None, on_line: Callable[[bytes], object]) -> None:
    """Each line to `on_line`; of one that never ends the rest is dropped."""
    line = b""
    while stream is not None and (chunk := await stream.read(_READ_BYTES)):
        *complete, rest = chunk.split(b"\n")
        for part in complete:
            on_line(line + part)
            line = b""
        line = (line + rest)[:_LINE_BYTES]
    if line:
        on_line(line)


async def _read(reading: asyncio.Future[Any], stdout: bytearray, process: Process) -> None:
    """To the end of the program. What it leaves behind may keep its output open: that is not waited for long."""
    ended = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
        seen = -1
        while not reading.done() and len(stdout) != seen:  # once more: this process may have stood still, too
            seen = len(stdout)
            await asyncio.wait({reading}, timeout=_KILL_AFTER_SECONDS)
        if reading.done():
            reading.result()
        else:
            log.warning("program-left-pipes-open", pid=process.pid)
        await ended
    finally:
        ended.cancel()


async def _end(process: Process) -> None:
    """Ask Nix to end, which lets it end its builders; then insist, on the whole process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(_KILL_AFTER_SECONDS):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@cache
def _tied_to_us(number: str) -> tuple[str, ...]:
    """Stands before a command that is to get this signal when we die, however we do; empty without util-linux.

    What is between fork and exec has no say in it: such code is not safe in a process with threads.
    """
    words = ("setpriv", "--pdeathsig", number, "--")
    try:
        subprocess.run([*words, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):  # another setpriv does not know that
        return ()
    return words


def _environment(store: NixStore, home: Path, options: Mapping[str, str]) -> dict[str, str]:
    """Ours, with a HOME of its own and settings that are right for the store; later lines win."""
    lines = ["build-poll-interval = 1"]
    if store.is_private:
        lines.append("build-users-group =")
    lines += [os.environ.get("NIX_CONFIG", ""), "extra-experimental-features = nix-command"]
    lines += [f"{name} = {value}" for name, value in options.items()]
    # Package sets can read the environment: it holds what Nix itself needs and none of the server's secrets.
    kept = {name: value for name, value in os.environ.items() if _NEEDED.fullmatch(name)}
    return kept | {
        "HOME": str(home),
        "NIX_CONFIG": "\n".join(lines),
        "NIX_SSHOPTS": f"{os.environ.get('NIX_SSHOPTS', '')} {_SSH_OPTIONS}",  # what stands first counts
        "LC_ALL": "C.UTF-8",
    }
