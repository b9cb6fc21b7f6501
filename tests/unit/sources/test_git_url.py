import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import SourceError
from nixery_snap.sources.flake import parse_flake
from nixery_snap.sources.git_submodules import parse_submodules
from nixery_snap.sources.git_url import GitUrl, is_ref_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("spec", "text", "transport", "default"),
    [
        ("git+https://Host.example/a/b.git", "https://host.example/a/b.git", "https", None),
        ("git+https://host:8443/x?ref=a/b", "https://host:8443/x", "https", "a/b"),
        (f"git+http://[::1]:80/x?rev={COMMIT}", "http://[::1]:80/x", "http", COMMIT),
        ("git+ssh://git@host/~me/x.git", "ssh://git@host/~me/x.git", "ssh", None),
        ("git+file:///srv/a%20b", "file:///srv/a b", "file", None),
    ],
)
def test_urls(spec: str, text: str, transport: str, default: str | None) -> None:
    url = GitUrl.parse(spec)
    assert (url.text, url.transport, url.default) == (text, transport, default)
    assert GitUrl.origin_of(url.text) == url.origin or transport == "ssh"


def test_passwords_are_taken_out() -> None:
    url = GitUrl.parse("git+https://me:s3cr%40t@host/x")
    assert url.text == "https://host/x"
    assert url.authorization == "Basic bWU6czNjckB0"
    assert "s3cr" not in f"{url} {url!r} {url.text}"
    assert "bWU6" not in f"{url} {url!r}"


@pytest.mark.parametrize(
    "spec",
    [
        "https://host/x",
        "git+https://host",
        "git+https://host/",
        "git+https:///x",
        "git+https://host/x#y",
        "git+https://-host/x",
        "git+https://ho$(id)st/x",
        "git+https://host:99999/x",
        "git+https://host:/x",
        "git+https://host/a b",
        "git+https://host/ä",
        "git+ssh://-oX=y@host/x",
        "git+ssh://-oX=y/x",
        "git+ssh://me:password@host/x",
        "git+file://host/x",
        "git+file:x",
        "git+file:///x%00y",
        "git+ext://x/y",
        "git+git://host/x",
        "git+https://host/x?ref=-x",
        "git+https://host/x?ref=",
        "git+https://host/x?rev=main",
        "git+https://host/x?other=1",
    ],
)
def test_urls_that_are_none(spec: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        GitUrl.parse(spec)


@given(st.text(max_size=60))
def test_whatever_comes(text: str) -> None:
    for prefix in ("", "git+https://", "git+ssh://", "git+file:///"):
        try:
            url = GitUrl.parse(prefix + text)
        except ValueError:
            continue
        assert url.text.startswith(f"{url.transport}://")
        assert not url.text.partition("://")[2].startswith("-")


@pytest.mark.parametrize("name", ["main", "v1.0", "a/b-c_d", "release+1", "0", "a--b"])
def test_ref_names(name: str) -> None:
    assert is_ref_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-x",
        "--x",
        "a..b",
        "a//b",
        "/a",
        "a/",
        "a.lock",
        "a.lock/b",
        "a.",
        ".a",
        "a/.b",
        "a b",
        "a:b",
        "a^",
        "a~1",
        "a@{1}",
        "a*",
        "a?",
        "a[",
        "a\\",
        "a\n",
        "x" * 251,
        "@",
        "+a",
    ],
)
def test_names_that_are_no_refs(name: str) -> None:
    assert not is_ref_name(name)


@pytest.mark.parametrize(
    ("reference", "spec", "directory"),
    [
        ("path:/srv/x?dir=a//b/", "path:/srv/x", "a/b"),
        ("git+https://host/x?ref=main&dir=nix", "git+https://host/x?ref=main", "nix"),
        ("git+file:///srv/x", "git+file:///srv/x", ""),
        ("https://host/x.tar.gz?dir=.", "tarball:https://host/x.tar.gz", ""),
        ("tarball+https://host/x?y=z", "tarball:https://host/x?y=z", ""),
        ("github:owner/repo", "git+https://forge/owner/repo.git", ""),
        ("github:owner/repo/a/branch?dir=x", "git+https://forge/owner/repo.git?ref=a/branch", "x"),
        (f"github:owner/repo/{COMMIT}", f"git+https://forge/owner/repo.git?rev={COMMIT}", ""),
    ],
)
def test_flakes(reference: str, spec: str, directory: str) -> None:
    assert parse_flake(reference, "https://forge/") == (spec, directory)
    if spec.startswith("git+"):
        assert GitUrl.parse(spec)


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "nixpkgs",
        "github:owner",
        "github:../x",
        "github:a/b/c#d",
        "https://host/x",
        "path:/x?rev=1",
        "path:/x?dir=../y",
        "path:/x?dir=a&dir=b",
        "file:///x",
        "indirect:x",
    ],
)
def test_flakes_that_are_none(reference: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_flake(reference, "https://forge")


def submodule_url(url: str, parent: str = "https://host/a/b.git") -> str:
    settings = f"submodule.x.path\nlib/x\0submodule.x.url\n{url}\0"
    [found] = parse_submodules(settings, {"lib/x": COMMIT}, parent, parent.partition(":")[0])
    assert (found.path, found.commit) == ("lib/x", COMMIT)
    return found.url


def test_urls_of_submodules() -> None:
    assert submodule_url("../c.git") == "https://host/a/c.git"
    assert submodule_url("../../x/./c.git") == "https://host/x/./c.git"
    assert submodule_url("./c.git") == "https://host/a/b.git/c.git"
    assert submodule_url("https://elsewhere/c") == "https://elsewhere/c"
    assert submodule_url("git@host:a/c.git", "ssh://git@host/a/b.git") == "ssh://git@host/a/c.git"
    assert submodule_url("/srv/c", "file:///srv/b") == "file:///srv/c"


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c id",
        "http://host/x",
        "ssh://host/x",
        "git@host:x",
        "file:///etc",
        "/etc",
        "../../../..",
        "-x",
        "",
    ],
)
def test_urls_of_submodules_that_are_refused(url: str) -> None:
    with pytest.raises(SourceError):
        submodule_url(url)
