from __future__ import annotations

import asyncio
from typing import cast

import pytest

from nixery_snap.errors import BlobNotFound, InvalidFormat, NotFound, UnsupportedSystem
from nixery_snap.evaluation.index import Entry
from nixery_snap.evaluation.search import MAX_QUERY, MAX_WORDS, Catalogue, Catalogues, Listed, PackageSearch
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.ports import PackageSource, Pin
from tests.unit.evaluation.indexes import PIN, SYSTEM, Made, package

PACKAGES = [
    ("git", "git-2.45", "git", "Distributed version control system"),
    ("gitFull", "git-2.45", "git", "Distributed version control system, with everything"),
    ("gitea", "gitea-1.22", "gitea", "Git with a cup of tea"),
    ("lazygit", "lazygit-0.42", "lazygit", "Simple terminal UI"),
    ("tig", "tig-2.5", "tig", "Text-mode interface for git"),
    ("ripgrep", "ripgrep-14.1", "rg", "Searches directories with the usability of The Silver Searcher"),
    ("rgbds", "rgbds-0.8", "rgbasm", "Game Boy tools"),
    ("python3Packages.requests", "python3.11-requests-2.32", None, "HTTP for humans"),
    ("python3Packages.requests-mock", "python3.11-requests-mock-1.12", None, "Mock of it"),
    ("pypy3Packages.requests", "pypy3-requests-2.32", None, "HTTP for humans"),
    ("hello", "hello-2.12", "hello", "Greets"),
    ("bashInteractive", "bash-interactive-5.2", "bash", "GNU shell"),
]
CATALOGUE = Catalogue(
    [
        Listed(AttributePath.parse(attribute), name, program, description)
        for attribute, name, program, description in PACKAGES
    ]
)


def found(query: str, offset: int = 0, limit: int = 100) -> list[str]:
    return [str(one.attribute) for one in CATALOGUE.search(query, offset, limit).packages]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        # The name itself (or the program), its beginning, within it, in the description.
        ("git", ["git", "gitFull", "gitea", "lazygit", "tig"]),
        ("GIT", ["git", "gitFull", "gitea", "lazygit", "tig"]),
        ("gitfull", ["gitFull"]),
        ("rg", ["ripgrep", "rgbds"]),
        ("rgb", ["rgbds"]),
        ("requests", ["pypy3Packages.requests", "python3Packages.requests", "python3Packages.requests-mock"]),
        ("python3packages.requests", ["python3Packages.requests", "python3Packages.requests-mock"]),
        ("git system", ["git", "gitFull"]),
        ("with git", ["gitFull", "gitea"]),
        ("system nonsense", []),
        ("hullo", ["hello"]),
        ("bash-interactive-5.2", ["bashInteractive"]),
        ("zzzzzz", []),
    ],
)
def test_search(query: str, expected: list[str]) -> None:
    assert found(query) == expected


def test_pages() -> None:
    every = found("git")
    assert [found("git", start, 2) for start in range(0, 6, 2)] == [every[:2], every[2:4], every[4:]]
    assert found("git", 100) == []
    assert CATALOGUE.search("git", 3, 1).total == len(every)


@pytest.mark.parametrize("query", ["", "  ", "a " * (MAX_WORDS + 1), "a" * (MAX_QUERY + 1)])
def test_what_is_no_query(query: str) -> None:
    with pytest.raises(InvalidFormat, match="search"):
        CATALOGUE.search(query, 0, 1)


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("rg", (), "ripgrep"),
        ("gti", (), "git"),
        ("ripgep", (), "ripgrep"),
        ("bashinteractiv", (), "bashInteractive"),
        ("requests", (), "pypy3Packages.requests"),
        ("reqests", ("python3Packages",), "python3Packages.requests"),
        ("reqests", ("pypy3Packages",), "pypy3Packages.requests"),
        ("bash", (), "bashInteractive"),
    ],
)
def test_near_matches(name: str, path: tuple[str, ...], expected: str) -> None:
    near = CATALOGUE.near(name, path)
    assert near[0] == expected
    assert len(near) <= 3


def test_nothing_is_near() -> None:
    assert CATALOGUE.near("zzzzzz") == ()
    assert Catalogue([]).near("git") == ()


async def test_catalogues_are_kept() -> None:
    made = Made()
    index = await made.add([Entry(("hello",), package(("hello",), "hello-1", "hi"))])
    catalogues = Catalogues(made.indexes)
    first = await catalogues.open(index)
    assert first.search("hi", 0, 10).packages == (
        Listed(AttributePath(("hello",)), "hello-1", "hi", "all about hello"),
    )
    assert await catalogues.open(index) is first
    async for key, _ in made.objects.list("blobs/"):
        await made.objects.delete(key)
    with pytest.raises(BlobNotFound):
        await Catalogues(made.indexes).open(index)


class _Source:
    """Knows one tag."""

    name = "source"

    def current(self, tag: str) -> Pin | None:
        return PIN if tag == "latest" else None

    async def pin(self, tag: str) -> Pin:
        return Pin(tag)


async def new_search() -> PackageSearch:
    made = Made()
    await made.add([Entry(("hello",), package(("hello",)))])
    source = cast("PackageSource", _Source())
    return PackageSearch(
        {"default": source}, (SYSTEM, "aarch64-linux"), made.indexes, Catalogues(made.indexes)
    )


async def test_searching_a_source() -> None:
    search = await new_search()
    found = await search.search("hello", "default", "latest")
    assert (found.revision, found.system, found.page.total) == (PIN.revision, SYSTEM, 1)
    assert (await search.search("hello", "default", PIN.revision)).page == found.page
    for arguments, words in (
        (("hello", "default", "other"), "revision other for x86_64-linux"),
        (("hello", "default", "latest", "aarch64-linux"), "aarch64-linux; `nixery-snap index`"),
        (("hello", "nowhere", "latest"), "source 'nowhere'"),
    ):
        with pytest.raises(NotFound, match=words):
            await search.search(*arguments)
    with pytest.raises(UnsupportedSystem):
        await search.search("hello", "default", "latest", "riscv64-linux")


async def test_clients_take_turns() -> None:
    """Who asks for much waits for his own searches, and one who comes later for one of them."""
    search = await new_search()
    ended: list[str] = []

    async def ask(client: str) -> None:
        await search.search("hello", "default", "latest", client=client)
        ended.append(client)

    await asyncio.gather(*(ask("greedy") for _ in range(5)), ask("other"))
    assert ended.index("other") <= 1  # who comes to the turns first is not settled
    assert len(ended) == 6
