"""protobuf to domain and back. Parsing is validation: what gets through is well-formed."""

import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from pilot_grpc import errors
from pilot_grpc.domain.accounts import ApiKey, Caller, CredentialKind, Permission, Session, User
from pilot_grpc.domain.agents import Agent, AgentStatus
from pilot_grpc.domain.budgets import BudgetRule, Window
from pilot_grpc.domain.ids import AgentId
from pilot_grpc.domain.ledger import (
    HOLD_TTL_DEFAULT,
    Decline,
    Event,
    EventKind,
    EventStatus,
    EventType,
    FailureReason,
    RuleCheck,
    SpendSummary,
)
from pilot_grpc.domain.projects import Project, ProjectStatus
from pilot_grpc.domain.recount import Discrepancy
from pilot_grpc.domain.requests import fingerprint
from pilot_grpc.domain.vaults import Vault
from pilot_grpc.gen.pilot.v1 import (
    accounts_pb2,
    agents_pb2,
    budgets_pb2,
    ledger_pb2,
    projects_pb2,
    vaults_pb2,
)
from pilot_grpc.services.ledger import Asked, SpendOrder
from pilot_grpc.services.recount import Phase, Place
from pilot_grpc.services.requests import Once

E = TypeVar("E", bound=StrEnum)

SUMMARY_DAYS_MAX: Final = 400


def _numbers(enum: Any, prefix: str, members: type[E]) -> dict[E, Any]:
    """Pair our enum with the proto's, by name; a member without a partner is an error."""
    return {member: enum.Value(f"{prefix}_{member.name}") for member in members}


PERMISSIONS: Final = _numbers(accounts_pb2.Permission, "PERMISSION", Permission)
PROJECT_STATUSES: Final = _numbers(projects_pb2.ProjectStatus, "PROJECT_STATUS", ProjectStatus)
AGENT_STATUSES: Final = _numbers(agents_pb2.AgentStatus, "AGENT_STATUS", AgentStatus)
EVENT_TYPES: Final = _numbers(ledger_pb2.EventType, "EVENT_TYPE", EventType)
EVENT_KINDS: Final = _numbers(ledger_pb2.EventKind, "EVENT_KIND", EventKind)
EVENT_STATUSES: Final = _numbers(ledger_pb2.EventStatus, "EVENT_STATUS", EventStatus)
FAILURE_REASONS: Final = _numbers(ledger_pb2.FailureReason, "FAILURE_REASON", FailureReason)
DIMENSIONS: Final = {
    ledger_pb2.SPEND_DIMENSION_DAY: "day",
    ledger_pb2.SPEND_DIMENSION_AGENT: "agent",
    ledger_pb2.SPEND_DIMENSION_PROVIDER: "provider",
    ledger_pb2.SPEND_DIMENSION_MODEL: "model",
}


def members(numbers: dict[E, Any], wanted: Sequence[Any]) -> list[E] | None:
    """Return our members for the proto's numbers; None when there are none."""
    return [member for member, number in numbers.items() if number in wanted] or None


# --- requests -------------------------------------------------------------------------


def asked(message: Any, rpc: str, *scope: str) -> Asked:
    """Recognise a request that moves money; `scope` are the fields that name its scope."""
    fields = frozenset(("request_id", *scope))
    return Asked(message.request_id, rpc, fingerprint_of(message, fields))


def once(message: Any, rpc: str, caller: Caller) -> Once:
    """Recognise a Create request, within all that its user asks."""
    return Once(caller.user_id, message.request_id, rpc, fingerprint_of(message, {"request_id"}))


def fingerprint_of(message: Message, left_out: Collection[str]) -> str:
    """Hash each field that the caller sent, but for some."""
    return fingerprint(
        (field.name, _content(value))
        for field, value in message.ListFields()
        if field.name not in left_out
    )


def _content(value: Any) -> bytes:
    if isinstance(value, Message):
        return value.SerializeToString(deterministic=True)
    if isinstance(value, (str, int)):
        return str(value).encode()
    return b"".join(_content(item) + b"\x00" for item in value)


def agent_of(message: Any, caller: Caller, field: str = "agent_id") -> AgentId:
    """Return the agent that a request is about; an agent may leave itself out."""
    agent_id = message.agent_id or caller.agent_id
    if not agent_id:
        raise errors.InvalidRequest([(field, "must name an agent")])
    return AgentId(agent_id)


def visible_agent(message: Any, caller: Caller) -> AgentId:
    """Return the agent that is read; an agent reads only itself. Raises NotFound."""
    agent_id = agent_of(message, caller)
    if caller.agent_id not in {None, agent_id}:
        raise errors.NotFound(resource="agent", id=agent_id)
    return agent_id


def spend_order(message: ledger_pb2.SpendRequest, caller: Caller) -> SpendOrder:
    """Read a spend. Raises InvalidRequest, RecipientUnsupported."""
    return _spend_order(message, caller, "")


def batch_orders(message: ledger_pb2.BatchSpendRequest, caller: Caller) -> list[SpendOrder]:
    """Read a batch: all violations of all spends at once. Raises as `spend_order`."""
    orders: list[SpendOrder] = []
    violations: list[tuple[str, str]] = []
    first: dict[tuple[str, str], int] = {}
    for index, spend in enumerate(message.spends):
        path = f"spends[{index}]."
        try:
            order = _spend_order(spend, caller, path)
        except errors.InvalidRequest as error:
            violations += error.violations
            continue
        earlier = first.setdefault((order.agent_id, order.asked.request_id), index)
        if earlier != index:
            violations.append((f"{path}request_id", f"repeats that of spends[{earlier}]"))
        orders.append(order)
    if violations:
        raise errors.InvalidRequest(violations)
    return orders


def _spend_order(message: ledger_pb2.SpendRequest, caller: Caller, path: str) -> SpendOrder:
    if message.HasField("recipient"):
        raise errors.RecipientUnsupported
    return SpendOrder(
        asked=asked(message, "Spend", "agent_id"),
        agent_id=agent_of(message, caller, f"{path}agent_id"),
        amount=message.amount,
        provider=text(message, "provider"),
        model=text(message, "model"),
        metadata=metadata(message, f"{path}metadata"),
    )


def hold_order(message: ledger_pb2.AuthorizeSpendRequest, caller: Caller) -> SpendOrder:
    """Read a hold. Raises InvalidRequest."""
    return SpendOrder(
        asked=asked(message, "AuthorizeSpend", "agent_id"),
        agent_id=agent_of(message, caller),
        amount=message.amount,
        provider=text(message, "provider"),
        model=text(message, "model"),
        metadata=metadata(message),
        ttl=_timedelta(message.ttl) if message.HasField("ttl") else HOLD_TTL_DEFAULT,
    )


def text(message: Any, field: str) -> str | None:
    """Return an optional text; None when it is absent."""
    return getattr(message, field) if message.HasField(field) else None


def metadata(message: Any, path: str = "metadata") -> str | None:
    """Return the metadata as sent, if it is JSON. Raises InvalidRequest."""
    sent = text(message, "metadata")
    if sent is None:
        return None
    try:
        json.loads(sent, parse_int=str, parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise errors.InvalidRequest([(path, "must be JSON text")]) from None
    return sent


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def changes(message: Any) -> dict[str, str | None]:
    """Return the fields that a mask names, with None for those to be removed."""
    named = dict.fromkeys(message.update_mask.paths)
    if "name" in named and not message.name:
        raise errors.InvalidRequest([("name", "must not be empty")])
    return {field: message.name if field == "name" else text(message, field) for field in named}


def moment(message: Any, field: str) -> datetime | None:
    """Return a time; None when it is absent. Raises InvalidRequest out of years 1 to 9999."""
    if not message.HasField(field):
        return None
    try:
        return _datetime(getattr(message, field))
    except (ValueError, OverflowError):
        raise errors.InvalidRequest([(field, "must be a time of the years 1 to 9999")]) from None


def period(message: ledger_pb2.SummarizeSpendRequest) -> tuple[datetime, datetime]:
    """Return the period of a summary. Raises InvalidRequest."""
    start, end = moment(message, "start_time"), moment(message, "end_time")
    if start is None or end is None or end <= start:
        raise errors.InvalidRequest([("end_time", "must be after start_time")])
    if end - start > timedelta(days=SUMMARY_DAYS_MAX):
        limit = f"must be at most {SUMMARY_DAYS_MAX} days after start_time"
        raise errors.InvalidRequest([("end_time", limit)])
    return start, end


def audit_place(where: list[Any] | None) -> Place:
    """Read where a recount goes on. Raises InvalidRequest."""
    if where is None:
        return Place()
    try:
        phase, revision, at, row_id = where
        at = None if at is None else datetime.fromisoformat(at)
        return Place(Phase(phase), int(revision), at, str(row_id))
    except (TypeError, ValueError):
        raise errors.InvalidRequest([("page_token", "not a token of this request")]) from None


def audit_cursor(place: Place) -> tuple[Any, ...]:
    """Write where a recount goes on, for a page token."""
    return (place.phase, place.revision, place.moment and place.moment.isoformat(), place.row_id)


def _datetime(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _timedelta(duration: Duration) -> timedelta:
    return duration.ToTimedelta()


# --- responses ------------------------------------------------------------------------


def timestamp(value: datetime | None) -> Timestamp | None:
    """Write a time; None stays absent."""
    if value is None:
        return None
    return Timestamp(seconds=int(value.timestamp() // 1), nanos=value.microsecond * 1_000)


def user(value: User) -> accounts_pb2.User:
    """Write a user, without the password's hash."""
    return accounts_pb2.User(
        id=value.id,
        email=value.email,
        name=value.name,
        avatar=value.avatar,
        create_time=timestamp(value.created_at),
    )


def session(value: Session, caller: Caller | None = None) -> accounts_pb2.Session:
    """Write a session, and whether it is the caller's own."""
    return accounts_pb2.Session(
        id=value.id,
        create_time=timestamp(value.created_at),
        expire_time=timestamp(value.expires_at),
        current=caller is None
        or (caller.kind is CredentialKind.SESSION and caller.credential_id == value.id),
    )


def api_key(value: ApiKey) -> accounts_pb2.ApiKey:
    """Write an API key, without its secret."""
    return accounts_pb2.ApiKey(
        id=value.id,
        name=value.name,
        key_prefix=value.key_prefix,
        permissions=[PERMISSIONS[permission] for permission in value.permissions],
        request_count=value.request_count,
        last_used_time=timestamp(value.last_used_at),
        expire_time=timestamp(value.expires_at),
        create_time=timestamp(value.created_at),
    )


def project(value: Project) -> projects_pb2.Project:
    """Write a project."""
    return projects_pb2.Project(
        id=value.id,
        name=value.name,
        description=value.description,
        status=PROJECT_STATUSES[value.status],
        vault_id=value.vault_id,
        create_time=timestamp(value.created_at),
        update_time=timestamp(value.updated_at),
    )


def vault(value: Vault) -> vaults_pb2.Vault:
    """Write a vault."""
    return vaults_pb2.Vault(
        id=value.id,
        project_id=value.project_id,
        address=value.address,
        balance=value.balance,
        chain_balance=value.chain_balance,
        held=value.held,
        revision=value.revision,
        create_time=timestamp(value.created_at),
    )


def agent(value: Agent) -> agents_pb2.Agent:
    """Write an agent."""
    return agents_pb2.Agent(
        id=value.id,
        project_id=value.project_id,
        name=value.name,
        provider=value.provider,
        model=value.model,
        status=AGENT_STATUSES[value.status],
        has_key=value.has_key,
        webhook_url=value.webhook_url,
        create_time=timestamp(value.created_at),
        update_time=timestamp(value.updated_at),
    )


def budget_rule(value: BudgetRule) -> budgets_pb2.BudgetRule:
    """Write a rule; it must be as of now."""
    return budgets_pb2.BudgetRule(
        agent_id=value.agent_id,
        per_tx_limit=value.per_tx_limit,
        daily_limit=value.daily_limit,
        monthly_limit=value.monthly_limit,
        day=_window(value.day),
        month=_window(value.month),
        create_time=timestamp(value.created_at),
        update_time=timestamp(value.updated_at),
    )


def _window(value: Window) -> budgets_pb2.BudgetWindow:
    return budgets_pb2.BudgetWindow(
        limit=value.limit,
        spent=value.spent,
        held=value.held,
        remaining=value.remaining,
        start_time=timestamp(value.starts_at),
        end_time=timestamp(value.ends_at),
    )


def rule_check(value: RuleCheck, caller: Caller) -> budgets_pb2.RuleCheck:
    """Write one rule's answer; an agent sees no figure of the vault."""
    figures = _visible(value.figures, caller)
    return budgets_pb2.RuleCheck(
        rule=FAILURE_REASONS[figures.reason],
        passed=value.passed,
        limit=figures.limit,
        spent=figures.spent,
        held=figures.held,
        remaining=figures.remaining,
        window_end_time=timestamp(figures.window_ends_at),
    )


def decline(value: Decline, caller: Caller) -> ledger_pb2.Decline:
    """Write a decline; an agent sees no figure of the vault."""
    figures = _visible(value, caller)
    return ledger_pb2.Decline(
        reason=FAILURE_REASONS[figures.reason],
        limit=figures.limit,
        spent=figures.spent,
        held=figures.held,
        remaining=figures.remaining,
        window_end_time=timestamp(figures.window_ends_at),
    )


def _visible(figures: Decline, caller: Caller) -> Decline:
    if caller.agent_id is not None and figures.reason is FailureReason.INSUFFICIENT_BALANCE:
        return Decline(figures.reason)
    return figures


def event(value: Event, caller: Caller) -> ledger_pb2.Event:
    """Write an event as this caller may see it."""
    reason = value.failure_reason
    return ledger_pb2.Event(
        id=value.id,
        vault_id=value.vault_id,
        agent_id=value.agent_id,
        type=EVENT_TYPES[value.type],
        kind=EVENT_KINDS[value.kind],
        status=EVENT_STATUSES[value.status],
        amount=value.amount,
        authorized_amount=value.authorized_amount,
        failure_reason=None if reason is None else FAILURE_REASONS[reason],
        decline=None if value.decline is None else decline(value.decline, caller),
        tx_hash=value.tx_hash,
        metadata=value.metadata,
        provider=value.provider,
        model=value.model,
        refunded_event_id=value.refunded_event_id,
        create_time=timestamp(value.created_at),
        update_time=timestamp(value.updated_at),
        expire_time=timestamp(value.expires_at),
        revision=value.revision,
    )


def spend_summary(value: SpendSummary) -> ledger_pb2.SpendSummary:
    """Write the sums of one group."""
    return ledger_pb2.SpendSummary(**value._asdict())


def discrepancy(value: Discrepancy | None) -> ledger_pb2.Discrepancy | None:
    """Write a row that disagrees with the recount."""
    return None if value is None else ledger_pb2.Discrepancy(**value._asdict())
