"""How an evaluation is put to Nix: the same options, expressions and data for every evaluator.

What a package set may do is decided here. A restricted one reads its own files and nothing else of the machine, and
no network; it gets only those of Nix's experimental features that change nothing about that. A flake is evaluated
purely, as flakes are meant to be: it reads what its lock file and its hashes fix, which may need the network.
Nothing is built while evaluating, unless the source allows that.
"""

from __future__ import annotations

import asyncio
import atexit
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any, Final
from urllib.parse import quote

from nixery_snap.errors import EvaluationFailed
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.log_events import LogReader
from nixery_snap.ports import NixRunner, PackageSet

# `flakes`, `fetch-tree` and `fetch-closure` are not: restrict-eval keeps none of them from copying any directory of the
# machine into the store, where it can be read, or from asking any server.
_HARMLESS_FEATURES: Final = frozenset(
    {
        *("nix-command", "ca-derivations", "dynamic-derivations", "blake3-hashes"),
        *("no-url-literals", "parse-toml-timestamps", "pipe-operators", "pipe-operator"),
    }
)

_HASH_SECONDS: Final = 120.0
_kept = ExitStack()
atexit.register(_kept.close)
_EXPRESSIONS: Final = _kept.enter_context(as_file(files("nixery_snap.evaluation"))).resolve()


@dataclass(frozen=True, slots=True)
class Question:
    """About one package set for one system, all but the request."""

    options: tuple[str, ...]
    """Arguments for any of Nix's programs that evaluate."""
    data: str
    """What package_set.nix is given, as JSON."""
    is_pure: bool

    @classmethod
    async def about(cls, package_set: PackageSet, system: str, nix: NixRunner) -> Question:
        """Raises EvaluationFailed, NixMissing."""
        data: dict[str, Any] = {"flake": None, "system": system, "config": dict(package_set.config)}
        settings = {
            "allow-import-from-derivation": "true" if package_set.allows_builds else "false",
            "allow-unsafe-native-code-during-evaluation": "false",
        }
        options: list[str] = []
        if package_set.is_flake:
            data |= {"flake": await _locked(package_set, nix), "overlays": []}
            settings |= {"extra-experimental-features": "flakes", "pure-eval": "true"}
            settings |= {"restrict-eval": "false", "flake-registry": "", "accept-flake-config": "false"}
        else:
            # Nix follows links before it looks whether a file may be read.
            directory, *overlays = await asyncio.to_thread(
                lambda: [path.resolve() for path in (package_set.directory, *package_set.overlays)]
            )
            data |= {"directory": str(directory), "overlays": [str(path) for path in overlays]}
            settings |= {"pure-eval": "false"}
            options += ["-I", f"nixery-snap={_EXPRESSIONS}"]
            if package_set.restricted:
                settings |= {"restrict-eval": "true", "allowed-uris": "", "nix-path": ""}
                settings |= {"experimental-features": " ".join(await _harmless_features(nix))}
                for number, path in enumerate((directory, *overlays)):
                    options += ["-I", f"nixery-snap-{number}={path}"]
        options += [word for name, value in settings.items() for word in ("--option", name, value)]
        return cls(tuple(options), json.dumps(data), package_set.is_flake)

    def expression(self, file: str) -> str:
        """Nix text on one line that means what stands in that file of this package."""
        if not self.is_pure:
            return f"import <nixery-snap/{file}>"
        # A pure evaluation reads no file that is not in the store.
        lines = map(str.strip, (_EXPRESSIONS / file).read_text().splitlines())
        text = " ".join(line for line in lines if not line.startswith("#"))
        inner = "import ./package_set.nix"
        return f"({text.replace(inner, self.expression('package_set.nix')) if inner in text else text})"


def request(names: Sequence[AttributePath], *, explain: bool) -> str:
    """The second argument of the function in resolve.nix."""
    return json.dumps({"names": [list(name.parts) for name in names], "explain": explain})


async def _harmless_features(nix: NixRunner) -> list[str]:
    """Those that are switched on. Raises NixMissing."""
    features = {"nix-command"}
    for command in (("show-config",), ("config", "show")):  # renamed in Nix 2.20
        finished = await nix.run("nix", *command)
        for line in finished.stdout.decode(errors="replace").splitlines():
            name, _, value = line.partition(" = ")
            if name == "experimental-features":
                return sorted(features | _HARMLESS_FEATURES & set(value.split()))
    return sorted(features)


async def _locked(package_set: PackageSet, nix: NixRunner) -> str:
    """A reference to the flake with its NAR hash: a pure evaluation takes no other."""
    log = LogReader()
    directory = str(package_set.directory)
    try:
        finished = await nix.run(
            *("nix", "hash", "path", "--sri", directory), timeout_seconds=_HASH_SECONDS, on_stderr=log.feed
        )
    except TimeoutError:
        raise EvaluationFailed(f"hashing its files took longer than {_HASH_SECONDS:g} s") from None
    if finished.returncode != 0:
        reason = "; ".join(log.errors or log.plain).replace(directory, "<source>")
        raise EvaluationFailed(reason or "Nix cannot read its files")
    nar_hash = finished.stdout.decode().strip()
    return f"path:{quote(directory)}?narHash={quote(nar_hash, safe='')}"
