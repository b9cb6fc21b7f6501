"""Servers whose storage is a bucket: clients are sent there, or all passes through the server."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.buckets import Buckets
from tests.integration.caches import KeyPair
from tests.integration.conftest import MakeNode
from tests.integration.need import need
from tests.integration.nixtools import EXAMPLES, ChrootStore, add_package, only
from tests.integration.processes import run
from tests.integration.runtimes.base import Runtime
from tests.integration.server import Registry, digest_of
from tests.integration.test_buckets import check_secrets_are_kept

MIB = 2**20
BIG_BYTES = 128 * MIB
LIFETIME_SECONDS = 77


@pytest.fixture(scope="module")
def servers(scratch: Path, prepared_store: ChrootStore, buckets: Buckets) -> Iterator[dict[str, Registry]]:
    """By delivery, on one bucket."""
    home = scratch / "bucket-storage"
    source = Path(shutil.copytree(EXAMPLES, home / "source"))
    add_package(source, "big", f"mkdir -p $out/share; head -c {BIG_BYTES} /dev/urandom > $out/share/big")
    store = prepared_store.copy(home / "store")
    key = KeyPair.generate(home / "key")
    with ExitStack() as stack:
        running = {}
        for delivery in ("redirect", "proxy"):
            (home / delivery / "tmp").mkdir(parents=True)
            running[delivery] = Registry(
                home / delivery,
                store.root,
                source,
                storage=buckets.url("storage", "a prefix/of it".replace(" ", "%20")),
                config=f"[binary_cache]\nsigning_key_file = '{key.file}'\n"
                f"[object_store]\ndelivery = '{delivery}'\nurl_lifetime = {LIFETIME_SECONDS}\ntimeout = 100\n"
                "[nix]\nwait_timeout = 110\n",
                env={**buckets.env, "TMPDIR": str(home / delivery / "tmp")},
            ).start()
            stack.callback(running[delivery].stop)
        yield running


@pytest.fixture(scope="module", params=["redirect", "proxy"])
def server(request: pytest.FixtureRequest, servers: dict[str, Registry]) -> Registry:
    return servers[request.param]


def largest_layer(registry: Registry, name: str) -> str:
    layers = registry.manifest(name).json()["layers"]
    digest: str = max(layers, key=lambda layer: int(layer["size"]))["digest"]
    return digest


def test_the_same_images_as_from_a_directory(server: Registry, registry: Registry) -> None:
    for name in ("shell/hello", "nix-snapshotter/curl"):
        mine, other = server.pull(name), registry.pull(name)
        assert mine.layers == other.layers
        assert mine.blobs == other.blobs


def test_layers_in_every_engine(server: Registry, runtime: Runtime) -> None:
    reference = f"{server.host}/shell/hello:latest"
    runtime.pull(reference)
    assert runtime.run(reference, "hello") == "Hello, world!\n"


def test_skopeo(server: Registry, directory: Path) -> None:
    need("skopeo")
    image = server.pull("shell/curl")
    source = f"docker://{server.host}/shell/curl"
    run("skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", source, f"dir:{directory}/copy")
    files = {path.name for path in (directory / "copy").iterdir()} - {"manifest.json", "version"}
    assert files == {digest.removeprefix("sha256:") for digest in image.blobs}


def test_nars(server: Registry, prepared_store: ChrootStore, make_node: MakeNode) -> None:
    """Both releases of Nix follow."""
    server.pull("nix-snapshotter/hello")
    [hello] = prepared_store.installed(("hello",))["hello"]
    node = make_node()
    node.fetch(server.cache_url, server.public_key, hello)
    assert node.all_paths() == prepared_store.closure([hello])


def test_where_clients_are_sent(servers: dict[str, Registry], buckets: Buckets) -> None:
    server = servers["redirect"]
    server.pull("shell/hello")
    digest = largest_layer(server, "shell/hello")
    for method in ("GET", "HEAD"):
        answer = server.request(method, f"/v2/shell/hello/blobs/{digest}")
        assert (answer.status, answer.body) == (307, b"")
        assert answer.headers["cache-control"] == "no-store"
        place = answer.headers["location"]
        assert place.startswith(f"http://{buckets.endpoint}/storage/a%20prefix/of%20it/blobs/sha256/")
        assert f"X-Amz-Expires={LIFETIME_SECONDS}&" in place
        assert buckets.secret_key not in place
    whole = server.blob("shell/hello", digest).body
    assert digest_of(whole) == digest
    part = server.blob("shell/hello", digest, Range="bytes=1000-1999")
    assert (part.status, part.body) == (206, whole[1000:2000])
    unchanged = server.get(f"/v2/shell/hello/blobs/{digest}", If_None_Match=f'"{digest}"')
    assert unchanged.status == 304


def test_what_passes_through(servers: dict[str, Registry]) -> None:
    server = servers["proxy"]
    server.pull("shell/hello")
    digest = largest_layer(server, "shell/hello")
    url = f"/v2/shell/hello/blobs/{digest}"
    whole, head = server.get(url), server.head(url)
    assert (whole.status, digest_of(whole.body)) == (200, digest)
    assert (head.status, head.body) == (200, b"")
    for name in ("content-length", "docker-content-digest", "etag", "accept-ranges", "content-type"):
        assert head.headers[name] == whole.headers[name]
    size = len(whole.body)
    for span, start, end in (("0-0", 0, 1), ("1000-1999", 1000, 2000), ("-7", size - 7, size)):
        part = server.get(url, Range=f"bytes={span}")
        assert (part.status, part.body) == (206, whole.body[start:end])
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    beyond = server.get(url, Range=f"bytes={size}-")
    assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    assert server.get(url, If_None_Match=f'"{digest}"').status == 304


def peak_bytes(registry: Registry) -> int:
    """Of the server's memory since it was started."""
    assert registry.daemon
    status = Path(f"/proc/{registry.daemon.pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


class Watch(threading.Thread):
    """What lies in files below a directory at most."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.directory, self.most_bytes, self.over = directory, 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            size_bytes = 0
            for path in self.directory.rglob("*"):
                try:
                    size_bytes += path.lstat().st_size
                except FileNotFoundError:
                    continue
            self.most_bytes = max(self.most_bytes, size_bytes)


def test_what_is_large_is_nowhere_whole(servers: dict[str, Registry], buckets: Buckets) -> None:
    """Neither in the server's memory nor on its disk, not when it is made, and not when it is passed on."""
    maker, proxy = servers["redirect"], servers["proxy"]
    run(
        "nix-build",
        "--store",
        maker.store,
        maker.source,
        "--no-out-link",
        "-A",
        "big",
        env=ChrootStore(maker.store).env,
    )
    for server in (maker, proxy):
        server.pull("shell/hello")  # what every image takes
    before = {server.port: peak_bytes(server) for server in (maker, proxy)}
    watch = Watch(maker.state)
    watch.start()
    assert maker.manifest("big").status == 200
    assert maker.manifest("nix-snapshotter/big").status == 200
    watch.over.set()
    watch.join()
    assert watch.most_bytes < BIG_BYTES // 4
    assert peak_bytes(maker) - before[maker.port] < BIG_BYTES // 2 + 40 * MIB
    digest = largest_layer(proxy, "big")
    answer = proxy.get(f"/v2/big/blobs/{digest}")
    assert digest_of(answer.body) == digest
    assert len(answer.body) > BIG_BYTES
    assert peak_bytes(proxy) - before[proxy.port] < BIG_BYTES // 4
    big = only(ChrootStore(maker.store), maker.source, "big")
    narinfo = maker.get(f"/nix-cache/{Path(big).name[:32]}.narinfo").body.decode()
    url = narinfo.partition("URL: ")[2].partition("\n")[0]
    assert maker.head(f"/nix-cache/{url}").status == 307
    nar = proxy.get(f"/nix-cache/{url}")
    assert len(nar.body) == int(narinfo.partition("FileSize: ")[2].partition("\n")[0])
    assert buckets.uploads("storage") == []


def test_secrets_are_kept(server: Registry, buckets: Buckets) -> None:
    server.pull("shell/hello")
    check_secrets_are_kept(server, buckets)
