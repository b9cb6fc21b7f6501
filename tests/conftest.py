"""Settings shared by every suite."""

import os
import re
import shutil
import tempfile

import hypothesis
import pytest

from tests.once import VARIABLE

hypothesis.settings.register_profile(
    "default",
    deadline=None,  # machines differ; pytest-timeout is what stops a test that hangs
    max_examples=25 if "CI" in os.environ else 50,  # tests/fuzz goes on for longer
    derandomize="CI" in os.environ,  # what CI says of a change is of that change; `make test` looks further
    print_blob=True,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,  # the fixtures used are read-only
    ],
)
hypothesis.settings.load_profile("default")


# What CI has no time for: the same again with another release or kind of a peer, in another order, on another CPU or
# with thousands of files; and the commands of those pages of the manual that change least.
LONG = re.compile(
    r"/test_image_service_(faults|pulls|registries)\.py::\w+\[([^]]*-)?1\.7"
    r"|::test_disk_full\[1\.7"
    r"|/test_odd_packages\.py::\w+\[manyfiles"
    r"|::test_archive_in_the_nix_store\[(?!2-legacy-plain-tar|2-closure-exported-gzip)"
    r"|::test_restarts_during_pulls\[(?!containerd-service-snapshotter)"
    r"|/test_classic_images\.py::(?!test_hello)\w+\[(containerd-1|podman)"
    r"|::test_as_many_layers_as_allowed\[(?!containerd-2)"
    r"|/test_(evaluators?|read_through)\.py::\w+\[[^]]*2\.26"
    r"|::test_each_attribute_is_evaluated_once\[0"
    r"|::test_one_file_goes_wrong\[[^]]*1\]"
    r"|::test_commands_do_what_the_page_says\[(commands|formats|installation|names|operations|settings)"
    r"|/test_upkeep\.py::\w+\[(memory|az)"
    r"|::test_same_bytes_on_every_cpu_model\[(?!Nehalem)"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if LONG.search(item.nodeid):
            item.add_marker("long")


def pytest_configure(config: pytest.Config) -> None:
    """The process that starts the workers makes the directory that they share, and removes it."""
    if hasattr(config, "workerinput"):
        return
    shared = tempfile.mkdtemp(prefix="nixsnap-shared-")
    os.environ[VARIABLE] = shared
    config.add_cleanup(lambda: shutil.rmtree(shared, ignore_errors=True))
