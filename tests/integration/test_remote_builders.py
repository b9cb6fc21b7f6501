"""Builds on another machine, by ssh: it has a Nix store of its own, and it alone can build what is asked for."""

import base64
import contextlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.images import annotated_paths
from tests.integration.need import need
from tests.integration.nixtools import NIX_CONFIG, ChrootStore, add_package
from tests.integration.processes import free_port, run
from tests.integration.server import Image, Registry, Start
from tests.integration.sources_git import SshServer, ssh_server
from tests.integration.test_doctor import doctor

# Every machine has this file, and in its own words.
MARK = "/machine"
WHERE = f"mkdir $out; cat {MARK} >$out/where"


@dataclass(frozen=True)
class Builder:
    """A machine for aarch64-linux; `mark` is what its builds find in its file of that name."""

    sshd: SshServer
    store: ChrootStore
    mark: str

    def line(self, host: str, *, key: str = "", host_key: Path | None = None) -> str:
        """As nix.conf has it."""
        host_key = host_key or self.sshd.key.with_name("host.pub")
        uri = f"ssh://{self.sshd.user}@{host}?remote-store={self.store.root}"
        encoded = base64.b64encode(host_key.read_bytes()).decode()
        return f"{uri} aarch64-linux {key or self.sshd.key} 4 1 - - {encoded}"


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    need("nix-store", "busybox")
    with tempfile.TemporaryDirectory(prefix="nixsnap-") as directory:
        home = Path(directory)
        store = ChrootStore.create(home / "store")
        (home / "mark").write_text(f"the machine of {home}")
        (home / "nix.conf").write_text(
            f"{NIX_CONFIG}\nextra-platforms = aarch64-linux\nextra-sandbox-paths = {MARK}={home}/mark\n"
        )
        with ssh_server(home / "ssh", {"NIX_USER_CONF_FILES": f"{home}/nix.conf"}) as sshd:
            yield Builder(sshd, store, (home / "mark").read_text())


@pytest.fixture
def arm(cold: Registry, own_source: Path) -> Registry:
    """To it, packages for aarch64-linux are for a machine of that kind to build."""
    add_package(own_source, "whereami", WHERE)
    add_package(own_source, "elsewhere", WHERE)
    file = own_source / "default.nix"
    text = file.read_text()
    file.write_text(text.replace("buildSystem ? builtins.currentSystem", "buildSystem ? system"))
    assert file.read_text() != text
    cold.source = own_source
    return cold


def use(registry: Registry, *machines: str) -> None:
    registry.config = f"[nix]\nbuilders = {json.dumps(' ; '.join(machines))}\n[limits]\nfailure_ttl = 0\n"
    registry.env["NIX_SSHOPTS"] = f"-F {registry.state}/ssh_config"


def place(registry: Registry, ports: Mapping[str, int]) -> None:
    """Where the machines are to be found, by their names."""
    registry.state.mkdir(exist_ok=True)
    hosts = [
        f"Host {name}\n  HostName 127.0.0.1\n  Port {port}\n  HostKeyAlias {name}\n"
        for name, port in ports.items()
    ]
    (registry.state / "ssh_config").write_text("".join(hosts))


def file_of(image: Image, path: str) -> str:
    """From whichever layer of a classic image has it."""
    for layer in image.layers:
        content = io.BytesIO(image.blobs[layer["digest"]])
        with tarfile.open(fileobj=content) as archive, contextlib.suppress(KeyError):
            file = archive.extractfile(path.removeprefix("/"))
            assert file is not None
            return file.read().decode()
    raise AssertionError(f"no layer has {path}")


def test_images_of_both_formats(arm: Registry, builder: Builder, directory: Path, start: Start) -> None:
    use(arm, builder.line("arm.example"))
    place(arm, {"arm.example": builder.sshd.port})
    registry = start(arm)

    classic = registry.pull("classic/arm64/whereami")
    assert classic.config["architecture"] == "arm64"
    [path] = [path for path in builder.store.built_paths() if path.endswith("-whereami-1.0")]
    assert file_of(classic, f"{path}/where") == builder.mark

    snapshotter = registry.pull("nix-snapshotter/arm64/elsewhere")
    assert snapshotter.config["architecture"] == "arm64"
    paths = annotated_paths(snapshotter.layers[0])
    node = ChrootStore.create(directory / "node")
    node.fetch(registry.cache_url, registry.public_key, *paths)
    [path] = [path for path in paths if path.endswith("-elsewhere-1.0")]
    assert (node.physical(path) / "where").read_text() == builder.mark
    assert set(paths) <= builder.store.built_paths()


def test_machines_that_cannot_be_used(arm: Registry, builder: Builder, directory: Path, start: Start) -> None:
    """Each is named with its reason, and without what is nobody's business; one that comes back is used.

    Its key is the agent's.
    """
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "other")
    impostor = builder.line("impostor.example", host_key=directory / "other.pub")
    use(arm, impostor, builder.line("down.example", key="-"))
    place(arm, {"impostor.example": builder.sshd.port, "down.example": free_port()})
    arm.env["SSH_AUTH_SOCK"] = str(builder.sshd.agent)
    registry = start(arm)
    answer = registry.manifest("arm64/hello")
    assert answer.status == 404
    message = answer.error["message"]
    assert "aarch64-linux" in message
    assert "'ssh://impostor.example': Host key verification failed" in message
    assert "'ssh://down.example': cannot connect to 'down.example': ssh: connect to host" in message
    for secret in (str(builder.sshd.key), str(builder.store.root), f"{builder.sshd.user}@"):
        assert secret not in message

    status, findings = doctor(registry)
    assert status == 1
    assert findings["builder ssh://impostor.example"]["state"] == "failed"
    assert "Connection refused" in findings["builder ssh://down.example"]["detail"]

    place(arm, {"impostor.example": builder.sshd.port, "down.example": builder.sshd.port})
    assert registry.manifest("arm64/hello").status == 200
    assert doctor(registry)[1]["builder ssh://down.example"]["detail"] == "answers; for aarch64-linux"
