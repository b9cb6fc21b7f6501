"""Buckets of a real S3 server: SeaweedFS, all its parts in one process on loopback. It checks signatures."""

import contextlib
import hashlib
import hmac
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.integration.need import need_file
from tests.integration.processes import Daemon, free_ports
from tests.integration.server import Response, request

WEED = Path(sys.executable).parent / "weed"
REGION = "eu-central-1"
NAMES = ("caches", "contract", "faults", "replicas", "storage", "uploads")


@dataclass(frozen=True)
class Buckets:
    """Those of NAMES, empty."""

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

    def request(self, method: str, path: str, query: str = "") -> Response:
        """Signed (AWS Signature Version 4); `query` in its canonical form."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        empty = hashlib.sha256(b"").hexdigest()
        headers = {"host": self.endpoint, "x-amz-content-sha256": empty, "x-amz-date": now}
        names, lines = ";".join(headers), [f"{name}:{value}" for name, value in headers.items()]
        canonical = "\n".join([method, path, query, *lines, "", names, empty])
        scope = f"{now[:8]}/{REGION}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = f"AWS4{self.secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        del headers["host"]
        return request(self.port, method, f"{path}?{query}" if query else path, headers)

    def uploads(self, bucket: str) -> list[str]:
        """The keys of multipart uploads that have been begun and not ended."""
        answer = self.request("GET", f"/{bucket}", "uploads=")
        return re.findall("<Upload>.*?<Key>(.*?)</Key>", answer.body.decode())

    def open(self, bucket: str, prefix: str = "") -> S3Store:
        return S3Store(
            bucket,
            prefix=prefix or None,
            endpoint=f"http://{self.endpoint}",
            region=REGION,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            client_options={"allow_http": True},
        )

    def upload(self, directory: Path, bucket: str, prefix: str = "") -> None:
        """All of its files."""
        store = self.open(bucket, prefix)
        for file in directory.rglob("*"):
            if file.is_file():
                store.put(str(file.relative_to(directory)), file)


@contextlib.contextmanager
def seaweedfs(home: Path) -> Iterator[Buckets]:
    """Everybody else is refused."""
    need_file(WEED)
    (home / "data").mkdir(parents=True)
    ports = iter(free_ports(8))
    buckets = Buckets(next(ports))
    credentials = {"accessKey": buckets.access_key, "secretKey": buckets.secret_key}
    actions = ["Admin", "Read", "Write", "List"]
    identity = {"name": "tests", "credentials": [credentials], "actions": actions}
    (home / "s3.json").write_text(json.dumps({"identities": [identity]}))
    grpc = {f"{part}.port.grpc": next(ports) for part in ("master", "volume", "filer", "s3")}
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
        **{f"{part}.port": next(ports) for part in ("master", "volume", "filer")},
        **grpc,
    }
    arguments = [f"-{name}={value}" for name, value in options.items()]
    daemon = Daemon([WEED, "-logtostderr=true", "server", *arguments], log=home / "log")

    def ready() -> bool:
        """It knows of a new bucket a little later than it says; one made by a put could not be listed yet."""
        try:
            for name in NAMES:
                buckets.request("PUT", f"/{name}")
            listed = [buckets.request("GET", f"/{name}", "list-type=2").status for name in NAMES]
            if set(listed) != {200}:
                return False
            # The part that holds contents may be there last.
            store = buckets.open("contract")
            store.put("ready", b"x")
            store.delete("ready")
        except (OSError, BaseError):
            return False
        return True

    daemon.wait_ready(ready, seconds=120)
    try:
        yield buckets
    finally:
        daemon.kill()  # to end in good order would take it seconds
        for port in grpc.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                left.unlink()
