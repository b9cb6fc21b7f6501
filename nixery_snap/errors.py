"""Every error the program can mean, as one tree.

Each class carries its data as attributes; transports map classes to their own codes in one table
(`registry/errors.py`). A message says what is wrong and, where the user can mend it, how.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class NixerySnapError(Exception):
    """Root of all errors this program raises on purpose; `str()` is fit for the user."""


# --- what the client or the user got wrong ---------------------------------------------------------


class InvalidInput(NixerySnapError):
    """Something from outside is malformed."""


class InvalidFormat(InvalidInput):
    """A value does not follow its format: `kind` names the format, `value` is what was given."""

    def __init__(self, kind: str, value: object, reason: str) -> None:
        self.kind, self.value, self.reason = kind, value, reason
        shown = repr(value)
        super().__init__(f"not a valid {kind}: {shown[:200] + '…' if len(shown) > 200 else shown}: {reason}")


class InvalidDigest(InvalidFormat):
    """A digest that is none."""

    def __init__(self, value: str, reason: str) -> None:
        super().__init__("digest", value, reason)


class InvalidName(InvalidInput):
    """An image name that is not in the grammar."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"invalid image name {name[:100]!r}: {reason}")


class UnsupportedSystem(InvalidInput):
    """A system that this server is not set up to make images for."""

    def __init__(self, system: str, systems: tuple[str, ...]) -> None:
        self.system, self.systems = system, systems
        super().__init__(
            f"this registry makes no images for {system}; it makes them for {', '.join(systems)}"
        )


class InvalidArchive(InvalidInput):
    """An image archive that is malformed or that no honest tool would make."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path} is not an image archive that can be imported: {reason}")


# --- what is not there -----------------------------------------------------------------------------


class NotFound(NixerySnapError):
    """Something asked for does not exist."""


class BlobNotFound(NotFound):
    def __init__(self, digest: str) -> None:
        self.digest = digest
        super().__init__(f"no blob {digest} here; pull the image again by its tag")


class ManifestNotFound(NotFound):
    def __init__(self, digest: str) -> None:
        self.digest = digest
        super().__init__(f"no manifest {digest} here; pull the image by its tag to have it assembled")


class TagNotFound(NotFound):
    """The source, named in the log only, knows no such tag; `hint` says what it knows."""

    def __init__(self, source: str, tag: str, hint: str) -> None:
        self.source, self.tag, self.hint = source, tag, hint
        super().__init__(f"the package source has no tag {tag!r}: {hint}")


class ProblemKind(StrEnum):
    """Why one package of a request cannot be had."""

    MISSING = "missing"
    WRONG_KIND = "wrong-kind"
    UNFREE = "unfree"
    BROKEN = "broken"
    INSECURE = "insecure"
    UNSUPPORTED_SYSTEM = "unsupported-system"
    FAILED = "failed"


EXAMPLES: Final = "; it has "
"""In the message of a PackageProblem: behind it stand names of other attributes."""


@dataclass(frozen=True, slots=True)
class PackageProblem:
    """One package of a request that cannot be had: `name` as it was asked for."""

    name: str
    kind: ProblemKind
    message: str
    suggestions: tuple[str, ...] = ()

    def __str__(self) -> str:
        hint = f" (did you mean {' or '.join(self.suggestions)}?)" if self.suggestions else ""
        return f"{self.name}: {self.message}{hint}"


class PackagesUnavailable(NotFound):
    """Some packages of a request cannot be had; `problems` lists every one of them."""

    def __init__(self, problems: tuple[PackageProblem, ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(map(str, problems)))


# --- images that cannot be --------------------------------------------------------------------------


class ImageError(NixerySnapError):
    """The packages exist, but no image of the wanted format can be made of them."""


class UnmountablePath(ImageError):
    """A store path that no node could bind-mount, or none should."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(
            f"{path} cannot be in a snapshotter image: {reason}; ask for the classic/ format instead"
        )


class ManifestTooLarge(ImageError):
    def __init__(self, size_bytes: int, limit_bytes: int, paths: int) -> None:
        self.size_bytes, self.limit_bytes, self.paths = size_bytes, limit_bytes, paths
        super().__init__(
            f"the manifest of these {paths} store paths would be {size_bytes} bytes, clients refuse more than"
            f" {limit_bytes}; ask for fewer packages or for the classic/ format"
        )


class PathsNotFetchable(ImageError):
    """Store paths that no substituter of the clients has, and that are not to be published."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.paths = paths
        more = f" and {len(paths) - 10} more" if len(paths) > 10 else ""
        super().__init__(
            f"no binary cache that clients use has {', '.join(paths[:10])}{more}, and this server publishes"
            " nothing (setting binary_cache.publish); ask for the classic/ format instead"
        )


class InvalidImage(ImageError):
    """An image that breaks an invariant; `defects` lists every breach the validator saw."""

    def __init__(self, defects: tuple[str, ...]) -> None:
        self.defects = defects
        super().__init__(f"the image is not valid: {'; '.join(defects)}")


# --- Nix --------------------------------------------------------------------------------------------


class NixError(NixerySnapError):
    """Nix could not do its part."""


class NixMissing(NixError):
    def __init__(self, program: str) -> None:
        self.program = program
        super().__init__(
            f"{program} was not found: install Nix (Debian: apt-get install nix-bin; others: nixos.org/download)"
            " or put it on PATH"
        )


class NixTooOld(NixError):
    """The package set demands a newer Nix than the one installed."""

    def __init__(self, message: str) -> None:
        super().__init__(f"the Nix on this server is too old for this package set: {message}")


class EvaluationFailed(NixError):
    """The evaluation failed as a whole, not for one package; `output` is the tail of what Nix printed."""

    def __init__(self, output: str) -> None:
        self.output = output
        super().__init__(f"the package set cannot be evaluated: {output}")


class EvaluationTimedOut(NixError):
    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        super().__init__(
            f"evaluating the packages took longer than {timeout_seconds:g} s (setting nix.eval_timeout)"
        )


class EvaluationTooBig(NixError):
    def __init__(self, memory_mib: int) -> None:
        self.memory_mib = memory_mib
        super().__init__(
            f"evaluating the packages needs more than {memory_mib} MiB of memory (setting nix.eval_memory_mib)"
        )


class ExperimentalFeatureMissing(NixError):
    """The package set uses a feature that Nix has to be told to allow, or does not have at all."""

    def __init__(self, feature: str) -> None:
        self.feature = feature
        super().__init__(
            f"the package set needs the experimental feature {feature!r} of Nix, which the Nix on this server lacks or"
            " is not told to use (setting nix.options.extra-experimental-features)"
        )


class NixUnusable(NixError):
    """Nix is there, but its ground is not."""


class NixDaemonUnreachable(NixUnusable):
    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the Nix daemon cannot be reached: {reason}; start nix-daemon, or set nix.store to a directory for a"
            " private store"
        )


class NixStoreFull(NixUnusable):
    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the disk of the Nix store is full: {reason}; free some space, for example with nix-collect-garbage"
        )


class NixStoreForbidden(NixUnusable):
    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the Nix store cannot be written: {reason}; let this user write it, or set nix.store to `daemon` or to a"
            " directory for a private store"
        )


class RealisationFailed(NixError):
    """Nix could not build or substitute; `log_tail` holds the failed builder's last lines."""

    def __init__(
        self, drv_path: str | None, reason: str, log_tail: tuple[str, ...], log_command: str
    ) -> None:
        self.drv_path, self.reason, self.log_tail, self.log_command = drv_path, reason, log_tail, log_command
        parts = [f"the build failed: {reason}"]
        if log_tail:
            parts += ["last lines of the log:", *(f"  {line}" for line in log_tail)]
        if log_command:
            parts.append(f"the whole log, on the server: {log_command}")
        super().__init__("\n".join(parts))


class RealisationTimedOut(NixError):
    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        super().__init__(f"building took longer than {timeout_seconds:g} s (setting nix.build_timeout)")


class StillWorking(NixError):
    """The image is still being made; the work goes on and a later request finds it. `state`: what is going on."""

    def __init__(self, waited_seconds: float, retry_after_seconds: int, state: str = "") -> None:
        self.waited_seconds, self.retry_after_seconds, self.state = waited_seconds, retry_after_seconds, state
        super().__init__(
            f"the image is still being made after {waited_seconds:g} s{f' ({state})' if state else ''}; the work"
            f" goes on: pull again in {retry_after_seconds} s"
        )


class PathsMissing(NixError):
    """Store paths that should exist by now and do not."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.paths = paths
        super().__init__(f"no source knows these store paths: {', '.join(paths[:10])}")


class PathsNotSubstituted(NixError):
    """Store paths that Nix could not fetch; `asked` are the substituters it was told of, `reason` what it said."""

    def __init__(self, paths: tuple[str, ...], asked: tuple[str, ...], reason: str) -> None:
        self.paths, self.asked, self.reason = paths, asked, reason
        more = f" and {len(paths) - 10} more" if len(paths) > 10 else ""
        super().__init__(
            f"not in this node's Nix store, and not fetched: {', '.join(paths[:10])}{more}; asked were"
            f" {', '.join(asked) or 'no substituters'}: {reason}"
        )


class CircularReferences(NixError):
    """Store paths that refer to each other in a circle, which no store can hold: some source tells lies."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.paths = paths
        super().__init__(f"these store paths refer to each other in a circle: {' -> '.join(paths)}")


# --- binary caches ----------------------------------------------------------------------------------


class SubstituterError(NixerySnapError):
    """A substituter could not or must not be used; `url` names it, without credentials."""

    def __init__(self, url: str, reason: str) -> None:
        self.url, self.reason = url, reason
        super().__init__(f"the binary cache {url} {reason}")


class SubstituterUnreachable(SubstituterError):
    """It does not answer, or with errors only."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, f"cannot be reached: {reason}")


class CorruptPath(SubstituterError):
    """What it has of `path` is not what it should be."""

    def __init__(self, url: str, path: str, reason: str) -> None:
        self.path = path
        super().__init__(url, f"has a bad {path}: {reason}")


class BadSignature(CorruptPath):
    """No trusted key has signed `path`; `keys` are the names of those that claim to have."""

    def __init__(self, url: str, path: str, keys: tuple[str, ...]) -> None:
        self.keys = keys
        claimed = f"signed by {', '.join(keys)}, none of which" if keys else "it is not signed, so nothing"
        super().__init__(
            url, path, f"{claimed} verifies under a trusted key; see public_keys of [[substituters]]"
        )


class TooManyRequests(NixerySnapError):
    """Not now: more is asked for at a time than the settings allow."""

    def __init__(self, reason: str, retry_after_seconds: int) -> None:
        self.reason, self.retry_after_seconds = reason, retry_after_seconds
        super().__init__(f"{reason}; pull again in {retry_after_seconds} s")


class ShuttingDown(NixerySnapError):
    """This server ends, and has given up what it was at."""

    def __init__(self, retry_after_seconds: int) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"this server is being shut down: pull again in {retry_after_seconds} s")


# --- who may what -----------------------------------------------------------------------------------


class AccessError(NixerySnapError):
    """Somebody is not let in. What it says does not depend on what there is, or who is known."""


class Unauthenticated(AccessError):
    """`challenge` says how to show who one is (RFC 9110, section 11.6.1)."""

    def __init__(self, challenge: str) -> None:
        self.challenge = challenge
        super().__init__("this takes credentials that are allowed to do it")


class Forbidden(AccessError):
    """Whoever it is may not."""

    def __init__(self) -> None:
        super().__init__("these credentials are not allowed to do this")


class IssuerUnreachable(AccessError):
    """The keys of an issuer of tokens cannot be had, so that nobody knows whether they are right."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"the keys of auth.issuers.{name} cannot be had: {reason}")


# --- a node's containerd ----------------------------------------------------------------------------


class ContainerdError(NixerySnapError):
    """The container runtime of this node did not do its part."""


class ContainerdUnreachable(ContainerdError):
    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(
            f"containerd does not answer at {address}: it is down or starting; the image service waits for it"
        )


class ContainerdTooOld(ContainerdError):
    def __init__(self, version: str) -> None:
        self.version = version
        super().__init__(
            f"containerd {version} cannot import nix:0 images: it takes 1.7 or later, for its Transfer service"
        )


class ContainerdRefused(ContainerdError):
    """It answered with an error; `step` is what it was asked for."""

    def __init__(self, step: str, reason: str) -> None:
        self.step, self.reason = step, reason
        super().__init__(f"containerd cannot {step}: {reason}")


class SnapshotterNotConfigured(ContainerdError):
    """`lines` are what its configuration lacks."""

    def __init__(self, snapshotter: str, reason: str, lines: str) -> None:
        self.snapshotter, self.reason, self.lines = snapshotter, reason, lines
        super().__init__(
            f"containerd does not unpack images with snapshotter {snapshotter!r}: {reason}; add to its"
            f" configuration and restart it:\n{lines}"
        )


# --- the server's own ground ------------------------------------------------------------------------


class StorageError(NixerySnapError):
    """The object store, or the local cache directory, cannot do what it must."""


class StorageUnavailable(StorageError):
    """The object store does not answer, or with errors that pass: another try helps."""


class StorageFull(StorageError):
    """There is no room left for what is to be written; what is there can be read."""


class StorageForbidden(StorageError):
    """The object store may not be read or written: a read-only disk, or credentials without the right to."""


class SourceError(NixerySnapError):
    """A package source cannot be read."""


class SettingsError(NixerySnapError):
    """A setting is unknown, malformed or contradicts another; `key` is its dotted path."""

    def __init__(self, key: str, reason: str) -> None:
        self.key, self.reason = key, reason
        super().__init__(f"setting {key}: {reason}" if key else reason)
