import stat
import threading
from pathlib import Path

import pytest

from nixery_snap.errors import SettingsError
from nixery_snap.nix.signing import SecretKey
from nixery_snap.nix_stores.signing_key import load_signing_key

KEY = SecretKey.generate("example.org-1")


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "state" / "secrets" / "key"
    made = load_signing_key(path, create=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_signing_key(path, create=True).text == made.text == path.read_text().strip()
    assert [file.name for file in path.parent.iterdir()] == ["key"], "nothing is left behind"


def test_an_absent_key_that_was_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_signing_key(tmp_path / "key", create=False)
    assert list(tmp_path.iterdir()) == []


def test_many_processes_agree(tmp_path: Path) -> None:
    found: list[str] = []
    begin = threading.Barrier(8)

    def load() -> None:
        begin.wait()
        found.append(load_signing_key(tmp_path / "key", create=True).text)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize("ending", ["", "\n", " \n\n"])
def test_a_key_of_nix(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / "key", f"{KEY.text}{ending}".encode(), 0o400)
    for create in (False, True):
        loaded = load_signing_key(path, create=create)
        assert loaded.text == KEY.text
        assert loaded.public_key == KEY.public_key


def test_without_a_directory_it_is_for_this_process(tmp_path: Path) -> None:
    one, two = (load_signing_key(None, create=True) for _ in range(2))
    assert one.text != two.text


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o601, 0o610, 0o777])
def test_what_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "key", KEY.text.encode(), mode)
    with pytest.raises(SettingsError, match="chmod 600") as caught:
        load_signing_key(path, create=True)
    assert KEY.text.partition(":")[2] not in f"{caught.value!r} {caught.value}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"example.org-1",
        KEY.text.partition(":")[2].encode(),
        str(KEY.public_key).encode(),
        KEY.text[:-4].encode(),
        KEY.text[:-12].encode() + KEY.text[-13:-1].encode(),
        f"{KEY.text}\n{KEY.text}".encode(),
        KEY.text.encode("utf-16"),
        b"\xff" * 100,
        b"\0" * 5000,
        KEY.text.encode() + b" " * 4100 + b"x" * 100_000,
        b"a:" + b"A" * 1_000_000,
    ],
    ids=range(13),  # the key is another in each process
)
def test_what_is_no_key_is_not_told(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "key", content)
    if content.startswith(KEY.text.encode() + b" "):
        assert load_signing_key(path, create=True).text == KEY.text, "the rest is never read"
        return
    with pytest.raises(SettingsError, match="holds no key") as caught:
        load_signing_key(path, create=True)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    shown = f"{caught.value!r} {caught.value}"
    secret = KEY.text.partition(":")[2]
    assert not any(secret[start : start + 12] in shown for start in range(len(secret) - 12))
    assert path.read_bytes() == content, "what is there is never replaced"


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Is a directory"):
        load_signing_key(tmp_path, create=True)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be used"):
        load_signing_key(tmp_path / "file" / "key", create=True)
