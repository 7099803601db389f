"""The port against chains that run, our own and somebody else's: whatever it asks, it reads.

Both servers pass the same tests. Where they differ is named in chains.py, and asserted here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from solders.hash import Hash
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from pilot_grpc.solana.answers import (
    SYSTEM_PROGRAM,
    TOKEN_PROGRAM,
    Commitment,
    TokenState,
    Transaction,
)
from pilot_grpc.solana.clusters import DEVNET, MAINNET_USDC_MINT
from pilot_grpc.solana.faults import ClusterMismatch, RpcBehind, RpcRejected, TransactionError
from pilot_grpc.solana.rpc import Fate, Rpc
from tests.solana.chains import Chain, funded_payer
from tests.solana.payers import CONFIRMED, port_to, send, signed, started
from tests.solana.payments import Payer, ata

FINALIZED = Commitment.FINALIZED
# Two signatures, and 30,000 compute units at 2,000 millionths of a lamport.
SIGNATURES_LAMPORTS = 10_000
PRIORITY_LAMPORTS = 60
NO_FUNDS = TransactionError("InstructionError", 3, "Custom", custom=1)


@pytest.fixture
async def port(chain: Chain) -> AsyncIterator[Rpc]:
    """Pilot's port to every node of the chain."""
    async with started(chain.urls, chain.cluster) as rpc:
        yield rpc


async def pay(chain: Chain, rpc: Rpc, payer: Payer, recipient: Pubkey, amount: int) -> str:
    """Sign and send a payment, and wait for its block."""
    async with chain.standing_still():
        payment, _ = await signed(rpc, payer, recipient, amount)
        signature = await send(rpc, payment)
    await chain.confirmed(signature)
    return signature


async def units(rpc: Rpc, wallet: Pubkey) -> int:
    account = (await rpc.token_account(str(ata(wallet)))).value
    assert account is not None
    return account.amount


def moved(landed: Transaction) -> dict[str | None, int]:
    """How many units each wallet got, or gave."""
    before = {each.account: each.amount for each in landed.before}
    return {each.owner: each.amount - before.get(each.account, 0) for each in landed.after}


async def test_a_payment_from_its_blockhash_to_its_balances(chain: Chain, port: Rpc) -> None:
    payer, recipient = await funded_payer(chain), Keypair().pubkey()
    async with chain.standing_still():
        payment, last = await signed(port, payer, recipient, 2_500_000)
        simulated = (await port.simulate(bytes(payment), commitment=CONFIRMED)).value
        signature = await send(port, payment)
        waiting = await port.fate(signature, last)
    await chain.confirmed(signature)
    confirmed = await port.fate(signature, last)
    await chain.finalized(signature)
    fate = await port.fate(signature, last)

    assert simulated.err is None
    assert simulated.units
    assert signature == str(payment.signatures[0])
    assert waiting == Fate(None, expired=False)
    assert confirmed.status is not None
    assert confirmed.status.err is None
    assert not confirmed.status.finalized or chain.quirks.keeps_time
    assert fate.status is not None
    assert (fate.status.finalized, fate.status.err, fate.expired) == (True, None, False)

    landed = await port.transaction(signature)
    (row,) = await port.signatures_for_address(str(ata(recipient)))
    account = (await port.token_account(str(ata(recipient)))).value
    both = await port.multiple_accounts([str(ata(recipient)), str(recipient)])
    assert landed is not None
    before = {each.account: each.amount for each in landed.before}
    assert [
        (
            each.account,
            each.mint,
            each.owner,
            each.program,
            each.amount - before.get(each.account, 0),
        )
        for each in landed.after
        if each.owner == str(recipient)
    ] == [(str(ata(recipient)), MAINNET_USDC_MINT, str(recipient), TOKEN_PROGRAM, 2_500_000)]
    assert (row.signature, row.slot, row.err) == (signature, landed.slot, None)
    assert account is not None
    assert (account.mint, account.owner, account.amount) == (
        MAINNET_USDC_MINT,
        str(recipient),
        2_500_000,
    )
    assert (account.state, account.delegate, account.close_authority) == (
        TokenState.INITIALIZED,
        None,
        None,
    )
    assert both.value[0] is not None
    assert (both.value[0].token, both.value[1]) == (account, None)
    assert both.value[0].lamports == await port.minimum_rent(165)
    wallet = (await port.account_info(str(payer.fees.pubkey()))).value
    assert wallet is not None
    assert (wallet.owner, wallet.data_length, wallet.token) == (SYSTEM_PROGRAM, 0, None)
    assert (await port.balance(str(payer.fees.pubkey()))).value == wallet.lamports
    assert await port.recent_prioritization_fees([str(ata(recipient))])
    assert (await port.balance(str(recipient))).value == 0


async def test_what_a_transaction_costs_and_when_it_was(chain: Chain, port: Rpc) -> None:
    payer, recipient = await funded_payer(chain), Keypair().pubkey()
    fees = str(payer.fees.pubkey())
    before = (await port.balance(fees)).value
    signature = await pay(chain, port, payer, recipient, 5)
    await chain.finalized(signature)
    landed = await port.transaction(signature)
    (row,) = await port.signatures_for_address(str(ata(recipient)))

    spent = before - (await port.balance(fees)).value
    assert spent == SIGNATURES_LAMPORTS + PRIORITY_LAMPORTS + await port.minimum_rent(165)
    assert landed is not None
    told = SIGNATURES_LAMPORTS + (0 if chain.quirks.fee_without_priority else PRIORITY_LAMPORTS)
    assert landed.fee == told
    assert row.block_time is not None
    assert landed.block_time == row.block_time // chain.quirks.block_time_divisor


async def test_a_deposit_is_a_transaction_of_the_account(chain: Chain, port: Rpc) -> None:
    wallet = Keypair().pubkey()
    signatures = [await chain.faucet(wallet, amount) for amount in (7, 5, 5)]
    for signature in signatures:
        await chain.finalized(signature)
    rows = await port.signatures_for_address(str(ata(wallet)))
    landed = [await port.transaction(signature) for signature in signatures]

    assert sorted(row.signature for row in rows) == sorted(signatures)
    assert all((row.err, row.commitment) == (None, FINALIZED) for row in rows)
    assert [moved(each)[str(wallet)] for each in landed if each is not None] == [7, 5, 5]
    assert await units(port, wallet) == 17


async def test_a_commitment_is_heeded(chain: Chain, port: Rpc) -> None:
    """Or it is not, and then only slots, heights and statuses tell what is final."""
    payer, recipient = await funded_payer(chain), Keypair().pubkey()
    signature = await pay(chain, port, payer, recipient, 5)
    account = str(ata(recipient))
    seen_by_none = [
        (await port.token_account(account, FINALIZED)).value is None,
        (await port.multiple_accounts([account], FINALIZED)).value == (None,),
        await port.signatures_for_address(account, commitment=FINALIZED) == (),
        await port.transaction(signature, FINALIZED) is None,
    ]
    heights = [await port.block_height(each) for each in (FINALIZED, CONFIRMED)]
    slots = [await port.slot(each) for each in (FINALIZED, CONFIRMED)]

    assert seen_by_none == [not chain.quirks.newest_at_every_commitment] * 4
    assert await port.transaction(signature, CONFIRMED) is not None
    assert (await port.token_account(account, CONFIRMED)).value is not None
    assert heights[0] < heights[1]
    assert slots[0] < slots[1]
    assert heights[0] < slots[0]
    assert await port.first_available_block() <= slots[0]


async def test_a_slot_that_is_not_there_yet_is_waited_for(chain: Chain, port: Rpc) -> None:
    far = await port.slot() + 1_000_000

    for question in (
        port.slot(min_context_slot=far),
        port.block_height(min_context_slot=far),
        port.balance(str(Keypair().pubkey()), min_context_slot=far),
        port.latest_blockhash(min_context_slot=far),
        port.signature_statuses([], min_context_slot=far),
    ):
        with pytest.raises(RpcBehind):
            await question


async def test_the_same_bytes_pay_once(chain: Chain, port: Rpc) -> None:
    payer, recipient = await funded_payer(chain), Keypair().pubkey()
    async with chain.standing_still():
        payment, _ = await signed(port, payer, recipient, 1_000_000)
        signature = await send(port, payment)
        if chain.quirks.refuses_what_waits:
            with pytest.raises(RpcRejected) as early:
                await send(port, payment)
            assert early.value.already_processed
            assert (await port.signature_statuses([signature])).value == (None,)
        else:
            assert await send(port, payment) == signature
    await chain.finalized(signature)
    with pytest.raises(RpcRejected) as found:
        await send(port, payment)
    await chain.finalized(signature)

    assert found.value.already_processed
    assert (found.value.err is None) == chain.quirks.refuses_without_err
    assert await units(port, recipient) == 1_000_000


async def test_a_preflight_says_why(chain: Chain, port: Rpc) -> None:
    payer = await funded_payer(chain, units=5)
    async with chain.standing_still():
        payment, _ = await signed(port, payer, Keypair().pubkey(), 1_000_000)
        simulated = (await port.simulate(bytes(payment))).value
        with pytest.raises(RpcRejected) as found:
            await send(port, payment)

    assert simulated.err == NO_FUNDS
    assert simulated.logs
    assert found.value.err == NO_FUNDS
    assert found.value.logs
    assert not found.value.already_processed


async def test_a_payment_that_fails_on_chain_says_why_and_costs_a_fee(
    chain: Chain, port: Rpc
) -> None:
    payer, recipient = await funded_payer(chain, units=5), Keypair().pubkey()
    fees = str(payer.fees.pubkey())
    before = (await port.balance(fees)).value
    async with chain.standing_still():
        payment, last = await signed(port, payer, recipient, 1_000_000)
        signature = await send(port, payment, skip_preflight=True)
    await chain.finalized(signature)
    fate = await port.fate(signature, last)
    row, *_ = await port.signatures_for_address(str(payer.account))
    landed = await port.transaction(signature)

    assert fate.status is not None
    assert (fate.status.finalized, fate.status.err, fate.expired) == (True, NO_FUNDS, False)
    assert (row.signature, row.err) == (signature, NO_FUNDS)
    assert landed is not None
    assert (landed.err, set(moved(landed).values())) == (NO_FUNDS, {0})
    assert (await port.balance(fees)).value == before - SIGNATURES_LAMPORTS - PRIORITY_LAMPORTS
    assert await units(port, payer.vault.pubkey()) == 5


async def test_a_token_account_that_is_not_there(chain: Chain, port: Rpc) -> None:
    """Reading it is no error, and paying it without making it is one."""
    payer, recipient = await funded_payer(chain), Keypair().pubkey()
    async with chain.standing_still():
        found = (await port.latest_blockhash(CONFIRMED)).value
        transfer = payer.transfer(recipient, 5)
        payment = payer.signed([transfer], Hash.from_string(found.blockhash))
        with pytest.raises(RpcRejected) as refused:
            await send(port, payment)

    account = str(ata(recipient))
    assert (await port.token_account(account)).value is None
    assert (await port.multiple_accounts([account])).value == (None,)
    assert await port.signatures_for_address(account) == ()
    assert refused.value.err == TransactionError("InstructionError", 0, "InvalidAccountData")


async def test_a_signature_nobody_made_is_refused(chain: Chain, port: Rpc) -> None:
    payer = await funded_payer(chain)
    async with chain.standing_still():
        payment, last = await signed(port, payer, Keypair().pubkey(), 5)
        forged = VersionedTransaction.populate(
            payment.message, [payer.fees.sign_message(b"something else"), payment.signatures[1]]
        )
        with pytest.raises(RpcRejected) as refused:
            await send(port, forged)

    assert refused.value.code == chain.quirks.wrong_signature_code
    assert not refused.value.already_processed
    assert await port.fate(str(forged.signatures[0]), last) == Fate(None, expired=False)
    assert await port.transaction(str(forged.signatures[0])) is None


async def test_what_was_signed_too_long_ago_never_lands(chain: Chain, port: Rpc) -> None:
    """Every node says so once, and from then on it is safe to sign anew."""
    payer, recipient = await funded_payer(chain), Keypair().pubkey()
    async with chain.standing_still():
        payment, last = await signed(port, payer, recipient, 5)
        signature = str(payment.signatures[0])
        young = await port.fate(signature, last)
    await chain.expired(last)
    with pytest.raises(RpcRejected) as refused:
        await send(port, payment)
    assert await send(port, payment, skip_preflight=True) == signature
    again = await pay(chain, port, payer, recipient, 6)
    await chain.finalized(again)

    assert young == Fate(None, expired=False)
    assert refused.value.err == TransactionError("BlockhashNotFound")
    assert await port.fate(signature, last) == Fate(None, expired=True)
    assert await port.transaction(signature) is None
    rows = await port.signatures_for_address(str(ata(recipient)))
    assert [row.signature for row in rows if row.err is None] == [again]
    expired = [(str(Signature.default()), TransactionError("BlockhashNotFound"))]
    assert [(row.signature, row.err) for row in rows if row.err is not None] == (
        expired if chain.quirks.lists_what_expired else []
    )
    assert await units(port, recipient) == 6


async def test_a_history_is_paged_from_its_newest_row(chain: Chain, port: Rpc) -> None:
    payer, recipient = await funded_payer(chain), Keypair().pubkey()
    paid = [await pay(chain, port, payer, recipient, amount) for amount in range(1, 6)]
    await chain.finalized(paid[-1])
    account, newest_first = str(ata(recipient)), paid[::-1]

    pages, before = [], None
    while page := await port.signatures_for_address(account, before=before, limit=2):
        pages.append([row.signature for row in page])
        before = page[-1].signature
    since = await port.signatures_for_address(account, until=paid[1])
    both = await port.signatures_for_address(account, before=paid[4], until=paid[1])
    unknown = str(payer.vault.sign_message(b"never sent"))
    all_of_them = await port.signatures_for_address(account, until=unknown)

    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    assert [row.signature for row in since] == newest_first[:3]
    assert [row.signature for row in both] == newest_first[1:3]
    assert [row.signature for row in all_of_them] == newest_first
    slots = [row.slot for row in all_of_them]
    assert slots == sorted(slots, reverse=True)


async def test_many_statuses_come_in_their_order(chain: Chain, port: Rpc) -> None:
    payer = await funded_payer(chain)
    first = await pay(chain, port, payer, Keypair().pubkey(), 1)
    last = await pay(chain, port, payer, Keypair().pubkey(), 2)
    await chain.finalized(last)
    unknown = str(payer.vault.sign_message(b"never sent"))

    found = (await port.signature_statuses([last, unknown, first])).value

    assert [each is not None and each.finalized for each in found] == [True, False, True]
    assert found[0] is not None
    assert found[2] is not None
    assert found[0].slot > found[2].slot


async def test_a_chain_is_its_own_cluster_and_not_devnet(chain: Chain, port: Rpc) -> None:
    assert chain.cluster.genesis_hash in {None, await port.genesis_hash()}
    stranger = port_to(chain.urls, DEVNET)
    with pytest.raises(ClusterMismatch):
        await stranger.start()
    await stranger.close()
