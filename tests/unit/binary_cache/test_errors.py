from collections.abc import Iterator

import pytest

from nixery_snap import errors
from nixery_snap.binary_cache.errors import STATUSES, refusal, status_of
from nixery_snap.errors import NixerySnapError


def below(kind: type[NixerySnapError]) -> Iterator[type[NixerySnapError]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


EVERY = sorted(set(below(NixerySnapError)), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_has_its_row(kind: type[NixerySnapError]) -> None:
    assert any(ancestor in STATUSES for ancestor in kind.__mro__)
    assert NixerySnapError not in STATUSES, "the root would hide what is missing"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.BlobNotFound("x"), 404),
        (errors.InvalidFormat("narinfo", "x", "x"), 404),
        (errors.BadSignature("https://cache.example", "/nix/store/x", ()), 404),
        (errors.SubstituterUnreachable("https://cache.example", "x"), 503),
        (errors.StorageError("x"), 500),
        (errors.StorageUnavailable("x"), 503),
        (errors.StorageFull("x"), 503),
    ],
)
def test_statuses(error: NixerySnapError, status: int) -> None:
    assert status_of(error) == status


def test_a_refusal_is_one_line_of_utf_8() -> None:
    assert refusal(404, "odd \udc80\r\ntext\n").body == b"odd ? text\n"
