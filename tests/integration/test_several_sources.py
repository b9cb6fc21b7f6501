"""More than one package set behind one server, by prefix and by host; and what tags there are."""

import contextlib
import http.client
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.nixtools import EXAMPLES, ChrootStore
from tests.integration.processes import Daemon, free_port, run
from tests.integration.server import OCI_MANIFEST, PROGRAM, Registry, Start, program_env
from tests.integration.sources_git import Repository, git_server, http_backend

SETS = {"company": "hello", "other": "singleFile"}  # what `tool` is in each


@pytest.fixture
def registry(directory: Path, own_store: ChrootStore, start: Start) -> Iterator[Registry]:
    config = 'trusted_proxies = ["127.0.0.2"]\n'
    for name, package in SETS.items():
        shutil.copytree(EXAMPLES, directory / name / "examples")
        (directory / name / "default.nix").write_text(
            f"arguments: {{ tool = (import ./examples arguments).{package}; }}\n"
        )
        config += f"""
[sources.{name}]
spec = "path:{directory / name}"
prefix = "{name}"
hosts = ["{name}.example"]
"""
    return start(Registry(directory / "state", own_store.root, config=config))


def test_by_prefix_and_by_host(registry: Registry) -> None:
    images = {name: registry.pull(f"{name}/tool") for name in SETS}
    assert images["company"].digest != images["other"].digest
    # The same bytes of a request, asked again, are answered without being parsed: of the right source.
    for name, image in [*images.items()] * 3:
        host = f"{name.upper()}.example:5000"
        assert (
            registry.get("/v2/tool/manifests/latest", Accept=OCI_MANIFEST, Host=host).body
            == image.manifest_bytes
        )
    assert registry.manifest("tool").status == 404, "the default source has none"
    assert registry.manifest("hello").status == 200


def test_a_client_that_says_it_is_a_proxy(registry: Registry) -> None:
    """The same bytes, which mean the company's source only when they come from the proxy."""
    target = "/v2/hello/manifests/latest"
    found = []
    for address in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
        connection = http.client.HTTPConnection(
            "127.0.0.1", registry.port, timeout=280, source_address=(address, 0)
        )
        with contextlib.closing(connection):
            for _ in range(2):
                connection.request("GET", target, headers={"X-Forwarded-Host": "company.example"})
                answer = connection.getresponse()
                answer.read()
                found.append(answer.status)
    assert found == [200, 200, 404, 404, 200, 200]


def test_tags(registry: Registry) -> None:
    for name in ("hello", "company/tool", "shell/arm64/hello"):
        answer = registry.get(f"/v2/{name}/tags/list")
        assert answer.status == 200
        assert answer.json() == {"name": name, "tags": ["latest"]}
        assert "link" not in answer.headers
    assert registry.get("/v2/hello/tags/list?last=latest").json()["tags"] == []
    assert registry.get("/v2/hello/tags/list?n=0").json()["tags"] == []
    for query in ("n=-1", "n=x", "n=%C2%B2", f"n={'9' * 5000}"):
        assert registry.get(f"/v2/hello/tags/list?{query}").error["code"] == "NAME_INVALID"
    assert registry.get("/v2/Hello/tags/list").error["code"] == "NAME_INVALID"


def test_where_each_image_is_from(directory: Path, own_store: ChrootStore, start: Start) -> None:
    """Two copies of one repository have the same revisions, and each image tells its own."""
    http_backend()
    first = Repository.create(directory / "served/first.git")
    first.commit({"default.nix": f"import {EXAMPLES}"})
    shutil.copytree(first.root, directory / "served/second.git")
    with git_server(directory / "served") as server:
        urls = {name: f"git+http://{server.host}/{name}.git" for name in ("first", "second")}
        config = "".join(
            f'[sources.{name}]\nspec = "{url}"\nprefix = "{name}"\nrestricted = false\n'
            for name, url in urls.items()
        )
        registry = start(Registry(directory / "state", own_store.root, config=config))
        for name in [*urls] * 2:
            annotations = registry.pull(f"{name}/hello").manifest["annotations"]
            assert annotations["org.opencontainers.image.revision"] == first.head
            assert annotations["org.opencontainers.image.source"] == f"{urls[name]}?rev={first.head}"


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ('[sources.default]\nspec = "path:/tmp"\nprefix = "x"', "where it is says `source`"),
        ('[sources.a]\nspec = "path:/tmp"', "give it a spec, and a prefix or hosts"),
        ('[sources.a]\nspec = "path:/tmp"\nprefix = "shell"', "already means a meta-package"),
        ('[sources.a]\nspec = "path:/tmp"\nprefix = "arm64"', "has a meaning already"),
        ('[sources.a]\nspec = "path:/nonexistent"\nprefix = "a"', "sources.a: there is no directory"),
    ],
)
def test_settings_that_make_no_sense(
    directory: Path, own_store: ChrootStore, table: str, complaint: str
) -> None:
    registry = Registry(directory / "state", own_store.root, config=table)
    with pytest.raises(AssertionError):
        registry.start()
    assert complaint in registry.log.read_text()


def test_nixerys_environment(directory: Path, own_store: ChrootStore) -> None:
    """What a user of Nixery has in his deployment starts this server, with the tags of his repository, in pages."""
    repository = directory / "repository"
    shutil.copytree(EXAMPLES, repository)
    for command in (
        ("init", "-q", "-b", "main"),
        ("add", "-A"),
        ("-c", "user.name=x", "-c", "user.email=x@example", "commit", "-qm", "x"),
        *(("tag", f"v{number}") for number in range(5)),
        ("branch", "team/feature"),
    ):
        subprocess.run(["git", "-C", str(repository), *command], check=True)
    env = {
        "NIXERY_PKGS_REPO": f"file://{repository}",
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(directory / "storage"),
        "PORT": str(free_port()),
        "NIXERY_SNAP_CACHE_DIRECTORY": str(directory / "cache"),
        "NIXERY_SNAP_NIX__STORE": str(own_store.root),
        "NIXERY_SNAP_SUBSTITUTERS": "[]",
        "NIXERY_SNAP_SOURCES": "{ default = { restricted = false } }",  # the examples read busybox of the machine
    }
    server = Daemon([*PROGRAM, "serve"], log=directory / "log", env=program_env(directory / "home", **env))
    registry = Registry(directory, own_store.root, port=int(env["PORT"]))
    try:
        server.wait_ready(registry.ready)
        commit = subprocess.check_output(
            ["git", "-C", str(repository), "rev-parse", "HEAD"], text=True
        ).strip()
        for tag in ("latest", "v3", "team--feature", commit):
            image = registry.pull("shell/hello", tag)
            assert image.manifest["annotations"]["org.opencontainers.image.revision"] == commit
        listed, target = [], "/v2/hello/tags/list?n=3"
        while target:
            page = registry.get(target)
            listed += page.json()["tags"]
            assert len(page.json()["tags"]) <= 3
            link = page.headers.get("link", "")
            target = link.partition(">")[0].removeprefix("<")
            assert link.endswith('; rel="next"') or not link
        assert listed == ["latest", "main", "team--feature", *(f"v{number}" for number in range(5))]
        shown = run(*PROGRAM, "inspect", "--json", "hello:v1", env=program_env(directory / "home", **env))
        assert json.loads(shown.stdout)["revision"] == commit
    finally:
        server.stop()
