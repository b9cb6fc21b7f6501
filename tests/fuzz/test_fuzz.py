"""All parsers of untrusted bytes, fed with nonsense: a little in every run of the tests, and long by `make fuzz`.

FUZZ_SECONDS is what all targets share. What is found stays in .hypothesis and is tried first the next time; it
belongs into test_findings.py.
"""

import os
import time

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from nixery_snap.errors import NixerySnapError
from tests.fuzz.mutations import almost
from tests.fuzz.targets import TARGETS, Target

SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))
EXAMPLES = 50  # between two looks at the clock


@pytest.mark.timeout(0)
@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_target(target: Target) -> None:
    end = time.monotonic() + SECONDS / len(TARGETS)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.reuse, Phase.generate, Phase.shrink],
    )
    @given(almost(target.seeds))
    def survives(content: bytes) -> None:
        try:
            target.parse(content)
        except (NixerySnapError, *target.also):
            pass

    survives()
    while time.monotonic() < end:
        survives()


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_what_is_changed_is_right_to_begin_with(target: Target) -> None:
    """Else everything would be refused at the first byte."""
    accepted = 0
    for seed in target.seeds:
        try:
            target.parse(seed)
            accepted += 1
        except (NixerySnapError, *target.also):
            pass
    assert accepted
