"""What the log looks like, in a process of its own: logging is set up once and for all."""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

SAY = """
import logging, sys
import structlog
from nixery_snap.log import configure_logging

configure_logging(sys.argv[1], quiet=sys.argv[2] == "quiet")
log = structlog.get_logger()
structlog.contextvars.bind_contextvars(request_id="1234")
log.info("said", path="two\\nlines\\x1b[31m\\u2028 gr\\xfcezi \\udcff", count=3)
log.debug("not-said")
structlog.contextvars.clear_contextvars()
log.warning("warned")
try:
    raise ValueError("a\\nb")
except ValueError:
    log.exception("crashed")
logging.getLogger("library").warning("of a %s", "library")
logging.getLogger("library").info("not said")
"""


def said(*arguments: str) -> list[str]:
    command = [sys.executable, "-c", SAY, *arguments]
    cwd = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_one_object_a_line() -> None:
    lines: list[dict[str, Any]] = list(map(json.loads, said("json", "")))
    assert [(line["event"], line["level"]) for line in lines] == [
        ("said", "info"),
        ("warned", "warning"),
        ("crashed", "error"),
        ("of a library", "warning"),
    ]
    first, second, third, _ = lines
    assert first["path"] == "two\nlines\x1b[31m\u2028 gr\xfcezi \udcff"
    assert (first["count"], first["request_id"]) == (3, "1234")
    assert "request_id" not in second
    assert third["exception"].endswith("ValueError: a\nb")
    for line in lines:
        assert line["timestamp"].endswith("Z")
        datetime.fromisoformat(line["timestamp"])


def test_for_people() -> None:
    text = "\n".join(said("console", ""))
    assert "said" in text
    assert not text.startswith("{")
    assert "request_id=1234" in text
    assert "of a library" in text
    assert "\x1b" not in text, "no colours where there is no terminal"


def test_quietly() -> None:
    assert [json.loads(line)["event"] for line in said("json", "quiet")] == [
        "warned",
        "crashed",
        "of a library",
    ]
