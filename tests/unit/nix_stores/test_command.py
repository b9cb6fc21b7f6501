import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import SettingsError
from nixery_snap.nix_stores.command import _LINE_BYTES, NixStore, _drain, _environment


@pytest.mark.parametrize("text", ["auto", "daemon"])
def test_the_machines_own_store(text: str) -> None:
    store = NixStore.parse(text)
    assert (store.uri, store.root, store.is_private) == (text, Path("/"), False)
    assert store.database == Path("/nix/var/nix/db/db.sqlite")


def test_a_store_in_a_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("private", str(tmp_path / "private"), "./private"):
        store = NixStore.parse(text)
        assert (store.uri, store.root, store.is_private) == (
            f"{tmp_path}/private",
            tmp_path / "private",
            True,
        )


@pytest.mark.parametrize("text", ["ssh://host", "https://cache", "local?root=/x", "/x?root=y", "s3://bucket"])
def test_stores_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError) as raised:
        NixStore.parse(text)
    assert raised.value.key == "nix.store"


async def lines_of(chunks: list[bytes]) -> list[bytes]:
    stream = asyncio.StreamReader()
    lines: list[bytes] = []
    reading = asyncio.create_task(_drain(stream, lines.append))
    for chunk in chunks:
        stream.feed_data(chunk)
        await asyncio.sleep(0)
    stream.feed_eof()
    await reading
    return lines


@given(st.lists(st.binary(max_size=5) | st.text("a\n", max_size=5).map(str.encode)))
async def test_lines_in_any_chunks(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    expected = whole.split(b"\n")
    assert await lines_of(chunks) == (expected if expected[-1] else expected[:-1])


async def test_a_line_that_never_ends_is_bounded() -> None:
    lines = await lines_of([b"first\n", *[b"x" * 2**16] * 64, b"y\nlast\n"])
    assert lines[0] == b"first"
    assert lines[-1] == b"last"
    assert len(lines) == 3
    assert _LINE_BYTES <= len(lines[1]) < 2 * _LINE_BYTES


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in {
        "NIX_PATH": "nixpkgs=/x",
        "NIX_REMOTE": "daemon",
        "REGISTRY_PASSWORD": "s3cret",
        "https_proxy": "http://proxy",
        "NIX_CONFIG": "cores = 1\n",
        "NIX_SSHOPTS": "-p 2222",
    }.items():
        monkeypatch.setenv(name, text)
    found = _environment(NixStore.parse(str(tmp_path)), tmp_path / "home", {"cores": "2"})
    assert found.keys().isdisjoint({"NIX_PATH", "NIX_REMOTE", "REGISTRY_PASSWORD"})
    assert found["HOME"] == str(tmp_path / "home")
    assert found["https_proxy"] == "http://proxy"
    assert found["NIX_SSHOPTS"].startswith("-p 2222 -oBatchMode=yes ")
    settings = found["NIX_CONFIG"].splitlines()
    assert settings.index("cores = 1") < settings.index("cores = 2")
    assert "build-users-group =" in settings
    shared = _environment(NixStore.parse("daemon"), tmp_path, {})["NIX_CONFIG"]
    assert "build-users-group" not in shared
