"""Every way in which Pilot refuses a request; knows nothing of gRPC.

A reason here has the same name in `ErrorReason` (protos/pilot/v1/errors.proto) and a
status code in `rpc/errors.py`; `tests/test_contract.py` proves both.
"""

from collections.abc import Sequence
from typing import ClassVar


class PilotError(Exception):
    """A request was refused. `metadata` goes to the caller, so it holds no secret."""

    reason: ClassVar[str]
    message: ClassVar[str]

    def __init__(self, *, retry_after: float | None = None, **metadata: object) -> None:
        """Take what the caller may know; `retry_after` is in seconds."""
        super().__init__(self.message)
        self.metadata = {key: str(value) for key, value in metadata.items()}
        self.retry_after = retry_after


class InvalidRequest(PilotError):
    reason = "INVALID_REQUEST"
    message = "The request is malformed."

    def __init__(self, violations: Sequence[tuple[str, str]]) -> None:
        """Take all violations at once, each a field path and what is wrong with it."""
        super().__init__()
        self.violations = tuple(violations)


class CredentialMissing(PilotError):
    reason = "CREDENTIAL_MISSING"
    message = "Send `authorization: Bearer <credential>` in the metadata."


class CredentialInvalid(PilotError):
    reason = "CREDENTIAL_INVALID"
    message = "The credential is unknown, revoked or expired."


class SignInFailed(PilotError):
    reason = "SIGN_IN_FAILED"
    message = "The address and the password do not belong together."


class PermissionDenied(PilotError):
    reason = "PERMISSION_DENIED"
    message = "The credential lacks a permission."


class NotFound(PilotError):
    reason = "NOT_FOUND"
    message = "There is no such resource."


class RequestIdReused(PilotError):
    reason = "REQUEST_ID_REUSED"
    message = "The request_id was used for another request."


class EmailTaken(PilotError):
    reason = "EMAIL_TAKEN"
    message = "A user with this address exists."


class TxHashTaken(PilotError):
    reason = "TX_HASH_TAKEN"
    message = "The vault has an event with this tx_hash."


class SignUpDisabled(PilotError):
    reason = "SIGN_UP_DISABLED"
    message = "This installation takes no new users."


class PasswordWrong(PilotError):
    reason = "PASSWORD_WRONG"
    message = "The current password is another."


class ProjectArchived(PilotError):
    reason = "PROJECT_ARCHIVED"
    message = "The project is archived."


class ProjectNotArchived(PilotError):
    reason = "PROJECT_NOT_ARCHIVED"
    message = "Only an archived project can be deleted."


class ProjectNotEmpty(PilotError):
    reason = "PROJECT_NOT_EMPTY"
    message = "The project has pending events or money."


class AgentHasNoKey(PilotError):
    reason = "AGENT_HAS_NO_KEY"
    message = "The agent has no key."


class HoldNotOpen(PilotError):
    reason = "HOLD_NOT_OPEN"
    message = "The event is not an open hold."


class HoldExpired(PilotError):
    reason = "HOLD_EXPIRED"
    message = "The hold has expired."


class CaptureExceedsHold(PilotError):
    reason = "CAPTURE_EXCEEDS_HOLD"
    message = "The capture is more than the hold."


class OpenHoldsLimit(PilotError):
    reason = "OPEN_HOLDS_LIMIT"
    message = "The agent has as many open holds as it may."


class SpendNotRefundable(PilotError):
    reason = "SPEND_NOT_REFUNDABLE"
    message = "The event is not a confirmed metered spend."


class RefundExceedsSpend(PilotError):
    reason = "REFUND_EXCEEDS_SPEND"
    message = "The refund is more than what is left of the spend."


class FundingNotPending(PilotError):
    reason = "FUNDING_NOT_PENDING"
    message = "The event is not a pending credit."


class CreditsDisabled(PilotError):
    reason = "CREDITS_DISABLED"
    message = "This installation takes deposits on chain only."


class BalanceTooLarge(PilotError):
    reason = "BALANCE_TOO_LARGE"
    message = "The vault would hold more than it may."


class RecipientUnsupported(PilotError):
    reason = "RECIPIENT_UNSUPPORTED"
    message = "This installation works on no chain."


class DeclinesLimited(PilotError):
    reason = "DECLINES_LIMITED"
    message = "The agent was declined too often in the last minute."


class SignInLimited(PilotError):
    reason = "SIGN_IN_LIMITED"
    message = "Too many attempts for this address."


class QuotaExceeded(PilotError):
    reason = "QUOTA_EXCEEDED"
    message = "There are as many of them as there may be."


class Overloaded(PilotError):
    reason = "OVERLOADED"
    message = "The server has too much to do; this attempt did nothing."


class DeadlineExceeded(PilotError):
    reason = "DEADLINE_EXCEEDED"
    message = "The deadline passed; repeat with the same request_id."


class DatabaseUnavailable(PilotError):
    reason = "DATABASE_UNAVAILABLE"
    message = "The database is away; repeat with the same request_id."


class ServerDraining(PilotError):
    reason = "SERVER_DRAINING"
    message = "This server is shutting down; repeat on another."


class Internal(PilotError):
    reason = "INTERNAL"
    message = "Something went wrong; the log has it under this error_id."


class ResumeTokenInvalid(PilotError):
    reason = "RESUME_TOKEN_INVALID"
    message = "The resume token was not made by this installation, or was changed."


class ResumeTokenOfAnotherScope(PilotError):
    reason = "RESUME_TOKEN_OF_ANOTHER_SCOPE"
    message = "The resume token belongs to another vault, agent or user."


class ChangesTrimmed(PilotError):
    reason = "CHANGES_TRIMMED"
    message = "Changes that should come next are no longer kept."


class HistoryUndone(PilotError):
    reason = "HISTORY_UNDONE"
    message = "The vault's history was restored to an earlier time than the token's."


class StreamTooOld(PilotError):
    reason = "STREAM_TOO_OLD"
    message = "The stream has lasted as long as one may; resume it."


class SubscriberStalled(PilotError):
    reason = "SUBSCRIBER_STALLED"
    message = "The subscriber took nothing for too long; resume it."


class WebhookNotSet(PilotError):
    reason = "WEBHOOK_NOT_SET"
    message = "The agent has no webhook_url."


class WebhookNeedsSecret(PilotError):
    reason = "WEBHOOK_NEEDS_SECRET"
    message = "The agent has no secret to sign with."


class VaultStopped(PilotError):
    reason = "VAULT_STOPPED"
    message = "The vault's transfers are stopped until its drift is acknowledged."


class ExceedsVault(PilotError):
    reason = "EXCEEDS_VAULT"
    message = "The amount is more than may leave the vault in this way."


class DriftNotOpen(PilotError):
    reason = "DRIFT_NOT_OPEN"
    message = "This drift is not, or no longer, the open one."


class DriftChanged(PilotError):
    reason = "DRIFT_CHANGED"
    message = "The drift has another amount by now."


class TransfersPending(PilotError):
    reason = "TRANSFERS_PENDING"
    message = "Payments of the vault are still on their way."


class ChainUnavailable(PilotError):
    reason = "CHAIN_UNAVAILABLE"
    message = "The Solana nodes do not answer, or not alike."
