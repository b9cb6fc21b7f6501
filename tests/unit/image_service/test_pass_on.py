"""Passing on, between a real gRPC client and a real gRPC server that stands where containerd does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from nixery_snap.image_service.containerd import Containerd
from nixery_snap.image_service.pass_on import handler_for

METHODS = "/runtime.v1.ImageService/"
UNKNOWN_FIELD = b"\xba\x3e\x03new"  # a message of nothing but a field with the number 999


class Upstream(grpc.GenericRpcHandler):
    """Answers by method; remembers what it was asked and how calls ended."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.metadata: dict[str, Any] = {}
        self.remaining: float | None = None
        self.ended = asyncio.Event()
        self.began = asyncio.Event()

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        name = call.method.removeprefix(METHODS)
        handler = {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
            "Stream": grpc.unary_stream_rpc_method_handler(self.stream),
            "Both": grpc.stream_stream_rpc_method_handler(self.both),
        }
        return handler.get(name)

    async def echo(self, request: bytes, context: Any) -> bytes:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        self.remaining = context.time_remaining()
        await context.send_initial_metadata((("first", "1"), ("blob-bin", b"\0\xff")))
        context.set_trailing_metadata((("last", "2"),))
        return request

    async def fail(self, request: bytes, context: Any) -> bytes:
        detail = (("grpc-status-details-bin", b"\x08\x05"), ("why", "test"))
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "there already: ä", detail)
        raise AssertionError

    async def hang(self, request: bytes, context: Any) -> bytes:
        self.began.set()
        try:
            await asyncio.sleep(60)
        finally:
            self.ended.set()
        return b""

    async def stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%s %d" % (request, number)

    async def both(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield b"<" + request


class Front(grpc.GenericRpcHandler):
    def __init__(self, containerd: Containerd) -> None:
        self.containerd = containerd

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        return handler_for(self.containerd, call.method)


@pytest.fixture
async def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def channel(upstream: Upstream, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    behind, front = grpc.aio.server(), grpc.aio.server()
    behind.add_generic_rpc_handlers((upstream,))
    behind.add_insecure_port(f"unix://{tmp_path}/behind")
    containerd = Containerd(f"unix://{tmp_path}/behind")
    front.add_generic_rpc_handlers((Front(containerd),))
    front.add_insecure_port(f"unix://{tmp_path}/front")
    await behind.start()
    await front.start()
    async with grpc.aio.insecure_channel(f"unix://{tmp_path}/front") as connected:
        yield connected
    await front.stop(0)
    await containerd.close()
    await behind.stop(0)


async def test_bytes_and_metadata_both_ways(channel: grpc.aio.Channel, upstream: Upstream) -> None:
    call = channel.unary_unary(METHODS + "Echo")(
        UNKNOWN_FIELD, metadata=(("token-bin", b"\1\xfe"), ("trace", "x"))
    )
    assert await call == UNKNOWN_FIELD
    assert upstream.requests == [UNKNOWN_FIELD]
    assert upstream.metadata["token-bin"] == b"\1\xfe"
    assert upstream.metadata["trace"] == "x"
    assert dict(await call.initial_metadata())["first"] == "1"
    assert dict(await call.initial_metadata())["blob-bin"] == b"\0\xff"
    assert dict(await call.trailing_metadata())["last"] == "2"


async def test_deadlines(channel: grpc.aio.Channel, upstream: Upstream) -> None:
    echo = channel.unary_unary(METHODS + "Echo")
    await echo(b"", timeout=500)
    assert upstream.remaining is not None
    assert 400 < upstream.remaining < 510  # what goes over the wire is rounded
    await echo(b"")
    assert upstream.remaining is None
    for seconds in (0.2, 2, 20):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(METHODS + "Hang")(b"", timeout=seconds)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if upstream.began.is_set():  # else it was over before it came there
            break
    await asyncio.wait_for(upstream.ended.wait(), 60)


async def test_errors_whole(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.unary_unary(METHODS + "Fail")(b"")
    assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert raised.value.details() == "there already: ä"
    trailing = dict(raised.value.trailing_metadata())
    assert trailing["why"] == "test"
    assert trailing["grpc-status-details-bin"] == b"\x08\x05"


async def test_who_gives_up_is_heard_of(channel: grpc.aio.Channel, upstream: Upstream) -> None:
    call = channel.unary_unary(METHODS + "Hang")(b"")
    waiting = asyncio.ensure_future(call.code())
    await asyncio.wait_for(upstream.began.wait(), 60)
    call.cancel()
    assert await waiting is grpc.StatusCode.CANCELLED
    await asyncio.wait_for(upstream.ended.wait(), 60)


async def test_streams(channel: grpc.aio.Channel) -> None:
    answers = channel.unary_stream(METHODS + "Stream")(b"x")
    assert [answer async for answer in answers] == [b"x 0", b"x 1", b"x 2"]
    call = channel.stream_stream(METHODS + "Both")()
    for request in (b"a", b"b"):
        await call.write(request)
        assert await call.read() == b"<" + request  # not only once all requests are there
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_rpcs_that_nobody_knows(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.unary_unary(METHODS + "Unheard")(b"")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_containerd_away_and_back(tmp_path: Path, upstream: Upstream) -> None:
    containerd = Containerd(f"unix://{tmp_path}/behind")
    front = grpc.aio.server()
    front.add_generic_rpc_handlers((Front(containerd),))
    front.add_insecure_port(f"unix://{tmp_path}/front")
    await front.start()
    async with grpc.aio.insecure_channel(f"unix://{tmp_path}/front") as connected:
        echo = connected.unary_unary(METHODS + "Echo")
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await echo(b"")
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert f"containerd does not answer at unix://{tmp_path}/behind" in (raised.value.details() or "")
        for _ in range(2):  # also when it is started again
            behind = grpc.aio.server()
            behind.add_generic_rpc_handlers((upstream,))
            behind.add_insecure_port(f"unix://{tmp_path}/behind")
            await behind.start()
            async with asyncio.timeout(60):
                while True:
                    call = echo(b"back")
                    if await call.code() is grpc.StatusCode.OK:
                        assert await call == b"back"
                        break
                    assert await call.code() is grpc.StatusCode.UNAVAILABLE
                    await asyncio.sleep(0.05)
            await behind.stop(0)
    await front.stop(0)
    await containerd.close()
