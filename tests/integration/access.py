"""A registry that is not for everybody: users, strangers, and a source that strangers may not see."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import bcrypt

from tests.integration.nixtools import EXAMPLES, ChrootStore, add_package
from tests.integration.server import Registry, Response, serving

USER, PASSWORD = "alice", "pass:wörd"
SECRET = "secretspice"
SAUCE = """bin secretspice <<EOF
#!${bash}/bin/sh
echo 'tomatoes'
EOF"""


def basic(user: str = USER, password: str = PASSWORD) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def password_file(path: Path) -> Path:
    """Of alice, who has all rights, and bob, who has some."""
    users = {USER: PASSWORD, "bob": "bob"}
    path.write_text(
        "".join(
            f"{user}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(5)).decode()}\n"
            for user, password in users.items()
        )
    )
    return path


# Strangers may have two packages, bob all of what is public.
RULES = """
[[auth.rules]]
users = ["alice", "corp:*"]
[[auth.rules]]
users = ["bob"]
sources = ["default"]
[[auth.rules]]
users = ["anonymous"]
sources = ["default"]
packages = ["hello", "which"]
tags = ["latest"]
actions = ["pull"]
"""


@dataclass
class Guarded:
    registry: Registry
    source: Path
    """Has all that the default one has, and SECRET."""
    tokens: bool
    """Whether clients are asked for tokens, or else for passwords."""

    @property
    def private_cache_url(self) -> str:
        return f"{self.registry.cache_url}-of/internal"

    @property
    def public_key(self) -> str:
        return self.get("/nix-cache/public-key").body.decode().strip()

    def get(self, target: str, authorization: str | None = "", **headers: str) -> Response:
        """As alice, unless there is another header; None for none."""
        shown = {} if authorization is None else {"Authorization": authorization or basic()}
        return self.registry.request("GET", target, {**shown, **headers})


@contextmanager
def guarded(directory: Path, store: ChrootStore, *, tokens: bool) -> Iterator[Guarded]:
    directory.mkdir(parents=True, exist_ok=True)
    source = Path(copytree(EXAMPLES, directory / "packages"))
    add_package(source, SECRET, SAUCE)
    config = f"""
[sources.internal]
spec = "path:{source}"
prefix = "internal"
hosts = ["internal.example"]
separate = true
[limits]
client_failures = 0
[auth]
htpasswd_file = "{password_file(directory / "htpasswd")}"
tokens = {str(tokens).lower()}
token_ttl = 60
{RULES}
"""
    with serving(Registry(directory / "state", store.root, config=config)) as registry:
        yield Guarded(registry, source, tokens)
