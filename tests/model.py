"""An independent model of one vault, written from the contract: one thread, plain sums.

It replays a vault's numbered changes in their order. Each must be what one request asked for, or
something that happens by itself; the model decides it anew, and compares. Nothing of Pilot is
used here.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

ROWS: Final = """
SELECT changes.revision, changes.event_id, changes.status, changes.amount,
       changes.failure_reason AS reason, events.decline, events.kind, events.agent_id,
       events.authorized_amount AS authorized, events.expires_at, events.refunded_event_id,
       changes.changed_at AS at, changes.balance_after AS balance,
       changes.chain_balance_after AS chain_balance, changes.held_after AS held
  FROM event_changes AS changes
  JOIN events ON events.id = changes.event_id
 WHERE changes.vault_id = $1::text
 ORDER BY changes.revision
"""


class Row(NamedTuple):
    """A numbered change, what never changes of its event, and the vault after it."""

    revision: int
    event_id: str
    status: str
    amount: int
    reason: str | None
    decline: Any
    kind: str
    agent_id: str | None
    authorized: int | None
    expires_at: datetime | None
    refunded_event_id: str | None
    at: datetime
    balance: int
    chain_balance: int
    held: int


class Answer(NamedTuple):
    """What a caller was told of an event."""

    event_id: str
    revision: int
    status: str
    amount: int
    reason: str | None
    decline: dict[str, Any] | None


class Refused(NamedTuple):
    """What a caller was told instead: the reason of an error."""

    reason: str


class Asked(NamedTuple):
    """What a caller asked for; what does not apply is None."""

    rpc: str
    amount: int = 0
    agent_id: str | None = None
    event_id: str | None = None
    ttl: timedelta = timedelta(minutes=10)
    pending: bool = False


class Sending(NamedTuple):
    """One time that a request was sent: when, when it came back, and with what."""

    sent_at: int
    back_at: int
    outcome: Answer | Refused


@dataclass
class Request:
    """One request_id: what it asked, and how it went each time that it was sent."""

    asked: Asked
    request_id: str
    sendings: list[Sending] = field(default_factory=list)

    @property
    def answers(self) -> list[Answer]:
        return [each.outcome for each in self.sendings if isinstance(each.outcome, Answer)]

    @property
    def first_sent_at(self) -> int:
        return min(each.sent_at for each in self.sendings)

    @property
    def answered_at(self) -> int:
        return min(each.back_at for each in self.sendings if isinstance(each.outcome, Answer))


class Limits(NamedTuple):
    """An agent's limits."""

    per_tx: int
    daily: int
    monthly: int | None = None


class Config(NamedTuple):
    """What an owner has set for an agent and its project."""

    limits: Limits | None
    agent_active: bool = True
    project_active: bool = True


@dataclass
class Setting:
    """A configuration that came into force somewhere between two revisions of the vault."""

    agent_id: str
    config: Config
    after: int = 0
    by: int = 0


@dataclass
class Entry:
    """An event in the model; amounts are unsigned."""

    kind: str
    agent_id: str | None
    status: str
    amount: int
    created_at: datetime
    authorized: int | None = None
    expires_at: datetime | None = None
    reason: str | None = None
    refunded: int = 0

    @property
    def counts(self) -> bool:
        return self.kind == "metered" and self.status in {"pending", "confirmed"}

    @property
    def is_open_hold(self) -> bool:
        return self.status == "pending" and self.authorized is not None


class Disagreement(AssertionError):
    """The model would have answered otherwise."""


def require(expected: object, found: object, what: object) -> None:
    if expected != found:
        raise Disagreement(f"{what}: the model has {expected!r}, Pilot has {found!r}")


def must(truth: bool, what: object) -> None:
    if not truth:
        raise Disagreement(str(what))


class Model:
    """One vault, as the contract says that it must be."""

    def __init__(self) -> None:
        self.balance = 0
        self.revision = 0
        self.at = datetime.min.replace(tzinfo=UTC)
        self.entries: dict[str, Entry] = {}
        self.most_open_holds = 0

    @property
    def held(self) -> int:
        return sum(entry.amount for entry in self.entries.values() if entry.is_open_hold)

    def window(self, agent_id: str | None, shape: str, now: datetime) -> tuple[int, int]:
        """What an agent has spent in the window of now, and the pending part of it."""
        entries = [
            entry
            for entry in self.entries.values()
            if entry.counts
            and entry.agent_id == agent_id
            and entry.created_at.strftime(shape) == now.strftime(shape)
        ]
        pending = sum(entry.amount for entry in entries if entry.status == "pending")
        return sum(entry.amount for entry in entries), pending

    def replay(self, row: Row, asked: Asked | None, configs: Sequence[Config]) -> None:
        """Decide one change anew; raise Disagreement when Pilot decided otherwise."""
        require(self.revision + 1, row.revision, "revision")
        must(self.at <= row.at, f"{row} is older than the change before")
        self.revision, self.at = row.revision, row.at
        known = self.entries.get(row.event_id)
        if known is None:
            self._create(row, asked, configs)
        elif asked is None:
            self._happened(row, known)
        else:
            self._change(row, known, asked)
        require((self.balance, 0, self.held), (row.balance, row.chain_balance, row.held), row)
        open_holds = [e.agent_id for e in self.entries.values() if e.is_open_hold]
        most = max(map(open_holds.count, open_holds), default=0)
        self.most_open_holds = max(self.most_open_holds, most)

    def _create(self, row: Row, asked: Asked | None, configs: Sequence[Config]) -> None:
        if asked is None:
            raise Disagreement(f"nobody asked for {row}")
        if asked.rpc in {"Spend", "AuthorizeSpend"}:
            self._spend(row, asked, configs)
        elif asked.rpc == "RecordFunding":
            status = "pending" if asked.pending else "confirmed"
            self._expect(row, "credit", status, asked.amount)
            self.balance += 0 if asked.pending else asked.amount
        elif asked.rpc == "Refund":
            spent = self.entries[asked.event_id or ""]
            require(("metered", "confirmed"), (spent.kind, spent.status), row)
            spent.refunded += asked.amount
            must(spent.refunded <= spent.amount, row)
            require((spent.agent_id, asked.event_id), (row.agent_id, row.refunded_event_id), row)
            self._expect(row, "refund", "confirmed", asked.amount)
            self.balance += asked.amount
        else:
            raise Disagreement(f"{asked} made {row}")
        self.entries[row.event_id] = Entry(
            kind=row.kind,
            agent_id=row.agent_id,
            status=row.status,
            amount=asked.amount,
            created_at=row.at,
            authorized=row.authorized,
            expires_at=row.expires_at,
            reason=row.reason,
        )

    def _spend(self, row: Row, asked: Asked, configs: Sequence[Config]) -> None:
        possible = [self.decide(config, asked, row.at) for config in configs]
        must(row.decline in possible, f"{row} is none of {possible}, which {configs} decide")
        require(asked.agent_id, row.agent_id, row)
        holds = asked.rpc == "AuthorizeSpend" and row.decline is None
        accepted = "pending" if holds else "confirmed"
        self._expect(row, "metered", "failed" if row.decline else accepted, -asked.amount)
        require(row.decline and row.decline["reason"], row.reason, row)
        require(asked.amount if holds else None, row.authorized, row)
        require(row.at + asked.ttl if holds else None, row.expires_at, row)
        if row.decline is None:
            self.balance -= asked.amount

    def decide(self, config: Config, asked: Asked, now: datetime) -> dict[str, Any] | None:
        """The decline with its figures; None approves."""
        if not config.project_active:
            return {"reason": "project_not_active"}
        if config.limits is None:
            return {"reason": "no_budget_rule"}
        if not config.agent_active:
            return {"reason": "agent_not_active"}
        limits = config.limits
        if asked.amount > limits.per_tx:
            figures = {"limit": limits.per_tx, "remaining": limits.per_tx}
            return {"reason": "per_tx_limit", **figures}
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        next_month = (now.replace(day=1) + timedelta(days=32)).replace(day=1)
        first = midnight.replace(year=next_month.year, month=next_month.month, day=1)
        ends = {"daily": midnight, "monthly": first}
        for name, limit, shape in (
            ("daily", limits.daily, "%Y-%m-%d"),
            ("monthly", limits.monthly, "%Y-%m"),
        ):
            spent, pending = self.window(asked.agent_id, shape, now)
            if limit is not None and spent + asked.amount > limit:
                self._must_have_no_overdue_hold(now)
                return {
                    "reason": f"{name}_limit",
                    "limit": limit,
                    "spent": spent,
                    "held": pending,
                    "remaining": max(0, limit - spent),
                    "window_ends_at": ends[name],
                }
        if asked.amount > self.balance:
            self._must_have_no_overdue_hold(now)
            figures = {"held": self.held, "remaining": self.balance}
            return {"reason": "insufficient_balance", **figures}
        return None

    def _must_have_no_overdue_hold(self, now: datetime) -> None:
        for event_id, entry in self.entries.items():
            overdue = entry.is_open_hold and entry.expires_at and entry.expires_at <= now
            must(not overdue, f"the overdue hold {event_id} was in the way of a spend")

    def _change(self, row: Row, entry: Entry, asked: Asked) -> None:
        require(asked.event_id, row.event_id, row)
        require("pending", entry.status, row)
        if asked.rpc in {"CaptureSpend", "ReleaseSpend"}:
            must(entry.is_open_hold, row)
            must(entry.expires_at is not None and row.at < entry.expires_at, row)
        if asked.rpc == "CaptureSpend":
            must(asked.amount <= (entry.authorized or 0), row)
            self._expect(row, entry.kind, "confirmed", -asked.amount)
            self.balance += entry.amount - asked.amount
            entry.amount = asked.amount
        elif asked.rpc == "ReleaseSpend":
            self._expect(row, entry.kind, "failed", -entry.amount, "released")
            self.balance += entry.amount
        elif asked.rpc == "ConfirmFunding":
            require("credit", entry.kind, row)
            self._expect(row, entry.kind, "confirmed", entry.amount)
            self.balance += entry.amount
        elif asked.rpc == "FailFunding":
            require("credit", entry.kind, row)
            self._expect(row, entry.kind, "failed", entry.amount, "funding_failed")
        else:
            raise Disagreement(f"{asked} changed {row}")
        entry.status, entry.reason = row.status, row.reason

    def _happened(self, row: Row, entry: Entry) -> None:
        """What nobody asks for by a request_id: a hold expires, or its agent is deleted."""
        must(entry.is_open_hold, row)
        if row.reason == "expired":
            must(entry.expires_at is not None and entry.expires_at <= row.at, row)
        self._expect(row, entry.kind, "failed", -entry.amount, row.reason)
        must(row.reason in {"expired", "agent_deleted"}, row)
        self.balance += entry.amount
        entry.status, entry.reason = row.status, row.reason

    def _expect(
        self, row: Row, kind: str, status: str, amount: int, reason: str | None = None
    ) -> None:
        require((kind, status, amount), (row.kind, row.status, row.amount), row)
        if row.decline is None:
            require(reason, row.reason, row)


def rows_of(records: Iterable[Any]) -> Iterator[Row]:
    """Read the rows of ROWS."""
    for record in records:
        decline = record["decline"] and json.loads(record["decline"])
        if decline and "window_ends_at" in decline:
            decline["window_ends_at"] = datetime.fromisoformat(decline["window_ends_at"])
        yield Row(**{**record, "decline": decline})


def check(rows: Sequence[Row], requests: Sequence[Request], settings: Sequence[Setting]) -> Model:
    """Replay a history; raise Disagreement for the first thing that is not as it must be.

    `settings` are, for each agent, in the order in which they were set.
    """
    asked_for = _by_revision(requests)
    model = Model()
    for row in rows:
        asked = asked_for[row.revision].asked if row.revision in asked_for else None
        model.replay(row, asked, _in_force(settings, row))
    must(set(asked_for) <= {row.revision for row in rows}, "answers have a change")
    for request in requests:
        _check_outcomes(model, rows, request)
    _check_order(asked_for)
    return model


def _by_revision(requests: Sequence[Request]) -> dict[int, Request]:
    """Each answered request is one change: a second one would be a second effect."""
    found: dict[int, Request] = {}
    for request in requests:
        for revision in {answer.revision for answer in request.answers}:
            require(None, found.get(revision), f"two requests made revision {revision}")
            found[revision] = request
    return found


def _in_force(settings: Sequence[Setting], row: Row) -> list[Config]:
    """The configurations that an agent may have had at a change."""
    mine = [setting for setting in settings if setting.agent_id == row.agent_id]
    certain = [number for number, setting in enumerate(mine) if setting.by < row.revision]
    first = certain[-1] if certain else 0
    return [s.config for n, s in enumerate(mine) if n >= first and s.after < row.revision]


def _check_outcomes(model: Model, rows: Sequence[Row], request: Request) -> None:
    """All answers to one request are the same, and are what the change says."""
    for answer in request.answers:
        require(request.answers[0], answer, f"a repetition of {request}")
        row = rows[answer.revision - 1]
        told = Answer(row.event_id, row.revision, row.status, row.amount, row.reason, None)
        require(told._replace(decline=row.decline), answer, f"the answer to {request}")
    for sending in request.sendings:
        if isinstance(sending.outcome, Refused):
            # Errors never stick, so an answer may follow a refusal; but answers do stick.
            late = request.answers and sending.sent_at > request.answered_at
            must(not late, f"{request} was refused after it was answered")
            _check_refusal(model, request.asked, sending.outcome.reason)


def _check_refusal(model: Model, asked: Asked, reason: str) -> None:
    """A refusal must have had its reason, which what became of the event still shows."""
    entry = model.entries.get(asked.event_id or "")
    if reason == "OPEN_HOLDS_LIMIT":
        return
    if entry is None:
        raise Disagreement(f"{asked} was refused: {reason}")
    had_its_reason = {
        "HOLD_NOT_OPEN": entry.status != "pending" or entry.authorized is None,
        "HOLD_EXPIRED": entry.reason == "expired",
        "CAPTURE_EXCEEDS_HOLD": asked.amount > (entry.authorized or 0),
        "SPEND_NOT_REFUNDABLE": (entry.kind, entry.status, entry.authorized)
        != ("metered", "confirmed", None),
        "REFUND_EXCEEDS_SPEND": entry.refunded + asked.amount > entry.amount,
        "FUNDING_NOT_PENDING": entry.kind != "credit" or entry.status != "pending",
    }
    must(had_its_reason.get(reason, False), f"{asked} was refused: {reason}")


def _check_order(asked_for: dict[int, Request]) -> None:
    """Whoever had an answer before another asked stands before it in the ledger."""
    latest_sent = 0
    for _, request in sorted(asked_for.items()):
        latest_sent = max(latest_sent, request.first_sent_at)
        in_time = request.answered_at > latest_sent
        must(in_time, f"{request} stands behind what was asked after its answer")
