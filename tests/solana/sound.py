"""What a sound node answers to each question of the port, and the questions."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

from solders.pubkey import Pubkey
from solders.signature import Signature

from pilot_grpc.solana.answers import TOKEN_PROGRAM, Commitment
from pilot_grpc.solana.clusters import DEVNET, DEVNET_USDC_MINT
from pilot_grpc.solana.rpc import Reads, Rpc

ADDRESS = str(Pubkey.from_bytes(bytes([1] * 32)))
OWNER = str(Pubkey.from_bytes(bytes([2] * 32)))
OTHER = str(Pubkey.from_bytes(bytes([3] * 32)))
SIGNATURE = str(Signature.from_bytes(bytes([4] * 64)))
OTHER_SIGNATURE = str(Signature.from_bytes(bytes([5] * 64)))
BLOCKHASH = str(Pubkey.from_bytes(bytes([6] * 32)))
# One signature, SIGNATURE; no node of these tests looks at the rest.
TRANSACTION = b"\x01" + bytes([4] * 64) + b"a message"


def token_data(
    amount: int = 5_000_000,
    *,
    state: int = 1,
    delegate: str | None = None,
    close: str | None = None,
    extra: bytes = b"",
) -> bytes:
    def key(address: str) -> bytes:
        return bytes(Pubkey.from_string(address))

    def option(address: str | None) -> bytes:
        return bytes(36) if address is None else b"\x01\x00\x00\x00" + key(address)

    return (
        key(DEVNET_USDC_MINT)
        + key(OWNER)
        + amount.to_bytes(8, "little")
        + option(delegate)
        + bytes([state])
        + bytes(12)
        + (7).to_bytes(8, "little")
        + option(close)
        + extra
    )


def account(data: bytes = b"", owner: str = TOKEN_PROGRAM, /, **changes: object) -> dict[str, Any]:
    return {
        "data": [base64.b64encode(data).decode(), "base64"],
        "executable": False,
        "lamports": 2_039_280,
        "owner": owner,
        "rentEpoch": 2**64 - 1,
        "space": len(data),
    } | changes


def status(commitment: str = "finalized", err: object = None, slot: int = 90) -> dict[str, Any]:
    return {
        "slot": slot,
        "confirmations": None if commitment == "finalized" else 3,
        "err": err,
        "status": {"Ok": None} if err is None else {"Err": err},
        "confirmationStatus": commitment,
    }


def balance(index: int, amount: str, mint: str = DEVNET_USDC_MINT) -> dict[str, Any]:
    return {
        "accountIndex": index,
        "mint": mint,
        "owner": OWNER,
        "programId": TOKEN_PROGRAM,
        "uiTokenAmount": {
            "amount": amount,
            "decimals": 6,
            "uiAmount": 5.5,
            "uiAmountString": "5.5",
        },
    }


def seen(value: object) -> dict[str, Any]:
    return {"context": {"slot": 100, "apiVersion": "3.0.0"}, "value": value}


def transaction() -> dict[str, Any]:
    return {
        "slot": 90,
        "blockTime": 1_795_000_000,
        "version": 0,
        "meta": {
            "err": None,
            "fee": 5_000,
            "preBalances": [1, 2, 3],
            "postBalances": [1, 2, 3],
            "preTokenBalances": [balance(1, "0")],
            "postTokenBalances": [balance(1, "5500000"), balance(2, "1")],
            "loadedAddresses": {"writable": [OTHER], "readonly": []},
            "logMessages": ["Program log: hello"],
        },
        "transaction": {
            "signatures": [SIGNATURE],
            "message": {"accountKeys": [OWNER, ADDRESS], "recentBlockhash": BLOCKHASH},
        },
    }


def row(signature: str = SIGNATURE, slot: int = 90) -> dict[str, Any]:
    return {
        "signature": signature,
        "slot": slot,
        "err": None,
        "memo": "[5] hello",
        "blockTime": 1_795_000_000,
        "confirmationStatus": "finalized",
    }


async def send(rpc: Reads) -> str:
    assert isinstance(rpc, Rpc)
    return await rpc.send(TRANSACTION, preflight_commitment=Commitment.CONFIRMED)


# What a sound node answers, and how the port asks for it.
ANSWERS: dict[str, tuple[Any, Callable[[Reads], Awaitable[Any]]]] = {
    "getGenesisHash": (DEVNET.genesis_hash, lambda rpc: rpc.genesis_hash()),
    "getSlot": (100, lambda rpc: rpc.slot()),
    "getBlockHeight": (80, lambda rpc: rpc.block_height()),
    "getFirstAvailableBlock": (0, lambda rpc: rpc.first_available_block()),
    "getLatestBlockhash": (
        seen({"blockhash": BLOCKHASH, "lastValidBlockHeight": 230}),
        lambda rpc: rpc.latest_blockhash(),
    ),
    "getRecentPrioritizationFees": (
        [{"slot": 99, "prioritizationFee": 0}, {"slot": 100, "prioritizationFee": 1_200}],
        lambda rpc: rpc.recent_prioritization_fees([ADDRESS]),
    ),
    "getMinimumBalanceForRentExemption": (2_039_280, lambda rpc: rpc.minimum_rent(165)),
    "getBalance": (seen(1_000_000_000), lambda rpc: rpc.balance(ADDRESS)),
    "getAccountInfo": (seen(account(token_data())), lambda rpc: rpc.token_account(ADDRESS)),
    "getMultipleAccounts": (
        seen([account(token_data()), None]),
        lambda rpc: rpc.multiple_accounts([ADDRESS, OTHER]),
    ),
    "getSignatureStatuses": (
        seen([status(), None]),
        lambda rpc: rpc.signature_statuses([SIGNATURE, OTHER_SIGNATURE]),
    ),
    "getSignaturesForAddress": (
        [row(), row(OTHER_SIGNATURE, 89)],
        lambda rpc: rpc.signatures_for_address(ADDRESS, limit=2),
    ),
    "getTransaction": (transaction(), lambda rpc: rpc.transaction(SIGNATURE)),
    "simulateTransaction": (
        seen({"err": None, "logs": ["Program log: hello"], "unitsConsumed": 5_300}),
        lambda rpc: rpc.simulate(TRANSACTION),
    ),
    "sendTransaction": (SIGNATURE, send),
}
