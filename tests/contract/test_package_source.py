"""Every kind of source, as settings open it and, where pins are remembered around it, by itself."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nixery_snap.errors import SourceError, TagNotFound
from nixery_snap.object_store.pins import StoredPins
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import PackageSource, Pin, PinStore
from nixery_snap.sources.opening import SourceOptions, open_source
from tests.integration.sources_git import Repository, git_server, http_backend, ssh_server
from tests.integration.sources_web import Answer, WebServer, archive

FILES = {"default.nix": "{ }: { }", "flake.nix": "{ outputs = _: { }; }"}
KINDS = ["path", "path with overlay", "git+file", "git+http", "git+ssh", "channel", "tarball"]
KINDS += [f"flake of {kind}" for kind in ("path", "git+file", "tarball", "github")]
COMMITS = [f"{number:040x}" for number in range(1, 9)]


@dataclass
class World:
    """Where a source's package set is, and how it changes there."""

    spec: str
    edit: Callable[[str], object]
    """Replaces the content of default.nix."""
    options: dict[str, object] = field(default_factory=dict)

    def open(self, cache: Path, ttl_seconds: float, pins: PinStore) -> PackageSource:
        options = SourceOptions(
            cache,
            pin_ttl_seconds=ttl_seconds,
            pin_stale_seconds=0,
            **self.options,  # type: ignore[arg-type]
        )
        return open_source(self.spec, options, pins)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for sockets."""
    with tempfile.TemporaryDirectory(prefix="nixsnap-") as directory:
        yield Path(directory)


def a_path(tmp_path: Path) -> World:
    directory = tmp_path / "packages"
    directory.mkdir()
    for name, text in FILES.items():
        (directory / name).write_text(text)
    return World(f"path:{directory}", (directory / "default.nix").write_text)


def a_repository(tmp_path: Path) -> tuple[Repository, Callable[[str], object]]:
    repository = Repository.create(tmp_path / "served/owner/repository.git")
    repository.commit(FILES)
    return repository, lambda text: repository.commit({"default.nix": text})


def a_channel(server: WebServer) -> World:
    commits = iter(COMMITS)

    def edit(text: str) -> None:
        commit = next(commits)
        server.add_release(f"24.05.{commit}", commit, FILES | {"default.nix": text})
        server.add_commit(commit, FILES | {"default.nix": text})
        server.move_channel("nixos-24.05", f"24.05.{commit}")

    edit(FILES["default.nix"])
    urls = {"channels_url": server.url, "commits_url": f"{server.url}/archive"}
    return World("channel:nixos-24.05", edit, urls)


def a_tarball(server: WebServer) -> World:
    def edit(text: str) -> None:
        server.pages["/set.tar.gz"] = Answer(archive(FILES | {"default.nix": text}), etag=f'"{text}"')

    edit(FILES["default.nix"])
    return World(f"tarball:{server.url}/set.tar.gz", edit)


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    kind: str = request.param
    plain = kind.removeprefix("flake of ")
    with ExitStack() as stack:
        if plain.startswith("path"):
            made = a_path(tmp_path)
            if "overlay" in kind:
                (tmp_path / "overlay.nix").write_text("final: previous: { }")
                made.options = {"overlays": (tmp_path / "overlay.nix",)}
        elif plain in {"channel", "tarball"}:
            server = stack.enter_context(WebServer().running())
            made = a_channel(server) if plain == "channel" else a_tarball(server)
        else:
            repository, edit = a_repository(tmp_path)
            made = World(repository.url, edit)
            if plain == "git+ssh":
                sshd = stack.enter_context(ssh_server(request.getfixturevalue("short") / tmp_path.name))
                made.spec = sshd.url(repository)
                made.options = {"ssh_key_file": sshd.key, "ssh_known_hosts_file": sshd.known_hosts}
            elif plain != "git+file":
                http_backend()
                backend = stack.enter_context(git_server(tmp_path / "served"))
                made.spec = backend.url(repository)
                if plain == "github":
                    made.spec = "github:owner/repository"
                    made.options = {"github_url": f"http://{backend.host}"}
        if kind.startswith("flake of "):
            made.spec = f"flake:{made.spec.removeprefix('tarball:')}"
        yield made


@pytest.fixture
def pins() -> PinStore:
    return StoredPins(ObjectStore("memory://"))


@pytest.fixture
def source(world: World, tmp_path: Path, pins: PinStore) -> Iterator[PackageSource]:
    """Asks the world for each pin of a moving tag."""
    source = world.open(tmp_path / "cache", 0, pins)
    yield source
    source.close()


@pytest.fixture
def remembering(world: World, tmp_path: Path, pins: PinStore) -> Iterator[PackageSource]:
    source = world.open(tmp_path / "cache", 300, pins)
    yield source
    source.close()


async def test_a_pin_holds_as_long_as_nothing_changes(source: PackageSource) -> None:
    pin = await source.pin("latest")
    assert pin.revision
    assert await source.pin("latest") == pin
    assert source.current("latest") in {pin, None}


async def test_a_pin_can_be_known_at_once(remembering: PackageSource) -> None:
    assert remembering.current("latest") is None, "never what no pin has told"
    pin = await remembering.pin("latest")
    assert remembering.current("latest") == pin


async def test_what_changes_gets_another_pin(source: PackageSource, world: World) -> None:
    before = await source.pin("latest")
    world.edit("{ }: { a = 1; }")
    assert source.current("latest") is None
    assert (await source.pin("latest")).revision != before.revision


async def test_a_checkout_is_for_ever(source: PackageSource, world: World) -> None:
    pin = await source.pin("latest")
    checkout = await source.checkout(pin)
    files = {path.name for path in checkout.directory.iterdir()}
    assert files == set(FILES)
    world.edit("{ }: { a = 1; }")
    after = await source.pin("latest")
    assert (checkout.directory / "default.nix").read_text() == FILES["default.nix"]
    assert await source.checkout(pin) == checkout
    changed = await source.checkout(after)
    assert (changed.directory / "default.nix").read_text() == "{ }: { a = 1; }"
    assert {path.name for path in changed.directory.iterdir()} == files


async def test_a_checkout_says_what_it_is_of(source: PackageSource, world: World) -> None:
    pin = await source.pin("latest")
    checkout = await source.checkout(pin)
    assert checkout.pin == pin
    assert checkout.is_flake == world.spec.startswith("flake:")
    assert len(checkout.overlays) == len(world.options.get("overlays", ()))  # type: ignore[arg-type]
    assert bool(pin.variant) == (checkout.is_flake or bool(checkout.overlays))


async def test_checkouts_at_the_same_time_are_one(source: PackageSource) -> None:
    pin = await source.pin("latest")
    found = await asyncio.gather(*(source.checkout(pin) for _ in range(10)))
    assert len({one.directory for one in found}) == 1


async def test_a_checkout_that_was_removed_is_made_again(source: PackageSource, tmp_path: Path) -> None:
    pin = await source.pin("latest")
    await source.checkout(pin)
    shutil.rmtree(tmp_path / "cache")
    assert (await source.checkout(pin)).directory.is_dir()


async def test_a_revision_can_be_asked_for_as_a_tag(source: PackageSource) -> None:
    pin = await source.pin("latest")
    again = await source.pin(pin.revision)
    assert (again.revision, again.variant) == (pin.revision, pin.variant)
    assert source.current(pin.revision) == again
    assert (await source.checkout(again)).directory.is_dir()


@pytest.mark.parametrize(
    "tag",
    [
        "no-such-tag",
        "-x",
        "--upload-pack=touch /tmp/x",
        "a..b",
        "a b",
        "",
        "\n",
        "HEAD^",
        "refs/heads/*",
        "x" * 999,
    ],
)
async def test_a_tag_that_is_none(source: PackageSource, tag: str) -> None:
    with pytest.raises(TagNotFound):
        await source.pin(tag)
    assert source.current(tag) is None


@pytest.mark.parametrize("revision", ["0" * 40, "0" * 64, "..", "../../etc", "", "-x"])
async def test_a_revision_that_is_not_here(source: PackageSource, revision: str) -> None:
    pin = await source.pin("latest")
    with pytest.raises((SourceError, TagNotFound)):
        await source.checkout(Pin(revision, None, pin.variant))


async def test_tags_are_what_can_be_asked_for(source: PackageSource) -> None:
    tags = await source.tags()
    assert "latest" in tags
    assert list(tags) == sorted(set(tags), key=str.encode)
    for tag in tags:
        assert await source.pin(tag)


async def test_another_process_finds_the_same(
    source: PackageSource, world: World, tmp_path: Path, pins: PinStore
) -> None:
    other = world.open(tmp_path / "another", 0, pins)
    try:
        pin = await source.pin("latest")
        assert await other.pin("latest") == pin
        mine, theirs = await source.checkout(pin), await other.checkout(pin)
        assert mine.directory != theirs.directory
        for name in FILES:
            assert (mine.directory / name).read_bytes() == (theirs.directory / name).read_bytes()
    finally:
        other.close()


def test_the_name_says_something(source: PackageSource) -> None:
    assert source.name
