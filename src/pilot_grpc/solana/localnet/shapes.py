"""Accounts and transactions as JSON, the way a validator's RPC writes them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from solders.account import Account
from solders.instruction import CompiledInstruction
from solders.message import Message, MessageV0, MessageV1
from solders.pubkey import Pubkey
from solders.system_program import ID as SYSTEM_PROGRAM
from solders.transaction import VersionedTransaction
from spl.token.constants import (
    ASSOCIATED_TOKEN_PROGRAM_ID,
    TOKEN_2022_PROGRAM_ID,
    TOKEN_PROGRAM_ID,
)

from pilot_grpc.solana.localnet import tokens
from pilot_grpc.solana.localnet.runtime import Outcome
from pilot_grpc.solana.localnet.store import Landed

BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
RENT_EXEMPT_EPOCH: Final = 2**64 - 1
PROGRAM_NAMES: Final = {TOKEN_PROGRAM_ID: "spl-token", TOKEN_2022_PROGRAM_ID: "spl-token-2022"}

TRANSFER: Final = 3
MINT_TO_CHECKED: Final = 14
TRANSFER_CHECKED: Final = 12
ATA_INSTRUCTIONS: Final = {b"": "create", b"\x00": "create", b"\x01": "createIdempotent"}
SYSTEM_TRANSFER: Final = (2).to_bytes(4, "little")

AnyMessage = Message | MessageV0 | MessageV1


def base58(data: bytes) -> str:
    number = int.from_bytes(data)
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(BASE58[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return BASE58[0] * zeros + "".join(reversed(digits))


def from_base58(text: str) -> bytes:
    """Raise ValueError for what is no base58."""
    number = 0
    for character in text:
        number = number * 58 + BASE58.index(character)
    zeros = len(text) - len(text.lstrip(BASE58[0]))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8)


def encoded(data: bytes, encoding: str) -> list[str]:
    """Bytes in base58 or base64, with the name of it."""
    text = base58(data) if encoding == "base58" else base64.b64encode(data).decode()
    return [text, encoding]


def amount(units: int, decimals: int) -> dict[str, Any]:
    """An amount of tokens. Only `amount` is exact to a program; the rest is for people."""
    whole, rest = divmod(units, 10**decimals)
    text = f"{whole}.{rest:0{decimals}}".rstrip("0").rstrip(".") if decimals else str(whole)
    return {
        "amount": str(units),
        "decimals": decimals,
        "uiAmount": units / 10**decimals,
        "uiAmountString": text,
    }


def account(
    found: Account, encoding: str, decimals: Callable[[Pubkey], int], part: slice | None = None
) -> dict[str, Any]:
    """An account; jsonParsed falls back to base64 for what is neither tokens nor a mint."""
    data = bytes(found.data)
    parsed = _parsed_account(found, decimals) if encoding == "jsonParsed" else None
    return {
        "data": parsed
        or encoded(data[part] if part else data, "base58" if encoding == "base58" else "base64"),
        "executable": found.executable,
        "lamports": found.lamports,
        "owner": str(found.owner),
        "rentEpoch": RENT_EXEMPT_EPOCH,
        "space": len(data),
    }


def transaction_meta(
    transaction: VersionedTransaction,
    before: Mapping[Pubkey, Account | None],
    outcome: Outcome,
    decimals: Callable[[Pubkey], int],
) -> dict[str, Any]:
    """What a landed transaction did: `meta` of getTransaction."""
    keys = transaction.message.account_keys
    after = outcome.accounts
    meta = {
        "computeUnitsConsumed": outcome.meta.compute_units_consumed(),
        "err": outcome.err,
        "fee": outcome.meta.fee(),
        "innerInstructions": inner_instructions(outcome),
        "loadedAddresses": {"readonly": [], "writable": []},
        "logMessages": outcome.meta.logs(),
        "postBalances": [_lamports(after[key]) for key in keys],
        "postTokenBalances": list(_token_balances(keys, after, decimals)),
        "preBalances": [_lamports(before[key]) for key in keys],
        "preTokenBalances": list(_token_balances(keys, before, decimals)),
        "rewards": [],
        "status": {"Ok": None} if outcome.err is None else {"Err": outcome.err},
    }
    returned = return_data(outcome)
    return meta if returned is None else {**meta, "returnData": returned}


def return_data(outcome: Outcome) -> dict[str, Any] | None:
    returned = outcome.meta.return_data()
    if not returned.data:
        return None
    return {"data": encoded(bytes(returned.data), "base64"), "programId": str(returned.program_id)}


def inner_instructions(outcome: Outcome) -> list[dict[str, Any]]:
    """What programs called, by the instruction that made them."""
    return [
        {
            "index": index,
            "instructions": [
                _compiled(each.instruction(), each.stack_height()) for each in instructions
            ],
        }
        for index, instructions in enumerate(outcome.meta.inner_instructions())
        if instructions
    ]


def memo(transaction: VersionedTransaction) -> str | None:
    """The memos of the instructions at the top, each behind its length, as rows show them."""
    keys = transaction.message.account_keys
    memos = [
        f"[{len(each.data)}] {each.data.decode(errors='replace')}"
        for each in transaction.message.instructions
        if keys[each.program_id_index] == tokens.MEMO_PROGRAM
    ]
    return "; ".join(memos) or None


def transaction(landed: Landed, encoding: str) -> dict[str, Any]:
    """A landed transaction, as getTransaction answers it, but for its version."""
    found = VersionedTransaction.from_bytes(landed.wire)
    meta = json.loads(landed.meta)
    body: Any
    if encoding in {"base58", "base64"}:
        body = encoded(landed.wire, encoding)
    else:
        parse = encoding == "jsonParsed"
        body = {
            "message": _parsed_message(found.message) if parse else _message(found.message),
            "signatures": [str(each) for each in found.signatures],
        }
        if parse:
            _parse_inner(meta, found.message.account_keys)
    return {
        "blockTime": landed.block_time,
        "meta": meta,
        "slot": landed.slot,
        "transaction": body,
    }


def _lamports(found: Account | None) -> int:
    return 0 if found is None else found.lamports


def _token_balances(
    keys: Sequence[Pubkey],
    accounts: Mapping[Pubkey, Account | None],
    decimals: Callable[[Pubkey], int],
) -> Iterator[dict[str, Any]]:
    for index, key in enumerate(keys):
        found = accounts[key]
        holding = tokens.holding(found)
        if found is not None and holding is not None:
            yield {
                "accountIndex": index,
                "mint": str(holding.mint),
                "owner": str(holding.owner),
                "programId": str(found.owner),
                "uiTokenAmount": amount(holding.amount, decimals(holding.mint)),
            }


def _compiled(instruction: CompiledInstruction, stack_height: int | None) -> dict[str, Any]:
    return {
        "accounts": list(instruction.accounts),
        "data": base58(instruction.data),
        "programIdIndex": instruction.program_id_index,
        "stackHeight": stack_height,
    }


def _message(message: AnyMessage) -> dict[str, Any]:
    header = message.header
    body: dict[str, Any] = {
        "accountKeys": [str(key) for key in message.account_keys],
        "header": {
            "numReadonlySignedAccounts": header.num_readonly_signed_accounts,
            "numReadonlyUnsignedAccounts": header.num_readonly_unsigned_accounts,
            "numRequiredSignatures": header.num_required_signatures,
        },
        "instructions": [_compiled(each, 1) for each in message.instructions],
        "recentBlockhash": str(message.recent_blockhash),
    }
    return body if isinstance(message, Message) else {**body, "addressTableLookups": []}


def _parsed_message(message: AnyMessage) -> dict[str, Any]:
    keys = message.account_keys
    body = _message(message)
    header = message.header
    signers = header.num_required_signatures
    writable = (
        *range(signers - header.num_readonly_signed_accounts),
        *range(signers, len(keys) - header.num_readonly_unsigned_accounts),
    )
    return {
        "accountKeys": [
            {
                "pubkey": str(key),
                "signer": index < signers,
                "source": "transaction",
                "writable": index in writable,
            }
            for index, key in enumerate(keys)
        ],
        "instructions": [_parsed(each, keys) for each in body["instructions"]],
        "recentBlockhash": body["recentBlockhash"],
        **({} if isinstance(message, Message) else {"addressTableLookups": []}),
    }


def _parse_inner(meta: dict[str, Any], keys: Sequence[Pubkey]) -> None:
    for each in meta["innerInstructions"]:
        each["instructions"] = [_parsed(inner, keys) for inner in each["instructions"]]


def _parsed(compiled: dict[str, Any], keys: Sequence[Pubkey]) -> dict[str, Any]:
    """An instruction in words, if it is one of those that pay; else its accounts and data."""
    program = keys[compiled["programIdIndex"]]
    accounts = [str(keys[index]) for index in compiled["accounts"]]
    base = {"programId": str(program), "stackHeight": compiled["stackHeight"]}
    name, parsed = _words(program, accounts, from_base58(compiled["data"]))
    if parsed is None:
        return {**base, "accounts": accounts, "data": compiled["data"]}
    return {**base, "program": name, "parsed": parsed}


def _words(program: Pubkey, accounts: list[str], data: bytes) -> tuple[str, Any]:
    if program == tokens.MEMO_PROGRAM:
        return "spl-memo", data.decode(errors="replace")
    if program in PROGRAM_NAMES and data:
        return PROGRAM_NAMES[program], _token_words(accounts, data)
    if program == ASSOCIATED_TOKEN_PROGRAM_ID and data in ATA_INSTRUCTIONS:
        names = ("source", "account", "wallet", "mint", "systemProgram", "tokenProgram")
        words = {"type": ATA_INSTRUCTIONS[data], "info": dict(zip(names, accounts, strict=False))}
        return "spl-associated-token-account", words
    if program == SYSTEM_PROGRAM and data[:4] == SYSTEM_TRANSFER:
        info = {
            "source": accounts[0],
            "destination": accounts[1],
            "lamports": int.from_bytes(data[4:12], "little"),
        }
        return "system", {"type": "transfer", "info": info}
    return "", None


def _token_words(accounts: list[str], data: bytes) -> dict[str, Any] | None:
    units = int.from_bytes(data[1:9], "little")
    info: dict[str, Any]
    if data[0] == TRANSFER:
        source, destination, authority = accounts[:3]
        info = {"amount": str(units), "authority": authority}
        return {
            "type": "transfer",
            "info": {**info, "source": source, "destination": destination},
        }
    if data[0] == TRANSFER_CHECKED:
        source, of_mint, destination, authority = accounts[:4]
        info = {"mint": of_mint, "authority": authority, "tokenAmount": amount(units, data[9])}
        return {
            "type": "transferChecked",
            "info": {**info, "source": source, "destination": destination},
        }
    if data[0] == MINT_TO_CHECKED:
        of_mint, to, authority = accounts[:3]
        info = {"mint": of_mint, "account": to, "mintAuthority": authority}
        return {
            "type": "mintToChecked",
            "info": {**info, "tokenAmount": amount(units, data[9])},
        }
    return None


def _parsed_account(found: Account, decimals: Callable[[Pubkey], int]) -> dict[str, Any] | None:
    holding = tokens.holding(found)
    mint = tokens.mint(found)
    parsed: dict[str, Any]
    if holding is not None:
        digits = decimals(holding.mint)
        info: dict[str, Any] = {
            "isNative": False,
            "mint": str(holding.mint),
            "owner": str(holding.owner),
            "state": holding.state,
            "tokenAmount": amount(holding.amount, digits),
        }
        if holding.delegate is not None:
            info["delegate"] = str(holding.delegate)
            info["delegatedAmount"] = amount(holding.delegated, digits)
        if holding.close_authority is not None:
            info["closeAuthority"] = str(holding.close_authority)
        parsed = {"type": "account", "info": info}
    elif mint is not None:
        authorities = (mint.mint_authority, mint.freeze_authority)
        minting, freezing = (None if each is None else str(each) for each in authorities)
        parsed = {
            "type": "mint",
            "info": {
                "decimals": mint.decimals,
                "freezeAuthority": freezing,
                "isInitialized": True,
                "mintAuthority": minting,
                "supply": str(mint.supply),
            },
        }
    else:
        return None
    return {
        "parsed": parsed,
        "program": PROGRAM_NAMES[found.owner],
        "space": len(bytes(found.data)),
    }
