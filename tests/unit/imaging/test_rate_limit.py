from __future__ import annotations

import pytest

from nixery_snap.errors import TooManyRequests
from nixery_snap.imaging.admission import ClientLimit
from nixery_snap.imaging.rate_limit import RateLimit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_fills_again() -> None:
    clock = Clock()
    limit = RateLimit(6, 60, "enough", clock)
    for _ in range(6):
        limit.check("a")
        limit.take("a")
    with pytest.raises(TooManyRequests, match="enough; pull again in 10 s") as raised:
        limit.check("a")
    assert raised.value.retry_after_seconds == 10
    limit.check("b")
    clock.now = 9.9
    with pytest.raises(TooManyRequests):
        limit.check("a")
    clock.now = 10.1
    limit.check("a")
    limit.take("a")
    clock.now = 10_000
    for _ in range(6):
        limit.check("a")
        limit.take("a")
    with pytest.raises(TooManyRequests):
        limit.check("a")


def test_what_was_taken_too_much_is_bounded() -> None:
    clock = Clock()
    limit = RateLimit(1, 60, "enough", clock)
    for _ in range(1000):
        limit.take("a")
    clock.now = 661
    limit.check("a")


def test_no_limit() -> None:
    limit = RateLimit(0, 60, "enough")
    for _ in range(100):
        limit.check("a")
        limit.take("a")
    assert not limit._buckets


def test_clients_are_forgotten() -> None:
    limit = RateLimit(2, 60, "enough", Clock())
    for number in range(70_000):
        limit.take(f"client {number}")
    assert len(limit._buckets) == 65536


def test_new_images_of_a_client() -> None:
    limit = ClientLimit(10, 3)
    for _ in range(3):
        limit.begin("a")
        limit.end("a")
    with pytest.raises(TooManyRequests, match=r"limits\.client_new_images") as raised:
        limit.begin("a")
    assert raised.value.retry_after_seconds > 1000
    assert not limit._busy, "what was refused does not count as busy"
    limit.begin("b")
