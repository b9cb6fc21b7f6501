"""Git repositories for the tests: made by real git, served by git's own http-backend and by a real sshd."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.integration.need import absent, need
from tests.integration.processes import Daemon, accepts, free_port, run
from tests.support import servers

# Nobody's settings, and the same commits on every machine.
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_NAME": "Somebody" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "somebody@example.org" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_DATE": "2024-01-01T00:00:00Z" for who in ("AUTHOR", "COMMITTER")},
}


@dataclass(frozen=True)
class Repository:
    """A repository with a work tree; `root` is also what a remote is cloned from."""

    root: Path

    @classmethod
    def create(cls, root: Path, *options: str) -> "Repository":
        need("git")
        root.mkdir(parents=True)
        made = cls(root)
        made.git("init", "--quiet", "--initial-branch=main", *options)
        made.commit({"default.nix": "{ }: { }"})
        return made

    def git(self, *arguments: str, env: Mapping[str, str] | None = None, stdin: str = "") -> str:
        return run(
            "git", *arguments, cwd=self.root, env=ENVIRONMENT | (env or {}), stdin=stdin
        ).stdout.strip()

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)

    def commit(self, files: Mapping[str, str], *, amend: bool = False) -> str:
        """On the branch that is checked out; the commit's name."""
        self.write(files)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message=more", *(["--amend"] if amend else []))
        return self.head

    def commit_on(self, branch: str, files: Mapping[str, str]) -> str:
        """On a new branch; back on main afterwards."""
        self.git("checkout", "--quiet", "-B", branch)
        commit = self.commit(files)
        self.git("checkout", "--quiet", "main")
        return commit

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    @property
    def url(self) -> str:
        return f"git+file://{self.root}"


class Handler(servers.Handler):
    """Runs `git http-backend` as a CGI program (RFC 3875)."""

    server: "Server"

    def do_GET(self) -> None:
        asked = Asked(self.command, self.path, self.headers.get("Authorization"))
        self.server.asked.append(asked)
        body = self.body()
        if self.server.down:
            self.answer(503, {}, b"")
        elif self.server.authorizations and asked.authorization not in self.server.authorizations:
            self.answer(401, {"WWW-Authenticate": 'Basic realm="git"'}, b"")
        elif self.server.redirect_to:
            self.answer(302, {"Location": self.server.redirect_to + self.path}, b"")
        else:
            self.answer(*self.run(body))

    do_POST = do_GET

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def run(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        path, _, query = self.path.partition("?")
        done = subprocess.run(
            ["git", "http-backend"],
            env={
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(self.server.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_CONFIG_GLOBAL": str(self.server.config),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            },
            input=body,
            capture_output=True,
            check=False,
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        return int(headers.pop("Status", "200").split()[0]), headers, content

    def answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.server.sent_bytes += len(content)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@dataclass(frozen=True)
class Asked:
    """One request to the server."""

    method: str
    path: str
    authorization: str | None = field(repr=False)


class Server(servers.Server):
    """Serves the repositories below `root`; `authorizations` are what it lets in, everybody when empty."""

    def __init__(self, root: Path) -> None:
        super().__init__(Handler)
        self.root = root
        self.config = root / ".served.gitconfig"
        self.config.write_text("[safe]\n\tdirectory = *\n")
        self.asked: list[Asked] = []
        self.authorizations: set[str] = set()
        self.redirect_to = ""
        self.sent_bytes = 0
        self.down = False

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def url(self, repository: Repository, login: str = "") -> str:
        return f"git+http://{login}{self.host}/{repository.root.relative_to(self.root)}"


@contextlib.contextmanager
def git_server(root: Path) -> Iterator[Server]:
    need("git")
    with Server(root).running() as server:
        yield server


@dataclass(frozen=True)
class SshServer:
    """An sshd of the tests' own, and what a client needs to be let in."""

    port: int
    key: Path
    known_hosts: Path
    agent: Path
    daemon: Daemon

    @property
    def user(self) -> str:
        """Whom it lets in."""
        return run("id", "-un").stdout.strip()

    def url(self, repository: Repository) -> str:
        return f"git+ssh://{self.user}@127.0.0.1:{self.port}{repository.root}"


SSHD = """\
ListenAddress 127.0.0.1:{port}
HostKey {home}/host
AuthorizedKeysFile {home}/client.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv {environment}
"""


@contextlib.contextmanager
def ssh_server(home: Path, environment: Mapping[str, str] | None = None) -> Iterator[SshServer]:
    """`home` must have a short name: the agent's socket lies there. `environment`: of what clients run there."""
    need("sshd", "ssh", "ssh-agent", "ssh-add", "ssh-keygen", "git")
    home.mkdir(parents=True)
    for name in ("host", "client", "agent-client"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / name)
    # The agent has a key of its own, so that it shows which one was used.
    with (home / "client.pub").open("a") as file:
        file.write((home / "agent-client.pub").read_text())
    port = free_port()
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {(home / 'host.pub').read_text()}")
    variables = {"PATH": os.environ["PATH"], **(environment or {})}
    set_them = " ".join(f'"{name}={value}"' for name, value in variables.items())
    (home / "sshd_config").write_text(SSHD.format(port=port, home=home, environment=set_them))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, as root, wants to be confined
    program = shutil.which("sshd")  # it insists on its whole path
    assert program
    daemon = Daemon([program, "-D", "-e", "-f", home / "sshd_config"], log=home / "sshd.log")
    daemon.wait_ready(lambda: "listening" in daemon.tail())
    agent = Daemon(["ssh-agent", "-D", "-a", home / "agent"], log=home / "agent.log")
    try:
        agent.wait_ready(partial(accepts, home / "agent"))
        run("ssh-add", home / "agent-client", env={**ENVIRONMENT, "SSH_AUTH_SOCK": str(home / "agent")})
        yield SshServer(port, home / "client", home / "known_hosts", home / "agent", daemon)
    finally:
        agent.stop()
        daemon.stop()


def http_backend() -> None:
    """Must be there."""
    path = Path(run("git", "--exec-path").stdout.strip()) / "git-http-backend"
    if not path.exists():
        absent(f"not there: {path}")


@dataclass(frozen=True)
class Counted:
    """Every start of git, by its arguments; those that a git starts itself are not among them."""

    log: Path

    def commands(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def fetches(self) -> list[str]:
        return [line for line in self.commands() if line.split()[0] in {"fetch", "ls-remote"}]

    def clear(self) -> None:
        self.log.unlink(missing_ok=True)


def count_git(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Before the source is made: it takes PATH as it is then."""
    real = shutil.which("git")
    directory.mkdir(parents=True)
    counted = Counted(directory / "log")
    program = directory / "git"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{counted.log}\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return counted
