"""Pilot's port to embedded chains, a signer of the simplest kind, and what others do on chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import freeze_account
from spl.token.models import FreezeAccountParams

from pilot_grpc.solana.clusters import EMBEDDED
from pilot_grpc.solana.endpoint import EndpointSettings, Patience
from pilot_grpc.solana.localnet import FAUCET, USDC, Localnet
from pilot_grpc.solana.rpc import Rpc
from pilot_grpc.solana.signing import SigningFailed


@asynccontextmanager
async def opened(*urls: str) -> AsyncIterator[Rpc]:
    """Open the port to these nodes of the embedded chain, or of several that pose as one."""
    places = [EndpointSettings(url=url, requests_per_second=10_000, burst=10_000) for url in urls]
    rpc = Rpc(EMBEDDED, places, Patience(backoff_seconds=0.01, rest_seconds=0.1))
    await rpc.start()
    try:
        yield rpc
    finally:
        await rpc.close()


@dataclass
class KeySigner:
    """Signs with a key that a test has, counts, and fails when it is told to."""

    keypair: Keypair = field(repr=False)
    signatures: int = 0
    broken: bool = False

    @property
    def address(self) -> str:
        return str(self.keypair.pubkey())

    async def sign(self, message: bytes) -> bytes:
        if self.broken:
            raise SigningFailed("the key is away")
        self.signatures += 1
        return bytes(self.keypair.sign_message(message))


def done(net: Localnet, instructions: list[Instruction], *signers: Keypair) -> str:
    """Let others than Pilot do something, for which the faucet pays; it becomes final."""
    signature = net.chain._submit_own(instructions, *signers)
    net.finalize()
    landed = net.chain.landed(signature)
    assert landed is not None
    assert landed.err is None, landed.err
    return signature


def frozen(net: Localnet, account: Pubkey) -> None:
    """Freeze a token account, as the issuer of USDC can."""
    authority = FAUCET.pubkey()
    params = FreezeAccountParams(
        program_id=TOKEN_PROGRAM_ID, account=account, mint=USDC, authority=authority
    )
    done(net, [freeze_account(params)])
