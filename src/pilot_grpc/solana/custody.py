"""The keys of vaults: made here, and stored only sealed.

Envelope encryption: a random data key for each vault seals its secret with AES-256-GCM,
and a wrapping key from outside the database seals the data key. Both seals are bound to
the version, the vault and the address, so a sealed key opens nowhere else.
"""

import os
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from solders.keypair import Keypair

VERSION: Final = 1
_NONCE_BYTES: Final = 12
_KEY_BITS: Final = 256


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
    """Makes and seals the keys of vaults."""

    def __init__(self, wrapping_key_id: str, wrapping_key: bytes) -> None:
        """Take the wrapping key (32 bytes) and the id that is stored with what it wraps."""
        self._wrapping_key_id = wrapping_key_id
        self._wrapping = AESGCM(wrapping_key)

    def create(self, vault_id: str) -> SealedKey:
        """Make a wallet for a vault and seal its secret.

        The seal is opened once before anybody is told the address: money that is sent
        to an address whose key cannot be opened is lost.
        """
        keypair = Keypair()
        address = str(keypair.pubkey())
        data_key = AESGCM.generate_key(_KEY_BITS)
        bound_to = _bound_to(VERSION, vault_id, address)
        sealed = SealedKey(
            vault_id=vault_id,
            address=address,
            version=VERSION,
            wrapping_key_id=self._wrapping_key_id,
            wrapped_data_key=_seal(self._wrapping, data_key, bound_to),
            sealed_secret=_seal(AESGCM(data_key), bytes(keypair), bound_to),
        )
        if self._open(sealed) != keypair:
            raise RuntimeError("a vault's key does not open after sealing")
        return sealed

    def _open(self, sealed: SealedKey) -> Keypair:
        bound_to = _bound_to(sealed.version, sealed.vault_id, sealed.address)
        data_key = _unseal(self._wrapping, sealed.wrapped_data_key, bound_to)
        return Keypair.from_bytes(_unseal(AESGCM(data_key), sealed.sealed_secret, bound_to))


def _bound_to(version: int, vault_id: str, address: str) -> bytes:
    return f"pilot vault key {version} {vault_id} {address}".encode()


def _seal(cipher: AESGCM, secret: bytes, bound_to: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, secret, bound_to)


def _unseal(cipher: AESGCM, sealed: bytes, bound_to: bytes) -> bytes:
    return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound_to)
