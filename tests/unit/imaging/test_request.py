import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat, InvalidInput, InvalidName, UnsupportedSystem
from nixery_snap.imaging.request import DEFAULT_SOURCE, ImageFormat, NameGrammar, SourceNames, cache_key
from nixery_snap.nix.attribute_path import AttributePath


def paths(*texts: str) -> tuple[AttributePath, ...]:
    return tuple(map(AttributePath.parse, texts))


META = {"shell": paths("bashInteractive", "coreutils"), "debug": paths("gdb", "coreutils")}
BOTH = ("x86_64-linux", "aarch64-linux")
GRAMMAR = NameGrammar(ImageFormat.CLASSIC, BOTH, META)

names = st.lists(st.text("az09", min_size=1, max_size=3), min_size=1, max_size=3).map(".".join)
name_lists = st.lists(names.filter(lambda name: name not in META), min_size=1, max_size=6)
metas = st.lists(st.sampled_from(["shell", "debug", "arm64"]), max_size=3)


@given(st.data(), name_lists, metas)
def test_order_and_repeats_do_not_matter(data: st.DataObject, wanted: list[str], front: list[str]) -> None:
    normal = GRAMMAR.parse("/".join([*front, *wanted]))
    again = data.draw(st.permutations([*wanted, data.draw(st.sampled_from(wanted))]))
    front_again = data.draw(st.permutations([*front, *front[:1]]))
    assert GRAMMAR.parse("/".join([*front_again, *again])) == normal
    expected = {AttributePath.parse(name) for name in wanted}
    expected |= {path for meta in front if meta in META for path in META[meta]}
    assert normal.names == tuple(sorted(expected))
    assert normal.system == BOTH["arm64" in front]
    assert normal.shell == ("shell" in front)


@given(names, st.sampled_from(list(ImageFormat)), st.sampled_from(list(ImageFormat)))
def test_format(name: str, default: ImageFormat, wanted: ImageFormat) -> None:
    grammar = NameGrammar(default, BOTH, META)
    assert grammar.parse(f"{wanted}/{name}").format is wanted
    assert grammar.parse(f"{wanted}/{name}") == NameGrammar(wanted, BOTH, META).parse(name)


@given(st.text() | st.text("abz019._-/"), st.text() | st.just("latest"))
def test_any_text_is_a_request_or_invalid(name: str, tag: str) -> None:
    try:
        request = GRAMMAR.parse(name, tag)
    except InvalidInput:
        return
    assert request.names
    assert all(part for path in request.names for part in path.parts)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("shell/hello/debug", "debug is a meta-package: put it in front"),
        ("hello/arm64", "arm64 is a meta-package"),
        ("amd64/arm64/hello", "both amd64 and arm64"),
        ("arm64", "names no package"),
        ("classic", "names no package"),
        ("nix-snapshotter/amd64", "names no package"),
        ("Hello", "lower-case"),
        ("", "lower-case"),
    ],
)
def test_invalid_names(name: str, reason: str) -> None:
    with pytest.raises(InvalidName, match=reason):
        GRAMMAR.parse(name)


def test_meta_package_alone() -> None:
    assert GRAMMAR.parse("shell").names == META["shell"]


def test_repeated_architecture() -> None:
    assert GRAMMAR.parse("arm64/arm64/hello").architecture == "arm64"


def test_default_system_is_the_first() -> None:
    assert NameGrammar(ImageFormat.CLASSIC, BOTH[::-1], META).parse("hello").architecture == "arm64"


def test_unsupported_system() -> None:
    grammar = NameGrammar(ImageFormat.CLASSIC, BOTH[:1], META)
    assert grammar.parse("amd64/hello").system == BOTH[0]
    with pytest.raises(UnsupportedSystem) as raised:
        grammar.parse("arm64/hello")
    assert raised.value.systems == BOTH[:1]


@pytest.mark.parametrize("tag", ["", "-x", "a/b", "x" * 129])
def test_invalid_tags(tag: str) -> None:
    with pytest.raises(InvalidFormat, match="tag"):
        GRAMMAR.parse("hello", tag)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.lists(st.text("ab")))
def test_cache_keys_of_different_inputs_differ(one: list[str], other: list[str]) -> None:
    assert (cache_key(*one) == cache_key(*other)) == (one == other)
    assert cache_key(one, other) != cache_key([*one, *other])


SOURCES = SourceNames({"internal": "company"}, {"internal.example": "company", "[::1]": "other"})


@pytest.mark.parametrize(
    ("name", "host", "source"),
    [
        ("hello", "", DEFAULT_SOURCE),
        ("hello", "registry.example:5000", DEFAULT_SOURCE),
        ("internal/hello", "", "company"),
        ("nix-snapshotter/internal/arm64/hello", "", "company"),
        ("hello", "Internal.Example:5000", "company"),
        ("hello", "internal.example", "company"),
        ("hello", "[::1]:80", "other"),
        ("internal/hello", "[::1]", "company"),
    ],
)
def test_sources(name: str, host: str, source: str) -> None:
    request = NameGrammar(ImageFormat.CLASSIC, BOTH, META, SOURCES).parse(name, host=host)
    assert request.source == source
    assert request.names == paths("hello")


def test_a_source_is_not_a_package() -> None:
    grammar = NameGrammar(ImageFormat.CLASSIC, BOTH, META, SOURCES)
    with pytest.raises(InvalidName, match="names no package"):
        grammar.parse("internal")
    assert grammar.parse("hello/internal").names == paths("hello", "internal")


def test_too_many_packages() -> None:
    grammar = NameGrammar(ImageFormat.CLASSIC, BOTH, META, max_packages=3)
    assert grammar.parse("a/b/c/c").names == paths("a", "b", "c")
    assert len(grammar.parse("shell/debug/a/b/c").names) == 6
    for name in ("a/b/c/d", "shell/a/b/c/d"):
        with pytest.raises(InvalidName, match="names 4 packages, at most 3"):
            grammar.parse(name)


@pytest.mark.parametrize(("name", "any_system"), [("hello", True), ("amd64/hello", False)])
def test_whether_an_architecture_is_named(name: str, any_system: bool) -> None:
    assert GRAMMAR.parse(name).any_system == any_system


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("hello", "hello"),
        ("classic/b/a/b", "classic/a/b"),
        ("nix-snapshotter/internal/shell/arm64/shell/z/a", "nix-snapshotter/internal/arm64/shell/a/z"),
    ],
)
def test_normal_form(name: str, normal: str) -> None:
    grammar = NameGrammar(ImageFormat.CLASSIC, BOTH, META, SOURCES)
    request = grammar.parse(name)
    assert request.name == normal
    assert grammar.parse(normal) == request
