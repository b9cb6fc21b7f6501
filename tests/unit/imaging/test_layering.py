from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat
from nixery_snap.imaging.layering import OWN_LAYER_BYTES, OWN_LAYER_POPULARITY, Popularity, layer_groups
from nixery_snap.nix.path_info import Closure
from nixery_snap.nix.store_path import StorePath
from tests.unit.stores import info, reachable, store_path

PATHS = [store_path(f"p{number}") for number in range(24)]
Graph = dict[int, tuple[set[int], int]]  # number -> references (cycles of one only) and nar_size


@st.composite
def closures(draw: st.DrawFn) -> tuple[Closure, tuple[StorePath, ...]]:
    """Acyclic but for self references, as a Nix store is; everything reachable from the outputs."""
    size = draw(st.integers(1, len(PATHS)))
    infos = {}
    for number in range(size):
        references = draw(st.sets(st.integers(0, number), max_size=4))
        nar_size = draw(st.sampled_from([0, 1, 120, 10_000, OWN_LAYER_BYTES // 2, OWN_LAYER_BYTES]))
        infos[PATHS[number]] = info(PATHS[number], tuple(PATHS[other] for other in references), nar_size)
    outputs = tuple(draw(st.lists(st.sampled_from(PATHS[:size]), min_size=1, max_size=4, unique=True)))
    closure, unknown = reachable(outputs, infos)
    assert not unknown
    return closure, outputs


@given(closures(), st.integers(1, 30))
def test_every_path_exactly_once_in_few_enough_groups(
    drawn: tuple[Closure, tuple[StorePath, ...]], limit: int
) -> None:
    closure, outputs = drawn
    groups = layer_groups(closure, outputs, limit)
    assert sorted(path for group in groups for path in group.paths) == list(closure)
    assert 1 <= len(groups) <= limit
    for group in groups:
        assert group.paths == tuple(sorted(group.paths))
        assert group.nar_size == sum(closure[path].nar_size for path in group.paths)
    ratings = [group.rating for group in groups]
    assert ratings == sorted(ratings, reverse=True)


@given(closures(), st.integers(1, 30), st.randoms())
def test_the_order_of_the_input_does_not_matter(
    drawn: tuple[Closure, tuple[StorePath, ...]], limit: int, random: Random
) -> None:
    closure, outputs = drawn
    shuffled = dict(random.sample(list(closure.items()), len(closure)))
    again = layer_groups(shuffled, tuple(random.sample(outputs, len(outputs))), limit)
    assert again == layer_groups(closure, outputs, limit)


def dominators(closure: Closure, outputs: tuple[StorePath, ...], path: StorePath) -> set[StorePath]:
    """By definition: those without which `path` is not reached."""
    found = set()
    for other in closure:
        roots = [output for output in outputs if output != other]
        rest, _ = reachable(roots, {name: closure[name] for name in closure if name != other})
        if path not in rest:
            found.add(other)
    return found - {path}


@given(closures())
def test_what_only_comes_along_shares_the_layer(drawn: tuple[Closure, tuple[StorePath, ...]]) -> None:
    closure, outputs = drawn
    group_of = {path: group for group in layer_groups(closure, outputs, len(closure)) for path in group.paths}
    above = {path: dominators(closure, outputs, path) for path in closure}
    for path in closure:
        referrers = sum(path in closure[other].references for other in closure if other != path)
        weight = sum(closure[other].nar_size for other in closure if other == path or path in above[other])
        own = referrers + (path in outputs) >= OWN_LAYER_POPULARITY or weight >= OWN_LAYER_BYTES
        if above[path]:
            nearest = max(above[path], key=lambda other: len(above[other]))
            assert (group_of[path] is group_of[nearest]) is not own
        else:
            assert all(path in above[other] or path == other for other in group_of[path].paths)


def test_a_library_of_many_stands_alone() -> None:
    library, *users = PATHS[: OWN_LAYER_POPULARITY + 1]
    output = PATHS[-1]
    closure = {
        library: info(library, (library,)),
        **{user: info(user, (library,)) for user in users},
        output: info(output, tuple(users)),
    }
    groups = layer_groups(closure, (output,), 100)
    assert sorted(group.paths for group in groups) == sorted([(library,), tuple(sorted([output, *users]))])
    assert layer_groups(closure, (output,), 1)[0].paths == tuple(sorted(closure))
    # To refer to itself makes nothing popular.
    del closure[users[0]]
    closure[output] = info(output, tuple(users[1:]))
    assert [group.paths for group in layer_groups(closure, (output,), 100)] == [tuple(sorted(closure))]


@pytest.mark.parametrize("limit", [1, 99, 2000])
def test_two_thousand_paths(limit: int) -> None:
    paths = [store_path(f"many-{number}") for number in range(2000)]
    closure = {
        path: info(
            path,
            tuple(paths[place] for place in {number // 2, number // 3, number * 7 % 100} if place < number),
            1,
        )
        for number, path in enumerate(paths)
    }
    outputs = tuple(paths[1000:])
    reached, _ = reachable(outputs, closure)
    groups = layer_groups(reached, outputs, limit)
    assert 1 <= len(groups) <= limit
    assert sorted(path for group in groups for path in group.paths) == list(reached)


def chain(*names: str) -> tuple[Closure, tuple[StorePath, ...]]:
    """Each refers to the next; the first is the output."""
    paths = [store_path(name) for name in names]
    closure = {path: info(path, tuple(paths[number + 1 : number + 2])) for number, path in enumerate(paths)}
    return dict(sorted(closure.items())), (paths[0],)


def test_what_many_packages_depend_on_stands_alone() -> None:
    closure, outputs = chain("app-1.0", "helper-2.0", "libfoo-3.1-dev", "tail-1")
    [whole] = layer_groups(closure, outputs, 100)
    assert len(whole.paths) == 4
    known = Popularity({"libfoo": OWN_LAYER_POPULARITY, "helper": OWN_LAYER_POPULARITY - 1})
    groups = [[path.name for path in group.paths] for group in layer_groups(closure, outputs, 100, known)]
    assert sorted(map(sorted, groups)) == [["app-1.0", "helper-2.0"], ["libfoo-3.1-dev", "tail-1"]]
    # What comes with it comes with it; the most popular is first, and merged last.
    assert sorted(groups[0]) == ["libfoo-3.1-dev", "tail-1"]
    assert layer_groups(closure, outputs, 100, Popularity({"other": 99})) == [whole]


@given(
    closures(),
    st.integers(1, 30),
    st.dictionaries(st.sampled_from([f"p{n}" for n in range(24)]), st.integers(0, 99)),
)
def test_popularity_changes_neither_what_is_there_nor_the_limit(
    drawn: tuple[Closure, tuple[StorePath, ...]], limit: int, counts: dict[str, int]
) -> None:
    closure, outputs = drawn
    groups = layer_groups(closure, outputs, limit, Popularity(counts))
    assert sorted(path for group in groups for path in group.paths) == list(closure)
    assert 1 <= len(groups) <= limit
    shuffled = dict(reversed(closure.items()))
    assert layer_groups(shuffled, outputs, limit, Popularity(counts)) == groups
    for path in closure:
        if limit >= len(closure) and counts.get(path.name, 0) >= OWN_LAYER_POPULARITY:
            assert any(group.popularity >= counts[path.name] for group in groups if path in group.paths)


def test_a_file_of_popularity() -> None:
    known = Popularity.parse(b'{"glibc": 90000, "hello": 0}')
    assert known.of(store_path("glibc-2.40-66-bin")) == 90000
    assert known.of(store_path("hello-2.12")) == known.of(store_path("other")) == 0
    assert known.digest != Popularity.parse(b'{"glibc": 90001, "hello": 0}').digest
    assert Popularity({}).digest is None


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"a": -1}', b'{"a": 1.5}', b'{"a": true}', b'{"a": "1"}', b"\xff", b"[" * 100_000],
    ids=["empty", "list", "open", "negative", "fraction", "boolean", "text", "no text", "deep"],
)
def test_what_is_no_popularity(content: bytes) -> None:
    with pytest.raises(InvalidFormat, match="popularity"):
        Popularity.parse(content)
