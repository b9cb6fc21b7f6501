"""Buckets of a real S3 server: SeaweedFS, all its parts in one process on loopback. It checks signatures."""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from obstore.store import S3Store

from tests.integration.need import need_file
from tests.integration.processes import Daemon, free_port
from tests.integration.server import request

WEED = Path(sys.executable).parent / "weed"
REGION = "eu-central-1"


@dataclass(frozen=True)
class Buckets:
    """A bucket is made by the first file that is put into it."""

    port: int
    access_key: str = "AKIDNIXERYSNAPTESTS0"
    secret_key: str = field(default="yAmBhTNCsOMhCbLBdCSGSecretOfTheTests0000", repr=False)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """For programs that may use them."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def url(self, bucket: str, prefix: str = "") -> str:
        """As Nix has it."""
        path = f"/{prefix}" if prefix else ""
        return f"s3://{bucket}{path}?endpoint={self.endpoint}&scheme=http&region={REGION}"

    def upload(self, directory: Path, bucket: str, prefix: str = "") -> None:
        """All of its files."""
        store = S3Store(
            bucket,
            prefix=prefix or None,
            endpoint=f"http://{self.endpoint}",
            region=REGION,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            client_options={"allow_http": True},
        )
        for file in directory.rglob("*"):
            if file.is_file():
                store.put(str(file.relative_to(directory)), file)


@contextlib.contextmanager
def seaweedfs(home: Path) -> Iterator[Buckets]:
    """Everybody else is refused."""
    need_file(WEED)
    (home / "data").mkdir(parents=True)
    buckets = Buckets(free_port())
    credentials = {"accessKey": buckets.access_key, "secretKey": buckets.secret_key}
    actions = ["Admin", "Read", "Write", "List"]
    identity = {"name": "tests", "credentials": [credentials], "actions": actions}
    (home / "s3.json").write_text(json.dumps({"identities": [identity]}))
    grpc = {f"{part}.port.grpc": free_port() for part in ("master", "volume", "filer", "s3")}
    options = {
        "dir": home / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "filer": "true",
        "filer.localSocket": home / "filer.sock",
        "master.electionTimeout": "1s",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": "64",
        "s3": "true",
        "s3.config": home / "s3.json",
        "s3.iam": "false",
        "s3.localSocket": home / "s3.sock",
        "s3.port": buckets.port,
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "volume.max": "100",
        **{f"{part}.port": free_port() for part in ("master", "volume", "filer")},
        **grpc,
    }
    arguments = [f"-{name}={value}" for name, value in options.items()]
    daemon = Daemon([WEED, "-logtostderr=true", "server", *arguments], log=home / "log")

    def ready() -> bool:
        try:
            return request(buckets.port, "GET", "/").status == 403
        except OSError:
            return False

    daemon.wait_ready(ready)
    try:
        yield buckets
    finally:
        daemon.kill()  # to end in good order would take it seconds
        for port in grpc.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                left.unlink()
