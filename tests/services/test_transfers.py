"""Payments on chain, whatever happens to them: paid exactly once, or failed and given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import Any, Final

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.system_program import CreateAccountParams, create_account
from spl.token.constants import ACCOUNT_LEN, TOKEN_PROGRAM_ID
from spl.token.instructions import (
    burn,
    close_account,
    initialize_account3,
    thaw_account,
)
from spl.token.models import (
    BurnParams,
    CloseAccountParams,
    InitializeAccount3Params,
    ThawAccountParams,
)

from pilot_grpc import errors
from pilot_grpc.domain.ledger import (
    Event,
    EventKind,
    EventStatus,
    FailureReason,
    SightTransfer,
)
from pilot_grpc.services import transfers
from pilot_grpc.services.budgets import Limits
from pilot_grpc.settings import SolanaCommitment
from pilot_grpc.solana import localnet, payments
from pilot_grpc.solana.localnet import FAUCET, FOR_EVER, USDC, Fault, Kind, Localnet
from pilot_grpc.solana.localnet.chain import BLOCKHASH_BLOCKS
from pilot_grpc.solana.payments import Signed
from tests import make
from tests.paying import FUNDS, OPENING, Paying, hurry, paying, settings_of
from tests.sampling import first_of
from tests.solana import relay
from tests.solana.chains import EmbeddedChain
from tests.solana.payments import SOL, ata
from tests.solana.ports import done, frozen
from tests.solana.relay import Forward, Question, relaying

AMOUNT: Final = 1_000_000
# After so many blocks the last bytes are given up for good.
FOR_GOOD: Final = BLOCKHASH_BLOCKS + transfers.EXPIRY_MARGIN_BLOCKS + 40

CONFIRMED: Final = EventStatus.CONFIRMED
FAILED: Final = EventStatus.FAILED
PENDING: Final = EventStatus.PENDING


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
async def net() -> AsyncIterator[Localnet]:
    """A chain whose blocks are made by hand, behind two nodes."""
    async with localnet.running(None, manual=True, endpoints=2) as net:
        yield net


@pytest.fixture
async def it(database: str, net: Localnet) -> AsyncIterator[Paying]:
    """A vault with 10 USDC, its agent, and a process that works on the chain."""
    async with paying(database, EmbeddedChain(net)) as it:
        yield it


def strike(
    net: Localnet, kind: Kind, method: str | None = "sendTransaction", **fields: Any
) -> None:
    """Let both nodes go wrong."""
    for endpoint in net.endpoints:
        endpoint.faults.add(Fault(kind, method, **fields))


def heal(net: Localnet) -> None:
    for endpoint in net.endpoints:
        endpoint.faults.clear()


# -- What nothing happens to


async def test_a_payment_is_reserved_shown_and_confirmed(it: Paying) -> None:
    """Three numbered changes; the figures move with the first, the money with the last."""
    event = await it.pay(AMOUNT)
    vault = await it.vault()
    assert (event.status, event.tx_hash) == (PENDING, None)
    assert (vault.balance, vault.chain_balance) == (FUNDS - AMOUNT, FUNDS - AMOUNT)

    sent = await it.sent(event)
    assert await it.sighted(event) == sent
    it.net.finalize()
    confirmed = await it.decided(event)

    assert (confirmed.status, confirmed.tx_hash) == (CONFIRMED, sent)
    assert await it.changes(event) == [
        ("pending", None, None),
        ("pending", sent, None),
        ("confirmed", sent, None),
    ]
    assert await it.signed(event) == [sent]
    await it.is_right(paid=AMOUNT)


async def test_a_landed_payment_is_pending_until_it_is_final(it: Paying) -> None:
    """A block that is not final may yet be given up; the 31st after it does not change that."""
    event = await it.pay(AMOUNT)
    await it.sent(event)
    await it.sighted(event)
    it.net.tick(it.net.chain.finalized_slots - 1)
    await it.looked()
    early = await it.event(event)

    it.net.tick()
    confirmed = await it.decided(event)

    assert (early.status, confirmed.status) == (PENDING, CONFIRMED)
    await it.is_right(paid=AMOUNT)


async def test_many_payments_at_once_are_each_made_once(it: Paying) -> None:
    events = await asyncio.gather(*(it.pay(10_000 + n) for n in range(40)))

    decided = [await it.decided(event) for event in events]

    assert {event.status for event in decided} == {CONFIRMED}
    assert len({event.tx_hash for event in decided}) == 40
    await it.is_right(paid=sum(10_000 + n for n in range(40)))


async def test_a_withdrawal_is_paid(it: Paying) -> None:
    event = await it.withdraw(FUNDS)

    decided = await it.decided(event)

    assert (decided.kind, decided.status) == (EventKind.WITHDRAWAL, CONFIRMED)
    await it.is_right(paid=FUNDS)


async def test_a_settlement_takes_what_was_spent_on_metered_use(it: Paying) -> None:
    """It moves the chain balance alone."""
    await make.spend(it.app, it.spender, 3_000_000)

    decided = await it.decided(await it.settle(2_000_000))

    assert (decided.kind, decided.status) == (EventKind.SETTLEMENT, CONFIRMED)
    assert (await it.vault()).balance == FUNDS - 3_000_000
    await it.is_right(paid=2_000_000, metered=3_000_000, settled=2_000_000)


async def test_a_payment_to_another_vault_is_a_deposit_there(it: Paying) -> None:
    """The spend and the deposit name each other, with the same signature."""
    other = await make.agent(it.app, vault_balance=0)
    address = Pubkey.from_string((await make.vault(it.app, other)).address)
    await it.allow(address)

    event = await it.pay(AMOUNT, address)
    spent = await it.decided(event)

    async def is_there() -> bool:
        return (await make.vault(it.app, other)).chain_balance == AMOUNT

    await it.until(is_there)
    assert spent.counterpart_event_id is not None
    deposit = await it.app.ledger.get_event(other.owner, spent.counterpart_event_id)
    assert (deposit.kind, deposit.status) == (EventKind.DEPOSIT, CONFIRMED)
    assert (deposit.amount, deposit.tx_hash) == (AMOUNT, spent.tx_hash)
    assert deposit.counterpart_event_id == spent.id
    assert (await make.vault(it.app, other)).balance == AMOUNT
    assert await make.verify(it.app, other) is None
    await it.is_right(paid=AMOUNT, payee=address)


async def test_what_counts_at_confirmed_is_confirmed_then(database: str, net: Localnet) -> None:
    """Two blocks instead of thirty-two, where the owner has chosen so."""
    commitment = SolanaCommitment.CONFIRMED
    async with paying(database, EmbeddedChain(net), solana_commitment=commitment) as it:
        event = await it.pay(AMOUNT)
        await it.sent(event)
        net.tick(2)

        async def is_confirmed() -> bool:
            return (await it.event(event)).status is CONFIRMED

        await it.still_until(is_confirmed)
        net.finalize()
        await it.is_right(paid=AMOUNT)


# -- What the chain undoes


async def test_a_payment_that_a_fork_takes_away_lands_again(it: Paying) -> None:
    """The same bytes are sent again, and nothing is signed anew."""
    event = await it.pay(AMOUNT)
    sent = await it.sent(event)
    await it.sighted(event)

    assert it.net.chain.fork_away([sent]) == [sent]
    assert await it.holdings(it.payee.pubkey()) == OPENING
    decided = await it.decided(event)

    assert (decided.status, decided.tx_hash) == (CONFIRMED, sent)
    assert await it.signed(event) == [sent]
    await it.is_right(paid=AMOUNT)


async def test_a_payment_that_a_fork_takes_away_for_good_is_signed_anew(it: Paying) -> None:
    """Its first signature was shown; the second is the one that counts."""
    event = await it.pay(AMOUNT)
    first = await it.sent(event)
    await it.sighted(event)
    strike(it.net, Kind.DROP, count=FOR_EVER)

    it.net.chain.fork_away([first])
    it.net.tick(FOR_GOOD)
    heal(it.net)
    decided = await it.decided(event)

    signed = await it.signed(event)
    assert (signed[0], len(signed)) == (first, 2)
    assert (decided.status, decided.tx_hash) == (CONFIRMED, signed[1])
    assert [tx_hash for _, tx_hash, _ in await it.changes(event)] == [
        *(None, first),
        *(signed[1], signed[1]),
    ]
    await it.is_right(paid=AMOUNT)


async def test_a_signature_that_is_shown_late_is_not_told_after_the_next_one(
    it: Paying, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds the showing back holds up nothing else."""
    lanes, may_be_shown = it.app.lanes, asyncio.Event()
    decide: Any = lanes.decide

    async def late(command: object) -> Any:
        if isinstance(command, SightTransfer):
            await may_be_shown.wait()
        return await decide(command)

    monkeypatch.setattr(lanes, "decide", late)
    event = await it.pay(AMOUNT)
    first = await it.sent(event)
    it.net.tick()
    await it.looked()
    strike(it.net, Kind.DROP, count=FOR_EVER)
    it.net.chain.fork_away([first])
    it.net.tick(FOR_GOOD)
    heal(it.net)

    async def is_signed_anew() -> bool:
        return len(await it.signed(event)) == 2

    await it.still_until(is_signed_anew)
    may_be_shown.set()
    decided = await it.decided(event)

    _, second = await it.signed(event)
    assert (decided.status, decided.tx_hash) == (CONFIRMED, second)
    assert first not in [tx_hash for _, tx_hash, _ in await it.changes(event)]
    await it.is_right(paid=AMOUNT)


async def test_a_payment_that_fails_on_chain_is_given_back(it: Paying) -> None:
    """The issuer froze the payee after the payment was sent."""
    strike(it.net, Kind.HOLD)
    event = await it.pay(AMOUNT)
    sent = await it.sent(event)
    frozen(it.net, ata(it.payee.pubkey()))

    it.net.chain.release()
    decided = await it.decided(event)

    assert (decided.status, decided.failure_reason) == (FAILED, FailureReason.TRANSFER_FAILED)
    assert await it.signed(event) == [sent]
    landed = it.net.chain.landed(sent)
    assert landed is not None
    assert landed.err is not None
    await it.is_right(paid=0)


async def test_a_failure_that_a_fork_undoes_was_none(it: Paying) -> None:
    """Frozen when it landed first, thawed when it landed for good."""
    strike(it.net, Kind.HOLD)
    event = await it.pay(AMOUNT)
    sent = await it.sent(event)
    account = ata(it.payee.pubkey())
    frozen(it.net, account)
    it.net.chain.release()
    it.net.tick(5)
    landed = it.net.chain.landed(sent)
    assert landed is not None
    assert landed.err is not None
    await it.looked()

    strike(it.net, Kind.DROP, count=FOR_EVER)
    it.net.chain.fork_away([sent])
    params = ThawAccountParams(
        program_id=TOKEN_PROGRAM_ID, account=account, mint=USDC, authority=FAUCET.pubkey()
    )
    done(it.net, [thaw_account(params)])
    heal(it.net)
    decided = await it.decided(event)

    assert (decided.status, decided.tx_hash) == (CONFIRMED, sent)
    await it.is_right(paid=AMOUNT)


# -- What gets lost, or comes late


async def test_a_payment_that_is_dropped_is_sent_again(it: Paying) -> None:
    """Three times the network loses it. The bytes are the same each time."""
    strike(it.net, Kind.DROP, count=3)

    event = await it.pay(AMOUNT)
    decided = await it.decided(event)

    assert decided.status is CONFIRMED
    assert await it.signed(event) == [decided.tx_hash]
    await it.is_right(paid=AMOUNT)


async def test_a_payment_that_is_held_until_its_last_block_is_paid_once(it: Paying) -> None:
    """It lands when it hardly can any more; nobody has signed another one by then."""
    strike(it.net, Kind.HOLD)
    event = await it.pay(AMOUNT)
    sent = await it.sent(event)
    strike(it.net, Kind.DROP, count=FOR_EVER)

    last = await last_valid_height(it, sent)
    it.net.tick(last - 1 - it.net.chain.height(it.net.chain.tip))
    await it.looked()
    it.net.chain.release()
    it.net.tick()
    landed = it.net.chain.landed(sent)
    assert landed is not None
    assert it.net.chain.height(landed.slot) == last
    decided = await it.decided(event)

    assert (decided.status, decided.tx_hash) == (CONFIRMED, sent)
    assert await it.signed(event) == [sent]
    await it.is_right(paid=AMOUNT)


async def test_a_payment_that_is_held_past_its_expiry_is_signed_anew(it: Paying) -> None:
    """The first can land no more when the second is signed: paid exactly once."""
    strike(it.net, Kind.HOLD)
    event = await it.pay(AMOUNT)
    first = await it.sent(event)
    strike(it.net, Kind.DROP, count=FOR_EVER)

    it.net.tick(FOR_GOOD)
    heal(it.net)
    decided = await it.decided(event)
    it.net.chain.release()
    it.net.finalize()

    signed = await it.signed(event)
    assert (signed[0], len(signed)) == (first, 2)
    assert (decided.status, decided.tx_hash) == (CONFIRMED, signed[1])
    assert it.net.chain.landed(first) is None
    await it.is_right(paid=AMOUNT)


async def test_nothing_is_signed_anew_before_nothing_can_land(it: Paying) -> None:
    """Not in the block after the last one, and not until that is long final."""
    strike(it.net, Kind.DROP, count=FOR_EVER)
    event = await it.pay(AMOUNT)
    await it.until(partial(is_signed, it, event))
    (sent,) = await it.signed(event)
    chain, last = it.net.chain, await last_valid_height(it, sent)
    wanted = last + transfers.EXPIRY_MARGIN_BLOCKS

    chain.tick(wanted + chain.finalized_slots - chain.height(chain.tip))
    await it.looked()
    before = await it.signed(event)
    heal(it.net)
    chain.tick()
    decided = await it.decided(event)

    assert before == [sent]
    assert len(await it.signed(event)) == 2
    assert decided.status is CONFIRMED
    await it.is_right(paid=AMOUNT)


async def test_a_payment_that_never_lands_is_given_back(it: Paying) -> None:
    """Three times signed, each time for nothing."""
    strike(it.net, Kind.DROP, count=FOR_EVER)
    event = await it.pay(AMOUNT)

    for attempt in range(1, transfers.ATTEMPTS_MAX + 1):

        async def is_signed_again(count: int = attempt) -> bool:
            return len(await it.signed(event)) == count

        await it.still_until(is_signed_again)
        it.net.tick(FOR_GOOD)
    decided = await it.decided(event)
    heal(it.net)
    it.net.finalize()

    assert (decided.status, decided.failure_reason) == (FAILED, FailureReason.TRANSFER_EXPIRED)
    assert len(set(await it.signed(event))) == transfers.ATTEMPTS_MAX
    await it.is_right(paid=0)


# -- Nodes that go wrong


ANSWERS: Final[dict[str, Fault]] = {
    "applied then disconnected": Fault(Kind.APPLY_THEN_DISCONNECT),
    "applied then hung": Fault(Kind.APPLY_THEN_HANG),
    "truncated": Fault(Kind.TRUNCATED),
    "of another request": Fault(Kind.WRONG_ID),
    "of another type": Fault(Kind.WRONG_TYPE),
    "too many requests": Fault(Kind.RATE_LIMITED, retry_after="1"),
    "unavailable": Fault(Kind.UNAVAILABLE),
    "a page": Fault(Kind.HTML),
    "disconnected": Fault(Kind.DISCONNECT),
    "hung": Fault(Kind.HANG),
    "unhealthy": Fault(Kind.ERROR),
    "preflight failed": Fault(Kind.ERROR, code=-32002, message="Blockhash not found"),
    "already processed": Fault(
        Kind.ERROR, code=-32002, message="This transaction has already been processed"
    ),
}


@pytest.mark.parametrize("answer", first_of(ANSWERS, 3))
async def test_whatever_a_sending_is_answered_it_is_paid_once(it: Paying, answer: str) -> None:
    """A transfer and a withdrawal: both nodes say so, whether they have passed them on or not."""
    fault = ANSWERS[answer]
    strike(
        *(it.net, fault.kind),
        count=2,
        retry_after=fault.retry_after,
        code=fault.code,
        message=fault.message,
    )

    events = await asyncio.gather(it.pay(AMOUNT), it.withdraw(AMOUNT))
    for event in events:
        await it.sent(event)
    decided = [await it.decided(event) for event in events]

    for event in decided:
        assert event.status is CONFIRMED
        assert await it.signed(event) == [event.tx_hash]
    await it.is_right(paid=2 * AMOUNT)


@pytest.mark.parametrize("answer", first_of(ANSWERS, 2))
async def test_whatever_all_questions_are_answered_it_is_paid_once(it: Paying, answer: str) -> None:
    """The next four of each node, from the moment on that the payment is asked for."""
    fault = ANSWERS[answer]
    strike(
        *(it.net, fault.kind, None),
        count=4,
        retry_after=fault.retry_after,
        code=fault.code,
        message=fault.message,
    )

    event = await it.pay(AMOUNT)
    await it.sent(event)
    decided = await it.decided(event)

    assert decided.status is CONFIRMED
    assert await it.signed(event) == [decided.tx_hash]
    await it.is_right(paid=AMOUNT)


@pytest.mark.parametrize("which", first_of([0, 1]))
async def test_a_node_that_is_behind_only_makes_it_wait(it: Paying, which: int) -> None:
    """It has not seen what is final at the other one."""
    it.net.endpoints[which].node.lag = 60
    event = await it.pay(AMOUNT)

    async def is_shown() -> bool:
        return (await it.event(event)).tx_hash is not None

    await it.until(is_shown)
    it.net.finalize()
    await it.looked()
    early = await it.event(event)
    it.net.tick(60)
    decided = await it.decided(event)

    assert (early.status, decided.status) == (PENDING, CONFIRMED)
    assert await it.signed(event) == [decided.tx_hash]
    it.net.endpoints[which].node.lag = 0
    await it.is_right(paid=AMOUNT)


@pytest.mark.parametrize("which", first_of([0, 1]))
async def test_a_node_that_is_behind_does_not_have_anything_signed_anew(
    it: Paying, which: int
) -> None:
    """It does not know a payment that has landed; what it does not know did not expire."""
    it.net.endpoints[which].node.lag = 300
    event = await it.pay(AMOUNT)
    await it.until(partial(is_signed, it, event))
    (sent,) = await it.signed(event)

    # One block after the one that gives it up for the other node, and before it is final here.
    chain, last = it.net.chain, await last_valid_height(it, sent)
    wanted = last + transfers.EXPIRY_MARGIN_BLOCKS + 1
    chain.tick(wanted + chain.finalized_slots - chain.height(chain.tip))
    await it.looked()
    assert (await it.event(event)).status is PENDING
    assert await it.signed(event) == [sent]
    it.net.endpoints[which].node.lag = 0
    decided = await it.decided(event)

    assert (decided.status, decided.tx_hash) == (CONFIRMED, sent)
    await it.is_right(paid=AMOUNT)


# -- Nodes that lie


def status(signature_slot: int, err: object = None) -> dict[str, Any]:
    return {
        "slot": signature_slot,
        "confirmations": None,
        "err": err,
        "status": {"Ok": None} if err is None else {"Err": err},
        "confirmationStatus": "finalized",
    }


async def statuses(forward: Forward, change: Callable[[dict[str, Any]], Any]) -> Any:
    """The true answer, with each status as the node would have it."""
    result = (await forward())["result"]
    slot = result["context"]["slot"]
    return {**result, "value": [change(status(slot)) for _ in result["value"]]}


async def says_it_landed(question: Question, forward: Forward) -> Any:
    if question["method"] == "sendTransaction":
        return relay.signature_of(question)
    if question["method"] == "getSignatureStatuses":
        return await statuses(forward, lambda each: each)
    return None


async def says_it_failed(question: Question, forward: Forward) -> Any:
    if question["method"] == "getSignatureStatuses":
        return await statuses(forward, lambda each: each | status(each["slot"], "AccountInUse"))
    return None


async def says_it_expired(question: Question, forward: Forward) -> Any:
    """It is a million blocks ahead, and has never heard of the payment."""
    method = question["method"]
    if method == "getSignatureStatuses":
        return await statuses(forward, lambda _: None)
    if method == "getBlockHeight":
        return (await forward())["result"] + 1_000_000
    return None


async def says_it_expires_soon(question: Question, forward: Forward) -> Any:
    """Its blockhashes are good until the block before."""
    if question["method"] == "getLatestBlockhash":
        result = (await forward())["result"]
        return {**result, "value": {**result["value"], "lastValidBlockHeight": 1}}
    return await says_it_expired(question, forward)


async def says_it_would_fail(question: Question, forward: Forward) -> Any:
    """Neither of the two has USDC, and nothing can be simulated."""
    if question["method"] == "getMultipleAccounts":
        result = (await forward())["result"]
        return {**result, "value": [None for _ in result["value"]]}
    return None


async def says_it_has_no_account(question: Question, forward: Forward) -> Any:
    """The recipient has none, and everybody else has one."""
    if question["method"] == "getMultipleAccounts":
        result = (await forward())["result"]
        recipient, _, source = result["value"]
        return {**result, "value": [recipient, None, source]}
    return None


async def forgets_everything(question: Question, forward: Forward) -> Any:
    """Its history begins in a million slots."""
    if question["method"] == "getFirstAvailableBlock":
        return (await forward())["result"] + 1_000_000
    return None


LIARS: Final = (
    says_it_landed,
    says_it_failed,
    says_it_expired,
    says_it_expires_soon,
)


@pytest.mark.parametrize("other", first_of(["asked after it", "asked before it", "away"]))
@pytest.mark.parametrize("liar", first_of(LIARS, 2))
async def test_one_node_that_lies_decides_nothing(
    database: str, net: Localnet, liar: relay.Meddle, other: str
) -> None:
    """As long as it lies the payment waits; when it tells the truth again it is paid once."""
    async with relaying(net.urls[0]) as lying:
        urls = (lying.url, net.urls[1])[:: -1 if other == "asked before it" else 1]
        async with paying(database, EmbeddedChain(net), urls=urls) as it:
            strike(net, Kind.HOLD, count=FOR_EVER)
            event = await it.pay(AMOUNT)
            sent = await it.sent(event)
            lying.meddle = liar
            if other == "away":
                net.endpoints[1].faults.add(Fault(Kind.DISCONNECT, count=FOR_EVER))
            for _ in range(3):
                net.tick(5)
                await lying.asked_for("getSignatureStatuses", 10)
            early, signed = await it.event(event), await it.signed(event)

            heal(net)
            net.chain.release()
            net.tick(60)
            enough = lying.asked["getSignatureStatuses"] + 3

            async def is_looked_at() -> bool:
                """Its history may tell, and then nobody asks for its status any more."""
                is_decided = (await it.event(event)).status is not PENDING
                return is_decided or lying.asked["getSignatureStatuses"] >= enough

            await it.still_until(is_looked_at)
            lying.meddle = None
            decided = await it.decided(event)

            assert (early.status, signed) == (PENDING, [sent])
            assert (decided.status, decided.tx_hash) == (CONFIRMED, sent)
            assert await it.signed(event) == [sent]
            await it.is_right(paid=AMOUNT)


@pytest.mark.parametrize("other", first_of(["there", "away"]))
async def test_one_node_cannot_have_a_payment_refused(
    database: str, net: Localnet, other: str
) -> None:
    """It says that neither payer nor payee has USDC."""
    async with (
        relaying(net.urls[0]) as lying,
        paying(database, EmbeddedChain(net), urls=(lying.url, net.urls[1])) as it,
    ):
        lying.meddle = says_it_would_fail
        if other == "away":
            net.endpoints[1].faults.add(Fault(Kind.DISCONNECT, count=FOR_EVER))
        event = await it.pay(AMOUNT)
        await lying.asked_for("getMultipleAccounts", 4)
        early = await it.event(event)
        heal(net)
        lying.meddle = None
        decided = await it.decided(event)

        assert (early.failure_reason, decided.status) == (None, CONFIRMED)
        await it.is_right(paid=AMOUNT)


@pytest.mark.parametrize("accounts_per_day", first_of([0, 1]))
async def test_one_node_cannot_have_a_recipient_refused_that_has_an_account(
    database: str, net: Localnet, accounts_per_day: int
) -> None:
    """It says that there is none; where one may be made, making it again does no harm."""
    async with relaying(net.urls[0]) as lying:
        urls = (lying.url, net.urls[1])
        async with paying(
            database,
            EmbeddedChain(net),
            urls=urls,
            recipient_accounts_per_day=accounts_per_day,
        ) as it:
            lying.meddle = says_it_has_no_account
            first = await it.decided(await it.pay(AMOUNT))
            event = await it.pay(AMOUNT)
            await asyncio.sleep(0.3)
            lying.meddle = None
            second = await it.decided(event)

            assert (first.status, second.status) == (CONFIRMED, CONFIRMED)
            await it.is_right(paid=2 * AMOUNT)


# -- Whom nobody pays


def token_account_with_a_key(it: Paying) -> Pubkey:
    """A token account that is at no derived address: only the chain shows what it is."""
    account = Keypair()
    params = CreateAccountParams(
        from_pubkey=FAUCET.pubkey(),
        to_pubkey=account.pubkey(),
        lamports=it.net.chain.rent(ACCOUNT_LEN),
        space=ACCOUNT_LEN,
        owner=TOKEN_PROGRAM_ID,
    )
    initialising = InitializeAccount3Params(
        program_id=TOKEN_PROGRAM_ID,
        account=account.pubkey(),
        mint=USDC,
        owner=it.payee.pubkey(),
    )
    done(it.net, [create_account(params), initialize_account3(initialising)], account)
    return account.pubkey()


def somebody_frozen(it: Paying) -> Pubkey:
    frozen(it.net, ata(it.payee.pubkey()))
    return it.payee.pubkey()


def the_mint(it: Paying) -> Pubkey:
    return it.net.chain.create_mint()


def a_program(_: Paying) -> Pubkey:
    return TOKEN_PROGRAM_ID


def the_vault_itself(it: Paying) -> Pubkey:
    return Pubkey.from_string(it.address)


REFUSED: Final[dict[FailureReason, tuple[Callable[[Paying], Pubkey], ...]]] = {
    FailureReason.RECIPIENT_NOT_A_WALLET: (token_account_with_a_key, the_mint, a_program),
    FailureReason.ACCOUNT_FROZEN: (somebody_frozen,),
    FailureReason.RECIPIENT_IS_THE_VAULT: (the_vault_itself,),
}


@pytest.mark.parametrize(
    ("reason", "recipient"),
    [(reason, each) for reason, recipients in REFUSED.items() for each in recipients],
)
async def test_who_cannot_be_paid_is_refused_and_nothing_is_signed(
    it: Paying, reason: FailureReason, recipient: Callable[[Paying], Pubkey]
) -> None:
    wallet = recipient(it)
    it.net.finalize()
    await it.allow(wallet)

    event = await it.pay(AMOUNT, wallet)
    decided = await it.decided(event)

    assert (decided.status, decided.failure_reason) == (FAILED, reason)
    assert await it.signed(event) == []
    await it.is_right(paid=0)


@pytest.mark.parametrize(
    "recipient",
    [ata(FAUCET.pubkey()), Pubkey.find_program_address([b"x"], USDC)[0]],
    ids=["token account", "derived"],
)
async def test_who_can_have_no_key_is_refused_when_it_is_asked_for(
    it: Paying, recipient: Pubkey
) -> None:
    """Nothing is reserved, and nothing is on its way."""
    for payment in (it.pay, it.withdraw, it.settle):
        with pytest.raises(errors.InvalidRequest):
            await payment(1, recipient)

    await it.is_right(paid=0)


async def test_without_a_policy_nobody_gets_an_account(database: str, net: Localnet) -> None:
    async with paying(database, EmbeddedChain(net), recipient_accounts_per_day=0) as it:
        newcomer = Keypair().pubkey()
        await it.allow(newcomer)

        decided = await it.decided(await it.pay(AMOUNT, newcomer))

        reason = FailureReason.RECIPIENT_HAS_NO_ACCOUNT
        assert (decided.status, decided.failure_reason) == (FAILED, reason)
        await it.is_right(paid=0, payee=newcomer)


async def test_a_newcomer_gets_an_account_once_and_never_again(it: Paying) -> None:
    """Whoever closes the account has its rent; a second one would be a second gift."""
    newcomer = Keypair()
    await it.allow(newcomer.pubkey())
    first = await it.decided(await it.pay(AMOUNT, newcomer.pubkey()))
    account = ata(newcomer.pubkey())
    burning = BurnParams(
        program_id=TOKEN_PROGRAM_ID,
        account=account,
        mint=USDC,
        owner=newcomer.pubkey(),
        amount=AMOUNT,
    )
    closing = CloseAccountParams(
        program_id=TOKEN_PROGRAM_ID,
        account=account,
        dest=newcomer.pubkey(),
        owner=newcomer.pubkey(),
    )
    done(it.net, [burn(burning), close_account(closing)], newcomer)

    second = await it.decided(await it.pay(AMOUNT, newcomer.pubkey()))

    assert first.status is CONFIRMED
    assert (second.status, second.failure_reason) == (
        FAILED,
        FailureReason.RECIPIENT_HAS_NO_ACCOUNT,
    )
    assert (await it.vault()).chain_balance == FUNDS - AMOUNT
    assert (await it.reconciled()).drift is None
    assert await make.verify(it.app, it.spender) is None


async def test_so_many_newcomers_a_day_get_an_account(database: str, net: Localnet) -> None:
    """One here. The next one is refused, and the first is paid again."""
    async with paying(database, EmbeddedChain(net), recipient_accounts_per_day=1) as it:
        one, other = Keypair().pubkey(), Keypair().pubkey()
        await it.allow(one)
        await it.allow(other)

        events = [await it.decided(await it.pay(AMOUNT, each)) for each in (one, other, one)]

        assert [event.status for event in events] == [CONFIRMED, FAILED, CONFIRMED]
        assert events[1].failure_reason is FailureReason.RECIPIENT_HAS_NO_ACCOUNT
        assert await it.holdings(other) == 0
        await it.is_right(paid=2 * AMOUNT, payee=one)


@pytest.mark.full
async def test_two_payments_at_once_to_a_newcomer_are_both_made(it: Paying) -> None:
    """One makes the account, and the other one waits for it."""
    newcomer = Keypair().pubkey()
    await it.allow(newcomer)

    events = await asyncio.gather(*(it.pay(AMOUNT, newcomer) for _ in range(3)))
    decided = [await it.decided(event) for event in events]

    assert [event.status for event in decided] == [CONFIRMED] * 3
    await it.is_right(paid=3 * AMOUNT, payee=newcomer)


async def test_a_stranger_never_gets_an_account(it: Paying) -> None:
    """The agent may pay anybody who has one; only those on its list get one."""
    stranger, rich = Keypair().pubkey(), Keypair().pubkey()
    owner, agent_id = it.spender.owner, it.spender.agent_id
    await it.app.budgets.set(owner, agent_id, Limits(10**12, 10**12, None, any_recipient=True))
    it.net.faucet(rich, OPENING)
    it.net.finalize()

    refused = await it.decided(await it.pay(AMOUNT, stranger))
    paid = await it.decided(await it.pay(AMOUNT, rich))

    assert (refused.status, refused.failure_reason) == (
        FAILED,
        FailureReason.RECIPIENT_HAS_NO_ACCOUNT,
    )
    assert paid.status is CONFIRMED
    assert await it.holdings(stranger) == 0
    assert await it.holdings(rich) == OPENING + AMOUNT
    assert (await it.reconciled()).drift is None


# -- What keeps it from being sent


async def test_without_sol_payments_wait_for_it(database: str, net: Localnet) -> None:
    """The fee payer is filled up later, and then it is paid."""
    strike(net, Kind.ERROR, "requestAirdrop", count=FOR_EVER)
    async with paying(database, EmbeddedChain(net)) as it:
        event = await it.pay(AMOUNT)
        net.tick(40)
        await asyncio.sleep(0.3)
        early, signed = await it.event(event), await it.signed(event)

        heal(net)
        settlement = it.app.settlement
        assert settlement is not None
        net.airdrop(Pubkey.from_string(settlement.fee_payer._address), SOL)
        decided = await it.decided(event)

        assert (early.status, signed) == (PENDING, [])
        assert decided.status is CONFIRMED
        await it.is_right(paid=AMOUNT)


async def test_what_could_not_be_signed_for_long_is_given_back(
    database: str, net: Localnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    strike(net, Kind.ERROR, "requestAirdrop", count=FOR_EVER)
    monkeypatch.setattr(transfers, "UNSENT_MAX", timedelta(seconds=0.3))
    async with paying(database, EmbeddedChain(net)) as it:
        event = await it.pay(AMOUNT)

        decided = await it.decided(event)

        assert (decided.status, decided.failure_reason) == (FAILED, FailureReason.TRANSFER_NOT_SENT)
        assert await it.signed(event) == []
        await it.is_right(paid=0)


async def rob(it: Paying, amount: int) -> None:
    """Take USDC out of the vault behind everybody's back, so that the vault is stopped."""
    chain, account = it.net.chain, ata(Pubkey.from_string(it.address))
    found = chain.account(account, chain.tip)
    assert found is not None
    data = bytearray(found.data)
    data[64:72] = (int.from_bytes(data[64:72], "little") - amount).to_bytes(8, "little")
    changed = type(found)(
        found.lamports, bytes(data), found.owner, found.executable, found.rent_epoch
    )
    chain._store.set_account(account, chain.tip, changed, 0)
    it.net.finalize()
    assert (await it.reconciled()).drift is not None


async def test_a_stopped_vault_signs_nothing(database: str, net: Localnet) -> None:
    """What was asked for before is given back."""
    async with paying(database, EmbeddedChain(net), duties=False) as it:
        event = await it.pay(AMOUNT)
        await rob(it, 5)
        async with make.app(database, duties=True, **settings_of(it.chain)):
            decided = await it.decided(event)

        assert (decided.status, decided.failure_reason) == (FAILED, FailureReason.VAULT_STOPPED)
        assert await it.signed(event) == []
        assert (await it.vault()).balance == FUNDS
        assert await make.verify(it.app, it.spender) is None


async def test_a_vault_that_is_stopped_while_it_is_judged_signs_nothing(
    it: Paying, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is signed is thrown away: it was not stored yet, so it was never sent."""
    prepare = payments.prepare

    async def late(*args: Any) -> Signed:
        signed: Signed = await prepare(*args)
        if (await it.vault()).drift is None:
            await rob(it, 5)
        return signed

    monkeypatch.setattr(payments, "prepare", late)
    event = await it.pay(AMOUNT)
    decided = await it.decided(event)

    assert (decided.status, decided.failure_reason) == (FAILED, FailureReason.VAULT_STOPPED)
    assert await it.signed(event) == []
    assert await it.holdings(it.payee.pubkey()) == OPENING
    assert await make.verify(it.app, it.spender) is None


async def test_a_stopped_vault_finishes_what_was_sent(it: Paying) -> None:
    """Nobody can take that back; the drift is the same before and after."""
    strike(it.net, Kind.HOLD)
    event = await it.pay(AMOUNT)
    sent = await it.sent(event)
    await rob(it, 5)

    it.net.chain.release()
    decided = await it.decided(event)
    it.net.finalize()
    found = await it.reconciled()

    assert (decided.status, decided.tx_hash) == (CONFIRMED, sent)
    assert found.drift is not None
    assert found.drift.amount == -5
    assert await make.verify(it.app, it.spender) is None


# -- Several processes


async def test_a_process_that_does_not_settle_leaves_the_work_to_another(
    database: str, net: Localnet
) -> None:
    chain = EmbeddedChain(net)
    async with paying(database, chain, duties=False) as it:
        idle = settings_of(chain) | {"settlement_enabled": False}
        async with make.app(database, duties=True, **idle) as app:
            it.app = app
            event = await it.pay(AMOUNT)
            net.tick(40)
            await asyncio.sleep(0.3)
            early, signed = await it.event(event), await it.signed(event)
            async with make.app(database, duties=True, **settings_of(chain)):
                decided = await it.decided(event)

            assert (early.status, signed) == (PENDING, [])
            assert decided.status is CONFIRMED
            await it.is_right(paid=AMOUNT)


async def test_what_a_process_leaves_another_finishes(database: str, net: Localnet) -> None:
    """One signs and sends, and ends; the other knows the signature from the database."""
    chain = EmbeddedChain(net)
    async with paying(database, chain, duties=False) as it:
        async with make.app(database, duties=True, **settings_of(chain)):
            strike(net, Kind.DROP, count=FOR_EVER)
            events = [await it.pay(AMOUNT) for _ in range(3)]
            for event in events:
                await it.still_until(partial(is_signed, it, event))
        heal(net)
        signed = [await it.signed(event) for event in events]
        async with make.app(database, duties=True, **settings_of(chain)):
            decided = [await it.decided(event) for event in events]

        assert [[event.tx_hash] for event in decided] == signed
        assert {event.status for event in decided} == {CONFIRMED}
        await it.is_right(paid=3 * AMOUNT)


async def test_three_processes_share_the_work_and_pay_everything_once(
    database: str, net: Localnet
) -> None:
    """Leases that end at once make them work on the same payments all the time."""
    chain = EmbeddedChain(net)
    async with AsyncExitStack() as stack:
        it = await stack.enter_async_context(paying(database, chain, duties=False))
        for _ in range(3):
            running = make.app(database, duties=True, **settings_of(chain))
            await stack.enter_async_context(running)
        transfers_lease = pytest.MonkeyPatch()
        stack.callback(transfers_lease.undo)
        transfers_lease.setattr(transfers, "LEASE", timedelta(milliseconds=1))
        strike(net, Kind.DROP, count=20)

        events = await asyncio.gather(*(it.pay(10_000 + n) for n in range(30)))
        decided = [await it.decided(event) for event in events]

        assert {event.status for event in decided} == {CONFIRMED}
        for event in decided:
            assert await it.signed(event) == [event.tx_hash]
            assert len(await it.changes(event)) <= 3
        await it.is_right(paid=sum(10_000 + n for n in range(30)))


# -- Those that stand in the way of others


@pytest.mark.full
async def test_many_that_expire_at_once_come_to_their_end(database: str, net: Localnet) -> None:
    """After an outage, and with as few questions a second as a provider may allow."""
    chain = EmbeddedChain(net)
    async with paying(database, chain, duties=False) as it:
        strike(net, Kind.DROP, count=FOR_EVER)
        async with make.app(database, duties=True, **settings_of(chain)):
            events = await asyncio.gather(*(it.pay(AMOUNT // 10 + n) for n in range(60)))
            for event in events:
                await it.still_until(partial(is_signed, it, event))
        net.tick(FOR_GOOD)
        few = {"solana_rpc_requests_per_second": 20, "solana_poll": timedelta(seconds=0.5)}

        async def some_were_ended() -> bool:
            async with it.app.database.transaction() as conn:
                count: int = await conn.fetchval(
                    "SELECT count(*) FROM pending_transfers WHERE attempt > 1"
                )
            return count >= 4

        async with make.app(database, duties=True, **settings_of(chain) | few):
            await it.still_until(some_were_ended)
        heal(net)
        async with make.app(database, duties=True, **settings_of(chain)):
            decided = [await it.decided(event) for event in events]

        assert {event.status for event in decided} == {CONFIRMED}
        await it.is_right(paid=-sum(event.amount for event in decided))


async def test_a_payment_that_cannot_be_decided_holds_up_no_other(
    database: str, net: Localnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One node has no history that reaches back to the first; those in the next question go on."""
    monkeypatch.setattr(transfers, "SIGNATURES_MAX", 1)
    async with (
        relaying(net.urls[0]) as lying,
        paying(database, EmbeddedChain(net), urls=(lying.url, net.urls[1])) as it,
    ):
        strike(net, Kind.DROP, count=FOR_EVER)
        stuck = await it.pay(AMOUNT)
        await it.still_until(partial(is_signed, it, stuck))
        net.tick(FOR_GOOD)
        lying.meddle = forgets_everything
        heal(net)
        strike(net, Kind.DROP)
        event = await it.pay(AMOUNT)
        decided = await it.decided(event)
        early = await it.event(stuck)
        lying.meddle = None
        await it.decided(stuck)

        assert (early.status, decided.status) == (PENDING, CONFIRMED)
        await it.is_right(paid=2 * AMOUNT)


# -- Helpers


async def is_signed(it: Paying, event: Event) -> bool:
    return bool(await it.signed(event))


async def last_valid_height(it: Paying, signature: str) -> int:
    async with it.app.database.transaction() as conn:
        found: int = await conn.fetchval(
            "SELECT last_valid_block_height FROM transfer_signatures WHERE signature = $1",
            signature,
        )
    return found
