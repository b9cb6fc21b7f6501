"""Passwords of users: a file as `htpasswd -B` writes it, with bcrypt hashes.

Nobody learns from an answer, nor from how long it takes, whether there is such a user: a hash is computed in any
case. That takes a good part of a second, so it is done by few threads, and what was right is remembered for a minute.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import secrets
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import bcrypt
import structlog
from cachetools import TTLCache

from nixery_snap.access.identity import ANONYMOUS_NAME
from nixery_snap.errors import InvalidFormat, SettingsError, TooManyRequests

log = structlog.get_logger()

SETTING: Final = "auth.htpasswd_file"
MAX_PASSWORD_BYTES: Final = 72  # bcrypt looks at no more, and htpasswd itself cuts there
_MAX_FILE_BYTES: Final = 16 * 1024 * 1024
_REMEMBERED_SECONDS: Final = 60
_REMEMBERED: Final = 4096
_MAX_WAITING: Final = 128
_RETRY_AFTER_SECONDS: Final = 5
_DEFAULT_COST: Final = 10
_LINE: Final = re.compile(r"([^:\s][^:]*):(\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53})")


@dataclass(frozen=True, slots=True)
class PasswordFile:
    """`stranger` is a hash that nothing is known to have, to be computed for users that there are not."""

    hashes: Mapping[str, bytes] = field(repr=False)
    stranger: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> PasswordFile:
        """Raises InvalidFormat, which tells numbers of lines alone: any of them may hold a secret."""
        hashes: dict[str, bytes] = {}
        costs: Counter[int] = Counter()
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line.rstrip())
            if match is None or match[1] in hashes or match[1] == ANONYMOUS_NAME:
                raise InvalidFormat(
                    "htpasswd file",
                    f"line {number}",
                    "it must be USER:HASH with a bcrypt hash (htpasswd -B), one for each user, and no user is"
                    f" called {ANONYMOUS_NAME}",
                )
            hashes[match[1]] = match[2].encode()
            costs[int(match[3])] += 1
        if len(costs) > 1:
            # Then how long a refusal takes tells something about whose name it was.
            log.warning("htpasswd-costs-differ", costs=sorted(costs))
        cost = costs.most_common(1)[0][0] if costs else _DEFAULT_COST
        return cls(hashes, bcrypt.gensalt(cost) + secrets.token_hex(16)[:31].encode())


class Passwords:
    """Those of the file at `path`, which is read again when it has changed."""

    def __init__(self, path: str) -> None:
        """Raises SettingsError."""
        self._path = Path(path).absolute()
        self._stamp: tuple[int, ...] = ()
        self._file = self._read()
        self._secret = secrets.token_bytes(32)
        self._right: TTLCache[bytes, bool] = TTLCache(_REMEMBERED, _REMEMBERED_SECONDS)
        self._running: dict[bytes, asyncio.Future[bool]] = {}
        self._threads = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), "bcrypt")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def verify(self, user: str, password: str) -> bool:
        """Raises TooManyRequests when too many are being looked at."""
        if self._has_changed():
            await asyncio.to_thread(self._read_again)
        given = password.encode("utf-8", "surrogatepass")[:MAX_PASSWORD_BYTES]
        file = self._file
        known = file.hashes.get(user)
        hashed = file.stranger if known is None else known
        # With another hash it is another question: a password that was changed is not remembered.
        question = b"\0".join((user.encode("utf-8", "surrogatepass"), hashed, given))
        key = hmac.digest(self._secret, question, hashlib.sha256)
        if key in self._right:
            return True
        running = self._running.get(key)
        if running is None:
            if len(self._running) >= _MAX_WAITING:
                raise TooManyRequests("too many log in at the same time", _RETRY_AFTER_SECONDS)
            loop = asyncio.get_running_loop()
            running = self._running[key] = loop.run_in_executor(self._threads, _matches, given, hashed)
            running.add_done_callback(lambda _: self._running.pop(key))
        matches = await asyncio.shield(running)
        if not matches or known is None:
            return False
        self._right[key] = True
        return True

    def _has_changed(self) -> bool:
        try:
            return _stamp(self._path) != self._stamp
        except OSError:
            return False  # it is being replaced, or will be missed at the next start

    def _read_again(self) -> None:
        try:
            self._file = self._read()
            log.info("htpasswd-read-again", users=len(self._file.hashes))
        except SettingsError as error:
            log.error("htpasswd-kept-as-it-was", reason=error.reason)

    def _read(self) -> PasswordFile:
        try:
            self._stamp = _stamp(self._path)
            with self._path.open(encoding="utf-8") as file:
                return PasswordFile.parse(file.read(_MAX_FILE_BYTES))
        except (OSError, UnicodeDecodeError, InvalidFormat) as error:
            reason = str(error) if isinstance(error, InvalidFormat) else type(error).__name__
            raise SettingsError(SETTING, f"{self._path} cannot be used: {reason}") from None


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _matches(password: bytes, hashed: bytes) -> bool:
    """Blocking; other threads go on meanwhile."""
    try:
        return bcrypt.checkpw(password, hashed)
    except ValueError:  # a password with what no password has
        return False
