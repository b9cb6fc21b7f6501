import asyncio

import pytest

from nixery_snap.errors import NixerySnapError, ShuttingDown, StillWorking, StorageError
from nixery_snap.imaging.coalesce import Coalescer


class Work:
    """Counts its runs; ends when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.runs = 0
        self.finish = asyncio.Event()
        self.error = error

    async def __call__(self) -> int:
        self.runs += 1
        await self.finish.wait()
        if self.error:
            raise self.error
        return self.runs


async def _idle() -> None:
    """Let everything that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_hundred_waiters_one_run() -> None:
    coalescer: Coalescer[int] = Coalescer()
    work = Work()
    waiters = [asyncio.create_task(coalescer.run("key", work)) for _ in range(100)]
    await _idle()
    assert work.runs == 1
    work.finish.set()
    assert await asyncio.gather(*waiters) == [1] * 100
    assert await coalescer.run("key", work) == 2, "a finished result is not kept here"


async def test_keys_do_not_wait_for_each_other() -> None:
    coalescer: Coalescer[int] = Coalescer()
    slow, quick = Work(), Work()
    quick.finish.set()
    waiter = asyncio.create_task(coalescer.run("slow", slow))
    assert await coalescer.run("quick", quick) == 1
    assert not waiter.done()
    slow.finish.set()
    await waiter


async def test_a_waiter_that_gives_up_leaves_the_work_going() -> None:
    coalescer: Coalescer[int] = Coalescer()
    work = Work()
    with pytest.raises(StillWorking) as raised:
        await coalescer.run("key", work, wait_seconds=0.01)
    assert raised.value.retry_after_seconds > 0
    second = asyncio.create_task(coalescer.run("key", work))
    await _idle()
    work.finish.set()
    assert await second == 1
    assert work.runs == 1


async def test_a_cancelled_waiter_leaves_the_work_going() -> None:
    coalescer: Coalescer[int] = Coalescer()
    work = Work()
    first, second = (asyncio.create_task(coalescer.run("key", work)) for _ in range(2))
    await _idle()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.finish.set()
    assert await second == 1
    assert work.runs == 1


async def test_work_that_nobody_waits_for_ends_anyway() -> None:
    coalescer: Coalescer[int] = Coalescer(failure_ttl_seconds=60)
    for error in (None, StorageError("lost"), ValueError("nobody retrieves this")):
        work = Work(error)
        waiter = asyncio.create_task(coalescer.run(str(error), work))
        await _idle()
        waiter.cancel()
        work.finish.set()
        assert await coalescer.drain(10) == 0
    with pytest.raises(StorageError, match="lost"):
        await coalescer.run("lost", Work())


async def test_a_failure_is_remembered() -> None:
    coalescer: Coalescer[int] = Coalescer(failure_ttl_seconds=600)
    work = Work(StorageError("full"))
    work.finish.set()
    for _ in range(3):
        with pytest.raises(StorageError, match="full"):
            await coalescer.run("key", work)
    assert work.runs == 1
    waiters = await asyncio.gather(*(coalescer.run("key", work) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(failure, StorageError) for failure in waiters)


async def test_a_failure_is_tried_again_after_its_time() -> None:
    coalescer: Coalescer[int] = Coalescer(failure_ttl_seconds=0.01)
    work = Work(StorageError("full"))
    work.finish.set()
    with pytest.raises(StorageError):
        await coalescer.run("key", work)
    work.error = None
    await asyncio.sleep(0.05)
    assert await coalescer.run("key", work) == 2


@pytest.mark.parametrize(("ttl", "error"), [(0, StorageError("full")), (600, ValueError("a bug"))])
async def test_failures_that_are_not_remembered(ttl: float, error: Exception) -> None:
    coalescer: Coalescer[int] = Coalescer(ttl)
    work = Work(error)
    work.finish.set()
    for run in (1, 2):
        with pytest.raises((NixerySnapError, ValueError), match=str(error)):
            await coalescer.run("key", work)
        assert work.runs == run


async def test_draining_lets_work_finish() -> None:
    coalescer: Coalescer[int] = Coalescer()
    work = Work()
    waiter = asyncio.create_task(coalescer.run("key", work))
    await _idle()
    draining = asyncio.create_task(coalescer.drain(60))
    await _idle()
    assert not draining.done()
    work.finish.set()
    assert await draining == 0
    assert await waiter == 1


async def test_draining_cancels_what_is_late() -> None:
    coalescer: Coalescer[int] = Coalescer()
    work = Work()
    waiter = asyncio.create_task(coalescer.run("key", work))
    await _idle()
    assert await coalescer.drain(0.01) == 1
    with pytest.raises(ShuttingDown):
        await waiter
    assert await coalescer.drain(0) == 0
