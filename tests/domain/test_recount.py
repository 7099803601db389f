"""The recount of rows: what is right passes, and every edited field is found and named."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest

from pilot_grpc.domain import recount
from pilot_grpc.domain.book import Book
from pilot_grpc.domain.ids import AgentId, EventId, VaultId
from pilot_grpc.domain.ledger import (
    AcknowledgeDrift,
    AuthorizeSpend,
    CaptureSpend,
    Change,
    ConfirmFunding,
    ConfirmTransfer,
    Decline,
    Event,
    EventKind,
    EventStatus,
    EventType,
    FailFunding,
    FailureReason,
    RecordDeposit,
    RecordFunding,
    Spend,
    digest_of,
)
from pilot_grpc.domain.recount import Discrepancy, Recorded, Running
from pilot_grpc.domain.requests import Request
from pilot_grpc.domain.vaults import encode_drift
from tests.domain.examples import NOON, a_drift, a_rule, a_spender, a_vault

VAULT: Final = VaultId("v")
AGENT: Final = AgentId("a")
LATER: Final = NOON + timedelta(days=1)


def a_history() -> Book:
    """A credit, a spend, a decline, and a hold of which a part was captured."""
    numbers, ids = itertools.count(1), itertools.count(1)
    book = Book(
        clock=NOON,
        vaults={VAULT: a_vault(balance=0)},
        spenders={AGENT: a_spender(a_rule())},
        new_event_id=lambda: EventId(f"e{next(ids)}"),
        open_holds_max=3,
    )
    requests = (Request(AGENT, f"r{number}", "", "") for number in numbers)
    book.answer(RecordFunding(next(requests), VAULT, 1_000))
    book.answer(Spend(next(requests), VAULT, AGENT, 7, metadata="{}"))
    book.answer(Spend(next(requests), VAULT, AGENT, 11))
    held = book.answer(AuthorizeSpend(next(requests), VAULT, AGENT, 10))
    book.clock += timedelta(minutes=1)
    book.answer(CaptureSpend(next(requests), VAULT, held.id, 4))
    return book


def a_history_on_chain() -> Book:
    """A deposit, a payment that lands, a drift that is found and grows, and is acknowledged."""
    ids = itertools.count(1)
    book = Book(
        clock=NOON,
        vaults={VAULT: a_vault(balance=0)},
        spenders={AGENT: a_spender(a_rule())},
        new_event_id=lambda: EventId(f"e{next(ids)}"),
        open_holds_max=3,
        pays_on_chain=True,
        listed={(AGENT, "wallet")},
        vault_ids={"wallet": VaultId("w")},
    )
    book.answer(RecordDeposit(VAULT, 1_000, "deposit", landed_slot=1))
    book.answer(Spend(Request(AGENT, "r1", "", ""), VAULT, AGENT, 7, recipient="wallet"))
    book.answer(ConfirmTransfer(VAULT, EventId("e2"), "payment", 2))
    book.stop(a_drift(amount=-3))
    book.clock += timedelta(minutes=1)
    book.stop(a_drift(amount=-4))
    book.answer(AcknowledgeDrift(Request(VAULT, "r2", "", ""), VAULT, "d", -4))
    return book


def recorded(book: Book, number: int) -> tuple[Running, Recorded]:
    """A change, what it needs, and the vault before it."""
    changes = {change.revision: change for change in book.changes}
    change = changes[number]
    previous = changes.get(change.previous_revision or 0)
    running = recount.after(changes[number - 1]) if number > 1 else Running()
    event = None if change.event_id is None else book.events[change.event_id]
    return running, Recorded(change, event, previous)


@pytest.mark.parametrize(("history", "count"), [(a_history, 5), (a_history_on_chain, 7)])
def test_what_a_book_wrote_is_right(history: Callable[[], Book], count: int) -> None:
    """Every change, every event, and the vault that they lead to."""
    book = history()
    changes = {change.revision: change for change in book.changes}

    assert [recount.check_change(*recorded(book, number)) for number in changes] == [None] * count
    assert recount.check_vault(recount.after(changes[count]), book.vaults[VAULT]) is None
    for event in book.events.values():
        assert recount.check_event(event, changes[event.revision], 0) is None


EDITED_CHANGE: Final = {
    "revision": 4,
    "event_id": "e1",
    "previous_revision": None,
    "status": EventStatus.PENDING,
    "amount": -5,
    "failure_reason": FailureReason.EXPIRED,
    "tx_hash": "signature",
    "balance_after": 990,
    "chain_balance_after": 1,
    "held_after": 1,
    "changed_at": LATER,
    "digest": b"another",
    "drift": encode_drift(a_drift(amount=-3)),
}


@pytest.mark.parametrize("field", EDITED_CHANGE)
def test_an_edited_change_is_found(field: str) -> None:
    """In any of its fields; the vault's own id is the page's, so it cannot differ."""
    book = a_history()
    running, right = recorded(book, 5)
    edited = right.change._replace(**{field: EDITED_CHANGE[field]})  # type: ignore[arg-type]

    assert edited.event_id is not None
    wrong = recount.check_change(
        running, right._replace(change=edited, event=book.events[edited.event_id])
    )

    assert wrong is not None
    assert (wrong.table, wrong.row) == ("event_changes", f"v {edited.revision}")


def test_every_field_of_a_change_was_edited() -> None:
    assert {*EDITED_CHANGE, "vault_id"} == {*Change._fields}


# Of the change in which the drift of a_history_on_chain grows.
EDITED_DRIFT: Final = EDITED_CHANGE | {
    "revision": 6,
    "previous_revision": 4,
    "status": EventStatus.CONFIRMED,
    "balance_after": 992,
    "chain_balance_after": 994,
    "drift": encode_drift(a_drift(amount=-4, slot=10)),
}


@pytest.mark.parametrize("field", sorted({*EDITED_DRIFT} - {"event_id"}))
def test_an_edited_change_of_a_drift_is_found(field: str) -> None:
    """In any of its fields, but for an event that it cannot name: the database refuses that."""
    running, right = recorded(a_history_on_chain(), 5)
    edits = {"drift": None} if field == "drift" else {field: EDITED_DRIFT[field]}

    for edit in (edits, {field: EDITED_DRIFT[field]}):
        edited = right.change._replace(**edit)
        wrong = recount.check_change(running, right._replace(change=edited))

        assert wrong is not None
        assert (wrong.table, wrong.row) == ("event_changes", f"v {edited.revision}")


def test_a_change_of_a_drift_moves_nothing() -> None:
    """Each figure that it moved is named, whether or not its digest fits."""
    running, right = recorded(a_history_on_chain(), 5)

    for field in ("balance_after", "chain_balance_after", "held_after"):
        moved = right.change._replace(**{field: 1})  # type: ignore[arg-type]
        digest = digest_of(running.digest, None, moved)

        wrong = recount.check_change(running, right._replace(change=moved._replace(digest=digest)))

        assert wrong is not None
        assert (wrong.row, wrong.field, wrong.found) == ("v 5", field, "1")


EDITED_EVENT: Final = {
    "id": "e9",
    "vault_id": "w",
    "agent_id": None,
    "type": EventType.FUNDING,
    "kind": EventKind.TRANSFER,
    "status": EventStatus.PENDING,
    "amount": -5,
    "authorized_amount": 11,
    "expires_at": LATER,
    "failure_reason": FailureReason.RELEASED,
    "decline": Decline(FailureReason.DAILY_LIMIT),
    "tx_hash": "signature",
    "metadata": "[]",
    "provider": "openai",
    "model": "gpt-4o",
    "refunded_event_id": "e1",
    "created_at": LATER,
    "updated_at": LATER,
    "revision": 4,
    "recipient": "another",
    "counterpart_event_id": "e8",
}


@pytest.mark.parametrize("field", EDITED_EVENT)
def test_an_edited_event_is_found(field: str) -> None:
    """By its last change, or by the digests of its changes."""
    book = a_history()
    running, right = recorded(book, 5)
    assert right.event is not None
    edited = right.event._replace(**{field: EDITED_EVENT[field]})  # type: ignore[arg-type]

    by_change = recount.check_change(running, right._replace(event=edited))
    by_event = recount.check_event(edited, right.change, 0)

    assert by_change or by_event


def test_every_field_of_an_event_was_edited() -> None:
    assert {*EDITED_EVENT} == {*Event._fields}


@pytest.mark.parametrize("field", EDITED_EVENT)
def test_an_edited_payment_is_found(field: str) -> None:
    """To whom it went above all, and what it became elsewhere; also where either is removed."""
    running, right = recorded(a_history_on_chain(), 3)
    assert right.event is not None
    edits = [(EDITED_EVENT | {"kind": EventKind.WITHDRAWAL})[field]]
    if field in {"recipient", "counterpart_event_id"}:
        edits.append(None)

    for edit in edits:
        edited = right.event._replace(**{field: edit})  # type: ignore[arg-type]
        by_change = recount.check_change(running, right._replace(event=edited))
        by_event = recount.check_event(edited, right.change, 0)

        assert by_change or by_event


EDITED_VAULT: Final = {
    "balance": 990,
    "chain_balance": 1,
    "held": 1,
    "revision": 6,
    "digest": b"another",
    "last_change_at": NOON,
}


@pytest.mark.parametrize("field", EDITED_VAULT)
def test_an_edited_vault_is_found(field: str) -> None:
    """Its time, too: one that is before its last change would let windows turn back."""
    book = a_history()
    vault = book.vaults[VAULT]
    setattr(vault, field, EDITED_VAULT[field])

    wrong = recount.check_vault(recount.after(book.changes[-1]), vault)

    assert wrong is not None
    assert (wrong.table, wrong.row, wrong.field) == ("vaults", "v", field)


def test_a_vault_without_changes_has_nothing() -> None:
    """And a digest or a figure that nobody wrote is found."""
    assert recount.check_vault(Running(), a_vault(balance=0)) is None
    assert recount.check_vault(Running(), a_vault(balance=1)) is not None


def test_a_change_that_is_missing_is_named_by_the_number_that_follows() -> None:
    book = a_history()
    running, _ = recorded(book, 3)
    _, fourth = recorded(book, 4)

    wrong = recount.check_change(running, fourth)

    assert wrong == Discrepancy("event_changes", "v 4", "revision", "3", "4")


def test_a_change_whose_event_is_gone_is_named() -> None:
    running, right = recorded(a_history(), 3)

    wrong = recount.check_change(running, right._replace(event=None))

    assert wrong is not None
    assert (wrong.row, wrong.field) == ("v 3", "event_id")


def test_a_change_is_recounted_without_the_trimmed_one_before_it() -> None:
    """A capture of 4 of a hold of 10: what was held is known from the event."""
    running, right = recorded(a_history(), 5)
    held_by = right._replace(previous=None)

    assert recount.check_change(running, held_by._replace(trimmed=4)) is None
    wrong = recount.check_change(running, held_by._replace(trimmed=3))
    assert wrong is not None
    assert (wrong.row, wrong.field) == ("v 5", "previous_revision")


@pytest.mark.parametrize("field", sorted({*EDITED_CHANGE} - {"event_id"}))
def test_an_edited_change_is_found_without_the_trimmed_one_before_it(field: str) -> None:
    running, right = recorded(a_history(), 5)
    edited = right.change._replace(**{field: EDITED_CHANGE[field]})  # type: ignore[arg-type]

    wrong = recount.check_change(running, right._replace(change=edited, previous=None, trimmed=4))

    assert wrong is not None
    assert (wrong.table, wrong.row) == ("event_changes", f"v {edited.revision}")


def test_a_pending_credit_had_moved_nothing_before_it_was_confirmed() -> None:
    """Neither had one that failed."""
    book = a_history()
    requests = (Request(VAULT, f"f{number}", "", "") for number in itertools.count(1))
    funded = [book.answer(RecordFunding(next(requests), VAULT, 7, pending=True)) for _ in "ab"]
    book.answer(ConfirmFunding(next(requests), VAULT, funded[0].id))
    book.answer(FailFunding(next(requests), VAULT, funded[1].id))

    for number in (8, 9):
        running, right = recorded(book, number)
        assert right.previous is not None
        assert recount.check_change(running, right._replace(previous=None, trimmed=7)) is None


def test_a_checkpoint_is_before_the_last_change() -> None:
    """Which is never trimmed; a vault without a checkpoint has nothing to say."""
    book = a_history()
    vault = book.vaults[VAULT]

    for number in (1, 4):
        assert recount.check_checkpoint(recount.after(book.changes[number - 1]), vault) is None
    wrong = recount.check_checkpoint(recount.after(book.changes[4]), vault)
    assert wrong == Discrepancy("change_checkpoints", "v", "revision", "below 5", "5")
    assert recount.check_checkpoint(Running(), a_vault(balance=0)) is None


def test_what_stops_a_vault_is_what_its_last_drift_says() -> None:
    """Open, over, or never there; trimmed, it may be anything."""
    book = a_history_on_chain()
    vault = book.vaults[VAULT]
    found, over = (book.changes[at] for at in (4, 5))
    stopped = replace(vault, drift=a_drift(amount=-4))

    assert recount.check_drift(vault, over) is None
    assert recount.check_drift(stopped, found) is None
    assert recount.check_drift(a_vault(), None) is None
    assert recount.check_drift(stopped, None, trimmed=5) is None
    for edited, last in ((vault, found), (stopped, over), (stopped, None)):
        wrong = recount.check_drift(edited, last)
        assert wrong is not None
        assert (wrong.table, wrong.row, wrong.field) == ("vaults", "v", "drift")
    assert recount.check_drift(replace(vault, drift=a_drift(amount=-3)), found) is not None


def test_an_event_is_accepted_without_its_change_where_that_was_trimmed() -> None:
    """What was refunded of it is still compared; and a change that is there has to be right."""
    book = a_history()
    event = book.events[EventId("e2")]

    assert recount.check_event(event, None, 7, trimmed=2) is None
    wrong = recount.check_event(event, None, 8, trimmed=2)
    assert wrong == Discrepancy("events", "e2", "refunded", "at most 7", "8")
    assert recount.check_event(event, None, 0, trimmed=1) is not None
    assert recount.check_event(event, book.changes[0], 0, trimmed=2) is not None


def test_an_event_without_a_change_is_named() -> None:
    """Added by hand, or with the number of another event's change."""
    book = a_history()
    event = book.events[EventId("e3")]

    for last in (None, book.changes[0]):
        wrong = recount.check_event(event, last, 0)
        assert wrong is not None
        assert (wrong.table, wrong.row, wrong.field) == ("events", "e3", "revision")


def test_refunds_of_more_than_was_spent_are_named() -> None:
    book = a_history()
    event, change = book.events[EventId("e2")], book.changes[1]

    assert recount.check_event(event, change, 7) is None
    wrong = recount.check_event(event, change, 8)
    assert wrong == Discrepancy("events", "e2", "refunded", "at most 7", "8")


def test_windows_that_were_opened_in_the_future_are_named() -> None:
    """They would never turn; the vault's last change is the latest that can have opened them."""
    vault = a_history().vaults[VAULT]

    assert recount.check_window("a", vault.last_change_at, vault) is None
    wrong = recount.check_window("a", LATER, vault)
    assert wrong is not None
    assert (wrong.table, wrong.row, wrong.field) == ("agent_budget_rules", "a", "last_reset_at")


@pytest.mark.parametrize("field", ["first", "second"])
def test_a_counter_that_differs_is_named(field: str) -> None:
    counted: dict[str, Any] = {"first": 1, "second": 2}

    wrong = recount.check_counters("rules", "a", counted, counted | {field: 3})

    assert wrong == Discrepancy("rules", "a", field, str(counted[field]), "3")
