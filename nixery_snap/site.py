"""The whole web application: registry and binary caches, of every compartment, behind the entrance if there is one."""

from __future__ import annotations

import resource
from functools import partial
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from aiohttp import web

from nixery_snap import metrics, reports
from nixery_snap.binary_cache.app import make_cache_app
from nixery_snap.imaging.request import DEFAULT_SOURCE
from nixery_snap.registry.app import make_app
from nixery_snap.registry.context import Registry, new_memory
from nixery_snap.registry.packages import PACKAGE_SEARCH
from nixery_snap.service import Service
from nixery_snap.settings import CACHE_PREFIX, Settings
from nixery_snap.settings.sections import LimitSettings
from nixery_snap.web.connections import ConnectionLimits
from nixery_snap.web.forwarded import TrustedProxies

if TYPE_CHECKING:
    from nixery_snap.entrance import Entrance

_FILE_DESCRIPTORS: Final = 65536


def make_site(settings: Settings, service: Service, entrance: Entrance | None) -> web.Application:
    compartments = {DEFAULT_SOURCE: service.shared, **service.separate}
    registries = {
        source: Registry(
            compartment.pipeline,
            compartment.blobs,
            service.grammar,
            settings.nix.wait_timeout,
            new_memory(settings.limits.memory_cache),
            settings.index_formats,
            uses=compartment.uses,
            lost_layers=compartment.lost_layers,
            names=compartment.names if settings.catalogue else None,
        )
        for source, compartment in compartments.items()
    }
    for source, registry in registries.items():
        metrics.watch_size("manifests", partial(_size, registry))
        compartments[source].uses.remembers(registry.forget)
        compartments[source].lost_layers.forget += [compartments[source].pipeline.forget, registry.forget]
    shared = registries.pop(DEFAULT_SOURCE)
    cache = settings.binary_cache
    caches = {
        source: make_cache_app(
            compartment.cache,
            public_key=service.public_key,
            priority=cache.priority,
            uses=compartment.uses,
        )
        for source, compartment in (compartments if cache.enabled else {}).items()
    }
    app = make_app(
        shared,
        access_log=settings.access_log,
        subapps={
            settings.cache_prefix_of(source) if source in service.separate else CACHE_PREFIX: subapp
            for source, subapp in caches.items()
        },
        front_page=partial(reports.front_page, settings, service.public_key),
        proxies=TrustedProxies([ip_network(text) for text in settings.trusted_proxies]),
        separate=registries,
        guard=entrance.guard if entrance else None,
        limits=_connection_limits(settings.limits),
    )
    app[PACKAGE_SEARCH] = service.packages
    if entrance is not None:
        entrance.attach(app, caches)
    return app


def _size(registry: Registry) -> float:
    return registry.memory.currsize


def _connection_limits(limits: LimitSettings) -> ConnectionLimits:
    return ConnectionLimits(
        url_bytes=limits.url_bytes,
        header_bytes=limits.header_bytes,
        body_bytes=limits.body_bytes,
        request_seconds=limits.request_timeout,
        idle_seconds=limits.idle_timeout,
        stall_seconds=limits.stall_timeout,
        per_client=limits.client_connections,
        requests=limits.connection_requests,
        total=_file_descriptors() // 3,  # a download takes three: itself, its file, a duplicate of itself
    )


def _file_descriptors() -> int:
    """How many this process may have, after it has taken what it may: 1,024 are the default on many systems."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(hard, _FILE_DESCRIPTORS))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
