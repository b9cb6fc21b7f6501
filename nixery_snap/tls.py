"""TLS for the listening socket, with certificates that may be renewed while it listens."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Final

import structlog

from nixery_snap.errors import SettingsError

log = structlog.get_logger()

_LOOK_SECONDS: Final = 5


class Certificate:
    """`context` is what the server uses; new connections get what `renew` has loaded into it."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises SettingsError."""
        self._certificate, self._key = certificate, key
        self._seen = self._stamp()
        self.context = self._load(_new_context())

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        """Raises SettingsError, which tells nothing of what the files hold."""
        try:
            # No question for the passphrase of a key that has one.
            context.load_cert_chain(self._certificate, self._key, password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            reason = (
                getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
            )
            raise SettingsError(
                "tls.certificate_file", f"{self._certificate} and {self._key} cannot be used: {reason}"
            ) from None
        return context

    async def renew(self) -> None:
        """Look at the files now and then, for ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Blocking: load what has changed, unless it does not fit together (yet)."""
        if (stamp := self._stamp()) == self._seen:
            return
        try:
            self._load(_new_context())  # half a pair must not get into the one that is used
            self._load(self.context)
        except SettingsError as error:
            log.warning("certificate-kept-as-it-was", reason=error.reason)
        else:
            log.info("certificate-read-again", path=str(self._certificate))
        self._seen = stamp

    def _stamp(self) -> tuple[tuple[int, ...], ...]:
        stamps: list[tuple[int, ...]] = []
        for path in (self._certificate, self._key):
            try:
                status = path.stat()
                stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                stamps.append(())
        return tuple(stamps)


def _new_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
