"""What the commands show to people: progress, tables, the welcome of a started server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from nixery_snap.imaging.pipeline import Image
from nixery_snap.imaging.request import ImageRequest
from nixery_snap.oci.manifest import Manifest
from nixery_snap.ports import Progress
from nixery_snap.settings import Settings


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """One moving line on a terminal; plain lines elsewhere."""
    if not console.is_terminal:
        yield lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    with console.status("starting") as status:
        yield lambda line: status.update(line.replace("[", r"\["))


def welcome(console: Console, settings: Settings, address: str) -> None:
    """Say where the registry is and what to pull, for somebody who has just started it by hand."""
    if settings.log_format == "json" and not console.is_terminal:
        return
    other = "nix-snapshotter" if settings.format == "classic" else "classic"
    lines = [
        f"nixery-snap serves {settings.source} at http://{address}",
        "",
        f"  docker run --rm {address}/hello",
        f"  docker run --rm -it {address}/shell/git/curl",
        f"  podman run --rm --tls-verify=false {address}/shell/hello hello",
        f"  skopeo inspect --no-tags --tls-verify=false docker://{address}/{other}/shell/hello",
        "",
        f"Images are in the {settings.format} format; put {other}/ in front of a name for the other one.",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


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


def as_json(report: dict[str, Any]) -> str:
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
