"""Settings shared by every suite."""

import hypothesis

hypothesis.settings.register_profile(
    "default",
    deadline=None,  # machines differ; pytest-timeout is what stops a test that hangs
    print_blob=True,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,  # the fixtures used are read-only
    ],
)
hypothesis.settings.load_profile("default")
