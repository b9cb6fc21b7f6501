"""Settings shared by every suite."""

import os
import shutil
import tempfile

import hypothesis
import pytest

from tests.once import VARIABLE

hypothesis.settings.register_profile(
    "default",
    deadline=None,  # machines differ; pytest-timeout is what stops a test that hangs
    max_examples=50,  # tests/fuzz goes on for longer
    print_blob=True,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,  # the fixtures used are read-only
    ],
)
hypothesis.settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    """The process that starts the workers makes the directory that they share, and removes it."""
    if hasattr(config, "workerinput"):
        return
    shared = tempfile.mkdtemp(prefix="nixsnap-shared-")
    os.environ[VARIABLE] = shared
    config.add_cleanup(lambda: shutil.rmtree(shared, ignore_errors=True))
