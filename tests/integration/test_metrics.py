"""What Prometheus is told of real requests, by several processes as if they were one."""

from __future__ import annotations

import json
import socket
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.caches import Served
from tests.integration.images import annotated_paths
from tests.integration.need import need
from tests.integration.nixtools import ChrootStore
from tests.integration.processes import Daemon, free_port, run, wait_until
from tests.integration.server import Registry, Response, Start, request

ROOT = Path(__file__).parents[2]
WORKERS = 3


class Samples(Counter[tuple[str, frozenset[tuple[str, str]]]]):
    """Values by name, without what all names have in common, and labels."""

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of all that have these labels, whatever else they have."""
        return sum(
            value for (known, has), value in self.items() if known == name and has >= set(labels.items())
        )

    def since(self, before: Samples) -> Samples:
        return Samples({key: value - before[key] for key, value in self.items()})


class Scraped:
    """A registry with metrics, and what they say."""

    def __init__(self, registry: Registry, **env: str) -> None:
        """To be started."""
        registry.env = {"NIXERY_SNAP_METRICS__LISTEN": "127.0.0.1:0", **env}
        self.registry = registry

    @property
    def port(self) -> int:
        self.registry.wait_for_event("metrics-served")  # another worker may have been ready before
        [served] = self.registry.events("metrics-served")
        return int(served["listen"].rpartition(":")[2])

    def get(self, path: str = "/metrics") -> Response:
        return request(self.port, "GET", path)

    def scrape(self) -> str:
        """As Prometheus does, again when another worker was too busy to answer in time."""
        answers: list[Response] = []

        def answered() -> bool:
            answers.append(self.get())
            return answers[-1].status != 503

        wait_until(answered, seconds=60, what="all workers tell their metrics")
        assert answers[-1].status == 200, answers[-1]
        return answers[-1].body.decode()

    def samples(self) -> Samples:
        return Samples(
            {
                (sample.name.removeprefix("nixery_snap_"), frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(self.scrape())
                for sample in family.samples
            }
        )


@pytest.fixture
def several(cold: Registry, served: Served, start: Start) -> Scraped:
    """Workers that have nothing yet, and a binary cache that has everything."""
    cold.substituters = [served.substituter()]
    found = Scraped(cold, NIXERY_SNAP_WORKERS=str(WORKERS))
    start(cold)
    wait_until(lambda: len(cold.events("serving")) == WORKERS, seconds=60, what="all workers serve")
    return found


def test_all_workers_are_counted_together(several: Scraped, prepared_store: ChrootStore) -> None:
    registry, name = several.registry, "nix-snapshotter/shell/hello"
    before = several.samples()
    manifests = [registry.manifest(name) for _ in range(40)]  # each connection goes to some worker
    assert {answer.status for answer in manifests} == {200}
    [layer] = manifests[0].json()["layers"]
    for _ in range(5):
        assert registry.get(f"/v2/{name}/blobs/{layer['digest']}").status == 200
        assert registry.manifest("no-such-package-anywhere").status == 404
        assert registry.get("/nowhere?really").status == 404
        assert registry.get("/nix-cache/" + "0" * 32 + ".narinfo").status == 404
    more = several.samples().since(before)
    requests = partial(more, "http_requests_total")
    assert requests(route="manifest", format="nix-snapshotter", code="200") == 40
    assert requests(route="manifest", code="404") == 5
    assert requests(route="blob", code="200") == 5
    assert requests(route="other", code="404") == 5
    assert requests(route="narinfo", code="404") == 5
    assert more("http_response_bytes_total", format="nix-snapshotter") == 40 * len(manifests[0].body)
    assert more("http_response_bytes_total", route="blob") == 5 * layer["size"]
    closure = annotated_paths(layer)
    nar_bytes = sum(map(int, prepared_store.run("nix-store", "--query", "--size", *closure).split()))
    assert more("saved_bytes_total") == 40 * nar_bytes
    # One worker has made the image; the others found its record, and then answered from memory.
    assert more("manifest_seconds_count", outcome="evaluated") == 1
    assert more("manifest_seconds_count", outcome="failed") == 5
    by_handler = requests(route="manifest", code="200", answered_by="handler")
    assert more("manifest_seconds_count", outcome="hit") == by_handler - 1
    for step, event in (("evaluate", "evaluated"), ("locate", "located"), ("assemble", "assembled")):
        assert more("step_seconds_count", step=step) == len(registry.events(event))
    assert more("step_failures_total") == 0


def test_what_substituters_do(several: Scraped, served: Served) -> None:
    registry = several.registry
    assert registry.manifest("classic/hello").status == 200
    found = several.samples()
    asked = served.accesses()
    assert found("substituter_request_seconds_count", substituter=served.url) == len(asked)
    assert found("substituter_received_bytes_total", substituter=served.url) == sum(
        one.sent_bytes for one in asked if one.status == 200
    )
    assert found("substituter_failures_total", substituter=served.url) == 0
    assert found("substituter_up", substituter=served.url) == 1
    assert found("step_seconds_count", step="pack") >= 1
    assert found("packed_bytes_total") > 0
    assert found("cache_bytes", cache="manifests") > 0


def test_what_is_built_and_published(cold: Registry, start: Start) -> None:
    found = Scraped(cold)
    start(cold)
    assert cold.manifest("nix-snapshotter/hello").status == 200
    samples = found.samples()
    assert samples("manifest_seconds_count", outcome="realised") == 1
    assert samples("step_seconds_count", step="realise") == len(cold.events("realised")) == 1
    published = list(cold.storage_directory.glob("nar/*"))
    assert samples("published_paths_total") == len(published) - 1  # the closure-info path is of no image
    assert samples("published_bytes_total") < sum(file.stat().st_size for file in published)
    assert samples("step_seconds_count", step="publish") == len(cold.events("published")) == 1
    assert samples("substituter_request_seconds_count", substituter="own") > 0
    assert samples("storage_errors_total") == 0


def test_they_are_shown_nowhere_else(cold: Registry, start: Start) -> None:
    found = Scraped(cold)
    start(cold)
    assert cold.get("/metrics").status == 404
    assert found.get("/").status == 404
    assert found.get("/v2/").status == 404
    assert request(found.port, "POST", "/metrics").status == 405


def test_an_address_that_is_taken(cold: Registry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        cold.env = {"NIXERY_SNAP_METRICS__LISTEN": address}
        with pytest.raises(AssertionError, match=f"metrics.listen: cannot listen on {address}"):
            cold.start()
    cold.stop()


# --- Prometheus itself -----------------------------------------------------------------------------

PROMETHEUS = """
global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}
rule_files: [ "{alerts}" ]
scrape_configs:
  - job_name: nixery-snap
    static_configs: [ {{ targets: [ "127.0.0.1:{port}" ] }} ]
"""


@pytest.fixture
def prometheus(several: Scraped, directory: Path) -> Iterator[int]:
    """The port of one that has asked the registry at least twice."""
    need("prometheus")
    port, config = free_port(), directory / "prometheus.yaml"
    config.write_text(PROMETHEUS.format(alerts=ROOT / "deploy/prometheus/alerts.yaml", port=several.port))
    command = ["prometheus", "--log.level=warn", f"--config.file={config}"]
    command += [f"--storage.tsdb.path={directory}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]
    daemon = Daemon(command, log=directory / "prometheus.log")

    def scraped_twice() -> bool:
        try:
            found = asked(port, 'count_over_time(nixery_snap_build_info{job="nixery-snap"}[1m])')
        except (OSError, ValueError):  # it says so before it is ready
            return False
        return bool(found) and float(found[0]["value"][1]) >= 2

    try:
        daemon.wait_ready(scraped_twice, seconds=100)
        yield port
    finally:
        daemon.stop()


def api(port: int, path: str) -> Any:
    answer = request(port, "GET", f"/api/v1/{path}").json()
    assert answer["status"] == "success", (path, answer)
    return answer["data"]


def asked(port: int, query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api(port, f"query?query={urllib.parse.quote(query)}")["result"]
    return found


def test_prometheus_understands_all_of_it(several: Scraped, prometheus: int) -> None:
    for name in ("nix-snapshotter/hello", "classic/hello", "no-such-package"):
        several.registry.manifest(name)
    made = 'nixery_snap_manifest_seconds_count{outcome="failed"} > 0'
    wait_until(lambda: bool(asked(prometheus, made)), seconds=60, what="Prometheus knows of the requests")

    # A scrape that came too late makes it worse for a while.
    def is_well() -> bool:
        [target] = api(prometheus, "targets")["activeTargets"]
        [group] = api(prometheus, "rules")["groups"]
        rules = {(rule["health"], rule["state"]) for rule in group["rules"]}
        return (target["health"], target["lastError"], rules) == ("up", "", {("ok", "inactive")})

    wait_until(is_well, seconds=60, what="the target is up, and no rule is broken or pending")

    dashboard = json.loads((ROOT / "deploy/grafana/nixery-snap.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$__range", "1m")
            query = query.replace("$job", ".*").replace("$instance", ".*")
            if "nixery_snap_pull_" in query:  # no node has pulled anything
                asked(prometheus, query)
                continue
            # A rate takes two scrapes.
            wait_until(lambda query=query: bool(asked(prometheus, query)), seconds=60, what=panel["title"])


def test_promtool(several: Scraped) -> None:
    need("promtool")
    several.registry.manifest("nix-snapshotter/hello")
    assert run("promtool", "check", "metrics", stdin=several.scrape()).stderr == ""
    run("promtool", "check", "rules", ROOT / "deploy/prometheus/alerts.yaml")
    run("promtool", "test", "rules", ROOT / "tests/data/prometheus/alerts-test.yaml")
