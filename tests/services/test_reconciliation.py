"""Reconciliation: what the chain has and the ledger has not is found, to the unit, and stops."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from solders.keypair import Keypair
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import (
    approve,
    create_idempotent_associated_token_account,
    set_authority,
)
from spl.token.models import ApproveParams, AuthorityType, SetAuthorityParams

from pilot_grpc import errors
from pilot_grpc.domain.ledger import (
    AMOUNT_MAX,
    Event,
    EventKind,
    EventStatus,
    EventType,
    FailureReason,
)
from pilot_grpc.domain.stream import Start, Wanted
from pilot_grpc.domain.vaults import Drift, Outflow, decode_drift
from pilot_grpc.services import reconciliation
from pilot_grpc.services.reconciliation import Reconciliation
from pilot_grpc.services.stream import Topic
from pilot_grpc.solana import localnet
from pilot_grpc.solana.faults import RpcError
from pilot_grpc.solana.localnet import FAUCET, FOR_EVER, USDC, Fault, Kind, Localnet
from tests import make
from tests.make import Spender
from tests.sampling import first_of
from tests.services import onchain
from tests.services.onchain import OnChain, paying, plain, running
from tests.solana.payments import ata
from tests.solana.ports import done, frozen

CONFIRMED, PENDING, FAILED = EventStatus.CONFIRMED, EventStatus.PENDING, EventStatus.FAILED


@pytest.fixture
async def net() -> AsyncIterator[Localnet]:
    """A chain that only this test sees, served by two nodes; it stands still."""
    async with localnet.running(None, manual=True, endpoints=2) as net:
        yield net


@pytest.fixture
async def here(database: str, net: Localnet) -> AsyncIterator[OnChain]:
    """The services, on the first node alone."""
    async with running(database, net) as process:
        yield process


@pytest.fixture
async def there(database: str, net: Localnet) -> AsyncIterator[OnChain]:
    """The same as another process runs them."""
    async with running(database, net) as process:
        yield process


async def payer(here: OnChain, deposited: int, **fields: Any) -> tuple[Spender, str]:
    """An agent with this much in its vault, and a wallet that it may pay and that has USDC."""
    spender = await here.spender(deposited, **fields)
    friend = Keypair().pubkey()
    here.net.faucet(friend, 1)
    here.net.finalize()
    await here.app.agents.add_recipient(spender.owner, spender.agent_id, str(friend), None)
    return spender, str(friend)


async def withdraw(here: OnChain, spender: Spender, amount: int, to: str) -> Event:
    asked = make.asked("Withdraw")
    return await here.app.vaults.withdraw(spender.owner, asked, spender.vault_id, amount, to, None)


async def settle(here: OnChain, spender: Spender, amount: int, to: str) -> Event:
    asked = make.asked("Settle")
    return await here.app.vaults.settle(spender.owner, asked, spender.vault_id, amount, to, None)


async def acknowledge(
    here: OnChain, spender: Spender, drift: Drift, amount: int | None = None, request: str = ""
) -> Event:
    return await here.app.vaults.acknowledge_drift(
        spender.owner,
        make.asked("AcknowledgeDrift", request or None, f"{drift.id} {amount}"),
        spender.vault_id,
        drift.id,
        drift.amount if amount is None else amount,
    )


def agrees(found: Reconciliation, amount: int, pending: int = 0) -> None:
    assert (found.drift, found.found_amount, found.expected_amount) == (None, amount, amount)
    assert found.pending_amount == pending


async def drifted(here: OnChain, spender: Spender) -> Drift:
    """The drift that is found now, which is the one that the vault shows."""
    found = await here.reconcile(spender)
    assert found.drift is not None
    assert found.drift == (await make.vault(here.app, spender)).drift
    assert found.drift.amount == found.found_amount - found.expected_amount
    return found.drift


# --- No drift --------------------------------------------------------------------------------


async def test_a_vault_that_was_never_used_agrees(here: OnChain) -> None:
    spender = await here.spender()

    agrees(await here.reconcile(spender), 0)


async def test_what_only_the_ledger_knows_is_no_drift(here: OnChain) -> None:
    """Credits, metered spends, holds and refunds move nothing on chain."""
    spender = await here.spender(1_000)
    await make.fund(here.app, spender.owner, spender.vault_id, 5_000)
    spent = await make.spend(here.app, spender, 700)
    held = await make.hold(here.app, spender, 300)
    await make.refund(here.app, spender, spent, 100)
    await make.capture(here.app, spender, held, 200)

    agrees(await here.reconcile(spender), 1_000)


async def test_a_payment_is_no_drift_at_any_stage(here: OnChain) -> None:
    """Reserved, signed and held back, landed, final, taken into the ledger, decided."""
    spender, friend = await payer(here, 1_000)
    reserved = await make.spend(here.app, spender, 300, recipient=friend)
    agrees(await here.reconcile(spender), 1_000, pending=300)

    here.net.faults.add(Fault(Kind.HOLD, count=FOR_EVER))
    async with paying(here):
        await onchain.until(lambda: here.net.chain._waiting)
        agrees(await here.reconcile(spender), 1_000, pending=300)
        here.net.chain.release()
        here.net.tick(2)
        agrees(await here.reconcile(spender), 1_000, pending=300)
    here.net.finalize()
    assert (await here.get(spender, reserved)).status is PENDING
    agrees(await here.reconcile(spender), 700)

    assert (await here.get(spender, reserved)).status is CONFIRMED
    assert await here.figures(spender) == (700, 700)
    assert await make.verify(here.app, spender) is None


async def test_a_payment_that_fails_is_no_drift(here: OnChain) -> None:
    """It lands and fails, because the money went in the meantime and came back."""
    spender, friend = await payer(here, 1_000)
    paid = await make.spend(here.app, spender, 800, recipient=friend)
    here.net.faults.add(Fault(Kind.HOLD, count=FOR_EVER))
    async with paying(here):
        await onchain.until(lambda: here.net.chain._waiting)
        thief = Keypair()
        await here.steal(spender, 900, thief.pubkey())
        here.net.chain.release()
        here.net.finalize()
        back = plain(ata(thief.pubkey()), await here.account(spender), thief.pubkey(), 900)
        done(here.net, [back], thief)
        (paid,) = await here.decided(spender, paid)
    await here.look(spender)
    here.net.finalize()

    found = await here.reconcile(spender)

    assert (paid.status, paid.failure_reason) == (FAILED, FailureReason.TRANSFER_FAILED)
    # What was taken is not Pilot's; what came back is a deposit, as far as Pilot knows.
    assert (found.found_amount, found.expected_amount) == (1_000, 1_900)
    assert found.drift is not None
    assert [each.amount for each in found.drift.outflows] == [900]


@dataclass
class Hustle:
    """Two vaults and all that may happen to them, in any order, through two processes."""

    random: Random
    processes: tuple[OnChain, OnChain]
    spenders: tuple[Spender, Spender]
    wallets: list[str]
    asked: list[Event] = field(default_factory=list)

    @property
    def process(self) -> OnChain:
        return self.random.choice(self.processes)

    @property
    def amount(self) -> int:
        return self.random.randint(1, 900)

    async def deposit(self) -> None:
        to = await self.process.wallet(self.random.choice(self.spenders))
        self.process.net.faucet(to, self.amount)

    async def pay(self) -> None:
        """Also to the other vault, which has a deposit of it."""
        to = self.random.choice(self.wallets)
        paid = await make.spend(self.process.app, self.spenders[0], self.amount, recipient=to)
        self.asked.append(paid)

    async def withdraw(self) -> None:
        to = self.random.choice(self.wallets)
        self.asked.append(await withdraw(self.process, self.spenders[0], self.amount, to))

    async def use(self) -> None:
        await make.spend(self.process.app, self.spenders[0], self.amount)

    async def settle(self) -> None:
        spender, to = self.spenders[0], self.random.choice(self.wallets)
        most = (await make.vault(self.process.app, spender)).settleable
        if most:
            amount = self.random.randint(1, most)
            self.asked.append(await settle(self.process, spender, amount, to))

    async def look(self) -> None:
        await self.process.look(self.random.choice(self.spenders))

    async def pass_time(self) -> None:
        self.process.net.tick(self.random.choice([1, 1, 3, 20]))
        await asyncio.sleep(self.random.choice([0, 0.002]))

    async def one(self) -> None:
        """Let any of it happen."""
        movements = [self.deposit, self.pay, self.withdraw, self.use, self.settle, self.look]
        await self.random.choice([*movements, *[self.pass_time] * 3])()

    async def agree(self) -> None:
        for spender in self.spenders:
            found = await self.process.reconcile(spender)
            assert (found.drift, found.found_amount) == (None, found.expected_amount)


@pytest.mark.parametrize("seed", first_of(range(3)))
async def test_whatever_happens_ledger_and_chain_agree_at_every_slot(
    here: OnChain, there: OnChain, seed: int
) -> None:
    """Deposits, payments, withdrawals, settlements and metered use in any order, two processes."""
    spender, friend = await payer(here, 100_000)
    other = await here.spender(50_000)
    to_other = str(await here.wallet(other))
    await here.app.agents.add_recipient(spender.owner, spender.agent_id, to_other, None)
    hustle = Hustle(Random(seed), (here, there), (spender, other), [friend, to_other])  # noqa: S311 - it decides nothing

    async with paying(here), paying(there):
        for _ in range(50):
            await asyncio.gather(hustle.one(), hustle.agree())
        decided = await here.decided(spender, *hustle.asked)
    here.net.finalize()

    assert len(decided) > 5
    assert {each.status for each in decided} == {CONFIRMED}
    for each in (spender, other):
        found = await here.reconcile(each)
        _, on_chain = await here.figures(each)
        agrees(found, on_chain)
        assert on_chain == await here.held_on_chain(each)
        assert await make.verify(here.app, each) is None


# --- What is not Pilot's -----------------------------------------------------------------------


async def test_a_foreign_outflow_is_found_within_one_cycle(here: OnChain) -> None:
    """The turn of the vault comes at once; the drift names the transaction and the amount."""
    spender = await here.spender(1_000)
    await here.settlement.reconciler.round()
    signature = await here.steal(spender, 321)
    landed = here.net.chain.landed(signature)
    assert landed is not None

    async with asyncio.timeout(onchain.SECONDS):
        while not await here.app.database.pool.fetchval(
            "SELECT next_reconcile_at <= clock_timestamp() FROM vault_scans"
        ):
            await here.settlement.deposits.watch()
            await asyncio.sleep(0.001)
    await here.settlement.reconciler.round()

    drift = (await make.vault(here.app, spender)).drift
    assert drift is not None
    assert (drift.amount, drift.found_amount, drift.expected_amount) == (-321, 679, 1_000)
    assert drift.outflows == (Outflow(signature, 321, landed.slot),)
    assert drift.slot == here.finalized
    assert await here.figures(spender) == (1_000, 1_000)


async def test_the_schedule_finds_it_without_any_hint(database: str, net: Localnet) -> None:
    """Nobody looked at the history in between."""
    async with running(database, net, reconcile=timedelta(milliseconds=1)) as here:
        spender = await here.spender(1_000)
        await here.settlement.reconciler.round()
        await here.steal(spender, 1)
        await asyncio.sleep(0.002)

        await here.settlement.reconciler.round()

        drift = (await make.vault(here.app, spender)).drift
        assert drift is not None
        assert drift.amount == -1


async def test_a_drift_stops_payments_and_nothing_else(here: OnChain) -> None:
    spender, friend = await payer(here, 1_000)
    await make.fund(here.app, spender.owner, spender.vault_id, 50)
    await here.steal(spender, 10)
    drift = await drifted(here, spender)

    declined = await make.spend(here.app, spender, 1, recipient=friend)
    metered = await make.spend(here.app, spender, 5)
    held = await make.hold(here.app, spender, 6)
    captured = await make.capture(here.app, spender, held, 6)
    with pytest.raises(errors.VaultStopped) as withdrawing:
        await withdraw(here, spender, 1, friend)
    with pytest.raises(errors.VaultStopped):
        await settle(here, spender, 1, friend)

    assert (declined.status, declined.failure_reason) == (FAILED, FailureReason.VAULT_STOPPED)
    assert metered.status is captured.status is CONFIRMED
    assert withdrawing.value.metadata == {"drift_id": drift.id, "amount": str(drift.amount)}
    here.net.faucet(await here.wallet(spender), 100)
    here.net.finalize()
    await here.look(spender)
    assert await here.figures(spender) == (1_139, 1_100)
    assert await drifted(here, spender) == drift


async def test_what_was_not_signed_when_a_vault_stopped_is_given_back(here: OnChain) -> None:
    spender, friend = await payer(here, 1_000)
    paid = await make.spend(here.app, spender, 400, recipient=friend)
    taken_out = await withdraw(here, spender, 100, friend)
    await here.steal(spender, 10)
    await drifted(here, spender)

    async with paying(here):
        decided = await here.decided(spender, paid, taken_out)

    assert [(each.status, each.failure_reason) for each in decided] == [
        (FAILED, FailureReason.VAULT_STOPPED)
    ] * 2
    assert await here.figures(spender) == (1_000, 1_000)
    assert (await drifted(here, spender)).amount == -10


async def test_what_was_signed_before_a_vault_stopped_is_seen_through(here: OnChain) -> None:
    """It may land, and does; the drift stays what it is."""
    spender, friend = await payer(here, 1_000)
    paid = await make.spend(here.app, spender, 400, recipient=friend)
    here.net.faults.add(Fault(Kind.HOLD, count=FOR_EVER))
    async with paying(here):
        await onchain.until(lambda: here.net.chain._waiting)
        await here.steal(spender, 10)
        drift = await drifted(here, spender)
        here.net.chain.release()
        (paid,) = await here.decided(spender, paid)
    here.net.finalize()

    assert paid.status is CONFIRMED
    assert (drift.amount, drift.expected_amount) == (-10, 1_000)
    assert await drifted(here, spender) == drift
    assert await here.figures(spender) == (600, 600)


async def test_a_drift_is_a_change_in_the_stream_until_it_is_acknowledged(here: OnChain) -> None:
    """Opened, grown, ended: each is numbered like any other change, and names the figures."""
    spender = await here.spender(1_000)
    before = (await make.vault(here.app, spender)).revision
    await here.steal(spender, 10)
    opened = await drifted(here, spender)
    await here.steal(spender, 20)
    grown = await drifted(here, spender)
    await acknowledge(here, spender, grown)

    updates: list[Any] = []
    about = Topic(vault_id=spender.vault_id)
    async with (
        asyncio.timeout(onchain.SECONDS),
        here.app.streams.subscription(spender.owner, about, Start.EARLIEST, Wanted()) as following,
    ):
        while len(updates) < before + 4:
            updates += await following.next_updates(onchain.SECONDS)

    changes = updates[before:]
    assert [each.revision for each in changes] == [*range(before + 1, before + 5)]
    assert [each.status for each in changes] == [PENDING, PENDING, CONFIRMED, CONFIRMED]
    assert [each.drift and decode_drift(each.drift) for each in changes] == [
        *(opened, grown, grown, None)
    ]
    assert [each.amount for each in changes] == [-10, -30, -30, -30]
    assert [each.chain_balance_after for each in changes] == [1_000, 1_000, 1_000, 970]
    assert await make.verify(here.app, spender) is None


async def test_a_second_outflow_is_the_same_drift_and_more(here: OnChain) -> None:
    spender = await here.spender(1_000)
    one = await here.steal(spender, 10)
    first = await drifted(here, spender)
    assert await drifted(here, spender) == first
    two = await here.steal(spender, 990)

    second = await drifted(here, spender)

    assert (second.id, second.amount, second.created_at) == (first.id, -1_000, first.created_at)
    assert [(each.tx_hash, each.amount) for each in second.outflows] == [(two, 990), (one, 10)]
    assert (second.found_amount, second.expected_amount) == (0, 1_000)


async def test_two_processes_that_find_it_at_once_open_one_drift(
    here: OnChain, there: OnChain
) -> None:
    spender = await here.spender(1_000)
    await here.steal(spender, 10)

    finding = [process.reconcile(spender) for process in (here, there) * 4]
    found = await asyncio.gather(*finding)

    assert len({each.drift for each in found}) == 1
    changes = await here.app.database.pool.fetchval(
        "SELECT count(*) FROM event_changes WHERE drift IS NOT NULL"
    )
    assert changes == 1


async def test_a_delegate_is_named_before_it_takes_and_what_it_takes_is_found(
    here: OnChain,
) -> None:
    """The vault's key signed once, long ago; the delegate needs it no more."""
    spender, delegate = await here.spender(1_000), Keypair()
    wallet, account = await here.wallet(spender), await here.account(spender)
    allowing = ApproveParams(
        program_id=TOKEN_PROGRAM_ID,
        source=account,
        delegate=delegate.pubkey(),
        owner=wallet,
        amount=500,
    )
    done(here.net, [approve(allowing)], await here.key(spender))
    warned = await here.reconcile(spender)
    opening = create_idempotent_associated_token_account(
        FAUCET.pubkey(), delegate.pubkey(), USDC, TOKEN_PROGRAM_ID
    )
    pulling = plain(account, ata(delegate.pubkey()), delegate.pubkey(), 500)

    signature = done(here.net, [opening, pulling], delegate)
    drift = await drifted(here, spender)

    agrees(warned, 1_000)
    assert [text for text in warned.warnings if "delegate" in text] == [*warned.warnings]
    assert len(warned.warnings) == 1
    assert (drift.amount, drift.outflows[0].tx_hash) == (-500, signature)


@pytest.mark.parametrize(
    ("authority", "word"),
    [(AuthorityType.CLOSE_ACCOUNT, "close authority"), (AuthorityType.ACCOUNT_OWNER, "owner")],
)
async def test_who_else_may_have_the_account_is_named(
    here: OnChain, authority: AuthorityType, word: str
) -> None:
    """An account with another owner is not the vault's any more, whatever it holds."""
    spender = await here.spender(1_000)
    changing = SetAuthorityParams(
        program_id=TOKEN_PROGRAM_ID,
        account=await here.account(spender),
        authority=authority,
        current_authority=await here.wallet(spender),
        new_authority=Keypair().pubkey(),
    )
    assert (await here.reconcile(spender)).warnings == ()

    done(here.net, [set_authority(changing)], await here.key(spender))
    found = await here.reconcile(spender)

    assert [word in text for text in found.warnings] == [True]
    if authority is AuthorityType.ACCOUNT_OWNER:
        assert found.drift is not None
        assert found.drift.amount == -1_000
    else:
        agrees(found, 1_000)


async def test_a_frozen_account_is_named(here: OnChain) -> None:
    spender = await here.spender(1_000)

    frozen(here.net, await here.account(spender))
    found = await here.reconcile(spender)

    assert ["frozen" in text for text in found.warnings] == [True]
    agrees(found, 1_000)


# --- Acknowledged ------------------------------------------------------------------------------


async def test_an_acknowledged_drift_is_in_the_ledger_and_payments_go_on(here: OnChain) -> None:
    """What the balance no longer has is a settlement: it was spent on metered use."""
    spender, friend = await payer(here, 1_000)
    await make.spend(here.app, spender, 700)
    signature = await here.steal(spender, 900)
    drift = await drifted(here, spender)

    first = await acknowledge(here, spender, drift, request="ack")
    again = await acknowledge(here, spender, drift, request="ack")
    found = await here.reconcile(spender)
    withdrawn, settled = (await here.events(spender))[-2:]

    assert first == again == withdrawn
    assert (withdrawn.kind, withdrawn.amount) == (EventKind.WITHDRAWAL, -300)
    assert (settled.kind, settled.amount) == (EventKind.SETTLEMENT, -600)
    for event in (withdrawn, settled):
        assert (event.status, event.type, event.recipient) == (CONFIRMED, EventType.SPEND, None)
        assert json.loads(event.metadata or "") == {"drift_id": drift.id}
    assert await here.figures(spender) == (0, 100)
    agrees(found, 100)
    assert (await make.vault(here.app, spender)).drift is None

    here.net.faucet(await here.wallet(spender), 500)
    here.net.finalize()
    await here.look(spender)
    async with paying(here):
        paid = await make.spend(here.app, spender, 400, recipient=friend)
        (paid,) = await here.decided(spender, paid)
    here.net.finalize()
    assert paid.status is CONFIRMED
    agrees(await here.reconcile(spender), 200)
    assert await make.verify(here.app, spender) is None
    # A later drift names only what is new.
    later = await here.steal(spender, 1)
    assert [each.tx_hash for each in (await drifted(here, spender)).outflows] == [later]
    assert later != signature


async def test_only_the_drift_as_it_is_can_be_acknowledged(here: OnChain) -> None:
    """Not another amount, not another drift, not one that is over; nothing happens then."""
    spender = await here.spender(1_000)
    await here.steal(spender, 10)
    drift = await drifted(here, spender)
    await here.steal(spender, 5)
    newer = await drifted(here, spender)

    with pytest.raises(errors.DriftChanged) as changed:
        await acknowledge(here, spender, drift)
    with pytest.raises(errors.DriftNotOpen):
        await acknowledge(here, spender, newer._replace(id="another"))
    before = await here.figures(spender)
    await acknowledge(here, spender, newer)
    with pytest.raises(errors.DriftNotOpen):
        await acknowledge(here, spender, newer)

    assert changed.value.metadata == {"amount": "-15"}
    assert before == (1_000, 1_000)
    assert await here.figures(spender) == (985, 985)


async def test_a_drift_is_not_acknowledged_while_payments_are_on_their_way(
    here: OnChain,
) -> None:
    spender, friend = await payer(here, 1_000)
    paid = await make.spend(here.app, spender, 400, recipient=friend)
    await here.steal(spender, 10)
    drift = await drifted(here, spender)

    with pytest.raises(errors.TransfersPending) as waiting:
        await acknowledge(here, spender, drift)
    async with paying(here):
        await here.decided(spender, paid)
    await acknowledge(here, spender, drift)

    assert waiting.value.metadata == {"pending": "1"}
    agrees(await here.reconcile(spender), 990)


async def test_a_theft_of_everything_under_payments_is_acknowledged_to_zero(
    here: OnChain,
) -> None:
    """What was on its way fails, its hold comes back, and then nothing is left of it."""
    spender, friend = await payer(here, 1_000)
    paid = await make.spend(here.app, spender, 600, recipient=friend)
    here.net.faults.add(Fault(Kind.HOLD, count=FOR_EVER))
    async with paying(here):
        await onchain.until(lambda: here.net.chain._waiting)
        await here.steal(spender, 1_000)
        drift = await drifted(here, spender)
        here.net.chain.release()
        (paid,) = await here.decided(spender, paid)
    await acknowledge(here, spender, drift)

    assert (drift.amount, paid.status) == (-1_000, FAILED)
    assert await here.figures(spender) == (0, 0)
    agrees(await here.reconcile(spender), 0)


def without(net: Localnet, *signatures: str) -> Callable[[], None]:
    """Let the first node's histories lack some transactions, until what is given is called."""
    node = net.endpoints[0].node
    inner = node._methods["getSignaturesForAddress"]
    node._methods["getSignaturesForAddress"] = lambda params: [
        row for row in inner(params) if row["signature"] not in signatures
    ]
    return lambda: node._methods.update(getSignaturesForAddress=inner)


async def test_a_surplus_is_a_drift_and_acknowledged_as_a_deposit(here: OnChain) -> None:
    """A node's history lacks a deposit; its accounts have it."""
    spender = await here.spender(1_000)
    signature = here.net.faucet(await here.wallet(spender), 77)
    here.net.finalize()
    without(here.net, signature)

    drift = await drifted(here, spender)
    event = await acknowledge(here, spender, drift)

    assert (drift.amount, drift.outflows) == (77, ())
    assert (event.kind, event.status, event.amount) == (EventKind.DEPOSIT, CONFIRMED, 77)
    assert await here.figures(spender) == (1_077, 1_077)
    agrees(await here.reconcile(spender), 1_077)


async def test_a_deposit_that_is_found_after_it_was_acknowledged_is_not_credited_again(
    here: OnChain,
) -> None:
    """Whatever is as old as the drift was in it; what is younger was not."""
    spender = await here.spender(1_000)
    wallet = await here.wallet(spender)
    signature = here.net.faucet(wallet, 77)
    here.net.finalize()
    put_back = without(here.net, signature)
    await acknowledge(here, spender, await drifted(here, spender))
    here.net.faucet(wallet, 5)
    here.net.finalize()
    put_back()

    await here.look(spender, from_slot=0)
    await here.look(spender, from_slot=0)

    assert await here.figures(spender) == (1_082, 1_082)
    agrees(await here.reconcile(spender), 1_082)


async def test_what_was_seen_and_lost_and_acknowledged_is_not_credited_when_it_turns_up(
    here: OnChain,
) -> None:
    """The deposit that was shown for it ends; the ledger has its money from the drift."""
    spender = await here.spender(1_000)
    signature = here.net.faucet(await here.wallet(spender), 77)
    here.net.tick(2)
    await here.look(spender)
    put_back = without(here.net, signature)
    here.net.finalize()
    await acknowledge(here, spender, await drifted(here, spender))
    put_back()

    await here.look(spender, from_slot=0)
    found = [(each.status, each.amount) for each in await here.events(spender, EventKind.DEPOSIT)]

    assert sorted(found) == [(CONFIRMED, 77), (CONFIRMED, 1_000), (FAILED, 77)]
    assert await here.figures(spender) == (1_077, 1_077)
    agrees(await here.reconcile(spender), 1_077)


async def test_an_outflow_that_turns_up_after_it_was_acknowledged_is_named_in_no_later_drift(
    here: OnChain,
) -> None:
    spender = await here.spender(1_000)
    put_back = without(here.net, await here.steal(spender, 10))
    nameless = await drifted(here, spender)
    await acknowledge(here, spender, nameless)
    put_back()
    await here.look(spender, from_slot=0)
    agrees(await here.reconcile(spender), 990)
    signature = await here.steal(spender, 5)

    drift = await drifted(here, spender)

    assert (nameless.amount, nameless.outflows) == (-10, ())
    assert (drift.amount, [each.tx_hash for each in drift.outflows]) == (-5, [signature])


async def test_a_surplus_of_more_than_an_event_can_be_is_acknowledged_in_parts(
    here: OnChain,
) -> None:
    spender, friend = await payer(here, 1_000)
    here.net.faucet(await here.wallet(spender), 2 * AMOUNT_MAX + 3)
    here.net.finalize()
    await here.look(spender)
    drift = await drifted(here, spender)

    await acknowledge(here, spender, drift)

    found = [each.amount for each in await here.events(spender, EventKind.DEPOSIT)]
    assert sorted(found) == [3, 1_000, AMOUNT_MAX, AMOUNT_MAX]
    assert await here.figures(spender) == (2 * AMOUNT_MAX + 1_003,) * 2
    agrees(await here.reconcile(spender), 2 * AMOUNT_MAX + 1_003)
    assert (await withdraw(here, spender, 1, friend)).status is PENDING


# --- False alarms, old views, nodes that are away ------------------------------------------------


async def test_a_false_alarm_ends_by_itself(here: OnChain) -> None:
    """A node's history lacked a deposit for so long that the vault stopped; then it comes."""
    spender, friend = await payer(here, 1_000)
    signature = here.net.faucet(await here.wallet(spender), 77)
    here.net.finalize()
    put_back = without(here.net, signature)
    drift = await drifted(here, spender)
    with pytest.raises(errors.VaultStopped):
        await withdraw(here, spender, 1, friend)
    put_back()

    agrees(await here.reconcile(spender), 1_077)

    assert drift.amount == 77
    assert (await make.vault(here.app, spender)).drift is None
    assert (await withdraw(here, spender, 1, friend)).status is PENDING
    ended = await here.app.database.pool.fetchval(
        "SELECT status FROM event_changes WHERE drift IS NOT NULL ORDER BY revision DESC LIMIT 1"
    )
    assert ended == CONFIRMED
    with pytest.raises(errors.DriftNotOpen):
        await acknowledge(here, spender, drift)
    assert await make.verify(here.app, spender) is None


async def test_one_answer_without_a_row_stops_nothing(here: OnChain) -> None:
    """The second look reads the whole history again."""
    spender = await here.spender(1_000)
    here.net.faucet(await here.wallet(spender), 77)
    here.net.finalize()
    here.net.faults.add(Fault(Kind.MISSING_ROWS))

    agrees(await here.reconcile(spender), 1_077)

    changes = "SELECT count(*) FROM event_changes WHERE drift IS NOT NULL"
    assert await here.app.database.pool.fetchval(changes) == 0


async def test_a_view_that_is_older_than_a_drift_does_not_end_it(here: OnChain) -> None:
    """Behind one URL there can be nodes of which one does not know the outflow yet."""
    spender = await here.spender(1_000)
    here.net.tick(50)
    await here.steal(spender, 10)
    drift = await drifted(here, spender)
    node = here.net.endpoints[0].node
    inner = node._methods["getAccountInfo"]

    def lagging(params: list[Any]) -> Any:
        found, node.lag = inner(params), 0
        return found

    node._methods["getAccountInfo"] = lagging
    node.lag = 40
    found = await here.reconcile(spender)

    assert (found.found_amount, found.slot < drift.slot) == (1_000, True)
    assert (await make.vault(here.app, spender)).drift == drift


async def test_a_node_that_hides_money_stops_nothing_as_long_as_another_shows_it(
    database: str, net: Localnet
) -> None:
    async with running(database, net, net.urls) as here:
        here.hurry()
        spender = await here.spender(1_000)
        node = net.endpoints[0].node
        inner = node._methods["getAccountInfo"]
        node._methods["getAccountInfo"] = lambda params: {
            **inner(params),
            "value": None,
        }

        with pytest.raises(RpcError):
            await here.reconcile(spender)

        assert (await make.vault(here.app, spender)).drift is None


async def test_nothing_is_compared_before_all_up_to_the_balance_is_known(
    database: str, net: Localnet
) -> None:
    """Nodes agree on the balance, and not on the deposit that explains it."""
    async with running(database, net, net.urls) as here:
        here.hurry()
        spender = await here.spender(1_000)
        signature = net.faucet(await here.wallet(spender), 77)
        net.finalize()
        node = net.endpoints[1].node
        inner = node._methods["getTransaction"]
        node._methods["getTransaction"] = lambda params: (
            None if params[0] == signature else inner(params)
        )

        with pytest.raises(RpcError):
            await here.reconcile(spender)
        stopped = (await make.vault(here.app, spender)).drift
        node._methods["getTransaction"] = inner

        assert stopped is None
        agrees(await here.reconcile(spender), 1_077)


async def test_a_node_that_names_a_wrong_slot_for_a_balance_opens_no_drift(
    database: str, net: Localnet
) -> None:
    """Far ahead or far behind of the other, it would make the ledger's past or future count."""
    async with running(database, net, net.urls) as here:
        here.hurry()
        spender = await here.spender(1_000)
        net.tick(200)
        node = net.endpoints[0].node
        account_info, slot = node._methods["getAccountInfo"], node._methods["getSlot"]
        for wrong in (2**50, 1):

            def lying(params: list[Any], wrong: int = wrong) -> Any:
                found = account_info([params[0], {**params[1], "minContextSlot": 0}])
                return {**found, "context": {"slot": wrong, "apiVersion": "3.0.0"}}

            node._methods["getAccountInfo"] = lying
            node._methods["getSlot"] = lambda _, wrong=wrong: wrong  # type: ignore[misc]
            with pytest.raises(RpcError):
                await here.reconcile(spender)
        node._methods.update(getAccountInfo=account_info, getSlot=slot)

        assert (await make.vault(here.app, spender)).drift is None
        agrees(await here.reconcile(spender), 1_000)


async def test_a_vault_whose_turn_failed_has_another_one_soon(
    here: OnChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was stolen while the chain was away is found when it is back, not a cycle later."""
    monkeypatch.setattr(reconciliation, "RETRY", timedelta(milliseconds=1))
    here.hurry()
    spender = await here.spender(1_000)
    await here.settlement.reconciler.round()
    await here.steal(spender, 10)
    await here.look(spender)
    here.net.faults.add(Fault(Kind.UNAVAILABLE, count=FOR_EVER))
    await here.settlement.reconciler.round()
    here.net.faults.clear()

    async with asyncio.timeout(onchain.SECONDS):
        while (await make.vault(here.app, spender)).drift is None:
            await here.settlement.reconciler.round()
            await asyncio.sleep(0.01)


async def test_what_breaks_with_one_vault_delays_no_other(
    here: OnChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, well = await here.spender(1_000), await here.spender(1_000)
    await here.steal(well, 10)
    reconciler = here.settlement.reconciler
    reconcile = reconciler.reconcile

    async def breaking(vault_id: Any) -> Reconciliation:
        if vault_id == broken.vault_id:
            raise RuntimeError("nobody expected this")
        return await reconcile(vault_id)

    monkeypatch.setattr(reconciler, "reconcile", breaking)
    await reconciler.round()

    assert (await make.vault(here.app, well)).drift is not None


async def test_without_the_chain_nothing_is_concluded(here: OnChain) -> None:
    """The owner is told that it is away, and when to ask again."""
    here.hurry()
    spender = await here.spender(1_000)
    here.net.faults.add(Fault(Kind.UNAVAILABLE, count=FOR_EVER, retry_after="3"))

    with pytest.raises(errors.ChainUnavailable) as away:
        await here.app.vaults.reconcile(spender.owner, spender.vault_id)

    assert away.value.retry_after is not None
    assert 0 < away.value.retry_after <= 3
    assert (await make.vault(here.app, spender)).drift is None
