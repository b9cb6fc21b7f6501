"""Buckets by URL, through obstore: `s3://BUCKET`, `gs://BUCKET` and `az://CONTAINER`, each with a prefix if need be.

Where the bucket is stands in the URL's query, in Nix's words; who may use it is never in a URL, but where the vendors'
own programs look: in the environment, in files that it names, or with the machine's metadata service.
"""

from __future__ import annotations

import configparser
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict
from urllib.parse import parse_qsl, unquote, urlsplit

from obstore.store import AzureStore, GCSStore, S3Store

if TYPE_CHECKING:  # there they are for type checkers alone
    from obstore.store import ClientConfig, RetryConfig

Bucket = S3Store | GCSStore | AzureStore
PARAMETERS: Final = {
    "s3": ("region", "endpoint", "scheme", "skip_signature"),
    "gs": ("endpoint", "scheme", "skip_signature"),
    "az": ("account", "endpoint", "scheme", "skip_signature"),
}
"""What may stand in a URL's query, by the URL's scheme; nothing of it is secret."""
_CONNECT_SECONDS: Final = 5


class _Options(TypedDict):
    prefix: str | None
    client_options: ClientConfig
    retry_config: RetryConfig


def open_bucket(url: str, *, max_retries: int, timeout_seconds: float) -> Bucket:
    """Connects to nothing yet. `timeout_seconds` is how long a server may say nothing at all.

    Raises ValueError, and obstore's BaseError for settings of the environment that contradict each other.
    """
    parts = urlsplit(url)
    if parts.scheme not in PARAMETERS or not parts.netloc or "@" in parts.netloc or parts.fragment:
        raise ValueError("it must be s3://BUCKET, gs://BUCKET or az://CONTAINER, without user and password")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = PARAMETERS[parts.scheme]
    if unknown := given.keys() - set(known):
        raise ValueError(f"{', '.join(sorted(unknown))}: only {', '.join(known)} are known")
    scheme = given.get("scheme", "https")
    if scheme not in {"http", "https"}:
        raise ValueError("scheme must be http or https")
    endpoint = f"{scheme}://{given['endpoint']}" if given.get("endpoint") else None
    options = _Options(
        prefix=unquote(parts.path).strip("/") or None,
        client_options={
            "allow_http": (endpoint or _endpoint_of_environment(parts.scheme)).startswith("http:"),
            "connect_timeout": timedelta(seconds=min(_CONNECT_SECONDS, timeout_seconds)),
            "read_timeout": timedelta(seconds=timeout_seconds),
            "timeout": timedelta(days=1),  # of a whole body, which the client of a client may take slowly
        },
        retry_config={"max_retries": max_retries, "retry_timeout": timedelta(seconds=timeout_seconds)},
    )
    more: dict[str, Any] = {"skip_signature": True} if is_public(given) else {}
    match parts.scheme:
        case "s3":
            if not is_public(given):
                more |= _shared_credentials()
            if endpoint:
                more |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
            more["region"] = given.get("region") or _region()
            return S3Store(parts.netloc, **options, **more)
        case "gs":
            if endpoint:
                more["base_url"] = endpoint
            return GCSStore(parts.netloc, **options, **more)
        case _:
            if account := given.get("account"):
                more["account_name"] = account
            if endpoint:
                more["endpoint"] = endpoint
            return AzureStore(parts.netloc, **options, **more)


def is_public(parameters: dict[str, str]) -> bool:
    return "skip_signature" in parameters and parameters["skip_signature"] in {"", "1", "true"}


def _endpoint_of_environment(scheme: str) -> str:
    names = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"), "az": ("AZURE_ENDPOINT",)}
    return next(filter(None, map(os.environ.get, names.get(scheme, ()))), "")


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _shared_credentials() -> dict[str, str]:
    """Those of the shared file and AWS_PROFILE, which obstore does not read; the environment's own come first."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    file = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path("~/.aws/credentials").expanduser()
    parser = configparser.RawConfigParser()
    try:
        parser.read(file)
        section = parser[os.environ.get("AWS_PROFILE", "default")]
        found = {"access_key_id": section["aws_access_key_id"]}
        found["secret_access_key"] = section["aws_secret_access_key"]
        if token := section.get("aws_session_token"):
            found["token"] = token
    except (KeyError, RuntimeError):  # no such profile, or one with another kind of credentials; no home
        return {}
    except (configparser.Error, OSError, UnicodeDecodeError):
        raise ValueError(f"{file} cannot be read as a file of AWS credentials") from None  # it holds secrets
    return found
