"""The port against the embedded chain: real transactions, and what goes wrong on their way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from solders.hash import Hash
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from pilot_grpc.solana.answers import SYSTEM_PROGRAM, TOKEN_PROGRAM, Commitment, TokenState
from pilot_grpc.solana.clusters import DEVNET, EMBEDDED, MAINNET_USDC_MINT
from pilot_grpc.solana.endpoint import EndpointSettings, Patience
from pilot_grpc.solana.faults import ClusterMismatch, RpcAmbiguous, RpcRejected, RpcUnavailable
from pilot_grpc.solana.localnet import FOR_EVER, Fault, Kind, Localnet
from pilot_grpc.solana.rpc import Fate, Rpc
from tests.solana.payments import Payer, ata, funded

CONFIRMED = Commitment.CONFIRMED


@pytest.fixture
async def port(net: Localnet) -> AsyncIterator[Rpc]:
    """Pilot's port to both nodes of the chain."""
    places = [EndpointSettings(url=url, requests_per_second=10_000) for url in net.urls]
    rpc = Rpc(EMBEDDED, places, Patience(backoff_seconds=0.01))
    await rpc.start()
    yield rpc
    await rpc.close()


async def signed(
    rpc: Rpc, payer: Payer, recipient: Pubkey, amount: int
) -> tuple[VersionedTransaction, int]:
    """A payment, and the last block height at which it can land."""
    found = (await rpc.latest_blockhash(CONFIRMED)).value
    payment = payer.payment(recipient, amount, Hash.from_string(found.blockhash))
    return payment, found.last_valid_block_height


async def send(rpc: Rpc, payment: VersionedTransaction) -> str:
    return await rpc.send(bytes(payment), preflight_commitment=CONFIRMED)


async def test_a_payment_from_its_blockhash_to_its_balances(net: Localnet, port: Rpc) -> None:
    payer, recipient = funded(net), Keypair().pubkey()
    payment, last = await signed(port, payer, recipient, 2_500_000)
    simulated = (await port.simulate(bytes(payment), commitment=CONFIRMED)).value
    signature = await send(port, payment)
    net.tick()
    confirmed = await port.fate(signature, last)
    net.finalize()
    fate = await port.fate(signature, last)

    assert simulated.err is None
    assert simulated.units
    assert signature == str(payment.signatures[0])
    assert confirmed.status is not None
    assert not confirmed.status.finalized
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


async def test_the_same_bytes_pay_once(net: Localnet, port: Rpc) -> None:
    payer, recipient = funded(net), Keypair().pubkey()
    payment, _ = await signed(port, payer, recipient, 1_000_000)
    assert await send(port, payment) == await send(port, payment)
    net.finalize()
    with pytest.raises(RpcRejected) as found:
        await send(port, payment)
    net.finalize()

    assert found.value.already_processed
    account = (await port.token_account(str(ata(recipient)))).value
    assert account is not None
    assert account.amount == 1_000_000


async def test_a_preflight_says_why(net: Localnet, port: Rpc) -> None:
    payer = funded(net, units=5)
    payment, _ = await signed(port, payer, Keypair().pubkey(), 1_000_000)
    with pytest.raises(RpcRejected) as found:
        await send(port, payment)

    assert found.value.err is not None
    assert (found.value.err.name, found.value.err.custom) == ("InstructionError", 1)
    assert found.value.logs


async def test_a_send_that_was_cut_off_may_have_paid(net: Localnet, port: Rpc) -> None:
    payer, recipient = funded(net), Keypair().pubkey()
    payment, last = await signed(port, payer, recipient, 1_000_000)
    for node in net.endpoints:
        node.faults.add(Fault(Kind.APPLY_THEN_DISCONNECT, "sendTransaction"))
    with pytest.raises(RpcAmbiguous):
        await send(port, payment)
    net.finalize()

    fate = await port.fate(str(payment.signatures[0]), last)
    assert fate.status is not None
    assert (fate.status.finalized, fate.status.err) == (True, None)


async def test_what_was_dropped_expires_when_both_nodes_have_seen_the_end(
    net: Localnet, port: Rpc
) -> None:
    """A node that lags keeps it from being decided, and so does one that is away."""
    payer = funded(net)
    payment, last = await signed(port, payer, Keypair().pubkey(), 1_000_000)
    for node in net.endpoints:
        node.faults.add(Fault(Kind.DROP, "sendTransaction"))
    signature = await send(port, payment)
    assert await port.fate(signature, last) == Fate(None, expired=False)
    net.tick(400)

    net.endpoints[1].node.lag = 250
    assert await port.fate(signature, last) == Fate(None, expired=False)
    net.endpoints[1].node.lag = 0
    net.endpoints[1].faults.add(Fault(Kind.UNAVAILABLE, count=FOR_EVER))
    with pytest.raises(RpcUnavailable):
        await port.fate(signature, last)
    net.endpoints[1].faults.clear()
    assert await port.fate(signature, last) == Fate(None, expired=True)


@pytest.mark.parametrize(
    "kind",
    [
        Kind.RATE_LIMITED,
        Kind.UNAVAILABLE,
        Kind.HTML,
        Kind.DISCONNECT,
        Kind.TRUNCATED,
        Kind.WRONG_ID,
        Kind.WRONG_TYPE,
        Kind.ERROR,
    ],
)
async def test_reads_get_round_one_bad_node(net: Localnet, port: Rpc, kind: Kind) -> None:
    net.endpoints[0].faults.add(Fault(kind, count=FOR_EVER))
    net.finalize()

    assert await port.slot() > 0
    assert (await port.balance(str(Keypair().pubkey()))).value == 0


async def test_the_embedded_chain_is_not_devnet(net: Localnet) -> None:
    rpc = Rpc(DEVNET, [EndpointSettings(url=net.url)])
    with pytest.raises(ClusterMismatch):
        await rpc.start()
    await rpc.close()
