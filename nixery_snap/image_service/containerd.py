"""containerd as a client sees it: calls in the kubelet's namespace, reconnecting by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from nixery_snap.errors import ContainerdError, ContainerdRefused, ContainerdUnreachable
from nixery_snap.image_service.generated.containerd_services_content_pb2 import (
    Info,
    InfoRequest,
    InfoResponse,
    ListContentRequest,
    ListContentResponse,
    ReadContentRequest,
    ReadContentResponse,
)
from nixery_snap.image_service.generated.containerd_services_version_pb2 import VersionResponse
from nixery_snap.image_service.options import NAMESPACE
from nixery_snap.oci.digest import Digest

M = TypeVar("M", bound=Message)
# A socket is local: it may be asked often whether containerd is back, and nothing is too big.
CHANNEL_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
_METADATA: Final = (("containerd-namespace", NAMESPACE),)
_CALL_SECONDS: Final = 30
_PATIENCE_SECONDS: Final = 2  # more than the longest wait between two attempts to connect
_CONTENT: Final = "/containerd.services.content.v1.Content"


class Containerd:
    """To be made on the event loop that uses it. Every call raises ContainerdError."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)

    async def close(self) -> None:
        await self.channel.close()

    @property
    def is_connected(self) -> bool:
        return self.channel.get_state() is grpc.ChannelConnectivity.READY

    async def reach(self) -> None:
        """Wait a moment for the connection: containerd may have just been started again. Raises nothing."""
        if not self.is_connected:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await self.channel.channel_ready()

    async def call(
        self,
        method: str,
        request: Message,
        response_type: type[M],
        step: str,
        timeout_seconds: float | None = _CALL_SECONDS,
        lease: str = "",
    ) -> M:
        """`step` is for people, as in "containerd cannot <step>"; what is made belongs to `lease` for a start."""
        rpc = self.channel.unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response_type.FromString,
        )
        await self.reach()
        try:
            response: M = await rpc(
                request,
                timeout=timeout_seconds,
                metadata=(*_METADATA, *((("containerd-lease", lease),) if lease else ())),
            )
        except grpc.aio.AioRpcError as error:
            raise self.failure(error, step) from error
        return response

    def stream(self, method: str) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        """A stream of raw messages both ways."""
        return self.channel.stream_stream(method)(metadata=_METADATA)

    def failure(self, error: grpc.aio.AioRpcError, step: str) -> ContainerdError:
        if error.code() is grpc.StatusCode.UNAVAILABLE and not self.is_connected:
            return ContainerdUnreachable(self.address)
        return ContainerdRefused(step, f"{error.details()} ({error.code().name.lower()})")

    async def version(self) -> tuple[str, tuple[int, int]]:
        """As it says, and the first two numbers."""
        answer = await self.call(
            "/containerd.services.version.v1.Version/Version", Empty(), VersionResponse, "tell its version"
        )
        numbers = answer.version.removeprefix("v").split(".")
        try:
            return answer.version, (int(numbers[0]), int(numbers[1]))
        except (ValueError, IndexError):
            return answer.version, (0, 0)

    async def content_labels(self, digest: Digest) -> Mapping[str, str] | None:
        """The labels of a blob in its content store; None when it has no such blob."""
        info = await self._content_info(digest)
        return None if info is None else dict(info.labels)

    async def _content_info(self, digest: Digest) -> Info | None:
        try:
            answer = await self.call(
                f"{_CONTENT}/Info", InfoRequest(digest=str(digest)), InfoResponse, f"look for {digest}"
            )
        except ContainerdRefused as error:
            if is_status(error, grpc.StatusCode.NOT_FOUND):
                return None
            raise
        return answer.info

    async def content_with_label(self, label: str) -> list[Digest]:
        """All blobs in its content store that have this label."""
        step = "list its content"
        rpc = self.channel.unary_stream(
            f"{_CONTENT}/List",
            request_serializer=ListContentRequest.SerializeToString,
            response_deserializer=ListContentResponse.FromString,
        )
        request = ListContentRequest(filters=[f'labels."{label}"'])
        try:
            call = rpc(request, timeout=_CALL_SECONDS, metadata=_METADATA)
            return [Digest.parse(info.digest) async for answer in call for info in answer.info]
        except grpc.aio.AioRpcError as error:
            raise self.failure(error, step) from error

    async def content(self, digest: Digest, limit_bytes: int) -> bytes:
        """A small blob. Raises ContainerdRefused for one that is larger."""
        step = f"read {digest}"
        rpc = self.channel.unary_stream(
            f"{_CONTENT}/Read",
            request_serializer=ReadContentRequest.SerializeToString,
            response_deserializer=ReadContentResponse.FromString,
        )
        content = bytearray()
        call = rpc(ReadContentRequest(digest=str(digest)), timeout=_CALL_SECONDS, metadata=_METADATA)
        try:
            async for answer in call:
                content += answer.data
                if len(content) > limit_bytes:
                    raise ContainerdRefused(step, f"it has more than {limit_bytes} bytes")
        except grpc.aio.AioRpcError as error:
            raise self.failure(error, step) from error
        finally:
            call.cancel()
        return bytes(content)


def is_status(error: ContainerdError, code: grpc.StatusCode) -> bool:
    cause = error.__cause__
    return isinstance(cause, grpc.aio.AioRpcError) and cause.code() is code
