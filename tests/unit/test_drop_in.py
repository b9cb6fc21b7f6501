import pytest

from nixery_snap.drop_in import nixery_settings
from nixery_snap.errors import SettingsError


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ({}, {}),
        ({"PORT": "80", "NIX_TIMEOUT": "5", "STORAGE_PATH": "/x"}, {}),
        ({"NIXERY_CHANNEL": ""}, {}),
        ({"NIXERY_CHANNEL": "nixos-24.05"}, {"source": "channel:nixos-24.05"}),
        ({"NIXERY_PKGS_PATH": "/pkgs"}, {"source": "path:/pkgs"}),
        (
            {"NIXERY_PKGS_REPO": "https://git.example/pkgs.git"},
            {"source": "git+https://git.example/pkgs.git"},
        ),
        ({"NIXERY_PKGS_REPO": "git@git.example:a/pkgs"}, {"source": "git+ssh://git@git.example/a/pkgs"}),
        ({"NIXERY_PKGS_REPO": "file:///a@b:c"}, {"source": "git+file:///a@b:c"}),
        (
            {
                "NIXERY_CHANNEL": "x",
                "PORT": "80",
                "NIX_TIMEOUT": "5",
                "NIX_POPULARITY_URL": "https://x/p.json",
            },
            {
                "source": "channel:x",
                "listen": "0.0.0.0:80",
                "nix.build_timeout": "5",
                "popularity": "https://x/p.json",
            },
        ),
        (
            {"NIXERY_CHANNEL": "x", "NIXERY_STORAGE_BACKEND": "filesystem", "STORAGE_PATH": "/a b"},
            {"source": "channel:x", "storage": "file:///a%20b"},
        ),
        (
            {"NIXERY_CHANNEL": "x", "NIXERY_STORAGE_BACKEND": "gcs", "GCS_BUCKET": "images"},
            {"source": "channel:x", "storage": "gs://images"},
        ),
    ],
)
def test_what_nixery_calls_it(environment: dict[str, str], settings: dict[str, str]) -> None:
    assert nixery_settings(environment) == settings


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        (
            {"NIXERY_PKGS_PATH": "/x", "NIXERY_CHANNEL": "x"},
            "NIXERY_CHANNEL and NIXERY_PKGS_PATH are both set",
        ),
        ({"NIXERY_CHANNEL": "x", "NIXERY_STORAGE_BACKEND": "s3"}, "neither filesystem nor gcs"),
        ({"NIXERY_CHANNEL": "x", "NIXERY_STORAGE_BACKEND": "gcs"}, "GCS_BUCKET: .*not set"),
        ({"NIXERY_CHANNEL": "x", "NIXERY_STORAGE_BACKEND": "filesystem"}, "STORAGE_PATH: .*not set"),
    ],
)
def test_what_makes_no_sense(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        nixery_settings(environment)
