import pytest

from nixery_snap.oci.media_types import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, wants_docker


@pytest.mark.parametrize(
    ("accept", "docker"),
    [
        ("", False),
        ("*/*", False),
        (OCI_MANIFEST, False),
        (DOCKER_MANIFEST, True),
        (f"{DOCKER_MANIFEST}, {OCI_MANIFEST}", False),
        (f"{DOCKER_MANIFEST}, {OCI_INDEX}", True),
        (f"{DOCKER_MANIFEST}, */*", False),
        (f"application/json, {DOCKER_MANIFEST};q=0.9", True),
        ("application/json", False),
    ],
)
def test_wants_docker(accept: str, docker: bool) -> None:
    assert wants_docker(accept) is docker
