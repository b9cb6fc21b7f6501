from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as Directory
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import (
    EvaluationTimedOut,
    EvaluationTooBig,
    NixerySnapError,
    PackageProblem,
    ProblemKind,
)
from nixery_snap.evaluation.index import Path, sort_key
from nixery_snap.evaluation.indexing import (
    _QUESTION_BYTES,
    Indexer,
    _can_be_asked_for,
    _chunks,
    _Job,
    _pieces,
    _Seen,
)
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.ports import Package, PackageSet
from tests.unit.evaluation.indexes import Made, package

NAMES = st.text("aAbBé_-", min_size=1, max_size=3)


@given(st.lists(st.tuples(NAMES), unique=True).map(sorted), st.integers(1, 5))
def test_one_sort_key_is_in_one_piece(paths: list[Path], count: int) -> None:
    level = [_Seen(path) for path in sorted(paths, key=lambda path: (sort_key(path), path))]
    pieces = list(_pieces(level, count))
    assert [seen for piece in pieces for seen in piece] == level
    keys = [{sort_key(seen.path) for seen in piece} for piece in pieces]
    assert sum(map(len, keys)) == len(set().union(*keys))
    assert all(len(piece) >= count for piece in pieces[:-1])
    assert all(len(some) <= count for some in keys)


@given(st.lists(st.tuples(st.text(max_size=40)), max_size=40), st.integers(1, 9))
def test_chunks(paths: list[Path], count: int) -> None:
    chunks = list(_chunks(paths, count))
    assert [path for chunk in chunks for path in chunk] == paths
    assert all(1 <= len(chunk) <= count for chunk in chunks)


def test_chunks_fit_into_an_argument() -> None:
    paths = [("é" * 255,)] * 1000
    chunks = list(_chunks(paths, 1000))
    assert sum(map(len, chunks)) == 1000
    assert all(len(str(chunk)) < _QUESTION_BYTES for chunk in chunks)
    assert len(chunks) > 10


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("a", "b.c", "@x/y"), True),
        (('a"b',), False),
        (("a\\b",), False),
        (("a\tb",), False),
        (("",), False),
        (("\ufffd",), False),
        (("a" * 255,), True),
        (("a" * 128, "b" * 127), False),
    ],
)
def test_what_people_can_write(path: Path, expected: bool) -> None:
    assert _can_be_asked_for(path) is expected


class Choosy:
    """Evaluates anything but `bad` names, over which the whole question fails."""

    def __init__(self, bad: set[str], error: NixerySnapError) -> None:
        self.bad, self.error = bad, error
        self.asked: list[list[Path]] = []

    @property
    def questions(self) -> int:
        return len(self.asked)

    async def evaluate(
        self, package_set: PackageSet, system: str, names: Sequence[AttributePath]
    ) -> Sequence[Package | PackageProblem]:
        self.asked.append([name.parts for name in names])
        if any(name.parts[-1] in self.bad for name in names):
            raise self.error
        return [package(name.parts) for name in names]


def indexer(evaluator: Choosy) -> Indexer:
    made, nothing = Made(), cast("Any", None)  # Nix itself is not asked
    return Indexer(nothing, evaluator, made.blobs, made.records, timeout_seconds=1, memory_mib=1, processes=1)


JOB = _Job("key", PackageSet(Directory("/set")), "x86_64-linux", cast("Any", None))


@pytest.mark.parametrize("error", [EvaluationTimedOut(1), EvaluationTooBig(64)])
async def test_what_takes_too_much_is_set_apart(error: NixerySnapError) -> None:
    paths = [(f"p{number}",) for number in range(64)]
    evaluator = Choosy({"p5", "p40"}, error)
    results = await indexer(evaluator)._evaluate(JOB, paths)
    assert len(results) == 64
    for path, result in zip(paths, results, strict=True):
        if path[0] in evaluator.bad:
            assert result == PackageProblem(path[0], ProblemKind.FAILED, str(error))
        else:
            assert result == package(path)
    assert evaluator.questions < 30


async def test_what_is_deadly_is_asked_for_alone() -> None:
    evaluator = Choosy(set(), EvaluationTimedOut(1))
    seen = [_Seen(("a",), ("out", "dev")), _Seen(("b",), is_deadly=True), _Seen(("c",))]
    made = indexer(evaluator)
    digest = await made._part(JOB, seen)
    assert evaluator.asked == [[("a",), ("a", "out"), ("a", "dev"), ("c",)], [("b",)]]
    part = await made._indexes.part(digest)
    assert sorted(part) == [b"a", b"a\tdev", b"a\tout", b"b", b"c"]
    # Recorded: nobody is asked again.
    assert await made._part(JOB, seen) == digest
    assert evaluator.questions == 2


async def test_other_errors_end_it() -> None:
    evaluator = Choosy({"a"}, NixerySnapError("no disk"))
    made = indexer(evaluator)
    with pytest.raises(NixerySnapError, match="no disk"):
        await made._part(JOB, [_Seen(("a",)), _Seen(("b",))])
    assert evaluator.questions == 1
