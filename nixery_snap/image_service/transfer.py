"""Imports image archives by containerd's Transfer service, unpacked with a snapshotter."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Mapping
from typing import Final

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from nixery_snap.errors import ContainerdRefused
from nixery_snap.image_service.containerd import Containerd
from nixery_snap.image_service.generated.containerd_services_streaming_pb2 import StreamInit
from nixery_snap.image_service.generated.containerd_services_transfer_pb2 import TransferRequest
from nixery_snap.image_service.generated.containerd_transfer_pb2 import (
    Data,
    ImageImportStream,
    ImageStore,
    UnpackConfiguration,
    WindowUpdate,
)
from nixery_snap.image_service.generated.containerd_types_pb2 import Platform

_STREAM: Final = "/containerd.services.streaming.v1.Streaming/Stream"
_TRANSFER: Final = "/containerd.services.transfer.v1.Transfer/Transfer"
_CHUNK_BYTES: Final = 32 * 1024  # what containerd itself sends at a time
_STEP: Final = "import the image"


async def import_archive(
    containerd: Containerd,
    chunks: Iterator[bytes],
    name: str,
    snapshotter: str,
    architecture: str,
    labels: Mapping[str, str],
    lease: str,
) -> None:
    """Import what `chunks` (blocking) add up to as the image `name` with these labels, meanwhile kept by `lease`.

    Raises ContainerdError.

    A half-done import leaves no image: containerd names it at the end, and drops what nothing names.
    """
    platform = Platform(os="linux", architecture=architecture)
    stream_id = f"nixery-snap-{uuid.uuid4().hex}"
    call = containerd.stream(_STREAM)
    try:
        await call.write(_packed(StreamInit(id=stream_id)).SerializeToString())
        if await call.read() is grpc.aio.EOF:
            raise ContainerdRefused(_STEP, await call.details() or "it closed the stream")
        sending = asyncio.ensure_future(_send(call, chunks))
        request = TransferRequest(
            source=_packed(ImageImportStream(stream=stream_id)),
            destination=_packed(
                ImageStore(
                    name=name,
                    labels=labels,
                    platforms=[platform],
                    unpacks=[UnpackConfiguration(platform=platform, snapshotter=snapshotter)],
                )
            ),
        )
        transfer = asyncio.ensure_future(
            containerd.call(_TRANSFER, request, Empty, _STEP, timeout_seconds=None, lease=lease)
        )
        try:
            # Whichever fails first tells why; the transfer ends when the stream does.
            await asyncio.wait({sending, transfer}, return_when=asyncio.FIRST_EXCEPTION)
            if sending.done() and not isinstance(sending.exception(), grpc.aio.AioRpcError | None):
                sending.result()
            await transfer
        finally:
            for task in (sending, transfer):
                task.cancel()
            await asyncio.gather(sending, transfer, return_exceptions=True)
    except grpc.aio.AioRpcError as error:
        raise containerd.failure(error, _STEP) from error
    finally:
        call.cancel()


async def _send(call: grpc.aio.StreamStreamCall[bytes, bytes], chunks: Iterator[bytes]) -> None:
    """As many bytes as the other side says it will take."""
    window, pending = 0, b""
    while True:
        if not pending:
            pending = await asyncio.to_thread(_next, chunks)
            if not pending:
                break
        while window <= 0:
            answer = await call.read()
            if not isinstance(answer, bytes):
                return  # the end: it wants no more, which the transfer explains
            window += WindowUpdate.FromString(Any.FromString(answer).value).update
        size = min(len(pending), window, _CHUNK_BYTES)
        await call.write(_packed(Data(data=pending[:size])).SerializeToString())
        pending, window = pending[size:], window - size
    await call.done_writing()


def _next(chunks: Iterator[bytes]) -> bytes:
    """The next that is not empty; empty at the end."""
    return next((chunk for chunk in chunks if chunk), b"")


def _packed(message: Message) -> Any:
    """containerd compares type URLs as a whole, and its own have no host."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
