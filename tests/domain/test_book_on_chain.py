"""The book with a chain: what is reserved for it, and what it says, once or again."""

from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_grpc import errors
from pilot_grpc.domain import recount
from pilot_grpc.domain.book import Book, Movement
from pilot_grpc.domain.ids import EventId, VaultId
from pilot_grpc.domain.ledger import (
    AMOUNT_MAX,
    Command,
    Event,
    EventKind,
    EventStatus,
    EventType,
    FailureReason,
)
from pilot_grpc.domain.projects import ProjectStatus
from pilot_grpc.domain.recount import Recorded, Running
from pilot_grpc.domain.vaults import BALANCE_MAX, Drift, decode_drift
from tests.domain.books import (
    AGENT,
    VAULT,
    WALLET,
    a_book_on_chain,
    acknowledge,
    deposit,
    everything,
    fund,
    hold,
    land,
    lose,
    pay,
    release,
    settle,
    sight,
    spend,
    undo,
    withdraw,
)
from tests.domain.examples import a_drift, a_rule, a_spender, a_vault

PENDING, CONFIRMED, FAILED = EventStatus
OTHER_VAULT: Final = VaultId("w")


def figures(book: Book) -> tuple[int, int, int]:
    vault = book.vaults[VAULT]
    return vault.balance, vault.chain_balance, vault.held


def must_change_nothing(book: Book, command: Command) -> None:
    """Answer with the event as it is, and without another change."""
    before = everything(book)
    book.answer(command)
    assert everything(book) == before


# --- payments ---------------------------------------------------------------------------


def test_a_payment_is_reserved_in_both_figures_until_the_chain_decides() -> None:
    """It is pending, and counts for its agent like any spend that is held."""
    book = a_book_on_chain()

    paid = book.answer(pay(7))

    rule = book.spenders[AGENT].rule
    assert rule is not None
    assert (paid.status, paid.kind, paid.amount) == (PENDING, EventKind.TRANSFER, -7)
    assert (paid.recipient, paid.is_on_its_way, paid.is_open_hold) == (WALLET, True, False)
    assert figures(book) == (993, 593, 0)
    assert (rule.daily_spent, rule.daily_held, book.spenders[AGENT].open_holds) == (7, 7, 0)


def test_a_payment_that_lands_stays_taken() -> None:
    """It is confirmed with its signature, and the transaction is written down as its own."""
    book = a_book_on_chain()
    paid = book.answer(pay(7))

    landed = book.answer(land(paid, "payment", slot=9))

    rule = book.spenders[AGENT].rule
    assert rule is not None
    assert (landed.status, landed.tx_hash) == (CONFIRMED, "payment")
    assert book.movements == [Movement(VAULT, "payment", 9, -7, paid.id)]
    assert figures(book) == (993, 593, 0)
    assert (rule.daily_spent, rule.daily_held) == (7, 0)


def test_a_payment_that_is_lost_is_given_back() -> None:
    """To both figures and to the windows of its agent."""
    book = a_book_on_chain()
    paid = book.answer(pay(7))

    lost = book.answer(lose(paid))

    rule = book.spenders[AGENT].rule
    assert rule is not None
    assert (lost.status, lost.failure_reason) == (FAILED, FailureReason.TRANSFER_EXPIRED)
    assert figures(book) == (1_000, 600, 0)
    assert (rule.daily_spent, rule.daily_held) == (0, 0)
    assert book.movements == []


# Each state that declines a payment, in the order of the decision, and all of it at once.
STATES: Final[dict[FailureReason, Callable[[Book], object]]] = {
    FailureReason.PROJECT_NOT_ACTIVE: lambda book: setattr(
        book.spenders[AGENT], "project_status", ProjectStatus.PAUSED
    ),
    FailureReason.VAULT_STOPPED: lambda book: setattr(book.vaults[VAULT], "drift", a_drift()),
    FailureReason.NO_BUDGET_RULE: lambda book: setattr(book.spenders[AGENT], "rule", None),
    FailureReason.RECIPIENT_NOT_ALLOWED: lambda book: book.listed.clear(),
    FailureReason.INSUFFICIENT_BALANCE: lambda book: setattr(book.vaults[VAULT], "balance", 6),
    FailureReason.INSUFFICIENT_CHAIN_BALANCE: lambda book: setattr(
        book.vaults[VAULT], "chain_balance", 6
    ),
}


@pytest.mark.parametrize("reason", STATES)
def test_a_payment_is_declined_for_the_first_reason_that_applies(reason: FailureReason) -> None:
    """With all that comes after it wrong, too. It moves nothing, and promises no deposit."""
    book = a_book_on_chain(vault_ids={WALLET: OTHER_VAULT})
    reasons = list(STATES)
    for applies in reversed(reasons[reasons.index(reason) :]):
        STATES[applies](book)
    before = figures(book)

    declined = book.answer(pay(7))

    assert (declined.status, declined.failure_reason) == (FAILED, reason)
    assert (declined.kind, declined.recipient) == (EventKind.TRANSFER, WALLET)
    assert (declined.is_on_its_way, declined.counterpart_event_id) == (False, None)
    assert figures(book) == before


def test_metered_use_goes_on_while_a_vault_is_stopped() -> None:
    """Only what leaves on chain is stopped: spends and holds need the balance alone."""
    book = a_book_on_chain(vaults={VAULT: a_vault(chain_balance=0, drift=a_drift())})

    assert book.answer(spend(7)).status is CONFIRMED
    assert book.answer(hold(7)).status is PENDING


def test_a_rule_that_lets_an_agent_pay_anybody_asks_for_no_list() -> None:
    rule = a_rule(any_recipient=True)
    book = a_book_on_chain(listed=set(), spenders={AGENT: a_spender(rule)})

    assert book.answer(pay(7, "stranger")).status is PENDING


def test_the_list_of_one_agent_is_not_that_of_another() -> None:
    book = a_book_on_chain(listed={("another", WALLET), (AGENT, "another")})

    assert book.answer(pay(7)).failure_reason is FailureReason.RECIPIENT_NOT_ALLOWED


def test_a_payment_may_take_all_that_is_on_chain_and_no_unit_more() -> None:
    """What the decline shows to remain is what another payment may take."""
    book = a_book_on_chain(vaults={VAULT: a_vault(chain_balance=7)})

    declined = book.answer(pay(8))
    paid = book.answer(pay(7))

    assert declined.decline is not None
    assert declined.failure_reason is FailureReason.INSUFFICIENT_CHAIN_BALANCE
    assert (declined.decline.remaining, declined.decline.held) == (7, None)
    assert paid.status is PENDING
    assert figures(book) == (993, 0, 0)


def test_a_payment_between_two_vaults_names_the_deposit_that_it_becomes() -> None:
    """By an id that is promised; to a wallet of nobody here, or to itself, none is."""
    book = a_book_on_chain(
        vault_ids={WALLET: OTHER_VAULT, "own": VAULT}, listed={(AGENT, WALLET), (AGENT, "own")}
    )

    paid = book.answer(pay(7))
    withdrawn = book.answer(withdraw(7))

    assert paid.counterpart_event_id not in {None, paid.id, withdrawn.counterpart_event_id}
    assert withdrawn.counterpart_event_id not in {None, withdrawn.id}
    assert book.answer(pay(7, "own")).counterpart_event_id is None
    assert book.answer(withdraw(7, "stranger")).counterpart_event_id is None


def test_without_a_chain_nobody_is_paid() -> None:
    """The request is refused and leaves nothing, whatever else would decline it."""
    book = a_book_on_chain(pays_on_chain=False, listed=set())
    before = everything(book)

    for command in (pay(7), withdraw(7), settle(7)):
        with pytest.raises(errors.RecipientUnsupported):
            book.answer(command)

    assert everything(book) == before


def test_a_repeated_payment_gets_its_first_answer() -> None:
    """Though it has landed meanwhile, the vault is stopped, and there is no chain any more."""
    book, command = a_book_on_chain(), pay(7)
    first = book.answer(command)
    book.answer(land(first))
    book.stop(a_drift())
    book.pays_on_chain = False

    must_change_nothing(book, command)

    assert book.answer(command) == first


# --- what becomes of it -----------------------------------------------------------------


def test_a_sighting_shows_the_signature_once() -> None:
    """Again it is no news; that of the next attempt is, and then the first is the past."""
    book = a_book_on_chain()
    paid = book.answer(pay(7))

    book.signatures = {paid.id: "first"}
    seen = book.answer(sight(paid, "first"))
    must_change_nothing(book, sight(paid, "first"))
    book.signatures = {paid.id: "second"}
    must_change_nothing(book, sight(paid, "first"))
    again = book.answer(sight(paid, "second"))
    must_change_nothing(book, sight(paid, "first"))

    assert (seen.status, seen.tx_hash, again.tx_hash) == (PENDING, "first", "second")
    assert figures(book) == (993, 593, 0)
    assert len(book.changes) == 3


def payments(book: Book) -> list[Event]:
    """A transfer, a withdrawal and a settlement, all on their way."""
    return [book.answer(each) for each in (pay(7), withdraw(20), settle(100))]


def a_book_with_metered_use() -> Book:
    """A vault from whose balance 400 were spent that are still on chain."""
    return a_book_on_chain(vaults={VAULT: a_vault(balance=200, chain_balance=600)})


@pytest.mark.parametrize("decide", [land, lose])
def test_what_the_chain_has_decided_is_final(decide: Callable[[Event], Command]) -> None:
    """Of every kind of payment: whatever is said after it changes nothing."""
    book = a_book_with_metered_use()
    for paid in payments(book):
        decided = book.answer(decide(paid))
        assert decided.status is not PENDING

        for said in (land(paid), land(paid, "another"), lose(paid), sight(paid, "another")):
            must_change_nothing(book, said)
            assert book.answer(said) == decided


def test_a_payment_is_not_given_up_for_a_signature_that_is_not_its_last() -> None:
    """Another process has signed anew: what was signed then may still land."""
    book = a_book_on_chain()
    paid = book.answer(pay(7))
    book.signatures = {paid.id: "second"}

    for signature in (None, "first"):
        must_change_nothing(book, lose(paid, signature))

    assert book.answer(lose(paid, "second")).status is FAILED


def test_a_payment_that_nobody_has_signed_fails_without_a_signature_only() -> None:
    book = a_book_on_chain()
    paid = book.answer(pay(7))
    book.signatures = {paid.id: None}

    must_change_nothing(book, lose(paid, "first"))

    failed = book.answer(lose(paid, None, FailureReason.VAULT_STOPPED))
    assert (failed.status, failed.failure_reason) == (FAILED, FailureReason.VAULT_STOPPED)


def test_a_payment_that_failed_on_chain_names_the_transaction_that_did() -> None:
    """Also when nobody had seen it before; one that never landed names none."""
    book = a_book_on_chain()
    failed, expired = book.answer(pay(7)), book.answer(pay(7))
    book.signatures = {failed.id: "first", expired.id: "second"}

    failed = book.answer(lose(failed, "first", FailureReason.TRANSFER_FAILED))
    expired = book.answer(lose(expired, "second", FailureReason.TRANSFER_EXPIRED))

    assert (failed.tx_hash, expired.tx_hash) == ("first", None)


def test_a_payment_lands_with_the_signature_that_landed() -> None:
    """Whichever was seen before: what counts is what is final."""
    book = a_book_on_chain()
    paid = book.answer(pay(7))
    book.signatures = {paid.id: "first"}
    book.answer(sight(paid, "first"))

    landed = book.answer(land(paid, "second"))

    assert (landed.tx_hash, book.movements[0].signature) == ("second", "second")


@pytest.mark.parametrize(
    "say", [sight, land, lose, undo], ids=["sighted", "landed", "lost", "undone"]
)
def test_what_is_said_of_an_event_that_is_no_payment_changes_nothing(
    say: Callable[[Event], Command],
) -> None:
    """Neither of a hold, which is pending, too, nor of a spend or a credit."""
    book = a_book_on_chain()
    events = [book.answer(each) for each in (hold(5), spend(5), fund(5, pending=True))]

    for event in events:
        must_change_nothing(book, say(event))


def test_a_payment_is_neither_captured_nor_released() -> None:
    """It is pending like a hold, and is none: only the chain decides about it."""
    book = a_book_on_chain()
    paid = book.answer(pay(7))

    with pytest.raises(errors.HoldNotOpen):
        book.answer(release(paid))


def test_a_payment_of_a_deleted_agent_is_counted_until_it_is_decided() -> None:
    """It spends no more; what is on its way still counts, and is given back."""
    book = a_book_on_chain()
    paid = book.answer(pay(7))
    book.spenders[AGENT].is_deleted = True

    for command in (pay(1), spend(1), hold(1)):
        with pytest.raises(errors.NotFound):
            book.answer(command)
    book.answer(lose(paid))

    assert book.spenders[AGENT] == a_spender(a_rule(), is_deleted=True)


# --- what owners take out ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("balance", "chain_balance", "most"), [(1_000, 600, 600), (600, 1_000, 600), (0, 600, 0)]
)
def test_a_withdrawal_takes_at_most_the_lesser_figure(
    balance: int, chain_balance: int, most: int
) -> None:
    """To the unit, and the refusal says how much there is."""
    vault = a_vault(balance=balance, chain_balance=chain_balance)
    book = a_book_on_chain(vaults={VAULT: vault})
    before = everything(book)

    with pytest.raises(errors.ExceedsVault) as refusal:
        book.answer(withdraw(most + 1))

    assert refusal.value.metadata == {"remaining": str(most)}
    assert everything(book) == before
    if most:
        taken = book.answer(withdraw(most))
        assert (taken.kind, taken.status, taken.agent_id) == (EventKind.WITHDRAWAL, PENDING, None)
        assert figures(book) == (balance - most, chain_balance - most, 0)


@pytest.mark.parametrize(
    ("balance", "chain_balance", "held", "most"),
    [
        (200, 600, 0, 400),
        (200, 600, 150, 250),
        (200, 600, 400, 0),
        (200, 600, 401, 0),
        (600, 600, 0, 0),
        # Credits are money that is not on chain: they leave nothing to settle.
        (900, 600, 0, 0),
    ],
)
def test_a_settlement_takes_at_most_what_is_behind_metered_use(
    balance: int, chain_balance: int, held: int, most: int
) -> None:
    """The balance and the open holds stay covered, and only the chain balance moves."""
    vault = a_vault(balance=balance, chain_balance=chain_balance, held=held)
    book = a_book_on_chain(vaults={VAULT: vault})
    before = everything(book)

    with pytest.raises(errors.ExceedsVault) as refusal:
        book.answer(settle(most + 1))

    assert refusal.value.metadata == {"remaining": str(most)}
    assert everything(book) == before
    if most:
        taken = book.answer(settle(most))
        assert (taken.kind, taken.status, taken.agent_id) == (EventKind.SETTLEMENT, PENDING, None)
        assert figures(book) == (balance, chain_balance - most, held)


def test_what_an_owner_takes_out_counts_for_no_agent() -> None:
    book = a_book_with_metered_use()

    taken = [book.answer(withdraw(20)), book.answer(settle(20))]

    for each in taken:
        book.answer(land(each))
    assert book.spenders == {AGENT: a_spender(a_rule())}
    assert [movement.delta for movement in book.movements] == [-20, -20]


def test_nothing_leaves_a_vault_that_is_stopped() -> None:
    """The refusal names the drift, before it says what would be too much."""
    book = a_book_with_metered_use()
    book.stop(a_drift())
    before = everything(book)

    for command in (withdraw(1), settle(1), withdraw(10**9)):
        with pytest.raises(errors.VaultStopped) as refusal:
            book.answer(command)
        assert refusal.value.metadata == {"drift_id": "d", "amount": "-5"}

    assert everything(book) == before


# --- deposits ---------------------------------------------------------------------------


def test_a_deposit_counts_once_it_is_final() -> None:
    """Seen, it is pending and moves nothing; final, it is confirmed in both figures."""
    book = a_book_on_chain()

    seen = book.answer(deposit(50))
    at_first = figures(book)
    final = book.answer(deposit(50, landed=9))

    assert (seen.status, seen.type, seen.kind) == (PENDING, EventType.FUNDING, EventKind.DEPOSIT)
    assert (seen.tx_hash, at_first) == ("deposit", (1_000, 600, 0))
    assert (final.id, final.status) == (seen.id, CONFIRMED)
    assert figures(book) == (1_050, 650, 0)
    assert book.movements == [Movement(VAULT, "deposit", 9, 50, seen.id)]


def test_a_deposit_is_credited_once() -> None:
    """However often it is seen, or said to be final, or seen again behind a node's back."""
    book = a_book_on_chain()
    final = book.answer(deposit(50, landed=9))

    for again in (deposit(50), deposit(50, landed=9), deposit(60, landed=10)):
        must_change_nothing(book, again)

    assert book.answer(deposit(50, landed=9)) == final
    assert figures(book) == (1_050, 650, 0)


def test_a_pending_deposit_is_shown_once() -> None:
    book = a_book_on_chain()
    book.answer(deposit(50))

    must_change_nothing(book, deposit(50))


def test_a_deposit_is_credited_with_what_was_final() -> None:
    """A fork may have moved another amount than was seen at first."""
    book = a_book_on_chain()
    book.answer(deposit(50))

    final = book.answer(deposit(40, landed=9))

    assert (final.amount, figures(book)) == (40, (1_040, 640, 0))


def test_a_deposit_that_was_undone_can_land_again() -> None:
    """It fails without its signature, so that what lands under it is a deposit of its own."""
    book = a_book_on_chain()
    seen = book.answer(deposit(50))

    undone = book.answer(undo(seen))
    must_change_nothing(book, undo(seen))
    landed = book.answer(deposit(50, landed=9))

    assert (undone.status, undone.failure_reason) == (FAILED, FailureReason.DEPOSIT_UNDONE)
    assert undone.tx_hash is None
    assert landed.id != seen.id
    assert (landed.status, landed.tx_hash) == (CONFIRMED, "deposit")
    assert figures(book) == (1_050, 650, 0)


def test_a_confirmed_deposit_is_never_undone() -> None:
    book = a_book_on_chain()
    final = book.answer(deposit(50, landed=9))

    must_change_nothing(book, undo(final))


@pytest.mark.parametrize("pending", [True, False])
def test_a_signature_that_a_credit_has_is_not_credited_twice(pending: bool) -> None:
    """Whoever recorded it by hand has said what it is; a pending credit is theirs to confirm."""
    book = a_book_on_chain()
    credit = book.answer(fund(50, tx_hash="deposit", pending=pending))

    must_change_nothing(book, deposit(50))
    must_change_nothing(book, deposit(50, landed=9))

    assert book.answer(deposit(50, landed=9)) == credit
    assert book.movements == []


def test_a_credit_of_a_signature_that_was_deposited_is_refused() -> None:
    book = a_book_on_chain()
    seen = book.answer(deposit(50))

    with pytest.raises(errors.TxHashTaken) as refusal:
        book.answer(fund(50, tx_hash="deposit"))

    assert refusal.value.metadata == {"event_id": seen.id}


def test_a_deposit_takes_the_id_that_was_promised_to_it() -> None:
    """And names the payment that it comes from; both stay when it is final."""
    book = a_book_on_chain()
    promised: Any = {"event_id": "promised", "counterpart_event_id": "spend"}

    seen = book.answer(deposit(50, **promised))
    final = book.answer(deposit(50, landed=9, **promised))

    assert (seen.id, seen.counterpart_event_id) == ("promised", "spend")
    assert (final.id, final.counterpart_event_id) == ("promised", "spend")


def test_a_promised_id_that_is_taken_is_not_taken_again() -> None:
    """By the same deposit, when it was undone and lands after all."""
    book = a_book_on_chain()
    promised: Any = {"event_id": "promised", "counterpart_event_id": "spend"}
    book.answer(undo(book.answer(deposit(50, **promised))))

    landed = book.answer(deposit(50, landed=9, **promised))

    assert landed.id != "promised"
    assert (landed.status, landed.counterpart_event_id) == (CONFIRMED, "spend")
    assert book.events[EventId("promised")].status is FAILED


def test_a_deposit_that_does_not_fit_leaves_everything_as_it_was() -> None:
    """It is refused, not lost: what is seen may be shown, and once there is room it counts."""
    vault = a_vault(balance=BALANCE_MAX - 49, chain_balance=0)
    book = a_book_on_chain(vaults={VAULT: vault})
    before = everything(book)

    with pytest.raises(errors.BalanceTooLarge):
        book.answer(deposit(50, landed=9))

    assert everything(book) == before
    vault.balance -= 1
    assert book.answer(deposit(50, landed=9)).status is CONFIRMED


# --- drifts -----------------------------------------------------------------------------


def drifts(book: Book) -> list[tuple[Drift, EventStatus, int]]:
    """What the changes say of the vault's drift."""
    return [
        (decode_drift(change.drift), change.status, change.amount)
        for change in book.changes
        if change.drift is not None
    ]


def test_a_drift_is_a_numbered_change_that_moves_nothing() -> None:
    """Found, it stops the vault; grown, it still does; gone, it no longer does."""
    book = a_book_on_chain()
    book.answer(spend(7))
    found, grown, gone = a_drift(), a_drift(amount=-6, slot=10), a_drift(amount=0, slot=11)
    before, stopped = figures(book), []

    for drift in (found, grown, gone):
        book.stop(drift)
        stopped.append(book.vaults[VAULT].drift)

    assert stopped == [found, grown, None]
    assert drifts(book) == [(found, PENDING, -5), (grown, PENDING, -6), (gone, CONFIRMED, 0)]
    assert [(c.revision, c.event_id, c.previous_revision) for c in book.changes[1:]] == [
        (2, None, None),
        (3, None, None),
        (4, None, None),
    ]
    assert figures(book) == before
    assert book.vaults[VAULT].digest == book.changes[-1].digest
    assert [*book.created, *book.changed] == [book.changes[0].event_id]


@pytest.mark.parametrize(
    ("balance", "chain_balance", "amount", "parts"),
    [
        (1_000, 600, -5, [(EventKind.WITHDRAWAL, -5)]),
        (1_000, 600, -600, [(EventKind.WITHDRAWAL, -600)]),
        (200, 600, -200, [(EventKind.WITHDRAWAL, -200)]),
        (200, 600, -201, [(EventKind.WITHDRAWAL, -200), (EventKind.SETTLEMENT, -1)]),
        (200, 600, -600, [(EventKind.WITHDRAWAL, -200), (EventKind.SETTLEMENT, -400)]),
        (0, 600, -5, [(EventKind.SETTLEMENT, -5)]),
        (1_000, 600, 5, [(EventKind.DEPOSIT, 5)]),
        (0, 0, 5, [(EventKind.DEPOSIT, 5)]),
        # An event is only so large.
        (0, 0, AMOUNT_MAX + 1, [(EventKind.DEPOSIT, AMOUNT_MAX), (EventKind.DEPOSIT, 1)]),
        (
            *(AMOUNT_MAX + 2, 3 * AMOUNT_MAX, -2 * AMOUNT_MAX - 5),
            [
                (EventKind.WITHDRAWAL, -AMOUNT_MAX),
                (EventKind.WITHDRAWAL, -2),
                (EventKind.SETTLEMENT, -AMOUNT_MAX),
                (EventKind.SETTLEMENT, -3),
            ],
        ),
    ],
)
def test_an_acknowledged_drift_is_taken_into_the_ledger(
    balance: int, chain_balance: int, amount: int, parts: list[tuple[EventKind, int]]
) -> None:
    """What is missing from both figures, what was spent already from the chain's alone."""
    vault = a_vault(balance=balance, chain_balance=chain_balance)
    book = a_book_on_chain(vaults={VAULT: vault})
    drift = a_drift(amount=amount)
    book.stop(drift)

    answer = book.answer(acknowledge(amount))

    events = list(book.created.values())
    assert [(event.kind, event.amount) for event in events] == parts
    assert answer == events[0]
    assert all((e.status, e.agent_id, e.recipient) == (CONFIRMED, None, None) for e in events)
    assert {event.metadata for event in events} == {'{"drift_id": "d"}'}
    assert vault.drift is None
    assert vault.chain_balance == chain_balance + amount
    assert vault.balance == max(0, balance + amount)
    assert drifts(book)[1:] == [(drift, CONFIRMED, amount)]
    assert book.acknowledged == [(drift, events[0].id)]


def test_what_is_as_old_as_an_acknowledged_drift_was_in_it() -> None:
    """A deposit that is found so late is not credited again; a younger one is."""
    book = a_book_on_chain()
    seen = book.answer(deposit(70, "seen", landed=None))
    drift = a_drift(amount=77)
    book.stop(drift)
    acknowledged = book.answer(acknowledge(77))
    before = figures(book)

    answers = [book.answer(deposit(7, "lost", landed=drift.slot))]
    answers.append(book.answer(deposit(70, "seen", landed=drift.slot - 1)))

    assert answers == [acknowledged, acknowledged]
    assert figures(book) == before
    undone = book.events[seen.id]
    assert (undone.status, undone.failure_reason) == (FAILED, FailureReason.DEPOSIT_UNDONE)
    assert book.movements == []
    assert book.answer(deposit(7, "lost", landed=None)).status is PENDING
    assert book.answer(deposit(7, "younger", landed=drift.slot + 1)).status is CONFIRMED
    assert figures(book) == (before[0] + 7, before[1] + 7, before[2])


def test_payments_go_on_once_a_drift_is_acknowledged() -> None:
    book = a_book_on_chain()
    book.stop(a_drift())
    stopped = book.answer(pay(7))

    book.answer(acknowledge(-5))

    assert stopped.failure_reason is FailureReason.VAULT_STOPPED
    assert book.answer(pay(7)).status is PENDING
    assert figures(book) == (988, 588, 0)


def test_a_repeated_acknowledgement_gets_the_first_answer() -> None:
    book, command = a_book_on_chain(), acknowledge(-5)
    book.stop(a_drift())
    first = book.answer(command)

    must_change_nothing(book, command)

    assert book.answer(command) == first


NOT_ACKNOWLEDGED: Final[dict[str, tuple[Any, Command, errors.PilotError]]] = {
    "none": (None, acknowledge(-5), errors.DriftNotOpen()),
    "another": (a_drift(id="e"), acknowledge(-5), errors.DriftNotOpen()),
    "another amount": (a_drift(amount=-6), acknowledge(-5), errors.DriftChanged(amount=-6)),
    "the other sign": (a_drift(amount=5), acknowledge(-5), errors.DriftChanged(amount=5)),
    "more than there is": (
        a_drift(amount=-601),
        acknowledge(-601),
        errors.DriftChanged(amount=-600),
    ),
    "more than fits": (
        a_drift(amount=BALANCE_MAX),
        acknowledge(BALANCE_MAX),
        errors.BalanceTooLarge(balance=1_000, limit=BALANCE_MAX),
    ),
}


@pytest.mark.parametrize("case", NOT_ACKNOWLEDGED)
def test_a_drift_is_acknowledged_as_its_owner_has_seen_it(case: str) -> None:
    """Otherwise nothing happens, and the vault stays as it is, stopped or not."""
    drift, command, expected = NOT_ACKNOWLEDGED[case]
    book = a_book_on_chain()
    if drift is not None:
        book.stop(drift)
    before = everything(book)

    with pytest.raises(type(expected)) as refusal:
        book.answer(command)

    assert refusal.value.metadata == expected.metadata
    assert everything(book) == before


def test_a_drift_is_not_acknowledged_while_payments_are_on_their_way() -> None:
    """Nobody knows yet whether they are part of it."""
    book = a_book_on_chain()
    book.stop(a_drift())
    book.on_their_way = {VAULT: 2}
    before = everything(book)

    with pytest.raises(errors.TransfersPending) as refusal:
        book.answer(acknowledge(-5))

    assert refusal.value.metadata == {"pending": "2"}
    assert everything(book) == before
    book.on_their_way = {VAULT: 0}
    assert book.answer(acknowledge(-5)).status is CONFIRMED


# --- any history ------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from("PPPSHDDUWTLLLXVAA"), st.integers(1, 12), st.integers(0, 5), st.booleans()
    ),
    max_size=60,
)


@given(steps)
def test_any_history_on_chain_adds_up(steps: list[tuple[str, int, int, bool]]) -> None:
    """Its figures are the sums of its events, are never negative, and the recount agrees."""
    book = a_book_on_chain(
        vaults={VAULT: a_vault(balance=0)}, vault_ids={WALLET: OTHER_VAULT}, open_holds_max=1_000
    )

    for number, step in enumerate(steps):
        _take(book, number, *step)

    changes = {change.revision: change for change in book.changes}
    running = Running()
    for change in book.changes:
        event = None if change.event_id is None else book.events[change.event_id]
        previous = changes.get(change.previous_revision or 0)
        assert recount.check_change(running, Recorded(change, event, previous)) is None
        # Nothing is missed where all changes before were trimmed.
        trimmed = Recorded(change, event, None, trimmed=change.revision - 1)
        assert recount.check_change(running, trimmed) is None
        running = recount.after(change)
        assert min(change.balance_after, change.chain_balance_after, change.held_after) >= 0
    assert recount.check_vault(running, book.vaults[VAULT]) is None
    assert figures(book) == _summed(book)
    landed = [e for e in book.events.values() if e.status is CONFIRMED and e.tx_hash is not None]
    assert {(m.event_id, m.signature, m.delta) for m in book.movements} == {
        (event.id, event.tx_hash, event.amount) for event in landed
    }


def _take(book: Book, number: int, kind: str, amount: int, which: int, is_so: bool) -> None:
    """Do one thing; that it is refused is an answer, too."""
    vault = book.vaults[VAULT]
    on_their_way = [event for event in book.events.values() if event.is_on_its_way]
    seen = [event for event in book.events.values() if event.kind is EventKind.DEPOSIT]
    book.on_their_way = {VAULT: len(on_their_way)}
    book.signatures = {event.id: f"s{which}" for event in on_their_way if kind == "X"}
    commands: dict[str, Callable[[], Command | None]] = {
        "P": lambda: pay(amount),
        "S": lambda: spend(amount),
        "H": lambda: hold(amount),
        "D": lambda: deposit(amount * 10, f"d{which}", landed=number if is_so else None),
        "U": lambda: undo(seen[which % len(seen)]) if seen else None,
        "W": lambda: withdraw(amount),
        "T": lambda: settle(amount),
        "L": lambda: _decided(on_their_way, number, which, is_so=is_so),
        "X": lambda: None if not on_their_way else sight(on_their_way[0], f"s{which}"),
        "V": lambda: None,
        "A": lambda: vault.drift and acknowledge(vault.drift.amount),
    }
    if kind == "V":
        book.stop(a_drift(amount=(amount if is_so else -amount) * (which > 0)))
    command = commands[kind]()
    if command is None:
        return
    try:
        book.answer(command)
    except (errors.ExceedsVault, errors.VaultStopped, errors.TransfersPending, errors.DriftChanged):
        return


def _decided(on_their_way: list[Event], number: int, which: int, *, is_so: bool) -> Command | None:
    if not on_their_way:
        return None
    payment = on_their_way[which % len(on_their_way)]
    return land(payment, f"landed {number}", number) if is_so else lose(payment)


def _summed(book: Book) -> tuple[int, int, int]:
    """What the contract's table makes of the events, counted for itself."""
    balance = chain = held = 0
    for event in book.events.values():
        counts = event.status is CONFIRMED or (
            event.status is PENDING and event.type is EventType.SPEND
        )
        if not counts:
            continue
        if event.kind is not EventKind.SETTLEMENT:
            balance += event.amount
        if event.kind not in {EventKind.METERED, EventKind.CREDIT, EventKind.REFUND}:
            chain += event.amount
        if event.kind is EventKind.METERED and event.status is PENDING:
            held -= event.amount
    return balance, chain, held
