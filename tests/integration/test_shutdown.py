"""SIGTERM: no new work, but what runs is finished; and what takes too long can be asked for again."""

import threading
import time
from pathlib import Path

import pytest

from tests.integration.nixtools import ChrootStore
from tests.integration.processes import wait_until
from tests.integration.server import Registry, Response, Start


def test_running_builds_are_finished(directory: Path, own_store: ChrootStore) -> None:
    registry = Registry(directory / "state", own_store.root).start()
    answers: list[Response] = []
    client = threading.Thread(target=lambda: answers.append(registry.manifest("slow")))
    client.start()
    registry.wait_for_event("evaluated")
    begun = time.monotonic()
    assert registry.stop() == 0
    client.join()
    assert [answer.status for answer in answers] == [200]
    assert 1 < time.monotonic() - begun < 10  # it waited for the build, and not much longer


def test_who_waits_for_what_is_given_up_is_told_so(directory: Path, own_store: ChrootStore) -> None:
    registry = Registry(
        directory / "state", own_store.root, config="[limits]\nshutdown_timeout = 0.2\n"
    ).start()
    answers: list[Response] = []
    client = threading.Thread(target=lambda: answers.append(registry.manifest("slow")))
    client.start()
    registry.wait_for_event("evaluated")
    assert registry.stop() == 0
    client.join()
    [answer] = answers
    assert (answer.status, answer.error["code"]) == (503, "UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1
    assert "shut down" in answer.error["message"]
    assert registry.events("stopped")[0]["images_given_up"] == 1


def test_nobody_new_is_let_in_meanwhile(directory: Path, own_store: ChrootStore) -> None:
    registry = Registry(directory / "state", own_store.root).start()
    client = threading.Thread(target=lambda: registry.manifest("slow"))
    client.start()
    registry.wait_for_event("evaluated")
    daemon = registry.daemon
    assert daemon is not None
    daemon.process.terminate()

    def refused() -> bool:
        try:
            return registry.get("/readyz").status == 503
        except OSError:
            return True

    try:
        wait_until(refused, seconds=2, what="new clients are turned away")
        assert daemon.process.poll() is None, "while the build is still running"
    finally:
        client.join()
        assert daemon.process.wait(20) == 0  # a second SIGTERM could hit it when it listens to none any more
        registry.stop()


def test_an_idle_server_stops_at_once(directory: Path, prepared_store: ChrootStore) -> None:
    registry = Registry(directory / "state", prepared_store.root).start()
    registry.pull("hello")
    begun = time.monotonic()
    assert registry.stop() == 0
    assert time.monotonic() - begun < 3


def test_longer_than_a_client_waits(directory: Path, own_store: ChrootStore, start: Start) -> None:
    """The client is told to come back; the work goes on meanwhile and is not begun again."""
    patience = {"NIXERY_SNAP_NIX__WAIT_TIMEOUT": "1"}
    registry = start(Registry(directory / "state", own_store.root, env=patience))
    first = registry.manifest("slow")
    assert first.status == 503
    assert first.error["code"] == "UNAVAILABLE"
    assert "slow" in first.error["message"], "it says what is going on"
    assert int(first.headers["retry-after"]) >= 1
    wait_until(lambda: registry.manifest("slow").status == 200, seconds=20, what="slow is built")
    assert len(registry.events("evaluated")) == 1
    assert len(registry.events("assembled")) == 1


def test_longer_than_a_build_may_take(directory: Path, own_store: ChrootStore, start: Start) -> None:
    limit = {"NIXERY_SNAP_NIX__BUILD_TIMEOUT": "1"}
    registry = start(Registry(directory / "state", own_store.root, env=limit))
    answer = registry.manifest("slow")
    assert 400 <= answer.status < 500
    assert "build_timeout" in answer.error["message"]


@pytest.mark.parametrize("storage", ["memory://", ""])
def test_logs_are_json_lines(
    directory: Path, prepared_store: ChrootStore, start: Start, storage: str
) -> None:
    registry = start(Registry(directory / "state", prepared_store.root, storage=storage))
    registry.pull("hello")
    registry.manifest("helo")
    lines = registry.log_lines()
    assert {"evaluated", "assembled"} <= {line["event"] for line in lines}
    assert all({"level", "timestamp"} <= line.keys() for line in lines)
