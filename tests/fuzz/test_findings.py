"""What fuzzing has found, each once mended: the input, and the target that it brought down."""

import contextlib

import pytest

from nixery_snap.errors import NixerySnapError
from tests.fuzz.targets import TARGETS

DEEP = b'{"a":' * 3000
FINDINGS = [
    ("manifests", DEEP),  # Python's own limit of nesting is no ValueError
    ("image indexes", DEEP),
    ("answers of registries", DEEP),
    ("records", DEEP),
    ("pins", DEEP),
    ("path infos", DEEP),
    ("hosts.toml", b"a = " + b"[" * 3000),
    ("hosts.toml", b'server = "https://r.example"\nclient = [[]]\n'),
    ("git refs and trees", b"160000 \0"),
]


@pytest.mark.parametrize(("name", "content"), FINDINGS, ids=map(str, range(len(FINDINGS))))
def test_finding(name: str, content: bytes) -> None:
    target = TARGETS[name]
    with contextlib.suppress(NixerySnapError, *target.also):
        target.parse(content)
