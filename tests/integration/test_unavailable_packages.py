"""What cannot be had says why, through the mouths of the clients that people use."""

import shlex

import pytest

from tests.integration.need import need
from tests.integration.nixtools import ChrootStore
from tests.integration.processes import output_of, run
from tests.integration.runtimes.docker import Docker
from tests.integration.server import Registry

# Image name and what a client must print for it, in any order and case.
REASONS = {
    "failstobuild": ["build", "configure: error: no acceptable C compiler"],
    "failsnooutput": ["fails-no-output", "output"],
    "dependsonfailure": ["fails-to-build", "configure: error: no acceptable C compiler"],
    "failsverbose": ["476", "500", "log"],
    "badhash": ["bad-hash", "hash mismatch"],
    "throws": ["throws has been removed, use hello"],
    "aborts": ["abort cannot be caught by tryEval"],
    "assertfails": ["assertfails", "assertion"],
    "missingdep": ["missingdep", "noSuchPackage"],
    "infinite": ["infinite recursion"],
    "python2packages.x": ["python2Packages is gone"],
    "unfreetool": ["unfree"],
    "brokentool": ["broken"],
    "insecuretool": ["insecure"],
    "arm64/x86only": ["x86only", "aarch64-linux"],
    "needsarmbuilder": ["aarch64-linux", "needs-arm-builder"],
    "afunction": ["afunction", "function"],
    "astring": ["astring", "string"],
    "anumber": ["anumber", "number"],
    "anull": ["anull", "null"],
    "anemptyset": ["anemptyset", "set"],
    "textfile": ["textfile", "string"],
    "python3packages": ["python3packages", "set"],
    "nosuchpackage": ["nosuchpackage"],
    "helo": ["helo", "did you mean hello"],
    "python3packages.request": ["python3packages.request", "did you mean", "requests"],
    # All of them, not just the first; the good one is not blamed.
    "helo/hello/nosuchpackage/unfreetool": ["helo", "nosuchpackage", "unfreetool", "did you mean"],
}


def skopeo_says(registry: Registry, name: str) -> str:
    need("skopeo")
    done = run(
        "skopeo", "inspect", "--tls-verify=false", f"docker://{registry.host}/{name}:latest", check=False
    )
    assert done.returncode != 0, output_of(done)
    return output_of(done)


@pytest.mark.parametrize("name", REASONS)
def test_skopeo_shows_the_reason(registry: Registry, name: str) -> None:
    said = skopeo_says(registry, name).lower()
    assert [words for words in REASONS[name] if words.lower() not in said] == [], said


@pytest.mark.parametrize("name", REASONS)
def test_docker_shows_the_reason(registry: Registry, docker_engine: Docker, name: str) -> None:
    done = docker_engine.pull(f"{registry.host}/{name}:latest", check=False)
    assert done.returncode != 0
    said = output_of(done).lower()
    assert [words for words in REASONS[name] if words.lower() not in said] == [], said


@pytest.mark.parametrize("image_format", ["classic", "nix-snapshotter"])
def test_the_reason_does_not_depend_on_the_format(registry: Registry, image_format: str) -> None:
    answer = registry.manifest(f"{image_format}/helo/unfreetool")
    assert answer.status == 404
    assert answer.error["code"] == "MANIFEST_UNKNOWN"
    assert "did you mean" in answer.error["message"]


def test_the_log_is_cut_to_its_end(registry: Registry) -> None:
    """The last 25 lines, and how to see the rest."""
    message = registry.manifest("failsverbose").error["message"]
    lines = {line.strip() for line in message.splitlines()}
    assert {str(number) for number in range(476, 501)} <= lines
    assert "475" not in lines
    assert "nix" in message
    assert "log" in message


@pytest.mark.parametrize(
    "name", ["failsverbose", "dependsonfailure", "failsnooutput", "badhash", "needsarmbuilder"]
)
def test_the_command_for_the_whole_log_works(
    registry: Registry, prepared_store: ChrootStore, name: str
) -> None:
    """Where there is a log; where nothing ran there is none, and none is promised."""
    message = registry.manifest(name).error["message"]
    commands = [line for line in message.splitlines() if "--read-log" in line]
    assert len(commands) == (0 if name == "needsarmbuilder" else 1)
    for line in commands:
        command = line[line.index("nix-store ") :]
        log = run(*shlex.split(command), env=prepared_store.env).stdout
        assert name != "failsverbose" or log.split() == [str(number) for number in range(1, 501)]


def test_failures_tell_no_secrets_and_are_never_the_servers_fault(registry: Registry) -> None:
    for name in REASONS:
        answer = registry.manifest(name)
        assert 400 <= answer.status < 500, (name, answer)
        assert "Traceback" not in answer.error["message"]
        assert str(registry.state) not in answer.error["message"], name


def test_a_failure_is_not_remembered_as_the_truth_about_another_request(registry: Registry) -> None:
    assert registry.manifest("hello/failstobuild").status >= 400
    assert registry.manifest("hello").status == 200


def test_a_meta_package_alone_is_an_image(registry: Registry) -> None:
    assert registry.pull("shell").config["config"]["Cmd"] == ["bash"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("hello/shell", "front"),
        ("arm64/amd64/hello", "arm64"),
        ("nix-snapshotter", "package"),
        ("arm64", "package"),
    ],
)
def test_names_with_their_parts_in_the_wrong_place(registry: Registry, name: str, hint: str) -> None:
    answer = registry.manifest(name)
    assert answer.status == 400
    assert answer.error["code"] == "NAME_INVALID"
    assert hint in answer.error["message"]
