"""Real clients with credentials, and without: each logs in as its manual says, and gets a private image."""

import base64
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import grpc
import pytest

from nixery_snap.image_service.generated import cri_pb2 as cri
from tests.integration.access import PASSWORD, SECRET, USER, Guarded, basic, guarded
from tests.integration.kubelet import new_node
from tests.integration.need import need
from tests.integration.nixtools import ChrootStore, client_options, only
from tests.integration.processes import output_of, run
from tests.integration.runtimes.containerd import containerd
from tests.integration.runtimes.docker import Docker
from tests.integration.runtimes.podman import podman
from tests.integration.server import OCI_MANIFEST, Substituter

CLASSIC = f"classic/internal/{SECRET}"
FORM = f"nix-snapshotter/internal/{SECRET}"
Done = CompletedProcess[str]


@pytest.fixture(scope="module", params=["basic", "tokens"])
def world(request: pytest.FixtureRequest, scratch: Path, prepared_store: ChrootStore) -> Iterator[Guarded]:
    scheme: str = request.param
    with guarded(scratch / f"access-{scheme}", prepared_store, tokens=scheme == "tokens") as running:
        yield running


def is_unauthorized(done: Done) -> bool:
    """Whether it failed, and says why in one of the words that clients have for it."""
    assert done.returncode != 0
    words = ("unauthorized", "401", "denied", "no basic auth", "authentication required", "invalid username")
    assert any(word in output_of(done).lower() for word in words), output_of(done)
    return True


def test_docker(world: Guarded, docker_engine: Docker) -> None:
    host = world.registry.host
    image = f"{host}/{CLASSIC}"

    def login(password: str, *, check: bool = True) -> Done:
        # As `docker login --password-stdin` does.
        command = ["docker", "login", "--username", USER, "--password-stdin", host]
        return run(*command, env=docker_engine.env, stdin=password, check=check)

    assert is_unauthorized(docker_engine.pull(image, check=False))
    assert is_unauthorized(login("wrong", check=False))
    assert is_unauthorized(docker_engine.pull(image, check=False))
    assert "Login Succeeded" in output_of(login(PASSWORD))
    docker_engine.pull(image)
    assert docker_engine.run(image, SECRET) == "tomatoes\n"
    docker_engine.command("logout", host)
    docker_engine.command("rmi", image)
    assert is_unauthorized(docker_engine.pull(image, check=False))


def test_docker_without_a_login(world: Guarded, docker_engine: Docker) -> None:
    """What strangers may have takes the token protocol: Docker shows no credentials unless it is asked for them."""
    done = docker_engine.pull(f"{world.registry.host}/hello", check=False)
    if world.tokens:
        assert done.returncode == 0, output_of(done)
    else:
        assert is_unauthorized(done)


def test_skopeo(world: Guarded, directory: Path) -> None:
    need("skopeo")
    host, file = world.registry.host, directory / "auth.json"
    inspect = ["skopeo", "inspect", "--tls-verify=false", "--no-tags", "--authfile", file]
    login = [
        "skopeo",
        "login",
        "--tls-verify=false",
        "--authfile",
        file,
        "--username",
        USER,
        "--password-stdin",
    ]
    file.write_text("{}")
    assert is_unauthorized(run(*inspect, f"docker://{host}/{CLASSIC}", check=False))
    assert run(*inspect, f"docker://{host}/hello")
    assert is_unauthorized(run(*login, host, stdin="wrong", check=False))
    run(*login, host, stdin=PASSWORD)
    run(*inspect, f"docker://{host}/{CLASSIC}")
    copy = ["skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", "--src-authfile", file]
    run(*copy, f"docker://{host}/{FORM}", f"oci:{directory / 'layout'}:image")
    tags = run("skopeo", "list-tags", "--tls-verify=false", "--authfile", file, f"docker://{host}/{CLASSIC}")
    assert '"latest"' in tags.stdout


def test_podman(world: Guarded, directory: Path) -> None:
    host = world.registry.host
    image, file = f"{host}/{CLASSIC}", directory / "auth.json"
    login = ["login", "--tls-verify=false", "--authfile", str(file), "--username", USER, "--password"]
    with podman(directory) as engine:
        engine.env["REGISTRY_AUTH_FILE"] = str(file)
        file.write_text("{}")
        assert is_unauthorized(engine.pull(image, check=False))
        assert is_unauthorized(engine.command(*login, "wrong", host, check=False))
        engine.command(*login, PASSWORD, host)
        engine.pull(image)
        assert engine.run(image, SECRET) == "tomatoes\n"


def test_containerd(world: Guarded, directory: Path) -> None:
    """By a header in hosts.toml, and by a user."""
    release = "2" if world.tokens else "1.7"
    host = world.registry.host
    image = f"{host}/{CLASSIC}:latest"
    for name, authorization in (("right", basic()), ("wrong", basic(USER, "wrong"))):
        certs = directory / name / host
        certs.mkdir(parents=True)
        (certs / "hosts.toml").write_text(
            f'server = "http://{host}"\n[host."http://{host}"]\ncapabilities = ["pull", "resolve"]\n'
            f'[host."http://{host}".header]\nAuthorization = ["{authorization}"]\n'
        )
    with containerd(directory, release) as engine:
        pull = ("images", "pull", *(["--local"] if release == "2" else []))
        assert is_unauthorized(engine.ctr(*pull, "--plain-http", image, check=False))
        assert is_unauthorized(engine.ctr(*pull, "--hosts-dir", str(directory / "wrong"), image, check=False))
        engine.ctr(*pull, "--hosts-dir", str(directory / "right"), image)
        assert engine.run(image, SECRET) == "tomatoes\n"
        engine.ctr("images", "rm", "--sync", image)
        login = ("--plain-http", "--user", f"{USER}:{PASSWORD}")
        engine.ctr(*pull, *login, image)
        engine.ctr(*pull, "--plain-http", f"{host}/hello:latest")


def test_nix(world: Guarded, directory: Path, prepared_store: ChrootStore) -> None:
    """By its netrc-file."""
    assert world.get(f"/v2/{FORM}/manifests/latest", Accept=OCI_MANIFEST).status == 200
    path = only(prepared_store, world.source, SECRET)
    machine, port = world.registry.host.split(":")
    options = client_options(world.private_cache_url, world.public_key)
    for number, (password, let_in) in enumerate({"wrong": False, PASSWORD: True}.items()):
        netrc = directory / f"netrc-{number}"
        netrc.write_text(f"machine {machine}\nlogin {USER}\npassword {password}\n")
        node = ChrootStore.create(directory / f"node-{number}")
        command = ["nix-store", "--store", node.root, *options, "--option", "netrc-file", netrc]
        done = node.attempt(*command, "--realise", path, check=False)
        assert (done.returncode == 0) is let_in, output_of(done)
        assert node.physical(path).exists() is let_in
    assert int(port)


def test_the_kubelet(world: Guarded, directory: Path) -> None:
    """Those of a pod's imagePullSecrets are for the manifest and the pull; store paths take the node's own."""
    cache = Substituter(
        world.private_cache_url.replace("//", f"//{USER}:{_quoted(PASSWORD)}@"), [world.public_key]
    )
    image = f"{world.registry.host}/{FORM}:latest"
    pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    with new_node(directory / "node", "2", [cache]) as node:
        node.registries = [world.registry.host]
        node.start()
        node.load_pause()
        with node.kubelet() as kubelet:
            for auth in (None, cri.AuthConfig(username=USER, password="wrong")):
                code, message = kubelet.refused(image, auth=auth)
                assert code is not grpc.StatusCode.OK
                assert "401" in message or "authorization failed" in message
                assert PASSWORD not in message
            for auth in (cri.AuthConfig(username=USER, password=PASSWORD), cri.AuthConfig(auth=pair)):
                kubelet.pull(image, auth=auth)
                assert node.events("prefetched"), "its own request for the manifest was let in"
                assert kubelet.run_pod(image, SECRET) == (0, "tomatoes\n")
                kubelet.remove(image)
        assert PASSWORD not in node.log.read_text()


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())
