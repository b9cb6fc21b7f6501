"""Where a git repository is: `git+https://…`, `git+http://…`, `git+ssh://…` or `git+file:///…`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from nixery_snap.sources.credentials import basic

_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*)|\[[0-9a-fA-F:.]+\]")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_REF: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+/-]*")
COMMIT: Final = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


@dataclass(frozen=True, slots=True)
class GitUrl:
    """`text` is what git is given. It holds no secret, and neither does `str()`, which tells people."""

    transport: str
    text: str
    origin: str
    """Scheme, host and port."""
    default: str | None = None
    """What the tag latest means instead of HEAD: the ref or revision of the query."""
    authorization: str | None = field(default=None, repr=False)
    """Of user and password that stood in the URL: a value of the header Authorization."""

    @property
    def is_http(self) -> bool:
        return self.transport in {"http", "https"}

    def __str__(self) -> str:
        return f"git+{self.text}" + (f" at {self.default}" if self.default else "")

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Raises ValueError with a reason that holds nothing of the URL."""
        if not spec.isascii() or not spec.isprintable() or re.search(r"\s", spec):
            raise ValueError("it may only hold printable ASCII characters; others are written as %XX")
        parts = urlsplit(spec.removeprefix("git+"))
        transport, path = parts.scheme, parts.path
        if not spec.startswith("git+") or transport not in {"https", "http", "ssh", "file"}:
            raise ValueError("it must begin with git+https://, git+http://, git+ssh:// or git+file:///")
        if not path.startswith("/") or path == "/" or parts.fragment:
            raise ValueError("it must name a repository by its path, without a # part")
        default = _default(parts.query)
        if transport == "file":
            if parts.netloc:
                raise ValueError("behind git+file:// comes a path that begins with /")
            # git takes what follows as a path: nothing is written as %XX there.
            plain = unquote(path)
            if "\0" in plain:
                raise ValueError("no path has a zero byte in it")
            return cls(transport, f"file://{plain}", "file://", default)
        login, _, host = parts.netloc.rpartition("@")
        user, _, password = map(unquote, login.partition(":"))
        name, port = _host(host)
        origin = f"{transport}://{name}{port}"
        if transport == "ssh":
            if password:
                raise ValueError("ssh takes no password: use a key")
            if user and not _USER.fullmatch(user):
                raise ValueError("the user name is malformed")
            return cls(transport, f"ssh://{f'{user}@' if user else ''}{name}{port}{path}", origin, default)
        header = None
        if login:
            header = basic(user, password)
        return cls(transport, f"{origin}{path}", origin, default, header)

    @staticmethod
    def origin_of(url: str) -> str:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"


def is_ref_name(text: str) -> bool:
    """Whether it can be part of a ref and is no option, range or pattern (git-check-ref-format(1), and stricter)."""
    if not _REF.fullmatch(text) or len(text) > 250 or ".." in text or "//" in text:
        return False
    return not any(
        part.startswith(".") or part.endswith((".lock", ".")) or not part for part in text.split("/")
    )


def _host(text: str) -> tuple[str, str]:
    name, colon, port = text.rpartition(":") if re.search(r":[0-9]*$", text) else (text, "", "")
    if not _HOST.fullmatch(name):
        raise ValueError("the host name is malformed")
    if colon and not (port and 0 < int(port) < 65536):
        raise ValueError("the port is no number from 1 to 65535")
    return name.lower(), f"{colon}{port}"


def _default(query: str) -> str | None:
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := parameters.keys() - {"ref", "rev"}:
        raise ValueError(f"of its parameters only ref and rev are known, not {', '.join(sorted(unknown))}")
    if (rev := parameters.get("rev")) is not None and not COMMIT.fullmatch(rev):
        raise ValueError("rev must be a whole commit: 40 or 64 hexadecimal digits")
    ref = parameters.get("ref")
    if ref is not None and not is_ref_name(ref):
        raise ValueError("ref is no name of a branch or tag")
    return rev or ref
