"""Where the time of an image's first request goes, step by step (bench/README.md)."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import (
    EXAMPLES,
    PROGRAM,
    Server,
    environment,
    machine,
    median,
    need,
    table,
    work_directory,
)

IMAGES = ("shell/curl", "wide")
FORMATS = ("classic", "nix-snapshotter")
# The log's events, in their order, and what people call them.
STEPS = {
    "pinned": "pin",
    "evaluated": "evaluate",
    "realised": "realise",
    "located": "find closure",
    "assembled": "assemble",
}
Steps = dict[str, float]


def first_request(server: Server, image: str, image_format: str) -> tuple[Steps, dict[str, Any]]:
    """Seconds of every step that ran, `total` as the client sees it and `other`; and facts of the image."""
    seen = len(server.log.read_text().splitlines())
    begun = time.perf_counter()
    server.get(f"/v2/{image_format}/{image}/manifests/latest")
    total = time.perf_counter() - begun
    events = [event for event in server.events(seen) if event["event"] in STEPS]
    steps: Steps = {}
    for event in events:
        steps[event["event"]] = steps.get(event["event"], 0.0) + event["seconds"]
    facts = {name: value for event in events for name, value in event.items() if name in {"paths", "layers"}}
    return {**steps, "other": total - sum(steps.values()), "total": total}, facts


def one_round(
    work: Path, prepared: Path, image: str, number: int
) -> Iterator[tuple[str, str, Steps, dict[str, Any]]]:
    """(state, format, steps, facts) of every kind of first request of one image."""
    for first, second in (FORMATS, FORMATS[::-1]):
        for state in ("nothing built", "packages built"):
            directory = work / f"{image.replace('/', '-')}-{number}-{first}-{state.replace(' ', '-')}"
            directory.mkdir()
            store = directory / "store"
            if state == "packages built":
                subprocess.run(["cp", "-a", prepared, store], check=True)
            with Server(directory / "server", EXAMPLES, store).run():
                pass  # creates an empty store: not part of any request
            server = Server(directory / "server", EXAMPLES, store)
            with server.run():
                yield (state, first, *first_request(server, image, first))
                # Both formats share one evaluation, so the other one's first request finds it done.
                if state == "packages built":
                    yield ("evaluation cached", second, *first_request(server, image, second))
                    yield ("warm", second, *first_request(server, image, second))
            subprocess.run(["chmod", "-R", "u+w", directory], check=True)
            shutil.rmtree(directory)


def prepare(work: Path, images: tuple[str, ...]) -> Path:
    """A store in which everything is built, by the program itself."""
    server = Server(work / "prepare", EXAMPLES, work / "prepared-store")
    server.state.mkdir()
    for number, image in enumerate(images):
        command = [*PROGRAM, "build", image, *server.options, "--output", f"oci:{work / f'image{number}'}"]
        env = environment(server.state / "home")
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{image} cannot be built:\n{done.stderr[-3000:]}")
    return work / "prepared-store"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("images", nargs="*", default=IMAGES)
    arguments = parser.parse_args()
    need("nix-store")
    print(machine())
    images = tuple(arguments.images)
    times: defaultdict[tuple[str, str, str], list[Steps]] = defaultdict(list)
    known: defaultdict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    with work_directory() as work:
        prepared = prepare(work, images)
        for number in range(arguments.rounds):
            for image in images:
                for state, image_format, steps, facts in one_round(work, prepared, image, number):
                    times[image, image_format, state].append(steps)
                    known[image, image_format] |= facts
            print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr)

    states = ["nothing built", "packages built", "evaluation cached", "warm"]
    for image in images:
        rows = []
        for image_format in FORMATS:
            for state in states:
                samples = times[image, image_format, state]
                cells = []
                for step in (*STEPS, "other", "total"):
                    values = [sample[step] for sample in samples if step in sample]
                    cells.append(f"{median(values) * 1000:.1f}" if values else "")
                rows.append([image_format, state, *cells])
        facts = known[image, "classic"]
        title = f"{image}: {facts.get('paths')} store paths, {facts.get('layers')} layers when classic; medians in ms"
        table(title, ["format", "state", *STEPS.values(), "other", "total"], rows)


if __name__ == "__main__":
    main()
