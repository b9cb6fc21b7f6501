import io
import tomllib
from typing import Any

import pytest
from rich.console import Console

from nixery_snap.errors import SettingsError
from nixery_snap.reports import node_config, welcome
from nixery_snap.settings import Settings

KEY = "registry-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
ONE = {"url": "https://one.example", "public_keys": ["one-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE="]}
TWO = {
    "url": "https://two.example/path",
    "public_keys": [
        "two-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAI=",
        "two-2:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAM=",
    ],
}


def settings(listen: str = "10.0.0.1:8080", **cache: Any) -> Settings:
    return Settings.model_validate({"listen": listen, "substituters": [ONE, TWO], "binary_cache": cache})


def files(text: str) -> dict[str, str]:
    """The printed files by their titles."""
    parts = text.removeprefix("# ").split("\n\n# ")
    return {title: content for title, _, content in (part.partition("\n") for part in parts)}


def nix_conf(text: str) -> dict[str, list[str]]:
    lines = files(text)["/etc/nix/nix.conf"].strip().splitlines()
    return {name: value.split() for name, _, value in (line.partition(" = ") for line in lines)}


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (
            "git+https://me:s3cret@git.example/packages?ref=main",
            "git+https://***@git.example/packages?ref=main",
        ),
        (
            "tarball:https://host.example/x.tar?signature=s3cret",
            "tarball:https://host.example/x.tar?signature=***",
        ),
        ("git+ssh://git@git.example/packages", "git+ssh://git@git.example/packages"),
        ("path:/a@b/c", "path:/a@b/c"),
    ],
)
def test_the_welcome_tells_no_secret(source: str, shown: str) -> None:
    said = io.StringIO()
    welcome(Console(file=said), Settings(source=source, log_format="console"), "127.0.0.1:80")
    assert f"serves {shown} at http://127.0.0.1:80\n" in said.getvalue()
    assert "s3cret" not in said.getvalue()


def test_by_default_all_caches_and_ours_first() -> None:
    assert nix_conf(node_config(settings(), KEY)) == {
        "extra-substituters": ["http://10.0.0.1:8080/nix-cache", ONE["url"], TWO["url"]],
        "extra-trusted-public-keys": [KEY, *ONE["public_keys"], *TWO["public_keys"]],
    }


@pytest.mark.parametrize(
    ("clients", "urls", "keys"),
    [
        (["own"], ["http://10.0.0.1:8080/nix-cache"], [KEY]),
        ([ONE["url"]], [ONE["url"]], [*ONE["public_keys"]]),
        ([TWO["url"], ONE["url"]], [ONE["url"], TWO["url"]], [*ONE["public_keys"], *TWO["public_keys"]]),
        (["own", TWO["url"]], ["http://10.0.0.1:8080/nix-cache", TWO["url"]], [KEY, *TWO["public_keys"]]),
    ],
)
def test_just_the_caches_that_clients_are_told_of(
    clients: list[str], urls: list[str], keys: list[str]
) -> None:
    told = nix_conf(node_config(settings(client_substituters=clients), KEY))
    assert told == {"extra-substituters": urls, "extra-trusted-public-keys": keys}


def test_a_server_without_a_cache() -> None:
    told = nix_conf(node_config(settings(enabled=False), KEY))
    assert told["extra-substituters"] == [ONE["url"], TWO["url"]]
    assert KEY not in told["extra-trusted-public-keys"]


@pytest.mark.parametrize(
    ("listen", "public_url", "url", "registry"),
    [
        ("10.0.0.1:8080", "", "http://10.0.0.1:8080/nix-cache", "http://10.0.0.1:8080"),
        ("[fd00::1]:80", "", "http://[fd00::1]:80/nix-cache", "http://[fd00::1]:80"),
        (
            "0.0.0.0:8080",
            "https://registry.example/nix-cache/",
            "https://registry.example/nix-cache",
            "https://registry.example",
        ),
        ("[::]:8080", "http://node.local:81/c", "http://node.local:81/c", "http://node.local:81"),
    ],
)
def test_where_nodes_find_the_server(listen: str, public_url: str, url: str, registry: str) -> None:
    text = node_config(settings(listen, public_url=public_url), KEY)
    assert nix_conf(text)["extra-substituters"][0] == url
    host = registry.partition("://")[2]
    hosts = tomllib.loads(files(text)[f"/etc/containerd/certs.d/{host}/hosts.toml"])
    assert hosts["server"] == registry
    assert list(hosts["host"]) == [registry]


@pytest.mark.parametrize("listen", ["0.0.0.0:8080", "[::]:8080"])
def test_an_address_that_nodes_cannot_reach(listen: str) -> None:
    with pytest.raises(SettingsError, match="set it to the URL of /nix-cache") as caught:
        node_config(settings(listen), KEY)
    assert caught.value.key == "binary_cache.public_url"


@pytest.mark.parametrize(
    ("version", "plugin"), [("1.7", "io.containerd.grpc.v1.cri"), ("2", "io.containerd.cri.v1.images")]
)
def test_containerd(version: str, plugin: str) -> None:
    config = tomllib.loads(
        files(node_config(settings(), KEY))[f"/etc/containerd/config.toml, containerd {version}"]
    )
    assert config["version"] == {"1.7": 2, "2": 3}[version]
    proxy = config["proxy_plugins"]["nix"]
    assert proxy["type"] == "snapshot"
    images = config["plugins"][plugin]
    settings_of = images["containerd"] if version == "1.7" else images
    assert settings_of["snapshotter"] == "nix"
    assert settings_of["disable_snapshot_annotations"] is False
    assert images["registry"]["config_path"] == "/etc/containerd/certs.d"
    [unpack] = config["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]
    assert unpack == {"platform": "linux/amd64", "snapshotter": "nix"}


def test_no_braces_are_left() -> None:
    assert not set("{}") & set(node_config(settings(), KEY))
