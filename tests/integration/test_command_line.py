"""`build`, `inspect` and `serve` as a person or a script calls them."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.need import need
from tests.integration.nixtools import ChrootStore, add_package
from tests.integration.processes import output_of, run
from tests.integration.runtimes.docker import Docker
from tests.integration.runtimes.oci_bundle import unpack
from tests.integration.server import PROGRAM, Registry


@pytest.fixture
def offline(directory: Path, prepared_store: ChrootStore) -> Registry:
    """A registry that is not started: only its settings are used."""
    return Registry(directory / "state", prepared_store.root)


def call(
    registry: Registry, *arguments: str | Path, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    return run(*PROGRAM, *arguments, env=registry.program_env, check=check)


def build(registry: Registry, name: str, output: str, *more: str) -> "subprocess.CompletedProcess[str]":
    return call(registry, "build", name, *more, *registry.options, "--output", output)


def index_of(layout: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((layout / "index.json").read_text())
    return index


def test_build_to_a_layout_makes_the_image_that_is_served(
    registry: Registry, offline: Registry, directory: Path
) -> None:
    layout = directory / "layout"
    build(offline, "shell/hello:latest", f"oci:{layout}")
    (descriptor,) = index_of(layout)["manifests"]
    assert descriptor["digest"] == registry.pull("shell/hello").digest
    copied = directory / "copied"
    need("skopeo")
    tag = descriptor["annotations"]["org.opencontainers.image.ref.name"]
    run("skopeo", "--insecure-policy", "copy", f"oci:{layout}:{tag}", f"oci:{copied}:image")
    assert unpack(f"{copied}:image", directory / "bundle").run("hello") == "Hello, world!\n"


def test_build_to_an_oci_archive(registry: Registry, offline: Registry, directory: Path) -> None:
    need("skopeo")
    archive, layout = directory / "image.tar", directory / "layout"
    build(offline, "curl", f"oci-archive:{archive}")
    run("skopeo", "--insecure-policy", "copy", f"oci-archive:{archive}", f"oci:{layout}:image")
    (descriptor,) = index_of(layout)["manifests"]
    assert descriptor["digest"] == registry.pull("curl").digest


def test_build_to_a_docker_archive(offline: Registry, docker_engine: Docker, directory: Path) -> None:
    archive = directory / "image.tar"
    build(offline, "shell/git:latest", f"docker-archive:{archive}")
    loaded = docker_engine.load(archive)
    assert "shell/git:latest" in loaded
    assert docker_engine.run("shell/git:latest", "git") == "curl 8.8.0 (tiny)\n"


def test_archives_are_reproducible(offline: Registry, directory: Path) -> None:
    for kind in ("oci-archive", "docker-archive"):
        files = [directory / f"{kind}-{number}.tar" for number in range(2)]
        for file in files:
            build(offline, "hello", f"{kind}:{file}")
        assert files[0].read_bytes() == files[1].read_bytes(), kind


def test_build_in_the_other_format(registry: Registry, offline: Registry, directory: Path) -> None:
    layouts = directory / "flag", directory / "prefix"
    build(offline, "shell/hello", f"oci:{layouts[0]}", "--format", "nix-snapshotter")
    build(offline, "nix-snapshotter/shell/hello", f"oci:{layouts[1]}")
    expected = registry.pull("nix-snapshotter/shell/hello").digest
    assert [index_of(layout)["manifests"][0]["digest"] for layout in layouts] == [expected, expected]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "helo", "--output", "oci:{dir}/x"], ["did you mean hello"]),
        (["build", "failstobuild", "--output", "oci:{dir}/x"], ["no acceptable C compiler"]),
        (["build", "UPPER", "--output", "oci:{dir}/x"], ["UPPER"]),
        (["build", "hello", "--output", "nonsense:{dir}/x"], ["nonsense", "oci-archive"]),
        (["build", "hello", "--output", "oci:/proc/nowhere"], ["/proc/nowhere"]),
        (["inspect", "unfreetool"], ["unfree"]),
    ],
)
def test_faults_are_told_in_a_sentence(
    offline: Registry, directory: Path, arguments: list[str], words: list[str]
) -> None:
    filled = [argument.format(dir=directory) for argument in arguments]
    done = call(offline, *filled, *offline.options, check=False)
    assert done.returncode != 0
    said = output_of(done)
    assert "Traceback" not in said
    assert [word for word in words if word not in said] == [], said
    assert not (directory / "x").exists(), "a failed build leaves nothing"


def test_inspect_as_a_table(offline: Registry) -> None:
    table = call(offline, "inspect", "shell/hello", "--verify", *offline.options).stdout
    for expected in ("hello-2.12.1", "nss-cacert-3.101", "bash-interactive-5.2", "sha256:"):
        assert expected in table


@pytest.mark.parametrize("image_format", ["classic", "nix-snapshotter"])
def test_inspect_as_json(
    registry: Registry, offline: Registry, prepared_store: ChrootStore, image_format: str
) -> None:
    name = f"{image_format}/hello"
    shown = json.loads(call(offline, "inspect", name, "--json", *offline.options).stdout)
    image = registry.pull(name)
    installed = prepared_store.installed(("hello",), ("cacert",), ("iana-etc",))
    closure = prepared_store.closure(path for paths in installed.values() for path in paths)
    text = json.dumps(shown)
    assert image.digest in text
    assert [path for path in closure if path not in text] == []
    assert [layer["digest"] for layer in image.layers if layer["digest"] not in text] == []


def test_packages_are_shown_while_they_are_built(directory: Path, empty_store: ChrootStore) -> None:
    """On standard error, so that standard output stays what it is."""
    registry = Registry(directory / "state", empty_store.root)
    done = call(registry, "inspect", "hello", "--json", *registry.options)
    assert json.loads(done.stdout)
    assert "hello" in done.stderr


@pytest.mark.parametrize(
    ("toml", "env", "key"),
    [
        ("[nix]\nbild_timeout = 3", {}, "nix.bild_timeout"),
        ("listen = 8080", {}, "listen"),
        ("format = 'docker'", {}, "format"),
        ("[nix]\nwait_timeout = 'long'", {}, "nix.wait_timeout"),
        ("[meta_packages]\ndebug = 'strace'", {}, "meta_packages.debug"),
        ("source = 'nonsense'", {}, "source"),
        ("storage = 'ftp://x'", {}, "storage"),
        ("", {"NIXERY_SNAP_NIX__BUILD_TIMEOUT": "soon"}, "nix.build_timeout"),
        ("", {"NIXERY_SNAP_NO_SUCH_KEY": "1"}, "no_such_key"),
        ("this is not TOML", {}, "settings.toml"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_their_key(
    directory: Path, toml: str, env: dict[str, str], key: str
) -> None:
    registry = Registry(directory / "state", directory / "store", env=env)
    registry.state.mkdir()
    settings = registry.state / "settings.toml"
    settings.write_text(toml)
    done = call(registry, "serve", "--config", settings, check=False)
    assert done.returncode != 0
    assert key in output_of(done).lower()
    assert "Traceback" not in output_of(done)


def test_flags_win_over_environment_over_file(directory: Path, prepared_store: ChrootStore) -> None:
    """Told by the format of what is built, each time with one more of them."""
    registry = Registry(directory / "state", prepared_store.root)
    registry.state.mkdir()
    settings = registry.state / "settings.toml"
    settings.write_text("format = 'nix-snapshotter'")

    def media(*flags: str, **env: str) -> int:
        registry.env = env
        layout = directory / f"layout{len(list(directory.iterdir()))}"
        build(registry, "hello", f"oci:{layout}", "--config", str(settings), *flags)
        digest = index_of(layout)["manifests"][0]["digest"].removeprefix("sha256:")
        return len(json.loads((layout / "blobs" / "sha256" / digest).read_text())["layers"])

    assert media() == 1
    assert media(NIXERY_SNAP_FORMAT="classic") > 1
    assert media("--format", "nix-snapshotter", NIXERY_SNAP_FORMAT="classic") == 1


def test_an_interruption_has_a_status_of_its_own(
    directory: Path, empty_store: ChrootStore, own_source: Path
) -> None:
    add_package(own_source, "sleeper", "$bb sleep 1000")
    registry = Registry(directory / "state", empty_store.root, own_source)
    # These tests may run where nobody is to interrupt them.
    command = ["env", "--default-signal=INT", *PROGRAM, "inspect", "sleeper", *registry.options]
    with subprocess.Popen(command, env=registry.program_env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "sleeper" in line)  # it is being built
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 130
        assert "Traceback" not in process.stderr.read()
