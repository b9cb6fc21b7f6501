"""README and manual as the tests read them: blocks of code between fences, each with its language.

A comment before a block says what is special about it:
    <!-- not run: REASON -->      its commands need what no test has
    <!-- fails -->                each of its commands ends with another status than 0
    <!-- in the background -->    its command is a server that goes on while the rest of the page is run
In blocks of `console`, lines behind `$ ` are commands, and others are what these say: all of the lines, one after the
other, somewhere in the output, where `…` stands for anything.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<remark>.*) -->\n(?P=indent))?```(?P<language>.*)\n(?P<text>(?:.*\n)*?)(?P=indent)```$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Command:
    text: str
    output: str

    def matches(self, said: str) -> bool:
        lines = (".*".join(map(re.escape, line.split("…"))) for line in self.output.splitlines())
        return re.search("\n".join(f"{line}[ \t]*" for line in lines), said, re.DOTALL) is not None


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    remark: str
    language: str
    text: str

    @property
    def commands(self) -> Iterator[Command]:
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command = re.match(r"(?:.*\\\n)*.*\n", part)
            assert command is not None
            yield Command(command[0].rstrip("\n"), part[command.end() :].rstrip("\n"))


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, found.start()) + 1,
            found["remark"] or "",
            found["language"],
            re.sub(f"(?m)^{found['indent']}", "", found["text"]),
        )
        for found in FENCE.finditer(text)
    ]
