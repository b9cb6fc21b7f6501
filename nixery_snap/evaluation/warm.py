"""One `nix repl` that keeps a package set in memory and is asked line by line.

Each question is one line of Nix, followed by a string on a line of its own, a new random text. The program reads lines
one after the other and prints what each means, so what stands before that text is the answer; when nothing does, the
question was refused: the repl lives on after an error. The request itself is data: JSON in a Nix string. Why it was
refused goes to standard error in forms that differ between releases: one-shot evaluation tells that.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
from collections import deque
from typing import Any, Final, Self

from nixery_snap.evaluation import question
from nixery_snap.evaluation.answers import OUT_OF_MEMORY, Answers
from nixery_snap.evaluation.question import Question
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.ports import NixProcess, NixRunner

_STRING: Final = re.compile(rb'(?:\x1b\[[0-9;]*m)*"(.*)"(?:\x1b\[[0-9;]*m)*\s*')
_ESCAPED: Final = re.compile(rb"\\(.)")
_SPECIAL: Final = re.compile(r'["\\$]')
_LAST_LINES: Final = 20
_CHECK_SECONDS: Final = 30
# What quoting and the editing of lines could change; and longer than a terminal is wide.
_TRICKY: Final = "\"\\ \\n \n \t ${x} $${y} '' é \x7f \U0001f600 nix-repl> " + "x" * 300


class Died(Exception):
    """The process has ended instead of answering."""

    def __init__(self, returncode: int, *, out_of_memory: bool) -> None:
        super().__init__(f"nix repl ended with {returncode}")
        self.out_of_memory = out_of_memory
        self.is_killed = returncode in {-signal.SIGKILL, -signal.SIGTERM}


class NotUnderstood(Exception):
    """This Nix does not talk as expected."""


class Silent(NotUnderstood):
    """It says nothing: the machine may be too busy."""


class WarmProcess:
    """Knows one package set for one system; to be asked one question at a time. Whoever started it ends it."""

    def __init__(self, process: NixProcess, last_lines: deque[bytes]) -> None:
        self._process = process
        self._last_lines = last_lines
        self.answered = 0

    @classmethod
    async def start(cls, nix: NixRunner, asked: Question, memory_bytes: int, *, check: bool) -> Self:
        """`check` first whether this Nix talks as expected. Raises NotUnderstood, Died and NixMissing."""
        last_lines: deque[bytes] = deque(maxlen=_LAST_LINES)
        process = await nix.start(
            "nix", "repl", *asked.options, on_stderr=last_lines.append, memory_bytes=memory_bytes
        )
        warm = cls(process, last_lines)
        try:
            if check:
                async with asyncio.timeout(_CHECK_SECONDS):
                    await warm._check(asked)
            # Prints nothing, and is computed when it is first used.
            await process.write(
                f"answer = {asked.expression('resolve.nix')} {_quoted(asked.data)}\n".encode()
            )
        except BaseException as error:
            await warm.end()
            if check and isinstance(error, TimeoutError):
                raise Silent(f"nothing for {_CHECK_SECONDS} s") from None
            raise
        return warm

    @property
    def resident_bytes(self) -> int:
        return self._process.resident_bytes

    async def answer(self, name: AttributePath) -> Answers | None:
        """None when it was refused. Raises Died."""
        request = _quoted(question.request([name], explain=False))
        answer = await self._say(f"builtins.toJSON (answer {request})")
        self.answered += 1
        return None if answer is None else Answers.parse(answer)

    async def end(self) -> None:
        await self._process.end()

    async def _check(self, asked: Question) -> None:
        """That questions and answers come through unchanged, errors are survived and purity is kept."""
        tricky = _quoted(json.dumps(_TRICKY))
        facts: Any = None
        if await self._say("throw ''refused''") is None:
            text = await self._say(
                f"builtins.toJSON {{ text = builtins.fromJSON {tricky}; pure = !(builtins ? currentSystem); }}"
            )
            try:
                facts = json.loads(text or b"")
            except ValueError:
                facts = text
        if facts != {"text": _TRICKY, "pure": asked.is_pure}:
            raise NotUnderstood(repr(facts)[:200])

    async def _say(self, line: str) -> bytes | None:
        """The string that the line means; None when it means none. Raises Died."""
        mark = secrets.token_hex(16)
        # A file that ends too early looks to the repl like a line that goes on; nothing goes on behind a `)`.
        await self._process.write(f'{line}\n)\n"{mark}"\n'.encode())
        answer = None
        while True:
            try:
                said = await self._process.read_line()
            except ValueError:  # longer than any answer should be
                await self._process.end()
                said = b""
            if not said:
                returncode = await self._process.wait()
                errors = b"\n".join(self._last_lines).decode(errors="replace")
                raise Died(returncode, out_of_memory=bool(OUT_OF_MEMORY.search(errors)))
            # What was typed is printed too, behind a prompt.
            if string := _STRING.fullmatch(said):
                if string[1] == mark.encode():
                    return answer
                answer = _ESCAPED.sub(rb"\1", string[1])


def _quoted(json_text: str) -> str:
    """A Nix string; JSON in ASCII has no control characters, which would edit the line."""
    escaped = _SPECIAL.sub(lambda match: "\\" + match[0], json_text)
    return f'"{escaped}"'
