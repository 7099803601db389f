"""Vaults: what they hold, where they are paid, and what their owners take out."""

from dataclasses import dataclass
from typing import NamedTuple

from pilot_grpc import errors
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db.connection import Database
from pilot_grpc.domain.accounts import Caller
from pilot_grpc.domain.ids import VaultId
from pilot_grpc.domain.ledger import AcknowledgeDrift, Event, Settle, Withdraw
from pilot_grpc.domain.vaults import Vault
from pilot_grpc.services.chain import Chain, must_be_wallet, unavailable
from pilot_grpc.services.lanes import Lanes
from pilot_grpc.services.ledger import Asked
from pilot_grpc.services.reconciliation import Reconciler, Reconciliation
from pilot_grpc.services.turns import Turns
from pilot_grpc.solana import addresses
from pilot_grpc.solana.faults import RpcError


class DepositAddress(NamedTuple):
    """Where to send USDC to fund a vault."""

    address: str
    token_account: str
    usdc_mint: str
    cluster: str
    payment_link: str


@dataclass(frozen=True, slots=True)
class Vaults:
    """What owners do with their vaults. Without a chain they only look at their figures."""

    database: Database
    lanes: Lanes
    turns: Turns
    chain: Chain | None = None
    reconciler: Reconciler | None = None

    async def get(self, caller: Caller, vault_id: VaultId) -> Vault:
        """Read a vault. Raises NotFound."""
        async with self.database.transaction() as conn:
            vault = await vaults_db.select_vault(conn, vault_id, caller.user_id)
        if vault is None:
            raise errors.NotFound(resource="vault", id=vault_id)
        return vault

    async def deposit_address(
        self, caller: Caller, vault_id: VaultId, amount: int | None
    ) -> DepositAddress:
        """Tell where a vault is funded, and make a link that may ask for an amount.

        Raises NotFound, RecipientUnsupported.
        """
        vault = await self.get(caller, vault_id)
        if self.chain is None:
            raise errors.RecipientUnsupported
        mint = self.chain.usdc_mint
        return DepositAddress(
            address=vault.address,
            token_account=self.chain.account_of(vault.address),
            usdc_mint=mint,
            cluster=self.chain.cluster,
            payment_link=addresses.payment_link(vault.address, mint, amount),
        )

    async def withdraw(
        self,
        caller: Caller,
        asked: Asked,
        vault_id: VaultId,
        amount: int,
        recipient: str,
        metadata: str | None,
    ) -> Event:
        """Pay the owner out of both figures.

        Raises NotFound, RecipientUnsupported, InvalidRequest, RequestIdReused, VaultStopped,
        ExceedsVault.
        """
        await self.get(caller, vault_id)
        must_be_wallet(recipient)
        request = asked.within(vault_id)
        return await self.lanes.decide(Withdraw(request, vault_id, amount, recipient, metadata))

    async def settle(
        self,
        caller: Caller,
        asked: Asked,
        vault_id: VaultId,
        amount: int,
        recipient: str,
        metadata: str | None,
    ) -> Event:
        """Pay the owner what was spent on metered use. Raises as `withdraw`."""
        await self.get(caller, vault_id)
        must_be_wallet(recipient)
        request = asked.within(vault_id)
        return await self.lanes.decide(Settle(request, vault_id, amount, recipient, metadata))

    async def reconcile(self, caller: Caller, vault_id: VaultId) -> Reconciliation:
        """Compare a vault with the chain, now.

        Raises NotFound, RecipientUnsupported, ChainUnavailable.
        """
        await self.get(caller, vault_id)
        if self.reconciler is None:
            raise errors.RecipientUnsupported
        try:
            async with self.turns.take(caller.user_id):
                return await self.reconciler.reconcile(vault_id)
        except RpcError as fault:
            raise unavailable(fault) from fault

    async def acknowledge_drift(
        self, caller: Caller, asked: Asked, vault_id: VaultId, drift_id: str, amount: int
    ) -> Event:
        """Take the open drift into the ledger, and let transfers go on.

        Raises NotFound, RequestIdReused, DriftNotOpen, DriftChanged, TransfersPending,
        BalanceTooLarge.
        """
        await self.get(caller, vault_id)
        request = asked.within(vault_id)
        return await self.lanes.decide(AcknowledgeDrift(request, vault_id, drift_id, amount))
