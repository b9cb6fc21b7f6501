"""Path infos by `nix path-info`, for stores whose database this process may not read."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import structlog

from nixery_snap.errors import InvalidFormat, StorageError
from nixery_snap.nix import base32
from nixery_snap.nix.log_events import LogReader
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath
from nixery_snap.ports import NixRunner, PathInfoSource

log = structlog.get_logger()

_PATHS_PER_CALL: Final = 500  # far below the kernel's limit for arguments


class NixPathInfos:
    """Implements the port PathInfoSource, one process per question."""

    def __init__(self, nix: NixRunner) -> None:
        self._nix = nix

    async def path_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        infos: dict[StorePath, PathInfo] = {}
        # Nix takes the name of a derivation for its outputs unless it is told otherwise.
        for flags, some in (
            ((), [str(path) for path in paths if not path.name.endswith(".drv")]),
            (("--derivation",), [str(path) for path in paths if path.name.endswith(".drv")]),
        ):
            for start in range(0, len(some), _PATHS_PER_CALL):
                for info in await self._ask(*flags, *some[start : start + _PATHS_PER_CALL]):
                    infos[info.path] = info
        return infos

    async def _ask(self, *arguments: str) -> list[PathInfo]:
        log = LogReader()
        finished = await self._nix.run("nix", "path-info", "--json", *arguments, on_stderr=log.feed)
        if finished.returncode != 0:
            reason = log.errors[-1] if log.errors else "\n".join(log.plain)
            raise StorageError(f"nix path-info failed: {reason}")
        try:
            return [
                PathInfo(
                    StorePath.parse(path),
                    _nar_hash(value["narHash"]),
                    value["narSize"],
                    tuple(sorted(map(StorePath.parse, value["references"]))),
                    StorePath.parse(value["deriver"]) if value.get("deriver") else None,
                    tuple(value.get("signatures") or ()),
                    ca if isinstance(ca := value.get("ca"), str) and ca else None,
                )
                for path, value in _by_path(json.loads(finished.stdout))
                if value is not None and value.get("valid", True)
            ]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidFormat) as error:
            raise StorageError(f"nix path-info answered in an unknown form: {error!r}") from error


class LocalPathInfos:
    """Implements the port PathInfoSource: the database where it can be read, else `nix path-info`.

    That changes while the program runs: with SQLite's write-ahead log, who may not write can read only while
    some other process has the database open. So each question tries anew.
    """

    def __init__(self, database: PathInfoSource, command: PathInfoSource) -> None:
        self._database = database
        self._command = command

    async def path_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        try:
            return await self._database.path_infos(paths)
        except StorageError as error:
            log.debug("store-database-closed", reason=str(error))
            return await self._command.path_infos(paths)


def _by_path(answer: Any) -> Iterable[tuple[str, Any]]:
    """A list of objects up to Nix 2.18, later an object by path, in which unknown paths are null."""
    return answer.items() if isinstance(answer, dict) else ((value["path"], value) for value in answer)


def _nar_hash(text: str) -> str:
    """`sha256:<nix base 32>` from that or from SRI's `sha256-<base 64>`."""
    if not text.startswith("sha256-"):
        return text
    return f"sha256:{base32.encode(base64.b64decode(text.removeprefix('sha256-'), validate=True))}"
