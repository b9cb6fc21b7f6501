from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import CircularReferences, PathsMissing
from nixery_snap.imaging.locate import find_closure
from nixery_snap.nix.path_info import Closure, PathInfo
from nixery_snap.nix.store_path import StorePath
from tests.unit.stores import info, reachable, store_path

PATHS = [store_path(f"p{number}") for number in range(8)]


class Sparing:
    """Knows what it was given, answers just what is asked, and minds being asked twice."""

    def __init__(self, infos: Mapping[StorePath, PathInfo]) -> None:
        self.infos = infos
        self.asked: set[StorePath] = set()

    async def path_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        assert self.asked.isdisjoint(paths)
        self.asked |= set(paths)
        return {path: self.infos[path] for path in paths if path in self.infos}


def in_circles(closure: Closure) -> bool:
    """Whether its paths refer to each other so, but for references of a path to itself."""
    graph = {path: {other for other in found.references if other != path} for path, found in closure.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


@given(
    st.dictionaries(st.sampled_from(PATHS), st.sets(st.sampled_from(PATHS))), st.sets(st.sampled_from(PATHS))
)
async def test_the_closure_or_what_is_missing(
    graph: dict[StorePath, set[StorePath]], roots: set[StorePath]
) -> None:
    infos = {path: info(path, tuple(references)) for path, references in graph.items()}
    expected, unknown = reachable(roots, infos)
    if unknown:
        with pytest.raises(PathsMissing) as raised:
            await find_closure(Sparing(infos), roots)
        assert set(raised.value.paths) <= set(map(str, unknown))
    elif in_circles(expected):
        with pytest.raises(CircularReferences):
            await find_closure(Sparing(infos), roots)
    else:
        assert list((await find_closure(Sparing(infos), roots)).items()) == list(expected.items())
