"""What a person does with the embedded chain: gets USDC that is worth nothing, and looks.

Through its JSON-RPC and nothing else, and only after the node has shown that it is no other chain.
"""

from __future__ import annotations

from typing import Any, Final

from solders.keypair import Keypair

from pilot_grpc.solana import addresses, answers
from pilot_grpc.solana.answers import Commitment
from pilot_grpc.solana.clusters import EMBEDDED, MAINNET_USDC_MINT, Genesis
from pilot_grpc.solana.endpoint import Clock, Endpoint, EndpointSettings, Patience, Question

USDC: Final = MAINNET_USDC_MINT


class Client:
    """Asks one node of the embedded chain. Belongs to one event loop."""

    def __init__(self, url: str) -> None:
        """Take where it answers. Raises ValueError for what is no URL."""
        settings = EndpointSettings(url=url)
        self._node = Endpoint(settings, Genesis(EMBEDDED), Patience(), Clock())

    async def close(self) -> None:
        await self._node.close()

    async def faucet(self, wallet: str, amount: int) -> str:
        """Ask for USDC, in minor units; return the signature. Raises RpcError."""
        params: list[Any] = [{"address": wallet, "amount": amount}]
        return await self._node.ask(Question("pilot_faucet", params, answers.read_signature))

    async def units(self, wallet: str) -> int:
        """Return what a wallet has for good, in minor units. Raises RpcError, also for nothing."""
        account = addresses.token_account(wallet, USDC)
        params = [account, {"commitment": Commitment.FINALIZED}]
        return await self._node.ask(Question("getTokenAccountBalance", params, _read_units))


def new_wallet() -> str:
    """Return the address of a wallet that has never been paid, and whose key nobody keeps."""
    return str(Keypair().pubkey())


def _read_units(value: Any) -> int:
    return answers.read_integer(int(value["value"]["amount"]), "an amount")
