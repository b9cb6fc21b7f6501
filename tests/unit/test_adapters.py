import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixery_snap.adapters import nix_options, open_source_of, open_substituters, read_popularity
from nixery_snap.errors import SettingsError
from nixery_snap.imaging.layering import UNKNOWN_POPULARITY
from nixery_snap.nix.signing import SecretKey
from nixery_snap.object_store.pins import StoredPins
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.settings import NixSettings, Settings, SourceSettings, SubstituterSettings
from nixery_snap.sources.credentials import basic
from tests.support.servers import Handler, Server

KEY = SecretKey.generate("key-1")
COUNTS = {"hello": 3}


class _Popularity(Handler):
    def do_GET(self) -> None:
        asked = (self.path, self.headers.get("Authorization"))
        self.send_response(
            200 if asked in {("/popularity.json", None), ("/locked", basic("me", "p@55"))} else 404
        )
        self.end_headers()
        self.wfile.write(json.dumps(COUNTS).encode())


@pytest.fixture
def server() -> Iterator[str]:
    with Server(_Popularity).running() as running:
        yield running.url


def test_popularity(tmp_path: Path, server: str) -> None:
    file = tmp_path / "popularity.json"
    file.write_text(json.dumps(COUNTS))
    assert read_popularity("") is UNKNOWN_POPULARITY
    assert read_popularity(str(file)).counts == COUNTS
    assert read_popularity(f"{server}/popularity.json") == read_popularity(str(file))
    with_login = server.replace("://", "://me:p%4055@")
    assert read_popularity(f"{with_login}/locked").counts == COUNTS
    with pytest.raises(SettingsError, match=r"\*\*\*@127") as raised:
        read_popularity(f"{with_login}/other")
    assert "55" not in str(raised.value).replace(server.rpartition(":")[2], "")


@pytest.mark.parametrize("where", ["/none", "{file}", "{server}/other", "http://127.0.0.1:9/x"])
def test_popularity_that_cannot_be_read(tmp_path: Path, server: str, where: str) -> None:
    (tmp_path / "file").write_text("[]")
    with pytest.raises(SettingsError, match=r"setting popularity: .* cannot be read"):
        read_popularity(where.format(file=tmp_path / "file", server=server))


async def test_what_nix_is_told() -> None:
    one, two = (
        SubstituterSettings(url="http://one.example", public_keys=(str(KEY.public_key),)),
        SubstituterSettings(url="http://two.example"),
    )
    settings = Settings(
        storage="file:///store",
        substituters=(one, two),
        nix=NixSettings(builders="ssh://b.example aarch64-linux"),
    )
    others = open_substituters(settings, StoredRecords(ObjectStore("memory://"), 0))
    options = nix_options(settings, KEY, others)
    assert options["builders"] == "ssh://b.example aarch64-linux"
    assert options["extra-substituters"].split() == [one.url, two.url, "file:///store"]
    assert options["extra-trusted-public-keys"].split() == [str(KEY.public_key)] * 2
    assert options["fallback"] == "true"
    for substituter in others.values():
        await substituter.close()
    plain = nix_options(Settings(storage="memory://", substituters=()), KEY, {})
    assert "builders" not in plain, "that would take away those of nix.conf"
    assert plain["extra-substituters"] == ""


def test_a_source_and_its_options(tmp_path: Path) -> None:
    (tmp_path / "default.nix").write_text("{ }")
    pins = StoredPins(ObjectStore("memory://"))
    settings = Settings(
        source=f"path:{tmp_path}",
        cache_directory=str(tmp_path / "cache"),
        sources={"more": SourceSettings(spec="git+ftp://x", prefix="more")},
    )
    source = open_source_of(settings, "default", pins)
    assert source.name == f"path:{tmp_path}"
    source.close()
    with pytest.raises(SettingsError, match=r"setting sources\.more"):
        open_source_of(settings, "more", pins)
