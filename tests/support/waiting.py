"""Waiting for what nobody tells of."""

import asyncio
from collections.abc import Callable


async def until(happened: Callable[[], object]) -> None:
    """Raises TimeoutError after a minute."""
    async with asyncio.timeout(60):
        while not happened():  # noqa: ASYNC110 - of a process, a store or a thread, which set no event of this loop
            await asyncio.sleep(0.01)
