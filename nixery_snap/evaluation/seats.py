"""Who may use which of a bounded number of things that are dear to make and good for one key each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

_PATIENCE_SECONDS: Final = 0.5

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Seat(Generic[T]):
    """A place for one thing; whoever holds it may put one in, and takes it out when it is spoilt."""

    key: Hashable
    held: T | None = None
    expiry: asyncio.TimerHandle | None = None


@dataclass(eq=False, slots=True)
class _Waiter(Generic[T]):
    key: Hashable
    since: float
    given: asyncio.Future[Seat[T]] = field(default_factory=asyncio.Future)


class Seats(Generic[T]):
    """At most `number` seats, each held by one at a time; `end` is for things whose seat another key needs.

    A thing that is idle for `idle_seconds` is ended too.
    """

    def __init__(
        self, number: int, idle_seconds: float, end: Callable[[T], Coroutine[Any, Any, None]]
    ) -> None:
        self._number = number
        self._idle_seconds = idle_seconds
        self._end = end
        self._busy: list[Seat[T]] = []
        self._idle: list[Seat[T]] = []  # the one used last stands last
        self._waiting: list[_Waiter[T]] = []
        self._ending: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @asynccontextmanager
    async def take(self, key: Hashable) -> AsyncIterator[Seat[T]]:
        """A seat for that key, with what was left in it or empty."""
        loop = asyncio.get_running_loop()
        waiter: _Waiter[T] = _Waiter(key, loop.time())
        self._waiting.append(waiter)
        self._assign()
        impatience = loop.call_later(_PATIENCE_SECONDS, self._assign)
        try:
            seat = await waiter.given
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            if waiter.given.done() and not waiter.given.cancelled():
                self._leave(waiter.given.result())
            raise
        finally:
            impatience.cancel()
        try:
            yield seat
        finally:
            self._leave(seat)

    def spoil(self, seat: Seat[T]) -> None:
        """End what is in a seat that is held, and empty it."""
        if seat.held is not None:
            self._begin_to_end(seat.held)
            seat.held = None

    async def close(self) -> None:
        """End everything, even what is in use; what is put into a seat later ends when it is left."""
        self._is_closed = True
        for seat in tuple(self._idle):
            self._drop(seat)
        for seat in self._busy:
            self.spoil(seat)
        while self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)

    def _leave(self, seat: Seat[T]) -> None:
        self._busy.remove(seat)
        if seat.held is not None:
            self._idle.append(seat)
            loop = asyncio.get_running_loop()
            seat.expiry = loop.call_later(self._idle_seconds, self._drop, seat)
            if self._is_closed:
                self._drop(seat)
        self._assign()

    def _assign(self) -> None:
        """Give what can be given, in the order of coming; but who has waited long enough comes first."""
        now = asyncio.get_running_loop().time()
        # Who has given up may not have run since.
        self._waiting = [waiter for waiter in self._waiting if not waiter.given.done()]
        patient = [waiter for waiter in self._waiting if now - waiter.since < _PATIENCE_SECONDS]
        impatient = [waiter for waiter in self._waiting if now - waiter.since >= _PATIENCE_SECONDS]
        for waiter in impatient:
            self._give(waiter, self._idle_for(waiter.key) or self._new(waiter.key, self._idle))
        for waiter in patient:
            self._give(waiter, self._idle_for(waiter.key))
        for waiter in [waiter for waiter in patient if waiter in self._waiting]:
            # Nobody waits for what is idle still. Its own key's seat, if busy, is better than the end of another's.
            is_busy = any(seat.key == waiter.key for seat in self._busy)
            self._give(waiter, self._new(waiter.key, [] if is_busy else self._idle))

    def _idle_for(self, key: Hashable) -> Seat[T] | None:
        return next((seat for seat in reversed(self._idle) if seat.key == key), None)

    def _new(self, key: Hashable, dispensable: list[Seat[T]]) -> Seat[T] | None:
        """An empty seat; in place of the dispensable one that was used first, when there is no room."""
        if len(self._busy) + len(self._idle) >= self._number:
            if not dispensable:
                return None
            self._drop(dispensable[0])
        return Seat(key)

    def _give(self, waiter: _Waiter[T], seat: Seat[T] | None) -> None:
        if seat is None:
            return
        self._waiting.remove(waiter)
        if seat in self._idle:
            self._idle.remove(seat)
        if seat.expiry is not None:
            seat.expiry.cancel()
        self._busy.append(seat)
        waiter.given.set_result(seat)

    def _drop(self, seat: Seat[T]) -> None:
        self._idle.remove(seat)
        if seat.expiry is not None:
            seat.expiry.cancel()
        if seat.held is not None:
            self._begin_to_end(seat.held)

    def _begin_to_end(self, held: T) -> None:
        task = asyncio.create_task(self._end(held))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
