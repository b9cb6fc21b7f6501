import io

import pytest

from nixery_snap.errors import InvalidFormat
from nixery_snap.sources import git_mirror


def test_refs_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_mirror, "_MAX_REFS", 2)
    lines = [f"{'0' * 40}\trefs/heads/{name}\n".encode() for name in "abc"]
    assert git_mirror._ref_names(io.BytesIO(b"".join(lines[:2]))) == ["refs/heads/a", "refs/heads/b"]
    with pytest.raises(InvalidFormat, match="more than 2"):
        git_mirror._ref_names(io.BytesIO(b"".join(lines)))
