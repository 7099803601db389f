"""The one port through which everything that Pilot sends to Solana is signed.

Whoever sends stores the signed bytes before it sends them, so a signer only ever signs:
it neither changes the message nor broadcasts it. Two kinds are behind the port: the sealed
keys of vaults (`VaultSigner`), and keys that never leave a KMS, a HashiCorp Vault or a
custodian (`keychain.KeychainSigner`).
"""

from dataclasses import dataclass
from typing import Protocol

from solders.pubkey import Pubkey
from solders.signature import Signature

from pilot_grpc.sealing import SealBroken
from pilot_grpc.solana.custody import Custody, SealedKey


class SigningFailed(Exception):
    """There is no signature, and nothing was sent. Says why, and nothing of a secret."""


class Signer(Protocol):
    """Signs transactions for one address."""

    @property
    def address(self) -> str:
        """Whose signatures these are: a public key, in base58."""

    async def sign(self, message: bytes) -> bytes:
        """Return the signature of a transaction's message: 64 bytes, and verified.

        `message` is what signatures cover, the prefix of its version included.
        Raises SigningFailed.
        """


@dataclass(frozen=True, slots=True)
class VaultSigner:
    """Signs with the sealed key of a vault, which is opened for each signature."""

    custody: Custody
    key: SealedKey

    @property
    def address(self) -> str:
        """The address of the vault."""
        return self.key.address

    async def sign(self, message: bytes) -> bytes:
        """Sign. Raises SigningFailed."""
        try:
            signature = self.custody.sign(self.key, message)
        except SealBroken as error:
            raise SigningFailed(f"the key of vault {self.key.vault_id}: {error}") from None
        return verified(self.address, message, signature)


def verified(address: str, message: bytes, signature: bytes) -> bytes:
    """Return a signature that is the address's, of this very message. Raises SigningFailed."""
    try:
        belongs = Signature.from_bytes(signature).verify(Pubkey.from_string(address), message)
    except ValueError:
        belongs = False
    if not belongs:
        raise SigningFailed(f"what came back is no signature of the message by {address}")
    return signature
