"""`nixery-snap doctor`: each thing that can be wrong is told with what to do about it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.caches import Served
from tests.integration.nixtools import ChrootStore
from tests.integration.server import PROGRAM, Registry, serving
from tests.integration.sources_git import Repository


def doctor(registry: Registry, *arguments: str, **env: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status, and the findings by what they are about."""
    settings = registry.state / "settings.toml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(registry.config)
    done = subprocess.run(
        [*PROGRAM, "doctor", "--json", "--config", str(settings), *registry.options, *arguments],
        env=registry.program_env | env,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, {finding["what"]: finding for finding in json.loads(done.stdout)}


@pytest.fixture
def registry(directory: Path, own_store: ChrootStore) -> Registry:
    return Registry(directory / "state", own_store.root)


def test_all_is_well(registry: Registry, served: Served, directory: Path) -> None:
    (directory / "popularity").write_text('{"hello": 3}')
    registry.env["NIXERY_SNAP_POPULARITY"] = str(directory / "popularity")
    registry.substituters = [served.substituter()]
    registry.config = f'[sources.inner]\nspec = "path:{registry.source}"\nprefix = "inner"\nseparate = true\n'
    status, findings = doctor(registry)
    assert status == 0
    assert {finding["state"] for finding in findings.values()} <= {"ok", "warning"}
    assert "(Nix) 2." in findings["Nix"]["detail"]
    assert "at revision" in findings["source default"]["detail"]
    assert "priority" in findings[f"substituter {registry.substituters[0].url}"]["detail"]
    assert findings["popularity"]["detail"] == "of 1 packages"
    assert "first start" in findings["signing key"]["detail"]
    assert f"disk of {registry.store}/nix" in findings
    assert "can be written" in findings["storage of inner"]["detail"]
    assert not (registry.storage_directory / "secrets").exists(), "nothing is made"
    assert not list(registry.storage_directory.rglob("staging/*")), "nothing is left"


def test_what_is_wrong(registry: Registry, directory: Path) -> None:
    (directory / "old").mkdir()
    (directory / "old/default.nix").write_text(
        'throw "This version of Nixpkgs requires Nix >= 99.9, please upgrade"'
    )
    (directory / "popularity").write_text("[]")
    registry.config = f"""
popularity = "{directory}/popularity"
substituters = [{{ url = "http://127.0.0.1:9" }}]
[sources.gone]
spec = "git+file://{directory}/no-repository"
prefix = "gone"
[sources.old]
spec = "path:{directory}/old"
prefix = "old"
[binary_cache]
signing_key_file = "{directory}/no-key"
"""
    registry.substituters = None
    status, findings = doctor(registry, "--containerd", f"unix://{directory}/no-socket")
    assert status == 1
    failed = {what: finding["detail"] for what, finding in findings.items() if finding["state"] == "failed"}
    assert set(failed) == {
        "signing key",
        "popularity",
        "source gone",
        "source old",
        "substituter http://127.0.0.1:9",
        f"containerd unix://{directory}/no-socket",
    }
    assert "nix key generate-secret" in failed["signing key"]
    assert "no-repository" in failed["source gone"]
    assert "too old" in failed["source old"]
    assert "cannot be reached" in failed["substituter http://127.0.0.1:9"]


def test_a_source_that_is_gone_since(registry: Registry, directory: Path) -> None:
    """What the server remembers of it is no answer."""
    repository = Repository.create(directory / "repository")
    registry.config = f'[sources.git]\nspec = "{repository.url}"\nprefix = "git"\n'
    with serving(registry):
        assert registry.manifest("git/none").status == 404
    assert list(registry.storage_directory.glob("pins/*")), "it is remembered"
    assert doctor(registry)[1]["source git"]["state"] == "ok"
    repository.root.rename(directory / "elsewhere")
    assert doctor(registry)[1]["source git"]["state"] == "failed"


def test_without_nix(registry: Registry, directory: Path) -> None:
    status, findings = doctor(registry, PATH=str(directory))
    assert status == 1
    assert "install Nix" in findings["Nix"]["detail"]
    assert findings["storage"]["state"] == "ok"


def test_no_daemon(registry: Registry, directory: Path) -> None:
    status, findings = doctor(
        registry, "--store", "daemon", NIX_DAEMON_SOCKET_PATH=str(directory / "no-daemon")
    )
    assert status == 1
    assert "daemon" in findings["Nix store"]["detail"]
    assert findings["Nix"]["state"] == "ok"


def test_as_a_table(registry: Registry) -> None:
    done = subprocess.run(
        [*PROGRAM, "doctor", *registry.options],
        env=registry.program_env | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert "ok  Nix store" in done.stdout
