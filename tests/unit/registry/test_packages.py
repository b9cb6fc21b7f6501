from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, cast

import pytest

from nixery_snap.evaluation.index import Entry
from nixery_snap.evaluation.search import MAX_PAGE, Catalogues, PackageSearch
from nixery_snap.ports import PackageSource, Pin
from nixery_snap.registry.app import make_app
from nixery_snap.registry.context import Registry, new_memory
from nixery_snap.registry.packages import PACKAGE_SEARCH, get_packages
from nixery_snap.web.hot_answers import HotAnswers
from tests.unit.evaluation.indexes import PIN, SYSTEM, Made, package
from tests.unit.web.servers import Client, serving


class OneTag:
    name = "source"

    def current(self, tag: str) -> Pin | None:
        return PIN if tag == "latest" else Pin(tag)


@pytest.fixture
def client() -> Iterator[Client]:
    made = Made()
    names = [("git",), ("gitea",), ("tig",), ("sets", "git2")]
    asyncio.run(
        made.add([Entry(path, package(path, program="git" if path == ("git",) else None)) for path in names])
    )
    source = cast("PackageSource", OneTag())
    nothing = cast("Any", None)  # no images are asked for
    app = make_app(Registry(nothing, nothing, nothing, 1, new_memory(2**20)), access_log=False)
    app[PACKAGE_SEARCH] = PackageSearch(
        {"default": source}, (SYSTEM, "aarch64-linux"), made.indexes, Catalogues(made.indexes)
    )
    if not any(resource.canonical == "/api/v1/packages" for resource in app.router.resources()):
        app.router.add_get("/api/v1/packages", get_packages)
    with serving("uvloop", app, HotAnswers()) as server, server.connect() as connected:
        yield connected


def test_a_page(client: Client) -> None:
    response = client.get(
        "/api/v1/packages?q=GIT&limit=2&offset=1&tag=latest&source=default&system=x86_64-linux"
    )
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-cache"
    assert json.loads(response.body) == {
        "revision": PIN.revision,
        "system": SYSTEM,
        "total": 3,
        "offset": 1,
        "packages": [
            {
                "attribute": name,
                "name": f"{name.split('.')[-1]}-1.0",
                "mainProgram": None,
                "description": text,
            }
            for name, text in (("gitea", "all about gitea"), ("sets.git2", "all about git2"))
        ],
    }
    [first, *_] = json.loads(client.get("/api/v1/packages?q=git").body)["packages"]
    assert (first["attribute"], first["mainProgram"]) == ("git", "git")
    assert client.get("/api/v1/packages?q=git", method="HEAD").status == 200


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("", 400, "words"),
        ("q=", 400, "words"),
        ("q=" + "a" * 201, 400, "characters"),
        ("q=%ff", 200, ""),
        ("q=a&limit=0", 400, f"1 to {MAX_PAGE}"),
        (f"q=a&limit={MAX_PAGE + 1}", 400, f"1 to {MAX_PAGE}"),
        ("q=a&limit=x", 400, "number"),
        ("q=a&offset=-1", 400, "number"),
        ("q=a&offset=%D9%A1", 400, "number"),
        ("q=a&offset=99999999999999", 400, "number"),
        ("q=a&page=2", 400, "parameters are limit, offset, q"),
        ("q=a&tag=.x", 400, "tag"),
        ("q=a&tag=other", 404, "no index of revision other"),
        ("q=a&system=aarch64-linux", 404, "no index"),
        ("q=a&system=riscv64-linux", 404, "riscv64-linux"),
        ("q=a&source=x", 404, "no package source 'x'"),
    ],
)
def test_what_is_refused(client: Client, query: str, status: int, words: str) -> None:
    response = client.get(f"/api/v1/packages?{query}")
    assert response.status == status, response.body
    if status != 200:
        assert words in json.loads(response.body)["errors"][0]["message"]


def test_it_is_read_only(client: Client) -> None:
    assert client.get("/api/v1/packages?q=git", "Content-Length: 0", method="POST").status == 405
