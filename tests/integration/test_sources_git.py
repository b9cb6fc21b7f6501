"""Package sources in real git repositories, over file, HTTP and ssh; what is fetched is counted."""

import asyncio
import base64
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from nixery_snap.errors import SourceError, TagNotFound
from nixery_snap.object_store.pins import StoredPins
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import PackageSource, Pin
from nixery_snap.sources.opening import SourceOptions, open_source
from tests.integration.need import need
from tests.integration.processes import run, wait_until
from tests.integration.sources_git import (
    ENVIRONMENT,
    Counted,
    Repository,
    Server,
    SshServer,
    count_git,
    git_server,
    http_backend,
    ssh_server,
)

SECRET = "s3cret-token-of-the-tests"
Open = Callable[..., PackageSource]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "served/packages.git")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens sources that ask for each pin, unless they are told otherwise, and closes them at the end."""
    pins = StoredPins(ObjectStore("memory://"))
    made: list[PackageSource] = []

    def open_one(spec: str, **options: Any) -> PackageSource:
        options = {"pin_ttl_seconds": 0, "pin_stale_seconds": 0} | options
        options.setdefault("cache_directory", tmp_path / "cache")
        made.append(open_source(spec, SourceOptions(**options), pins))
        return made[-1]

    yield open_one
    for source in made:
        source.close()


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    return count_git(tmp_path / "bin", monkeypatch)


@pytest.fixture
def server(tmp_path: Path, repository: Repository) -> Iterator[Server]:
    http_backend()
    with git_server(tmp_path / "served") as running:
        yield running


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with (
        tempfile.TemporaryDirectory(prefix="nixsnap-") as directory,
        ssh_server(Path(directory) / "ssh") as one,
    ):
        yield one


def found(tmp_path: Path, pattern: str) -> list[Path]:
    """In the directories of the sources that were opened."""
    return list(tmp_path.glob(f"cache/sources/*/{pattern}"))


async def text(source: PackageSource, tag: str, file: str = "default.nix") -> str:
    return ((await source.checkout(await source.pin(tag))).directory / file).read_text()


# --- tags -------------------------------------------------------------------------------------------


async def test_what_tags_mean(repository: Repository, opened: Open) -> None:
    first = repository.head
    repository.git("tag", "light")
    repository.git("tag", "-a", "-m", "annotated", "v1.0")
    slashed = repository.commit_on("feature/new-thing", {"default.nix": "slashed"})
    dashed = repository.commit_on("both--there", {"default.nix": "dashed"})
    repository.commit_on("both/there", {"default.nix": "hidden by the other"})
    both = repository.commit_on("v1.0", {"default.nix": "a branch named as the tag"})
    head = repository.commit({"default.nix": "head"})
    source = opened(repository.url)
    expected = {
        "latest": head,
        "main": head,
        "light": first,
        "v1.0": first,
        "feature--new-thing": slashed,
        "both--there": dashed,
        both: both,
        head: head,
    }
    assert {tag: (await source.pin(tag)).revision for tag in expected} == expected
    assert (await source.pin(head[:7])).revision == head
    assert (await source.pin(head[:20])).revision == head
    with pytest.raises(TagNotFound):
        await source.pin("feature--new-thin")
    with pytest.raises(TagNotFound):
        await source.pin(head[:6])
    tags = ["both--there", "feature--new-thing", "latest", "light", "main", "v1.0"]
    assert list(await source.tags()) == tags


async def test_another_default_branch(repository: Repository, opened: Open) -> None:
    other = repository.commit_on("stable", {"default.nix": "stable"})
    on_main = repository.head
    repository.git("checkout", "--quiet", "stable")
    assert (await opened(repository.url).pin("latest")).revision == other
    assert (await opened(f"{repository.url}?ref=main").pin("latest")).revision == on_main
    assert (await opened(f"{repository.url}?rev={on_main}").pin("latest")).revision == on_main


async def test_tags_that_are_no_commits(repository: Repository, opened: Open) -> None:
    repository.git("tag", "a-tree", "HEAD^{tree}")
    repository.git("tag", "a-file", "HEAD:default.nix")
    source = opened(repository.url)
    for tag in ("a-tree", "a-file", repository.git("rev-parse", "HEAD^{tree}")):
        with pytest.raises(TagNotFound):
            await source.checkout(await source.pin(tag))


async def test_an_empty_repository(tmp_path: Path, opened: Open) -> None:
    need("git")
    run("git", "init", "--quiet", "--bare", tmp_path / "empty", env=ENVIRONMENT)
    with pytest.raises(TagNotFound, match="no commit yet"):
        await opened(f"git+file://{tmp_path}/empty").pin("latest")


async def test_sha256_repositories(tmp_path: Path, opened: Open) -> None:
    repository = Repository.create(tmp_path / "sha256", "--object-format=sha256")
    assert len(repository.head) == 64
    source = opened(repository.url)
    assert await text(source, repository.head) == "{ }: { }"
    assert (await source.pin("latest")).revision == repository.head


async def test_a_commit_that_no_ref_has(repository: Repository, server: Server, opened: Open) -> None:
    """A forge has those of forks under the same URL, so they are strangers' unless the settings say otherwise."""
    lost = repository.commit({"default.nix": "lost"})
    repository.commit({"default.nix": "found"}, amend=True)
    for spec in (repository.url, server.url(repository)):
        assert await text(opened(spec, commits="any"), lost) == "lost"
        cautious = opened(spec)
        assert await text(cautious, "latest") == "found"
        for name in (lost, lost[:8]):  # the mirror has it by now
            with pytest.raises(TagNotFound, match="leads to"):
                await cautious.pin(name)


@pytest.mark.parametrize("filters", ["true", "false"])
async def test_commits_that_a_ref_leads_to(
    repository: Repository, server: Server, opened: Open, counted: Counted, tmp_path: Path, filters: str
) -> None:
    repository.git("config", "uploadpack.allowFilter", filters)
    below_main = repository.head
    tagged = repository.commit_on("aside", {"default.nix": "tagged"})
    repository.git("tag", "-a", "-m", "annotated", "v1", tagged)
    repository.git("branch", "--delete", "--force", "aside")
    repository.commit({"default.nix": "head"})
    source = opened(server.url(repository))
    assert await text(source, below_main) == "{ }: { }"
    assert await text(source, tagged) == "tagged"
    assert len(counted.fetches()) == 3, "one for the history, and one for each"
    [history] = found(tmp_path, "history/mirror.git")
    objects = run(
        "git", "-C", history, "cat-file", "--batch-all-objects", "--batch-check=%(objecttype)"
    ).stdout.split()
    assert ("blob" in objects) == (filters == "false"), "no files where the server can leave them out"
    # What is served once is served for ever.
    repository.commit({"default.nix": "all is new"}, amend=True)
    repository.git("tag", "--delete", "v1")
    repository.git("checkout", "--quiet", "--orphan", "new")
    repository.commit({"default.nix": "no parent"})
    repository.git("branch", "--delete", "--force", "main")
    restarted = opened(server.url(repository))
    with pytest.raises(TagNotFound):
        await restarted.pin("0" * 40)
    assert await text(restarted, tagged) == "tagged"
    assert await text(restarted, below_main) == "{ }: { }"


async def test_force_pushed_and_deleted(repository: Repository, server: Server, opened: Open) -> None:
    repository.git("tag", "moving")
    repository.git("branch", "going")
    source = opened(server.url(repository))
    before = await source.pin("main")
    assert (await source.pin("going")).revision == (await source.pin("moving")).revision == before.revision
    amended = repository.commit({"default.nix": "amended"}, amend=True)
    repository.git("tag", "--force", "moving")
    repository.git("branch", "--delete", "--force", "going")
    assert (await source.pin("main")).revision == (await source.pin("moving")).revision == amended
    with pytest.raises(TagNotFound):
        await source.pin("going")
    assert "going" not in await source.tags()
    assert (await source.checkout(before)).directory.is_dir()


async def test_names_that_stand_in_each_others_way(repository: Repository, opened: Open) -> None:
    repository.git("branch", "a")
    source = opened(repository.url)
    await source.pin("a")
    repository.git("branch", "--delete", "a")
    repository.commit_on("a/b", {"default.nix": "b"})
    assert await text(source, "a--b") == "b"
    with pytest.raises(TagNotFound):
        await source.pin("a")


# --- cost -------------------------------------------------------------------------------------------


async def test_no_fetch_for_a_commit_that_is_here(
    repository: Repository, counted: Counted, opened: Open, tmp_path: Path
) -> None:
    commit = repository.head
    source = opened(repository.url)
    await source.checkout(await source.pin("latest"))
    assert len(counted.fetches()) == 1, "one for pin and checkout together"
    await is_tidied(counted)
    counted.clear()
    await source.checkout(await source.pin(commit))
    assert counted.commands() == [], "what is checked out needs no git at all"
    for checkouts in found(tmp_path, "checkouts"):
        shutil.rmtree(checkouts)
    restarted = opened(repository.url)
    await restarted.checkout(await restarted.pin(commit))
    assert counted.fetches() == [], "the mirror has it"
    assert counted.commands()


async def test_pins_are_asked_for_once(repository: Repository, server: Server, opened: Open) -> None:
    source = opened(server.url(repository), pin_ttl_seconds=300)
    pins = await asyncio.gather(*(source.pin("main") for _ in range(50)))
    assert len(set(pins)) == 1
    asked = len(server.asked)
    await asyncio.gather(*(source.checkout(pin) for pin in pins))
    assert {await source.pin("main") for _ in range(50)} == set(pins)
    assert len(server.asked) == asked
    again = opened(server.url(repository), pin_ttl_seconds=300)
    assert await again.pin("main") == pins[0]
    assert len(server.asked) == asked, "a restart finds it in the object store"


async def test_a_fetch_is_incremental_and_without_history(
    repository: Repository, server: Server, opened: Open
) -> None:
    for number in range(5):
        repository.commit({"big": os.urandom(500_000).hex() + str(number), "default.nix": f"{number}"})
    source = opened(server.url(repository))
    await source.checkout(await source.pin("latest"))
    assert server.sent_bytes < 1_000_000, "one commit's files, not five"
    server.sent_bytes = 0
    repository.commit({"default.nix": "small"})
    assert await text(source, "latest") == "small"
    assert server.sent_bytes < 10_000


async def test_half_a_million_refs(repository: Repository, server: Server, opened: Open) -> None:
    head = repository.head
    with (repository.root / ".git/packed-refs").open("w") as file:
        file.write("# pack-refs with: peeled fully-peeled sorted \n")
        file.writelines(f"{head} refs/heads/user/{number:06}\n" for number in range(250_000))
        file.writelines(f"{head} refs/pull/{number:06}/head\n" for number in range(100_000))
        file.writelines(f"{head} refs/tags/v{number:06}\n" for number in range(150_000))
    source = opened(server.url(repository))
    for tag in ("latest", "user--123456", "v012345"):
        assert await text(source, tag) == "{ }: { }"
    with pytest.raises(TagNotFound):
        await source.pin("user--999999")
    assert server.sent_bytes < 20_000, "no list of refs was sent"
    tags = await source.tags()
    assert len(tags) == 250_000 + 150_000 + 2
    assert {"main", "latest", "user--000000", "v149999"} <= set(tags)


async def test_a_mirror_tidies_itself(repository: Repository, opened: Open, counted: Counted) -> None:
    source = opened(repository.url)
    await source.pin("latest")
    await is_tidied(counted)


async def is_tidied(counted: Counted) -> None:
    """In the background, after a fetch."""

    def packed() -> bool:
        return any(line.startswith("gc --auto") for line in counted.commands())

    await asyncio.to_thread(wait_until, packed, seconds=60, what="it is tidied")


# --- what goes wrong --------------------------------------------------------------------------------


async def test_offline(repository: Repository, opened: Open) -> None:
    clock = [1000.0]
    aside = repository.root.with_name("aside")
    source = opened(repository.url, pin_ttl_seconds=1, pin_stale_seconds=1)
    source._now = lambda: clock[0]  # type: ignore[attr-defined]
    pin = await source.pin("main")
    repository.root.rename(aside)
    clock[0] += 1_000_000
    with structlog.testing.capture_logs() as logs:
        assert await source.pin("main") == pin
    [warning] = [line for line in logs if line["event"] == "old-pin-served"]
    assert warning["log_level"] == "warning"
    assert warning["seconds"] == 1_000_000
    assert (await source.checkout(pin)).directory.is_dir()
    with pytest.raises(SourceError, match="cannot be read"):
        await source.pin("other")
    with pytest.raises(SourceError, match="cannot be read"):
        await source.tags()
    aside.rename(repository.root)
    commit = repository.commit({"default.nix": "back"})
    clock[0] += 1_000_000
    assert (await source.pin("main")).revision == commit


async def test_a_server_that_fails(repository: Repository, server: Server, opened: Open) -> None:
    source = opened(server.url(repository))
    server.down = True
    with pytest.raises(SourceError, match="503"):
        await source.pin("latest")
    server.down = False
    assert (await source.pin("latest")).revision == repository.head


async def test_a_server_that_never_answers(opened: Open, tmp_path: Path) -> None:
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()
        hung_up.set()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for seconds in (0.5, 5, 50):
        with pytest.raises(SourceError, match=f"longer than {seconds} s"):
            await opened(f"git+http://127.0.0.1:{port}/x", fetch_timeout_seconds=seconds).pin("latest")
        if asked.is_set():  # on a slow machine git may need longer even for that
            break
    await hung_up.wait()
    server.close()
    await server.wait_closed()
    [home] = found(tmp_path, "git")

    def gone() -> bool:
        return not any(str(home) in one for one in environments())

    await asyncio.to_thread(wait_until, gone, seconds=40, what="git and its helpers are gone")


def environments() -> list[str]:
    """Of all processes of this machine."""
    return [_content(path) for path in Path("/proc").glob("[0-9]*/environ")]


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def forget_files(mirror: Path) -> None:
    """Its commit is here, and what that consists of is not."""
    git = ("git", "--git-dir", mirror)
    [pack] = mirror.glob("objects/pack/*.pack")
    objects = pack.read_bytes().decode("utf-8", "surrogateescape")
    shutil.rmtree(pack.parent)
    run(*git, "unpack-objects", "-q", stdin=objects)
    for line in run(*git, "cat-file", "--batch-check", "--batch-all-objects").stdout.splitlines():
        name, kind, _ = line.split()
        if kind == "blob":
            (mirror / "objects" / name[:2] / name[2:]).unlink()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "lock": lambda mirror: (mirror / "shallow.lock").touch(),
    "no objects": lambda mirror: shutil.rmtree(mirror / "objects"),
    "no HEAD": lambda mirror: (mirror / "HEAD").unlink(),
    "empty HEAD": lambda mirror: (mirror / "HEAD").write_text(""),
    "bad config": lambda mirror: (mirror / "config").write_text("[core"),
    "empty objects": lambda mirror: [truncate(path) for path in mirror.glob("objects/pack/*")],
    "no files": forget_files,
    "gone": shutil.rmtree,
}


def truncate(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"")


@pytest.mark.parametrize("restarted", [False, True], ids=["", "after a restart"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_a_damaged_mirror_is_made_anew(
    repository: Repository, opened: Open, tmp_path: Path, damage: Callable[[Path], object], restarted: bool
) -> None:
    source = opened(repository.url)
    before = await source.pin("latest")
    [mirror] = found(tmp_path, "git/mirror.git")
    damage(mirror)
    if restarted:
        source = opened(repository.url)
    assert (await source.checkout(before)).directory.is_dir()
    commit = repository.commit({"default.nix": "more"})
    assert (await source.pin("latest")).revision == commit
    assert await text(source, "latest") == "more"


async def test_processes_share_a_mirror(repository: Repository, opened: Open) -> None:
    """As several workers do: each has its own lock inside, and the file's lock between them."""
    commits = [repository.commit_on(f"b{number}", {"default.nix": f"{number}"}) for number in range(8)]
    sources = [opened(repository.url) for _ in range(4)]
    texts = await asyncio.gather(
        *(text(source, f"b{number}") for source in sources for number in range(len(commits)))
    )
    assert texts == [f"{number}" for number in range(len(commits))] * len(sources)


async def test_a_commit_is_here_with_all_its_files_or_not_at_all(
    repository: Repository, opened: Open, tmp_path: Path
) -> None:
    """A name of it may be fetched while the commit itself is asked for; git writes commits first, and files last."""
    repository.git("tag", "v1")
    commit = repository.commit({"big": os.urandom(8_000_000).hex()})
    source = opened(repository.url)
    await source.pin("v1")
    [mirror] = found(tmp_path, "git/mirror.git")
    fetching = asyncio.create_task(source.pin("main"))

    def here() -> bool:
        return run("git", "--git-dir", mirror, "cat-file", "-e", commit, check=False).returncode == 0

    await asyncio.to_thread(wait_until, here, seconds=60, what="the commit is here")
    with structlog.testing.capture_logs() as logs:
        checkout = await source.checkout(Pin(commit))
    assert (checkout.directory / "big").stat().st_size == 16_000_000
    assert logs == [], "nothing had to be mended"
    assert (await fetching).revision == commit


# --- hostile contents -------------------------------------------------------------------------------


async def test_links_stay_inside_and_hooks_stay_quiet(
    repository: Repository, opened: Open, tmp_path: Path
) -> None:
    for name, target in {
        "in": "sub/file",
        "out": "../../etc",
        "abs": "/etc/passwd",
        "sub/up": "../in",
    }.items():
        (repository.root / "sub").mkdir(exist_ok=True)
        (repository.root / name).symlink_to(target)
    marker = tmp_path / "marker"
    hook = f"#!/bin/sh\ntouch {marker}\n"
    repository.commit(
        {"sub/file": "here", "hooks/post-checkout": hook, ".gitattributes": "default.nix export-ignore"}
    )
    with structlog.testing.capture_logs() as logs:
        source = opened(repository.url)
        checkout = (await source.checkout(await source.pin("latest"))).directory
    assert {path.name for path in checkout.iterdir()} == {
        "default.nix",
        ".gitattributes",
        "hooks",
        "sub",
        "in",
    }
    assert (checkout / "in").read_text() == (checkout / "sub/up").read_text() == "here"
    [warning] = [line for line in logs if line["event"] == "source-link-ignored"]
    assert (warning["links"], warning["count"]) == (["abs", "out"], 2)
    assert not marker.exists()


async def test_a_tree_that_would_fill_the_disk(repository: Repository, opened: Open, tmp_path: Path) -> None:
    """Ten trees, each of ten times the one below: a few kilobytes that are 10^9 files."""
    entry = repository.git("hash-object", "-w", "--stdin", stdin="x")
    kind, mode = "blob", "100644"
    for _ in range(9):
        listing = "".join(f"{mode} {kind} {entry}\tf{number}\n" for number in range(10))
        entry, kind, mode = repository.git("mktree", stdin=listing), "tree", "040000"
    commit = repository.git("commit-tree", "-m", "bomb", entry)
    repository.git("tag", "bomb", commit)
    source = opened(repository.url)
    with pytest.raises(SourceError, match="more than 500000 entries"):
        await text(source, "bomb")
    assert found(tmp_path, "checkouts/*") == [], "nothing is left behind"
    repository.commit({"big": "x" * 2_000_000})
    with pytest.raises(SourceError, match="more than 1000000 bytes"):
        await text(opened(repository.url, unpack_max_bytes=1_000_000), "main")
    assert await text(source, "main") == "{ }: { }"


async def test_transports_that_are_not_the_sources_own(
    repository: Repository, opened: Open, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    for url in (f"ext::sh -c touch% {marker}", "https://127.0.0.1:1/x", "git@127.0.0.1:x", "-u./x"):
        repository.write({".gitmodules": f'[submodule "x"]\n\tpath = x\n\turl = {url}\n'})
        repository.git("update-index", "--add", "--cacheinfo", f"160000,{repository.head},x")
        repository.git("add", ".gitmodules")
        repository.git("commit", "--quiet", "--message=x")
        with pytest.raises(SourceError, match="submodule"):
            await text(opened(repository.url, submodules=True), "main")
    assert not marker.exists()


# --- submodules and LFS -----------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["file", "http"])
async def test_submodules(
    repository: Repository, server: Server, opened: Open, tmp_path: Path, over: str
) -> None:
    inner = Repository.create(tmp_path / "served/inner.git")
    outer = Repository.create(tmp_path / "served/outer.git")
    allowed = ["-c", "protocol.file.allow=always"]
    outer.git(*allowed, "submodule", "--quiet", "add", "--name", "odd name", "../inner.git", "deep/inner")
    outer.commit({"default.nix": "outer"})
    repository.git(*allowed, "submodule", "--quiet", "add", "../outer.git", "outer")
    commit = repository.commit({"default.nix": "top"})
    inner.commit({"default.nix": "newer than what is asked for"})
    spec = repository.url if over == "file" else server.url(repository)
    plain, whole = opened(spec), opened(spec, submodules=True)
    assert (await plain.pin(commit)).variant != (await whole.pin(commit)).variant
    assert list(((await plain.checkout(await plain.pin(commit))).directory / "outer").iterdir()) == []
    assert await text(whole, commit, "outer/default.nix") == "outer"
    assert await text(whole, commit, "outer/deep/inner/default.nix") == "{ }: { }"


async def test_large_files(repository: Repository, opened: Open, tmp_path: Path) -> None:
    need("git-lfs")
    home = {"HOME": str(tmp_path)}
    repository.git("lfs", "install", "--local", env=home)
    repository.git("lfs", "track", "*.bin", env=home)
    repository.write({"big.bin": "large content"})
    repository.git("add", "--all", env=home)
    repository.git("commit", "--quiet", "--message=large", env=home)
    assert (await text(opened(repository.url), "main", "big.bin")).startswith("version https://git-lfs")
    assert await text(opened(repository.url, lfs=True), "main", "big.bin") == "large content"


# --- credentials ------------------------------------------------------------------------------------


def basic(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"


@pytest.fixture
def secret_files(tmp_path: Path) -> Path:
    directory = tmp_path / "secrets"
    directory.mkdir()
    (directory / "token").write_text(f"{SECRET}\n")
    (directory / "login").write_text(f"me:{SECRET}\n")
    (directory / "bearer").write_text(f"Bearer {SECRET}\n")
    (directory / "netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    (directory / "wrong").write_text(f"{SECRET}-of-yesterday\n")
    return directory


CREDENTIALS: dict[str, tuple[str, str, str]] = {
    "token": ("token_file", "token", basic(f"x-access-token:{SECRET}")),
    "user and token": ("token_file", "login", basic(f"me:{SECRET}")),
    "bearer": ("token_file", "bearer", f"Bearer {SECRET}"),
    "netrc": ("netrc_file", "netrc", basic(f"me:{SECRET}")),
    "in the URL": ("", "", basic(f"me:{SECRET}")),
}


@pytest.mark.parametrize(("option", "file", "header"), CREDENTIALS.values(), ids=CREDENTIALS)
async def test_credentials(
    repository: Repository,
    server: Server,
    opened: Open,
    counted: Counted,
    secret_files: Path,
    tmp_path: Path,
    option: str,
    file: str,
    header: str,
) -> None:
    server.authorizations.add(header)
    options = {option: secret_files / file} if option else {}
    with structlog.testing.capture_logs() as logs:
        source = opened(server.url(repository, "" if option else f"me:{SECRET}@"), **options)
        pin = await source.pin("main")
        await source.checkout(pin)
        await source.tags()
    encoded = header.split()[1]
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and not path.is_symlink()]
    seen = [*counted.commands(), str(logs), repr(pin), source.name, repr(source), *map(_content, kept)]
    assert not any(SECRET in one or encoded in one for one in seen)


@pytest.mark.parametrize("file", ["wrong", None, "absent", "empty"])
async def test_credentials_that_are_refused(
    repository: Repository, server: Server, opened: Open, secret_files: Path, file: str | None
) -> None:
    (secret_files / "empty").touch()
    server.authorizations.add(basic(f"me:{SECRET}"))
    source = opened(server.url(repository), token_file=secret_files / file if file else None)
    with pytest.raises(SourceError, match=r"token_file|token file") as caught:
        await source.pin("main")
    assert SECRET not in str(caught.value)


async def test_a_token_can_be_replaced(
    repository: Repository, server: Server, opened: Open, secret_files: Path
) -> None:
    server.authorizations.add(basic(f"x-access-token:{SECRET}"))
    source = opened(server.url(repository), token_file=secret_files / "wrong")
    with pytest.raises(SourceError):
        await source.pin("main")
    (secret_files / "token").replace(secret_files / "wrong")
    assert await source.pin("main")


async def test_a_redirect_gets_no_credentials(
    repository: Repository, server: Server, opened: Open, secret_files: Path, tmp_path: Path
) -> None:
    with git_server(tmp_path / "served") as other:
        server.redirect_to = f"http://{other.host}"
        assert await opened(server.url(repository)).pin("latest"), (
            "without credentials redirects are followed"
        )
        other.asked.clear()
        source = opened(server.url(repository), token_file=secret_files / "token")
        with pytest.raises(SourceError, match="redirect") as caught:
            await source.pin("main")
        assert SECRET not in str(caught.value)
        assert other.asked == []


async def test_submodules_elsewhere_get_no_credentials(
    repository: Repository, server: Server, opened: Open, secret_files: Path, tmp_path: Path
) -> None:
    inner = Repository.create(tmp_path / "served/inner.git")
    with git_server(tmp_path / "served") as other:
        url = other.url(inner).removeprefix("git+")
        repository.git("submodule", "--quiet", "add", url, "inner")
        repository.commit({})
        other.asked.clear()
        server.authorizations.add(basic(f"x-access-token:{SECRET}"))
        source = opened(server.url(repository), token_file=secret_files / "token", submodules=True)
        assert await text(source, "main", "inner/default.nix") == "{ }: { }"
        assert other.asked
        assert all(one.authorization is None for one in other.asked)


# --- ssh --------------------------------------------------------------------------------------------


async def test_ssh_with_a_key(repository: Repository, sshd: SshServer, opened: Open) -> None:
    source = opened(sshd.url(repository), ssh_key_file=sshd.key, ssh_known_hosts_file=sshd.known_hosts)
    assert await text(source, "main") == "{ }: { }"
    assert list(await source.tags()) == ["latest", "main"]


async def test_ssh_with_an_agent(
    repository: Repository, sshd: SshServer, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(sshd.agent))
    source = opened(sshd.url(repository), ssh_known_hosts_file=sshd.known_hosts)
    assert await text(source, "main") == "{ }: { }"


async def test_ssh_that_lets_nobody_in(
    repository: Repository, sshd: SshServer, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "stranger")
    url = sshd.url(repository)
    with pytest.raises(SourceError, match="ssh_key_file"):
        await opened(url, ssh_key_file=tmp_path / "stranger", ssh_known_hosts_file=sshd.known_hosts).pin(
            "main"
        )
    (tmp_path / "nobody").touch()
    with pytest.raises(SourceError, match="Host key verification failed"):
        await opened(url, ssh_key_file=sshd.key, ssh_known_hosts_file=tmp_path / "nobody").pin("main")
