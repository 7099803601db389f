"""Secrets at rest that must be read again: sealed, and never stored otherwise.

Envelope encryption: a random data key for each secret seals it with AES-256-GCM, and a
wrapping key from outside the database seals the data key. Both seals are bound to the
version, to what the secret is for and to whom it belongs, so it opens nowhere else.

The wrapping key changes without touching what it protects: the data key is opened with
the key that it names and wrapped anew with the current one.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, NoReturn, SupportsIndex

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pilot_grpc.settings import WrappingKey

VERSION: Final = 1
_NONCE_BYTES: Final = 12
_KEY_BITS: Final = 256


class SealBroken(Exception):
    """A secret does not open; says why, and nothing of what was sealed."""

    def __init__(
        self, message: str = "the seal was changed, or made for another owner or with another key"
    ) -> None:
        """Take what is wrong."""
        super().__init__(message)


class WrappingKeyUnknown(SealBroken):
    """The wrapping key that a secret names is not among those that were configured."""

    def __init__(self, wrapping_key_id: str) -> None:
        """Take the id of the key that is missing."""
        super().__init__(f"the wrapping key {wrapping_key_id!r} is not configured")


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed secret, as it is stored."""

    version: int
    wrapping_key_id: str
    wrapped_data_key: bytes = field(repr=False)
    sealed_secret: bytes = field(repr=False)


class Secret(bytes):
    """Bytes that no log, no error and no traceback with its variables shows."""

    def __repr__(self) -> str:
        return "Secret()"

    def __str__(self) -> str:
        return "Secret()"

    def __reduce_ex__(self, _: SupportsIndex) -> NoReturn:
        """Refuse to be pickled and to be copied."""
        raise TypeError("a secret stays where it is")


class Sealer:
    """Seals secrets with the current wrapping key, and opens them with that and older ones."""

    def __init__(self, current: WrappingKey, older: Iterable[WrappingKey] = ()) -> None:
        """Take the wrapping keys; their ids are stored with what they wrap."""
        self.wrapping_key_id = current.id
        self._wrapping = AESGCM(current.secret)
        self._known = {key.id: AESGCM(key.secret) for key in older} | {current.id: self._wrapping}

    def seal(self, secret: bytes, purpose: str, *owner: str) -> Sealed:
        """Seal a secret for a purpose and an owner; it opens with the same ones only."""
        bound_to = _bound_to(purpose, VERSION, owner)
        data_key = Secret(AESGCM.generate_key(_KEY_BITS))
        return Sealed(
            version=VERSION,
            wrapping_key_id=self.wrapping_key_id,
            wrapped_data_key=_seal(self._wrapping, data_key, bound_to),
            sealed_secret=_seal(AESGCM(data_key), secret, bound_to),
        )

    def open(self, sealed: Sealed, purpose: str, *owner: str) -> Secret:
        """Return the secret. Raises SealBroken, WrappingKeyUnknown."""
        bound_to = _bound_to(purpose, sealed.version, owner)
        data_key = self._unwrap(sealed, bound_to)
        return _unseal(AESGCM(data_key), sealed.sealed_secret, bound_to)

    def rewrap(self, sealed: Sealed, purpose: str, *owner: str) -> Sealed:
        """Return the same sealed secret, its data key under the current wrapping key.

        It was opened once. Raises SealBroken, WrappingKeyUnknown.
        """
        bound_to = _bound_to(purpose, sealed.version, owner)
        data_key = self._unwrap(sealed, bound_to)
        rewrapped = replace(
            sealed,
            wrapping_key_id=self.wrapping_key_id,
            wrapped_data_key=_seal(self._wrapping, data_key, bound_to),
        )
        self.open(rewrapped, purpose, *owner)
        return rewrapped

    def _unwrap(self, sealed: Sealed, bound_to: bytes) -> Secret:
        wrapping = self._known.get(sealed.wrapping_key_id)
        if wrapping is None:
            raise WrappingKeyUnknown(sealed.wrapping_key_id)
        return _unseal(wrapping, sealed.wrapped_data_key, bound_to)


def _bound_to(purpose: str, version: int, owner: tuple[str, ...]) -> bytes:
    return " ".join(("pilot", purpose, str(version), *owner)).encode()


def _seal(cipher: AESGCM, secret: bytes, bound_to: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, secret, bound_to)


def _unseal(cipher: AESGCM, sealed: bytes, bound_to: bytes) -> Secret:
    """Open a seal. One that was cut short is as broken as one that was changed."""
    try:
        return Secret(cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound_to))
    except (InvalidTag, ValueError):
        raise SealBroken from None
