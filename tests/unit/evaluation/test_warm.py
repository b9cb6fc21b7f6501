import asyncio
import json
from collections import deque
from collections.abc import Callable

import pytest

from nixery_snap.evaluation import warm
from nixery_snap.evaluation.question import Question
from nixery_snap.evaluation.warm import Died, NotUnderstood, WarmProcess, _quoted
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.ports import Program


class Talker:
    """Implements the port NixProcess: what a Nix of another time could say to each line."""

    def __init__(self, say: Callable[[bytes], list[bytes]]) -> None:
        self._say = say
        self._lines: deque[bytes] = deque()
        self.returncode: int | None = None
        self.resident_bytes = 0

    async def write(self, content: bytes) -> None:
        for line in content.splitlines():
            self._lines.extend(self._say(line))

    async def read_line(self) -> bytes:
        await asyncio.sleep(0)
        return self._lines.popleft() if self._lines else b""

    async def wait(self) -> int:
        return self.returncode or 0

    async def end(self) -> None:
        self.returncode = -9


class Runner:
    """Implements the port NixRunner."""

    def __init__(self, say: Callable[[bytes], list[bytes]]) -> None:
        self.talker = Talker(say)

    async def run(self, *arguments: object, **options: object) -> Program:
        raise NotImplementedError

    async def start(self, *arguments: object, **options: object) -> Talker:
        return self.talker


ASKED = Question((), "{}", is_pure=False)


@pytest.mark.parametrize(
    "say",
    [
        lambda line: [line + b"\n"],  # an echo without a prompt: everything means what it says
        lambda line: [b"\x1b[1m" + line + b"\x1b[0m\n"],
        lambda line: [b'"' + line.strip(b'"') + b'"\n'],
    ],
)
async def test_a_nix_that_talks_otherwise(say: Callable[[bytes], list[bytes]]) -> None:
    runner = Runner(say)
    with pytest.raises(NotUnderstood):
        await WarmProcess.start(runner, ASKED, 2**30, check=True)
    assert runner.talker.returncode is not None, "it has been ended"


async def test_a_nix_that_says_nothing() -> None:
    runner = Runner(lambda line: [])
    with pytest.raises(Died):
        await WarmProcess.start(runner, ASKED, 2**30, check=True)
    assert runner.talker.returncode is not None


async def test_a_nix_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "_CHECK_SECONDS", 0.01)
    runner = Runner(lambda line: [b"nix-repl> \n"] * 100_000)
    with pytest.raises(NotUnderstood, match="nothing"):
        await WarmProcess.start(runner, ASKED, 2**30, check=True)
    assert runner.talker.returncode is not None


async def test_an_answer_in_colours_and_escapes() -> None:
    answer = {"results": [{"status": "package", "name": 'a"b\\c${d}'}], "attributes": {}}
    escaped = json.dumps(answer).replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")

    def say(line: bytes) -> list[bytes]:
        prompt = [b"nix-repl> " + line + b"\n"]
        if line.startswith(b'"'):
            return [*prompt, b"\x1b[35;1m" + line + b"\x1b[0m\n", b"\n"]
        return (
            [*prompt, f'\x1b[35;1m"{escaped}"\x1b[0m\n'.encode()] if line.startswith(b"builtins") else prompt
        )

    process = WarmProcess(Talker(say), deque())
    answers = await process.answer(AttributePath(("x",)))
    assert answers is not None
    assert answers.results == answer["results"]


@pytest.mark.parametrize("text", ['"', "\\", "${x}", "$", "\x7f", "é", "\n\t", "''", "\ud800"])
def test_quoting(text: str) -> None:
    quoted = _quoted(json.dumps(text))
    assert quoted.isascii()
    assert quoted.isprintable()
    assert quoted[0] == quoted[-1] == '"'
    # Nix's escapes of these three are a backslash in front.
    inner = quoted[1:-1].replace("\\$", "$").replace('\\"', '"').replace("\\\\", "\\")
    assert json.loads(inner) == text
