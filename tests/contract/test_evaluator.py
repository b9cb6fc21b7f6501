import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from nixery_snap.errors import EvaluationFailed, EvaluationTimedOut, NixTooOld, PackageProblem, ProblemKind
from nixery_snap.evaluation.one_shot import OneShotEvaluator
from nixery_snap.evaluation.pool import PooledEvaluator
from nixery_snap.evaluation.remembered import RememberedEvaluator
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import Evaluator, Package, PackageSet, Pin
from tests.contract.conftest import SYSTEM, MakeNix, names
from tests.integration.need import NIX_2_26, need_nix_2_26
from tests.integration.nixtools import ENDLESS, ChrootStore

MakeEvaluator = Callable[[float], Evaluator]


@pytest.fixture(params=["one-shot", "reading", "pooled, Nix 2.26", "remembered"])
async def make_evaluator(
    request: pytest.FixtureRequest,
    prepared: ChrootStore,
    make_nix: MakeNix,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[MakeEvaluator]:
    """By its time limit."""
    pools: list[PooledEvaluator] = []
    if "2.26" in request.param:
        need_nix_2_26()
        monkeypatch.setenv("PATH", str(NIX_2_26), prepend=os.pathsep)

    def make(timeout_seconds: float) -> Evaluator:
        nix = make_nix(prepared)
        reads = "reading" in request.param
        one_shot = OneShotEvaluator(nix, timeout_seconds, 2, 4096, writes_all=not reads)
        if reads or request.param == "one-shot":
            return one_shot
        pools.append(PooledEvaluator(nix, one_shot, timeout_seconds, 2, 4096))
        if request.param == "remembered":
            return RememberedEvaluator(pools[0], StoredRecords(ObjectStore("memory://"), 2**20), 60)
        return pools[0]

    yield make
    for pool in pools:
        await pool.close()


@pytest.fixture
def evaluator(make_evaluator: MakeEvaluator) -> Evaluator:
    return make_evaluator(60)


def a_set(directory: Path) -> PackageSet:
    """Pinned by its content, as a source does it."""
    file = directory / "default.nix"
    text = file.read_bytes() if file.exists() else b""
    return PackageSet(directory, pin=Pin(hashlib.sha256(bytes(directory) + text).hexdigest()))


async def one(
    evaluator: Evaluator, package_set: Path, name: str, system: str = SYSTEM
) -> Package | PackageProblem:
    [result] = await evaluator.evaluate(a_set(package_set), system, names(name))
    return result


GOOD = [
    "hello",
    "curl",
    "openssl",
    "openssl.dev",
    "openssl.out",
    "python3Packages.requests",
    'nodePackages."@scope/tool"',
]


async def test_outputs_are_those_that_nix_would_install(
    prepared: ChrootStore, evaluator: Evaluator, package_set: Path
) -> None:
    results = await evaluator.evaluate(a_set(package_set), SYSTEM, names(*GOOD))
    installed = prepared.installed(*(path.parts for path in names(*GOOD)), directory=package_set)
    for path, package in zip(names(*GOOD), results, strict=True):
        assert isinstance(package, Package), package
        assert package.attribute == path
        assert sorted(map(str, package.outputs.values())) == sorted(installed[".".join(path.parts)])
        assert package.drv_path in prepared.all_paths()


async def test_facts(evaluator: Evaluator, package_set: Path) -> None:
    openssl, perl, dev = await evaluator.evaluate(
        a_set(package_set), SYSTEM, names("openssl", "perl", "openssl.dev")
    )
    assert isinstance(openssl, Package)
    assert isinstance(perl, Package)
    assert isinstance(dev, Package)
    assert (openssl.name, openssl.main_program, openssl.priority) == ("openssl-3.0.14", "openssl", 5)
    assert list(openssl.outputs) == ["bin"]
    assert list(dev.outputs) == ["dev"]
    assert openssl.drv_path == dev.drv_path
    assert perl.main_program is None
    assert len(perl.licenses) == 2
    conflict = await one(evaluator, package_set, "conflictC")
    assert isinstance(conflict, Package)
    assert conflict.priority == 4


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("bashinteractive", "bashInteractive"),
        ("python3packages.requests", "python3Packages.requests"),
        ("7zz", "_7zz"),
        ("singlefile", "singleFile"),
    ],
)
async def test_spellings_of_image_names(
    evaluator: Evaluator, package_set: Path, asked: str, meant: str
) -> None:
    result = await one(evaluator, package_set, asked)
    assert isinstance(result, Package), result
    assert result.attribute == AttributePath.parse(meant)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("helo", ProblemKind.MISSING, ["helo", "package set"]),
        ("python3Packages.reqests", ProblemKind.MISSING, ["python3Packages"]),
        ("hello.nosuch", ProblemKind.MISSING, ["hello"]),
        ('"${throw}"', ProblemKind.MISSING, ["${throw}"]),
        ('"a b"', ProblemKind.MISSING, ["a b"]),
        ("aFunction", ProblemKind.WRONG_KIND, ["function"]),
        ("aString", ProblemKind.WRONG_KIND, ["string"]),
        ("aNumber", ProblemKind.WRONG_KIND, ["number"]),
        ("aNull", ProblemKind.WRONG_KIND, ["null"]),
        ("anEmptySet", ProblemKind.WRONG_KIND, ["set"]),
        ("python3Packages", ProblemKind.WRONG_KIND, ["set", "requests"]),
        ("aString.x", ProblemKind.WRONG_KIND, ["string"]),
        ("textFile", ProblemKind.WRONG_KIND, ["string"]),
        ("unfreeTool", ProblemKind.UNFREE, ["unfree"]),
        ("brokenTool", ProblemKind.BROKEN, ["broken"]),
        ("insecureTool", ProblemKind.INSECURE, ["insecure"]),
        ("throws", ProblemKind.FAILED, ["throws has been removed, use hello"]),
        ("python2Packages.x", ProblemKind.FAILED, ["python2Packages is gone"]),
        ("aborts", ProblemKind.FAILED, ["abort cannot be caught"]),
        ("assertFails", ProblemKind.FAILED, ["assert"]),
        ("missingDep", ProblemKind.FAILED, ["noSuchPackage"]),
        ("infinite", ProblemKind.FAILED, ["infinite recursion"]),
    ],
)
async def test_problems(
    evaluator: Evaluator, package_set: Path, name: str, kind: ProblemKind, words: list[str]
) -> None:
    problem = await one(evaluator, package_set, name)
    assert isinstance(problem, PackageProblem), problem
    assert (problem.name, problem.kind) == (str(AttributePath.parse(name)), kind)
    for word in words:
        assert word in problem.message
    assert str(package_set) not in problem.message
    assert "\n" not in problem.message


async def test_another_system(evaluator: Evaluator, package_set: Path) -> None:
    problem = await one(evaluator, package_set, "x86Only", "aarch64-linux")
    assert isinstance(problem, PackageProblem)
    assert problem.kind is ProblemKind.UNSUPPORTED_SYSTEM
    here, there = (
        await one(evaluator, package_set, "hello"),
        await one(evaluator, package_set, "hello", "aarch64-linux"),
    )
    assert isinstance(here, Package)
    assert isinstance(there, Package)
    assert here.outputs != there.outputs


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("helo", "hello"),
        ("singelfile", "singleFile"),
        ("python3Packages.reqests", "python3Packages.requests"),
    ],
)
async def test_near_matches(evaluator: Evaluator, package_set: Path, name: str, suggestion: str) -> None:
    problem = await one(evaluator, package_set, name)
    assert isinstance(problem, PackageProblem)
    assert suggestion in problem.suggestions
    assert len(problem.suggestions) <= 3


async def test_one_bad_name_hides_no_other(evaluator: Evaluator, package_set: Path) -> None:
    asked = names("hello", "helo", "throws", "aborts", "curl", "infinite", "aString", "unfreeTool", "hello")
    results = await evaluator.evaluate(a_set(package_set), SYSTEM, asked)
    kinds = [result.kind if isinstance(result, PackageProblem) else "package" for result in results]
    assert kinds == [
        "package",
        "missing",
        "failed",
        "failed",
        "package",
        "failed",
        "wrong-kind",
        "unfree",
        "package",
    ]
    assert results[0] == results[8]


async def test_no_names(evaluator: Evaluator, package_set: Path) -> None:
    assert list(await evaluator.evaluate(a_set(package_set), SYSTEM, [])) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{ }: { hello = ", "syntax error"),
        ("{ }: throw ''set is gone''", "set is gone"),
        ("{ }: abort ''set is gone''", "set is gone"),
        ("{ }: ''a string''", "string"),
        ("import ./nowhere.nix", "nowhere.nix"),
        ("{ required }: { }", "required"),
    ],
)
async def test_a_set_that_is_broken(evaluator: Evaluator, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "default.nix").write_text(text)
    with pytest.raises(EvaluationFailed, match=words) as raised:
        await evaluator.evaluate(a_set(tmp_path), SYSTEM, names("hello", "curl"))
    assert str(tmp_path) not in str(raised.value)


async def test_no_set_at_all(evaluator: Evaluator, tmp_path: Path) -> None:
    with pytest.raises(EvaluationFailed, match=r"default\.nix"):
        await evaluator.evaluate(a_set(tmp_path), SYSTEM, names("hello"))


@pytest.mark.parametrize(
    "text",
    [
        "if builtins.compareVersions ''99'' builtins.nixVersion == 1 then throw "
        "''This version of Nixpkgs requires Nix >= 99, please upgrade'' else { }",
        "abort ''This version of Nixpkgs requires an implementation of Nix with the following features''",
    ],
)
async def test_a_set_that_wants_a_newer_nix(evaluator: Evaluator, tmp_path: Path, text: str) -> None:
    (tmp_path / "default.nix").write_text(text)
    with pytest.raises(NixTooOld, match="too old"):
        await evaluator.evaluate(a_set(tmp_path), SYSTEM, names("hello"))


async def test_arguments_of_a_set(evaluator: Evaluator, tmp_path: Path) -> None:
    for text in (
        "{ }",
        "{ system, config, overlays, ... }: { }",
        "{ system ? throw ''no'' }: { inherit system; }",
        "arguments: { inherit (arguments) system; }",
    ):
        (tmp_path / "default.nix").write_text(text)
        [problem] = await evaluator.evaluate(a_set(tmp_path), SYSTEM, names("system"))
        assert isinstance(problem, PackageProblem)
        assert problem.kind is (ProblemKind.WRONG_KIND if "inherit" in text else ProblemKind.MISSING)


async def test_takes_too_long(make_evaluator: MakeEvaluator, tmp_path: Path) -> None:
    (tmp_path / "default.nix").write_text(f"{{ }}: {{ slow = {ENDLESS}; }}")
    evaluator = make_evaluator(0.5)
    with pytest.raises(EvaluationTimedOut):
        await evaluator.evaluate(a_set(tmp_path), SYSTEM, names("slow.x"))


async def test_names_are_data(evaluator: Evaluator, package_set: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile = [
        f'"${{builtins.readFile {marker}}}"',
        '"x; }) or (throw 1)"',
        "\"'' + abort ''x\"",
        '"$(touch x)"',
        '"--help"',
    ]
    for text in hostile:
        problem = await one(evaluator, package_set, text)
        assert isinstance(problem, PackageProblem)
        assert problem.kind is ProblemKind.MISSING
