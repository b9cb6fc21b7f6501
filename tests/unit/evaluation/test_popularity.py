from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.evaluation import popularity
from nixery_snap.evaluation.popularity import count_dependents, derivations
from nixery_snap.nix.drv_name import without_version
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath
from tests.unit.stores import info, store_path


def drv(name: str) -> StorePath:
    return store_path(f"{name}.drv")


Graph = dict[StorePath, list[StorePath]]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, list[StorePath]]:
    size = draw(st.integers(1, 12))
    names = [f"{draw(st.sampled_from('abcdef'))}-{number}" for number in range(size)]
    graph = {
        drv(names[number]): [
            drv(names[other]) for other in draw(st.sets(st.integers(0, number))) if other != number
        ]
        for number in range(size)
    }
    return graph, sorted(draw(st.sets(st.sampled_from(sorted(graph)))))


def below(graph: Graph, root: StorePath) -> set[StorePath]:
    return {root}.union(*(below(graph, other) for other in graph[root]))


@given(graphs(), st.integers(1, 5))
def test_counts_are_those_by_definition(drawn: tuple[Graph, list[StorePath]], together: int) -> None:
    graph, packages = drawn
    names = {path: without_version(path.name.removesuffix(".drv")) for path in graph}
    expected: dict[str, int] = {}
    for package in packages:
        for name in {names[path] for path in below(graph, package)} - {names[package]}:
            expected[name] = expected.get(name, 0) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(popularity, "_COUNTED_TOGETHER", together)
        assert count_dependents(graph, packages) == expected


def test_versions_and_outputs_are_one() -> None:
    graph = {
        drv("a-1"): [drv("lib-1"), drv("lib-2")],
        drv("b-1"): [drv("lib-2")],
        drv("lib-2"): [drv("lib-1")],
        drv("lib-1"): [],
    }
    assert count_dependents(graph, list(graph)) == {"lib": 2}


class Database:
    """Path infos, and which were asked for; answers with whole closures if it is to."""

    def __init__(self, infos: Mapping[StorePath, PathInfo], *, closures: bool) -> None:
        self.infos, self.closures = infos, closures
        self.asked: list[StorePath] = []

    async def path_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        self.asked += paths
        found = {path: self.infos[path] for path in paths if path in self.infos}
        if self.closures:
            while more := {o for i in found.values() for o in i.references if o in self.infos} - found.keys():
                found |= {path: self.infos[path] for path in more}
        return found


@pytest.mark.parametrize("closures", [True, False])
async def test_the_graph_of_a_store(closures: bool) -> None:
    script, gone = store_path("builder.sh"), drv("gone")
    tree = {drv("a"): (drv("b"), script), drv("b"): (drv("c"),), drv("c"): (), drv("other"): (), script: ()}
    database = Database({path: info(path, refs) for path, refs in tree.items()}, closures=closures)
    graph = await derivations(database, [drv("a"), gone])
    assert graph == {drv("a"): [drv("b")], drv("b"): [drv("c")], drv("c"): []}
    assert len(database.asked) == len(set(database.asked)) == (2 if closures else 4)
