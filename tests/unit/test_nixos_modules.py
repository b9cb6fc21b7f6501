"""The modules of NixOS and home-manager, evaluated with the stand-in for nixpkgs: what they render, what they refuse.

`python -m tests.unit.test_nixos_modules` writes the expected files and the tables of the manual anew.
"""

import json
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nixery_snap.cli import cli
from nixery_snap.errors import SettingsError

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data/nixos"
SCENARIOS = sorted(path.stem for path in DATA.glob("*.nix"))
KEY = "registry-1:dPTPs93V5Eai8xC4JnVkYD8tpVQAQ5jzZqKhPeXHbaE="
HEADINGS = {
    "registry": "`services.nixery-snap`",
    "binary-cache": "`services.nixery-snap-cache`",
    "node": "`services.nixery-snap-node`",
    "home-manager": "`services.nixery-snap-node` of home-manager",
}
MODULES = tuple(HEADINGS)

MANUAL = ROOT / "docs/nixos-options.md"
OPTIONS = "\n<!-- From here on by `make reference`. -->\n\n"

Json = dict[str, Any]

EVALUATE = """
let
  nixpkgs = import (/. + "@root@/tests/data/stub-nixpkgs");
  evaluate = kind: file: more:
    (nixpkgs.lib.evaluate kind "x86_64-linux" [ (/. + "@root@/nixos-modules/${file}.nix") more ]);
in
"""


def nix(expression: str) -> str:
    """What a Nix expression is as JSON. Raises subprocess.CalledProcessError with Nix's words as stderr."""
    if shutil.which("nix-instantiate") is None:
        absent = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        absent("not installed: nix-instantiate")
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "HOME": home, "NIX_CONFIG": "build-users-group =\nsubstituters ="}
        command = ["nix-instantiate", "--store", f"{home}/store", "--eval", "--strict", "--json", "-E"]
        command += [EVALUATE.replace("@root@", str(ROOT)) + expression]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


@cache
def rendered(module: str, configuration: str, part: str = "") -> Any:
    """`files` by name, `failures` of assertions and `warnings` of a module with a configuration; or one of these."""
    kind = "home" if module == "home-manager" else "nixos"
    return json.loads(nix(f'(evaluate "{kind}" "{module}" ({configuration})).config.rendered{part}'))


def scenario(name: str) -> Json:
    module = next(module for module in MODULES if module.startswith(name.split("-", maxsplit=1)[0]))
    answer: Json = rendered(module, (DATA / f"{name}.nix").read_text())
    return answer


def expected_text(name: str, text: str) -> str:
    """As it lies in the data directory: JSON for people."""
    return json.dumps(json.loads(text), indent=2) + "\n" if name.endswith(".json") else text


def refusal(module: str, configuration: str) -> str:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        rendered(module, configuration)
    return str(caught.value.stderr)


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_rendered(name: str) -> None:
    found = scenario(name)
    assert found["failures"] == []
    files = {file: expected_text(file, text) for file, text in found["files"].items()}
    assert files == {path.name: path.read_text() for path in (DATA / name).iterdir()}


def test_other_names_are_still_taken() -> None:
    assert scenario("registry-tls")["warnings"] == [
        "The option `services.nixery-snap.secretKeyFile' has been renamed to `services.nixery-snap.signingKeyFile'."
    ]
    assert len(scenario("node-kubelet")["warnings"]) == 1
    assert scenario("registry")["warnings"] == []


REGISTRY = "{ services.nixery-snap = { enable = true; %s }; }"
NODE = "{ services.nixery-snap-node = { enable = true; %s }; }"


@pytest.mark.parametrize(
    ("module", "configuration", "advice"),
    [
        ("registry", REGISTRY % "openFirewall = true;", 'set settings.listen to "0.0.0.0:8080", or nginx.enable'),
        ("registry", REGISTRY % "metrics.openFirewall = true;", 'such as "0.0.0.0:9090"'),
        (
            "registry",
            REGISTRY % 'metrics.openFirewall = true; settings.metrics.listen = "[::1]:9090";',
            'no other machine is served (settings.metrics.listen = "[::1]:9090")',
        ),
        ("registry", REGISTRY % "nginx.enable = true;", "set nginx.hostName"),
        ("registry", REGISTRY % 'settings.listen = "box:80";', "give its address, or set socketActivation = false"),
        ("registry", REGISTRY % 'signingKeyFile = "/nix/store/x-key";', "signingKeyFile"),
        ("registry", REGISTRY % 'credentials.token = "token";', 'credentials.token = "token" is no file outside'),
        ("registry", REGISTRY % 'sourceSecrets.lost.tokenFile = "/run/t";', "add settings.sources.lost"),
        (
            "registry",
            REGISTRY % 'signingKeyFile = "/k"; settings.binary_cache.signing_key_file = "/other";',
            "remove settings.binary_cache.signing_key_file",
        ),
        ("registry", REGISTRY.replace("{", "{ nix.enable = false;", 1) % "", "set nix.enable = true, or settings.nix"),
        (
            "binary-cache",
            '{ services.nixery-snap-cache = { enable = true; upstreams = [ { url = "https://a"; } ]; }; }',
            "https://a could be trusted: give its publicKeys",
        ),
        ("node", NODE % "imageService.enable = false;", "set one of registry and imageService.enable"),
        ("node", NODE % 'registry = "http://10.0.0.1:8080";', 'append "#KEY" to registry'),
        ("node", NODE % 'orchestrator = "kubelet";', "--image-service-endpoint=unix:///run/nixery-snap/image.sock"),
        ("node", NODE % 'orchestrator = "k3s";', "services.k3s, which is not enabled"),
        (
            "node",
            NODE.replace("{", "{ services.kubernetes.kubelet.enable = true;", 1)
            % 'orchestrator = "kubelet"; containerd.configVersion = 3;',
            "leave containerd.configVersion at 2",
        ),
        ("node", NODE % "snapshotter.package = null;", "set snapshotter.package"),
        ("node", NODE.replace("{", "{ nix.enable = false;", 1) % "", "set nix.enable = true"),
        (
            "home-manager",
            NODE % f'uid = 1; registry = "r.example#{KEY}"; snapshotterPackage = null;',
            "set snapshotterPackage",
        ),
    ],
)  # fmt: skip
def test_contradictions_say_what_to_do(module: str, configuration: str, advice: str) -> None:
    failures = rendered(module, configuration, ".failures")
    assert len(failures) == 1
    assert advice in failures[0]


@pytest.mark.parametrize(
    ("module", "configuration", "said"),
    [
        ("registry", REGISTRY % "prot = 1;", "The option `services.nixery-snap.prot' does not exist"),
        (
            "registry",
            REGISTRY % 'settings.listen = "8080";',
            "`services.nixery-snap.settings.listen' is not of type",
        ),
        (
            "registry",
            REGISTRY % 'settings.format = "oci";',
            "`services.nixery-snap.settings.format' is not of type",
        ),
        (
            "registry",
            REGISTRY % "settings.limits = null;",
            "`services.nixery-snap.settings.limits' is not of type",
        ),
        ("registry", REGISTRY % 'settingsFile = "/etc/x";', "is read-only"),
        (
            "registry",
            REGISTRY % "signingKeyFile = /etc/passwd;",
            "`services.nixery-snap.signingKeyFile' is not of type",
        ),
        (
            "node",
            NODE % 'registry = "https://r.example/path";',
            "`services.nixery-snap-node.registry' is not of type",
        ),
        ("node", NODE % "containerd.configVersion = 1;", "containerd.configVersion' is not of type"),
        (
            "home-manager",
            NODE % f'registry = "r.example#{KEY}";',
            "`services.nixery-snap-node.uid' was accessed",
        ),
    ],
)
def test_wrong_options_are_refused(module: str, configuration: str, said: str) -> None:
    assert said in refusal(module, configuration)


def test_nothing_happens_unless_enabled() -> None:
    for module in MODULES:
        found = rendered(module, "{ }")
        assert set(found["files"]) == {"others.json"}, module
        assert found["failures"] == found["warnings"] == []


DOCUMENTED = """
  let
    text = value: if value ? text then value.text else builtins.toJSON value;
    ours = option: builtins.match "services\\.nixery-snap.*" (nixpkgs.lib.showOption option.loc) != null;
  in
  map (option: {
    name = nixpkgs.lib.showOption option.loc;
    type = option.type.description;
    description = option.description or "";
    example = if option ? example then text option.example else "";
    default =
      if option ? defaultText then text option.defaultText else if option ? default then text option.default else "";
  }) (builtins.filter ours (nixpkgs.lib.documented (evaluate "@kind@" "@module@" { }).options))
"""


def documented(module: str) -> list[Json]:
    expression = DOCUMENTED.replace("@module@", module)
    options: list[Json] = json.loads(
        nix(expression.replace("@kind@", "home" if module == "home-manager" else "nixos"))
    )
    return options


def option_tables() -> str:
    """The manual's page, behind its introduction."""
    lines, seen = [], set()
    for module in MODULES:
        lines += [
            f"## {HEADINGS[module]}",
            "",
            "| option | type | default | example | meaning |",
            "|---|---|---|---|---|",
        ]
        for option in documented(module):
            if module == "home-manager" or option["name"] not in seen:
                cells = [
                    f"`{option[key]}`" if option[key] else ""
                    for key in ("name", "type", "default", "example")
                ]
                cells.append(" ".join(option["description"].split()))
                lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
                seen.add(option["name"])
        lines.append("")
    return "\n".join(lines)


def test_every_option_is_documented() -> None:
    for module in MODULES:
        options = documented(module)
        assert len(options) >= 9, module
        for option in options:
            assert option["description"], option["name"]
            assert option["example"], option["name"]
            needed = {"registry", "uid"} if module == "home-manager" else {"url"}
            assert option["default"] or option["name"].rpartition(".")[2] in needed, option["name"]


def test_the_manual_lists_every_option() -> None:
    assert MANUAL.read_text().partition(OPTIONS)[2] == option_tables()


def settings_of(name: str) -> Path:
    """The registry's, or the image service's."""
    return next((DATA / name).glob("nixery-snap_*.toml"))


def checked(file: Path) -> str:
    """The error of `nixery-snap check-config`, nothing when there is none."""
    done = CliRunner().invoke(cli, ["check-config", "--config", str(file)])
    if done.exception is None:
        return ""
    assert isinstance(done.exception, SettingsError)
    return str(done.exception)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_program_takes_the_settings(name: str) -> None:
    assert checked(settings_of(name)) == ""


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ('sources.internal.prefix = "x";', "sources.internal"),
        ("limits.max_layers = 1;", "limits.max_layers"),
        ('nix.strore = "daemon";', "nix.strore"),
        ('source = "elsewhere";', "source"),
        (
            'binary_cache.client_substituters = [ "https://unknown.example" ];',
            "binary_cache.client_substituters",
        ),
        (
            'substituters = [ { url = "https://a.example"; public_keys = [ "bad" ]; } ];',
            "substituters.0.public_keys.0",
        ),
    ],
)
def test_the_program_refuses_broken_settings(settings: str, option: str, tmp_path: Path) -> None:
    found = rendered("registry", REGISTRY % f"settings = {{ {settings} }};")
    assert found["failures"] == []
    file = tmp_path / "settings.toml"
    file.write_text(found["files"]["nixery-snap_settings.toml"])
    assert option in checked(file)


def test_a_system_with_broken_settings_is_not_built(tmp_path: Path) -> None:
    """The derivation's own script, with the program of this checkout."""
    for settings, fits in (("workers = 2;", True), ("workers = 0;", False)):
        question = f"""
          let file = (evaluate "nixos" "registry" {REGISTRY % f"settings = {{ {settings} }};"})
            .config.services.nixery-snap.settingsFile;
          in {{ inherit (file) script; inherit (file.environment.file) text;
            inputs = map (input: input.name) file.environment.nativeBuildInputs; }}
        """
        built = json.loads(nix(question))
        assert built["inputs"] == ["nixery-snap"]
        file, out = tmp_path / "file", tmp_path / "out"
        file.write_text(built["text"])
        program = tmp_path / "nixery-snap"
        program.write_text(f'#!/bin/sh\nexec {ROOT}/.venv/bin/python -m nixery_snap "$@"\n')
        program.chmod(0o755)
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "file": str(file), "out": str(out)}
        done = subprocess.run(
            ["bash", "-e", "-c", built["script"]],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) is fits, done.stderr
        assert out.exists() is fits
        assert fits or "workers" in done.stderr
        out.unlink(missing_ok=True)


def write_expected() -> None:
    for name in SCENARIOS:
        shutil.rmtree(DATA / name, ignore_errors=True)
        (DATA / name).mkdir()
        for file, text in scenario(name)["files"].items():
            (DATA / name / file).write_text(expected_text(file, text))
    MANUAL.write_text(MANUAL.read_text().partition(OPTIONS)[0] + OPTIONS + option_tables())


if __name__ == "__main__":
    write_expected()
