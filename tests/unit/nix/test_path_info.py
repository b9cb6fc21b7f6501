from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.nix.path_info import reachable
from nixery_snap.nix.store_path import StorePath
from tests.unit.stores import info, store_path

PATHS = [store_path(f"p{number}") for number in range(8)]
graphs = st.dictionaries(st.sampled_from(PATHS), st.sets(st.sampled_from(PATHS)))


@given(graphs, st.sets(st.sampled_from(PATHS)))
def test_reachable_is_the_least_closed_set(
    graph: dict[StorePath, set[StorePath]], roots: set[StorePath]
) -> None:
    infos = {path: info(path, tuple(references)) for path, references in graph.items()}
    closure, unknown = reachable(roots, infos)

    assert list(closure) == sorted(closure)
    assert unknown.isdisjoint(infos)
    assert roots <= closure.keys() | unknown
    everything = closure.keys() | unknown
    assert all(graph[path] <= everything for path in closure)
    for path in everything - roots:  # nothing without a reason
        assert any(path in graph[other] for other in closure if other != path)
