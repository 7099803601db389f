"""The recount: what every row of a vault's ledger must be, given the rows before it.

Where changes were trimmed, a checkpoint stands for all of them: the recount begins with
what it says that they left, and the first change that is kept must fit to it.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from pilot_grpc.domain.ledger import Change, Event, EventStatus, digest_of, figures_of
from pilot_grpc.domain.vaults import Vault, decode_drift


class Discrepancy(NamedTuple):
    """A row that disagrees with the recount."""

    table: str
    row: str
    field: str
    expected: str
    found: str


class Running(NamedTuple):
    """The vault as the changes so far leave it."""

    revision: int = 0
    balance: int = 0
    chain_balance: int = 0
    held: int = 0
    digest: bytes = b""
    changed_at: datetime | None = None


class Recorded(NamedTuple):
    """A change, the event it names, and the change of that event before it.

    A change that is numbered `trimmed` or lower is gone, and is no reason for complaint.
    """

    change: Change
    event: Event | None
    previous: Change | None
    trimmed: int = 0


def after(change: Change) -> Running:
    """Return the vault as a change says that it left it."""
    return Running(
        change.revision,
        change.balance_after,
        change.chain_balance_after,
        change.held_after,
        change.digest,
        change.changed_at,
    )


def check_change(running: Running, recorded: Recorded) -> Discrepancy | None:
    """Recount one change from the one before; return the first thing that is wrong."""
    change, event = recorded.change, recorded.event
    row = f"{change.vault_id} {change.revision}"
    if change.revision != running.revision + 1:
        return _wrong(row, "revision", running.revision + 1, change.revision)
    if change.drift is not None:
        return _check_moves_nothing(row, running, change)
    if event is None or event.vault_id != change.vault_id:
        return _wrong(row, "event_id", "an event of this vault", change.event_id)
    previous = recorded.previous
    if (change.previous_revision or 0) > recorded.trimmed and (
        previous is None or previous.event_id != event.id
    ):
        return _wrong(
            row, "previous_revision", "a change of the same event", change.previous_revision
        )
    for field, expected, found in _figures(running, recorded, event):
        if expected != found:
            return _wrong(row, field, expected, found)
    return _check_seal(row, running, change, as_of(event, change))


def _check_moves_nothing(row: str, running: Running, change: Change) -> Discrepancy | None:
    """Recount a change of the vault's drift."""
    pairs = (
        ("balance_after", running.balance, change.balance_after),
        ("chain_balance_after", running.chain_balance, change.chain_balance_after),
        ("held_after", running.held, change.held_after),
    )
    for field, expected, found in pairs:
        if expected != found:
            return _wrong(row, field, expected, found)
    return _check_seal(row, running, change, None)


def _check_seal(
    row: str, running: Running, change: Change, event: Event | None
) -> Discrepancy | None:
    """Say whether a change comes after the one before, and has its check value."""
    if running.changed_at is not None and change.changed_at < running.changed_at:
        return _wrong(row, "changed_at", f"at or after {running.changed_at}", change.changed_at)
    digest = digest_of(running.digest, event, change)
    if digest != change.digest:
        return _wrong(row, "digest", digest.hex(), change.digest.hex())
    return None


def _figures(running: Running, recorded: Recorded, event: Event) -> Iterator[tuple[str, int, int]]:
    change = recorded.change
    was = figures_of(_before(recorded, event))
    now = figures_of(as_of(event, change))
    yield "balance_after", running.balance + now.balance - was.balance, change.balance_after
    expected = running.chain_balance + now.chain_balance - was.chain_balance
    yield "chain_balance_after", expected, change.chain_balance_after
    yield "held_after", running.held + now.held - was.held, change.held_after


def _before(recorded: Recorded, event: Event) -> Event | None:
    """Return the event as it was before a change, also where its change before is gone.

    It was pending then, because nothing else changes, and only a capture changes the amount.
    """
    if recorded.change.previous_revision is None:
        return None
    if recorded.previous is not None:
        return as_of(event, recorded.previous)
    held = event.authorized_amount
    amount = event.amount if held is None else -held
    return event._replace(status=EventStatus.PENDING, amount=amount)


def as_of(event: Event, change: Change) -> Event:
    """Return an event as it was at one of its changes."""
    return event._replace(
        status=change.status,
        amount=change.amount,
        failure_reason=change.failure_reason,
        tx_hash=change.tx_hash,
        updated_at=change.changed_at,
        revision=change.revision,
    )


def check_checkpoint(checkpoint: Running, vault: Vault) -> Discrepancy | None:
    """Say whether a vault's checkpoint is before its last change, which is never trimmed."""
    if not checkpoint.revision or checkpoint.revision < vault.revision:
        return None
    expected = f"below {vault.revision}"
    return Discrepancy(
        "change_checkpoints", vault.id, "revision", expected, str(checkpoint.revision)
    )


def check_vault(running: Running, vault: Vault) -> Discrepancy | None:
    """Compare a vault with what its last change left."""
    pairs = (
        ("revision", running.revision, vault.revision),
        ("balance", running.balance, vault.balance),
        ("chain_balance", running.chain_balance, vault.chain_balance),
        ("held", running.held, vault.held),
        ("digest", running.digest.hex(), vault.digest.hex()),
    )
    for field, expected, found in pairs:
        if expected != found:
            return Discrepancy("vaults", vault.id, field, str(expected), str(found))
    earliest, found_at = running.changed_at, vault.last_change_at
    if earliest is not None and found_at < earliest:
        return Discrepancy(
            "vaults", vault.id, "last_change_at", f"at or after {earliest}", str(found_at)
        )
    return None


def check_drift(vault: Vault, last: Change | None, trimmed: int = 0) -> Discrepancy | None:
    """Compare what stops a vault with the last change of its drift.

    Without one it is not stopped, unless that was trimmed: then nothing is left to compare.
    """
    if last is None and trimmed:
        return None
    expected = None
    if last is not None and last.drift is not None and last.status is EventStatus.PENDING:
        expected = decode_drift(last.drift)
    if vault.drift == expected:
        return None
    return Discrepancy("vaults", vault.id, "drift", str(expected), str(vault.drift))


def check_event(
    event: Event, last: Change | None, refunded: int, trimmed: int = 0
) -> Discrepancy | None:
    """Compare an event with its last change, and what was refunded with what was spent.

    An event is accepted without a change that is numbered `trimmed` or lower: nothing is
    left that it could be compared with.
    """
    is_right = event.revision <= trimmed if last is None else last.event_id == event.id
    if not is_right:
        return Discrepancy(
            "events", event.id, "revision", "the number of a change of it", str(event.revision)
        )
    expected = event if last is None else as_of(event, last)
    for field, left, right in zip(Event._fields, expected, event, strict=True):
        if left != right:
            return Discrepancy("events", event.id, field, str(left), str(right))
    if refunded > -event.amount and refunded:
        return Discrepancy(
            "events", event.id, "refunded", f"at most {-event.amount}", str(refunded)
        )
    return None


def check_window(row: str, opened_at: datetime, vault: Vault) -> Discrepancy | None:
    """Say whether a rule's windows were opened by a decision, which is never in the future."""
    if opened_at <= vault.last_change_at:
        return None
    expected = f"at or before {vault.last_change_at}"
    return Discrepancy("agent_budget_rules", row, "last_reset_at", expected, str(opened_at))


def check_counters(
    table: str, row: str, expected: dict[str, int], found: dict[str, int]
) -> Discrepancy | None:
    """Compare counters with a recount of the events behind them."""
    for field, value in expected.items():
        if found[field] != value:
            return Discrepancy(table, row, field, str(value), str(found[field]))
    return None


def _wrong(row: str, field: str, expected: object, found: object) -> Discrepancy:
    return Discrepancy("event_changes", row, field, str(expected), str(found))
