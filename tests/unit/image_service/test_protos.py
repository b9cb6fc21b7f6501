"""Generated code is what protos/ says now, and numbers of fields are those of the services spoken to."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from nixery_snap.image_service.generated import cri_pb2 as cri

ROOT = Path(__file__).parents[3]


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    if importlib.util.find_spec("grpc_tools") is None:
        pytest.skip("grpcio-tools is not installed")
    # A process of its own: the compiler registers its messages once in each.
    subprocess.run([sys.executable, ROOT / "hatch_build.py", tmp_path], check=True, cwd=tmp_path)
    made = {
        path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.py*") if path.is_file()
    }
    assert len(made) > 20
    for path, text in made.items():
        assert (ROOT / path).read_text() == text, f"{path}: run scripts/protos"


def test_unknown_fields_survive() -> None:
    """The kubelet's numbers go through what was read and written again."""
    new = b"\x0a\x02\x12\x00" + b"\xba\x3e\x03new"  # image_filesystems[0].fs_id, and field 999
    assert cri.ImageFsInfoResponse.FromString(new).SerializeToString() == new
    spec = cri.PullImageRequest.FromString(b"\x0a\x06\x0a\x01x\x92\x01\x00").image
    assert spec.image == "x"
