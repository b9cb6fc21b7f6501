"""The RPCs: what is ours is done here, everything else of the image service is passed on."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError, Message

from nixery_snap import metrics, tracing
from nixery_snap.errors import InvalidFormat, NixerySnapError
from nixery_snap.image_service.builder import Builder
from nixery_snap.image_service.containerd import Containerd
from nixery_snap.image_service.errors import message_of, status_of
from nixery_snap.image_service.gc_roots import GcRoots
from nixery_snap.image_service.generated.cri_pb2 import (
    ImageFsInfoResponse,
    PullImageRequest,
    PullImageResponse,
)
from nixery_snap.image_service.generated.node_pb2 import RealiseRequest, RealiseResponse
from nixery_snap.image_service.leases import Leases
from nixery_snap.image_service.node_images import NodeImages
from nixery_snap.image_service.pass_on import handler_for, pass_on
from nixery_snap.image_service.prefetch import Prefetcher
from nixery_snap.image_service.references import NodeReference
from nixery_snap.image_service.registry_images import RegistryImages
from nixery_snap.oci.digest import Digest

log = structlog.get_logger()
M = TypeVar("M", bound=Message)
T = TypeVar("T")

_IMAGE_SERVICE: Final = re.compile(r"/runtime\.[a-z0-9.]+\.ImageService/(\w+)")
_REALISE: Final = "/nixery_snap.node.v1.StorePaths/Realise"
_ROUTES: Final = ("archive", "name", "registry")
_RESULTS: Final = ("ok", "failed", "cancelled")
_MESSAGE_CHARACTERS: Final = 4000  # clients refuse long headers, and an error's message is one
Context = grpc.aio.ServicerContext[bytes, bytes]


class ImageService(grpc.GenericRpcHandler):
    """Chooses by method who answers. `removed` is called when an image may have gone, `failed` when none came to be."""

    def __init__(
        self,
        containerd: Containerd,
        node_images: NodeImages,
        registry_images: RegistryImages,
        prefetcher: Prefetcher,
        builder: Builder,
        removed: Callable[[], None],
        failed: Callable[[], None],
    ) -> None:
        self._containerd = containerd
        self._node_images = node_images
        self._registry_images = registry_images
        self._prefetcher = prefetcher
        self._builder = builder
        self._removed = removed
        self._failed = failed
        for route, result in product(_ROUTES, _RESULTS):
            metrics.PULL_SECONDS.labels(route, result)  # from the start, or the first failure is no increase

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if call.method == _REALISE:
            return grpc.unary_unary_rpc_method_handler(self._realise)
        matched = _IMAGE_SERVICE.fullmatch(call.method)
        if not matched:
            return None
        intercepted = {
            "PullImage": self._pull_image,
            "RemoveImage": self._remove_image,
            "ImageFsInfo": self._image_fs_info,
        }.get(matched[1])
        if intercepted is None:
            return handler_for(self._containerd, call.method)

        async def handle(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            metadata = context.invocation_metadata() or ()
            caller = {str(name): value for name, value in metadata if isinstance(value, str)}
            _name_the_request()
            with tracing.request_span(matched[1], {}, caller):
                async for response in intercepted(call.method, requests, context):
                    yield response

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _pull_image(
        self, method: str, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        content = b"".join([request async for request in requests])
        request, reference = await _told(_pull_wanted, context, content)
        try:
            with _counted("registry" if not reference else "archive" if reference.archive else "name"):
                async for response in self._pulled(method, content, request, reference, context):
                    yield response
        except BaseException:
            self._failed()
            raise

    async def _pulled(
        self,
        method: str,
        content: bytes,
        request: PullImageRequest,
        reference: NodeReference | None,
        context: Context,
    ) -> AsyncIterator[bytes]:
        if reference:
            config = await _told(self._node_images.pull, context, reference)
            yield PullImageResponse(image_ref=str(config)).SerializeToString()
            return
        async with self._registry_images.prefetched(request.image.image, request.auth):
            async for response in pass_on(self._containerd, method, _once(content), context):
                yield response

    async def _remove_image(
        self, method: str, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        async for response in pass_on(self._containerd, method, requests, context):
            yield response
        self._removed()

    async def _image_fs_info(
        self, method: str, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        async for response in pass_on(self._containerd, method, requests, context):
            yield await self._with_store_paths(response)

    async def _with_store_paths(self, response: bytes) -> bytes:
        """The kubelet looks at the first file system only, so that is where the Nix store's bytes are added."""
        try:
            info = ImageFsInfoResponse.FromString(response)
            used_bytes, used_paths = await self._prefetcher.used_bytes()
        except (DecodeError, NixerySnapError) as error:
            log.warning("store-paths-not-counted", reason=str(error))
            return response
        if info.image_filesystems:
            first = info.image_filesystems[0]
            first.used_bytes.value += used_bytes
            first.inodes_used.value += used_paths
        return info.SerializeToString()

    async def _realise(self, content: bytes, context: Context) -> bytes:
        _name_the_request()
        request = await _told(_realise_wanted, context, content)
        await _told(self._builder.realise, context, request.out_link, request.store_path)
        return RealiseResponse().SerializeToString()


def _name_the_request() -> None:
    """In the log; each call is a task of its own, so there is nothing to take back."""
    structlog.contextvars.bind_contextvars(request_id=uuid.uuid4().hex)


@contextmanager
def _counted(route: str) -> Iterator[None]:
    begun, result = time.perf_counter(), "failed"
    with metrics.PULLS_IN_FLIGHT.labels(route).track_inprogress():
        try:
            yield
            result = "ok"
        except (asyncio.CancelledError, GeneratorExit):
            result = "cancelled"
            raise
        finally:
            metrics.PULL_SECONDS.labels(route, result).observe(time.perf_counter() - begun)


async def _told(work: Callable[..., Awaitable[T]], context: Context, *arguments: Any) -> T:
    """What `work` returns; its errors are told as the kubelet shows them."""
    try:
        return await work(*arguments)
    except NixerySnapError as error:
        log.warning("request-refused", kind=type(error).__name__, reason=str(error))
        await context.abort(status_of(error), message_of(error)[:_MESSAGE_CHARACTERS])
    except Exception:
        log.exception("request-crashed")
        await context.abort(grpc.StatusCode.INTERNAL, "the image service failed; its log says more")


async def _pull_wanted(content: bytes) -> tuple[PullImageRequest, NodeReference | None]:
    request = _parsed(PullImageRequest, content)
    return request, NodeReference.parse(request.image.image)


async def _realise_wanted(content: bytes) -> RealiseRequest:
    return _parsed(RealiseRequest, content)


def _parsed(kind: type[M], content: bytes) -> M:
    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise InvalidFormat(kind.DESCRIPTOR.full_name, content[:100], str(error)) from error


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def sweep(containerd: Containerd, leases: Leases, roots: GcRoots) -> int:
    """Remove the links of images that containerd does not have any more; how many. Raises ContainerdError."""
    await leases.drop_orphans()
    removed = 0
    for key in await asyncio.to_thread(roots.unused):
        with suppress(InvalidFormat):
            if await containerd.content_labels(Digest.parse(f"sha256:{key}")) is not None:
                continue
        await asyncio.to_thread(roots.remove, key)
        removed += 1
    if removed:
        log.info("swept", images=removed)
    return removed
