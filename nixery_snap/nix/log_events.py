"""Nix's machine-readable log, `--log-format internal-json` (Nix, src/libutil/logging.hh).

Lines are `@nix {…}`; the numbers are Nix's own enumerations of activities and results.
"""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

_PREFIX: Final = b"@nix "
_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
_LOGIN: Final = re.compile(r"(?<=://)[^/\s'\"]*@")  # Nix shows URLs with all that they hold
_SSH_QUERY: Final = re.compile(
    r"(ssh(?:-ng)?://[^?\s'\"]*)\?[^\s'\"]*"
)  # places of keys and stores on another machine
_NO_MACHINE: Final = "cannot build on "
_ERROR_LEVEL, _WARNING_LEVEL = 0, 1
_MAX_WARNINGS: Final = 50
_COPY_PATH, _BUILD = 100, 105
_BUILD_LOG_LINE: Final = 101
_MAX_PLAIN_LINES: Final = 200
_MAX_LINE: Final = 1000  # characters; builders can print anything
_MAX_MESSAGE: Final = 20_000


@dataclass(slots=True)
class LogReader:
    """Fed line by line, gathers what the log says; `log_lines` bounds what is kept of each build's output."""

    log_lines: int = 25
    errors: list[str] = field(default_factory=list)
    """Error messages without their traces, in order."""
    warnings: dict[str, None] = field(default_factory=dict)
    """First lines of warnings, each once: substituters that do not answer, and bad signatures, are warnings to Nix.

    Also of errors in spite of which Nix goes on, such as a disk that is full for one of many paths.
    """
    machines: dict[str, None] = field(default_factory=dict)
    """Of builders that failed to take a build, each once: which one, and why."""
    build_logs: dict[str, deque[str]] = field(default_factory=dict)
    """The last lines that each derivation's builder printed, by drv path."""
    plain: deque[str] = field(default_factory=lambda: deque(maxlen=_MAX_PLAIN_LINES))
    """Lines that were not in the format: a crash, or a Nix that does not know it."""
    _activities: dict[int, str] = field(default_factory=dict)

    def feed(self, line: bytes) -> str | None:
        """Take one line; returns what began with it (`building …`, `copying …`), for people, if anything."""
        if not line.startswith(_PREFIX):
            if text := _clean(line.decode(errors="replace")):
                self.plain.append(text)
            return None
        try:
            return self._event(json.loads(line[len(_PREFIX) :]))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            self.plain.append(_clean(line.decode(errors="replace")))
            return None

    def _event(self, event: dict[str, Any]) -> str | None:
        match event["action"]:
            case "start" if event["type"] == _BUILD:
                drv_path = str(event["fields"][0])
                self._activities[event["id"]] = drv_path
                self.build_logs[drv_path] = deque(maxlen=self.log_lines)
                return _clean(event["text"])
            case "start" if event["type"] == _COPY_PATH:
                return _clean(event["text"])
            case "result" if event["type"] == _BUILD_LOG_LINE:
                if building := self._activities.get(event["id"]):
                    self.build_logs[building].append(_clean(str(event["fields"][0])))
            case "msg" if event["level"] == _ERROR_LEVEL and "raw_msg" in event:
                self.errors.append(_clean(event["raw_msg"], _MAX_MESSAGE))
            case "msg" if event["level"] == _ERROR_LEVEL and str(event["msg"]).startswith(_NO_MACHINE):
                self.machines[_machine(event["msg"])] = None
            case "msg" if event["level"] <= _WARNING_LEVEL and len(self.warnings) < _MAX_WARNINGS:
                text = _clean(str(event.get("raw_msg", event["msg"]))).partition("\n")[0]
                self.warnings[text.removeprefix("warning: ").removeprefix("error: ")] = None
        return None


def _machine(message: str) -> str:
    """`'MACHINE': REASON`, without the name by which we are known there; of what ssh says its last line."""
    text = re.sub(r"'[^'@\s]*@", "'", _clean(message)).removeprefix(_NO_MACHINE)
    machine, separator, reason = text.partition("': ")
    return machine + separator + reason.rpartition("\n")[2].removeprefix("error: ")


def _clean(text: str, length: int = _MAX_LINE) -> str:
    """Without colours and other control characters, as it ends up in terminals and JSON, nor names and passwords."""
    text = _SSH_QUERY.sub(r"\1", _LOGIN.sub("", _ANSI.sub("", text[: 2 * length]))).replace("\t", "    ")
    return "".join(letter for letter in text if letter.isprintable() or letter == "\n")[:length].rstrip()
