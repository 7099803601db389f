"""Deposits: every unit that arrives is credited once, and what is no deposit never."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction
from spl.token.constants import (
    ASSOCIATED_TOKEN_PROGRAM_ID,
    TOKEN_2022_PROGRAM_ID,
    TOKEN_PROGRAM_ID,
)

from pilot_grpc import errors
from pilot_grpc.db import deposits as deposits_db
from pilot_grpc.domain.ledger import AMOUNT_MAX, EventKind, EventStatus, FailureReason
from pilot_grpc.domain.vaults import BALANCE_MAX
from pilot_grpc.services import deposits
from pilot_grpc.settings import SolanaCommitment
from pilot_grpc.solana import history, localnet
from pilot_grpc.solana.faults import RpcError
from pilot_grpc.solana.localnet import FOR_EVER, USDC, Fault, Kind, Localnet
from tests import make
from tests.make import Spender
from tests.services import onchain
from tests.services.onchain import OnChain, plain, running
from tests.solana.payments import Payer, ata, funded
from tests.solana.ports import done

CONFIRMED, PENDING, FAILED = EventStatus.CONFIRMED, EventStatus.PENDING, EventStatus.FAILED
DEPOSIT, TRANSFER, CREDIT = EventKind.DEPOSIT, EventKind.TRANSFER, EventKind.CREDIT


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


@pytest.fixture
async def both(database: str, net: Localnet) -> AsyncIterator[OnChain]:
    """The services, on both nodes."""
    async with running(database, net, net.urls) as process:
        yield process


def landed(net: Localnet, payer: Payer, *instructions: Instruction) -> str:
    """Land a payer's transaction, also one that fails; it is final."""
    transaction = payer.signed(list(instructions), net.chain.blockhash(net.chain.tip))
    net.chain.submit(transaction)
    net.finalize()
    return str(transaction.signatures[0])


# --- What arrives --------------------------------------------------------------------------


async def test_a_first_deposit_makes_the_account_and_is_credited(here: OnChain) -> None:
    """Both figures have it, and one event with the signature, in one change."""
    spender = await here.spender()
    signature = here.net.faucet(await here.wallet(spender), 2_500_000)
    here.net.finalize()

    await here.look(spender)

    (event,) = await here.events(spender)
    assert (event.kind, event.status, event.amount) == (DEPOSIT, CONFIRMED, 2_500_000)
    assert (event.tx_hash, event.agent_id, event.metadata) == (signature, None, None)
    assert await here.changes(spender, event) == [CONFIRMED]
    assert await here.figures(spender) == (2_500_000, 2_500_000)
    assert await make.verify(here.app, spender) is None


async def test_dust_is_credited_to_the_unit(here: OnChain) -> None:
    spender = await here.spender(1)

    assert await here.figures(spender) == (1, 1)


async def test_however_it_is_sent_it_is_credited(here: OnChain) -> None:
    """Transfer and TransferChecked, alone and together; one event a transaction."""
    spender, payer = await here.spender(1), funded(here.net)
    wallet, account = await here.wallet(spender), await here.account(spender)
    sending = plain(payer.account, account, payer.vault.pubkey(), 30)

    signatures = [
        landed(here.net, payer, sending),
        landed(here.net, payer, payer.transfer(wallet, 40)),
        landed(here.net, payer, sending, payer.transfer(wallet, 500), sending),
    ]
    await here.look(spender)

    assert (await here.deposits(spender))[1:] == [
        (CONFIRMED, amount, signature)
        for amount, signature in zip((30, 40, 560), signatures, strict=True)
    ]
    assert await here.figures(spender) == (631, 631)


async def test_what_a_program_pays_inside_is_credited(here: OnChain) -> None:
    """The ATA program gives back what was paid to a token account as if that were a wallet."""
    spender, net = await here.spender(1), here.net
    mint = net.chain.create_mint()
    net.finalize()
    owner = await here.key(spender)
    odd = ata(owner.pubkey(), mint)
    net.faucet(owner.pubkey(), 5, mint)
    net.faucet(odd, 7)
    net.finalize()
    accounts = [
        AccountMeta(ata(odd), is_signer=False, is_writable=True),
        AccountMeta(USDC, is_signer=False, is_writable=False),
        AccountMeta(ata(owner.pubkey()), is_signer=False, is_writable=True),
        AccountMeta(odd, is_signer=False, is_writable=False),
        AccountMeta(mint, is_signer=False, is_writable=False),
        AccountMeta(owner.pubkey(), is_signer=True, is_writable=True),
        AccountMeta(TOKEN_PROGRAM_ID, is_signer=False, is_writable=False),
    ]

    inner = Instruction(ASSOCIATED_TOKEN_PROGRAM_ID, bytes([2]), accounts)
    signature = done(net, [inner], owner)
    await here.look(spender)

    assert (await here.deposits(spender))[-1] == (CONFIRMED, 7, signature)


async def test_two_vaults_in_one_transaction_have_a_deposit_each(here: OnChain) -> None:
    one, two, payer = await here.spender(1), await here.spender(1), funded(here.net)
    to_one, to_two = await here.wallet(one), await here.wallet(two)

    signature = landed(here.net, payer, payer.transfer(to_one, 70), payer.transfer(to_two, 80))
    for spender in (one, two):
        await here.look(spender)

    assert (await here.deposits(one))[-1] == (CONFIRMED, 70, signature)
    assert (await here.deposits(two))[-1] == (CONFIRMED, 80, signature)


async def test_what_goes_in_and_out_of_a_vault_at_once_counts_as_what_is_left(
    here: OnChain,
) -> None:
    """Nothing is left of what a vault pays itself."""
    spender = await here.spender(100)
    owner, account = await here.wallet(spender), await here.account(spender)
    payer = funded(here.net)

    here.net.chain._submit_own([plain(account, account, owner, 60)], await here.key(spender))
    here.net.finalize()
    done(
        here.net,
        [
            plain(account, payer.account, owner, 60),
            plain(payer.account, account, payer.vault.pubkey(), 95),
        ],
        *(await here.key(spender), payer.vault),
    )
    await here.look(spender)

    assert [amount for _, amount, _ in await here.deposits(spender)] == [100, 35]
    assert await here.figures(spender) == (135, 135)
    assert (await here.reconcile(spender)).drift is None


@pytest.mark.parametrize("program", [TOKEN_PROGRAM_ID, TOKEN_2022_PROGRAM_ID])
async def test_other_tokens_credit_nothing(here: OnChain, program: Pubkey) -> None:
    """Neither in their own account, nor beside USDC in the same transaction."""
    spender, net = await here.spender(1), here.net
    wallet = await here.wallet(spender)
    mint = net.chain.create_mint(6, program)
    net.finalize()
    payer = funded(net)
    net.faucet(payer.vault.pubkey(), 1_000, mint)
    net.faucet(wallet, 1_000_000, mint)
    net.finalize()

    signature = landed(
        net, payer, payer.transfer(wallet, 500, mint, program), payer.transfer(wallet, 3)
    )
    await here.look(spender)

    assert (await here.deposits(spender))[1:] == [(CONFIRMED, 3, signature)]
    assert (await here.reconcile(spender)).drift is None


async def test_sol_is_no_deposit(here: OnChain) -> None:
    """Not to the wallet, and not to its account for USDC."""
    spender = await here.spender(1)
    here.net.airdrop(await here.wallet(spender), 10**9)
    here.net.airdrop(await here.account(spender), 10**9)
    here.net.finalize()

    await here.look(spender)

    assert await here.figures(spender) == (1, 1)
    assert (await here.reconcile(spender)).drift is None


async def test_a_failed_transaction_credits_nothing(here: OnChain) -> None:
    spender, payer = await here.spender(1), funded(here.net)

    landed(here.net, payer, payer.transfer(await here.wallet(spender), 10_000_001))
    await here.look(spender)

    assert await here.figures(spender) == (1, 1)
    assert len(await here.events(spender)) == 1


async def test_an_archived_project_still_takes_deposits(here: OnChain) -> None:
    spender = await here.spender()
    await here.app.projects.archive(spender.owner, spender.project_id)
    here.net.faucet(await here.wallet(spender), 12)
    here.net.finalize()

    await here.look(spender)

    assert await here.figures(spender) == (12, 12)


async def test_a_payment_to_another_vault_is_a_deposit_there_and_both_name_each_other(
    here: OnChain,
) -> None:
    spender, other = await here.spender(1_000), await here.spender(1)
    to = await here.wallet(other)
    await here.app.agents.add_recipient(spender.owner, spender.agent_id, str(to), None)

    async with onchain.paying(here):
        paid = await make.spend(here.app, spender, 400, recipient=str(to))
        (paid,) = await here.decided(spender, paid)
    here.net.finalize()
    await here.look(other)

    deposit = (await here.events(other))[-1]
    assert (deposit.kind, deposit.status, deposit.amount) == (DEPOSIT, CONFIRMED, 400)
    assert deposit.tx_hash == paid.tx_hash
    assert (deposit.counterpart_event_id, paid.counterpart_event_id) == (paid.id, deposit.id)
    assert await here.figures(spender) == (600, 600)
    assert await here.figures(other) == (401, 401)


# --- Once ------------------------------------------------------------------------------------


def smaller_pages(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Let histories come in pages of so many rows, and parts of five pages."""
    whole = history.parts_since

    def paged(*args: Any, **options: Any) -> Any:
        return whole(*args, **options, page_rows=rows, rows_max=5 * rows)

    monkeypatch.setattr(history, "parts_since", paged)


async def burst(here: OnChain, spender: Spender, count: int, a_slot: int = 90) -> dict[str, int]:
    """So many deposits of different amounts, so many of them a slot; their signatures."""
    wallet, sent = await here.wallet(spender), {}
    for number in range(1, count + 1):
        sent[here.net.faucet(wallet, number)] = number
        if not number % a_slot:
            here.net.tick()
    here.net.finalize()
    return sent


async def credited(here: OnChain, spender: Spender) -> dict[str, int]:
    """What was credited, by signature; fails where something was credited twice."""
    found = await here.deposits(spender)
    amounts = {tx_hash: amount for status, amount, tx_hash in found if status is CONFIRMED}
    assert len(amounts) == len(found)
    assert await here.figures(spender) == (sum(amounts.values()),) * 2
    return {tx_hash: amount for tx_hash, amount in amounts.items() if tx_hash is not None}


async def test_a_burst_of_hundreds_is_credited_in_full(
    here: OnChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many pages, in parts, with page ends inside of slots; then one question is enough."""
    smaller_pages(monkeypatch, 20)
    spender = await here.spender()
    sent = await burst(here, spender, 300)

    await here.look(spender)

    assert await credited(here, spender) == sent
    asked = onchain.counted(here.net, monkeypatch)
    await here.look(spender)
    assert "getTransaction" not in asked


@pytest.mark.parametrize("kind", [Kind.DUPLICATE_ROWS, Kind.REORDER_ROWS])
async def test_rows_that_come_twice_or_in_another_order_are_credited_once(
    here: OnChain, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    spender = await here.spender()
    sent = await burst(here, spender, 60, a_slot=25)
    # A node keeps what comes twice within the limit, which halves what a page has.
    smaller_pages(monkeypatch, 500)
    here.net.faults.add(Fault(kind, count=FOR_EVER))

    await here.look(spender)

    assert await credited(here, spender) == sent


async def test_rows_that_were_left_out_are_found_by_the_overlap(here: OnChain) -> None:
    """The cursor has gone past them, and the next reading begins before it."""
    spender = await here.spender()
    sent = await burst(here, spender, 21, a_slot=4)
    here.net.faults.add(Fault(Kind.MISSING_ROWS))

    known = await here.look(spender)
    some = await credited(here, spender)
    await here.look(spender)

    assert known == here.finalized
    assert set(some) < set(sent)
    assert await credited(here, spender) == sent


async def test_rows_that_were_left_out_for_long_are_found_by_the_reconciliation(
    here: OnChain,
) -> None:
    """The overlap no longer reaches them; the balance says that something is missing."""
    spender = await here.spender()
    lost = await burst(here, spender, 21, a_slot=4)
    node = here.net.endpoints[0].node
    inner = node._methods["getSignaturesForAddress"]
    node._methods["getSignaturesForAddress"] = lambda params: [
        row for row in inner(params) if row["signature"] not in lost
    ]
    here.net.tick(deposits.OVERLAP_SLOTS + 50)
    found = await burst(here, spender, 2)
    await here.look(spender)
    node._methods["getSignaturesForAddress"] = inner
    await here.look(spender)
    some = await credited(here, spender)

    agreement = await here.reconcile(spender)

    assert some == found
    assert await credited(here, spender) == found | lost
    assert agreement.drift is None
    assert agreement.found_amount == agreement.expected_amount == sum((found | lost).values())


async def test_a_cursor_that_is_set_back_credits_nothing_again(here: OnChain) -> None:
    """And no transaction is asked for that was looked at before."""
    spender, payer = await here.spender(), funded(here.net)
    sent = await burst(here, spender, 40)
    landed(here.net, payer, payer.transfer(await here.wallet(spender), 10**9))
    await here.look(spender)
    revision = (await make.vault(here.app, spender)).revision
    await here.app.database.pool.execute("UPDATE vault_scans SET scanned_slot = 0")

    await here.look(spender)

    assert await credited(here, spender) == sent
    assert (await make.vault(here.app, spender)).revision == revision
    assert await here.scanned(spender) == await newest_slot(here, spender)


async def newest_slot(here: OnChain, spender: Spender) -> int:
    """The slot of the newest transaction of the vault's account."""
    account, chain = await here.account(spender), here.net.chain
    (newest,) = chain.page(account, chain.tip, None, None, 1)
    return newest.slot


async def test_two_processes_that_read_the_same_history_credit_it_once(
    here: OnChain, there: OnChain
) -> None:
    """At once and again, while some of it is only seen and some is final."""
    spender = await here.spender()
    sent = await burst(here, spender, 60)
    late = here.net.faucet(await here.wallet(spender), 1_000)
    here.net.tick(3)

    looks = [process.look(spender) for process in (here, there, here, there)]
    await asyncio.gather(*looks)
    here.net.finalize()
    looks = [process.look(spender) for process in (here, there, here, there)]
    await asyncio.gather(*looks)

    assert await credited(here, spender) == sent | {late: 1_000}
    assert await make.verify(here.app, spender) is None


async def test_a_crash_before_the_cursor_is_noted_credits_nothing_twice(
    here: OnChain, there: OnChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was credited is known by its signature, by whoever reads on."""
    spender = await here.spender()
    sent = await burst(here, spender, 15)

    async def die(*_: object) -> None:
        raise SystemError("the process dies here")

    with monkeypatch.context() as patch:
        patch.setattr(deposits_db, "update_scan", die)
        with pytest.raises(SystemError):
            await here.look(spender)
    assert await here.scanned(spender) == 0
    await there.look(spender)

    assert await credited(here, spender) == sent


async def test_a_crash_in_the_middle_of_a_history_loses_none_of_it(
    here: OnChain, there: OnChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some deposits are credited, the others not; the cursor stays before all of them."""
    spender = await here.spender()
    sent = await burst(here, spender, 30)
    decide, left = here.app.lanes.decide, iter(range(10))

    async def dying(command: Any) -> Any:
        if next(left, None) is None:
            raise SystemError("the process dies here")
        return await decide(command)

    with monkeypatch.context() as patch:
        patch.setattr(here.app.lanes, "decide", dying)
        with pytest.raises(SystemError):
            await here.look(spender)
    some = await credited(here, spender)
    cursor = await here.scanned(spender)
    await there.look(spender)

    assert (len(some), cursor) == (10, 0)
    assert await credited(here, spender) == sent


async def test_a_signature_that_was_credited_by_hand_is_not_credited_again(here: OnChain) -> None:
    """The ledger says that its money is elsewhere, the chain that it is here: that is a drift."""
    spender = await here.spender()
    signature = here.net.faucet(await here.wallet(spender), 500)
    await make.fund(here.app, spender.owner, spender.vault_id, 500, tx_hash=signature)
    here.net.tick(2)
    await here.look(spender)
    here.net.finalize()
    await here.app.database.pool.execute("UPDATE vault_scans SET next_reconcile_at = 'infinity'")

    await here.look(spender)
    hurried = await here.app.database.pool.fetchval(
        "SELECT next_reconcile_at <= clock_timestamp() FROM vault_scans"
    )
    found = await here.reconcile(spender)

    assert hurried
    (event,) = await here.events(spender)
    assert (event.kind, event.amount) == (CREDIT, 500)
    assert await here.figures(spender) == (500, 0)
    assert found.drift is not None
    assert (found.drift.amount, found.drift.outflows) == (500, ())


async def test_a_deposit_cannot_be_credited_by_hand_as_well(here: OnChain) -> None:
    spender = await here.spender(500)
    ((_, _, signature),) = await here.deposits(spender)

    with pytest.raises(errors.TxHashTaken):
        await make.fund(here.app, spender.owner, spender.vault_id, 500, tx_hash=signature)

    assert await here.figures(spender) == (500, 500)


# --- Seen, final, undone ---------------------------------------------------------------------


async def test_a_deposit_is_shown_before_it_is_final_and_counts_for_nothing(
    here: OnChain,
) -> None:
    """The same event then is confirmed: one change each, however often it is looked at."""
    spender = await here.spender()
    signature = here.net.faucet(await here.wallet(spender), 700)
    await here.look(spender)
    assert await here.deposits(spender) == []
    here.net.tick(2)
    await here.look(spender)
    await here.look(spender)
    (seen,) = await here.events(spender)
    before = await here.figures(spender)
    with pytest.raises(errors.ExceedsVault):
        await here.app.vaults.withdraw(
            spender.owner,
            make.asked("Withdraw"),
            spender.vault_id,
            1,
            str(Keypair().pubkey()),
            None,
        )
    here.net.finalize()
    await here.look(spender)
    await here.look(spender)
    (final,) = await here.events(spender)

    assert (seen.status, seen.amount, seen.tx_hash) == (PENDING, 700, signature)
    assert before == (0, 0)
    assert (final.id, final.status, final.amount) == (seen.id, CONFIRMED, 700)
    assert await here.changes(spender, final) == [PENDING, CONFIRMED]
    assert await here.figures(spender) == (700, 700)


async def test_a_deposit_that_a_fork_undoes_for_good_is_failed(here: OnChain) -> None:
    """Not before its blockhash is over: until then it could come back."""
    spender = await here.spender()
    here.net.faucet(await here.wallet(spender), 700)
    here.net.tick(2)
    await here.look(spender)
    here.net.chain.fork_away()
    here.net.tick(2)

    await here.look(spender)
    here.net.tick(140)
    await here.look(spender)
    (waiting,) = await here.events(spender)
    here.net.tick(60)
    await here.look(spender)
    await here.look(spender)
    (undone,) = await here.events(spender)

    assert waiting.status is PENDING
    assert (undone.status, undone.failure_reason) == (FAILED, FailureReason.DEPOSIT_UNDONE)
    assert undone.tx_hash is None
    assert await here.changes(spender, undone) == [PENDING, FAILED]
    assert await here.figures(spender) == (0, 0)
    assert (await here.reconcile(spender)).drift is None


async def test_a_deposit_that_comes_back_after_a_fork_is_the_same_one(here: OnChain) -> None:
    spender = await here.spender()
    here.net.faucet(await here.wallet(spender), 700)
    here.net.tick(2)
    await here.look(spender)
    (seen,) = await here.events(spender)
    here.net.chain.fork_away(reinclude=True)

    await here.look(spender)
    here.net.finalize()
    await here.look(spender)
    (final,) = await here.events(spender)

    assert (final.id, final.status) == (seen.id, CONFIRMED)
    assert await here.figures(spender) == (700, 700)


async def test_what_lands_after_it_was_given_up_is_a_deposit_of_its_own(
    here: OnChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain said that it cannot be any more; it is credited all the same, once."""
    spender, net = await here.spender(), here.net
    signature = net.faucet(await here.wallet(spender), 700)
    net.tick(2)
    await here.look(spender)
    seen = net.chain.landed(signature)
    assert seen is not None
    net.chain.fork_away()
    await here.look(spender)
    net.tick(220)
    await here.look(spender)
    (undone,) = await here.events(spender)

    monkeypatch.setattr(net.chain, "is_valid", lambda *_: True)
    net.chain.submit(VersionedTransaction.from_bytes(seen.wire))
    net.finalize()
    await here.look(spender)
    await here.look(spender)
    _, deposit = await here.events(spender)

    assert (undone.status, undone.tx_hash) == (FAILED, None)
    assert (deposit.status, deposit.tx_hash, deposit.amount) == (CONFIRMED, signature, 700)
    assert await here.figures(spender) == (700, 700)
    assert (await here.reconcile(spender)).drift is None


async def test_a_deposit_that_fails_on_the_fork_that_stays_is_failed(here: OnChain) -> None:
    """It was seen, undone, and lands again where its payer has nothing left."""
    spender, net = await here.spender(1), here.net
    payer = funded(net, 700)
    wallet = await here.wallet(spender)
    paying = payer.signed([payer.transfer(wallet, 700)], net.chain.blockhash(net.chain.tip))
    emptying = payer.signed(
        [payer.transfer(payer.vault.pubkey(), 0), payer.transfer(wallet, 1)],
        net.chain.blockhash(net.chain.tip),
    )
    net.chain.submit(paying)
    net.tick(2)
    await here.look(spender)
    seen = (await here.events(spender))[-1]
    net.chain.fork_away()
    net.chain.submit(emptying)
    net.tick()
    net.chain.submit(paying)
    net.finalize()

    await here.look(spender)
    net.tick(250)
    await here.look(spender)
    await here.look(spender)
    undone = next(each for each in await here.events(spender) if each.id == seen.id)

    assert (seen.status, seen.amount) == (PENDING, 700)
    assert (undone.status, undone.failure_reason) == (FAILED, FailureReason.DEPOSIT_UNDONE)
    assert await here.figures(spender) == (2, 2)


async def test_a_deposit_that_was_seen_and_whose_row_never_comes_again_is_credited(
    here: OnChain,
) -> None:
    """The history has lost it, and the chain has not: its signature is asked for."""
    spender, net = await here.spender(1), here.net
    signature = net.faucet(await here.wallet(spender), 700)
    net.tick(2)
    await here.look(spender)
    node = net.endpoints[0].node
    inner = node._methods["getSignaturesForAddress"]
    node._methods["getSignaturesForAddress"] = lambda params: [
        row for row in inner(params) if row["signature"] != signature
    ]
    net.finalize()
    await here.look(spender)
    before = await here.figures(spender)
    net.tick(200)

    await here.look(spender)

    assert before == (1, 1)
    assert (await here.deposits(spender))[-1] == (CONFIRMED, 700, signature)
    assert await here.figures(spender) == (701, 701)


async def test_a_deposit_counts_when_it_is_confirmed_where_that_is_wanted(
    database: str, net: Localnet
) -> None:
    """In one change; what is final later says nothing new, and what is on chain agrees."""
    commitment = SolanaCommitment.CONFIRMED
    async with running(database, net, solana_commitment=commitment) as here:
        spender = await here.spender()
        signature = net.faucet(await here.wallet(spender), 700)
        net.tick(2)
        await here.look(spender)
        soon = await here.figures(spender)
        early = await here.reconcile(spender)
        net.finalize()
        await here.look(spender)
        final = await here.reconcile(spender)

        (event,) = await here.events(spender)
        assert soon == await here.figures(spender) == (700, 700)
        assert (event.status, event.tx_hash) == (CONFIRMED, signature)
        assert await here.changes(spender, event) == [CONFIRMED]
        assert (early.found_amount, early.expected_amount, early.drift) == (0, 0, None)
        assert (final.found_amount, final.expected_amount, final.drift) == (700, 700, None)


async def test_a_confirmed_deposit_that_a_fork_undoes_is_a_drift(
    database: str, net: Localnet
) -> None:
    """It was counted sooner than was safe, as was wanted; the chain is missed to the unit."""
    commitment = SolanaCommitment.CONFIRMED
    async with running(database, net, solana_commitment=commitment) as here:
        spender = await here.spender()
        net.faucet(await here.wallet(spender), 700)
        net.tick(2)
        await here.look(spender)
        net.chain.fork_away()
        net.finalize()

        found = await here.reconcile(spender)

        assert found.drift is not None
        assert found.drift.amount == -700


# --- Nodes that lag, lie, or are away ----------------------------------------------------------


async def test_a_node_alone_cannot_invent_a_deposit(database: str) -> None:
    """It has a chain of its own; the other knows nothing of it, and nothing is credited."""
    async with (
        localnet.running(None, manual=True) as honest,
        localnet.running(None, manual=True) as liar,
        running(database, honest, (liar.url, honest.url)) as here,
    ):
        here.hurry()
        spender = await here.spender()
        wallet = await here.wallet(spender)
        invented = liar.faucet(wallet, 10**6)
        liar.finalize()
        honest.finalize()
        for _ in range(3):
            await here.look(spender)
        assert await here.figures(spender) == (0, 0)

        with pytest.raises(RpcError):
            await here.reconcile(spender)

        assert all(status is not CONFIRMED for status, _, _ in await here.deposits(spender))
        assert not honest.chain.landed(invented)


async def test_with_confirmed_deposits_a_node_alone_cannot_invent_one(database: str) -> None:
    commitment = SolanaCommitment.CONFIRMED
    async with (
        localnet.running(None, manual=True) as honest,
        localnet.running(None, manual=True) as liar,
        running(database, honest, (liar.url, honest.url), solana_commitment=commitment) as here,
    ):
        here.hurry()
        spender = await here.spender()
        liar.faucet(await here.wallet(spender), 10**6)
        liar.tick(5)
        honest.tick(5)

        await here.look(spender)

        assert await here.figures(spender) == (0, 0)


async def test_a_node_that_invents_one_deposit_keeps_no_other_from_being_credited(
    database: str,
) -> None:
    """What nodes do not agree on waits, and the cursor before it; the rest goes on."""
    async with (
        localnet.running(None, manual=True, endpoints=2) as net,
        running(database, net, net.urls) as here,
    ):
        here.hurry()
        spender = await here.spender()
        wallet = await here.wallet(spender)
        net.finalize()
        invented = net.faucet(wallet, 10**6)
        net.tick()
        slot = net.chain.tip
        real = net.faucet(wallet, 5)
        net.finalize()
        hide(net, 1, invented)

        known = await here.look(spender)
        await here.look(spender)

        assert known == slot - 1
        assert [each for each in await here.deposits(spender) if each[0] is CONFIRMED] == [
            (CONFIRMED, 5, real)
        ]
        unhide(net, 1)
        assert await here.look(spender) == here.finalized
        assert await here.figures(spender) == (10**6 + 5,) * 2


async def test_many_invented_deposits_blind_nobody(database: str, net: Localnet) -> None:
    """There are more than a reading has patience for; the next one begins with what is new."""
    async with running(database, net, net.urls) as here:
        here.hurry()
        spender = await here.spender()
        wallet = await here.wallet(spender)
        invented = {net.faucet(wallet, 10**6) for _ in range(3 * deposits.LEFT_MAX)}
        net.tick()
        real = net.faucet(wallet, 5)
        net.finalize()
        hide(net, 1, *invented)

        for _ in range(5):
            await here.look(spender)

        assert [each for each in await here.deposits(spender) if each[0] is CONFIRMED] == [
            (CONFIRMED, 5, real)
        ]


async def test_a_pending_deposit_that_nodes_contradict_each_other_about_stays_pending(
    database: str,
) -> None:
    """It was seen on a chain of a node's own; the vault's other deposits are credited."""
    async with (
        localnet.running(None, manual=True) as honest,
        localnet.running(None, manual=True) as liar,
        running(database, honest, (liar.url, honest.url)) as here,
    ):
        here.hurry()
        spender = await here.spender()
        wallet = await here.wallet(spender)
        invented = liar.faucet(wallet, 10**6)
        for net in (liar, honest):
            net.tick(2)
        await here.look(spender)
        liar.endpoints[0].node._methods["getSignaturesForAddress"] = honest.endpoints[
            0
        ].node._methods["getSignaturesForAddress"]
        for _ in range(4):
            for net in (liar, honest):
                net.tick(100)
            assert await here.look(spender) == here.finalized

        assert await here.deposits(spender) == [(PENDING, 10**6, invented)]


async def test_a_node_that_is_behind_is_no_reason_to_move_the_cursor_back(
    database: str, net: Localnet
) -> None:
    """Nothing is concluded from what it does not have yet; the other node is asked."""
    async with running(database, net, net.urls) as here:
        here.hurry()
        spender = await here.spender(100)
        net.faucet(await here.wallet(spender), 23)
        net.finalize()
        net.endpoints[0].node.lag = 60
        before = await here.scanned(spender)
        await here.look(spender)

        assert await here.scanned(spender) >= before
        net.endpoints[0].node.lag = 0
        await here.look(spender)
        assert await here.figures(spender) == (123, 123)
        assert await here.scanned(spender) == await newest_slot(here, spender)


async def test_a_slot_that_will_not_be_for_years_does_not_blind_a_vault(here: OnChain) -> None:
    """A node names it once; from then on it tells the truth, which is less."""
    spender = await here.spender(100)
    node = here.net.endpoints[0].node
    slot = node._methods["getSlot"]
    node._methods["getSlot"] = lambda _: 2**50
    node._methods["getSignaturesForAddress"] = lambda params: node._signatures(
        [params[0], {**params[1], "minContextSlot": 0}]
    )
    await here.look(spender)
    node._methods["getSlot"] = slot
    here.net.faucet(await here.wallet(spender), 23)
    here.net.finalize()

    await here.look(spender)

    assert await here.figures(spender) == (123, 123)


async def test_a_node_that_went_back_reads_nothing(here: OnChain) -> None:
    """The only node is behind what is known: the reading ends in a fault, and changes nothing."""
    here.hurry()
    spender = await here.spender(100)
    here.net.faucet(await here.wallet(spender), 23)
    here.net.finalize()
    await here.look(spender)
    before = await here.scanned(spender)
    here.net.endpoints[0].node.lag = 60

    with pytest.raises(RpcError):
        await here.look(spender)

    assert await here.scanned(spender) == before
    assert await here.figures(spender) == (123, 123)


def hide(net: Localnet, number: int, *signatures: str) -> None:
    """Let a node know nothing of some transactions."""
    node = net.endpoints[number].node
    inner = node._methods["getTransaction"]
    node._methods["getTransaction"] = lambda params: (
        None if params[0] in signatures else inner(params)
    )


def unhide(net: Localnet, number: int) -> None:
    node = net.endpoints[number].node
    node._methods["getTransaction"] = node._transaction


# --- Whose turn it is --------------------------------------------------------------------------


async def watched(here: OnChain, spender: Spender, balance: int) -> None:
    """Let turns come until a vault has so much."""
    async with asyncio.timeout(onchain.SECONDS):
        while (await here.figures(spender))[1] != balance:
            await here.settlement.deposits.watch()
            await asyncio.sleep(0.001)


async def test_a_deposit_is_found_by_itself(here: OnChain) -> None:
    """First what is seen, then, without any other sign, that it is final."""
    spender = await here.spender()
    here.net.faucet(await here.wallet(spender), 9)
    here.net.tick(2)
    async with asyncio.timeout(onchain.SECONDS):
        while not await here.events(spender):
            await here.settlement.deposits.watch()
            await asyncio.sleep(0.001)
    here.net.finalize()

    await watched(here, spender, 9)

    assert await here.changes(spender, (await here.events(spender))[0]) == [PENDING, CONFIRMED]


async def test_a_vault_that_an_older_pilot_has_made_is_watched_too(here: OnChain) -> None:
    spender = await here.spender()
    await here.app.database.pool.execute("DELETE FROM vault_scans")
    here.net.faucet(await here.wallet(spender), 9)
    here.net.finalize()
    await here.settlement.deposits.watch()
    before = await here.figures(spender)

    await here.settlement.deposits.begin()
    await here.settlement.deposits.begin()
    await watched(here, spender, 9)

    assert before == (0, 0)


async def test_a_hundred_vaults_that_rest_cost_one_question(
    database: str, net: Localnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once their histories are known, a turn of all of them is one question."""
    monkeypatch.setattr(deposits, "READING_SECONDS", onchain.SECONDS)
    async with running(database, net, solana_poll=timedelta(minutes=1)) as here:
        user = await make.owner(here.app)
        for _ in range(100):
            await make.project(here.app, user)
        due = "UPDATE vault_scans SET next_watch_at = '-infinity'"
        net.finalize()
        await here.settlement.deposits.watch()
        asked = onchain.counted(net, monkeypatch)

        await here.app.database.pool.execute(due)
        await here.settlement.deposits.watch()

        assert asked == ["getMultipleAccounts"]


async def test_only_a_vault_that_moved_is_read(
    here: OnChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twenty one has a deposit: one history, one transaction."""
    user = await make.owner(here.app)
    for _ in range(20):
        await make.project(here.app, user)
    spender = await here.spender()
    here.net.finalize()
    await here.settlement.deposits.watch()
    here.net.faucet(await here.wallet(spender), 9)
    here.net.finalize()
    asked = onchain.counted(here.net, monkeypatch)

    await here.app.database.pool.execute("UPDATE vault_scans SET next_watch_at = '-infinity'")
    await here.settlement.deposits.watch()

    assert await here.figures(spender) == (9, 9)
    assert asked.count("getMultipleAccounts") == 1
    assert asked.count("getSignaturesForAddress") <= 2
    assert asked.count("getTransaction") == 1


async def test_a_history_that_takes_long_is_read_on_while_others_have_their_turn(
    here: OnChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading that does not end is begun once, and another vault's deposit is credited."""
    monkeypatch.setattr(deposits, "READING_SECONDS", 0.01)
    slow, quick = await here.spender(), await here.spender()
    for spender in (slow, quick):
        here.net.faucet(await here.wallet(spender), 9)
    here.net.finalize()
    scan, begun, go_on = here.settlement.deposits.scan, list[str](), asyncio.Event()

    async def slowly(watch: Any, *args: Any, **options: Any) -> int:
        begun.append(watch.vault_id)
        if watch.vault_id == slow.vault_id:
            await go_on.wait()
        return await scan(watch, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(here.settlement.deposits), "scan", staticmethod(slowly))
        await watched(here, quick, 9)
        for _ in range(3):
            await here.app.database.pool.execute(
                "UPDATE vault_scans SET next_watch_at = '-infinity'"
            )
            await here.settlement.deposits.watch()
        assert await here.figures(slow) == (0, 0)
        assert begun.count(slow.vault_id) == 1
        go_on.set()
        await watched(here, slow, 9)


async def test_one_history_that_cannot_be_read_delays_no_other(
    here: OnChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the chain does not answer about it, or what it answers breaks something here."""
    broken, well = await here.spender(), await here.spender()
    accounts = str(await here.account(broken))
    node = here.net.endpoints[0].node
    inner = node._methods["getSignaturesForAddress"]
    for spender in (broken, well):
        here.net.faucet(await here.wallet(spender), 9)
    here.net.finalize()
    here.hurry()

    def refusing(params: list[Any]) -> Any:
        if params[0] == accounts:
            raise ValueError("this index is broken")
        return inner(params)

    with monkeypatch.context() as patch:
        patch.setitem(node._methods, "getSignaturesForAddress", refusing)
        await watched(here, well, 9)
        assert await here.figures(broken) == (0, 0)
    here.net.faucet(await here.wallet(well), 9)
    here.net.finalize()
    scan = here.settlement.deposits.scan

    async def breaking(watch: Any, *args: Any, **options: Any) -> int:
        if watch.vault_id == broken.vault_id:
            raise RuntimeError("nobody expected this")
        return await scan(watch, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(here.settlement.deposits), "scan", staticmethod(breaking))
        await here.app.database.pool.execute("UPDATE vault_scans SET next_watch_at = '-infinity'")
        await here.settlement.deposits.watch()
        assert await here.figures(well) == (18, 18)
    await watched(here, broken, 9)


async def test_a_deposit_whose_row_comes_late_is_not_left_for_the_reconciliation(
    here: OnChain,
) -> None:
    """The account has changed, and its history does not say so yet: it is read again soon."""
    spender = await here.spender(1)
    await here.settlement.deposits.watch()
    here.net.faucet(await here.wallet(spender), 9)
    here.net.finalize()
    node = here.net.endpoints[0].node
    inner = node._methods["getSignaturesForAddress"]
    node._methods["getSignaturesForAddress"] = lambda params: inner(params)[1:]
    for _ in range(5):
        await here.app.database.pool.execute("UPDATE vault_scans SET next_watch_at = '-infinity'")
        await here.settlement.deposits.watch()
    late = await here.figures(spender)
    node._methods["getSignaturesForAddress"] = inner

    await watched(here, spender, 10)

    assert late == (1, 1)


async def test_an_outflow_whose_row_comes_late_is_not_left_for_the_reconciliation(
    here: OnChain,
) -> None:
    """Also when nothing is left, which is what a new account has, too."""
    spender = await here.spender(1)
    await here.settlement.deposits.watch()
    signature = await here.steal(spender, 1)
    node, pool = here.net.endpoints[0].node, here.app.database.pool
    inner = node._methods["getSignaturesForAddress"]
    node._methods["getSignaturesForAddress"] = lambda params: inner(params)[1:]

    async def turn() -> set[str]:
        await pool.execute("UPDATE vault_scans SET next_watch_at = '-infinity'")
        await here.settlement.deposits.watch()
        rows = await pool.fetch("SELECT signature FROM vault_transactions WHERE delta < 0")
        return {row["signature"] for row in rows}

    late = [await turn() for _ in range(4)]
    node._methods["getSignaturesForAddress"] = inner

    assert late == [set()] * 4
    assert await turn() == {signature}


async def test_a_vault_that_was_only_reconciled_rests_too(
    here: OnChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the reconciliation has read is not read again and again."""
    spender = await here.spender()
    here.net.faucet(await here.wallet(spender), 9)
    here.net.finalize()
    await here.reconcile(spender)
    for _ in range(2):
        await here.app.database.pool.execute("UPDATE vault_scans SET next_watch_at = '-infinity'")
        await here.settlement.deposits.watch()
    asked = onchain.counted(here.net, monkeypatch)

    await here.app.database.pool.execute("UPDATE vault_scans SET next_watch_at = '-infinity'")
    await here.settlement.deposits.watch()

    assert asked == ["getMultipleAccounts"]


# --- More than fits ----------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [AMOUNT_MAX + 1, 10**18, 2**63 - 100])
async def test_a_deposit_that_is_more_than_an_event_can_be_poisons_nothing(
    here: OnChain, amount: int
) -> None:
    """It is named as what the chain has too much, and what comes after is credited."""
    spender = await here.spender(5)
    other = await here.spender()
    here.net.faucet(await here.wallet(spender), amount)
    here.net.tick(2)
    await here.look(spender)
    here.net.finalize()
    await here.look(spender)
    here.net.faucet(await here.wallet(spender), 6)
    here.net.faucet(await here.wallet(other), 7)
    here.net.finalize()

    await watched(here, other, 7)
    await watched(here, spender, 11)

    assert [each[1] for each in await here.deposits(spender)] == [5, 6]


async def test_a_deposit_of_the_most_that_an_event_can_be_is_credited(here: OnChain) -> None:
    spender = await here.spender(AMOUNT_MAX)

    assert await here.figures(spender) == (AMOUNT_MAX, AMOUNT_MAX)


async def test_a_deposit_for_which_the_vault_has_no_room_waits_for_it(here: OnChain) -> None:
    """It holds up no other, and is credited when there is room."""
    spender = await here.spender(daily_limit=AMOUNT_MAX, per_tx_limit=AMOUNT_MAX)
    await here.app.database.pool.execute(
        "UPDATE vaults SET balance = $2 WHERE id = $1", spender.vault_id, BALANCE_MAX - 100
    )
    wallet = await here.wallet(spender)
    large, small = here.net.faucet(wallet, 101), here.net.faucet(wallet, 7)
    here.net.tick(2)
    await here.look(spender)
    here.net.finalize()
    await here.look(spender)
    waiting = {tx_hash: status for status, _, tx_hash in await here.deposits(spender)}
    await make.spend(here.app, spender, 1_000)

    await here.look(spender)

    assert waiting == {large: PENDING, small: CONFIRMED}
    assert {each[0] for each in await here.deposits(spender)} == {CONFIRMED}
    assert (await here.figures(spender))[1] == 108
