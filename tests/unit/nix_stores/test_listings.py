import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix import listing
from nixery_snap.nix.file_tree import Directory, Node, Regular
from nixery_snap.nix_stores.listings import _LARGE_BYTES, parse_listing

SMALL = json.dumps({"version": 1, "root": {"type": "regular", "size": 1}}).encode()


def test_large_ones_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    running = {"small": 0, "large": 0}
    most = dict(running)
    small_ones = threading.Barrier(4)

    def parse(text: bytes) -> Node:
        kind = "large" if len(text) > _LARGE_BYTES else "small"
        running[kind] += 1
        most[kind] = max(most[kind], running[kind])
        if kind == "small":
            small_ones.wait(60)  # none of them waits for another, nor for large ones
        else:
            time.sleep(0.02)
        running[kind] -= 1
        return Regular(1, False)

    monkeypatch.setattr(listing, "parse", parse)
    texts = [SMALL + bytes(_LARGE_BYTES), SMALL] * 4
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(parse_listing, texts)) == [Regular(1, False)] * 8
    assert most == {"large": 1, "small": 4}


def test_failures_do_not_stand_in_the_way() -> None:
    large = b'{"version": 1, "root": {"type": "directory", "entries": {}}}' + b" " * _LARGE_BYTES
    for _ in range(2):
        assert parse_listing(large) == Directory()
        with pytest.raises(InvalidFormat):
            parse_listing(large + b"}")
    with pytest.raises(InvalidFormat, match="larger than"):
        parse_listing(b" " * (listing.MAX_SIZE + 1))
