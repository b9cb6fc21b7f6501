"""A web server for the tests: channels that redirect to releases, archives, and whatever else a test puts there."""

import contextlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.servers import Handler, Server


@dataclass
class Answer:
    """`etag` is compared with If-None-Match; `wanted` is the only Authorization let in; a redirect has no content."""

    content: bytes = b""
    status: int = 200
    redirect_to: str = ""
    etag: str = ""
    wanted: str = field(default="", repr=False)


class Pages(Handler):
    server: "WebServer"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.headers.append(dict(self.headers.items()))
        found = self.server.find(self.path)
        headers = {"ETag": found.etag} if found.etag else {}
        if found.wanted and self.headers.get("Authorization") != found.wanted:
            found = Answer(status=401)
        elif found.redirect_to:
            found, headers = Answer(status=302), {"Location": found.redirect_to}
        elif found.etag and self.headers.get("If-None-Match") == found.etag:
            found = Answer(status=304)
        self.send_response(found.status)
        for name, value in {**headers, "Content-Length": str(len(found.content))}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client may have had enough
            self.wfile.write(found.content)


class WebServer(Server):
    """`pages` by path may be changed at any time; the longest prefix that redirects counts for what is below it."""

    def __init__(self) -> None:
        super().__init__(Pages)
        self.pages: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.down = False

    def find(self, path: str) -> Answer:
        if self.down:
            return Answer(status=503)
        if path in self.pages:
            return self.pages[path]
        for prefix, answer in self.pages.items():
            if answer.redirect_to and path.startswith(f"{prefix}/"):
                return Answer(redirect_to=answer.redirect_to + path.removeprefix(prefix))
        return Answer(status=404)

    def add_release(self, release: str, commit: str, files: Mapping[str, str]) -> None:
        self.pages[f"/releases/{release}/git-revision"] = Answer(commit.encode())
        self.pages[f"/releases/{release}/nixexprs.tar.xz"] = Answer(archive(files, "xz", f"nixos-{release}/"))

    def move_channel(self, channel: str, release: str) -> None:
        self.pages[f"/{channel}"] = Answer(redirect_to=f"{self.url}/releases/{release}")

    def add_commit(self, commit: str, files: Mapping[str, str]) -> None:
        self.pages[f"/archive/{commit}.tar.gz"] = Answer(archive(files, "gz", f"nixpkgs-{commit}/"))


def archive(files: Mapping[str, str], compression: str = "gz", top: str = "set/") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=f"w:{compression}") as file:  # type: ignore[call-overload]
        for name, text in files.items():
            info = tarfile.TarInfo(f"{top}{name}")
            info.size = len(text.encode())
            file.addfile(info, io.BytesIO(text.encode()))
    return content.getvalue()
