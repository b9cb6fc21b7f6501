import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixery_snap.errors import PackageProblem, PackagesUnavailable, ProblemKind
from nixery_snap.imaging.resolution import Resolution
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.ports import Package
from tests.unit.images import package
from tests.unit.nix.test_attribute_path import attribute_paths
from tests.unit.stores import store_path, store_paths

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
packages = st.builds(
    Package,
    attribute_paths,
    texts,
    store_paths.map(str),
    st.dictionaries(st.sampled_from(["out", "bin", "dev"]), store_paths, min_size=1),
    st.none() | texts,
    st.lists(texts, max_size=2).map(tuple),
    st.integers(-10, 10),
)
several = st.lists(packages, max_size=3).map(tuple)


@settings(max_examples=30)
@given(several, several)
def test_survives_json(requested: tuple[Package, ...], base: tuple[Package, ...]) -> None:
    resolution = Resolution(requested, base)
    assert Resolution.from_json(json.loads(json.dumps(resolution.to_json()))) == resolution


def names(*texts: str) -> list[AttributePath]:
    return [AttributePath((text,)) for text in texts]


A, B = names("a", "b")


def problem(kind: ProblemKind) -> PackageProblem:
    return PackageProblem("b", kind, "not to be had")


def test_requested_and_base_are_kept_apart() -> None:
    one, two = package(store_path("a")), package(store_path("b"))
    resolution = Resolution.of({A: one, B: two}, [A])
    assert (resolution.requested, resolution.base) == ((one,), (two,))
    assert resolution.outputs == {store_path("a"), store_path("b")}


def test_a_base_package_may_be_missing_but_not_broken() -> None:
    one = package(store_path("a"))
    assert Resolution.of({A: one, B: problem(ProblemKind.MISSING)}, [A]).base == ()
    for kind in set(ProblemKind) - {ProblemKind.MISSING}:
        with pytest.raises(PackagesUnavailable):
            Resolution.of({A: one, B: problem(kind)}, [A])


@pytest.mark.parametrize("kind", list(ProblemKind))
def test_every_problem_with_what_was_requested(kind: ProblemKind) -> None:
    problems = {A: problem(ProblemKind.FAILED), B: problem(kind)}
    with pytest.raises(PackagesUnavailable) as raised:
        Resolution.of(problems, [A, B])
    assert raised.value.problems == tuple(problems.values())


def test_the_same_derivation_under_two_names_counts_once() -> None:
    one = package(store_path("a"))
    alias = dataclasses.replace(one, attribute=B)
    resolution = Resolution((one,), (alias,))
    assert resolution.packages == (one,)
    other_output = dataclasses.replace(one, outputs={"dev": store_path("a-dev")})
    assert len(Resolution((one, other_output), ()).packages) == 2
