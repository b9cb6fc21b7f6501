"""What all container runtimes of the tests can do."""

from subprocess import CompletedProcess
from typing import Protocol


class Runtime(Protocol):
    """A container engine of its own, with nothing in it but what the test pulls."""

    def pull(self, reference: str, *, check: bool = True) -> "CompletedProcess[str]":
        """Pull HOST:PORT/NAME:TAG over plain HTTP."""
        ...

    def run(self, reference: str, *command: str) -> str:
        """Run a pulled image, its own command when none is given; what it printed."""
        ...
