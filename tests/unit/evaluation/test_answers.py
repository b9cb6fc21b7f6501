from pathlib import Path

import pytest

from nixery_snap.errors import (
    EvaluationFailed,
    ExperimentalFeatureMissing,
    NixError,
    NixTooOld,
    PackageProblem,
    ProblemKind,
)
from nixery_snap.evaluation.answers import OUT_OF_MEMORY, result, whole_set_error
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.ports import Package, PackageSet


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        (
            "This version of Nixpkgs requires Nix >= 2.18,\n please upgrade",
            NixTooOld,
            "Nix >= 2.18, please upgrade",
        ),
        (
            "experimental Nix feature 'ca-derivations' is disabled",
            ExperimentalFeatureMissing,
            "'ca-derivations'",
        ),
        ("experimental feature 'flakes' is disabled; use '--x'", ExperimentalFeatureMissing, "'flakes'"),
        ("attribute 'getFlake' missing", ExperimentalFeatureMissing, "'flakes'"),
        ("syntax error at /srv/pkgs/source/default.nix:1", EvaluationFailed, "<source>/default.nix"),
    ],
)
def test_the_whole_set(message: str, kind: type[NixError], words: str) -> None:
    error = whole_set_error(message, PackageSet(Path("/srv/pkgs/source"), is_flake=True))
    assert type(error) is kind
    assert words in str(error)
    assert "/srv" not in str(error)


def test_memory() -> None:
    for text in (
        'GC Warning: Out of Memory! Heap size: 384 MiB. Returning NULL!\n@nix {"x":1}',
        '@nix {"action":"msg","level":0,"msg":"\x1b[31;1merror:\x1b[0m out of memory"}',
        "error: out of memory",
        "terminate called after throwing an instance of 'std::bad_alloc'",
    ):
        assert OUT_OF_MEMORY.search(text)
    assert not OUT_OF_MEMORY.search("this package prints out of memory addresses")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("drvPath", "--option"),
        ("drvPath", "/etc/passwd"),
        ("drvPath", "/nix/store/00000000000000000000000000000000-x"),
        ("drvPath", "/nix/store/00000000000000000000000000000000-x.drv/../y.drv"),
        ("outputs", {"out": "/etc"}),
        ("outputs", {"out": "/nix/store"}),
        ("outputs", {"out!x": "/nix/store/00000000000000000000000000000000-x"}),
        ("outputs", {"": "/nix/store/00000000000000000000000000000000-x"}),
    ],
)
async def test_what_no_package_says_of_itself(key: str, value: object) -> None:
    answer = {
        "status": "package",
        "attribute": ["x"],
        "name": "x",
        "drvPath": "/nix/store/00000000000000000000000000000000-x.drv",
        "outputs": {"out": "/nix/store/00000000000000000000000000000000-x"},
        "mainProgram": None,
        "licenses": [],
        "priority": 5,
    }
    name = AttributePath(("x",))
    assert isinstance(await result(name, answer, {}), Package)
    problem = await result(name, answer | {key: value}, {})
    assert isinstance(problem, PackageProblem)
    assert problem.kind is ProblemKind.FAILED
