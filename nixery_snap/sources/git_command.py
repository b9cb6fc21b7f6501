"""Runs git: against one repository of ours, for one remote, with nothing of the machine's or the user's settings."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from nixery_snap.errors import SourceError
from nixery_snap.processes import Process
from nixery_snap.sources.credentials import from_token_file
from nixery_snap.sources.git_url import GitUrl

T = TypeVar("T")
_KILL_AFTER_SECONDS: Final = 3
_MAX_OUTPUT_BYTES: Final = 256 * 1024 * 1024
_MAX_MESSAGE_BYTES: Final = 4096
_READ_BYTES: Final = 64 * 1024
_NEEDED: Final = re.compile(
    r"PATH|LANG|TZ|TMPDIR|(SSL_CERT|GIT_SSL_CA)(_FILE|INFO)|NIX_SSL_CERT_FILE|(?i:https?|all|no)_proxy"
)
# Packs, because one appears with all that it has, while of single objects commits are written first: a commit that is
# here must never lack a file, whether its fetch is under way or was killed.
_CONFIG: Final = """\
[fetch]
	unpackLimit = 1
[core]
	hooksPath = /dev/null
	attributesFile = /dev/null
	askPass =
[credential]
	helper =
[protocol]
	version = 2
[http]
	lowSpeedLimit = 1000
	lowSpeedTime = 60
[gc]
	autoDetach = false
	pruneExpire = 1.day.ago
[advice]
	detachedHead = false
[safe]
	directory = *
"""
_LFS_CONFIG: Final = """\
[filter "lfs"]
	clean = git-lfs clean -- %f
	smudge = git-lfs smudge -- %f
	required = true
"""


@dataclass(frozen=True, slots=True)
class GitAccess:
    """How a remote is spoken to. Files are read when they are needed, so that they can be replaced."""

    token_file: Path | None = None
    """See `credentials.from_token_file`."""
    netrc_file: Path | None = None
    ssh_key_file: Path | None = None
    ssh_known_hosts_file: Path | None = None
    timeout_seconds: float = 600


class GitFailed(Exception):
    """`message` is the tail of what git said."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


class GitCommand:
    """`home` is a directory of ours, for git's settings and the bare repository `repository`."""

    def __init__(self, url: GitUrl, access: GitAccess, home: Path, *, lfs: bool) -> None:
        self.repository = home / "mirror.git"
        self._url = url
        self._access = access
        self._home = home
        self._config = _CONFIG + (_LFS_CONFIG if lfs else "")
        self._environment = {
            **{name: value for name, value in os.environ.items() if _NEEDED.fullmatch(name)},
            "HOME": str(home),
            "LC_ALL": "C.UTF-8",
            "GIT_DIR": str(self.repository),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(home / "gitconfig"),
            "GIT_ALLOW_PROTOCOL": url.transport,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_VARIANT": "ssh",
            "GIT_SSH_COMMAND": _ssh_command(access),
        }
        if url.transport == "ssh" and (agent := os.environ.get("SSH_AUTH_SOCK")):
            self._environment["SSH_AUTH_SOCK"] = agent

    def prepare(self) -> None:
        """Blocking, for one process at a time: write our settings for git. Raises OSError."""
        new = self._home / "new"
        new.unlink(missing_ok=True)
        new.write_text(self._config)
        new.replace(self._home / "gitconfig")  # others may be reading it
        netrc = self._access.netrc_file
        if netrc is None:
            (self._home / ".netrc").unlink(missing_ok=True)
        else:
            new.symlink_to(netrc.absolute())
            new.replace(self._home / ".netrc")

    async def run(self, *arguments: str, remote: str | None = None) -> bytes:
        """What git prints. With `remote`, a URL that it is to speak to, credentials for its host are given to it.

        Raises GitFailed, SourceError.
        """
        return await self.stream(_bounded, *arguments, remote=remote)

    async def stream(self, consume: Callable[[BinaryIO], T], *arguments: str, remote: str | None = None) -> T:
        """`consume` reads in a thread what git prints. Raises GitFailed, SourceError, and what `consume` raises."""
        environment = self._environment | self._settings(remote)
        reading, writing = os.pipe()
        try:
            process = await Process.start("git", *arguments, stdout=writing, env=environment)
        except FileNotFoundError:
            os.close(reading)
            raise SourceError("git was not found: install it (Debian: apt-get install git)") from None
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        consuming = asyncio.ensure_future(asyncio.to_thread(_consume, consume, reading))
        try:
            async with asyncio.timeout(self._access.timeout_seconds):
                message = await _tail(process.stderr)
                await process.wait()
                await asyncio.wait({consuming})
        except TimeoutError:
            raise SourceError(
                f"git {arguments[0]} for {self._url} took longer than {self._access.timeout_seconds:g} s"
                " (setting fetch_timeout)"
            ) from None
        finally:
            if process.returncode is None:
                await _end(process)
            process.close()
            await asyncio.wait({consuming})  # nobody writes to the pipe any more
            failure = consuming.exception()
        # Whoever stops reading makes git die of a broken pipe: then the reader knows why.
        if process.returncode not in {0, -signal.SIGPIPE} or (process.returncode and failure is None):
            raise GitFailed(self._plain(message, environment))
        return consuming.result()

    def _settings(self, remote: str | None) -> dict[str, str]:
        """By environment variables, which no other user of the machine can read."""
        settings = []
        found = {}
        if remote is None:
            found["GIT_ALLOW_PROTOCOL"] = ""  # git would look for commits that it lacks at the remote
        else:
            settings.append(("remote.origin.url", remote))  # where git-lfs looks
            # For the host of the source alone: submodules may lead anywhere. So may redirects, and git would take
            # the header along.
            is_own = self._url.is_http and GitUrl.origin_of(remote) == self._url.origin
            if is_own and (header := self._authorization()):
                settings.append((f"http.{self._url.origin}/.extraHeader", f"Authorization: {header}"))
                settings.append(("http.followRedirects", "false"))
        found["GIT_CONFIG_COUNT"] = str(len(settings))
        for number, (key, value) in enumerate(settings):
            found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        return found

    def _authorization(self) -> str | None:
        if self._access.token_file is not None:
            return from_token_file(self._access.token_file)
        return self._url.authorization

    def _plain(self, message: bytes, environment: Mapping[str, str]) -> str:
        """For people: on one line, and without anything secret that a server may have sent back."""
        text = message.decode("utf-8", "replace")
        for value in environment.values():
            if value.startswith("Authorization: "):
                for secret in (value, value.rpartition(" ")[2]):
                    text = text.replace(secret, "…")
        lines = [line.strip() for line in text.splitlines()]
        return "; ".join(line for line in lines if line) or "it gives no reason"


def _ssh_command(access: GitAccess) -> str:
    """No questions, no new host keys; the user's own settings of ssh count."""
    options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=15", "ServerAliveInterval=15"]
    options += ["ClearAllForwardings=yes", "ForwardAgent=no", "ControlMaster=no"]
    if access.ssh_known_hosts_file is not None:
        options.append(f"UserKnownHostsFile={access.ssh_known_hosts_file.absolute()}")
    command = ["ssh", *(word for option in options for word in ("-o", option))]
    if access.ssh_key_file is not None:
        command += ["-i", str(access.ssh_key_file.absolute()), "-o", "IdentitiesOnly=yes"]
    return shlex.join(command)


def _consume(consume: Callable[[BinaryIO], T], handle: int) -> T:
    with os.fdopen(handle, "rb") as file:
        result = consume(file)
        while file.read(_READ_BYTES):  # archives end before their padding does
            pass
        return result


def _bounded(output: BinaryIO) -> bytes:
    content = output.read(_MAX_OUTPUT_BYTES + 1)
    if len(content) > _MAX_OUTPUT_BYTES:
        raise SourceError(f"git printed more than {_MAX_OUTPUT_BYTES} bytes")
    return content


async def _tail(stream: asyncio.StreamReader | None) -> bytes:
    tail = b""
    while stream is not None and (piece := await stream.read(_READ_BYTES)):
        tail = (tail + piece)[-_MAX_MESSAGE_BYTES:]
    return tail


async def _end(process: Process) -> None:
    """Ask git to end, which lets it remove its lock files; then insist, on the whole process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(TimeoutError):
        async with asyncio.timeout(_KILL_AFTER_SECONDS):
            await process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
