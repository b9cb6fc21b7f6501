"""Media types of manifests, configs and layers (OCI image-spec, media-types.md; Docker image manifest v2.2)."""

from __future__ import annotations

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

DOCKER_EQUIVALENT = {
    OCI_MANIFEST: DOCKER_MANIFEST,
    OCI_CONFIG: DOCKER_CONFIG,
    OCI_LAYER_GZIP: DOCKER_LAYER_GZIP,
}


def wants_docker(accept: str) -> bool:
    """Whether a client with this Accept header takes Docker's manifests and not OCI's.

    An absent header, or a wildcard, accepts anything (RFC 9110, section 12.5.1).
    """
    return DOCKER_MANIFEST in accept and OCI_MANIFEST not in accept and "*/*" not in accept
