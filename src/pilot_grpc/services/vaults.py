"""Vaults: what they hold."""

from dataclasses import dataclass

from pilot_grpc import errors
from pilot_grpc.db import vaults as vaults_db
from pilot_grpc.db.connection import Database
from pilot_grpc.domain.accounts import Caller
from pilot_grpc.domain.ids import VaultId
from pilot_grpc.domain.vaults import Vault


@dataclass(frozen=True, slots=True)
class Vaults:
    """What owners see of their vaults."""

    database: Database

    async def get(self, caller: Caller, vault_id: VaultId) -> Vault:
        """Read a vault. Raises NotFound."""
        async with self.database.transaction() as conn:
            vault = await vaults_db.select_vault(conn, vault_id, caller.user_id)
        if vault is None:
            raise errors.NotFound(resource="vault", id=vault_id)
        return vault
