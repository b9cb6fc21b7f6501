"""What the modules render, read by the programs that it is for: systemd, containerd, a shell."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nixery_snap.reports import front_page, node_config
from nixery_snap.settings import Settings
from tests.integration.need import need, need_file
from tests.unit.test_nixos_modules import DATA, KEY, ROOT, SCENARIOS, scenario
from tests.unit.test_reports import files

UNITS = sorted(
    path
    for path in [
        *DATA.glob("*/*.service"),
        *DATA.glob("*/*.socket"),
        *(ROOT / "deploy/systemd").glob("*.*et"),
    ]
    if path.name != "k3s.service"  # an addition to a unit of NixOS
)
OURS = [
    path
    for path in [*UNITS, *(ROOT / "deploy/systemd").glob("*.service")]
    if re.match(r"nixery-snap(-image-service|-node-key)?\.service", path.name)
]
# Of ten; those of a private store must let builds make namespaces (nixos-modules/hardening.nix).
EXPOSURE = {"registry-private-store": 4.0}
CONTAINERD = {"node-kubelet": ("1.7", 2), "node-k3s": ("2", 3)}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.fixture(autouse=True)
def tools() -> None:
    need("systemd-analyze", "bash", "sed")


@pytest.mark.parametrize("name", [*SCENARIOS, "systemd"])
def test_systemd_takes_the_units(name: str, tmp_path: Path) -> None:
    directory = ROOT / "deploy/systemd" if name == "systemd" else DATA / name
    units = [path for path in sorted(directory.iterdir()) if path.suffix in {".service", ".socket"}]
    for unit in units:
        # The programs of units must be there to be verified.
        text = re.sub(
            r"(?m)^(Exec\w+=)/(?:nix/store|opt)/\S+", rf"\1{shutil.which('true')}", unit.read_text()
        )
        if "Exec" not in text and unit.suffix == ".service":
            text = text.replace("[Service]\n", "[Service]\nExecStart=/bin/true\n")
        (tmp_path / unit.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", *("--user",) * (name == "home")]
    if name == "home":
        (tmp_path / "containerd.service").write_text("[Service]\nExecStart=/bin/true\n")
    env = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:", "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        [*command, *(str(tmp_path / unit.name) for unit in units)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "nix" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("unit", [unit for unit in OURS if unit.parent.name != "home"], ids=name_of)
def test_units_are_exposed_little(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found
    assert float(found[1]) < EXPOSURE.get(unit.parent.name, 2.0), done.stdout


@pytest.mark.parametrize("name", [*CONTAINERD, "printed-1.7", "printed-2"])
def test_containerd_takes_its_configuration(name: str, tmp_path: Path) -> None:
    release, version = CONTAINERD.get(name) or {"printed-1.7": ("1.7", 2), "printed-2": ("2", 3)}[name]
    config = DATA / name / "containerd.toml"
    if name.startswith("printed"):  # by `nixery-snap node-config`
        config = tmp_path / "containerd.toml"
        config.write_text(
            files(node_config(Settings(), KEY))[f"/etc/containerd/config.toml, containerd {release}"]
        )
    program = need_file(ROOT / f".test-tools/containerd-{release}/usr/bin/containerd")
    command = [str(program), "--config", str(config), "config", "dump"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "nknown" not in done.stderr  # keys that it does not know are logged
    dump = done.stdout.replace("'", '"')
    for line in (
        f"version = {version}",
        'snapshotter = "nix"',
        "disable_snapshot_annotations = false",
        'config_path = "/etc/containerd/certs.d"',
        'platform = "linux/amd64"',
        'address = "/run/nix-snapshotter/nix-snapshotter.sock"',
    ):
        assert re.search(rf"(?m)^\s*{re.escape(line)}$", dump) or (version == 2 and "platform" in line), line
    assert re.search(r'unpack_config\]\]\n(?:.+\n)*?\s*snapshotter = "nix"', dump)


PAGE = front_page(Settings(), KEY, "http", "registry.example")


@pytest.mark.parametrize(
    ("page", "learned"),
    [
        (PAGE, f"extra-trusted-public-keys = {KEY}\n"),
        (PAGE + PAGE, None),
        (PAGE.replace(KEY, f"{KEY} other-1:{'A' * 43}="), None),
        (PAGE.replace("extra-trusted-public-keys", "sandbox"), None),
        ("", None),
    ],
    ids=["the front page", "two keys", "a list", "another setting", "nothing"],
)
def test_the_key_is_learned_from_the_front_page(page: str, learned: str | None, tmp_path: Path) -> None:
    script = scenario("node-kubelet")["files"]["nixery-snap-node-key-start"]
    target = tmp_path / "nix.conf"
    (tmp_path / "page").write_text(page)
    for name, text in (
        ("curl", f'[ "${{@: -1}}" = https://registry.example:8443/ ] && cat {tmp_path}/page'),
        ("systemctl", f'echo "$@" > {tmp_path}/systemctl'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    text = script.replace("/run/nixery-snap-node/nix.conf", str(target))
    done = subprocess.run(["bash", "-e", "-c", text], env=env, capture_output=True, check=False)
    if learned is None:
        assert done.returncode != 0
        assert not target.exists()
    else:
        assert done.returncode == 0, done.stderr
        assert target.read_text() == learned
        assert (tmp_path / "systemctl").read_text() == "try-restart nix-daemon.service\n"


def plain(unit: str) -> list[str]:
    """Without what Nix alone knows: paths of the store, triggers."""
    lines = [line for line in unit.splitlines() if not re.match("X-|Environment=|#|$", line)]
    return [re.sub(r"/nix/store/0+-(nixery-snap|coreutils)/bin/", "", line) for line in lines]


@pytest.mark.parametrize(
    ("unit", "name"),
    [
        ("nixery-snap.service", "registry"),
        ("nixery-snap.socket", "registry"),
        ("nixery-snap-image-service.service", "node-alone"),
    ],
)
def test_other_systems_have_the_same_units(unit: str, name: str) -> None:
    given = (
        (ROOT / "deploy/systemd" / unit)
        .read_text()
        .replace("/opt/nixery-snap/bin/", "")
        .replace("/bin/kill", "kill")
    )
    assert sorted(plain(given)) == sorted(plain((DATA / name / unit).read_text()))
