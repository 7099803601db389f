"""Webhooks: how an agent's changes reach its webhook_url, and what is seen of that."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from pilot_grpc.domain.ids import VaultId

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what every secret begins with
SECRET_BYTES: Final = 32
# The current secret, and those before it whose overlap has not ended.
SECRETS_MAX: Final = 5
OVERLAP_DEFAULT: Final = timedelta(hours=24)

ERROR_CHARACTERS_MAX: Final = 500

BACKOFF_SECONDS: Final = 1.0
BACKOFF_SECONDS_MAX: Final = 3_600.0
_DOUBLINGS_MAX: Final = 12

# Of a change's check value, in its name.
_DIGITS: Final = 8

# How long the last changes of a deleted agent are tried.
DELETED_KEPT: Final = timedelta(days=1)


class WebhookState(StrEnum):
    """Whether an agent's changes are delivered."""

    DELIVERING = "delivering"
    FAILING = "failing"
    NEEDS_SECRET = "needs_secret"  # noqa: S105 - no secret


@dataclass(frozen=True, slots=True)
class Webhook:
    """How the deliveries of an agent that has a webhook_url go.

    `behind` is how many changes of the vault were not passed yet, those of others
    included; it is a few seconds old.
    """

    state: WebhookState
    attempts: int
    failing_since: datetime | None
    last_error: str | None
    last_error_at: datetime | None
    last_success_at: datetime | None
    next_attempt_at: datetime | None
    delivered_revision: int | None
    behind: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one request to a webhook_url; nobody answered without a `status_code`.

    `retry_after` is in seconds.
    """

    status_code: int | None
    error: str | None
    took: timedelta
    retry_after: float | None = None

    @property
    def delivered(self) -> bool:
        """Whether the receiver has taken the message."""
        return self.error is None


def state_of(*, has_secret: bool, attempts: int) -> WebhookState:
    """Say how the deliveries of an agent with a URL go."""
    if not has_secret:
        return WebhookState.NEEDS_SECRET
    return WebhookState.FAILING if attempts else WebhookState.DELIVERING


def message_id(vault_id: VaultId, revision: int, digest: bytes) -> str:
    """Name a change for its receiver: the same at each attempt and each delivery.

    After a restore another change can have the same number; it has another check value.
    """
    return f"chg_{vault_id}_{revision}_{digest.hex()[:_DIGITS]}"


def backoff(attempts: int, chance: float, retry_after: float | None) -> float:
    """Return how many seconds to wait after so many failed attempts.

    Exponential with full jitter; `chance` is uniform in [0, 1). What the receiver asks
    for is waited for, up to the longest wait.
    """
    longest = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2.0 ** min(attempts - 1, _DOUBLINGS_MAX))
    return max(longest * chance, min(retry_after or 0.0, BACKOFF_SECONDS_MAX))
