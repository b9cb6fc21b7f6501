"""A binary cache in a bucket of S3, read with the credentials of the environment."""

from pathlib import Path

import pytest

from tests.integration.buckets import Buckets
from tests.integration.caches import CacheDirectory
from tests.integration.images import ALWAYS_ADDED
from tests.integration.nixtools import ChrootStore
from tests.integration.processes import output_of, run
from tests.integration.server import PROGRAM, Registry, Start, Substituter

NAME = "curl/symlinkpath/singlefile"


def check_secrets_are_kept(registry: Registry, buckets: Buckets) -> None:
    """Neither the log nor what the server or the command line say of the settings shows them."""
    shown = run(*PROGRAM, "check-config", *registry.options, env=registry.program_env)
    said = [registry.log.read_text(), output_of(shown), registry.get("/").body.decode()]
    for secret in (buckets.secret_key, buckets.access_key):
        assert not [text for text in said if secret in text]


@pytest.fixture(scope="module")
def cache(
    scratch: Path, prepared_store: ChrootStore, full_cache: CacheDirectory, buckets: Buckets
) -> Substituter:
    """Of what the image needs, not at the top of its bucket."""
    names = [*ALWAYS_ADDED, ("curl",), ("symlinkPath",), ("singleFile",)]
    installed = prepared_store.installed(*names).values()
    closure = prepared_store.closure(path for paths in installed for path in paths)
    part = full_cache.part(scratch / "for-a-bucket", closure)
    buckets.upload(part.root, "caches", "nix/cache")
    return Substituter(buckets.url("caches", "nix/cache"), [full_cache.key.public])


def test_images_from_a_bucket(
    registry: Registry,
    empty_store: ChrootStore,
    cache: Substituter,
    buckets: Buckets,
    directory: Path,
    start: Start,
) -> None:
    """Both formats, and nothing is realised."""
    cold = Registry(directory / "state", empty_store.root, substituters=[cache], env=buckets.env)
    start(cold)
    for name in (f"nix-snapshotter/{NAME}", NAME):
        assert cold.pull(name).manifest == registry.pull(name).manifest
    assert not cold.events("realised")
    check_secrets_are_kept(cold, buckets)


@pytest.mark.parametrize("credentials", ["wrong", "none"])
def test_without_its_credentials_a_bucket_is_of_no_use(
    registry: Registry, cold: Registry, cache: Substituter, buckets: Buckets, start: Start, credentials: str
) -> None:
    """What it does not give is built."""
    url = cache.url + ("&skip_signature=true" if credentials == "none" else "")
    cold.substituters = [Substituter(url, cache.public_keys)]
    cold.env = {**buckets.env, "AWS_SECRET_ACCESS_KEY": buckets.secret_key[::-1]}
    start(cold)
    assert cold.pull("hello").manifest == registry.pull("hello").manifest
    assert cold.events("realised")
    check_secrets_are_kept(cold, buckets)
    assert buckets.secret_key[::-1] not in cold.log.read_text()
