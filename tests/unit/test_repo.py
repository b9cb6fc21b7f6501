"""The repository itself: locks without addresses, nothing of one machine, scripts that parse."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
# One requirement of a lock file: name, version, marker, hashes.
LOCKED = re.compile(r"([\w.-]+)==([\w.+!]+)( ; [^\\\n]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n")

# Written so that they do not match themselves.
REGISTRY_HOST = re.compile(
    r"\b(?:pypi|python[h]osted|debian|[n]pmjs|crates|golang|apache\.maven)\.(?:org|net|com|io)\b"
)
OF_ONE_MACHINE = re.compile(rf"{re.escape(str(ROOT))}\b|/roo[t]/[.]|/home/[a-z]+/\w")


def locked(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    return {canonicalize_name(m[1]): m[2] for m in LOCKED.finditer(text)}


def group(name: str) -> list[Requirement]:
    """A dependency group with those that it includes."""
    found = []
    for item in PYPROJECT["dependency-groups"][name]:
        found += [Requirement(item)] if isinstance(item, str) else group(item["include-group"])
    return found


RUNTIME = [Requirement(d) for d in PYPROJECT["project"]["dependencies"]]
BUILD = [Requirement(d) for d in PYPROJECT["build-system"]["requires"]]


def our_files() -> list[Path]:
    """What is tracked or would be with the next `git add`."""
    ls_files = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", *ls_files], cwd=ROOT, capture_output=True, check=False
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def our_scripts() -> list[Path]:
    return [path for path in our_files() if re.match(rb"#!.*\b(?:ba)?sh\b", path.read_bytes()[:80])]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_is_nothing_but_versions_and_hashes(lock: Path) -> None:
    assert LOCKED.sub("", lock.read_text()) == ""


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [("runtime", RUNTIME), ("dev", RUNTIME + group("dev")), ("build", BUILD)],
    ids=["runtime", "dev", "build"],
)
def test_what_pyproject_asks_for_is_locked(lock: str, requirements: list[Requirement]) -> None:
    versions = locked(lock)
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name}: `make lock`"
        assert requirement.specifier.contains(versions[name]), f"{requirement}: `make lock`"


def test_the_locks_agree() -> None:
    tested = locked("dev")
    for name, version in (locked("runtime") | locked("build")).items():
        assert tested.get(name, version) == version, name
    assert locked("runtime").items() <= tested.items()


@pytest.mark.parametrize("pattern", [REGISTRY_HOST, OF_ONE_MACHINE], ids=["registry", "machine"])
def test_no_file_names(pattern: re.Pattern[str]) -> None:
    """Addresses come from the configuration of the machine at hand."""
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in our_files()
        for match in pattern.finditer(path.read_text(errors="replace"))
    ]
    assert not found


def test_scripts_parse_and_can_be_run() -> None:
    scripts = our_scripts()
    assert ROOT / ".ci" / "run" in scripts
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        assert os.access(script, os.X_OK), script
    subprocess.run(["bash", "-n", ROOT / "scripts" / "common.sh"], check=True)
