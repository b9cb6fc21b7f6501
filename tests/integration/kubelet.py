"""A node as the kubelet sees it: containerd with CRI, the snapshotter, the image service, and an empty Nix store."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from nixery_snap.image_service.generated import cri_pb2 as cri
from tests.integration.nixtools import NIX_CONFIG, ChrootStore
from tests.integration.processes import Daemon, accepts, run, wait_until
from tests.integration.runtimes.cleanup import remove_empty_cgroups
from tests.integration.runtimes.containerd import Containerd, starting
from tests.integration.server import PROGRAM, Json, Substituter, program_env
from tests.support.generated import cri_runtime_pb2 as runtime

M = TypeVar("M", bound=Message)
ROOT = Path(__file__).parents[2]
IMAGES = "/runtime.v1.ImageService/"
RUNTIME = "/runtime.v1.RuntimeService/"
NODE = 2  # a namespace of the node's own
EXITED = 2
EMPTY_SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # the fourth byte tells the kind of a frame
PAUSE = "localhost/pause:test"

CRI_1 = """
[proxy_plugins.nix]
type = "snapshot"
address = "{snapshotter}"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "nix"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "nix"
disable_snapshot_annotations = false
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{certs}"
"""
CRI_2 = """
[proxy_plugins.nix]
type = "snapshot"
address = "{snapshotter}"
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = "linux/amd64"
snapshotter = "nix"
[plugins.'io.containerd.cri.v1.images']
snapshotter = "nix"
disable_snapshot_annotations = false
use_local_image_pull = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{pause}"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "{certs}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
"""


@dataclass
class Kubelet:
    """Calls of CRI, those about images to `image_socket`."""

    image_socket: Path
    runtime_socket: Path
    directory: Path
    channels: dict[Path, grpc.Channel] = field(default_factory=dict)

    def call(self, method: str, request: Message, kind: type[M], *, seconds: float = 60, **options: Any) -> M:
        answer: M = self._rpc(method, kind)(request, timeout=seconds, **options)
        return answer

    def _rpc(self, method: str, kind: type[M]) -> grpc.UnaryUnaryMultiCallable[Message, M]:
        return self.channel(method).unary_unary(
            method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=kind.FromString,
        )

    def channel(self, method: str) -> grpc.Channel:
        path = self.image_socket if method.startswith(IMAGES) else self.runtime_socket
        if path not in self.channels:
            self.channels[path] = grpc.insecure_channel(f"unix://{path}")
        return self.channels[path]

    def pulling(self, image: str, *, seconds: float = 120) -> grpc.Future:
        """A pull that goes on, and can be cancelled."""
        rpc = self._rpc(IMAGES + "PullImage", cri.PullImageResponse)
        request = cri.PullImageRequest(image=cri.ImageSpec(image=image))
        pull: grpc.Future = rpc.future(request, timeout=seconds)
        return pull

    def close(self) -> None:
        for channel in self.channels.values():
            channel.close()

    def pull(self, image: str, *, seconds: float = 120, auth: cri.AuthConfig | None = None) -> str:
        request = cri.PullImageRequest(image=cri.ImageSpec(image=image), auth=auth)
        return self.call(IMAGES + "PullImage", request, cri.PullImageResponse, seconds=seconds).image_ref

    def refused(self, image: str, **options: Any) -> tuple[grpc.StatusCode, str]:
        try:
            self.pull(image, **options)
        except grpc.RpcError as error:
            return error.code(), error.details()
        raise AssertionError(f"{image} was pulled")

    def status(self, image: str) -> cri.Image | None:
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=image))
        answer = self.call(IMAGES + "ImageStatus", request, cri.ImageStatusResponse)
        return answer.image if answer.HasField("image") else None

    def images(self) -> list[cri.Image]:
        return list(
            self.call(IMAGES + "ListImages", runtime.ListImagesRequest(), runtime.ListImagesResponse).images
        )

    def remove(self, image: str) -> None:
        request = runtime.RemoveImageRequest(image=cri.ImageSpec(image=image))
        self.call(IMAGES + "RemoveImage", request, runtime.Empty)

    def image_file_system(self) -> cri.FilesystemUsage:
        answer = self.call(IMAGES + "ImageFsInfo", runtime.ImageFsInfoRequest(), cri.ImageFsInfoResponse)
        return answer.image_filesystems[0]

    def run_pod(self, image: str, *command: str) -> tuple[int, str]:
        """A pod of one container that runs to its end: its exit code, and its log as CRI writes it."""
        name = f"test-{uuid.uuid4().hex[:8]}"
        logs = self.directory / name
        logs.mkdir()
        options = runtime.NamespaceOption(network=NODE)
        sandbox = runtime.PodSandboxConfig(
            metadata=runtime.PodSandboxMetadata(name=name, uid=name, namespace="default"),
            log_directory=str(logs),
            linux=runtime.LinuxPodSandboxConfig(
                cgroup_parent=f"/{name}",
                security_context=runtime.LinuxSandboxSecurityContext(namespace_options=options),
            ),
        )
        request = runtime.RunPodSandboxRequest(config=sandbox)
        pod = self.call(RUNTIME + "RunPodSandbox", request, runtime.RunPodSandboxResponse).pod_sandbox_id
        try:
            config = runtime.ContainerConfig(
                metadata=runtime.ContainerMetadata(name="main"),
                image=cri.ImageSpec(image=image),
                command=command,
                log_path="log",
                linux=runtime.LinuxContainerConfig(
                    security_context=runtime.LinuxContainerSecurityContext(namespace_options=options)
                ),
            )
            create = runtime.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=sandbox)
            made = self.call(
                RUNTIME + "CreateContainer", create, runtime.CreateContainerResponse
            ).container_id
            start = runtime.StartContainerRequest(container_id=made)
            self.call(RUNTIME + "StartContainer", start, runtime.Empty)
            ask = runtime.ContainerStatusRequest(container_id=made)

            def status() -> runtime.ContainerStatus:
                return self.call(RUNTIME + "ContainerStatus", ask, runtime.ContainerStatusResponse).status

            wait_until(lambda: status().state == EXITED, seconds=120, what="the container's end")
            log = logs / "log"
            wait_until(lambda: not is_open(log), seconds=60, what="containerd has written all of its output")
            lines = log.read_text().splitlines()
            return status().exit_code, "".join(line.split(" ", 3)[3] + "\n" for line in lines)
        finally:
            stop = runtime.StopPodSandboxRequest(pod_sandbox_id=pod)
            self.call(RUNTIME + "StopPodSandbox", stop, runtime.Empty)
            remove = runtime.RemovePodSandboxRequest(pod_sandbox_id=pod)
            self.call(RUNTIME + "RemovePodSandbox", remove, runtime.Empty)
            remove_empty_cgroups(name)


@dataclass
class Node:
    """Each part can be stopped and started by itself."""

    directory: Path
    store: ChrootStore
    substituters: list[Substituter]
    containerd: Containerd
    start_containerd: Callable[[], Daemon]
    source: Path | None = None
    registries: list[str] = field(default_factory=list)
    builder: Path | None = None
    legacy: bool = False
    """Whether its snapshotter is one of before closure annotations."""
    with_nix_daemon: bool = False
    """Whether the image service reaches its Nix store by a daemon, part "nix-daemon"; both see it as /nix."""
    group: str = ""
    shutdown_timeout: float = 60
    metrics_port: int = 0
    running: dict[str, Daemon] = field(default_factory=dict)

    @property
    def image_socket(self) -> Path:
        return self.directory / "image.sock"

    @property
    def snapshotter_socket(self) -> Path:
        return self.directory / "snap.sock"

    @property
    def roots(self) -> Path:
        return self.directory / "cache" / "image-roots"

    @property
    def log(self) -> Path:
        return self.directory / "service.log"

    @property
    def certs(self) -> Path:
        return self.directory / "certs.d"

    def start(self, *parts: str) -> None:
        for part in parts or ("snapshotter", "containerd", "service"):
            {
                "snapshotter": self.start_snapshotter,
                "containerd": self.start_own_containerd,
                "service": self.start_service,
                "nix-daemon": self.start_nix_daemon,
            }[part]()

    def stop(self, *parts: str) -> None:
        for part in parts or tuple(self.running):
            if daemon := self.running.pop(part, None):
                daemon.stop()

    def use_external_builder(self) -> None:
        """The snapshotter calls ours, which a script tells where this node's socket and store are."""
        self.builder = self.directory / "builder"
        program = ROOT / "bin/nixery-snap-external-builder"
        self.builder.write_text(
            f"#!/bin/sh\nexport NIXERY_SNAP_IMAGE_SERVICE__LISTEN=unix://{self.image_socket}"
            f' NIX_REMOTE={self.store.root}\nexec {sys.executable} {program} "$@"\n'
        )
        self.builder.chmod(0o755)

    def start_own_containerd(self) -> None:
        self.running["containerd"] = self.start_containerd()

    def start_snapshotter(self) -> None:
        command = [sys.executable, "-m", "tests.support.snapshotter", "--socket", self.snapshotter_socket]
        command += ["--root", self.directory / "snapshotter", "--store", self.store.root]
        command += ["--builder", self.builder] if self.builder else []
        command += ["--legacy"] if self.legacy else []
        options = {name: value for one in self.substituters for name, value in _options(one).items()}
        env = program_env(self.directory / "home")
        env["NIX_CONFIG"] += "".join(f"\n{name} = {value}" for name, value in options.items())
        daemon = Daemon([str(part) for part in command], log=self.directory / "snapshotter.log", env=env)
        self.running["snapshotter"] = daemon
        daemon.wait_ready(partial(speaks_http2, self.snapshotter_socket))

    def start_nix_daemon(self) -> None:
        path = self.store.root / "nix/var/nix/daemon-socket/socket"
        path.unlink(missing_ok=True)  # of one that was killed
        env = program_env(self.directory / "home")
        env["NIX_CONFIG"] = f"{NIX_CONFIG}\nrequire-sigs = true"
        log = self.directory / "nix-daemon.log"
        daemon = Daemon([*self._with_own_nix, "nix-daemon"], log=log, env=env)
        self.running["nix-daemon"] = daemon
        daemon.wait_ready(partial(accepts, path))

    def kill_nix_daemon(self) -> None:
        """With those that it has started for its clients."""
        daemon = self.running.pop("nix-daemon")
        os.kill(daemon.pid, signal.SIGSTOP)  # it starts no more
        started = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        daemon.kill()
        for pid in started:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(int(pid), signal.SIGKILL)

    @property
    def _with_own_nix(self) -> list[str]:
        script = 'mount --bind "$0" /nix && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, str(self.store.root / "nix")]

    def start_service(self, **env: str) -> None:
        config = self.directory / "service.toml"
        config.write_text(f'cache_directory = "{self.directory / "cache"}"\n' + self.settings())
        command = self._with_own_nix if self.with_nix_daemon else []
        command += [*PROGRAM, "image-service", "--config", config, "--listen", f"unix://{self.image_socket}"]
        command += ["--containerd", f"unix://{self.containerd.socket}"]
        daemon = Daemon(
            [str(part) for part in command],
            log=self.log,
            env=program_env(
                self.directory / "home", **{"NIX_CONFIG": f"{NIX_CONFIG}\nrequire-sigs = true", **env}
            ),
        )
        self.running["service"] = daemon
        daemon.wait_ready(partial(speaks_http2, self.image_socket))

    def settings(self) -> str:
        source = f'source = "path:{self.source}"\n' if self.source else f'source = "path:{self.directory}"\n'
        substituters = f"substituters = [{', '.join(map(str, self.substituters))}]\n"
        return (
            f'storage = "file://{self.directory / "storage"}"\n{source}{substituters}'
            f'[nix]\nstore = "{"daemon" if self.with_nix_daemon else self.store.root}"\n'
            f"[limits]\nshutdown_timeout = {self.shutdown_timeout}\nfailure_ttl = 0\n"
            f'[metrics]\nlisten = "{f"127.0.0.1:{self.metrics_port}" if self.metrics_port else ""}"\n'
            f'[image_service]\ngroup = "{self.group}"\n'
            f'certs_directory = "{self.certs}"\nregistries = {json.dumps(list(self.registries))}\n'
        )

    def events(self, name: str) -> list[Json]:
        lines = [json.loads(line) for line in self.log.read_text().split("\n")[:-1] if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def realised(self) -> list[str]:
        """What the snapshotter asked for, in order."""
        lines = (self.directory / "snapshotter.log").read_text().splitlines()
        return [json.loads(line)["realised"] for line in lines if line.startswith('{"realised"')]

    @contextlib.contextmanager
    def kubelet(self) -> Iterator[Kubelet]:
        kubelet = Kubelet(self.image_socket, self.containerd.socket, self.directory)
        try:
            yield kubelet
        finally:
            kubelet.close()

    def ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.containerd.ctr("--namespace", "k8s.io", *arguments, check=check)

    def load_pause(self) -> None:
        """What holds a pod's namespaces: one static program."""
        archive = pause_archive(self.directory / "pause.tar")
        self.ctr("images", "import", "--snapshotter", "nix", "--base-name", "localhost/pause", str(archive))
        # containerd's CRI part hears of it a moment later, and would try to pull it before.
        cri_part = Kubelet(self.containerd.socket, self.containerd.socket, self.directory)
        with contextlib.closing(cri_part):
            wait_until(lambda: cri_part.status(PAUSE) is not None, seconds=60, what="CRI knows it")


def _options(substituter: Substituter) -> dict[str, str]:
    return {
        "extra-substituters": substituter.url,
        "extra-trusted-public-keys": " ".join(substituter.public_keys),
        "require-sigs": "true",
    }


def is_open(file: Path) -> bool:
    """Whether a containerd has it open."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "comm").read_text() == "containerd\n":
                for handle in (process / "fd").iterdir():
                    with contextlib.suppress(OSError):
                        if handle.readlink() == file:
                            return True
    return False


def speaks_http2(path: Path) -> bool:
    """Whether a server on that socket answers a client's first words (RFC 9113, 3.4) with its settings."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        probe.connect(str(path))
        probe.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + EMPTY_SETTINGS)
        return probe.recv(len(EMPTY_SETTINGS))[3:4] == EMPTY_SETTINGS[3:4]
    return False


def pause_archive(path: Path) -> Path:
    """A Docker archive of an image that sleeps."""
    build = path.parent / "pause"
    layer, config = build / "layer.tar", build / "config.json"
    (build / "rootfs/bin").mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy(busybox, build / "rootfs/bin/busybox")
    run("tar", "-C", build / "rootfs", "-cf", layer, ".")
    digest = run("sha256sum", layer).stdout.split()[0]
    config.write_text(
        json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/bin/busybox", "sleep", "3600"]},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            }
        )
    )
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE], "Layers": ["layer.tar"]}]
    (build / "manifest.json").write_text(json.dumps(manifest))
    run("tar", "-C", build, "-cf", path, "manifest.json", "config.json", "layer.tar")
    return path


@contextlib.contextmanager
def new_node(
    directory: Path,
    release: str,
    substituters: list[Substituter],
    *,
    source: Path | None = None,
    lack: str = "",
) -> Iterator[Node]:
    """Nothing of it runs yet. `lack`: what its containerd is not set up for: snapshotter, unpacking, local pulls."""
    directory.mkdir(parents=True, exist_ok=True)
    store = ChrootStore.create(directory / "store")
    text = (CRI_2 if release == "2" else CRI_1).format(
        snapshotter=directory / "snap.sock", pause=PAUSE, certs=directory / "certs.d"
    )
    if lack == "unpacking":
        text = re.sub(r"\[\[plugins.+unpack_config\]\]\n.+\n.+\n", "", text)
    elif lack == "snapshotter":
        text = ""
    elif lack == "local pulls":
        text = text.replace("use_local_image_pull = true\n", "")
    (directory / "certs.d").mkdir()
    with starting(directory, release, text) as (client, start):
        node = Node(directory, store, substituters, client, start, source)
        try:
            yield node
        finally:
            node.stop(*reversed(list(node.running)))
