"""Every parser of what comes over the network, from files that were fetched, or from programs that read such.

A target takes bytes and must come to an end, with a result or with an error of this program's own tree. What else may
be raised, where that is how the module says "not for me", stands beside it.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import lzma
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

from aiohttp.test_utils import make_mocked_request

from nixery_snap.access.authenticator import Authenticator
from nixery_snap.access.identity import Identity, WrongCredentials
from nixery_snap.access.issuers import _public_key
from nixery_snap.access.token_endpoint import _repositories
from nixery_snap.access.tokens import Tokens
from nixery_snap.binary_cache.at_once import narinfos_at_once
from nixery_snap.errors import NixerySnapError
from nixery_snap.evaluation import answers, index, warm
from nixery_snap.evaluation.warm import WarmProcess
from nixery_snap.image_service.annotations import NamedPaths
from nixery_snap.image_service.archive import look_into
from nixery_snap.image_service.references import NodeReference
from nixery_snap.image_service.registry_client import _PARAMETER, Reference, _parsed
from nixery_snap.image_service.registry_hosts import registry_hosts
from nixery_snap.imaging.layering import Popularity
from nixery_snap.imaging.rate_limit import RateLimit
from nixery_snap.imaging.request import ImageFormat, NameGrammar, SourceNames
from nixery_snap.imaging.resolution import Resolution
from nixery_snap.nix import listing, nar
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.closure_info import closure_info_entries
from nixery_snap.nix.content_address import ContentAddress, recomputes
from nixery_snap.nix.ground import ground_error
from nixery_snap.nix.hashes import Hash
from nixery_snap.nix.log_events import LogReader
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.signing import PublicKey, SecretKey, signers, verified_by
from nixery_snap.nix.store_path import StorePath, store_path_of
from nixery_snap.nix_stores.decompression import decompress, sniffed
from nixery_snap.nix_stores.path_info_command import NixPathInfos
from nixery_snap.nix_stores.small_http import Answer, Unusual, _Connection
from nixery_snap.object_store import keys
from nixery_snap.object_store.pins import StoredPins
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci import compression
from nixery_snap.oci.accept import Accept
from nixery_snap.oci.compression import Compression
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.index import Index
from nixery_snap.oci.manifest import Manifest
from nixery_snap.oci.media_types import OCI_MANIFEST
from nixery_snap.ports import BinaryCache, PackageSet, Program
from nixery_snap.registry.paging import page
from nixery_snap.sources.channel import _revision
from nixery_snap.sources.credentials import from_netrc
from nixery_snap.sources.download import WebUrl
from nixery_snap.sources.flake import parse_flake
from nixery_snap.sources.git_mirror import _ref_names, _Survey
from nixery_snap.sources.git_url import GitUrl
from nixery_snap.sources.unpack import UnpackLimits, decompressed, unpack
from nixery_snap.web.forwarded import TrustedProxies, asked_scheme, client_address, plain_host
from nixery_snap.web.ranges import UNSATISFIABLE, asked_range, not_modified

PATH = "/nix/store/" + "0" * 32 + "-hello-2.12"
KEY = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="
HELLO = AttributePath(("hello",))
DIGEST = "sha256:" + "a" * 64
LIMITS = UnpackLimits(bytes=2**22, entries=500)
MAX_RESULT_BYTES = 2**24


@dataclass(frozen=True)
class Target:
    """`parse` may raise `also` beside this program's own errors."""

    parse: Callable[[bytes], object]
    seeds: Sequence[bytes]
    also: tuple[type[Exception], ...] = ()


def text(content: bytes) -> str:
    """As headers and names arrive: whatever bytes, no two of which give the same text."""
    return content.decode("utf-8", "surrogateescape")


def header_text(content: bytes) -> str:
    """The same without what the tests' requests cannot hold."""
    return content.decode(errors="replace")


def drained(chunks: Any) -> int:
    """The size of all of it, which stays within bounds."""
    size = 0
    for chunk in chunks:
        size += len(chunk) if isinstance(chunk, bytes) else 1
        if size > MAX_RESULT_BYTES:
            break
    return size


def in_pieces(content: bytes) -> list[bytes]:
    """Cut where the content itself says, so that a failure can be repeated."""
    step = content[0] % 61 + 1 if content else 1
    return [content[start : start + step] for start in range(0, len(content), step)]


# --- names, digests, headers --------------------------------------------------------------------------

GRAMMAR = NameGrammar(
    ImageFormat.CLASSIC,
    ("x86_64-linux", "aarch64-linux"),
    {"shell": (AttributePath(("bash",)),)},
    SourceNames({"internal": "company"}, {"internal.example": "company"}),
)


def ranges(content: bytes) -> None:
    """Range, If-Range, If-None-Match: whatever they say, what is answered is a part of the content."""
    asked, condition, known = (header_text(content) + "\n\n").split("\n")[:3]
    headers = {"Range": asked, "If-None-Match": known} | ({"If-Range": condition} if condition else {})
    request = make_mocked_request("GET", "/", headers=headers)
    not_modified(request, '"x"')
    for size_bytes in (0, 1, 1000):
        found = asked_range(request, '"x"', size_bytes)
        if found not in {None, UNSATISFIABLE}:
            start, end = cast("tuple[int, int]", found)
            assert 0 <= start < end <= size_bytes


PROXIES = TrustedProxies([ip_network("127.0.0.0/8"), ip_network("2001:db8::/32")])


class Proxy:
    """The other end of a connection: one of PROXIES."""

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 1) if name == "peername" else default


def forwarded(content: bytes) -> None:
    """What proxies say, each header in a line: an address and a host fit for a URL come of it, or nothing."""
    names = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Host")
    headers = dict(zip(names, header_text(content).split("\n"), strict=False))
    request = make_mocked_request("GET", "/", headers=headers, transport=cast("Any", Proxy()))
    PROXIES.look(request)
    ip_network(client_address(request))
    assert asked_scheme(request) in {"http", "https"}
    assert not set(plain_host(request)) & set("/@?#\\ \t\r\n")


TOKENS = Tokens(bytes(32), "key", "service", 2**31, {"groups"})
AUTHENTICATOR = Authenticator(None, TOKENS, {}, RateLimit(0, 60, ""))
TOKEN = TOKENS.issue(Identity("alice", {"groups": ["dev"]}), ["a/b"])[0]


def authorization(content: bytes) -> None:
    """Nothing but the token itself makes somebody of a stranger."""
    with suppress(WrongCredentials):
        who = asyncio.run(AUTHENTICATOR.identify([text(content)], "client"))
        assert who.is_anonymous or TOKEN.rpartition(".")[0].encode() in content


def issuer(content: bytes) -> None:
    """Its list of keys."""
    with suppress(ValueError, RecursionError):  # as its reader has it
        value = json.loads(content)
        for one in value if isinstance(value, list) else [value]:
            _public_key(one)


def listing_query(content: bytes) -> None:
    """n, last and scope of a request's URL."""
    request = make_mocked_request("GET", f"/x?{text(content)}")
    _repositories(request.query.getall("scope", []))
    page(request, ["a", "b", "c"], str, lambda found: {"tags": found})


def image_name(content: bytes) -> None:
    name, _, rest = text(content).partition(":")
    tag, _, host = rest.partition("@")
    request = GRAMMAR.parse(name, tag or "latest", host)
    assert GRAMMAR.parse(request.name, request.tag, host) == request
    assert keys.name_of(keys.image_name(request.name)) == request.name


def digest(content: bytes) -> None:
    assert str(Digest.parse(text(content))) == text(content)


def accept(content: bytes) -> None:
    parsed = Accept.parse(text(content))
    assert all(0 <= quality <= 1 for quality in parsed.ranges.values())
    parsed.best((OCI_MANIFEST, "a/b"))


# --- manifests and records ----------------------------------------------------------------------------

MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "c/c", "digest": DIGEST, "size": 2},
        "layers": [
            {
                "mediaType": "l/l",
                "digest": DIGEST,
                "size": 3,
                "annotations": {
                    "containerd.io/snapshot/nix-layer": "true",
                    "containerd.io/snapshot/nix-store-path.0": PATH,
                },
            }
        ],
        "annotations": {"a": "b"},
    }
).encode()
INDEX = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"m/m","digest":"%s","size":5,"platform":{"architecture":"amd64","os":"linux"}}]}' % DIGEST.encode()  # fmt: skip # noqa: E501
PACKAGE = {
    "status": "package",
    "attribute": ["hello"],
    "name": "hello-2.12",
    "drvPath": PATH + ".drv",
    "outputs": {"out": PATH},
    "mainProgram": "hello",
    "licenses": ["MIT"],
    "priority": 5,
}


def manifest(content: bytes) -> None:
    parsed = Manifest.parse(content)
    len(NamedPaths.of(parsed))
    assert Manifest.parse(bytes(parsed)) == parsed


def index_of_images(content: bytes) -> None:
    assert Index.parse(bytes(Index.parse(content))) == Index.parse(content)


def in_store(content: bytes, key: str, ask: Callable[[ObjectStore], Any]) -> object:
    """What `ask` finds in a store that holds this object."""

    async def main() -> object:
        store = ObjectStore("memory://")
        await store.put(key, content)
        return await ask(store)

    return asyncio.run(main())


def record(content: bytes) -> object:
    key = keys.record("image", "0" * 64)
    return in_store(content, key, lambda store: StoredRecords(store, 1000).get("image", "0" * 64))


def pin(content: bytes) -> object:
    return in_store(content, keys.pin("s", "t"), lambda store: StoredPins(store).get("s", "t"))


# --- Nix's formats ------------------------------------------------------------------------------------

NARINFO = f"""StorePath: {PATH}
URL: nar/{"1" * 52}.nar.xz
Compression: xz
FileHash: sha256:{"1" * 52}
FileSize: 100
NarHash: sha256:{"0" * 52}
NarSize: 200
References: {PATH.rpartition("/")[2]} {"1" * 32}-glibc-2.39
Deriver: {"2" * 32}-hello-2.12.drv
Sig: cache.nixos.org-1:{"A" * 86}==
CA: fixed:r:sha256:{"0" * 52}
""".encode()
LISTING = b'{"version":1,"root":{"type":"directory","entries":{"bin":{"type":"directory","entries":{"hello":{"type":"regular","size":5,"executable":true,"narOffset":400}}},"l":{"type":"symlink","target":"bin"}}}}'  # fmt: skip # noqa: E501


def nar_of(*entries: tuple[bytes, str, bytes]) -> bytes:
    """A NAR by hand: of a directory with these (name, type, content)."""

    def token(value: bytes) -> bytes:
        return len(value).to_bytes(8, "little") + value + bytes(-len(value) % 8)

    out = [token(b"nix-archive-1"), *map(token, (b"(", b"type", b"directory"))]
    for name, kind, content in entries:
        out += map(token, (b"entry", b"(", b"name", name, b"node", b"(", b"type", kind.encode()))
        out += map(token, (b"contents", content) if kind == "regular" else (b"target", content))
        out += map(token, (b")", b")"))
    return b"".join([*out, token(b")")])


NARS = (
    nar_of((b"a", "regular", b"content"), (b"b", "symlink", b"a"), (b"c", "regular", b"x" * 100)),
    nar_of((b"long" * 20, "regular", bytes(70))),
)


def narinfo(content: bytes) -> None:
    parsed = NarInfo.parse(content)
    verified_by(parsed.info, [PublicKey.parse(KEY)])
    signers(parsed.info)
    recomputes(parsed.info)


def tree(content: bytes) -> None:
    listing.parse(content)
    listing.root(content)


def nar_archive(content: bytes) -> None:
    for entry in nar.read(iter(in_pieces(content))):
        drained(entry.content)
    nar.root(iter(in_pieces(content)))


def key(content: bytes) -> None:
    for kind in (PublicKey, SecretKey):
        with suppress(NixerySnapError):
            kind.parse(text(content))


def store_path(content: bytes) -> None:
    for parse in (StorePath.parse, StorePath.from_base_name, AttributePath.parse, Hash.parse):
        with suppress(NixerySnapError):
            assert parse(text(content))
    store_path_of(text(content))


def log_events(content: bytes) -> None:
    reader = LogReader()
    for line in content.split(b"\n"):
        reader.feed(line)
    assert all(letter.isprintable() or letter == "\n" for line in reader.plain for letter in line)


# --- archives and compressions ------------------------------------------------------------------------


def tar_of(*names: str, size: int = 30, **fields: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = size
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return file.getvalue()


TARS = (
    tar_of("a/b", "a/" + "long" * 60, "ü"),
    tar_of("a/l", type=tarfile.SYMTYPE, linkname="../../etc/passwd", size=0),
    tar_of("d", "d/h", type=tarfile.LNKTYPE, linkname="d", size=0),
)
OCI_ARCHIVE = io.BytesIO()
with tarfile.open(fileobj=OCI_ARCHIVE, mode="w") as _archive:
    for _name, _content in (
        ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        (
            "index.json",
            INDEX.replace(DIGEST.encode(), str(Digest.of(MANIFEST)).encode()).replace(
                b"m/m", OCI_MANIFEST.encode()
            ),
        ),
        (f"blobs/sha256/{Digest.of(MANIFEST).hex}", MANIFEST),
    ):
        _info = tarfile.TarInfo(_name)
        _info.size = len(_content)
        _archive.addfile(_info, io.BytesIO(_content))


def archive(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, "in")
        unpack(decompressed(io.BytesIO(content)), root, LIMITS, "fuzz", strip=True)
        for path in root.rglob("*"):
            assert path.is_symlink() or path.resolve().is_relative_to(root)


def image_archive(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        look_into(Path(file.name), "archive", "amd64")


def packed(content: bytes) -> None:
    for kind in ("xz", "zstd", "bzip2", "gzip", "br", "none", "odd"):
        with suppress(NixerySnapError):
            drained(decompress(iter(in_pieces(content)), kind))
    with suppress(NixerySnapError):
        assert len(sniffed(content, 1000)) <= 1000
    for layer_kind in Compression:
        with suppress(ValueError):
            drained(compression.decompress(in_pieces(content), layer_kind))


COMPRESSED = (
    gzip.compress(b"abc" * 100, mtime=0),
    lzma.compress(b"abc" * 100),
    b"".join(compression.compress([b"abc" * 100], Compression.ZSTD)),
    b"".join(compression.compress([b"abc" * 100], Compression.GZIP)) * 2,
    b"BZh91AY&SY" + bytes(20),
    b"\x0b\x02\x80abcdef\x03",
)


# --- what servers and programs answer -----------------------------------------------------------------


class Wire(asyncio.Transport):
    """Sends nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def http_answer(content: bytes) -> None:
    """As it comes in pieces, on a connection of SmallHttp's."""

    async def main() -> None:
        connection = _Connection(asyncio.get_running_loop())
        connection.connection_made(Wire())
        heard: list[Answer | Exception] = []
        connection.ask(b"", 1000, heard.append)
        for piece in in_pieces(content):
            connection.data_received(piece)
        connection.eof_received()
        connection.connection_lost(None)
        [said] = heard
        if isinstance(said, Exception):
            raise said
        assert len(said.body) <= 2**20

    asyncio.run(main())


ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.0 404 Not Found\r\nContent-Type: text/plain\r\n\r\nno",
    b"HTTP/1.1 304 Not Modified\r\nRetry-After: 5\r\n\r\n",
)


class Repl:
    """Implements the ports NixRunner and NixProcess: prints this, whatever it is told."""

    def __init__(self, said: bytes) -> None:
        self._lines = [line + b"\n" for line in said.split(b"\n")]
        self.returncode = 1
        self.resident_bytes = 0

    async def start(self, *arguments: object, **options: object) -> Repl:
        return self

    async def run(self, *arguments: object, **options: object) -> Program:
        return Program(0, b"".join(self._lines), b"")

    async def write(self, content: bytes) -> None:
        # What a repl that works would say first, so that some of it is taken for an answer.
        mark = content.rstrip(b'\n"')[-32:]
        self._lines.append(b'"' + mark + b'"\n')

    async def read_line(self) -> bytes:
        return self._lines.pop(0) if self._lines else b""

    async def wait(self) -> int:
        return 1

    async def end(self) -> None:
        pass


def repl(content: bytes) -> None:
    process = WarmProcess.__new__(WarmProcess)
    process._process, process._last_lines, process.answered = cast("Any", Repl(content)), [], 0
    asyncio.run(process.answer(HELLO))


def evaluation(content: bytes) -> None:
    """Our expression makes the answer's form; what a package set says stands in its values."""
    fields = [field.decode(errors="replace") for field in (content + b"\n" * 5).split(b"\n")]
    answer = PACKAGE | {"drvPath": fields[0], "outputs": {fields[1]: fields[2]}, "mainProgram": fields[3]}
    asyncio.run(answers.result(HELLO, answer, {}))
    message, package_set = content.decode(errors="replace"), PackageSet(Path("/checkouts/x"))
    answers.failure(HELLO, "x86_64-linux", message, package_set)
    ground_error(message)
    answers.whole_set_error(message, package_set)


def path_infos(content: bytes) -> None:
    asked = [StorePath.parse(PATH)]
    asyncio.run(NixPathInfos(cast("Any", Repl(content))).path_infos(asked))


def resolution(content: bytes) -> None:
    Resolution.from_json(json.loads(content))


def refs(content: bytes) -> None:
    _ref_names(io.BytesIO(content))
    _Survey(LIMITS).read(io.BytesIO(content))


def urls(content: bytes) -> None:
    for parse in (GitUrl.parse, WebUrl.parse, lambda spec: parse_flake(spec, "https://github.com")):
        with suppress(ValueError):
            parse(text(content))


def netrc(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        from_netrc(Path(file.name), "host.example")


def hosts(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "registry.example", "hosts.toml")
        file.parent.mkdir()
        file.write_bytes(content)
        registry_hosts(Path(directory), "registry.example")


def references(content: bytes) -> None:
    with suppress(NixerySnapError):
        NodeReference.parse(text(content))
    dict(_PARAMETER.findall(text(content)))
    Reference.parse(text(content))


class NoCache:
    """Half of the port BinaryCache: has everything."""

    def narinfo_at_once(self, hash_part: str) -> bytes | None:
        assert len(hash_part) == 32
        assert hash_part.isalnum()
        return NARINFO


AT_ONCE = narinfos_at_once(cast("BinaryCache", NoCache()), "/nix-cache")


def request_at_once(content: bytes) -> None:
    """Only a plain request may be answered before it is parsed."""
    if AT_ONCE(content) is not None:
        assert content.startswith((b"GET /nix-cache/", b"HEAD /nix-cache/"))
        assert content.find(b"\r\n\r\n") == len(content) - 4
        for header in (
            b"content-length",
            b"transfer-encoding",
            b"range",
            b"if-",
            b"authorization",
            b"cookie",
        ):
            assert b"\n" + header not in content.lower()


TARGETS: dict[str, Target] = {
    "image names": Target(
        image_name,
        [b"hello", b"nix-snapshotter/internal/shell/arm64/git.doc/x_y:v1@internal.example:5000", b"a/b/c"],
    ),
    "digests": Target(digest, [DIGEST.encode(), b"sha512:" + b"0" * 128]),
    "Accept": Target(accept, [b"application/vnd.oci.image.index.v1+json;q=0.5, */*;q=0.1, a/b"]),
    "Range": Target(
        ranges, [b'bytes=0-9\n"x"\n"y", W/"x"', b"bytes=-5", b"bytes=7-", b"bytes=1-2,4-5", b"\n\n*"]
    ),
    "X-Forwarded": Target(
        forwarded,
        [
            b"192.0.2.1, 127.0.0.2\nhttps\nregistry.example:5000\nx",
            b"[2001:db8::1]:80, ::ffff:127.0.0.1\nhttp\n[::1]:80\n",
            b"fe80::1%eth0, unknown",
        ],
    ),
    "Authorization": Target(
        authorization, [f"Bearer {TOKEN}".encode(), b"Basic YWxpY2U6cGFzcw==", b"basic Og=="]
    ),
    "keys of issuers": Target(
        issuer,
        [
            b'{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}',
            b'[{"kty":"EC","crv":"P-256","use":"sig","x":"AA","y":"AA"},{"kty":"RSA","n":"AQAB","e":"AQAB"}]',
        ],
    ),
    "queries": Target(listing_query, [b"n=2&last=a", b"scope=repository:a/b:pull,push&scope=x:y:z&n=1"]),
    "manifests": Target(manifest, [MANIFEST]),
    "image indexes": Target(index_of_images, [INDEX]),
    "records": Target(record, [MANIFEST, b'{"a":[1,2,{"b":null}]}']),
    "pins": Target(pin, [b'{"revision":"abc","url":null,"variant":"","made":12.5}']),
    "resolutions": Target(
        resolution,
        [json.dumps({"requested": [PACKAGE], "base": []}).encode()],
        (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ),  # of another form: no record of ours
    ),
    "popularity": Target(Popularity.parse, [b'{"glibc":500,"hello":1}']),
    "narinfo": Target(narinfo, [NARINFO, NARINFO.replace(b"CA: fixed:r", b"CA: text")]),
    "listings": Target(tree, [LISTING]),
    "NAR": Target(nar_archive, NARS),
    "keys": Target(key, [KEY.encode(), b"name:" + b"A" * 86 + b"=="]),
    "store paths": Target(
        store_path,
        [PATH.encode(), b"python3.pkgs.requests", b"sha256:" + b"0" * 52, b"sha256-" + b"A" * 43 + b"="],
    ),
    "content addresses": Target(
        lambda c: ContentAddress.parse(text(c)), [b"fixed:r:sha256:" + b"0" * 52, b"text:sha256:" + b"1" * 52]
    ),
    "closure-info": Target(lambda c: list(closure_info_entries(c)), [PATH.encode() + b"\n"]),
    "log events": Target(
        log_events,
        [
            b'@nix {"action":"start","id":1,"type":105,"fields":["/nix/store/x.drv"],"text":"building"}\n'
            b'@nix {"action":"result","id":1,"type":101,"fields":["\x1b[31mline"]}\n'
            b'@nix {"action":"msg","level":0,"msg":"error","raw_msg":"why"}\nplain\x1b[0m'
        ],
    ),
    "tar archives": Target(
        archive, [*TARS, gzip.compress(TARS[0], mtime=0), lzma.compress(TARS[1])], (OSError,)
    ),
    "image archives": Target(
        image_archive, [OCI_ARCHIVE.getvalue(), gzip.compress(OCI_ARCHIVE.getvalue(), mtime=0)]
    ),
    "compressions": Target(packed, COMPRESSED),
    "HTTP answers": Target(http_answer, ANSWERS, (Unusual, ConnectionError)),
    "nix repl": Target(
        repl,
        [b'nix-repl> x\n"{\\"results\\": [], \\"attributes\\": {}}"\n', b'"x"\nerror: y'],
        (
            warm.Died,
            ValueError,
            TypeError,
            RecursionError,
        ),  # another form than our expression gives its answers
    ),
    "evaluation": Target(
        evaluation,
        [
            f"{PATH}.drv\nout\n{PATH}\nhello".encode(),
            b"error: Package 'x' has an unfree license ('u'), refusing to evaluate.\n at /checkouts/x/default.nix:1",
            b"error: attribute 'helo' missing\n Did you mean hello?",
        ],
    ),
    "path infos": Target(
        path_infos,
        [
            b'{"%s":{"narHash":"sha256-%s=","narSize":5,"references":[],"ca":null}}'
            % (PATH.encode(), b"A" * 43),
            b'[{"path":"%s","narHash":"sha256:%s","narSize":5,"references":["%s"],"signatures":["a:b"],"valid":true}]'
            % (PATH.encode(), b"0" * 52, PATH.encode()),
        ],
    ),
    "parts of an index": Target(index.unpack, [index.pack([b"a\tb", b"c"]), index.pack([])]),
    "git refs and trees": Target(
        refs,
        [
            b"a" * 40 + b"\trefs/heads/main\n",
            b"160000 commit " + b"a" * 40 + b"\tsub\x00100644 blob " + b"b" * 40 + b"\tf\x00",
        ],
    ),
    "channel revisions": Target(lambda c: _revision(c, "https://c.example?secret"), [b"a" * 40 + b"\n"]),
    "URLs of sources": Target(
        urls,
        [
            b"git+https://u:p@host.example/x.git?ref=main",
            b"github:NixOS/nixpkgs/main?dir=a",
            b"https://h/x.tar.xz",
        ],
    ),
    "netrc": Target(netrc, [b"machine host.example login u password p\ndefault login a password b\n"]),
    "hosts.toml": Target(
        hosts,
        [
            b'server = "https://r.example"\n[host."http://127.0.0.1:5000"]\ncapabilities = ["pull","resolve"]\n'
            b'skip_verify = true\nclient = [["a", "b"]]\n[host."http://127.0.0.1:5000".header]\nx = ["a","b"]\n',
            b'server = "https://r.example"\n',
        ],
    ),
    "references": Target(
        references,
        [
            b"nix:0" + PATH.encode() + b".tar:latest",
            b"registry.example:5000/a/b:v1@" + DIGEST.encode(),
            b'Bearer realm="https://a",service="b"',
        ],
    ),
    "answers of registries": Target(_parsed, [b'{"token":"abc"}']),
    "requests at once": Target(
        request_at_once,
        [
            b"GET /nix-cache/"
            + b"0" * 32
            + b".narinfo HTTP/1.1\r\nHost: x\r\nUser-Agent: Nix/2\r\nAccept: */*\r\n\r\n"
        ],
    ),
}
