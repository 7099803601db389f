"""Values of the domain with sensible defaults."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from pilot_grpc.domain.agents import AgentStatus
from pilot_grpc.domain.budgets import BudgetRule
from pilot_grpc.domain.ids import AgentId, EventId, ProjectId, VaultId
from pilot_grpc.domain.ledger import (
    Change,
    Event,
    EventKind,
    EventStatus,
    EventType,
    Spender,
)
from pilot_grpc.domain.projects import ProjectStatus
from pilot_grpc.domain.vaults import Drift, Outflow, Vault

NOON: Final = datetime(2028, 2, 29, 12, tzinfo=UTC)


def a_rule(**changes: int | None) -> BudgetRule:
    """A rule of 10 a spend, 100 a day and 1000 a month, with nothing spent."""
    rule = BudgetRule(AgentId("a"), 10, 100, 1_000, 0, 0, 0, 0, NOON, NOON, NOON)
    return replace(rule, **changes)  # type: ignore[arg-type]


def a_spender(rule: BudgetRule | None = None, **changes: object) -> Spender:
    spender = Spender(
        agent_id=AgentId("a"),
        vault_id=VaultId("v"),
        project_status=ProjectStatus.ACTIVE,
        status=AgentStatus.ACTIVE,
        provider=None,
        model=None,
        open_holds=0,
        rule=rule,
    )
    return replace(spender, **changes)  # type: ignore[arg-type]


def an_event(**changes: object) -> Event:
    event = Event(
        id=EventId("e"),
        vault_id=VaultId("v"),
        agent_id=AgentId("a"),
        type=EventType.SPEND,
        kind=EventKind.METERED,
        status=EventStatus.CONFIRMED,
        amount=-5,
        authorized_amount=None,
        expires_at=None,
        failure_reason=None,
        decline=None,
        tx_hash=None,
        metadata=None,
        provider=None,
        model=None,
        refunded_event_id=None,
        created_at=NOON,
        updated_at=NOON,
        revision=1,
    )
    return event._replace(**changes)  # type: ignore[arg-type]


def a_change(**changes: object) -> Change:
    change = Change(
        vault_id=VaultId("v"),
        revision=1,
        event_id=EventId("e"),
        previous_revision=None,
        status=EventStatus.CONFIRMED,
        amount=-5,
        failure_reason=None,
        tx_hash=None,
        balance_after=95,
        chain_balance_after=0,
        held_after=0,
        changed_at=NOON,
        digest=b"",
    )
    return change._replace(**changes)  # type: ignore[arg-type]


def a_vault(**changes: object) -> Vault:
    """A vault that holds 1000 and has no history."""
    vault = Vault(VaultId("v"), ProjectId("p"), "address", 1_000, 0, 0, 0, b"", NOON, NOON)
    return replace(vault, **changes)  # type: ignore[arg-type]


def a_drift(**changes: object) -> Drift:
    """Five units that somebody took on chain."""
    drift = Drift("d", -5, 9, 990, 995, (Outflow("theft", 5, 8),), NOON)
    return drift._replace(**changes)  # type: ignore[arg-type]
