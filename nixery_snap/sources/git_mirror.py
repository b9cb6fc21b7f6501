"""One bare repository of ours in front of a remote one. It is a cache: whatever is wrong with it, it is made anew.

Only what is asked for is fetched, without its history: a remote may have half a million refs, and a package set
hundreds of thousands of commits. A fetch names its ref in full, so that the server need not list the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import structlog

from nixery_snap.errors import InvalidFormat, SourceError, StorageError
from nixery_snap.file_lock import locked
from nixery_snap.sources.git_command import GitAccess, GitCommand, GitFailed
from nixery_snap.sources.git_submodules import Submodule, parse_submodules
from nixery_snap.sources.git_url import GitUrl
from nixery_snap.sources.unpack import UnpackLimits, unpack

log = structlog.get_logger()
T = TypeVar("T")
_REST_SECONDS: Final = 10.0  # strangers may ask for commits that are none as often as they like
_MAX_SUBMODULES: Final = 1000
_MAX_REFS: Final = 2_000_000
_READ_BYTES: Final = 64 * 1024
_MAX_RECORD_BYTES: Final = 1024 * 1024
_MAX_SUBMODULE_DEPTH: Final = 10
_NO_REF: Final = re.compile(r"couldn't find remote ref|not our ref|unadvertised object")
# What a process that was killed leaves behind, and what a disk does.
_DAMAGED: Final = re.compile(
    r"\.lock': File exists|not a git repository|corrupt|(bad|invalid) object|missing (blob|tree|commit|necessary)"
    r"|unable to read (tree|sha1)|cannot read '[0-9a-f]{40}|inflate: data stream error|invalid sha1 pointer"
    r"|bad (config|index|pack)|shallow file has changed|garbage at end|did not send all necessary objects"
)
_COMMIT: Final = re.compile(rb"[0-9a-f]{40}([0-9a-f]{24})?")
_OTHER_FORMAT: Final = re.compile(r"mismatched algorithms: client \w+; server (sha1|sha256)")
_HINTS: Final = {
    re.compile(r"terminal prompts disabled|Authentication failed|error: 40[13]|Permission denied"): (
        "if it wants credentials, see token_file, netrc_file and ssh_key_file of its settings"
    ),
    re.compile(r"returned error: 30[0-9]"): (
        "with credentials no redirect is followed: name the URL that it leads to"
    ),
}
_NO_EXPORT_RULES: Final = "* -export-ignore -export-subst\n"  # a checkout holds all files as they are


class GitMirror:
    """In `directory`, which several processes may share."""

    def __init__(
        self, url: GitUrl, access: GitAccess, directory: Path, limits: UnpackLimits, *, lfs: bool
    ) -> None:
        self._url = url
        self._limits = limits
        self._lfs = lfs
        self._directory = directory
        self._lock = asyncio.Lock()
        self._ready = False
        self._tidying: asyncio.Task[None] | None = None
        self._rests_until = 0.0
        self._git = GitCommand(url, access, directory, lfs=lfs)

    def close(self) -> None:
        if self._tidying is not None:
            self._tidying.cancel()

    async def fetch(self, refs: Sequence[str]) -> str | None:
        """The commit behind the first of `refs` that the remote has now; afterwards it is here.

        Raises SourceError, StorageError.
        """
        return await self._sound(lambda: self._fetch_first(refs))

    async def expand(self, abbreviation: str) -> str | None:
        """The one commit here that begins so."""
        return await self._sound(lambda: self._parsed(abbreviation))

    async def is_tip(self, commit: str) -> bool:
        """Whether a branch or tag was at that commit when it was fetched last."""
        try:
            found = await self._sound(
                lambda: self._git.run("for-each-ref", "--count=1", "--points-at", commit, "refs/fetched")
            )
        except SourceError:  # there is no such commit here
            return False
        return bool(found)

    async def leads_to(self, commit: str) -> bool:
        """Whether a branch or tag of the remote leads to the commit, or ever did when another was asked for.

        For a mirror that serves for nothing else: it fetches all commits, without their files where the remote can
        leave them out. Raises SourceError, StorageError.
        """
        return await self._sound(lambda: self._leads_to(commit))

    async def refs(self) -> list[str]:
        """The names of all branches and tags of the remote, in full. Raises SourceError, StorageError."""
        arguments = ("ls-remote", "--quiet", "--refs", "--heads", "--tags", self._url.text)
        return await self._sound(lambda: self._git.stream(_ref_names, *arguments, remote=self._url.text))

    async def export(self, commit: str, directory: Path, *, submodules: bool) -> bool:
        """The files of a commit, fetched only if it is not here, into the new `directory`; false if there is no such.

        Raises SourceError, StorageError.
        """

        async def export() -> bool:
            if not await self._fetch_commit(commit, self._url.text):
                return False
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            await self._export(commit, directory, self._url.text, submodules)
            return True

        return await self._sound(export)

    async def _sound(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, once more with a new mirror when this one proves damaged."""
        with _translated(self._url):
            try:
                await self._prepare()
                return await work()
            except GitFailed as error:
                other = _OTHER_FORMAT.search(error.message)
                if not other and not _DAMAGED.search(error.message):
                    raise
                log.warning("git-mirror-renewed", source=str(self._url), reason=error.message)
                await self._start_over(other[1] if other else None)
            return await work()

    async def _prepare(self) -> None:
        if not self._ready or not await asyncio.to_thread((self._git.repository / "HEAD").exists):
            async with self._locked():
                await asyncio.to_thread(self._git.prepare)
                await self._initialise(None)

    async def _initialise(self, object_format: str | None) -> None:
        """The lock is held; harmless when it has been done."""
        chosen = [f"--object-format={object_format}"] if object_format else []
        await self._git.run("init", "--quiet", "--bare", "--template=", *chosen)
        info = self._git.repository / "info"
        info.mkdir(exist_ok=True)
        (info / "attributes").write_text(_NO_EXPORT_RULES)
        self._ready = True

    async def _start_over(self, object_format: str | None) -> None:
        async with self._locked():
            aside = self._git.repository.with_name(f"old-{os.getpid()}")
            await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)
            self._git.repository.rename(aside)
            await self._initialise(object_format)
        await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)

    async def _fetch_first(self, refs: Sequence[str]) -> str | None:
        async with self._locked():
            for ref in refs:
                # Names of ours: the remote's may stand in each other's way, as a and a/b do.
                kept = f"refs/fetched/{hashlib.sha256(ref.encode()).hexdigest()}"
                if await self._fetch(self._url.text, f"+{ref}:{kept}"):
                    return await self._parsed(kept)
                await self._git.run("update-ref", "-d", kept)
        return None

    async def _fetch_commit(self, commit: str, url: str) -> bool:
        if await self._parsed(commit) == commit:
            return True
        object_format = (await self._git.run("rev-parse", "--show-object-format")).strip()
        if object_format != (b"sha1" if len(commit) == 40 else b"sha256"):
            # Any fetch shows whether the remote has that format; then this one is made anew.
            await self._fetch_first(["HEAD"])
            return False
        async with self._locked():
            if await self._parsed(commit) == commit:  # another request has fetched it meanwhile
                return True
            return await self._fetch(url, commit) and await self._parsed(commit) == commit

    async def _leads_to(self, commit: str) -> bool:
        if await self._parsed(commit) == commit:
            return True
        async with self._locked():
            if await self._parsed(commit) == commit:
                return True
            if time.monotonic() < self._rests_until:
                return False
            options = "--prune --no-tags --no-write-fetch-head --no-auto-maintenance --filter=tree:0"
            refs = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
            url = self._url.text
            await self._git.run("fetch", "--quiet", *options.split(), "--", url, *refs, remote=url)
            self._rests_until = time.monotonic() + _REST_SECONDS
            self._tidy_up("--no-prune")
            return await self._parsed(commit) == commit

    async def _fetch(self, url: str, refspec: str) -> bool:
        """Whether the remote has it; the lock is held."""
        options = "--no-tags --no-write-fetch-head --no-auto-maintenance --no-recurse-submodules --depth=1"
        try:
            await self._git.run("fetch", "--quiet", *options.split(), "--", url, refspec, remote=url)
        except GitFailed as error:
            if _NO_REF.search(error.message):
                return False
            raise
        self._tidy_up()
        return True

    def _tidy_up(self, *options: str) -> None:
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._tidy(*options))

    async def _tidy(self, *options: str) -> None:
        """Pack what has come, as git sees fit, and forget what no ref keeps."""
        try:
            await self._git.run("gc", "--auto", "--quiet", *options)
        except (GitFailed, SourceError) as error:
            log.warning("git-mirror-untidy", source=str(self._url), reason=str(error))

    async def _parsed(self, name: str) -> str | None:
        """The commit that a name of ours stands for, if it is here."""
        try:
            return (
                (await self._git.run("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"))
                .decode()
                .strip()
            )
        except GitFailed:
            return None

    async def _export(self, commit: str, directory: Path, url: str, submodules: bool, depth: int = 0) -> None:
        label = str(self._url)

        def write(archive: BinaryIO) -> None:
            unpack(archive, directory, self._limits, label, strip=False)

        # git archive takes a whole tree into memory, and a tree of a few kilobytes can stand for a billion files.
        survey = _Survey(self._limits)
        await self._git.stream(survey.read, "ls-tree", "-r", "-t", "-z", "--full-tree", commit)
        remote = url if self._lfs else None
        await self._git.stream(write, "archive", "--format=tar", commit, remote=remote)
        if not submodules:
            return
        if depth == _MAX_SUBMODULE_DEPTH:
            raise SourceError(f"{self._url}: its submodules have submodules without end")
        for one in await self._submodules(commit, url, survey.commits):
            target = directory / one.path
            if not await self._fetch_commit(one.commit, one.url):
                raise SourceError(
                    f"{self._url}: {one.url} does not have the commit {one.commit} of a submodule"
                )
            target.rmdir()
            await self._export(one.commit, target, one.url, submodules, depth + 1)

    async def _submodules(self, commit: str, url: str, commits: Mapping[str, str]) -> list[Submodule]:
        try:
            settings = await self._git.run("config", "--null", "--list", "--blob", f"{commit}:.gitmodules")
        except GitFailed:  # it has none
            return []
        return parse_submodules(
            settings.decode("utf-8", "surrogateescape"), commits, url, self._url.transport
        )

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """Alone with the mirror, also among processes."""
        async with self._lock:
            self._directory.mkdir(parents=True, exist_ok=True)
            async with locked(self._directory):
                yield


def _ref_names(output: BinaryIO) -> list[str]:
    """Raises InvalidFormat."""
    names = [os.fsdecode(line.partition(b"\t")[2].rstrip(b"\n")) for line in islice(output, _MAX_REFS + 1)]
    if len(names) > _MAX_REFS:
        raise InvalidFormat("list of refs", "…", f"it has more than {_MAX_REFS}")
    return names


class _Survey:
    """Reads what `git ls-tree -z` prints, up to the limits."""

    def __init__(self, limits: UnpackLimits) -> None:
        self._limits = limits
        self.commits: dict[str, str] = {}
        """Paths of submodules and their commits."""

    def read(self, output: BinaryIO) -> None:
        """Raises InvalidFormat."""
        rest, entries, left = b"", 0, self._limits.bytes
        while piece := output.read(_READ_BYTES):
            *records, rest = (rest + piece).split(b"\0")
            entries += len(records)
            left -= len(piece)
            if entries > self._limits.entries or left < 0 or len(rest) > _MAX_RECORD_BYTES:
                raise InvalidFormat(
                    "tree", "…", f"it has more than {self._limits.entries} entries, or too long names"
                )
            for record in records:
                if record.startswith(b"160000 "):
                    about, _, path = record.partition(b"\t")
                    *_, commit = about.split(b" ")
                    if not _COMMIT.fullmatch(commit):
                        raise InvalidFormat("tree", record, "a submodule is of no commit")
                    self.commits[os.fsdecode(path)] = commit.decode()
            if len(self.commits) > _MAX_SUBMODULES:
                raise InvalidFormat("tree", "…", f"it has more than {_MAX_SUBMODULES} submodules")


@contextlib.contextmanager
def _translated(url: GitUrl) -> Iterator[None]:
    try:
        yield
    except GitFailed as error:
        hints = [f"; {hint}" for sign, hint in _HINTS.items() if sign.search(error.message)]
        raise SourceError(f"{url} cannot be read: {error.message}{''.join(hints)}") from None
    except InvalidFormat as error:
        raise SourceError(f"{url} cannot be checked out: {error}") from error
    except OSError as error:
        raise StorageError(f"the cache of {url} cannot be used: {error}") from error
