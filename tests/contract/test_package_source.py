from collections.abc import Iterator
from pathlib import Path

import pytest

from nixery_snap.errors import SourceError, TagNotFound
from nixery_snap.ports import PackageSource, Pin
from nixery_snap.sources.path import PathSource


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/default.nix").write_text("{ }: { }")
    return tmp_path / "packages"


@pytest.fixture
def source(directory: Path, tmp_path: Path) -> Iterator[PackageSource]:
    source = PathSource(directory, tmp_path / "checkouts")
    yield source
    source.close()


async def test_a_pin_holds_as_long_as_nothing_changes(source: PackageSource) -> None:
    pin = await source.pin("latest")
    assert pin.revision
    assert await source.pin("latest") == pin
    assert source.current("latest") == pin


async def test_current_never_tells_what_no_pin_has_told(source: PackageSource, directory: Path) -> None:
    assert source.current("latest") is None
    before = await source.pin("latest")
    (directory / "default.nix").write_text("{ }: { a = 1; }")
    assert source.current("latest") is None
    assert await source.pin("latest") != before


async def test_a_checkout_is_for_ever(source: PackageSource, directory: Path) -> None:
    pin = await source.pin("latest")
    checkout = await source.checkout(pin)
    (directory / "default.nix").write_text("{ }: { a = 1; }")
    (directory / "more.nix").touch()
    after = await source.pin("latest")
    assert [path.name for path in checkout.directory.iterdir()] == ["default.nix"]
    assert (checkout.directory / "default.nix").read_text() == "{ }: { }"
    assert await source.checkout(pin) == checkout
    assert await source.checkout(after) != checkout


async def test_a_revision_can_be_asked_for_as_a_tag(source: PackageSource) -> None:
    pin = await source.pin("latest")
    assert await source.pin(pin.revision) == pin


async def test_a_tag_that_is_none(source: PackageSource) -> None:
    with pytest.raises(TagNotFound):
        await source.pin("no-such-tag")
    assert source.current("no-such-tag") is None


async def test_a_revision_that_is_not_here(source: PackageSource) -> None:
    with pytest.raises((SourceError, TagNotFound)):
        await source.checkout(Pin("0" * 64))


def test_the_name_says_something(source: PackageSource) -> None:
    assert source.name
