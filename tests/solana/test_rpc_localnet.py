"""The port against the embedded chain: what goes wrong on the way of real transactions.

What goes right is in test_rpc_chains.py, which runs on another server, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from solders.keypair import Keypair

from pilot_grpc.solana.clusters import EMBEDDED
from pilot_grpc.solana.faults import RpcAmbiguous, RpcUnavailable
from pilot_grpc.solana.localnet import FOR_EVER, Fault, Kind, Localnet
from pilot_grpc.solana.rpc import Fate, Rpc
from tests.solana.payers import send, signed, started
from tests.solana.payments import funded


@pytest.fixture
async def port(net: Localnet) -> AsyncIterator[Rpc]:
    """Pilot's port to both nodes of the chain."""
    async with started(net.urls, EMBEDDED) as rpc:
        yield rpc


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
