"""A client that sees JSON as it is, and payments as Pilot builds them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from solana.rpc.async_api import AsyncClient
from solana.rpc.jsonrpc import JsonRpcRequest
from solders.compute_budget import set_compute_unit_limit, set_compute_unit_price
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import Message, MessageV0
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction
from spl.memo.constants import MEMO_PROGRAM_ID
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import (
    create_idempotent_associated_token_account,
    get_associated_token_address,
    transfer_checked,
)
from spl.token.models import TransferCheckedParams

from pilot_grpc.solana.localnet import USDC, Localnet

SOL = 10**9


@dataclass(frozen=True)
class Rpc:
    """Real solana-py, with the JSON of every answer: `await rpc("getSlot")`."""

    client: AsyncClient

    async def __call__(self, method: str, *params: Any) -> Any:
        request = JsonRpcRequest(method=method, params=list(params))
        return await self.client.send_rpc_request(request, object)

    async def pilot(self, own: str, /, **params: Any) -> Any:
        """Call one of the localnet's own methods."""
        request = JsonRpcRequest(method=f"pilot_{own}", params=params)
        return await self.client.send_rpc_request(request, object)

    async def blockhash(self, commitment: str = "processed") -> Hash:
        answer = await self("getLatestBlockhash", {"commitment": commitment})
        return Hash.from_string(answer["value"]["blockhash"])

    async def send(self, transaction: VersionedTransaction, **config: Any) -> str:
        """Send with preflight at `processed`, unless the configuration says otherwise."""
        config = {"encoding": "base64", "preflightCommitment": "processed", **config}
        signature: str = await self("sendTransaction", encoded(transaction), config)
        return signature

    async def finalized(self, signature: str) -> None:
        """Wait, on a chain that has a clock."""
        async with asyncio.timeout(10):
            while True:
                status = await self.status(signature)
                if status is not None and status["confirmationStatus"] == "finalized":
                    return
                await asyncio.sleep(0.005)

    async def status(self, signature: str, *, history: bool = True) -> Any:
        answer = await self(
            "getSignatureStatuses", [signature], {"searchTransactionHistory": history}
        )
        return answer["value"][0]

    async def transaction(self, signature: str, **config: Any) -> Any:
        config = {"maxSupportedTransactionVersion": 0, "commitment": "confirmed", **config}
        return await self("getTransaction", signature, config)

    async def rows(self, address: Pubkey, **config: Any) -> list[Any]:
        rows: list[Any] = await self(
            "getSignaturesForAddress", str(address), {"commitment": "confirmed", **config}
        )
        return rows

    async def units(self, address: Pubkey, commitment: str = "processed") -> int:
        """What a token account holds."""
        answer = await self("getTokenAccountBalance", str(address), {"commitment": commitment})
        return int(answer["value"]["amount"])


@asynccontextmanager
async def connected(url: str, seconds: float = 5) -> AsyncIterator[Rpc]:
    """Give a client, which does not try again by itself."""
    async with AsyncClient(url, timeout=seconds, max_transport_retries=0) as client:
        yield Rpc(client)


def encoded(transaction: VersionedTransaction) -> str:
    return base64.b64encode(bytes(transaction)).decode()


def ata(wallet: Pubkey, mint: Pubkey = USDC, program: Pubkey = TOKEN_PROGRAM_ID) -> Pubkey:
    return get_associated_token_address(wallet, mint, program)


@dataclass(frozen=True)
class Payer:
    """A vault's key, and the key that pays its fees."""

    vault: Keypair = field(default_factory=Keypair)
    fees: Keypair = field(default_factory=Keypair)

    @property
    def account(self) -> Pubkey:
        """The vault's USDC."""
        return ata(self.vault.pubkey())

    def payment(
        self,
        recipient: Pubkey,
        amount: int,
        blockhash: Hash,
        *,
        memo: str = "a spend",
        mint: Pubkey = USDC,
        program: Pubkey = TOKEN_PROGRAM_ID,
    ) -> VersionedTransaction:
        """What Pilot sends: compute budget, idempotent ATA, TransferChecked, memo; v0."""
        fees, vault = self.fees.pubkey(), self.vault.pubkey()
        return self.signed(
            [
                set_compute_unit_limit(30_000),
                set_compute_unit_price(2_000),
                create_idempotent_associated_token_account(fees, recipient, mint, program),
                self.transfer(recipient, amount, mint, program),
                Instruction(
                    MEMO_PROGRAM_ID,
                    memo.encode(),
                    [AccountMeta(vault, is_signer=True, is_writable=False)],
                ),
            ],
            blockhash,
        )

    def transfer(
        self,
        recipient: Pubkey,
        amount: int,
        mint: Pubkey = USDC,
        program: Pubkey = TOKEN_PROGRAM_ID,
    ) -> Instruction:
        return transfer_checked(
            TransferCheckedParams(
                program_id=program,
                source=ata(self.vault.pubkey(), mint, program),
                mint=mint,
                dest=ata(recipient, mint, program),
                owner=self.vault.pubkey(),
                amount=amount,
                decimals=6,
            )
        )

    def signed(
        self,
        instructions: list[Instruction],
        blockhash: Hash,
        *,
        legacy: bool = False,
        others: tuple[Keypair, ...] = (),
    ) -> VersionedTransaction:
        fees = self.fees.pubkey()
        if legacy:
            message: Message | MessageV0 = Message.new_with_blockhash(instructions, fees, blockhash)
        else:
            message = MessageV0.try_compile(fees, instructions, [], blockhash)
        # Only keys that the message names as signers may sign it.
        signers = message.account_keys[: message.header.num_required_signatures]
        keys = {key.pubkey(): key for key in (self.fees, self.vault, *others)}
        return VersionedTransaction(message, [keys[each] for each in signers])


def funded(net: Localnet, units: int = 10_000_000) -> Payer:
    """A payer with USDC and SOL, all finalized."""
    payer = Payer()
    net.faucet(payer.vault.pubkey(), units)
    net.airdrop(payer.fees.pubkey(), SOL)
    net.finalize()
    return payer
