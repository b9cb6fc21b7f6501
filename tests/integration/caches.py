"""Binary caches for the tests: made by real Nix, served by nginx, which writes down what was asked of it."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.integration.nginx import access_log, run_nginx
from tests.integration.nixtools import ChrootStore
from tests.integration.processes import free_port, run, wait_until
from tests.integration.server import Substituter, request

NIX_KEY = ("nix", "--extra-experimental-features", "nix-command", "key")
READY = "/ready"  # what the tests themselves ask for begins with it
HTTP = """
  log_format plain '$request_method $uri $status $body_bytes_sent';
  sendfile on;
  tcp_nodelay on;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    root {root};
  }}
"""


@dataclass(frozen=True)
class KeyPair:
    """A signing key in a file as Nix makes it, and what verifies its signatures (`name:base64` both)."""

    file: Path
    public: str

    @classmethod
    def generate(cls, file: Path, name: str = "test-1") -> "KeyPair":
        secret = run(*NIX_KEY, "generate-secret", "--key-name", name).stdout
        file.touch(0o600)
        file.write_text(secret)
        return cls.read(file)

    @classmethod
    def read(cls, file: Path) -> "KeyPair":
        return cls(file, run(*NIX_KEY, "convert-secret-to-public", stdin=file.read_text()).stdout.strip())

    @property
    def secret(self) -> str:
        """The part that nobody may ever see."""
        return self.file.read_text().partition(":")[2].strip()


@dataclass(frozen=True)
class CacheDirectory:
    """A binary cache of plain files whose paths are signed by `key`."""

    root: Path
    key: KeyPair

    def publish(
        self, store: ChrootStore, paths: Iterable[str], *, compression: str = "zstd", listings: bool = True
    ) -> "CacheDirectory":
        """Copy the closures of `paths` into it."""
        options = [f"compression={compression}", "compression-level=1", f"secret-key={self.key.file}"]
        options += ["write-nar-listing=1"] if listings else []
        store.run("nix", "copy", "--to", f"file://{self.root}?{'&'.join(options)}", *paths)
        return self

    def compress_listings(self, compress: Callable[[bytes], bytes]) -> None:
        """As cache.nixos.org has them: nothing but their first bytes tells."""
        for listing in self.root.glob("*.ls"):
            replace(listing, compress(listing.read_bytes()))

    def copy(self, root: Path) -> "CacheDirectory":
        """Replace files of it, never write into them: both have the same ones."""
        shutil.copytree(self.root, root, copy_function=os.link)
        return CacheDirectory(root, self.key)

    def part(self, root: Path, paths: Iterable[str]) -> "CacheDirectory":
        """A copy that has just these paths."""
        part = CacheDirectory(root, self.key)
        names = [file.relative_to(self.root) for path in paths for file in self.files(path)]
        for name in [Path("nix-cache-info"), *names]:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(self.root / name, root / name)
        return part

    def remove(self, store_path: str) -> None:
        """As if it never had been there; what refers to it still does."""
        for file in self.files(store_path):
            file.unlink(missing_ok=True)

    def files(self, store_path: str) -> list[Path]:
        """NAR, narinfo and listing."""
        narinfo = self.narinfo(store_path)
        return [self.nar(store_path), narinfo, narinfo.with_suffix(".ls")]

    def narinfo(self, store_path: str) -> Path:
        return self.root / f"{hash_part(store_path)}.narinfo"

    def nar(self, store_path: str) -> Path:
        found = re.search(r"^URL: (.+)$", self.narinfo(store_path).read_text(), re.MULTILINE)
        assert found
        return self.root / found[1]


def replace(file: Path, content: bytes) -> None:
    """As a new file: the old one may have other names."""
    file.unlink()
    file.write_bytes(content)


def hash_part(store_path: str) -> str:
    return Path(store_path).name[:32]


@dataclass(frozen=True)
class Access:
    """One line of nginx's log, written when the answer is over; `sent_bytes` of its body."""

    method: str
    path: str
    status: int
    sent_bytes: int


@dataclass(frozen=True)
class Served:
    """A cache behind nginx."""

    cache: CacheDirectory
    home: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def substituter(self, priority: int | None = None) -> Substituter:
        return Substituter(self.url, [self.cache.key.public], priority)

    def accesses(self) -> list[Access]:
        """All answers whose last byte has been sent."""
        self._settle()
        return [
            Access(method, path, int(status), int(sent))
            for method, path, status, sent in map(str.split, access_log(self.home))
            if not path.startswith(READY)
        ]

    def _settle(self) -> None:
        """nginx notes an answer a moment after its last byte; what it is asked later, it also notes later."""
        mark = f"{READY}/{secrets.token_hex(8)}"
        try:
            request(self.port, "GET", mark)
        except ConnectionRefusedError:  # it has ended, and noted all
            return
        wait_until(
            lambda: any(mark in line for line in access_log(self.home)),
            seconds=60,
            what="nginx notes its answers",
        )

    def asked(self, *suffixes: str) -> list[Access]:
        """What was asked for by names that end so; of NARs, `.nar` and whatever their compression adds."""
        return [one for one in self.accesses() if one.path.endswith(suffixes)]

    def nars(self) -> list[Access]:
        return [one for one in self.accesses() if one.path.startswith("/nar/")]


@contextlib.contextmanager
def nginx(cache: CacheDirectory, home: Path) -> Iterator[Served]:
    home.mkdir(parents=True)
    served = Served(cache, home, free_port())

    def ready() -> bool:
        try:
            return request(served.port, "GET", READY).status == 404
        except OSError:
            return False

    with run_nginx(home, HTTP.format(port=served.port, root=cache.root), ready):
        yield served
