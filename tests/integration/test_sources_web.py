"""Package sources on a real web server: channels, archives, flakes; every request is counted."""

import asyncio
import base64
import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from nixery_snap.errors import SettingsError, SourceError, TagNotFound
from nixery_snap.object_store.pins import StoredPins
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import PackageSource, Pin
from nixery_snap.sources.opening import SourceOptions, open_source
from tests.integration.sources_web import Answer, WebServer, archive
from tests.unit.sources.archives import compress

SECRET = "s3cret-token-of-the-tests"
ONE, TWO, THREE = (f"{number:040x}" for number in (1, 2, 3))
CHANNEL = "channel:nixos-24.05"
Open = Callable[..., PackageSource]


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer().running() as running:
        yield running


@pytest.fixture
def channels(server: WebServer) -> WebServer:
    """The channel nixos-24.05 at its first release, and nixos-unstable at another."""
    server.add_release("24.05.1", ONE, {"default.nix": "one", ".git-revision": ONE})
    server.move_channel("nixos-24.05", "24.05.1")
    server.add_release("unstable.3", THREE, {"default.nix": "three"})
    server.move_channel("nixos-unstable", "unstable.3")
    return server


@pytest.fixture
def opened(tmp_path: Path, server: WebServer) -> Iterator[Open]:
    pins = StoredPins(ObjectStore("memory://"))
    made: list[PackageSource] = []

    def open_one(spec: str, **options: Any) -> PackageSource:
        urls = {"channels_url": server.url, "commits_url": f"{server.url}/archive"}
        times = {"pin_ttl_seconds": 0, "pin_stale_seconds": 0}
        options = {"cache_directory": tmp_path / "cache"} | urls | times | options
        made.append(open_source(spec, SourceOptions(**options), pins))
        return made[-1]

    yield open_one
    for source in made:
        source.close()


async def text(source: PackageSource, tag: str, file: str = "default.nix") -> str:
    return ((await source.checkout(await source.pin(tag))).directory / file).read_text()


# --- channels ---------------------------------------------------------------------------------------


async def test_a_channel_that_moves(channels: WebServer, opened: Open) -> None:
    source = opened(CHANNEL)
    first = await source.pin("latest")
    assert first == Pin(ONE, f"{channels.url}/releases/24.05.1")
    channels.add_release("24.05.2", TWO, {"default.nix": "two"})
    channels.move_channel("nixos-24.05", "24.05.2")
    assert (await source.pin("latest")).revision == TWO
    assert await text(source, "latest") == "two"
    checkout = await source.checkout(first)
    assert (checkout.directory / "default.nix").read_text() == "one", "from the release that it was"


async def test_a_channel_costs_few_requests(channels: WebServer, opened: Open) -> None:
    source = opened(CHANNEL, pin_ttl_seconds=300)
    pins = await asyncio.gather(*(source.pin("latest") for _ in range(20)))
    await asyncio.gather(*(source.checkout(pin) for pin in pins))
    assert channels.asked == [
        "/nixos-24.05/git-revision",
        "/releases/24.05.1/git-revision",
        "/releases/24.05.1/nixexprs.tar.xz",
        "/releases/24.05.1/git-revision",
    ]


async def test_other_channels_and_commits(channels: WebServer, opened: Open) -> None:
    channels.add_commit(TWO, {"default.nix": "the commit two"})
    source = opened(CHANNEL, channels=("nixos-unstable", "nixos-gone"))
    assert await text(source, "nixos-unstable") == "three"
    assert await text(source, "nixos-24.05") == "one"
    assert (await source.pin(TWO)).url == f"{channels.url}/archive/{TWO}.tar.gz"
    assert await text(source, TWO) == "the commit two"
    assert list(await source.tags()) == ["latest", "nixos-24.05", "nixos-gone", "nixos-unstable"]
    for tag in ("nixos-gone", "nixos-23.11", TWO[:10]):
        with pytest.raises(TagNotFound):
            await source.pin(tag)
    with pytest.raises(TagNotFound, match="40 digits"):
        await text(source, "f" * 40)
    assert not any("23.11" in path for path in channels.asked), "what is not allowed is not asked for"


async def test_a_server_without_redirects_that_moves_meanwhile(channels: WebServer, opened: Open) -> None:
    """One release's revision never gets another's content."""
    for name in ("git-revision", "nixexprs.tar.xz"):
        channels.pages[f"/mirrored/{name}"] = channels.pages[f"/releases/24.05.1/{name}"]
    source = opened("channel:mirrored")
    pin = await source.pin("latest")
    channels.pages["/mirrored/git-revision"] = Answer(TWO.encode())
    channels.pages["/mirrored/nixexprs.tar.xz"] = Answer(archive({"default.nix": "two"}, "xz"))
    with pytest.raises(TagNotFound):
        await source.checkout(pin)
    channels.add_commit(ONE, {"default.nix": "one, as a commit"})
    assert ((await source.checkout(pin)).directory / "default.nix").read_text() == "one, as a commit"
    assert await text(source, "latest") == "two"


async def test_a_release_that_is_gone(channels: WebServer, opened: Open) -> None:
    source = opened(CHANNEL)
    pin = await source.pin("latest")
    del channels.pages["/releases/24.05.1/nixexprs.tar.xz"]
    channels.add_commit(ONE, {"default.nix": "one, as a commit"})
    assert ((await source.checkout(pin)).directory / "default.nix").read_text() == "one, as a commit"


@pytest.mark.parametrize("content", [b"", b"<html>", b"0" * 39, b"\xff" * 40, b"0" * 100_000])
async def test_a_revision_that_is_none(channels: WebServer, opened: Open, content: bytes) -> None:
    channels.pages["/releases/24.05.1/git-revision"] = Answer(content)
    with pytest.raises(SourceError, match=r"no commit|sends more"):
        await opened(CHANNEL).pin("latest")


async def test_a_channel_offline(channels: WebServer, opened: Open) -> None:
    pin = await opened(CHANNEL).pin("latest")
    channels.down = True
    restarted = opened(CHANNEL)
    with structlog.testing.capture_logs() as logs:
        assert await restarted.pin("latest") == pin
    assert [line["event"] for line in logs] == ["old-pin-served"]
    with pytest.raises(SourceError, match="503"):
        await opened("channel:nixos-unstable").pin("latest")


# --- archives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gz", "xz", "bz2", "zst", ""])
async def test_compressions(server: WebServer, opened: Open, compression: str) -> None:
    plain = archive({"default.nix": "packed", "deep/er/file": "x"}, "")
    server.pages["/set"] = Answer(compress(plain, compression))
    assert await text(opened(f"tarball:{server.url}/set"), "latest") == "packed"


async def test_what_has_not_changed_is_not_sent_again(server: WebServer, opened: Open) -> None:
    server.pages["/set.tar"] = Answer(archive({"default.nix": "1"}), etag='"1"')
    spec = f"tarball:{server.url}/set.tar"
    source = opened(spec)
    first = await source.pin("latest")
    restarted = opened(spec)
    assert await restarted.pin("latest") == await source.pin("latest") == first
    assert [headers.get("If-None-Match") for headers in server.headers] == [None, '"1"', '"1"']
    server.pages["/set.tar"] = Answer(archive({"default.nix": "2"}), etag='"2"')
    second = await source.pin("latest")
    assert await text(source, "latest") == "2"
    assert ((await source.checkout(first)).directory / "default.nix").read_text() == "1"
    server.pages["/set.tar"].etag = '"3"'
    assert await source.pin("latest") == second, "the same content is the same revision"
    del server.pages["/set.tar"]
    with pytest.raises(TagNotFound, match="nothing at"):
        await source.pin("latest")


async def test_what_the_server_has_no_more(server: WebServer, opened: Open, tmp_path: Path) -> None:
    server.pages["/set.tar"] = Answer(archive({"default.nix": "1"}))
    source = opened(f"tarball:{server.url}/set.tar")
    pin = await source.pin("latest")
    server.pages["/set.tar"] = Answer(archive({"default.nix": "2"}))
    other = opened(f"tarball:{server.url}/set.tar", cache_directory=tmp_path / "empty")
    with pytest.raises(TagNotFound, match="use latest"):
        await other.checkout(pin)


async def test_archives_that_are_none(server: WebServer, opened: Open, tmp_path: Path) -> None:
    whole = archive({"default.nix": "x" * 10_000})
    for content in (b"", b"<html>", whole[:-20], gzip.compress(b"x" * 1000), b"\xfd7zXZ\0 and no more"):
        server.pages["/set"] = Answer(content)
        with pytest.raises(SourceError, match="cannot be unpacked"):
            await opened(f"tarball:{server.url}/set").pin("latest")
    assert list((tmp_path / "cache").rglob(".new-*")) == [], "nothing is left behind"


async def test_too_much(server: WebServer, opened: Open) -> None:
    server.pages["/set"] = Answer(archive({"default.nix": "x" * 10_000_000}, "xz"))
    assert len(server.pages["/set"].content) < 5_000
    spec = f"tarball:{server.url}/set"
    with pytest.raises(SourceError, match="more than 1000000 bytes"):
        await opened(spec, unpack_max_bytes=1_000_000).pin("latest")
    with pytest.raises(SourceError, match="sends more than 1000 bytes"):
        await opened(spec, fetch_max_bytes=1000).pin("latest")


async def test_hostile_entries(server: WebServer, opened: Open, tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as file:
        link = tarfile.TarInfo("set/out")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        file.addfile(link)
        through = tarfile.TarInfo("set/out/written")
        through.size = 1
        file.addfile(through, io.BytesIO(b"x"))
    server.pages["/set"] = Answer(content.getvalue())
    with pytest.raises(SourceError, match="there twice"):
        await opened(f"tarball:{server.url}/set").pin("latest")
    assert not (tmp_path / "written").exists()


async def test_a_server_that_never_ends(opened: Open) -> None:
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        await reader.read()
        writer.close()
        hung_up.set()

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for seconds in (0.3, 3, 30):
        with pytest.raises(SourceError, match="in time"):
            await opened(f"tarball:http://127.0.0.1:{port}/x", fetch_timeout_seconds=seconds).pin("latest")
        if asked.is_set():  # on a slow machine even that may take longer
            break
    await hung_up.wait()
    server.close()
    await server.wait_closed()


# --- credentials ------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["token", "netrc", "in the URL"])
async def test_credentials(server: WebServer, opened: Open, tmp_path: Path, given: str) -> None:
    (tmp_path / "token").write_text(f"me:{SECRET}\n")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    wanted = f"Basic {base64.b64encode(f'me:{SECRET}'.encode()).decode()}"
    with WebServer().running() as other:
        other.pages["/real"] = Answer(archive({"default.nix": "x"}))
        server.pages["/set"] = Answer(archive({"default.nix": "x"}), wanted=wanted)
        server.pages["/elsewhere"] = Answer(redirect_to=f"{other.url}/real", wanted=wanted)
        for path in ("set", "elsewhere"):
            host = server.url.removeprefix("http://")
            login = f"me:{SECRET}@" if given == "in the URL" else ""
            options = {} if login else {f"{given}_file": tmp_path / given}
            source = opened(f"tarball:http://{login}{host}/{path}?signature={SECRET}", **options)
            with structlog.testing.capture_logs() as logs:
                server.pages[f"/{path}?signature={SECRET}"] = server.pages[f"/{path}"]
                pin = await source.pin("latest")
                await source.checkout(pin)
            assert SECRET not in f"{pin} {source.name} {logs} {source!r}"
        assert other.headers
        assert not any("Authorization" in headers for headers in other.headers)
    for file in (tmp_path / "cache").rglob("*"):
        assert not file.is_file() or SECRET not in file.read_text(errors="replace")


async def test_credentials_that_are_refused(server: WebServer, opened: Open) -> None:
    server.pages["/set"] = Answer(b"", wanted="Basic x")
    url = server.url.replace("://", f"://me:{SECRET}@")
    with pytest.raises(SourceError, match="token_file") as caught:
        await opened(f"tarball:{url}/set").pin("latest")
    assert SECRET not in str(caught.value)


# --- flakes and what the settings add ---------------------------------------------------------------


async def test_a_flake_below_the_top(server: WebServer, opened: Open) -> None:
    server.pages["/set.tar.gz"] = Answer(archive({"nix/flake.nix": "{ }", "default.nix": "x"}))
    below = opened(f"flake:{server.url}/set.tar.gz?dir=nix")
    pin = await below.pin("latest")
    checkout = await below.checkout(pin)
    assert checkout.is_flake
    assert (checkout.directory / "flake.nix").read_text() == "{ }"
    top = opened(f"flake:{server.url}/set.tar.gz")
    assert (await top.pin("latest")).variant not in {pin.variant, ""}
    with pytest.raises(TagNotFound, match=r"no flake\.nix"):
        await top.checkout(await top.pin("latest"))


async def test_overlays_are_what_the_variant_says(server: WebServer, opened: Open, tmp_path: Path) -> None:
    server.pages["/set.tar"] = Answer(archive({"default.nix": "x"}))
    overlay = tmp_path / "overlay.nix"
    overlay.write_text("final: previous: { a = 1; }")
    spec = f"tarball:{server.url}/set.tar"
    variants = {(await opened(spec).pin("latest")).variant}
    source = opened(spec, overlays=(overlay,))
    pin = await source.pin("latest")
    overlay.write_text("final: previous: { a = 2; }")
    checkout = await source.checkout(pin)
    assert [path.read_text() for path in checkout.overlays] == ["final: previous: { a = 1; }"]
    checkout.overlays[0].unlink()
    assert (await source.checkout(pin)).overlays[0].is_file(), "made again"
    assert checkout.pin == pin
    for options in (
        {"overlays": (overlay,)},
        {"overlays": (overlay, overlay)},
        {"nixpkgs_config": {"allowUnfree": True}},
        {"nixpkgs_config": {"allowUnfree": False}},
        {"allows_builds": True},
        {"restricted": True},
    ):
        other = opened(spec, **options)
        changed = await other.pin("latest")
        assert changed.revision == pin.revision
        variants.add(changed.variant)
        with pytest.raises(TagNotFound, match="settings"):
            await other.checkout(pin)
    assert len(variants | {pin.variant}) == 8
    assert "" in variants


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("", {}),
        ("path:", {}),
        ("path:/nowhere", {}),
        ("git+https://", {}),
        ("git+https://host", {}),
        ("git+ext://sh -c id", {}),
        ("git+ssh://-oProxyCommand=id/x", {}),
        ("git+ssh://host:0/x", {}),
        ("git+file://host/x", {}),
        ("git+https://host/x?token=abc", {}),
        ("git+https://host/x?ref=-x", {}),
        ("git+https://host/x?rev=abc", {}),
        ("channel:../x", {}),
        ("channel:", {}),
        ("tarball:ftp://host/x", {}),
        ("tarball:/etc/passwd", {}),
        ("tarball:https://host:99999/x.tar", {}),
        ("tarball:https://host:0/x.tar", {}),
        ("flake:nixpkgs", {}),
        ("flake:path:/tmp?dir=../etc", {}),
        ("flake:git+https://host/x#hello", {}),
        ("svn:x", {}),
        ("channel:x", {"overlays": (Path("/nowhere"),)}),
        ("channel:x", {"channels_url": "nowhere"}),
        ("channel:x", {"channels": ("a/b",)}),
    ],
)
def test_settings_that_cannot_be(opened: Open, spec: str, options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        opened(spec, key="sources.internal.spec", **options)
    assert caught.value.key.startswith("sources.internal")
    assert str(caught.value)


def test_settings_errors_tell_no_secret(opened: Open) -> None:
    for spec in (
        f"git+https://me:{SECRET}@host",
        f"git+ssh://me:{SECRET}@host/x",
        f"tarball:ftp://me:{SECRET}@x/y",
    ):
        with pytest.raises(SettingsError) as caught:
            opened(spec)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("program", ["git", "git-lfs", "ssh"])
def test_programs_that_are_missing(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    present = {"git", "git-lfs", "ssh"} - {program}
    for name in present:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=f"{program} was not found"):
        opened("git+ssh://host/x", lfs=True)
