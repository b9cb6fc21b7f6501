"""The registry as a real process on a free loopback port, and a plain HTTP client for it."""

import contextlib
import hashlib
import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.integration.nixtools import EXAMPLES, NIX_CONFIG
from tests.integration.processes import Daemon, free_port

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
PROGRAM = (sys.executable, "-m", "nixery_snap")
Json = dict[str, Any]


def program_env(home: Path, **extra: str) -> dict[str, str]:
    """The environment of the program under test: none of the caller's own settings leak in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NIXERY_SNAP_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling all of it takes longer than many a test
    home.mkdir(parents=True, exist_ok=True)
    root = str(Path(__file__).parents[2])
    return {**kept, "HOME": str(home), "NIX_CONFIG": NIX_CONFIG, "PYTHONPATH": root, **extra}


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Json:
        parsed: Json = json.loads(self.body)
        return parsed

    @property
    def error(self) -> Json:
        """The first error of an OCI error body; asserts that it is one."""
        assert self.headers["content-type"].split(";")[0] == "application/json", self
        first: Json = self.json()["errors"][0]
        assert first["code"].isupper(), first
        assert isinstance(first["message"], str), first
        assert first["message"], first
        return first


@dataclass
class Image:
    """A manifest and what it names, every byte checked against its digest and size."""

    digest: str
    manifest_bytes: bytes
    blobs: dict[str, bytes] = field(default_factory=dict)

    @property
    def manifest(self) -> Json:
        parsed: Json = json.loads(self.manifest_bytes)
        return parsed

    @property
    def layers(self) -> list[Json]:
        found: list[Json] = self.manifest["layers"]
        return found

    @property
    def config(self) -> Json:
        parsed: Json = json.loads(self.blobs[self.manifest["config"]["digest"]])
        return parsed


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def request(
    port: int,
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_seconds: float = 280,
) -> Response:
    """One request on a connection of its own; the target goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    with contextlib.closing(connection):
        headers = headers or {}
        connection.putrequest(method, target, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        return Response(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)


@dataclass(frozen=True)
class Substituter:
    """A binary cache that a server is told of, as a table of its settings."""

    url: str
    public_keys: Sequence[str] = ()
    priority: int | None = None

    def __str__(self) -> str:
        keys = json.dumps(list(self.public_keys))
        priority = "" if self.priority is None else f", priority = {self.priority}"
        return f"{{ url = {json.dumps(self.url)}, public_keys = {keys}{priority} }}"


@dataclass
class Registry:
    """One `nixery-snap serve` process; start it again on the same state after `stop` or `kill`."""

    state: Path
    store: Path
    source: Path = EXAMPLES
    format: str = "classic"
    storage: str = ""  # default: files below `state`
    config: str = ""  # TOML
    substituters: Sequence[Substituter] | None = ()  # None: those of `config`; no test asks the Internet
    env: dict[str, str] = field(default_factory=dict)
    spec: str = ""  # of the source; default: that directory
    address: str = "127.0.0.1"
    port: int = 0
    daemon: Daemon | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.state / "log"

    @property
    def options(self) -> list[str]:
        """What `serve`, `build` and `inspect` have in common."""
        storage = self.storage or f"file://{self.state / 'storage'}"
        spec = self.spec or f"path:{self.source}"
        return ["--source", spec, "--storage", storage, "--store", str(self.store)]

    @property
    def program_env(self) -> dict[str, str]:
        own = {"NIXERY_SNAP_CACHE_DIRECTORY": str(self.state / "cache")}
        if self.substituters is not None:
            own["NIXERY_SNAP_SUBSTITUTERS"] = f"[{', '.join(map(str, self.substituters))}]"
        return program_env(self.state / "home", **{**own, **self.env})

    @property
    def cache_url(self) -> str:
        """Where it serves its own binary cache."""
        return f"http://{self.host}/nix-cache"

    @property
    def public_key(self) -> str:
        answer = self.get("/nix-cache/public-key")
        assert answer.status == 200, answer
        return answer.body.decode().strip()

    @property
    def storage_directory(self) -> Path:
        """The object store, where it is the default one."""
        assert not self.storage
        return self.state / "storage"

    def start(self) -> "Registry":
        assert self.daemon is None
        self.state.mkdir(parents=True, exist_ok=True)
        settings = self.state / "settings.toml"
        settings.write_text(self.config)
        self.port = free_port()
        where = [
            "--listen",
            f"{self.address}:{self.port}",
            "--format",
            self.format,
            "--config",
            str(settings),
        ]
        # On a slow machine the first image takes longer than clients are let wait.
        patience = {} if "wait_timeout" in self.config else {"NIXERY_SNAP_NIX__WAIT_TIMEOUT": "250"}
        env = patience | self.program_env
        self.daemon = Daemon([*PROGRAM, "serve", *where, *self.options], log=self.log, env=env)
        self.daemon.wait_ready(self.ready)
        return self

    def ready(self) -> bool:
        try:
            return self.get("/readyz").status == 200
        except OSError:
            return False

    def stop(self) -> int:
        """Graceful; the exit status."""
        daemon, self.daemon = self.daemon, None
        return daemon.stop() if daemon else 0

    def kill(self) -> None:
        """SIGKILL to the server alone; Nix processes of it end by themselves."""
        daemon, self.daemon = self.daemon, None
        assert daemon is not None
        daemon.process.kill()
        daemon.process.wait(60)

    def events(self, name: str) -> list[Json]:
        return [line for line in self.log_lines() if line["event"] == name]

    def log_lines(self) -> list[Json]:
        """All log lines so far; a line that is not a JSON object with an event is an error."""
        lines = self.log.read_text().split("\n")[:-1]  # the last one may still be being written
        strange = [line for line in lines if not (line.startswith("{") and '"event": ' in line)]
        assert not strange, "\n".join(strange)
        return [json.loads(line) for line in lines]

    def request(self, method: str, target: str, headers: Mapping[str, str] | None = None) -> Response:
        return request(self.port, method, target, headers)

    def get(self, target: str, **headers: str) -> Response:
        return self.request("GET", target, {name.replace("_", "-"): value for name, value in headers.items()})

    def head(self, target: str, **headers: str) -> Response:
        return self.request(
            "HEAD", target, {name.replace("_", "-"): value for name, value in headers.items()}
        )

    def manifest(self, name: str, reference: str = "latest", accept: str = OCI_MANIFEST) -> Response:
        return self.get(f"/v2/{name}/manifests/{reference}", Accept=accept)

    def pull(self, name: str, tag: str = "latest", accept: str = OCI_MANIFEST) -> Image:
        """The whole image; asserts that all of it is there and is what its digests say."""
        answer = self.manifest(name, tag, accept)
        assert answer.status == 200, answer
        digest = digest_of(answer.body)
        assert answer.headers["docker-content-digest"] == digest
        image = Image(digest, answer.body)
        for descriptor in [image.manifest["config"], *image.layers]:
            blob = self.blob(name, descriptor["digest"])
            assert blob.status == 200, (descriptor, blob)
            assert len(blob.body) == descriptor["size"]
            assert digest_of(blob.body) == descriptor["digest"]
            image.blobs[descriptor["digest"]] = blob.body
        return image

    def blob(self, name: str, digest: str, **headers: str) -> Response:
        """From wherever the server says it is."""
        answer = self.get(f"/v2/{name}/blobs/{digest}", **headers)
        if answer.status != 307:
            return answer
        place = urlsplit(answer.headers["location"])
        assert place.scheme == "http"
        assert place.hostname == "127.0.0.1"
        assert place.port is not None
        return request(place.port, "GET", f"{place.path}?{place.query}", headers)

    def wait_for_event(self, name: str, *, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not self.events(name):
            assert time.monotonic() < deadline, f"no event {name} in {seconds} s"
            time.sleep(0.02)


# Starts a registry that is stopped at the end of the test.
Start = Callable[[Registry], Registry]


@contextlib.contextmanager
def serving(registry: Registry) -> Iterator[Registry]:
    """Started, and stopped at the end; a clean end also means no unexpected fault in the log."""
    registry.start()
    try:
        yield registry
    finally:
        status = registry.stop()
    assert status == 0, f"status {status} after SIGTERM:\n{registry.log.read_text()[-4000:]}"
    faults = [line for line in registry.log_lines() if line.get("level") in {"error", "critical"}]
    assert not faults, faults
