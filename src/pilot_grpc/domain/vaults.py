"""Vaults: a project's money."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pilot_grpc.domain.ids import ProjectId, VaultId

# Far above all USDC there is (10^17 minor units would be $100 billion), and far enough
# below 2^63 that no sum of two figures can overflow.
BALANCE_MAX: Final = 10**18


@dataclass(slots=True)
class Vault:
    """A vault's figures; one that is locked for a batch changes as the batch decides.

    `revision` and `digest` are the number and the check value of its last change, and
    `last_change_at` is the time that no later decision may precede.
    """

    id: VaultId
    project_id: ProjectId
    address: str
    balance: int
    chain_balance: int
    held: int
    revision: int
    digest: bytes
    last_change_at: datetime
    created_at: datetime

    def time(self, clock: datetime) -> datetime:
        """Return the time of a decision now: a vault's time never runs backwards."""
        return max(clock, self.last_change_at)
