"""Pilot's port to a chain of the test, and payments on their way through it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from solders.hash import Hash
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from pilot_grpc.solana.answers import Commitment
from pilot_grpc.solana.clusters import Cluster
from pilot_grpc.solana.endpoint import EndpointSettings, Patience
from pilot_grpc.solana.rpc import Rpc
from tests.solana.payments import Payer

CONFIRMED = Commitment.CONFIRMED


def port_to(urls: Sequence[str], cluster: Cluster) -> Rpc:
    """A port that has not started: it asks as often as it likes, and waits for nobody long."""
    places = [EndpointSettings(url=url, requests_per_second=10_000) for url in urls]
    return Rpc(cluster, places, Patience(backoff_seconds=0.01))


@asynccontextmanager
async def started(urls: Sequence[str], cluster: Cluster) -> AsyncIterator[Rpc]:
    """A port that works."""
    rpc = port_to(urls, cluster)
    try:
        await rpc.start()
        yield rpc
    finally:
        await rpc.close()


async def signed(
    rpc: Rpc, payer: Payer, recipient: Pubkey, amount: int
) -> tuple[VersionedTransaction, int]:
    """A payment, and the last block height at which it can land."""
    found = (await rpc.latest_blockhash(CONFIRMED)).value
    payment = payer.payment(recipient, amount, Hash.from_string(found.blockhash))
    return payment, found.last_valid_block_height


async def send(rpc: Rpc, payment: VersionedTransaction, *, skip_preflight: bool = False) -> str:
    return await rpc.send(
        bytes(payment), preflight_commitment=CONFIRMED, skip_preflight=skip_preflight
    )
