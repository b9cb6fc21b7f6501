"""A proxy snapshotter for containerd that treats labels as nix-snapshotter does (facts.md, section 1).

`python -m tests.support.snapshotter --socket S --root R --store STORE`: a nix layer's paths are realised one after the
other, or its closure-info path alone (`--legacy`: as before 0.3, which knew none); containers get an overlay and a bind
mount for each path of their parents.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from tests.support.generated import snapshots_pb2 as pb

NIX_LAYER = "containerd.io/snapshot/nix-layer"
NIX_PATH = "containerd.io/snapshot/nix-store-path."
NIX_CLOSURE = "containerd.io/snapshot/nix-closure"
SERVICE = "/containerd.services.snapshots.v1.Snapshots/"


class NotThere(Exception):
    pass


class ThereAlready(Exception):
    pass


class Snapshotter:
    """State is one JSON file, so that it outlives a restart; layers lie in `root/snapshots/<id>`."""

    def __init__(self, root: Path, store: Path, builder: str | None, *, legacy: bool) -> None:
        self.root, self.store, self.builder, self.legacy = root, store, builder, legacy
        self.lock = threading.RLock()
        self.file = root / "state.json"
        root.mkdir(parents=True, exist_ok=True)
        self.state: dict[str, Any] = {"next": 1, "snapshots": {}}
        if self.file.exists():
            self.state = json.loads(self.file.read_text())

    def save(self) -> None:
        temporary = self.file.with_suffix(".new")
        temporary.write_text(json.dumps(self.state))
        temporary.replace(self.file)

    def get(self, key: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.state["snapshots"][key]
        except KeyError:
            raise NotThere(key) from None
        return found

    def create(self, request: pb.PrepareSnapshotRequest, kind: int) -> pb.PrepareSnapshotResponse:
        with self.lock:
            if request.key in self.state["snapshots"]:
                raise ThereAlready(request.key)
            if request.parent:
                self.get(request.parent)
            number = str(self.state["next"])
            self.state["next"] += 1
            snapshot = {
                "id": number,
                "parent": request.parent,
                "kind": kind,
                "labels": dict(request.labels),
            }
            self.state["snapshots"][request.key] = snapshot
            for name in ("fs", "work"):
                (self.directory(number) / name).mkdir(parents=True)
            if request.parent:
                above = (self.directory(self.get(request.parent)["id"]) / "fs").stat()
                os.chown(self.directory(number) / "fs", above.st_uid, above.st_gid)
            self.save()
        if NIX_LAYER in request.labels:
            self.realise(number, snapshot["labels"])
            return pb.PrepareSnapshotResponse(mounts=self.mounts(snapshot))
        return pb.PrepareSnapshotResponse(mounts=[*self.mounts(snapshot), *self.binds(request.key)])

    def directory(self, number: str) -> Path:
        return self.root / "snapshots" / number

    def mounts(self, snapshot: dict[str, Any]) -> list[pb.Mount]:
        own = self.directory(snapshot["id"])
        parents = []
        key = snapshot["parent"]
        while key:
            parents.append(str(self.directory(self.get(key)["id"]) / "fs"))
            key = self.get(key)["parent"]
        active = snapshot["kind"] == pb.ACTIVE
        if not parents:
            return [
                pb.Mount(type="bind", source=str(own / "fs"), options=["rw" if active else "ro", "rbind"])
            ]
        if not active and len(parents) == 1:
            return [pb.Mount(type="bind", source=parents[0], options=["ro", "rbind"])]
        upper = [f"workdir={own / 'work'}", f"upperdir={own / 'fs'}"] if active else []
        options = [*upper, f"lowerdir={':'.join(parents)}"]
        return [pb.Mount(type="overlay", source="overlay", options=options)]

    def binds(self, key: str) -> list[pb.Mount]:
        """Of the snapshot and all its parents, each path once."""
        paths: dict[str, None] = {}
        while key:
            snapshot = self.get(key)
            paths.update(dict.fromkeys(self.paths(snapshot["labels"])))
            key = snapshot["parent"]
        return [
            pb.Mount(type="bind", source=self.physical(path), target=path, options=["ro", "rbind"])
            for path in paths
        ]

    def physical(self, path: str) -> str:
        return str(self.store / path.lstrip("/"))

    def closure_info(self, labels: dict[str, str]) -> str | None:
        return None if self.legacy else labels.get(NIX_CLOSURE)

    def paths(self, labels: dict[str, str]) -> list[str]:
        if closure := self.closure_info(labels):
            return Path(self.physical(closure), "store-paths").read_text().split()
        return [labels[key] for key in sorted(labels) if key.startswith(NIX_PATH)]

    def realise(self, number: str, labels: dict[str, str]) -> None:
        closure = self.closure_info(labels)
        roots = self.root / "gcroots" / number
        roots.mkdir(parents=True)
        for path in [closure] if closure else self.paths(labels):
            link = roots / Path(path).name
            if self.builder:
                command = [self.builder, str(link), path]
            else:
                command = ["nix-store", "--store", str(self.store), "--add-root", str(link), "--indirect"]
                command += ["--realise", path]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            print(json.dumps({"realised": path, "status": done.returncode}), flush=True)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr}")

    def commit(self, request: pb.CommitSnapshotRequest) -> Empty:
        with self.lock:
            if request.name in self.state["snapshots"]:
                raise ThereAlready(request.name)
            snapshot = self.get(request.key)
            del self.state["snapshots"][request.key]
            snapshot.update(kind=pb.COMMITTED, labels=dict(request.labels))
            self.state["snapshots"][request.name] = snapshot
            self.save()
        return Empty()

    def remove(self, request: pb.StatSnapshotRequest) -> Empty:
        with self.lock:
            snapshot = self.get(request.key)
            if any(other["parent"] == request.key for other in self.state["snapshots"].values()):
                raise RuntimeError(f"{request.key} has children")
            del self.state["snapshots"][request.key]
            self.save()
        shutil.rmtree(self.directory(snapshot["id"]), ignore_errors=True)
        shutil.rmtree(self.root / "gcroots" / snapshot["id"], ignore_errors=True)
        return Empty()

    def info(self, key: str) -> pb.Info:
        snapshot = self.get(key)
        return pb.Info(name=key, parent=snapshot["parent"], kind=snapshot["kind"], labels=snapshot["labels"])

    def update(self, request: pb.UpdateSnapshotRequest) -> pb.StatSnapshotResponse:
        with self.lock:
            self.get(request.info.name)["labels"] = dict(request.info.labels)
            self.save()
            return pb.StatSnapshotResponse(info=self.info(request.info.name))

    def usage(self, request: pb.StatSnapshotRequest) -> pb.UsageResponse:
        size = inodes = 0
        for directory, _, files in os.walk(self.directory(self.get(request.key)["id"]) / "fs"):
            inodes += 1 + len(files)
            size += sum(os.lstat(os.path.join(directory, file)).st_size for file in files)  # noqa: PTH118
        return pb.UsageResponse(size=size, inodes=inodes)


def handlers(snapshotter: Snapshotter) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    def told(work: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return work(request)
            except NotThere as error:
                context.abort(grpc.StatusCode.NOT_FOUND, f"snapshot {error}: not found")
            except ThereAlready as error:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, f"snapshot {error}: already exists")
            except Exception as error:  # noqa: BLE001, RUF100 - whatever it is, containerd is told
                context.abort(grpc.StatusCode.UNKNOWN, str(error)[-3000:])

        return handle

    def unary(kind: Any, work: Callable[[Any], Any]) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.unary_unary_rpc_method_handler(
            told(work),
            request_deserializer=kind.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def listing(
        request: pb.ListSnapshotsRequest, _: grpc.ServicerContext
    ) -> Iterator[pb.ListSnapshotsResponse]:
        with snapshotter.lock:
            infos = [snapshotter.info(key) for key in snapshotter.state["snapshots"]]
        yield pb.ListSnapshotsResponse(info=infos)

    def mounts(request: pb.StatSnapshotRequest) -> pb.PrepareSnapshotResponse:
        snapshot = snapshotter.get(request.key)
        return pb.PrepareSnapshotResponse(
            mounts=[*snapshotter.mounts(snapshot), *snapshotter.binds(request.key)]
        )

    return {
        SERVICE + "Prepare": unary(pb.PrepareSnapshotRequest, lambda r: snapshotter.create(r, pb.ACTIVE)),
        SERVICE + "View": unary(pb.PrepareSnapshotRequest, lambda r: snapshotter.create(r, pb.VIEW)),
        SERVICE + "Mounts": unary(pb.StatSnapshotRequest, mounts),
        SERVICE + "Commit": unary(pb.CommitSnapshotRequest, snapshotter.commit),
        SERVICE + "Remove": unary(pb.StatSnapshotRequest, snapshotter.remove),
        SERVICE + "Stat": unary(
            pb.StatSnapshotRequest, lambda r: pb.StatSnapshotResponse(info=snapshotter.info(r.key))
        ),
        SERVICE + "Update": unary(pb.UpdateSnapshotRequest, snapshotter.update),
        SERVICE + "Usage": unary(pb.StatSnapshotRequest, snapshotter.usage),
        SERVICE + "Cleanup": unary(pb.StatSnapshotRequest, lambda r: Empty()),
        SERVICE + "List": grpc.unary_stream_rpc_method_handler(
            listing,
            request_deserializer=pb.ListSnapshotsRequest.FromString,
            response_serializer=pb.ListSnapshotsResponse.SerializeToString,
        ),
    }


class Handlers(grpc.GenericRpcHandler):
    def __init__(self, methods: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self.methods = methods

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self.methods.get(call.method)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--builder")
    parser.add_argument("--legacy", action="store_true")
    given = parser.parse_args()
    server = grpc.server(ThreadPoolExecutor(16))
    snapshotter = Snapshotter(given.root, given.store, given.builder, legacy=given.legacy)
    server.add_generic_rpc_handlers((Handlers(handlers(snapshotter)),))
    server.add_insecure_port(f"unix://{given.socket}")
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(1))
    with contextlib.suppress(KeyboardInterrupt):
        server.wait_for_termination()


if __name__ == "__main__":
    main()
