"""One process serves the metrics of several; each here has an event loop's tasks of its own."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from nixery_snap import metrics, metrics_listener
from nixery_snap.metrics_listener import MetricsPart, metrics_parts, metrics_served

Get = Callable[[], "asyncio.Future[tuple[int, str]]"]


@asynccontextmanager
async def served(parts: list[MetricsPart]) -> AsyncIterator[Get]:
    async with AsyncExitStack() as stack:
        for part in reversed(parts):
            await stack.enter_async_context(metrics_served(part))
        listening = parts[0].listening
        assert listening is not None
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/metrics"
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def get() -> tuple[int, str]:
            async with session.get(url) as answer:
                return answer.status, await answer.text()

        yield lambda: asyncio.ensure_future(get())


def value(text: str, name: str) -> float:
    samples = [
        one for family in text_string_to_metric_families(text) for one in family.samples if one.name == name
    ]
    return sum(sample.value for sample in samples)


def storage_errors() -> float:
    [sample] = [one for one in metrics.STORAGE_ERRORS.collect()[0].samples if one.name.endswith("_total")]
    return sample.value


@pytest.mark.parametrize("processes", [1, 2, 5])
async def test_all_are_summed(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_listener, "_WAIT_SECONDS", 30)  # all processes are this one
    metrics.STORAGE_ERRORS.inc()
    async with served(metrics_parts("127.0.0.1:0", processes)) as get:
        answers = await asyncio.gather(*(get() for _ in range(4)))
    for status, text in answers:
        assert status == 200
        assert value(text, "nixery_snap_storage_errors_total") == processes * storage_errors()
        assert value(text, "nixery_snap_build_info") == 1


def test_without_an_address_nobody_does_anything() -> None:
    assert metrics_parts("", 3) == [MetricsPart()] * 3


async def test_one_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sum without it. Once it answers again, late answers are taken for what they are."""
    monkeypatch.setattr(metrics_listener, "_WAIT_SECONDS", 0.2)
    [serving, other] = metrics_parts("127.0.0.1:0", 2)
    assert other.asked is not None
    async with served([serving]) as get:
        with capture_logs() as logs:
            assert await get() == (503, "another process does not answer: TimeoutError\n")
            assert (await get())[0] == 503
        assert [entry["event"] for entry in logs] == ["metrics-incomplete"] * 2
        monkeypatch.setattr(metrics_listener, "_WAIT_SECONDS", 30)
        async with metrics_served(other):
            for _ in range(3):
                metrics.STORAGE_ERRORS.inc()
                status, text = await get()
                assert (status, value(text, "nixery_snap_storage_errors_total")) == (
                    200,
                    2 * storage_errors(),
                )


async def test_one_that_is_gone() -> None:
    [serving, other] = metrics_parts("127.0.0.1:0", 2)
    assert isinstance(other.asked, socket.socket)
    other.asked.close()
    async with served([serving]) as get:
        status, text = await get()
        assert (status, text.partition(":")[0]) == (503, "another process does not answer")
