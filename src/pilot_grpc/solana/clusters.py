"""The clusters that Pilot can work on, told apart by the hash of their first block.

A node that speaks for another cluster would find none of Pilot's money and none of its payments,
so the genesis hash decides whether an endpoint is used at all.
"""

from dataclasses import dataclass
from typing import Final

MAINNET_USDC_MINT: Final = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"
DEVNET_USDC_MINT: Final = "4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU"
# What the embedded chain (LiteSVM) says: the SHA-256 of "pilot embedded chain". No other cluster
# can have it.
EMBEDDED_GENESIS_HASH: Final = "2FxYLnCd2BSaHRfdPnJ2MwMU5WGFRZWRwQwzSJWZcMt7"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster, its first block's hash, and the mint of its USDC, each where it is fixed."""

    name: str
    # None stands for a validator of one's own, which makes a new first block whenever it is reset.
    genesis_hash: str | None
    usdc_mint: str | None


MAINNET_BETA: Final = Cluster(
    "mainnet-beta", "5eykt4UsFv8P8NJdTREpY1vzqKqZKvdpKuc147dw2N9d", MAINNET_USDC_MINT
)
DEVNET: Final = Cluster("devnet", "EtWTRABZaYq6iMfeYKouRu166VU2xqa1wcaWoxPkrZBG", DEVNET_USDC_MINT)
TESTNET: Final = Cluster("testnet", "4uhcVJyU9pJkvQyS88uRDiswHXSCkY3zQawwpjk2NsNY", None)
# The embedded chain has its USDC where mainnet has it, so that addresses look the same.
EMBEDDED: Final = Cluster("embedded", EMBEDDED_GENESIS_HASH, MAINNET_USDC_MINT)
LOCALNET: Final = Cluster("localnet", None, None)

_KNOWN: Final = frozenset(
    cluster.genesis_hash
    for cluster in (MAINNET_BETA, DEVNET, TESTNET, EMBEDDED)
    if cluster.genesis_hash
)


class Genesis:
    """Says which first block is the right one.

    On a localnet that is the first one seen, if it is not that of a known cluster: a validator of
    one's own must not turn out to be mainnet. From then on every endpoint must have the same.
    """

    def __init__(self, cluster: Cluster) -> None:
        """Take the configured cluster."""
        self.cluster = cluster
        self._expected = cluster.genesis_hash

    def accepts(self, genesis_hash: str) -> bool:
        """Say whether an endpoint with this first block belongs to the cluster."""
        if self._expected is None and genesis_hash not in _KNOWN:
            self._expected = genesis_hash
        return genesis_hash == self._expected
