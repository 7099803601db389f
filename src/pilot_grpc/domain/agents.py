"""Agents: the programs that spend."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from pilot_grpc.domain.ids import AgentId, ProjectId
from pilot_grpc.domain.webhooks import Webhook

AGENTS_PER_PROJECT_MAX: Final = 10_000
RECIPIENTS_PER_AGENT_MAX: Final = 1_000


class AgentStatus(StrEnum):
    """Whether an agent may spend."""

    ACTIVE = "active"
    PAUSED = "paused"
    ERROR = "error"
    NEEDS_SETUP = "needs_setup"


class Recipient(NamedTuple):
    """A Solana wallet that an agent may pay."""

    address: str
    label: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent as readers see it; `webhook` is there when the webhook_url is."""

    id: AgentId
    project_id: ProjectId
    name: str
    provider: str | None
    model: str | None
    status: AgentStatus
    has_key: bool
    webhook_url: str | None
    created_at: datetime
    updated_at: datetime
    webhook: Webhook | None = None


def status_after_setup(status: AgentStatus, *, has_key: bool, has_rule: bool) -> AgentStatus:
    """Say what an agent's status becomes when its key or its rule changed.

    A key and a rule end the setup; without a rule an active agent needs setup again.
    What its owner set, a pause or an error, stays until its owner clears it.
    """
    if status is AgentStatus.NEEDS_SETUP and has_key and has_rule:
        return AgentStatus.ACTIVE
    if status is AgentStatus.ACTIVE and not has_rule:
        return AgentStatus.NEEDS_SETUP
    return status
