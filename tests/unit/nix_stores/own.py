"""Our own binary cache in a directory, watched while it is written to, and store paths to put into it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from nixery_snap.nix import base32, nar
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.path_info import Closure, PathInfo
from nixery_snap.nix.signing import SecretKey
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.build_logs import BuildLogs
from nixery_snap.nix_stores.own_cache import OwnCache
from nixery_snap.nix_stores.own_transport import Forgetful, OwnTransport
from nixery_snap.nix_stores.substituter import Substituter
from nixery_snap.object_store.cache_files import StoredCacheFiles, Writer
from nixery_snap.object_store.store import ObjectStore
from tests.unit.stores import FileStore, Tree

URL = "own"


class WatchedFiles(StoredCacheFiles):
    """Real files; `before_put` sees, and may stop, each small one before it is written. `written` is in order."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self.written: list[str] = []
        self.before_put: Callable[[str, bytes], object] = lambda name, content: None

    async def put(self, name: str, content: bytes) -> None:
        self.before_put(name, content)
        await super().put(name, content)
        self.written.append(name)

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        with super().writer() as writer:
            commit = writer.commit

            def noted(name: str) -> None:
                commit(name)
                self.written.append(name)

            writer.commit = noted  # type: ignore[method-assign]
            yield writer


@dataclass
class Own:
    """All of it below `directory`: the local store of `paths`, and the cache."""

    directory: Path
    upstreams: Sequence[Substituter] = ()
    key: SecretKey = field(default_factory=lambda: SecretKey.generate("own-1"))

    def __post_init__(self) -> None:
        self.root = self.directory / "cache"
        self.files = WatchedFiles(ObjectStore(self.root.as_uri()))
        self.store = FileStore(self.directory / "store")
        logs = BuildLogs(self.store.root)
        self.cache = OwnCache(self.files, self.key, self.store.contents, logs, tuple(self.upstreams))
        transport = OwnTransport(URL, self.files)
        self.substituter = Substituter(
            URL, transport, [self.key.public_key], Forgetful(), priority=0, negative_ttl=0
        )

    def add(
        self, name: str, tree: Tree, *references: StorePath, deriver: StorePath | None = None
    ) -> PathInfo:
        """To the local store, with what its database would say."""
        path = self.store.add(name, tree, *references)
        content = b"".join(nar.write(self.store.contents.entries(self.store.closure[path])))
        info = replace(
            self.store.closure[path],
            nar_hash=f"sha256:{base32.encode(hashlib.sha256(content).digest())}",
            nar_size=len(content),
            deriver=deriver,
        )
        self.store.closure[path] = info
        return info

    @property
    def closure(self) -> Closure:
        return self.store.closure

    @property
    def names(self) -> set[str]:
        """Of all files of the cache."""
        kept = (file for file in self.root.rglob("*") if file.is_file() and file.parent.name != "staging")
        return {str(file.relative_to(self.root)) for file in kept}

    @property
    def published(self) -> set[str]:
        """The names of the paths that have a narinfo."""
        return {self.narinfo(name[:32]).info.path.name for name in self.names if name.endswith(".narinfo")}

    def narinfo(self, hash_part: str) -> NarInfo:
        return NarInfo.parse((self.root / f"{hash_part}.narinfo").read_bytes())

    def watch_order(self, elsewhere: set[StorePath] = frozenset()) -> None:  # type: ignore[assignment]
        """A narinfo may only come when its NAR, its listing and what it refers to are there."""

        def before_put(name: str, content: bytes) -> None:
            if name.endswith(".narinfo"):
                narinfo = NarInfo.parse(content)
                there = self.names
                assert narinfo.url in there
                assert f"{narinfo.info.path.hash_part}.ls" in there
                for reference in set(narinfo.info.references) - {narinfo.info.path} - elsewhere:
                    assert f"{reference.hash_part}.narinfo" in there, (
                        f"{narinfo.info.path} before {reference}"
                    )

        self.files.before_put = before_put
