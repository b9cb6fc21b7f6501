"""What the program needs from the world, as Protocols; adapters are made in `service.py` alone.

All implementations of one port pass the same suite in `tests/contract/`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from nixery_snap.errors import PackageProblem
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.file_tree import FileEntry, Node
from nixery_snap.nix.path_info import Closure, PathInfo
from nixery_snap.nix.store_path import StorePath
from nixery_snap.oci.digest import Digest

Progress = Callable[[str], None]
"""Takes one line for people about what is going on now."""


# --- object store -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A blob as a file of this machine, to be sent as it is."""

    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """A small blob, or one of a store without files."""

    content: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.content)


@dataclass(frozen=True, slots=True)
class SignedUrl:
    """A blob that the client can fetch by itself, for a limited time: `url` is for GET, `head_url` for HEAD."""

    url: str
    head_url: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoredStream:
    """A blob somewhere else, to be passed on piece by piece. `version` changes with the content."""

    size_bytes: int
    version: str
    pieces: Callable[[int, int], AsyncIterator[bytes]]
    """From a position on, so many bytes. Iterating raises StorageError."""


Location = StoredFile | StoredBytes | SignedUrl | StoredStream


class BlobWriter(Protocol):
    """Takes one blob piece by piece in a worker thread; nothing is visible before `commit`."""

    def write(self, chunk: bytes) -> None: ...

    @property
    def size_bytes(self) -> int:
        """How much has been written so far."""

    def commit(self) -> Digest:
        """Make the blob visible under its digest, all at once."""


class BlobStore(Protocol):
    """Immutable content by digest. Every write is all or nothing; writing twice is writing once."""

    async def put(self, content: bytes) -> Digest: ...

    async def get(self, digest: Digest) -> bytes:
        """All of a small blob. Raises BlobNotFound."""

    async def locate(self, digest: Digest) -> Location:
        """How to serve it. Raises BlobNotFound."""

    async def has(self, digest: Digest) -> bool: ...

    def writer(self) -> AbstractContextManager[BlobWriter]:
        """Blocking; leaving the context without a commit leaves nothing behind."""

    def read(self, digest: Digest, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Blocking, for worker threads. Raises BlobNotFound."""


class Records(Protocol):
    """Small JSON facts under (kind, key), written once and only after all that they name.

    A reader gets a fresh value or the same immutable one: treat it as read-only.
    """

    async def get(self, kind: str, key: str) -> Any | None: ...

    async def get_many(self, kind: str, keys: Collection[str]) -> Mapping[str, Any]:
        """Those that are there, by key; in one go, where that is faster."""

    async def put(self, kind: str, key: str, value: Any) -> Any:
        """What is recorded now: `value`, or what another process recorded first."""

    async def replace(self, kind: str, key: str, value: Any) -> None:
        """For a record that names what is no longer there."""


class UseKind(StrEnum):
    """Of what is used: an image's record, a manifest, a store path or NAR file of our binary cache, an index."""

    IMAGE = "image"
    MANIFEST = "manifest"
    PATH = "path"
    FILE = "file"
    INDEX = "index"


def use(kind: UseKind, key: object) -> str:
    return f"{kind}:{key}"


class Uses(Protocol):
    """What of the store is asked for, so that it is not removed as unused. Uses are made by `use`."""

    def trusted(self) -> bool:
        """Whether what was seen in the store can be taken for granted; takes no time."""

    def seen(self, uses: Iterable[str]) -> None:
        """They were answered from memory while that was trusted."""

    async def note(self, *uses: str) -> bool:
        """To be awaited when they were found in the store. False: look again, and what is there then stays.

        Raises StorageError.
        """

    def remembers(
        self, *forget: Callable[[], None], take_uses: Callable[[], Iterable[str]] | None = None
    ) -> None:
        """Have `forget` called when what was seen in the store may be gone, and `take_uses` for more that were seen."""

    async def settled(self) -> str:
        """To be awaited before relying on what is in the store, and again after writing what names it.

        When both say the same, nothing has been removed in between. Raises StorageError.
        """


class Untracked:
    """Implements Uses for a store from which nothing is removed."""

    def trusted(self) -> bool:
        return True

    def seen(self, uses: Iterable[str]) -> None:
        return

    async def note(self, *uses: str) -> bool:
        return True

    def remembers(
        self, *forget: Callable[[], None], take_uses: Callable[[], Iterable[str]] | None = None
    ) -> None:
        return

    async def settled(self) -> str:
        return ""


UNTRACKED: Final = Untracked()


class Leases(Protocol):
    """Lets processes that share a store work at the same thing one after the other. They save work: nothing depends on
    them.
    """

    def held(self, key: str, progress: Progress) -> AbstractAsyncContextManager[None]:
        """Entering waits while another works at `key`, whose work may then be done. Raises StorageError."""


class ImageNames(Protocol):
    """The names under which images have been made. Raises StorageError."""

    async def put(self, name: str, image: str) -> None:
        """`image` is the key of the record of its newest image."""

    async def all(self) -> Sequence[str]:
        """In byte order."""


# --- package sources --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pin:
    """`revision` fixes a source's content for ever; `url` tells people where that can be had, if anywhere.

    `variant` stands for all that the settings add to the content, such as overlays: a digest, empty for nothing.
    """

    revision: str
    url: str | None = None
    variant: str = ""


@dataclass(frozen=True, slots=True)
class PackageSet:
    """A package set as files of this machine, never changed again, and how its source wants it evaluated.

    `directory` holds a default.nix or, with `is_flake`, a flake.nix. `overlays` and `config` are given to package
    sets that take them, as nixpkgs does. `allows_builds`: evaluating may build (import from derivation).
    `restricted`: it may read no other file of this machine, and nothing of the network; flakes always are pure.
    """

    directory: Path
    is_flake: bool = False
    overlays: tuple[Path, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    allows_builds: bool = False
    restricted: bool = False
    pin: Pin | None = None
    """What it is a checkout of."""


class PackageSource(Protocol):
    """Where package sets come from."""

    @property
    def name(self) -> str:
        """For people, in logs and messages; holds no secret."""

    async def pin(self, tag: str) -> Pin:
        """What `tag` means now. Raises TagNotFound, SourceError."""

    def current(self, tag: str) -> Pin | None:
        """The pin of `tag` if that can be known at once, without any I/O that could wait."""

    async def checkout(self, pin: Pin) -> PackageSet:
        """Exactly that revision. Raises TagNotFound, SourceError."""

    async def tags(self) -> Sequence[str]:
        """What can be asked for now, in byte order; other tags may have a meaning too. Raises SourceError."""

    def close(self) -> None: ...


class PinStore(Protocol):
    """What moving tags meant when a source was last asked, for replicas and restarts. Raises StorageError."""

    async def get(self, source: str, tag: str) -> tuple[Pin, float] | None:
        """The pin and when it was made, in seconds since the epoch; `source` is a source's name."""

    async def put(self, source: str, tag: str, pin: Pin, made: float) -> None: ...

    async def delete(self, source: str, tag: str) -> None: ...


# --- Nix --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Package:
    """One evaluated package. `outputs` are those to install, by output name."""

    attribute: AttributePath
    name: str
    drv_path: str
    outputs: Mapping[str, StorePath]
    main_program: str | None
    licenses: tuple[str, ...]
    priority: int

    @classmethod
    def from_json(cls, value: Any) -> Package:
        return cls(
            AttributePath(tuple(value["attribute"])),
            value["name"],
            value["drvPath"],
            {output: StorePath.parse(path) for output, path in value["outputs"].items()},
            value["mainProgram"],
            tuple(value["licenses"]),
            value["priority"],
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "attribute": list(self.attribute.parts),
            "name": self.name,
            "drvPath": self.drv_path,
            "outputs": {output: str(path) for output, path in self.outputs.items()},
            "mainProgram": self.main_program,
            "licenses": list(self.licenses),
            "priority": self.priority,
        }


@dataclass(frozen=True, slots=True)
class Program:
    """A finished program."""

    returncode: int
    stdout: bytes
    stderr: bytes


class NixProcess(Protocol):
    """One of Nix's programs that is talked to through pipes; whoever started it ends it."""

    @property
    def returncode(self) -> int | None:
        """None while it runs."""

    @property
    def resident_bytes(self) -> int:
        """The memory that it takes now; 0 when it has ended."""

    async def write(self, content: bytes) -> None:
        """Does nothing when it has ended."""

    async def read_line(self) -> bytes:
        """The next line of its standard output; empty at the end. Raises ValueError for one beyond all measure."""

    async def wait(self) -> int:
        """Its returncode, after all that it has said came to `on_stderr`."""

    async def end(self) -> None:
        """Kill it, and its children."""


class NixRunner(Protocol):
    """Runs Nix's programs against the configured store.

    `memory_bytes` bounds a program's address space, and that of each builder that it starts by itself.
    """

    async def run(
        self,
        program: str,
        *arguments: str,
        timeout_seconds: float | None = None,
        on_stderr: Callable[[bytes], object] | None = None,
        memory_bytes: int | None = None,
        options: Mapping[str, str] = MappingProxyType({}),
    ) -> Program:
        """Raises TimeoutError after killing the program and its children, and NixMissing.

        `on_stderr` gets each line as it comes; the result's stderr then is empty. `options` are settings of Nix,
        which nobody else of the machine sees.
        """

    async def start(
        self,
        program: str,
        *arguments: str,
        on_stderr: Callable[[bytes], object],
        memory_bytes: int | None = None,
    ) -> NixProcess:
        """Raises NixMissing."""


class Evaluator(Protocol):
    """Turns attribute paths into packages."""

    async def evaluate(
        self, package_set: PackageSet, system: str, names: Sequence[AttributePath]
    ) -> Sequence[Package | PackageProblem]:
        """One result for each name, in order; one bad name hides no other.

        What is known of a pin may be the answer; of a package set without one all is evaluated anew, and the
        derivations are in the store afterwards.

        Raises EvaluationFailed, EvaluationTimedOut, EvaluationTooBig, NixTooOld, ExperimentalFeatureMissing,
        NixUnusable.
        """


class Realiser(Protocol):
    """Makes store paths exist, by building or substituting."""

    async def unwritten(self, packages: Collection[Package]) -> list[Package]:
        """Those whose derivations the store lacks: they must be evaluated again."""

    async def realise(self, key: str, packages: Collection[Package], progress: Progress) -> None:
        """Afterwards every output of `packages` is in the store, kept from its garbage collector under `key`.

        Raises RealisationFailed, RealisationTimedOut.
        """


class PathInfoSource(Protocol):
    """Knows path infos: a local store, a binary cache, or several of them."""

    async def path_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        """Of those `paths` that it knows; may add what they refer to, where one question answers both."""


class StoreContents(Protocol):
    """Reads what is inside store paths, where their path info came from. Links are never followed.

    Raises PathsMissing, SubstituterError.
    """

    async def roots(self, infos: Collection[PathInfo]) -> Mapping[StorePath, Node]:
        """The node at each path's root; directories without their entries."""

    async def file_tree(self, info: PathInfo) -> Node: ...

    def entries(self, info: PathInfo) -> Iterator[FileEntry]:
        """Blocking. Parents before children, children in byte order of their names; contents lazily.

        What does not have the info's NAR hash and size raises CorruptPath, at the latest at the end.
        """


class Publisher(Protocol):
    """Sees to it that clients can fetch what an image names."""

    def closure_info(self, closure: Closure) -> StorePath | None:
        """The path, published by `offer`, whose one file lists `closure`; None where clients are not told of it."""

    async def offer(self, closure: Closure, progress: Progress) -> None:
        """Afterwards clients can fetch all of `closure`. Raises PathsNotFetchable."""

    async def publish(self, closure: Closure, progress: Progress) -> None:
        """Put into our binary cache what it should have of `closure`, by the settings."""


# --- our own binary cache ---------------------------------------------------------------------------


class CacheFileWriter(Protocol):
    """Takes one file piece by piece in a worker thread; nothing is visible before `commit`."""

    def write(self, chunk: bytes) -> None: ...

    def commit(self, name: str) -> None: ...


class CacheFiles(Protocol):
    """The files of our own binary cache by their names in its standard layout."""

    async def get(self, name: str) -> bytes | None: ...

    def get_at_once(self, name: str) -> bytes | None:
        """A small file's content if it can be had without waiting for anything; None says nothing about it."""

    async def locate(self, name: str) -> Location | None: ...

    async def put(self, name: str, content: bytes) -> None:
        """Replaces what is there, all at once."""

    def read(self, name: str) -> Iterator[bytes]:
        """Blocking. Raises FileNotFoundError."""

    def writer(self) -> AbstractContextManager[CacheFileWriter]:
        """Blocking; leaving the context without a commit leaves nothing behind."""


class BinaryCache(Protocol):
    """What is served as a binary cache, by names of its standard layout."""

    async def narinfo(self, hash_part: str) -> bytes | None: ...

    def narinfo_at_once(self, hash_part: str) -> bytes | None:
        """The same if it can be known without waiting for anything; None says nothing."""

    async def file(self, name: str) -> Location | None:
        """`nar/<file>`, `<hash part>.ls` or `log/<derivation>`; None for what is not there."""
