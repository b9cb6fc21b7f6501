"""What a package's evaluation takes: a pool of evaluators that stay against a process per request (bench/README.md)."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from harness import environment, machine, make_package_set, median, need, table, verdict, work_directory

from nixery_snap.evaluation.one_shot import OneShotEvaluator
from nixery_snap.evaluation.pool import PooledEvaluator
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix_stores.command import NixCommand, NixStore
from nixery_snap.ports import Evaluator, Package, PackageSet, Pin

SYSTEM = "x86_64-linux"
MEMORY_MIB = 4096
TIMEOUT_SECONDS = 60


def packages(count: int) -> str:
    """Nix text: packages in layers of ten, each with some of the layer before it as dependencies."""
    return " ".join(
        f'p{number} = mk {{ pname = "p{number}"; script = "mkdir $out"; deps = ['
        + " ".join(f"pkgs.p{number - 10 - step}" for step in range(3) if number - 10 - step >= 0)
        + "]; };"
        for number in range(count)
    )


@asynccontextmanager
async def evaluators(nix: NixCommand) -> AsyncIterator[tuple[OneShotEvaluator, PooledEvaluator]]:
    one_shot = OneShotEvaluator(nix, TIMEOUT_SECONDS, 1, MEMORY_MIB)
    reading = OneShotEvaluator(nix, TIMEOUT_SECONDS, 1, MEMORY_MIB, writes_all=False)
    pool = PooledEvaluator(nix, reading, TIMEOUT_SECONDS, 1, MEMORY_MIB)
    try:
        yield one_shot, pool
    finally:
        await pool.close()


async def seconds(evaluator: Evaluator, package_set: PackageSet, *names: str) -> float:
    begun = time.perf_counter()
    results = await evaluator.evaluate(package_set, SYSTEM, list(map(AttributePath.parse, names)))
    taken = time.perf_counter() - begun
    if problems := [result for result in results if not isinstance(result, Package)]:
        sys.exit(str(problems[0]))
    return taken


async def measure(nix: NixCommand, directory: Path, count: int, rounds: int) -> dict[str, list[float]]:
    """Seconds by what was done, the pool's and the one-shot evaluator's in turn."""
    taken: dict[str, list[float]] = {}
    async with evaluators(nix) as (one_shot, pool):
        # Derivations are written by whoever evaluates first; after this, nobody does.
        await seconds(one_shot, PackageSet(directory), *(f"p{number}" for number in range(count)))
        # Whether Nix talks as expected is found out once in a server's life.
        await seconds(pool, PackageSet(directory, pin=Pin("before")), "p0")
        for number in range(rounds):
            package_set = PackageSet(directory, pin=Pin(f"round-{number}"))
            # Others than in the round before; the last ones have the longest chains of dependencies.
            first, *later = [f"p{count - 1 - (number * 37 + 11 * step) % (count // 2)}" for step in range(21)]
            ten = [f"p{count - 2 - (number * 37 + 11 * step) % (count // 2)}" for step in range(10)]
            work: list[tuple[str, Evaluator, Sequence[str]]] = [
                ("one process: one package", one_shot, [first]),
                ("pool: first package", pool, [first]),
                *(("pool: another package", pool, [name]) for name in later),
                ("one process: ten packages", one_shot, ten),
                ("pool: ten packages", pool, ten),
            ]
            for what, evaluator, names in work:
                taken.setdefault(what, []).append(await seconds(evaluator, package_set, *names))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--packages", type=int, default=1000)
    arguments = parser.parse_args()
    need("nix", "nix-instantiate", "nix-store")
    print(machine())
    with work_directory() as work:
        directory = make_package_set(work / "set", packages(arguments.packages))
        store = work / "store"
        subprocess.run(["nix-store", "--store", store, "--init"], check=True, env=environment(work / "home"))
        nix = NixCommand(NixStore.parse(str(store)), work / "home", {"substituters": ""})
        taken = asyncio.run(measure(nix, directory, arguments.packages, arguments.rounds))
    middle = {what: median(values) for what, values in taken.items()}
    one = middle["one process: one package"]
    table(
        f"A set of {arguments.packages} packages, {arguments.rounds} rounds",
        ["what", "median ms", "against one process"],
        [
            [what, f"{value * 1000:.1f}", f"{value / middle[base]:.2f}"]
            for what, value in middle.items()
            for base in ["one process: ten packages" if "ten" in what else "one process: one package"]
        ],
    )
    print(f"\nanother package below 10 ms: {verdict(middle['pool: another package'] < 0.01)}")
    print(f"first package below one process's time: {verdict(middle['pool: first package'] < one)}")


if __name__ == "__main__":
    main()
