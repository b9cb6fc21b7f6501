"""Real Nix on chroot stores: what the tests compare the server's answers with."""

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

from tests.integration.processes import run

EXAMPLES = Path(__file__).parents[2] / "examples" / "packages"
STORE_DIRECTORY = "/nix/store"
NIX_CONFIG = "\n".join(
    [
        "experimental-features = nix-command flakes",
        "sandbox = false",  # needs privileges that a test machine may not have
        "build-users-group =",
        "substituters =",
        "require-sigs = false",  # the binary caches the tests make are not signed
    ]
)

# It takes years, and neither stack nor memory; a recursion would end with the one, a list that grows with the other.
ENDLESS = """(let
  list = builtins.genList (number: number) 10000;
  count = sum: _: sum + 1;
  inner = sum: _: builtins.foldl' count sum list;
  middle = sum: _: builtins.foldl' inner sum list;
in builtins.foldl' middle 0 list)"""

INSTALLED = """
  directory: names: let
    packages = import (/. + directory) { };
    value = builtins.foldl' (set: name: set.${name}) packages;
    installed = package: if package.outputSpecified or false then [ package.outPath ]
      else map (output: package.${output}.outPath) package.meta.outputsToInstall;
  in builtins.listToAttrs (map (path: {
    name = builtins.concatStringsSep "." path;
    value = installed (value path);
  }) names)
"""


@dataclass(frozen=True)
class ChrootStore:
    """A Nix store below `root`, its paths named /nix/store all the same."""

    root: Path
    programs: Path | None = None
    """Where Nix's programs lie that work on it; None: those on PATH."""

    @classmethod
    def create(cls, root: Path, programs: Path | None = None) -> "ChrootStore":
        store = cls(root, programs)
        root.mkdir(parents=True)
        # Concurrent first use of a store fails with "SQLite database is busy".
        store.run("nix-store", "--init")
        return store

    @property
    def env(self) -> dict[str, str]:
        home = self.root / "home"
        home.mkdir(exist_ok=True)
        return {**os.environ, "HOME": str(home), "NIX_CONFIG": NIX_CONFIG}

    def run(self, program: str, *arguments: str | Path) -> str:
        return self.attempt(program, "--store", self.root, *arguments).stdout

    def attempt(self, program: str, *arguments: str | Path, check: bool = True) -> "CompletedProcess[str]":
        """Any of Nix's programs in the store's environment, on whichever store the arguments name."""
        return run(
            self.programs / program if self.programs else program, *arguments, env=self.env, check=check
        )

    def copy(self, root: Path) -> "ChrootStore":
        """A store with the same contents, for a test that changes or counts."""
        (root / "nix").mkdir(parents=True)
        # Nix never writes to what is in the store already, so one copy on disk will do.
        run("cp", "-a", "--link", self.root / "nix" / "store", root / "nix" / "store")
        run("cp", "-a", self.root / "nix" / "var", root / "nix" / "var")
        return ChrootStore(root, self.programs)

    def physical(self, store_path: str) -> Path:
        return self.root / "nix" / "store" / Path(store_path).name

    def resolve(self, path: str | bytes) -> Path | None:
        """The file that an absolute path means in an image of this store: links are followed below the root.

        None where nothing is.
        """
        pending = os.fsencode(path).split(b"/")[::-1]
        walked: list[bytes] = []
        links = 0
        while pending:
            part = pending.pop()
            if part in {b"", b"."}:
                continue
            if part == b"..":
                del walked[-1:]
                continue
            here = b"/".join([os.fsencode(self.root), *walked, part])
            if os.path.islink(here):  # noqa: PTH114 - bytes
                links += 1
                if links > 40:
                    return None
                target = os.readlink(here)
                walked = [] if target.startswith(b"/") else walked
                pending += target.split(b"/")[::-1]
            else:
                walked.append(part)
        found = b"/".join([os.fsencode(self.root), *walked])
        return Path(os.fsdecode(found)) if os.path.lexists(found) else None

    def shown(self, store_path: str) -> Path:
        """What a bind mount of the store path shows."""
        found = self.resolve(store_path)
        assert found is not None, store_path
        return found

    def build(self, *attributes: str, directory: Path = EXAMPLES) -> None:
        selected = [argument for attribute in attributes for argument in ("-A", attribute)]
        self.run("nix-build", directory, "--no-out-link", *selected)

    def installed(self, *attributes: tuple[str, ...], directory: Path = EXAMPLES) -> dict[str, list[str]]:
        """The out paths to install of each attribute, as Nix itself evaluates them; key joined by dots."""
        names = "[" + " ".join(f"[{' '.join(json.dumps(n) for n in name)}]" for name in attributes) + "]"
        expression = f"({INSTALLED}) {json.dumps(str(directory))} {names}"
        found: dict[str, list[str]] = json.loads(
            self.run("nix-instantiate", "--eval", "--json", "--strict", "-E", expression)
        )
        return found

    def closure(self, paths: Iterable[str]) -> set[str]:
        return set(self.run("nix-store", "-qR", *paths).split())

    def all_paths(self) -> set[str]:
        return set(self.run("nix", "path-info", "--all").split())

    def built_paths(self) -> set[str]:
        return {path for path in self.all_paths() if not path.endswith(".drv")}

    def fetch(
        self, cache_url: str, public_key: str, *paths: str, check: bool = True
    ) -> "CompletedProcess[str]":
        """As a node that trusts one key does, in one call for all: only from that cache, nothing is built."""
        options = client_options(cache_url, public_key)
        return self.attempt("nix-store", "--store", self.root, *options, "--realise", *paths, check=check)

    def substitute(self, cache_url: str, paths: Iterable[str]) -> None:
        """Fetch the paths as a node does, one call for all; builds nothing."""
        options = ["--option", "substituters", cache_url, "--option", "max-jobs", "0"]
        self.run("nix-store", *options, "--realise", *paths)


def client_options(cache_url: str, public_key: str) -> list[str]:
    """Options of Nix for a machine that knows one substituter and trusts one key."""
    settings = {
        "substituters": cache_url,
        "require-sigs": "true",
        "trusted-public-keys": public_key,
        "max-jobs": "0",
    }
    return [word for name, value in settings.items() for word in ("--option", name, value)]


def add_package(source: Path, attribute: str, script: str) -> None:
    """Into a copy of the package set; the script is Nix text, between two pairs of single quotes."""
    file = source / "basics.nix"
    text = file.read_text()
    place = "  hello = mk {"
    assert place in text
    package = f"  {attribute} = mk {{ pname = \"{attribute}\"; script = ''\n{script}\n''; }};\n"
    file.write_text(text.replace(place, package + place))


def only(store: ChrootStore, source: Path, attribute: str) -> str:
    [[path]] = store.installed((attribute,), directory=source).values()
    return path


@dataclass(frozen=True)
class Entry:
    """One file of a tree, as far as Nix's store keeps it."""

    kind: str  # directory, regular, executable or symlink
    content: bytes = b""  # of a file, or the target of a link


def tree_of(root: Path) -> dict[bytes, Entry]:
    """Every entry at and below `root`, by path relative to it in bytes."""
    found: dict[bytes, Entry] = {}

    def visit(path: bytes, relative: bytes) -> None:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            found[relative] = Entry("symlink", os.readlink(path))
        elif stat.S_ISDIR(status.st_mode):
            found[relative] = Entry("directory")
            for name in os.listdir(path):
                visit(path + b"/" + name, relative + b"/" + name if relative else name)
        elif stat.S_ISREG(status.st_mode):
            kind = "executable" if status.st_mode & 0o111 else "regular"
            with open(path, "rb") as file:  # noqa: PTH123 - bytes
                found[relative] = Entry(kind, file.read())
        else:
            raise AssertionError(f"not a kind of file that Nix stores: {path!r}")

    visit(os.fsencode(root), b"")
    return found
