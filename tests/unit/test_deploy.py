"""deploy/: the Helm chart, rendered by Helm's own engine and checked against Kubernetes' schemas; plain manifests.

`python -m tests.unit.test_deploy` writes the plain manifests anew.
"""

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from nixery_snap.errors import SettingsError
from nixery_snap.settings import load_settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/nixery-snap"
PLAIN = ROOT / "deploy/kubernetes"
VARIANTS = ("registry", "replicated")
# The oldest that Chart.yaml allows, and one of today.
RELEASES = ("1.25", "1.37")
NOT_KUBERNETES = {"ServiceMonitor"}
HEADER = "# Made by tests/unit/test_deploy.py of values-{}.yaml beside it and of the chart in deploy/helm.\n"

Json = dict[str, Any]


if sys.platform == "linux":
    import helm_python as helm
else:  # it has no wheel for every other machine
    pytest.skip("Helm as a library is for Linux", allow_module_level=True)


@cache
def values_of(variant: str) -> Json:
    values: Json = yaml.safe_load((PLAIN / f"values-{variant}.yaml").read_text())
    return values


def render(values: Json) -> str:
    """All manifests in the order of their files. Raises helm_python.HelmError."""
    chart = helm.Chart.load(CHART)
    chart.validate_schema(values)
    rendered = chart.render(values, name="nixery-snap", namespace="nixery-snap")
    files = {path: text.strip() for path, text in rendered.items() if path.endswith(".yaml") and text.strip()}
    return "".join(f"---\n{text}\n" for _, text in sorted(files.items()))


def objects(text: str) -> list[Json]:
    return [one for one in yaml.safe_load_all(text) if one is not None]


def plain(name: str) -> str:
    """Without what tells that Helm has made it: nobody else knows of such a release."""
    return HEADER.format(name) + re.sub(
        r"(?m)^ *(?:helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", "", render(values_of(name))
    )


@cache
def variant(name: str) -> tuple[Json, ...]:
    return tuple(objects(render(values_of(name))))


def one(kind: str, name: str, suffix: str = "") -> Json:
    [found] = [
        one
        for one in variant(name)
        if one["kind"] == kind and one["metadata"]["name"] == f"nixery-snap{suffix}"
    ]
    return found


def refusal(**values: Any) -> str:
    with pytest.raises(helm.HelmError) as caught:
        render({"image": {"repository": "r.example/x"}, **values})
    return str(caught.value)


def test_helm_finds_nothing_to_complain_about() -> None:
    for name in VARIANTS:
        report = helm.lint(CHART, values_of(name), strict=True)
        assert report["errors"] == []
        assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", VARIANTS)
def test_kubernetes_takes_every_object(name: str, release: str) -> None:
    for found in variant(name):
        if found["kind"] not in NOT_KUBERNETES:
            kubernetes_validate.validate(found, release, strict=True)


def test_there_is_one_of_every_kind() -> None:
    assert {found["kind"] for found in variant("replicated")} == {
        "ConfigMap",
        "DaemonSet",
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
    }
    assert {found["kind"] for found in variant("registry")} >= {"Deployment", "Ingress", "Service"}


@pytest.mark.parametrize("name", VARIANTS)
def test_plain_manifests_are_those_of_the_chart(name: str) -> None:
    assert (PLAIN / f"{name}.yaml").read_text() == plain(name)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_program_takes_the_settings(name: str, tmp_path: Path) -> None:
    serving: set[str] = set()
    for found in variant(name):
        for text in found.get("data", {}).values() if found["kind"] == "ConfigMap" else ():
            (tmp_path / "settings.toml").write_text(text)
            settings = load_settings(tmp_path / "settings.toml", {}, {})
            assert settings.image_service.listen == "unix:///run/nixery-snap/image.sock"
            assert settings.storage.startswith("file:///var/lib/nixery-snap")
            serving |= {settings.metrics.listen} - {""}
    [deployment] = [found for found in variant(name) if found["kind"] == "Deployment"]
    ports = deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert serving == {f"0.0.0.0:{port['containerPort']}" for port in ports if port["name"] == "metrics"}


def test_what_a_value_may_override(tmp_path: Path) -> None:
    given = {"storage": "memory://", "workers": 3, "nix": {"builds": 9}}
    found = objects(render({"image": {"repository": "r.example/x"}, "settings": given}))
    [text] = [one["data"]["settings.toml"] for one in found if one["kind"] == "ConfigMap"]
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(SettingsError, match="workers"):
        load_settings(tmp_path / "settings.toml", {}, {})
    settings = load_settings(tmp_path / "settings.toml", {"workers": 1}, {})
    assert (settings.storage, settings.nix.builds) == ("memory://", 9)
    assert settings.nix.store == "/var/lib/nixery-snap/nix"  # a table is merged, not replaced


@pytest.mark.parametrize("name", VARIANTS)
def test_parts_fit_together(name: str) -> None:
    deployment, service = one("Deployment", name), one("Service", name)
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    [container] = template["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    templates = [
        found["spec"]["template"]["spec"] for found in variant(name) if "template" in found.get("spec", {})
    ]
    assert len(templates) == {"registry": 1, "replicated": 2}[name]
    for pods in templates:
        volumes = {volume["name"] for volume in pods["volumes"]}
        for each in pods["containers"]:
            assert {mount["name"] for mount in each["volumeMounts"]} == volumes
            security = each["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert template["spec"]["terminationGracePeriodSeconds"] > {"registry": 60, "replicated": 120}[name]


def test_labels_tell_registry_and_nodes_apart() -> None:
    registry = one("Deployment", "replicated")["spec"]["selector"]["matchLabels"]
    nodes = one("DaemonSet", "replicated", "-node")["spec"]["template"]["metadata"]["labels"]
    assert not registry.items() <= nodes.items()


def test_what_stands_around_the_registry_means_its_pods() -> None:
    deployment, service = one("Deployment", "replicated"), one("Service", "replicated")
    pods, [container] = deployment["spec"]["template"], deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    scaling = one("HorizontalPodAutoscaler", "replicated")["spec"]
    assert scaling["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"], "an upgrade would undo the scaling"
    assert container["resources"]["requests"]["cpu"], "of which the scaling takes percents"

    disruption = one("PodDisruptionBudget", "replicated")["spec"]
    network = one("NetworkPolicy", "replicated")["spec"]
    for chosen in (disruption["selector"], network["podSelector"]):
        assert chosen["matchLabels"].items() <= pods["metadata"]["labels"].items()
    assert 0 < disruption["minAvailable"] < scaling["minReplicas"] <= scaling["maxReplicas"]
    rules = {port["port"]: rule.get("from") for rule in network["ingress"] for port in rule["ports"]}
    assert rules.keys() == ports
    assert rules == {"http": [{"podSelector": {}}], "metrics": [{"namespaceSelector": {}}]}

    monitor = one("ServiceMonitor", "replicated")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [endpoint] = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    assert re.fullmatch(r"\d+(ms|s|m|h)", endpoint["interval"])


def test_changed_settings_make_new_pods() -> None:
    def checksum(**settings: str) -> str:
        found = objects(render({"image": {"repository": "r.example/x"}, "settings": settings}))
        [deployment] = [one for one in found if one["kind"] == "Deployment"]
        return str(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/settings"])

    assert checksum(source="channel:a") == checksum(source="channel:a") != checksum(source="channel:b")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": {}}, "docs/installation.md says how to make an image"),
        ({"replicas": 2}, "signingKeySecret is empty"),
        ({"replicas": 2, "signingKeySecret": "key"}, "set persistence.accessModes to [ReadWriteMany]"),
        ({"autoscaling": {"enabled": True}}, "signingKeySecret is empty"),
        ({"node": {"enabled": True}}, "node.image is empty"),
        ({"ingress": {"enabled": True}}, "ingress.host is empty"),
        ({"replicas": 0}, "replicas"),
        ({"replica": 1}, "replica"),
        ({"service": {"port": 70000}}, "port"),
        ({"persistence": {"accessModes": ["ReadOnlyMany"]}}, "accessModes"),
    ],
)  # fmt: skip
def test_contradictions_say_what_to_do(values: Json, said: str) -> None:
    assert said in refusal(**values)


def test_every_value_is_in_the_schema_and_has_a_default() -> None:
    def keys(schema: Json) -> Any:
        return {name: keys(inner) for name, inner in schema.get("properties", {}).items() if name != "global"}

    def shape(values: Any, schema: Any) -> Any:
        return {
            name: shape(inner, schema.get(name, {})) if schema.get(name) else {}
            for name, inner in values.items()
        }

    schema = keys(json.loads((CHART / "values.schema.json").read_text()))
    assert shape(yaml.safe_load((CHART / "values.yaml").read_text()), schema) == schema


if __name__ == "__main__":
    for each in VARIANTS:
        (PLAIN / f"{each}.yaml").write_text(plain(each))
