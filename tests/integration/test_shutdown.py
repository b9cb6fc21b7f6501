"""SIGTERM: no new work, but what runs is finished; and what takes too long can be asked for again."""

import threading
import time
from functools import partial
from pathlib import Path

import pytest

from tests.integration.builds import Builds
from tests.integration.nixtools import ChrootStore
from tests.integration.processes import wait_until
from tests.integration.server import Registry, Response, Start


def test_running_builds_are_finished(directory: Path, own_store: ChrootStore, builds: Builds) -> None:
    registry = Registry(directory / "state", own_store.root, builds.source, config=builds.options).start()
    answers: list[Response] = []
    client = threading.Thread(target=lambda: answers.append(registry.manifest("slow")))
    client.start()
    wait_until(partial(builds.began, "slow"), seconds=60, what="slow is being built")
    daemon = registry.daemon
    assert daemon is not None
    daemon.process.terminate()
    registry.wait_for_event("stopping")
    time.sleep(0.5)  # time to end too early
    assert daemon.process.poll() is None, "it waits for the build"
    builds.go()
    assert daemon.process.wait(100) == 0
    registry.stop()
    client.join()
    assert [answer.status for answer in answers] == [200]
    assert registry.events("stopped")[0]["images_given_up"] == 0


def test_who_waits_for_what_is_given_up_is_told_so(
    directory: Path, own_store: ChrootStore, builds: Builds
) -> None:
    config = f"{builds.options}[limits]\nshutdown_timeout = 0.2\n"
    registry = Registry(directory / "state", own_store.root, builds.source, config=config).start()
    answers: list[Response] = []
    client = threading.Thread(target=lambda: answers.append(registry.manifest("slow")))
    client.start()
    wait_until(partial(builds.began, "slow"), seconds=60, what="slow is being built")
    assert registry.stop() == 0
    client.join()
    [answer] = answers
    assert (answer.status, answer.error["code"]) == (503, "UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1
    assert "shut down" in answer.error["message"]
    assert registry.events("stopped")[0]["images_given_up"] == 1


def test_nobody_new_is_let_in_meanwhile(directory: Path, own_store: ChrootStore, builds: Builds) -> None:
    registry = Registry(directory / "state", own_store.root, builds.source, config=builds.options).start()
    client = threading.Thread(target=lambda: registry.manifest("slow"))
    client.start()
    wait_until(partial(builds.began, "slow"), seconds=60, what="slow is being built")
    daemon = registry.daemon
    assert daemon is not None
    daemon.process.terminate()

    def refused() -> bool:
        try:
            return registry.get("/readyz").status == 503
        except OSError:
            return True

    try:
        wait_until(refused, seconds=50, what="new clients are turned away")  # running work has 60 s
        assert daemon.process.poll() is None, "while the build is still running"
    finally:
        builds.go()
        client.join()
        assert daemon.process.wait(100) == 0  # a second SIGTERM could hit it when it listens to none any more
        registry.stop()


def test_an_idle_server_stops_at_once(directory: Path, prepared_store: ChrootStore) -> None:
    registry = Registry(directory / "state", prepared_store.root).start()
    registry.pull("hello")
    begun = time.monotonic()
    assert registry.stop() == 0
    assert time.monotonic() - begun < 30  # half of shutdown_timeout


def test_longer_than_a_client_waits(
    directory: Path, own_store: ChrootStore, builds: Builds, start: Start
) -> None:
    """The client is told to come back; the work goes on meanwhile and is not begun again."""
    patience = {"NIXERY_SNAP_NIX__WAIT_TIMEOUT": "1"}
    registry = start(
        Registry(directory / "state", own_store.root, builds.source, config=builds.options, env=patience)
    )

    def says_what_is_built() -> bool:
        answer = registry.manifest("slow")
        assert (answer.status, answer.error["code"]) == (503, "UNAVAILABLE")
        assert int(answer.headers["retry-after"]) >= 1
        return "slow" in answer.error["message"].partition("building")[2]

    wait_until(says_what_is_built, seconds=60, what="it says what is going on")
    builds.go()
    wait_until(lambda: registry.manifest("slow").status == 200, seconds=60, what="slow is built")
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
