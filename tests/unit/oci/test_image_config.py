import json

from nixery_snap.oci.digest import Digest
from nixery_snap.oci.image_config import ImageConfig


def test_form() -> None:
    diff_ids = Digest.of(b"low"), Digest.of(b"high")
    config = json.loads(bytes(ImageConfig("arm64", ("PATH=/bin",), ("bash",), diff_ids, ("one", "two"))))
    assert config["os"] == "linux"
    assert config["architecture"] == "arm64"
    assert config["config"] == {"Env": ["PATH=/bin"], "Cmd": ["bash"]}
    assert config["rootfs"] == {"type": "layers", "diff_ids": list(map(str, diff_ids))}
    assert [entry["created_by"] for entry in config["history"]] == ["one", "two"]


def test_without_command() -> None:
    assert "Cmd" not in json.loads(bytes(ImageConfig("amd64", (), (), (), ())))["config"]
