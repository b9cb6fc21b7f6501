"""The commands."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import get_completion_class
from rich.console import Console
from rich.filesize import decimal

from nixery_snap import __version__, event_loop, reports
from nixery_snap.adapters import open_every
from nixery_snap.doctor import State, examine
from nixery_snap.errors import NixerySnapError
from nixery_snap.evaluation.popularity import popularity as count_popularity
from nixery_snap.export import Output, export
from nixery_snap.image_service.external_builder import realise
from nixery_snap.imaging.locate import find_closure
from nixery_snap.imaging.request import DEFAULT_SOURCE, DEFAULT_TAG, ImageFormat, ImageRequest
from nixery_snap.imaging.validate import validate
from nixery_snap.log import configure_logging
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.decompression import decompress
from nixery_snap.nix_stores.signing_key import load_signing_key
from nixery_snap.object_store.check import Checked, check
from nixery_snap.object_store.check import remove as remove_findings
from nixery_snap.object_store.copying import Copied, copy, store_at, stores_of, totals
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci import canonical_json
from nixery_snap.oci.compression import Compression
from nixery_snap.ports import Progress
from nixery_snap.retention import collect_garbage
from nixery_snap.service import Service, open_service
from nixery_snap.serving import serve as serve_registry
from nixery_snap.settings import FILE_VARIABLE, Settings, load_settings, shown_settings

T = TypeVar("T")
Command = Callable[..., None]

# Flags by the setting they stand for; every other setting is reached by file and environment.
_FLAGS = {
    "source": ("--source", "SPEC", "The package set: path:DIRECTORY, git+URL, channel:NAME …"),
    "storage": ("--storage", "URL", "The object store: file:///DIRECTORY, memory://, s3://BUCKET …"),
    "nix.store": ("--store", "STORE", "The Nix store: auto, daemon, or a directory for a private one."),
    "cache_directory": ("--cache-directory", "DIRECTORY", "For what can be made again."),
    "format": ("--format", None, "The format of images whose name says none."),
    "log_format": ("--log-format", None, "How log lines are written."),
}
_CHOICES = {"format": [str(kind) for kind in ImageFormat], "log_format": ["json", "console"]}
PROGRAM = "nixery-snap"


def _with_settings(command: Command) -> Command:
    """Give `command` the flags of settings; it takes `settings`, loaded and checked."""

    def run(config: Path | None, **values: Any) -> None:
        flags = {
            key: values.pop(_argument(key))
            for key in (*_FLAGS, "listen", "workers", "image_service.listen", "image_service.containerd")
            if _argument(key) in values
        }
        command(settings=load_settings(config, flags), **values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined] # click keeps parameters there
    for key, (flag, metavar, text) in reversed(_FLAGS.items()):
        kind = click.Choice(_CHOICES[key]) if key in _CHOICES else None
        click.option(flag, _argument(key), type=kind, metavar=metavar, help=text)(run)
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        envvar=FILE_VARIABLE,
        help="A settings file (TOML).",
    )(run)
    return run


def _argument(key: str) -> str:
    return key.replace(".", "_")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Container images of Nix packages, by name."""


@cli.command()
@_with_settings
@click.option("--listen", metavar="HOST:PORT", help="Where to serve.")
@click.option("--workers", type=int, help="Processes that share the port.")
def serve(settings: Settings) -> None:
    """Serve images over HTTP."""
    configure_logging(settings.log_format)
    sys.exit(
        serve_registry(settings, lambda address: reports.welcome(Console(stderr=False), settings, address))
    )


@cli.command()
@_with_settings
@click.argument("name")
@click.option(
    "--output",
    required=True,
    type=Output.parse,
    metavar="PLACE",
    help="oci:DIRECTORY, oci-archive:FILE or docker-archive:FILE.",
)
def build(settings: Settings, name: str, output: Output) -> None:
    """Make one image, NAME[:TAG], without a server."""

    async def work(service: Service, request: ImageRequest) -> str:
        if output.transport == "docker-archive":  # has no word for another
            request = replace(request, compression=Compression.GZIP)
        image = await _make(service, request)
        blobs = service.of(request.source).blobs
        return str(await export(blobs, image.digest, output, name.partition(":")[0], request.tag))

    click.echo(_run(settings, name, work))


@cli.command()
@_with_settings
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.option("--verify", is_flag=True, help="Check every invariant of the image on its bytes.")
def inspect(settings: Settings, name: str, as_json: bool, verify: bool) -> None:
    """Show packages, closure and layers of the image NAME[:TAG]."""

    async def work(service: Service, request: ImageRequest) -> None:
        image = await _make(service, request)
        compartment = service.of(request.source)
        if verify:
            await asyncio.to_thread(validate, image.digest, compartment.blobs.read)
        report = reports.describe(request, image, await compartment.pipeline.manifest(image))
        if as_json:
            click.echo(reports.as_json(report))
        else:
            reports.print_tables(Console(), report)
        if verify:
            click.echo("verified: every digest, size, layer entry and annotation is right", err=True)

    _run(settings, name, work)


@cli.command()
@_with_settings
@click.argument("name", metavar="[SOURCE]", default=DEFAULT_SOURCE)
@click.option("--tag", default=DEFAULT_TAG, help="What of the source to index.")
@click.option("--system", metavar="SYSTEM", help="Other than the first of the settings.")
def index(settings: Settings, name: str, tag: str, system: str | None) -> None:
    """Evaluate all packages of SOURCE, so that requests need no evaluation."""
    configure_logging("console", quiet=True)

    async def work() -> None:
        async with open_service(settings) as service:
            package_set = await service.checkout(name, tag)
            with click.progressbar(length=1, label="evaluating", file=sys.stderr) as bar:

                def advance(done: int, total: int) -> None:
                    bar.length = total
                    bar.update(done - bar.pos)

                made = await service.indexer.index(package_set, system or settings.systems[0], advance)
        click.echo(", ".join(f"{count} {kind}" for kind, count in made.counts.items()))

    event_loop.run(work())


@cli.command()
@_with_settings
@click.argument("words", nargs=-1, required=True, metavar="WORD…")
@click.option("--in", "name", default=DEFAULT_SOURCE, metavar="SOURCE", help="A source by its name.")
@click.option("--tag", default=DEFAULT_TAG, help="What of the source to search.")
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="Show no more than that."
)
@click.option("--offset", type=click.IntRange(0), default=0, help="Leave out that many, the best first.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def search(
    settings: Settings, words: tuple[str, ...], name: str, tag: str, limit: int, offset: int, as_json: bool
) -> None:
    """Find packages by words of their names and descriptions, in an index."""
    configure_logging("console", quiet=True)

    async def work() -> None:
        async with open_service(settings) as service:
            found = await service.packages.search(" ".join(words), name, tag, None, offset, limit)
        if as_json:
            click.echo(
                reports.as_json(
                    {"total": found.page.total, "packages": [p.to_json() for p in found.page.packages]}
                )
            )
        else:
            for one in found.page.packages:
                click.echo(f"{one.attribute}  {one.name}  {one.description}")
            click.echo(f"{len(found.page.packages)} of {found.page.total}", err=True)

    event_loop.run(work())


@cli.command()
@_with_settings
@click.argument("name", metavar="[SOURCE]", default=DEFAULT_SOURCE)
@click.option("--tag", default=DEFAULT_TAG, help="What of the source to count.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    default=Path("popularity.json"),
    show_default=True,
    help="Where the counts go.",
)
def popularity(settings: Settings, name: str, tag: str, output: Path) -> None:
    """Count how many packages of SOURCE depend on each, for the layers of classic images."""
    configure_logging("console", quiet=True)

    async def work() -> Mapping[str, int]:
        async with open_service(settings) as service:
            package_set, system = await service.checkout(name, tag), settings.systems[0]
            made = await service.indexer.index(package_set, system)
            with reports.progress(Console(stderr=True)) as progress:
                return await count_popularity(
                    made, service.of(name).path_infos, service.evaluator, package_set, system, progress
                )

    output.write_bytes(canonical_json.encode(event_loop.run(work())))


@cli.command()
@_with_settings
@click.argument("store_paths", nargs=-1, required=True, metavar="STORE_PATH…")
@click.option("--all", "every", is_flag=True, help="Also what other binary caches of the clients have.")
def push(settings: Settings, store_paths: tuple[str, ...], every: bool) -> None:
    """Publish store paths, with their closures, in this registry's binary cache."""
    configure_logging("console", quiet=True)
    roots = [StorePath.parse(path.rstrip("/")) for path in store_paths]

    async def work() -> None:
        async with open_service(settings) as service:
            closure = await find_closure(service.shared.path_infos, roots)
            count, swept = 0, None
            with reports.progress(Console(stderr=True)) as progress:
                # Again when what was already there may just have been removed as unused.
                while swept != (now := await service.shared.uses.settled()):
                    swept = now
                    count += await service.shared.publisher.push(closure, progress, every=every)
            click.echo(f"published {count} of {len(closure)} store paths")

    event_loop.run(work())


@cli.command()
@_with_settings
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def gc(settings: Settings, dry_run: bool, as_json: bool) -> None:
    """Remove what has not been used for retention.unused seconds from the object store."""
    configure_logging("console", quiet=True)
    for objects in open_every(settings):
        with reports.progress(Console(stderr=True)) as progress:
            report = event_loop.run(collect_garbage(settings, objects, progress, dry_run=dry_run))
        reports.print_garbage(Console(), report, dry_run=dry_run, machine=as_json)


@cli.command()
@_with_settings
@click.option("--repair", is_flag=True, help="Remove what is broken, so that it is made again.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def fsck(settings: Settings, repair: bool, as_json: bool) -> None:
    """Check every digest, size and reference of the object store; fails when something is wrong."""
    configure_logging("console", quiet=True)

    async def work(objects: ObjectStore, progress: Progress) -> Checked:
        checked = await check(objects, decompress, progress)
        if repair:
            await remove_findings(objects, checked.findings)
        return checked

    found = False
    for objects in open_every(settings):
        with reports.progress(Console(stderr=True)) as progress:
            checked = event_loop.run(work(objects, progress))
        reports.print_checked(Console(), checked, repaired=repair, machine=as_json)
        found = found or bool(checked.findings)
    if found:
        sys.exit(1)


@cli.command(name="copy")
@click.argument("origin", metavar="FROM")
@click.argument("target", metavar="TO")
def copy_store(origin: str, target: str) -> None:
    """Copy the object store at the URL FROM into the one at TO; goes on where it was broken off."""
    configure_logging("console", quiet=True)

    async def work(path: str) -> Copied:
        source = store_at(origin, path)
        _, size_bytes = await totals(source)
        with reports.bytes_bar(Console(stderr=True), size_bytes) as advance:
            return await copy(source, store_at(target, path), advance)

    broken = 0
    for path in event_loop.run(stores_of(origin)):
        copied = event_loop.run(work(path))
        click.echo(
            f"copied {copied.objects} objects of {decimal(copied.bytes)}; {copied.present} were there already"
            + (
                f"; {copied.broken} are broken and were left out: see nixery-snap fsck"
                if copied.broken
                else ""
            )
        )
        broken += copied.broken
    if broken:
        sys.exit(1)


@cli.command(name="image-service")
@_with_settings
@click.option("--listen", "image_service_listen", metavar="ADDRESS", help="unix:///PATH of its socket.")
@click.option(
    "--containerd", "image_service_containerd", metavar="ADDRESS", help="unix:///PATH of containerd's."
)
def image_service(settings: Settings) -> None:
    """Serve the CRI image service of a node to the kubelet."""
    from nixery_snap.node import serve_node  # gRPC takes long to load  # noqa: PLC0415

    configure_logging(settings.log_format)
    serve_node(settings)


@cli.command(
    name="external-builder",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("out_link")
@click.argument("store_path")
def external_builder(out_link: str, store_path: str) -> None:
    """For nix-snapshotter: realise STORE_PATH with a link at OUT_LINK, by the image service."""
    realise(out_link, store_path)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands and options: `source <(nixery-snap completion bash)`."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has all of the choices
    click.echo(kind(cli, {}, PROGRAM, "_NIXERY_SNAP_COMPLETE").source())


@cli.command(name="doctor")
@_with_settings
@click.option("--containerd", metavar="ADDRESS", help="Ask containerd at unix:///PATH, too.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def doctor(settings: Settings, containerd: str | None, as_json: bool) -> None:
    """Try everything that the settings name: Nix, storage, sources, substituters, builders, key."""
    configure_logging("console", quiet=True)
    findings = event_loop.run(examine(settings, containerd))
    if as_json:
        click.echo(reports.as_json([asdict(finding) for finding in findings]))
    else:
        reports.print_findings(Console(), findings)
    if any(finding.state is State.FAILED for finding in findings):
        sys.exit(1)


@cli.command(name="node-config")
@_with_settings
@click.option("--listen", metavar="HOST:PORT", help="Where to serve.")
def node_config(settings: Settings) -> None:
    """Print what a node needs in its nix.conf and for containerd and kubelet."""
    configure_logging("console", quiet=True)
    create = not settings.binary_cache.signing_key_file
    key = load_signing_key(settings.signing_key_path, create=create)
    click.echo(reports.node_config(settings, str(key.public_key)), nl=False)


@cli.command(name="check-config")
@_with_settings
@click.option("--listen", metavar="HOST:PORT", help="Where to serve.")
@click.option("--workers", type=int, help="Processes that share the port.")
def check_config(settings: Settings) -> None:
    """Check the settings, and show what they come to, without passwords."""
    click.echo(shown_settings(settings))


def _run(settings: Settings, name: str, work: Callable[[Service, ImageRequest], Coroutine[Any, Any, T]]) -> T:
    configure_logging("console", quiet=True)

    async def main() -> T:
        async with open_service(settings) as service:
            image_name, _, tag = name.partition(":")
            return await work(service, service.grammar.parse(image_name, tag or DEFAULT_TAG))

    # asyncio's own loop can wait for ever at its end for a program whose start was interrupted.
    return event_loop.run(main())


async def _make(service: Service, request: ImageRequest) -> Any:
    with reports.progress(Console(stderr=True)) as progress:
        return await service.of(request.source).pipeline.image(request, progress=progress)


def main() -> None:
    """Never returns: ends the process with the exit status of the command, as docs/commands.md lists them."""
    try:
        # By itself click would make 1 of an interruption.
        status: object = cli.main(prog_name=PROGRAM, standalone_mode=False)
    except SystemExit as end:
        status = end.code
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except NixerySnapError as error:
        click.echo(f"{PROGRAM}: {error}", err=True)
        status = 1
    except (KeyboardInterrupt, click.Abort):
        status = 130
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    # Threads of libraries (obstore's) may still be at their last work: with Python taken apart under them, they abort.
    os._exit(status if isinstance(status, int) else bool(status))
