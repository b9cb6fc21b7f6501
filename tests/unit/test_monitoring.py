"""docs/monitoring.md says of metrics and log events what the source does: no more, no less; so do deploy/'s alerts
and dashboard.
"""

import ast
import json
import re
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase

from nixery_snap import metrics

ROOT = Path(__file__).parents[2]
MANUAL = (ROOT / "docs/monitoring.md").read_text()
LEVELS = {"info", "warning", "error", "exception", "critical"}
# Calls of this log under the name that is their first argument.
LOGS_ITS_ARGUMENT = {"nixery_snap/imaging/pipeline.py": "_timed"}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    section = MANUAL.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def name_of(metric: MetricWrapperBase) -> str:
    return metric._name + ("_total" if metric._type == "counter" else "")


OURS = {name_of(metric): metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)}


def test_every_metric_is_in_the_table_with_its_labels() -> None:
    told = {name.strip("`"): set(re.findall(r"`(\w+)`", labels)) for name, labels, _ in rows("Metrics")}
    assert told == {name: set(metric._labelnames) for name, metric in OURS.items()}


def test_every_metric_is_of_the_registry_that_is_served() -> None:
    served = {family.name for family in metrics.REGISTRY.collect()}
    assert {metric._name for metric in OURS.values()} <= served


@pytest.mark.parametrize("name", sorted(OURS))
def test_names_follow_the_conventions(name: str) -> None:
    metric = OURS[name]
    assert name.startswith("nixery_snap_")
    assert name.endswith("_seconds") == (metric._type == "histogram")
    assert metric._documentation.endswith(".")


def logged(path: Path) -> list[tuple[str, str, set[str]]]:
    """Name, level and fields of each event, without those that are never shown."""
    found = []
    indirect = LOGS_ITS_ARGUMENT.get(str(path.relative_to(ROOT)))
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id == indirect:
            level = "info"
        elif (
            isinstance(function, ast.Attribute)
            and isinstance(function.value, ast.Name)
            and function.value.id == "log"
            and function.attr in LEVELS
        ):
            level = "error" if function.attr == "exception" else function.attr
        else:
            continue
        [event, *_] = node.args
        if isinstance(event, ast.Name) and indirect:
            continue
        assert isinstance(event, ast.Constant), f"{path}:{node.lineno}: the name of an event is constant"
        assert isinstance(event.value, str)
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", event.value), event.value
        fields = {keyword.arg for keyword in node.keywords if keyword.arg}
        found.append(
            (event.value, level, {"exception" if field == "exc_info" else field for field in fields})
        )
    return found


def test_every_event_is_in_the_table_with_its_levels() -> None:
    table = rows("Log events")
    assert table == sorted(table, key=lambda row: row[0].strip("`"))
    told = {event.strip("`"): (set(levels.split(", ")), text) for event, levels, text in table}
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "nixery_snap").rglob("*.py")):
        for event, level, fields in [] if "generated" in path.parts else logged(path):
            found[event].add(level)
            lacking = {field for field in fields if f"`{field}`" not in told.get(event, ("", ""))[1]}
            assert not lacking, f"{event}: {lacking} are not in the manual"
    assert {event: levels for event, (levels, _) in told.items()} == found


# --- deploy/ ---------------------------------------------------------------------------------------

ALERTS = (ROOT / "deploy/prometheus/alerts.yaml").read_text()
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/nixery-snap.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
OF_PROMETHEUS = {"job", "instance", "le"}
SERIES = {
    series: metric
    for name, metric in OURS.items()
    for series in (
        [name + part for part in ("_bucket", "_sum", "_count")] if name.endswith("_seconds") else [name]
    )
}


def queries() -> list[str]:
    """Each in PromQL, of alerts and dashboard."""
    of_alerts = re.findall(r"expr: (?:\|\n)?((?:.|\n)*?)\n        for:", ALERTS)
    of_panels = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]
    assert len(of_alerts) == ALERTS.count("expr:")
    return [*of_alerts, *of_panels]


@pytest.mark.parametrize("query", queries())
def test_what_is_asked_for_is_there(query: str) -> None:
    asked = re.findall(r"\b(nixery_snap_\w+|process_\w+)(?:\{([^}]*)\})?", query)
    assert asked
    labels = set(OF_PROMETHEUS)
    for name, selector in asked:
        if name.startswith("nixery_snap_"):
            own = set(SERIES[name]._labelnames)
            assert set(re.findall(r"(\w+)(?:=~|!=|!~|=)", selector)) <= own | OF_PROMETHEUS
            labels |= own
        else:
            assert name in {sample.name for family in metrics.REGISTRY.collect() for sample in family.samples}
    for grouped in re.findall(r"\bby \(([^)]*)\)", query):
        assert set(re.split(r",\s*", grouped)) <= labels


def test_every_name_anywhere_is_a_metric() -> None:
    files = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "tests/data/prometheus").iterdir()]
    for file in files:
        named = set(re.findall(r"\bnixery_snap_\w+", file.read_text()))
        assert named <= OURS.keys() | SERIES.keys(), file


def test_every_alert_is_in_the_table_with_its_severity() -> None:
    told = {alert.strip("`"): severity for alert, severity, _ in rows("Alerts")}
    names = re.findall(r"- alert: (\w+)", ALERTS)
    assert told == dict(zip(names, re.findall(r"severity: (\w+)", ALERTS), strict=True))
    tests = (ROOT / "tests/data/prometheus/alerts-test.yaml").read_text()
    assert all(re.search(rf"alertname: {name}\n +exp_alerts:", tests) for name in names)


def test_panels_have_places_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
