import os
from pathlib import Path
from typing import Any, cast

import pytest
from obstore.store import AzureStore, GCSStore, S3Store

from nixery_snap.buckets import Bucket, open_bucket

FILE = """
[default]
aws_access_key_id = AKIDDEFAULT
aws_secret_access_key = secret-default
[other]
aws_access_key_id = AKIDOTHER
aws_secret_access_key = secret-other
aws_session_token = token-other
[by-role]
role_arn = arn:aws:iam::1:role/x
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def opened(url: str) -> Bucket:
    return open_bucket(url, max_retries=0, timeout_seconds=1)


def settings_of(url: str) -> dict[str, Any]:
    bucket = opened(url)
    return cast("dict[str, Any]", {**bucket.config, **(bucket.client_options or {})})


@pytest.mark.parametrize(
    ("url", "kind", "prefix"),
    [
        ("s3://bucket", S3Store, None),
        ("s3://bucket/a/b%20c/?region=eu-west-1", S3Store, "a/b c"),
        ("gs://bucket/x", GCSStore, "x"),
        ("az://container/x?account=mine", AzureStore, "x"),
    ],
)
def test_urls(url: str, kind: type, prefix: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "theirs")
    bucket = opened(url)
    assert isinstance(bucket, kind)
    assert bucket.prefix == prefix


@pytest.mark.parametrize(
    "url",
    [
        *(
            "s3://",
            "s3:///x",
            "s3://user:secret@bucket",
            "s3://bucket#secret",
            "ftp://bucket",
            "file:///x",
            "",
        ),
        *(
            "s3://bucket?secret=hidden",
            "s3://bucket?scheme=ftp",
            "gs://bucket?region=x",
            "az://x?region=hidden",
        ),
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"must be|are known") as raised:
        opened(url)
    assert "hidden" not in str(raised.value)
    assert "secret@" not in str(raised.value)


def test_an_endpoint_means_path_style() -> None:
    found = settings_of("s3://bucket?endpoint=minio.example:9000&scheme=http")
    assert found["endpoint"] == "http://minio.example:9000"
    assert str(found["virtual_hosted_style_request"]).lower() == "false"
    assert str(found["allow_http"]).lower() == "true"
    assert str(settings_of("s3://bucket?endpoint=minio.example")["allow_http"]).lower() == "false"


def test_an_endpoint_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.example:9000")
    assert str(settings_of("s3://bucket")["allow_http"]).lower() == "true"


def test_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of("s3://bucket")["region"] == "us-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    assert settings_of("s3://bucket")["region"] == "eu-central-1"
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert settings_of("s3://bucket")["region"] == "eu-north-1"
    assert settings_of("s3://bucket?region=eu-west-1")["region"] == "eu-west-1"


def test_the_shared_file_of_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "access_key_id" not in settings_of("s3://bucket")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(FILE)
    found = settings_of("s3://bucket")
    assert (found["access_key_id"], found["secret_access_key"]) == ("AKIDDEFAULT", "secret-default")
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert settings_of("s3://bucket")["session_token"] == "token-other"
    for profile in ("by-role", "absent"):
        monkeypatch.setenv("AWS_PROFILE", profile)
        assert "access_key_id" not in settings_of("s3://bucket")
    assert "access_key_id" not in settings_of("s3://bucket?skip_signature=1")


def test_the_environment_comes_before_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(FILE)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "elsewhere"))
    assert settings_of("s3://bucket")["access_key_id"] == "AKIDDEFAULT"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert settings_of("s3://bucket").get("access_key_id") in {None, "AKIDENVIRONMENT"}


@pytest.mark.parametrize("content", [b"no section", b"[default]\nx = \xff", b"[a]\n[a]\n"])
def test_a_file_of_something_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "elsewhere").write_bytes(content)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="cannot be read as a file of AWS credentials"):
        opened("s3://bucket")
