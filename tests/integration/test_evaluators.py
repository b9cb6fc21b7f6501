"""Package sets that mean harm, and evaluators that come to it: contained, told, and no other request is disturbed."""

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nixery_snap.errors import (
    EvaluationFailed,
    EvaluationTimedOut,
    EvaluationTooBig,
    ExperimentalFeatureMissing,
    NixDaemonUnreachable,
    NixError,
    NixMissing,
    PackageProblem,
    ProblemKind,
)
from nixery_snap.evaluation.one_shot import OneShotEvaluator
from nixery_snap.evaluation.pool import PooledEvaluator
from nixery_snap.evaluation.remembered import RememberedEvaluator
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix_stores.command import NixCommand, NixStore
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import Evaluator, Package, PackageSet, Pin
from tests.integration.need import NIX_2_26, need_nix_2_26
from tests.integration.nixtools import ENDLESS, EXAMPLES, NIX_CONFIG, ChrootStore
from tests.integration.processes import run
from tests.support.waiting import until

SYSTEM = "x86_64-linux"
SECRET = "s3cret-of-the-server"
MEMORY_MIB = 1024
PACKAGE = 'derivation { name = "NAME"; system = "x86_64-linux"; builder = "/bin/sh"; }'
# Attributes that a stranger's package set may have, `URL` being a server that counts its clients.
READS = {
    "reads": 'builtins.readFile "/etc/passwd"',
    "imports": "import /etc/passwd",
    "copies": "builtins.path { path = /etc; }",
    "filters": "builtins.filterSource (path: type: true) /etc",
    "interpolates": '"${/etc/passwd}"',
    "lists": "toString (builtins.attrNames (builtins.readDir /etc))",
    "hashes": 'builtins.hashFile "sha256" "/etc/passwd"',
    "followsLink": "builtins.readFile ./link",
    "goesUp": "builtins.readFile ../secret",
    "goesUpByText": 'builtins.readFile (toString ./. + "/../secret")',
    "finds": 'builtins.readFile (builtins.findFile [ { prefix = "x"; path = "/"; } ] "x/etc/passwd")',
    "looksUp": "toString <nixpkgs>",
    "storePath": 'builtins.storePath "/etc/passwd"',
    "listsStore": 'toString (builtins.attrNames (builtins.readDir "/nix/store"))',
    "readsProcess": 'builtins.readFile "/proc/self/environ"',
    "executes": 'builtins.exec [ "sh" "-c" "echo 1" ]',
    "fetchesUrl": 'builtins.readFile (builtins.fetchurl "URL")',
    "fetchesFixed": 'builtins.readFile (builtins.fetchurl { url = "URL"; sha256 = "' + "0" * 52 + '"; })',
    "fetchesTarball": 'toString (builtins.fetchTarball "URL/x.tar.gz")',
    "fetchesGit": 'toString (builtins.fetchGit "URL/x.git")',
    "fetchesGitFile": 'toString (builtins.fetchGit "file:///srv/x")',
    "fetchesMercurial": 'toString (builtins.fetchMercurial "URL/x")',
    "fetchesTree": 'toString (builtins.fetchTree { type = "tarball"; url = "URL/x.tar.gz"; })',
    "fetchesPath": 'builtins.readFile ((builtins.fetchTree { type = "path"; path = "/etc"; }) + "/passwd")',
    "getsFlake": 'toString (builtins.getFlake "path:FLAKE").outputs.secret',
    "builds": f'builtins.readFile "${{(import {EXAMPLES} {{ }}).hello}}/bin/hello"',
}


def named(value: str) -> str:
    """A package whose name takes that value."""
    return PACKAGE.replace("NAME", f"x-${{toString ({value})}}")


@dataclass
class Listener:
    """A server of the outside that nobody may ask."""

    url: str
    clients: int = 0


@pytest.fixture
async def outside() -> AsyncIterator[Listener]:
    listener = Listener("")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listener.clients += 1
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    listener.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield listener


@dataclass
class Ground:
    """A machine to evaluate on."""

    nix: NixCommand
    home: Path
    make: Callable[[float], Evaluator]
    can_build: bool
    """The unpacked Nix does not find its libraries when it starts itself for that."""

    def processes(self) -> dict[int, bytes]:
        """Nix's programs that run for this test, by their HOME."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"HOME={self.home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    found[int(process.name)] = (process / "cmdline").read_bytes()
        return found

    def evaluating(self) -> bool:
        return any(b"repl" in command or b"--eval" in command for command in self.processes().values())

    def warm(self) -> list[int]:
        return sorted(pid for pid, command in self.processes().items() if b"\0repl\0" in command)


@pytest.fixture(params=["pooled", "one-shot, reading", "pooled, Nix 2.26"])
async def ground(
    request: pytest.FixtureRequest,
    empty_store: ChrootStore,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Ground]:
    if "2.26" in request.param:
        need_nix_2_26()
        monkeypatch.setenv("PATH", str(NIX_2_26), prepend=os.pathsep)
    home = directory / "home"
    home.mkdir()
    monkeypatch.setenv("NIX_CONFIG", f"{NIX_CONFIG}\naccess-tokens = x={SECRET}")
    nix = NixCommand(NixStore.parse(str(empty_store.root)), home, {})
    pools: list[PooledEvaluator] = []

    def make(timeout_seconds: float) -> Evaluator:
        one_shot = OneShotEvaluator(
            nix, timeout_seconds, 2, MEMORY_MIB, writes_all="reading" not in request.param
        )
        if "one-shot" in request.param:
            return one_shot
        pools.append(PooledEvaluator(nix, one_shot, timeout_seconds, 2, MEMORY_MIB))
        return pools[-1]

    ground = Ground(nix, home, make, "2.26" not in request.param)
    yield ground
    for pool in pools:
        await pool.close()
    assert ground.processes() == {}


WITH_PROCESSES_THAT_STAY = pytest.mark.parametrize("ground", ["pooled", "pooled, Nix 2.26"], indirect=True)


def a_set(directory: Path, *, name: str = "source", **attributes: str) -> PackageSet:
    """A stranger's; `ok` is always in it."""
    source = directory / name
    source.mkdir(exist_ok=True)
    (directory / "secret").write_text(SECRET)
    (source / "link").unlink(missing_ok=True)
    (source / "link").symlink_to("/etc/passwd")
    ok = PACKAGE.replace("NAME", "ok")
    lines = "".join(f"  {key} = {value};\n" for key, value in ({"ok": ok} | attributes).items())
    (source / "default.nix").write_text(f"{{ ... }}: rec {{\n{lines}}}")
    return PackageSet(source, restricted=True, pin=Pin(f"{source} {attributes}"))


async def one(evaluator: Evaluator, package_set: PackageSet, name: str) -> Package | PackageProblem:
    [result] = await evaluator.evaluate(package_set, SYSTEM, [AttributePath.parse(name)])
    return result


async def is_well(evaluator: Evaluator, package_set: PackageSet) -> bool:
    return isinstance(await one(evaluator, package_set, "ok"), Package)


async def at_work(pid: int) -> None:
    """Until it has computed for longer than any question of these tests takes that has an answer."""

    def cpu_seconds() -> float:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11]
        return int(ticks) / os.sysconf("SC_CLK_TCK")

    begun = cpu_seconds()
    await until(lambda: cpu_seconds() > begun + 0.2)


async def test_what_a_package_set_may_not_do(ground: Ground, directory: Path, outside: Listener) -> None:
    flake = directory / "flake"
    flake.mkdir()
    (flake / "flake.nix").write_text(f'{{ outputs = _: {{ secret = "{SECRET}"; }}; }}')
    values = {
        name: named(value.replace("URL", outside.url).replace("FLAKE", str(flake)))
        for name, value in READS.items()
    }
    package_set = a_set(directory, **values)
    evaluator = ground.make(60)
    names = list(map(AttributePath.parse, READS))
    for name, result in zip(READS, await evaluator.evaluate(package_set, SYSTEM, names), strict=True):
        assert isinstance(result, PackageProblem), name
        assert result.kind is ProblemKind.FAILED, result
        assert SECRET not in result.message, result
        assert "root:" not in result.message, result
        assert str(directory) not in result.message, result
    assert outside.clients == 0
    assert await is_well(evaluator, package_set)


async def test_the_environment_is_not_told(ground: Ground, directory: Path) -> None:
    variables = ["NIX_CONFIG", "HOME", "PATH"]
    read = " + ".join(f'builtins.getEnv "{name}"' for name in variables)
    package_set = a_set(
        directory, asks=f'{PACKAGE.replace("NAME", "asks")} // {{ name = "none" + ({read}); }}'
    )
    package = await one(ground.make(60), package_set, "asks")
    assert isinstance(package, Package)
    assert package.name == "none"


async def test_building_while_evaluating(ground: Ground, directory: Path) -> None:
    package_set = replace(
        a_set(directory, builds=named(f"builtins.stringLength ({READS['builds']})")), restricted=False
    )
    evaluator = ground.make(60)
    problem = await one(evaluator, package_set, "builds")
    assert isinstance(problem, PackageProblem)
    assert "import-from-derivation" in problem.message
    if not ground.can_build:
        return
    package = await one(evaluator, replace(package_set, allows_builds=True, pin=Pin("allowed")), "builds")
    assert isinstance(package, Package), package
    assert package.name.removeprefix("x-").isdecimal()


EATERS = {
    "aText": 'let double = n: s: if n == 0 then s else double (n - 1) (s + s); in double 40 "0123456789"',
    "aList": "toString (builtins.length (builtins.genList (x: x) 100000000000))",
    "manySets": "toString (builtins.length (builtins.foldl' (a: x: a ++ [ { inherit x a; } ]) [ ]"
    " (builtins.genList (x: x) 1000000)))",
}


@pytest.mark.parametrize("name", EATERS)
async def test_eats_memory(ground: Ground, directory: Path, name: str) -> None:
    package_set = a_set(directory, eats=PACKAGE.replace('"NAME"', f"({EATERS[name]})"))
    evaluator = ground.make(120)
    with pytest.raises(EvaluationTooBig, match="1024 MiB"):
        await one(evaluator, package_set, "eats")
    assert await is_well(evaluator, package_set)


async def test_never_ends(ground: Ground, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package_set = a_set(directory, endless=ENDLESS)
    evaluator = ground.make(3)
    waiting = asyncio.create_task(one(evaluator, package_set, "endless"))
    await until(ground.evaluating)  # now its time is running
    # All others get as much as they need on a slow machine.
    for each in (evaluator, getattr(evaluator, "_one_shot", evaluator)):
        monkeypatch.setattr(each, "_timeout_seconds", 60)
    assert await is_well(evaluator, package_set)
    assert await is_well(evaluator, a_set(directory, name="other"))
    with pytest.raises(EvaluationTimedOut):
        await waiting
    assert await is_well(evaluator, package_set)


CRASHES = {
    "deep": ("let f = n: 1 + f (n + 1); in toString (f 0)", "stack overflow"),
    "endlessSet": ('let f = n: { type = "derivation"; name = f n; }; in (f 0).name.name', "it does not"),
    "infinite": ("let x = x; in x", "infinite recursion"),
    "aborts": ("abort ''gone''", "gone"),
    "typeError": ("1 + { }", "set"),
    "syntax": ("import ./bad.nix", "syntax error"),
    "endsTooEarly": ("import ./early.nix", "syntax error"),
    "manyBraces": ("builtins.fromJSON (builtins.readFile ./deep.json)", "it does not"),
}


async def test_crashes(ground: Ground, directory: Path) -> None:
    # No name of a derivation is any text, but what a package says of its own is.
    values = {
        name: f"{PACKAGE.replace('NAME', 'x')} // {{ name = {text}; }}" for name, (text, _) in CRASHES.items()
    }
    package_set = a_set(directory, **values)
    (package_set.directory / "bad.nix").write_text("{ = }")
    (package_set.directory / "early.nix").write_text("{ x = [")
    (package_set.directory / "deep.json").write_text("[" * 100_000)
    evaluator = ground.make(60)
    asked = [*CRASHES, "ok"]
    results = await evaluator.evaluate(package_set, SYSTEM, list(map(AttributePath.parse, asked)))
    for name, result in zip(CRASHES, results, strict=False):
        assert isinstance(result, PackageProblem), name
        assert CRASHES[name][1] in result.message, result
    assert isinstance(results[-1], Package)


async def test_a_name_that_is_no_text(ground: Ground, directory: Path) -> None:
    package_set = a_set(
        directory, odd=f"{PACKAGE.replace('NAME', 'x')} // {{ name = builtins.readFile ./latin-1; }}"
    )
    (package_set.directory / "latin-1").write_bytes(b"\xe9\xff")
    names = list(map(AttributePath.parse, ["odd", "ok"]))
    odd, ok = await ground.make(60).evaluate(package_set, SYSTEM, names)
    assert isinstance(odd, PackageProblem) or odd.name == "\ufffd\ufffd"
    assert isinstance(ok, Package)


async def test_what_is_printed_is_no_answer(ground: Ground, directory: Path) -> None:
    lines = [
        '"0123456789abcdef0123456789abcdef"',
        '@nix {"action":"msg","level":0}',
        "nix-repl> ",
        '\x1b[35;1m"x"',
    ]
    text = f"(builtins.fromJSON ''{json.dumps(chr(10).join(lines))}'')"
    package_set = a_set(
        directory,
        prints=f"builtins.trace {text} ({PACKAGE.replace('NAME', 'prints')})",
        named=f"{PACKAGE.replace('NAME', 'named')} // {{ name = {text}; }}",
    )
    evaluator = ground.make(60)
    package = await one(evaluator, package_set, "prints")
    assert isinstance(package, Package)
    assert package.name == "prints"
    package = await one(evaluator, package_set, "named")
    assert isinstance(package, Package)
    assert package.name == "\n".join(lines)


async def test_names_come_through_as_they_are(ground: Ground, directory: Path) -> None:
    odd = [
        "a b",
        "${x}",
        "$$",
        "''",
        "\x7f",
        "é",
        "\U0001f600",
        ":q",
        "a=b",
        "#",
        "}",
        "nix-repl> ",
        "x" * 250,
    ]
    attributes = json.dumps({name: name for name in odd})
    (directory / "source").mkdir()
    (directory / "source" / "names.json").write_text(attributes)
    package_set = a_set(
        directory,
        odd="builtins.mapAttrs (name: value: "
        + PACKAGE.replace('"NAME"', '"x"')
        + " // { name = value; }) (builtins.fromJSON (builtins.readFile ./names.json))",
    )
    evaluator = ground.make(60)
    results = await evaluator.evaluate(package_set, SYSTEM, [AttributePath(("odd", name)) for name in odd])
    assert [result.name for result in results] == odd


@WITH_PROCESSES_THAT_STAY
@pytest.mark.parametrize("moment", ["while it works", "while it waits"])
async def test_an_evaluator_is_killed(ground: Ground, directory: Path, moment: str) -> None:
    package_set = a_set(directory, slow=PACKAGE.replace("NAME", "slow-${toString (import ./slow.nix)}"))
    slow = package_set.directory / "slow.nix"  # each process reads it once
    slow.write_text(ENDLESS if moment == "while it works" else "7")
    evaluator = ground.make(60)
    assert isinstance(evaluator, PooledEvaluator)
    assert await is_well(evaluator, package_set)
    [first] = ground.warm()
    if moment == "while it waits":
        os.kill(first, signal.SIGKILL)
    task = asyncio.create_task(one(evaluator, package_set, "slow"))
    if moment == "while it works":
        await at_work(first)
        slow.write_text("7")
        os.kill(first, signal.SIGKILL)
    package = await task
    assert isinstance(package, Package)
    assert package.name == "slow-7"
    [second] = ground.warm()
    assert second != first


@WITH_PROCESSES_THAT_STAY
async def test_a_machine_on_which_none_starts_for_a_while(
    ground: Ground, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each evaluation takes a process of its own then, and no longer."""
    monkeypatch.setattr("nixery_snap.evaluation.pool._RETRY_SECONDS", 0.5)
    nix, trouble = directory / "programs/nix", directory / "trouble"
    nix.parent.mkdir()
    nix.write_text(f"""#!/bin/sh
case " $* " in *" repl "*) if [ -e {trouble} ]; then exit 1; fi; esac
PATH=${{PATH#*:}} exec nix "$@"
""")
    nix.chmod(0o755)
    environment = ground.nix._environment
    monkeypatch.setitem(environment, "PATH", f"{nix.parent}:{environment['PATH']}")
    package_set, evaluator = a_set(directory), ground.make(60)
    trouble.touch()
    assert await is_well(evaluator, package_set)
    assert ground.warm() == []
    trouble.unlink()
    await asyncio.sleep(0.5)
    assert await is_well(evaluator, package_set)
    assert len(ground.warm()) == 1


@WITH_PROCESSES_THAT_STAY
async def test_processes_stay_are_bounded_and_end(ground: Ground, directory: Path) -> None:
    evaluator = ground.make(60)
    sets = [a_set(directory, name=f"set-{number}") for number in range(3)]
    assert isinstance(evaluator, PooledEvaluator)
    assert await is_well(evaluator, sets[0])
    first = ground.warm()
    assert len(first) == 1
    assert await is_well(evaluator, sets[0])
    assert ground.warm() == first
    results = await asyncio.gather(*(is_well(evaluator, one) for one in sets * 10))
    assert all(results)
    await until(lambda: len(ground.warm()) <= 2)
    await evaluator.close()
    assert ground.processes() == {}


@dataclass
class Counting:
    """Implements the port Evaluator by another one; counts what reaches that."""

    evaluator: Evaluator
    asked: Counter[tuple[Pin | None, str, AttributePath]] = field(default_factory=Counter)

    async def evaluate(
        self, package_set: PackageSet, system: str, names: Sequence[AttributePath]
    ) -> Sequence[Package | PackageProblem]:
        self.asked.update((package_set.pin, system, name) for name in names)
        return await self.evaluator.evaluate(package_set, system, names)


@WITH_PROCESSES_THAT_STAY
async def test_each_package_is_evaluated_once_under_load(ground: Ground, directory: Path) -> None:
    packages = {f"p{number}": PACKAGE.replace("NAME", f"p{number}") for number in range(20)}
    packages |= {"throws": "throw ''gone''", "aborts": "abort ''gone''"}
    sets = [a_set(directory, name=f"set-{number}", **packages) for number in range(3)]
    counting = Counting(ground.make(60))
    evaluator = RememberedEvaluator(counting, StoredRecords(ObjectStore("memory://"), 2**20), 60)
    names = list(map(AttributePath.parse, packages))
    wanted: set[tuple[Pin | None, str, AttributePath]] = set()

    async def client(number: int) -> None:
        package_set = sets[number % 3]
        some = list({names[number * step % len(names)] for step in (1, 3, 5, 7)})
        wanted.update((package_set.pin, SYSTEM, name) for name in some)
        for name, result in zip(some, await evaluator.evaluate(package_set, SYSTEM, some), strict=True):
            assert isinstance(result, PackageProblem) == (str(name) in {"throws", "aborts"})

    await asyncio.gather(*map(client, range(200)))
    assert set(counting.asked) == wanted
    assert set(counting.asked.values()) == {1}


@WITH_PROCESSES_THAT_STAY
async def test_closing_while_it_works(ground: Ground, directory: Path) -> None:
    evaluator = ground.make(60)
    assert isinstance(evaluator, PooledEvaluator)
    package_set = a_set(directory, endless=ENDLESS)
    assert await is_well(evaluator, package_set)
    [process] = ground.warm()
    task = asyncio.create_task(one(evaluator, package_set, "endless"))
    await at_work(process)
    await evaluator.close()
    assert ground.processes() == {}
    with pytest.raises(NixError, match="shutting down"):
        await task


@WITH_PROCESSES_THAT_STAY
async def test_closing_while_one_starts(ground: Ground, directory: Path) -> None:
    evaluator = ground.make(60)
    assert isinstance(evaluator, PooledEvaluator)
    task = asyncio.create_task(one(evaluator, a_set(directory, endless=ENDLESS), "endless"))
    await until(ground.warm)
    await evaluator.close()
    with pytest.raises(NixError, match="shutting down"):
        await task
    await until(lambda: ground.processes() == {})


async def test_flakes(ground: Ground, directory: Path) -> None:
    locked, flake = directory / "locked", directory / "flake"
    for path, text in (
        (locked, '{ outputs = { self }: { text = "locked"; }; }'),
        (
            flake,
            f"""{{
              inputs.locked.url = "git+file://{locked}";
              outputs = {{ self, locked }}: {{
                legacyPackages.{SYSTEM} = {{ first = {PACKAGE.replace("NAME", "legacy")}; }};
                packages.{SYSTEM} = {{
                  first = throw "packages come second";
                  second = {PACKAGE.replace('"NAME"', "locked.text")};
                  steals = {named('builtins.readFile "/etc/passwd"')};
                  gets = {named(f'(builtins.getFlake "path:{directory}/locked").text')};
                  impure = {named("builtins.currentSystem")};
                }};
              }};
            }}""",
        ),
    ):
        path.mkdir()
        (path / "flake.nix").write_text(text)
    git = ("git", "-C", str(locked), "-c", "user.name=x", "-c", "user.email=x@example")
    for command in (("init", "-q", "-b", "main"), ("add", "."), ("commit", "-qm", "x")):
        run(*git, *command)
    evaluator = ground.make(60)
    package_set = PackageSet(flake, is_flake=True, pin=Pin("unlocked"))
    with pytest.raises(EvaluationFailed, match="lock"):
        await evaluator.evaluate(package_set, SYSTEM, [AttributePath.parse("first")])
    locking = await ground.nix.run(
        "nix",
        "flake",
        "lock",
        "--extra-experimental-features",
        "flakes",
        f"path:{flake}",
    )
    assert locking.returncode == 0, locking.stderr
    package_set = PackageSet(flake, is_flake=True, pin=Pin("locked"))
    asked = ["first", "second", "steals", "gets", "impure", "nothing"]
    results = await evaluator.evaluate(package_set, SYSTEM, list(map(AttributePath.parse, asked)))
    assert [result.name for result in results[:2] if isinstance(result, Package)] == ["legacy", "locked"]
    for result in results[2:]:
        assert isinstance(result, PackageProblem), result
        assert "root:" not in result.message
    assert isinstance(results[-1], PackageProblem)
    assert results[-1].kind is ProblemKind.MISSING


@pytest.mark.parametrize("ground", ["one-shot"], indirect=True)
async def test_derivations_are_written_when_somebody_needs_them(ground: Ground, directory: Path) -> None:
    one_shot = OneShotEvaluator(ground.nix, 60, 2, MEMORY_MIB, writes_all=False)
    pool = PooledEvaluator(ground.nix, one_shot, 60, 2, MEMORY_MIB)
    made = PACKAGE.replace("NAME", "made")
    reads = f"assert import (builtins.toFile ''x.nix'' ''1'') == 1; {made}"
    package_set = a_set(directory, made=made, reads=reads)

    async def package(name: str, asked: PackageSet) -> str:
        [result] = await pool.evaluate(asked, SYSTEM, [AttributePath.parse(name)])
        assert isinstance(result, Package), result
        return result.drv_path

    async def is_written(path: str) -> bool:
        return (await ground.nix.run("nix-store", "--check-validity", path)).returncode == 0

    first = await package("ok", package_set)
    assert not await is_written(first)
    assert await is_written(await package("made", package_set)), "an evaluator that stays writes"
    again = replace(package_set, pin=Pin("again"), restricted=False)
    assert await package("reads", again), "of a file that Nix has to write before it can be read"
    assert await package("ok", replace(package_set, pin=None)) == first
    assert await is_written(first)
    await pool.close()


async def test_overlays_and_config(ground: Ground, directory: Path) -> None:
    source, overlay = directory / "source", directory / "overlay.nix"
    source.mkdir()
    (source / "default.nix").write_text(
        "{ config ? throw ''none'', overlays ? throw ''none'', system }: let\n"
        f"  base = {{ unfree = if config.allowUnfree then {PACKAGE.replace('NAME', 'unfree')} else throw ''no''; }};\n"
        "in builtins.foldl' (set: overlay: set // overlay set set) base overlays"
    )
    overlay.write_text(f"final: prev: {{ added = {PACKAGE.replace('NAME', 'added')}; again = prev.unfree; }}")
    package_set = PackageSet(
        source, overlays=(overlay,), config={"allowUnfree": True}, restricted=True, pin=Pin("x")
    )
    names = list(map(AttributePath.parse, ["unfree", "added", "again"]))
    results = await ground.make(60).evaluate(package_set, SYSTEM, names)
    assert [result.name for result in results] == ["unfree", "added", "unfree"]


async def test_a_set_that_needs_an_experimental_feature(ground: Ground, directory: Path) -> None:
    (directory / "source").mkdir()
    (directory / "source" / "default.nix").write_text(
        "{ }: builtins.seq (derivation { name = ''x''; system = ''x''; builder = ''x''; __contentAddressed = true;"
        " outputHashMode = ''recursive''; outputHashAlgo = ''sha256''; }).outPath { }"
    )
    with pytest.raises(ExperimentalFeatureMissing, match="ca-derivations"):
        await one(ground.make(60), PackageSet(directory / "source", pin=Pin("x")), "x")


async def test_no_daemon(ground: Ground, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIX_DAEMON_SOCKET_PATH", str(directory / "nowhere"))
    nix = NixCommand(NixStore.parse("daemon"), ground.home, {})
    one_shot = OneShotEvaluator(nix, 60, 2, MEMORY_MIB)
    pool = PooledEvaluator(nix, one_shot, 60, 2, MEMORY_MIB)
    for evaluator in (one_shot, pool):
        with pytest.raises(NixDaemonUnreachable, match="nix-daemon"):
            await one(evaluator, a_set(directory), "ok")
    await pool.close()


async def test_no_nix(ground: Ground, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(directory))
    nix = NixCommand(NixStore.parse(str(directory / "store")), ground.home, {})
    one_shot = OneShotEvaluator(nix, 60, 2, MEMORY_MIB)
    for evaluator in (one_shot, PooledEvaluator(nix, one_shot, 60, 2, MEMORY_MIB)):
        with pytest.raises(NixMissing):
            await one(evaluator, a_set(directory), "ok")
