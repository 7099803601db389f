"""PilotError to a gRPC status with google.rpc details: the only place."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, NoReturn

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[attr-defined,unused-ignore] # no stubs

from pilot_grpc import errors

DOMAIN: Final = "pilot"
_DETAILS: Final = "grpc-status-details-bin"
# Trailers have little room; a caller who sends a thousand bad fields sees the first of them.
_VIOLATIONS_MAX: Final = 50
_TEXT_MAX: Final = 256

STATUS_CODES: Final[Mapping[type[errors.PilotError], grpc.StatusCode]] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CredentialMissing: grpc.StatusCode.UNAUTHENTICATED,
    errors.CredentialInvalid: grpc.StatusCode.UNAUTHENTICATED,
    errors.SignInFailed: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.RequestIdReused: grpc.StatusCode.ALREADY_EXISTS,
    errors.EmailTaken: grpc.StatusCode.ALREADY_EXISTS,
    errors.TxHashTaken: grpc.StatusCode.ALREADY_EXISTS,
    errors.SignUpDisabled: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PasswordWrong: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ProjectArchived: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ProjectNotArchived: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ProjectNotEmpty: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AgentHasNoKey: grpc.StatusCode.FAILED_PRECONDITION,
    errors.HoldNotOpen: grpc.StatusCode.FAILED_PRECONDITION,
    errors.HoldExpired: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CaptureExceedsHold: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OpenHoldsLimit: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.SpendNotRefundable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RefundExceedsSpend: grpc.StatusCode.FAILED_PRECONDITION,
    errors.FundingNotPending: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CreditsDisabled: grpc.StatusCode.FAILED_PRECONDITION,
    errors.BalanceTooLarge: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RecipientUnsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.DeclinesLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.SignInLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.DatabaseUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.ServerDraining: grpc.StatusCode.UNAVAILABLE,
    errors.Internal: grpc.StatusCode.INTERNAL,
    errors.WebhookNotSet: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WebhookNeedsSecret: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResumeTokenInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ResumeTokenOfAnotherScope: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ChangesTrimmed: grpc.StatusCode.OUT_OF_RANGE,
    errors.HistoryUndone: grpc.StatusCode.OUT_OF_RANGE,
    errors.StreamTooOld: grpc.StatusCode.UNAVAILABLE,
    errors.SubscriberStalled: grpc.StatusCode.UNAVAILABLE,
    errors.VaultStopped: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ExceedsVault: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DriftNotOpen: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DriftChanged: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TransfersPending: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ChainUnavailable: grpc.StatusCode.UNAVAILABLE,
}


async def abort(
    context: "grpc.aio.ServicerContext[Any, Any]", error: errors.PilotError, delay: float = 0.0
) -> NoReturn:
    """End the RPC with the status of an error and its details.

    `delay` is how many seconds later than the error says the caller is to come back.
    """
    code = STATUS_CODES[type(error)]
    status = status_pb2.Status(code=code.value[0], message=error.message)
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=DOMAIN,
            metadata={key: value[:_TEXT_MAX] for key, value in error.metadata.items()},
        )
    )
    if isinstance(error, errors.InvalidRequest):
        status.details.add().Pack(_bad_request(error))
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(timedelta(seconds=error.retry_after + delay))
        status.details.add().Pack(retry)
    await context.abort(code, error.message, ((_DETAILS, status.SerializeToString()),))
    raise AssertionError("abort returned")


def _bad_request(error: errors.InvalidRequest) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=field[:_TEXT_MAX], description=description[:_TEXT_MAX]
            )
            for field, description in error.violations[:_VIOLATIONS_MAX]
        ]
    )
