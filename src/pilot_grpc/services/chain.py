"""What an installation works with on Solana: its nodes, its USDC, and whose keys sign."""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from pilot_grpc import errors
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db.connection import Database
from pilot_grpc.domain.ids import VaultId
from pilot_grpc.solana import addresses
from pilot_grpc.solana.answers import Commitment
from pilot_grpc.solana.custody import Custody, SealedKey
from pilot_grpc.solana.faults import RpcError
from pilot_grpc.solana.rpc import Rpc
from pilot_grpc.solana.signing import Signer, VaultSigner

log = logging.getLogger(__name__)

# The key that pays the fees is sealed and re-wrapped as the keys of vaults are, beside them.
FEE_PAYER: Final = VaultId("fee-payer")

FEE_PAYER_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 2.0
_ACCOUNTS_REMEMBERED_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Chain:
    """A cluster as this installation sees it. What counts has the `commitment`."""

    rpc: Rpc
    cluster: str
    usdc_mint: str
    commitment: Commitment

    def account_of(self, address: str) -> str:
        """Return the USDC account of a wallet."""
        return _account_of(address, self.usdc_mint)


@lru_cache(_ACCOUNTS_REMEMBERED_MAX)
def _account_of(address: str, mint: str) -> str:
    return addresses.token_account(address, mint)


@dataclass(frozen=True, slots=True)
class Signers:
    """Who signs for vaults, and who for the fees."""

    database: Database
    custody: Custody
    fee_payer: Signer

    async def of(self, vault_id: VaultId) -> Signer:
        """Return the signer of a vault. Raises NotFound without its key."""
        async with self.database.transaction() as conn:
            key = await vaults_db.select_vault_key(conn, vault_id)
        if key is None:
            raise errors.NotFound(resource="vault", id=vault_id)
        return VaultSigner(self.custody, SealedKey(*key))

    async def of_fees(self) -> Signer:
        """Return the signer of the fees; a sealed key as it is now, for it may be re-wrapped.

        Raises NotFound without its key.
        """
        if isinstance(self.fee_payer, VaultSigner):
            return await self.of(FEE_PAYER)
        return self.fee_payer


async def sealed_fee_payer(database: Database, custody: Custody) -> Signer:
    """Return the signer of the key that pays the fees; the first process makes it."""
    async with database.transaction() as conn:
        key = await vaults_db.select_vault_key(conn, FEE_PAYER)
        if key is None:
            made = custody.create(FEE_PAYER)
            await vaults_db.insert_fee_payer_key(
                conn,
                FEE_PAYER,
                made.address,
                made.version,
                made.wrapping_key_id,
                made.wrapped_data_key,
                made.sealed_secret,
            )
            key = await vaults_db.select_vault_key(conn, FEE_PAYER)
    if key is None:
        raise RuntimeError("the fee payer's key has gone")
    return VaultSigner(custody, SealedKey(*key))


class FeePayer:
    """Watches over the SOL that fees are paid with."""

    def __init__(
        self,
        chain: Chain,
        address: str,
        low_lamports: int,
        refill: Callable[[str], Awaitable[object]] | None = None,
    ) -> None:
        """Warn below so many lamports; `refill` gets some where they are free."""
        self._chain = chain
        self._address = address
        self._low_lamports = low_lamports
        self._refill = refill

    async def check(self) -> None:
        """Look once, and say so when there is little left. A chain that is away is no news."""
        try:
            lamports = (await self._chain.rpc.balance(self._address, Commitment.CONFIRMED)).value
            if lamports >= self._low_lamports:
                return
            if self._refill is not None:
                await self._refill(self._address)
                return
        except RpcError as fault:
            log.warning("the fee payer's SOL is not known: %s", fault)
            return
        log.warning(
            "the fee payer %s has %d lamports, and should have %d: send it SOL, or payments wait",
            self._address,
            lamports,
            self._low_lamports,
        )


class Complaints:
    """Warns of one thing once a minute, however often it happens."""

    SECONDS: Final = 60.0

    def __init__(self, logger: logging.Logger) -> None:
        """Take whose log it is."""
        self._log = logger
        self._said: dict[str, float] = {}

    def __call__(self, text: str, *details: object) -> None:
        """Warn, unless it was said just now; `text` is which thing it is."""
        now = time.monotonic()
        if now - self._said.get(text, float("-inf")) >= self.SECONDS:
            self._said[text] = now
            self._log.warning(text, *details)


def must_be_wallet(recipient: str, field: str = "recipient") -> None:
    """Raise InvalidRequest unless an address can be somebody's wallet."""
    if not addresses.is_wallet(recipient):
        raise errors.InvalidRequest([(field, "must be the address of a Solana wallet")])


def unavailable(fault: RpcError) -> errors.ChainUnavailable:
    """Say to a caller that the chain did not answer."""
    return errors.ChainUnavailable(retry_after=fault.retry_after or RETRY_SECONDS)
