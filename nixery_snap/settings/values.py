"""Single values of settings: what they may be."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator

from nixery_snap.access.safe_url import is_safe
from nixery_snap.errors import InvalidFormat, InvalidName
from nixery_snap.imaging.request import ARCHITECTURES, ImageFormat
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.signing import PublicKey
from nixery_snap.oci.reference import check_name

CACHE_SCHEMES: Final = ("https", "http", "file", "s3", "gs")
SOURCE_KINDS: Final = ("path", "channel", "tarball", "flake")

# ssh takes no password in a URL, and the user is no secret there.
_LOGIN: Final = re.compile(r"(?<!ssh)(?<!ssh-ng)://[^/?#\s'\"]*@")
_SECRET: Final = re.compile(r"(?i)([?&][^=&\s]*(?:token|secret|passw|sig|credential)[^=&\s]*=)[^&#\s]+")


def masked(text: str) -> str:
    """Without users and passwords of URLs in it, nor secrets behind their question marks."""
    return _SECRET.sub(r"\1***", _LOGIN.sub("://***@", text))


def _attribute_path(text: str) -> str:
    """An attribute path."""
    try:
        return str(AttributePath.parse(text))
    except InvalidFormat as error:
        raise ValueError(str(error)) from None


def _source(text: str) -> str:
    """`path:DIRECTORY`, `git+URL`, `channel:NAME`, `tarball:URL` or `flake:REFERENCE`."""
    kind, _, rest = text.partition(":")
    if not rest or not (kind in SOURCE_KINDS or kind.startswith("git+")):
        # Not what it is instead: it may hold a password.
        raise ValueError(f"it must be one of git+URL, {', '.join(f'{kind}:…' for kind in SOURCE_KINDS)}")
    return f"path:{Path(rest).absolute()}" if kind == "path" else text


def _unix(text: str) -> str:
    """`unix:///PATH`."""
    if not text.startswith("unix:///"):
        raise ValueError(f"{text!r} is not unix:///PATH")
    return text


def _popularity(text: str) -> str:
    """A file, or an http or https URL."""
    scheme, separator, _ = text.partition("://")
    if separator:
        if scheme not in {"http", "https"}:
            raise ValueError(f"{masked(text)!r} is neither a file nor an http or https URL")
        return text
    return str(Path(text).absolute()) if text else ""


def _listen(text: str) -> str:
    """`HOST:PORT`."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return text


def _prefix(name: str) -> str:
    """One part of an image name that has no meaning yet."""
    try:
        check_name(name)
    except InvalidName as error:
        raise ValueError(str(error)) from None
    if "/" in name or name in {*ARCHITECTURES, *ImageFormat}:
        raise ValueError(
            f"{name!r} cannot be used here: it is no single part of a name, or has a meaning already"
        )
    return name


def _host(text: str) -> str:
    """A name of a host."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]", text):
        raise ValueError(f"{text!r} is no name of a host: leave out scheme, port and path")
    return text


def _cache_url(text: str) -> str:
    """`https://…`, `http://…`, `file:///DIRECTORY`, `s3://BUCKET` or `gs://BUCKET`."""
    parts = urlsplit(text)
    if parts.scheme not in CACHE_SCHEMES or not (parts.path if parts.scheme == "file" else parts.netloc):
        raise ValueError(f"{masked(text)!r} is not a URL of a binary cache: {', '.join(CACHE_SCHEMES)}")
    return text.rstrip("/")


def _http_url(text: str) -> str:
    """An http or https URL without a query."""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ValueError("it must be an http or https URL")  # not what it is instead: it may hold a password
    if parts.query:  # whoever sends spans logs it when they cannot be sent
        raise ValueError("it must have no query: OTEL_EXPORTER_OTLP_HEADERS takes credentials")
    return text


def _public_key(text: str) -> str:
    """`NAME:BASE64`."""
    try:
        return str(PublicKey.parse(text))
    except InvalidFormat as error:
        raise ValueError(str(error)) from None


def _network(text: str) -> str:
    """An address or a network, as `10.0.0.0/8`."""
    try:
        return str(ip_network(text))
    except ValueError:
        raise ValueError(f"{text!r} is neither an address nor a network such as 10.0.0.0/8") from None


def _issuer(text: str) -> str:
    """`https://…`."""
    if not is_safe(text):
        raise ValueError(f"{text!r} is no https URL")
    return text


AttributeText = Annotated[str, AfterValidator(_attribute_path)]
NamePart = Annotated[str, AfterValidator(_prefix)]
System = Literal["x86_64-linux", "aarch64-linux"]
SourceSpec = Annotated[str, AfterValidator(_source)]
UnixAddress = Annotated[str, AfterValidator(_unix)]
PopularityPlace = Annotated[str, AfterValidator(_popularity)]
ListenAddress = Annotated[str, AfterValidator(_listen)]
NetworkText = Annotated[str, AfterValidator(_network)]
IssuerUrl = Annotated[str, AfterValidator(_issuer)]
HostName = Annotated[str, AfterValidator(_host)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
CacheUrl = Annotated[str, AfterValidator(_cache_url)]
PublicKeyText = Annotated[str, AfterValidator(_public_key)]
