import inspect
import json
from collections.abc import Iterator

import pytest

from nixery_snap import errors
from nixery_snap.errors import NixerySnapError, PackageProblem, ProblemKind
from nixery_snap.registry.errors import TABLE, code_and_status, error_response

SECRET = "s3cret-/srv/registry/token"
# One of each leaf; whatever text can come from the server's inside is SECRET.
SAMPLES: tuple[NixerySnapError, ...] = (
    errors.InvalidDigest("sha256:x", "too short"),
    errors.InvalidName("A", "lower case"),
    errors.UnsupportedSystem("riscv64-linux", ("x86_64-linux",)),
    errors.BlobNotFound("sha256:0"),
    errors.ManifestNotFound("sha256:0"),
    errors.TagNotFound("path:/x", "v1", "it has latest"),
    errors.PackagesUnavailable((PackageProblem("helo", ProblemKind.MISSING, "no such", ("hello",)),)),
    errors.UnmountablePath("/nix/store/x", "a link"),
    errors.ManifestTooLarge(5, 4, 3),
    errors.PathsNotFetchable(("/nix/store/x",)),
    errors.InvalidImage((SECRET,)),
    errors.NixMissing(SECRET),
    errors.NixTooOld("requires Nix >= 2.18"),
    errors.EvaluationFailed("syntax error"),
    errors.EvaluationTimedOut(60),
    errors.EvaluationTooBig(4096),
    errors.ExperimentalFeatureMissing("flakes"),
    errors.NixDaemonUnreachable(SECRET),
    errors.NixStoreFull(SECRET),
    errors.NixStoreForbidden(SECRET),
    errors.RealisationFailed("/nix/store/x.drv", "builder failed", ("line",), "nix-store --read-log x"),
    errors.RealisationTimedOut(3600),
    errors.StillWorking(60, 10),
    errors.TooManyRequests("enough", 10),
    errors.ShuttingDown(10),
    errors.Unauthenticated('Basic realm="x"'),
    errors.Forbidden(),
    errors.IssuerUnreachable("corp", SECRET),
    errors.PathsMissing((SECRET,)),
    errors.CircularReferences((SECRET,)),
    errors.SubstituterUnreachable("https://cache.example", SECRET),
    errors.BadSignature("https://cache.example", "/nix/store/x", ("other-1",)),
    errors.PathsNotSubstituted((SECRET,), ("https://cache.example",), "no"),
    errors.InvalidArchive("/nix/store/x.tar", "no index"),
    errors.ContainerdUnreachable(SECRET),
    errors.ContainerdTooOld(SECRET),
    errors.ContainerdRefused("import the image", SECRET),
    errors.SnapshotterNotConfigured(SECRET, "it has none", "[proxy_plugins.nix]"),
    errors.StorageUnavailable(SECRET),
    errors.StorageFull(SECRET),
    errors.StorageForbidden(SECRET),
    errors.SourceError(SECRET),
    errors.SettingsError("storage", SECRET),
)


def below(kind: type[NixerySnapError]) -> Iterator[type[NixerySnapError]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


EVERY = sorted(set(below(NixerySnapError)), key=lambda kind: kind.__name__)


def body(error: NixerySnapError) -> str:
    content = error_response(error, "request-1").body
    assert isinstance(content, bytes)
    return content.decode()


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_has_its_row(kind: type[NixerySnapError]) -> None:
    assert any(ancestor in TABLE for ancestor in kind.__mro__)
    assert NixerySnapError not in TABLE, "the root would hide what is missing"


def test_every_leaf_has_a_sample() -> None:
    leaves = {kind for kind in EVERY if not kind.__subclasses__()}
    assert {type(sample) for sample in SAMPLES} == leaves


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_messages(error: NixerySnapError) -> None:
    assert str(error).strip()
    assert type(error).__doc__ or inspect.getdoc(type(error))


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_answers(error: NixerySnapError) -> None:
    response = error_response(error, "request-1")
    assert 400 <= response.status < 600
    assert response.content_type == "application/json"
    [answer] = json.loads(body(error))["errors"]
    assert answer["code"] == code_and_status(error)[0]
    if response.status >= 500 and not isinstance(error, errors.StillWorking | errors.ShuttingDown):
        assert SECRET not in body(error)
        assert str(error) not in body(error)
        assert "request-1" in answer["message"]
    else:
        assert answer["message"] == str(error)


@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind.__init__ is NixerySnapError.__init__])
def test_inner_errors_are_answered_too(kind: type[NixerySnapError]) -> None:
    answer = body(kind(SECRET))
    if code_and_status(kind(SECRET))[1] >= 500:
        assert SECRET not in answer


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (errors.InvalidName("A", "x"), "NAME_INVALID", 400),
        (errors.InvalidDigest("x", "x"), "DIGEST_INVALID", 400),
        (errors.BlobNotFound("x"), "BLOB_UNKNOWN", 404),
        (errors.ManifestNotFound("x"), "MANIFEST_UNKNOWN", 404),
        (errors.StillWorking(1, 10), "UNAVAILABLE", 503),
        (errors.ShuttingDown(10), "UNAVAILABLE", 503),
        (errors.TooManyRequests("x", 10), "TOOMANYREQUESTS", 429),
        (errors.StorageError("x"), "UNKNOWN", 500),
        (errors.StorageUnavailable("x"), "UNAVAILABLE", 503),
        (errors.StorageFull("x"), "UNAVAILABLE", 503),
        (errors.StorageForbidden("x"), "UNKNOWN", 500),
    ],
)
def test_codes(error: NixerySnapError, code: str, status: int) -> None:
    assert code_and_status(error) == (code, status)


def test_who_should_come_back_is_told_when() -> None:
    for error in (
        errors.StillWorking(60, 10, "building hello"),
        errors.TooManyRequests("enough", 10),
        errors.ShuttingDown(10),
    ):
        response = error_response(error, "x")
        assert response.headers["Retry-After"] == "10"
        assert str(error) in json.loads(response.body)["errors"][0]["message"]


def test_every_problem_is_told() -> None:
    problems = tuple(PackageProblem(f"p{kind}", kind, f"because {kind}", ("near",)) for kind in ProblemKind)
    [answer] = json.loads(body(errors.PackagesUnavailable(problems)))["errors"]
    assert [detail["kind"] for detail in answer["detail"]] == list(ProblemKind)
    for problem in problems:
        assert problem.message in answer["message"]
        assert problem.name in answer["message"]
    assert "did you mean near" in answer["message"]


def test_text_that_is_no_utf_8() -> None:
    [answer] = json.loads(body(errors.EvaluationFailed("odd \udc80 text")))["errors"]
    assert answer["message"].endswith("odd ? text")
    long = errors.InvalidFormat("tag", "x" * 100_000, "too long")
    assert len(body(long)) < 1000
