"""Vaults: a project's money."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from pilot_grpc.domain.ids import ProjectId, VaultId

# Far above all USDC there is (10^17 minor units would be $100 billion), and far enough
# below 2^63 that no sum of two figures can overflow.
BALANCE_MAX: Final = 10**18

# As many as a drift names of the outflows behind it; its amount counts all of them.
OUTFLOWS_NAMED_MAX: Final = 100


class Outflow(NamedTuple):
    """A transaction that took USDC from a vault and is not Pilot's. The amount is positive."""

    tx_hash: str
    amount: int
    slot: int


class Drift(NamedTuple):
    """What the chain has more than the ledger expects, in minor units; less is negative.

    Both were compared as of a finalized slot.
    """

    id: str
    amount: int
    slot: int
    found_amount: int
    expected_amount: int
    outflows: tuple[Outflow, ...]
    created_at: datetime


def encode_drift(drift: Drift) -> str:
    """Write a drift as JSON text, for its columns."""
    return json.dumps({**drift._asdict(), "created_at": drift.created_at.isoformat()})


def decode_drift(text: str) -> Drift:
    """Read a drift from its column."""
    fields = json.loads(text)
    fields["created_at"] = datetime.fromisoformat(fields["created_at"])
    fields["outflows"] = tuple(Outflow(*outflow) for outflow in fields["outflows"])
    return Drift(**fields)


@dataclass(slots=True)
class Vault:
    """A vault's figures; one that is locked for a batch changes as the batch decides.

    `revision` and `digest` are the number and the check value of its last change, and
    `last_change_at` is the time that no later decision may precede. A `drift` stops its
    transfers.
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
    drift: Drift | None = None

    def time(self, clock: datetime) -> datetime:
        """Return the time of a decision now: a vault's time never runs backwards."""
        return max(clock, self.last_change_at)

    @property
    def withdrawable(self) -> int:
        """The most that a transfer or a withdrawal may take: both figures bound it."""
        return min(self.balance, self.chain_balance)

    @property
    def settleable(self) -> int:
        """The USDC behind metered use that is still on chain."""
        return max(0, self.chain_balance - self.balance - self.held)
