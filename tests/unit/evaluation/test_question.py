import json
import re
from pathlib import Path

import pytest

from nixery_snap.errors import EvaluationFailed
from nixery_snap.evaluation import question
from nixery_snap.evaluation.question import Question
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix_stores.command import NixCommand, NixStore
from nixery_snap.ports import PackageSet

EXPRESSIONS = sorted(Path(question.__file__).parent.glob("*.nix"))


@pytest.fixture
def nix(tmp_path: Path) -> NixCommand:
    return NixCommand(NixStore.parse(str(tmp_path / "store")), tmp_path, {})


def settings(asked: Question) -> dict[str, str]:
    words = list(asked.options)
    return {words[at + 1]: words[at + 2] for at, word in enumerate(words) if word == "--option"}


def allowed(asked: Question) -> list[str]:
    words = list(asked.options)
    return [words[at + 1].partition("=")[2] for at, word in enumerate(words) if word == "-I"]


async def test_what_a_restricted_set_may_read(nix: NixCommand, tmp_path: Path) -> None:
    real, link, overlay = tmp_path / "real", tmp_path / "link", tmp_path / "overlay.nix"
    real.mkdir()
    link.symlink_to(real)
    asked = await Question.about(PackageSet(link, overlays=(overlay,), restricted=True), "s", nix)
    assert settings(asked)["restrict-eval"] == "true"
    assert settings(asked)["allowed-uris"] == ""
    assert settings(asked)["allow-import-from-derivation"] == "false"
    assert allowed(asked) == [str(EXPRESSIONS[0].parent), str(real), str(overlay)]
    assert json.loads(asked.data)["directory"] == str(real)


async def test_features_that_a_restricted_set_may_use(nix: NixCommand, tmp_path: Path) -> None:
    features = "ca-derivations flakes nix-command"
    nix = NixCommand(nix.store, tmp_path, {"extra-experimental-features": features})
    asked = await Question.about(PackageSet(tmp_path, restricted=True), "s", nix)
    assert settings(asked)["experimental-features"] == "ca-derivations nix-command"
    asked = await Question.about(PackageSet(tmp_path), "s", nix)
    assert "experimental-features" not in settings(asked)


async def test_a_trusted_set(nix: NixCommand, tmp_path: Path) -> None:
    asked = await Question.about(PackageSet(tmp_path, allows_builds=True, config={"a": 1}), "s", nix)
    assert "restrict-eval" not in settings(asked)
    assert settings(asked)["allow-import-from-derivation"] == "true"
    assert json.loads(asked.data)["config"] == {"a": 1}


@pytest.mark.parametrize("file", [path.name for path in EXPRESSIONS])
def test_expressions_in_one_line(file: str) -> None:
    """As a pure evaluation is given them."""
    text = Question((), "{}", is_pure=True).expression(file)
    assert "import ./" not in text
    # A comment would hide what follows; of other control characters, a tab would ask for completions.
    outside_strings = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    assert "#" not in outside_strings
    assert text.isprintable()


async def test_a_flake_that_cannot_be_read(nix: NixCommand, tmp_path: Path) -> None:
    with pytest.raises(EvaluationFailed) as raised:
        await Question.about(PackageSet(tmp_path / "nowhere", is_flake=True), "s", nix)
    assert str(tmp_path) not in str(raised.value)


def test_requests_are_data() -> None:
    names = [AttributePath(("a b", "é")), AttributePath(("c",))]
    assert json.loads(question.request(names, explain=True)) == {
        "names": [["a b", "é"], ["c"]],
        "explain": True,
    }
    assert question.request(names, explain=True).isascii()


async def test_a_flake_that_takes_too_long_to_read(
    nix: NixCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(question, "_HASH_SECONDS", 0.0001)
    with pytest.raises(EvaluationFailed, match="hashing its files took longer"):
        await Question.about(PackageSet(tmp_path, is_flake=True), "s", nix)
