"""Errors as gRPC: one table from this program's errors to statuses. The kubelet shows their messages to people."""

from __future__ import annotations

from typing import Final

import grpc

from nixery_snap import errors

# The most specific class counts; a test sees to it that every error is covered.
STATUSES: Final[dict[type[errors.NixerySnapError], grpc.StatusCode]] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedSystem: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.ImageError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NixError: grpc.StatusCode.INTERNAL,
    errors.NixMissing: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NixTooOld: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NixUnusable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NixDaemonUnreachable: grpc.StatusCode.UNAVAILABLE,
    errors.NixStoreFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.EvaluationFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.EvaluationTimedOut: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.EvaluationTooBig: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ExperimentalFeatureMissing: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RealisationFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RealisationTimedOut: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.PathsNotSubstituted: grpc.StatusCode.NOT_FOUND,
    errors.StillWorking: grpc.StatusCode.UNAVAILABLE,
    errors.ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    errors.TooManyRequests: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.SubstituterError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SubstituterUnreachable: grpc.StatusCode.UNAVAILABLE,
    errors.AccessError: grpc.StatusCode.PERMISSION_DENIED,
    errors.ContainerdError: grpc.StatusCode.INTERNAL,
    errors.ContainerdUnreachable: grpc.StatusCode.UNAVAILABLE,
    errors.ContainerdTooOld: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SnapshotterNotConfigured: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StorageError: grpc.StatusCode.INTERNAL,
    errors.StorageUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.StorageFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StorageForbidden: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SourceError: grpc.StatusCode.UNAVAILABLE,
    errors.SettingsError: grpc.StatusCode.FAILED_PRECONDITION,
}


def status_of(error: errors.NixerySnapError) -> grpc.StatusCode:
    return next(
        (STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), grpc.StatusCode.INTERNAL
    )


def message_of(error: errors.NixerySnapError) -> str:
    """Text from outside can hold lone surrogates, which UTF-8 has no bytes for."""
    return str(error).encode("utf-8", "replace").decode()
