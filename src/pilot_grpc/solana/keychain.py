"""Keys that never leave where they are: the backends of solana-keychain behind our port.

AWS and GCP KMS, HashiCorp Vault and several custodians. It comes with the extra `keychain`
(`pip install 'pilot-grpc[keychain]'`); a backend with an SDK of its own needs the extra of
solana-keychain, too. Nothing else here imports it.

Which keys these can be: no backend makes keys, and a vault comes with its project, so the
keys of vaults are made and sealed by Pilot (custody.py). A key of the installation, the one
that pays the fees, can be a backend's: a setting names the file that configures it,
`bootstrap` builds the `KeychainSigner`, and whoever sends is given a `Signer`, whichever it is.
"""

import asyncio
import importlib
import json
from pathlib import Path
from typing import Any, Final

from solana_keychain import (
    SUPPORTED_BACKENDS,
    ModifyingSigner,
    SendingSigner,
    SignerError,
    TransactionSigner,
    create_keychain_signer,
)
from solders.keypair import Keypair
from solders.message import from_bytes_versioned, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from pilot_grpc.solana.signing import SigningFailed, verified

SIGN_SECONDS_MAX: Final = 15.0


class BackendRefused(Exception):
    """A backend that does more than sign."""


class KeychainSigner:
    """Signs with a backend of solana-keychain that signs what it is given, and no more."""

    def __init__(self, backend: object, sign_seconds_max: float = SIGN_SECONDS_MAX) -> None:
        """Take a backend that is ready to be used. Raises BackendRefused.

        One that broadcasts by itself, or rewrites what it signs, makes it impossible to
        store what is sent before it is sent: after a crash nobody could tell whether a
        payment is on its way, and might pay it twice.
        """
        name = type(backend).__name__
        if isinstance(backend, SendingSigner):
            raise BackendRefused(f"{name} broadcasts what it signs before Pilot could store it")
        if isinstance(backend, ModifyingSigner):
            raise BackendRefused(f"{name} rewrites what it is to sign")
        if not isinstance(backend, TransactionSigner):
            raise BackendRefused(f"{name} is no TransactionSigner of solana-keychain")
        self._backend = backend
        self._pubkey: Pubkey = backend.pubkey
        self._sign_seconds_max = sign_seconds_max

    def __repr__(self) -> str:
        return f"KeychainSigner({type(self._backend).__name__}, {self.address})"

    @property
    def address(self) -> str:
        """The address that the backend had in the beginning."""
        return str(self._pubkey)

    async def sign(self, message: bytes) -> bytes:
        """Sign. Raises SigningFailed.

        As a transaction, because what a backend calls a message is something else: CDP's
        is text, Dfns says so to its policies, and Utila signs none.
        """
        transaction = self._unsigned(message)
        try:
            async with asyncio.timeout(self._sign_seconds_max):
                signed = await self._backend.sign_transaction(transaction)
        except TimeoutError:
            raise SigningFailed(f"{self!r} took longer than {self._sign_seconds_max:g} s") from None
        except SignerError as error:
            raise SigningFailed(f"{self!r} did not sign: {error.code.value}") from None
        except Exception as error:  # noqa: BLE001 - fourteen backends, each with an SDK of its own
            # Its text is not shown: nobody knows what is in it.
            raise SigningFailed(f"{self!r} broke: {type(error).__name__}") from None
        return verified(self.address, message, bytes(signed.signature))

    def _unsigned(self, message: bytes) -> VersionedTransaction:
        """Return the transaction of a message, with room for its signatures."""
        try:
            parsed = from_bytes_versioned(message)
        except ValueError:
            raise SigningFailed("what is to be signed is no transaction's message") from None
        if to_bytes_versioned(parsed) != message:
            raise SigningFailed("what is to be signed is more than a transaction's message")
        count = parsed.header.num_required_signatures
        if self._pubkey not in parsed.account_keys[:count]:
            raise SigningFailed(f"the transaction needs no signature of {self.address}")
        return VersionedTransaction.populate(parsed, [Signature.default()] * count)


async def signer_of_file(path: Path) -> KeychainSigner:
    """Build the signer that a file configures: {"backend": "vault", "config": {...}}.

    The backend is one of solana-keychain's names, and the fields are those of its config.
    Raises BackendRefused, whose text has nothing of the file's content.
    """
    made = await _made(path)
    if isinstance(made, _Reason):
        # Not where the error is caught: what went before it has the content in its variables.
        raise BackendRefused(made)
    return KeychainSigner(made)


class _Reason(str):
    """Why there is no backend."""

    __slots__ = ()


async def _made(path: Path) -> object:
    """Make the backend that a file configures. Whatever goes wrong, only its kind is told."""
    try:
        backend, fields = _wanted(path)
        if backend not in SUPPORTED_BACKENDS:
            return _Reason(f"a backend is one of {', '.join(SUPPORTED_BACKENDS)}")
        return await create_keychain_signer(backend, _config(backend, fields))
    except SignerError as error:
        return _Reason(f"the backend cannot be used: {error.code.value}")
    except ImportError as error:
        return _Reason(f"the backend needs the package {error.name}")
    except Exception as error:  # noqa: BLE001 - fourteen backends, each with an SDK of its own
        return _Reason(f"the file does not configure a backend ({type(error).__name__})")


def _wanted(path: Path) -> tuple[str, dict[str, Any]]:
    wanted = json.loads(path.read_text())
    return wanted["backend"], wanted["config"]


def _config(backend: str, fields: dict[str, Any]) -> Any:
    """Make the config of a backend, whose class is named after it.

    The memory backend's keypair is written as `solana-keygen` writes it: 64 numbers.
    """
    if backend == "memory":
        fields = {"keypair": Keypair.from_bytes(bytes(fields["keypair"]))}
    module = importlib.import_module(f"solana_keychain.{backend.replace('-', '_')}")
    (name,) = (name for name in dir(module) if name.endswith("SignerConfig"))
    return getattr(module, name)(**fields)
