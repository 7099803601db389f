"""The keys of vaults: made here, stored only sealed, and opened for one signature at a time.

A seal is bound to its vault and its address. Opening one and signing takes a tenth of a
millisecond, so nothing is kept open. What Python has once read it cannot overwrite: a
secret lasts in memory until that is used again, and is never anywhere else.
"""

from dataclasses import dataclass, field
from typing import Final, NoReturn, SupportsIndex

from solders.keypair import Keypair

from pilot_grpc.sealing import SealBroken, Sealed, Sealer, Secret

PURPOSE: Final = "vault key"


class Wallet:
    """A keypair that shows nothing of itself: `str()` of a solders keypair is the secret."""

    __slots__ = ("_keypair",)

    def __init__(self, keypair: Keypair) -> None:
        """Take the keypair."""
        self._keypair = keypair

    @property
    def address(self) -> str:
        """The public key, in base58."""
        return str(self._keypair.pubkey())

    def secret(self) -> Secret:
        """Return all 64 bytes, to be sealed."""
        return Secret(bytes(self._keypair))

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message, 64 bytes."""
        return bytes(self._keypair.sign_message(message))

    def __repr__(self) -> str:
        return "Wallet()"

    def __reduce_ex__(self, _: SupportsIndex) -> NoReturn:
        """Refuse to be pickled and to be copied."""
        raise TypeError("a wallet stays where it is")


@dataclass(frozen=True, slots=True)
class SealedKey:
    """The sealed secret of a vault's wallet, as it is stored."""

    vault_id: str
    address: str
    version: int
    wrapping_key_id: str
    wrapped_data_key: bytes = field(repr=False)
    sealed_secret: bytes = field(repr=False)


class Custody:
    """Makes the keys of vaults, and signs with them."""

    def __init__(self, sealer: Sealer) -> None:
        """Take what seals with the installation's wrapping key."""
        self._sealer = sealer

    def create(self, vault_id: str) -> SealedKey:
        """Make a wallet for a vault and seal its secret.

        The seal is opened once before anybody is told the address: money that is sent
        to an address whose key cannot be opened is lost.
        """
        wallet = Wallet(Keypair())
        sealed = self._sealer.seal(wallet.secret(), PURPOSE, vault_id, wallet.address)
        key = SealedKey(
            vault_id=vault_id,
            address=wallet.address,
            version=sealed.version,
            wrapping_key_id=sealed.wrapping_key_id,
            wrapped_data_key=sealed.wrapped_data_key,
            sealed_secret=sealed.sealed_secret,
        )
        self._open(key)
        return key

    def sign(self, key: SealedKey, message: bytes) -> bytes:
        """Return the signature of a message by a vault's key. Raises SealBroken."""
        return self._open(key).sign(message)

    def _open(self, key: SealedKey) -> Wallet:
        sealed = Sealed(key.version, key.wrapping_key_id, key.wrapped_data_key, key.sealed_secret)
        try:
            wallet = Wallet(
                Keypair.from_bytes(self._sealer.open(sealed, PURPOSE, key.vault_id, key.address))
            )
        except ValueError:
            raise SealBroken("what was sealed is no key") from None
        if wallet.address != key.address:
            raise SealBroken("what was sealed is the key of another address")
        return wallet
