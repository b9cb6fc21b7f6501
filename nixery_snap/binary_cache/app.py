"""The binary cache's web application (Nix manual, "Serving a Nix store via HTTP"; its layout has no standard text).

    nix-cache-info         what this cache is
    <hash part>.narinfo    a path info, and where its NAR is
    <hash part>.ls         the file tree of a path
    nar/<file>             a NAR
    log/<derivation>       what its builder printed
    public-key             of the key that signs what is published here; Nix does not ask for it, people do

Names are checked here: the cache behind the port sees none that could not be there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from aiohttp import web

from nixery_snap.binary_cache.errors import missing, plain_errors, refusal
from nixery_snap.errors import InvalidFormat
from nixery_snap.nix.base32 import ALPHABET
from nixery_snap.nix.store_path import STORE_DIR, StorePath
from nixery_snap.ports import UNTRACKED, BinaryCache, StoredBytes, UseKind, Uses, use
from nixery_snap.web.hot_answers import USES
from nixery_snap.web.located import IMMUTABLE, answer, etag_of, in_memory

# A narinfo never changes, but a cache can be emptied: then clients should find out within a day.
_LASTING: Final = "public, max-age=86400"
_SETTINGS: Final = "public, max-age=3600"
NARINFO_ROUTE: Final = "narinfo"  # among the metrics
NARINFO_HEADERS: Final = {"Content-Type": "text/x-nix-narinfo", "Cache-Control": _LASTING}
_HASH_PART: Final = re.compile(rf"[{ALPHABET}]{{32}}")
# The endings are those that Nix makes.
_NAR_FILE: Final = re.compile(r"[0-9a-z]{32,128}\.nar(\.(zst|xz|bz2|br|gz|lz4|lzip))?")
# Of a NAR that is still to be read through: hash part and nar_hash, as nobody knows its file hash yet.
_NOT_KEPT: Final = re.compile(rb"^URL: nar/[0-9a-z]{84}\.", re.MULTILINE)
_FILE_HASH_LENGTHS: Final = (52, 64)  # SHA-256 in base 32 and base 16: the name says what every byte is


def make_cache_app(
    cache: BinaryCache, *, public_key: str, priority: int, uses: Uses = UNTRACKED
) -> web.Application:
    """To be mounted below the registry's application. A lower `priority` is asked first by clients."""
    info = f"StoreDir: {STORE_DIR}\nWantMassQuery: 1\nPriority: {priority}\n"
    app = web.Application(middlewares=[plain_errors])
    endpoints = _Endpoints(cache, uses, info.encode(), f"{public_key}\n".encode())
    app.router.add_get("/nix-cache-info", endpoints.get_info, name="cache-info")
    app.router.add_get("/public-key", endpoints.get_public_key, name="public-key")
    app.router.add_get("/nar/{file:[^/]+}", endpoints.get_nar, name="nar")
    app.router.add_get("/log/{derivation:.+}", endpoints.get_log, name="log")
    app.router.add_get("/{hash_part:[^/]+}.narinfo", endpoints.get_narinfo, name=NARINFO_ROUTE)
    app.router.add_get("/{hash_part:[^/]+}.ls", endpoints.get_listing, name="listing")
    return app


class _Endpoints:
    def __init__(self, cache: BinaryCache, uses: Uses, info: bytes, public_key: bytes) -> None:
        self._cache, self._uses, self._info, self._public_key = cache, uses, info, public_key

    async def get_info(self, request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "text/x-nix-cache-info", "Cache-Control": _SETTINGS}
        return await _content(request, self._info, headers)

    async def get_public_key(self, request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": _SETTINGS}
        return await _content(request, self._public_key, headers)

    async def get_narinfo(self, request: web.Request) -> web.StreamResponse:
        hash_part = request.match_info["hash_part"]
        if not _HASH_PART.fullmatch(hash_part):
            return missing(
                "a narinfo is named by the 32 characters of base 32 that begin a store path's name"
            )
        content = await self._cache.narinfo(hash_part)
        used = use(UseKind.PATH, hash_part)
        if content is not None and not await self._uses.note(used):
            content = await self._cache.narinfo(hash_part)
        if content is None:
            return missing(f"no narinfo of {hash_part} here")
        # What is read through and not kept yet can be another tomorrow.
        passing = _NOT_KEPT.search(content) is not None
        headers = NARINFO_HEADERS | ({"Cache-Control": "no-cache"} if passing else {})
        response = await _content(request, content, headers, hot=not passing)
        response[USES] = (used,)
        return response

    async def get_listing(self, request: web.Request) -> web.StreamResponse:
        hash_part = request.match_info["hash_part"]
        if not _HASH_PART.fullmatch(hash_part):
            return missing(
                "a listing is named by the 32 characters of base 32 that begin a store path's name"
            )
        location = await self._cache.file(f"{hash_part}.ls")
        if location is None:
            return missing(f"no listing of {hash_part} here")
        location = await in_memory(location)
        headers = {"Content-Type": "application/json", "Cache-Control": _LASTING}
        return answer(request, location, headers, etag=await etag_of(location), refuse=refusal)

    async def get_nar(self, request: web.Request) -> web.StreamResponse:
        file = request.match_info["file"]
        if not _NAR_FILE.fullmatch(file):
            return missing("a NAR is named as the URL of its narinfo says: by a hash, .nar and a compression")
        location = await self._cache.file(f"nar/{file}")
        used = use(UseKind.FILE, file)
        if location is not None and not await self._uses.note(used):
            location = await self._cache.file(f"nar/{file}")
        if location is None:
            return missing(f"no NAR {file} here")
        location = await in_memory(location)
        by_hash = file.find(".") in _FILE_HASH_LENGTHS
        headers = {
            "Content-Type": "application/x-nix-nar",
            "Cache-Control": IMMUTABLE if by_hash else _LASTING,
        }
        etag = f'"{file}"' if by_hash else await etag_of(location)
        response = answer(request, location, headers, etag=etag, refuse=refusal)
        response[USES] = (used,)
        return response

    async def get_log(self, request: web.Request) -> web.StreamResponse:
        # Names of derivations can hold a '?', which Nix does not escape.
        derivation = unquote(request.raw_path.rpartition("/log/")[2])
        try:
            name = StorePath.from_base_name(derivation).base_name
        except InvalidFormat:
            name = ""
        if not name.endswith(".drv"):
            return missing("a log is named by the base name of its derivation, which ends in .drv")
        location = await self._cache.file(f"log/{name}")
        if location is None:
            return missing(f"no log of {name} here")
        headers = {
            "Content-Type": "text/plain; charset=utf-8",
            "Cache-Control": "no-cache",  # building again may write another
            "X-Content-Type-Options": "nosniff",  # a builder prints what it likes
        }
        return answer(request, location, headers, etag=await etag_of(location), refuse=refusal, hot=False)


async def _content(
    request: web.Request, content: bytes, headers: Mapping[str, str], *, hot: bool = True
) -> web.StreamResponse:
    location = StoredBytes(content)
    return answer(request, location, headers, etag=await etag_of(location), refuse=refusal, hot=hot)
