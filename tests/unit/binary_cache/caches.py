"""Binary caches for the front to serve, and the front itself on loopback, mounted as the program mounts it."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from nixery_snap.binary_cache.app import make_cache_app
from nixery_snap.binary_cache.at_once import narinfos_at_once
from nixery_snap.imaging.request import ImageFormat, NameGrammar
from nixery_snap.object_store.blobs import Blobs
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import BinaryCache, Location, StoredFile
from nixery_snap.registry.app import make_app
from nixery_snap.registry.context import Registry, new_memory
from nixery_snap.web.hot_answers import HotAnswers
from tests.unit.web.servers import Server, serving

PUBLIC_KEY = "test-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
FRONT_PAGE = "binary cache ünder {1}/nix-cache\n"


@dataclass
class InMemory:
    """Implements BinaryCache; an error in place of an answer is raised. `asked` is what came through."""

    narinfos: Mapping[str, bytes | Exception] = field(default_factory=dict)
    files: Mapping[str, Location | Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def narinfo(self, hash_part: str) -> bytes | None:
        self.asked.append(f"{hash_part}.narinfo")
        found = self.narinfos.get(hash_part)
        if isinstance(found, Exception):
            raise found
        return found

    def narinfo_at_once(self, hash_part: str) -> bytes | None:
        return None

    async def file(self, name: str) -> Location | None:
        self.asked.append(name)
        found = self.files.get(name)
        if isinstance(found, Exception):
            raise found
        return found


@dataclass
class OfDirectory:
    """Implements BinaryCache over what `nix copy --to file://…` has written."""

    root: Path

    async def narinfo(self, hash_part: str) -> bytes | None:
        return self.narinfo_at_once(hash_part)

    def narinfo_at_once(self, hash_part: str) -> bytes | None:
        file = self.root / f"{hash_part}.narinfo"
        return file.read_bytes() if file.exists() else None

    async def file(self, name: str) -> Location | None:
        file = self.root / name
        return StoredFile(file, file.stat().st_size) if file.exists() else None


@contextlib.contextmanager
def serving_cache(cache: BinaryCache, loop_name: str = "uvloop") -> Iterator[Server]:
    pipeline = cast("Any", None)  # nothing here makes images
    grammar = NameGrammar(ImageFormat.CLASSIC, ("x86_64-linux",), {})
    registry = Registry(pipeline, Blobs(ObjectStore("memory://")), grammar, 1, new_memory(2**20))
    app = make_app(
        registry,
        access_log=False,
        subapps={"/nix-cache": make_cache_app(cache, public_key=PUBLIC_KEY, priority=30)},
        front_page=FRONT_PAGE.format,
    )
    hot = HotAnswers(omit=frozenset({"x-request-id"}), at_once=narinfos_at_once(cache, "/nix-cache"))
    with serving(loop_name, app, hot) as running:
        yield running
