"""Passes RPCs on to containerd byte for byte: fields and RPCs that nobody knew of when this was written survive.

On the wire a single message is a stream of one, so one kind of handler does for every RPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import grpc
import grpc.aio

from nixery_snap.errors import ContainerdUnreachable
from nixery_snap.image_service.containerd import Containerd

# What belongs to one connection and not to the call (gRPC over HTTP/2, "Requests").
_HOP_BY_HOP: Final = frozenset(
    {"user-agent", "te", "content-type", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding"}
)
_SINGLE_SECONDS: Final = 0.05  # the end of the requests comes with the only one
Metadata = tuple[tuple[str, str | bytes], ...]


def handler_for(containerd: Containerd, method: str) -> grpc.RpcMethodHandler[bytes, bytes]:
    return grpc.stream_stream_rpc_method_handler(partial(pass_on, containerd, method))


async def pass_on(
    containerd: Containerd,
    method: str,
    requests: AsyncIterator[bytes],
    context: grpc.aio.ServicerContext[bytes, bytes],
) -> AsyncIterator[bytes]:
    await containerd.reach()
    rpc, request = await _begun(containerd, method, requests)
    metadata = own_metadata(context.invocation_metadata())
    call = rpc(request, timeout=context.time_remaining(), metadata=metadata)
    try:
        await context.send_initial_metadata(own_metadata(await call.initial_metadata()))
        async for response in call:
            yield response
    except grpc.aio.AioRpcError:
        pass  # told below, with what belongs to it
    except BaseException:
        # Whoever asked has gone: then containerd need not go on either.
        call.cancel()
        raise
    code = await call.code()
    trailing = own_metadata(await call.trailing_metadata())
    if code is grpc.StatusCode.OK:
        context.set_trailing_metadata(trailing)
    else:
        details = await call.details()
        if code is grpc.StatusCode.UNAVAILABLE and not containerd.is_connected:
            details = f"{ContainerdUnreachable(containerd.address)} ({details})"
        await context.abort(code, details, trailing)


async def _begun(
    containerd: Containerd, method: str, requests: AsyncIterator[bytes]
) -> tuple[Any, bytes | AsyncIterator[bytes]]:
    """A single request goes out in one piece: grpc mistakes a refusal that comes meanwhile for a fault of its own."""
    arriving = aiter(requests)
    seen: list[bytes] = []
    following: asyncio.Task[bytes | None] | None = None
    if (first := await anext(arriving, None)) is not None:
        seen.append(first)
        following = asyncio.ensure_future(anext(arriving, None))
        await asyncio.wait({following}, timeout=_SINGLE_SECONDS)
        if following.done() and following.result() is None:
            return containerd.channel.unary_stream(method), first
    return containerd.channel.stream_stream(method), _rest(seen, following, arriving)


async def _rest(
    seen: list[bytes], following: asyncio.Task[bytes | None] | None, arriving: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    for request in seen:
        yield request
    if following and (second := await following) is not None:
        yield second
        async for request in arriving:
            yield request


def own_metadata(metadata: Any) -> Metadata:
    """What is the call's own of all that came with it."""
    return tuple((key, value) for key, value in metadata or () if key not in _HOP_BY_HOP)
