"""The codecs of layers write the same bytes on every CPU, however it is fed.

Replicas run on unlike machines and must serve one digest; vector instructions are chosen at run time. So the
compressor runs here on the bare machine and under CPU models from the first x86-64 to the newest that the
qemu-user of Debian knows. The choice of codecs and its reasons: docs/decisions, 0003 and 0018.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from nixery_snap.oci import compression
from nixery_snap.oci.compression import Compression
from tests.integration.need import need

REPOSITORY = Path(__file__).parents[2]
Expected = dict[Compression, str]
QEMU = "qemu-x86_64"
CPU_MODELS = ["Nehalem", "Haswell", "max", "qemu64", "Opteron_G1"]

# What `compress` makes of the corpus below, seen on Zen 3, on all CPU models above and on 64-bit Arm. A codec
# with another name may write other bytes (caches are keyed by the name); the same name never may.
KNOWN_RESULTS = {
    "gzip-zlib-ng-2.3.3-level2": "73541bb0e425c689b39d84fb42694a4d211b082e0f4de7dedec1a37b6eabc626",
    "zstd-1.5.7-level3": "c709e7407c8d2a04c5cf8876b52fc5aa558f086196ab9821a394151c9b1ab01d",  # not yet on Arm
}

COMPRESS_FILE = """
import hashlib, pathlib, sys
from nixery_snap.oci import compression
content = pathlib.Path(sys.argv[1]).read_bytes()
for kind in compression.Compression:
    print(hashlib.sha256(b"".join(compression.compress([content], kind))).hexdigest())
"""


def make_corpus() -> bytes:
    """Four megabytes of what layers hold: text, tables, code-like noise, zeros, repeats near and far."""
    rng = random.Random(20_000)
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz_", k=rng.randint(1, 11))) for _ in range(3000)]
    text = b" ".join(rng.choices(words, weights=[1 / (n + 1) for n in range(3000)], k=200_000))
    table = b"".join(
        struct.pack("<IIHHQ", n, n * 24, n % 7, 0x1F, rng.getrandbits(20)) for n in range(40_000)
    )
    opcodes = [rng.randbytes(rng.randint(1, 6)) for _ in range(400)]
    code = b"".join(rng.choice(opcodes) + rng.randbytes(rng.randint(0, 3)) for _ in range(200_000))
    noise = rng.randbytes(300_001)
    near_window = noise[:32_700] * 3  # repeats at the far end of the 32 KiB window
    return b"".join([
        text, table, bytes(100_003), code, noise, near_window, b"ab" * 70_000, text[1000:300_000], bytes(511),
    ])  # fmt: skip


@pytest.fixture(scope="module")
def corpus() -> bytes:
    return make_corpus()


@pytest.fixture(scope="module")
def expected(corpus: bytes) -> dict[Compression, str]:
    return {kind: digest_of(compression.compress([corpus], kind)) for kind in Compression}


def digest_of(chunks: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(chunks)).hexdigest()


def cut(content: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    start = 0
    while start < len(content):
        size = next(sizes)
        yield content[start : start + size]
        start += size


def constant(size: int) -> Iterator[int]:
    while True:
        yield size


def uneven(seed: int) -> Iterator[int]:
    rng = random.Random(seed)
    while True:
        yield int(2 ** rng.uniform(0, 20))


@pytest.mark.parametrize("cpu", CPU_MODELS)
def test_same_bytes_on_every_cpu_model(cpu: str, corpus: bytes, expected: Expected, tmp_path: Path) -> None:
    need(QEMU)
    file = tmp_path / "corpus"
    file.write_bytes(corpus)
    result = subprocess.run(
        [QEMU, "-cpu", cpu, sys.executable, "-W", "ignore", "-c", COMPRESS_FILE, str(file)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,
        check=True,
    )
    assert result.stdout.split() == list(expected.values())


@pytest.mark.parametrize("kind", list(Compression))
def test_same_bytes_as_on_the_machines_seen_before(kind: Compression, expected: Expected) -> None:
    assert kind.codec in KNOWN_RESULTS, (
        f"{kind.codec} is new: when all other tests here pass, add its result {expected[kind]}"
    )
    assert KNOWN_RESULTS[kind.codec] == expected[kind]


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(constant(size), id=f"pieces-of-{size}")
        for size in (1, 512, 65_521, 65_536, 262_144, 1_048_576)
    ]
    + [pytest.param(uneven(seed), id=f"uneven-{seed}") for seed in range(3)],
)
def test_same_bytes_however_fed(sizes: Iterator[int], corpus: bytes, expected: Expected) -> None:
    assert digest_of(compression.compress(cut(corpus, sizes))) == expected[Compression.GZIP]


@pytest.mark.parametrize("seed", range(3))
def test_same_bytes_of_zstd_however_fed(seed: int, corpus: bytes, expected: Expected) -> None:
    packed = compression.compress(cut(corpus, uneven(seed)), Compression.ZSTD)
    assert digest_of(packed) == expected[Compression.ZSTD]


def test_header_holds_no_time_and_no_name(corpus: bytes) -> None:
    header = b"".join(compression.compress([corpus[:1000]]))[:10]
    assert header == bytes.fromhex("1f8b 08 00 00000000 00 03")
