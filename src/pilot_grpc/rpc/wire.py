"""protobuf to domain and back. Parsing is validation: what gets through is well-formed."""

import json
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from pilot_grpc import errors
from pilot_grpc.domain.accounts import ApiKey, Caller, CredentialKind, Permission, Session, User
from pilot_grpc.domain.agents import Agent, AgentStatus, Recipient
from pilot_grpc.domain.budgets import BudgetRule, Window
from pilot_grpc.domain.ids import AgentId, ProjectId, VaultId
from pilot_grpc.domain.ledger import (
    BATCH_SPENDS_MAX,
    HOLD_TTL_DEFAULT,
    METADATA_BYTES_MAX,
    Decline,
    Event,
    EventKind,
    EventStatus,
    EventType,
    FailureReason,
    RuleCheck,
    SpendSummary,
    decode_decline,
)
from pilot_grpc.domain.projects import Project, ProjectStatus
from pilot_grpc.domain.recount import Discrepancy
from pilot_grpc.domain.requests import fingerprint
from pilot_grpc.domain.stream import Start, Update, Wanted
from pilot_grpc.domain.vaults import Drift, Vault, decode_drift
from pilot_grpc.domain.webhooks import OVERLAP_DEFAULT, Attempt, Webhook, WebhookState
from pilot_grpc.gen.pilot.v1 import (
    accounts_pb2,
    agents_pb2,
    budgets_pb2,
    ledger_pb2,
    projects_pb2,
    vaults_pb2,
)
from pilot_grpc.services.ledger import Asked, SpendOrder
from pilot_grpc.services.reconciliation import Reconciliation
from pilot_grpc.services.requests import Once
from pilot_grpc.services.stream import Topic

E = TypeVar("E", bound=StrEnum)

SUMMARY_DAYS_MAX: Final = 400
# The answer is larger by up to a kilobyte a spend, and must fit 4 MiB.
BATCH_BYTES_MAX: Final = 2_500_000

HEARTBEAT_SECONDS_DEFAULT: Final = 15.0

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_NANOS_A_SECOND: Final = 1_000_000_000
# What protobuf calls a time: the years 1 to 9999.
_SECONDS_MIN: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _SECOND
_SECONDS_MAX: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _SECOND

# To the database's driver, the first and the last moment of all stand for its infinities.
_EARLIEST: Final = datetime.min.replace(microsecond=1, tzinfo=UTC)
_LATEST: Final = datetime.max.replace(microsecond=999_998, tzinfo=UTC)

# An agent may leave out who it is; anybody else must say.
_NEEDS_AGENT: Final = (
    agents_pb2.GetAgentRequest,
    agents_pb2.GetWebhookRequest,
    agents_pb2.ListRecipientsRequest,
    budgets_pb2.GetBudgetRuleRequest,
    budgets_pb2.CheckSpendRequest,
    ledger_pb2.SpendRequest,
    ledger_pb2.AuthorizeSpendRequest,
)
# Declines whose figures are the vault's, which an agent must not see.
_OF_THE_VAULT: Final = frozenset(
    {FailureReason.INSUFFICIENT_BALANCE, FailureReason.INSUFFICIENT_CHAIN_BALANCE}
)
_EVENT_BYTES: Final = 1_024  # Without its metadata, and with the longest names.
_HAS_MASK: Final = (projects_pb2.UpdateProjectRequest, agents_pb2.UpdateAgentRequest)


def _numbers(enum: Any, prefix: str, members: type[E]) -> dict[E, Any]:
    """Pair our enum with the proto's, by name; a member without a partner is an error."""
    return {member: enum.Value(f"{prefix}_{member.name}") for member in members}


PERMISSIONS: Final = _numbers(accounts_pb2.Permission, "PERMISSION", Permission)
PROJECT_STATUSES: Final = _numbers(projects_pb2.ProjectStatus, "PROJECT_STATUS", ProjectStatus)
AGENT_STATUSES: Final = _numbers(agents_pb2.AgentStatus, "AGENT_STATUS", AgentStatus)
WEBHOOK_STATES: Final = _numbers(agents_pb2.WebhookState, "WEBHOOK_STATE", WebhookState)
EVENT_TYPES: Final = _numbers(ledger_pb2.EventType, "EVENT_TYPE", EventType)
EVENT_KINDS: Final = _numbers(ledger_pb2.EventKind, "EVENT_KIND", EventKind)
EVENT_STATUSES: Final = _numbers(ledger_pb2.EventStatus, "EVENT_STATUS", EventStatus)
FAILURE_REASONS: Final = _numbers(ledger_pb2.FailureReason, "FAILURE_REASON", FailureReason)
STARTS: Final = {
    ledger_pb2.STREAM_START_EARLIEST: Start.EARLIEST,
    ledger_pb2.STREAM_START_LATEST: Start.LATEST,
}
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


def must_be_countable(message: Any) -> None:
    """Raise InvalidRequest for a batch that is too long to look at, or to answer."""
    if len(getattr(message, "spends", ())) > BATCH_SPENDS_MAX:
        limit = f"must contain no more than {BATCH_SPENDS_MAX} item(s)"
        raise errors.InvalidRequest([("spends", limit)])
    if isinstance(message, ledger_pb2.BatchSpendRequest) and message.ByteSize() > BATCH_BYTES_MAX:
        limit = f"must take no more than {BATCH_BYTES_MAX} bytes together"
        raise errors.InvalidRequest([("spends", limit)])


def violations(message: Any, caller: Caller | None, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each field that is wrong beyond what the rules of the protos can say.

    What the functions below read has passed both.
    """
    if isinstance(message, _NEEDS_AGENT) and not _agent_id(message, caller):
        yield f"{path}agent_id", "must name an agent"
    for field, value in message.ListFields():
        if field.name == "metadata" and not _is_json(value):
            yield f"{path}metadata", "must be JSON text"
        elif isinstance(value, Timestamp) and not _is_time(value):
            yield f"{path}{field.name}", "must be a time of the years 1 to 9999"
        elif isinstance(value, Duration) and not _is_duration(value):
            yield f"{path}{field.name}", "must have seconds and nanos of one sign"
    if isinstance(message, ledger_pb2.BatchSpendRequest):
        yield from _batch_violations(message, caller)
    elif isinstance(message, ledger_pb2.SummarizeSpendRequest):
        yield from _period_violations(message)
    elif isinstance(message, _HAS_MASK) and _removes_name(message):
        yield "name", "must not be empty"


def _batch_violations(
    message: ledger_pb2.BatchSpendRequest, caller: Caller | None
) -> Iterator[tuple[str, str]]:
    first: dict[tuple[str, str], int] = {}
    for index, spend in enumerate(message.spends):
        yield from violations(spend, caller, f"spends[{index}].")
        earlier = first.setdefault((_agent_id(spend, caller), spend.request_id), index)
        if earlier != index:
            yield f"spends[{index}].request_id", f"repeats that of spends[{earlier}]"


def _period_violations(message: ledger_pb2.SummarizeSpendRequest) -> Iterator[tuple[str, str]]:
    if not (_is_time(message.start_time) and _is_time(message.end_time)):
        return
    start, end = period(message)
    if end <= start:
        yield "end_time", "must be after start_time"
    if end - start > timedelta(days=SUMMARY_DAYS_MAX):
        yield "end_time", f"must be at most {SUMMARY_DAYS_MAX} days after start_time"


def _removes_name(message: Any) -> bool:
    return not message.name and "name" in message.update_mask.paths


def _agent_id(message: Any, caller: Caller | None) -> str:
    own = caller.agent_id if caller is not None else None
    return message.agent_id or own or ""


def _is_json(text: str) -> bool:
    if len(text) > METADATA_BYTES_MAX:
        return False
    try:
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _is_time(stamp: Timestamp) -> bool:
    return _SECONDS_MIN <= stamp.seconds <= _SECONDS_MAX and 0 <= stamp.nanos < _NANOS_A_SECOND


def _is_duration(duration: Duration) -> bool:
    return abs(duration.nanos) < _NANOS_A_SECOND and duration.seconds * duration.nanos >= 0


def agent_of(message: Any, caller: Caller) -> AgentId:
    """Return the agent that a request is about; an agent may leave itself out."""
    return AgentId(_agent_id(message, caller))


def visible_agent(message: Any, caller: Caller) -> AgentId:
    """Return the agent that is read; an agent reads only itself. Raises NotFound."""
    agent_id = agent_of(message, caller)
    if caller.agent_id not in {None, agent_id}:
        raise errors.NotFound(resource="agent", id=agent_id)
    return agent_id


def spend_order(message: ledger_pb2.SpendRequest, caller: Caller) -> SpendOrder:
    """Read a spend."""
    return SpendOrder(
        asked=asked(message, "Spend", "agent_id"),
        agent_id=agent_of(message, caller),
        amount=message.amount,
        provider=text(message, "provider"),
        model=text(message, "model"),
        metadata=text(message, "metadata"),
        recipient=text(message, "recipient"),
    )


def hold_order(message: ledger_pb2.AuthorizeSpendRequest, caller: Caller) -> SpendOrder:
    """Read a hold."""
    return SpendOrder(
        asked=asked(message, "AuthorizeSpend", "agent_id"),
        agent_id=agent_of(message, caller),
        amount=message.amount,
        provider=text(message, "provider"),
        model=text(message, "model"),
        metadata=text(message, "metadata"),
        ttl=_timedelta(message.ttl) if message.HasField("ttl") else HOLD_TTL_DEFAULT,
    )


def topic(message: ledger_pb2.SubscribeEventsRequest) -> Topic:
    """Read what is to be followed."""
    return Topic(
        vault_id=VaultId(message.vault_id) if message.vault_id else None,
        project_id=ProjectId(message.project_id) if message.project_id else None,
        agent_id=AgentId(message.agent_id) if message.agent_id else None,
    )


def start(message: ledger_pb2.SubscribeEventsRequest) -> Start | str:
    """Read where a stream begins: at an end, or after a token."""
    return message.resume_token or STARTS[message.start]


def wanted(message: ledger_pb2.SubscribeEventsRequest) -> Wanted:
    """Read which changes a stream delivers."""
    return Wanted(
        types=_allowed(EVENT_TYPES, message.types),
        kinds=_allowed(EVENT_KINDS, message.kinds),
        statuses=_allowed(EVENT_STATUSES, message.statuses),
    )


def _allowed(numbers: dict[E, Any], asked: Sequence[Any]) -> frozenset[E] | None:
    found = members(numbers, asked)
    return None if found is None else frozenset(found)


def heartbeat_seconds(message: ledger_pb2.SubscribeEventsRequest) -> float:
    """Read how often a stream says something at least."""
    if not message.HasField("heartbeat_interval"):
        return HEARTBEAT_SECONDS_DEFAULT
    return _timedelta(message.heartbeat_interval).total_seconds()


def overlap(message: agents_pb2.IssueWebhookSecretRequest) -> timedelta:
    """Read how long the secrets before go on signing."""
    return _timedelta(message.overlap) if message.HasField("overlap") else OVERLAP_DEFAULT


def text(message: Any, field: str) -> str | None:
    """Return an optional text; None when it is absent."""
    return getattr(message, field) if message.HasField(field) else None


def changes(message: Any) -> dict[str, str | None]:
    """Return the fields that a mask names, with None for those to be removed."""
    return {
        field: message.name if field == "name" else text(message, field)
        for field in dict.fromkeys(message.update_mask.paths)
    }


def moment(message: Any, field: str) -> datetime | None:
    """Return a time; None when it is absent."""
    return _datetime(getattr(message, field)) if message.HasField(field) else None


def period(message: ledger_pb2.SummarizeSpendRequest) -> tuple[datetime, datetime]:
    """Return the period of a summary."""
    return _datetime(message.start_time), _datetime(message.end_time)


def _datetime(stamp: Timestamp) -> datetime:
    return min(max(stamp.ToDatetime(tzinfo=UTC), _EARLIEST), _LATEST)


def _timedelta(duration: Duration) -> timedelta:
    return duration.ToTimedelta()


# --- responses ------------------------------------------------------------------------


def timestamp(value: datetime | None) -> Timestamp | None:
    """Write a time; None stays absent."""
    if value is None:
        return None
    return Timestamp(seconds=(value - _EPOCH) // _SECOND, nanos=value.microsecond * 1_000)


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
        open_drift=None if value.drift is None else drift(value.drift, is_open=True),
    )


def drift(value: Drift, *, is_open: bool) -> ledger_pb2.Drift:
    """Write a difference between ledger and chain."""
    return ledger_pb2.Drift(
        id=value.id,
        open=is_open,
        amount=value.amount,
        slot=value.slot,
        found_amount=value.found_amount,
        expected_amount=value.expected_amount,
        outflows=[ledger_pb2.Outflow(**outflow._asdict()) for outflow in value.outflows],
        create_time=timestamp(value.created_at),
    )


def reconciliation(value: Reconciliation) -> vaults_pb2.ReconcileVaultResponse:
    """Write what ledger and chain have."""
    return vaults_pb2.ReconcileVaultResponse(
        slot=value.slot,
        found_amount=value.found_amount,
        expected_amount=value.expected_amount,
        pending_amount=value.pending_amount,
        drift=None if value.drift is None else drift(value.drift, is_open=True),
        warnings=value.warnings,
    )


def recipient(value: Recipient) -> agents_pb2.Recipient:
    """Write whom an agent may pay."""
    return agents_pb2.Recipient(
        address=value.address, label=value.label, create_time=timestamp(value.created_at)
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
        webhook=None if value.webhook is None else webhook(value.webhook),
    )


def webhook(value: Webhook) -> agents_pb2.Webhook:
    """Write how the deliveries of an agent go."""
    return agents_pb2.Webhook(
        state=WEBHOOK_STATES[value.state],
        attempt_count=value.attempts,
        failing_since_time=timestamp(value.failing_since),
        last_error=value.last_error or "",
        last_error_time=timestamp(value.last_error_at),
        last_success_time=timestamp(value.last_success_at),
        next_attempt_time=timestamp(value.next_attempt_at),
        delivered_revision=value.delivered_revision,
        behind_count=value.behind,
    )


def test_webhook(value: Attempt) -> agents_pb2.SendTestWebhookResponse:
    """Write what became of a test message."""
    return agents_pb2.SendTestWebhookResponse(
        delivered=value.delivered,
        status_code=value.status_code,
        error=value.error or "",
        duration=value.took,
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
        any_recipient=value.any_recipient,
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


def rule_checks(values: Sequence[RuleCheck], caller: Caller) -> list[budgets_pb2.RuleCheck]:
    """Write the answer of every rule.

    An agent is told of the vault's balances only what a spend would tell: the answers of
    those rules for any amount would tell the balances themselves.
    """
    if caller.agent_id is not None:
        first_failed = next((i for i, value in enumerate(values) if not value.passed), len(values))
        values = [
            value
            for i, value in enumerate(values)
            if i <= first_failed or value.figures.reason not in _OF_THE_VAULT
        ]
    return [_rule_check(value, caller) for value in values]


def _rule_check(value: RuleCheck, caller: Caller) -> budgets_pb2.RuleCheck:
    figures = _visible(value.figures, for_agent=caller.agent_id is not None)
    return budgets_pb2.RuleCheck(
        rule=FAILURE_REASONS[figures.reason],
        passed=value.passed,
        limit=figures.limit,
        spent=figures.spent,
        held=figures.held,
        remaining=figures.remaining,
        window_end_time=timestamp(figures.window_ends_at),
    )


def decline(value: Decline, *, for_agent: bool) -> ledger_pb2.Decline:
    """Write a decline; an agent sees no figure of the vault."""
    figures = _visible(value, for_agent=for_agent)
    return ledger_pb2.Decline(
        reason=FAILURE_REASONS[figures.reason],
        limit=figures.limit,
        spent=figures.spent,
        held=figures.held,
        remaining=figures.remaining,
        window_end_time=timestamp(figures.window_ends_at),
    )


def _visible(figures: Decline, *, for_agent: bool) -> Decline:
    """Leave out what an agent must not see: every figure of the vault."""
    if for_agent and figures.reason in _OF_THE_VAULT:
        return Decline(figures.reason)
    return figures


def event_bytes(value: Event) -> int:
    """Say how large an event is on the wire, roughly."""
    return _EVENT_BYTES + len((value.metadata or "").encode())


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
        decline=None
        if value.decline is None
        else decline(value.decline, for_agent=caller.agent_id is not None),
        tx_hash=value.tx_hash,
        metadata=value.metadata,
        provider=value.provider,
        model=value.model,
        refunded_event_id=value.refunded_event_id,
        create_time=timestamp(value.created_at),
        update_time=timestamp(value.updated_at),
        expire_time=timestamp(value.expires_at),
        revision=value.revision,
        recipient=value.recipient,
        counterpart_event_id=value.counterpart_event_id,
    )


def written_change(value: Update, for_agent: bool) -> bytes:
    """Write a change as a response that carries nothing else.

    Responses that are put one behind the other are one response with all their changes,
    so a change is written once for all of its subscribers.
    """
    response = ledger_pb2.SubscribeEventsResponse(changes=[change(value, for_agent=for_agent)])
    return response.SerializeToString()


def change(value: Update, *, for_agent: bool) -> ledger_pb2.Change:
    """Write a change as owners, or as agents, may see it."""
    figures = None
    if not for_agent:
        figures = ledger_pb2.VaultFigures(
            balance=value.balance_after,
            chain_balance=value.chain_balance_after,
            held=value.held_after,
        )
    written = ledger_pb2.Change(
        vault_id=value.vault_id,
        revision=value.revision,
        change_time=timestamp(value.changed_at),
        vault_figures=figures,
    )
    if value.drift is not None:
        # As text from its row, which equals the member and is not the same object.
        is_open = value.status == EventStatus.PENDING
        written.drift.CopyFrom(drift(decode_drift(value.drift), is_open=is_open))
    elif value.type is not None and value.kind is not None:
        written.event.CopyFrom(_event_then(value, value.type, value.kind, for_agent=for_agent))
    return written


def _event_then(
    value: Update, type_: EventType, kind: EventKind, *, for_agent: bool
) -> ledger_pb2.Event:
    """Write the event of a change as it was then."""
    reason, changed_at = value.failure_reason, timestamp(value.changed_at)
    is_new = value.previous_revision is None
    return ledger_pb2.Event(
        id=value.event_id,
        vault_id=value.vault_id,
        agent_id=value.agent_id,
        type=EVENT_TYPES[type_],
        kind=EVENT_KINDS[kind],
        status=EVENT_STATUSES[value.status],
        amount=value.amount,
        authorized_amount=value.authorized_amount,
        failure_reason=None if reason is None else FAILURE_REASONS[reason],
        decline=None
        if value.decline is None
        else decline(decode_decline(value.decline), for_agent=for_agent),
        tx_hash=value.tx_hash,
        metadata=value.metadata,
        provider=value.provider,
        model=value.model,
        refunded_event_id=value.refunded_event_id,
        create_time=changed_at if is_new else timestamp(value.created_at),
        update_time=changed_at,
        expire_time=timestamp(value.expires_at),
        revision=value.revision,
        recipient=value.recipient,
        counterpart_event_id=value.counterpart_event_id,
    )


def webhook_body(value: Update) -> bytes:
    """Write a change as what is posted to its agent's webhook_url.

    The shape is that of the Standard Webhooks specification, and `data` is the JSON of
    `Change` as an agent gets it in the stream: names as in the protos, int64 as text.
    """
    message = change(value, for_agent=True)
    data = MessageToDict(message, preserving_proto_field_name=True)
    body = {"type": f"event.{value.status}", "timestamp": data["change_time"], "data": data}
    return json.dumps(body).encode()


def spend_summary(value: SpendSummary) -> ledger_pb2.SpendSummary:
    """Write the sums of one group."""
    sums = value._asdict()
    group = sums.pop("group")._asdict()
    return ledger_pb2.SpendSummary(**sums, **{name: part or None for name, part in group.items()})


def discrepancy(value: Discrepancy | None) -> ledger_pb2.Discrepancy | None:
    """Write a row that disagrees with the recount."""
    return None if value is None else ledger_pb2.Discrepancy(**value._asdict())
