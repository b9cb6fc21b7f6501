"""Binary caches made by hand, and an HTTP server that misbehaves with them as it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import lzma
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from nixery_snap.nix import base32, listing, nar
from nixery_snap.nix.file_tree import Directory, FileEntry, Node, Regular, Symlink, tree_of
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.signing import SecretKey
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.cache_transport import HttpTransport
from nixery_snap.nix_stores.decompression import zstd
from nixery_snap.nix_stores.substituter import Substituter
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import Records
from tests.unit.stores import store_path

KEY = SecretKey.generate("test-1")
OTHER_KEY = SecretKey.generate("test-1")  # says it is KEY
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"none": bytes, "xz": lzma.compress, "zstd": zstd.compress}

Files = dict[bytes, Node | bytes]
DIRECTORY: Files = {
    b"": Directory(),
    b"bin": Directory(),
    b"bin/run": b"#!/bin/sh\n",
    b"bin/sh": Symlink("run"),
    b"large": b"0123456789" * 100_000,
}


def entries(files: Files) -> Iterator[FileEntry]:
    for name, node in files.items():
        if isinstance(node, bytes):
            yield FileEntry(name, Regular(len(node)), iter((node,)))
        else:
            yield FileEntry(name, node, iter(()))


def sha256(content: bytes) -> str:
    return f"sha256:{base32.encode(hashlib.sha256(content).digest())}"


@dataclass
class CachedPath:
    """One path of a cache: what it serves, correct as long as nobody changes it."""

    narinfo: NarInfo
    nar: bytes
    packed: bytes
    listing: bytes
    tree: Node

    @property
    def info(self) -> PathInfo:
        return self.narinfo.info

    @property
    def path(self) -> StorePath:
        return self.info.path

    @property
    def files(self) -> dict[str, bytes]:
        return {
            self.narinfo_name: bytes(self.narinfo),
            self.listing_name: self.listing,
            self.narinfo.url: self.packed,
        }

    @property
    def narinfo_name(self) -> str:
        return f"{self.path.hash_part}.narinfo"

    @property
    def listing_name(self) -> str:
        return f"{self.path.hash_part}.ls"


def cached(
    name: str,
    files: Files | None = None,
    references: Sequence[StorePath] = (),
    *,
    key: SecretKey | None = KEY,
    compression: str = "xz",
    path: StorePath | None = None,
    content_address: str | None = None,
) -> CachedPath:
    files = DIRECTORY if files is None else files
    offsets: dict[bytes, int] = {}
    content = b"".join(nar.write(entries(files), offsets))
    info = PathInfo(
        path or store_path(name),
        sha256(content),
        len(content),
        tuple(sorted(references)),
        content_address=content_address,
    )
    if key is not None:
        info = replace(info, signatures=(key.sign(info),))
    packed = COMPRESS[compression](content)
    url = f"nar/{sha256(packed)[7:]}.nar"
    tree = tree_of((entry.name, entry.node) for entry in entries(files))
    narinfo = NarInfo(info, url, compression, sha256(packed), len(packed))
    return CachedPath(narinfo, content, packed, listing.encode(tree, offsets), tree)


Fault = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class ScriptedCache:
    """Serves `files`; `faults` answer for it, by file name or by `*`, as often as there are any in the list."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    sent_bytes: int = 0

    def add(self, *paths: CachedPath) -> None:
        for path in paths:
            self.files |= path.files

    async def answer(self, request: web.Request) -> web.StreamResponse:
        name = request.path.lstrip("/")
        self.asked[name] += 1
        self.connections.add(request.transport)
        fault = self.faults.get(name) or self.faults.get("*")
        if fault is not None:
            return await fault(request)
        content = self.files.get(name)
        if content is None:
            return web.Response(status=404)
        if wanted := request.headers.get("Range"):
            self.ranges.append(wanted)
            content = content[request.http_range]
        self.sent_bytes += len(content)
        return web.Response(body=content, status=206 if wanted else 200)


@contextlib.asynccontextmanager
async def serving(*paths: CachedPath) -> AsyncIterator[ScriptedCache]:
    cache = ScriptedCache(files={"nix-cache-info": b"StoreDir: /nix/store\nPriority: 40\n"})
    cache.add(*paths)
    app = web.Application()
    app.router.add_get("/{name:.*}", cache.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    cache.url = f"http://{host}:{port}"
    try:
        yield cache
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def asking(
    url: str,
    records: Records | None = None,
    *,
    keys: Sequence[SecretKey] = (KEY,),
    request_timeout: float = 60,
    **options: Any,
) -> AsyncIterator[Substituter]:
    """A substituter over HTTP, closed afterwards. Who wants to see time run out makes it short."""
    records = records or StoredRecords(ObjectStore("memory://"), 1 << 20)
    transport = HttpTransport(url, request_timeout=request_timeout)
    substituter = Substituter(url, transport, [key.public_key for key in keys], records, **options)
    try:
        yield substituter
    finally:
        await substituter.close()


def give_time(substituter: Substituter) -> None:
    """From now on small files have it, where it was short."""
    transport = substituter._transport
    assert isinstance(transport, HttpTransport)
    transport._small.timeout = transport._small._connect_timeout = 60


# --- faults -----------------------------------------------------------------------------------------


def status(code: int, **headers: str) -> Fault:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=code, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return answer


def body(content: bytes, **headers: str) -> Fault:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=content, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return answer


def gated(go: asyncio.Event, then: Fault) -> Fault:
    """Says nothing before that."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await go.wait()
        return await then(request)

    return answer


async def slow_headers(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


def begun(content: bytes, size_bytes: int, then: Fault) -> Fault:
    """A body that stops early; `then` says how."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(size_bytes)})
        await response.prepare(request)
        await response.write(content)
        await then(request)
        return response

    return answer


async def reset(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def redirect_loop(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound(request.path)


def failing(times: int, fault: Fault, content: bytes) -> Fault:
    """Goes wrong so many times, and then well."""
    left = times

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal left
        left -= 1
        return web.Response(body=content) if left < 0 else await fault(request)

    return answer
