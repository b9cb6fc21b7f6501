"""What the commands show to people: progress, tables, the welcome of a started server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from nixery_snap.doctor import Finding, State
from nixery_snap.errors import SettingsError
from nixery_snap.imaging.image import Image
from nixery_snap.imaging.request import ImageFormat, ImageRequest
from nixery_snap.object_store.check import Checked
from nixery_snap.object_store.sweep import Report
from nixery_snap.oci.manifest import Manifest
from nixery_snap.ports import Progress
from nixery_snap.settings import OWN_CACHE, Settings, masked


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """One moving line on a terminal; plain lines elsewhere."""
    if not console.is_terminal:
        yield lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    with console.status("starting") as status:
        yield lambda line: status.update(line.replace("[", r"\["))


@contextmanager
def bytes_bar(console: Console, size_bytes: int) -> Iterator[Callable[[int, int], None]]:
    """Takes how many more objects and bytes are done; silent unless on a terminal."""
    columns = (TextColumn("{task.completed:,} of {task.total:,} bytes"), BarColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=size_bytes)
        yield lambda objects, done: bar.advance(task, done)


def welcome(console: Console, settings: Settings, address: str) -> None:
    """Say where the registry is and what to pull, for somebody who has just started it by hand."""
    if settings.log_format == "json" and not console.is_terminal:
        return
    other = "nix-snapshotter" if settings.format == "classic" else "classic"
    scheme = "https" if settings.tls.certificate_file else "http"
    lines = [
        f"nixery-snap serves {masked(settings.source)} at {scheme}://{address}",
        "",
        f"  docker run --rm {address}/hello",
        f"  docker run --rm -it {address}/shell/git/curl",
        f"  podman run --rm --tls-verify=false {address}/shell/hello hello",
        f"  skopeo inspect --tls-verify=false docker://{address}/{other}/shell/hello",
        "",
        f"Images are in the {settings.format} format; put {other}/ in front of a name for the other one.",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def front_page(settings: Settings, public_key: str, scheme: str, host: str) -> str:
    """What the server tells people who look at `/`; `scheme` and `host` are how they call it."""
    prefix = "" if settings.format is ImageFormat.SNAPSHOTTER else f"{ImageFormat.SNAPSHOTTER}/"
    lines = [
        "This registry makes container images of Nix packages: a name is a list of packages.",
        "",
        f"  docker run --rm {host}/{'' if settings.format is ImageFormat.CLASSIC else 'classic/'}shell/git",
        f"  nerdctl --snapshotter nix run --rm {host}/{prefix}shell/git",
    ]
    if settings.binary_cache.enabled:
        lines += [
            "",
            "Nodes with nix-snapshotter fetch store paths from binary caches, this one among them (nix.conf):",
            "",
            f"  extra-substituters = {settings.cache_url(host, scheme)}",
            f"  extra-trusted-public-keys = {public_key}",
        ]
    return "\n".join(lines) + "\n"


def node_config(settings: Settings, public_key: str) -> str:
    """What a node needs to run snapshotter images of this registry, file by file.

    Raises SettingsError where the server's address cannot be known.
    """
    host = settings.listen
    url = settings.cache_url(host, "https" if settings.tls.certificate_file else "http")
    if urlsplit(url).hostname in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        raise SettingsError(
            "binary_cache.public_url",
            f"nodes cannot reach {url}: set it to the URL of /nix-cache as they see it",
        )
    registry = urlsplit(url).netloc
    clients = settings.client_substituters
    urls = [url] if OWN_CACHE in clients else []
    keys = [public_key] if OWN_CACHE in clients else []
    for substituter in settings.substituters:
        if substituter.url in clients:
            urls.append(substituter.url)
            keys += substituter.public_keys
    return _NODE_CONFIG.format(
        urls=" ".join(urls), keys=" ".join(keys), registry=registry, scheme=urlsplit(url).scheme
    )


_NODE_CONFIG: Final = """\
# /etc/nix/nix.conf
extra-substituters = {urls}
extra-trusted-public-keys = {keys}

# /etc/containerd/config.toml, containerd 1.7
version = 2
[proxy_plugins.nix]
type = "snapshot"
address = "/run/nix-snapshotter/nix-snapshotter.sock"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "nix"
disable_snapshot_annotations = false
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/etc/containerd/certs.d"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "nix"

# /etc/containerd/config.toml, containerd 2
version = 3
[proxy_plugins.nix]
type = "snapshot"
address = "/run/nix-snapshotter/nix-snapshotter.sock"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "nix"
disable_snapshot_annotations = false
[plugins."io.containerd.cri.v1.images".registry]
config_path = "/etc/containerd/certs.d"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "nix"

# /etc/containerd/certs.d/{registry}/hosts.toml
server = "{scheme}://{registry}"
[host."{scheme}://{registry}"]
capabilities = ["pull", "resolve"]

# kubelet, for nix:0/… references and prefetching by nixery-snap image-service; images of this registry work without
--image-service-endpoint=unix:///run/nixery-snap/image.sock
"""


def describe(request: ImageRequest, image: Image, manifest: Manifest) -> dict[str, Any]:
    """All that `inspect` shows, as JSON."""
    return {
        "digest": str(image.digest),
        "format": request.format,
        "system": request.system,
        "revision": image.pin.revision,
        "packages": [
            {
                "attribute": str(package.attribute),
                "name": package.name,
                "outputs": {output: str(path) for output, path in package.outputs.items()},
                "licenses": list(package.licenses),
                "requested": package in image.resolution.requested,
            }
            for package in image.resolution.packages
        ],
        "closure": [{"path": str(path), "narSize": nar_size} for path, nar_size in image.closure],
        "layers": [
            {"digest": str(layer.digest), "size": layer.size_bytes, "mediaType": layer.media_type}
            for layer in manifest.layers
        ],
        "annotations": dict(manifest.annotations),
    }


def as_json(report: Any) -> str:
    return json.dumps(report, indent=2)


def print_tables(console: Console, report: dict[str, Any]) -> None:
    console.print(
        f"{report['digest']}\n{report['format']} for {report['system']}, revision {report['revision']}\n"
    )
    _table(
        console,
        ("package", "name", "outputs"),
        (
            (package["attribute"], package["name"], ", ".join(package["outputs"]))
            for package in report["packages"]
        ),
    )
    total = sum(member["narSize"] for member in report["closure"])
    _table(
        console,
        (f"closure: {len(report['closure'])} store paths", decimal(total)),
        ((member["path"], decimal(member["narSize"])) for member in report["closure"]),
    )
    compressed = sum(layer["size"] for layer in report["layers"])
    _table(
        console,
        (f"layers: {len(report['layers'])}", decimal(compressed)),
        ((layer["digest"], decimal(layer["size"])) for layer in report["layers"]),
    )


def _table(console: Console, heads: tuple[str, ...], rows: Iterator[tuple[str, ...]] | Any) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console.print(table, "")


def print_garbage(console: Console, report: Report, *, dry_run: bool, machine: bool) -> None:
    """What was removed from the object store, or with `dry_run` would be, and what stays."""
    kinds = [*dict.fromkeys((*report.removed, *report.kept))]
    if machine:
        counted = {
            name: {"objects": dict(objects), "bytes": dict(sizes)}
            for name, objects, sizes in (
                ("removed", report.removed, report.removed_bytes),
                ("kept", report.kept, report.kept_bytes),
            )
        }
        console.out(as_json({**counted, "dryRun": dry_run, "tooEarlySeconds": report.too_early_seconds}))
        return
    if report.too_early_seconds:
        console.print(
            "Nothing is removed yet: servers have not written down for retention.unused seconds what is used,"
            f" which takes {report.too_early_seconds:.0f} more."
        )
        return
    _table(
        console,
        ("", "would go" if dry_run else "removed", "", "stays", ""),
        (
            (
                kind,
                *(str(report.removed[kind]), decimal(report.removed_bytes[kind])),
                *(str(report.kept[kind]), decimal(report.kept_bytes[kind])),
            )
            for kind in kinds
        ),
    )
    console.print(f"{report.removed.total()} objects, {decimal(report.removed_bytes.total())}")


def print_checked(console: Console, checked: Checked, *, repaired: bool, machine: bool) -> None:
    """What was looked at, and every finding."""
    if machine:
        findings = [{"key": finding.key, "problem": finding.problem} for finding in checked.findings]
        looked_at = {"objects": dict(checked.objects), "bytes": dict(checked.bytes)}
        console.out(as_json({"findings": findings, **looked_at, "repaired": repaired}))
        return
    counts = ((kind, str(count), decimal(checked.bytes[kind])) for kind, count in checked.objects.items())
    _table(console, ("", "objects", ""), counts)
    for finding in checked.findings:
        console.print(f"{finding.key}: {finding.problem}", markup=False, highlight=False, soft_wrap=True)
    number = len(checked.findings)
    if not number:
        console.print("nothing is wrong")
    elif repaired:
        console.print(f"{number} broken objects were removed: they are made again when they are asked for")
    else:
        console.print(f"{number} objects are broken; nixery-snap fsck --repair removes them")


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        colour = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "red"}[finding.state]
        table.add_row(Text(finding.state, colour), Text(finding.what), Text(finding.detail))
    console.print(table)
