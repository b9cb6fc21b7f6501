"""The machines of the setting `nix.builders`, as nix.conf has them (Nix manual, "Remote Builds")."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from nixery_snap.errors import NixError, SettingsError
from nixery_snap.nix.log_events import LogReader
from nixery_snap.ports import NixRunner


@dataclass(frozen=True, slots=True)
class RemoteBuilder:
    """A machine; `name` is fit to be shown, `store` is what Nix takes it for."""

    name: str
    systems: str
    store: str = field(repr=False)

    async def ask(self, nix: NixRunner) -> None:
        """Raises NixError when it does not answer."""
        log = LogReader()
        finished = await nix.run("nix", "store", "ping", "--store", self.store, on_stderr=log.feed)
        if finished.returncode != 0:
            raise NixError("; ".join([*log.plain, *log.errors]) or "Nix gave no reason")


def parse_builders(text: str) -> list[RemoteBuilder]:
    """Reads the files that `@FILE` names. Raises SettingsError."""
    return list(map(_parse, _lines(text)))


def _lines(text: str) -> Iterator[str]:
    for line in re.split("[;\n]", re.sub("#.*", "", text)):
        machine = line.strip()
        if machine.startswith("@"):
            try:
                yield from _lines(Path(machine[1:]).read_text())
            except (OSError, UnicodeDecodeError, RecursionError) as error:
                raise SettingsError("nix.builders", f"{machine[1:]} cannot be read: {error}") from None
        elif machine:
            yield machine


def _parse(line: str) -> RemoteBuilder:
    uri, systems, key, _jobs, _speed, _features, _mandatory, host_key = [*line.split(), *["-"] * 8][:8]
    if not re.search("://|/", uri) and uri not in {"auto", "daemon", "local"}:
        uri = f"ssh://{uri}"
    parameters = {"ssh-key": key, "base64-ssh-public-host-key": host_key}
    given = "&".join(f"{name}={quote(value)}" for name, value in parameters.items() if value != "-")
    store = f"{uri}{'&' if '?' in uri else '?'}{given}" if given and uri.startswith("ssh") else uri
    parts = urlsplit(uri)
    name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.scheme else uri
    return RemoteBuilder(name, "the system of this machine" if systems == "-" else systems, store)
