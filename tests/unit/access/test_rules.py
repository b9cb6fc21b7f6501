from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.access.identity import ANONYMOUS, Identity
from nixery_snap.access.rules import Action, PackagePatterns, Patterns, Rule, Rules
from nixery_snap.nix.attribute_path import AttributePath

ALICE = Identity("alice")


def paths(*texts: str) -> list[AttributePath]:
    return [AttributePath.parse(text) for text in texts]


def allow(*users: str, effect: bool = True, actions: str = "pull fetch search", **what: str) -> Rule:
    patterns = {name: Patterns(text.split()) for name, text in what.items() if name != "packages"}
    if "packages" in what:
        patterns["packages"] = PackagePatterns(what["packages"].split())
    return Rule(effect, Patterns(users), actions=frozenset(map(Action, actions.split())), **patterns)  # type: ignore[arg-type]


def deny(*users: str, **what: str) -> Rule:
    return allow(*users, effect=False, **what)


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("*", "", True),
        ("*", "a\nb", True),
        ("al*", "alice", True),
        ("al*", "bal", False),
        ("a.c", "abc", False),
        ("a*c*e", "abcde", True),
        ("[ab]", "a", False),
    ],
)
def test_patterns(pattern: str, text: str, matches: bool) -> None:
    assert (text in Patterns([pattern])) is matches
    assert text not in Patterns([])


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("git", "git", True),
        ("git", "Git", True),
        ("Git", "git", True),
        ("7zz", "_7zz", True),
        ("git", "git.man", False),
        ("*", "git", True),
        ("*", "python3Packages.requests", False),
        ("python3packages.*", "python3Packages.requests", True),
        ("python3Packages.*", "python3Packages.a.b", False),
        ("**", "a.b.c", True),
        ("**.requests", "pkgs.python3Packages.requests", True),
        ("**.requests", "requests", False),
        ("git*", "gitea", True),
        ("git*", "git.man", False),
    ],
)
def test_package_patterns(pattern: str, path: str, matches: bool) -> None:
    assert PackagePatterns([pattern]).matches(AttributePath.parse(path)) is matches


@pytest.mark.parametrize(
    ("denied", "path", "matches"),
    [
        ("teamviewer", "teamviewer.out", True),
        ("teamviewer", "TeamViewer", True),
        ("python2Packages", "python2packages.requests.dist", True),
        ("teamviewer", "pkgs.teamviewer", False),
        ("**.teamviewer", "pkgs.pkgs.teamviewer.out", True),
        ("teamviewer", "teamviewer2", False),
    ],
)
def test_what_is_denied_has_all_that_is_in_it(denied: str, path: str, matches: bool) -> None:
    rules = Rules([allow("*"), deny("*", packages=denied)])
    assert rules.image(ALICE, "default", paths(path), "latest") is not matches


def test_who_is_meant() -> None:
    assert not allow("*").is_about(ANONYMOUS)
    assert allow("anonymous").is_about(ANONYMOUS)
    assert not allow("anonymous").is_about(ALICE)
    assert allow("anon*", "al*").is_about(ALICE)
    assert not allow("anon*", "al*").is_about(ANONYMOUS)
    corp = Rule(True, Patterns(["corp:*"]), {"groups": ("dev", "ops"), "verified": ("yes",)})
    good = {"groups": ["x", "ops"], "verified": "yes"}
    assert corp.is_about(Identity("corp:bob", good))
    for claims in (
        {},
        {"groups": ["ops"]},
        {**good, "groups": []},
        {**good, "groups": [["ops"]]},
        {**good, "verified": True},
    ):
        assert not corp.is_about(Identity("corp:bob", claims))
    assert not corp.is_about(Identity("other:bob", good))
    assert not corp.is_about(Identity("", good))


def test_every_package_must_be_allowed() -> None:
    rules = Rules([allow("*", packages="git"), allow("*", packages="curl", tags="v1")])
    assert rules.image(ALICE, "default", paths("git"), "latest")
    assert rules.image(ALICE, "default", paths("git", "curl"), "v1")
    assert not rules.image(ALICE, "default", paths("git", "curl"), "v2")
    assert not rules.image(ALICE, "default", paths("git", "hello"), "v1")
    assert not rules.image(ANONYMOUS, "default", paths("git"), "latest")
    assert not Rules([]).image(ALICE, "default", paths("git"), "latest")


def test_a_tag_that_cannot_be_known() -> None:
    rules = Rules([allow("*", tags="v*"), deny("*", tags="v2"), deny("bob", packages="git")])
    assert rules.image(ALICE, "default", paths("git"), None)
    assert not rules.image(ALICE, "default", paths("git"), "v2")
    assert not rules.image(ALICE, "default", paths("git"), "w")
    assert not rules.image(Identity("bob"), "default", paths("git"), None)


def test_actions_and_sources() -> None:
    rules = Rules([allow("*", actions="pull", sources="internal"), allow("*", actions="fetch", sources="o*")])
    assert rules.image(ALICE, "internal", paths("git"), None)
    assert not rules.fetch(ALICE, "internal")
    assert rules.fetch(ALICE, "other")
    assert not rules.image(ALICE, "other", paths("git"), None)
    assert not rules.search(ALICE, "internal", "latest")
    assert rules.any(ALICE)
    assert not rules.any(ANONYMOUS)


def test_who_may_search_may_have_everything() -> None:
    assert Rules([allow("*")]).search(ALICE, "default", "latest")
    assert not Rules([allow("*", packages="*")]).search(ALICE, "default", "latest")
    assert not Rules([allow("*"), deny("*", packages="secret")]).search(ALICE, "default", "latest")
    assert Rules([allow("*"), deny("*", packages="secret", tags="x")]).search(ALICE, "default", "latest")
    assert not Rules([deny("*")]).search(ALICE, "default", "latest")


def test_store_paths_have_neither_package_nor_tag() -> None:
    assert Rules([allow("*", packages="hello", tags="v1")]).fetch(ALICE, "default")
    assert Rules([allow("*"), deny("*", packages="secret")]).fetch(ALICE, "default")
    assert not Rules([allow("*"), deny("alice", sources="default")]).fetch(ALICE, "default")


def test_the_claims_that_count() -> None:
    one = Rule(True, Patterns("*"), {"groups": ("a",)})
    assert Rules([one, allow("*"), Rule(False, Patterns("*"), {"team": ("b",)})]).claims == {"groups", "team"}


@given(
    st.lists(st.sampled_from(["a", "b.c", "pkgs.a", "A", "_7z", "b"]), min_size=1),
    st.sampled_from(["a", "b", "**", "*"]),
)
def test_denied_is_never_allowed(names: list[str], denied: str) -> None:
    rules = Rules([allow("*", "anonymous"), deny("*", "anonymous", packages=denied)])
    wanted = paths(*names)
    expected = not any(
        denied in {"**", "*"} or name.lower() == denied or name.lower().startswith(f"{denied}.")
        for name in names
    )
    for who in (ALICE, ANONYMOUS):
        assert rules.image(who, "default", wanted, "latest") is expected
