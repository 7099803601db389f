"""The signing port: sealed keys and the backends of solana-keychain behind it."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from solana_keychain import (
    MemorySigner,
    ModifyingSigner,
    SendingSigner,
    SignedTransaction,
    SignerError,
    SignerErrorCode,
    TransactionSigner,
    VaultSignerConfig,
    create_keychain_signer,
)
from solana_keychain.fordefi import (
    FordefiBlackBoxSigner,
    FordefiNativeAutoSigner,
    FordefiNativeManualSigner,
)
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import Message, MessageV0, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from pilot_grpc.sealing import Sealer
from pilot_grpc.settings import WrappingKey
from pilot_grpc.solana.custody import Custody
from pilot_grpc.solana.keychain import BackendRefused, KeychainSigner, signer_of_file
from pilot_grpc.solana.signing import Signer, SigningFailed, VaultSigner, verified
from tests import canary

KEY: Final = WrappingKey(id="2026-11", secret=bytes(range(32)))
PAYER: Final = Keypair()


def message(*signers: Pubkey, version: int | None = 0, data: bytes = b"memo") -> bytes:
    """The message of a transaction that all of these have to sign; the first pays the fee."""
    accounts = [AccountMeta(each, is_signer=True, is_writable=False) for each in signers]
    instruction = Instruction(Pubkey(bytes(31) + b"\1"), data, accounts)
    if version is None:
        return bytes(Message.new_with_blockhash([instruction], signers[0], Hash.default()))
    compiled = MessageV0.try_compile(signers[0], [instruction], [], Hash.default())
    return bytes(to_bytes_versioned(compiled))


def is_signed(signer: Signer, signed: bytes, signature: bytes) -> bool:
    """Whether a transaction with that signature would be taken, by other means than ours."""
    return Signature.from_bytes(signature).verify(Pubkey.from_string(signer.address), signed)


class Backend(TransactionSigner):
    """A backend that does what it is told to, and counts."""

    def __init__(self, does: Callable[[VersionedTransaction], Awaitable[Any]]) -> None:
        self._does = does
        self.calls = 0

    @property
    def pubkey(self) -> Pubkey:
        return canary.KEYPAIR.pubkey()

    async def sign_message(self, _: bytes) -> Signature:
        raise AssertionError("a transaction is no message")

    async def is_available(self) -> bool:
        return True

    async def sign_transaction(self, transaction: VersionedTransaction) -> SignedTransaction:
        self.calls += 1
        answer: SignedTransaction = await self._does(transaction)
        return answer


# --- sealed keys ----------------------------------------------------------------------


async def test_a_vaults_key_signs_and_is_opened_for_each_signature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sealer = Sealer(KEY)
    key = Custody(sealer).create("vault")
    signer: Signer = VaultSigner(Custody(sealer), key)
    opened = 0
    really_open = sealer.open

    def count(*arguments: Any) -> Any:
        nonlocal opened
        opened += 1
        return really_open(*arguments)

    monkeypatch.setattr(sealer, "open", count)
    signed = [message(Pubkey.from_string(key.address), data=bytes([n])) for n in range(3)]
    signatures = [await signer.sign(each) for each in signed]

    assert signer.address == key.address
    assert opened == 3
    assert [len(each) for each in signatures] == [64, 64, 64]
    assert all(map(is_signed, [signer] * 3, signed, signatures))
    assert not is_signed(signer, signed[0], signatures[1])


async def test_a_seal_that_does_not_open_signs_nothing_and_says_whose_it_is() -> None:
    key = Custody(Sealer(KEY)).create("vault")
    newer = Custody(Sealer(WrappingKey(id="2026-12", secret=bytes(32))))
    changed = replace(key, sealed_secret=bytes(len(key.sealed_secret)))

    with pytest.raises(SigningFailed) as unknown:
        await VaultSigner(newer, key).sign(b"message")
    with pytest.raises(SigningFailed) as broken:
        await VaultSigner(Custody(Sealer(KEY)), changed).sign(b"message")

    assert (
        str(unknown.value) == "the key of vault vault: the wrapping key '2026-11' is not configured"
    )
    assert str(broken.value).startswith("the key of vault vault: the seal was changed")


def test_only_a_signature_of_the_message_by_the_address_is_given_on() -> None:
    keypair, other = Keypair(), Keypair()
    address = str(keypair.pubkey())
    right = bytes(keypair.sign_message(b"message"))

    assert verified(address, b"message", right) == right
    for wrong in (
        bytes(other.sign_message(b"message")),
        bytes(keypair.sign_message(b"another")),
        bytes(64),
        right[:63],
        right + b"x",
        b"",
    ):
        with pytest.raises(SigningFailed, match=address):
            verified(address, b"message", wrong)


# --- solana-keychain ------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, 0])
@pytest.mark.parametrize("place", [0, 1])
async def test_the_memory_backend_signs_as_a_sealed_key_does(
    version: int | None, place: int
) -> None:
    """First or second of the signers, legacy or version 0: the same signature, to the byte."""
    signer: Signer = KeychainSigner(MemorySigner(canary.KEYPAIR))
    signers = [PAYER.pubkey(), canary.KEYPAIR.pubkey()]
    signed = message(*(signers if place else reversed(signers)), version=version)

    signature = await signer.sign(signed)

    assert signer.address == canary.ADDRESS
    assert is_signed(signer, signed, signature)
    assert signature == bytes(canary.KEYPAIR.sign_message(signed))


async def test_hashicorp_vault_signs_through_its_transit_engine() -> None:
    """The backend's own code, and an answer as Vault gives it."""
    asked: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.headers["x-vault-token"]))
        payload = base64.b64decode(json.loads(request.content)["input"])
        signature = base64.b64encode(bytes(canary.KEYPAIR.sign_message(payload))).decode()
        return httpx.Response(200, json={"data": {"signature": f"vault:v1:{signature}"}})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        config = VaultSignerConfig(
            "https://vault.example.com", "token", "fees", canary.ADDRESS, client
        )
        signer = KeychainSigner(await create_keychain_signer("vault", config))
        signed = message(canary.KEYPAIR.pubkey())
        signature = await signer.sign(signed)

    assert is_signed(signer, signed, signature)
    assert asked == [("/v1/transit/sign/fees", "token")]


class Both(MemorySigner, SendingSigner):
    """A backend that signs, and can send, too."""

    async def sign_and_send_transaction(self, _: VersionedTransaction) -> Signature:
        raise AssertionError


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (FordefiNativeAutoSigner, "FordefiNativeAutoSigner broadcasts"),
        (FordefiNativeManualSigner, "FordefiNativeManualSigner rewrites"),
        (Both, "Both broadcasts"),
        (VaultSignerConfig, "VaultSignerConfig is no TransactionSigner"),
    ],
)
def test_a_backend_that_does_more_than_sign_is_refused(kind: type[Any], why: str) -> None:
    """What it sends could not be stored before, so a crash would leave nobody knowing."""
    with pytest.raises(BackendRefused, match=why):
        KeychainSigner(object.__new__(kind))


def test_the_kinds_of_backends_are_told_apart_by_their_classes() -> None:
    """Fordefi has one of each kind."""
    assert issubclass(FordefiBlackBoxSigner, TransactionSigner)
    assert issubclass(FordefiNativeAutoSigner, SendingSigner)
    assert issubclass(FordefiNativeManualSigner, ModifyingSigner)


@pytest.mark.parametrize(
    ("signed", "why"),
    [
        (b"", "no transaction's message"),
        (b"message", "no transaction's message"),
        (message(canary.KEYPAIR.pubkey()) + b"x", "more than a transaction's message"),
        (message(PAYER.pubkey()), "needs no signature of"),
    ],
)
async def test_what_is_no_transaction_of_the_address_is_never_shown_to_a_backend(
    signed: bytes, why: str
) -> None:
    backend = Backend(MemorySigner(canary.KEYPAIR).sign_transaction)

    with pytest.raises(SigningFailed, match=why):
        await KeychainSigner(backend).sign(signed)

    assert backend.calls == 0


async def test_a_backend_that_signs_something_else_is_not_believed() -> None:
    """Neither another message, nor another key, nor what it made of our transaction."""

    async def another(_: VersionedTransaction) -> Any:
        other = MessageV0.try_compile(canary.KEYPAIR.pubkey(), [], [], Hash.default())
        return await honest.sign_transaction(VersionedTransaction(other, [canary.KEYPAIR]))

    async def by_another(transaction: VersionedTransaction) -> Any:
        signature = PAYER.sign_message(to_bytes_versioned(transaction.message))
        return SignedTransaction("", signature, is_complete=True, transaction=transaction)

    async def nothing(transaction: VersionedTransaction) -> Any:
        return SignedTransaction(
            "", Signature.default(), is_complete=False, transaction=transaction
        )

    honest = MemorySigner(canary.KEYPAIR)
    for lie in (another, by_another, nothing):
        with pytest.raises(SigningFailed, match="no signature of the message by"):
            await KeychainSigner(Backend(lie)).sign(message(canary.KEYPAIR.pubkey()))


async def test_what_a_backend_says_of_its_failure_is_not_told() -> None:
    """Its code or its kind is; the text may hold anything."""

    async def refuse(_: VersionedTransaction) -> Any:
        raise SignerError(SignerErrorCode.REMOTE_API_ERROR, "denied for token hunter2")

    async def fail(_: VersionedTransaction) -> Any:
        raise LookupError("hunter2")

    for does, told in ((refuse, "SIGNER_REMOTE_API_ERROR"), (fail, "LookupError")):
        with pytest.raises(SigningFailed) as refusal:
            await KeychainSigner(Backend(does)).sign(message(canary.KEYPAIR.pubkey()))
        assert told in str(refusal.value)
        assert "hunter2" not in str(refusal.value)


async def test_a_backend_that_hangs_is_left_alone_in_time() -> None:
    ended = asyncio.Event()

    async def hang(_: VersionedTransaction) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(SigningFailed, match="longer than"):
        await KeychainSigner(Backend(hang), 0.01).sign(message(canary.KEYPAIR.pubkey()))

    assert ended.is_set()


async def test_no_signer_shows_the_key_that_it_signs_with() -> None:
    """Nor does it in an error, whichever of its steps fails."""
    told = canary.traces_of_keypair(canary.KEYPAIR)
    signer = KeychainSigner(MemorySigner(canary.KEYPAIR))
    signed = message(canary.KEYPAIR.pubkey())

    def work() -> None:
        with pytest.raises(StopIteration):
            signer.sign(signed).send(None)

    errors = list(canary.sabotaged(work, "/keychain.py", "/signing.py"))

    assert repr(signer) == f"KeychainSigner(MemorySigner, {canary.ADDRESS})"
    assert len(errors) > 10
    for error in errors:
        assert canary.found(canary.all_of(error), told) == set()


async def test_a_file_configures_a_backend(tmp_path: Path) -> None:
    """By the names of solana-keychain: a backend, and the fields of its config."""
    file = tmp_path / "fee-payer.json"
    config = {"keypair": [*bytes(canary.KEYPAIR)]}
    file.write_text(json.dumps({"backend": "memory", "config": config}))

    signer = await signer_of_file(file)

    assert signer.address == canary.ADDRESS


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"backend": "memory"}',
        '{"backend": "abacus", "config": {}}',
        '{"backend": "memory", "config": {"keypair": "CANARY"}}',
        '{"backend": "memory", "config": {"keypair": [1, 2, 3]}}',
        '{"backend": "vault", "config": {"token": "CANARY"}}',
    ],
)
async def test_a_file_that_configures_no_backend_is_refused_and_not_told(
    tmp_path: Path, content: str
) -> None:
    file = tmp_path / "fee-payer.json"
    file.write_text(content.replace("CANARY", str(canary.KEYPAIR)))

    with pytest.raises(BackendRefused) as caught:
        await signer_of_file(file)

    told = canary.traces_of_keypair(canary.KEYPAIR)
    assert not canary.found(canary.all_of(caught.value), told)


async def test_no_error_tells_a_files_content_whichever_step_fails(tmp_path: Path) -> None:
    """With the variables of every frame: the keypair is in the file, and a token may be."""
    told = canary.traces_of_keypair(canary.KEYPAIR)
    file = tmp_path / "fee-payer.json"
    config = {"keypair": [*bytes(canary.KEYPAIR)]}
    file.write_text(json.dumps({"backend": "memory", "config": config}))

    def work() -> None:
        with pytest.raises(StopIteration):
            signer_of_file(file).send(None)

    errors = list(canary.sabotaged(work, "/keychain.py"))

    assert len(errors) > 20
    for error in errors:
        assert canary.found(canary.all_of(error), told) == set()
