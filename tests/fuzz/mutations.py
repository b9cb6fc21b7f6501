"""Bytes that are almost right: real examples, changed here and there; and now and then anything at all."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

MAX_CHANGES = 6
# What parsers are sensitive to, whatever they parse.
TOKENS = (
    *(
        b"",
        b"\0",
        b"\n",
        b"\r\n",
        b" ",
        b"\t",
        b"/",
        b"..",
        b"../",
        b"//",
        b":",
        b"=",
        b",",
        b";",
        b'"',
        b"'",
        b"\\",
    ),
    *(
        b"0",
        b"-1",
        b"1e999",
        b"9" * 30,
        b"\xff",
        b"\xc3\x28",
        "\ud7ff\u2028".encode(),
        b"%00",
        b"%2f",
        b"sha256:",
    ),
    *(b"[" * 3000, b"{" * 3000, b'{"a":' * 3000, b"null", b"true", b"[]", b"{}", b"NaN", b"\\ud800"),
    *(b"\x7f\xff\xff\xff\xff\xff\xff\xff", bytes(8), b"\xff" * 8, b"a" * 300, bytes(512)),
)


def almost(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Mostly one of `seeds` with a few cuts, repeats, tokens and flipped bits; they shrink towards the seed itself."""
    place = st.integers(0, 2**16)
    change = st.tuples(
        st.sampled_from(("insert", "overwrite", "delete", "repeat", "flip", "cut", "splice")),
        place,
        place,
        st.sampled_from(TOKENS) | st.binary(max_size=8),
        st.sampled_from(tuple(seeds)),
    )
    changed = st.builds(_changed, st.sampled_from(tuple(seeds)), st.lists(change, max_size=MAX_CHANGES))
    return st.one_of(changed, changed, changed, st.binary(max_size=300))


def _changed(content: bytes, changes: list[tuple[str, int, int, bytes, bytes]]) -> bytes:
    for kind, first, second, token, other in changes:
        start = first % (len(content) + 1)
        length = second % 40
        before, middle, after = content[:start], content[start : start + length], content[start + length :]
        match kind:
            case "insert":
                content = before + token + middle + after
            case "overwrite":
                content = before + token + content[start + len(token) :]
            case "delete":
                content = before + after
            case "repeat":
                content = before + middle * (second % 5 + 2) + after
            case "flip" if middle:
                content = before + bytes([middle[0] ^ (1 << second % 8)]) + middle[1:] + after
            case "cut":
                content = before
            case "splice":
                content = before + other[second % (len(other) + 1) :]
    return content
