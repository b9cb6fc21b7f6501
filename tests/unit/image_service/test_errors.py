"""Errors as gRPC statuses."""

import grpc
import pytest

from nixery_snap import errors
from nixery_snap.errors import NixerySnapError
from nixery_snap.image_service.errors import STATUSES, message_of, status_of
from tests.unit.registry.test_errors import EVERY, SAMPLES


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_has_its_row(kind: type[NixerySnapError]) -> None:
    assert any(ancestor in STATUSES for ancestor in kind.__mro__)
    assert NixerySnapError not in STATUSES, "the root would hide what is missing"


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_every_message_can_be_sent(error: NixerySnapError) -> None:
    assert status_of(error) is not grpc.StatusCode.OK
    assert message_of(error).encode()


def test_the_most_specific_row_counts() -> None:
    assert status_of(errors.ContainerdUnreachable("x")) is grpc.StatusCode.UNAVAILABLE
    assert status_of(errors.ContainerdRefused("x", "y")) is grpc.StatusCode.INTERNAL
    assert message_of(errors.InvalidName("\udcff", "x")) == "invalid image name '\\udcff': x"
