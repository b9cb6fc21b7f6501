"""Items of another thread: all of them, in order, and nothing left running."""

import threading
from collections.abc import Iterator

import pytest

from nixery_snap.imaging.read_ahead import read_ahead


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_all_in_order(count: int) -> None:
    assert list(read_ahead(iter(range(count)))) == list(range(count))


def test_an_error_comes_where_it_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("disk")

    ahead = read_ahead(items())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="disk"):
        next(ahead)


def test_leaving_early_ends_the_thread() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(10**9):
            made.append(number)
            yield number

    before = set(threading.enumerate())
    ahead = read_ahead(items())
    assert next(ahead) == 0
    ahead.close()  # type: ignore[attr-defined] # it is a generator
    assert not set(threading.enumerate()) - before
    assert len(made) < 100


def test_it_runs_in_another_thread_and_only_a_few_ahead() -> None:
    threads = set()
    made = []

    def items() -> Iterator[int]:
        for number in range(1000):
            threads.add(threading.current_thread())
            made.append(number)
            yield number

    for item in read_ahead(items()):
        assert len(made) - item < 20
    assert threading.current_thread() not in threads
