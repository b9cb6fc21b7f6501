"""Containers of Azure's own emulator of its blob storage, on loopback. It checks signatures."""

import base64
import contextlib
import hmac
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from tests.integration.need import need_file
from tests.integration.processes import Daemon, free_port

AZURITE = Path(__file__).parents[2] / ".test-tools" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
NODE = Path(__file__).parents[2] / ".venv" / "bin" / "node"
ACCOUNT = "devstoreaccount1"
# The one that the emulator has, and that its manual names.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class Containers:
    port: int

    @property
    def env(self) -> dict[str, str]:
        """For programs that may use them."""
        return {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY}

    def url(self, container: str, prefix: str = "") -> str:
        path = f"/{prefix}" if prefix else ""
        return f"az://{container}{path}?endpoint=127.0.0.1:{self.port}/{ACCOUNT}&scheme=http"

    def make(self, container: str) -> None:
        """Signed with the account's key (Azure's "Authorize with Shared Key")."""
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        text = f"PUT{12 * chr(10)}{lines}/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container"
        signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), "sha256")).decode()
        headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": "0"}
        url = f"http://127.0.0.1:{self.port}/{ACCOUNT}/{container}?restype=container"
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)):
            pass


@contextlib.contextmanager
def azurite(home: Path) -> Iterator[Containers]:
    """With a container called `contract`."""
    need_file(AZURITE)
    home.mkdir(parents=True)
    containers = Containers(free_port())
    where = ["--blobHost", "127.0.0.1", "--blobPort", str(containers.port)]
    options = ["--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    daemon = Daemon([need_file(NODE), AZURITE.resolve(), *where, *options], log=home / "log")

    def ready() -> bool:
        try:
            containers.make("contract")
        except urllib.error.HTTPError as error:
            if error.code != 409:  # an attempt whose answer was lost has made it
                raise
        except OSError:
            return False
        return True

    daemon.wait_ready(ready, seconds=120)
    try:
        yield containers
    finally:
        daemon.kill()
