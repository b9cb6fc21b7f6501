import json
from pathlib import Path
from typing import Any

import pytest

from nixery_snap.errors import SettingsError
from nixery_snap.imaging.request import ImageFormat
from nixery_snap.settings import Settings, load_settings, shown_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def load(
    file: Path | None = None, toml: str = "", flags: dict[str, Any] | None = None, **environment: str
) -> Settings:
    if file is not None:
        file.write_text(toml)
    return load_settings(
        file, flags or {}, {f"NIXERY_SNAP_{name}": text for name, text in environment.items()}
    )


def test_defaults() -> None:
    assert load() == Settings()


def test_each_layer_wins_over_the_one_below(file: Path) -> None:
    toml = 'listen = "file:1"\nstorage = "memory://file"\nworkers = 1\n[nix]\nstore = "/file"\neval_timeout = 1\n'
    flags = {"listen": "flag:3", "storage": None}
    loaded = load(file, toml, flags, LISTEN="env:2", STORAGE="memory://env", NIX__STORE="/env")
    assert loaded.listen == "flag:3"
    assert loaded.storage == "memory://env"
    assert loaded.nix.store == "/env"
    assert loaded.nix.eval_timeout == 1  # a table is merged, not replaced
    assert loaded.nix.build_timeout == Settings().nix.build_timeout
    assert load(file, toml).nix.store == "/file"


def test_flags_reach_into_tables() -> None:
    assert load(flags={"nix.store": "/flag"}, NIX__STORE="/env").nix.store == "/flag"


@pytest.mark.parametrize(
    ("variable", "text", "path", "value"),
    [
        ("FORMAT", "nix-snapshotter", "format", ImageFormat.SNAPSHOTTER),
        ("LOG_FORMAT", "console", "log_format", "console"),
        ("STORAGE", "5", "storage", "5"),
        ("STORAGE", "", "storage", ""),
        ("STORAGE", '"quoted"', "storage", '"quoted"'),
        ("WORKERS", "3", "workers", 3),
        ("ACCESS_LOG", "true", "access_log", True),
        ("SYSTEMS", '["aarch64-linux"]', "systems", ("aarch64-linux",)),
        ("BASE_PACKAGES", "[]", "base_packages", ()),
        ("META_PACKAGES", "{ debug = ['gdb'] }", "meta_packages", {"debug": ("gdb",)}),
        ("META_PACKAGES__DEBUG", "['gdb', 'strace']", "meta_packages", {"debug": ("gdb", "strace")}),
        ("NIX__BUILD_TIMEOUT", "1.5", "nix.build_timeout", 1.5),
        ("NIX__STORE", "/data/nix", "nix.store", "/data/nix"),
        ("NIX__OPTIONS", "{ cores = '2' }", "nix.options", {"cores": "2"}),
        ("LIMITS__MAX_LAYERS", "50", "limits.max_layers", 50),
    ],
)
def test_environment(variable: str, text: str, path: str, value: object) -> None:
    found: Any = load_settings(None, {}, {f"NIXERY_SNAP_{variable}": text})
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


def test_other_variables_are_not_ours() -> None:
    environment = {"PATH": "/bin", "NIXERY": "x", "XNIXERY_SNAP_LISTEN": "x", "nixery_snap_listen": "x"}
    assert load_settings(None, {}, environment) == Settings()


def test_the_variable_that_names_the_settings_file_is_no_setting(file: Path) -> None:
    assert load(file, 'listen = "file:1"', CONFIG=str(file)).listen == "file:1"


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ("nonsense = 1", "nonsense"),
        ("[nix]\nstoer = 'x'", "nix.stoer"),
        ("[limits]\nmax_layer = 1", "limits.max_layer"),
        ("[nonsense.deep]\nx = 1", "nonsense"),
        ("workers = 'many'", "workers"),
        ("workers = 0", "workers"),
        ("workers = 1.5", "workers"),
        ("listen = 8080", "listen"),
        ("listen = '8080'", "listen"),
        ("listen = 'host:99999'", "listen"),
        ("listen = ':80'", "listen"),
        ("format = 'docker'", "format"),
        ("systems = []", "systems"),
        ("systems = 'x86_64-linux'", "systems"),
        ("systems = ['riscv64-linux']", "systems.0"),
        ("systems = ['x86_64-linux', 5]", "systems.1"),
        ("base_packages = ['cacert', 'a..b']", "base_packages.1"),
        ("source = 'https://example.org'", "source"),
        ("source = 'path:'", "source"),
        ("[sources.a]\nhosts = ['a.example:5000']", "sources.a.hosts.0"),
        ("[sources.a]\nhosts = ['http://a.example']", "sources.a.hosts.0"),
        ("[sources.a.nixpkgs_config]\nsince = 2024-01-01", "sources.a.nixpkgs_config.since"),
        ("nix = 'daemon'", "nix"),
        ("[nix]\nstore = 5", "nix.store"),
        ("[nix]\nbuild_timeout = 0", "nix.build_timeout"),
        ("[nix]\nevaluators = -1", "nix.evaluators"),
        ("[nix.options]\ncores = 2", "nix.options.cores"),
        ("[limits]\nmax_layers = 1", "limits.max_layers"),
        ("[limits]\nmax_layers = 126", "limits.max_layers"),
        ("[limits]\nmemory_cache = -1", "limits.memory_cache"),
        ("[meta_packages]\ndebug = 'gdb'", "meta_packages.debug"),
        ("[meta_packages]\ndebug = ['g db']", "meta_packages.debug.0"),
        ("[meta_packages]\namd64 = ['gdb']", "meta_packages.amd64"),
        ("[meta_packages]\nclassic = ['gdb']", "meta_packages.classic"),
        ("[meta_packages]\n'a/b' = ['gdb']", "meta_packages.a/b"),
        ("[meta_packages]\nDebug = ['gdb']", "meta_packages.Debug"),
    ],
)
def test_refused_with_the_dotted_path(file: Path, toml: str, key: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load(file, toml)
    assert raised.value.key.removesuffix(".[key]") == key
    assert key in str(raised.value)
    assert raised.value.reason


@pytest.mark.parametrize("key", ["source", "sources.a.spec"])
def test_what_is_no_source_may_hold_a_password(file: Path, key: str) -> None:
    with pytest.raises(SettingsError, match=r"git\+URL") as raised:
        load(file, f"{key} = 'https://somebody:s3cret@git.example/packages'")
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        (
            "source = 'path:/x'\n[sources.default]\nsubmodules = true\npin_ttl = 5",
            "pin_ttl, submodules: .*path:",
        ),
        (
            "[sources.a]\nspec = 'git+ssh://h/x'\nprefix = 'a'\ntoken_file = '/t'",
            r"sources.a: token_file: .*git\+ssh:",
        ),
        ("[sources.a]\nspec = 'git+https://h/x'\nprefix = 'a'\nssh_key_file = '/t'", "ssh_key_file: "),
        ("[sources.a]\nspec = 'channel:x'\nprefix = 'a'\ncommits = 'any'", "commits: .*channel:"),
        ("[sources.a]\nspec = 'tarball:https://h/x'\nprefix = 'a'\nchannels = []", "channels: .*tarball:"),
        ("[sources.a]\nspec = 'flake:github:a/b'\nprefix = 'a'\noverlays = []", "overlays: .*flake:"),
        ("[sources.a]\nspec = 'flake:path:/x'\nprefix = 'a'\ngithub_url = 'https://h'", "github_url: "),
    ],
)
def test_options_that_would_do_nothing(file: Path, toml: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load(file, toml)


@pytest.mark.parametrize(
    "table",
    [
        "spec = 'git+https://h/x'\ncommits = 'any'\nlfs = true\ntoken_file = '/t'\noverlays = []\npin_stale = 0",
        "spec = 'git+file:///x'\nsubmodules = true\nfetch_timeout = 5",
        "spec = 'git+ssh://h/x'\nssh_key_file = '/k'",
        "spec = 'channel:x'\nchannels_url = 'https://h'\nnetrc_file = '/n'",
        "spec = 'flake:github:a/b'\ngithub_url = 'https://h'\nsubmodules = true",
        "spec = 'path:/x'\nrestricted = true\nallow_import_from_derivation = true\nnixpkgs_config = { a = true }",
    ],
)
def test_options_that_do_something(file: Path, table: str) -> None:
    load(file, f"[sources.a]\nprefix = 'a'\n{table}")


def test_shown_without_secrets(file: Path) -> None:
    toml = """
        source = "git+https://me:pa55@host/x?ref=main&private_token=pa55"
        popularity = "http://pa55@host/x"
        substituters = [{ url = "https://me:p@55/pa55@host" }, { url = "s3://bucket?region=here" }]
        [sources.a]
        spec = "git+ssh://git@host/x"
        prefix = "a"
        [nix]
        builders = "ssh://nix@host x /key"
        options = { access-tokens = "github.com=pa55", cores = "2" }
    """
    loaded = load(file, toml.replace("p@55/", "p@55%2F"))
    shown = shown_settings(loaded)
    assert "pa55" not in shown
    assert "p@55" not in shown
    for plain in (
        "git+https://***@host/x?ref=main&private_token=***",
        "git+ssh://git@host/x",
        "s3://bucket?region=here",
    ):
        assert plain in shown
    assert "ssh://nix@host x /key" in shown
    assert json.loads(shown)["nix"]["options"]["cores"] == "2"
    assert json.loads(shown_settings(Settings())) == json.loads(Settings().model_dump_json())


@pytest.mark.parametrize(
    "toml",
    [
        "popularity = 'ftp://me:pa55@host/x'",
        "substituters = [{ url = 'ftp://me:pa55@host/x' }]",
        "[binary_cache]\nupstreams = ['https://me:pa55@host/x']",
        "substituters = [{ url = 'https://me:pa55@host' }, { url = 'https://host' }]",
        "[tracing]\nendpoint = 'https://host/v1/traces?key=pa55'",
    ],
)
def test_refused_without_telling_secrets(file: Path, toml: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load(file, toml)
    assert "pa55" not in str(raised.value)


@pytest.mark.parametrize("other", ["https://me:pw@host/x", "https://host/x?y=z", "https://host/x/"])
def test_a_cache_stands_there_once(file: Path, other: str) -> None:
    with pytest.raises(SettingsError, match="twice"):
        load(file, f"substituters = [{{ url = 'https://host/x' }}, {{ url = '{other}' }}]")
    load(file, "substituters = [{ url = 's3://b?region=here' }, { url = 's3://b?region=there' }]")


def test_refused_from_the_environment() -> None:
    with pytest.raises(SettingsError) as raised:
        load(NIX__STOER="x")
    assert raised.value.key == "nix.stoer"
    assert raised.value.reason == "there is no such setting"
    with pytest.raises(SettingsError, match="not a table"):
        load(LISTEN__HOST="x", LISTEN="a:1")


def test_contradictions() -> None:
    with pytest.raises(SettingsError, match=r"workers.*memory://"):
        load(WORKERS="2", STORAGE="memory://")
    assert load(WORKERS="1", STORAGE="memory://").workers == 1
    assert load(WORKERS="2", STORAGE="file:///x").workers == 2


def test_files_that_are_none(tmp_path: Path) -> None:
    for content in (b"listen = ", b"\xff\xfe", b"a = 1\na = 2"):
        file = tmp_path / "bad.toml"
        file.write_bytes(content)
        with pytest.raises(SettingsError, match=r"bad\.toml"):
            load_settings(file, {}, {})
    with pytest.raises(SettingsError, match="absent"):
        load_settings(tmp_path / "absent.toml", {}, {})
    with pytest.raises(SettingsError):
        load_settings(tmp_path, {}, {})


def test_relative_directories_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(SOURCE="path:packages", CACHE_DIRECTORY="cache")
    assert loaded.source == f"path:{tmp_path}/packages"
    assert loaded.cache_path == tmp_path / "cache"


def test_shell_is_a_meta_package_beside_those_of_the_settings() -> None:
    found = load(META_PACKAGES="{ debug = ['gdb'] }").all_meta_packages
    assert [str(path) for path in found["debug"]] == ["gdb"]
    assert "bashInteractive" in map(str, found["shell"])
