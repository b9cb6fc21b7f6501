"""Where registries are asked, by containerd's hosts.toml."""

import ssl
from pathlib import Path

import pytest

from nixery_snap.errors import SettingsError
from nixery_snap.image_service.registry_hosts import registry_hosts


def written(certs: Path, host: str, text: str) -> Path:
    (certs / host).mkdir(parents=True)
    file = certs / host / "hosts.toml"
    file.write_text(text)
    return file


def urls(certs: Path, host: str) -> list[str]:
    return [one.url for one in registry_hosts(certs, host)]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("registry.example:5000", "https://registry.example:5000/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.0.0.1:80", "http://127.0.0.1:80/v2"),
        ("localhost.example", "https://localhost.example/v2"),
    ],
)
def test_without_a_file(tmp_path: Path, host: str, url: str) -> None:
    assert urls(tmp_path / "none", host) == [url]


def test_mirrors_come_before_the_server(tmp_path: Path) -> None:
    written(
        tmp_path,
        "registry.example",
        """
        server = "https://upstream.example"
        [host."http://mirror.example:8080"]
          capabilities = ["pull", "resolve"]
        [host."https://pushed.example"]
          capabilities = ["push"]
        [host."https://whole.example/api/v2/x"]
          override_path = true
          skip_verify = true
          [host."https://whole.example/api/v2/x".header]
            x-one = "1"
            x-many = ["a", "b"]
        """,
    )
    mirror, whole, server = registry_hosts(tmp_path, "registry.example")
    assert mirror.url == "http://mirror.example:8080/v2"
    assert mirror.tls is True
    assert whole.url == "https://whole.example/api/v2/x"
    assert whole.tls is False
    assert whole.headers == {"x-one": "1", "x-many": "a, b"}
    assert server.url == "https://upstream.example/v2"


@pytest.mark.parametrize("directory", ["registry.example:5000", "registry.example_5000_", "_default"])
def test_names_of_directories(tmp_path: Path, directory: str) -> None:
    written(tmp_path, directory, '[host."http://mirror.example"]')
    assert urls(tmp_path, "registry.example:5000") == [
        "http://mirror.example/v2",
        "https://registry.example:5000/v2",
    ]


def test_authorities(tmp_path: Path) -> None:
    written(tmp_path, "registry.example", '[host."https://mirror.example"]\nca = "missing.pem"')
    with pytest.raises(SettingsError, match=r"hosts\.toml cannot be read"):
        registry_hosts(tmp_path, "registry.example")
    authority = Path(ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt")
    if authority.exists():
        (tmp_path / "registry.example/missing.pem").write_bytes(authority.read_bytes())
        assert isinstance(registry_hosts(tmp_path, "registry.example")[0].tls, ssl.SSLContext)


@pytest.mark.parametrize("text", ["[", "host = 1", "server = 1", '[host."x"]\ncapabilities = 1'])
def test_malformed(tmp_path: Path, text: str) -> None:
    written(tmp_path, "registry.example", text)
    with pytest.raises(SettingsError):
        registry_hosts(tmp_path, "registry.example")
