from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from nixery_snap import tls
from nixery_snap.errors import SettingsError
from nixery_snap.tls import Certificate
from tests.support.certificates import self_signed

Make = Callable[[str], None]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(name: str) -> None:
        """A pair for a host called `name`, in place of the one before, each file all at once."""
        self_signed(tmp_path / "tls.crt", tmp_path / "tls.key", name)

    return made


def opened(directory: Path) -> Certificate:
    return Certificate(directory / "tls.crt", directory / "tls.key")


async def name_of(context: ssl.SSLContext) -> str:
    """Of the certificate that a client is shown."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=trusting)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
    return x509.load_der_x509_certificate(shown).subject.rfc4514_string().removeprefix("CN=")


async def test_what_has_changed_is_loaded(tmp_path: Path, make: Make) -> None:
    make("first")
    certificate = opened(tmp_path)
    assert await name_of(certificate.context) == "first"
    make("second")
    assert await name_of(certificate.context) == "first", "nobody has looked yet"
    certificate.look()
    assert await name_of(certificate.context) == "second"


async def test_half_a_pair_is_waited_for(tmp_path: Path, make: Make) -> None:
    make("first")
    old_key = (tmp_path / "tls.key").read_bytes()
    certificate = opened(tmp_path)
    make("second")
    new_key = (tmp_path / "tls.key").read_bytes()
    (tmp_path / "tls.key").write_bytes(old_key)
    with capture_logs() as logs:
        certificate.look()
        certificate.look()
    assert [line["event"] for line in logs] == ["certificate-kept-as-it-was"]
    assert await name_of(certificate.context) == "first"
    (tmp_path / "tls.crt").rename(tmp_path / "away.crt")
    certificate.look()
    assert await name_of(certificate.context) == "first"
    (tmp_path / "away.crt").rename(tmp_path / "tls.crt")
    (tmp_path / "tls.key").write_bytes(new_key)
    os.utime(tmp_path / "tls.key", ns=(1, 1))
    certificate.look()
    assert await name_of(certificate.context) == "second"


async def test_somebody_looks(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make("first")
    certificate = opened(tmp_path)
    monkeypatch.setattr(tls, "_LOOK_SECONDS", 0.01)
    looking = asyncio.ensure_future(certificate.renew())
    make("second")
    async with asyncio.timeout(60):
        while await name_of(certificate.context) != "second":
            pass
    looking.cancel()


async def test_old_versions_are_not_spoken(tmp_path: Path, make: Make) -> None:
    make("first")
    assert opened(tmp_path).context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_files_that_cannot_be_used(tmp_path: Path, make: Make) -> None:
    make("first")
    secret = (tmp_path / "tls.key").read_text()
    for key in ("", "nonsense", secret.replace("\n", "", 2)):
        (tmp_path / "tls.key").write_text(key)
        with pytest.raises(SettingsError, match=r"tls\.certificate_file") as raised:
            opened(tmp_path)
        assert "PRIVATE" not in str(raised.value)
    (tmp_path / "tls.key").unlink()
    with pytest.raises(SettingsError, match="No such file"):
        opened(tmp_path)
