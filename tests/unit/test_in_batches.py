import asyncio
import threading
import time

from nixery_snap.in_batches import InBatches


async def test_results_and_errors_go_to_their_callers() -> None:
    batches = InBatches(2)
    answers = await asyncio.gather(
        *(batches.run(lambda n=n: 10 // (n % 5)) for n in range(200)),  # type: ignore[misc] # has a default
        return_exceptions=True,
    )
    for n, answer in enumerate(answers):
        assert isinstance(answer, ZeroDivisionError) if n % 5 == 0 else answer == 10 // (n % 5)


async def test_no_more_threads_and_no_more_hops_than_needed() -> None:
    batches = InBatches(2)
    seen: list[int] = []
    here = threading.get_ident()

    def work() -> int:
        seen.append(threading.get_ident())
        time.sleep(0.001)
        return threading.get_ident()

    assert here not in await asyncio.gather(*(batches.run(work) for _ in range(300)))
    assert len(set(seen)) <= 2
    # 20 calls are worth no second thread.
    assert len(set(await asyncio.gather(*(batches.run(threading.get_ident) for _ in range(20))))) == 1


async def test_those_made_meanwhile_are_run_afterwards() -> None:
    batches, go = InBatches(1), threading.Event()
    first = asyncio.ensure_future(batches.run(go.wait))
    await asyncio.sleep(0.01)
    others = [asyncio.ensure_future(batches.run(lambda: 1)) for _ in range(600)]
    await asyncio.sleep(0.01)
    others[0].cancel()
    assert not any(other.done() for other in others[1:])
    go.set()
    assert await first
    assert await asyncio.gather(*others[1:]) == [1] * 599
    assert await batches.run(lambda: 2) == 2


def test_a_loop_after_another() -> None:
    batches = InBatches(1)

    async def leave() -> None:
        left = asyncio.ensure_future(batches.run(lambda: 1))
        await asyncio.sleep(0)  # it is waiting, and its thread not started yet
        left.cancel()

    async def use() -> int:
        return await batches.run(lambda: 2)

    for _ in range(3):
        asyncio.run(leave())
    assert asyncio.run(use()) == 2
