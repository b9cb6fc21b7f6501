"""Who asks, and what the client calls this server: by the connection, or as a trusted proxy says (X-Forwarded-*)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from aiohttp import web

Network = IPv4Network | IPv6Network
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_MAX_HOPS: Final = 32
_IPV6_CLIENT_BITS: Final = 64  # whoever has one of these addresses has all of them


@dataclass(frozen=True, slots=True)
class Seen:
    """What proxies say of a request; empty where they say nothing."""

    address: str
    scheme: str
    host: str


_SEEN: Final = web.RequestKey("seen", Seen)


class TrustedProxies:
    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)

    def look(self, request: web.Request) -> None:
        """From then on the functions below tell of `request` what the proxies say, if it comes from one of them."""
        if not self.trusts(request.remote or ""):
            return
        address = request.remote or ""
        # Each proxy appends whom it has the request from: what stands before the first that is not ours can be lies.
        for hop in reversed(_items(request, "X-Forwarded-For")[-_MAX_HOPS:]):
            if (parsed := _address(hop)) is None:
                break
            address = str(parsed)
            if not self.trusts(address):
                break
        scheme = _last(request, "X-Forwarded-Proto").lower()
        host = _last(request, "X-Forwarded-Host")
        request[_SEEN] = Seen(
            address,
            scheme if scheme in {"http", "https"} else "",
            host if _HOST.fullmatch(host) else "",
        )

    def trusts(self, address: str) -> bool:
        parsed = _address(address) if self._networks else None
        return parsed is not None and any(parsed in network for network in self._networks)


NO_PROXIES: Final = TrustedProxies(())
PROXIES: Final = web.AppKey("proxies", TrustedProxies)


def _items(request: web.Request, header: str) -> list[str]:
    return [item.strip() for item in ",".join(request.headers.getall(header, [])).split(",")]


def _last(request: web.Request, header: str) -> str:
    return _items(request, header)[-1]


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Also with a port, as some proxies write it."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ip_address(text)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def address_of(request: web.BaseRequest) -> str:
    seen = request.get(_SEEN)
    return seen.address if seen else request.remote or ""


def client_address(request: web.BaseRequest) -> str:
    """As clients are counted."""
    parsed = _address(address_of(request))
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, _IPV6_CLIENT_BITS), strict=False))
    return str(parsed or "")


def asked_scheme(request: web.BaseRequest) -> str:
    seen = request.get(_SEEN)
    return (seen.scheme if seen else "") or request.scheme


def asked_host(request: web.BaseRequest) -> str:
    """What the client calls this server, its port included; may be anything, or nothing."""
    seen = request.get(_SEEN)
    # Not request.host, which asks the network for a name where the client sent none.
    return (seen.host if seen else "") or request.headers.get("Host", "")


def plain_host(request: web.BaseRequest) -> str:
    """The same where it is fit for a URL, else nothing."""
    host = asked_host(request)
    return host if _HOST.fullmatch(host) else ""
