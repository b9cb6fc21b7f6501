import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.sources.checkouts import Checkouts, leaves


def make(checkouts: Checkouts, revision: str) -> Path:
    with checkouts.staging() as staged:
        (staged / "source").mkdir()
        (staged / "source/file").write_text(revision)
        return checkouts.keep(staged, revision)


def test_one_is_there_or_not(tmp_path: Path) -> None:
    checkouts = Checkouts(tmp_path / "checkouts")
    assert checkouts.find("a") is None
    found = make(checkouts, "a")
    assert checkouts.find("a") == found
    assert (found / "file").read_text() == "a"
    with checkouts.staging() as staged:
        (staged / "source").mkdir()  # and it is not kept
    assert [path.name for path in (tmp_path / "checkouts").iterdir()] == ["a"]


def test_the_first_stays(tmp_path: Path) -> None:
    checkouts = Checkouts(tmp_path)
    first = make(checkouts, "a")
    (first / "mark").touch()
    assert make(checkouts, "a") == first
    assert (first / "mark").exists()
    (first / "mark").unlink()
    (first / "file").unlink()
    first.rmdir()
    assert checkouts.find("a") is None
    assert (make(checkouts, "a") / "file").exists()


def test_what_is_used_stays(tmp_path: Path) -> None:
    checkouts = Checkouts(tmp_path, kept=2)
    for name in "abcd":
        make(checkouts, name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"], "used within the hour"
    for path in tmp_path.iterdir():
        os.utime(path, (0, time.time() - 5000))
    assert checkouts.find("b")
    make(checkouts, "e")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "e"]
    for number in range(20):
        make(checkouts, f"{number}")
    assert len(list(tmp_path.iterdir())) == 8, "four times as many, however new they are"


def test_what_was_left_behind_goes(tmp_path: Path) -> None:
    old, young = tmp_path / ".new-old", tmp_path / ".new-young"
    (old / "checkout/source").mkdir(parents=True)
    young.mkdir()
    os.utime(old, (0, time.time() - 100_000))
    make(Checkouts(tmp_path), "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new-young", "a"]


@pytest.mark.parametrize(
    ("link", "target", "expected"),
    [
        ("a", "b", False),
        ("a", "./b/c", False),
        ("a", "..", True),
        ("a/b", "..", False),
        ("a/b", "../..", True),
        ("a/b/c", "../../d", False),
        ("a", "b/../c", True),
        ("a", "/nix/store/x/y", False),
        ("a", "/nix/store", True),
        ("a", "/nix/store/../y", True),
        ("a", "/nix/storex", True),
        ("a", "/etc", True),
        ("a", "//nix/store/x", True),
    ],
)
def test_leaves(link: str, target: str, expected: bool) -> None:
    assert leaves(link, target) is expected


parts = st.sampled_from(["a", "b", "c", "..", "."])
paths = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(paths, st.lists(parts, min_size=1, max_size=6).map("/".join), max_size=8))
def test_links_that_do_not_leave_stay_inside_together(links: dict[str, str]) -> None:
    """However they are chained: the operating system is the judge."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory).resolve() / "up/root"
        root.mkdir(parents=True)
        made = []
        for link, target in sorted(links.items(), key=lambda item: -item[0].count("/")):
            path = root / link
            if not leaves(link, target) and not os.path.lexists(path):
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                except (FileExistsError, NotADirectoryError):
                    continue
                if path.parent.resolve().is_relative_to(root) and path.parent.resolve() == path.parent:
                    path.symlink_to(target)
                    made.append(path)
        for path in made:
            assert os.path.realpath(path).startswith(f"{root}/") or os.path.realpath(path) == str(root)
